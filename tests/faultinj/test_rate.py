# SPDX-License-Identifier: Apache-2.0
"""Fault maps are what they claim to be, and accuracy under them equals one-by-one forwards."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from integer_networks import brute_node, plain_network, random_codes, residual_network

from faultinj.protection import Protection, forward, profile_bounds, run_node
from faultinj.rate import (
    accuracies_under_rate,
    accuracy_under_rate,
    calibrate_rate,
    fault_map,
)
from faultinj.storage import stored_activations
from quant import engine
from quant.network import Gemm
from trilat.errors import InputError


def setup(make=plain_network, *, bits=8, images=6, seed=1, **kwargs):
    network = make(seed=seed, weight_bits=bits, act_bits=bits, **kwargs)
    codes = torch.from_numpy(random_codes(network, images)).to(engine.code_dtype(network.input))
    labels = engine.top1(engine.logits(network, codes)).numpy()
    return network, codes, labels


def test_maps_are_subsets_of_those_of_higher_rates():
    rates = [0.0, 1e-6, 1e-4, 1e-3, 0.01, 0.1, 0.5]
    for image in range(5):
        maps = [fault_map(7, 2, image, 5000, rate) for rate in rates]
        assert len(maps[0]) == 0
        for few, many in pairwise(maps):
            np.testing.assert_array_equal(many[: len(few)], few)
            assert len(set(many.tolist())) == len(many)
            assert many.size == 0 or (many.min() >= 0 and many.max() < 5000)


@pytest.mark.parametrize("cells,rate", [(52, 0.3), (1000, 0.01), (100_000, 2e-5)])
def test_every_cell_is_faulty_with_the_given_chance(cells, rate):
    runs = 3000
    maps = [fault_map(1, run, 3, cells, rate) for run in range(runs)]
    counts = np.array([len(m) for m in maps])
    mean, variance = cells * rate, cells * rate * (1 - rate)
    assert abs(counts.mean() - mean) < 5 * np.sqrt(variance / runs)
    assert abs(counts.var() / variance - 1) < 0.2
    place = np.concatenate(maps)
    halves = np.histogram(place, bins=4, range=(0, cells))[0] / len(place)
    assert np.abs(halves - 0.25).max() < 5 * np.sqrt(0.19 / len(place))


def test_maps_differ_between_seeds_repetitions_and_images():
    maps = {tuple(fault_map(s, r, i, 10**6, 1e-5)) for s in (0, 1) for r in (0, 1) for i in (0, 1)}
    assert len(maps) == 8


def checked(value, lo, hi, kind):
    """Codes behind a range check, bounds (lo, hi) that broadcast."""
    if kind == "zero":
        return np.where((value < lo) | (value > hi), 0, value)
    return np.clip(value, lo, hi)


def by_hand(network, codes, rate, repetition, seed, protection=None):
    """Logits of each image by loops over Python integers."""
    storage = stored_activations(network)
    rows = []
    for index, image in enumerate(codes.numpy().astype(np.int64)):
        flips = {}
        for cell in fault_map(seed, repetition, index, storage.elements * 8, rate):
            element, bit = divmod(int(cell), 8)
            if bit < storage.bits:
                tensor = int(np.searchsorted(storage.starts, element, side="right")) - 1
                place = element - int(storage.starts[tensor])
                flips.setdefault(storage.names[tensor], []).append((place, bit))

        def stored(name, value, flips=flips):
            value = value.copy()
            if name in flips:
                fmt = network.format_of(name)
                for place, bit in flips[name]:
                    word = (int(value.flat[place]) & ((1 << fmt.bits) - 1)) ^ (1 << bit)
                    low = fmt.signed and word >> (fmt.bits - 1)
                    value.flat[place] = word - (1 << fmt.bits) if low else word
            return value

        values = {"input": stored("input", image)}
        for node in network.nodes:
            inputs = [values[n] for n in node.inputs]
            guarded = protection is not None and isinstance(node, Gemm)
            if guarded:
                bounds = protection.bounds.tensors[node.inputs[0]]
                lo, hi = min(bounds.lo, 0), max(bounds.hi, 0)
                inputs = [checked(inputs[0], lo, hi, protection.kind)]
            value = brute_node(network, node, inputs)
            if guarded and node.output is not None:
                bounds = protection.bounds.tensors[node.name]
                ends = (bounds.channel_lo, bounds.channel_hi)
                value = checked(value, *(end[:, None, None] for end in ends), protection.kind)
            values[node.name] = stored(node.name, value)
        rows.append(values[network.nodes[-1].name].reshape(-1))
    return np.stack(rows)


@pytest.mark.parametrize(
    "make,bits,flips", [(plain_network, 8, 300), (residual_network, 8, 300), (plain_network, 3, 20)]
)
def test_accuracy_equals_brute_force(make, bits, flips):
    network, codes, labels = setup(make, bits=bits)
    rate = flips / stored_activations(network).total_bits
    result = accuracy_under_rate(network, codes, labels, rate=rate, repetitions=3, seed=5)
    expected = [
        100 * float(np.mean(by_hand(network, codes, rate, r, 5).argmax(axis=1) == labels))
        for r in range(3)
    ]
    assert min(expected) < 100
    assert result.golden == 100
    assert result.mean == pytest.approx(np.mean(expected))
    assert result.std == pytest.approx(np.std(expected, ddof=1))
    assert result.min == pytest.approx(min(expected))
    assert result.max == pytest.approx(max(expected))
    assert result.ci_low <= result.mean <= result.ci_high
    assert result.flips_per_image == pytest.approx(flips)


@pytest.mark.parametrize("kind", ["clip", "zero"])
@pytest.mark.parametrize("bits", [8, 5, 2])
def test_protected_accuracy_equals_brute_force(kind, bits):
    network, codes, labels = setup(bits=bits, images=4)
    bounds = profile_bounds(network, codes[:1])
    protection = Protection(kind=kind, granularity="channel", bounds=bounds)
    rate = 100 / stored_activations(network).total_bits
    found = accuracies_under_rate(
        network, codes, labels, rate=rate, protection=protection, repetitions=3, seed=5
    )
    logits = [by_hand(network, codes, rate, r, 5, protection) for r in range(3)]
    assert found == [100 * float(np.mean(one.argmax(axis=1) == labels)) for one in logits]
    free = [by_hand(network, codes, rate, r, 5) for r in range(3)]
    assert any((a != b).any() for a, b in zip(logits, free, strict=True))


@pytest.mark.parametrize("kind", ["clip", "zero"])
def test_a_protected_design_is_compared_with_its_own_golden_run(kind):
    network, codes, labels = setup(residual_network)
    bounds = profile_bounds(network, codes[:2])
    protection = Protection(kind=kind, granularity="channel", bounds=bounds)
    values, _ = forward(network, codes, protection)
    golden = engine.top1(values[network.nodes[-1].name]).numpy()
    none = accuracy_under_rate(network, codes, labels, rate=0.0, protection=protection)
    assert none.golden == none.mean == 100 * np.mean(golden == labels)
    # Bounds as wide as the words: the same as no protection at all.
    fault = {"rate": 1e-3, "repetitions": 2, "seed": 3}
    plain = accuracy_under_rate(network, codes, labels, **fault)
    free = accuracy_under_rate(network, codes, labels, protection=Protection(), **fault)
    assert plain.to_json() | {"seconds": 0} == free.to_json() | {"seconds": 0}


def test_results_are_reproducible_json():
    network, codes, labels = setup()
    first, second = (
        accuracy_under_rate(network, codes, labels, rate=1e-3, repetitions=4, seed=9).to_json()
        for _ in range(2)
    )
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    assert first | {"seconds": 0} == second | {"seconds": 0}


def test_batches_and_inputs_do_not_matter():
    network, codes, labels = setup(images=70)
    before = codes.clone()
    whole = accuracy_under_rate(network, codes, labels, rate=1e-3, repetitions=2, seed=1)
    assert torch.equal(codes, before)
    part = accuracy_under_rate(network, codes[:5], labels[:5], rate=1e-3, repetitions=2, seed=1)
    assert whole.images == 70 and part.images == 5
    node = network.nodes[0]
    assert torch.equal(
        run_node(network, node, [codes], Protection()), engine.run_node(network, node, [codes])
    )


def test_calibration_finds_the_loss_and_is_deterministic():
    network, codes, labels = setup(images=60)
    rate = calibrate_rate(network, codes, labels, target_drop=10, seed=2)
    assert rate == calibrate_rate(network, codes, labels, target_drop=10, seed=2)
    lost = 100 - accuracy_under_rate(network, codes, labels, rate=rate, repetitions=2, seed=2).mean
    assert 5 <= lost <= 20


def test_a_network_that_cannot_lose_is_named():
    network, codes, _ = setup(images=4)
    wrong = np.full(4, -1)
    with pytest.raises(InputError, match="no fault rate makes this network lose about 10 points"):
        calibrate_rate(network, codes, wrong, evaluations=20)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"rate": -0.1}, r"must be a probability in 0\.\.0\.5, not -0\.1"),
        ({"rate": 0.7}, r"must be a probability in 0\.\.0\.5, not 0\.7"),
        ({"rate": float("nan")}, "must be a probability"),
        ({"repetitions": 0}, "repetitions must be at least 1, not 0"),
    ],
)
def test_bad_arguments(change, message):
    network, codes, labels = setup(images=1)
    with pytest.raises(InputError, match=message):
        accuracy_under_rate(network, codes, labels, **({"rate": 0.1} | change))
    with pytest.raises(InputError, match="needs at least one image"):
        accuracy_under_rate(network, codes[:0], labels[:0], rate=0.1)
