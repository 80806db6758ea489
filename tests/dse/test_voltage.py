# SPDX-License-Identifier: Apache-2.0
"""The report of a search whose faults are those of weight memories."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic_run import synthetic_run

from dse import charts, report, tables, voltage
from dse.records import RunRecord
from faultinj.sram import RATES, voltage_at

RATE = 0.01


def result(rate: float, mean: float, *, golden: float = 98.0) -> dict[str, Any]:
    return {
        "site": "weights",
        "conversion": "for each chip",
        "rate": rate,
        "golden": golden,
        "mean": mean,
        "std": 1.0,
        "min": mean - 3,
        "max": mean + 1,
        "ci_low": mean - 0.5,
        "ci_high": mean + 0.5,
        "robust": {"mean": mean - 1, "ci_low": mean - 1.5, "ci_high": mean - 0.5},
        "chips": 20,
        "images": 192,
        "seed": 0,
        "faq": True,
        "flipped_bits": rate / 2,
        "voltage": voltage_at(rate),
        "energy_saved": 1 - voltage_at(rate) ** 2,
        "bits": 245880,
        "faulty_bits": rate * 245880,
    }


def weights_run() -> RunRecord:
    """Return a made-up run with faults in weights and three curves."""
    record = synthetic_run()
    trials = tuple(
        replace(t, faulty=result(RATE, t.objectives["faulty_accuracy"])) for t in record.trials
    )
    points = tuple(
        replace(
            p,
            test_faulty=result(RATE, 80.0),
            rate_curve=tuple(result(r, 80.0) for r in (0.003, 0.01, 0.03)),
            campaigns=tuple(
                {**c, "site": c["site"].replace("activations", "weights")} for c in p.campaigns
            ),
        )
        for p in record.points
    )
    low = sorted(RATES)
    # The first loses 5 points half-way between the third and the fourth published rate.
    falling = zip(low[:5], (98.0, 98.0, 96.0, 90.0, 40.0), strict=True)
    curves = (
        {"number": 0, "results": [result(r, accuracy) for r, accuracy in falling]},
        {"number": 3, "results": [result(r, 97.5) for r in low]},
        {"number": 5, "results": [result(r, 80.0, golden=90.0) for r in low]},
    )
    return replace(
        record,
        trials=trials,
        points=points,
        rate={"rate": RATE, "how": "given", "site": "weights", "kind": "stuck", "chips": 20},
        voltage=curves,
    )


RECORD = weights_run()


@pytest.fixture(scope="module")
def html() -> str:
    return report.render(RECORD)


def test_energy_at_equal_accuracy() -> None:
    first, second, third = voltage.curves(RECORD)
    assert [c.trial.number for c in (first, second, third)] == [3, 0, 5]
    # 93 %: five points below the best without faults.
    (_, held), low = second.held, sorted(RATES)
    assert held.wanted == 93.0
    assert held.rate == pytest.approx(math.sqrt(low[2] * low[3]))
    assert held.voltage == pytest.approx((0.875 + 20 / 24) / 2)  # half-way in V, too
    assert held.saved == pytest.approx(1 - held.voltage**2)
    assert not held.at_least
    assert [h.at_least for h in first.held] == [True, True]
    assert first.held[0].voltage == 0.75 and "at least 43.8" in first.held[0].in_words()
    assert third.held[0].rate is None and third.held[1].in_words() == "not reached"
    words = voltage.sentence(RECORD)
    assert "93.0" in words and "not reached" in words and "at least" in words


def test_page_shows_chips_and_supply_voltage(html: str) -> None:
    for words in (
        'id="voltage"',
        "Supply voltage and energy of the weight memory",
        "bootstrap over 20 chips",
        "1.00\u202f% faulty cells of the weight memory",
        "worst chip",
        "stored weight bits",
        "Stored weights",
        "codes chosen for each chip",
        "not reached",
        'href="voltage.csv"',
    ):
        assert words in html, words
    for words in ("repetitions", "flips per stored bit", "stored activation bits", "None"):
        assert words not in html.split("<script")[0], words


def test_figures_are_valid_plotly_and_say_what_faults_they_show(html: str) -> None:
    objects = pytest.importorskip("plotly.graph_objects")
    text = html.split('id="figures">')[1].split("</script>")[0]
    figures = json.loads(text)
    for name in ("voltage", "rates", "front-faulty_accuracy-lut_equivalent", "bits-faulty"):
        objects.Figure(figures[name])
    axis = figures["front-faulty_accuracy-lut_equivalent"]["layout"]["yaxis"]["title"]["text"]
    assert axis == "Accuracy on chips with weight faults (%)"
    assert figures["rates"]["layout"]["xaxis"]["title"]["text"] == "Share of faulty cells"
    lines = figures["voltage"]["data"]
    assert [len(line["x"]) for line in lines] == [5, 6, 6]
    assert lines[0]["x"] == pytest.approx([voltage_at(r) for r in sorted(RATES)[:5]])
    assert "worst chip" in lines[0]["hovertext"][0]
    hover = charts.hover(RECORD.trials[0])
    assert "on 20 chips" in hover and "V/Vmin" in hover and "energy per SRAM access" in hover


def test_tables_hold_what_the_charts_show(tmp_path: Path) -> None:
    report.write_report(RECORD, tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "voltage.csv").read_text("utf-8"))))
    assert len(rows) == 5 + 6 + 6
    assert float(rows[0]["sram_voltage_over_vmin"]) == pytest.approx(23 / 24)
    assert float(rows[4]["accuracy_mean_percent"]) == 40
    for row in json.loads((tmp_path / "pareto.json").read_text("utf-8")):
        assert (row["fault_site"], row["fault_kind"], row["fault_chips"]) == (
            "weights",
            "stuck",
            20,
        )
        assert row["fault_rate_per_stored_bit"] == RATE and row["fault_repetitions"] is None
        assert row["sram_voltage_over_vmin"] == pytest.approx(voltage_at(RATE))
        saved = row["sram_energy_saved_per_access_percent"]
        assert saved == pytest.approx(100 * (1 - voltage_at(RATE) ** 2))
        mean = row["accuracy_under_faults_val_mean_percent"]
        assert row["accuracy_robust_val_mean_percent"] == pytest.approx(mean - 1)
    assert RunRecord.from_json(json.loads(json.dumps(RECORD.to_json()))) == RECORD


def test_a_run_without_weight_faults_says_nothing_of_them(tmp_path: Path) -> None:
    record = synthetic_run()
    report.write_report(record, tmp_path)
    assert not (tmp_path / "voltage.csv").exists()
    assert "sram_voltage_over_vmin" not in (tmp_path / "pareto.csv").read_text("utf-8")
    assert 'id="voltage"' not in report.render(record)
    assert voltage.sentence(record) == ""


def test_terminal_says_what_is_saved() -> None:
    out = io.StringIO()
    tables.print_summary(RECORD, Console(file=out, width=400))
    assert voltage.sentence(RECORD) in out.getvalue()
