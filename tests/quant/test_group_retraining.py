# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from faultinj.random_maps import random_map
from quant.chip_training import group_accuracy
from quant.data import load_data, to_input
from quant.engine import image_codes
from quant.export import to_network
from quant.fault_map import MemoryGeometry
from quant.fine_tuning import BATCH
from quant.group_retraining import retrain_until, speed_up
from quant.models import ModelSpec
from quant.quantize import quantize
from quant.training import train_float
from quant.weight_memory import WeightMapping, weight_codes


@pytest.mark.slow
def test_epochs_are_counted_until_the_target_is_reached() -> None:
    data, shape = load_data("digits", seed=0), (1, 8, 8)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    spec = ModelSpec(name="small", module=module, input_shape=shape, identity="small")
    train_float(spec, data, seed=0, epochs=4)
    start = quantize(spec, data, weight_bits=8, act_bits=8, method="ptq", seed=0)
    geometry = MemoryGeometry(words=len(weight_codes(start.network)), bits=8)
    maps = [random_map(geometry, rate=0.1, kind="stuck", seed=0, chip=c) for c in range(2)]
    before = {k: v.clone() for k, v in start.module.state_dict().items()}

    free = retrain_until(start.module, data, shape, maps, target=5.0, epochs=3, seed=0)
    assert free.epochs == 0 and free.reached
    group = retrain_until(start.module, data, shape, maps, target=88.0, epochs=8, seed=0)
    assert free.accuracy.mean < 88 <= group.accuracy.mean and group.reached
    assert 1 <= group.epochs <= 8 and group.epochs.is_integer() and not group.model.training
    early = retrain_until(
        start.module, data, shape, maps, target=88.0, epochs=8, seed=0, every=3, introduction=0.1
    )
    assert early.reached and 0 < early.epochs < group.epochs
    per_epoch = -(-len(data.train) // BATCH)
    assert (early.epochs * per_epoch) % 3 == pytest.approx(0, abs=1e-6)
    part = retrain_until(start.module, data, shape, maps, target=100.1, epochs=0.1, seed=0, every=3)
    assert part.epochs == round(0.1 * per_epoch) / per_epoch and not part.reached
    never = retrain_until(start.module, data, shape, maps[:1], target=100.1, epochs=1, seed=0)
    assert (never.epochs, never.reached, len(never.accuracy.chips)) == (1, False, 1)
    assert all(torch.equal(before[k], v) for k, v in start.module.state_dict().items())

    network = to_network(group.model, name="again", input_shape=shape, metadata={})
    pixels = to_input(data.val.images, shape, data.mean, data.std)
    again = group_accuracy(
        group.model, network, image_codes(network, pixels), torch.from_numpy(data.val.labels),
        maps, mapping=WeightMapping(),
    )  # fmt: skip
    assert again == group.accuracy


def test_speed_up_is_a_ratio_of_epochs() -> None:
    assert speed_up([3, 4, 5], 6) == 2.0
    assert math.isinf(speed_up([1], 0))
