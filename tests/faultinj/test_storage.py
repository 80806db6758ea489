# SPDX-License-Identifier: Apache-2.0
"""Exactly the named bit of a stored code changes, for every code at every width."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from faultinj.storage import corrupt
from quant.engine import code_dtype
from quant.network import TensorFormat


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_bit_of_every_code(bits, signed, layout):
    fmt = TensorFormat(bits=bits, signed=signed, exponent=0)
    count = 1 << bits
    values = np.arange(fmt.lo, fmt.hi + 1)
    image = np.stack([values, values[::-1]]).reshape(1, 2, 2, count // 2)
    codes = torch.from_numpy(np.repeat(image, bits, axis=0)).to(code_dtype(fmt))
    codes = codes.contiguous(memory_format=layout)
    for element in range(2 * count):
        changed = codes.clone()
        rows = np.arange(bits)  # image b has bit b flipped
        corrupt(changed, fmt, rows, np.full(bits, element), rows)
        difference = (changed != codes).flatten(1)
        assert difference.sum(dim=1).tolist() == [1] * bits
        assert difference[:, element].all()
        old = codes.flatten(1)[:, element].to(torch.int64) & (count - 1)
        new = changed.flatten(1)[:, element].to(torch.int64)
        assert fmt.lo <= int(new.min()) and int(new.max()) <= fmt.hi
        assert ((new & (count - 1)) ^ old).tolist() == [1 << bit for bit in range(bits)]


def test_several_bits_of_one_code_and_repeated_ones():
    fmt = TensorFormat(bits=8, signed=True, exponent=0)
    codes = torch.zeros((2, 1, 1, 3), dtype=torch.int8)
    images, elements = np.array([0, 0, 0, 1]), np.array([1, 1, 1, 2])
    corrupt(codes, fmt, images, elements, np.array([0, 7, 7, 3]))
    assert codes.flatten().tolist() == [0, -127, 0, 0, 0, 8]
    corrupt(codes, fmt, images, elements, np.array([0, 7, 7, 2]), "stuck1")
    assert codes.flatten().tolist() == [0, -127, 0, 0, 0, 12]
    corrupt(codes, fmt, images, elements, np.array([0, 7, 7, 3]), "stuck0")
    assert codes.flatten().tolist() == [0, 0, 0, 0, 0, 4]
    none = np.zeros(0, dtype=np.int64)
    corrupt(codes, fmt, none, none, none)
    assert codes.flatten().tolist() == [0, 0, 0, 0, 0, 4]
