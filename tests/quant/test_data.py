# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from quant import data_sources
from quant.data import DataSet, load_data, stratified, to_input
from trilat.errors import InputError

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRILAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pictures(count: int, size: tuple[int, int] = (6, 5), channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, size[1], size[0], channels), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(
    folder: Path,
    split: str,
    images: list[bytes | None] | np.ndarray,
    labels: list[int | None],
    columns: tuple[str, str] = ("image", "label"),
    classes: int | None = 3,
) -> None:
    folder.mkdir(exist_ok=True)
    encoded = [png(i) for i in images] if isinstance(images, np.ndarray) else images
    label = datasets.ClassLabel(num_classes=classes) if classes else datasets.Value("int64")
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: label})
    table = {columns[0]: [b and {"bytes": b, "path": None} for b in encoded], columns[1]: labels}
    whole = datasets.Dataset.from_dict(table, features=features)
    whole.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def rows(data: DataSet) -> list[tuple[bytes, int]]:
    return sorted(
        (image.tobytes(), int(label))
        for split in (data.train, data.val, data.test)
        for image, label in zip(split.images, split.labels, strict=True)
    )


# --- splits -----------------------------------------------------------------------------------


def test_digits_are_scikit_learns_split_by_class() -> None:
    data = load_data("digits", seed=0)
    bunch = load_digits()
    scaled = np.rint(bunch.images / 16 * 255).astype(np.uint8)
    assert rows(data) == sorted(
        (i.tobytes(), int(t)) for i, t in zip(scaled, bunch.target, strict=True)
    )
    assert (len(data.train), len(data.val), len(data.test)) == (1257, 270, 270)
    assert (data.num_classes, data.shape) == (10, (1, 8, 8))
    for split in (data.train, data.val, data.test):
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int64
        share = np.bincount(split.labels) / len(split)
        assert np.abs(share - np.bincount(bunch.target) / 1797).max() < 1.5 / len(split)


def test_the_seed_decides_the_split_and_the_fingerprint() -> None:
    first, again, other = (load_data("digits", seed=s) for s in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert np.array_equal(first.val.images, again.val.images)
    assert not np.array_equal(first.val.images, other.val.images)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_stratified_is_exact_and_fair(labels: list[int], draw: st.DataObject) -> None:
    values = np.array(labels)
    count = draw.draw(st.integers(0, len(labels)))
    chosen, rest = stratified(values, count, seed=3)
    assert len(chosen) == count
    assert sorted([*chosen, *rest]) == list(range(len(labels)))
    for value in set(labels):
        assert abs((values[chosen] == value).sum() - labels.count(value) * count / len(labels)) < 1


def test_mean_and_std_are_those_of_the_training_images() -> None:
    data = load_data("digits", seed=0)
    assert data.mean == pytest.approx(((data.train.images / 255).mean(),))
    assert data.std == pytest.approx(((data.train.images / 255).std(),))


def test_a_replaced_normalization_changes_the_fingerprint() -> None:
    data = load_data("digits", seed=0)
    other = data.with_normalization([0.5], [0.25])
    assert (other.mean, other.std) == ((0.5,), (0.25,))
    assert other.fingerprint not in (data.fingerprint, data.with_normalization([0.4], [1]))


# --- folders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [("image", "label"), ("img", "label"), ("scan", "kind")])
@pytest.mark.parametrize("channels", [1, 3])
def test_parquet_folder(tmp_path: Path, columns: tuple[str, str], channels: int) -> None:
    train, test = pictures(40, channels=channels), pictures(7, channels=channels)
    labels = [i % 3 for i in range(40)]
    write_parquet(tmp_path / "set", "train", train, labels, columns)
    write_parquet(tmp_path / "set", "test", test, [0] * 7, columns)
    data = load_data(str(tmp_path / "set"), seed=0)
    assert (data.name, data.num_classes, data.shape) == ("set", 3, (channels, 5, 6))
    assert np.array_equal(data.test.images, test)
    assert (len(data.train), len(data.val)) == (36, 4)
    everything = [*zip(train, labels, strict=True), *((i, 0) for i in test)]
    assert rows(data) == sorted((i.tobytes(), label) for i, label in everything)
    assert data.notes == ("val: 4 images carved out of train with seed 0",)


def test_a_set_without_test_split_gets_one(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set", "train", pictures(40), [i % 3 for i in range(40)])
    data = load_data(str(tmp_path / "set"), seed=5)
    assert (len(data.train), len(data.val), len(data.test)) == (31, 3, 6)
    assert len({image for image, _ in rows(data)}) == 40
    assert "test: 6 images carved out of train with seed 5 (no test split)" in data.notes


def test_own_validation_split_is_used(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("validation", 5), ("test", 6)):
        write_parquet(tmp_path / "set", split, pictures(count), [i % 3 for i in range(count)])
    data = load_data(str(tmp_path / "set"), seed=0)
    assert np.array_equal(data.train.images, pictures(20))
    assert np.array_equal(data.val.images, pictures(5))
    assert np.array_equal(data.test.images, pictures(6))


def test_an_unlabelled_test_split_gives_way_to_validation(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set", "train", pictures(20), [i % 3 for i in range(20)])
    write_parquet(tmp_path / "set", "validation", pictures(5), [0, 1, 2, 0, 1])
    write_parquet(tmp_path / "set", "test", pictures(6), [-1] * 6)
    data = load_data(str(tmp_path / "set"), seed=0)
    assert np.array_equal(data.test.images, pictures(5))
    assert (len(data.train), len(data.val)) == (18, 2)


def test_plain_integer_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set", "train", pictures(30), [i % 4 for i in range(30)], classes=None)
    assert load_data(str(tmp_path / "set"), seed=0).num_classes == 4


@pytest.mark.parametrize("split_folders", [True, False])
def test_image_folder(tmp_path: Path, split_folders: bool) -> None:
    for split in ("train", "test") if split_folders else (".",):
        for label in ("cat", "dog"):
            folder = tmp_path / "set" / split / label
            folder.mkdir(parents=True)
            for index, pixels in enumerate(pictures(10)):
                (folder / f"{index}.png").write_bytes(
                    png(pixels if label == "cat" else pixels // 2)
                )
    data = load_data(str(tmp_path / "set"), seed=0)
    assert (data.num_classes, data.shape) == (2, (3, 5, 6))
    assert len(data.test) == (20 if split_folders else 3)
    bright = [s.images[s.labels == 0].mean() for s in (data.train, data.test)]
    dark = [s.images[s.labels == 1].mean() for s in (data.train, data.test)]
    assert min(bright) > 100 > 80 > max(dark)


def test_images_of_many_sizes_and_modes_take_that_of_the_first(tmp_path: Path) -> None:
    images: list[bytes | None] = [png(np.full((8, 10, 1), 7, np.uint8))]
    images += [png(np.full((h, w, 3), 7, np.uint8)) for h, w in ((8, 10), (20, 20), (3, 40))] * 5
    write_parquet(tmp_path / "set", "train", images, [i % 3 for i in range(16)])
    data = load_data(str(tmp_path / "set"), seed=0)
    assert data.shape == (3, 8, 10)
    assert all((split.images == 7).all() for split in (data.train, data.val, data.test))
    assert "train: images resized to 10x8" in data.notes


def test_big_images_become_64x64(tmp_path: Path) -> None:
    big = pictures(20, size=(90, 70))
    write_parquet(tmp_path / "set", "train", big, [i % 3 for i in range(20)])
    data = load_data(str(tmp_path / "set"), seed=0)
    assert data.shape == (3, 64, 64)
    assert data.train.images.mean() == pytest.approx(big.mean(), abs=2)


def test_big_splits_are_sampled_by_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_sources, "MAX_IMAGES", 12)
    labels = [0] * 20 + [1] * 10 + [2] * 10
    write_parquet(tmp_path / "set", "train", pictures(40), labels)
    write_parquet(tmp_path / "set", "test", pictures(9), [0] * 9)
    data = load_data(str(tmp_path / "set"), seed=0)
    counts = np.bincount(np.concatenate([data.train.labels, data.val.labels]))
    assert list(counts) == [6, 3, 3]
    assert np.array_equal(data.test.images, pictures(9))
    known = {image.tobytes(): label for image, label in zip(pictures(40), labels, strict=True)}
    assert all(
        known[i.tobytes()] == n for i, n in zip(data.train.images, data.train.labels, strict=True)
    )
    assert "train: a stratified sample of 12 of 40 images" in data.notes


# --- cache ------------------------------------------------------------------------------------


def test_a_second_load_decodes_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "set", "train", pictures(20), [i % 3 for i in range(20)])
    first = load_data(str(tmp_path / "set"), seed=0)
    loader = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", None)
    second = load_data(str(tmp_path / "set"), seed=0)
    assert second.fingerprint == first.fingerprint and second.notes == first.notes
    assert np.array_equal(second.train.images, first.train.images)
    # A damaged cache file, or another content of the folder, is decoded again.
    monkeypatch.setattr(datasets, "load_dataset", loader)
    (file,) = (cache / "data").iterdir()
    file.write_bytes(file.read_bytes()[:300])
    assert load_data(str(tmp_path / "set"), seed=0).fingerprint == first.fingerprint
    write_parquet(tmp_path / "set", "train", pictures(21), [i % 3 for i in range(21)])
    assert load_data(str(tmp_path / "set"), seed=0).fingerprint != first.fingerprint


# --- bad input --------------------------------------------------------------------------------


def refused(spec: Path | str, *texts: str) -> None:
    with pytest.raises(InputError) as caught:
        load_data(str(spec), seed=0)
    message = str(caught.value)
    assert "\n" not in message
    for text in texts:
        assert text in message


def test_unknown_names_and_missing_folders(tmp_path: Path) -> None:
    refused("cifar11", "unknown data set 'cifar11'", "did you mean cifar10 or cifar100?")
    refused("qqq", "accepted: digits, cifar10")
    refused(tmp_path / "none", "no such data folder")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is a file")


def test_empty_and_corrupt_folders(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    refused(tmp_path / "set", "cannot be read", "any data files")
    (tmp_path / "set" / "train.parquet").write_bytes(b"not parquet" * 9)
    refused(tmp_path / "set", "cannot be read")


def test_truncated_parquet(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set", "train", pictures(300), [0, 1, 2] * 100)
    (file,) = (tmp_path / "set").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:2000] + bytes(2000) + whole[4000:])
    with pytest.raises(InputError, match="set"):
        load_data(str(tmp_path / "set"), seed=0)


def test_corrupt_and_missing_images(tmp_path: Path) -> None:
    good = [png(p) for p in pictures(9)]
    labels: list[int | None] = [0, 1, 2] * 3
    write_parquet(tmp_path / "a", "train", [*good[:5], good[5][:40], *good[6:]], labels)
    refused(tmp_path / "a", "train, image 5: the image is corrupt")
    write_parquet(tmp_path / "b", "train", [*good[:5], None, *good[6:]], labels)
    refused(tmp_path / "b", "train, image 5: the image is missing")
    deep = io.BytesIO()
    Image.fromarray(np.full((5, 6), 40000, np.uint16)).save(deep, "PNG")
    write_parquet(tmp_path / "c", "train", [deep.getvalue(), *good[1:]], labels)
    refused(tmp_path / "c", "image 0", "8 bits")


@pytest.mark.parametrize(
    ("labels", "classes", "text"),
    [
        ([0, 1, None, 0, 1, 2], 3, "missing label"),
        ([0, 1, -1, 0, 1, 2], 3, "label -1 in train (accepted: 0..2)"),
        ([0, 1, -7, 0, 1, 2], None, "label -7 in train"),
        ([0, 0, 0, 0, 0, 0], None, "1 classes"),
    ],
)
def test_bad_labels(
    tmp_path: Path, labels: list[int | None], classes: int | None, text: str
) -> None:
    write_parquet(tmp_path / "set", "train", pictures(6), labels, classes=classes)
    refused(tmp_path / "set", text)


def test_a_test_label_that_training_never_saw(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set", "train", pictures(6), [0, 1] * 3, classes=None)
    write_parquet(tmp_path / "set", "test", pictures(6), [0, 2] * 3, classes=None)
    refused(tmp_path / "set", "label 2 in test (accepted: 0..1)")


def test_missing_columns_splits_and_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    datasets.Dataset.from_dict({"x": [1, 2]}).to_parquet(tmp_path / "a" / "train.parquet")
    refused(tmp_path / "a", "no image column, found x (accepted: Parquet files")
    write_parquet(tmp_path / "b", "test", pictures(6), [0, 1] * 3)
    refused(tmp_path / "b", "no train split")
    write_parquet(tmp_path / "c", "train", pictures(3), [0, 1, 2])
    refused(tmp_path / "c", "too few images")


# --- hub --------------------------------------------------------------------------------------


def test_hub_out_of_reach_is_one_line_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        # `_offline` has been entered: datasets will not retry.
        assert datasets.config.HF_HUB_OFFLINE
        raise ConnectionError(f"Couldn't reach {name}\nand more")

    monkeypatch.setattr(data_sources, "_reachable", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", absent)
    before = datasets.config.HF_HUB_OFFLINE
    refused("cifar10", "uoft-cs/cifar10", "hub is out of reach", "local folder")
    assert before == datasets.config.HF_HUB_OFFLINE


def test_hub_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(name: str) -> None:
        raise datasets.exceptions.DatasetNotFoundError(f"{name} is a gated dataset\ntrace")

    monkeypatch.setattr(data_sources, "_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", gated)
    refused("imagenet", "ILSVRC/imagenet-1k is a gated dataset;", "local folder")


def test_hub_set_is_read_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(name: str) -> datasets.DatasetDict:
        assert name == "uoft-cs/cifar100"
        fine = datasets.ClassLabel(num_classes=4)
        features = datasets.Features(
            {"img": datasets.Image(), "fine_label": fine, "coarse_label": datasets.Value("int64")}
        )
        table = {
            "img": [{"bytes": png(p), "path": None} for p in pictures(40)],
            "fine_label": [i % 4 for i in range(40)],
            "coarse_label": [9] * 40,
        }
        whole = datasets.Dataset.from_dict(table, features=features)
        return datasets.DatasetDict(train=whole, test=whole.select(range(8)))

    monkeypatch.setattr(data_sources, "_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", loaded)
    data = load_data("cifar100", seed=0)
    assert (data.name, data.num_classes, len(data.train), len(data.val)) == ("cifar100", 4, 36, 4)
    assert np.array_equal(data.test.images, pictures(40)[:8])
    monkeypatch.setattr(data_sources, "_reachable", None)  # neither asked nor loaded again
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert load_data("cifar100", seed=0).fingerprint == data.fingerprint


# --- to_input ---------------------------------------------------------------------------------


def triangle_filter(size: int, wanted: int) -> np.ndarray:
    """Weights (wanted, size) of a bilinear resize with antialiasing, from its definition."""
    scale = size / wanted
    support = max(scale, 1.0)
    centres = (np.arange(wanted) + 0.5) * scale
    distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) / support
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("size", "wanted"), [((8, 8), (32, 32)), ((20, 9), (7, 28)), ((1, 5), (3, 5)), ((6, 6), (1, 1))]
)
def test_resize_is_bilinear_with_antialiasing(
    size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    images = pictures(3, size=(size[1], size[0]))
    x = to_input(images, (3, *wanted), (0, 0, 0), (1, 1, 1))
    down, across = (triangle_filter(s, w) for s, w in zip(size, wanted, strict=True))
    expected = np.einsum("yh,xw,nhwc->ncyx", down, across, images / 255)
    assert x.dtype == torch.float32 and tuple(x.shape) == (3, 3, *wanted)
    assert np.abs(x.numpy() - expected).max() < 1e-6


def test_normalization_and_channels() -> None:
    images = pictures(4)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    plain = images / 255
    same = to_input(images, (3, 5, 6), mean, std)
    assert np.allclose(same, ((plain - mean) / std).transpose(0, 3, 1, 2), atol=1e-6)
    luma = np.array([0.299, 0.587, 0.114])
    grey = to_input(images, (1, 5, 6), mean, std)
    expected = (plain @ luma - luma @ mean) / (luma @ std)
    assert np.allclose(grey[:, 0], expected, atol=1e-6)
    colour = to_input(images[..., :1], (3, 5, 6), (0.1,), (0.5,))
    for channel in range(3):
        assert np.allclose(colour[:, channel], (plain[..., 0] - 0.1) / 0.5, atol=1e-6)
    # Weights trained on colour keep their own normalization on grey images.
    three = to_input(images[..., :1], (3, 5, 6), mean, std)
    assert np.allclose(three[:, 2], (plain[..., 0] - 0.3) / 0.7, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 4), (3, 5, 6)])
def test_an_image_does_not_depend_on_its_batch(shape: tuple[int, int, int]) -> None:
    images = pictures(9)
    whole = to_input(images, shape, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    for index in range(9):
        alone = to_input(images[index : index + 1], shape, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
        assert torch.equal(alone[0], whole[index])


def test_other_channel_counts_are_refused() -> None:
    with pytest.raises(InputError, match="takes 4 channels, the images have 3"):
        to_input(pictures(1), (4, 5, 6), (0,), (1,))


# --- real sets --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "column", "shape", "counts"),
    [
        ("mnist", "image", (1, 28, 28), (55000, 5000, 10000)),
        ("cifar10", "img", (3, 32, 32), (45000, 5000, 10000)),
    ],
)
def test_shared_sets(
    name: str, column: str, shape: tuple[int, int, int], counts: tuple[int, int, int]
) -> None:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the Parquet files of {name} in ../shared/data/{name}")
    data = load_data(str(folder), seed=0)
    assert data.shape == shape
    assert (len(data.train), len(data.val), len(data.test)) == counts
    assert (
        np.abs(
            np.bincount(data.val.labels) / 5000 - np.bincount(data.train.labels) / counts[0]
        ).max()
        < 1e-3
    )
    table = pyarrow.parquet.read_table(folder / "test-00000-of-00001.parquet").slice(9990, 10)
    for row, image, label in zip(
        table.to_pylist(), data.test.images[-10:], data.test.labels[-10:], strict=True
    ):
        picture = np.asarray(Image.open(io.BytesIO(row[column]["bytes"])))
        assert np.array_equal(picture.reshape(image.shape), image)
        assert row["label"] == label
