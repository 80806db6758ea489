# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and CIFAR-100 in the binary version that their authors publish beside the pickled one.

A record is the label, one byte, and 3 x 32 x 32 bytes of red, green and blue, row by row. In
CIFAR-100 the byte of the coarse label stands before that of the fine one, which is the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trilat.errors import InputError

_PIXELS = (3, 32, 32)
_PICKLES = ("train", "test", "data_batch_1", "test_batch")


@dataclass(frozen=True, kw_only=True)
class _Version:
    """Names of a set's files, and its records."""

    train: tuple[str, ...]
    test: str
    label_bytes: int  # the last of them is the class
    num_classes: int


_CIFAR10 = _Version(
    train=tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
    test="test_batch.bin",
    label_bytes=1,
    num_classes=10,
)
_CIFAR100 = _Version(train=("train.bin",), test="test.bin", label_bytes=2, num_classes=100)


def read_cifar(
    folder: Path, files: Sequence[Path]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], int, tuple[str, ...]] | None:
    """Read the binary files of CIFAR-10 or CIFAR-100, or return None where there are none.

    Args:
        folder: for messages.
        files: all that lie in it, at any depth.

    Returns:
        (splits, number of classes, notes): of ``train`` and ``test`` the images, uint8
        (N, 32, 32, 3), and the labels, int64 (N,).

    Raises:
        InputError: a file that is missing or of another length, a label out of range, or the
            pickled version: reading that would run whatever code it holds.
    """
    by_name = {file.name: file for file in files}
    for version in (_CIFAR10, _CIFAR100):
        names = [*version.train, version.test]
        missing = [name for name in names if name not in by_name]
        if len(missing) == len(names):
            continue
        if missing:
            raise InputError(
                f"data folder {folder} has no {missing[0]} (accepted: {', '.join(names)})"
            )
        parts = [_records(by_name[name], version) for name in version.train]
        train = tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        splits = {"train": (train[0], train[1]), "test": _records(by_name[version.test], version)}
        return splits, version.num_classes, ()
    pickles = [name for name in _PICKLES if name in by_name and _is_pickle(by_name[name])]
    if pickles:
        raise InputError(
            f"data folder {folder} holds pickled files ({', '.join(pickles)}), which could run any "
            "code and are never read (accepted: the binary version of CIFAR (train.bin or "
            "data_batch_1.bin), Parquet files, or images in a sub-folder per class)"
        )
    return None


def _records(file: Path, version: _Version) -> tuple[np.ndarray, np.ndarray]:
    size = version.label_bytes + 3 * 32 * 32
    content = np.fromfile(file, dtype=np.uint8)
    if len(content) == 0 or len(content) % size:
        raise InputError(
            f"{file} is damaged: {len(content)} bytes are no whole number of records of {size}"
        )
    records = content.reshape(-1, size)
    labels = records[:, version.label_bytes - 1].astype(np.int64)
    if labels.max() >= version.num_classes:
        raise InputError(
            f"{file} holds label {labels.max()} (accepted: 0..{version.num_classes - 1})"
        )
    images = records[:, version.label_bytes :].reshape(-1, *_PIXELS).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(1) == b"\x80"
