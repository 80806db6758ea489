# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from quant.data import to_input
from quant.models import MODELS, build_model, load_weights, weights_normalization
from trilat.errors import InputError

SHARED = Path(__file__).parents[3] / "shared"
SUPPORTED = (
    nn.Conv2d,
    nn.Linear,
    nn.ReLU,
    nn.BatchNorm2d,
    nn.MaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Dropout,
    nn.Identity,
)


def built(spec: str, seed: int = 0, classes: int = 10) -> nn.Module:
    return build_model(spec, num_classes=classes, data_shape=(1, 8, 8), seed=seed).module


# --- built in ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "weights"),
    [
        ("vgg11", (3, 32, 32), 9_228_362),
        ("lenet5", (1, 28, 28), 61_706),  # the count of the 1998 layer sizes, fully connected
        ("alexnet", (3, 32, 32), None),
        ("resnet18", (3, 32, 32), 11_173_962),  # the usual count of its CIFAR form
    ],
)
def test_built_in_networks(name: str, shape: tuple[int, int, int], weights: int | None) -> None:
    spec = build_model(name, num_classes=10, data_shape=(1, 8, 8), seed=0)
    assert (spec.name, spec.input_shape) == (name, shape)
    assert not spec.module.training
    if weights:
        assert sum(p.numel() for p in spec.module.parameters()) == weights
    for classes in (2, 100):
        logits = built(name, classes=classes)(torch.zeros(3, *shape))
        assert logits.shape == (3, classes)
    leaves = [m for m in spec.module.modules() if not list(m.children())]
    assert all(isinstance(m, SUPPORTED) for m in leaves)


def test_vgg11_has_the_keys_of_its_checkpoints() -> None:
    keys = []
    index = 0
    for number in range(1, 9):
        keys.append(f"features.{index}.weight")
        for tensor in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            keys.append(f"features.{index + 1}.{tensor}")
        index += 4 if number in (1, 2, 4, 6, 8) else 3
    assert list(built("vgg11").state_dict()) == [*keys, "classifier.weight", "classifier.bias"]


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_decides_the_weights_and_leaves_torch_alone(name: str) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = built(name).state_dict()
    assert torch.equal(torch.rand(3), expected)
    again, other = built(name).state_dict(), built(name, seed=1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_identities_tell_architectures_apart() -> None:
    identity = {
        build_model(n, num_classes=c, data_shape=(1, 8, 8), seed=s).identity
        for n, c, s in (("lenet5", 10, 0), ("lenet5", 10, 1), ("lenet5", 9, 0), ("alexnet", 10, 0))
    }
    assert len(identity) == 3


def test_unknown_model() -> None:
    with pytest.raises(InputError, match=r"unknown model 'vgg12'; did you mean vgg16 or vgg11\?"):
        built("vgg12")


# --- the user's own ---------------------------------------------------------------------------

SMALL = """
import torch
from dataclasses import dataclass
from torch import nn

@dataclass
class Width:
    value: "int" = 4

def net(num_classes):
    width = Width().value
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2), nn.ReLU6(), nn.Flatten(),
        nn.Linear(width * 9, num_classes),
    )

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def flexible(**options):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, options["num_classes"]))

def broken(num_classes):
    raise RuntimeError("no weights\\nto be found")

def nothing():
    return "a network"

def pair():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()

value = 3
"""


def user(tmp_path: Path, factory: str, extra: str = "", classes: int = 10) -> nn.Module:
    file = tmp_path / "my_net.py"
    file.write_text(SMALL + extra)
    spec = build_model(f"{file}:{factory}", num_classes=classes, data_shape=(1, 8, 8), seed=0)
    assert spec.name == f"my_net.py:{factory}"
    return spec.module


@pytest.mark.parametrize("factory", ["net", "fixed", "flexible"])
def test_a_users_network(tmp_path: Path, factory: str) -> None:
    module = user(tmp_path, factory)
    assert module(torch.zeros(5, 1, 8, 8)).shape == (5, 10)
    assert not module.training
    again = user(tmp_path, factory)
    assert all(
        torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True)
    )


def test_a_users_input_shape(tmp_path: Path) -> None:
    file = tmp_path / "shaped.py"
    file.write_text(
        "from torch import nn\ninput_shape = (3, 2, 4)\n"
        "def net(): return nn.Sequential(nn.Flatten(), nn.Linear(24, 10))\n"
    )
    spec = build_model(f"{file}:net", num_classes=10, data_shape=(1, 8, 8), seed=0)
    assert spec.input_shape == (3, 2, 4)
    changed = file.read_text() + "# changed\n"
    file.write_text(changed)
    other = build_model(f"{file}:net", num_classes=10, data_shape=(1, 8, 8), seed=0)
    assert other.identity != spec.identity


@pytest.mark.parametrize(
    ("factory", "extra", "text"),
    [
        ("absent", "", "has no factory 'absent'"),
        ("value", "", "has no factory 'value'"),
        ("broken", "", "broken raises RuntimeError: no weights to be found"),
        ("nothing", "", "gives a str, not a torch.nn.Module"),
        ("pair", "", r"gives tuple for 2 images"),
        ("net", "input_shape = (3, 8, 8)", "an input of (3, 8, 8) raises RuntimeError"),
        ("net", "input_shape = (8, 8)", "input_shape must be (C, H, W), not (8, 8)"),
        ("net", "import no_such_package", "importing my_net.py raises ModuleNotFoundError"),
        ("net", "def f(:", "importing my_net.py raises SyntaxError"),
    ],
)
def test_a_users_mistakes(tmp_path: Path, factory: str, extra: str, text: str) -> None:
    with pytest.raises(InputError) as caught:
        user(tmp_path, factory, extra)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_number_of_logits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gives \(2, 10\) for 2 images; .* \(2, 7\)"):
        user(tmp_path, "fixed", classes=7)


@pytest.mark.parametrize("spec", ["no/such.py:net", "my_net.py", "my_net.py:", "/tmp:net"])
def test_no_such_file_or_factory(spec: str) -> None:
    with pytest.raises(InputError, match=r"no such file|name the factory"):
        built(spec)


# --- weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_are_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    source = built("alexnet", seed=3).state_dict()
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in source.items()}
    save_file(stored, tmp_path / "w.safetensors")
    module = built("alexnet")
    load_weights(module, tmp_path / "w.safetensors")
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, stored[key].to(tensor.dtype)), key
        assert tensor.dtype == source[key].dtype


def test_counters_of_batch_norm_may_be_absent(tmp_path: Path) -> None:
    state = {
        k: v for k, v in built("alexnet", seed=3).state_dict().items() if "num_batches" not in k
    }
    save_file(state, tmp_path / "w.safetensors")
    module = built("alexnet")
    load_weights(module, tmp_path / "w.safetensors")
    assert torch.equal(module.state_dict()["features.0.weight"], state["features.0.weight"])


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = built("lenet5", seed=3).state_dict()
    del state["features.0.bias"], state["classifier.4.weight"]
    state["stranger"] = torch.zeros(1)
    state["features.3.weight"] = torch.zeros(16, 6, 3, 3)
    state["features.3.bias"] = torch.zeros(16, dtype=torch.float64)
    state["classifier.0.bias"][7] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    module = built("lenet5")
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(module, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "missing: classifier.4.weight, features.0.bias;" in message
    assert "extra: stranger;" in message
    assert "misshapen: features.3.weight [16, 6, 3, 3] instead of [16, 6, 5, 5];" in message
    assert "not float16 or float32: features.3.bias float64;" in message
    assert message.endswith("not finite: classifier.0.bias")
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_long_lists_of_tensors_are_cut(tmp_path: Path) -> None:
    save_file({"stranger": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"missing: \S+, \S+, \S+ and 7 more; extra: stranger$"):
        load_weights(built("lenet5"), tmp_path / "w.safetensors")


def test_bad_weight_files(tmp_path: Path) -> None:
    module = built("lenet5")
    with pytest.raises(InputError, match="no such weights file"):
        load_weights(module, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"\x80\x04pickle, perhaps")
    with pytest.raises(InputError, match="are not a safetensors file"):
        load_weights(module, tmp_path / "w.safetensors")


def test_normalization_beside_the_weights(tmp_path: Path) -> None:
    weights, beside = tmp_path / "w.safetensors", tmp_path / "w.json"
    assert weights_normalization(weights) is None
    beside.write_text('{"epochs": 3}')
    assert weights_normalization(weights) is None
    beside.write_text(json.dumps({"normalization": {"mean": [0.1, 0.2, 0], "std": [1, 0.5, 0.5]}}))
    assert weights_normalization(weights) == ((0.1, 0.2, 0.0), (1.0, 0.5, 0.5))
    for wrong in (
        {"mean": [0.1]},
        {"mean": [0.1], "std": [0]},
        {"mean": [0.1, 0.2], "std": [1, 1]},
        {"mean": [0.1], "std": [1, 1, 1]},
        {"mean": "x", "std": [1]},
        [1],
    ):
        beside.write_text(json.dumps({"normalization": wrong}))
        with pytest.raises(InputError, match="normalization must hold mean and std"):
            weights_normalization(weights)
    beside.write_text("{")
    with pytest.raises(InputError, match="is not a JSON file"):
        weights_normalization(weights)


@pytest.mark.slow
def test_the_shared_checkpoint_reaches_its_accuracy() -> None:
    weights = SHARED / "checkpoints" / "vgg11_cifar10.safetensors"
    parquet = SHARED / "data" / "cifar10" / "test-00000-of-00001.parquet"
    if not (weights.is_file() and parquet.is_file()):
        pytest.skip("needs ../shared/checkpoints and ../shared/data/cifar10")
    rows = pyarrow.parquet.read_table(parquet).slice(0, 500).to_pylist()
    images = np.stack([np.asarray(Image.open(io.BytesIO(r["img"]["bytes"]))) for r in rows])
    labels = np.array([r["label"] for r in rows])
    spec = build_model("vgg11", num_classes=10, data_shape=(3, 32, 32), seed=0)
    load_weights(spec.module, weights)
    normalization = weights_normalization(weights)
    assert normalization is not None
    with torch.inference_mode():
        logits = spec.module(to_input(images, spec.input_shape, *normalization))
    # 84.56 % on all 10,000; one standard deviation on 500 is 1.6 points.
    assert (logits.argmax(1).numpy() == labels).mean() > 0.81
