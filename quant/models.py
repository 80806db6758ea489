# SPDX-License-Identifier: Apache-2.0
"""The float networks: four built in, or the user's own, and the weights they start from."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from trilat.errors import InputError, unknown_name
from trilat.files import content_hash

Shape = tuple[int, int, int]  # (C, H, W)
_VERSION = 1  # of the built-in networks; part of their identity


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelSpec:
    """A float network and what is known about it.

    Attributes:
        name: e.g. ``"vgg11"``, or ``"file.py:factory"``.
        module: float32, in eval mode; takes (N, C, H, W), gives logits (N, num_classes).
        input_shape: (C, H, W) that it takes.
        identity: 16 hex digits that change whenever the architecture does; never with weights.
    """

    name: str
    module: nn.Module
    input_shape: Shape
    identity: str


def build_model(spec: str, *, num_classes: int, data_shape: Shape, seed: int) -> ModelSpec:
    """Build a network with freshly drawn weights.

    A user's file is imported and its factory called, with `num_classes` if it takes that. The
    input shape is the file's module attribute `input_shape`, else that of the data.

    Args:
        spec: a name of `MODELS`, or ``path/to/file.py:factory``.
        num_classes: number of logits.
        data_shape: (C, H, W) of the data set.
        seed: of the initial weights; torch's own random state is left as it was.

    Raises:
        InputError: unknown name, or a file whose factory gives no network for this data.
    """
    if spec in MODELS:
        factory, shape = MODELS[spec]
        with seeded(seed):
            module = factory(num_classes)
        identity = content_hash([_VERSION, spec, num_classes])
        return ModelSpec(name=spec, module=module.eval(), input_shape=shape, identity=identity)
    if ":" not in spec and not spec.endswith(".py"):
        raise unknown_name("model", spec, [*MODELS, "path/to/file.py:factory"])
    return _user_model(spec, num_classes, data_shape, seed)


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load float weights into `module`; it is left as it was if they do not fit.

    Args:
        module: whose state-dict keys the file must have.
        path: safetensors, float16 or float32; integer buffers may be absent.

    Raises:
        InputError: no such file, not safetensors, or tensors that are missing, extra, misshapen,
            of another type, or not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such weights file: {path} (accepted: a .safetensors file)")
    try:
        with safe_open(path, framework="pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"weights {path} are not a safetensors file: {reason}") from None
    wanted = module.state_dict()
    floats = {key for key, tensor in wanted.items() if tensor.is_floating_point()}
    accepted = (torch.float16, torch.float32)
    both = [key for key in wanted if key in found]
    problems = {
        "missing": sorted(floats - found.keys()),
        "extra": sorted(found.keys() - wanted.keys()),
        "misshapen": [
            f"{key} {list(found[key].shape)} instead of {list(wanted[key].shape)}"
            for key in both
            if found[key].shape != wanted[key].shape
        ],
        "not float16 or float32": [
            f"{key} {str(found[key].dtype).removeprefix('torch.')}"
            for key in both
            if key in floats and found[key].dtype not in accepted
        ],
        "not finite": [k for k in both if k in floats and not found[k].isfinite().all()],
    }
    told = [f"{kind}: {_few(names)}" for kind, names in problems.items() if names]
    if told:
        raise InputError(f"weights {path} do not fit the model: {'; '.join(told)}")
    module.load_state_dict(found, strict=False)


def weights_normalization(path: str | Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the (mean, std) that weights were trained with, or None where nothing says.

    Read from the JSON file beside the weights with the same stem, from its key ``normalization:
    {"mean": [...], "std": [...]}`` (per channel, of images in [0, 1]).

    Raises:
        InputError: the file is no JSON, or its normalization is malformed.
    """
    path = Path(path).with_suffix(".json")
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{path}, beside the weights, is not a JSON file") from None
    if not isinstance(record, dict) or "normalization" not in record:
        return None
    try:
        mean = tuple(float(v) for v in record["normalization"]["mean"])
        std = tuple(float(v) for v in record["normalization"]["std"])
    except (KeyError, TypeError, ValueError):
        mean, std = (), ()
    if len(mean) != len(std) or len(mean) not in (1, 3) or not all(s > 0 for s in std):
        raise InputError(
            f"{path}: normalization must hold mean and std, 1 or 3 numbers each, std above 0"
        )
    return mean, std


def vgg11(num_classes: int) -> nn.Module:
    """VGG11 with batch norm for 3x32x32 (Simonyan and Zisserman 2015), one linear layer."""
    layers: list[nn.Module] = []
    width = 3
    for index, out in enumerate((64, 128, 256, 256, 512, 512, 512, 512), start=1):
        layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        if index in (1, 2, 4, 6, 8):
            layers.append(nn.MaxPool2d(2))
        width = out
    return _Classifier(layers, nn.Linear(512, num_classes))


def lenet5(num_classes: int) -> nn.Module:
    """LeNet-5 for 1x28x28 (LeCun et al. 1998), with ReLU, max pooling and full connections."""
    features = [
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    classifier = nn.Sequential(
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )
    return _Classifier(features, classifier)


def alexnet(num_classes: int) -> nn.Module:
    """AlexNet for 3x32x32: its five convolutions at small strides, two hidden linear layers."""
    features: list[nn.Module] = [
        nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 3, padding=1, bias=False),
        nn.BatchNorm2d(192),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    for width, out in ((192, 384), (384, 256), (256, 256)):
        features += [
            nn.Conv2d(width, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        ]
    features.append(nn.MaxPool2d(2))
    classifier = nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(256 * 2 * 2, 1024),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(1024, 512),
        nn.ReLU(),
        nn.Linear(512, num_classes),
    )
    return _Classifier(features, classifier)


def resnet18(num_classes: int) -> nn.Module:
    """ResNet-18 for 3x32x32 (He et al. 2016): a 3x3 stem without pooling, projections of 1x1."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
    ]
    width = 64
    for out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_Residual(width, out, stride), _Residual(out, out, 1)]
        width = out
    layers.append(nn.AdaptiveAvgPool2d(1))
    return _Classifier(layers, nn.Linear(512, num_classes))


MODELS: dict[str, tuple[Callable[[int], nn.Module], Shape]] = {
    "vgg11": (vgg11, (3, 32, 32)),
    "lenet5": (lenet5, (1, 28, 28)),
    "alexnet": (alexnet, (3, 32, 32)),
    "resnet18": (resnet18, (3, 32, 32)),
}


class _Classifier(nn.Module):
    """`features`, flattened, into `classifier`."""

    def __init__(self, features: list[nn.Module], classifier: nn.Module) -> None:
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

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: torch.Tensor = self.relu2(y + self.shortcut(x))
        return out


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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch within the block; afterwards its random state is what it was before."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _user_model(spec: str, num_classes: int, data_shape: Shape, seed: int) -> ModelSpec:
    file, _, name = spec.rpartition(":")
    if not file or not name:
        raise InputError(f"model {spec}: name the factory too, as in path/to/file.py:factory")
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"model {spec}: no such file: {path}")
    with seeded(seed):
        source = _import(path, spec)
        factory = getattr(source, name, None)
        if not callable(factory):
            raise InputError(f"model {spec}: {path.name} has no factory {name!r}")
        try:
            module = factory(**_arguments(factory, num_classes))
        except Exception as error:  # whatever the user's own code raises
            raise InputError(f"model {spec}: {name} raises {_told(error)}") from None
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise InputError(f"model {spec}: {name} gives a {kind}, not a torch.nn.Module")
    shape = getattr(source, "input_shape", data_shape)
    if not (
        isinstance(shape, (tuple, list))
        and len(shape) == 3
        and all(isinstance(v, int) and v > 0 for v in shape)
    ):
        raise InputError(f"model {spec}: input_shape must be (C, H, W), not {shape!r}")
    shape = (shape[0], shape[1], shape[2])
    module = module.to(torch.float32).cpu().eval()
    try:
        with torch.no_grad():
            logits = module(torch.zeros(2, *shape))
    except Exception as error:
        raise InputError(f"model {spec}: an input of {shape} raises {_told(error)}") from None
    have = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if have != (2, num_classes):
        raise InputError(
            f"model {spec}: gives {have} for 2 images; the data needs (2, {num_classes})"
        )
    # repr tells apart what the file builds from modules that it imports.
    identity = content_hash([path.read_text("utf-8"), name, num_classes, shape, repr(module)])
    return ModelSpec(
        name=f"{path.name}:{name}", module=module, input_shape=shape, identity=identity
    )


def _import(path: Path, spec: str) -> ModuleType:
    # A name of its own per file; dataclasses in it look themselves up in sys.modules.
    name = f"trilat_model_{content_hash(str(path.resolve()))}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise InputError(f"model {spec}: {path} is not a Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except Exception as error:  # whatever the user's own code raises
        del sys.modules[name]
        raise InputError(f"model {spec}: importing {path.name} raises {_told(error)}") from None
    return module


def _arguments(factory: Callable[..., Any], num_classes: int) -> dict[str, int]:
    parameters = inspect.signature(factory).parameters
    takes = "num_classes" in parameters or any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()
    )
    return {"num_classes": num_classes} if takes else {}


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
