# SPDX-License-Identifier: Apache-2.0
"""Drawn configurations under the bus models of cocotbext-axi: any pauses, resets in mid-tile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from axi_bench import SMALLEST, AxiBench, differences, drawn_configs, rounds

import hdl
from hdl.config import AcceleratorConfig
from trilat import verilator

WAIVERS = Path(hdl.__file__).parent / "lint.vlt"
BATCH = 12


def check(
    configs: Sequence[AcceleratorConfig], cache: Path, folder: Path, first_seed: int
) -> AxiBench:
    bench = AxiBench(configs, cache)
    plans = [rounds(config, first_seed + 10 * n) for n, config in enumerate(configs)]
    for config, items, results in zip(configs, plans, bench.run(plans), strict=True):
        assert differences(config, items, results) == [], config
        assert len(results) == len(items)
    for config, text in zip(configs, bench.verilog, strict=True):
        file = folder / f"{config.config_hash()}.v"
        file.write_text(text)
        assert verilator.lint(file, WAIVERS) == [], config
    return bench


@pytest.mark.slow
def test_twelve_configurations(
    sim_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = drawn_configs(BATCH)
    assert configs[0] == SMALLEST
    bench = check(configs, sim_cache, tmp_path, 0)
    # What comes out is looked at: other tiles' expectations do not hold.
    plans = [rounds(config, 10 * n) for n, config in enumerate(configs)]
    others = [rounds(config, 10 * n + 7) for n, config in enumerate(configs)]
    results = bench.run(plans)
    for config, items, result in zip(configs[1:], others[1:], results[1:], strict=True):
        shape = [{**r, "frames": r["frames"][: len(i.jobs)]} for r, i in zip(result, items)]
        assert any(
            "round" in line for line in safe_differences(config, items, shape)
        ), config
    with capsys.disabled():
        print(f" {len(configs)} configurations simulated and linted", end="")


def safe_differences(config, items, results):
    try:
        return differences(config, items, results)
    except ValueError as error:
        return [f"round: {error}"]


@pytest.mark.nightly
def test_sixty_configurations(
    sim_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = drawn_configs(60)
    for start in range(0, len(configs), BATCH):
        check(configs[start : start + BATCH], sim_cache, tmp_path, 1000 * (start + 1))
    with capsys.disabled():
        print(f" {len(configs)} configurations simulated and linted", end="")
