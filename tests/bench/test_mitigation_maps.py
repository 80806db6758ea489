# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from bench import mitigation_faq, mitigation_maps, mitigations
from bench.mitigation_cells import Bench, Cell, Effort, MissingError, chips_of, first
from faultinj.chip_campaign import accuracy_over_chips
from quant import engine
from quant.data import to_input
from quant.export import unrounded_weights
from quant.weight_memory import weight_codes
from trilat.progress import NoProgress

EFFORT = Effort(chips=2, images=60, epochs=1, grey="digits", colour=None)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("cells")
    return Bench(effort=EFFORT, folder=folder, sources=folder / "none", progress=NoProgress())


def text(table: Table) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_rows_of_both_tables() -> None:
    rows = mitigation_maps.cells(Effort())
    assert all(cell.table == "T4" and cell.kind == "stuck" for cell in rows)
    sizes = {(c.model, c.rates[0], c.group) for c in rows if c.on_chip == "retrain"}
    assert {(m, r, g) for m, r, g in sizes if m == "lenet5"} == {
        *(("lenet5", r, g) for r in (1e-3, 6e-3, 0.01) for g in (1, 2, 5, 8)),
        ("lenet5", 0.1, 1),
    }
    assert {c.model for c in rows if c.heavy} == {"resnet18", "resnet32"}
    faq = mitigation_faq.cells(Effort())
    assert {(c.model, c.bits) for c in faq} >= {("vgg11", 8), ("vgg11", 4), ("resnet18:0.125", 8)}
    assert all(c.rates == (0.01, 0.02, 0.04, 0.1) and c.chips == 20 for c in faq)
    assert len(set(rows) | set(faq)) == len(rows) + len(faq)


def test_faq_is_measured_as_campaigns_do_it(bench: Bench) -> None:
    cell = mitigation_faq.cells(EFFORT)[0]
    found = mitigation_faq.measure(cell, bench)
    result, data = mitigation_faq.calibrated(cell, bench)
    network, split = result.network, first(data.test, cell.images)
    images = to_input(split.images, network.input_shape, data.mean, data.std)
    for faq, plain, robust in ((False, "plain", "robust"), (True, "faq", "faq_robust")):
        expected = accuracy_over_chips(
            network,
            engine.image_codes(network, images),
            split.labels,
            chips_of(cell, len(weight_codes(network))),
            rates=cell.rates,
            faq=faq,
            unrounded=unrounded_weights(result.module),
        )
        for row, there in zip(found["rates"], expected, strict=True):
            assert row["rate"] == there.rate and found["clean"] == pytest.approx(there.clean)
            assert row[plain]["mean"] == pytest.approx(there.plain.mean)
            assert row[robust]["mean"] == pytest.approx(there.robust.mean)
    for row in found["rates"]:
        assert row["gain"]["mean"] == pytest.approx(row["faq"]["mean"] - row["plain"]["mean"])
    # How long is for the benchmark to say: on a busy machine neither time means anything.
    assert all(s > 0 for s in (*found["conversion_seconds"], found["epoch_seconds"]))
    lines = text(mitigation_faq.table([cell], {cell: found})).splitlines()
    assert sum("ms" in line for line in lines) == len(cell.rates)
    assert "nan" not in "".join(lines)
    assert len(mitigation_faq.figure([cell], {cell: found})["data"]) == 2


def test_a_group_is_retrained_and_measured_on_every_chip(bench: Bench) -> None:
    cells = {c.group: c for c in mitigation_maps.cells(EFFORT)
             if c.on_chip == "retrain+faq" and c.rates == (0.01,)}  # fmt: skip
    assert set(cells) == {1, 2}  # a group of five does not come out of two chips
    found = {c: mitigation_maps.measure(c, bench) for c in cells.values()}
    alone, group = found[cells[1]]["groups"], found[cells[2]]["groups"]
    assert [g["chips"] for g in alone] == [[0], [1]] and [g["chips"] for g in group] == [[0, 1]]
    assert all(len(g["accuracy"]) == len(g["chips"]) for g in alone + group)
    printed = text(mitigation_maps.table(list(cells.values()), found))
    assert "of 1" in printed and "of 2" in printed


def figures(groups: list[list[int]], epochs: list[float], accuracy: float) -> dict:
    spread = dict.fromkeys(("mean", "std", "min", "max", "ci_low", "ci_high"), accuracy)
    return {
        "clean": 90.0,
        "accuracy": spread,
        "groups": [
            {"chips": g, "epochs": e, "reached": True, "accuracy": [accuracy] * len(g)}
            for g, e in zip(groups, epochs, strict=True)
        ],
    }


def test_speed_up_is_paired_by_chip() -> None:
    cells = {c.group: replace(c, chips=4) for c in mitigation_maps.cells(Effort())
             if c.model == "lenet5" and c.on_chip == "retrain" and c.rates == (6e-3,)}  # fmt: skip
    one, two, five = cells[1], cells[2], cells[5]
    found = {
        one: figures([[0], [1], [2], [3]], [0.1, 0.2, 0.3, 0.4], 89.5),
        two: figures([[0, 2], [1, 3]], [0.2, 0.3], 89.0),
    }
    assert mitigation_maps.against_alone(one, found)[0] == ""
    ratio, clean, mean, worst, gain = mitigation_maps.against_alone(two, found)
    assert (ratio, clean, worst) == ("2.00", "90.0", "89.0")
    assert mean.startswith("89.0 (") and gain == "-0.5 (-0.5 .. -0.5)"
    found[two]["groups"][0]["accuracy"] = [88.0, 89.0]
    *_, gain = mitigation_maps.against_alone(two, found)
    lost, low, _, high = gain.replace("(", "").replace(")", "").split()
    assert float(low) < float(lost) < float(high) <= 0  # an interval of points may lie below 0
    found[two] = figures([[0, 2]], [0.2], 89.0)
    assert mitigation_maps.against_alone(two, found)[0] == "2.00"  # (0.1 + 0.3) / 0.2
    found[one] = figures([[0], [1], [2], [3]], [0.0] * 4, 89.5)
    assert mitigation_maps.against_alone(two, found)[0] == "none needed alone"
    printed = text(mitigation_maps.table([one, two, five], found))
    assert printed.count("4 of 4") == 1 and len(mitigation_maps.figure([one, two], found)["data"])


@pytest.mark.parametrize("module", [mitigation_maps, mitigation_faq])
def test_tables_without_their_cells(module: ModuleType) -> None:
    for part in mitigations._parts(module.cells(Effort())):
        empty = module.table(part, {})
        rates = len(part[0].rates)
        assert empty.row_count == len(part) * rates
        assert set(empty.columns[-1].cells) == {"-"}
        assert not module.figure(part, {})["data"]
    assert {one.met for one in module.findings(module.cells(Effort()), {})} == {None}


def test_findings_judge_the_published_headlines() -> None:
    cells = [c for c in mitigation_maps.cells(Effort()) if c.model == "lenet5"]
    five = next(c for c in cells if (c.on_chip, c.rates, c.group) == ("retrain", (6e-3,), 5))
    one = next(c for c in cells if (c.on_chip, c.rates, c.group) == ("retrain", (6e-3,), 1))
    assert [f.met for f in mitigation_maps.findings(cells, {})] == [None, None]
    alone = figures([[c] for c in range(5)], [0.1] * 5, 98.5)
    for epochs, accuracy, met in ((0.3, 98.2, True), (0.4, 98.2, False), (0.3, 97.8, False)):
        found = {one: alone, five: figures([list(range(5))], [epochs], accuracy)}
        first, second = mitigation_maps.findings(cells, found)
        assert (first.met, second.met) == (met, None) and "lenet5: 1." in first.found

    rows = mitigation_faq.cells(Effort())
    vgg, _, shared = (c for c in rows if c.model == "vgg11")
    there = {
        "rates": [{"rate": rate, "gain": {"mean": 65.0}} for rate in vgg.rates],
        "conversion_seconds": [1.0, 2.0, 3.0, 4.0],
        "epoch_seconds": 300.0,
    }
    told = mitigation_faq.findings(rows, {vgg: there})
    assert [f.met for f in told] == [True, None, None, None, False] and "1.3 %" in told[4].found
    told = mitigation_faq.findings(rows, {shared: there})
    assert [f.met for f in told[:2]] == [None, True] and told[1].expected.endswith("per layer")


def test_the_interval_of_a_speed_up_contains_it() -> None:
    rng = np.random.default_rng(0)
    alone, groups = rng.uniform(1, 3, 12), rng.uniform(0.5, 1, 12)
    text = mitigation_maps._speed_up(list(alone), list(groups), 0)
    value, low, _, high = text.replace("(", "").replace(")", "").split()
    assert float(low) < float(value) < float(high)
    assert float(value) == pytest.approx(alone.sum() / groups.sum(), abs=0.005)


def test_a_network_whose_weights_are_not_there_is_missing(bench: Bench) -> None:
    cell = next(c for c in mitigation_faq.cells(Effort()) if c.model == "vgg11")
    there = replace(cell, data="digits")
    with pytest.raises(MissingError, match="no weights: there is no"):
        mitigation_faq.calibrated(there, bench)


def test_the_tables_are_registered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--quick", "--tables", "T4,T5", "--minutes", "0", "--cells", str(tmp_path)]
    assert mitigations.main(flags) == 0
    out = capsys.readouterr().out
    assert "T4: retraining for known chips" in out and "T5: FAQ without training" in out


def test_cells_differ_in_what_they_depend_on() -> None:
    cell: Cell = mitigation_maps.cells(EFFORT)[0]
    assert dict(cell.extra)["policy"] == "majority" and cell.settings()["group"] == 1


def test_the_interval_of_a_speed_up_may_be_unbounded() -> None:
    """Draws of groups that needed nothing have an infinite one; one of 0 to infinity is said so."""
    assert mitigation_maps._speed_up([0.0, 0.02, 0.0, 0.0], [0.0, 0.1, 0.0, 0.0], 0) == (
        "0.20 (0.20 .. inf)"
    )
    assert mitigation_maps._speed_up([0.0, 0.02, 0.0, 0.0], [0.3, 0.0, 0.0, 0.0], 0) == (
        "0.07 (0.00 .. inf)"
    )
