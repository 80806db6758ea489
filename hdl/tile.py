# SPDX-License-Identifier: Apache-2.0
"""One output tile: what goes into the accelerator's streams, and what must come out.

`reference_output` is the specification of the datapath in plain NumPy; the RTL, and every fast
path in `faultinj`, is compared with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hdl.config import AcceleratorConfig
from hdl.register_map import Word, parameter_words
from trilat.errors import InputError

# Of a job: the arrays that an accelerator with bounds per layer has only once for all columns.
_LIMITS = ("lo", "hi", "lo_is_bound", "hi_is_bound")
_SIGNS = {False: "unsigned", True: "signed"}


@dataclass(frozen=True, kw_only=True, eq=False)
class TileJob:
    """All that one output tile sends, in the accelerator's own integers.

    Attributes:
        acts: int64 (M, k_tiles * k_step) activation codes, zero past K.
        weights: int64 (k_tiles * k_step, cols) weight codes, zero past K and N.
        bias: int64 (cols,).
        shift: int64 (cols,), 0..31, or 0..63 (`requant` mult); unused where `raw`.
        lo, hi: int64 (cols,) saturation codes.
        lo_is_bound, hi_is_bound: bool (cols,); the limit is a protection bound.
        signed_in: activation codes are two's complement.
        signed_out: output codes are two's complement.
        raw: no requantization; the output rows are the sums themselves.
        input_lo, input_hi: bounds of the input check (ignored without one).
        multiplier: int64 (cols,), 0..65535, of the sums before the shift (`requant` mult); None
            stands for ones.
    """

    acts: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    shift: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    lo_is_bound: np.ndarray
    hi_is_bound: np.ndarray
    signed_in: bool
    signed_out: bool
    raw: bool
    input_lo: int
    input_hi: int
    multiplier: np.ndarray | None = None

    @property
    def m(self) -> int:
        """Output rows; of a weight-stationary array also the activation beats per K tile."""
        return int(self.acts.shape[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class TileOutput:
    """What an output tile gives.

    Attributes:
        rows: int64 (M, cols) codes, or sums where the job is raw.
        violations_in, violations_out: what the protection counters add.
    """

    rows: np.ndarray
    violations_in: int
    violations_out: int


def k_tiles(config: AcceleratorConfig, job: TileJob) -> int:
    """Return the K tiles of a job; for an output-stationary array they are K itself."""
    return int(job.acts.shape[1]) // config.k_step


def round_half_even_shift(value: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """Return round_half_even(value / 2**shift) in exact int64 arithmetic, shift >= 0."""
    value = np.asarray(value, dtype=np.int64)
    shift = np.asarray(shift, dtype=np.int64)
    floor = value >> shift
    rest = value - (floor << shift)
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 1)
    up = (rest > half) | ((rest == half) & (floor & 1 == 1))
    return floor + np.where(shift > 0, up, False)


def requantize(
    total: np.ndarray, multiplier: np.ndarray | None, shift: np.ndarray | int
) -> np.ndarray:
    """Return round_half_even(total * multiplier / 2**shift), exact for totals below 2**47."""
    scaled = total if multiplier is None else total * multiplier
    return round_half_even_shift(scaled, shift)


def wrap(value: np.ndarray, bits: int) -> np.ndarray:
    """Return `value` as a two's complement register of `bits` bits holds it."""
    half = np.int64(1) << (bits - 1)
    return ((np.asarray(value, dtype=np.int64) + half) & ((np.int64(1) << bits) - 1)) - half


def check_input(config: AcceleratorConfig, job: TileJob) -> tuple[np.ndarray, int]:
    """Return the activations behind the input check and the violations it counts."""
    if not config.checks_input:
        return job.acts, 0
    low, high = job.acts < job.input_lo, job.acts > job.input_hi
    if config.protect == "zero":
        checked = np.where(low | high, 0, job.acts)
    else:
        checked = np.clip(job.acts, job.input_lo, job.input_hi)
    violations = int((low | high).sum())
    if config.is_os and not job.input_lo <= 0 <= job.input_hi:
        # The beats carry zeros for the rows past M.
        violations += (config.rows - job.m) * job.acts.shape[1]
    return checked, violations


def finish(config: AcceleratorConfig, job: TileJob, acc: np.ndarray) -> tuple[np.ndarray, int]:
    """Turn the sums of all K, int64 (M, cols), into output rows and output violations."""
    total = wrap(acc, config.acc_bits) + job.bias
    if job.raw:
        return total, 0
    code = requantize(total, job.multiplier, job.shift)
    low, high = code < job.lo, code > job.hi
    violated = (low & job.lo_is_bound) | (high & job.hi_is_bound)
    out = np.clip(code, job.lo, job.hi)
    if not config.checks_output:
        return out, 0
    if config.protect == "zero":
        out = np.where(violated, 0, out)
    return out, int(violated.sum())


def check_job(config: AcceleratorConfig, job: TileJob) -> None:
    """Raise InputError where the accelerator has no parameters for what a job wants."""
    if job.signed_in not in config.act_signs:
        raise InputError(f"the tile has {_SIGNS[job.signed_in]} activations, the accelerator "
                         f"act_sign {config.act_sign}")  # fmt: skip
    if job.multiplier is not None and not config.multiplies:
        raise InputError("the tile has multipliers, the accelerator requant shift")
    if config.layer_bounds:
        for name in _LIMITS:
            if (getattr(job, name) != getattr(job, name)[0]).any():
                raise InputError(f"the columns of the tile differ in {name}, the accelerator has "
                                 "bounds layer")  # fmt: skip


def with_common_limits(config: AcceleratorConfig, job: TileJob) -> TileJob:
    """Return a job with column 0's limits in all columns, if the accelerator has bounds per layer;
    otherwise the job itself.
    """
    if not config.layer_bounds:
        return job
    return replace(job, **{n: np.full_like(getattr(job, n), getattr(job, n)[0]) for n in _LIMITS})


def reference_output(config: AcceleratorConfig, job: TileJob) -> TileOutput:
    """Return what the accelerator must give for a job without faults.

    Raises:
        InputError: the accelerator cannot run the job, see `check_job`.
    """
    check_job(config, job)
    acts, violations_in = check_input(config, job)
    acc = acts.astype(np.int64) @ job.weights.astype(np.int64)
    rows, violations_out = finish(config, job, acc)
    return TileOutput(rows=rows, violations_in=violations_in, violations_out=violations_out)


def param_words(config: AcceleratorConfig, job: TileJob) -> list[int]:
    """Return a job's 32-bit words of `s_axis_param`, laid out as `parameter_words` says.

    Raises:
        InputError: the accelerator cannot run the job, see `check_job`.
    """
    check_job(config, job)
    layout = parameter_words(config)
    column = {name: getattr(job, name) for name in ("bias", "shift", *_LIMITS)}
    ones = np.ones(config.cols, dtype=np.int64)
    column["multiplier"] = ones if job.multiplier is None else job.multiplier
    header = {
        "m": job.m,
        "k_tiles": k_tiles(config, job),
        "signed_in": job.signed_in,
        "raw": job.raw,
        "signed_out": job.signed_out,
        "input_lo": job.input_lo,
        "input_hi": job.input_hi,
        # Of the columns, where they have none of their own: the same in all.
        **{name: int(column[name][0]) for name in _LIMITS},
    }
    words = [_encode(word, header) for word in layout.header]
    for c in range(config.cols):
        values = {name: int(array[c]) for name, array in column.items()}
        words += [_encode(word, values) for word in layout.column]
    return words


def _encode(word: Word, values: Mapping[str, int]) -> int:
    return word.encode(**{field.name: values[field.name] for field in word.fields})


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamBeats:
    """What a job sends on the two operand streams, in order.

    Attributes:
        weights: int64 (beats, cols), one element per column.
        acts: int64 (beats, rows), one element per row.
        weight_last, act_last: beats after which tlast recurs.
    """

    weights: np.ndarray
    acts: np.ndarray
    weight_last: int
    act_last: int


def stream_beats(config: AcceleratorConfig, job: TileJob) -> StreamBeats:
    """Return a job's weight and activation beats.

    Weight-stationary: for every K tile a block of `rows` weight beats, row rows - 1 first, and M
    activation beats. Output-stationary: for every k a weight beat and an activation beat of the M
    codes of that k, zero past M.
    """
    if config.is_os:
        acts = np.zeros((job.acts.shape[1], config.rows), dtype=np.int64)
        acts[:, : job.m] = job.acts.T
        count = len(acts)
        return StreamBeats(weights=job.weights, acts=acts, weight_last=count, act_last=count)
    tiles = k_tiles(config, job)
    blocks = job.weights.reshape(tiles, config.rows, config.cols)[:, ::-1]
    return StreamBeats(
        weights=blocks.reshape(-1, config.cols),
        acts=job.acts.reshape(job.m, tiles, config.rows).swapaxes(0, 1).reshape(-1, config.rows),
        weight_last=config.rows,
        act_last=job.m,
    )
