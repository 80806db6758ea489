# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from quant.data import load_data
from quant.randbet import random_flips
from quant.rquant import SCHEMES, NormCnn, Scheme, quantized, right_answers, train


def by_hand(weights: list[float], scheme: Scheme, bits: int, flips: dict[int, int]) -> list[float]:
    """Quantize number by number in plain Python; `flips` gives the mask of a word."""
    steps = 2 ** (bits - 1) - 1
    low, high = min(weights), max(weights)
    if not scheme.asymmetric:
        high = max(abs(low), abs(high))
        low = -high
    result = []
    for number, weight in enumerate(weights):
        scaled = (weight - (low + high) / 2) / ((high - low) / 2) * steps
        code = round(scaled) if scheme.rounded else math.trunc(scaled)
        code = max(-steps, min(steps, code))
        word = (code + steps if scheme.unsigned else code % 2**bits) ^ flips.get(number, 0)
        code = word - steps if scheme.unsigned else (word - 2**bits if word > steps else word)
        value = code / steps * (high - low) / 2 + (low + high) / 2
        result.append(max(low, min(high, value)))
    return result


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", list(SCHEMES))
def test_words_are_those_of_a_walk_over_the_numbers(name: str, bits: int) -> None:
    # Multiples of an irrational step: no value lies on the edge of a rounding.
    weights = [0.1 * math.sqrt(2) * k - 0.05 for k in range(-7, 11)]
    faults = random_flips(np.random.default_rng(1), weights=len(weights), bits=bits, rate=0.2)
    masks = {int(i): int(m) % 2**bits for i, m in zip(faults.index, faults.invert, strict=True)}
    tensor = torch.tensor(weights, dtype=torch.float32)
    for given, flips in ((None, {}), (faults, masks)):
        found = quantized(tensor, SCHEMES[name], bits, given)
        expected = by_hand([float(w) for w in tensor], SCHEMES[name], bits, flips)
        assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_network_learns_under_bit_errors_and_is_kept_within_its_bound() -> None:
    data = load_data("digits", seed=0)
    module = NormCnn(1, 10)
    scheme = SCHEMES["+rounding (RQuant)"]
    train(
        module, data, (1, 8, 8), scheme=scheme, bits=8, epochs=12, seed=0, wmax=0.25,
        bit_errors=0.01,
    )  # fmt: skip
    assert max(float(p.detach().abs().max()) for p in module.parameters()) <= 0.25
    weights = {n: quantized(p, scheme, 8) for n, p in module.named_parameters()}
    assert right_answers(module, data, data.val, (1, 8, 8), weights).mean() > 0.7
