# SPDX-License-Identifier: Apache-2.0
"""The built-in float networks, each at any share of its published width.

All end in logits, take one shape of image, and are made of layers that `quant.graph` can trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

Shape = tuple[int, int, int]  # (C, H, W)


def vgg11(num_classes: int, width: float = 1.0) -> nn.Module:
    """VGG11 with batch norm for 3x32x32 (Simonyan and Zisserman 2015), one linear layer.

    Args:
        num_classes: number of logits.
        width: share of the channels of every hidden layer, here and below.
    """
    return _vgg(((64,), (128,), (256, 256), (512, 512), (512, 512)), num_classes, width)


def vgg16(num_classes: int, width: float = 1.0) -> nn.Module:
    """VGG16 with batch norm for 3x32x32 (Simonyan and Zisserman 2015), one linear layer."""
    stages = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
    return _vgg(stages, num_classes, width)


def lenet5(num_classes: int, width: float = 1.0) -> nn.Module:
    """LeNet-5 for 1x28x28 (LeCun et al. 1998), with ReLU, max pooling and full connections."""
    first, second, third, fourth = (_share(c, width) for c in (6, 16, 120, 84))
    features = [
        nn.Conv2d(1, first, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    classifier = nn.Sequential(
        nn.Linear(second * 5 * 5, third),
        nn.ReLU(),
        nn.Linear(third, fourth),
        nn.ReLU(),
        nn.Linear(fourth, num_classes),
    )
    return _Classifier(features, classifier)


def alexnet(num_classes: int, width: float = 1.0) -> nn.Module:
    """AlexNet for 3x32x32: its five convolutions at small strides, two hidden linear layers."""
    channels = [_share(c, width) for c in (64, 192, 384, 256, 256)]
    hidden = [_share(c, width) for c in (1024, 512)]
    features: list[nn.Module] = []
    source = 3
    for index, out in enumerate(channels):
        features += _convolution(source, out, stride=2 if index == 0 else 1)
        if index in (0, 1, 4):
            features.append(nn.MaxPool2d(2))
        source = out
    classifier = nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(source * 2 * 2, hidden[0]),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden[0], hidden[1]),
        nn.ReLU(),
        nn.Linear(hidden[1], num_classes),
    )
    return _Classifier(features, classifier)


def resnet18(num_classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-18 for 3x32x32 (He et al. 2016): a 3x3 stem without pooling, projections of 1x1."""
    return _resnet((64, 128, 256, 512), 2, num_classes, width)


def resnet32(num_classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-32 for 3x32x32 (He et al. 2016): three stages of five blocks, 16 to 64 channels.

    Its two shortcuts that change size are projections of 1x1 (option B of the paper, which has
    A here): the number format has no operation that pads channels with zeros.
    """
    return _resnet((16, 32, 64), 5, num_classes, width)


def mobilenetv2(num_classes: int, width: float = 1.0) -> nn.Module:
    """MobileNetV2 for 3x32x32 (Sandler et al. 2018): inverted residuals, linear bottlenecks.

    The first two strides of the paper, which has images of 224x224, are 1 here, so that the last
    depthwise convolution sees 4x4 pixels. Narrower widths scale the last layer, too, and are not
    rounded to multiples of 8.
    """
    stem, last = _share(32, width), _share(1280, width)
    layers = _convolution(3, stem, activation=nn.ReLU6)
    source = stem
    # The paper's table 2: expansion, channels, blocks, stride of the first (its first 2 is 1).
    for expansion, channels, blocks, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        out = _share(channels, width)
        for block in range(blocks):
            layers.append(_InvertedResidual(source, out, expansion, stride if block == 0 else 1))
            source = out
    layers += _convolution(source, last, kernel=1, activation=nn.ReLU6)
    layers.append(nn.AdaptiveAvgPool2d(1))
    return _Classifier(layers, nn.Linear(last, num_classes))


# What each name builds, for which images.
MODELS: dict[str, tuple[Callable[[int, float], nn.Module], Shape]] = {
    "vgg11": (vgg11, (3, 32, 32)),
    "vgg16": (vgg16, (3, 32, 32)),
    "lenet5": (lenet5, (1, 28, 28)),
    "alexnet": (alexnet, (3, 32, 32)),
    "resnet18": (resnet18, (3, 32, 32)),
    "resnet32": (resnet32, (3, 32, 32)),
    "mobilenetv2": (mobilenetv2, (3, 32, 32)),
}


class _Classifier(nn.Module):
    """`features`, flattened, into `classifier`."""

    def __init__(self, features: Sequence[nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.flatten = nn.Flatten()
        self.classifier = classifier
        _initialize(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.flatten(self.features(x)))
        return out


class _Residual(nn.Module):
    """Basic block of ResNet: two 3x3 convolutions beside a shortcut."""

    def __init__(self, source: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(source, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or source != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(source, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: torch.Tensor = self.relu2(y + self.shortcut(x))
        return out


class _InvertedResidual(nn.Module):
    """Block of MobileNetV2: 1x1 to more channels, depthwise 3x3, 1x1 back without activation.

    Where size and channels stay, the input is added; the sum has no activation either, so it is
    signed.
    """

    def __init__(self, source: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = source * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += _convolution(source, inner, kernel=1, activation=nn.ReLU6)
        layers += _convolution(inner, inner, stride=stride, groups=inner, activation=nn.ReLU6)
        layers += [nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out)]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and source == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return x + y if self.adds else y


def _vgg(stages: Sequence[Sequence[int]], num_classes: int, width: float) -> nn.Module:
    """Stages of 3x3 convolutions, a max pooling behind each."""
    layers: list[nn.Module] = []
    source = 3
    for stage in stages:
        for channels in stage:
            out = _share(channels, width)
            layers += _convolution(source, out)
            source = out
        layers.append(nn.MaxPool2d(2))
    return _Classifier(layers, nn.Linear(source, num_classes))


def _resnet(stages: Sequence[int], blocks: int, num_classes: int, width: float) -> nn.Module:
    """A 3x3 stem, stages of basic blocks, each but the first at half the size of the last."""
    source = _share(stages[0], width)
    layers = _convolution(3, source)
    for index, channels in enumerate(stages):
        out = _share(channels, width)
        for block in range(blocks):
            layers.append(_Residual(source, out, stride=2 if index and block == 0 else 1))
            source = out
    layers.append(nn.AdaptiveAvgPool2d(1))
    return _Classifier(layers, nn.Linear(source, num_classes))


def _convolution(
    source: int,
    out: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] = nn.ReLU,
) -> list[nn.Module]:
    """Convolution that keeps the size (but for its stride), batch norm, activation."""
    convolution = nn.Conv2d(
        source, out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    return [convolution, nn.BatchNorm2d(out), activation()]


def _share(channels: int, width: float) -> int:
    return max(1, round(width * channels))


def _initialize(module: nn.Module) -> None:
    """He initialization for layers before a ReLU; small weights for what gives the logits."""
    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    nn.init.normal_(layers[-1].weight, std=0.01)
