# SPDX-License-Identifier: Apache-2.0
"""What register faults do to the sums of output-stationary tiles; part of `tile_faults`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from faultinj.faults import RegisterFault
from faultinj.products import products
from faultinj.register_times import beats_met
from faultinj.tile_part import Corruption, TilePart
from hdl.config import AcceleratorConfig
from hdl.tile import wrap


def faulty_sums(
    config: AcceleratorConfig, part: TilePart, faults: Sequence[RegisterFault]
) -> np.ndarray:
    """Return the sums over all K that reach the output ring, int64 (rows, columns)."""
    corruption = Corruption(config, part.signed_in, faults)
    count = part.k_tiles(config)
    one = np.zeros(1, dtype=np.int64)
    hits = [beats_met(config, part.m, count, one, fault)[:, 0] for fault in faults]
    acc = (part.acts.astype(np.float64) @ part.weights.astype(np.float64)).astype(np.int64)
    spread = [hit[:, None] for hit in hits]
    in_weights = {col for _, col in corruption.places("weight_skew", "pe_weight")}
    for row, group in _reached(config, part, faults):
        rows = np.flatnonzero(part.index == row)
        columns = np.flatnonzero(part.cols // config.dsp_pack == group)
        cols = part.cols[columns]
        masks = {col: cols == col for col in set(cols.tolist())}
        code = part.acts[rows]
        for stage in range(row + 1):
            code = corruption.applied(code, "skew", row, stage, hits)
        for left in range(group + 1):
            code = corruption.applied(code, "pe_activation", row, left * config.dsp_pack, hits)
        weight = part.weights[:, columns]
        for col in in_weights.intersection(masks):
            mine = masks[col]
            own = weight[:, mine]
            for stage in range(group + 1):
                own = corruption.applied(own, "weight_skew", stage, col, spread)
            for upper in range(row + 1):
                own = corruption.applied(own, "pe_weight", upper, col, spread)
            weight[:, mine] = own
        product = products(config, cols, code[:, :, None], weight)
        for col, mine in masks.items():
            own = corruption.applied(product[:, :, mine], "product", row, col, spread)
            sums = _accumulated(config, corruption, own, row, col, hits)
            acc[np.ix_(rows, columns[mine])] = sums
    return acc


def _reached(
    config: AcceleratorConfig, part: TilePart, faults: Sequence[RegisterFault]
) -> list[tuple[int, int]]:
    """Return (row, group of columns) of sums that a fault can change, of those that there are."""
    present = (set(part.index.tolist()), set(part.cols.tolist()))
    places: set[tuple[int, int]] = set()
    for fault in faults:
        rows, cols = range(fault.row, fault.row + 1), range(fault.col, fault.col + 1)
        if fault.register in ("skew", "pe_activation"):
            cols = range(0 if fault.register == "skew" else fault.col, config.cols)
        elif fault.register in ("weight_skew", "pe_weight"):
            rows = range(0 if fault.register == "weight_skew" else fault.row, config.rows)
        places |= {(r, c) for r in rows for c in cols if r in present[0] and c in present[1]}
    return sorted({(row, config.col_group(col)) for row, col in places})


def _accumulated(
    config: AcceleratorConfig,
    corruption: Corruption,
    product: np.ndarray,
    row: int,
    col: int,
    hits: Sequence[np.ndarray],
) -> np.ndarray:
    """Return what PE(row, col) adds up from its products, int64 (rows, K, n) -> (rows, n)."""
    bits = config.acc_bits
    own = corruption.at("accumulator", row, col)
    sums = np.cumsum(product, axis=1)
    # A changed sum is carried on to all that follow.
    carried = np.zeros_like(sums[:, 0])
    met = np.array([hits[i] for i in own], dtype=bool).reshape(len(own), sums.shape[1])
    for k in np.flatnonzero(met.any(axis=0)):
        right = wrap(sums[:, k] + carried, bits)
        now = [np.asarray(hit[k]) for hit in hits]
        carried += corruption.applied(right, "accumulator", row, col, now) - right
    return wrap(sums[:, -1] + carried, bits)


def touched(
    config: AcceleratorConfig, part: TilePart, fault: RegisterFault
) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows and which columns of a part a fault can change, as boolean masks."""
    one = np.zeros(1, dtype=np.int64)
    met = beats_met(config, part.m, part.k_tiles(config), one, fault).any()
    rows, cols = part.index == fault.row, part.cols == fault.col
    if fault.register in ("weight_skew", "pe_weight"):
        rows = part.index >= (0 if fault.register == "weight_skew" else fault.row)
    if fault.register in ("skew", "pe_activation"):
        cols = part.cols >= (0 if fault.register == "skew" else fault.col)
    return rows & met, cols
