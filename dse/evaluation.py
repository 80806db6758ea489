# SPDX-License-Identifier: Apache-2.0
"""What the search asks of the stages: four questions, answered by `dse.stages` or by a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dse.records import Design, PointRecord, TrialRecord
from dse.store import Result


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that is measured of a design, in the search.

    Attributes:
        objectives: one value per name in `dse.records.OBJECTIVES`.
        accuracy_interval, faulty, cost, cycles, config_hash, network_hash: as in `TrialRecord`.
        agreement: counts of the network's layers compared, as in `RunRecord.model`.
        results: the stages it is made of, in order.
    """

    objectives: dict[str, float]
    accuracy_interval: tuple[float, float]
    faulty: dict[str, Any]
    cost: dict[str, Any]
    cycles: int
    config_hash: str
    network_hash: str
    agreement: dict[str, Any]
    results: tuple[Result, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A JSON-able value and the stages that it is made of."""

    value: dict[str, Any]
    results: tuple[Result, ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A reported point and the stages that it is made of."""

    record: PointRecord
    results: tuple[Result, ...]


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The other rooms, as the search sees them. Opening them writes nothing.

    Attributes:
        identity: JSON-able; all that a study's figures depend on besides the flags: a run goes on
            only where it is equal.
        data, versions, notes: as in `RunRecord`.
        ahead: context in which the given designs are prepared in the background.
        build_ahead: starts building the given designs' simulators, in the background of `ahead`.
        model: describes the float model; trains it.
        rate: chooses the fault rate: ``{"rate": ..., "how": ...}``.
        evaluate: a design at a fault rate.
        point: measures a Pareto trial on the test split and writes its artefacts. Arguments: the
            trial, the fault rate, whether to run campaigns, whether to simulate its RTL, the folder
            of the artefacts, and the run folder.
        curve: accuracy of a trial over chips from rate to rate, the search's among them:
            ``{"number": ..., "results": [...]}``, as in `RunRecord.voltage`.
    """

    identity: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    notes: tuple[str, ...]
    ahead: Callable[[Sequence[Design]], AbstractContextManager[None]]
    build_ahead: Callable[[Sequence[Design]], None]
    model: Callable[[], Answer]
    rate: Callable[[], Answer]
    evaluate: Callable[[Design, float], Evaluation]
    point: Callable[[TrialRecord, float, bool, bool, Path, Path], Point]
    curve: Callable[[TrialRecord, float], Answer]
