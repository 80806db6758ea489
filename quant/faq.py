# SPDX-License-Identifier: Apache-2.0
"""Quantization for one chip, after FAQ (Hanif and Shafique, IJCNN 2023).

Read in the source (the abstract): weights are quantized to what the stuck cells of their words can
hold, by a lookup table, without training. The rest is our reading: the table is indexed by a word's
fault pattern and the code that plain quantization gives, its entry is the nearest code that the
word can read as, and where two are equally near the unrounded weight decides. That is the code
nearest to the weight, since a weight lies within half a step of its plain code.

A flipping cell restricts nothing: its inverse is stored.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from quant.network import IntegerNetwork
from quant.weight_memory import WeightFaults
from trilat.errors import InputError
from trilat.files import replacing


class FaultAwareTable:
    """The lookup table for codes of one width. Rows are built when their pattern first occurs.

    Of the 3**bits patterns of stuck cells in a word few occur at usual rates. One table serves any
    number of chips.

    Attributes:
        bits: of a code, 2..8.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        # Row of a pattern, -1 where it has not occurred.
        self._row = np.full(1 << (2 * bits), -1, dtype=np.int32)
        # (pattern, whether the weight lies above its plain code, plain code as unsigned).
        self._rows = np.empty((0, 2, 1 << bits), dtype=np.int8)

    @property
    def patterns(self) -> int:
        """Patterns that have occurred, each with a row."""
        return len(self._rows)

    def nearest(
        self, faults: WeightFaults, plain: np.ndarray, unrounded: np.ndarray | None
    ) -> np.ndarray:
        """Return what each faulty word should read as, int8 (F,): of its codes the nearest.

        Args:
            faults: of the chip.
            plain: the faulty words' codes of plain quantization, (F,).
            unrounded: their weights before rounding in units of the scale, (F,); of the distance to
                `plain` the sign alone counts. Without them the lower of two equally near codes is
                taken.
        """
        mask = (1 << self.bits) - 1
        keep, invert = faults.keep.astype(np.int32), faults.invert.astype(np.int32)
        place = self._rows_of((keep & mask) << self.bits | (invert & ~keep & mask)) << 1
        if unrounded is not None:
            place |= unrounded > plain
        return self._rows.ravel()[place << self.bits | (plain.astype(np.int32) & mask)]

    def _rows_of(self, patterns: np.ndarray) -> np.ndarray:
        rows = self._row[patterns]
        if (rows < 0).any():
            new = np.unique(patterns[rows < 0])
            self._row[new] = len(self._rows) + np.arange(len(new))
            self._rows = np.concatenate([self._rows, self._built(new)])
            rows = self._row[patterns]
        return rows

    def _built(self, patterns: np.ndarray) -> np.ndarray:
        """Return the rows of patterns, int8 (P, 2, 2**bits)."""
        size = 1 << self.bits
        keep, value = np.divmod(patterns, size)
        ascending = np.arange(-size // 2, size // 2)
        reachable = (ascending % size & ~keep[:, None]) == value[:, None]
        # Nearest reachable code at or below each code, and at or above it; far away without one.
        below = np.maximum.accumulate(np.where(reachable, ascending, -4 * size), axis=1)
        above = np.where(reachable, ascending, 4 * size)
        above = np.minimum.accumulate(above[:, ::-1], axis=1)[:, ::-1]
        down, up = ascending - below, above - ascending
        rows = np.stack([np.where(down <= up, below, above), np.where(up <= down, above, below)], 1)
        # From ascending codes to unsigned words: 0 .. hi, then the negative ones.
        return np.roll(rows, -size // 2, axis=2).astype(np.int8)


def fault_aware_codes(
    codes: np.ndarray,
    faults: WeightFaults,
    *,
    unrounded: np.ndarray | None = None,
    table: FaultAwareTable | None = None,
) -> np.ndarray:
    """Return the codes to write to a chip's weight memory in place of those of a network.

    Where all faults are stuck cells, what is written is what is read.

    Args:
        codes: of the network, `quant.weight_memory.weight_codes`, int8 (weights,).
        faults: of the chip, for these weights.
        unrounded: the weights in units of their scales before rounding, float32 (weights,), by
            which ties are decided.
        table: of codes of this width, to be used for many chips.

    Raises:
        InputError: `unrounded` are not the weights that `codes` were rounded from.
    """
    plain, weights = codes[faults.index], None
    if unrounded is not None:
        if unrounded.shape != codes.shape:
            raise InputError(
                f"there are {unrounded.size} unrounded weights for {codes.size} of the network"
            )
        weights = unrounded[faults.index]
        limit = (1 << (faults.bits - 1)) - 1
        if not (np.abs(np.clip(weights, -limit, limit) - plain) <= 0.5).all():
            raise InputError("the unrounded weights are not those of this network")
    table = table or FaultAwareTable(faults.bits)
    result = codes.copy()
    result[faults.index] = table.nearest(faults, plain, weights) ^ (faults.invert & faults.keep)
    return result


def save_unrounded(path: Path, network: IntegerNetwork, unrounded: np.ndarray) -> None:
    """Write a network's weights before rounding beside it: one safetensors file.

    Args:
        path: of the file.
        network: that they belong to; its hash is in the file.
        unrounded: float32 (weights,), in units of the weights' scales.
    """
    header = json.dumps({"network": network.content_hash()})
    with replacing(Path(path)) as temporary:
        arrays = {"unrounded": np.ascontiguousarray(unrounded, dtype=np.float32)}
        save_file(arrays, temporary, metadata={"trilat.unrounded": header})


def load_unrounded(path: Path, network: IntegerNetwork) -> np.ndarray:
    """Read what `save_unrounded` wrote.

    Raises:
        InputError: no such file, truncated, something else, or of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file of unrounded weights: {path}")
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("trilat.unrounded")
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is no safetensors file, or truncated: {reason}") from None
    if text is None or "unrounded" not in arrays:
        raise InputError(f"{path} holds no unrounded weights (python -m quant.run --unrounded)")
    if json.loads(text).get("network") != network.content_hash():
        raise InputError(f"{path} holds the unrounded weights of another network")
    return arrays["unrounded"]
