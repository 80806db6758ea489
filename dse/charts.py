# SPDX-License-Identifier: Apache-2.0
"""Charts of the front and of the search (see `trilat.figures`)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import combinations
from typing import Any

from dse.findings import front, in_weights
from dse.records import OBJECTIVES, PointRecord, RunRecord, TrialRecord
from dse.text import half, in_words, interval, number, percent, share
from trilat.figures import BLUE, GREEN, GREY, LOG_AXIS, ORANGE, SERIES, VERMILION, Figure, bars

PROTECT_COLOURS = {"none": BLUE, "clip": ORANGE, "zero": GREEN}
PROTECT_SYMBOLS = {"none": "circle", "clip": "square", "zero": "diamond"}
_SHORT = {
    "lut_equivalent": "Area (LUT-eq)",
    "time_us": "Time (µs)",
    "faulty_accuracy": "Under faults (%)",
}
PAIRS = tuple(combinations(OBJECTIVES, 2))


def axis_title(record: RunRecord, objective: str) -> str:
    """Return an objective's label and unit."""
    _direction, label, unit = OBJECTIVES[objective]
    if objective == "faulty_accuracy" and in_weights(record):
        label = "Accuracy on chips with weight faults"
    return f"{label} ({unit})"


def pair_axes(first: str, second: str) -> tuple[str, str]:
    """Return (x, y) of a pair of objectives: what is spent on x, what it buys on y."""
    if OBJECTIVES[first][0] == "maximize" and OBJECTIVES[second][0] == "minimize":
        return second, first
    return first, second


def pair_name(first: str, second: str) -> str:
    """Return the figure's name of a pair of objectives."""
    x, y = pair_axes(first, second)
    return f"front-{y}-{x}"


def bram_unit(trials: Sequence[TrialRecord]) -> str:
    """Return what the block RAMs of `trials` are counted in, e.g. ``BRAM36``."""
    return next((t.cost["bram_unit"] for t in trials if "bram_unit" in t.cost), "BRAM")


def hover(trial: TrialRecord, point: PointRecord | None = None) -> str:
    """Return a whole design as the lines of a hover box."""
    cost, faulty = trial.cost, trial.faulty
    bounds = interval((faulty.get("ci_low"), faulty.get("ci_high")))
    spread = f"{number(faulty.get('min'), 1)} .. {number(faulty.get('max'), 1)}"
    where, supply = "under faults", []
    if faulty.get("site") == "weights":
        where, spread = f"on {faulty['chips']} chips", f"worst {percent(faulty['min'])}"
        at = f"{share(faulty['rate'], 2)} faulty cells: V/Vmin {number(faulty['voltage'], 3)}"
        supply = [f"{at}, {share(faulty['energy_saved'])} of the energy per SRAM access saved"]
    logic = f"{number(cost.get('lut'))} LUT, {number(cost.get('ff'))} FF"
    blocks = f"{number(cost.get('dsp'))} DSP, {half(cost.get('bram36'))} {bram_unit([trial])}"
    time = f"{number(trial.cycles)} cycles × {number(cost.get('delay_ns'), 2)} ns (logic)"
    lines = [
        f"<b>{escape(trial.design.label())}</b> · trial {trial.number}",
        escape(in_words(trial.design)),
        f"accuracy {percent(trial.objectives['accuracy'])} {interval(trial.accuracy_interval)}",
        f"{where} {percent(trial.objectives['faulty_accuracy'])} {bounds}, {spread}",
        *supply,
        f"{number(trial.objectives['lut_equivalent'])} LUT-eq: {logic}, {blocks}",
        f"{number(trial.objectives['time_us'], 1)} µs = {time}",
    ]
    if point is not None:
        lines.append(
            f"test accuracy {percent(point.test_accuracy)} {interval(point.test_interval)}"
        )
    return "<br>".join(lines)


def pair_front(trials: Sequence[TrialRecord], x: str, y: str) -> list[tuple[float, float]]:
    """Return the non-dominated (x, y) of two objectives alone, by rising x.

    O(n log n): sweep from the best x, keep what improves y.
    """
    x_sign, y_sign = (-1 if OBJECTIVES[name][0] == "maximize" else 1 for name in (x, y))
    values = sorted((x_sign * t.objectives[x], y_sign * t.objectives[y]) for t in trials)
    kept: list[tuple[float, float]] = []
    for a, b in values:
        if not kept or b < kept[-1][1]:
            kept.append((a, b))
    return sorted((x_sign * a, y_sign * b) for a, b in kept)


def pair_figure(
    record: RunRecord, first: str, second: str, *, chosen: TrialRecord | None
) -> Figure:
    """Return two objectives of every trial: the front in colour, dominated trials grey."""
    x, y = pair_axes(first, second)
    points = {point.number: point for point in record.points}
    dominated = [trial for trial in record.trials if not trial.pareto]
    data: list[dict[str, Any]] = []
    if dominated:
        symbols = [f"{PROTECT_SYMBOLS.get(t.design.protect, 'circle')}-open" for t in dominated]
        data.append(
            {
                **_marks(dominated, x, y, record, points),
                "name": "dominated",
                "legendrank": 1001,
                "marker": {"color": GREY, "symbol": symbols, "size": 7, "opacity": 0.65},
            }
        )
    steps = pair_front(record.trials, x, y)
    if len(steps) > 1:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "best of these two",
                "legendrank": 1002,
                "x": [a for a, _b in steps],
                "y": [b for _a, b in steps],
                "line": {
                    "shape": "vh" if OBJECTIVES[x][0] == "maximize" else "hv",
                    "color": GREY,
                    "width": 1,
                    "dash": "dot",
                },
                "hoverinfo": "skip",
            }
        )
    optimal = front(record)
    for protect in sorted({t.design.protect for t in optimal}, key=list(PROTECT_COLOURS).index):
        group = [trial for trial in optimal if trial.design.protect == protect]
        colour = PROTECT_COLOURS[protect]
        trace = {
            **_marks(group, x, y, record, points),
            "name": f"front, {protect if protect != 'none' else 'unprotected'}",
            "marker": {"color": colour, "symbol": PROTECT_SYMBOLS[protect], "size": 10},
        }
        for axis, objective in (("x", x), ("y", y)):
            bars = error_bars(group, objective)
            if bars:
                trace[f"error_{axis}"] = {**bars, "color": colour, "thickness": 1, "width": 3}
        data.append(trace)
    if chosen is not None:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "chosen",
                "x": [chosen.objectives[x]],
                "y": [chosen.objectives[y]],
                "marker": {
                    "symbol": "circle-open",
                    "size": 20,
                    "color": VERMILION,
                    "line": {"width": 2},
                },
                "hoverinfo": "skip",
            }
        )
    layout = {
        "xaxis": objective_axis(record, x),
        "yaxis": objective_axis(record, y),
        "height": 460,
    }
    return {"data": data, "layout": layout}


def front_3d(record: RunRecord, *, chosen: TrialRecord | None) -> Figure:
    """Return area, time and accuracy under faults in space, fault-free accuracy as colour."""
    points = {point.number: point for point in record.points}
    axes = ("lut_equivalent", "time_us", "faulty_accuracy")
    data: list[dict[str, Any]] = []
    dominated = [trial for trial in record.trials if not trial.pareto]
    if dominated:
        data.append(
            {
                **_space(dominated, axes, points),
                "name": "dominated",
                "marker": {"size": 3, "color": GREY, "opacity": 0.5},
            }
        )
    optimal = front(record)
    if optimal:
        data.append(
            {
                **_space(optimal, axes, points),
                "name": "front",
                "marker": {
                    "size": 7,
                    "color": [t.objectives["accuracy"] for t in optimal],
                    "colorscale": "Cividis",
                    "colorbar": {
                        "title": {"text": axis_title(record, "accuracy"), "side": "top"},
                        "orientation": "h",
                        "thickness": 10,
                        "len": 0.7,
                        "y": -0.02,
                        "yanchor": "top",
                    },
                    "line": {"width": 1, "color": GREY},
                },
            }
        )
    if chosen is not None:
        data.append(
            {
                **_space([chosen], axes, points),
                "name": "chosen",
                "marker": {"size": 13, "symbol": "circle-open", "color": VERMILION},
                "hoverinfo": "skip",
            }
        )
    scene: dict[str, Any] = {
        f"{letter}axis": {**objective_axis(record, name), "title": {"text": _SHORT[name]}}
        for letter, name in zip("xyz", axes, strict=True)
    }
    scene["camera"] = {"eye": {"x": 1.4, "y": 1.4, "z": 0.7}, "center": {"z": -0.15}}
    scene["aspectmode"] = "cube"
    return {"data": data, "layout": {"scene": scene, "height": 540, "margin": {"l": 0, "r": 0}}}


def hypervolume(record: RunRecord) -> Figure:
    """Return the hypervolume after each finished trial."""
    values = list(record.hypervolume)
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(values) < 60 else "lines",
            "x": list(range(1, len(values) + 1)),
            "y": values,
            "line": {"shape": "hv", "color": BLUE, "width": 2},
            "marker": {"size": 5, "color": BLUE},
            "hovertemplate": "after %{x} trials: %{y:.4f}<extra></extra>",
        }
    ]
    layout = {
        "height": 300,
        "showlegend": False,
        "xaxis": {"title": {"text": "Finished trials"}, "tickformat": "d", **_whole(len(values))},
        "yaxis": {"title": {"text": "Hypervolume (share of the box)"}, "rangemode": "tozero"},
    }
    return {"data": data, "layout": layout}


def _whole(count: int) -> dict[str, Any]:
    # Left alone, Plotly puts ticks between whole numbers where they are few.
    return {"dtick": 1} if count <= 10 else {}


def trial_seconds(record: RunRecord) -> Figure:
    """Return the seconds of each trial, stacked by stage; reused stages cost nothing."""
    stages = list(dict.fromkeys(cost.stage for t in record.trials for cost in t.stages))
    spent = {
        stage: [
            sum(c.seconds for c in t.stages if c.stage == stage and not c.cached)
            for t in record.trials
        ]
        for stage in stages
    }
    data = [
        {
            "type": "bar",
            "name": stage,
            "x": [trial.number for trial in record.trials],
            "y": spent[stage],
            "marker": {"color": SERIES[i % len(SERIES)]},
            "hovertemplate": f"trial %{{x}}, {escape(stage)}: %{{y:.1f}} s<extra></extra>",
        }
        for i, stage in enumerate(stages)
        if any(spent[stage])
    ]
    layout = {
        "height": 300,
        "barmode": "stack",
        "legend": {"traceorder": "normal"},
        "xaxis": {"title": {"text": "Trial"}, "tickformat": "d", **_whole(len(record.trials))},
        "yaxis": {"title": {"text": "Seconds"}},
    }
    return {"data": data, "layout": layout}


def _marks(
    trials: Sequence[TrialRecord],
    x: str,
    y: str,
    record: RunRecord,
    points: dict[int, PointRecord],
) -> dict[str, Any]:
    # Designs that share a position in this view (same network, other array) are named together.
    at: dict[tuple[float, float], list[TrialRecord]] = {}
    for trial in record.trials:
        at.setdefault((trial.objectives[x], trial.objectives[y]), []).append(trial)
    texts = []
    for trial in trials:
        others = [
            escape(other.design.label())
            for other in at[(trial.objectives[x], trial.objectives[y])]
            if other.number != trial.number
        ]
        text = hover(trial, points.get(trial.number))
        if others:
            more = f" and {len(others) - 4} more" if len(others) > 4 else ""
            text += f"<br><i>here too: {', '.join(others[:4])}{more}</i>"
        texts.append(text)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [trial.objectives[x] for trial in trials],
        "y": [trial.objectives[y] for trial in trials],
        "hovertext": texts,
        "hoverinfo": "text",
    }


def _space(
    trials: Sequence[TrialRecord], axes: tuple[str, ...], points: dict[int, PointRecord]
) -> dict[str, Any]:
    return {
        "type": "scatter3d",
        "mode": "markers",
        **{
            letter: [trial.objectives[name] for trial in trials]
            for letter, name in zip("xyz", axes, strict=True)
        },
        "hovertext": [hover(trial, points.get(trial.number)) for trial in trials],
        "hoverinfo": "text",
    }


def error_bars(trials: Sequence[TrialRecord], objective: str) -> dict[str, Any] | None:
    """Return the 95 % intervals of an objective as Plotly error bars; None where it has none."""
    values = [trial.objectives[objective] for trial in trials]
    if objective == "accuracy":
        bounds = [trial.accuracy_interval for trial in trials]
    elif objective == "faulty_accuracy":
        bounds = [
            (t.faulty.get("ci_low", v), t.faulty.get("ci_high", v))
            for t, v in zip(trials, values, strict=True)
        ]
    else:
        return None
    return bars(values, [low for low, _high in bounds], [high for _low, high in bounds])


def objective_axis(record: RunRecord, objective: str) -> dict[str, Any]:
    """Return an objective's axis: label and unit, logarithmic where a cost spans widely."""
    axis: dict[str, Any] = {"title": {"text": axis_title(record, objective)}}
    if OBJECTIVES[objective][0] == "minimize":
        axis.update(scale([trial.objectives[objective] for trial in record.trials]))
    return axis


def scale(values: Sequence[float]) -> dict[str, Any]:
    """Return a log axis, ticks at 1, 2 and 5, for values that span more than a factor of 5."""
    if values and min(values) > 0 and max(values) > 5 * min(values):
        return dict(LOG_AXIS)
    return {"tickformat": ","}
