# SPDX-License-Identifier: Apache-2.0
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.records import OBJECTIVES, Design
from dse.search import (
    add,
    closest_to_utopia,
    finished,
    front,
    hypervolume_history,
    open_study,
    propose,
)
from dse.settings import parse
from dse.space import STARTUP, Space, parse_space
from trilat.errors import InputError

SPACE = parse_space(
    bits="8,4", rows="4,8,16", cols="4,8,16", protect="none,clip,zero", method="qat"
)


def objectives(design):
    """A cheap stand-in for training and synthesis: smooth, conflicting, no two designs alike."""
    size = design.rows * design.cols
    accuracy = 98 - 20 / 2**design.weight_bits - 40 / 2**design.act_bits
    drop = {"none": 12, "clip": 4, "zero": 6}[design.protect] * design.act_bits / 8
    area = size * (30 + 1.6 * design.weight_bits * design.act_bits) + 200 * design.cols
    area += 60 * design.rows * (design.protect != "none")
    time_us = 1e6 / size * (4 + 0.2 * design.weight_bits + 0.1 * design.rows)
    return (accuracy, accuracy - drop, area, time_us)


def run(space, count, seed):
    trials = []
    while len(trials) < count and (design := propose(space, trials, seed=seed)):
        trials.append((design, objectives(design)))
    return trials


def test_default_space_has_108_designs():
    assert len(set(SPACE.designs())) == 4 * 3 * 9


def test_every_proposal_is_new_until_the_space_is_exhausted():
    space = parse_space(bits="4,8", rows="4", cols="4", protect="none,clip", method="qat,ptq")
    designs = [design for design, _ in run(space, 10_000, 3)]
    assert len(designs) == len(set(designs)) == 2 * 4 * 2
    assert set(designs) == set(space.designs())


def test_dataflow_is_a_knob():
    both = parse_space(bits="4", rows="4", cols="4", protect="none", method="qat", dataflow="os,ws")
    assert [design.label() for design in both.designs()] == ["W4A4 none 4x4", "W4A4 none 4x4 os"]
    assert [design.config(64).dataflow for design in both.startup(0)] == ["ws", "os"]


def test_requantization_is_a_knob_that_older_studies_do_not_have():
    both = parse_space(
        bits="4", rows="4", cols="4", protect="none", method="qat", requant="mult,shift"
    )
    assert [d.label() for d in both.designs()] == ["W4A4 none 4x4", "W4A4 mult none 4x4"]
    assert [d.config(64).requant for d in both.startup(0)] == ["shift", "mult"]
    assert both.knobs()["requant"] == ("shift", "mult")
    assert "requant" not in SPACE.knobs()


def test_methods_keep_their_order_and_faq_is_one_of_them():
    space = parse_space(
        bits="4", rows="4", cols="4", protect="none", method="faq,randbet+faq,clip,qat,qat+faq"
    )
    assert space.method == ("qat", "qat+faq", "clip:0.1", "randbet:0.01+faq")


def test_one_design_space():
    space = parse_space(bits="3", rows="1", cols="1", protect="zero", method="ptq")
    assert [d for d, _ in run(space, 5, 0)] == [
        Design(method="ptq", weight_bits=3, act_bits=3, protect="zero", rows=1, cols=1)
    ]


def test_first_design_is_the_widest_unprotected_and_corners_follow():
    first = [design for design, _ in run(SPACE, STARTUP, 0)]
    assert first[0] == SPACE.widest() and first[0].label() == "W8A8 none 16x16"
    assert "W4A4 none 4x4" in [d.label() for d in first[:4]]
    # Corners do not depend on the seed; the random designs after them do.
    other = [design for design, _ in run(SPACE, STARTUP, 1)]
    assert first[:6] == other[:6] and first[6:] != other[6:]


def test_proposals_follow_from_seed_and_finished_trials_alone():
    whole = run(SPACE, 16, 5)
    for cut in (0, 7, 12, 15):
        assert propose(SPACE, whole[:cut], seed=5) == whole[cut][0]
    assert [d for d, _ in run(SPACE, 16, 6)] != [d for d, _ in whole]


@pytest.mark.slow
def test_sampler_beats_random_search_at_equal_trials():
    everything = [objectives(d) for d in SPACE.designs()]

    def share(chosen):
        # Both on the same box: the whole space is appended, its history read at `len(chosen)`.
        return hypervolume_history(chosen + everything)[0][len(chosen) - 1]

    ours, theirs = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        theirs.append(share([everything[i] for i in rng.permutation(len(everything))[:28]]))
        ours.append(share([values for _, values in run(SPACE, 28, seed)]))
    assert np.mean(ours) > np.mean(theirs)


def test_training_for_faults_is_a_knob_with_its_numbers() -> None:
    space = parse_space(
        bits="4", rows="4", cols="4", protect="none", method="saq:0.5+clip, qat,clip:0.10,clip"
    )
    assert space.method == ("qat", "clip:0.1", "saq:0.5+clip:0.1")


def test_retraining_in_a_search_needs_a_chip(tmp_path: Path) -> None:
    chip = tmp_path / "chip.safetensors"
    chip.touch()
    found = parse(["--method", "qat,retrain", "--chip", f"{chip},{chip}"])
    assert found.chips == (chip, chip) and found.flags()["chip"] == f"{chip},{chip}"
    assert f"--chip {chip},{chip}" in found.command()
    for words, message in (
        (["--method", "retrain"], "needs the fault map of a chip"),
        (["--chip", str(chip)], "--chip is for the method retrain"),
        (["--method", "retrain", "--chip", "none.safetensors"], "there is no none.safetensors"),
    ):
        with pytest.raises(InputError, match=message):
            parse(words)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"bits": "4,9"}, "bits must be integers in 2..8, not 9"),
        ({"bits": "1"}, "bits must be integers in 2..8, not 1"),
        ({"bits": "four"}, "bits must be integers separated by commas, not 'four'"),
        ({"bits": "4,,8"}, "bits must be integers separated by commas, not '4,,8'"),
        ({"rows": "0"}, "rows must be an integer in 1..64, not 0"),
        ({"cols": "-4"}, "cols must be an integer in 1..64, not -4"),
        ({"rows": "4.5"}, "rows must be integers separated by commas, not '4.5'"),
        ({"protect": "clamp"}, "unknown protection 'clamp'; did you mean clip? "),
        ({"dataflow": "ows"}, "unknown dataflow 'ows'; did you mean "),
        ({"method": "clip:no"}, "method 'clip:no' needs a number above 0"),
        ({"method": "qat,saq+randbet"}, "randbet and saq do not combine"),
        ({"method": "qta"}, "unknown method 'qta'; did you mean qat"),
    ],
)
def test_bad_lists_are_named(flags, message):
    good = {"bits": "4,8", "rows": "4", "cols": "4", "protect": "none", "method": "qat"}
    with pytest.raises(InputError) as error:
        parse_space(**{**good, **flags})
    assert str(error.value).startswith(message)


def test_study_keeps_trials_and_their_attributes(tmp_path):
    journal = tmp_path / "study.journal"
    study = open_study(journal)
    trials = run(SPACE, 12, 0)
    for design, values in trials:
        add(study, SPACE, design, values, record={"label": design.label()})
    again = finished(open_study(journal))
    assert [(design, values) for design, values, _ in again] == trials
    assert [attrs["record"]["label"] for *_, attrs in again] == [d.label() for d, _ in trials]


def test_a_torn_last_line_and_a_stale_lock_do_not_matter(tmp_path):
    journal = tmp_path / "study.journal"
    study = open_study(journal)
    for design, values in run(SPACE, 2, 0):
        add(study, SPACE, design, values)
    whole = journal.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for cut in (last, last + 1, last + 40, len(whole) - 1):
        journal.write_bytes(whole[:cut])
        journal.with_name(journal.name + ".lock").touch()
        study = open_study(journal)
        assert len(finished(study)) == 1
        design = propose(SPACE, [t[:2] for t in finished(study)], seed=0)
        add(study, SPACE, design, objectives(design))
        assert len(finished(open_study(journal))) == 2


KILLED = """
import sys
from pathlib import Path
from dse.search import add, finished, open_study, propose
from test_search import SPACE, objectives
study = open_study(Path(sys.argv[1]))
while True:
    trials = [t[:2] for t in finished(study)]
    design = propose(SPACE, trials, seed=0)
    if design is None:
        break
    add(study, SPACE, design, objectives(design), padding="x" * 50_000)
    print(len(trials), flush=True)
"""


@pytest.mark.slow
def test_sigkill_at_any_moment_loses_nothing(tmp_path):
    journal = tmp_path / "study.journal"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    rng = np.random.default_rng(0)
    for stop in (3, 9, 20):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(journal)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for line in process.stdout:
            if int(line) >= stop:
                break
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    trials = [t[:2] for t in finished(open_study(journal))]
    assert len(trials) > 20
    assert trials == run(SPACE, len(trials), 0)


# Few distinct values, so that ties and equal trials are common.
TRIALS = st.lists(st.tuples(*[st.integers(0, 4).map(float)] * 4), min_size=1, max_size=9)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(TRIALS)
def test_front_is_the_definition(values):
    signs = [-1 if d == "maximize" else 1 for d, _, _ in OBJECTIVES.values()]

    def dominates(a, b):
        pairs = [(s * x, s * y) for s, x, y in zip(signs, a, b, strict=True)]
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    expected = [i for i, v in enumerate(values) if not any(dominates(other, v) for other in values)]
    assert front(values) == expected


@settings(derandomize=True, max_examples=40, deadline=None)
@given(TRIALS)
def test_hypervolume_counts_cells(values):
    """Brute force: cut the box at every coordinate and add up the cells that are dominated."""
    history, reference = hypervolume_history(values)
    signs = np.array([-1 if d == "maximize" else 1 for d, _, _ in OBJECTIVES.values()])
    loss = np.array(values) * signs
    best, span = loss.min(axis=0), np.ptp(loss, axis=0)
    corner = np.array([reference[name] for name in OBJECTIVES]) * signs
    np.testing.assert_allclose(corner, loss.max(axis=0) + 0.1 * span)
    scaled = (loss - best) / np.where(span > 0, 1.1 * span, 1)
    grids = [np.unique([*scaled[:, d], 0.0, 1.0]) for d in range(4)]
    for count, share in enumerate(history, start=1):
        expected = 0.0
        for cell in itertools.product(*[range(len(g) - 1) for g in grids]):
            low = np.array([g[i] for g, i in zip(grids, cell, strict=True)])
            high = np.array([g[i + 1] for g, i in zip(grids, cell, strict=True)])
            if (scaled[:count] <= low).all(axis=1).any():
                expected += np.prod(high - low)
        assert share == pytest.approx(expected, abs=1e-9)


def test_hypervolume_agrees_with_optuna_on_many_points():
    hypervolume = pytest.importorskip("optuna._hypervolume")
    rng = np.random.default_rng(0)
    values = [tuple(row) for row in rng.random((60, 4))]
    history, reference = hypervolume_history(values)
    signs = np.array([-1 if d == "maximize" else 1 for d, _, _ in OBJECTIVES.values()])
    loss = np.array(values) * signs
    corner = np.array([reference[name] for name in OBJECTIVES]) * signs
    box = np.prod(corner - loss.min(axis=0))
    for count in (1, 2, 17, 60):
        whole = hypervolume.compute_hypervolume(loss[:count], corner)
        assert history[count - 1] == pytest.approx(whole / box)
    assert list(history) == sorted(history)


def test_no_trials_have_no_hypervolume():
    assert hypervolume_history([]) == ((), {})


def test_chosen_point_is_the_closest_to_utopia():
    values = [(90.0, 80.0, 100.0, 9.0), (89.0, 79.0, 50.0, 5.0), (80.0, 60.0, 40.0, 4.0)]
    assert closest_to_utopia(values, [0, 1, 2])[0] == 1
    assert closest_to_utopia(values, [0, 2]) == [0, 2]  # a tie goes to the lower number
    assert closest_to_utopia(values[:1], [0]) == [0]


def test_space_round_trips_through_designs():
    assert isinstance(SPACE, Space)
    assert json.loads(json.dumps(SPACE.knobs()))["weight_bits"] == [4, 8]
