# SPDX-License-Identifier: Apache-2.0
"""Accuracy where every stored activation bit flips with a given probability."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faultinj.engine import prepared_design
from faultinj.golden import Design, element_index, padded
from faultinj.protection import UNPROTECTED, Protection
from faultinj.stats import bootstrap_interval
from faultinj.storage import Storage, flip, stored_activations
from quant import engine
from quant.network import IntegerNetwork
from trilat.errors import InputError
from trilat.progress import NoProgress, Progress

# Cells per code in a fault map, whatever its width: designs of all widths share their maps.
_LANES = 8
_BATCH = 128
MAX_RATE = 0.5
# Fault maps kept for the next design, and the expected flips up to which they are: 256 MiB.
_KEPT_MAPS, _KEPT_FLIPS = 2048, 1 << 15
# Calibration starts at 2**-7: networks tend to lose their first points between 1e-4 and 1e-1.
_FIRST_EXPONENT = -7.0


@dataclass(frozen=True, kw_only=True)
class RateResult:
    """Accuracy under random flips of stored activation bits; accuracies in percent.

    Attributes:
        rate: chance of each stored bit to flip, per inference.
        golden: accuracy of the same (protected) design without faults.
        mean, std, min, max: of the accuracy over repetitions, each with fault maps of its own;
            std with n - 1.
        ci_low, ci_high: 95 % bootstrap interval of the mean over repetitions.
        repetitions, images, seed: of the experiment.
        bits: stored bits of one image.
        flips_per_image: expected flips, rate * bits.
        seconds: wall-clock.
    """

    rate: float
    golden: float
    mean: float
    std: float
    min: float
    max: float
    ci_low: float
    ci_high: float
    repetitions: int
    images: int
    seed: int
    bits: int
    flips_per_image: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return asdict(self)


def accuracy_under_rate(
    network: IntegerNetwork,
    codes: Tensor,
    labels: np.ndarray | Tensor,
    *,
    rate: float,
    protection: Protection = UNPROTECTED,
    repetitions: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> RateResult:
    """Return the accuracy when each stored activation bit flips with probability `rate`.

    Every (repetition, image) has a fault map of its own, drawn once per seed: the maps of a lower
    rate are subsets of those of a higher one, and designs with the same layers meet the same maps.

    Args:
        network: the network.
        codes: image codes (N, C, H, W).
        labels: classes, (N,).
        rate: in [0, 0.5].
        protection: of the design.
        repetitions: independent fault maps per image.
        seed: of the fault maps and of the bootstrap.
        progress: told about finished images.

    Raises:
        InputError: a rate outside its range, no repetition or no image.
    """
    start = time.perf_counter()
    _check(codes, rate, repetitions)
    truth = torch.as_tensor(labels, dtype=torch.int64, device=codes.device)
    design = prepared_design(network, protection)
    golden = _accuracy(design, codes, truth)
    values = _accuracies(design, codes, truth, rate, repetitions, seed, progress or NoProgress())
    low, high = bootstrap_interval(values, seed=seed, within=(0.0, 100.0))
    storage = stored_activations(network)
    return RateResult(
        rate=rate,
        golden=golden,
        mean=float(np.mean(values)),
        std=float(np.std(values, ddof=1)) if repetitions > 1 else 0.0,
        min=min(values),
        max=max(values),
        ci_low=low,
        ci_high=high,
        repetitions=repetitions,
        images=len(codes),
        seed=seed,
        bits=storage.total_bits,
        flips_per_image=rate * storage.total_bits,
        seconds=time.perf_counter() - start,
    )


def accuracies_under_rate(
    network: IntegerNetwork,
    codes: Tensor,
    labels: np.ndarray | Tensor,
    *,
    rate: float,
    protection: Protection = UNPROTECTED,
    repetitions: int = 8,
    seed: int = 0,
) -> list[float]:
    """Return the accuracy of every repetition in percent, to compare designs map by map.

    Arguments and errors are those of `accuracy_under_rate`.
    """
    _check(codes, rate, repetitions)
    truth = torch.as_tensor(labels, dtype=torch.int64, device=codes.device)
    design = prepared_design(network, protection)
    return _accuracies(design, codes, truth, rate, repetitions, seed, NoProgress())


def calibrate_rate(
    network: IntegerNetwork,
    codes: Tensor,
    labels: np.ndarray | Tensor,
    *,
    target_drop: float = 10.0,
    seed: int = 0,
    repetitions: int = 1,
    evaluations: int = 12,
) -> float:
    """Return the rate at which the unprotected network loses about `target_drop` points.

    Bisects the logarithm of the rate on the same fault maps; stops within 1.5 points of the
    target or after `evaluations` rates, with the closest one.

    Raises:
        InputError: no tried rate loses between half and twice the target.
    """
    _check(codes, 0.0, repetitions)
    truth = torch.as_tensor(labels, dtype=torch.int64, device=codes.device)
    design = prepared_design(network, UNPROTECTED)
    golden = _accuracy(design, codes, truth)

    def accuracy_at(rate: float) -> float:
        values = _accuracies(design, codes, truth, rate, repetitions, seed, NoProgress())
        return float(np.mean(values))

    return find_rate(
        accuracy_at,
        golden=golden,
        target_drop=target_drop,
        evaluations=evaluations,
        images=len(codes),
    )


def find_rate(
    accuracy_at: Callable[[float], float],
    *,
    golden: float,
    target_drop: float,
    evaluations: int,
    images: int,
) -> float:
    """Return the rate at which about `target_drop` points are lost, by bisecting its logarithm.

    Args:
        accuracy_at: gives the accuracy in percent at a rate of at most `MAX_RATE`.
        golden: accuracy without faults.
        target_drop: points; within 1.5 of it the search stops.
        evaluations: rates tried at most; the closest one counts.
        images: that the accuracy is measured on, for the message.

    Raises:
        InputError: no tried rate loses between half and twice the target.
    """
    low, high = -math.inf, math.inf
    exponent = _FIRST_EXPONENT
    best, best_drop = exponent, math.inf
    for _ in range(evaluations):
        rate = min(2.0**exponent, MAX_RATE)
        drop = golden - accuracy_at(rate)
        if abs(drop - target_drop) < abs(best_drop - target_drop):
            best, best_drop = exponent, drop
        if abs(drop - target_drop) <= 1.5 or (rate == MAX_RATE and drop < target_drop):
            break
        if drop < target_drop:
            low = exponent
        else:
            high = exponent
        if math.isinf(high):
            exponent += 2
        elif math.isinf(low):
            exponent -= 2
        else:
            exponent = (low + high) / 2
    if not target_drop / 2 <= best_drop <= target_drop * 2:
        raise InputError(
            f"no fault rate makes this network lose about {target_drop:g} points on these "
            f"{images} images (closest: {best_drop:.1f}, from {golden:.1f} %); give the rate"
        )
    return min(2.0**best, MAX_RATE)


def fault_map(seed: int, repetition: int, image: int, cells: int, rate: float) -> np.ndarray:
    """Return the faulty cells of one image's memory, each with chance `rate`, int32, read-only.

    Each cell has one uniform u; it is faulty iff u <= rate. The u's are drawn in ascending order
    (the smallest of n, then the smallest of the rest, ...), each with its cell, so that the map of
    a higher rate goes on where that of a lower one ends, and its cost is that of the flips alone.
    """
    small = cells * rate <= _KEPT_FLIPS
    return (_kept_map if small else _draw_map)(seed, repetition, image, cells, rate)


def _draw_map(seed: int, repetition: int, image: int, cells: int, rate: float) -> np.ndarray:
    threshold = -math.log1p(-rate)
    draws = int(cells * rate + 6 * math.sqrt(cells * rate)) + 8
    while True:
        bits = np.random.Philox(key=[seed, repetition << 32 | image])
        pairs = np.random.Generator(bits).random((draws, 2))
        place = (pairs[:, 0] * cells).astype(np.int64)
        # The first draw of each cell counts: written last, it is what the cell remembers.
        number = np.arange(draws)
        first = np.empty(cells, dtype=np.int32)
        first[place[::-1]] = number[::-1]
        kept = np.flatnonzero(first[place] == number)
        # Of n exponentials the smallest comes after E / n, the next E / (n - 1) later, ...
        waits = -np.log1p(-pairs[kept, 1]) / (cells - np.arange(len(kept)))
        times = np.cumsum(waits)
        if times[-1] > threshold or len(kept) == cells:
            chosen = place[kept[times <= threshold]].astype(np.int32)
            chosen.setflags(write=False)
            return chosen
        draws *= 2


# The designs of a search meet the same maps one after the other.
_kept_map = functools.lru_cache(maxsize=_KEPT_MAPS)(_draw_map)


def _check(codes: Tensor, rate: float, repetitions: int) -> None:
    if not 0 <= rate <= MAX_RATE:
        raise InputError(f"the fault rate must be a probability in 0..{MAX_RATE:g}, not {rate:g}")
    if repetitions < 1:
        raise InputError(f"repetitions must be at least 1, not {repetitions}")
    if not len(codes):
        raise InputError("accuracy under faults needs at least one image")


def _accuracy(design: Design, codes: Tensor, truth: Tensor) -> float:
    """Return the fault-free accuracy in percent."""
    storage, correct = stored_activations(design.network), 0
    none = np.zeros((3, 0), dtype=np.int64)
    for part in torch.arange(len(codes), device=codes.device).split(_BATCH):
        scores = _faulty_logits(design, codes[part], storage, none)
        correct += int((engine.top1(scores) == truth[part]).sum())
    return 100.0 * correct / len(codes)


def _accuracies(
    design: Design,
    codes: Tensor,
    truth: Tensor,
    rate: float,
    repetitions: int,
    seed: int,
    progress: Progress,
) -> list[float]:
    """Return the accuracy of every repetition in percent."""
    storage = stored_activations(design.network)
    correct = np.zeros(repetitions, dtype=np.int64)
    with progress.task("accuracy under faults", repetitions * len(codes)) as advance:
        for runs, images in _batches(repetitions, len(codes)):
            flips = _draw(storage, seed, runs, images, rate)
            chosen = torch.from_numpy(images).to(codes.device)
            scores = _faulty_logits(design, codes[chosen], storage, flips)
            right = (engine.top1(scores) == truth[chosen]).cpu().numpy()
            np.add.at(correct, runs, right)
            advance(len(runs))
    return [100.0 * int(c) / len(codes) for c in correct]


def _batches(repetitions: int, images: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    count = repetitions * images
    for start in range(0, count, _BATCH):
        run = np.arange(start, min(start + _BATCH, count))
        yield run // images, run % images


def _draw(
    storage: Storage, seed: int, runs: np.ndarray, images: np.ndarray, rate: float
) -> np.ndarray:
    """Return (place in the batch, code of the image, bit) of every flip of a batch, (3, F)."""
    cells = storage.elements * _LANES
    maps = [
        fault_map(seed, int(run), int(image), cells, rate)
        for run, image in zip(runs, images, strict=True)
    ]
    place = np.repeat(np.arange(len(maps)), [len(m) for m in maps])
    cell = np.concatenate(maps).astype(np.int64)
    flips = np.stack([place, cell // _LANES, cell % _LANES])
    return flips[:, flips[2] < storage.bits]


def _faulty_logits(design: Design, codes: Tensor, storage: Storage, flips: np.ndarray) -> Tensor:
    """Return the logits of a batch whose stored codes have `flips`, as of `_draw`.

    The layers are the fault engine's, channels last: on the CPU's 8-bit units where it has them.
    """
    network = design.network
    tensor, element = storage.locate(flips[1])
    order = np.argsort(tensor.astype(np.uint16), kind="stable")
    ends = np.searchsorted(tensor[order], np.arange(len(storage.names) + 1))
    values = {"input": codes.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)}

    def inject(name: str) -> None:
        if name in storage.names:
            index = storage.names.index(name)
            mine = order[ends[index] : ends[index + 1]]
            channels, _, width = storage.shapes[index]
            channel, row, column = element_index(storage.shapes[index], element[mine])
            last = (row * width + column) * channels + channel
            flip(values[name], network.format_of(name), flips[0, mine], last, flips[2, mine])

    inject("input")
    for index, node in enumerate(network.nodes):
        layer = design.layers[node.name]
        patches = [padded(layer, values[name]) for name in node.inputs]
        values[node.name], _ = layer.run(patches, whole=True)
        inject(node.name)
        for name in node.inputs:
            if design.last_use[name] == index:
                values.pop(name, None)
    return values[design.last].flatten(1)
