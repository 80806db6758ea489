# SPDX-License-Identifier: Apache-2.0
"""How the tables of `bench.mitigations` print and draw accuracy over chips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.mitigation_cells import Cell, Found
from dse.charts import SERIES, SYMBOLS, Figure


def percent(rate: float) -> str:
    """Return a fault rate as a heading."""
    return f"{100 * rate:g} %"


def errors(cell: Cell, one: Mapping[str, Any] | None) -> list[str]:
    """Return the figures of a row: clean error, then per rate plain error / RErr with interval."""
    if one is None:
        return ["-"] * (1 + len(cell.rates))
    texts = [f"{100 - one['clean']:.2f}"]
    for row in one["rates"]:
        plain, robust = row["plain"], row["robust"]
        low, high = 100 - robust["ci_high"], 100 - robust["ci_low"]
        texts.append(
            f"{100 - plain['mean']:.2f} / {100 - robust['mean']:.2f} ({low:.2f} .. {high:.2f})"
        )
    return texts


def lines(cells: Sequence[Cell], found: Found, *, title: str) -> Figure:
    """Return RErr against the fault rate, a line with intervals per cell that is there."""
    data = []
    for number, cell in enumerate(cell for cell in cells if cell in found):
        rows = found[cell]["rates"]
        robust = [row["robust"] for row in rows]
        means = [100 - r["mean"] for r in robust]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"{cell.row}, {cell.bits} bits",
                "x": [100 * row["rate"] for row in rows],
                "y": means,
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [100 - r["ci_low"] - y for r, y in zip(robust, means, strict=True)],
                    "arrayminus": [
                        y - 100 + r["ci_high"] for r, y in zip(robust, means, strict=True)
                    ],
                },
                "marker": {"symbol": SYMBOLS[number % len(SYMBOLS)]},
                "line": {"color": SERIES[number % len(SERIES)]},
            }
        )
    layout = {
        "title": {"text": title},
        "xaxis": {"type": "log", "title": {"text": "faulty cells in %"}},
        "yaxis": {"title": {"text": "RErr in %"}, "rangemode": "tozero"},
    }
    return {"data": data, "layout": layout}
