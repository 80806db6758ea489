# SPDX-License-Identifier: Apache-2.0
"""Runs tiles through an accelerator, its core alone, or a netlist of that, without cocotb.

driver.cpp drives the streams with random pauses and compares every output beat with what the
specification says. A process starts in milliseconds and runs thousands of cycles in one more, so
that hundreds of mutants of a design can be tried, and mapped netlists be run.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hdl.accelerator import TOP
from hdl.axil import PerformanceCounters
from hdl.config import MULTIPLIER_BITS, AcceleratorConfig
from hdl.register_files import reset_value
from hdl.register_map import REGISTERS, parameter_words
from hdl.registers import CORE
from hdl.tile import (
    TileJob,
    check_input,
    param_words,
    reference_output,
    stream_beats,
    with_common_limits,
)
from sim.cycles import stream_cycles
from sim.jobs import code_range, random_job
from trilat import verilator

DRIVER = Path(__file__).with_name("driver.cpp")
# The driver's word for a run in which all was as expected.
EQUAL = "equal"
# Registers that hold no constant, in the order of driver.cpp's Kind.
_KINDS = ("control", "status", *PerformanceCounters.COUNTERS, "violations_in", "violations_out")


@dataclass(frozen=True, kw_only=True, eq=False)
class DriveRun:
    """Tiles sent back to back, and how.

    Attributes:
        jobs: output tiles.
        seed: of the pauses.
        gap: chance in percent that a source pauses before a beat, for 1..8 cycles.
        stall: chance in percent that the receiver is not ready in a cycle.
        reset_at: cycle of a reset of one cycle; 0: none.
        before: tiles that are sent up to the reset, and whose outputs are not looked at.
    """

    jobs: Sequence[TileJob]
    seed: int
    gap: int = 0
    stall: int = 0
    reset_at: int = 0
    before: Sequence[TileJob] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a run ended.

    Attributes:
        mutant: value of `mutsel`, 0 for the design itself.
        run: index of the run.
        word: ``equal``, or what differed first: ``tdata``, ``tlast``, ``surplus`` (more output
            beats than expected), ``hang``, ``unstable`` (an offered beat changed), ``untaken``
            (input beats were not accepted), ``violations_in``, ``violations_out``, ``cycles`` (of
            a run without pauses, by the schedule), ``axil`` (an answer, status, counter or constant
            on the register bus), ``crash``.
        cycle: in which it was seen.
    """

    mutant: int
    run: int
    word: str
    cycle: int


def build_driver(
    sources: Sequence[Path],
    config: AcceleratorConfig,
    executable: Path,
    *,
    selected: bool = False,
    shell: bool = False,
    optimize: str = "-O1",
    runtime_cache: Path | None = None,
) -> None:
    """Compile Verilog with the driver.

    Args:
        sources: Verilog files with the module `trilat_core` or a netlist of it.
        config: what they were generated from.
        executable: file to write.
        selected: the top module has an input `mutsel`.
        shell: drive the whole accelerator, with its registers, and not the core alone.
        optimize: compiler flag for the code that runs in every cycle.
        runtime_cache: as in `trilat.verilator.build`.

    Raises:
        InputError: perl, make or g++ is missing.
        trilat.verilator.VerilatorError: the Verilog does not compile.
    """
    defines = [
        *(["-DCHECKS_INPUT"] if config.checks_input else []),
        *(["-DCHECKS_OUTPUT"] if config.checks_output else []),
        *(["-DSELECTED"] if selected else []),
        *(["-DSHELL"] if shell else []),
    ]
    verilator.build(
        [*sources, DRIVER],
        executable,
        top=TOP if shell else CORE,
        arguments=(
            *("--no-timing", "--x-assign", "unique", "--x-initial", "unique"),
            *(["-CFLAGS", " ".join(defines)] if defines else []),
        ),
        optimize=optimize,
        runtime_cache=runtime_cache,
    )


def drive(
    executable: Path,
    config: AcceleratorConfig,
    runs: Sequence[DriveRun],
    mutants: tuple[int, int] = (0, 0),
) -> list[Verdict]:
    """Run every mutant of a range, each up to its first run that is not ``equal``.

    Args:
        executable: of `build_driver`.
        config: the accelerator.
        runs: what to send.
        mutants: first and last value of `mutsel`.

    Returns:
        The verdict of every run that was made, in order.
    """
    verdicts: list[Verdict] = []
    first, last = mutants
    with tempfile.TemporaryDirectory(prefix="trilat-drive-") as name:
        file = Path(name) / "runs.txt"
        file.write_text(" ".join(_text(config, runs)))
        while first <= last:
            done = subprocess.run(
                [str(executable.resolve()), str(file), str(first), str(last)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                check=False,
            )
            for line in done.stdout.splitlines():
                mutant, run, word, cycle = line.split()
                verdicts.append(
                    Verdict(mutant=int(mutant), run=int(run), word=word, cycle=int(cycle))
                )
            if done.returncode == 0:
                return verdicts
            # Verilator ends the process where a design does not settle: a combinational loop.
            at = verdicts[-1].mutant if verdicts and verdicts[-1].mutant >= first else first
            if verdicts and verdicts[-1].mutant == at and verdicts[-1].word != EQUAL:
                at += 1
            if at > last:
                raise RuntimeError(f"{executable.name} exit {done.returncode} behind its last run")
            verdicts.append(Verdict(mutant=at, run=0, word="crash", cycle=0))
            first = at + 1
    return verdicts


def trial_runs(config: AcceleratorConfig, *, seed: int = 0, tiles: int = 40) -> list[DriveRun]:
    """Return runs that try a design hard: extreme codes, ties, all sizes, pauses, resets.

    Args:
        config: the accelerator.
        seed: of tiles and pauses.
        tiles: output tiles of each run.
    """
    rng = np.random.default_rng(seed)
    runs = []
    for number, (gap, stall) in enumerate(((0, 0), (30, 0), (0, 60), (20, 40), (3, 90), (10, 20))):
        jobs = [trial_job(config, rng) for _ in range(tiles)]
        runs.append(DriveRun(jobs=jobs, seed=seed * 100 + number, gap=gap, stall=stall))
    for number in range(60):
        before, jobs = (
            [trial_job(config, rng) for _ in range(max(tiles // 10, 2))] for _ in range(2)
        )
        gap, stall = ((0, 0), (15, 30), (0, 85), (5, 60))[number % 4]
        runs.append(
            DriveRun(
                jobs=jobs,
                before=before,
                seed=seed * 100 + 50 + number,
                gap=gap,
                stall=stall,
                reset_at=int(rng.integers(8, 40 + 3 * (config.rows + config.cols) + 60)),
            )
        )
    return runs


def trial_job(config: AcceleratorConfig, rng: np.random.Generator) -> TileJob:
    """Return a random tile: one in three of extreme codes, one in three of sums near ties.

    Half of them have limits, bounds and flags that no calibration would give.
    """
    depth = config.max_m
    most = min(config.max_k_tiles, 6 * config.rows // config.k_step)
    most_m = min(depth, 24)
    m = int(rng.choice(np.array([1, min(2, depth), most_m, rng.integers(1, most_m + 1)])))
    job = random_job(
        config, rng, m=m, k_tiles=int(rng.integers(1, most + 1)), raw=bool(rng.random() < 0.3)
    )
    if rng.integers(2):
        ends = code_range(config.act_bits, job.signed_out)
        limits = np.sort(rng.integers(ends[0], ends[1] + 1, (2, config.cols)), axis=0)
        flags = rng.integers(0, 2, (2, config.cols)).astype(bool)
        ends = code_range(config.act_bits, job.signed_in)
        low, high = (int(v) for v in np.sort(rng.integers(ends[0], ends[1] + 1, 2)))
        job = replace(
            job,
            lo=limits[0],
            hi=limits[1],
            lo_is_bound=flags[0],
            hi_is_bound=flags[1],
            input_lo=low,
            input_hi=high,
        )
        job = with_common_limits(config, job)
    kind = rng.integers(3)
    limit = 1 << (config.acc_bits - 1)
    if kind == 0:
        return job
    if kind == 1:
        acts = np.array(code_range(config.act_bits, job.signed_in))
        weights = np.array(code_range(config.weight_bits, True))
        return replace(
            job,
            acts=rng.choice(acts, (1, job.acts.shape[1])).repeat(m, axis=0),
            weights=rng.choice(weights, (1, config.cols)).repeat(len(job.weights), axis=0),
            bias=rng.choice(np.array([-limit, limit - 1, 0]), config.cols),
            shift=rng.integers(0, 1 << config.shift_bits, config.cols),
        )
    # The bias puts the sums of one row near a multiple of one half: ties of every shift.
    shift = rng.integers(0, config.sum_bits + 1, config.cols)
    reach = np.maximum((np.int64(1) << config.sum_bits) >> shift, 1)
    near = np.where(rng.integers(2, size=config.cols), 7, reach)
    halves = rng.integers(-near, near + 1) * (np.int64(1) << shift) // 2
    if config.multiplies:
        # By powers of two, less one or so: ties again, and what only just is none.
        power = rng.integers(0, MULTIPLIER_BITS, config.cols)
        multiplier = ((np.int64(1) << power) + rng.integers(-1, 2, config.cols)).clip(0)
        job, shift = replace(job, multiplier=multiplier), shift + power
    share = float(rng.choice(np.array([0.0, 0.1, 0.5, 1.0])))
    job = replace(job, acts=job.acts * (rng.random(job.acts.shape) < share), shift=shift, raw=False)
    acts, _ = check_input(config, job)
    sums = acts[rng.integers(m)] @ job.weights
    bias = halves + rng.integers(-1, 2, config.cols) - sums
    return replace(job, bias=bias.clip(-limit, limit - 1))


def _text(config: AcceleratorConfig, runs: Sequence[DriveRun]) -> list[str]:
    """Return the words of driver.cpp's RUNS."""
    words = [str(len(REGISTERS))]
    for word in REGISTERS:
        kind = _KINDS.index(word.name) + 1 if word.name in _KINDS else 0
        words += [str(kind), str(reset_value(config, word))]
    words.append(str(len(runs)))
    for run in runs:
        noise = np.random.default_rng(run.seed)
        outputs = [reference_output(config, job) for job in run.jobs]
        quiet = 400 + 8 * (config.rows + config.cols + config.max_m)
        quiet *= 1 + (run.stall >= 80) * 4
        totals = [sum(o.violations_in for o in outputs), sum(o.violations_out for o in outputs)]
        free = not (run.gap or run.stall or run.reset_at)
        cycles = stream_cycles(config, run.jobs) if free else 0
        head = (run.seed, run.gap, run.stall, run.reset_at, quiet, *totals, cycles)
        words += map(str, head)
        streams: list[list[str]] = [[] for _ in range(7)]
        for job, output in zip(run.jobs, outputs, strict=True):
            for stream, beats in zip(
                streams, _beats(config, job, output.rows, noise), strict=False
            ):
                stream += beats
        nothing = np.empty((0, config.cols), dtype=np.int64)
        for job in run.before:
            for stream, beats in zip(
                streams[4:], _beats(config, job, nothing, noise), strict=False
            ):
                stream += beats
        for stream in streams:
            words += [str(len(stream) // 2), *stream]
    return words


def _beats(
    config: AcceleratorConfig, job: TileJob, rows: np.ndarray, noise: np.random.Generator
) -> list[list[str]]:
    """Return the beats of param, weight, act and out: tlast and hexadecimal tdata of each.

    What no field holds, in parameter words and in the padding of beats, is noise.
    """
    beats = stream_beats(config, job)
    weights = [_pack(row, config.weight_bits, noise) for row in beats.weights]
    acts = [_pack(row, config.act_bits, noise) for row in beats.acts]
    outs = []
    for row in rows:
        for j in range(config.raw_beats if job.raw else 1):
            outs.append(_pack(row >> (j * config.act_bits), config.act_bits))
    params = [
        word ^ extra
        for word, extra in zip(param_words(config, job), _param_noise(config, noise), strict=True)
    ]
    streams = (
        (params, 32, len(params)),
        (weights, config.cols * config.weight_bits, beats.weight_last),
        (acts, config.rows * config.act_bits, beats.act_last),
        (outs, config.cols * config.act_bits, len(outs)),
    )
    return [
        [
            word
            for i, value in enumerate(values, start=1)
            for word in ("1" if i % period == 0 else "0", f"{value:0{2 * -(-bits // 8)}x}")
        ]
        for values, bits, period in streams
    ]


def _param_noise(config: AcceleratorConfig, noise: np.random.Generator) -> list[int]:
    """Return words of a tile with noise in the bits that no field holds."""
    layout = parameter_words(config)
    words = []
    for word in (*layout.header, *layout.column * config.cols):
        used = sum(field.mask for field in word.fields)
        if word.name == "bias":
            used = (1 << config.acc_bits) - 1
        words.append(int(noise.integers(1 << 32)) & ~used)
    return words


def _pack(codes: np.ndarray, bits: int, noise: np.random.Generator | None = None) -> int:
    """Return a beat: the codes back to back, element 0 lowest; padding is zero, or noise."""
    beat = sum((int(code) & ((1 << bits) - 1)) << (i * bits) for i, code in enumerate(codes))
    padding = -(len(codes) * bits) % 8
    if noise is not None and padding:
        beat |= int(noise.integers(1 << padding)) << (len(codes) * bits)
    return beat
