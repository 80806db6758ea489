# SPDX-License-Identifier: Apache-2.0
"""Drawn configurations under the bus models of cocotbext-axi: any pauses, resets in mid-tile."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from axi_bench import FIRST, AxiBench, Round, differences, drawn_configs, output_frame, rounds

import hdl
from hdl import yosys
from hdl.accelerator import TOP
from hdl.config import AcceleratorConfig
from hdl.gen import generate
from hdl.tile import reference_output
from sim.drive import trial_job
from trilat import verilator

WAIVERS = Path(hdl.__file__).parent / "lint.vlt"
BATCH, NIGHTLY = 12, 60
SIMULATED = "drawn configurations simulated under cocotbext-axi"
READ = "configurations read by Verilator's lint and Yosys without a warning" + (
    ", and by Icarus Verilog" if shutil.which("iverilog") else " (Icarus Verilog is not installed)"
)
LARGE = (
    AcceleratorConfig(rows=64, cols=64, protect="clip"),
    AcceleratorConfig(rows=1, cols=64, act_bits=3, weight_bits=5, mult="lut"),
    AcceleratorConfig(rows=64, cols=1, act_bits=2, weight_bits=8, max_k=65536, psum_depth=65535),
    AcceleratorConfig(rows=16, cols=63, act_bits=3, weight_bits=3, mult="dsp", dsp_pack=3),
    AcceleratorConfig(dataflow="os", rows=64, cols=33, protect="zero", mult="lut"),
    AcceleratorConfig(dataflow="os", rows=1, cols=64, max_k=65535, protect="zero"),
    AcceleratorConfig(dataflow="os", rows=9, cols=64, act_bits=2, mult="dsp", dsp_pack=2),
)


def check(configs: Sequence[AcceleratorConfig], cache: Path, folder: Path, first_seed: int) -> None:
    bench = AxiBench(configs, cache)
    plans = [rounds(config, first_seed + 10 * n) for n, config in enumerate(configs)]
    for config, items, results in zip(configs, plans, bench.run(plans), strict=True):
        assert differences(config, items, results) == [], config
        assert len(results) == len(items)
    read_by_all(configs, folder)


def read_by_all(configs: Sequence[AcceleratorConfig], folder: Path) -> None:
    """Verilator's lint, Yosys and, where it is installed, Icarus have nothing to say."""
    script = []
    for config in configs:
        file = folder / f"{config.config_hash()}.v"
        file.write_text(generate(config))
        assert verilator.lint(file, WAIVERS) == [], config
        if shutil.which("iverilog"):
            command = ["iverilog", "-g2005", "-Wall", "-t", "null", "-s", TOP, str(file)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), config
        script += [f"read_verilog {file.name}", f"hierarchy -check -top {TOP}", "proc"]
        script += ["opt_clean", "memory -nomap", "check -assert", "design -reset"]
    assert "Warning" not in yosys.run(script, folder, "read")


@pytest.mark.slow
def test_twelve_configurations(
    sim_cache: Path, tmp_path: Path, verified: Callable[[str, int], None]
) -> None:
    configs = drawn_configs(BATCH)
    assert tuple(configs[:2]) == FIRST
    check(configs, sim_cache, tmp_path, 0)
    verified(SIMULATED, len(configs))
    verified(READ, len(configs))


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
def test_large_arrays_are_read_without_a_warning(
    tmp_path: Path, verified: Callable[[str, int], None]
) -> None:
    read_by_all(LARGE, tmp_path)
    verified(READ, len(LARGE))


@pytest.mark.nightly
@pytest.mark.parametrize("start", range(0, NIGHTLY, BATCH))
def test_sixty_configurations(
    start: int, sim_cache: Path, tmp_path: Path, verified: Callable[[str, int], None]
) -> None:
    configs = drawn_configs(NIGHTLY)[start : start + BATCH]
    check(configs, sim_cache, tmp_path, 1000 * (start + 1))
    verified(SIMULATED, len(configs))
    verified(READ, len(configs))
