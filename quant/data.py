# SPDX-License-Identifier: Apache-2.0
"""Image data sets, split for a search, and their way into a network.

The search sees `train` and `val`; `test` is for the points reported. Images stay uint8 until
`to_input` makes the float32 tensor of one batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from quant.data_sources import ALL, HUB, MAX_SIDE, Arrays, Selection, read_folder, read_hub
from trilat.errors import InputError, unknown_name
from trilat.files import content_hash
from trilat.progress import NoProgress, Progress

DATA_SETS = ["digits", *HUB]
VAL_FRACTION, VAL_MAX = 0.10, 5000
CARVED_FRACTION = 0.15  # of a set without a test split; digits: of the whole set, val as well
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's conversion to grey


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Images and their classes.

    Attributes:
        images: uint8 (N, H, W, C), C = 1 or 3.
        labels: int64 (N,), 0 .. num_classes - 1.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """A data set, split.

    Attributes:
        name: e.g. ``"digits"``, or the name of the folder.
        num_classes: number of classes.
        mean, std: per channel of the images in [0, 1], over `train` unless replaced.
        train, val, test: disjoint splits.
        fingerprint: 16 hex digits over contents, split and normalization.
        notes: how the splits were made, in sentences for a report.
        limited: whether its images have the side that no image exceeds unless the user names one.
    """

    name: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    val: Split
    test: Split
    fingerprint: str
    notes: tuple[str, ...] = ()
    limited: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        height, width, channels = self.train.images.shape[1:]
        return channels, height, width

    def with_normalization(self, mean: Sequence[float], std: Sequence[float]) -> DataSet:
        """Return the set with another mean and std, as a user's trained weights need it."""
        mean, std = tuple(mean), tuple(std)
        fingerprint = content_hash([self.fingerprint, mean, std])
        return dataclasses.replace(self, mean=mean, std=std, fingerprint=fingerprint)


def load_data(spec: str, *, seed: int, progress: Progress | None = None) -> DataSet:
    """Load a data set and split it.

    Test is the set's own test split. Without one, a labelled `validation` split stands in (as
    for ImageNet); without either, 15 % are carved out of train. Val is the set's `validation`
    split where it is free, else 10 % of train, at most 5000. Carving is stratified by class.

    Args:
        spec: a name of `DATA_SETS`, or a folder with Parquet files, with images in one sub-folder
            per class (under train/ and test/ where there are splits) or with CIFAR's binary files.
            Behind a colon may stand what is taken of it (`Selection`):
            ``imagenet:side=224,images=10000``.
        seed: of the split.
        progress: where decoding reports.

    Raises:
        InputError: unknown name, no such folder, empty or corrupt data, hub out of reach, or more
            of it than fits into memory.
    """
    progress = progress or NoProgress()
    spec, selection = _parse(spec)
    folder = Path(spec).expanduser()
    if spec == "digits":
        if selection != ALL:
            raise InputError("the digits are taken whole (accepted: digits)")
        return _digits(seed)
    if spec in HUB:
        splits, num_classes, notes = read_hub(spec, selection, progress)
        return _limited(_assemble(spec, splits, num_classes, list(notes), seed), selection)
    if folder.is_dir():
        splits, num_classes, notes = read_folder(folder, selection, progress)
        data = _assemble(folder.resolve().name, splits, num_classes, list(notes), seed)
        return _limited(data, selection)
    if folder.exists():
        raise InputError(f"data {spec} is a file; give the folder that holds the Parquet files")
    if "/" in spec or spec.startswith((".", "~")):
        raise InputError(f"no such data folder: {spec}")
    raise unknown_name("data set", spec, [*DATA_SETS, "path/to/folder"])


def _limited(data: DataSet, selection: Selection) -> DataSet:
    at_limit = max(data.shape[1:]) == MAX_SIDE
    return dataclasses.replace(data, limited=selection.side is None and at_limit)


def _parse(spec: str) -> tuple[str, Selection]:
    """Return the name or folder, and what is taken of it."""
    name, _, text = spec.rpartition(":")
    if not name or "/" in text or Path(spec).expanduser().is_dir():
        return spec, ALL
    found: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"(side|images)=([1-9][0-9]{0,9})", part)
        if match is None or match[1] in found:
            raise InputError(
                f"data {spec}: {text!r} is not what to take of a set (accepted: side=PIXELS and "
                f"images=N, once each, as in {name}:side=224,images=10000)"
            )
        found[match[1]] = int(match[2])
    return name, Selection(**found)


def stratified(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose `count` of the labels at random, every class in proportion.

    Args:
        labels: (N,).
        count: 0..N.
        seed: of the choice.

    Returns:
        (chosen, rest): ascending indices, int64.
    """
    rng = np.random.default_rng(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / len(labels))
    take = np.floor(exact).astype(np.int64)
    # Largest remainders get what is missing to `count`; a stable sort settles ties.
    missing = count - int(take.sum())
    take[np.argsort(take - exact, kind="stable")[:missing]] += 1
    chosen = np.zeros(len(labels), dtype=bool)
    for value, number in zip(classes, take, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == value))[:number]] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def to_input(
    images: np.ndarray,
    input_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> torch.Tensor:
    """Turn images into what a network takes: its size, its channels, normalized.

    Bilinear resize with antialiasing; the values of an image do not depend on its batch.

    Args:
        images: uint8 (N, H, W, C), C = 1 or 3.
        input_shape: (C, H, W) of the network.
        mean, std: per channel of the images, or of the network, in [0, 1].

    Returns:
        float32 (N, C, H, W).

    Raises:
        InputError: the network takes neither 1 nor 3 channels, and not those of the images.
    """
    channels, height, width = input_shape
    have = images.shape[-1]
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
    luma = torch.tensor(_LUMA)
    if have != channels:
        if {have, channels} != {1, 3}:
            raise InputError(
                f"the network takes {channels} channels, the images have {have} "
                "(accepted: the same number, or 1 and 3)"
            )
        # Summed channel by channel: a reduction could change its order with the batch.
        x = x.repeat(1, 3, 1, 1) if channels == 3 else _grey(x)
    if x.shape[-2:] != (height, width):
        x = functional.interpolate(
            x, size=(height, width), mode="bilinear", align_corners=False, antialias=True
        )
    centre, scale = torch.tensor(mean), torch.tensor(std)
    if len(centre) == 3 and channels == 1:
        centre, scale = (centre * luma).sum()[None], (scale * luma).sum()[None]
    return (x - centre.view(1, -1, 1, 1)) / scale.view(1, -1, 1, 1)


def _grey(x: torch.Tensor) -> torch.Tensor:
    red, green, blue = _LUMA
    return x[:, 0:1] * red + x[:, 1:2] * green + x[:, 2:3] * blue


def _digits(seed: int) -> DataSet:
    # Imported here: scikit-learn takes a second that other data need not wait for.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    count = round(CARVED_FRACTION * len(labels))
    test, rest = stratified(labels, count, seed)
    val, train = stratified(labels[rest], count, seed + 1)
    splits = {
        "train": (images[rest[train]], labels[rest[train]]),
        "validation": (images[rest[val]], labels[rest[val]]),
        "test": (images[test], labels[test]),
    }
    note = f"val and test: {count} images each, split off by class with seed {seed}"
    return _assemble("digits", splits, 10, [note], seed)


def _assemble(
    name: str, splits: dict[str, Arrays], num_classes: int, notes: list[str], seed: int
) -> DataSet:
    splits = dict(splits)
    train = splits["train"]
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
        notes.append("test: the set's validation split (it has no labelled test split)")
    if "test" not in splits:
        count = round(CARVED_FRACTION * len(train[1]))
        splits["test"], train = _carve(train, count, seed)
        notes.append(f"test: {count} images carved out of train with seed {seed} (no test split)")
    if "validation" not in splits:
        count = min(VAL_MAX, round(VAL_FRACTION * len(train[1])))
        splits["validation"], train = _carve(train, count, seed + 1)
        notes.append(f"val: {count} images carved out of train with seed {seed}")
    parts = {"train": train, "val": splits["validation"], "test": splits["test"]}
    for part, (_, labels) in parts.items():
        if len(labels) == 0:
            raise InputError(f"data {name}: too few images for a {part} split")
    mean, std = _statistics(train[0])
    digest = hashlib.sha256(f"{num_classes} {seed} {mean} {std}".encode())
    for part, arrays in parts.items():
        for array in arrays:
            digest.update(f"{part} {array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return DataSet(
        name=name,
        num_classes=num_classes,
        mean=mean,
        std=std,
        train=Split(images=train[0], labels=train[1]),
        val=Split(images=parts["val"][0], labels=parts["val"][1]),
        test=Split(images=parts["test"][0], labels=parts["test"][1]),
        fingerprint=digest.hexdigest()[:16],
        notes=tuple(notes),
    )


def _carve(arrays: Arrays, count: int, seed: int) -> tuple[Arrays, Arrays]:
    images, labels = arrays
    chosen, rest = stratified(labels, count, seed)
    return (images[chosen], labels[chosen]), (images[rest], labels[rest])


def _statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel in [0, 1], exact from histograms; a std of 0 becomes 1."""
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[-1]):
        # torch counts bytes as they are; NumPy makes each of them eight first.
        codes = torch.from_numpy(images[..., channel].reshape(-1))
        share = torch.bincount(codes, minlength=256).numpy() / codes.numel()
        centre = float(share @ values)
        mean.append(centre)
        std.append(float(np.sqrt(share @ (values - centre) ** 2)) or 1.0)
    return tuple(mean), tuple(std)
