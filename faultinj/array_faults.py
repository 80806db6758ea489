# SPDX-License-Identifier: Apache-2.0
"""What register faults do to the sums of weight-stationary tiles; part of `tile_faults`.

Only the K tiles and registers that a fault meets are computed again, all rows and columns at a
time. Where faults change operands alone no sum can overflow, so only their rows of PEs count;
elsewhere sums go through the registers below, at the width of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from faultinj.faults import RegisterFault
from faultinj.products import products
from faultinj.register_times import OPERANDS, beats_met, psum_words_met, weights_met
from faultinj.tile_part import Corruption, TilePart
from hdl.config import AcceleratorConfig
from hdl.tile import wrap

_WAY_IN = ("weight_skew", "weight_loading")
_IN_ARRAY = ("skew", "pe_activation", "weight_active", "product", "psum", "deskew")


def faulty_sums(
    config: AcceleratorConfig, part: TilePart, faults: Sequence[RegisterFault]
) -> np.ndarray:
    """Return the sums over all K that reach the output ring, int64 (rows, columns)."""
    corruption = Corruption(config, part.signed_in, faults)
    k_tiles, rows = part.k_tiles(config), config.rows
    acts = part.acts.reshape(len(part.acts), k_tiles, rows)
    right = part.weights.reshape(k_tiles, rows, -1)
    weights = _loaded_weights(config, part, corruption, right)
    hits = [
        beats_met(config, part.m, k_tiles, part.index, fault)
        if fault.register in _IN_ARRAY
        else np.zeros((k_tiles, len(part.index)), dtype=bool)
        for fault in faults
    ]
    met = np.array(hits, dtype=bool).reshape(-1, k_tiles, len(part.index)).any(axis=(0, 2))
    ks = np.flatnonzero(met)
    delta = _deltas(config, part, corruption, acts[:, ks], weights[ks], [h[ks] for h in hits])
    words = corruption.places("psum_buffer")
    # Exact in float64: sums of an accelerator fit 32 bits.
    flat = weights.reshape(part.weights.shape).astype(np.float64)
    total = (part.acts.astype(np.float64) @ flat).astype(np.int64) + delta.sum(axis=0)
    for word, col in words:
        for i in np.flatnonzero(part.index == word):
            columns = np.flatnonzero(part.cols == col)
            beats = np.einsum("kr,krc->kc", acts[i], weights[:, :, columns])
            beats[ks] += delta[:, i, columns]
            total[i, columns] = _accumulated(config, part, corruption, beats, word, col)
    return total


def _loaded_weights(
    config: AcceleratorConfig, part: TilePart, corruption: Corruption, right: np.ndarray
) -> np.ndarray:
    """Return the weights (k_tiles, rows, n) as faults on their way in leave them."""
    weights = right
    for col in sorted({col for _, col in corruption.places(*_WAY_IN)}):
        columns = part.cols == col
        changed = weights[:, :, columns]
        # In the order of the way: the skew, then the rows from the top.
        for name in _WAY_IN:
            for row, other in corruption.places(name):
                if other == col:
                    hits = [
                        weights_met(config, part.m, len(weights), f)[:, :, None]
                        if f.register in _WAY_IN
                        else np.zeros(1, dtype=bool)
                        for f in corruption.faults
                    ]
                    changed = corruption.applied(changed, name, row, col, hits)
        weights = weights.copy() if weights is right else weights
        weights[:, :, columns] = changed
    return weights


def _deltas(
    config: AcceleratorConfig,
    part: TilePart,
    corruption: Corruption,
    acts: np.ndarray,
    weights: np.ndarray,
    hits: Sequence[np.ndarray],
) -> np.ndarray:
    """Return what faults in the array add to each K tile's sums, int64 (k, rows, n).

    Args:
        config: the accelerator.
        part: gives columns and signs.
        corruption: all faults.
        acts: (rows, k, PE rows), the K tiles that are met.
        weights: (k, PE rows, n).
        hits: of every fault, bool (k, rows).
    """
    codes = acts.transpose(1, 0, 2)
    shape = (codes.shape[0], codes.shape[1], len(part.cols))
    if not codes.size:
        return np.zeros(shape, dtype=np.int64)
    operand_rows = {row for row, _ in corruption.places("skew", "pe_activation", "weight_active")}
    sum_rows = {row for row, _ in corruption.places("product", "psum")}
    if corruption.places("deskew"):
        sum_rows.add(config.rows - 1)
    if not sum_rows:
        delta = np.zeros(shape, dtype=np.int64)
        for row in operand_rows:
            clean = codes[:, :, row, None] * weights[:, None, row]
            delta += _product(config, part, corruption, codes, weights, hits, row) - clean
        return delta
    first = min(sum_rows | operand_rows)
    clean = np.matmul(codes, weights)
    above = np.matmul(codes[:, :, :first], weights[:, :first])
    spread = [hit[:, :, None] for hit in hits]

    def in_columns(value: np.ndarray, register: str, row: int) -> np.ndarray:
        for other, col in corruption.places(register):
            if other == row:
                columns = part.cols == col
                value[:, :, columns] = corruption.applied(
                    value[:, :, columns], register, row, col, spread
                )
        return value

    psum = above
    for row in range(first, config.rows):
        product = _product(config, part, corruption, codes, weights, hits, row)
        product = in_columns(product, "product", row)
        psum = in_columns(wrap(psum + product, config.psum_bits(row)), "psum", row)
    for stage, col in corruption.places("deskew"):
        columns = part.cols == col
        psum[:, :, columns] = corruption.applied(psum[:, :, columns], "deskew", stage, col, spread)
    return psum - clean


def _product(
    config: AcceleratorConfig,
    part: TilePart,
    corruption: Corruption,
    codes: np.ndarray,
    weights: np.ndarray,
    hits: Sequence[np.ndarray],
    row: int,
) -> np.ndarray:
    """Return the products of a row of PEs under faults in its operands, int64 (k, rows, n)."""
    code = codes[:, :, row]
    for stage in range(row + 1):
        code = corruption.applied(code, "skew", row, stage, hits)
    operand = np.repeat(code[:, :, None], len(part.cols), axis=2)
    for other, col in corruption.places("pe_activation"):
        if other == row:  # wrong from here on to the right
            code = corruption.applied(code, "pe_activation", row, col, hits)
            operand[:, :, part.cols >= col] = code[:, :, None]
    taken = weights[:, None, row]
    changed = [col for other, col in corruption.places("weight_active") if other == row]
    if changed:
        taken = np.repeat(taken, operand.shape[1], axis=1)
    spread = [hit[:, :, None] for hit in hits]
    for col in changed:
        columns = part.cols == col
        taken[:, :, columns] = corruption.applied(
            taken[:, :, columns], "weight_active", row, col, spread
        )
    return products(config, part.cols, operand, taken)


def _accumulated(
    config: AcceleratorConfig,
    part: TilePart,
    corruption: Corruption,
    beats: np.ndarray,
    word: int,
    col: int,
) -> np.ndarray:
    """Return the total of a faulty word of the psum buffer from its K tiles' sums, (k, n)."""
    met = [
        psum_words_met(config, part.m, len(beats), fault)
        if fault.register == "psum_buffer"
        else np.zeros(len(beats), dtype=bool)
        for fault in corruption.faults
    ]
    total = np.zeros(beats.shape[1], dtype=np.int64)
    for k, beat in enumerate(beats):
        total = wrap(total + beat, config.acc_bits)
        hits = [np.asarray(hit[k]) for hit in met]
        total = corruption.applied(total, "psum_buffer", word, col, hits)
    return total


def touched(
    config: AcceleratorConfig, part: TilePart, fault: RegisterFault
) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows and which columns of a part a fault can change, as boolean masks."""
    k_tiles = part.k_tiles(config)
    if fault.register in _WAY_IN:
        rows = np.full(len(part.index), bool(weights_met(config, part.m, k_tiles, fault).any()))
    elif fault.register == "psum_buffer":
        met = psum_words_met(config, part.m, k_tiles, fault).any()
        rows = (part.index == fault.row) & met
    else:
        rows = np.asarray(beats_met(config, part.m, k_tiles, part.index, fault).any(axis=0))
    if fault.register == "skew":
        return rows, np.ones(len(part.cols), dtype=bool)
    if fault.register == "pe_activation":
        return rows, part.cols >= fault.col
    return rows, part.cols == fault.col


__all__ = ["OPERANDS", "faulty_sums", "touched"]
