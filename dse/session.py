# SPDX-License-Identifier: Apache-2.0
"""One invocation of the search on one run folder: trials, the front's points, records, lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console

from dse.evaluation import Evaluation, Stages
from dse.records import OBJECTIVES, Design, PointRecord, RunRecord, TrialRecord
from dse.search import Values, add, closest_to_utopia, finished, front, hypervolume_history, propose
from dse.settings import Settings
from dse.store import Result
from dse.tables import print_summary
from trilat.files import write_json

RECORD = "run.json"
# Reported points whose faults are also sorted into outcomes, by layer and by bit.
CAMPAIGN_POINTS = 4

Report = Callable[[RunRecord, Path], Path]
Use = tuple[str, str, float]


class Session:
    """One invocation on one run folder."""

    def __init__(
        self,
        settings: Settings,
        stages: Stages,
        study: optuna.Study,
        console: Console,
        out: Path,
        started: float,
    ) -> None:
        self.settings, self.stages, self.study = settings, stages, study
        self.console, self.out, self.started = console, out, started
        self.uses: list[Use] = []
        self.worked = False
        self.before = _seconds_of(out / RECORD)
        self.model: dict[str, Any] = {}
        self.rate: dict[str, Any] = {}
        self.voltage: tuple[dict[str, Any], ...] = ()

    def run(self, write_report: Report) -> RunRecord:
        """Search, measure the front, report."""
        settings = self.settings
        known = {design for design, *_ in finished(self.study)}
        if known:
            self.console.print(f"{settings.out}: going on after {len(known)} finished trials")
        count = max(0, settings.trials - len(known))
        startup = [d for d in settings.space.startup(settings.seed) if d not in known]
        with self.stages.ahead(startup[:count]):
            model = self.stages.model()
            self.model = model.value
            self._use(model.results)
            rate = self.stages.rate()
            self.rate = rate.value
            self._use(rate.results)
            self._search()
            self._curves()
            record = self._points()
        path = write_report(record, self.out)
        print_summary(record, self.console, path)
        for problem in disagreements(record):
            self.console.print(f"DISAGREEMENT: {problem}", soft_wrap=True)
        return record

    def _search(self) -> None:
        settings = self.settings
        while True:
            trials = [(design, values) for design, values, _ in finished(self.study)]
            if len(trials) >= settings.trials:
                return
            design = propose(settings.space, trials, seed=settings.seed)
            if design is None:
                return
            start = time.monotonic()
            evaluation = self.stages.evaluate(design, self.rate["rate"])
            values = tuple(evaluation.objectives[name] for name in OBJECTIVES)
            record = _trial(len(trials), design, evaluation)
            uses = [(r.stage, r.key, r.seconds) for r in evaluation.results]
            add(
                self.study,
                settings.space,
                design,
                values,
                record=json.loads(json.dumps(asdict(record))),
                uses=uses,
                agreement=evaluation.agreement,
            )
            self.worked = True
            self._write(())
            reused = all(result.cached for result in evaluation.results)
            self.console.print(
                f"trial {len(trials):<3} {design.label():<18} "
                f"{_objectives(values)}  {time.monotonic() - start:6.1f} s  "
                f"{len(trials) + 1}/{settings.trials}" + ("  cached" if reused else ""),
                soft_wrap=True,
            )

    def _curves(self) -> None:
        """Measure what each method holds at which supply voltage, where weights are at fault."""
        if self.settings.faults.site != "weights":
            return
        trials = self._record(()).trials
        best: dict[str, TrialRecord] = {}
        for trial in sorted(trials, key=_most_reliable_first):
            best.setdefault(trial.design.method, trial)
        baseline = [t for t in trials if t.design == self.settings.space.widest()]
        chosen = [trials[number] for number in self._by_interest(trials)[:1]]
        # The array does not change what weights do: one design per network and protection.
        distinct: dict[Design, TrialRecord] = {}
        for trial in (*chosen, *baseline, *best.values()):
            distinct.setdefault(replace(trial.design, rows=0, cols=0, dataflow=""), trial)
        curves = []
        for trial in sorted(distinct.values(), key=lambda trial: trial.number):
            curve = self.stages.curve(trial, self.rate["rate"])
            self._use(curve.results)
            curves.append(curve.value)
        self.voltage = tuple(curves)

    def _points(self) -> RunRecord:
        record = self._record(())
        on_front = [trial for trial in record.trials if trial.pareto]
        order = self._by_interest(record.trials)
        verified = {"best": order[:1], "all": order, "none": []}[self.settings.verify]
        analysed = self._analysed(on_front, order)
        points: list[PointRecord] = []
        by_number = {trial.number: trial.design for trial in on_front}
        self.stages.build_ahead([by_number[number] for number in verified])
        # Simulated points last: their simulators are built meanwhile.
        for trial in sorted(on_front, key=lambda trial: (trial.number in verified, trial.number)):
            folder = Path("points") / f"{trial.number:03d}-{trial.design.label().replace(' ', '-')}"
            point = self.stages.point(
                trial,
                self.rate["rate"],
                trial.number in analysed,
                trial.number in verified,
                folder,
                self.out,
            )
            self._use(point.results)
            points.append(point.record)
            if any(not result.cached for result in point.results):
                self._write(_in_order(points))
        return self._write(_in_order(points))

    def _by_interest(self, trials: tuple[TrialRecord, ...]) -> list[int]:
        """Return the numbers of the front, the chosen one first."""
        values = [tuple(t.objectives[name] for name in OBJECTIVES) for t in trials]
        among = [i for i, t in enumerate(trials) if t.pareto]
        return [trials[i].number for i in closest_to_utopia(values, among)]

    def _analysed(self, on_front: list[TrialRecord], order: list[int]) -> set[int]:
        """Choose the points with campaigns: the chosen one, each objective's best, the closest."""
        best = []
        for name, (direction, _, _) in OBJECTIVES.items():
            sign = -1 if direction == "maximize" else 1
            costs = [(sign * trial.objectives[name], trial.number) for trial in on_front]
            best.append(min(costs)[1])
        return set(list(dict.fromkeys([order[0], *best, *order]))[:CAMPAIGN_POINTS])

    def _use(self, results: tuple[Result, ...]) -> None:
        self.uses += [(r.stage, r.key, r.seconds) for r in results]
        self.worked = self.worked or any(not r.cached for r in results)

    def _write(self, points: tuple[PointRecord, ...]) -> RunRecord:
        record = self._record(points)
        write_json(self.out / RECORD, record.to_json())
        return record

    def _record(self, points: tuple[PointRecord, ...]) -> RunRecord:
        done = finished(self.study)
        values = [v for _, v, _ in done]
        on_front = set(front(values))
        trials = tuple(
            replace(TrialRecord.from_json(attrs["record"]), pareto=i in on_front)
            for i, (_, _, attrs) in enumerate(done)
        )
        history, reference = hypervolume_history(values)
        uses = [*self.uses, *(tuple(use) for _, _, attrs in done for use in attrs["uses"])]
        agreement = {a["network_hash"]: a for _, _, attrs in done if (a := attrs["agreement"])}
        seconds = self.before + (time.monotonic() - self.started if self.worked else 0)
        return RunRecord(
            name=self.out.resolve().name,
            command=self.settings.command(),
            settings=self.settings.flags(),
            data=self.stages.data,
            model={**self.model, "agreement": list(agreement.values())},
            rate=self.rate,
            versions=self.stages.versions,
            trials=trials,
            points=points,
            hypervolume=history,
            reference=reference,
            stages=_stage_costs(uses),
            seconds=round(seconds, 1),
            notes=self.stages.notes,
            voltage=self.voltage,
        )


def _most_reliable_first(trial: TrialRecord) -> tuple[float, float, float, int]:
    value = trial.objectives
    cost = (-value["faulty_accuracy"], -value["accuracy"], value["lut_equivalent"])
    return (*cost, trial.number)


def _in_order(points: list[PointRecord]) -> tuple[PointRecord, ...]:
    return tuple(sorted(points, key=lambda point: point.number))


def disagreements(record: RunRecord) -> list[str]:
    """Return, in sentences, where forms of a network that must be equal are not."""
    found = []
    for counts in record.model["agreement"]:
        if "largest" in counts:
            if counts["largest"] > 1:
                name = f"W{counts['weight_bits']}A{counts['act_bits']} mult"
                largest = counts["largest"]
                found.append(f"{name}: Brevitas or ONNX are {largest} off the engine in a layer")
        elif counts["equal"] != counts["words"]:
            name = f"W{counts['weight_bits']}A{counts['act_bits']}"
            wrong = counts["words"] - counts["equal"]
            found.append(f"{name}: Brevitas, ONNX and engine differ in {wrong} words")
    for point in record.points:
        result = point.verification
        if result and not result["agrees"]:
            found.append(
                f"trial {point.number}: the RTL differs from the engine ({result['outputs_equal']} "
                f"of {result['outputs_compared']} outputs equal, {result['faults_predicted']} of "
                f"{result['faults_replayed']} faults predicted, see verification in run.json)"
            )
    return found


def _trial(number: int, design: Design, evaluation: Evaluation) -> TrialRecord:
    return TrialRecord(
        number=number,
        design=design,
        objectives=evaluation.objectives,
        accuracy_interval=evaluation.accuracy_interval,
        faulty=evaluation.faulty,
        cost=evaluation.cost,
        cycles=evaluation.cycles,
        stages=tuple(result.cost() for result in evaluation.results),
        config_hash=evaluation.config_hash,
        network_hash=evaluation.network_hash,
    )


def _objectives(values: Values) -> str:
    accuracy, faulty, area, time_us = values
    return f"{accuracy:6.2f} %  {faulty:6.2f} % faulty  {area:8.0f} LUT-eq  {time_us:10.1f} µs"


def _stage_costs(uses: list[Any]) -> dict[str, dict[str, float]]:
    """Return runs, reuses and seconds per stage; every distinct result counts as one run."""
    costs: dict[str, dict[str, float]] = {}
    seen = set()
    for stage, key, seconds in uses:
        cost = costs.setdefault(stage, {"runs": 0, "reuses": 0, "seconds": 0.0})
        if (stage, key) in seen:
            cost["reuses"] += 1
        else:
            seen.add((stage, key))
            cost["runs"] += 1
            cost["seconds"] = round(cost["seconds"] + seconds, 3)
    return costs


def _seconds_of(path: Path) -> float:
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
