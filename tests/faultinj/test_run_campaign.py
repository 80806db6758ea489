# SPDX-License-Identifier: Apache-2.0
"""Whole campaigns: samples, rows, summaries, early stops, and folders that survive a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from integer_networks import plain_network, random_codes

from faultinj import campaign as campaign_module
from faultinj.campaign import OUTCOMES, inject, run_campaign
from faultinj.faults import MemoryFault, from_json
from faultinj.protection import Protection, profile_bounds
from faultinj.rows import read_faults
from faultinj.sampling import FaultModel, Plan, draw, population_of, population_size
from faultinj.stats import wilson
from hdl.config import AcceleratorConfig
from quant import engine
from trilat.errors import InputError

ACTIVATIONS = FaultModel(site="activations")


def setting(*, bits=4, images=3, shape=(1, 6, 6), seed=1, protect="none", **array):
    network = plain_network(seed=seed, weight_bits=bits, act_bits=bits, shape=shape)
    values = torch.from_numpy(random_codes(network, images, 0))
    codes = values.to(engine.code_dtype(network.input))
    labels = engine.top1(engine.logits(network, codes)).numpy()
    config = AcceleratorConfig(
        **{"rows": 3, "cols": 4, "max_k": 128, "psum_depth": 10} | array,
        act_bits=bits, weight_bits=bits, protect=protect,
    )  # fmt: skip
    return network, config, codes, labels


def one_flip(result):
    return {name: row["count"] for name, row in result.outcomes.items()}


def test_an_exhaustive_campaign_counts_everything_once():
    network, config, codes, labels = setting(bits=2, images=2, shape=(1, 4, 4))
    population = population_of(network, config, "activations")
    total = population_size(population, 2, 1)
    result = run_campaign(network, config, codes, labels, model=ACTIVATIONS, plan=Plan(faults=None))
    assert result.n == result.population == total == 2 * result.bits
    assert result.sampling == "all there are"
    assert sum(row["n"] for row in result.by_layer) == total
    assert [row["bit"] for row in result.by_bit] == [0, 1]
    assert all(row["n"] == total // 2 for row in result.by_bit)
    for row in result.outcomes.values():
        assert row["ci_high"] - row["ci_low"] < 0.01
    # The same counts, fault by fault.
    everything = [
        (MemoryFault(tensor=block.layer, image=image, element=element, bits=(bit,)),)
        for block in population.blocks
        for element in range(block.rounds)
        for bit in (0, 1)
        for image in (0, 1)
    ]
    counts = Counter(r.outcome for r in inject(network, config, codes, labels, everything))
    assert one_flip(result) == {name: counts[name] for name in OUTCOMES}
    with pytest.raises(InputError, match=f"there are only {total} different faults"):
        run_campaign(network, config, codes, labels, model=ACTIVATIONS, plan=Plan(faults=total + 1))


def test_summary_and_rows(tmp_path):
    network, config, codes, labels = setting(bits=8, images=5, shape=(1, 8, 8), protect="clip")
    bounds = profile_bounds(network, codes[:2])
    protection = Protection(kind="clip", bounds=bounds)
    path = tmp_path / "faults.parquet"
    arguments = {
        "model": FaultModel(site="activations", multiplicity=2),
        "plan": Plan(faults=150),
        "protection": protection,
    }
    result = run_campaign(network, config, codes, labels, **arguments, output=path)
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["n"] == 150 and data["seed"] == 0 and 0.07 < data["margin"] < 0.09
    assert list(data["outcomes"]) == list(OUTCOMES)
    assert sum(row["count"] for row in data["outcomes"].values()) == 150
    for row in data["outcomes"].values():
        assert row["ci_low"] <= row["rate"] <= row["ci_high"] and row["ci_low"] < row["ci_high"]
        assert 0 <= row["detected"] <= row["count"]
        expected = wilson(row["count"], 150, data["population"])
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(expected, abs=1e-9)
    for name in ("by_layer", "by_bit", "by_kind", "by_layer_bit"):
        assert sum(row["n"] for row in data[name]) == 150
        for outcome in OUTCOMES:
            counted = sum(row[outcome] for row in data[name])
            assert counted == data["outcomes"][outcome]["count"]
    table = pq.read_table(path)
    rows = table.to_pylist()
    assert Counter(r["outcome"] for r in rows) == {
        o: r["count"] for o, r in data["outcomes"].items() if r["count"]
    }
    assert [r["experiment"] for r in rows] == list(range(150))
    experiments = [tuple(from_json(f) for f in json.loads(r["faults"])) for r in rows]
    replayed = inject(network, config, codes, labels, experiments, protection=protection)
    for row, record in zip(rows, replayed, strict=True):
        for name in ("image", "outcome", "detected", "violations", "label", "golden_top1",
                     "faulty_top1", "logit_change"):  # fmt: skip
            assert row[name] == getattr(record, name), name
        assert (row["logit_change"] == 0) == (row["outcome"] == "masked")
        assert row["layer"] == min(
            (f.tensor for f in record.faults), key=["input", "conv1", "conv2", "fc1"].index
        )
        assert row["bit"] == max(max(f.bits) for f in record.faults)
        assert row["weight"] == pytest.approx(data["population"] / 150)
    changes = [r["logit_change"] for r in rows]
    assert data["logit_change"]["max"] == max(changes)
    assert data["logit_change"]["mean"] == pytest.approx(np.mean(changes))
    assert data["logit_change"]["ci_low"] < np.mean(changes) < data["logit_change"]["ci_high"]
    again = run_campaign(network, config, codes, labels, **arguments)
    assert again.to_json() | {"seconds": 0} == result.to_json() | {"seconds": 0}


@pytest.mark.parametrize("site", ["activations", "pe_activation"])
@pytest.mark.parametrize("stratify", [("layer",), ("bit",), ("layer", "bit")])
def test_strata_are_the_parts_they_name(site, stratify):
    network, config, *_ = setting()
    model = FaultModel(site=site)
    population = population_of(network, config, site)
    plan = Plan(faults=300, stratify=stratify, allocation="equal", looks=3)
    sample = draw(population, images=3, model=model, plan=plan)
    assert sum(sample.sizes) == 3 * population.size
    assert len(set(sample.experiments)) == len(sample.experiments) >= 300
    for (fault,), h in zip(sample.experiments, sample.stratum, strict=True):
        layer = fault.tensor if isinstance(fault, MemoryFault) else fault.layer
        parts = {"layer": layer, "bit": f"bit {fault.bits[0]}"}
        assert sample.names[h] == ", ".join(parts[key] for key in stratify)
    # Sizes by brute force over the numbers of all faults.
    counts = Counter()
    for block in population.blocks:
        for bit in block.bits.tolist():
            parts = {"layer": block.layer, "bit": f"bit {bit}"}
            counts[", ".join(parts[key] for key in stratify)] += 3 * block.rounds
    assert dict(zip(sample.names, sample.sizes, strict=True)) == counts
    first = np.bincount(sample.stratum[: sample.looks[0]], minlength=len(sample.names))
    assert first.min() >= 2


def test_stratified_campaigns_estimate_the_exhaustive_rate():
    network, config, codes, labels = setting(bits=3, images=2, seed=2)
    every = run_campaign(network, config, codes, labels, model=ACTIVATIONS, plan=Plan(faults=None))
    truth = every.outcomes["sdc_critical"]["rate"]
    by_bit = {row["bit"]: row["rate"] for row in every.by_bit}
    assert 0.02 < truth < 0.98
    estimates, inside, bits_inside = [], 0, 0
    for seed in range(20):
        plan = Plan(faults=200, seed=seed, stratify=("layer",), allocation="equal")
        result = run_campaign(network, config, codes, labels, model=ACTIVATIONS, plan=plan)
        row = result.outcomes["sdc_critical"]
        estimates.append(row["rate"])
        inside += row["ci_low"] <= truth <= row["ci_high"]
        bits_inside += sum(r["ci_low"] <= by_bit[r["bit"]] <= r["ci_high"] for r in result.by_bit)
    error = np.std(estimates) / len(estimates) ** 0.5
    assert abs(np.mean(estimates) - truth) < 4 * error  # unweighted it would be far off
    raw = [row["sdc_critical"] / row["n"] for row in every.by_layer]
    assert abs(np.mean(raw) - truth) > 8 * error
    assert inside >= 18 and bits_inside >= 18 * 3


def test_a_look_stops_the_campaign():
    network, config, codes, labels = setting(bits=8, images=4, shape=(1, 8, 8))
    plan = Plan(faults=2000, looks=5, margin=0.04)
    result = run_campaign(network, config, codes, labels, model=ACTIVATIONS, plan=plan)
    row = result.outcomes["sdc_critical"]
    assert result.n == result.looks[-1] < result.planned == 2000
    assert (row["ci_high"] - row["ci_low"]) / 2 <= 0.04 and result.level > 0.98
    # The first part of the same list, and no other.
    whole = run_campaign(network, config, codes, labels, model=ACTIVATIONS, plan=Plan(faults=2000))
    assert whole.n == 2000 and whole.looks == [2000] and whole.level == pytest.approx(0.95)
    sample = draw(
        population_of(network, config, "activations"), images=4, model=ACTIVATIONS,
        plan=Plan(faults=2000),
    )  # fmt: skip
    records = inject(network, config, codes, labels, sample.experiments[: result.n])
    assert one_flip(result) == {o: sum(r.outcome == o for r in records) for o in OUTCOMES}


@pytest.mark.parametrize("dataflow", ["ws", "os"])
@pytest.mark.parametrize("site,kind", [("weights", "flip"), ("weights", "stuck1"),
                                       ("registers", "flip"), ("registers", "stuck0")])  # fmt: skip
def test_every_site_has_a_campaign(dataflow, site, kind, tmp_path):
    network, config, codes, labels = setting(dataflow=dataflow)
    model = FaultModel(site=site, kind=kind)
    population = population_of(network, config, site, kind=kind)
    result = run_campaign(
        network, config, codes, labels, model=model, plan=Plan(faults=200),
        output=tmp_path / "rows.parquet",
    )  # fmt: skip
    assert result.n == 200 and result.population == 3 * population.size
    listed = read_faults(tmp_path / "rows.parquet")
    again = run_campaign(network, config, codes, labels, model=model, plan=Plan(faults=200),
                         replay=listed)  # fmt: skip
    assert one_flip(again) == one_flip(result)
    if site == "weights":
        bits = sum(node.weight.size for node in network.gemms()) * network.weight_bits
        assert population.size == result.bits == bits
    else:
        assert len(result.by_register) > 5
        if kind == "stuck0":
            assert [row["layer"] for row in result.by_layer] == ["*"]


def test_bursts_hit_neighbours():
    network, config, *_ = setting()
    model = FaultModel(site="activations", burst=3, kind="stuck1")
    population = population_of(network, config, "activations", kind="stuck1", burst=3)
    assert population.size * 2 == population_of(network, config, "activations").size
    sample = draw(population, images=3, model=model, plan=Plan(faults=200))
    assert {fault.bits for (fault,) in sample.experiments} == {(0, 1, 2), (1, 2, 3)}
    assert {fault.kind for (fault,) in sample.experiments} == {"stuck1"}
    with pytest.raises(InputError, match="no word of activations has 5 adjacent bits"):
        population_of(network, config, "activations", burst=5)


def test_replaying_a_list_on_itself_and_on_another_design(tmp_path):
    network, config, codes, labels = setting(bits=8, images=4, shape=(1, 8, 8))
    plan = Plan(faults=150, stratify=("layer",), allocation="equal")
    path = tmp_path / "a.parquet"
    first = run_campaign(network, config, codes, labels, model=ACTIVATIONS, plan=plan, output=path)
    listed = read_faults(path)
    again = run_campaign(
        network, config, codes, labels, model=ACTIVATIONS, plan=plan, replay=listed,
        output=tmp_path / "again.parquet",
    )  # fmt: skip
    different = {"sampling": "", "seconds": 0, "planned": 0}
    assert again.to_json() | different == first.to_json() | different
    assert pq.read_table(path).equals(pq.read_table(tmp_path / "again.parquet"))
    # The other design has other weights, but the same sites.
    other = setting(bits=8, images=4, shape=(1, 8, 8), seed=5)
    result = run_campaign(*other, model=ACTIVATIONS, plan=plan, replay=listed)
    assert result.n == first.n and result.bits == first.bits
    narrow = setting(bits=4, images=4, shape=(1, 8, 8))
    with pytest.raises(InputError, match="faults of another configuration: act_bits 8 instead of"):
        run_campaign(*narrow, model=ACTIVATIONS, plan=plan, replay=listed)


def test_a_folder_belongs_to_one_campaign(tmp_path):
    network, config, codes, labels = setting()
    plan = Plan(faults=60)
    run = {"model": ACTIVATIONS, "plan": plan, "folder": tmp_path / "run"}
    first = run_campaign(network, config, codes, labels, **run)
    rows = (tmp_path / "run" / "rows.parquet").read_bytes()
    assert run_campaign(network, config, codes, labels, **run).to_json() == first.to_json()
    assert (tmp_path / "run" / "rows.parquet").read_bytes() == rows
    array = setting(rows=5)
    weights = setting(seed=2)
    with pytest.raises(InputError, match=r"another campaign \(plan.seed is 0, not 1\)"):
        run_campaign(network, config, codes, labels, **run | {"plan": Plan(faults=60, seed=1)})
    with pytest.raises(InputError, match=r"another campaign \(accelerator.rows is 3, not 5\)"):
        run_campaign(*array, **run)
    with pytest.raises(InputError, match=r"another campaign \(network is"):
        run_campaign(weights[0], config, codes, labels, **run)
    with pytest.raises(InputError, match=r"another campaign \(images.count is 3, not 2\)"):
        run_campaign(network, config, codes[:2], labels[:2], **run)
    with pytest.raises(InputError, match=r"another campaign \(fault_model.kind"):
        run_campaign(
            network, config, codes, labels,
            **run | {"model": FaultModel(site="activations", kind="stuck0")},
        )  # fmt: skip
    assert (tmp_path / "run" / "rows.parquet").read_bytes() == rows
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="holds other files and no campaign"):
        run_campaign(network, config, codes, labels, **run | {"folder": other})
    with pytest.raises(InputError, match=r"cannot write to .*thesis\.tex"):
        run_campaign(
            network, config, codes, labels, **run | {"folder": other / "thesis.tex" / "deep"}
        )


KILLED = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
import test_run_campaign as t
t.campaign_module.PART = 40
t.slow_campaign(Path({folder!r}))
"""


def slow_campaign(folder, wait=0.15):
    """A campaign of 25 parts, each slowed down so that a kill finds it under way."""
    inner = campaign_module.inject

    def slowly(*arguments, **options):
        time.sleep(wait)
        return inner(*arguments, **options)

    campaign_module.inject = slowly
    try:
        return run_campaign(
            *setting(), model=ACTIVATIONS, folder=folder,
            plan=Plan(faults=1000, stratify=("bit",), allocation="equal", looks=2, margin=1e-6),
        )  # fmt: skip
    finally:
        campaign_module.inject = inner


@pytest.mark.slow
def test_a_killed_campaign_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign_module, "PART", 40)
    whole = slow_campaign(tmp_path / "whole", wait=0)
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(here.parents[1])]
    folder = tmp_path / "killed"
    script = KILLED.format(paths=paths, folder=str(folder))
    parts = folder / "parts"
    for wanted in (3, 9):  # killed twice, at different places
        process = subprocess.Popen([sys.executable, "-c", script], env=os.environ)
        deadline = time.monotonic() + 120
        while len(list(parts.glob("part-*"))) < wanted and time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert wanted <= len(list(parts.glob("part-*"))) < 25
        assert not (folder / "rows.parquet").exists()
    stamps = {path: path.stat().st_mtime_ns for path in parts.glob("part-*")}
    (parts / ".part-000011.parquet.left").write_bytes(b"half a part")
    (parts / "part-000001.parquet").write_bytes(b"cut short by a power failure")
    again = slow_campaign(folder, wait=0)
    assert again.to_json() | {"seconds": 0} == whole.to_json() | {"seconds": 0}
    one, other = (tmp_path / name / "rows.parquet" for name in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()
    assert not list(parts.glob(".part-*"))
    kept = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns == stamp}
    assert kept == set(stamps) - {parts / "part-000001.parquet"}


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: FaultModel(site="activation"), "unknown fault site 'activation'; did you mean"),
        (lambda: FaultModel(kind="stuck2"), "unknown kind of fault 'stuck2'; did you mean stuck"),
        (lambda: FaultModel(multiplicity=0), "multiplicity must be at least 1, not 0"),
        (lambda: FaultModel(burst=0), "burst must be at least 1, not 0"),
        (lambda: Plan(faults=0), "faults must be at least 1, not 0"),
        (lambda: Plan(faults=1, stratify=("image",)), "unknown stratum 'image'"),
        (lambda: Plan(faults=1, allocation="some"), "unknown allocation 'some'"),
        (lambda: Plan(faults=1, looks=0), "looks must be in 1..20, not 0"),
        (lambda: Plan(faults=1, margin=1.0), "margin must be between 0 and 1, not 1"),
        (lambda: Plan(faults=1, seed=-1), "seed must be at least 0, not -1"),
    ],
)
def test_bad_models_and_plans(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_what_the_engine_does_not_compute_is_refused(tmp_path):
    network, config, codes, labels = setting()
    for site, kind, message in (
        ("accumulator", "flip", "unknown site of an array with dataflow ws 'accumulator'"),
        ("hi_is_bound", "flip", "unknown site of an array with dataflow ws 'hi_is_bound'"),
    ):
        model = FaultModel(site=site, kind=kind)
        with pytest.raises(InputError, match=message):
            run_campaign(network, config, codes, labels, model=model, plan=Plan(faults=5))
    bounds = profile_bounds(network, codes)
    clip = Protection(kind="clip", granularity="channel", bounds=bounds)
    for array, unit, message in (
        ({}, clip, r"protection clip \(both\) does not run on an accelerator with none"),
        ({"protect": "clip"}, Protection(), r"protection none .* accelerator with clip \(both\)"),
        ({"protect": "clip", "protect_place": "input"}, clip, r"with clip \(input\)"),
        ({"protect": "clip", "bounds": "layer"}, clip, "accelerator with bounds layer"),
    ):
        with pytest.raises(InputError, match=message):
            run_campaign(
                network, setting(**array)[1], codes, labels, model=ACTIVATIONS,
                plan=Plan(faults=5), protection=unit,
            )  # fmt: skip
    with pytest.raises(InputError, match="the top-1 bound stops before"):
        run_campaign(
            network, setting(protect="clip")[1], codes, labels, model=ACTIVATIONS,
            plan=Plan(faults=5), protection=clip, top1_bound=True, folder=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="at least one image"):
        run_campaign(network, config, codes[:0], labels[:0], model=ACTIVATIONS, plan=Plan(faults=1))
    with pytest.raises(InputError, match="strata are of single faults"):
        run_campaign(
            network, config, codes, labels, model=FaultModel(multiplicity=2),
            plan=Plan(faults=5, stratify=("bit",)),
        )  # fmt: skip
