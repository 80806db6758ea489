# SPDX-License-Identifier: Apache-2.0
"""What output tiles become under register faults, derived from the published schedule.

No cycle is simulated: the schedule says what a register holds in a cycle, so a fault names the
beats that it meets, and only their rows and columns are computed again, at the registers' widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from faultinj import array_faults, lane_faults, os_faults
from faultinj.faults import RegisterFault, check_register_fault
from faultinj.tile_part import TilePart
from hdl.config import AcceleratorConfig
from hdl.tile import TileJob, TileOutput, check_input, reference_output


def predict(config: AcceleratorConfig, job: TileJob, faults: Sequence[RegisterFault]) -> TileOutput:
    """Return what the accelerator must output for a job under simultaneous register faults.

    Faults in cycles in which their register holds nothing of this tile change nothing.

    Args:
        config: the accelerator.
        job: the output tile, run alone, or in a stream without stalls where no fault is in a
            loading weight of the first K tile or in a lane's parameters.
        faults: all of this tile; `layer`, `image` and `tile` are not looked at.

    Raises:
        InputError: a fault names a register or a bit that the accelerator does not have.
    """
    for fault in faults:
        check_register_fault(config, fault)
    output = reference_output(config, job)
    part = TilePart(
        acts=check_input(config, job)[0].astype(np.int64),
        weights=job.weights.astype(np.int64),
        bias=job.bias,
        multiplier=np.ones_like(job.bias) if job.multiplier is None else job.multiplier,
        shift=job.shift,
        lo=job.lo,
        hi=job.hi,
        lo_is_bound=job.lo_is_bound,
        hi_is_bound=job.hi_is_bound,
        index=np.arange(job.m),
        cols=np.arange(config.cols),
        m=job.m,
        signed_in=job.signed_in,
        signed_out=job.signed_out,
        raw=job.raw,
    )
    rows, cols = touched(config, part, faults)
    if not (rows.any() and cols.any()):
        return output
    codes, violated = faulty_outputs(config, part.taken(rows, cols), faults)
    before = golden_outputs(config, part.taken(rows, cols))[1]
    changed = output.rows.copy()
    changed[np.ix_(rows, cols)] = codes
    return TileOutput(
        rows=changed,
        violations_in=output.violations_in,
        violations_out=output.violations_out + int(violated.sum()) - int(before.sum()),
    )


def touched(
    config: AcceleratorConfig, part: TilePart, faults: Sequence[RegisterFault]
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of a part outside of which no fault changes anything, as masks."""
    rows = np.zeros(len(part.index), dtype=bool)
    cols = np.zeros(len(part.cols), dtype=bool)
    for fault in faults:
        if lane_faults.is_behind_sums(fault):
            one = lane_faults.touched(config, part, fault)
        else:
            one = (os_faults if config.is_os else array_faults).touched(config, part, fault)
        if one[0].any():
            rows |= one[0]
            cols |= one[1]
    return rows, cols


def faulty_outputs(
    config: AcceleratorConfig, part: TilePart, faults: Sequence[RegisterFault]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs of a part under faults, as `lane_faults.finished`."""
    before = [fault for fault in faults if not lane_faults.is_behind_sums(fault)]
    sums = (os_faults if config.is_os else array_faults).faulty_sums(config, part, before)
    return lane_faults.finished(config, part, sums, faults)


def golden_outputs(config: AcceleratorConfig, part: TilePart) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs of a part without faults, as `lane_faults.finished`."""
    sums = (part.acts.astype(np.float64) @ part.weights.astype(np.float64)).astype(np.int64)
    return lane_faults.finished(config, part, sums)
