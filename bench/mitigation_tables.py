# SPDX-License-Identifier: Apache-2.0
"""How the tables of `bench.mitigations` print, draw and judge accuracy over chips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.mitigation_cells import Cell, Found
from trilat.figures import LOG_AXIS, SERIES, SYMBOLS, Figure, bars

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a paper leads one to expect, and what the cells show.

    Attributes:
        expected: in words, with the criterion that decides.
        found: the figures; where `met` is None, what is missing.
        met: whether they are as expected; None where cells are missing.
    """

    expected: str
    found: str
    met: bool | None

    @property
    def verdict(self) -> str:
        """Return `met` in words."""
        return "not computed" if self.met is None else "met" if self.met else "not met"


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
        figures = [
            _short(value) for value in (100 - plain["mean"], 100 - robust["mean"], low, high)
        ]
        texts.append("{} / {} ({}..{})".format(*figures))
    return texts


def _short(value: float) -> str:
    """Return a percentage with three digits or so: intervals over chips are wider than the rest."""
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def at_rate(one: Mapping[str, Any], rate: float) -> Mapping[str, Any]:
    """Return the plain and robust accuracy of a cell at one of its rates."""
    return next(row for row in one["rates"] if row["rate"] == rate)


def robust_error(one: Mapping[str, Any], rate: float) -> float:
    """Return the mean RErr of a cell in percent at one of its rates."""
    return 100.0 - float(at_rate(one, rate)["robust"]["mean"])


def lines(cells: Sequence[Cell], found: Found, *, title: str) -> Figure:
    """Return RErr against the fault rate, a line with intervals per cell that is there.

    Colours and markers tell training methods apart, dashes widths, kinds of faults and what is
    done on a known chip.
    """
    methods = list(dict.fromkeys(cell.method for cell in cells))
    others = list(dict.fromkeys(_other(cell) for cell in cells))
    data = []
    for cell in cells:
        if cell not in found:
            continue
        robust = [row["robust"] for row in found[cell]["rates"]]
        means = [100 - r["mean"] for r in robust]
        series, dash = methods.index(cell.method), others.index(_other(cell))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"{cell.row}, {cell.bits} bits, {cell.kind}",
                "x": [100 * row["rate"] for row in found[cell]["rates"]],
                "y": means,
                "error_y": bars(
                    means,
                    [100 - r["ci_high"] for r in robust],
                    [100 - r["ci_low"] for r in robust],
                ),
                "marker": {"symbol": SYMBOLS[series % len(SYMBOLS)], "size": 8},
                "line": {
                    "color": SERIES[series % len(SERIES)],
                    "dash": _DASHES[dash % len(_DASHES)],
                },
            }
        )
    layout = {
        "title": {"text": title},
        "xaxis": {**LOG_AXIS, "title": {"text": "faulty cells (%)"}},
        "yaxis": {**LOG_AXIS, "title": {"text": "RErr: wrong clean or faulty (%)"}},
    }
    return {"data": data, "layout": layout}


def _other(cell: Cell) -> tuple[int, str, str, int]:
    return cell.bits, cell.kind, cell.on_chip, cell.group
