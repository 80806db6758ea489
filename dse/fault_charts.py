# SPDX-License-Identifier: Apache-2.0
"""Charts of what faults did: outcomes by layer and by bit, and P(SDC critical) by class of site."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from dse.charts import PROTECT_SYMBOLS
from dse.findings import exposures, front, in_weights, outcome_shares
from dse.records import RunRecord
from dse.text import OUTCOMES, SITES, number, share
from trilat.figures import GREY, SERIES, SKY, SYMBOLS, VERMILION, Figure, bars

OUTCOME_COLOURS = {"masked": "#B4BBC3", "sdc_noncritical": SKY, "sdc_critical": VERMILION}


def outcomes_figure(rows: Sequence[dict[str, Any]], key: str, title: str) -> Figure:
    """Return outcome shares (left) and P(SDC critical) with its interval (right) per layer or bit.

    Args:
        rows: a campaign's ``by_layer`` or ``by_bit``.
        key: ``"layer"`` or ``"bit"``.
        title: of the vertical axis.
    """
    # Plotly draws the first category at the bottom: layers read downwards, the top bit is on top.
    ordered = list(reversed(rows)) if key == "layer" else sorted(rows, key=lambda row: row[key])
    names = [escape(str(row[key])) for row in ordered]
    shares = [outcome_shares(row) for row in ordered]
    text = [
        f"<b>{escape(title)} {name}</b>, {number(row.get('n'))} faults<br>"
        + "<br>".join(f"{label} {share(part[outcome])}" for outcome, label in OUTCOMES.items())
        + f"<br>critical, 95 %: {share(row.get('ci_low'))} .. {share(row.get('ci_high'))}"
        for name, row, part in zip(names, ordered, shares, strict=True)
    ]
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label,
            "y": names,
            "x": [100 * part[outcome] for part in shares],
            "marker": {"color": OUTCOME_COLOURS[outcome]},
            "hovertext": text,
            "hoverinfo": "text",
        }
        for outcome, label in OUTCOMES.items()
    ]
    critical = [100 * part["sdc_critical"] for part in shares]
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "critical, with interval",
            "showlegend": False,
            "xaxis": "x2",
            "y": names,
            "x": critical,
            "marker": {"color": VERMILION, "size": 7},
            "error_x": bars(
                critical,
                _percents([row.get("ci_low") for row in ordered], critical),
                _percents([row.get("ci_high") for row in ordered], critical),
                color=VERMILION,
            ),
            "hovertext": text,
            "hoverinfo": "text",
        }
    )
    category = {"type": "category", "title": {"text": title}, "categoryarray": names}
    layout = {
        "barmode": "stack",
        "bargap": 0.25,
        "height": max(230, 110 + 26 * len(names)),
        "xaxis": {"title": {"text": "All faults (%)"}, "domain": [0, 0.56], "range": [0, 100]},
        "xaxis2": {
            "title": {"text": "Critical (%)"},
            "domain": [0.63, 1],
            "rangemode": "tozero",
            "anchor": "y",
        },
        "yaxis": {**category, "categoryorder": "array"},
    }
    return {"data": data, "layout": layout}


def exposure_figure(record: RunRecord) -> Figure:
    """Return P(SDC critical) of a single flip per reported point and class of site."""
    trials = {trial.number: trial for trial in record.trials}
    series: dict[str, list[tuple[str, Any]]] = {}
    for point in record.points:
        if point.number in trials:
            for item in exposures(trials[point.number], point):
                series.setdefault(item.site, []).append((trials[point.number].design.label(), item))
    measured = {label for items in series.values() for label, _item in items}
    labels = [label for t in reversed(front(record)) if (label := t.design.label()) in measured]
    data = []
    for i, (site, items) in enumerate(series.items()):
        rates = [100 * item.rate for _label, item in items]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": SITES.get(site, site),
                "offsetgroup": site,
                "orientation": "h",
                "y": [label for label, _item in items],
                "x": rates,
                "marker": {"color": SERIES[i], "symbol": SYMBOLS[i], "size": 8},
                "error_x": bars(
                    rates,
                    _percents([item.low for _label, item in items], rates),
                    _percents([item.high for _label, item in items], rates),
                    color=SERIES[i],
                ),
                "hovertemplate": "%{y}: %{x:.2f} %<extra></extra>",
            }
        )
    layout = {
        "scattermode": "group",
        "height": max(240, 120 + 30 * len(labels)),
        "xaxis": {"title": {"text": "P(SDC critical) of one flip (%)"}, "rangemode": "tozero"},
        "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": labels},
    }
    return {"data": data, "layout": layout}


def rate_figure(record: RunRecord) -> Figure:
    """Return accuracy under faults against the fault rate, a line per network and protection.

    Points that differ in their array alone have the same stored activations, so share a line.
    """
    trials = {trial.number: trial for trial in record.trials}
    lines: dict[str, tuple[str, Sequence[dict[str, Any]]]] = {}
    for point in record.points:
        if point.rate_curve and point.number in trials:
            design = trials[point.number].design
            name = design.label().replace(f" {design.rows}x{design.cols}", "")
            lines.setdefault(name, (design.protect, point.rate_curve))
    data = []
    for i, (name, (protect, curve)) in enumerate(sorted(lines.items())):
        colour = SERIES[i % len(SERIES)]
        means = [one["mean"] for one in curve]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": escape(name),
                "x": [one["rate"] for one in curve],
                "y": means,
                "marker": {"color": colour, "symbol": PROTECT_SYMBOLS[protect], "size": 8},
                "line": {"color": colour, "width": 1.5},
                "error_y": bars(
                    means,
                    [one["ci_low"] for one in curve],
                    [one["ci_high"] for one in curve],
                    color=colour,
                ),
                "hovertemplate": f"{escape(name)}: %{{y:.1f}} % at %{{x:.2g}}<extra></extra>",
            }
        )
    rate = record.rate.get("rate")
    rates = sorted({one["rate"] for _protect, curve in lines.values() for one in curve})
    layout: dict[str, Any] = {
        "height": 360,
        "xaxis": {
            "title": {
                "text": "Share of faulty cells" if in_weights(record) else "Flips per stored bit"
            },
            "type": "log",
            "tickvals": rates,
            "ticktext": [f"{value:.2g}" for value in rates],
        },
        "yaxis": {"title": {"text": "Accuracy under faults (%)"}},
    }
    if isinstance(rate, int | float):
        line = {"color": GREY, "width": 1, "dash": "dot"}
        layout["shapes"] = [
            {
                "type": "line",
                "yref": "paper",
                "x0": rate,
                "x1": rate,
                "y0": 0,
                "y1": 1,
                "line": line,
            }
        ]
    return {"data": data, "layout": layout}


def _percents(bounds: Sequence[Any], values: Sequence[float]) -> list[float]:
    # A bound that was not recorded lies on its value: no bar.
    return [
        100 * bound if isinstance(bound, int | float) else value
        for bound, value in zip(bounds, values, strict=True)
    ]
