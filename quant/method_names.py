# SPDX-License-Identifier: Apache-2.0
"""Names of the ways to quantize a network: `qat`, `ptq`, or ingredients of training for faults.

Ingredients combine with `+`, and a colon gives one its number: ``clip:0.1+randbet:0.01``. `faq`
stands beside any of them: it is no training, but a conversion of what was trained for each chip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from trilat.errors import InputError, unknown_name

POLICIES = ("majority", "ignore")  # of merging fault maps; quant.map_groups says what they do
# What a search may be told without a number.
METHODS = ("qat", "ptq", "clip", "randbet", "saq", "sparse", "retrain", "faq")
# Ingredient -> (field, value where none is given, largest value).
_NUMBERS: dict[str, tuple[str, float, float]] = {
    "clip": ("wmax", 0.1, math.inf),
    "randbet": ("bit_errors", 0.01, 0.5),
    "saq": ("rho", 0.1, math.inf),
    "sparse": ("sparsity", 0.01, math.inf),
}
HELP = (
    "qat (quantization-aware training), ptq (post-training calibration), or training for faults: "
    "clip:WMAX (weight clipping), randbet:P (random bit errors), saq:RHO (sharpness-aware), "
    "sparse:L1 (sparse activations), retrain (for the chips of --chip; retrain:ignore leaves out "
    "cells on which they disagree); joined by +, as in clip:0.1+randbet:0.01"
)


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a network is quantized.

    Attributes:
        name: in full, the values of all ingredients included.
        trained: whether weights are trained at all.
        wmax: bound of every (folded) weight; None for none.
        bit_errors: probability that a bit flips in training; 0 for none.
        rho: length of the perturbation of sharpness-aware training; 0 for none.
        sparsity: weight of the L1 penalty on activations behind ReLUs.
        policy: of merging the maps of the chips that are trained for; None without chips.
        faq: whether the codes are then chosen for each chip (`quant.faq`).
    """

    name: str
    trained: bool = True
    wmax: float | None = None
    bit_errors: float = 0.0
    rho: float = 0.0
    sparsity: float = 0.0
    policy: str | None = None
    faq: bool = False

    @property
    def training(self) -> str:
        """The name without `faq`: methods with one training share their networks."""
        return self.name.removesuffix("+faq")

    @property
    def converts(self) -> bool:
        """Whether a chip stores other codes than the network has: for it alone, or for a group."""
        return self.faq or self.policy is not None

    @property
    def plain(self) -> bool:
        """Whether it is quantization-aware training alone, or calibration alone."""
        return self.name in ("qat", "ptq")


def parse_method(text: str) -> Method:
    """Return the method of a name.

    Raises:
        InputError: an unknown ingredient, one named twice, a bad value, or two ingredients that
            each need the second pass of a step for themselves.
    """
    words = [word.strip() for word in text.split("+")]
    if "faq" in words:
        words.remove("faq")
        trained = parse_method("+".join(words) or "qat")
        if trained.faq:
            raise InputError(f"method {text!r} names faq twice")
        return replace(trained, name=f"{trained.name}+faq", faq=True)
    if text in ("qat", "ptq"):
        return Method(name=text, trained=text == "qat")
    values: dict[str, float | str] = {}
    names = []
    for word in words:
        name, colon, value = word.partition(":")
        if name not in METHODS:
            raise unknown_name("method", name, list(METHODS))
        if name in ("qat", "ptq"):
            raise InputError(f"method {name} combines with faq alone, not as in {text!r}")
        if name == "faq":
            raise InputError(f"faq takes no number, as in {text!r}")
        if name in names:
            raise InputError(f"method {text!r} names {name} twice")
        names.append(name)
        if name == "retrain":
            policy = value if colon else POLICIES[0]
            if policy not in POLICIES:
                raise unknown_name("merge policy", policy, list(POLICIES))
            values["policy"] = policy
        else:
            field, default, largest = _NUMBERS[name]
            values[field] = _number(word, value, largest) if colon else default
    both = [name for name in ("randbet", "saq", "retrain") if name in names]
    if len(both) > 1:
        raise InputError(f"{' and '.join(both)} do not combine: each has the weights its own way")
    return Method(name="+".join(_full(name, values) for name in names), **values)  # type: ignore[arg-type]


def _number(word: str, text: str, largest: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= largest or math.isinf(value):
        limit = "" if math.isinf(largest) else f" and at most {largest:g}"
        raise InputError(f"method {word!r} needs a number above 0{limit} behind the colon")
    return value


def _full(name: str, values: dict[str, float | str]) -> str:
    if name == "retrain":
        return f"retrain:{values['policy']}"
    return f"{name}:{values[_NUMBERS[name][0]]:g}"
