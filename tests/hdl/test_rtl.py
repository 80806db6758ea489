# SPDX-License-Identifier: Apache-2.0
"""The emitted Verilog in simulation against the specification in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from rtl_bench import Bench, Run, all_registers, random_job, read_rows
from rtl_configs import CONFIGS, PROBED

from hdl.config import AcceleratorConfig
from hdl.registers import register_slice
from hdl.tile import TileJob, check_input, reference_output, wrap

pytestmark = pytest.mark.slow

# Chance in percent that a source pauses before a beat, that the receiver is not ready.
STALLS = {"none": (0, 0), "starved": (40, 0), "blocked": (0, 60), "both": (25, 50), "hard": (5, 92)}


def random_jobs(config: AcceleratorConfig, seed: int, count: int = 14) -> list[TileJob]:
    """Return jobs with every M from 1 to the psum depth likely, the ends most of all."""
    rng = np.random.default_rng(seed)
    depth, most = config.max_m, min(5 * config.rows // config.k_step, config.max_k_tiles)
    return [
        random_job(
            config,
            rng,
            m=int(rng.choice([1, min(2, depth), depth, rng.integers(1, depth + 1)])),
            k_tiles=int(rng.integers(1, most + 1)),
            raw=bool(rng.random() < 0.3),
            extreme=bool(rng.random() < 0.3),
        )
        for _ in range(count)
    ]


def assert_equal(config: AcceleratorConfig, jobs: Sequence[TileJob], run: Run) -> None:
    expected = [reference_output(config, job) for job in jobs]
    got = read_rows(config, jobs, run)
    for number, (rows, reference) in enumerate(zip(got, expected, strict=True)):
        np.testing.assert_array_equal(rows, reference.rows, err_msg=f"output tile {number}")
    totals = [(e.violations_in, e.violations_out) for e in expected]
    assert run.violations == tuple(map(sum, zip(*totals, strict=True)))
    assert run.breaches == 0


@pytest.mark.parametrize("stalls", STALLS)
@pytest.mark.parametrize("name", CONFIGS)
def test_random_tiles(bench: Bench, name: str, stalls: str) -> None:
    config, (gap, stall) = CONFIGS[name], STALLS[stalls]
    for seed in range(4):
        jobs = random_jobs(config, seed)
        assert_equal(config, jobs, bench.run(config, jobs, seed=seed, gap=gap, stall=stall))


@pytest.mark.parametrize("name", CONFIGS)
def test_reset_in_mid_tile(bench: Bench, name: str) -> None:
    """After a reset at any point all tiles are sent again, and counters start at zero."""
    config = CONFIGS[name]
    jobs = random_jobs(config, 7, count=4)
    for reset_at in (5, 23, 38, 51, 64, 77, 103):
        run = bench.run(config, jobs, seed=reset_at, gap=10, stall=20, reset_at=reset_at)
        assert_equal(config, jobs, run)


@pytest.mark.parametrize("name", CONFIGS)
def test_extremes(bench: Bench, name: str) -> None:
    """All codes at one end, also those that no network has: the widest sums of the longest K."""
    config = CONFIGS[name]
    rng = np.random.default_rng(0)
    k_tiles = min(config.max_k_tiles, 40)
    jobs = []
    for signed, act in ((False, (1 << config.act_bits) - 1), (True, -(1 << (config.act_bits - 1)))):
        if signed not in config.act_signs:
            continue
        for weight in (-(1 << (config.weight_bits - 1)), (1 << (config.weight_bits - 1)) - 1):
            for bias in (-(1 << (config.acc_bits - 1)), (1 << (config.acc_bits - 1)) - 1):
                job = random_job(
                    config, rng, m=min(2, config.max_m), k_tiles=k_tiles, raw=True, signed_in=signed
                )
                ones = np.ones_like
                jobs.append(
                    replace(
                        job,
                        acts=act * ones(job.acts),
                        weights=weight * ones(job.weights),
                        bias=bias * ones(job.bias),
                        input_lo=-(1 << (config.act_bits - 1)) if signed else 0,
                        input_hi=(1 << (config.act_bits - 1 if signed else config.act_bits)) - 1,
                    )
                )
    assert_equal(config, jobs, bench.run(config, jobs))


def test_every_shift_and_tie(bench: Bench) -> None:
    """Sums around every multiple of one half of every power of two, by way of the bias."""
    config = CONFIGS["2x2"]
    rng = np.random.default_rng(3)
    jobs = []
    for shift in range(32):
        for base in (0, 1, 2, 3, -1, -2, -3, 127, 128, -128, -129):
            for off in (-1, 0, 1):
                job = random_job(config, rng, m=1, k_tiles=1, signed_out=base < 100)
                half = base * (1 << shift) // 2
                bias = np.clip([half + off, half - 2 * off], -(1 << 31), (1 << 31) - 1)
                jobs.append(
                    replace(
                        job,
                        acts=np.zeros_like(job.acts),
                        bias=bias,
                        shift=np.full(2, shift),
                        lo=np.full(2, -128 if job.signed_out else 0),
                        hi=np.full(2, 127 if job.signed_out else 255),
                    )
                )
    assert_equal(config, jobs, bench.run(config, jobs))


def table(
    name: str,
    row: int,
    col: int,
    codes: np.ndarray,
    products: np.ndarray,
    sums: np.ndarray,
    pack: int,
) -> tuple[int, int]:
    """Return when, after its acceptance, a register holds a beat, and what it then holds.

    `pack` columns run in step.
    """
    if name == "skew":
        return 1 + col, codes[row]
    if name == "deskew":
        return len(codes) + col // pack + 4 + row, sums[-1, col]
    cycle, value = {
        "pe_activation": (2, codes[row]),
        "product": (3, products[row, col]),
        "psum": (4, sums[row, col]),
        "accumulator": (4, sums[row, col]),
    }[name]
    return cycle + row + col // pack, value


def assert_held(
    config: AcceleratorConfig,
    samples: np.ndarray,
    t: int,
    codes: np.ndarray,
    products: np.ndarray,
    sums: np.ndarray,
    weights: np.ndarray | None = None,
) -> int:
    """Compare all registers that a beat accepted in cycle t meets; return how many."""
    places = all_registers(config)
    for index, (name, row, col) in enumerate(places):
        if weights is not None and name in ("weight_skew", "pe_weight"):
            start = 1 if name == "weight_skew" else 2 + col // config.dsp_pack
            cycle, value = start + row, weights[col]
        else:
            cycle, value = table(name, row, col, codes, products, sums, config.dsp_pack)
        bits = register_slice(config, name, row, col).bits
        held = int(samples[t + cycle, index])
        assert wrap(np.array(held), bits) == wrap(np.array(value), bits), (name, row, col, t)
    return len(places)


@pytest.mark.parametrize("gap", [0, 30])
@pytest.mark.parametrize("config", PROBED[:2], ids=["one", "packed"])
def test_registers_hold_what_the_table_says(
    bench: Bench, config: AcceleratorConfig, gap: int
) -> None:
    """Every register of the array, for every accepted beat, in the cycle of the table.

    Cycles count from the beat's own acceptance, so that the table holds with pauses too.
    """
    jobs = random_jobs(config, 11)
    run = bench.run(config, jobs, seed=4, gap=gap)
    assert_equal(config, jobs, run)
    samples = np.array(run.samples, dtype=object)
    accepted = iter(run.act_cycles)
    rows, cols = config.rows, config.cols
    compared = 0
    for job in jobs:
        acts, _ = check_input(config, job)
        for k in range(job.acts.shape[1] // rows):
            weights = job.weights[k * rows : (k + 1) * rows]
            for m in range(job.m):
                codes = acts[m, k * rows : (k + 1) * rows]
                products = codes[:, None] * weights
                sums = np.cumsum(products, axis=0)
                compared += assert_held(config, samples, next(accepted), codes, products, sums)
    assert compared > 5_000
    assert cols > 1 and next(accepted, None) is None


@pytest.mark.parametrize("gap", [0, 30])
@pytest.mark.parametrize("config", PROBED[2:], ids=["one", "packed"])
def test_registers_of_an_output_stationary_array(
    bench: Bench, config: AcceleratorConfig, gap: int
) -> None:
    """As for the weight-stationary array; rows past M hold what their padding makes them."""
    jobs = random_jobs(config, 11)
    run = bench.run(config, jobs, seed=4, gap=gap)
    assert_equal(config, jobs, run)
    samples = np.array(run.samples, dtype=object)
    accepted = iter(run.act_cycles)
    compared = 0
    for job in jobs:
        acts = np.zeros((config.rows, job.acts.shape[1]), dtype=np.int64)
        acts[: job.m], _ = check_input(config, job)
        acts[job.m :] = np.clip(0, job.input_lo, job.input_hi)
        sums = np.zeros((config.rows, config.cols), dtype=np.int64)
        for codes, weights in zip(acts.T, job.weights, strict=True):
            products = codes[:, None] * weights
            sums = sums + products
            t = next(accepted)
            compared += assert_held(config, samples, t, codes, products, sums, weights)
    assert compared > 5_000
    assert next(accepted, None) is None
