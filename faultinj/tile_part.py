# SPDX-License-Identifier: Apache-2.0
"""The part of a layer that register faults can reach: some rows and columns of output tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from faultinj.faults import RegisterFault, mask_of, written
from hdl.config import AcceleratorConfig
from hdl.registers import register_slice


@dataclass(frozen=True, kw_only=True, eq=False)
class TilePart:
    """Rows x columns of one or more output tiles of M rows, as the accelerator sees them.

    Attributes:
        acts: int64 (r, K) codes behind the input check, K filled up to whole K tiles.
        weights: int64 (K, n).
        bias, multiplier, shift, lo, hi: int64 (n,).
        lo_is_bound, hi_is_bound: bool (n,).
        index: int64 (r,), which row of its output tile each row is.
        cols: int64 (n,), which column of the array each column is.
        m: rows of the tiles.
        signed_in, signed_out, raw: as in `hdl.tile.TileJob`.
    """

    acts: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    lo_is_bound: np.ndarray
    hi_is_bound: np.ndarray
    index: np.ndarray
    cols: np.ndarray
    m: int
    signed_in: bool
    signed_out: bool
    raw: bool

    def k_tiles(self, config: AcceleratorConfig) -> int:
        """Return the K tiles; for an output-stationary array they are K itself."""
        return self.acts.shape[1] // config.k_step

    def taken(self, rows: np.ndarray, cols: np.ndarray) -> TilePart:
        """Return the part of it at these rows and columns, given as boolean masks."""
        per_column = (
            "bias",
            "multiplier",
            "shift",
            "lo",
            "hi",
            "lo_is_bound",
            "hi_is_bound",
            "cols",
        )
        return replace(
            self,
            acts=self.acts[rows],
            weights=self.weights[:, cols],
            index=self.index[rows],
            **{name: getattr(self, name)[cols] for name in per_column},
        )


class Corruption:
    """Faults by the register that they are in, in the order of the list."""

    def __init__(
        self, config: AcceleratorConfig, signed_in: bool, faults: Sequence[RegisterFault]
    ) -> None:
        """Sort the faults; `signed_in` is how activation codes are read."""
        self.config, self.signed_in = config, signed_in
        self.faults = tuple(faults)
        self._at: dict[tuple[str, int, int], list[int]] = {}
        for number, fault in enumerate(faults):
            place = (fault.register, fault.row, fault.col)
            self._at.setdefault(place, []).append(number)

    def places(self, *registers: str) -> list[tuple[int, int]]:
        """Return (row, col) of every fault in these classes, ascending and once each."""
        return sorted({(row, col) for name, row, col in self._at if name in registers})

    def at(self, register: str, row: int, col: int) -> list[int]:
        """Return the numbers of the faults in a register."""
        return self._at.get((register, row, col), [])

    def applied(
        self,
        value: np.ndarray,
        register: str,
        row: int,
        col: int,
        hits: Sequence[np.ndarray] | np.ndarray,
    ) -> np.ndarray:
        """Return what a register holds under its faults, int64 as `value`.

        Args:
            value: right values.
            register, row, col: of the register.
            hits: of every fault, which values it meets; broadcasts with `value`.
        """
        for number in self.at(register, row, col):
            fault = self.faults[number]
            width = register_slice(self.config, register, row, col).bits
            # Of an activation's own bits the tile says how they are read.
            code = register in ("skew", "pe_activation") and width == self.config.act_bits
            signed = self.signed_in if code else True
            wrong = written(value, width, signed, mask_of(fault.bits), fault.kind)
            value = np.where(hits[number], wrong, value)
        return value
