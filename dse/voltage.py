# SPDX-License-Identifier: Apache-2.0
"""What faulty weight memories are worth: supply voltage and energy that each method reaches.

A lower supply makes more cells fail (`faultinj.sram`), so the highest fault rate at which a design
still holds an accuracy gives its lowest voltage, and that the energy of its SRAM accesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from dse.records import RunRecord, TrialRecord
from dse.text import THIN, brief, interval, number, percent, share
from faultinj.sram import RATES, VOLTAGES, rate_held, voltage_at
from trilat.figures import GREY, SERIES, SYMBOLS, Figure, bars

# Accuracies to hold, in points below the best that any of the designs has without faults.
TARGETS = (1.0, 5.0)


@dataclass(frozen=True, kw_only=True)
class Held:
    """How far down a design may go and hold an accuracy, as the mean over chips.

    Attributes:
        wanted: the accuracy in percent.
        rate: of faulty cells, as of `faultinj.sram.rate_held`.
        at_least: whether the accuracy is held at the highest measured rate.
        voltage: V / Vmin; None with the rate.
        saved: share of the energy per SRAM access at Vmin; None with the rate.
    """

    wanted: float
    rate: float | None
    at_least: bool
    voltage: float | None
    saved: float | None

    def in_words(self) -> str:
        """Return the saving, e.g. ``31.2 %`` or ``at least 43.8 %``."""
        if self.saved is None:
            return "not reached"
        return f"{'at least ' if self.at_least else ''}{share(self.saved)}"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A design's accuracy over chips from rate to rate.

    Attributes:
        trial: the design's.
        results: `TrialRecord.faulty` at ascending rates.
        held: per target of `wanted`.
    """

    trial: TrialRecord
    results: tuple[dict[str, Any], ...]
    held: tuple[Held, ...]


def curves(record: RunRecord) -> list[Curve]:
    """Return the curves of a run, the one that saves most at the last target first."""
    trials = {trial.number: trial for trial in record.trials}
    measured = [one for one in record.voltage if one["number"] in trials and one["results"]]
    if not measured:
        return []
    best = max(one["results"][0]["golden"] for one in measured)
    found = [
        Curve(
            trial=trials[one["number"]],
            results=tuple(one["results"]),
            held=tuple(_held(one["results"], best - points) for points in TARGETS),
        )
        for one in measured
    ]
    return sorted(found, key=lambda c: [-(held.saved or -1.0) for held in reversed(c.held)])


def _held(results: list[dict[str, Any]], wanted: float) -> Held:
    rates = [one["rate"] for one in results]
    means = [one["mean"] for one in results]
    rate = rate_held(rates, means, results[0]["golden"], wanted)
    voltage = None if rate is None else voltage_at(rate)
    return Held(
        wanted=wanted,
        rate=rate,
        at_least=means[-1] >= wanted,
        voltage=voltage,
        saved=None if voltage is None else 1 - voltage**2,
    )


def sentence(record: RunRecord) -> str:
    """Return what is saved at equal accuracy, one design after the other; nothing without curves.

    Of the targets it is the last one that the designs are told apart by.
    """
    found = curves(record)
    if not found:
        return ""
    wanted = found[0].held[-1].wanted
    each = ", ".join(f"{c.trial.design.label()} {c.held[-1].in_words()}" for c in found)
    return (
        f"Energy per SRAM access that is saved against Vmin by a supply at which {percent(wanted)} "
        f"({TARGETS[-1]:g} points below the best without faults) are held, as the mean over "
        f"chips: {each}."
    )


def voltage_figure(record: RunRecord) -> Figure:
    """Return accuracy over chips against the supply voltage, a line per design."""
    data: list[dict[str, Any]] = []
    for i, curve in enumerate(sorted(curves(record), key=lambda c: c.trial.number)):
        colour, label = SERIES[i % len(SERIES)], escape(curve.trial.design.label())
        means = [one["mean"] for one in curve.results]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label,
                "x": [one["voltage"] for one in curve.results],
                "y": means,
                "line": {"color": colour, "width": 1.5},
                "marker": {"color": colour, "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
                "error_y": bars(
                    means,
                    [one["ci_low"] for one in curve.results],
                    [one["ci_high"] for one in curve.results],
                    color=colour,
                ),
                "hovertext": [_hover(label, one) for one in curve.results],
                "hoverinfo": "text",
            }
        )
    ticks = [
        f"{voltage:.3f}<br>{brief(100 * rate)}{THIN}%<br>{share(1 - voltage**2, 0)}"
        for voltage, rate in zip(VOLTAGES, RATES, strict=True)
    ]
    layout: dict[str, Any] = {
        "height": 420,
        "xaxis": {
            "title": {"text": "V/Vmin, faulty cells, energy saved per SRAM access"},
            "autorange": "reversed",
            "tickvals": list(VOLTAGES),
            "ticktext": ticks,
        },
        "yaxis": {"title": {"text": "Accuracy on chips (%)"}},
    }
    rate = record.rate.get("rate")
    if isinstance(rate, int | float):
        layout["shapes"] = [
            {
                "type": "line",
                "yref": "paper",
                "x0": voltage_at(rate),
                "x1": voltage_at(rate),
                "y0": 0,
                "y1": 1,
                "line": {"color": GREY, "width": 1, "dash": "dot"},
            }
        ]
    return {"data": data, "layout": layout}


def _hover(label: str, result: dict[str, Any]) -> str:
    bounds = interval((result["ci_low"], result["ci_high"]))
    return "<br>".join(
        (
            f"<b>{label}</b>",
            f"V/Vmin {number(result['voltage'], 3)}: {share(result['rate'], 2)} faulty cells",
            f"accuracy {percent(result['mean'])} {bounds}, worst chip {percent(result['min'])}",
            f"right without and with faults {percent(result['robust']['mean'])}",
            f"{share(result['energy_saved'])} of the energy per SRAM access saved",
        )
    )


def rows(record: RunRecord) -> list[dict[str, Any]]:
    """Return one flat row per curve and rate, units in the names, for voltage.csv."""
    return [
        {
            "trial": curve.trial.number,
            "design": curve.trial.design.label(),
            "method": curve.trial.design.method,
            "faulty_cells_share": one["rate"],
            "sram_voltage_over_vmin": one["voltage"],
            "sram_energy_saved_per_access_percent": 100 * one["energy_saved"],
            "accuracy_without_faults_percent": one["golden"],
            "accuracy_mean_percent": one["mean"],
            "accuracy_ci95_low_percent": one["ci_low"],
            "accuracy_ci95_high_percent": one["ci_high"],
            "accuracy_worst_chip_percent": one["min"],
            "accuracy_robust_mean_percent": one["robust"]["mean"],
            "chips": one["chips"],
            "images": one["images"],
        }
        for curve in sorted(curves(record), key=lambda curve: curve.trial.number)
        for one in curve.results
    ]
