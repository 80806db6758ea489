# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_networks import plain_network
from safetensors.numpy import save_file
from small_networks import digits, spec

from faultinj.random_maps import random_map
from quant.export import unrounded_weights
from quant.faq import FaultAwareTable, fault_aware_codes, load_unrounded, save_unrounded
from quant.fault_map import MemoryGeometry
from quant.quantize import quantize
from quant.weight_memory import WeightFaults, WeightMapping, faults_of_weights, weight_codes
from trilat.errors import InputError

TABLES = {bits: FaultAwareTable(bits) for bits in range(2, 9)}


def signed(word: int, bits: int) -> int:
    return word - (1 << bits) if word >> (bits - 1) else word


def one_word(bits: int, stuck: int, value: int, flips: int) -> WeightFaults:
    keep, invert = ~stuck, (value & stuck) | (flips & ~stuck)
    mask = (1 << bits) - 1
    return WeightFaults(
        weights=1,
        bits=bits,
        index=np.array([0], dtype=np.int32),
        keep=np.array([signed(keep & mask, bits)], dtype=np.int8),
        invert=np.array([signed(invert & mask, bits)], dtype=np.int8),
    )


@st.composite
def words(draw: st.DrawFn) -> tuple[int, int, int, int, float]:
    bits = draw(st.integers(2, 8))
    masks = [draw(st.integers(0, (1 << bits) - 1)) for _ in range(3)]
    limit = (1 << (bits - 1)) - 1
    weight = draw(st.floats(-1.5 * limit - 1, 1.5 * limit + 1, width=32))
    return bits, masks[0], masks[1], masks[2], weight


@settings(max_examples=1500, deadline=None)
@given(words())
def test_the_nearest_of_all_codes_is_stored(word: tuple[int, int, int, int, float]) -> None:
    bits, stuck, value, flips, weight = word
    faults = one_word(bits, stuck, value, flips)
    limit = (1 << (bits - 1)) - 1
    plain = np.array([np.clip(np.rint(weight), -limit, limit)], dtype=np.int8)
    unrounded = np.array([weight], dtype=np.float32)
    stored = fault_aware_codes(plain, faults, unrounded=unrounded, table=TABLES[bits])
    everything = np.arange(-limit - 1, limit + 1).astype(np.int8)
    reads = [int(faults.read(np.array([code]))[0]) for code in everything]
    found, without = int(faults.read(stored)[0]), int(faults.read(plain)[0])
    target = float(np.clip(weight, -limit, limit))
    assert abs(found - target) == min(abs(read - target) for read in reads)
    assert abs(found - target) <= abs(without - target)
    if not flips & ~stuck:
        # The stored code is a fixed point of the stuck cells, and never worse than plain
        # quantization for weights beyond the range of the codes either.
        assert found == int(stored[0])
        assert abs(found - weight) <= abs(without - weight)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_on_an_empty_map_it_is_plain_quantization(bits: int, seed: int) -> None:
    limit = (1 << (bits - 1)) - 1
    unrounded = np.random.default_rng(seed).normal(0, limit, 100).astype(np.float32)
    plain = np.clip(np.rint(unrounded), -limit, limit).astype(np.int8)
    empty = faults_of_weights(
        random_map(MemoryGeometry(words=100, bits=8), rate=0.0, seed=0),
        weights=100,
        bits=bits,
        mapping=WeightMapping(),
    )
    stored = fault_aware_codes(plain, empty, unrounded=unrounded)
    assert np.array_equal(stored, plain) and np.array_equal(empty.read(stored), plain)


@pytest.mark.parametrize(
    "bits, rate, plain_error, faq_error",
    # Calculated apart from this code: mean |read - weight| over the largest code.
    [(8, 0.01, 0.0116, 0.0042), (8, 0.04, 0.0418, 0.0113), (8, 0.1, 0.0954, 0.0272),
     (4, 0.04, 0.0749, 0.0472)],
)  # fmt: skip
def test_mean_errors_on_gaussian_weights(
    bits: int, rate: float, plain_error: float, faq_error: float
) -> None:
    count = 60_000
    limit = (1 << (bits - 1)) - 1
    rng = np.random.default_rng(1)
    unrounded = np.clip(rng.normal(0, 0.2 * limit, count), -limit, limit).astype(np.float32)
    plain = np.rint(unrounded).astype(np.int8)
    fault_map = random_map(MemoryGeometry(words=count, bits=8), rate=rate, kind="stuck", seed=2)
    faults = faults_of_weights(fault_map, weights=count, bits=bits, mapping=WeightMapping())
    table = FaultAwareTable(bits)
    stored = fault_aware_codes(plain, faults, unrounded=unrounded, table=table)
    for codes, expected in ((plain, plain_error), (stored, faq_error)):
        error = np.abs(faults.read(codes) - unrounded).mean() / limit
        assert error == pytest.approx(expected, rel=0.06)
    assert 0 < table.patterns < 3**bits


def test_rows_are_built_once() -> None:
    table = FaultAwareTable(8)
    codes = np.zeros(1, dtype=np.int8)
    for stuck, value, rows in ((1, 0, 1), (1, 1, 2), (1, 0, 2), (0, 0, 3), (1, 0, 3)):
        fault_aware_codes(codes, one_word(8, stuck, value, 0), table=table)
        assert table.patterns == rows


def test_a_tie_goes_to_the_side_of_the_weight() -> None:
    # Bits 0 and 1 stuck at 0: around 2, the words 0 and 4 are equally far.
    faults, plain = one_word(8, 3, 0, 0), np.array([2], dtype=np.int8)
    for weight, expected in ((1.6, 0), (2.0, 0), (2.4, 4)):
        unrounded = np.array([weight], dtype=np.float32)
        assert fault_aware_codes(plain, faults, unrounded=unrounded)[0] == expected
    assert fault_aware_codes(plain, faults)[0] == 0


def test_unrounded_weights_must_be_those_of_the_network(tmp_path: Path) -> None:
    network = plain_network()
    codes = weight_codes(network)
    unrounded = codes + np.float32(0.25)
    path = tmp_path / "unrounded.safetensors"
    with pytest.raises(InputError, match="no such file"):
        load_unrounded(path, network)
    save_unrounded(path, network, unrounded)
    assert np.array_equal(load_unrounded(path, network), unrounded)
    with pytest.raises(InputError, match="of another network"):
        load_unrounded(path, plain_network(seed=9))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="truncated"):
        load_unrounded(path, network)
    save_file({"unrounded": unrounded}, path)
    with pytest.raises(InputError, match="holds no unrounded weights"):
        load_unrounded(path, network)
    faults = one_word(8, 1, 0, 0)
    with pytest.raises(InputError, match="not those of this network"):
        fault_aware_codes(codes[:1], faults, unrounded=unrounded[:1] + 1)
    with pytest.raises(InputError, match="there are 2 unrounded weights for 1"):
        fault_aware_codes(codes[:1], faults, unrounded=unrounded[:2])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_quantized_network_has_the_weights_that_its_codes_came_from(bits: int) -> None:
    model = quantize(spec("mobile"), digits(), weight_bits=bits, act_bits=8, method="ptq", seed=0)
    unrounded, codes = unrounded_weights(model.module), weight_codes(model.network)
    limit = (1 << (bits - 1)) - 1
    assert unrounded.dtype == np.float32
    assert np.array_equal(np.clip(np.rint(unrounded), -limit, limit), codes)
