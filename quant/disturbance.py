# SPDX-License-Identifier: Apache-2.0
"""Weights that read other than they were written, in a training step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def codes_at(values: Tensor, scale: Tensor, index: Tensor) -> np.ndarray:
    """Return some of a layer's weights in units of their scales, float32 (F,), exact if quantized.

    Args:
        values: (out, ...), on the CPU.
        scale: of each output channel, in the dimensions of `values`.
        index: int64 (F,), into the flat weights.
    """
    with torch.no_grad():
        found = values.reshape(-1)[index] / _scales_at(values, scale, index)
    return found.numpy()


def substituted(values: Tensor, scale: Tensor, index: Tensor, codes: np.ndarray) -> Tensor:
    """Return a layer's weights with some codes replaced; gradients pass straight through.

    Args:
        values, scale, index: as in `codes_at`.
        codes: int8 (F,), what is read in their place.
    """
    read = torch.from_numpy(codes).to(values.dtype) * _scales_at(values, scale, index)
    return _Substitute.apply(values, index, read)


def _scales_at(values: Tensor, scale: Tensor, index: Tensor) -> Tensor:
    return scale.reshape(-1)[index // values[0].numel()]


class _Substitute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, read: Tensor) -> Tensor:
        result = values.clone(memory_format=torch.contiguous_format)
        result.view(-1)[index] = read
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None
