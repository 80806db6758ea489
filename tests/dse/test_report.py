# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import io
import itertools
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from synthetic_run import dominates, mark_front, synthetic_run, trial

from dse import charts, findings, report, tables
from dse.records import OBJECTIVES, Design, RunRecord
from trilat.errors import InputError

RECORD = synthetic_run()


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, text, and scripts by id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, str] = {}
        self.text: list[str] = []
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = (dict(attrs).get("id") or tag) if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.data[self._open] = self.data.get(self._open, "") + data
        elif data.strip():
            self.text.append(re.sub("[ \n\t]+", " ", data))  # not the narrow spaces

    def attributes(self, name: str) -> list[str]:
        return [value for _tag, attrs in self.elements if (value := attrs.get(name))]

    @property
    def figures(self) -> dict[str, Any]:
        return json.loads(self.data["figures"])


@pytest.fixture(scope="module")
def html() -> str:
    return report.render(RECORD)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def degenerate() -> dict[str, RunRecord]:
    first = RECORD.trials[0]
    same = tuple(replace(first, number=i, pareto=True) for i in range(4))
    flat = {**first.faulty, "std": 0.0, "min": 90.0, "max": 90.0, "ci_low": 90.0, "ci_high": 90.0}
    bare = tuple(
        replace(p, campaigns=(), verification=None, test_faulty=None, rebuild=())
        for p in RECORD.points
    )
    empty_layers = tuple(
        replace(p, campaigns=tuple({**c, "by_layer": [], "by_bit": []} for c in p.campaigns))
        for p in RECORD.points
    )
    return {
        "no trial": replace(
            RECORD, trials=(), points=(), hypervolume=(), reference={}, stages={}, notes=()
        ),
        "one trial": synthetic_run(1),
        "two trials": synthetic_run(2),
        "equal trials": replace(RECORD, trials=same, points=(), hypervolume=(0.0,) * 4),
        "zero variance": replace(
            RECORD, trials=(replace(first, faulty=flat, accuracy_interval=(96.7, 96.7)),), points=()
        ),
        "no points": replace(RECORD, points=()),
        "bare points": replace(RECORD, points=bare),
        "no layers": replace(RECORD, points=empty_layers),
        "empty dictionaries": replace(
            RECORD,
            settings={},
            data={},
            model={},
            rate={},
            versions={},
            trials=tuple(replace(t, faulty={}, cost={}, stages=()) for t in RECORD.trials),
            points=(),
        ),
    }


def test_page_loads_nothing_from_elsewhere(page: Page) -> None:
    for tag, attrs in page.elements:
        assert not attrs.get("src"), tag
        assert tag not in ("link", "iframe", "img", "object", "base")
    for target in page.attributes("href"):
        assert not target.startswith(("http:", "https:", "//", "/", "file:", "javascript:")), target
    assert "url(" not in page.data["style"]
    assert "@import" not in page.data["style"]
    # And the page forbids itself to, whatever its scripts try.
    (policy,) = page.attributes("content")[-1:]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_page_has_every_section_and_a_figure_for_every_chart(page: Page) -> None:
    ids = set(page.attributes("id"))
    assert {"summary", "front", "points", "knobs", "faults", "search"} <= ids
    assert {"verification", "rebuild", "scope"} <= ids
    assert {target[1:] for target in page.attributes("href") if target[0] == "#"} <= ids
    charts_shown = set(page.attributes("data-figure"))
    assert charts_shown <= set(page.figures)
    # The chooser offers all six pairs of the four objectives; the others are shown at once.
    offered = {a["value"] for t, a in page.elements if a.get("name") == "pair"}
    assert len(offered) == 6
    assert charts_shown | offered == set(page.figures)


def test_embedded_record_is_the_record(page: Page) -> None:
    embedded = json.loads(page.data["record"])
    assert embedded == json.loads(json.dumps(RECORD.to_json()))
    assert RunRecord.from_json(embedded) == RECORD


def test_figures_are_valid_plotly(page: Page) -> None:
    objects = pytest.importorskip("plotly.graph_objects")
    names = [name for name in page.figures if not name.startswith("outcomes-")]
    names += [name for name in page.figures if name.startswith("outcomes-")][:4]
    for name in names:
        objects.Figure(page.figures[name])  # raises for an unknown property or a bad value


def test_page_says_what_it_must(page: Page) -> None:
    text = " ".join(page.text)
    best = findings.chosen(RECORD)
    assert best is not None
    assert best.design.label() in text
    assert f"{best.objectives['accuracy']:.1f}\u202f%" in text
    for note in RECORD.notes:
        assert note in text
    for point in RECORD.points:
        for command in point.rebuild:
            assert command in text
    assert "52\u202f416 / 52\u202f416" in text  # RTL agreement
    assert "1\u202f234\u202f944 / 1\u202f234\u202f944" in text  # Brevitas = ONNX = engine
    assert "fmax" not in text.lower()
    assert "without routing" in text
    assert RECORD.command in text


def test_front_table_has_every_point_with_its_link(page: Page) -> None:
    links = page.attributes("href")
    for point in RECORD.points:
        assert f"{point.folder}/" in links
    # The sort keys of a row are the record's figures, not their rounded print.
    keys = set(page.attributes("data-v"))
    for t in RECORD.trials:
        if t.pareto:
            assert {str(t.objectives["time_us"]), str(t.cost["lut"]), t.design.label()} <= keys


def test_names_of_the_user_are_text_not_markup() -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    points = tuple(
        replace(
            p,
            folder=f"points/{evil}",
            rebuild=(evil,),
            campaigns=tuple(
                {**c, "by_layer": [{**row, "layer": evil} for row in c["by_layer"]]}
                for c in p.campaigns
            ),
        )
        for p in RECORD.points
    )
    record = replace(
        RECORD,
        name=evil,
        command=evil,
        model={"name": evil, evil: evil},
        data={"name": evil},
        settings={evil: evil},
        notes=(evil,),
        points=points,
    )
    page = Page(report.render(record))
    assert [tag for tag, _attrs in page.elements].count("script") == 4
    assert "img" not in [tag for tag, _attrs in page.elements]
    assert json.loads(page.data["record"])["name"] == evil
    # Plotly reads tags in its texts, so there they are escaped twice over.
    shown = [
        text
        for figure in page.figures.values()
        for trace in figure["data"]
        for text in (*trace.get("hovertext", ()), *map(str, trace.get("y", ())))
    ]
    assert any("&lt;img" in text for text in shown)
    assert not any("<img" in text for text in shown)


@pytest.mark.parametrize("name", degenerate())
def test_incomplete_runs_are_reported_as_such(name: str, tmp_path: Path) -> None:
    record = degenerate()[name]
    path = report.write_report(record, tmp_path / "run")
    page = Page(path.read_text("utf-8"))
    assert json.loads(page.data["record"]) == json.loads(json.dumps(record.to_json()))
    assert set(page.attributes("data-figure")) <= set(page.figures)
    text = " ".join(page.text)
    assert "None" not in text
    assert "nan" not in text.lower().split()
    assert "Undefined" not in text
    rows = json.loads((tmp_path / "run" / "pareto.json").read_text("utf-8"))
    assert len(rows) == sum(t.pareto for t in record.trials)
    tables.print_summary(record, Console(file=io.StringIO()))


def test_missing_pieces_are_said() -> None:
    bare = " ".join(Page(report.render(degenerate()["bare points"])).text)
    assert "No fault campaign has been run" in bare
    assert "No point of this run was streamed through its RTL" in bare
    assert "not simulated" in bare
    none = " ".join(Page(report.render(degenerate()["no trial"])).text)
    assert "No trial has finished yet" in none
    assert "recorded no comparison" in " ".join(
        Page(report.render(degenerate()["empty dictionaries"])).text
    )


def test_disagreement_is_said() -> None:
    wrong = tuple(
        replace(p, verification={**p.verification, "outputs_equal": 52410, "cycles": 1})
        if p.verification
        else p
        for p in RECORD.points
    )
    first, *others = RECORD.model["agreement"]
    model = {**RECORD.model, "agreement": [{**first, "equal": 7}, *others]}
    text = " ".join(Page(report.render(replace(RECORD, points=wrong, model=model))).text)
    assert "6 of 52\u202f416 outputs disagree" in text
    assert "the RTL counted 1 cycles, the software 301\u202f234" in text
    assert "Some words differ" in text
    right = " ".join(Page(report.render(RECORD)).text)
    assert not any(words in right for words in ("disagree", "the RTL counted", "Some words differ"))


def test_pareto_files_hold_the_front(tmp_path: Path) -> None:
    report.write_report(RECORD, tmp_path)
    rows = json.loads((tmp_path / "pareto.json").read_text("utf-8"))
    front = [t for t in RECORD.trials if not any(dominates(o, t) for o in RECORD.trials)]
    assert sorted(row["trial"] for row in rows) == [t.number for t in front]
    points = {p.number: p for p in RECORD.points}
    for row in rows:
        t, p = RECORD.trials[row["trial"]], points[row["trial"]]
        assert row["accuracy_val_percent"] == t.objectives["accuracy"]
        assert row["accuracy_val_ci95_low_percent"] == t.accuracy_interval[0]
        assert row["accuracy_under_faults_val_ci95_high_percent"] == t.faulty["ci_high"]
        assert row["accuracy_under_faults_test_mean_percent"] == p.test_faulty["mean"]
        assert row["logic_delay_ns"] == t.cost["delay_ns"]
        assert row["folder"] == p.folder
        assert row["time_per_inference_us"] == pytest.approx(
            row["cycles_per_inference"] * row["logic_delay_ns"] / 1000
        )
    assert sum(row["chosen"] for row in rows) == 1
    read = list(csv.DictReader(io.StringIO((tmp_path / "pareto.csv").read_text("utf-8"))))
    assert read == [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]


def test_terminal_table_fits_80_columns_and_names_the_report() -> None:
    out = io.StringIO()
    tables.print_summary(RECORD, Console(file=out, width=80), Path("runs/x/report.html"))
    lines = out.getvalue().splitlines()
    for t in RECORD.trials:
        assert any(line.split()[:3] == t.design.label().split() for line in lines) == t.pareto
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "report: runs/x/report.html"
    assert sum("*" in line and "±" in line for line in lines) == 2  # the chosen point, the legend


def test_pairs_differ_in_one_knob_alone() -> None:
    found = {(e.knob, e.before, e.after): e for e in findings.knob_effects(RECORD)}
    assert {key[0] for key in found} == {"weight_bits", "act_bits", "protect", "rows", "cols"}
    assert ("protect", "none", "clip") in found
    assert ("weight_bits", 8, 4) in found
    assert ("rows", 4, 8) in found
    for (knob, before, after), effect in found.items():
        pairs = [
            (a, b)
            for a, b in itertools.product(RECORD.trials, repeat=2)
            if getattr(a.design, knob) == before
            and getattr(b.design, knob) == after
            and replace(a.design, **{knob: after}) == b.design
        ]
        assert effect.pairs == len(pairs)
        assert sorted(effect.lut) == sorted(b.cost["lut"] - a.cost["lut"] for a, b in pairs)
        assert sorted(effect.faulty) == pytest.approx(
            sorted(
                b.objectives["faulty_accuracy"] - a.objectives["faulty_accuracy"] for a, b in pairs
            )
        )
    assert any(effect.pairs for effect in found.values())


def test_protection_sentence_states_the_mean_gain() -> None:
    (effect,) = (
        e for e in findings.knob_effects(RECORD) if (e.knob, e.after) == ("protect", "clip")
    )
    assert f"+{mean(effect.lut):.0f} LUT" in findings.protection_sentence(RECORD)
    assert f"by +{mean(effect.faulty):.1f} points" in findings.protection_sentence(RECORD)
    alone = replace(RECORD, trials=RECORD.trials[:1])
    assert "No two designs" in findings.protection_sentence(alone)


def test_trade_off_sentences_compare_the_ends_of_the_front() -> None:
    front = [t for t in RECORD.trials if t.pareto]
    small = min(front, key=lambda t: t.objectives["lut_equivalent"])
    sentences = findings.trade_offs(RECORD)
    assert small.design.label() in sentences[0]
    fast = min(t.objectives["time_us"] for t in front)
    assert f"{small.objectives['time_us'] / fast:.1f} times the speed" in sentences[0]
    # Fewer sentences where there is less to say.
    assert len(findings.trade_offs(synthetic_run(1))) == 1
    assert "No trial" in findings.trade_offs(replace(RECORD, trials=()))[0]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.tuples(*(st.integers(0, 4).map(float) for _ in OBJECTIVES)), min_size=1, max_size=12
    )
)
def test_dotted_line_joins_the_best_of_each_pair(values: list[tuple[float, ...]]) -> None:
    trials = mark_front(
        [
            replace(RECORD.trials[0], number=i, objectives=dict(zip(OBJECTIVES, row, strict=True)))
            for i, row in enumerate(values)
        ]
    )
    for first, second in itertools.combinations(OBJECTIVES, 2):
        x, y = charts.pair_axes(first, second)
        signs = [1 if OBJECTIVES[name][0] == "maximize" else -1 for name in (x, y)]
        points = {(t.objectives[x], t.objectives[y]) for t in trials}
        best = {
            p
            for p in points
            if not any(
                q != p and all(s * b >= s * a for s, a, b in zip(signs, p, q, strict=True))
                for q in points
            )
        }
        assert charts.pair_front(trials, x, y) == sorted(best)


def test_rate_figure_has_a_line_per_network_and_protection() -> None:
    from dse.fault_charts import rate_figure

    figure = rate_figure(RECORD)
    designs = {t.number: t.design for t in RECORD.trials}
    expected = {
        f"W{d.weight_bits}A{d.act_bits} {d.protect}"
        for d in (designs[p.number] for p in RECORD.points)
    }
    assert {trace["name"] for trace in figure["data"]} == expected
    for trace in figure["data"]:
        assert trace["x"] == sorted(trace["x"]) and len(trace["x"]) == 3
    assert figure["layout"]["shapes"][0]["x0"] == RECORD.rate["rate"]
    bare = replace(RECORD, points=tuple(replace(p, rate_curve=()) for p in RECORD.points))
    assert rate_figure(bare)["data"] == []


def test_exposure_multiplies_bits_by_probability() -> None:
    point = RECORD.points[0]
    t = RECORD.trials[point.number]
    by_site = {item.site: item for item in findings.exposures(t, point)}
    assert by_site["pe_activation"].bits == t.design.rows * t.design.cols * t.design.act_bits
    assert by_site["activations"].bits == t.faulty["bits"]
    single = [c for c in point.campaigns if c["multiplicity"] == 1]
    assert len(by_site) == len(single) == 2
    for c in single:
        critical = c["outcomes"]["sdc_critical"]
        item = by_site[c["site"]]
        assert (item.rate, item.low, item.high) == (
            critical["rate"],
            critical["ci_low"],
            critical["ci_high"],
        )


def test_shares_of_outcomes_from_counts_or_fractions() -> None:
    counts = {"masked": 5, "sdc_noncritical": 3, "sdc_critical": 2}
    fractions = {"masked": 0.5, "sdc_noncritical": 0.3, "sdc_critical": 0.2}
    for row in (counts, fractions):
        assert findings.outcome_shares(row) == pytest.approx(fractions)
    assert set(findings.outcome_shares({}).values()) == {0.0}


def test_chosen_point_is_on_the_front_and_balanced() -> None:
    rng = random.Random(0)
    base = trial(
        0, Design(method="qat", weight_bits=4, act_bits=4, protect="none", rows=4, cols=4), rng
    )
    rows = [(99, 50, 10, 10), (50, 99, 10, 10), (90, 90, 11, 11), (99, 99, 99, 99)]
    trials = mark_front(
        [
            replace(base, number=i, objectives=dict(zip(OBJECTIVES, map(float, row), strict=True)))
            for i, row in enumerate(rows)
        ]
    )
    best = findings.chosen(replace(RECORD, trials=trials, points=()))
    assert best is not None
    assert best.number == 2
    assert findings.chosen(replace(RECORD, trials=())) is None


def test_command_makes_the_same_report_again(
    tmp_path: Path, html: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RECORD.to_json()), "utf-8")
    assert report.main([str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text("utf-8") == html
    assert "Pareto front of vgg11-digits" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "{", "[]", '{"name": "x"}', '{"trials": 3}'])
def test_bad_run_folder_is_one_line_and_writes_nothing(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content, "utf-8")
    with pytest.raises(InputError, match=r"run\.json"):
        report.main([str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == (["run.json"] if content else [])


def test_import_is_cheap() -> None:
    code = (
        "import sys, dse.report; print({'plotly', 'jinja2', 'optuna', 'torch'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
