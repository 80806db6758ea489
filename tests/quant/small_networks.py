# SPDX-License-Identifier: Apache-2.0
"""Small float networks and a slice of the digits, for the tests of quantization."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import nn

from quant.data import DataSet, Split, load_data, to_input
from quant.models import ModelSpec


@functools.cache
def digits(train: int = 96, val: int = 24) -> DataSet:
    data = load_data("digits", seed=0)

    def part(split: Split, count: int) -> Split:
        return Split(images=split.images[:count], labels=split.labels[:count])

    return dataclasses.replace(
        data, train=part(data.train, train), val=part(data.val, val), test=part(data.test, val)
    )


def images(spec: ModelSpec, count: int) -> torch.Tensor:
    data = digits()
    return to_input(data.val.images[:count], spec.input_shape, data.mean, data.std)


def spec(name: str) -> ModelSpec:
    """Return a network of `NETWORKS`: random weights, batch norms used to the digits."""
    factory, shape = NETWORKS[name]
    torch.manual_seed(0)
    module = factory()
    data = digits()
    with torch.no_grad():
        module.train()(to_input(data.train.images[:64], shape, data.mean, data.std))
    return ModelSpec(name=name, module=module.eval(), input_shape=shape, identity=name)


class Residual(nn.Module):
    """A basic block; its shortcut is signed, its sum is not."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.shortcut = nn.Identity()
        if stride > 1 or width != out:
            self.shortcut = nn.Conv2d(width, out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class Branches(nn.Module):
    """What stays a requantization: a ReLU of a tensor that is used before it, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.conv(torch.relu(x)) + x
        x = torch.nn.functional.avg_pool2d(x, 3, 2, 1)
        return self.fc(torch.flatten(x, 1))


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    width = 3
    for out in (8, 16, 24):
        conv = nn.Conv2d(width, out, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
        width = out
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(), nn.Linear(96, 10))


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Residual(8, 8, 1), Residual(8, 12, 2),
        Residual(12, 12, 1), nn.AvgPool2d((5, 3), stride=(2, 1)), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip


def mobile() -> nn.Module:
    """Depthwise, grouped, strided, dilated, asymmetric; ReLU6 and linear bottlenecks."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 12, 1), nn.Conv2d(12, 24, (3, 1), stride=(1, 2), groups=4), nn.ReLU6(),
        nn.Conv2d(24, 12, 3, dilation=2, padding=2, groups=2), nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d((2, 2)), nn.Flatten(), nn.LazyLinear(10),
    )  # fmt: skip


def pools(size: int) -> nn.Module:
    """A mean over size x size, of unsigned and of signed codes, then the global one."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(size, stride=1),
        nn.Conv2d(8, 8, 3, padding=1), nn.AvgPool2d(3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


def wide() -> nn.Module:
    """A reduction of 4096, whose sums at 8 bits can leave what float32 holds exactly."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 10)
    )


NETWORKS = {
    "vgg": (vgg, (3, 16, 16)),
    "lenet": (lenet, (1, 28, 28)),
    "resnet": (resnet, (3, 12, 10)),
    "mobile": (mobile, (3, 17, 18)),
    "branches": (Branches, (1, 8, 8)),
    "pools 3": (functools.partial(pools, 3), (1, 11, 11)),
    "pools 7": (functools.partial(pools, 7), (1, 11, 9)),
    "wide": (wide, (1, 16, 16)),
    "global 5": (functools.partial(pools, 5), (1, 5, 5)),
}
