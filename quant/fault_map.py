# SPDX-License-Identifier: Apache-2.0
"""A chip's weight memory and which of its cells are faulty: the one bit model of the project.

Training for a chip, quantization for a chip and campaigns over chips all read words as described
here, so it lives in `quant`, below all of them. `faultinj.random_maps` draws maps,
`quant.weight_memory` says which weight lies in which cells.

A chip file is one safetensors file, version 1:

- tensors of equal length, one entry per faulty cell in ascending order of `cells`: `cells` (int64,
  word * bits + bit, bit 0 the lowest), `kinds` (uint8, index into `KINDS`), `thresholds` (float64);
- metadata key `trilat.chip`: JSON with `version`, `geometry` (words, bits, words_per_row,
  interleaved), `rate` (up to which the map is complete) and `origin` (how it came about).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trilat.errors import InputError
from trilat.files import replacing

FORMAT_VERSION = 1
KINDS = ("flip", "stuck0", "stuck1")
_ARRAYS = {"cells": np.int64, "kinds": np.uint8, "thresholds": np.float64}
_MAX_CELLS = 1 << 40


@dataclass(frozen=True, kw_only=True)
class MemoryGeometry:
    """The cells of a memory: words of bits, in rows of whole words.

    Attributes:
        words: how many there are.
        bits: of a word.
        words_per_row: words that share a row of the array; it divides `words`.
        interleaved: the cells of one bit of all words of a row lie side by side, as a column
            multiplexer wants it; otherwise each word's bits do.
    """

    words: int
    bits: int
    words_per_row: int = 1
    interleaved: bool = True

    def __post_init__(self) -> None:
        """Raise InputError for sizes that are no memory."""
        for name in ("words", "bits", "words_per_row"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"a memory's {name} must be an integer above 0, not {value!r}")
        if self.cells > _MAX_CELLS:
            raise InputError(f"a memory of {self.cells} cells is too large (at most 2**40)")
        if self.words % self.words_per_row:
            raise InputError(
                f"words_per_row must divide the {self.words} words, {self.words_per_row} does not"
            )

    @property
    def cells(self) -> int:
        """Cells of the memory."""
        return self.words * self.bits

    @property
    def columns(self) -> int:
        """Cells of one row."""
        return self.words_per_row * self.bits

    def row_and_column(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where cells lie in the array.

        Args:
            cells: word * bits + bit, int64.
        """
        word, bit = np.divmod(cells, self.bits)
        row, place = np.divmod(word, self.words_per_row)
        if self.interleaved:
            return row, bit * self.words_per_row + place
        return row, place * self.bits + bit


@dataclass(frozen=True, kw_only=True, eq=False)
class FaultMap:
    """A chip: its weight memory and that memory's faulty cells.

    A cell that flips reads as the inverse of what was written; a stuck one reads as its value.
    Every faulty cell has a threshold, the fault rate from which on it is faulty (lower supply,
    higher rate): `at` gives the same chip at any lower rate, with a subset of its faults.

    Attributes:
        geometry: of the memory.
        cells: int64 (F,), ascending: word * bits + bit.
        kinds: uint8 (F,), indices into `KINDS`.
        thresholds: float64 (F,), in [0, rate]; 0 for a cell that is always faulty.
        rate: up to which the map is complete.
        origin: JSON-able account of how it came about, its seed included.
    """

    geometry: MemoryGeometry
    cells: np.ndarray
    kinds: np.ndarray
    thresholds: np.ndarray
    rate: float
    origin: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise InputError unless the arrays are as described above."""
        check_rate(self.rate)
        for name, dtype in _ARRAYS.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != (len(self.cells),):
                raise InputError(
                    f"a fault map's {name} must be {np.dtype(dtype).name} ({len(self.cells)},), "
                    f"not {array.dtype.name} {array.shape}"
                )
        if not len(self.cells):
            return
        if self.cells[0] < 0 or self.cells[-1] >= self.geometry.cells:
            raise InputError(f"a fault map names cells outside its {self.geometry.cells} cells")
        if not (np.diff(self.cells) > 0).all():
            raise InputError("a fault map's cells must be ascending, each named once")
        if self.kinds.max() >= len(KINDS):
            raise InputError(f"a fault map's kinds must be 0..{len(KINDS) - 1}")
        if not ((self.thresholds >= 0) & (self.thresholds <= self.rate)).all():
            raise InputError(f"a fault map's thresholds must be in 0..{self.rate:g}, its rate")

    def __len__(self) -> int:
        """Return the number of faulty cells."""
        return len(self.cells)

    def at(self, rate: float) -> FaultMap:
        """Return the same chip at a lower fault rate.

        Raises:
            InputError: the map is not complete up to that rate.
        """
        check_rate(rate)
        if rate > self.rate:
            raise InputError(
                f"the fault map is complete up to a rate of {self.rate:g}, {rate:g} was asked for"
            )
        return self.subset(self.thresholds <= rate, rate)

    def subset(self, chosen: np.ndarray, rate: float | None = None) -> FaultMap:
        """Return the map with the chosen faults alone, bool (F,)."""
        return FaultMap(
            geometry=self.geometry,
            cells=self.cells[chosen],
            kinds=self.kinds[chosen],
            thresholds=self.thresholds[chosen],
            rate=self.rate if rate is None else rate,
            origin=self.origin,
        )

    def save(self, path: Path) -> None:
        """Write the chip file."""
        header = {
            "version": FORMAT_VERSION,
            "geometry": asdict(self.geometry),
            "rate": self.rate,
            "origin": self.origin,
        }
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        with replacing(Path(path)) as temporary:
            save_file(arrays, temporary, metadata={"trilat.chip": json.dumps(header)})

    @staticmethod
    def load(path: Path) -> FaultMap:
        """Read a chip file.

        Raises:
            InputError: no such file, truncated, of another version, or not a fault map.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no such chip file: {path}")
        try:
            with safe_open(path, framework="np") as file:
                text = (file.metadata() or {}).get("trilat.chip")
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path} is no chip file, or truncated: {reason}") from None
        if text is None:
            raise InputError(f"{path} is a safetensors file without a fault map")
        try:
            header = json.loads(text)
            version = header["version"]
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{path} is a damaged chip file: unreadable header") from None
        if version != FORMAT_VERSION:
            raise InputError(
                f"{path} is a chip file of version {version!r}; version {FORMAT_VERSION} is read"
            )
        try:
            return FaultMap(
                geometry=MemoryGeometry(**header["geometry"]),
                rate=float(header["rate"]),
                origin=header["origin"],
                **{name: arrays[name] for name in _ARRAYS},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is a damaged chip file: {error}") from None


def check_rate(rate: float) -> None:
    """Raise InputError unless a fault rate is a probability."""
    if not 0 <= rate <= 1:
        raise InputError(f"a fault rate must be a probability in 0..1, not {rate:g}")
