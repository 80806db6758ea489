# SPDX-License-Identifier: Apache-2.0
"""Test vectors that accompany the Verilog: output tiles as the streams carry them.

What must come out is `hdl.tile.reference_output`'s; the testbench in the folder knows beats alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hdl.config import AcceleratorConfig
from hdl.schedule import GemmShape, network_cycles
from hdl.tile import (
    TileJob,
    k_tiles,
    param_words,
    reference_output,
    stream_beats,
    with_common_limits,
)

SEED = 1
_Draw = Callable[[int, int], int]


def bench_jobs(config: AcceleratorConfig) -> list[TileJob]:
    """Return the output tiles of the testbench: short and long, edge codes, raw, protection.

    The same configuration gives the same tiles, whatever the versions of Python and NumPy.
    """
    source = random.Random(SEED)

    def draw(low: int, high: int) -> int:
        # Only `random()` is promised to give the same numbers in every version.
        return low + int(source.random() * (high - low + 1))

    depth = min(config.max_m, 12)
    deep = min(config.max_k_tiles, 20 if config.is_os else 3)
    return [
        _job(config, draw, m=min(depth, 5), k=min(deep, 2)),
        _job(config, draw, m=1, k=1),
        _job(config, draw, m=1, k=deep, raw=True),
        _job(config, draw, m=min(depth, 2), k=deep, raw=True, edges=True, signed_in=True),
        _job(config, draw, m=min(depth, 2), k=deep, raw=True, edges=True, signed_in=False),
        _job(config, draw, m=depth, k=deep, narrow=True),
        _job(config, draw, m=min(depth, 3), k=1, narrow=True, signed_in=True),
        _job(config, draw, m=1, k=1, edges=True),
        _ties(config, draw, quotient=0),
        _ties(config, draw, quotient=1),
        _job(config, draw, m=min(depth, 2), k=min(deep, 2)),
    ]


def _ties(config: AcceleratorConfig, draw: _Draw, *, quotient: int) -> TileJob:
    """Return a tile whose totals lie halfway between two codes, the lower one even or odd."""
    job = _job(config, draw, m=1, k=1)
    columns = np.arange(config.cols)
    shift = 1 + columns % max(min(config.acc_bits - 4, 5), 1)
    low, high = (-1, 1) if config.act_bits == 2 and job.signed_out else (0, 2)
    return replace(
        job,
        acts=np.zeros_like(job.acts),
        bias=(2 * ((columns + quotient) % 2) + 1) << (shift - 1),
        shift=shift,
        lo=np.full(config.cols, low),
        hi=np.full(config.cols, high),
        lo_is_bound=np.zeros(config.cols, bool),
        hi_is_bound=np.zeros(config.cols, bool),
    )


def _job(
    config: AcceleratorConfig,
    draw: _Draw,
    *,
    m: int,
    k: int,
    raw: bool = False,
    edges: bool = False,
    narrow: bool = False,
    signed_in: bool | None = None,
) -> TileJob:
    """Return a tile of `m` rows and `k` K tiles.

    Args:
        config: the accelerator.
        draw: a number of a range, both ends included.
        m: rows.
        k: K tiles.
        raw: sums leave as they are.
        edges: codes are the lowest or the highest of their range, and the bias too.
        narrow: bounds that many codes violate.
        signed_in: sign of the activations, drawn if None.
    """
    signed_in = bool(draw(0, 1)) if signed_in is None else signed_in
    if signed_in not in config.act_signs:
        signed_in = not signed_in
    signed_out = bool(draw(0, 1))

    def ends(bits: int, signed: bool) -> tuple[int, int]:
        return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)

    def codes(shape: tuple[int, int], low: int, high: int) -> np.ndarray:
        one = (lambda: (low, high)[draw(0, 1)]) if edges else (lambda: draw(low, high))
        return np.array([[one() for _ in range(shape[1])] for _ in range(shape[0])], np.int64)

    depth, cols = k * config.k_step, config.cols
    act_low, act_high = ends(config.act_bits, signed_in)
    out_low, out_high = ends(config.act_bits, signed_out)
    bias_low, bias_high = ends(config.acc_bits, True)
    acts = codes((m, depth), act_low, act_high)
    weights = codes((depth, cols), *ends(config.weight_bits, True))
    largest = int(np.abs(acts @ weights).max())
    if edges:
        bias = codes((1, cols), bias_low, bias_high)[0]
    else:
        bias = np.array([draw(-largest - 1, largest) for _ in range(cols)], np.int64)
    shift = max(largest.bit_length() - config.act_bits, 0)
    quarter = (out_high - out_low) // 4 if narrow else 0
    margin = (act_high - act_low) // 4 if narrow else 0
    job = TileJob(
        acts=acts,
        weights=weights,
        bias=bias.clip(bias_low, bias_high),
        shift=np.array([min(shift + draw(0, 1), 31) for _ in range(cols)], np.int64),
        lo=np.full(cols, out_low + quarter),
        hi=np.full(cols, out_high - quarter),
        lo_is_bound=np.array([bool(draw(0, 1)) for _ in range(cols)]),
        hi_is_bound=np.array([bool(draw(0, 1)) for _ in range(cols)]),
        signed_in=signed_in,
        signed_out=signed_out,
        raw=raw,
        input_lo=act_low + margin,
        input_hi=act_high - margin,
    )
    return with_common_limits(config, job)


def pack(codes: Iterable[int], bits: int) -> str:
    """Return a beat in hexadecimal: element 0 lowest, padded with zeros to whole bytes."""
    values = list(codes)
    word = sum((int(v) & ((1 << bits) - 1)) << (i * bits) for i, v in enumerate(values))
    return f"{word:0{-(-len(values) * bits // 8) * 2}x}"


def tile_beats(config: AcceleratorConfig, job: TileJob) -> dict[str, Any]:
    """Return the beats of a tile: of each stream blocks that end with tlast, of the output one."""
    bits, beats = config.act_bits, stream_beats(config, job)

    def blocks(codes: np.ndarray, width: int, period: int) -> list[list[str]]:
        packed = [pack(beat, width) for beat in codes]
        return [packed[i : i + period] for i in range(0, len(packed), period)]

    result = reference_output(config, job).rows
    if job.raw:
        parts = [(row >> (j * bits)) for row in result for j in range(config.raw_beats)]
    else:
        parts = list(result)
    return {
        "m": job.m,
        "k_tiles": k_tiles(config, job),
        "raw": job.raw,
        "param": [[f"{word:08x}" for word in param_words(config, job)]],
        "weight": blocks(beats.weights, config.weight_bits, beats.weight_last),
        "act": blocks(beats.acts, bits, beats.act_last),
        "out": [pack(part, bits) for part in parts],
    }


def bench_vectors(config: AcceleratorConfig, jobs: Sequence[TileJob]) -> dict[str, Any]:
    """Return what ``vectors.json`` holds: the tiles, and what the run must show in all."""
    outputs = [reference_output(config, job) for job in jobs]
    gemms = [GemmShape(m=job.m, k=job.acts.shape[1], n=config.cols, raw=job.raw) for job in jobs]
    quiet = 200 + 8 * (config.rows + config.cols) + config.max_m
    return {
        "config_hash": config.config_hash(),
        "seed": SEED,
        "cycles": network_cycles(config, gemms),
        "violations_in": sum(output.violations_in for output in outputs),
        "violations_out": sum(output.violations_out for output in outputs),
        "quiet_cycles": 50 * quiet,
        "linger_cycles": quiet,
        "tiles": [tile_beats(config, job) for job in jobs],
    }
