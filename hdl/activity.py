# SPDX-License-Identifier: Apache-2.0
"""Toggle activity of the PEs' registers on given data, relative to random data.

The values are those that the registers of the emitted Verilog take, in their order; between tiles
and while a stream starves the array is idle, which counts in neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hdl.config import AcceleratorConfig
from hdl.tile import TileJob, check_input, k_tiles, wrap


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedJob:
    """An output tile that stands for `count` of them."""

    job: TileJob
    count: float = 1.0


def register_toggles(config: AcceleratorConfig, job: TileJob) -> int:
    """Return how many bits of the PEs' registers change between the beats of an output tile.

    Counted are the activation, product and psum registers (ws), or activation, weight, product
    and accumulator (os), from the first beat of the tile to its last; rows past M of an
    output-stationary array hold zeros.
    """
    return sum(_changed(values, bits) * n for values, bits, n in _registers(config, job))


def activity(config: AcceleratorConfig, jobs: Sequence[WeightedJob], *, seed: int) -> float:
    """Return the toggles of tiles relative to those of random codes in tiles of the same shape.

    Args:
        config: the accelerator.
        jobs: tiles of at least two beats in all.
        seed: of the random codes, uniform over the words (weights without the most negative code).
    """
    rng = np.random.default_rng(seed)
    here = sum(w.count * register_toggles(config, w.job) for w in jobs)
    there = sum(w.count * register_toggles(config, _randomized(config, w.job, rng)) for w in jobs)
    return here / there


def _randomized(config: AcceleratorConfig, job: TileJob, rng: np.random.Generator) -> TileJob:
    bits, most = config.act_bits, config.weight_span[1]
    lo, hi = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if job.signed_in else (0, (1 << bits) - 1)
    return replace(
        job,
        acts=rng.integers(lo, hi + 1, job.acts.shape),
        input_lo=lo,
        input_hi=hi,
        weights=rng.integers(-most, most + 1, job.weights.shape),
    )


def _registers(config: AcceleratorConfig, job: TileJob) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield (values by beat, width, how many registers hold each) of one row after the other."""
    checked, _ = check_input(config, job)
    if config.is_os:
        yield job.weights, config.weight_bits, config.rows
        for acts in checked:
            products = acts[:, None] * job.weights
            yield acts, config.operand_bits, config.col_groups
            yield products, config.product_bits, 1
            yield wrap(products.cumsum(axis=0), config.acc_bits), config.acc_bits, 1
        return
    tiles, rows = k_tiles(config, job), config.rows
    acts = checked.reshape(job.m, tiles, rows).swapaxes(0, 1).reshape(-1, rows)
    psum = np.zeros((len(acts), config.cols), dtype=np.int64)
    for row in range(rows):
        weights = job.weights[row::rows].repeat(job.m, axis=0)
        products = acts[:, row, None] * weights
        psum = psum + products
        yield acts[:, row], config.operand_bits, config.col_groups
        yield products, config.product_bits, 1
        yield psum, config.psum_bits(row), 1


def _changed(values: np.ndarray, bits: int) -> int:
    words = values.astype(np.int64) & ((1 << bits) - 1)
    return int(np.unpackbits((words[1:] ^ words[:-1]).view(np.uint8)).sum())
