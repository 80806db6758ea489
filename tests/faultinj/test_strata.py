# SPDX-License-Identifier: Apache-2.0
"""Stratified, sequential and paired intervals: against known populations, many times over."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faultinj.paired import PairedStratum, compare_pairs, mcnemar
from faultinj.sequential import SPENDINGS, look_sizes, spend
from faultinj.stats import wilson
from faultinj.strata import Stratum, allocate, stratified_interval, stratified_rate
from trilat.errors import InputError

CAMPAIGNS = 2000
RATES = (0.02, 0.05, 0.2, 0.5, 0.83, 0.98)


def population(rate, strata, seed, total=40_000):
    """Sizes of strata and their hits: uneven in size, rates spread around `rate`, exactly known."""
    rng = np.random.default_rng([seed, strata])
    sizes = np.maximum(20, rng.dirichlet(np.full(strata, 0.7)) * total).astype(int)
    odds = math.log(rate / (1 - rate)) + rng.normal(0, 1.5, strata)
    # Shift all of them until the weighted rate is the wanted one.
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        p = 1 / (1 + np.exp(-(odds + middle)))
        low, high = (middle, high) if (sizes * p).sum() < rate * sizes.sum() else (low, middle)
    return sizes, np.round(sizes * p).astype(int)


def intervals(sizes, draws, counts, confidence=0.95):
    """The interval of each row of counts; equal rows are computed once."""
    rows, inverse = np.unique(counts, axis=0, return_inverse=True)
    ends = [
        stratified_interval(
            [
                Stratum(size=int(s), n=int(n), count=int(c))
                for s, n, c in zip(sizes, draws, row, strict=True)
            ],
            confidence,
        )
        for row in rows
    ]
    return np.array(ends)[inverse.ravel()]


@pytest.mark.parametrize("strata", [3, 24])
@pytest.mark.parametrize("equal", [False, True])
def test_stratified_intervals_cover(strata, equal):
    rng = np.random.default_rng(strata)
    for seed, rate in enumerate(RATES if strata == 3 else (0.02, 0.2, 0.98)):
        sizes, hits = population(rate, strata, seed)
        draws = allocate(sizes.tolist(), 300, equal=equal)
        counts = rng.hypergeometric(hits, sizes - hits, draws, (CAMPAIGNS, strata))
        truth = hits.sum() / sizes.sum()
        ends = intervals(sizes, draws, counts)
        covered = np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))
        assert covered >= 0.94, (rate, covered)


def test_stratified_intervals_are_not_wide_for_nothing():
    # Proportional allocation: about as wide as a simple sample's, or narrower.
    for seed, rate in enumerate(RATES):
        sizes, hits = population(rate, 12, seed)
        draws = np.array(allocate(sizes.tolist(), 1000))
        counts = np.round(draws * hits / sizes).astype(int)
        low, high = intervals(sizes, draws, counts[None])[0]
        plain = wilson(int(counts.sum()), int(draws.sum()), int(sizes.sum()))
        assert high - low < 1.15 * (plain[1] - plain[0])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(size=st.integers(1, 10**6), part=st.floats(0, 1), share=st.floats(0, 1))
def test_one_stratum_is_wilson(size, part, share):
    n = max(1, round(part * size))
    count = round(share * n)
    one = stratified_interval([Stratum(size=size, n=n, count=count)])
    assert one == pytest.approx(wilson(count, n, size), abs=1e-9)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_the_interval_contains_the_estimate_and_has_a_width(data):
    strata = []
    for _ in range(data.draw(st.integers(1, 6))):
        size = data.draw(st.integers(1, 1000))
        n = data.draw(st.integers(1, size))
        strata.append(Stratum(size=size, n=n, count=data.draw(st.integers(0, n))))
    rate = stratified_rate(strata)
    total = sum(s.size for s in strata)
    exact = sum(Fraction(s.size, total) * Fraction(s.count, s.n) for s in strata)
    assert rate == pytest.approx(float(exact))
    low, high = stratified_interval(strata)
    assert 0 <= low <= rate + 1e-12 and rate - 1e-12 <= high <= 1 and low < high


def test_no_hits_anywhere_and_strata_without_a_sample():
    zeros = [Stratum(size=10_000, n=100, count=0), Stratum(size=10_000, n=100, count=0)]
    low, high = stratified_interval(zeros)
    # Twice the sample, half the upper end; far from the two ends added up.
    assert low == 0 and 0.015 < high < 0.03
    # A large stratum that was hardly looked at keeps the upper end up.
    low, high = stratified_interval([zeros[0], Stratum(size=90_000, n=10, count=0)])
    assert low == 0 and high > 0.25
    low, high = stratified_interval([zeros[0], Stratum(size=10_000, n=0, count=0)])
    assert low == 0 and high > 0.5
    with pytest.raises(ValueError, match="at least one sampled stratum"):
        stratified_interval([Stratum(size=5, n=0, count=0)])
    with pytest.raises(ValueError, match="no samples"):
        stratified_interval([Stratum(size=5, n=6, count=0)])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=30),
    part=st.floats(0, 1),
    equal=st.booleans(),
)
def test_allocations(sizes, part, equal):
    count = max(1, round(part * sum(sizes)))
    drawn = allocate(sizes, count, equal=equal)
    least = [min(size, 2) for size in sizes]
    assert all(low <= n <= size for low, n, size in zip(least, drawn, sizes, strict=True))
    assert sum(drawn) == max(count, sum(least))
    if not equal and count > 10 * len(sizes):
        for size, n in zip(sizes, drawn, strict=True):
            assert abs(n - count * size / sum(sizes)) <= 2 + len(sizes)
    more = allocate(sizes, min(2 * count, sum(sizes)), equal=equal, previous=drawn)
    assert all(a <= b for a, b in zip(drawn, more, strict=True))


def test_equal_allocation_and_too_many():
    assert allocate([1000, 10, 5000], 100, equal=True) == [45, 10, 45]
    with pytest.raises(InputError, match="there are only 12 different faults, 13 were asked for"):
        allocate([5, 7], 13)


@pytest.mark.parametrize("spending", SPENDINGS)
def test_alpha_is_spent_and_no_more(spending):
    for looks in (1, 2, 5, 20):
        levels = spend(looks, 0.95, spending)
        assert sum(1 - level for level in levels) == pytest.approx(0.05)
        assert all(0.95 - 1e-12 <= level < 1 or math.isclose(level, 1) for level in levels)
    assert spend(1, 0.9, spending) == pytest.approx([0.9])


def test_looks():
    assert look_sizes(1000, 4) == [250, 500, 750, 1000]
    assert look_sizes(2, 5) == [1, 2]
    assert spend(5, 0.95, "obrien-fleming")[0] > 0.99998
    with pytest.raises(InputError, match=r"looks must be in 1\.\.20, not 0"):
        spend(0, 0.95)
    with pytest.raises(InputError, match="unknown spending of alpha 'pocok'; did you mean pocock"):
        spend(3, 0.95, "pocok")


@pytest.mark.parametrize("spending", SPENDINGS)
@pytest.mark.parametrize("size", [3000, 10**6])
def test_sequential_intervals_cover_at_the_stop(spending, size):
    rng = np.random.default_rng(size)
    sizes = look_sizes(1000, 5)
    levels = spend(len(sizes), 0.95, spending)
    for rate in RATES:
        hits = round(rate * size)
        covered, early, seen = 0, 0, {}
        for _ in range(CAMPAIGNS):
            count = left = 0
            drawn = 0
            for look, n in enumerate(sizes):
                left = size - drawn
                count += int(rng.hypergeometric(hits - count, left - (hits - count), n - drawn))
                drawn = n
                key = look, count
                if key not in seen:
                    seen[key] = wilson(count, n, size, levels[look])
                low, high = seen[key]
                if (high - low) / 2 <= 0.03:
                    break
            covered += low <= hits / size <= high
            early += n < sizes[-1]
        assert covered / CAMPAIGNS >= 0.94, (rate, covered)
        if rate in (0.02, 0.98):
            assert early > CAMPAIGNS / 2


def test_mcnemar_by_enumeration():
    assert mcnemar(0, 0) == 1.0
    for a, b in [(0, 5), (3, 3), (2, 9), (10, 1), (0, 1)]:
        m = a + b
        tail = sum(math.comb(m, k) for k in range(min(a, b) + 1)) / 2**m
        assert mcnemar(a, b) == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize(
    "cells", [(0.0, 0.0), (0.02, 0.0), (0.1, 0.02), (0.3, 0.3), (0.01, 0.01), (0.6, 0.2)]
)
@pytest.mark.parametrize("n", [60, 500])
def test_intervals_of_a_difference_cover(cells, n):
    rng = np.random.default_rng(n)
    only_a, only_b = cells
    draws = rng.multinomial(n, [only_a, only_b, 1 - only_a - only_b], CAMPAIGNS)
    seen, covered = {}, 0
    for a, b, _ in draws.tolist():
        if (a, b) not in seen:
            pair = PairedStratum(size=10**9, n=n, only_a=a, only_b=b, both=0)
            seen[a, b] = compare_pairs([pair])
        found = seen[a, b]
        assert found.ci_low < found.ci_high
        covered += found.ci_low <= only_b - only_a <= found.ci_high
    assert covered / CAMPAIGNS >= 0.94


def test_pairs_tell_designs_apart_that_two_campaigns_do_not():
    pair = PairedStratum(size=10**6, n=1000, only_a=20, only_b=2, both=200)
    found = compare_pairs([pair])
    assert found.rate_a == pytest.approx(0.22) and found.rate_b == pytest.approx(0.202)
    assert found.difference == pytest.approx(-0.018)
    assert found.ci_high < 0 and found.p_value < 0.001
    alone = [wilson(count, 1000) for count in (220, 202)]
    assert alone[1][1] > alone[0][0]
    # Weights: the same pairs where the first stratum is nearly all of the population.
    strata = [
        PairedStratum(size=99_000, n=100, only_a=10, only_b=0, both=0),
        PairedStratum(size=1_000, n=100, only_a=0, only_b=50, both=0),
    ]
    assert compare_pairs(strata).difference == pytest.approx(-0.1 * 0.99 + 0.5 * 0.01)
