# SPDX-License-Identifier: Apache-2.0
"""What an output tile becomes under register faults, derived from the published schedule.

No cycle is simulated: the schedule says which beat a register holds in a cycle, so a fault names
the beats that it meets, and only those pass through the array again, at the registers' widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from faultinj.faults import RegisterFault, check_register_fault, corrupted
from faultinj.os_faults import correct_sums
from hdl.config import AcceleratorConfig
from hdl.schedule import act_register_cycle, k_tile_period
from hdl.tile import TileJob, TileOutput, check_input, finish, k_tiles, wrap


def predict(config: AcceleratorConfig, job: TileJob, faults: Sequence[RegisterFault]) -> TileOutput:
    """Return what the accelerator must output for a job under simultaneous register faults.

    Faults in cycles in which their register holds no beat of this tile change nothing.

    Args:
        config: the accelerator.
        job: the output tile, run alone or in a stream without stalls.
        faults: all of this tile; `layer`, `image` and `tile` are not looked at.

    Raises:
        InputError: a fault names a register or a bit that the accelerator does not have.
    """
    for fault in faults:
        check_register_fault(config, fault)
    acts, violations_in = check_input(config, job)
    # Exact: sums of an accelerator fit 32 bits.
    acc = (acts.astype(np.float64) @ job.weights.astype(np.float64)).astype(np.int64)
    hits = np.array([_beats_met(config, job, fault) for fault in faults], dtype=bool)
    if config.is_os:
        if len(faults):
            correct_sums(config, job, acts, faults, hits[:, :, 0], acc)
        rows, violations_out = finish(config, job, acc)
        return TileOutput(rows=rows, violations_in=violations_in, violations_out=violations_out)
    ks, ms = np.nonzero(hits.any(axis=0)) if len(faults) else np.zeros((2, 0), dtype=np.int64)
    if len(ks):
        lanes = np.arange(config.rows)
        beats = acts[ms[:, None], ks[:, None] * config.rows + lanes]
        weights = job.weights[ks[:, None] * config.rows + lanes]
        clean = np.einsum("br,brc->bc", beats, weights)
        faulty = _through_array(config, job.signed_in, beats, weights, faults, hits[:, ks, ms])
        np.add.at(acc, ms, faulty - clean)
    rows, violations_out = finish(config, job, acc)
    return TileOutput(rows=rows, violations_in=violations_in, violations_out=violations_out)


def _beats_met(config: AcceleratorConfig, job: TileJob, fault: RegisterFault) -> np.ndarray:
    """Return which beats a fault meets, bool (k_tiles, M)."""
    count, period = k_tiles(config, job), k_tile_period(config, job.m)
    if fault.cycle is None:
        return np.ones((count, job.m), dtype=bool)
    met = np.zeros((count, job.m), dtype=bool)
    k, beat = divmod(fault.cycle - first_cycle(config, job.m, fault), period)
    if 0 <= k < count:
        if fault.register == "weight_active":
            met[k, beat:] = True  # until the next weight is swapped in
        else:
            met[k, beat : beat + 1] = True
    return met


def first_cycle(config: AcceleratorConfig, m: int, fault: RegisterFault) -> int:
    """Return the cycle in which the register of a fault holds (or meets) the first beat."""
    if fault.register == "skew":
        return 1 + fault.col
    if fault.register == "weight_skew":
        return 1 + fault.row
    if fault.register == "deskew":
        return config.rows + config.col_group(fault.col) + 4 + fault.row
    later = {"product": 1, "psum": 2, "accumulator": 2}.get(fault.register, 0)
    return act_register_cycle(config, m, fault.row, fault.col, 0, 0) + later


def _through_array(
    config: AcceleratorConfig,
    signed: bool,
    beats: np.ndarray,
    weights: np.ndarray,
    faults: Sequence[RegisterFault],
    hits: np.ndarray,
) -> np.ndarray:
    """Return the sums with which beats leave the array, int64 (B, cols).

    Args:
        config: the accelerator.
        signed: how activation codes are read.
        beats: (B, rows) codes behind the input check.
        weights: (B, rows, cols) weights that each beat meets.
        faults: the faults.
        hits: bool (faults, B), which beats each one meets.
    """

    def corrupt(value: np.ndarray, register: str, row: int, col: int) -> np.ndarray:
        return corrupted(config, signed, value, (register, row, col), faults, hits)

    psum = np.zeros((len(beats), config.cols), dtype=np.int64)
    for row in range(config.rows):
        code = beats[:, row]
        for stage in range(row + 1):
            code = corrupt(code, "skew", row, stage)
        weight = weights[:, row].copy()
        operand = np.empty_like(psum)
        for col in range(config.cols):
            code = corrupt(code, "pe_activation", row, col)
            weight[:, col] = corrupt(weight[:, col], "weight_active", row, col)
            operand[:, col] = code
        product = operand * weight
        for col in range(config.cols):
            product[:, col] = corrupt(product[:, col], "product", row, col)
        psum = wrap(psum + product, config.psum_bits(row))
        for col in range(config.cols):
            psum[:, col] = corrupt(psum[:, col], "psum", row, col)
    for col in range(config.cols):
        for stage in range(config.col_groups - 1 - config.col_group(col)):
            psum[:, col] = corrupt(psum[:, col], "deskew", stage, col)
    return psum
