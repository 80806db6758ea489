# SPDX-License-Identifier: Apache-2.0
"""The quantizers of the RandBET paper, for comparing with its tables alone: weights only.

Read in the paper and its code (Stutz et al., MLSys 2021): the schemes of `SCHEMES`, one range per
tensor, read again from the weights in every step; all trainable parameters are quantized and meet
bit errors; words of fewer bits lie in the low bits of a byte; what a flipped word dequantizes to is
clamped to the range of its tensor. Activations stay float, so this is no network that the
accelerator computes: `quant.graph.trace` takes no such module and nothing here can be exported.
Ours: networks, schedule and length of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.data import DataSet, Split, to_input
from quant.fine_tuning import learnt
from quant.models import seeded
from quant.randbet import random_flips
from quant.weight_memory import WeightFaults
from trilat.progress import NoProgress, Progress

_BATCH = 128
_CLAMP = 0.05


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One way to turn a tensor of weights into words.

    Attributes:
        asymmetric: the range is [min, max] of the tensor, else [-m, m] of the largest magnitude m.
        unsigned: words count from the lower end of the range, else they are two's complement.
        rounded: to the nearest step, else towards zero.
    """

    asymmetric: bool = False
    unsigned: bool = False
    rounded: bool = False


SCHEMES = {
    "per-layer (Normal)": Scheme(),
    "+asymmetric": Scheme(asymmetric=True),
    "+unsigned": Scheme(asymmetric=True, unsigned=True),
    "+rounding (RQuant)": Scheme(asymmetric=True, unsigned=True, rounded=True),
}


def quantized(
    weight: Tensor, scheme: Scheme, bits: int, faults: WeightFaults | None = None
) -> Tensor:
    """Return what a tensor of weights reads as, float32; without a gradient.

    Args:
        weight: any shape.
        scheme: how.
        bits: of a word, 2..8.
        faults: of the words, two's complement or not.
    """
    steps = (1 << (bits - 1)) - 1
    weight = weight.detach()
    low, high = float(weight.min()), float(weight.max())
    if not scheme.asymmetric:
        high = max(abs(low), abs(high))
        low = -high
    half = max((high - low) / 2, 1e-12)
    scaled = (weight - (low + high) / 2) / half * steps
    codes = (scaled.round() if scheme.rounded else scaled.trunc()).clamp(-steps, steps)
    if faults is not None:
        words = (codes + (steps if scheme.unsigned else 0)).to(torch.int16).numpy().ravel()
        read = faults.read(words.astype(np.uint8).view(np.int8)).view(np.uint8)
        read = read & np.uint8((1 << bits) - 1)
        value = read.astype(np.float32)
        if scheme.unsigned:
            value -= steps
        else:
            value[value > steps] -= 1 << bits
        codes = torch.from_numpy(value).view_as(weight)
    return (codes / steps * half + (low + high) / 2).clamp(low, high)


def train(
    module: nn.Module,
    data: DataSet,
    input_shape: tuple[int, int, int],
    *,
    scheme: Scheme,
    bits: int,
    epochs: int,
    seed: int,
    wmax: float | None = None,
    bit_errors: float = 0.0,
    progress: Progress | None = None,
) -> None:
    """Train a module from its initial weights in place, quantized in every step.

    SGD at 0.05, a tenth of it after 2/5, 3/5 and 4/5 of the steps, Nesterov momentum 0.9, weight
    decay 5e-4, batches of 128, as in the paper.

    Args:
        module: of float layers without running statistics.
        data, input_shape: what is learnt, and (C, H, W) of the module.
        scheme, bits: of the quantizer.
        epochs, seed: of training; the seed is that of order and bit errors.
        wmax: all parameters are kept within it; None for no clipping.
        bit_errors: probability that a bit flips in the second pass of each step; 0 for none.
        progress: where it reports, by images.
    """
    rng, flips = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.SGD(
        parameters.values(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    batches = -(-len(data.train) // _BATCH)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [epochs * batches * k // 5 for k in (2, 3, 4)]
    )
    threshold = learnt(data.num_classes)

    def passed(x: Tensor, labels: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        through = {n: p + (values[n] - p).detach() for n, p in parameters.items()}
        return F.cross_entropy(torch.func.functional_call(module, through, (x,)), labels)

    module.train()
    total = epochs * len(data.train)
    with seeded(seed), (progress or NoProgress()).task(f"{bits} bits", total) as advance:
        for _ in range(epochs):
            for part in np.array_split(rng.permutation(len(data.train)), batches):
                x = to_input(data.train.images[part], input_shape, data.mean, data.std)
                labels = torch.from_numpy(data.train.labels[part])
                optimizer.zero_grad()
                clean = passed(x, labels, read_weights(module, scheme, bits))
                clean.backward()
                if bit_errors and float(clean.detach()) < threshold:
                    kept = {n: p.grad for n, p in parameters.items()}
                    optimizer.zero_grad()
                    faulty = read_weights(module, scheme, bits, flips, bit_errors)
                    passed(x, labels, faulty).backward()
                    for name, parameter in parameters.items():
                        gradient = kept[name]
                        if parameter.grad is not None and gradient is not None:
                            parameter.grad.clamp_(-_CLAMP, _CLAMP).add_(gradient).div_(2)
                optimizer.step()
                schedule.step()
                if wmax is not None:
                    with torch.no_grad():
                        for parameter in parameters.values():
                            parameter.clamp_(-wmax, wmax)
                advance(len(part))
    module.eval()


def read_weights(
    module: nn.Module,
    scheme: Scheme,
    bits: int,
    flips: np.random.Generator | None = None,
    rate: float = 0.0,
) -> dict[str, Tensor]:
    """Return what all parameters of a module read as, by name.

    Args:
        module, scheme, bits: what is quantized and how.
        flips: source of bit errors, fresh ones with probability `rate`; None for none.
        rate: of bit errors.
    """
    values = {}
    for name, parameter in module.named_parameters():
        faults = None
        if flips is not None:
            faults = random_flips(flips, weights=parameter.numel(), bits=bits, rate=rate)
        values[name] = quantized(parameter, scheme, bits, faults)
    return values


def right_answers(
    module: nn.Module,
    data: DataSet,
    split: Split,
    input_shape: tuple[int, int, int],
    weights: Mapping[str, Tensor],
) -> np.ndarray:
    """Return which images of a split get their class with the weights given, bool (N,)."""
    found = []
    with torch.inference_mode():
        for k in range(0, len(split), 256):
            x = to_input(split.images[k : k + 256], input_shape, data.mean, data.std)
            scores = torch.func.functional_call(module, dict(weights), (x,))
            found.append(scores.argmax(1).numpy() == split.labels[k : k + 256])
    return np.concatenate(found)


class NormCnn(nn.Module):
    """A small convolutional network with group norms, whose scale is 1 + s' with s' trained."""

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for out in (width, 2 * width, 4 * width):
            layers += [
                nn.Conv2d(channels, out, 3, padding=1),
                _Norm(out),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels = out
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(channels, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) of images (N, C, H, W)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class _Norm(nn.Module):
    """Group norm, reparameterized so that clipping draws its scale to 1 and not to 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalized over groups of eight channels."""
        groups = max(1, x.shape[1] // 8)
        return F.group_norm(x, groups, 1 + self.scale, self.shift)
