# SPDX-License-Identifier: Apache-2.0
"""Random fault maps of chips: one uniform number per cell decides from which rate on it fails.

The error model is RandBET's (Stutz et al., MLSys 2021): u is drawn once per cell and chip, and the
cell is faulty iff u <= p, so the faults at a lower rate are a subset of those at a higher one. The
paper's profiled SRAMs show errors in columns, and more of one polarity; `column_spread` and
`stuck1_share` stand for that. Their distribution over columns was not published: the gamma
distribution is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quant.fault_map import KINDS, FaultMap, MemoryGeometry, check_rate
from trilat.errors import InputError, unknown_name

MAP_KINDS = (*KINDS, "stuck")
# One random word of 64 bits per cell: the upper 40 bits are u, the lower 24 choose the polarity.
_U_BITS, _POLARITY_BITS = 40, 24
_BLOCK_CELLS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What the RandBET paper tells of a profiled SRAM chip.

    Attributes:
        rates: measured shares of faulty cells, one per supply voltage.
        stuck1_share: share of 0 -> 1 errors at the highest of them.
        column_spread: standard deviation of the columns' relative rates. Chips 2 and 3 are said
            to err along columns; the number is ours.
    """

    rates: tuple[float, ...]
    stuck1_share: float
    column_spread: float


PROFILES = {
    "profile1": Profile(
        rates=(0.02744, 0.00866), stuck1_share=1.27 / (1.27 + 1.47), column_spread=0.0
    ),
    "profile2": Profile(
        rates=(0.04707, 0.0101, 0.00136), stuck1_share=3.443 / (3.443 + 1.091), column_spread=2.0
    ),
    "profile3": Profile(
        rates=(0.02297, 0.00597), stuck1_share=1.81 / (1.81 + 0.48), column_spread=2.0
    ),
}


def random_map(
    geometry: MemoryGeometry,
    *,
    rate: float,
    kind: str = "flip",
    stuck1_share: float = 0.5,
    column_spread: float = 0.0,
    seed: int,
    chip: int = 0,
) -> FaultMap:
    """Draw the faulty cells of one chip.

    Args:
        geometry: of its memory.
        rate: expected share of faulty cells, in [0, 1].
        kind: of all faults, of `quant.fault_map.KINDS`; or ``stuck``: at either value.
        stuck1_share: of ``stuck``, the share stuck at 1.
        column_spread: 0 for independent cells; else the standard deviation of the columns'
            relative rates, which are gamma-distributed with mean 1. A column's cells cannot be
            more than all faulty, so at high rates the share of faulty cells stays below `rate`.
        seed, chip: the random stream; the other arguments do not touch u.

    Raises:
        InputError: a share or rate outside [0, 1], a negative spread or seed, an unknown kind.
    """
    check_rate(rate)
    if kind not in MAP_KINDS:
        raise unknown_name("kind of fault", kind, list(MAP_KINDS))
    if not 0 <= stuck1_share <= 1:
        raise InputError(f"the share of cells stuck at 1 must be in 0..1, not {stuck1_share:g}")
    if not 0 <= column_spread < 100:
        raise InputError(f"the column spread must be in 0..100, not {column_spread:g}")
    if seed < 0 or chip < 0:
        raise InputError(f"seed and chip number must be at least 0, not {seed} and {chip}")
    weights = _column_weights(geometry, column_spread, seed, chip)
    limits = np.floor(np.minimum(rate * weights, 1.0) * 2.0**_U_BITS)
    source = np.random.PCG64(np.random.SeedSequence([seed, chip]))
    rows_per_block = max(1, _BLOCK_CELLS // geometry.columns)
    rows = geometry.words // geometry.words_per_row
    cells, numbers, polarities = [], [], []
    for row in range(0, rows, rows_per_block):
        count = min(rows_per_block, rows - row)
        raw = source.random_raw(count * geometry.columns)
        u = (raw >> np.uint64(_POLARITY_BITS)) + np.uint64(1)  # 1 .. 2**40
        faulty = np.flatnonzero((u.reshape(count, -1) <= limits.astype(np.uint64)).ravel())
        cells.append(faulty + row * geometry.columns)
        numbers.append(u[faulty])
        polarities.append(raw[faulty] & np.uint64((1 << _POLARITY_BITS) - 1))
    cell = np.concatenate(cells)
    thresholds = np.concatenate(numbers) / 2.0**_U_BITS / weights[cell % geometry.columns]
    return FaultMap(
        geometry=geometry,
        cells=cell,
        kinds=_kinds(kind, np.concatenate(polarities), stuck1_share),
        # A quotient may round to just above the rate that it was found at.
        thresholds=np.minimum(thresholds, rate),
        rate=rate,
        origin={
            "kind": kind,
            "stuck1_share": stuck1_share,
            "column_spread": column_spread,
            "seed": seed,
            "chip": chip,
        },
    )


@dataclass(frozen=True, kw_only=True)
class RandomChips(Sequence[FaultMap]):
    """Random chips, each drawn when it is asked for: only one needs to be in memory.

    Attributes:
        geometry, rate, kind, stuck1_share, column_spread, seed: as in `random_map`.
        chips: how many, numbers 0..chips - 1.
    """

    geometry: MemoryGeometry
    chips: int
    rate: float
    kind: str = "flip"
    stuck1_share: float = 0.5
    column_spread: float = 0.0
    seed: int = 0

    def at(self, rate: float) -> RandomChips:
        """Return the same chips at another fault rate, a higher one too."""
        return replace(self, rate=rate)

    def __len__(self) -> int:
        return self.chips

    def __getitem__(self, number: int) -> FaultMap:  # type: ignore[override]
        if not 0 <= number < self.chips:
            raise IndexError(number)
        return random_map(
            self.geometry,
            rate=self.rate,
            kind=self.kind,
            stuck1_share=self.stuck1_share,
            column_spread=self.column_spread,
            seed=self.seed,
            chip=number,
        )

    def __iter__(self) -> Iterator[FaultMap]:
        return (self[number] for number in range(self.chips))


def _kinds(kind: str, polarity: np.ndarray, stuck1_share: float) -> np.ndarray:
    if kind != "stuck":
        return np.full(len(polarity), KINDS.index(kind), dtype=np.uint8)
    at_one = polarity < stuck1_share * (1 << _POLARITY_BITS)
    return np.where(at_one, KINDS.index("stuck1"), KINDS.index("stuck0")).astype(np.uint8)


def _column_weights(geometry: MemoryGeometry, spread: float, seed: int, chip: int) -> np.ndarray:
    """Return the relative fault rate of every cell of a row in the order of cells, mean 1."""
    if spread == 0:
        return np.ones(geometry.columns)
    rng = np.random.default_rng([seed, chip, 1])
    # The least weight keeps thresholds finite.
    weights = np.maximum(rng.gamma(spread**-2, spread**2, geometry.columns), 1e-12)
    _, column = geometry.row_and_column(np.arange(geometry.columns))
    return (weights / weights.mean())[column]
