# SPDX-License-Identifier: Apache-2.0
"""Compares `faultinj.tile_faults.predict` with the RTL: every output word and violation counter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from faultinj.faults import REGISTERS, RegisterFault, to_json
from faultinj.tile_faults import predict
from hdl.config import AcceleratorConfig
from hdl.registers import CONTROL_CLASSES, register_classes
from hdl.tile import TileJob, TileOutput
from sim.fault_draws import Predict, draw, draw_faults, edge_tile
from sim.inject import COMPLETE, FaultyRun, Injector
from sim.jobs import random_job
from sim.replay import equal_outputs, first_difference
from sim.runner import run_jobs

# Faults drawn for a tile before the next tile.
_FAULTS_PER_TILE = 12
# Share of the faults so far below which the next one is to have an effect: somewhat above one
# half, since some classes have few faults with one.
_WANTED = 0.6
# Cycles of a waveform ahead of the first fault and behind it.
_BEFORE, _BEHIND = 8, 80
_LISTED = 5


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
                faults, output = draw_faults(
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
