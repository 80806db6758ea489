# SPDX-License-Identifier: Apache-2.0
"""What register faults do to the sums of an output-stationary tile; part of `tile_faults`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from faultinj.faults import RegisterFault, corrupted
from hdl.config import AcceleratorConfig
from hdl.tile import TileJob, wrap


def correct_sums(
    config: AcceleratorConfig,
    job: TileJob,
    acts: np.ndarray,
    faults: Sequence[RegisterFault],
    hits: np.ndarray,
    acc: np.ndarray,
) -> None:
    """Put the sums that faulty registers lead to in place of the right ones.

    Args:
        config: the accelerator.
        job: the output tile.
        acts: its codes behind the input check, (M, K).
        faults: the faults.
        hits: bool (faults, K), which beats each one meets.
        acc: int64 (M, cols), the sums; changed in place.
    """

    def corrupt(value: np.ndarray, register: str, row: int, col: int) -> np.ndarray:
        return corrupted(config, job.signed_in, value, (register, row, col), faults, hits)

    for row, col in _reached(config, job.m, faults):
        code = acts[row]
        for stage in range(row + 1):
            code = corrupt(code, "skew", row, stage)
        for left in range(col + 1):
            code = corrupt(code, "pe_activation", row, left)
        weight = job.weights[:, col]
        for stage in range(col + 1):
            weight = corrupt(weight, "weight_skew", stage, col)
        for above in range(row + 1):
            weight = corrupt(weight, "pe_weight", above, col)
        product = corrupt(code * weight, "product", row, col)
        acc[row, col] = _accumulated(config, product, row, col, faults, hits)


def _reached(
    config: AcceleratorConfig, m: int, faults: Sequence[RegisterFault]
) -> list[tuple[int, int]]:
    """Return the PEs of rows below M whose sums a fault can change."""
    places: set[tuple[int, int]] = set()
    for fault in faults:
        rows, cols = range(fault.row, fault.row + 1), range(fault.col, fault.col + 1)
        if fault.register in ("skew", "pe_activation"):
            cols = range(0 if fault.register == "skew" else fault.col, config.cols)
        elif fault.register in ("weight_skew", "pe_weight"):
            rows = range(0 if fault.register == "weight_skew" else fault.row, config.rows)
        places |= {(row, col) for row in rows for col in cols if row < m}
    return sorted(places)


def _accumulated(
    config: AcceleratorConfig,
    product: np.ndarray,
    row: int,
    col: int,
    faults: Sequence[RegisterFault],
    hits: np.ndarray,
) -> int:
    """Return what PE(row, col) adds up from its products, int64 (K,)."""
    place, bits = ("accumulator", row, col), config.acc_bits
    own = np.array([(f.register, f.row, f.col) == place for f in faults], dtype=bool)
    sums = np.cumsum(product)
    # A changed sum is carried on to all that follow.
    carried = np.int64(0)
    for k in np.flatnonzero(hits[own].any(axis=0)):
        right = wrap(sums[k : k + 1] + carried, bits)
        wrong = corrupted(config, True, right, place, faults, hits[:, k : k + 1])
        carried += (wrong - right)[0]
    return int(wrap(sums[-1] + carried, bits))
