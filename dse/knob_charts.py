# SPDX-License-Identifier: Apache-2.0
"""Charts of what each knob did: widths, protection, rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from dse.charts import (
    PROTECT_COLOURS,
    PROTECT_SYMBOLS,
    error_bars,
    hover,
    objective_axis,
    scale,
)
from dse.findings import design_pairs
from dse.records import RunRecord, TrialRecord
from dse.text import number, percent, signed
from trilat.figures import SERIES, SYMBOLS, Figure


def by_bits(record: RunRecord, objective: str) -> Figure:
    """Return accuracy, or accuracy under faults, per pair of widths and kind of protection.

    Trials that differ in their array only share one network, so each network appears once.
    """
    widths = sorted(
        {(t.design.weight_bits, t.design.act_bits) for t in record.trials},
        key=lambda pair: (sum(pair), pair),
    )
    data = []
    for protect, colour in PROTECT_COLOURS.items():
        seen: dict[tuple[Any, ...], TrialRecord] = {}
        for trial in record.trials:
            if trial.design.protect == protect:
                design = trial.design
                key = (design.weight_bits, design.act_bits, design.method, design.requant)
                seen.setdefault((*key, trial.objectives[objective]), trial)
        group = list(seen.values())
        if not group:
            continue
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "name": protect if protect != "none" else "unprotected",
            "offsetgroup": protect,
            "x": [_widths(t.design.weight_bits, t.design.act_bits) for t in group],
            "y": [trial.objectives[objective] for trial in group],
            "marker": {"color": colour, "symbol": PROTECT_SYMBOLS[protect], "size": 9},
            "hovertext": [hover(trial) for trial in group],
            "hoverinfo": "text",
        }
        bars = error_bars(group, objective)
        if bars:
            trace["error_y"] = {**bars, "color": colour, "thickness": 1.5, "width": 4}
        data.append(trace)
    layout = {
        "scattermode": "group",
        "scattergap": 0.5,
        "height": 340,
        "xaxis": {
            "title": {"text": "Widths (W weight, A activation bits)"},
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [_widths(*pair) for pair in widths],
        },
        "yaxis": {**objective_axis(record, objective), "range": _padded(data)},
    }
    return {"data": data, "layout": layout}


def _padded(traces: Sequence[dict[str, Any]]) -> list[float]:
    # Grouped markers make Plotly start at zero; differences between networks are smaller.
    lows, highs = [], []
    for trace in traces:
        bars = trace.get("error_y", {})
        below, above = (bars.get(key, [0.0] * len(trace["y"])) for key in ("arrayminus", "array"))
        lows += [y - size for y, size in zip(trace["y"], below, strict=True)]
        highs += [y + size for y, size in zip(trace["y"], above, strict=True)]
    low, high = min(lows), max(highs)
    margin = 0.06 * (high - low) or 0.5
    return [low - margin, high + margin]


def protection_pairs(record: RunRecord) -> Figure:
    """Return what protection cost (LUTs, x) and bought (points under faults, y), pair by pair."""
    data = []
    for protect, colour in PROTECT_COLOURS.items():
        pairs = [
            (a, b)
            for a, b in (
                design_pairs(record, "protect", "none", protect) if protect != "none" else ()
            )
            if isinstance(a.cost.get("lut"), int | float)
            and isinstance(b.cost.get("lut"), int | float)
        ]
        if not pairs:
            continue
        luts = [b.cost["lut"] - a.cost["lut"] for a, b in pairs]
        gains = [
            b.objectives["faulty_accuracy"] - a.objectives["faulty_accuracy"] for a, b in pairs
        ]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"none → {protect}",
                "x": luts,
                "y": gains,
                "marker": {"color": colour, "symbol": PROTECT_SYMBOLS[protect], "size": 10},
                "hovertext": [_pair_hover(a, b) for a, b in pairs],
                "hoverinfo": "text",
            }
        )
    layout = {
        "height": 340,
        "xaxis": {"title": {"text": "Added area (LUT)"}, "rangemode": "tozero", "tickformat": ","},
        "yaxis": {
            "title": {"text": "Gained under faults (points)"},
            "rangemode": "tozero",
            "zeroline": True,
        },
    }
    return {"data": data, "layout": layout}


def _pair_hover(bare: TrialRecord, protected: TrialRecord) -> str:
    faulty, clean = (
        [trial.objectives[name] for trial in (bare, protected)]
        for name in ("faulty_accuracy", "accuracy")
    )
    luts = [trial.cost["lut"] for trial in (bare, protected)]
    lines = (
        f"<b>{escape(bare.design.label())} → {escape(protected.design.protect)}</b>",
        f"{signed(luts[1] - luts[0], 0)} LUT on {number(luts[0])}",
        f"under faults {percent(faulty[0])} → {percent(faulty[1])}",
        f"that is {signed(faulty[1] - faulty[0])} points",
        f"without faults {signed(clean[1] - clean[0])} points",
    )
    return "<br>".join(lines)


def by_array(record: RunRecord, objective: str) -> Figure:
    """Return area or time against the number of PEs, one series per pair of widths."""
    weights = sorted({trial.design.weight_bits for trial in record.trials})
    acts = sorted({trial.design.act_bits for trial in record.trials})
    data = []
    for w, a in sorted({(t.design.weight_bits, t.design.act_bits) for t in record.trials}):
        group = [t for t in record.trials if (t.design.weight_bits, t.design.act_bits) == (w, a)]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": _widths(w, a),
                "x": [trial.design.rows * trial.design.cols for trial in group],
                "y": [trial.objectives[objective] for trial in group],
                "marker": {
                    "color": SERIES[weights.index(w) * len(acts) + acts.index(a)]
                    if len(weights) * len(acts) <= len(SERIES)
                    else SERIES[weights.index(w)],
                    "symbol": SYMBOLS[acts.index(a)],
                    "size": 8,
                    "opacity": 0.85,
                },
                "hovertext": [hover(trial) for trial in group],
                "hoverinfo": "text",
            }
        )
    pes = [trial.design.rows * trial.design.cols for trial in record.trials]
    layout = {
        "height": 340,
        "xaxis": {"title": {"text": "PEs (rows × columns)"}, **_ticks_at(pes)},
        "yaxis": objective_axis(record, objective),
    }
    return {"data": data, "layout": layout}


def _ticks_at(values: Sequence[int]) -> dict[str, Any]:
    # One tick per value that occurs, where they are few.
    axis, distinct = scale(values), sorted(set(values))
    if len(distinct) <= 8:
        axis["tickvals"] = distinct
        axis.pop("dtick", None)
    return axis


def _widths(weight_bits: int, act_bits: int) -> str:
    return f"W{weight_bits}A{act_bits}"
