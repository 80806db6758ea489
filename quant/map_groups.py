# SPDX-License-Identifier: Apache-2.0
"""Fault maps of several chips as one, and which chips to take together.

After TRE-Map, as far as `quant.chip_training` says: what is done where chips disagree on a cell,
and that chips are grouped by the overlap of their maps, is our reading.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quant.fault_map import KINDS, FaultMap
from quant.method_names import POLICIES
from trilat.errors import InputError, unknown_name


def merge_maps(maps: Sequence[FaultMap], policy: str = "majority") -> FaultMap:
    """Return the map in which every cell is faulty that is so on any of the chips.

    Args:
        maps: of chips with one geometry.
        policy: where chips disagree on the value that a cell is stuck at: ``majority`` takes the
            more frequent value, and of two equally frequent ones that of the cell's parity;
            ``ignore`` takes the cell for a good one.

    Raises:
        InputError: no map, an unknown policy, different geometries, or cells that flip in one of
            several maps: no one code is right both where a cell flips and where it does not.
    """
    if not maps:
        raise InputError("merging needs at least one fault map")
    if policy not in POLICIES:
        raise unknown_name("merge policy", policy, list(POLICIES))
    first = maps[0]
    if len(maps) == 1:
        return first
    if any(m.geometry != first.geometry for m in maps):
        raise InputError("fault maps of chips with different memories cannot be merged")
    kinds = np.concatenate([m.kinds for m in maps])
    if (kinds == KINDS.index("flip")).any():
        raise InputError("only maps of stuck cells can be merged; one of these has cells that flip")
    cells, place = np.unique(np.concatenate([m.cells for m in maps]), return_inverse=True)
    at_one = np.bincount(place, kinds == KINDS.index("stuck1"), len(cells))
    at_zero = np.bincount(place, kinds == KINDS.index("stuck0"), len(cells))
    thresholds = np.ones(len(cells))
    np.minimum.at(thresholds, place, np.concatenate([m.thresholds for m in maps]))
    ones = np.where(at_one == at_zero, cells % 2 == 1, at_one > at_zero)
    merged = FaultMap(
        geometry=first.geometry,
        cells=cells,
        kinds=np.where(ones, KINDS.index("stuck1"), KINDS.index("stuck0")).astype(np.uint8),
        thresholds=thresholds,
        rate=max(m.rate for m in maps),
        origin={"merged": [m.origin for m in maps], "policy": policy},
    )
    if policy == "ignore":
        return merged.subset((at_one == 0) | (at_zero == 0))
    return merged


def similarity(one: FaultMap, other: FaultMap) -> float:
    """Return the cells that are faulty alike in both maps over those faulty in any, 0..1."""
    common, mine, theirs = np.intersect1d(one.cells, other.cells, True, True)
    alike = int((one.kinds[mine] == other.kinds[theirs]).sum())
    union = len(one) + len(other) - len(common)
    return alike / union if union else 1.0


def group_chips(maps: Sequence[FaultMap], size: int) -> tuple[tuple[int, ...], ...]:
    """Return groups of at most `size` chips with similar maps, as indices.

    Greedy: a group starts with the first chip left and takes the one most similar to its members
    on average until it is full.

    Raises:
        InputError: a size below 1.
    """
    if size < 1:
        raise InputError(f"a group must have at least 1 chip, not {size}")
    likeness = np.array([[similarity(a, b) for b in maps] for a in maps])
    left = list(range(len(maps)))
    groups = []
    while left:
        group = [left.pop(0)]
        while left and len(group) < size:
            best = max(left, key=lambda chip: (likeness[chip, group].mean(), -chip))
            left.remove(best)
            group.append(best)
        groups.append(tuple(group))
    return tuple(groups)
