# SPDX-License-Identifier: Apache-2.0
"""Retraining for the fault maps of known chips: one chip, or a group that shares its weights.

After TRE-Map (Hoang, Hanif and Shafique, DSD 2021). Read in the source (the abstract): the maps of
several chips are merged and the network is retrained once for all, and training collapses if many
faults are injected in its first epoch. Everything else is our reading: what is done where chips
disagree on a cell, that faults come in at random over the first part of training, that chips are
grouped by the overlap of their maps. With FAQ inside, after Hanif and Shafique (IJCNN 2023), the
forward pass computes with the codes that `quant.faq` would store, and the gradient passes straight
through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quant import engine
from quant.brevitas_model import BrevitasModel
from quant.disturbance import Words
from quant.export import unrounded_weights
from quant.faq import FaultAwareTable, fault_aware_codes
from quant.fault_map import KINDS, FaultMap
from quant.fine_tuning import Loss, Step, cross_entropy
from quant.method_names import POLICIES
from quant.network import IntegerNetwork
from quant.ops import GemmOp
from quant.weight_memory import (
    WeightFaults,
    WeightMapping,
    faults_of_weights,
    logits_of,
    weight_codes,
)
from trilat.errors import InputError, unknown_name

# Faults are introduced in so many equal parts.
_STAGES = 10


@dataclass(frozen=True, kw_only=True)
class GroupAccuracy:
    """What one set of weights reaches on the chips of a group.

    Attributes:
        chips: accuracy on each, in percent.
        mean, worst: of these.
    """

    chips: tuple[float, ...]
    mean: float
    worst: float


def merge_maps(maps: Sequence[FaultMap], policy: str = "majority") -> FaultMap:
    """Return the map in which every cell is faulty that is so on any of the chips.

    Args:
        maps: of chips with one geometry.
        policy: where chips disagree on the value that a cell is stuck at: ``majority`` takes the
            more frequent value, and of two equally frequent ones that of the cell's parity;
            ``ignore`` takes the cell for a good one.

    Raises:
        InputError: no map, an unknown policy, different geometries, or cells that flip in one of
            several maps: no one code is right both where a cell flips and where it does not.
    """
    if not maps:
        raise InputError("merging needs at least one fault map")
    if policy not in POLICIES:
        raise unknown_name("merge policy", policy, list(POLICIES))
    first = maps[0]
    if len(maps) == 1:
        return first
    if any(m.geometry != first.geometry for m in maps):
        raise InputError("fault maps of chips with different memories cannot be merged")
    kinds = np.concatenate([m.kinds for m in maps])
    if (kinds == KINDS.index("flip")).any():
        raise InputError("only maps of stuck cells can be merged; one of these has cells that flip")
    cells, place = np.unique(np.concatenate([m.cells for m in maps]), return_inverse=True)
    at_one = np.bincount(place, kinds == KINDS.index("stuck1"), len(cells))
    at_zero = np.bincount(place, kinds == KINDS.index("stuck0"), len(cells))
    thresholds = np.ones(len(cells))
    np.minimum.at(thresholds, place, np.concatenate([m.thresholds for m in maps]))
    ones = np.where(at_one == at_zero, cells % 2 == 1, at_one > at_zero)
    merged = FaultMap(
        geometry=first.geometry,
        cells=cells,
        kinds=np.where(ones, KINDS.index("stuck1"), KINDS.index("stuck0")).astype(np.uint8),
        thresholds=thresholds,
        rate=max(m.rate for m in maps),
        origin={"merged": [m.origin for m in maps], "policy": policy},
    )
    if policy == "ignore":
        return merged.subset((at_one == 0) | (at_zero == 0))
    return merged


def similarity(one: FaultMap, other: FaultMap) -> float:
    """Return the cells that are faulty alike in both maps over those faulty in any, 0..1."""
    common, mine, theirs = np.intersect1d(one.cells, other.cells, True, True)
    alike = int((one.kinds[mine] == other.kinds[theirs]).sum())
    union = len(one) + len(other) - len(common)
    return alike / union if union else 1.0


def group_chips(maps: Sequence[FaultMap], size: int) -> tuple[tuple[int, ...], ...]:
    """Return groups of at most `size` chips with similar maps, as indices.

    Greedy: a group starts with the first chip left and takes the one most similar to its members
    on average until it is full.

    Raises:
        InputError: a size below 1.
    """
    if size < 1:
        raise InputError(f"a group must have at least 1 chip, not {size}")
    likeness = np.array([[similarity(a, b) for b in maps] for a in maps])
    left = list(range(len(maps)))
    groups = []
    while left:
        group = [left.pop(0)]
        while left and len(group) < size:
            best = max(left, key=lambda chip: (likeness[chip, group].mean(), -chip))
            left.remove(best)
            group.append(best)
        groups.append(tuple(group))
    return tuple(groups)


def model_faults(model: BrevitasModel, fault_map: FaultMap, mapping: WeightMapping) -> WeightFaults:
    """Return the faulty words among a model's weights; InputError where the chip is too small."""
    weights = sum(op.weight.numel() for op in model.ops if isinstance(op, GemmOp))
    bits = model.formats.weight_bits
    return faults_of_weights(fault_map, weights=weights, bits=bits, mapping=mapping)


def chip_step(
    faults_at: Callable[[int], WeightFaults | None],
    *,
    faq: bool = True,
    loss: Loss = cross_entropy,
) -> Step:
    """Return the step of fault-aware retraining: one pass, with the weights as the chip reads them.

    Args:
        faults_at: gives the faulty words from the step of a number on, or None for those of
            the step before; asked once per step, in order, from 0 on.
        faq: compute with the codes that fault-aware quantization would store.
        loss: of the pass.
    """
    parts: dict[str, tuple[WeightFaults, Tensor]] = {}
    tables: dict[int, FaultAwareTable] = {}
    step_number = 0

    def step(model: BrevitasModel, images: Tensor, labels: Tensor) -> float:
        nonlocal step_number
        changed = faults_at(step_number)
        step_number += 1
        if changed is not None:
            parts.update(_by_layer(model, changed))

        def disturb(name: str, values: Tensor, scale: Tensor) -> Tensor:
            faults, index = parts[name]
            words = Words(values, scale, index)
            plain = words.codes()
            if faq:
                table = tables.setdefault(faults.bits, FaultAwareTable(faults.bits))
                read = table.nearest(faults, plain, words.of(model.layer(name).weight))
            else:
                read = (plain & faults.keep) ^ faults.invert
            return words.replaced(read)

        with model.disturbed(disturb, codes=True):
            value = loss(model, images, labels)
        value.backward()
        return float(value.detach())

    return step


def introduced(
    model: BrevitasModel,
    fault_map: FaultMap,
    mapping: WeightMapping,
    *,
    steps: int,
    seed: int,
) -> Callable[[int], WeightFaults | None]:
    """Return the `faults_at` of `chip_step` that lets the faults in part by part.

    Args:
        model: whose weights are on the chip.
        fault_map: of the chip, or merged.
        mapping: of weights to cells.
        steps: after which all faults are in; 0 for at once.
        seed: of their order.
    """
    order = np.random.default_rng([seed, 2]).permutation(len(fault_map))

    def faults_at(step: int) -> WeightFaults | None:
        stage = min(_STAGES, 1 + step * _STAGES // steps) if steps else _STAGES
        before = min(_STAGES, 1 + (step - 1) * _STAGES // steps) if steps else _STAGES
        if step and stage == before:
            return None
        return model_faults(
            model, fault_map.subset(order < -(-len(order) * stage // _STAGES)), mapping
        )

    return faults_at


def group_accuracy(
    model: BrevitasModel,
    network: IntegerNetwork,
    codes: Tensor,
    labels: Tensor,
    maps: Sequence[FaultMap],
    *,
    mapping: WeightMapping,
    policy: str = "majority",
    faq: bool = True,
) -> GroupAccuracy:
    """Return the accuracy of one set of weights on each chip of a group.

    Args:
        model, network: both forms of what was trained.
        codes, labels: image codes (N, C, H, W) and classes.
        maps: of the group's chips. What training computes with is written to all of them: with
            `faq` the codes that are chosen for the merged map, without it those that the merged
            map makes of the plain ones. So chips differ only where they disagree on a cell.
        mapping, policy, faq: as in training.
    """
    plain, merged = weight_codes(network), model_faults(model, merge_maps(maps, policy), mapping)
    if faq:
        written = fault_aware_codes(plain, merged, unrounded=unrounded_weights(model))
    else:
        written, stuck = plain.copy(), merged.invert & ~merged.keep
        written[merged.index] = (plain[merged.index] & merged.keep) | stuck
    found = []
    for fault_map in maps:
        read = model_faults(model, fault_map, mapping).read(written)
        right = engine.top1(logits_of(network, codes, read)) == labels
        found.append(100.0 * float(right.double().mean()))
    return GroupAccuracy(chips=tuple(found), mean=float(np.mean(found)), worst=min(found))


def _by_layer(model: BrevitasModel, faults: WeightFaults) -> dict[str, tuple[WeightFaults, Tensor]]:
    parts, start = {}, 0
    for op in model.ops:
        if isinstance(op, GemmOp):
            part = faults.part(start, start + op.weight.numel())
            parts[op.name] = (part, torch.from_numpy(part.index).long())
            start += op.weight.numel()
    return parts
