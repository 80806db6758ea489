# SPDX-License-Identifier: Apache-2.0
"""The search: what to try next, which designs are on the front, and the study on disk.

Optuna proposes and keeps. A trial enters the study in one write, when it is finished, so a killed
run leaves no half trial behind; and the proposal for trial n follows from the seed, n and the n
trials before it alone, so a resumed search is the search that was not interrupted.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import TrialState

from dse.records import OBJECTIVES, Design
from dse.space import STARTUP, Space

STUDY = "trilat"
DIRECTIONS = [
    StudyDirection.MAXIMIZE if direction == "maximize" else StudyDirection.MINIMIZE
    for direction, _, _ in OBJECTIVES.values()
]
_SIGNS = np.array([-1.0 if d is StudyDirection.MAXIMIZE else 1.0 for d in DIRECTIONS])
_ASKS = 32

Values = tuple[float, ...]


def open_study(journal: Path) -> optuna.Study:
    """Open the study in a journal file, or make one. The caller holds the run folder's lock.

    A last line that a killed run left unfinished is cut off, and its lock on the file removed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if journal.exists():
        text = journal.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            with journal.open("r+b") as file:
                file.truncate(len(whole))
    backend = JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal)))
    return optuna.create_study(
        storage=JournalStorage(backend),
        study_name=STUDY,
        directions=DIRECTIONS,
        load_if_exists=True,
    )


def finished(study: optuna.Study) -> list[tuple[Design, Values, dict[str, Any]]]:
    """Return design, values and attributes of every finished trial, in order."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [(Design(**t.params), tuple(t.values), t.user_attrs) for t in trials]


def add(study: optuna.Study, space: Space, design: Design, values: Values, **attrs: Any) -> None:
    """Append a finished trial to the study: one write, all or nothing.

    Args:
        study: of `open_study`.
        space: that `design` belongs to.
        design: what was evaluated.
        values: one per objective.
        **attrs: JSON-able attributes of the trial.
    """
    knobs = space.knobs()
    study.add_trial(
        optuna.trial.create_trial(
            values=list(values),
            params={name: getattr(design, name) for name in knobs},
            distributions={name: CategoricalDistribution(v) for name, v in knobs.items()},
            user_attrs=attrs,
        )
    )


def propose(space: Space, trials: Sequence[tuple[Design, Values]], *, seed: int) -> Design | None:
    """Return a design that is not among `trials`, or None when the space is exhausted.

    The first `STARTUP` are fixed; after them multivariate TPE, with the ordered knobs as integers
    (so that it knows 8 lies between 4 and 16), asked until it names a new design.

    Args:
        space: to choose from.
        trials: finished ones, in order.
        seed: of the whole search.
    """
    done = {design for design, _ in trials}
    fallback = [design for design in space.startup(seed) if design not in done]
    if not fallback or len(trials) < STARTUP:
        return fallback[0] if fallback else None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    knobs = space.knobs()
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(values)
        if isinstance(values[0], str)
        else IntDistribution(0, len(values) - 1)
        for name, values in knobs.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=int(np.random.SeedSequence([seed, len(trials)]).generate_state(1)[0]),
            multivariate=True,
            n_startup_trials=0,
            constant_liar=False,
        )
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    study.add_trials(
        [
            optuna.trial.create_trial(
                values=list(values),
                params={
                    name: getattr(design, name)
                    if isinstance(distributions[name], CategoricalDistribution)
                    else knobs[name].index(getattr(design, name))
                    for name in knobs
                },
                distributions=distributions,
            )
            for design, values in trials
        ]
    )
    for _ in range(_ASKS):
        asked = study.ask(distributions).params
        named: dict[str, Any] = {
            name: value if isinstance(value, str) else knobs[name][value]
            for name, value in asked.items()
        }
        design = Design(**named)
        if design not in done:
            return design
    return fallback[0]


def losses(values: Sequence[Values]) -> np.ndarray:
    """Return objectives as float64 (trials, objectives), all to be minimized."""
    return np.asarray(values, dtype=np.float64).reshape(-1, len(DIRECTIONS)) * _SIGNS


def front(values: Sequence[Values]) -> list[int]:
    """Return the indices of the trials that no other one dominates; equals are all kept."""
    loss = losses(values)
    return [
        i
        for i, row in enumerate(loss)
        if not ((loss <= row).all(axis=1) & (loss < row).any(axis=1)).any()
    ]


def closest_to_utopia(values: Sequence[Values], among: Sequence[int]) -> list[int]:
    """Return `among`, by distance to the best value of every objective; ties by number.

    Each objective is scaled to 0..1 over the trials of `among`.
    """
    loss = losses(values)[list(among)]
    span = np.ptp(loss, axis=0)
    scaled = (loss - loss.min(axis=0)) / np.where(span > 0, span, 1)
    distance = np.sqrt((scaled**2).sum(axis=1))
    return [among[i] for i in np.lexsort((np.asarray(among), distance))]


def hypervolume_history(values: Sequence[Values]) -> tuple[tuple[float, ...], dict[str, float]]:
    """Return the dominated share of the objectives' box after each trial, and its far corner.

    The box goes from the best value of each objective over all trials to its reference, which
    lies 10 % of the span beyond the worst, so that extreme trials count too. An objective in which
    all trials are equal does not shrink the share.

    Returns:
        One share 0..1 per trial, never falling, and the reference by objective.
    """
    if not values:
        return (), {}
    loss = losses(values)
    best, span = loss.min(axis=0), np.ptp(loss, axis=0)
    reference = loss.max(axis=0) + 0.1 * span
    scaled = (loss - best) / np.where(span > 0, 1.1 * span, 1)
    history = []
    kept = np.empty((0, loss.shape[1]))
    total = 0.0
    for point in scaled:
        if not (kept <= point).all(axis=1).any():
            # What a point adds: its own box less what earlier points dominate of it.
            total += float(np.prod(1 - point)) - _volume(np.maximum(kept, point))
            kept = np.vstack([kept[~(point <= kept).all(axis=1)], point])
        history.append(total)
    named = dict(zip(OBJECTIVES, (reference * _SIGNS).tolist(), strict=True))
    return tuple(history), named


def _volume(points: np.ndarray) -> float:
    """Return the volume of the unit box that `points` (n, 4) dominate, exactly.

    Sweeps the last objective; behind the sweep `lowest` is, over the cells of a grid through all
    points' first two objectives, the least third one that dominates the cell. O(n**3) in all.
    """
    points = points[np.argsort(points[:, 3], kind="stable")]
    grids = [np.append(np.unique(points[:, axis]), 1.0) for axis in (0, 1)]
    first, second = (np.searchsorted(grid, points[:, axis]) for axis, grid in enumerate(grids))
    area = np.outer(*(np.diff(grid) for grid in grids))
    lowest = np.ones_like(area)
    depths = np.diff(np.append(points[:, 3], 1.0))
    total = 0.0
    for i, point in enumerate(points):
        cells = lowest[first[i] :, second[i] :]
        np.minimum(cells, point[2], out=cells)
        if depths[i] > 0:
            total += float((area * (1 - lowest)).sum()) * depths[i]
    return total
