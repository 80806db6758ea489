# SPDX-License-Identifier: Apache-2.0
"""Rates estimated from stratified samples: allocation, reweighting, and the interval.

The estimate is ``sum(W_h * x_h / n_h)`` with W_h the stratum's share of the population, whatever
the allocation. Its interval inverts the score test: a rate p belongs to it where the estimate is
at most z standard errors (and the continuity correction) away, the stratified variance
``sum(W_h**2 * p_h * (1 - p_h) / n_h)`` taken at the most likely stratum rates p_h whose weighted
sum is p. With one stratum that is the Wilson interval of `faultinj.stats`. It neither collapses
where strata saw no hit nor adds up their widths, as combinations of one interval per stratum do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from faultinj.stats import normal_quantile
from trilat.errors import InputError

# How far the search for an interval's end reaches, in the multiplier's logarithm.
_SPAN = 60.0


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """A part of the population and what was seen of it.

    Attributes:
        size: N_h, faults in the part.
        n: of these drawn, without replacement; 0..size.
        count: of the drawn ones, how many had the property; 0..n.
    """

    size: int
    n: int
    count: int


def stratified_rate(strata: Sequence[Stratum]) -> float:
    """Return the reweighted rate; strata without a sample are left out of it."""
    seen = [s for s in strata if s.n]
    total = sum(s.size for s in seen)
    return sum(s.size / total * s.count / s.n for s in seen)


def stratified_interval(strata: Sequence[Stratum], confidence: float = 0.95) -> tuple[float, float]:
    """Return the stratified score interval of a rate, continuity-corrected.

    Args:
        strata: disjoint parts that make up the population. One without a sample may have any rate.
        confidence: in (0, 1).

    Raises:
        ValueError: no sample at all, or counts that are none.
        InputError: confidence outside its range.
    """
    if not any(s.n for s in strata):
        raise ValueError("a rate needs at least one sampled stratum")
    if any(not 0 <= s.count <= s.n <= s.size for s in strata):
        raise ValueError(f"these are no samples: {list(strata)}")
    z = normal_quantile(confidence)
    high = _upper_end(strata, z)
    low = 1 - _upper_end([Stratum(size=s.size, n=s.n, count=s.n - s.count) for s in strata], z)
    return max(0.0, low), min(1.0, high)


def _upper_end(strata: Sequence[Stratum], z: float) -> float:
    total = sum(s.size for s in strata)
    sampled = [s for s in strata if s.n]
    unseen = 1 - sum(s.size for s in sampled) / total
    if all(s.count == s.n for s in sampled):
        return 1.0
    weight = np.array([s.size / total for s in sampled])
    n = np.array([s.n for s in sampled], dtype=np.float64)
    rate = np.array([s.count / s.n for s in sampled])
    # Without replacement: the variance shrinks by (N_h - n_h) / (N_h - 1), as if more had been
    # drawn. At least one fault is kept unseen, so that an exhaustive stratum has a width too.
    effective = n * np.array([max(s.size - 1, 1) / max(s.size - s.n, 1) for s in sampled])
    # Half a hit more in the stratum in which it moves the estimate furthest.
    reach = float(weight @ rate) + 0.5 * float(np.max(weight / n))

    def likeliest(log_multiplier: float) -> tuple[float, float]:
        """Return the weighted sum of the rates, and by how much the test rejects it."""
        # Most likely rates under a Lagrange multiplier: m p**2 + (n - m) p - n * rate = 0.
        m = math.exp(log_multiplier) * weight
        b = effective - m
        root = np.sqrt(b * b + 4 * m * effective * rate)
        with np.errstate(divide="ignore", invalid="ignore"):  # each form where it cancels nothing
            p = np.where(b > 0, 2 * effective * rate / (b + root), (root - b) / (2 * m))
        p = np.clip(p, 0.0, 1.0)
        mean = float(weight @ p)
        return mean, mean - reach - z * math.sqrt(
            float((weight**2 * p * (1 - p) / effective).sum())
        )

    middle = math.log(float(np.max(effective / weight)))
    low, high = middle - _SPAN, middle + _SPAN
    if likeliest(high)[1] < 0:
        return 1.0
    end = brentq(lambda x: likeliest(x)[1], low, high, xtol=1e-11)
    return likeliest(end)[0] + unseen


def allocate(
    sizes: Sequence[int],
    count: int,
    *,
    equal: bool = False,
    minimum: int = 2,
    previous: Sequence[int] | None = None,
) -> list[int]:
    """Return how many faults to draw from each stratum; at least `count` in all where there are.

    Args:
        sizes: N_h of every stratum.
        count: wanted in all.
        equal: the same number from each, for equal precision in each; else in proportion to size.
        minimum: drawn from every stratum that has them.
        previous: an earlier allocation; no stratum gets less.

    Raises:
        InputError: the population is smaller than `count`.
    """
    if count > sum(sizes):
        raise InputError(f"there are only {sum(sizes)} different faults, {count} were asked for")
    floor = [
        min(size, max(minimum, before))
        for size, before in zip(sizes, previous or [0] * len(sizes), strict=True)
    ]
    # The level t at which sum(max(floor, min(size, t * share))) reaches the count.
    shares = [1.0] * len(sizes) if equal else [size / max(sizes) for size in sizes]

    def given(t: float) -> list[int]:
        return [
            max(low, min(size, int(t * share)))
            for low, size, share in zip(floor, sizes, shares, strict=True)
        ]

    low, high = 0.0, float(max(sizes)) + 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if sum(given(middle)) > count:
            high = middle
        else:
            low = middle
    result = given(low)
    # What rounding left over goes to the strata that are furthest below their share.
    while sum(result) < count:
        behind = [
            (result[i] + 1) / shares[i] if result[i] < sizes[i] else math.inf
            for i in range(len(sizes))
        ]
        result[int(np.argmin(behind))] += 1
    return result
