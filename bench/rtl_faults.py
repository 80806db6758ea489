# SPDX-License-Identifier: Apache-2.0
"""Speed of register faults in the RTL, against plain cocotb and against complete inferences.

``python -m bench.rtl_faults`` builds the 16x16 int8 array anew, measures simulated cycles and
faults per second of CPU time (simulator and Python together, blocks of both ways in turn), and
prints the ratio to the same faults under cocotb, where Python makes the clock and writes the
registers. The complete inferences are not run: their cycles are those of the schedule, divided by
the cycles per second measured here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.utilization import model_shapes
from faultinj.faults import RegisterFault
from hdl.config import AcceleratorConfig
from hdl.registers import REGISTER_CLASSES
from hdl.schedule import network_cycles
from hdl.tile import TileJob
from sim import CACHE
from sim.build import build_injector, build_simulator
from sim.fault_draws import draw
from sim.inject import Injector
from sim.jobs import random_job
from sim.runner import run_jobs
from trilat.errors import run_command
from trilat.files import write_json

# Beats of the tiles that faults are injected into, and K tiles of the longer ones.
M, LONG_K_TILES = 64, 36
# Models of which a complete inference is compared with.
MODELS = ("lenet5", "vgg11")


def process_seconds(pid: int) -> float:
    """Return the CPU time of a process so far, from Linux's ``/proc``."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def build_seconds(config: AcceleratorConfig) -> tuple[float, float]:
    """Return CPU seconds and seconds by the clock of a build with an empty cache."""
    with tempfile.TemporaryDirectory(prefix="trilat-bench-") as name:
        before, start = os.times(), time.perf_counter()
        build_injector.__wrapped__(config, Path(name))
        wall, after = time.perf_counter() - start, os.times()
    cpu = (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )
    return cpu, wall


def free_running(injector: Injector, cycles: int) -> float:
    """Return simulated cycles per CPU second of a stream of tiles without faults."""
    config = injector.config
    job = random_job(config, np.random.default_rng(0), m=M, k_tiles=LONG_K_TILES, raw=False)
    count = max(cycles // (M * LONG_K_TILES), 1)
    start = process_seconds(injector.pid), time.process_time()
    run = injector.stream([job] * count)
    spent = process_seconds(injector.pid) - start[0] + time.process_time() - start[1]
    return run.timings[-1].last_output / spent


def faults_per_second(
    injector: Injector, job: TileJob, lists: Sequence[Sequence[RegisterFault]], shortcuts: bool
) -> float:
    """Return faults per CPU second in one tile, loading it included.

    Args:
        injector: of the accelerator.
        job: the tile.
        lists: faults of each run.
        shortcuts: as in `sim.inject.Injector.stream`.
    """
    start = process_seconds(injector.pid), time.process_time()
    injector.load(job, shortcuts=shortcuts)
    for _ in injector.inject(lists):
        pass
    spent = process_seconds(injector.pid) - start[0] + time.process_time() - start[1]
    return len(lists) / spent


def cocotb_faults_per_second(
    config: AcceleratorConfig,
    job: TileJob,
    lists: Sequence[Sequence[RegisterFault]],
    cache: Path,
) -> float:
    """Return faults per CPU second under cocotb, one tile for each in one simulator process."""
    before = os.times()
    run_jobs(config, [job] * len(lists), lists, cache=cache)
    after = os.times()
    return len(lists) / sum(b - a for a, b in zip(before[:4], after[:4], strict=True))


def median_of(blocks: int, measure: Callable[[], float]) -> float:
    """Return the median of some measurements."""
    return statistics.median(measure() for _ in range(blocks))


def flips(
    config: AcceleratorConfig, job: TileJob, count: int, seed: int
) -> list[list[RegisterFault]]:
    """Return single flips in the array's registers, in cycles of the tile."""
    rng = np.random.default_rng(seed)
    classes = [name for name in REGISTER_CLASSES[config.dataflow] if "weight" not in name]
    return [[draw(config, job, classes[i % len(classes)], "flip", 1, rng)] for i in range(count)]


def inference_cycles(config: AcceleratorConfig, model: str) -> int:
    """Return the array's cycles for one image of a model (3 x 32 x 32), by the schedule."""
    return network_cycles(config, list(model_shapes(model).values()))


def measure(*, quick: bool, cocotb: bool, cache: Path, seed: int = 0) -> dict[str, Any]:
    """Return all figures by name; see the module.

    Args:
        quick: no build, fewer cycles and faults.
        cocotb: measure the baseline too (its simulator is built once, into `cache`).
        cache: folder of finished simulators.
        seed: of the faults.
    """
    config = AcceleratorConfig()
    figures: dict[str, Any] = {"seed": seed}
    if not quick:
        figures["build_cpu_s"], figures["build_wall_s"] = build_seconds(config)
    count, few = (400, 20) if quick else (2000, 100)
    rng = np.random.default_rng(seed)
    short = random_job(config, rng, m=M, k_tiles=1, raw=False)
    long = random_job(config, rng, m=M, k_tiles=LONG_K_TILES, raw=False)
    if cocotb:
        build_simulator(config, cache)
    with Injector(config, cache) as injector:
        blocks = 2 if quick else 5
        cycles = 100_000 if quick else 500_000
        figures["cycles_per_s"] = median_of(blocks, lambda: free_running(injector, cycles))
        for name, job, number in (("short", short, count), ("long", long, count // 10)):
            lists = flips(config, job, number, seed)
            for shortcuts in (True, False):
                rates, slow = [], []
                for _ in range(blocks if shortcuts else 1):
                    rates.append(faults_per_second(injector, job, lists, shortcuts))
                    if cocotb and shortcuts and name == "short":
                        slow.append(cocotb_faults_per_second(config, job, lists[:few], cache))
                figures[f"{name}_{'shortcuts' if shortcuts else 'plain'}_faults_per_s"] = (
                    statistics.median(rates)
                )
                if slow:
                    figures["cocotb_faults_per_s"] = statistics.median(slow)
    for network in MODELS:
        cycles = inference_cycles(config, network)
        figures[f"{network}_cycles"] = cycles
        figures[f"{network}_rtl_s_per_fault"] = cycles / figures["cycles_per_s"]
    return figures


def report(figures: dict[str, Any]) -> str:
    """Return the table of `measure`'s figures."""
    lines = ["16x16 int8, weight-stationary, CPU time of simulator and Python"]

    def line(name: str, value: str) -> None:
        lines.append(f"{name:<58}{value:>18}")

    if "build_cpu_s" in figures:
        line("build, nothing cached: CPU s", f"{figures['build_cpu_s']:.1f}")
        line("build, nothing cached: by the clock, s", f"{figures['build_wall_s']:.1f}")
    line("free running, cycles/s", f"{figures['cycles_per_s']:,.0f}")
    for name, what in (("short", "1 K tile"), ("long", f"{LONG_K_TILES} K tiles")):
        for way, text in (
            ("plain", "every run from reset to end"),
            ("shortcuts", "saved states, early end"),
        ):
            rate = figures[f"{name}_{way}_faults_per_s"]
            line(f"faults/s, M = {M}, {what}: {text}", f"{rate:,.0f}")
    if "cocotb_faults_per_s" in figures:
        slow = figures["cocotb_faults_per_s"]
        line(f"faults/s, M = {M}, 1 K tile: plain cocotb (baseline)", f"{slow:,.1f}")
        for way in ("plain", "shortcuts"):
            ratio = figures[f"short_{way}_faults_per_s"] / slow
            line(f"  ratio to plain cocotb, {way}", f"{ratio:,.1f}x")
    for network in MODELS:
        seconds = figures[f"{network}_rtl_s_per_fault"]
        cycles = figures[f"{network}_cycles"]
        line(f"{network}, all tiles of one image in RTL, s per fault *", f"{seconds:,.2f}")
        line("  cycles by the schedule", f"{cycles:,}")
    lines.append("* extrapolated: cycles of the schedule / measured cycles per second")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.rtl_faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no build and no cocotb, fewer faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of finished simulators")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args(argv)

    def run() -> int:
        figures = measure(quick=args.quick, cocotb=not args.quick, cache=args.cache, seed=args.seed)
        print(report(figures))
        if args.json is not None:
            write_json(args.json, figures)
        return 0

    return run_command("python -m bench.rtl_faults", run)


if __name__ == "__main__":
    sys.exit(main())
