# SPDX-License-Identifier: Apache-2.0
"""Runs output tiles through the simulated Verilog under cocotb, which writes the faults.

The slow way, that `sim.inject` is held against: another harness, other stimulus files, and register
writes through VPI.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache as memoize
from pathlib import Path
from typing import Any

import cocotb_tools.config
import find_libpython

from faultinj.faults import RegisterFault, mask_of
from faultinj.register_times import idle_start
from hdl.config import AcceleratorConfig
from hdl.registers import register_slice
from hdl.tile import TileJob, TileOutput
from sim.build import build_simulator
from sim.streams import (
    RunResult,
    SimulationError,
    read_counters,
    read_outputs,
    read_timings,
    write_stimulus,
)
from trilat.errors import InputError
from trilat.files import write_json


def run_jobs(
    config: AcceleratorConfig,
    jobs: Sequence[TileJob],
    faults: Sequence[Sequence[RegisterFault]] | None = None,
    *,
    cache: Path,
    stalls: float = 0.0,
    seed: int = 0,
) -> RunResult:
    """Stream output tiles through the RTL of `config`, with register faults if wanted.

    Tiles without faults follow each other back to back. A tile with faults starts when all
    before it have left, and nothing follows until it has left, so that its cycles are those of the
    schedule.

    Args:
        config: the accelerator; its Verilog is generated, and its simulator built or taken from
            `cache`.
        jobs: output tiles, at least one.
        faults: for each job, its faults; None for no faults at all. Stuck bits are stuck from the
            last output beat of the tile before to that of their own.
        cache: folder of finished simulators.
        stalls: chance in every cycle that a stream pauses, 0..0.99, on each of the four streams.
        seed: of the pauses.

    Raises:
        InputError: a system tool is missing, or faults are combined with stalls.
        SimulationError: the accelerator hung or the simulator failed.
        sim.streams.ProtocolError: an output stream with wrong length, tlast or handshake.
    """
    faults = [[] for _ in jobs] if faults is None else faults
    if len(faults) != len(jobs):
        raise ValueError(f"{len(jobs)} jobs but {len(faults)} lists of faults")
    if not 0 <= stalls <= 0.99:
        raise InputError(f"stalls must be a chance in 0..0.99, not {stalls}")
    if stalls and any(faults):
        raise InputError("register faults need a run without stalls: their cycles count from it")
    simulator = build_simulator(config, cache)
    alone = [bool(faults[i]) or (i > 0 and bool(faults[i - 1])) for i in range(len(jobs))]
    # The longest legal silence: the whole pipeline, the drain of a bank and the parameter words.
    quiet = 1000 + 8 * (config.rows + config.cols + config.max_m)
    moments = plan_moments(config, faults)
    with tempfile.TemporaryDirectory(prefix="trilat-run-") as name:
        folder = Path(name)
        write_stimulus(config, jobs, alone, folder)
        plan = {"linger": quiet // 4, "moments": moments, "stuck": plan_stuck(config, faults)}
        write_json(folder / "plan.json", plan)
        start = time.perf_counter()
        verdict = _simulate(
            simulator,
            folder,
            {
                "tiles": len(jobs),
                "stall": round(stalls * 65536),
                "seed": seed,
                "quiet": int(quiet / (1 - stalls)),
            },
        )
        seconds = time.perf_counter() - start
        if not verdict["finished"]:
            raise SimulationError(
                f"the accelerator hung in output tile {verdict['tiles_out']} of {len(jobs)}: "
                f"nothing moved for {quiet} cycles (valid and ready of param, weight, act, out: "
                f"{verdict['handshakes']})"
            )
        if verdict["moments"] != len(moments):
            raise SimulationError(
                f"only {verdict['moments']} of {len(moments)} fault cycles were reached"
            )
        timings = read_timings(folder)
        counts = read_counters(folder)
        rows = read_outputs(config, jobs, folder)
    return RunResult(
        outputs=[
            TileOutput(rows=row, violations_in=int(count[0]), violations_out=int(count[1]))
            for row, count in zip(rows, counts, strict=True)
        ],
        timings=timings,
        cycles=timings[-1].last_output - timings[0].first_accept + 1,
        seconds=seconds,
    )


def plan_moments(
    config: AcceleratorConfig, faults: Sequence[Sequence[RegisterFault]]
) -> list[dict[str, Any]]:
    """Return the testbench's moments: flips grouped by tile and cycle, each register once.

    Raises:
        InputError: a cycle ahead of the tile's first parameter word.
    """
    lead = idle_start(config)
    moments: dict[tuple[int, int], dict[tuple[str, int | None], int]] = {}
    for tile, group in enumerate(faults):
        for fault in group:
            if fault.cycle is None:
                continue
            if fault.cycle < -lead:
                raise InputError(f"cycle {fault.cycle} is ahead of the tile: {-lead} is its first")
            flips = moments.setdefault((tile, fault.cycle), {})
            place = register_slice(config, fault.register, fault.row, fault.col)
            key = place.path, place.word
            flips[key] = flips.get(key, 0) ^ (mask_of(fault.bits) << place.low)
    return [
        {
            "tile": tile,
            "cycle": cycle + lead if cycle < 0 else cycle,
            "early": cycle < 0,
            "writes": [
                {"path": path, "word": word, "kind": "flip", "mask": mask}
                for (path, word), mask in flips.items()
            ],
        }
        for (tile, cycle), flips in sorted(moments.items())
    ]


def plan_stuck(
    config: AcceleratorConfig, faults: Sequence[Sequence[RegisterFault]]
) -> dict[str, list[dict[str, Any]]]:
    """Return the testbench's stuck bits by tile."""
    stuck: dict[str, list[dict[str, Any]]] = {}
    for tile, group in enumerate(faults):
        for fault in group:
            if fault.cycle is None:
                place = register_slice(config, fault.register, fault.row, fault.col)
                stuck.setdefault(str(tile), []).append(
                    {
                        "path": place.path,
                        "word": place.word,
                        "kind": fault.kind,
                        "mask": mask_of(fault.bits) << place.low,
                    }
                )
    return stuck


@memoize
def environment(toplevel: str, testbench: str) -> dict[str, str]:
    """Return the environment that makes a simulator find this Python and a cocotb testbench.

    Args:
        toplevel: top module.
        testbench: Python module with the cocotb test.

    Raises:
        InputError: Python's shared library is missing.
    """
    library = find_libpython.find_libpython()
    if library is None:
        raise InputError(
            "cocotb needs Python's shared library: sudo apt-get install libpython3-dev"
        )
    libraries = str(cocotb_tools.config.libs_dir)
    root = str(Path(__file__).resolve().parent.parent)
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(
            filter(None, [libraries, os.environ.get("LD_LIBRARY_PATH")])
        ),
        "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)]),
        "PYGPI_PYTHON_BIN": sys.executable,
        "GPI_USERS": f"{library};{cocotb_tools.config.pygpi_entry_point()}",
        "COCOTB_TOPLEVEL": toplevel,
        "COCOTB_TEST_MODULES": testbench,
        "COCOTB_RESULTS_FILE": "results.xml",
        "COCOTB_TRUST_INERTIAL_WRITES": "1",
        "COCOTB_LOG_LEVEL": "WARNING",
        "COCOTB_REWRITE_ASSERTION_FILES": "",
        "COCOTB_RANDOM_SEED": "0",
        "TOPLEVEL_LANG": "verilog",
    }


def _simulate(simulator: Path, folder: Path, plusargs: dict[str, int]) -> dict[str, Any]:
    """Run the simulator in `folder`; return the testbench's verdict."""
    command = [str(simulator.resolve()), *(f"+{name}={value}" for name, value in plusargs.items())]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment("harness", "sim.testbench"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    verdict = folder / "verdict.json"
    if done.returncode or not verdict.is_file():
        tail = "\n".join(done.stdout.splitlines()[-30:])
        raise SimulationError(f"{simulator.name} exit {done.returncode}\n{tail}")
    data: dict[str, Any] = json.loads(verdict.read_text())
    return data
