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
from torch import Tensor

from quant import engine
from quant.brevitas_model import BrevitasModel
from quant.export import unrounded_weights
from quant.faq import FaultAwareTable, fault_aware_codes
from quant.fault_map import FaultMap
from quant.fine_tuning import Loss, Step, cross_entropy
from quant.map_groups import merge_maps
from quant.network import IntegerNetwork
from quant.ops import GemmOp
from quant.weight_memory import (
    WeightFaults,
    WeightMapping,
    faults_of_weights,
    logits_of,
    weight_codes,
)

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
    parts: dict[str, tuple[WeightFaults, np.ndarray, np.ndarray]] = {}
    tables: dict[int, FaultAwareTable] = {}
    step_number = 0

    def step(model: BrevitasModel, images: Tensor, labels: Tensor) -> float:
        nonlocal step_number
        changed = faults_at(step_number)
        step_number += 1
        if changed is not None:
            parts.update(_by_layer(model, changed))

        def corrupt(name: str, codes: np.ndarray) -> None:
            faults, index, scale = parts[name]
            plain = codes[index]
            if faq:
                table = tables.setdefault(faults.bits, FaultAwareTable(faults.bits))
                weight = model.layer(name).weight.detach().view(-1).numpy()
                read = table.nearest(faults, plain, weight[index] / scale)
            else:
                read = (plain & faults.keep) ^ faults.invert
            codes[index] = read

        with model.corrupted(corrupt):
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


def _by_layer(
    model: BrevitasModel, faults: WeightFaults
) -> dict[str, tuple[WeightFaults, np.ndarray, np.ndarray]]:
    """Return each layer's faults, and of its faulty words place and scale, int64 and float32."""
    parts, start = {}, 0
    for op in model.ops:
        if isinstance(op, GemmOp):
            part = faults.part(start, start + op.weight.numel())
            scale = model.weight_scale(op).view(-1).numpy()
            index = part.index.astype(np.int64)  # numpy takes half as long by it as by int32
            parts[op.name] = (part, index, scale[index // op.weight[0].numel()])
            start += op.weight.numel()
    return parts
