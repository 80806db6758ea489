# SPDX-License-Identifier: Apache-2.0
"""Holds `faultinj.tile_faults.predict` against the RTL, fault by fault and bit by bit.

Also a command: ``python -m sim.agree --help``. Faults are drawn over configurations, register
classes, kinds and multiplicities, and each runs in the simulated Verilog; every output word and
both violation counters must be the predicted ones. Faults in control bits, of which nothing is
predicted, are counted by what came of them. A disagreement prints the fault and leaves the
waveform of the cycles around it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from faultinj.faults import KINDS, REGISTERS, RegisterFault, to_json
from faultinj.register_times import idle_start
from faultinj.tile_faults import predict
from hdl.config import AcceleratorConfig
from hdl.registers import CONTROL_CLASSES, register_classes, register_places, register_slice
from hdl.tile import TileJob, TileOutput
from sim.cycles import stream_cycles
from sim.inject import COMPLETE, FaultyRun, Injector
from sim.jobs import random_job
from sim.replay import equal_outputs, first_difference
from sim.runner import run_jobs
from trilat.errors import InputError, run_command
from trilat.files import write_json
from trilat.progress import NoProgress, Progress, TerminalProgress

CACHE = Path(".cache") / "sim"
# Both dataflows, all shapes, widths 2, 4, 8 and mixed, every protection, multiplier, place of the
# limits and requantization.
CONFIGURATIONS = {
    "ws 1x1 a8w8": AcceleratorConfig(rows=1, cols=1, max_k=12, psum_depth=9),
    "ws 1x8 a4w2 clip, packed": AcceleratorConfig(
        rows=1, cols=8, act_bits=4, weight_bits=2, max_k=12, psum_depth=6, protect="clip",
        mult="dsp", dsp_pack=4,
    ),
    "ws 5x3 a2w8 zero": AcceleratorConfig(
        rows=5, cols=3, act_bits=2, max_k=33, psum_depth=16, protect="zero"
    ),
    "ws 5x3 a8w4, lut": AcceleratorConfig(
        rows=5, cols=3, weight_bits=4, max_k=64, psum_depth=24, mult="lut"
    ),
    "ws 8x8 a4w4 clip output": AcceleratorConfig(
        rows=8, cols=8, act_bits=4, weight_bits=4, max_k=64, psum_depth=32, protect="clip",
        protect_place="output",
    ),
    "ws 8x8 a8w8": AcceleratorConfig(rows=8, cols=8, max_k=64, psum_depth=32),
    "ws 16x16 a8w8": AcceleratorConfig(psum_depth=64),
    "ws 16x16 a2w2 zero": AcceleratorConfig(
        act_bits=2, weight_bits=2, psum_depth=64, protect="zero"
    ),
    "ws 5x3 a8w8 clip, mult": AcceleratorConfig(
        rows=5, cols=3, max_k=64, psum_depth=16, protect="clip", requant="mult"
    ),
    "ws 4x6 a4w8 zero, mult, layer": AcceleratorConfig(
        rows=4, cols=6, act_bits=4, max_k=64, psum_depth=16, protect="zero", requant="mult",
        bounds="layer",
    ),
    "os 1x1 a2w2": AcceleratorConfig(
        dataflow="os", rows=1, cols=1, act_bits=2, weight_bits=2, max_k=20
    ),
    "os 1x8 a8w8 zero": AcceleratorConfig(
        dataflow="os", rows=1, cols=8, max_k=30, protect="zero"
    ),
    "os 5x3 a4w8 clip, lut": AcceleratorConfig(
        dataflow="os", rows=5, cols=3, act_bits=4, max_k=70, protect="clip", mult="lut"
    ),
    "os 8x8 a8w2": AcceleratorConfig(
        dataflow="os", rows=8, cols=8, weight_bits=2, max_k=70
    ),
    "os 4x5 a8w4 clip, layer": AcceleratorConfig(
        dataflow="os", rows=4, cols=5, weight_bits=4, max_k=70, protect="clip", bounds="layer"
    ),
    "os 16x16 a8w8": AcceleratorConfig(dataflow="os"),
    "os 16x16 a4w4 clip input": AcceleratorConfig(
        dataflow="os", act_bits=4, weight_bits=4, protect="clip", protect_place="input"
    ),
}  # fmt: skip
# Faults drawn for a tile before the next tile.
_FAULTS_PER_TILE = 12
# How often a fault that would change nothing is drawn again.
_REDRAWS = 60
# Share of the faults so far below which the next one is to have an effect: somewhat above one
# half, since some classes have few faults with one.
_WANTED = 0.6
# Cycles of a waveform ahead of the first fault and behind it.
_BEFORE, _BEHIND = 8, 80
_LISTED = 5

Predict = Callable[[AcceleratorConfig, TileJob, Sequence[RegisterFault]], TileOutput]


@dataclass(kw_only=True)
class Agreement:
    """What was compared; counts are by (class, kind), several faults under the first's.

    Attributes:
        run, agreeing, corrupting: faults run in RTL, of those the ones that gave what was
            predicted, and the ones that changed an output word or a counter.
        control: outcomes of control faults by (class, outcome): ``masked``, ``sdc``, ``hang`` or
            ``framing``.
        cocotb, cocotb_equal: of those run under cocotb too, all and those with the same output.
        disagreements: the first ones, JSON-able.
    """

    run: Counter[tuple[str, str]] = field(default_factory=Counter)
    agreeing: Counter[tuple[str, str]] = field(default_factory=Counter)
    corrupting: Counter[tuple[str, str]] = field(default_factory=Counter)
    control: Counter[tuple[str, str]] = field(default_factory=Counter)
    cocotb: int = 0
    cocotb_equal: int = 0
    disagreements: list[dict[str, Any]] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether every fault gave what was predicted, and the same under cocotb."""
        return self.run == self.agreeing and self.cocotb == self.cocotb_equal

    def add(self, other: Agreement) -> None:
        """Add another one's counts and disagreements."""
        for name in ("run", "agreeing", "corrupting", "control"):
            getattr(self, name).update(getattr(other, name))
        self.cocotb += other.cocotb
        self.cocotb_equal += other.cocotb_equal
        self.disagreements += other.disagreements

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data."""

        def rows(counts: Counter[tuple[str, str]]) -> dict[str, int]:
            return {" ".join(key): count for key, count in sorted(counts.items())}

        return {
            "agrees": self.agrees,
            **{n: rows(getattr(self, n)) for n in ("run", "agreeing", "corrupting", "control")},
            "cocotb": self.cocotb,
            "cocotb_equal": self.cocotb_equal,
            "disagreements": self.disagreements,
        }


def edge_tile(config: AcceleratorConfig, rng: np.random.Generator) -> TileJob:
    """Return a random tile such as a layer's last one: K and N end inside the array."""
    job = random_job(config, rng)
    depth = job.acts.shape[1] - int(rng.integers(config.k_step))
    width = int(rng.integers(1, config.cols + 1))
    acts, weights = job.acts.copy(), job.weights.copy()
    acts[:, depth:] = 0
    weights[depth:] = 0
    weights[:, width:] = 0
    nothing = np.arange(config.cols) >= width
    # As `faultinj.lowering.lower` fills columns past N: what they give is within their limits.
    shared = config.layer_bounds
    alone = nothing & (not shared)
    factor = job.multiplier
    return replace(
        job,
        acts=acts,
        weights=weights,
        bias=np.where(nothing, np.clip(0, job.lo, job.hi) if shared else 0, job.bias),
        shift=np.where(nothing, 0, job.shift),
        multiplier=None if factor is None else np.where(nothing, int(shared), factor),
        lo=np.where(alone, 0, job.lo),
        hi=np.where(alone, 0, job.hi),
        lo_is_bound=job.lo_is_bound & ~alone,
        hi_is_bound=job.hi_is_bound & ~alone,
    )


def draw(
    config: AcceleratorConfig,
    job: TileJob,
    register: str,
    kind: str,
    bits: int,
    rng: np.random.Generator,
) -> RegisterFault:
    """Return a fault in a random register of a class, in a random cycle of the tile.

    Words of memories are drawn among those that the tile uses.

    Args:
        config: the accelerator.
        job: the tile.
        register: class of the register.
        kind: of the fault.
        bits: length of the burst of adjacent bits, at most the register's width.
        rng: source of the choices.
    """
    places = register_places(config, register)
    if register in ("psum_buffer", "ring"):
        places = [place for place in places if place[0] < job.m]
    row, col = places[rng.integers(len(places))]
    width = register_slice(config, register, row, col).bits
    bits = min(bits, width)
    low = int(rng.integers(width - bits + 1))
    lead = idle_start(config) - 1
    # Loading happens ahead of the tile's first activation beat, all else from it on.
    early = register.startswith("next_") or register in ("weight_loading", "weight_skew")
    first = -lead if early or rng.random() < 0.1 else 0
    return RegisterFault(
        layer="tile",
        image=0,
        tile=0,
        register=register,
        row=row,
        col=col,
        bits=tuple(range(low, low + bits)),
        cycle=int(rng.integers(first, stream_cycles(config, [job]))) if kind == "flip" else None,
        kind=kind,
    )


def agree(
    config: AcceleratorConfig,
    count: int,
    rng: np.random.Generator,
    *,
    cache: Path,
    control: int = 0,
    cocotb: int = 0,
    waves: Path | None = None,
    predict: Predict = predict,
) -> Agreement:
    """Run random faults of one configuration in its RTL and compare them with the prediction.

    Args:
        config: the accelerator.
        count: faults of predicted classes.
        rng: source of the choices.
        cache: folder of finished simulators.
        control: faults of control bits.
        cocotb: how many of the predicted ones also run under cocotb.
        waves: folder for a waveform of each of the first disagreements.
        predict: what says which output there must be.

    Raises:
        InputError: a system tool is missing.
    """
    result = Agreement()
    classes = [r for r in register_classes(config) if r in REGISTERS[config.dataflow]]
    again: list[tuple[TileJob, list[RegisterFault], FaultyRun]] = []
    with Injector(config, cache) as injector:
        for at in range(0, count, _FAULTS_PER_TILE):
            job = (
                edge_tile(config, rng)
                if at // _FAULTS_PER_TILE % 3 == 2
                else random_job(config, rng)
            )
            clean = injector.load(job)
            lists, expected = [], []
            for number in range(at, min(at + _FAULTS_PER_TILE, count)):
                effects, so_far = sum(result.corrupting.values()), sum(result.run.values())
                wanted = effects < _WANTED * max(so_far, 1)
                faults, output = _draw_list(
                    config, job, clean, classes, number, wanted, rng, predict
                )
                lists.append(faults)
                expected.append(output)
            for faults, output, run in zip(lists, expected, injector.inject(lists), strict=True):
                _count(config, result, job, faults, clean, output, run, waves, cache)
                again.append((job, faults, run))
        job = random_job(config, rng, m=min(config.max_m, 12))
        clean = injector.load(job)
        lists = [
            [draw(config, job, register, ("flip", "stuck0", "stuck1")[i % 4 % 3], 1, rng)]
            for i, register in _turns(CONTROL_CLASSES[config.dataflow], control)
        ]
        for faults, run in zip(lists, injector.inject(lists), strict=True):
            outcome = run.outcome
            if run.output is not None:
                outcome = "masked" if equal_outputs(run.output, clean) else "sdc"
            result.control[faults[0].register, outcome] += 1
    # Behind other tiles, another word of the ring is the one of a tile's row.
    again = [one for one in again if all(fault.register != "ring" for fault in one[1])]
    chosen = again[:: max(len(again) // cocotb, 1)][:cocotb] if cocotb else []
    if chosen:
        jobs, groups = [job for job, _, _ in chosen], [faults for _, faults, _ in chosen]
        slow = run_jobs(config, jobs, groups, cache=cache)
        result.cocotb = len(chosen)
        result.cocotb_equal = sum(
            run.output is not None and equal_outputs(run.output, output)
            for (_, _, run), output in zip(chosen, slow.outputs, strict=True)
        )
    return result


def _turns(names: Sequence[str], count: int) -> Iterable[tuple[int, str]]:
    return ((i // len(names), names[i % len(names)]) for i in range(count))


def _draw_list(
    config: AcceleratorConfig,
    job: TileJob,
    clean: TileOutput,
    classes: Sequence[str],
    number: int,
    wanted: bool,
    rng: np.random.Generator,
    predict: Predict,
) -> tuple[list[RegisterFault], TileOutput]:
    """Return a fault, every tenth time two, of the class and the kind whose turn it is.

    Half are transient. Where an effect is wanted, a draw without one is repeated.
    """
    turn = number // len(classes)
    kind = KINDS[(0, 1, 0, 2)[turn % 4]]
    for _ in range(_REDRAWS if wanted else 1):
        bits = 1 if rng.random() < 0.8 else int(rng.integers(2, 5))
        faults = [draw(config, job, classes[number % len(classes)], kind, bits, rng)]
        if number % 10 == 9:
            more = draw(config, job, classes[int(rng.integers(len(classes)))], "flip", 1, rng)
            # What is stuck and flipped at once has no order: there, one fault stays alone.
            if _place(more) != _place(faults[0]):
                faults.append(more)
        output = predict(config, job, faults)
        if not equal_outputs(output, clean):
            break
    return faults, output


def _place(fault: RegisterFault) -> tuple[str, int, int]:
    return fault.register, fault.row, fault.col


def _count(
    config: AcceleratorConfig,
    result: Agreement,
    job: TileJob,
    faults: list[RegisterFault],
    clean: TileOutput,
    expected: TileOutput,
    run: FaultyRun,
    waves: Path | None,
    cache: Path,
) -> None:
    key = faults[0].register, faults[0].kind
    result.run[key] += 1
    changed = run.outcome != COMPLETE or run.output is None or not equal_outputs(run.output, clean)
    result.corrupting[key] += changed
    if run.output is not None and equal_outputs(run.output, expected):
        result.agreeing[key] += 1
    elif len(result.disagreements) < _LISTED:
        found = {
            "config": config.to_json(),
            "faults": [to_json(fault) for fault in faults],
            "m": job.m,
            "outcome": run.outcome,
            **({} if run.output is None else first_difference(run.output, expected)),
        }
        if waves is not None:
            found["waveform"] = str(_waveform(config, job, faults, waves, cache))
        result.disagreements.append(found)


def _waveform(
    config: AcceleratorConfig,
    job: TileJob,
    faults: Sequence[RegisterFault],
    waves: Path,
    cache: Path,
) -> Path:
    """Run a fault again and write the waveform of the cycles around it; return the file."""
    waves.mkdir(parents=True, exist_ok=True)
    number = 0
    while (file := waves / f"disagreement-{number}.vcd").exists():
        number += 1
    cycle = min((fault.cycle for fault in faults if fault.cycle is not None), default=0)
    with Injector(config, cache, trace=True) as injector:
        injector.load(job)
        injector.trace(faults, file, (cycle - _BEFORE, cycle + _BEHIND))
    return file


def agree_all(
    configurations: dict[str, AcceleratorConfig],
    faults: int,
    *,
    seed: int,
    cache: Path,
    control: int = 0,
    cocotb: int = 0,
    waves: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Agreement]:
    """Return the agreement of every configuration; `faults` and the others are shared evenly.

    Args:
        configurations: by name.
        faults, control: in all.
        seed: of tiles and faults.
        cache: folder of finished simulators.
        cocotb: of each configuration, see `agree`.
        waves: see `agree`.
        progress: where to report.
    """
    results = {}
    share, rest = (-(-n // len(configurations)) for n in (faults, control))
    with (progress or NoProgress()).task("faults in RTL", len(configurations)) as advance:
        for number, (name, config) in enumerate(configurations.items()):
            rng = np.random.default_rng([seed, number])
            results[name] = agree(
                config, share, rng, cache=cache, control=rest, cocotb=cocotb, waves=waves
            )
            advance(1)
    return results


def table(results: dict[str, Agreement]) -> str:
    """Return the counts by configuration, by class and kind, and those of control bits."""
    total = Agreement()
    for result in results.values():
        total.add(result)

    def line(name: str, one: Agreement, keys: Iterable[tuple[str, str]]) -> str:
        keys = list(keys)
        run, agreeing, corrupting = (
            sum(counts[key] for key in keys) for counts in (one.run, one.agreeing, one.corrupting)
        )
        return f"{name:<28}{run:>8}{agreeing:>10}{corrupting:>12}"

    lines = [f"{'configuration':<28}{'faults':>8}{'predicted':>10}{'corrupting':>12}"]
    lines += [line(name, one, one.run) for name, one in results.items()]
    lines += ["", f"{'register, kind':<28}{'faults':>8}{'predicted':>10}{'corrupting':>12}"]
    lines += [line(" ".join(key), total, [key]) for key in sorted(total.run)]
    lines += ["", line("all", total, total.run)]
    if total.cocotb:
        lines.append(f"equal under cocotb: {total.cocotb_equal} of {total.cocotb}")
    if total.control:
        outcomes = ("masked", "sdc", "hang", "framing")
        lines += ["", f"{'control bit':<28}" + "".join(f"{name:>10}" for name in outcomes)]
        for register in sorted({register for register, _ in total.control}):
            counts = "".join(f"{total.control[register, name]:>10}" for name in outcomes)
            lines.append(f"{register:<28}{counts}")
    return "\n".join(lines)


def main_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m sim.agree", description=__doc__)
    parser.add_argument("--faults", type=int, default=5600, help="over all configurations")
    parser.add_argument("--control", type=int, default=560, help="faults in control bits")
    parser.add_argument(
        "--cocotb", type=int, default=0, metavar="N",
        help="run N faults of each configuration under cocotb too (a build of 1 to 2 minutes each)",
    )  # fmt: skip
    parser.add_argument(
        "--only", metavar="TEXT", help="configurations with this in their name, e.g. '5x3'"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--waves", type=Path, default=Path("waves"), help="folder of waveforms")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of finished simulators")
    parser.add_argument("--json", type=Path, help="also write the counts here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if everything agreed, 1 if not, 2 for bad input."""
    args = main_parser().parse_args(argv)
    return run_command("python -m sim.agree", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    for name, least in (("faults", 1), ("control", 0), ("cocotb", 0), ("seed", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    chosen = {n: c for n, c in CONFIGURATIONS.items() if args.only is None or args.only in n}
    if not chosen:
        raise InputError(
            f"--only {args.only!r} is in no name of a configuration: {', '.join(CONFIGURATIONS)}"
        )
    results = agree_all(
        chosen,
        args.faults,
        seed=args.seed,
        cache=args.cache,
        control=args.control,
        cocotb=args.cocotb,
        waves=args.waves,
        progress=TerminalProgress(),
    )
    print(table(results))
    for result in results.values():
        for entry in result.disagreements:
            print(f"DISAGREEMENT {json.dumps(entry)}")
    if args.json is not None:
        write_json(args.json, {name: result.to_json() for name, result in results.items()})
    return 0 if all(result.agrees for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
