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
from quant.chip_training import GroupAccuracy, chip_step, group_accuracy, introduced
from quant.data import DataSet, to_input
from quant.export import to_network
from quant.fault_map import FaultMap
from quant.fine_tuning import BATCH, LARGEST_SHARE, fine_tune
from quant.map_groups import merge_maps
from quant.method_names import POLICIES
from quant.weight_memory import WeightMapping
from trilat.progress import Progress

# Of the learning rate, which is constant to the end: below the peak of a cycle.
_SHARE = LARGEST_SHARE / 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Retrained:
    """A group's weights and what they took.

    Attributes:
        model: the retrained model, in evaluation mode.
        epochs: that were trained, in parts of an epoch; 0 where it was good enough before.
        reached: whether the accuracy came to the target.
        accuracy: on the group's chips, on validation images.
    """

    model: BrevitasModel
    epochs: float
    reached: bool
    accuracy: GroupAccuracy


def retrain_until(
    model: BrevitasModel,
    data: DataSet,
    input_shape: tuple[int, int, int],
    maps: Sequence[FaultMap],
    *,
    target: float,
    epochs: float,
    seed: int,
    every: int | None = None,
    mapping: WeightMapping | None = None,
    policy: str = POLICIES[0],
    faq: bool = True,
    introduction: float = 1.0,
    images: int = 1024,
    progress: Progress | None = None,
) -> Retrained:
    """Retrain a copy of a model for chips until its accuracy reaches a target.

    It is there when both the accuracy with the merged map, for which it is trained, and the mean
    over the chips are.

    Args:
        model: where it starts; it is not changed.
        data: train is learnt, val is measured.
        input_shape: (C, H, W) of the model.
        maps: of the group's chips; one for a chip of its own.
        target: accuracy in percent.
        epochs: at most; parts of an epoch count.
        seed: of the order of images and of the faults' introduction.
        every: steps between two measurements; by default those of an epoch.
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
    merged = merge_maps(maps, policy)

    def accuracy(chips: Sequence[FaultMap]) -> GroupAccuracy:
        network = to_network(trained, name="group", input_shape=input_shape, metadata={})
        codes = engine.image_codes(network, pixels)
        return group_accuracy(
            trained, network, codes, labels, chips, mapping=layout, policy=policy, faq=faq
        )

    def good() -> bool:
        # What is trained for comes first: every chip is measured only where it may be enough.
        if accuracy([merged]).mean < target:
            return False
        return len(maps) == 1 or accuracy(maps).mean >= target

    per_epoch = -(-len(data.train) // BATCH)
    limit = max(1, round(epochs * per_epoch))
    steps, reached = 0, good()

    def after_step(step: int) -> bool:
        nonlocal steps, reached
        if step % (every or per_epoch) == 0 or step == limit:
            steps, reached = step, good()
        return reached or step == limit

    if not reached:
        slow = round(introduction * per_epoch)
        fine_tune(
            trained,
            data,
            input_shape,
            epochs=-(-limit // per_epoch),
            seed=seed,
            share=_SHARE,
            step=chip_step(introduced(trained, merged, layout, steps=slow, seed=seed), faq=faq),
            after_step=after_step,
            progress=progress,
            description=f"retraining for {len(maps)} chips",
        )
    return Retrained(
        model=trained,
        epochs=steps / per_epoch,
        reached=reached,
        accuracy=accuracy(maps),
    )


def speed_up(alone: Sequence[float], group: float) -> float:
    """Return the epochs of all chips alone over those of the group; infinite for a free group."""
    return sum(alone) / group if group else float("inf")
