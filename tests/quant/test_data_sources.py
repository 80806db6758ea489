# SPDX-License-Identifier: Apache-2.0
"""CIFAR-100 and ImageNet in the layouts that they come in, made small."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from quant import data_sources
from quant.data import DataSet, load_data, to_input
from quant.models import model_for
from trilat.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILAT_CACHE", str(tmp_path / "cache"))


def noise(count: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write(folder: Path, split: str, **columns: list[object]) -> Path:
    """Write plain Parquet, images as structs of bytes and path, without hints in the schema."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{split}-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pa.table(columns), file)
    return file


def stored(images: list[bytes]) -> list[object]:
    return [{"bytes": image, "path": f"{index}.png"} for index, image in enumerate(images)]


def load(folder: Path, selection: str = "") -> DataSet:
    return load_data(f"{folder}{selection}", seed=0)


def refused(spec: Path | str, *texts: str) -> None:
    with pytest.raises(InputError) as caught:
        load_data(str(spec), seed=0)
    message = str(caught.value)
    assert "\n" not in message
    for text in texts:
        assert text in message


# --- CIFAR-100 --------------------------------------------------------------------------------


def cifar100(folder: Path, fine: list[int]) -> np.ndarray:
    images = noise(len(fine))
    for split in ("train", "test"):
        write(
            folder,
            split,
            img=stored([encoded(image) for image in images]),
            fine_label=fine,
            coarse_label=[value // 5 for value in fine],
        )
    return images


def test_cifar100_of_the_hub_has_its_fine_labels(tmp_path: Path) -> None:
    fine = [*range(100), 99]
    images = cifar100(tmp_path / "set", fine)
    data = load(tmp_path / "set")
    assert (data.num_classes, data.shape) == (100, (3, 32, 32))
    assert np.array_equal(data.test.images, images)
    assert data.test.labels.tolist() == fine


def binary(folder: Path, coarse: bool, labels: list[int]) -> dict[str, Path]:
    """Write the binary version, after the authors' description; returns the files by name."""
    folder.mkdir(parents=True)
    names = ["train.bin", "test.bin"]
    if not coarse:
        names = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
    for number, name in enumerate(names):
        content = b""
        for label, image in zip(labels, noise(len(labels), seed=number), strict=True):
            content += bytes([label // 5, label] if coarse else [label])
            content += b"".join(image[..., channel].tobytes() for channel in range(3))
        (folder / name).write_bytes(content)
    return {name: folder / name for name in names}


@pytest.mark.parametrize("coarse", [False, True])
def test_cifars_binary_files(tmp_path: Path, coarse: bool) -> None:
    labels = [7, 3, 0, 9, 3, 1] * 4
    files = binary(tmp_path / "set" / "cifar-batches-bin", coarse, labels)
    (tmp_path / "set" / "readme.html").write_text("about")
    data = load(tmp_path / "set")
    assert data.num_classes == (100 if coarse else 10)
    assert np.array_equal(data.test.images, noise(24, seed=len(files) - 1))
    assert data.test.labels.tolist() == labels
    assert len(data.train) + len(data.val) == 24 * (len(files) - 1)
    known = {
        image.tobytes(): label
        for number in range(len(files) - 1)
        for image, label in zip(noise(24, seed=number), labels, strict=True)
    }
    assert all(
        known[i.tobytes()] == n for i, n in zip(data.train.images, data.train.labels, strict=True)
    )


def test_a_part_of_cifar(tmp_path: Path) -> None:
    binary(tmp_path / "set", True, [0] * 20 + [40] * 10)
    data = load(tmp_path / "set", ":images=12,side=28")
    assert data.shape == (3, 28, 28)
    assert np.bincount(np.concatenate([data.train.labels, data.val.labels]))[[0, 40]].tolist() == [
        8,
        4,
    ]
    assert "test: a stratified sample of 12 of 30 images" in data.notes


def test_damaged_cifar_files(tmp_path: Path) -> None:
    files = binary(tmp_path / "set", True, [1, 2, 3])
    whole = files["test.bin"].read_bytes()
    files["test.bin"].write_bytes(whole[:-1])
    refused(tmp_path / "set", "test.bin is damaged: 9221 bytes", "records of 3074")
    files["test.bin"].write_bytes(whole[:1] + b"\x64" + whole[2:])
    refused(tmp_path / "set", "test.bin holds label 100 (accepted: 0..99)")
    files["test.bin"].unlink()
    refused(tmp_path / "set", "has no test.bin (accepted: train.bin, test.bin)")


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_pickled_cifar_is_refused_and_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "ran"), protocol=2))
    refused(folder, "pickled files (train, test)", "never read", "train.bin", "Parquet")
    assert not (tmp_path / "ran").exists()


# --- ImageNet ---------------------------------------------------------------------------------

SIZES = [(300, 400), (256, 256), (90, 64), (500, 375)]


def gradient(height: int, width: int) -> np.ndarray:
    """A photo whose red and green tell where a pixel lies, from 0 to 250 over its sides."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = 250 * (rows + 0.5) / height, 250 * (columns + 0.5) / width
    return np.stack([red, green, np.full_like(red, 60)], axis=-1).astype(np.uint8)


def imagenet(folder: Path, count: int = 12) -> None:
    photos = [encoded(gradient(*SIZES[k % len(SIZES)])) for k in range(count)]
    for split, labels in (("train", [0, 1] * count), ("validation", [1, 0] * count)):
        write(folder, split, image=stored(photos), label=labels[:count])
    write(folder, "test", image=stored(photos), label=[-1] * count)


def test_imagenet_is_resized_and_cropped_as_it_is_evaluated(tmp_path: Path) -> None:
    imagenet(tmp_path / "set")
    data = load(tmp_path / "set", ":side=224")
    assert data.shape == (3, 224, 224)
    assert "train: images resized to 224x224" in data.notes
    assert "test: the set's validation split (it has no labelled test split)" in data.notes
    for number, (height, width) in enumerate(SIZES):
        # By hand: pixel i of the crop is pixel i + (size - 224) / 2 of the resized photo.
        shorter = min(height, width)
        for axis, extent in enumerate((height, width)):
            size = round(extent * 256 / shorter)
            centres = (np.arange(224) + (size - 224) // 2 + 0.5) / size
            profile = data.test.images[number][:, 112, 0] if axis == 0 else None
            if profile is None:
                profile = data.test.images[number][112, :, 1]
            assert np.abs(profile.astype(float) - 250 * centres).max() < 2.5, (number, axis)
        assert (data.test.images[number][..., 2] == 60).all()


def test_imagenets_normalization(tmp_path: Path) -> None:
    imagenet(tmp_path / "set")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data = load(tmp_path / "set", ":side=32").with_normalization(mean, std)
    x = to_input(data.test.images, (3, 32, 32), data.mean, data.std)
    expected = (data.test.images / 255 - mean) / std
    assert torch.allclose(x.double(), torch.from_numpy(expected.transpose(0, 3, 1, 2)), atol=1e-5)


def test_a_network_for_larger_images_than_photos_become_unasked(tmp_path: Path) -> None:
    imagenet(tmp_path / "set")
    (tmp_path / "net.py").write_text(
        "from torch import nn\ninput_shape = (3, 224, 224)\n"
        "def net(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 2, 7, 8), nn.Flatten(),\n"
        "                         nn.Linear(2 * 28 * 28, num_classes))\n"
    )
    model = f"{tmp_path}/net.py:net"
    with pytest.raises(InputError, match=r"takes images of 224 pixels.*have 64.*DATA:side=224, or"):
        model_for(load(tmp_path / "set"), model, weights=None, seed=0)
    for side in (224, 64):
        data = load(tmp_path / "set", f":side={side}")
        spec, _ = model_for(data, model, weights=None, seed=0)
        assert spec.input_shape == (3, 224, 224) and data.shape == (3, side, side)
    # Networks for smaller images take the photos as they are.
    assert model_for(load(tmp_path / "set"), "vgg11:0.1", weights=None, seed=0)


@pytest.mark.parametrize("held_out", ["val", "validation"])
def test_imagenet_in_folders(tmp_path: Path, held_out: str) -> None:
    for split, count in (("train", 12), (held_out, 4)):
        for label, name in enumerate(("n01440764", "n01443537")):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                photo = gradient(*SIZES[index % len(SIZES)]) // (label + 1)
                (folder / f"{name}_{index}.JPEG").write_bytes(encoded(photo, "JPEG"))
    data = load(tmp_path / "set", ":side=48,images=10")
    assert (data.num_classes, data.shape) == (2, (3, 48, 48))
    assert (len(data.train), len(data.val), len(data.test)) == (9, 1, 8)
    assert "train: a stratified sample of 10 of 24 images" in data.notes
    blue = data.test.images[..., 2].mean((1, 2))
    assert np.array_equal(data.test.labels, (blue < 45).astype(int))


def test_what_does_not_fit_into_memory_names_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_sources, "MAX_BYTES", 2_000_000)
    imagenet(tmp_path / "set")
    opened: list[str] = []
    reader = data_sources._open
    monkeypatch.setattr(
        data_sources, "_open", lambda value, where: (opened.append(where), reader(value, where))[1]
    )
    refused(
        tmp_path / "set:side=224",
        "24 images of 224x224 take 0.0 GB of memory, over the 0.002 GB accepted",
        "DATA=NAME:side=224,images=6",
    )
    assert len(opened) == 12  # those that tell grey from colour: refused before decoding
    assert len(load(tmp_path / "set", ":side=224,images=6").test) == 6
    assert len(load(tmp_path / "set").test) == 12  # 64x64 fits


@pytest.mark.parametrize(
    "text", ["side=0", "side=", "side=7.5", "images=-3", "width=3", "side=8,side=9", "images=1,"]
)
def test_bad_selections(tmp_path: Path, text: str) -> None:
    refused(f"imagenet:{text}", f"'{text}' is not what to take", "imagenet:side=224,images=10000")


def test_digits_are_taken_whole_and_unknown_names_stay_unknown(tmp_path: Path) -> None:
    refused("digits:images=9", "taken whole")
    refused("imagenett:side=224", "unknown data set 'imagenett'", "did you mean imagenet?")
    (tmp_path / "a:side=4").mkdir()  # a folder of this name is that folder
    refused(tmp_path / "a:side=4", "cannot be read")


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_cut_parquet(tmp_path: Path, share: float) -> None:
    cifar100(tmp_path / "set", [*range(10)] * 3)
    file = tmp_path / "set" / "test-00000-of-00001.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refused(tmp_path / "set", "set cannot be read: test-00000-of-00001.parquet: ")


def test_a_column_that_one_split_lacks(tmp_path: Path) -> None:
    images = stored([encoded(image) for image in noise(6)])
    write(tmp_path / "set", "train", img=images, fine_label=[0, 1, 2] * 2)
    write(tmp_path / "set", "test", img=images, coarse_label=[0] * 6)
    refused(tmp_path / "set", "train-00000-of-00001.parquet has the columns img, fine_label, test-")
    write(tmp_path / "pictures", "train", picture=images, fine_label=[0, 1, 2] * 2)
    refused(tmp_path / "pictures", "no image column, found picture, fine_label")


def test_a_label_beyond_the_training_set(tmp_path: Path) -> None:
    images = stored([encoded(image) for image in noise(6)])
    write(tmp_path / "set", "train", img=images, fine_label=[0, 1, 2] * 2)
    write(tmp_path / "set", "test", img=images, fine_label=[0, 1, 100] * 2)
    refused(tmp_path / "set", "label 100 in test (accepted: 0..2)")


def test_an_unreadable_photo_is_named(tmp_path: Path) -> None:
    for name in ("n01440764", "n01443537"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(4):
            photo = encoded(gradient(80, 90), "JPEG")
            if index == 2:
                photo = photo[: len(photo) // 2]
            (tmp_path / "set" / name / f"{index}.JPEG").write_bytes(photo)
    refused(tmp_path / "set", "image 2 (n01440764/2.JPEG): the image is corrupt")
