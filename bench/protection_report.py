# SPDX-License-Identifier: Apache-2.0
"""The report of `bench.protection`: one HTML page with plots that opens without network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.protection_cells import SITES, VARIANTS, Case, Effort, Ladder, Variant
from bench.protection_ladder import LADDER_VARIANTS, WORDS, spread_of
from bench.protection_summary import (
    CLAIMED,
    CLAIMED_LUT,
    HEADINGS,
    NONE,
    WORD_NAMES,
    Measured,
    summary_cells,
)
from trilat import page
from trilat.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Figure,
    bars,
)
from trilat.files import write_text

Rows = Sequence[dict[str, Any]]

_TEMPLATE = Path(__file__).with_name("protection_report.html")
_COLOURS = dict(zip(LADDER_VARIANTS, (VERMILION, BLUE, SKY, GREEN, PURPLE), strict=True))
_DASHES = {"code": "solid", "byte": "dot"}
_METHOD_COLOURS = {"qat": BLUE, "ptq": ORANGE}


def write_report(
    path: Path,
    measured: Measured,
    rows: Rows,
    lines: Sequence[str],
    effort: Effort,
    ladder: Ladder,
) -> None:
    """Write the report.

    Args:
        path: of the page.
        measured: all results.
        rows: the summary of them.
        lines: conclusions, in words.
        effort, ladder: how much was measured.
    """
    figures = _figures(measured, rows)
    text = page.render(
        _TEMPLATE,
        figures=figures,
        headings=HEADINGS,
        rows=[summary_cells(row) for row in rows],
        lines=lines,
        models=list(dict.fromkeys(row["case"]["model"] for row in rows)),
        steps=[
            (name, Case(**row["case"]).label())
            for row in rows
            if (name := _step_name(Case(**row["case"]))) in figures
        ],
        psums=[name for name in figures if name.startswith("psum-")],
        site=SITES[0],
        effort=effort,
        ladder=ladder,
        missing=measured.missing,
    )
    write_text(path, text)


def _figures(measured: Measured, rows: Rows) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for model in dict.fromkeys(row["case"]["model"] for row in rows):
        mine = [row for row in rows if row["case"]["model"] == model]
        figures[f"gain-{model}"] = _gain(mine, CLAIMED[model])
        figures[f"critical-{model}"] = _critical(mine)
        figures[f"blind-{model}"] = _blind(measured, mine)
    for row in rows:
        case = Case(**row["case"])
        if any((case, word) in measured.ladders for word in WORDS):
            figures[_step_name(case)] = _steps(measured, case)
    if measured.luts:
        figures["lut"] = _luts(measured)
    for case, found in measured.psums.items():
        figures[f"psum-{case.label()}"] = _psums(found)
    return figures


def _step_name(case: Case) -> str:
    return f"steps-{case.model}-{case.method}-{case.bits}"


def _line(
    name: str,
    x: Sequence[float],
    found: Rows,
    colour: str,
    dash: str = "solid",
    scale: float = 1.0,
    key: str = "mean",
) -> dict[str, Any]:
    """Return a line with error bars of entries with `key`, ci_low and ci_high."""
    values = [scale * one[key] for one in found]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(x),
        "y": values,
        "line": {"color": colour, "dash": dash, "width": 2},
        "marker": {"size": 7, "symbol": "circle" if dash == "solid" else "circle-open"},
        "error_y": bars(
            values,
            [scale * one["ci_low"] for one in found],
            [scale * one["ci_high"] for one in found],
        ),
    }


def _widths(title: str, height: int = 340) -> dict[str, Any]:
    return {
        "height": height,
        "xaxis": {
            "title": {"text": "bits of weights and activations"},
            "range": [8.4, 1.6],
            "dtick": 1,
        },
        "yaxis": {"title": {"text": title}},
    }


def _level(value: float, text: str) -> dict[str, Any]:
    return {
        "shapes": [
            {
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value,
                "line": {"color": GREY, "dash": "dash", "width": 1},
            }
        ],
        "annotations": [
            {
                "xref": "paper", "x": 1, "y": value, "text": text, "showarrow": False,
                "xanchor": "right", "yanchor": "bottom", "font": {"size": 11},
            }
        ],
    }  # fmt: skip


def _gain(rows: Rows, claimed: float) -> Figure:
    data = []
    for method, colour in _METHOD_COLOURS.items():
        for word in WORDS:
            mine = [r for r in rows if r["case"]["method"] == method and r[word] is not None]
            if mine:
                data.append(
                    _line(
                        f"{method}, {WORD_NAMES[word]}",
                        [row["case"]["bits"] for row in mine],
                        [row[word]["gain"] for row in mine],
                        colour,
                        _DASHES[word],
                    )
                )
    layout = _widths("gain under faults (points)") | _level(claimed, f"claimed: +{claimed:g}")
    return {"data": data, "layout": layout}


def _critical(rows: Rows) -> Figure:
    data = []
    for method, colour in _METHOD_COLOURS.items():
        for key, dash in (("unprotected", "solid"), ("protected", "dot")):
            mine = [
                row
                for row in rows
                if row["case"]["method"] == method and row["sites"][SITES[0]][key] is not None
            ]
            if mine:
                data.append(
                    _line(
                        f"{method}, {key}",
                        [row["case"]["bits"] for row in mine],
                        [row["sites"][SITES[0]][key] for row in mine],
                        colour,
                        dash,
                        scale=100,
                        key="rate",
                    )
                )
    layout = _widths("critical single flips (%)")
    layout["yaxis"]["rangemode"] = "tozero"
    return {"data": data, "layout": layout}


def _blind(measured: Measured, rows: Rows) -> Figure:
    data = []
    for method, dash in (("qat", "solid"), ("ptq", "dot")):
        for variant in (Variant(kind="clip"), Variant(kind="clip", granularity="channel")):
            cases = [Case(**row["case"]) for row in rows if row["case"]["method"] == method]
            cases = [case for case in cases if (case, variant) in measured.cells]
            if cases:
                data.append(
                    _line(
                        f"{method}, bounds per {variant.granularity}",
                        [case.bits for case in cases],
                        [measured.cells[c, variant]["sites"][SITES[0]]["blind"] for c in cases],
                        _COLOURS[variant],
                        dash,
                        scale=100,
                        key="rate",
                    )
                )
    layout = _widths("faults that no bound can see (%)")
    layout["yaxis"]["range"] = [0, 103]
    return {"data": data, "layout": layout}


def _steps(measured: Measured, case: Case) -> Figure:
    data = []
    for word in WORDS:
        for variant, steps in measured.ladders.get((case, word), {}).items():
            found = spread_of(steps, measured.choosing, measured.seed)
            name = variant.label().replace(" at both, per", ",")
            line = _line(
                name, [one["rate"] for one in found], found, _COLOURS[variant], _DASHES[word]
            )
            line |= {"legendgroup": name, "showlegend": word == "code"}
            data.append(line)
    return {
        "data": data,
        "layout": {
            "height": 320,
            "xaxis": {
                "type": "log", "title": {"text": "flips per stored bit"}, "dtick": 1,
                "exponentformat": "power",
            },
            "yaxis": {"title": {"text": "accuracy (%)"}, "range": [0, 102]},
        },
    }  # fmt: skip


def _luts(measured: Measured) -> Figure:
    data = []
    colours = (BLUE, SKY, GREEN, PURPLE, ORANGE, VERMILION, GREY)
    known = [v for v in VARIANTS if v != NONE and any((b, v) in measured.luts for b in range(9))]
    for number, variant in enumerate(known):
        bits = [b for b in range(8, 1, -1) if measured.lut_more(b, variant) is not None]
        data.append(
            {
                "type": "bar",
                "name": variant.label(),
                "x": bits,
                "y": [measured.lut_more(b, variant) for b in bits],
                "marker": {"color": colours[number % len(colours)]},
            }
        )
    layout = _widths("more LUTs (%)") | _level(CLAIMED_LUT, f"claimed: under {CLAIMED_LUT:g}")
    return {"data": data, "layout": layout}


def _psums(found: dict[tuple[Variant, int], dict[str, Any]]) -> Figure:
    data = []
    for variant in dict.fromkeys(variant for variant, _ in found):
        rows = [row for (v, _), row in found.items() if v == variant]
        ends = [
            {
                "mean": row["accuracy_faulty"],
                "ci_low": row["accuracy_interval"][0],
                "ci_high": row["accuracy_interval"][1],
            }
            for row in rows
        ]
        data.append(_line(variant.label(), [row["flips"] for row in rows], ends, _COLOURS[variant]))
    return {
        "data": data,
        "layout": {
            "height": 320,
            "xaxis": {
                "type": "log", "title": {"text": "simultaneous flips in psum registers"},
                "dtick": 1,
            },
            "yaxis": {"title": {"text": "accuracy (%)"}, "range": [0, 102]},
        },
    }  # fmt: skip
