# SPDX-License-Identifier: Apache-2.0
"""The C++ process against the specification, and against cocotb on one list of faults."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from faultinj.faults import KINDS, REGISTERS, RegisterFault
from faultinj.register_times import ring_row
from faultinj.tile_faults import predict
from hdl.config import AcceleratorConfig
from hdl.registers import CONTROL_CLASSES, register_classes
from sim import agree, agreement
from sim.cycles import tile_times
from sim.fault_draws import draw
from sim.inject import COMPLETE, HANG, Injector, stream_jobs
from sim.jobs import random_job
from sim.replay import compare_jobs, equal_outputs
from sim.runner import run_jobs
from trilat.errors import InputError

# Arrays of test_run_jobs.py, whose cocotb simulators are there already.
CONFIGS = {
    "ws": AcceleratorConfig(
        rows=5, cols=3, act_bits=2, weight_bits=8, max_k=33, psum_depth=16, protect="zero"
    ),
    "os": AcceleratorConfig(
        dataflow="os", rows=5, cols=3, act_bits=8, weight_bits=4, max_k=70, protect="zero",
        mult="lut",
    ),
}  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(params=list(CONFIGS))
def config(request) -> AcceleratorConfig:
    return CONFIGS[request.param]


def lists_of(config, job, classes, count, rng) -> list[list[RegisterFault]]:
    kinds = ("flip", "stuck0", "flip", "stuck1")
    return [
        [draw(config, job, classes[i % len(classes)], kinds[i // len(classes) % 4], 1, rng)]
        for i in range(count)
    ]


@pytest.mark.parametrize("stalls", [0.0, 0.6])
def test_streams_give_the_reference_output(config, stalls, sim_cache):
    rng = np.random.default_rng(7)
    jobs = [random_job(config, rng) for _ in range(120)]
    run = stream_jobs(config, jobs, cache=sim_cache, stalls=stalls, seed=3)
    assert compare_jobs(config, jobs, run.outputs) == []
    start = run.timings[0].first_accept
    measured = [(t.first_accept - start, t.last_output - start) for t in run.timings]
    assert (measured == tile_times(config, jobs)) == (stalls == 0)


def test_equal_to_cocotb_on_one_list_of_faults(config, sim_cache):
    """Every class but control bits, which leave traces for the next of cocotb's tiles.

    A word of the ring is that of a tile's row in the first tile alone: it has a run of its own.
    """
    rng = np.random.default_rng(17)
    control = CONTROL_CLASSES[config.dataflow]
    classes = [name for name in register_classes(config) if name not in control]
    jobs, groups, outputs = [], [], []
    with Injector(config, sim_cache) as injector:
        for _ in range(8):
            job = random_job(config, rng)
            clean = injector.load(job)
            lists = lists_of(config, job, classes, 4 * len(classes), rng)
            runs = list(injector.inject(lists))
            kept = [int(i) for i in rng.permutation(len(runs)) if runs[i].outcome == COMPLETE]
            # As many that change the output as do not.
            changed = [i for i in kept if not equal_outputs(runs[i].output, clean)]
            silent = [i for i in kept if i not in changed]
            for i in changed[:12] + silent[:6]:
                jobs.append(job)
                groups.append(lists[i])
                outputs.append(runs[i].output)
    alone = [i for i, group in enumerate(groups) if group[0].register == "ring"]
    stream = [i for i in range(len(groups)) if i not in alone]
    slow = {}
    for run in [stream, *([i] for i in alone[:3])]:
        chosen = [jobs[i] for i in run], [groups[i] for i in run]
        slow |= zip(run, run_jobs(config, *chosen, cache=sim_cache).outputs, strict=True)
    assert len(alone) >= 3
    wrong = [
        group
        for group, fast, output in [(groups[i], outputs[i], slow[i]) for i in slow]
        if not equal_outputs(fast, output)
    ]
    assert wrong == []
    assert {group[0].kind for group in groups} == {"flip", "stuck0", "stuck1"}


def test_shortcuts_and_order_change_nothing(config, sim_cache):
    rng = np.random.default_rng(19)
    job = random_job(config, rng, m=min(config.max_m, 12))
    lists = lists_of(config, job, register_classes(config), 120, rng)
    with Injector(config, sim_cache) as injector:
        clean = injector.load(job, shortcuts=False)
        plain = list(injector.inject(lists))
        assert equal_outputs(injector.load(job, shortcuts=True), clean)
        fast = list(injector.inject(lists))
        back = list(injector.inject(lists[::-1]))[::-1]
        assert next(injector.inject([[]])).output.rows.tolist() == clean.rows.tolist()
    assert sum(run.simulated for run in fast) < sum(run.simulated for run in plain)
    for one, two, three in zip(plain, fast, back, strict=True):
        assert one.outcome == two.outcome == three.outcome
        if one.output is not None:
            assert equal_outputs(one.output, two.output)
            assert equal_outputs(one.output, three.output)
    assert HANG in {run.outcome for run in plain}


def test_predicted_faults_agree(config, sim_cache):
    result = agreement.agree(config, 150, np.random.default_rng(3), cache=sim_cache, control=24)
    assert result.agrees and result.disagreements == []
    assert sum(result.run.values()) == 150
    assert 2 * sum(result.corrupting.values()) >= 130
    predicted = set(REGISTERS[config.dataflow]) & set(register_classes(config))
    assert {register for register, _ in result.run} == predicted
    assert {register for register, _ in result.control} == set(CONTROL_CLASSES[config.dataflow])
    assert "hang" in {outcome for _, outcome in result.control}


@pytest.mark.parametrize(
    "name",
    ["ws 4x6 a4w8 zero, mult, layer", "os 4x5 a8w4 clip, layer", "os 3x8 a3w3 zero, packed"],
)
def test_every_kind_in_every_class_agrees(name, sim_cache):
    config = agree.CONFIGURATIONS[name]
    result = agreement.agree(config, 300, np.random.default_rng(5), cache=sim_cache)
    assert result.agrees and result.disagreements == []
    predicted = set(REGISTERS[config.dataflow]) & set(register_classes(config))
    for register in predicted:
        assert {kind for name, kind in result.run if name == register} == set(KINDS)
    assert 2 * sum(result.corrupting.values()) >= 300
    assert predicted >= {"lo", "hi", "lo_is_bound", "hi_is_bound", "shift", "bias"}
    assert ("multiplier" in predicted) == config.multiplies


def test_stuck_words_of_the_ring_in_a_stream(config, sim_cache):
    """Rows of all tiles since the reset take the words in turn."""
    rng = np.random.default_rng(23)
    jobs = [random_job(config, rng) for _ in range(12)]
    before = np.cumsum([0, *(job.m for job in jobs)])
    assert before[-1] > 2 * config.max_m  # the ring has come round
    with Injector(config, sim_cache) as injector:
        outputs = injector.stream(jobs).outputs
        changed = 0
        for _ in range(40):
            fault = RegisterFault(
                layer=None, image=0, tile=None, register="ring", cycle=None,
                row=int(rng.integers(2 * config.max_m)), col=int(rng.integers(config.cols)),
                bits=(int(rng.integers(config.acc_bits)),),
                kind=str(rng.choice(["stuck0", "stuck1"])),
            )  # fmt: skip
            run = next(injector.inject([[fault]]))
            expected = np.concatenate(
                [
                    predict(config, job, [ring_row(config, fault, int(first))]).rows
                    for job, first in zip(jobs, before[:-1], strict=True)
                ]
            )
            np.testing.assert_array_equal(run.output.rows, expected)
            clean = np.concatenate([output.rows for output in outputs])
            changed += not np.array_equal(expected, clean)
    assert changed >= 10


def test_a_wrong_prediction_leaves_fault_and_waveform(sim_cache, tmp_path):
    config = CONFIGS["ws"]

    def late(config, job, faults):
        moved = [
            f if f.cycle is None else dataclasses.replace(f, cycle=f.cycle + 1) for f in faults
        ]
        return predict(config, job, moved)

    result = agreement.agree(
        config, 40, np.random.default_rng(3), cache=sim_cache, waves=tmp_path, predict=late
    )
    assert not result.agrees
    entry = result.disagreements[0]
    assert entry["faults"][0]["kind"] == "flip" and entry["faults"][0]["cycle"] is not None
    waveform = (tmp_path / "disagreement-0.vcd").read_text()
    assert str(tmp_path / "disagreement-0.vcd") == entry["waveform"]
    assert "pe_0" in waveform and waveform.count("\n#") > 50


def test_bad_faults_are_refused(sim_cache):
    config = CONFIGS["ws"]
    flip = RegisterFault(
        layer="", image=0, tile=0, register="psum", row=0, col=0, bits=(0,), cycle=3
    )
    with Injector(config, sim_cache) as injector:
        injector.load(random_job(config, np.random.default_rng(0)))
        for change, message in (
            ({"row": 5}, "there is no psum register at row 5"),
            ({"bits": (40,)}, r"psum has bits 0\.\.\d+, not \(40,\)"),
            ({"cycle": -1000}, "cycle -1000 is ahead of the reset"),
        ):
            with pytest.raises(InputError, match=message):
                list(injector.inject([[dataclasses.replace(flip, **change)]]))
        with pytest.raises(InputError, match="stalls must be a chance"):
            injector.stream([], stalls=2)


@pytest.mark.nightly
def test_all_configurations_agree(sim_cache):
    results = agree.agree_all(agree.CONFIGURATIONS, 5600, seed=0, cache=sim_cache, control=560)
    assert len(results) >= 12 and all(result.agrees for result in results.values())
    run = sum(sum(r.run.values()) for r in results.values())
    corrupting = sum(sum(r.corrupting.values()) for r in results.values())
    assert run >= 5000 and 2 * corrupting >= run
