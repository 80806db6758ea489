# SPDX-License-Identifier: Apache-2.0
"""Random bit error training, after RandBET (Stutz et al., MLSys 2021), in the accelerator's format.

Read in the paper and its code: every step makes a second pass in which each bit of the quantized
weights flips with probability p, drawn anew; the gradient passes straight through; that of the
faulty pass is clamped to 0.05 element by element; both are averaged; the second pass starts once
the loss is below a threshold. The paper's method is this together with weight clipping.

Ours: symmetric codes with a power-of-two scale per output channel in place of its asymmetric range
per layer, biases without errors, Adam, and a network that was trained before.
"""

from __future__ import annotations

import contextlib

import numpy as np
from torch import Tensor

from quant.brevitas_model import BrevitasModel
from quant.fine_tuning import Loss, Step, cross_entropy
from quant.weight_memory import WeightFaults

_CLAMP = 0.05
_CLEAN_SHARE = 1.15  # the clean loss may be that much above the threshold of both losses' mean


def random_flips(rng: np.random.Generator, *, weights: int, bits: int, rate: float) -> WeightFaults:
    """Draw flips of single bits, independent and each with probability `rate`.

    The gaps between the faulty bits are drawn, so the cost is that of the flips.

    Args:
        rng: source of randomness.
        weights: codes, in which bits flip.
        bits: of a code.
        rate: in (0, 1].
    """
    cells = weights * bits
    draws = int(cells * rate + 6 * np.sqrt(cells * rate)) + 8
    cell = _positions(rng, rate, draws, before=-1.0)
    while cell[-1] < cells:
        cell = np.concatenate([cell, _positions(rng, rate, draws, before=cell[-1])])
    cell = cell[: np.searchsorted(cell, cells)].astype(np.int64 if cells >> 31 else np.int32)
    word = cell // bits
    # The highest bit of a code stands for all above it, since a code is kept sign-extended.
    mask = np.array([*(1 << b for b in range(bits - 1)), -1 << (bits - 1)], dtype=np.int8)
    masks = mask.take(cell - word * bits)
    first = np.ones(len(word), dtype=bool)
    np.not_equal(word[1:], word[:-1], out=first[1:])
    index, invert = word[first].astype(np.int32, copy=False), masks[first]
    # Few words have more than one.
    more = np.flatnonzero(~first)
    np.bitwise_or.at(invert, more - np.arange(1, len(more) + 1), masks[more])
    return WeightFaults(
        weights=weights,
        bits=bits,
        index=index,
        keep=np.full(len(index), -1, dtype=np.int8),
        invert=invert,
    )


def _positions(rng: np.random.Generator, rate: float, count: int, *, before: float) -> np.ndarray:
    """Return the next places of errors behind `before`, whole numbers in float64 (count,)."""
    if rate == 1:
        return before + np.arange(1.0, count + 1)
    # Gaps are geometric numbers; numpy's own take twice as long.
    gaps = rng.standard_exponential(count)
    gaps /= -np.log1p(-rate)
    np.maximum(np.ceil(gaps, out=gaps), 1, out=gaps)
    gaps[0] += before
    return np.cumsum(gaps, out=gaps)


def _clamped(gradient: Tensor) -> Tensor:
    return gradient.clamp(-_CLAMP, _CLAMP)


def _halve(parameter: Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad.div_(2)


def bit_error_step(
    *, rate: float, bits: int, seed: int, threshold: float, loss: Loss = cross_entropy
) -> Step:
    """Return the step of random bit error training.

    Args:
        rate: probability that a bit of a weight flips.
        bits: of a weight.
        seed: of the flips.
        threshold: of the mean of the clean and the faulty loss; above it a step is a plain one.
        loss: of either pass.
    """
    rng = np.random.default_rng([seed, 1])

    def corrupt(name: str, codes: np.ndarray) -> None:
        faults = random_flips(rng, weights=codes.size, bits=bits, rate=rate)
        codes[faults.index.astype(np.intp)] ^= faults.invert  # twice as fast as by int32

    def step(model: BrevitasModel, images: Tensor, labels: Tensor) -> float:
        with model.constant_weights():
            clean = loss(model, images, labels)
            clean.backward()
            value = float(clean.detach())
            if value >= _CLEAN_SHARE * threshold:
                return value
            with model.corrupted(corrupt):
                faulty = loss(model, images, labels)
        if (value + float(faulty.detach())) / 2 > threshold:
            return value
        # One gradient at a time is merged: a second set of them would be new pages in every step.
        with contextlib.ExitStack() as hooks:
            for parameter in model.parameters():
                hooks.enter_context(parameter.register_hook(_clamped))
                hooks.enter_context(parameter.register_post_accumulate_grad_hook(_halve))
            faulty.backward()
        return value

    return step
