# SPDX-License-Identifier: Apache-2.0
"""Windows of tables against slices of padded arrays; one alone against many."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from faultinj.tables import Table, Window, empty_table, gather, place

REACH = 12


def table_of(channels, height, width, images, rng) -> Table:
    table = empty_table(
        (channels, height, width), images, torch.int8, torch.device("cpu"), lowest=-128
    )
    table.maps().copy_(torch.from_numpy(rng.integers(-127, 128, tuple(table.maps().shape))))
    return table


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("height,width", [(1, 1), (1, 6), (5, 4)])
@pytest.mark.parametrize("lowest", [False, True])
def test_rectangles_alone_and_together(channels, height, width, lowest):
    rng = np.random.default_rng(channels + height)
    table = table_of(channels, height, width, 3, rng)
    kept = table.rows.clone()
    fill = -128 if lowest else 0
    padded = np.pad(
        table.maps().numpy(), ((0, 0), (REACH, REACH), (REACH, REACH), (0, 0)), constant_values=fill
    )
    for _ in range(60):
        h, w = rng.integers(1, 8, 2).tolist()
        image = torch.from_numpy(rng.integers(0, 3, 4))
        top, left = torch.from_numpy(rng.integers(-REACH + 7, REACH - 7, (2, 4)))
        if (h, w) == (1, 1) == (height, width):  # a pixel is taken from its map alone
            top, left = torch.zeros((2, 4), dtype=torch.int64)
        together = gather(table, image, top, left, (h, w), lowest=lowest)
        for i in range(4):
            one = slice(i, i + 1)
            alone = gather(table, image[one], top[one], left[one], (h, w), lowest=lowest)
            y, x = int(top[i]) + REACH, int(left[i]) + REACH
            expected = padded[int(image[i]), y : y + h, x : x + w]
            np.testing.assert_array_equal(alone[0].numpy(), expected)
            np.testing.assert_array_equal(together[i].numpy(), expected)
            assert alone.is_contiguous()
            alone.fill_(5)  # a copy: the table stays
    assert torch.equal(table.rows, kept)


def test_windows_are_placed_alone_as_together():
    rng = np.random.default_rng(0)
    for _ in range(100):
        h, w, height, width = rng.integers(1, 7, 4).tolist()
        codes = torch.from_numpy(rng.integers(-9, 9, (3, h, w, 8)).astype(np.int8))
        top, left, first, other = torch.from_numpy(rng.integers(-4, 5, (4, 3)))
        patches = torch.full((3, height, width, 8), 100, dtype=torch.int8)
        alone = patches.clone()
        place(Window(codes=codes, top=top, left=left), patches, first, other)
        for i in range(3):
            one = slice(i, i + 1)
            window = Window(codes=codes[one], top=top[one], left=left[one])
            place(window, alone[one], first[one], other[one])
        assert torch.equal(alone, patches)
