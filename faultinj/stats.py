# SPDX-License-Identifier: Apache-2.0
"""Sample sizes and intervals of fault campaigns. Rates are fractions 0..1 throughout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

from trilat.errors import InputError

_RESAMPLED = 1 << 22


def sample_size(population: int, margin: float, confidence: float = 0.95, p: float = 0.5) -> int:
    """Return how many faults to draw without replacement (Leveugle et al., DATE 2009).

    ``n = N / (1 + e^2 (N - 1) / (z^2 p (1 - p)))``, rounded up.

    Args:
        population: N, all possible faults, >= 1.
        margin: e, half the width of the interval, in (0, 1).
        confidence: in (0, 1).
        p: expected rate; 0.5 is the safe choice.

    Raises:
        InputError: an argument is out of its range.
    """
    if population < 1:
        raise InputError(f"the population of faults must be at least 1, not {population}")
    _check_open("margin", margin)
    _check_open("p", p)
    z = normal_quantile(confidence)
    ratio = margin * margin / (z * z * p * (1 - p))
    return min(population, math.ceil(1 / (1 / population + ratio * (1 - 1 / population))))


def margin_of(population: int, n: int, confidence: float = 0.95, p: float = 0.5) -> float:
    """Return the margin that a sample of `n` reaches: the inverse of `sample_size`."""
    z = normal_quantile(confidence)
    if population <= 1:
        return 0.0
    return z * math.sqrt(p * (1 - p) / n * ((population - n) / (population - 1)))


def wilson(
    count: int, n: int, population: int | None = None, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the Wilson score interval of a rate, continuity-corrected.

    The correction holds the coverage at or above `confidence` for every rate; without it the
    interval dips to 92 % at n = 100. The variance carries the finite-population factor
    (N - n) / (N - 1). The interval contains count / n and is never empty: 0 of n has an upper end.

    Args:
        count: successes, 0..n.
        n: size of the sample, >= 1, drawn without replacement where `population` is given.
        population: N >= n; None for an endless one.
        confidence: in (0, 1).
    """
    if not 0 <= count <= n or n < 1 or (population is not None and population < n):
        raise ValueError(f"{count} of {n} out of {population} is no sample")
    z = normal_quantile(confidence)
    effective = float(n)
    if population is not None and population > 1:
        # At least one fault is kept unseen, so that an exhaustive campaign has a width too.
        effective = n * ((population - 1) / max(population - n, 1))
    step = 0.5 / n
    low = _score_end(count / n - step, effective, -z) if count else 0.0
    high = _score_end(count / n + step, effective, z) if count < n else 1.0
    return max(0.0, low), min(1.0, high)


def bootstrap_interval(
    values: Sequence[float],
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 10_000,
    population: int | None = None,
) -> tuple[float, float]:
    """Return the percentile-bootstrap interval of a mean, expanded for small samples.

    Plain percentiles are too narrow for few values; their levels are widened by Student's t as
    in Hesterberg (The American Statistician 69, 2015). One value has no spread: it is returned.
    Rates of rare events belong to `wilson`: no resample of zeros has a one in it.

    Args:
        values: independent repetitions (faults, chips, fault maps), never images of one of them.
        seed: of the resampling.
        confidence: in (0, 1).
        resamples: how many.
        population: N, of which `values` were drawn without replacement; the interval shrinks by
            sqrt((N - n) / (N - 1)) to both sides of the mean. None for an endless one.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError("a bootstrap needs at least one value")
    n = len(sample)
    if n == 1:
        return float(sample[0]), float(sample[0])
    _check_open("confidence", confidence)
    t = float(stdtrit(n - 1, 0.5 + confidence / 2))
    tail = NormalDist().cdf(-t * math.sqrt(n / (n - 1)))
    rng = np.random.default_rng(seed)
    # In parts, so that a large campaign's resamples need no more than 64 MiB.
    part = max(1, _RESAMPLED // n)
    means = np.concatenate(
        [
            sample[rng.integers(0, n, (min(part, resamples - start), n))].mean(axis=1)
            for start in range(0, resamples, part)
        ]
    )
    # The mean of equal values may differ from them in the last bit.
    mean = float(sample.mean())
    if population is not None and population > 1:
        means = mean + (means - mean) * math.sqrt(max(population - n, 0) / (population - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return min(float(low), mean), max(float(high), mean)


def _score_end(p: float, n: float, z: float) -> float:
    square = z * z
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = z / (1 + square / n) * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
    return centre + half


def normal_quantile(confidence: float) -> float:
    """Return z of a two-sided interval; raises InputError for a confidence outside (0, 1)."""
    _check_open("confidence", confidence)
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _check_open(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name} must be between 0 and 1, not {value:g}")
