# SPDX-License-Identifier: Apache-2.0
"""Published sample sizes, and the coverage of intervals by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from faultinj.stats import bootstrap_interval, margin_of, sample_size, wilson
from trilat.errors import InputError


@pytest.mark.parametrize(
    "margin,confidence,expected",
    # VGG-11 with 8-bit activations; figures of the literature survey, with exact quantiles.
    [(0.05, 0.95, 385), (0.01, 0.95, 9529), (0.01, 0.99, 16366), (0.001, 0.99, 700480)],
)
def test_published_sample_sizes(margin, confidence, expected):
    n = sample_size(151_552 * 8, margin, confidence)
    assert abs(n - expected) <= 2 + expected // 1000
    assert margin_of(151_552 * 8, n, confidence) <= margin
    assert margin_of(151_552 * 8, n - 1, confidence) > margin


def test_sample_sizes_of_small_and_huge_populations():
    assert sample_size(1, 0.5) == 1
    assert sample_size(10, 0.0001) == 10
    assert sample_size(10**40, 0.01) == 9604
    assert margin_of(1, 1) == 0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    population=st.integers(1, 10**7),
    part=st.floats(0, 1),
    share=st.floats(0, 1),
    confidence=st.floats(0.5, 0.999),
)
def test_wilson_contains_the_point_and_has_a_width(population, part, share, confidence):
    n = max(1, round(part * population))
    count = round(share * n)
    low, high = wilson(count, n, population, confidence)
    assert 0 <= low <= count / n <= high <= 1
    assert low < high
    # A larger population or none says less.
    wide = wilson(count, n, None, confidence)
    assert wide[0] <= low and high <= wide[1]
    # Mirror image.
    other = wilson(n - count, n, population, confidence)
    assert other == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_zero_of_n_has_an_upper_end_near_the_rule_of_three():
    low, high = wilson(0, 1000)
    assert low == 0 and 0.003 < high < 0.006
    low, high = wilson(1000, 1000)
    assert high == 1 and 0.994 < low < 0.997


CAMPAIGNS = 2000


@pytest.mark.parametrize("n,population", [(60, None), (400, None), (400, 1000), (950, 1000)])
def test_wilson_covers(n, population):
    rng = np.random.default_rng(n)
    for p in (0.02, 0.05, 0.2, 0.5, 0.83, 0.98):
        draws = 4000
        if population is None:
            counts, truth = rng.binomial(n, p, draws), p
        else:
            marked = round(p * population)
            counts, truth = rng.hypergeometric(marked, population - marked, n, draws), p
        ends = {int(c): wilson(int(c), n, population) for c in np.unique(counts)}
        covered = np.mean([ends[int(c)][0] <= truth <= ends[int(c)][1] for c in counts])
        assert covered >= 0.94, (p, covered)


def test_bootstrap_covers_with_eight_repetitions():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(CAMPAIGNS):
        low, high = bootstrap_interval(rng.normal(70, 3, 8), seed=trial, resamples=1000)
        hits += low <= 70 <= high
    assert hits / CAMPAIGNS >= 0.94


@pytest.mark.parametrize("n", [60, 300])
def test_bootstrap_of_a_finite_population_covers_and_shrinks(n):
    rng = np.random.default_rng(1)
    values = 4 * np.round(rng.gamma(0.7, 5, 400))  # skewed and tied, as changes of logits are
    hits, widths, endless = 0, [], []
    for trial in range(CAMPAIGNS):
        part = rng.choice(values, n, replace=False)
        low, high = bootstrap_interval(part, seed=trial, resamples=200, population=400)
        hits += low <= values.mean() <= high
        if trial % 50 == 0:
            wide = bootstrap_interval(part, seed=trial, resamples=200)
            widths.append(high - low)
            endless.append(wide[1] - wide[0])
    assert hits / CAMPAIGNS >= 0.94
    assert np.mean(widths) / np.mean(endless) == pytest.approx((1 - n / 400) ** 0.5, rel=0.1)
    everything = bootstrap_interval(values, seed=0, resamples=200, population=400)
    assert everything == pytest.approx((values.mean(), values.mean()))


@pytest.mark.parametrize("n,population", [(400, 1000), (900, 1000), (400, None)])
def test_bootstrap_of_rates_covers(n, population):
    rng = np.random.default_rng(n)
    for p in (0.02, 0.05, 0.2, 0.5, 0.83, 0.98):
        if population is None:
            counts = rng.binomial(n, p, CAMPAIGNS)
        else:
            marked = round(p * population)
            counts = rng.hypergeometric(marked, population - marked, n, CAMPAIGNS)
        ends = {
            int(c): bootstrap_interval(
                np.repeat([1.0, 0.0], [c, n - c]), seed=int(c), population=population, within=(0, 1)
            )
            for c in np.unique(counts)
        }
        covered = np.mean([ends[int(c)][0] <= p <= ends[int(c)][1] for c in counts])
        assert covered >= 0.94, (p, covered)


def test_bootstrap_is_seeded_contains_students_t_and_ends_within():
    values = [60.0, 61.5, 70.25, 66.0]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    low, high = bootstrap_interval(values, seed=1)
    half = scipy.stats.t.ppf(0.975, 3) * scipy.stats.sem(values)
    assert low <= np.mean(values) - half and np.mean(values) + half <= high
    assert bootstrap_interval(values, seed=1, within=(58.0, 70.0)) == (58.0, 70.0)
    # The long tail is the far end.
    low, high = bootstrap_interval([1.0] * 30 + [2.0] * 8 + [30.0, 50.0], seed=0)
    mean = (30 + 16 + 80) / 40
    assert high - mean > 1.3 * (mean - low)
    assert bootstrap_interval([3.5], seed=0) == (3.5, 3.5)
    assert bootstrap_interval([0.1] * 7, seed=0) == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: sample_size(0, 0.1), "the population of faults must be at least 1, not 0"),
        (lambda: sample_size(9, 0.0), "margin must be between 0 and 1, not 0"),
        (lambda: sample_size(9, 1.0), "margin must be between 0 and 1, not 1"),
        (lambda: sample_size(9, 0.1, 95), "confidence must be between 0 and 1, not 95"),
        (lambda: wilson(1, 5, confidence=1.5), "confidence must be between 0 and 1, not 1.5"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    "count,n,population", [(3, 2, None), (-1, 2, None), (0, 0, None), (1, 9, 8)]
)
def test_no_sample(count, n, population):
    with pytest.raises(ValueError, match="is no sample"):
        wilson(count, n, population)
