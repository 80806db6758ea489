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

import numpy as np
import torch
from torch import Tensor

from quant.brevitas_model import BrevitasModel
from quant.disturbance import Words
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
    cell = np.cumsum(_gaps(rng, rate, draws)) - 1
    while cell[-1] < cells:
        cell = np.concatenate([cell, cell[-1] + np.cumsum(_gaps(rng, rate, draws))])
    cell = cell[: np.searchsorted(cell, cells)]
    word = cell // bits
    # The highest bit of a code stands for all above it, since a code is kept sign-extended.
    mask = np.array([*(1 << b for b in range(bits - 1)), -1 << (bits - 1)], dtype=np.int8)
    masks = mask[cell - word * bits]
    first = np.empty(len(word), dtype=bool)
    first[:1], first[1:] = True, word[1:] != word[:-1]
    starts = np.flatnonzero(first)
    invert = np.bitwise_or.reduceat(masks, starts) if len(starts) else masks
    return WeightFaults(
        weights=weights,
        bits=bits,
        index=word[starts].astype(np.int32),
        keep=np.full(len(starts), -1, dtype=np.int8),
        invert=invert,
    )


def _gaps(rng: np.random.Generator, rate: float, count: int) -> np.ndarray:
    """Return geometric numbers, int64 (count,): the distances of neighbouring errors."""
    if rate == 1:
        return np.ones(count, dtype=np.int64)
    # numpy's own geometric takes twice as long.
    waits = rng.standard_exponential(count) / -np.log1p(-rate)
    return np.maximum(np.ceil(waits), 1).astype(np.int64)


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

    def disturb(name: str, values: Tensor, scale: Tensor) -> Tensor:
        faults = random_flips(rng, weights=values.numel(), bits=bits, rate=rate)
        index = torch.from_numpy(faults.index).long()
        words = Words(values, scale, index)
        return words.replaced(words.codes() ^ faults.invert)

    def step(model: BrevitasModel, images: Tensor, labels: Tensor) -> float:
        clean = loss(model, images, labels)
        clean.backward()
        value = float(clean.detach())
        if value >= _CLEAN_SHARE * threshold:
            return value
        with model.disturbed(disturb, codes=True):
            faulty = loss(model, images, labels)
        if (value + float(faulty.detach())) / 2 > threshold:
            return value
        gradients = [p.grad for p in model.parameters()]
        model.zero_grad()
        faulty.backward()
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            if parameter.grad is not None and gradient is not None:
                parameter.grad.clamp_(-_CLAMP, _CLAMP).add_(gradient).div_(2)
        return value

    return step
