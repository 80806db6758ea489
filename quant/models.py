# SPDX-License-Identifier: Apache-2.0
"""A float network by its name, built in or the user's own, and the weights it starts from."""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
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

from quant.architectures import MODELS, Shape
from quant.data import DataSet
from trilat.errors import InputError, unknown_name
from trilat.files import content_hash

__all__ = [
    "MODELS",
    "ModelSpec",
    "build_model",
    "load_weights",
    "model_for",
    "seeded",
    "weights_normalization",
]

WIDEST = 4.0  # share of a published width; more is a mistyped number
_VERSION = 1  # of the built-in networks; part of their identity


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelSpec:
    """A float network and what is known about it.

    Attributes:
        name: e.g. ``"vgg11"``, ``"vgg11:0.25"`` or ``"file.py:factory"``.
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
        spec: a name of `MODELS`, alone or with the share of its channels that every hidden layer
            has (``vgg11:0.25``), or ``path/to/file.py:factory``.
        num_classes: number of logits.
        data_shape: (C, H, W) of the data set.
        seed: of the initial weights; torch's own random state is left as it was.

    Raises:
        InputError: unknown name, a width out of range, or a file whose factory gives no network
            for this data.
    """
    name = spec.partition(":")[0]
    if name in MODELS:
        factory, shape = MODELS[name]
        width = _width(spec)
        with seeded(seed):
            module = factory(num_classes, width)
        name = name if width == 1 else f"{name}:{width:g}"
        identity = content_hash([_VERSION, name, num_classes])
        return ModelSpec(name=name, module=module.eval(), input_shape=shape, identity=identity)
    # Names without a folder or suffix are no files, with or without a width.
    if "/" not in name and not name.endswith(".py"):
        accepted = [*MODELS, "NAME:WIDTH", "path/to/file.py:factory"]
        raise unknown_name("model", name, accepted)
    return _user_model(spec, num_classes, data_shape, seed)


def model_for(
    data: DataSet, model: str, *, weights: Path | None, seed: int
) -> tuple[ModelSpec, DataSet]:
    """Return a network for a data set, and the set as the network's weights need it.

    Args:
        data: what it is trained or evaluated on.
        model: see `build_model`.
        weights: a file of weights, whose normalization is taken if it has one; not yet loaded.
        seed: of the initial weights.

    Raises:
        InputError: as of `build_model` and `weights_normalization`, or images that were shrunk
            for want of a side, for a network that takes larger ones.
    """
    if weights and (normalization := weights_normalization(weights)):
        data = data.with_normalization(*normalization)
    spec = build_model(model, num_classes=data.num_classes, data_shape=data.shape, seed=seed)
    have, wanted = max(data.shape[1:]), max(spec.input_shape[1:])
    if data.limited and wanted > have:
        raise InputError(
            f"model {model} takes images of {wanted} pixels, but where no side is named those of "
            f"{data.name} have {have} (accepted: DATA:side={wanted}, or DATA:side={have} to "
            "enlarge them)"
        )
    return spec, data


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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch within the block; afterwards its random state is what it was before."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _width(spec: str) -> float:
    """Return the width that a built-in network's name ends with, rounded to 6 digits; 1 without."""
    name, colon, text = spec.partition(":")
    try:
        width = float(f"{float(text):g}") if colon else 1.0
    except ValueError:
        width = math.nan
    if not 0 < width <= WIDEST:
        raise InputError(
            f"model {spec}: the width must be a number above 0 and at most {WIDEST:g}, the share "
            f"of {name}'s channels, as in {name}:0.25"
        )
    return width


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
