# SPDX-License-Identifier: Apache-2.0
"""The report of a campaign: one HTML page that opens without network, from its summary alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from faultinj.summary import NOT_MODELLED, CampaignResult
from trilat import page
from trilat.figures import GREEN, GREY, SKY, VERMILION, Figure, bars
from trilat.files import write_text

_TEMPLATE = Path(__file__).with_name("report.html")
_COLOURS = {
    "masked": GREY,
    "sdc_noncritical": SKY,
    "sdc_critical": VERMILION,
    "not_critical": GREEN,
}
_NAMES = {
    "masked": "masked",
    "sdc_noncritical": "SDC, not critical",
    "sdc_critical": "SDC, critical",
    "not_critical": "not critical (bound)",
}
_BY = {
    "layer": "tensor or layer",
    "bit": "bit",
    "register": "class of register",
    "kind": "kind of fault",
}
# What the coordinates of a register class count, where they are not rows and columns of PEs.
_AXES = {
    "skew": ("row", "stage"),
    "deskew": ("stage", "column"),
    "weight_skew": ("stage", "column"),
}
_HEAT = [[0.0, "rgba(213,94,0,0.04)"], [1.0, "rgba(213,94,0,1)"]]


def write_report(path: Path, result: CampaignResult, facts: Mapping[str, str]) -> None:
    """Write the report of a campaign.

    Args:
        path: of the page.
        result: the campaign.
        facts: what was measured, in words: network, images, accelerator, protection.
    """
    write_text(path, render(result, facts))


def render(result: CampaignResult, facts: Mapping[str, str]) -> str:
    """Return the report as one self-contained HTML page."""
    figures = _figures(result)
    return page.render(
        _TEMPLATE,
        figures=figures,
        filters={"percent": _percent, "count": _count, "brief": _brief},
        result=result,
        facts=facts,
        summary={"facts": dict(facts), **result.to_json()},
        names=_NAMES,
        not_modelled=NOT_MODELLED,
        flips=result.kind == "flip" and result.multiplicity == result.burst == 1,
        several=result.multiplicity > 1 or result.burst > 1,
        pe_figures=[name for name in figures if name.startswith("pe-")],
        axes=_AXES,
    )


def _figures(result: CampaignResult) -> dict[str, Figure]:
    figures = {
        "layer": _outcomes(result.by_layer, "layer"),
        "bit": _outcomes(result.by_bit, "bit"),
    }
    # A heat map without a critical fault shows nothing.
    critical = result.outcomes["sdc_critical"]["count"] > 0
    if critical and len({row["bit"] for row in result.by_bit}) > 1:
        figures["layer-bit"] = _heat(result.by_layer_bit, "layer", "bit", _BY["layer"], _BY["bit"])
    if len(result.by_register) > 1:
        figures["register"] = _outcomes(result.by_register, "register")
    if len(result.by_kind) > 1:
        figures["kind"] = _outcomes(result.by_kind, "kind")
    for name in dict.fromkeys(row["register"] for row in result.by_pe if row["rate"] > 0):
        mine = [row for row in result.by_pe if row["register"] == name]
        figures[f"pe-{name}"] = _heat(mine, "row", "col", *_AXES.get(name, ("row", "column")))
    return figures


def _outcomes(rows: Sequence[Mapping[str, Any]], key: str) -> Figure:
    """Return shares of the outcomes as bars, and the critical rate with its interval beside."""
    labels = [str(row[key]) for row in rows]
    data: list[dict[str, Any]] = []
    for outcome, colour in _COLOURS.items():
        if not any(row.get(outcome) for row in rows):
            continue
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": _NAMES[outcome],
                "y": labels,
                "x": [100 * row.get(outcome, 0) / row["n"] for row in rows],
                "customdata": [[row.get(outcome, 0), row["n"]] for row in rows],
                "marker": {"color": colour},
                "hovertemplate": "%{y}: %{customdata[0]} of %{customdata[1]} (%{x:.2f} %)",
            }
        )
    rates = [100 * row["rate"] for row in rows]
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "xaxis": "x2",
            "y": labels,
            "x": rates,
            "showlegend": False,
            "marker": {"color": _COLOURS["sdc_critical"], "size": 8},
            "error_x": bars(
                rates,
                [100 * row["ci_low"] for row in rows],
                [100 * row["ci_high"] for row in rows],
                color=_COLOURS["sdc_critical"],
            ),
            "hovertemplate": "%{y}: critical %{x:.3f} %<extra></extra>",
        }
    )
    return {
        "data": data,
        "layout": {
            "barmode": "stack",
            "height": 130 + 26 * len(rows),
            "xaxis": {"domain": [0, 0.6], "range": [0, 100], "title": {"text": "faults drawn (%)"}},
            "xaxis2": {
                "domain": [0.64, 1],
                "rangemode": "tozero",
                "title": {"text": "critical, with interval (%)"},
            },
            "yaxis": {
                "type": "category",
                "autorange": "reversed",
                "title": {"text": _BY[key]},
            },
        },
    }


def _heat(
    rows: Sequence[Mapping[str, Any]], down: str, across: str, down_name: str, across_name: str
) -> Figure:
    """Return the critical rate as a heat map; cells without a fault stay empty."""
    ys = list(dict.fromkeys(row[down] for row in rows))
    if down != "layer":
        ys = list(range(max(ys) + 1))
    xs = list(range(max(row[across] for row in rows) + 1))
    cells = {(row[down], row[across]): row for row in rows}
    found = [[cells.get((y, x)) for x in xs] for y in ys]
    return {
        "data": [
            {
                "type": "heatmap",
                "x": [str(x) for x in xs],
                "y": [str(y) for y in ys],
                "z": [[100 * cell["rate"] if cell else None for cell in line] for line in found],
                "customdata": [
                    [
                        f"{cell['sdc_critical']} of {cell['n']} critical, "
                        f"{100 * cell['ci_low']:.2f} .. {100 * cell['ci_high']:.2f} %"
                        if cell
                        else ""
                        for cell in line
                    ]
                    for line in found
                ],
                "hovertemplate": f"{down_name} %{{y}}, {across_name} %{{x}}<br>%{{z:.3f}} %: "
                "%{customdata}<extra></extra>",
                "hoverongaps": False,
                "colorscale": _HEAT,
                "zmin": 0,
                "zmax": 100 * max(row["rate"] for row in rows) or 1.0,
                "xgap": 1,
                "ygap": 1,
                "colorbar": {"title": {"text": "critical (%)"}, "thickness": 12, "outlinewidth": 0},
            }
        ],
        "layout": {
            "height": 120 + max(22 * len(ys), 160),
            "xaxis": {"type": "category", "title": {"text": across_name}, "showgrid": False},
            "yaxis": {
                "type": "category",
                "title": {"text": down_name},
                "autorange": "reversed",
                "showgrid": False,
            },
        },
    }


def _percent(value: float | None) -> str:
    """Return a rate as percent with as many decimals as it needs."""
    if value is None:
        return "–"
    size = abs(100 * value)
    decimals = 1 if size >= 10 or not size else 2 if size >= 1 else 3 if size >= 0.01 else 5
    return f"{100 * value:.{decimals}f}\u202f%"


def _count(value: float | None) -> str:
    if value is None:
        return "unknown"
    # Sets of many faults are more than a float can count.
    return f"{value:,.0f}".replace(",", "\u202f") if value < 1e15 else f"{Decimal(value):.3g}"


def _brief(value: float | None) -> str:
    if value is None:
        return "–"
    return _count(value) if abs(value) >= 1000 else f"{value:.3g}"
