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
# Of less than this part of a population, whether values are put back makes no difference.
_SMALL_PART = 0.01


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
    within: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, float]:
    """Return the studentized bootstrap interval of a mean.

    Resamples are drawn as the sample was: without replacement out of a population that repeats it,
    as in Booth, Butler and Hall (JASA 89, 1994), or with replacement where the sample is a small
    part. The ends are quantiles of their deviation in standard errors, which are as skewed as the
    values; percentiles of the mean itself are too narrow where values are few or skewed. Neither
    end is closer than Student's t: few values do not show their tails. (Some tens of very skewed
    ones show so little of them that this interval is too narrow too.) One value has no spread: it
    is returned. Rates of rare events belong to `wilson`: no resample of zeros has a one in it.

    Args:
        values: independent repetitions (faults, chips, fault maps), never images of one of them.
        seed: of the resampling.
        confidence: in (0, 1).
        resamples: how many.
        population: N, of which `values` were drawn without replacement; None for an endless one.
        within: least and greatest mean that there can be; the interval ends there.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError("a bootstrap needs at least one value")
    n, mean = len(sample), float(sample.mean())
    if n == 1:
        return mean, mean
    _check_open("confidence", confidence)
    # Equal values are resampled together; deviations lose no digits where the mean is large.
    distinct, counts = np.unique(sample - mean, return_counts=True)
    part = 0.0 if population is None else min(1.0, n / population)
    # In parts, so that the resamples of a large campaign need no more than some 64 MiB.
    step, rng = max(1, _RESAMPLED // len(distinct)), np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        if population is None or part < _SMALL_PART:
            drawn, centre = rng.multinomial(n, counts / n, size), np.zeros(size)
        else:
            pool = np.tile(counts * (population // n), (size, 1))
            pool += _without_replacement(rng, np.tile(counts, (size, 1)), population % n)
            drawn, centre = _without_replacement(rng, pool, n), pool @ distinct / population
        means = drawn @ distinct / n
        variance = (drawn @ distinct**2 / n - means**2) / (n - 1) * (1 - part)
        some = variance > 1e-12 * sample.var()  # a resample of equal values has no error to go by
        found.append((means - centre)[some] / np.sqrt(variance[some]))
    quantiles = np.array([0.5 - confidence / 2, 0.5 + confidence / 2])
    student = stdtrit(n - 1, quantiles)
    deviation = np.concatenate(found)
    low, high = np.quantile(deviation, quantiles) if len(deviation) else student
    error = math.sqrt(sample.var() / (n - 1) * (1 - part))
    ends = mean - max(high, student[1]) * error, mean - min(low, student[0]) * error
    return max(ends[0], within[0]), min(ends[1], within[1])


def _without_replacement(rng: np.random.Generator, pool: np.ndarray, n: int) -> np.ndarray:
    """Return how many of each kind are among `n` drawn from each row of a pool, int64 as `pool`."""
    drawn = np.zeros_like(pool)
    left, rest = np.full(len(pool), n), pool.sum(axis=1)
    for kind in range(pool.shape[1]):
        rest = rest - pool[:, kind]
        drawn[:, kind] = rng.hypergeometric(pool[:, kind], rest, left)
        left = left - drawn[:, kind]
    return drawn


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
