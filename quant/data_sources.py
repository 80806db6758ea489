# SPDX-License-Identifier: Apache-2.0
"""Reads image data sets of the Hugging Face hub and of local folders into uint8 arrays.

Decoding tens of thousands of PNG or JPEG files takes a while, so the arrays are kept in a cache
folder: ``$TRILAT_CACHE``, by default ``~/.cache/trilat``.

Limits, so that a set fits into memory: images over 64 pixels become 64x64, images of other sizes
than the first are cropped and resized to it, and of a split with over 100,000 images a fixed
stratified sample of 100,000 is decoded (1.2 GB). `Selection` replaces the first and the last; what
would then take over 4 GB is refused.
"""

from __future__ import annotations

import contextlib
import io
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from quant.cifar_files import read_cifar
from trilat.errors import InputError
from trilat.files import content_hash, replacing
from trilat.progress import Progress

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (N, H, W, C), labels int64 (N,)
Source = tuple[dict[str, Arrays], int, tuple[str, ...]]  # splits, number of classes, notes
Geometry = tuple[int, int, int]  # (H, W, C)

HUB = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "imagenet": "ILSVRC/imagenet-1k",
}
SPLITS = ("train", "validation", "test")
MAX_SIDE = 64
MAX_IMAGES = 100_000
MAX_BYTES = 4_000_000_000  # of all decoded images of a set
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "fine_label")
_GREY_MODES = ("1", "L", "LA")
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_ACCEPTED = (
    "Parquet files with an image and a label column, images in a sub-folder per class, or "
    "CIFAR's binary version"
)
_VERSION = 2  # of the decoded arrays; another one makes old cache files unused


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is taken of a set.

    Attributes:
        side: every image is resized (bilinear, antialiased) until its shorter side has 8/7 of
            these pixels, and the square of this side in its centre is taken: 256 and 224, as
            networks for ImageNet are evaluated. None: the limits above.
        images: at most so many of each split, evenly spread over its classes; None: `MAX_IMAGES`.
    """

    side: int | None = None
    images: int | None = None


ALL = Selection()


def read_hub(name: str, selection: Selection, progress: Progress) -> Source:
    """Read a set of `HUB` through `datasets`: from the hub, or from its local cache.

    Raises:
        InputError: the hub is out of reach or refuses, and the set is not cached, or the
            selection does not fit into memory.
    """
    key = _key(selection, HUB[name])
    return _cached(key) or _store(key, _read(_load_hub(name), name, selection, progress))


def read_folder(folder: Path, selection: Selection, progress: Progress) -> Source:
    """Read a folder with Parquet files, with images in one sub-folder per class, or with CIFAR.

    CIFAR-10 and CIFAR-100 are read in their binary version (`quant.cifar_files`).

    Raises:
        InputError: nothing to read in it, a damaged file, pickles, or a selection that does not
            fit into memory.
    """
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    stats = [(str(f.relative_to(folder)), f.stat()) for f in files]
    listing = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    key = _key(selection, str(folder.resolve()), listing)
    found = _cached(key)
    if found:
        return found
    where = f"data folder {folder}"
    parquet = [f for f in files if f.suffix == ".parquet"]
    if parquet:
        _check_parquet(parquet, where)
    elif cifar := read_cifar(folder, files):
        return _selected(cifar, selection, where)
    import datasets

    kind = "parquet" if parquet else "imagefolder"
    with _clear_errors(where), _quiet():
        # Streamed: `datasets` would first write a second copy of the whole set.
        loaded = datasets.load_dataset(kind, data_dir=str(folder), streaming=True)
        source = _read(loaded, where, selection, progress)
    return _store(key, source)


def _check_parquet(files: list[Path], where: str) -> None:
    """Name the file that is damaged, or has other columns than the first."""
    import pyarrow
    import pyarrow.parquet

    columns: list[str] = []
    for file in files:
        try:
            names = pyarrow.parquet.read_schema(file).names
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{where} cannot be read: {file.name}: {_line(error)}") from None
        if sorted(names) != sorted(columns or names):
            raise InputError(
                f"{where}: {file.name} has the columns {', '.join(names)}, "
                f"{files[0].name} has {', '.join(columns)} (accepted: the same in all files)"
            )
        columns = columns or names


def _key(selection: Selection, *what: Any) -> str:
    """Name of the cache file for what is read."""
    return content_hash([_VERSION, MAX_SIDE, MAX_IMAGES, astuple(selection), *what])


def _load_hub(name: str) -> Any:
    import datasets

    accepted = "give a local folder with its Parquet files instead, DATA=path/to/folder"
    # Asked first, because `datasets` retries for half a minute before it looks into its cache.
    offline = not _reachable()
    try:
        with _offline() if offline else contextlib.nullcontext(), _quiet(bars=True):
            return datasets.load_dataset(HUB[name])
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = "the Hugging Face hub is out of reach" if offline else _line(error)
        raise InputError(f"cannot load {name} ({HUB[name]}): {reason}; {accepted}") from None


def _reachable() -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=10):
            return True
    except urllib.error.HTTPError:
        return True  # it answered
    except OSError:
        return False


def _read(loaded: Any, where: str, selection: Selection, progress: Progress) -> Source:
    """Turn a (streamed or not) DatasetDict into arrays."""
    if "train" not in loaded:
        raise InputError(f"{where} has no train split (found: {', '.join(loaded)})")
    features = loaded["train"].features or {}
    image, label = _columns(features, where)
    names = getattr(features[label], "names", None)
    labels = {s: _labels(loaded[s], label, f"{where}, {s}") for s in SPLITS if s in loaded}
    labels = {s: v for s, v in labels.items() if s == "train" or (v >= 0).any()}
    num_classes = len(names) if names else int(labels["train"].max(initial=-1)) + 1
    for split, values in labels.items():
        wrong = values[(values < 0) | (values >= num_classes)]
        if len(wrong):
            raise InputError(
                f"{where}: label {wrong[0]} in {split} (accepted: 0..{num_classes - 1})"
            )
    if num_classes < 2:
        raise InputError(f"{where} has {num_classes} classes; at least 2 are needed")
    keep = {split: _sample(values, selection) for split, values in labels.items()}
    encoded = {split: _encoded(loaded[split], image) for split in labels}
    geometry = _geometry(encoded["train"], image, f"{where}, train", selection)
    _check_memory([len(indices) for indices in keep.values()], geometry, selection, where)
    notes = []
    splits: dict[str, Arrays] = {}
    for split, values in labels.items():
        if len(keep[split]) < len(values):
            notes.append(_sampled(split, len(keep[split]), len(values)))
        images, resized = _images(
            encoded[split], image, keep[split], geometry, selection, f"{where}, {split}", progress
        )
        if resized:
            notes.append(f"{split}: images resized to {geometry[1]}x{geometry[0]}")
        splits[split] = images, values[keep[split]]
    return splits, num_classes, tuple(notes)


def _selected(source: Source, selection: Selection, where: str) -> Source:
    """Take of decoded images what is wanted."""
    splits, num_classes, notes = source
    keep = {split: _sample(labels, selection) for split, (_, labels) in splits.items()}
    height, width, channels = splits["train"][0].shape[1:]
    side = selection.side
    geometry = (side, side, channels) if side else (height, width, channels)
    _check_memory([len(indices) for indices in keep.values()], geometry, selection, where)
    result: dict[str, Arrays] = {}
    for split, (images, labels) in splits.items():
        if len(keep[split]) < len(labels):
            notes += (_sampled(split, len(keep[split]), len(labels)),)
        images = images[keep[split]]
        if side:
            fitted = (_fitted(Image.fromarray(i), geometry, selection) for i in images)
            images = np.stack([np.asarray(picture) for picture in fitted])
            notes += (f"{split}: images resized to {side}x{side}",)
        result[split] = images, labels[keep[split]]
    return result, num_classes, notes


def _sampled(split: str, taken: int, images: int) -> str:
    return f"{split}: a stratified sample of {taken} of {images} images"


def _check_memory(images: list[int], geometry: Geometry, selection: Selection, where: str) -> None:
    """Refuse splits of so many images that do not fit into `MAX_BYTES` together."""
    height, width, channels = geometry
    each = height * width * channels
    needed = sum(images) * each
    if needed <= MAX_BYTES:
        return
    fitting = max(1, MAX_BYTES // (each * len(images)))  # of each split
    unit = 10 ** max(0, len(str(fitting)) - 2)
    side = f"side={selection.side}," if selection.side else ""
    raise InputError(
        f"{where}: {sum(images)} images of {width}x{height} take {needed / 1e9:.1f} GB of memory, "
        f"over the {MAX_BYTES / 1e9:g} GB accepted; take a part of each split, as in "
        f"DATA=NAME:{side}images={fitting // unit * unit}"
    )


def _columns(features: Any, where: str) -> tuple[str, str]:
    """Names of the image and of the label column: the usual ones, else the first of their type."""
    import datasets

    images = [c for c in _IMAGE_COLUMNS if c in features]
    images += [c for c, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [c for c in _LABEL_COLUMNS if c in features]
    labels += [c for c, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    for kind, found in (("image", images), ("label", labels)):
        if not found:
            columns = ", ".join(features) or "none"
            raise InputError(
                f"{where} has no {kind} column, found {columns} (accepted: {_ACCEPTED})"
            )
    return images[0], labels[0]


def _labels(split: Any, column: str, where: str) -> np.ndarray:
    values: list[Any] = []
    for batch in split.select_columns([column]).iter(batch_size=4096):
        values += batch[column]
    if not all(isinstance(v, int) for v in values):
        wrong = next(v for v in values if not isinstance(v, int))
        what = "a missing label" if wrong is None else f"label {wrong!r}, which is no integer"
        raise InputError(f"{where}: {what}")
    if not values:
        raise InputError(f"{where} is empty")
    return np.array(values, dtype=np.int64)


def _sample(labels: np.ndarray, selection: Selection) -> np.ndarray:
    """Indices of as many images as are wanted, evenly spread over each class and the split."""
    wanted = selection.images or MAX_IMAGES
    if len(labels) <= wanted:
        return np.arange(len(labels))
    by_class = np.argsort(labels, kind="stable")
    picks = np.arange(wanted) * len(labels) // wanted
    return np.sort(by_class[picks])


def _encoded(split: Any, column: str) -> Any:
    """Return the images of a split as they are stored."""
    import datasets

    return split.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _images(
    encoded: Any,
    column: str,
    keep: np.ndarray,
    geometry: Geometry,
    selection: Selection,
    where: str,
    progress: Progress,
) -> tuple[np.ndarray, bool]:
    """Decode the images at `keep`; returns them and whether one was resized."""
    wanted = np.zeros(int(keep[-1]) + 1, dtype=bool)
    wanted[keep] = True
    height, width, channels = geometry
    images = np.empty((len(keep), height, width, channels), dtype=np.uint8)
    done, resized = 0, False
    with progress.task(f"decode {where}", len(keep)) as advance:
        for index, row in enumerate(encoded):
            if index >= len(wanted):
                break
            if not wanted[index]:
                continue
            picture = _open(row[column], f"{where}, image {index}")
            picture = picture.convert("L" if channels == 1 else "RGB")
            fitted = _fitted(picture, geometry, selection)
            resized |= fitted is not picture
            images[done] = np.asarray(fitted).reshape(height, width, channels)
            done += 1
            if done % 1000 == 0 or done == len(keep):
                advance((done - 1) % 1000 + 1)
    return images, resized


def _fitted(picture: Image.Image, geometry: Geometry, selection: Selection) -> Image.Image:
    """Return a picture at the size of the set; itself where it has that already."""
    height, width, _ = geometry
    if selection.side:
        shorter = round(selection.side * 256 / 224)
        scale = shorter / min(picture.size)
        size = [max(shorter, round(extent * scale)) for extent in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        return picture.crop((left, top, left + width, top + height))
    if picture.size == (width, height):
        return picture
    return ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)


def _geometry(encoded: Any, column: str, where: str, selection: Selection) -> Geometry:
    """(H, W, C) of a set: size of its first image, colour if one of the first 100 has it."""
    first = [_open(row[column], f"{where}, image {i}") for i, row in enumerate(encoded.take(100))]
    width, height = first[0].size
    if max(width, height) > MAX_SIDE:
        width = height = MAX_SIDE
    if selection.side:
        width = height = selection.side
    return height, width, 1 if all(p.mode in _GREY_MODES for p in first) else 3


def _open(value: Any, where: str) -> Image.Image:
    if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
        raise InputError(f"{where}: the image is missing")
    if value.get("path"):
        where += f" ({'/'.join(Path(value['path']).parts[-2:])})"
    try:
        picture = Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"])
        picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise InputError(f"{where}: the image is corrupt") from None
    if picture.mode in _DEEP_MODES:
        raise InputError(f"{where}: over 8 bits per channel (mode {picture.mode})")
    return picture


def _cache_file(key: str) -> Path:
    root = os.environ.get("TRILAT_CACHE") or "~/.cache/trilat"
    return Path(root).expanduser() / "data" / f"{key}.npz"


def _cached(key: str) -> Source | None:
    try:
        with np.load(_cache_file(key), allow_pickle=False) as file:
            splits = {s: (file[f"{s}.images"], file[f"{s}.labels"]) for s in file["splits"]}
            return splits, int(file["num_classes"]), tuple(str(n) for n in file["notes"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None  # absent or damaged: decode again


def _store(key: str, source: Source) -> Source:
    splits, num_classes, notes = source
    arrays: dict[str, Any] = {f"{s}.images": images for s, (images, _) in splits.items()}
    arrays |= {f"{s}.labels": labels for s, (_, labels) in splits.items()}
    # Without room for the cache the next run decodes again; nothing else is lost.
    with contextlib.suppress(OSError), replacing(_cache_file(key)) as temporary:
        np.savez(
            temporary,
            splits=np.array(list(splits), dtype=np.str_),
            num_classes=np.array(num_classes),
            notes=np.array(notes, dtype=np.str_),
            **arrays,
        )
    return source


@contextlib.contextmanager
def _clear_errors(where: str) -> Iterator[None]:
    """Turn what `datasets` and Arrow raise on unreadable data into one line."""
    import datasets
    import pyarrow

    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as e:
        raise InputError(f"{where} cannot be read: {_line(e)} (accepted: {_ACCEPTED})") from None


@contextlib.contextmanager
def _quiet(*, bars: bool = False) -> Iterator[None]:
    """Keep log lines of `datasets` off the terminal, and its progress bars unless `bars`."""
    import datasets

    level, shown = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if not bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not shown:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """What HF_HUB_OFFLINE=1 does, for a while: look into the local cache alone, at once."""
    import datasets
    import huggingface_hub

    modules: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [m.HF_HUB_OFFLINE for m in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
