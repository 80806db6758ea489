# SPDX-License-Identifier: Apache-2.0
"""Two designs on one fault list: McNemar's exact test and the interval of the difference.

Only faults that one design survives and the other does not tell them apart. Pairs need far fewer
faults than two independent campaigns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from faultinj.strata import Stratum, stratified_interval, stratified_rate


@dataclass(frozen=True, kw_only=True)
class PairedStratum:
    """Pairs of one stratum of the fault list.

    Attributes:
        size: faults of the stratum in the population.
        n: pairs.
        only_a, only_b: pairs with the property under design A alone, under B alone.
        both: under both.
    """

    size: int
    n: int
    only_a: int
    only_b: int
    both: int


@dataclass(frozen=True, kw_only=True)
class PairedResult:
    """What a paired comparison of the critical rates of designs A and B says.

    Attributes:
        n: pairs.
        both, only_a, only_b: pairs that are critical in both designs, or in one alone.
        rate_a, rate_b: critical rates, reweighted.
        difference: rate_b - rate_a, reweighted; below 0 B is the more reliable.
        ci_low, ci_high: of the difference, at `confidence`.
        p_value: of McNemar's exact test, two-sided; of no difference in any stratum.
        confidence: of the interval.
    """

    n: int
    both: int
    only_a: int
    only_b: int
    rate_a: float
    rate_b: float
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    confidence: float


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test; 1 where no pair differs."""
    if not only_a + only_b:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def compare_pairs(strata: Sequence[PairedStratum], confidence: float = 0.95) -> PairedResult:
    """Compare two designs that met the same faults.

    The interval of the difference is made of those of the two discordant rates (stratified score
    intervals) by Zou and Donner's method of variance estimates recovery (Statistics in Medicine
    27, 2008). The rates are negatively correlated; the correlation is taken at the upper ends,
    where it is strongest, so the interval errs to the wide side. It never has zero width.

    Args:
        strata: parts of the population; one where the list is a simple random sample.
        confidence: in (0, 1).
    """
    a = [Stratum(size=s.size, n=s.n, count=s.only_a) for s in strata]
    b = [Stratum(size=s.size, n=s.n, count=s.only_b) for s in strata]
    both = stratified_rate([Stratum(size=s.size, n=s.n, count=s.both) for s in strata])
    rate_a, rate_b = stratified_rate(a), stratified_rate(b)
    (low_a, high_a), (low_b, high_b) = (stratified_interval(s, confidence) for s in (a, b))
    correlation = -min(1.0, math.sqrt(_odds(high_a) * _odds(high_b)))
    difference = rate_b - rate_a
    down = _combined(rate_b - low_b, high_a - rate_a, correlation)
    up = _combined(high_b - rate_b, rate_a - low_a, correlation)
    only_a, only_b = sum(s.only_a for s in strata), sum(s.only_b for s in strata)
    return PairedResult(
        n=sum(s.n for s in strata),
        both=sum(s.both for s in strata),
        only_a=only_a,
        only_b=only_b,
        rate_a=both + rate_a,
        rate_b=both + rate_b,
        difference=difference,
        ci_low=max(-1.0, difference - down),
        ci_high=min(1.0, difference + up),
        p_value=mcnemar(only_a, only_b),
        confidence=confidence,
    )


def _odds(p: float) -> float:
    return p / (1 - p) if p < 1 else math.inf


def _combined(one: float, other: float, correlation: float) -> float:
    # Var(x - y) = Var x + Var y - 2 rho sd(x) sd(y), the deviations standing for the sds.
    return math.sqrt(max(0.0, one * one + other * other - 2 * correlation * one * other))
