# SPDX-License-Identifier: Apache-2.0
"""Retraining for a group of chips until it is good enough, with its epochs counted.

The measure is TRE-Map's (Hoang, Hanif and Shafique, DSD 2021) as we read its abstract: the epochs
that every chip needs alone, summed, over those that the group needs, to the same accuracy.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quant import engine
from quant.brevitas_model import BrevitasModel
from quant.chip_training import (
    GroupAccuracy,
    chip_step,
    group_accuracy,
    introduced,
    merge_maps,
)
from quant.data import DataSet, to_input
from quant.export import to_network
from quant.fault_map import FaultMap
from quant.fine_tuning import BATCH, LARGEST_SHARE, fine_tune
from quant.method_names import POLICIES
from quant.weight_memory import WeightMapping
from trilat.progress import Progress


@dataclass(frozen=True, kw_only=True, eq=False)
class Retrained:
    """A group's weights and what they took.

    Attributes:
        model: the retrained model, in evaluation mode.
        epochs: that were trained; 0 where it was good enough before.
        reached: whether the mean accuracy came to the target.
        accuracy: on the group's chips, on validation images.
    """

    model: BrevitasModel
    epochs: int
    reached: bool
    accuracy: GroupAccuracy


def retrain_until(
    model: BrevitasModel,
    data: DataSet,
    input_shape: tuple[int, int, int],
    maps: Sequence[FaultMap],
    *,
    target: float,
    epochs: int,
    seed: int,
    mapping: WeightMapping | None = None,
    policy: str = POLICIES[0],
    faq: bool = True,
    introduction: float = 1.0,
    images: int = 1024,
    progress: Progress | None = None,
) -> Retrained:
    """Retrain a copy of a model for chips until its mean accuracy on them reaches a target.

    Args:
        model: where it starts; it is not changed.
        data: train is learnt, val measured after every epoch.
        input_shape: (C, H, W) of the model.
        maps: of the group's chips; one for a chip of its own.
        target: mean accuracy over the chips, in percent.
        epochs: at most.
        seed: of the order of images and of the faults' introduction.
        mapping: of weights to cells; by default one after the other.
        policy: where chips disagree on a cell.
        faq: whether codes are chosen for the merged map, in training and on the chips.
        introduction: epochs over which the faults come in; they are all there in every measurement.
        images: of the val split, at most.
        progress: where it reports, by images.

    Raises:
        InputError: maps that cannot be merged, or a chip that cannot hold the weights.
    """
    layout = mapping or WeightMapping()
    trained = copy.deepcopy(model)
    labels = torch.from_numpy(data.val.labels[:images])
    pixels = to_input(data.val.images[:images], input_shape, data.mean, data.std)

    def accuracy() -> GroupAccuracy:
        network = to_network(trained, name="group", input_shape=input_shape, metadata={})
        codes = engine.image_codes(network, pixels)
        return group_accuracy(
            trained, network, codes, labels, maps, mapping=layout, policy=policy, faq=faq
        )

    found = [accuracy()]

    def after_epoch(epoch: int) -> bool:
        found.append(accuracy())
        return found[-1].mean >= target

    if found[0].mean < target:
        steps = round(introduction * -(-len(data.train) // BATCH))
        merged = merge_maps(maps, policy)
        fine_tune(
            trained,
            data,
            input_shape,
            epochs=epochs,
            seed=seed,
            share=LARGEST_SHARE / 4,  # constant to the end, so below the peak of a cycle
            step=chip_step(introduced(trained, merged, layout, steps=steps, seed=seed), faq=faq),
            after_epoch=after_epoch,
            progress=progress,
            description=f"retraining for {len(maps)} chips",
        )
    return Retrained(
        model=trained,
        epochs=len(found) - 1,
        reached=found[-1].mean >= target,
        accuracy=found[-1],
    )


def speed_up(alone: Sequence[int], group: int) -> float:
    """Return the epochs of all chips alone over those of the group; infinite for a free group."""
    return sum(alone) / group if group else float("inf")
