# SPDX-License-Identifier: Apache-2.0
"""Accuracy of one network over many chips whose weight memories have faults.

Two definitions of a right answer are kept apart: right under faults (`plain`), and right both with
and without them (`robust`), as in the RandBET paper's code, whose RErr is 100 % less the latter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faultinj.protection import UNPROTECTED, Protection, run_node
from faultinj.random_maps import RandomChips
from faultinj.rate import find_rate
from faultinj.sram import voltage_at
from faultinj.stats import bootstrap_interval
from quant import engine
from quant.faq import FaultAwareTable, fault_aware_codes
from quant.fault_map import FaultMap
from quant.map_groups import merge_maps
from quant.network import IntegerNetwork, Node
from quant.weight_memory import (
    WeightFaults,
    WeightMapping,
    faults_of_weights,
    logits_of,
    weight_codes,
)
from trilat.errors import InputError
from trilat.progress import NoProgress, Progress


@dataclass(frozen=True, kw_only=True)
class Spread:
    """An accuracy over chips, in percent.

    Attributes:
        mean, std, min, max: over chips; std with n - 1.
        ci_low, ci_high: 95 % bootstrap interval of the mean over chips, never over images.
    """

    mean: float
    std: float
    min: float
    max: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True, kw_only=True)
class ChipResult:
    """What one network reaches on a group of chips at one fault rate.

    Attributes:
        rate: of faulty cells; the chips at a lower rate have a subset of these faults.
        chips, images: how many.
        seed: of the bootstrap; that of the chips is in their origin.
        faq: whether the codes were chosen for each chip.
        clean: accuracy without faults, of the same (protected) design, in percent.
        plain: accuracy under faults.
        robust: images that are right both without and with faults.
        flipped_bits: share of the weights' bits that read other than plain quantization's code.
        voltage: lowest V / Vmin at which SRAM errs at no higher rate (`faultinj.sram`).
        energy_saved: share of the energy per SRAM access that this saves, 0..1.
    """

    rate: float
    chips: int
    images: int
    seed: int
    faq: bool
    clean: float
    plain: Spread
    robust: Spread
    flipped_bits: float
    voltage: float
    energy_saved: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return asdict(self)


def accuracy_over_chips(
    network: IntegerNetwork,
    codes: Tensor,
    labels: np.ndarray | Tensor,
    chips: Sequence[FaultMap],
    *,
    rates: Sequence[float],
    mapping: WeightMapping | None = None,
    protection: Protection = UNPROTECTED,
    faq: bool = False,
    unrounded: np.ndarray | None = None,
    merge: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[ChipResult, ...]:
    """Return the accuracy over chips at each fault rate.

    One chip at a time is in memory; of a chip, its faulty words and one set of weights.

    Args:
        network: what is stored, the same on every chip unless `faq` says otherwise.
        codes: image codes (N, C, H, W).
        labels: classes, (N,).
        chips: complete up to the highest rate; each is asked for once, and may be drawn then.
        rates: of faulty cells.
        mapping: of weights to cells; by default one after the other from the first word on.
        protection: of the design: wrong sums are range-checked like any other.
        faq: choose the codes for each chip at each rate (`quant.faq`).
        unrounded: the weights before rounding, for `faq`.
        merge: with `faq`, choose one set of codes for all chips, for their merged map at each rate;
            a policy of `quant.map_groups.merge_maps`. All chips are then in memory.
        seed: of the bootstrap.
        progress: told about finished pairs of chip and rate.

    Raises:
        InputError: no chip, image or rate, or a chip that cannot hold the weights or is not
            complete up to a rate.
    """
    if not len(codes) or not len(rates) or not len(chips):
        raise InputError("accuracy over chips needs at least one image, one rate and one chip")
    layout = mapping or WeightMapping()
    truth = torch.as_tensor(labels, dtype=torch.int64, device=codes.device)
    clean_codes = weight_codes(network)
    clean = _right(network, codes, truth, clean_codes, protection)
    table = FaultAwareTable(network.weight_bits)

    def faulty(chip: FaultMap) -> WeightFaults:
        bits, weights = network.weight_bits, len(clean_codes)
        return faults_of_weights(chip, weights=weights, bits=bits, mapping=layout)

    def for_chip(faults: WeightFaults) -> np.ndarray:
        return fault_aware_codes(clean_codes, faults, unrounded=unrounded, table=table)

    shared = []
    if faq and merge is not None:
        chips = list(chips)
        shared = [for_chip(faulty(merge_maps([c.at(r) for c in chips], merge))) for r in rates]
    plain: list[list[float]] = [[] for _ in rates]
    robust: list[list[float]] = [[] for _ in rates]
    flipped = np.zeros(len(rates))
    mask = np.uint8((1 << network.weight_bits) - 1)
    what = f"{len(chips)} chips at {', '.join(f'{100 * rate:.2g}' for rate in rates)} % faults"
    with (progress or NoProgress()).task(what, len(chips) * len(rates)) as advance:
        for chip in chips:
            for k, rate in enumerate(rates):
                faults = faulty(chip.at(rate))
                written = clean_codes
                if faq:
                    written = shared[k] if shared else for_chip(faults)
                read = faults.read(written)
                changed = (read ^ clean_codes).view(np.uint8) & mask
                flipped[k] += int(np.bitwise_count(changed).sum())
                right = _right(network, codes, truth, read, protection)
                plain[k].append(100.0 * float(right.double().mean()))
                robust[k].append(100.0 * float((right & clean).double().mean()))
                advance(1)
    bits = len(clean_codes) * network.weight_bits * len(chips)
    return tuple(
        ChipResult(
            rate=rate,
            chips=len(chips),
            images=len(codes),
            seed=seed,
            faq=faq,
            clean=100.0 * float(clean.double().mean()),
            plain=spread(plain[k], seed),
            robust=spread(robust[k], seed),
            flipped_bits=float(flipped[k] / bits),
            voltage=voltage_at(rate),
            energy_saved=1 - voltage_at(rate) ** 2,
        )
        for k, rate in enumerate(rates)
    )


def calibrate_chip_rate(
    network: IntegerNetwork,
    codes: Tensor,
    labels: np.ndarray | Tensor,
    chips: RandomChips,
    *,
    target_drop: float = 10.0,
    evaluations: int = 12,
) -> float:
    """Return the rate of faulty cells at which a network loses about `target_drop` points.

    The mean over `chips`, drawn anew for every rate tried, for the network without protection or
    fault-aware quantization; otherwise as `faultinj.rate.calibrate_rate`.

    Raises:
        InputError: no image, no chip, or no tried rate loses between half and twice the target.
    """

    def accuracy_at(rate: float) -> float:
        drawn = chips.at(rate)
        return accuracy_over_chips(network, codes, labels, drawn, rates=[rate])[0].plain.mean

    return find_rate(
        accuracy_at,
        golden=engine.accuracy(network, codes, torch.as_tensor(labels)),
        target_drop=target_drop,
        evaluations=evaluations,
        images=len(codes),
    )


def spread(
    values: Sequence[float], seed: int, *, within: tuple[float, float] = (0.0, 100.0)
) -> Spread:
    """Return mean, deviation, range and bootstrap interval of one figure per chip.

    Args:
        values: accuracies in percent, or other figures.
        seed: of the bootstrap.
        within: least and greatest mean that there can be.
    """
    low, high = bootstrap_interval(values, seed=seed, within=within)
    return Spread(
        mean=float(np.mean(values)),
        std=float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        min=min(values),
        max=max(values),
        ci_low=low,
        ci_high=high,
    )


def _right(
    network: IntegerNetwork,
    codes: Tensor,
    truth: Tensor,
    weights: np.ndarray,
    protection: Protection,
) -> Tensor:
    """Return which images get their class, bool (N,)."""

    def run(network: IntegerNetwork, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        return run_node(network, node, inputs, protection)

    return engine.top1(logits_of(network, codes, weights, run_node=run)) == truth
