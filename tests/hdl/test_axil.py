# SPDX-License-Identifier: Apache-2.0
"""The AXI4-Lite slave against the bus model of cocotbext-axi."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

import pytest
from cocotb_tools.runner import get_results, get_runner

import hdl
from hdl.config import AcceleratorConfig
from hdl.gen import generate

pytest.importorskip("cocotbext.axi")

DEFECTS = {
    "none": ("", ""),
    "no error response": ("read_outside ? 2'h2 : 2'h0", "2'h0"),
}


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("iverilog") is None, reason="Icarus Verilog is not installed (apt-get: iverilog)"
)
@pytest.mark.parametrize("defect", DEFECTS)
def test_concurrent_reads_and_writes(defect: str, tmp_path: Path) -> None:
    """As emitted it passes, and with a defect it fails."""
    before, after = DEFECTS[defect]
    verilog = generate(AcceleratorConfig(rows=1, cols=1))
    assert before in verilog
    design = tmp_path / "design.v"
    design.write_text(verilog.replace(before, after))
    runner = get_runner("icarus")
    runner.build(
        sources=[design],
        hdl_toplevel="trilat_axil",
        build_dir=tmp_path,
        timescale=("1ns", "1ps"),
    )
    results = tmp_path / "results.xml"
    folders = [str(Path(__file__).parent), str(Path(hdl.__file__).parents[1]), *sys.path]
    with contextlib.suppress(SystemExit):
        runner.test(
            hdl_toplevel="trilat_axil",
            test_module="axil_bus",
            build_dir=tmp_path,
            test_dir=tmp_path,
            results_xml=str(results),
            extra_env={"PYTHONPATH": os.pathsep.join(filter(None, folders))},
        )
    assert get_results(results) == (1, int(defect != "none"))
