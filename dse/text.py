# SPDX-License-Identifier: Apache-2.0
"""How the report writes numbers: units, intervals, and a dash for what was not measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dse.records import Design

DASH = "–"
THIN = "\u202f"  # narrow no-break space: groups thousands, ties a unit to its number

PROTECTIONS = {
    "none": "no protection",
    "clip": "clip protection",
    "zero": "zero protection",
}
METHODS = {"qat": "quantization-aware training", "ptq": "post-training quantization"}
REQUANTS = {"mult": ", a multiplier per output channel"}
DATAFLOWS = {"ws": "", "os": "output-stationary "}
SITES = {
    "activations": "Stored activations",
    "weights": "Stored weights",
    "pe_activation": "PE activation registers",
}
OUTCOMES = {
    "masked": "masked",
    "sdc_noncritical": "SDC, not critical",
    "sdc_critical": "SDC, critical",
}


def number(value: Any, decimals: int = 0) -> str:
    """Return a number with grouped thousands, e.g. ``12 345``; a dash for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return DASH
    return f"{value:,.{decimals}f}".replace(",", THIN).replace("-", "−")


def brief(value: Any) -> str:
    """Return a number at three significant digits, never as a power of ten if 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return DASH
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        return f"{value:.2g}".replace("-", "−")
    decimals = 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    return number(value, decimals)


def half(value: Any) -> str:
    """Return a count that may be in halves, such as BRAM36: ``4`` or ``4.5``."""
    return number(value, 0 if isinstance(value, int | float) and value == int(value) else 1)


def percent(value: Any, decimals: int = 1) -> str:
    """Return ``97.2 %`` for 97.2."""
    text = number(value, decimals)
    return text if text == DASH else f"{text}{THIN}%"


def share(value: Any, decimals: int = 1) -> str:
    """Return ``97.2 %`` for the fraction 0.972."""
    return percent(100 * value, decimals) if isinstance(value, int | float) else DASH


def signed(value: Any, decimals: int = 1) -> str:
    """Return a difference with its sign: ``+1.2``, ``−0.3``, ``0.0``."""
    text = number(value, decimals)
    if text == DASH:
        return DASH
    zero = not text.strip("−0.")
    return text.lstrip("−") if zero else text if text.startswith("−") else f"+{text}"


def ratio(value: Any) -> str:
    """Return a factor: ``×1.52``."""
    return DASH if not isinstance(value, int | float) else f"×{value:.2f}"


def interval(bounds: Sequence[Any] | None, decimals: int = 1) -> str:
    """Return ``[95.1, 98.5]``, or nothing without bounds."""
    if not bounds or any(not isinstance(bound, int | float) for bound in bounds):
        return ""
    low, high = bounds
    return f"[{number(low, decimals)},\u00a0{number(high, decimals)}]"


def spread(values: Sequence[float], decimals: int = 1) -> tuple[str, str]:
    """Return the mean of differences and their range, empty where it says nothing more."""
    if not values:
        return DASH, ""
    mean, low, high = (
        signed(value, decimals) for value in (sum(values) / len(values), min(values), max(values))
    )
    return mean, "" if low == high else f"{low} .. {high}"


def ratio_spread(values: Sequence[float]) -> tuple[str, str]:
    """Return the geometric mean of positive ratios and their range, empty where it is none."""
    if not values:
        return DASH, ""
    product = 1.0
    for value in values:
        product *= value ** (1 / len(values))
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return ratio(product), "" if low == high else f"{low} .. {high}"


def joined(estimate: tuple[str, str], unit: str = "") -> str:
    """Return a mean and its range in one line: ``+308 LUT (+168 .. +448)``."""
    mean, bounds = estimate
    mean = f"{mean} {unit}".rstrip()
    return f"{mean} ({bounds})" if bounds else mean


def compared(difference: float, unit: str) -> str:
    """Return a difference in words: ``0.7 points less``, ``3.1 points more``."""
    size = number(abs(difference), 1)
    return f"{size} {unit} {'less' if difference < 0 else 'more'}"


def times(value: float) -> str:
    """Return a factor in words: ``6.4 times``."""
    return f"{brief(value)} times"


def duration(seconds: Any) -> str:
    """Return ``38.0 s``, ``9 min 9 s`` or ``2 h 5 min``."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f}{THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{THIN}min {rest}{THIN}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{THIN}h {minutes}{THIN}min"


def plain(value: Any) -> str:
    """Return a setting as one would type it: lists joined by commas."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def fact(value: Any, name: str) -> str:
    """Return a setting or figure of the record with the unit that its name implies."""
    if "accuracy" in name and isinstance(value, int | float):
        return percent(value, 2)
    return duration(value) if name.endswith("seconds") else plain(value)


def method_in_words(name: str) -> str:
    """Return a training method as a phrase."""
    base = name.removesuffix("+faq")
    words = METHODS.get(base, base)
    return words if base == name else f"{words}, codes chosen for each chip's stuck cells"


def in_words(design: Design) -> str:
    """Return a design as a phrase."""
    return (
        f"{design.weight_bits}-bit weights and {design.act_bits}-bit activations "
        f"({method_in_words(design.method)}{REQUANTS.get(design.requant, '')}), "
        f"{PROTECTIONS.get(design.protect, design.protect)}, "
        f"on a {design.rows}×{design.cols} {DATAFLOWS.get(design.dataflow, design.dataflow)}array"
    )
