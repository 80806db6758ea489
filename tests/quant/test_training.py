# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from quant.data import DataSet, Split, load_data, to_input
from quant.models import ModelSpec, build_model
from quant.training import augment, float_accuracy, train_batches, train_float, triangle
from trilat.errors import InputError
from trilat.progress import Advance

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_data("digits", seed=0)


def small(module: nn.Module) -> ModelSpec:
    return ModelSpec(name="small", module=module, input_shape=(1, 8, 8), identity="small")


def small_network(seed: int = 0) -> ModelSpec:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(256, 10),
        )
    return small(module)


def coloured(count: int, seed: int = 0) -> DataSet:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    split = Split(images=images, labels=rng.integers(0, 4, count))
    return DataSet(
        name="noise",
        num_classes=4,
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
        train=split,
        val=split,
        test=split,
        fingerprint="noise",
    )


def test_training_learns_and_says_how(digits: DataSet) -> None:
    spec = small_network()
    record = train_float(spec, digits, seed=0, epochs=4)
    assert record["val_accuracy"] == float_accuracy(spec, digits, digits.val) > 90
    assert [h["epoch"] for h in record["history"]] == [1, 2, 3, 4]
    losses = [h["loss"] for h in record["history"]]
    assert losses[3] < losses[0] / 2
    assert record["history"][3]["train_accuracy"] > 80
    assert record["seconds"] >= sum(h["seconds"] for h in record["history"])
    assert not spec.module.training
    for tensor in spec.module.state_dict().values():
        assert tensor.dtype in (torch.float32, torch.int64) and tensor.device.type == "cpu"


def test_the_seed_decides_every_weight_and_torch_is_left_alone(digits: DataSet) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    states = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        spec = small_network()
        torch.manual_seed(disturbance)
        train_float(spec, digits, seed=seed, epochs=1)
        states.append(spec.module.state_dict())
    first, again, other = states
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    torch.manual_seed(7)
    train_float(small_network(), digits, seed=0, epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_batch_norms_hold_the_statistics_of_the_training_images(digits: DataSet) -> None:
    spec = small_network()
    train_float(spec, digits, seed=0, epochs=1)
    convolution, norm = spec.module[0], spec.module[1]
    x = to_input(digits.train.images, (1, 8, 8), digits.mean, digits.std)
    with torch.no_grad():
        y = convolution(x).double()
    assert torch.allclose(norm.running_mean.double(), y.mean((0, 2, 3)), atol=2e-3)
    assert torch.allclose(norm.running_var.double(), y.var((0, 2, 3)), rtol=2e-2)
    assert norm.momentum == 0.1


def test_progress_counts_every_image(digits: DataSet) -> None:
    counted: list[int] = []
    tasks: list[tuple[str, int]] = []

    class Recorder:
        @contextlib.contextmanager
        def task(self, description: str, total: int) -> Iterator[Advance]:
            tasks.append((description, total))
            yield counted.append

    train_float(small_network(), digits, seed=0, epochs=2, progress=Recorder())
    assert tasks == [("train small", 2 * 1257)]
    assert sum(counted) == 2 * 1257


def test_divergence_is_told(digits: DataSet) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        module[1].weight.fill_(float("inf"))
    with pytest.raises(InputError, match="training small diverges in epoch 1"):
        train_float(small(module), digits, seed=0, epochs=1)


def test_accuracy_counts_by_hand() -> None:
    data = coloured(301)

    class Brightest(nn.Module):
        """Class = channel of the brightest mean; channel 3 never."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            means = x.mean((2, 3))
            return torch.cat([means, torch.full((len(x), 1), -9.0)], dim=1)

    spec = ModelSpec(name="b", module=Brightest(), input_shape=(3, 8, 8), identity="b")
    top = data.test.images.mean((1, 2)).argmax(1)
    expected = 100 * (top == data.test.labels).mean()
    assert float_accuracy(spec, data, data.test) == pytest.approx(expected)


def test_ties_go_to_the_lowest_class(digits: DataSet) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(module[1].weight)
    nn.init.zeros_(module[1].bias)
    expected = 100 * (digits.test.labels == 0).mean()
    assert float_accuracy(small(module), digits, digits.test) == pytest.approx(expected)


def test_batches_hold_every_image_once(digits: DataSet) -> None:
    batches = list(train_batches(digits, (1, 8, 8), seed=0, epoch=1))
    sizes = [len(labels) for _, labels in batches]
    assert sum(sizes) == 1257 and max(sizes) - min(sizes) <= 1
    labels = torch.cat([labels for _, labels in batches])
    assert torch.equal(labels.bincount(), torch.from_numpy(digits.train.labels).bincount())
    again = list(train_batches(digits, (1, 8, 8), seed=0, epoch=1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))
    later = torch.cat([n for _, n in train_batches(digits, (1, 8, 8), seed=0, epoch=2)])
    assert not torch.equal(labels, later)


@pytest.mark.parametrize("count", [1, 2, 33, 65])
def test_no_batch_of_a_small_set_is_empty(count: int) -> None:
    sizes = [len(n) for _, n in train_batches(coloured(count), (3, 8, 8), seed=0, epoch=1)]
    assert sum(sizes) == count and min(sizes) > (0 if count == 1 else 1)


def test_augmentation_shifts_and_mirrors() -> None:
    height, width = 16, 24
    x = torch.arange(40 * 2 * height * width, dtype=torch.float32).view(40, 2, height, width)
    y = augment(x, np.random.default_rng(0))
    assert y.shape == x.shape
    seen = set()
    for before, after in zip(x.numpy(), y.numpy(), strict=True):
        found = []
        for mirrored in (False, True):
            for down in range(-2, 3):
                for right in range(-3, 4):
                    source = before[:, :, ::-1] if mirrored else before
                    padded = np.pad(source, ((0, 0), (2, 2), (3, 3)), mode="edge")
                    window = padded[:, 2 + down :, 3 + right :][:, :height, :width]
                    if np.array_equal(window, after):
                        found.append((mirrored, down, right))
        assert len(found) == 1
        seen.add(found[0])
    assert {mirrored for mirrored, _, _ in seen} == {False, True}
    assert len({(down, right) for _, down, right in seen}) > 15


def test_grey_sets_are_learnt_as_they_are(digits: DataSet) -> None:
    for data, augmented in ((digits, False), (coloured(200), True)):
        known = {image.tobytes() for image in data.train.images}
        seen = set()
        for x, _ in train_batches(data, data.shape, seed=0, epoch=1):
            pixels = x.permute(0, 2, 3, 1).numpy() * data.std + data.mean
            seen |= {i.tobytes() for i in np.rint(pixels * 255).astype(np.uint8)}
        assert seen == known if not augmented else len(seen & known) < 20


def test_learning_rate_is_a_triangle() -> None:
    assert [triangle(d) for d in (0.0, 0.125, 0.25, 0.625, 1.0)] == [0.0, 0.5, 1.0, 0.5, 0.0]


@pytest.mark.slow
def test_vgg11_learns_digits_with_the_default_recipe(digits: DataSet) -> None:
    spec = build_model("vgg11", num_classes=10, data_shape=digits.shape, seed=0)
    record = train_float(spec, digits, seed=0)
    assert record["val_accuracy"] >= 97.5
    assert float_accuracy(spec, digits, digits.test) >= 97.5


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "least"),
    [("vgg16:0.25", 96), ("alexnet:0.25", 92), ("resnet32:0.5", 92), ("mobilenetv2:0.25", 85)],
)
def test_narrow_networks_learn_digits(digits: DataSet, name: str, least: float) -> None:
    spec = build_model(name, num_classes=10, data_shape=digits.shape, seed=0)
    train_float(spec, digits, seed=0)
    assert float_accuracy(spec, digits, digits.test) >= least


@pytest.mark.slow
def test_lenet5_learns_mnist_with_the_default_recipe() -> None:
    if not (SHARED / "mnist").is_dir():
        pytest.skip("needs the Parquet files of MNIST in ../shared/data/mnist")
    data = load_data(str(SHARED / "mnist"), seed=0)
    spec = build_model("lenet5", num_classes=10, data_shape=data.shape, seed=0)
    train_float(spec, data, seed=0)
    assert float_accuracy(spec, data, data.test) >= 98.5
