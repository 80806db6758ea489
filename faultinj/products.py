# SPDX-License-Identifier: Apache-2.0
"""What the array's multipliers make of operands that faults may have changed."""

from __future__ import annotations

import numpy as np

from hdl.config import AcceleratorConfig
from hdl.tile import wrap


def products(
    config: AcceleratorConfig, cols: np.ndarray, operands: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return what the product registers get, int64 (..., n).

    Where columns share a multiplier block, a product that its lane does not hold looks negative,
    and the next lane makes up for a borrow that there was not.

    Args:
        config: the accelerator.
        cols: int64 (n,), which column of the array each one is, as in `TilePart`: ascending in
            each of the tiles that stand side by side. Of a block with such a product it has all.
        operands, weights: int64, of the registers in front; they broadcast to (..., n).
    """
    bits, pack = config.product_bits, config.dsp_pack
    exact = operands * weights
    if pack == 1:
        return wrap(exact, bits)
    if (exact < 1 << (bits - 1)).all():
        return exact
    tile = np.cumsum(np.diff(cols, prepend=-1) <= 0)
    block = tile * config.col_groups + cols // pack
    made = np.zeros_like(exact)
    for one in np.unique(block):
        columns = np.flatnonzero(block == one)
        lows = (cols[columns] % pack) * bits
        result = (exact[..., columns] << lows).sum(axis=-1)
        for column, low in zip(columns, lows, strict=True):
            borrow = (result >> (low - 1)) & 1 if low else 0
            made[..., column] = wrap((result >> low) + borrow, bits)
    return made
