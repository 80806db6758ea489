# SPDX-License-Identifier: Apache-2.0
"""Drawn configurations under the bus models of cocotbext-axi: any pauses, resets in mid-tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from axi_bench import FIRST, AxiBench, Round, differences, drawn_configs, output_frame, rounds

import hdl
from hdl.config import AcceleratorConfig
from hdl.tile import reference_output
from sim.drive import trial_job
from trilat import verilator

WAIVERS = Path(hdl.__file__).parent / "lint.vlt"
BATCH = 12
SIMULATED = "drawn configurations simulated under cocotbext-axi, and linted"


def check(configs: Sequence[AcceleratorConfig], cache: Path, folder: Path, first_seed: int) -> None:
    bench = AxiBench(configs, cache)
    plans = [rounds(config, first_seed + 10 * n) for n, config in enumerate(configs)]
    for config, items, results in zip(configs, plans, bench.run(plans), strict=True):
        assert differences(config, items, results) == [], config
        assert len(results) == len(items)
    for config, text in zip(configs, bench.verilog, strict=True):
        file = folder / f"{config.config_hash()}.v"
        file.write_text(text)
        assert verilator.lint(file, WAIVERS) == [], config


@pytest.mark.slow
def test_twelve_configurations(
    sim_cache: Path, tmp_path: Path, verified: Callable[[str, int], None]
) -> None:
    configs = drawn_configs(BATCH)
    assert tuple(configs[:2]) == FIRST
    check(configs, sim_cache, tmp_path, 0)
    verified(SIMULATED, len(configs))


def test_a_wrong_output_is_seen() -> None:
    """The comparison itself: one wrong bit, a missing counter, an error of the bus models."""
    config = AcceleratorConfig(rows=2, cols=2, protect="clip", max_k=8, psum_depth=4)
    job = trial_job(config, np.random.default_rng(0))
    item = Round(jobs=[job], before=[], reset_after=0, pause=0.0, seed=0)
    expected = reference_output(config, job)
    frame = bytearray(output_frame(config, job, expected.rows))
    registers = {
        "violations_in": expected.violations_in,
        "violations_out": expected.violations_out,
        "tiles_done": 1,
        "shape": 0x0202,
    }
    good = {"frames": [bytes(frame).hex()], "registers": registers}
    assert differences(config, [item], [good]) == []
    assert differences(config, [item], [{**good, "registers": {**registers, "violations_in": -1}}])
    assert differences(config, [item], [{"error": "SimTimeoutError"}])
    frame[0] ^= 1
    assert differences(config, [item], [{**good, "frames": [bytes(frame).hex()]}])


@pytest.mark.nightly
def test_sixty_configurations(
    sim_cache: Path, tmp_path: Path, verified: Callable[[str, int], None]
) -> None:
    configs = drawn_configs(60)
    for start in range(0, len(configs), BATCH):
        check(configs[start : start + BATCH], sim_cache, tmp_path, 1000 * (start + 1))
    verified(SIMULATED, len(configs))
