# SPDX-License-Identifier: Apache-2.0
"""From the name of a method to the step that its training takes with each batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from quant import engine
from quant.brevitas_model import BrevitasModel
from quant.chip_training import chip_step, group_accuracy, introduced
from quant.data import DataSet, to_input
from quant.fault_map import FaultMap
from quant.fine_tuning import (
    BATCH,
    LARGEST_SHARE,
    Step,
    cross_entropy,
    fine_tune,
    learnt,
    plain_step,
    sparse_loss,
)
from quant.map_groups import merge_maps
from quant.method_names import Method
from quant.network import IntegerNetwork
from quant.ops import GemmOp, Op
from quant.randbet import bit_error_step
from quant.sharpness import sharpness_step
from quant.weight_memory import WeightMapping
from trilat.progress import Progress

# Faults of chips are let in over the first part of training.
_INTRODUCTION_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class ChipGroup:
    """Chips that one set of weights is trained for.

    Attributes:
        maps: of the chips.
        mapping: of the weights to their cells.
    """

    maps: tuple[FaultMap, ...]
    mapping: WeightMapping


def step_for(
    method: Method, model: BrevitasModel, data: DataSet, group: ChipGroup, epochs: int, seed: int
) -> Step:
    """Return the training step of a method; InputError where a chip cannot hold the weights."""
    loss = sparse_loss(method.sparsity) if method.sparsity else cross_entropy
    if method.bit_errors:
        return bit_error_step(
            rate=method.bit_errors,
            bits=model.formats.weight_bits,
            seed=seed,
            threshold=learnt(data.num_classes),
            loss=loss,
        )
    if method.rho:
        return sharpness_step(rho=method.rho, loss=loss)
    if method.policy is not None:
        steps = epochs * -(-len(data.train) // BATCH)
        faults_at = introduced(
            model,
            merge_maps(group.maps, method.policy),
            group.mapping,
            steps=round(_INTRODUCTION_SHARE * steps),
            seed=seed,
        )
        return chip_step(faults_at, loss=loss)
    return plain_step(loss)


def clipped(
    model: BrevitasModel,
    data: DataSet,
    input_shape: tuple[int, int, int],
    wmax: float,
    epochs: int,
    seed: int,
    progress: Progress,
) -> tuple[Op, ...]:
    """Return a model's operations with weights trained into -wmax..wmax.

    After the weight clipping of RandBET (Stutz et al., MLSys 2021), which projects all weights of
    a network that it trains from scratch. Ours starts from a trained network with folded norms, so
    the bound falls to wmax over the first half of training, from the largest weight.

    Args:
        model: of 8 bits, whose scales are chosen for the unclipped weights; it is trained.
        data, input_shape, epochs, seed, progress: as in `quant.fine_tuning.fine_tune`.
        wmax: the bound.
    """
    layers = [model.layer(op.name) for op in model.ops if isinstance(op, GemmOp)]
    largest = max(float(layer.weight.detach().abs().max()) for layer in layers)
    fall = max(largest / wmax, 1.0)
    fine_tune(
        model,
        data,
        input_shape,
        epochs=epochs,
        seed=seed,
        share=LARGEST_SHARE,
        wmax=lambda done: wmax * fall ** max(0.0, 1 - 2 * done),
        progress=progress,
        description=f"clip to {wmax:g}",
    )
    return tuple(_with_weights(model, op) if isinstance(op, GemmOp) else op for op in model.ops)


def chip_record(
    method: Method,
    model: BrevitasModel,
    network: IntegerNetwork,
    data: DataSet,
    group: ChipGroup,
    images: int,
) -> dict[str, Any]:
    """Return the accuracy on each chip of the group, on at most `images` of the val split."""
    assert method.policy is not None
    part = data.val.images[:images]
    codes = engine.image_codes(network, to_input(part, network.input_shape, data.mean, data.std))
    labels = torch.from_numpy(data.val.labels[:images])
    found = group_accuracy(
        model,
        network,
        codes,
        labels,
        group.maps,
        mapping=group.mapping,
        policy=method.policy,
    )
    return {"accuracy": list(found.chips), "mean": found.mean, "worst": found.worst}


def _with_weights(model: BrevitasModel, op: GemmOp) -> Op:
    layer = model.layer(op.name)
    assert layer.bias is not None
    weight = layer.weight.detach().reshape(op.weight.shape).clone()
    return replace(op, weight=weight, bias=layer.bias.detach().clone())
