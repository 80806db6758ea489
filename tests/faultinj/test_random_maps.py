# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faultinj.random_maps import PROFILES, RandomChips, random_map
from faultinj.sram import RATES, VOLTAGES, energy_at, rate_at, rate_held, voltage_at
from quant.fault_map import KINDS, MemoryGeometry
from quant.weight_memory import WeightMapping, faults_of_weights
from trilat.errors import InputError

MEMORY = MemoryGeometry(words=100_000, bits=8, words_per_row=16)


@pytest.mark.parametrize("rate", [0.0, 1e-4, 0.01, 0.2, 1.0])
@pytest.mark.parametrize("kind", ["flip", "stuck0", "stuck1", "stuck"])
def test_as_many_faults_as_the_rate_says(rate: float, kind: str) -> None:
    fault_map = random_map(MEMORY, rate=rate, kind=kind, seed=3)
    spread = math.sqrt(MEMORY.cells * rate * (1 - rate))
    assert abs(len(fault_map) - MEMORY.cells * rate) <= 5 * spread
    names = {KINDS[k] for k in np.unique(fault_map.kinds)}
    assert names <= ({kind} if kind != "stuck" else {"stuck0", "stuck1"})


@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize(
    "geometry",
    [
        MEMORY,
        MemoryGeometry(words=1, bits=1),
        MemoryGeometry(words=21, bits=7, words_per_row=3),
    ],
)
def test_a_map_at_a_lower_rate_is_the_map_drawn_at_it(
    spread: float, geometry: MemoryGeometry
) -> None:
    high = random_map(geometry, rate=0.1, kind="stuck", column_spread=spread, seed=1, chip=4)
    for rate in (0.0, 0.001, 0.05, 0.1):
        low = random_map(geometry, rate=rate, kind="stuck", column_spread=spread, seed=1, chip=4)
        part = high.at(rate)
        assert np.array_equal(part.cells, low.cells) and np.array_equal(part.kinds, low.kinds)


def test_seed_and_chip_decide() -> None:
    same = [random_map(MEMORY, rate=0.01, seed=1, chip=2).cells for _ in range(2)]
    assert np.array_equal(*same)
    for other in ({"seed": 2, "chip": 2}, {"seed": 1, "chip": 3}):
        cells = random_map(MEMORY, rate=0.01, **other).cells
        # Independent maps share rate**2 of all cells.
        assert len(np.intersect1d(cells, same[0])) < 3 * MEMORY.cells * 0.01**2


def test_every_bit_and_row_is_hit_alike() -> None:
    fault_map = random_map(MEMORY, rate=0.05, seed=0)
    for count in (np.bincount(fault_map.cells % 8), np.bincount(fault_map.cells // 80_000)):
        expected = len(fault_map) / len(count)
        assert np.abs(count - expected).max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_polarity_follows_the_bias_at_every_rate(share: float) -> None:
    fault_map = random_map(MEMORY, rate=0.1, kind="stuck", stuck1_share=share, seed=5)
    for part in (fault_map, fault_map.at(0.01)):
        found = float((part.kinds == KINDS.index("stuck1")).mean())
        spread = math.sqrt(share * (1 - share) / len(part))
        assert abs(found - share) <= 5 * spread


@pytest.mark.parametrize("interleaved", [False, True])
def test_column_faults_lie_in_columns(interleaved: bool) -> None:
    geometry = MemoryGeometry(words=64_000, bits=8, words_per_row=16, interleaved=interleaved)
    fault_map = random_map(geometry, rate=0.01, column_spread=1.5, seed=2)
    assert abs(len(fault_map) / geometry.cells - 0.01) < 0.001
    _, column = geometry.row_and_column(fault_map.cells)
    rates = np.bincount(column, minlength=geometry.columns) / 4000
    assert 1.0 < rates.std() / rates.mean() < 2.2
    # Within a column cells are independent: about the binomial spread over blocks of rows.
    worst = int(rates.argmax())
    row, _ = geometry.row_and_column(fault_map.cells[column == worst])
    count = np.bincount(row // 400, minlength=10)
    assert count.std() < 3 * math.sqrt(count.mean())


def test_profiles_give_the_published_shares() -> None:
    for profile in PROFILES.values():
        fault_map = random_map(
            MEMORY,
            rate=profile.rates[0],
            kind="stuck",
            stuck1_share=profile.stuck1_share,
            column_spread=profile.column_spread,
            seed=0,
        )
        assert len(fault_map) / MEMORY.cells == pytest.approx(profile.rates[0], rel=0.06)


def test_stuck_cells_err_half_as_often_as_flipping_ones() -> None:
    codes = np.random.default_rng(0).integers(-128, 128, 100_000).astype(np.int8)
    share = {}
    for kind in ("flip", "stuck"):
        fault_map = random_map(MEMORY, rate=0.02, kind=kind, seed=7)
        faults = faults_of_weights(fault_map, weights=100_000, bits=8, mapping=WeightMapping())
        changed = np.unpackbits((faults.read(codes) ^ codes).view(np.uint8))
        share[kind] = changed.mean()
    assert share["flip"] == pytest.approx(0.02, rel=0.03)
    assert share["stuck"] == pytest.approx(0.01, rel=0.04)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rate": 1.1}, r"probability in 0\.\.1, not 1\.1"),
        ({"rate": -0.1}, "probability"),
        ({"rate": math.nan}, "probability"),
        ({"kind": "stuk"}, "unknown kind of fault 'stuk'; did you mean"),
        ({"stuck1_share": 2.0}, "stuck at 1 must be in 0..1"),
        ({"column_spread": -1.0}, "column spread must be in"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_bad_maps_are_told(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        random_map(MEMORY, **({"rate": 0.1, "seed": 0} | values))


@pytest.mark.parametrize(
    "percent, energy",
    # Calculated apart from this code from the published points.
    [(0.01, 0.831), (0.05, 0.789), (0.1, 0.772), (0.5, 0.720), (1, 0.698), (10, 0.598)],
)
def test_energy_at_published_rates(percent: float, energy: float) -> None:
    assert energy_at(percent / 100) == pytest.approx(energy, abs=6e-4)


def test_voltage_and_rate_are_inverse_between_the_points() -> None:
    for voltage, rate in zip(VOLTAGES, RATES, strict=True):
        assert rate_at(voltage) == pytest.approx(rate)
        assert voltage_at(rate) == pytest.approx(voltage)
    for voltage in np.linspace(VOLTAGES[0], VOLTAGES[-1], 50):
        assert voltage_at(rate_at(voltage)) == pytest.approx(voltage)
    middle = rate_at((VOLTAGES[2] + VOLTAGES[3]) / 2)
    assert middle == pytest.approx(math.sqrt(RATES[2] * RATES[3]))


def test_outside_the_points_nothing_is_made_up() -> None:
    assert rate_at(1.0) == 0 and rate_at(0.99) == pytest.approx(RATES[-1])
    assert voltage_at(0) == voltage_at(1e-6) == 1.0
    assert voltage_at(0.5) == 0.75
    for voltage in (0.7, 1.01, math.nan):
        with pytest.raises(InputError, match=r"V/Vmin must be in 0\.75\.\.1"):
            rate_at(voltage)


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=7), st.floats(0, 100), st.floats(0.01, 99.9)
)
def test_rate_that_is_held(accuracies: list[float], golden: float, wanted: float) -> None:
    """The accuracy is lost at all measured rates above it, and held at the next below."""
    rates = [1e-6 * 8**k for k in range(len(accuracies))]
    rate = rate_held(rates, accuracies, golden, wanted)
    above = list(itertools.takewhile(lambda accuracy: accuracy < wanted, reversed(accuracies)))
    kept = len(rates) - len(above)
    if kept == 0:
        assert rate == (0 if golden >= wanted else None)
    elif not above:
        assert rate == rates[-1]
    else:
        assert rates[kept - 1] * (1 - 1e-9) <= rate <= rates[kept] * (1 + 1e-9)
        # Linear in the supply voltage, and so in the logarithm of the rate.
        at = np.interp(math.log(rate), np.log(rates), accuracies)
        assert at == pytest.approx(wanted, abs=1e-6)


def test_random_chips_are_drawn_alike_and_grow_with_the_rate() -> None:
    chips = RandomChips(geometry=MEMORY, chips=3, rate=0.01, kind="stuck", seed=4)
    drawn = list(chips)
    assert len(chips) == len(drawn) == 3
    for number, chip in enumerate(drawn):
        alone = random_map(MEMORY, rate=0.01, kind="stuck", seed=4, chip=number)
        more = chips.at(0.03)[number]
        assert np.array_equal(chip.cells, alone.cells)
        assert np.array_equal(chip.cells, more.at(0.01).cells)
        assert np.array_equal(chip.kinds, more.at(0.01).kinds)
    assert not np.array_equal(drawn[0].cells, drawn[1].cells)
    with pytest.raises(IndexError):
        chips[3]
