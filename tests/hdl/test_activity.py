# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from rtl_bench import Bench, all_registers, random_job
from rtl_configs import PROBED

from hdl.activity import WeightedJob, activity, register_toggles
from hdl.config import AcceleratorConfig

COUNTED = ("pe_activation", "pe_weight", "product", "psum", "accumulator")
# Cycles from the acceptance of a beat until the register at row 0, column 0 holds it.
DELAY = {"pe_activation": 2, "pe_weight": 2, "product": 3, "psum": 4, "accumulator": 4}


@pytest.mark.parametrize("config", PROBED, ids=["one", "packed", "os", "os packed"])
def test_toggles_are_those_of_the_simulated_registers(
    bench: Bench, config: AcceleratorConfig
) -> None:
    rng = np.random.default_rng(5)
    # Beats follow each other without a pause where M is at least R and 3.
    sizes = [(config.max_m, 4), (config.max_m, 1), (config.max_m - 1, 3)]
    jobs = [random_job(config, rng, m=m, k_tiles=k * (7 if config.is_os else 1)) for m, k in sizes]
    run = bench.run(config, jobs)
    samples = np.array(run.samples, dtype=object)
    accepted = iter(run.act_cycles)
    for job in jobs:
        beats = job.acts.size // (job.m if config.is_os else config.rows)
        cycles = [next(accepted) for _ in range(beats)]
        assert cycles == list(range(cycles[0], cycles[0] + beats))
        seen = 0
        for index, (name, row, col) in enumerate(all_registers(config)):
            if name in COUNTED:
                start = cycles[0] + DELAY[name] + row + config.col_group(col)
                held = [int(v) for v in samples[start : start + beats, index]]
                seen += sum((a ^ b).bit_count() for a, b in pairwise(held))
        if config.is_os and job.m < config.rows and not job.input_lo <= 0 <= job.input_hi:
            continue  # the check turns the zeros of rows past M into a bound
        assert register_toggles(config, job) == seen > 0


@pytest.mark.parametrize("config", PROBED, ids=["one", "packed", "os", "os packed"])
def test_activity_of_random_codes_is_one_and_of_equal_codes_low(config: AcceleratorConfig) -> None:
    rng = np.random.default_rng(1)
    config = replace(config, protect="none")
    jobs = [random_job(config, rng, m=config.max_m, k_tiles=9) for _ in range(40)]
    random = [WeightedJob(job=job) for job in jobs]
    zeros = [replace(job, acts=np.zeros_like(job.acts)) for job in jobs]
    still = [WeightedJob(job=job, count=3) for job in zeros]
    assert 0.95 < activity(config, random, seed=0) < 1.05
    assert activity(config, random, seed=0) == activity(config, random, seed=0)
    assert activity(config, still, seed=0) < (0.4 if config.is_os else 0.01)
