# SPDX-License-Identifier: Apache-2.0
"""What a run says, computed from its record: chosen point, sentences, what each knob did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from dse.records import OBJECTIVES, Design, PointRecord, RunRecord, TrialRecord
from dse.text import brief, compared, joined, number, percent, ratio_spread, share, spread, times

KNOBS = {
    "weight_bits": "weight bits",
    "act_bits": "activation bits",
    "protect": "protection",
    "method": "training method",
    "rows": "rows",
    "cols": "columns",
    "dataflow": "dataflow",
    "requant": "requantization",
}


def front(record: RunRecord) -> list[TrialRecord]:
    """Return the Pareto-optimal trials, smallest area first."""
    trials = [trial for trial in record.trials if trial.pareto]
    return sorted(trials, key=lambda t: (t.objectives["lut_equivalent"], t.number))


def points_by_number(record: RunRecord) -> dict[int, PointRecord]:
    """Return the reported points by the number of their trial."""
    return {point.number: point for point in record.points}


def in_weights(record: RunRecord) -> bool:
    """Return whether the faults of the second objective are those of weight memories."""
    return record.rate.get("site") == "weights"


def repeated_over(record: RunRecord) -> str:
    """Return what accuracy under faults is the mean over, e.g. ``20 chips``."""
    name = "chips" if in_weights(record) else "repetitions"
    counts = [t.faulty[name] for t in record.trials if name in t.faulty]
    return f"{number(max(counts, default=None))} {name}"


def rate_words(record: RunRecord) -> str:
    """Return the fault rate in words; nothing where the record does not say it."""
    rate = record.rate.get("rate")
    if not isinstance(rate, int | float):
        return ""
    if in_weights(record):
        return f"{share(rate, 2)} faulty cells of the weight memory"
    return f"{rate:.2g} flips per stored bit"


def chosen(record: RunRecord) -> TrialRecord | None:
    """Return the point that the report puts first; None without a front.

    It is the one that the search verifies: nearest to the best value of every objective, each
    scaled to the front's span.
    """
    from dse.search import closest_to_utopia  # imports Optuna, which only this needs

    trials = sorted(front(record), key=lambda trial: trial.number)
    values = [tuple(trial.objectives[name] for name in OBJECTIVES) for trial in trials]
    return trials[closest_to_utopia(values, range(len(trials)))[0]] if trials else None


def searched(record: RunRecord) -> str:
    """Return one sentence on what was searched."""
    designs = [trial.design for trial in record.trials]
    distinct = len(set(designs))
    knobs = []
    for knob, label in KNOBS.items():
        values = sorted({getattr(design, knob) for design in designs}, key=_order)
        if len(values) > 1:
            knobs.append(f"{label} {{{', '.join(map(str, values))}}}")
    trials = f"{len(designs)} trial{'s' if len(designs) != 1 else ''}"
    if distinct != len(designs):
        trials += f" ({distinct} distinct designs)"
    varied = f" over {', '.join(knobs)}" if knobs else ""
    on_front = len(front(record))
    return (
        f"{trials}{varied}; {on_front} {'is' if on_front == 1 else 'are'} Pareto-optimal in "
        "accuracy, accuracy under faults, area and time per inference."
    )


def _order(value: int | str) -> tuple[int, str]:
    # Numbers by size, names by name, no protection and weight-stationary before the others.
    return (value, "") if isinstance(value, int) else (value not in ("none", "ws"), value)


def trade_offs(record: RunRecord) -> list[str]:
    """Return up to three sentences on what the front trades against what."""
    trials = front(record)
    if not trials:
        return ["No trial has finished yet."]
    if len(record.trials) == 1:
        return ["One design was tried, so there is nothing to trade yet."]
    if len(trials) == 1:
        return ["One design is at least as good as every other tried in all four objectives."]
    sentences = [_area_against_time(trials), _reliability(trials)]
    overlap = _overlap(record, trials)
    return [*sentences, overlap] if overlap else sentences


def _best(trials: list[TrialRecord], name: str) -> TrialRecord:
    # Among equals the next objective decides: of the most accurate, the one that keeps the most.
    names = [name, *(other for other in OBJECTIVES if other != name)]
    signs = {key: -1 if OBJECTIVES[key][0] == "maximize" else 1 for key in names}
    return min(trials, key=lambda t: ([signs[key] * t.objectives[key] for key in names], t.number))


def _area_against_time(trials: list[TrialRecord]) -> str:
    small, fast = _best(trials, "lut_equivalent"), _best(trials, "time_us")
    area, time = (
        [trial.objectives[name] for trial in (small, fast)]
        for name in ("lut_equivalent", "time_us")
    )
    if area[0] == area[1] or not time[1] > 0 or not area[0] > 0:
        return (
            f"{small.design.label()} is both the smallest and the fastest of the front "
            f"({number(area[0])} LUT-eq, {brief(time[1])} µs per inference)."
        )
    return (
        f"From the smallest design of the front ({small.design.label()}, {number(area[0])} "
        f"LUT-eq, {brief(time[0])} µs) to the fastest ({fast.design.label()}, "
        f"{number(area[1])} LUT-eq, {brief(time[1])} µs), {times(area[1] / area[0])} the "
        f"area buys {times(time[0] / time[1])} the speed."
    )


def _reliability(trials: list[TrialRecord]) -> str:
    accurate, reliable = _best(trials, "accuracy"), _best(trials, "faulty_accuracy")
    faulty = [t.objectives["faulty_accuracy"] for t in (accurate, reliable)]
    if faulty[0] == faulty[1]:
        return (
            f"The most accurate design, {accurate.design.label()}, also keeps the most under "
            f"faults: {percent(accurate.objectives['accuracy'])} without and {percent(faulty[0])} "
            "with them."
        )
    clean = [t.objectives["accuracy"] for t in (accurate, reliable)]
    area = [t.objectives["lut_equivalent"] for t in (accurate, reliable)]
    text = (
        f"The most reliable design, {reliable.design.label()}, keeps {percent(faulty[1])} under "
        f"faults, {compared(faulty[1] - faulty[0], 'points')} than the most accurate one, "
        f"{accurate.design.label()}, for {compared(clean[1] - clean[0], 'points')} fault-free "
        "accuracy"
    )
    return f"{text} and {times(area[1] / area[0])} its area." if area[0] > 0 else f"{text}."


def _overlap(record: RunRecord, trials: list[TrialRecord]) -> str:
    accurate = _best(trials, "accuracy")
    low = accurate.accuracy_interval[0]
    others = [trial for trial in trials if trial != accurate]
    within = sum(trial.accuracy_interval[1] >= low for trial in others)
    if not within:
        return ""
    images = validation_images(record)
    sample = f"On {number(images)} validation images the" if images else "The"
    return (
        f"{sample} 95 % intervals of {within} of the front's {len(others)} other points overlap "
        f"that of its most accurate one, {accurate.design.label()}: fault-free accuracy alone does "
        "not tell them apart."
    )


def validation_images(record: RunRecord) -> int | None:
    """Return how many images a trial's accuracy was measured on, if the record says."""
    value = record.data.get("val")
    return value if isinstance(value, int) else None


def protection_sentence(record: RunRecord) -> str:
    """Return what protection cost and bought, over designs that differ in nothing else."""
    parts = []
    for effect in knob_effects(record):
        if effect.knob == "protect" and effect.before == "none" and effect.pairs:
            pairs = f"{effect.pairs} pair{'s' if effect.pairs != 1 else ''}"
            parts.append(
                f"{effect.after} cost {joined(spread(effect.lut, 0), 'LUT')}, area "
                f"{joined(ratio_spread(effect.area))}, and changed accuracy under faults by "
                f"{joined(spread(effect.faulty), 'points')}, over {pairs}"
            )
    if not parts:
        return "No two designs tried differ in protection alone, so its price cannot be read off."
    return f"Against the same design without protection, {'; '.join(parts)}."


@dataclass(frozen=True, kw_only=True)
class KnobEffect:
    """What one step of one knob did, over the pairs of designs that differ in it alone.

    Attributes:
        knob: field of `Design`.
        before, after: its values.
        accuracy, faulty: differences in points, per pair.
        area, time, delay: ratios after / before, per pair with positive values.
        lut: differences in LUTs, per pair.
        labels: the two designs of each pair.
        pairs: how many.
    """

    knob: str
    before: Any
    after: Any
    accuracy: tuple[float, ...]
    faulty: tuple[float, ...]
    area: tuple[float, ...]
    time: tuple[float, ...]
    delay: tuple[float, ...]
    lut: tuple[float, ...]
    labels: tuple[tuple[str, str], ...]
    pairs: int


def knob_effects(record: RunRecord) -> list[KnobEffect]:
    """Return the effect of each step between neighbouring values of each knob.

    Widths go down (what the search asks: what does a narrower word cost), array sizes up,
    and protection goes from none to each kind.
    """
    return [_effect(record, knob, before, after) for knob, before, after in _steps(record)]


def _steps(record: RunRecord) -> Iterator[tuple[str, Any, Any]]:
    for knob in KNOBS:
        values = sorted({getattr(trial.design, knob) for trial in record.trials}, key=_order)
        if knob == "protect":
            yield from (("protect", "none", v) for v in values if v != "none" and "none" in values)
        elif knob in ("weight_bits", "act_bits"):
            yield from ((knob, a, b) for a, b in pairwise(reversed(values)))
        else:
            yield from ((knob, a, b) for a, b in pairwise(values))


def design_pairs(
    record: RunRecord, knob: str, before: Any, after: Any
) -> list[tuple[TrialRecord, TrialRecord]]:
    """Return the pairs of trials whose designs differ in `knob` alone, `before` to `after`."""
    by_design: dict[Design, TrialRecord] = {}
    for trial in record.trials:
        by_design.setdefault(trial.design, trial)
    pairs = []
    for design, trial in by_design.items():
        if getattr(design, knob) == before:
            other = by_design.get(Design(**{**asdict(design), knob: after}))
            if other is not None:
                pairs.append((trial, other))
    return pairs


def _effect(record: RunRecord, knob: str, before: Any, after: Any) -> KnobEffect:
    pairs = design_pairs(record, knob, before, after)

    def differences(read: str) -> tuple[float, ...]:
        return tuple(b.objectives[read] - a.objectives[read] for a, b in pairs)

    def ratios(read: str) -> tuple[float, ...]:
        values = [(_figure(a, read), _figure(b, read)) for a, b in pairs]
        return tuple(b / a for a, b in values if a and b and a > 0 and b > 0)

    luts = [(_figure(a, "lut"), _figure(b, "lut")) for a, b in pairs]
    return KnobEffect(
        knob=knob,
        before=before,
        after=after,
        accuracy=differences("accuracy"),
        faulty=differences("faulty_accuracy"),
        area=ratios("lut_equivalent"),
        time=ratios("time_us"),
        delay=ratios("delay_ns"),
        lut=tuple(b - a for a, b in luts if a is not None and b is not None),
        labels=tuple((a.design.label(), b.design.label()) for a, b in pairs),
        pairs=len(pairs),
    )


def _figure(trial: TrialRecord, name: str) -> float | None:
    value = trial.objectives.get(name, trial.cost.get(name))
    return float(value) if isinstance(value, int | float) else None


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Bits of one class of site, and how often a flip of one of them changes the top-1 answer.

    Attributes:
        site: class of site, as the campaign names it.
        bits: of that class, or None where the record does not say.
        rate, low, high: P(SDC critical) of a single flip with its 95 % interval, fractions.
        n: faults injected.
    """

    site: str
    bits: float | None
    rate: float
    low: float
    high: float
    n: int


def exposures(trial: TrialRecord, point: PointRecord) -> list[Exposure]:
    """Return bits and P(SDC critical) per class of site, from the single-flip campaigns."""
    found = []
    for campaign in point.campaigns:
        critical = campaign.get("outcomes", {}).get("sdc_critical")
        if campaign.get("multiplicity") != 1 or not critical or not campaign.get("n"):
            continue
        found.append(
            Exposure(
                site=campaign["site"],
                bits=site_bits(campaign, trial, point),
                rate=critical["rate"],
                low=critical["ci_low"],
                high=critical["ci_high"],
                n=campaign["n"],
            )
        )
    return found


def site_bits(campaign: dict[str, Any], trial: TrialRecord, point: PointRecord) -> float | None:
    """Return how many bits a campaign's class of site has."""
    if campaign.get("bits") is not None:
        return float(campaign["bits"])
    if campaign.get("site") == "pe_activation":
        return float(trial.design.rows * trial.design.cols * trial.design.act_bits)
    bits = (point.test_faulty or {}).get("bits", trial.faulty.get("bits"))
    return float(bits) if bits is not None else None


def outcome_shares(row: dict[str, Any]) -> dict[str, float]:
    """Return the outcomes of a layer or bit as fractions of its faults; 0 where there are none."""
    names = ("masked", "sdc_noncritical", "sdc_critical")
    values = [float(row.get(name) or 0) for name in names]
    total = sum(values)
    return {
        name: value / total if total else 0.0 for name, value in zip(names, values, strict=True)
    }


def fault_sentence(campaign: dict[str, Any]) -> str:
    """Return a campaign in one sentence."""
    outcomes = campaign.get("outcomes", {})
    if not campaign.get("n") or not outcomes:
        return "No fault was injected."
    critical = outcomes["sdc_critical"]
    sdc = critical["count"] + outcomes["sdc_noncritical"]["count"]
    text = (
        f"Of {number(campaign['n'])} faults {share(critical['rate'])} changed the top-1 answer "
        f"(95 % interval {share(critical['ci_low'])} to {share(critical['ci_high'])})"
    )
    if campaign.get("protection", "none") == "none":
        return f"{text}; without a protection unit none is detected."
    if not sdc:
        return f"{text}."
    seen = critical["detected"] + outcomes["sdc_noncritical"]["detected"]
    return (
        f"{text}; the protection unit noticed {share(seen / sdc)} of those that changed an output."
    )
