# SPDX-License-Identifier: Apache-2.0
"""Which weight lies in which cells of a chip's memory, and what it then reads as.

The weights of a network are one array of codes: layer after layer, each in the order (out, in,
kh, kw) of its tensor. Biases are no part of it: they travel with the parameter words.

A faulty word reads as ``(code & keep) ^ invert``, bit by bit: a good cell has keep 1 and invert 0,
a flipping one 1 and 1, one stuck at 0 has 0 and 0, one stuck at 1 has 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from quant import engine
from quant.fault_map import KINDS, FaultMap, MemoryGeometry
from quant.network import Gemm, IntegerNetwork, Node
from trilat.errors import InputError

_BATCH = 64

# Gives a node's output from its inputs, as `engine.run_node` does.
RunNode = Callable[[IntegerNetwork, Node, Sequence[Tensor]], Tensor]


@dataclass(frozen=True, kw_only=True)
class WeightMapping:
    """How the array of weights is laid into a memory.

    The memory is a row of slots of `pitch` bits, as many to a word as fit; a weight takes the
    lowest bits of its slot. So networks of all widths meet the same cells at one pitch.

    Attributes:
        offset: slot of the first weight.
        tiled: the memory is a buffer that is filled again and again: weight i lies in slot
            (offset + i) modulo the number of slots, and one cell serves many weights. Otherwise
            every weight has a slot of its own.
        pitch: bits of a slot.
    """

    offset: int = 0
    tiled: bool = False
    pitch: int = 8

    def __post_init__(self) -> None:
        """Raise InputError for a negative offset or a pitch outside 2..64."""
        if self.offset < 0:
            raise InputError(f"the offset of the weights must be at least 0, not {self.offset}")
        if not 2 <= self.pitch <= 64:
            raise InputError(f"the pitch must be 2..64 bits, not {self.pitch}")


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightFaults:
    """The faulty words among a network's weights; nothing is kept of the others.

    Attributes:
        weights: codes of the network.
        bits: of a code.
        index: int32 (F,), ascending: which weights have a faulty cell.
        keep, invert: int8 (F,), sign-extended like the codes that they apply to.
    """

    weights: int
    bits: int
    index: np.ndarray
    keep: np.ndarray
    invert: np.ndarray

    def read(self, codes: np.ndarray) -> np.ndarray:
        """Return what the memory gives when `codes`, int8 (weights,), were written to it."""
        result = codes.copy()
        result[self.index] = (codes[self.index] & self.keep) ^ self.invert
        return result

    def part(self, start: int, stop: int) -> WeightFaults:
        """Return the faults of weights start..stop - 1, counted from `start`."""
        first, last = np.searchsorted(self.index, (start, stop))
        return WeightFaults(
            weights=stop - start,
            bits=self.bits,
            index=self.index[first:last] - np.int32(start),
            keep=self.keep[first:last],
            invert=self.invert[first:last],
        )


def check_holds(
    geometry: MemoryGeometry, *, weights: int, bits: int, mapping: WeightMapping
) -> int:
    """Return the slots of a memory; raise InputError if it cannot hold the weights."""
    pitch = mapping.pitch
    per_word = geometry.bits // pitch
    if bits > pitch or not per_word:
        raise InputError(
            f"weights of {bits} bits in slots of {pitch} do not fit words of {geometry.bits} bits"
        )
    slots = geometry.words * per_word
    if not mapping.tiled and mapping.offset + weights > slots:
        raise InputError(
            f"the memory of {geometry.words} words of {geometry.bits} bits has {slots} slots of "
            f"{pitch} bits and cannot hold {weights} weights from slot {mapping.offset} on "
            "(accepted: a larger memory, a smaller offset, or weights tiled onto it)"
        )
    return slots


def faults_of_weights(
    fault_map: FaultMap, *, weights: int, bits: int, mapping: WeightMapping
) -> WeightFaults:
    """Return the faulty words among `weights` codes of `bits` bits on a chip.

    Raises:
        InputError: the memory cannot hold them.
    """
    geometry, pitch = fault_map.geometry, mapping.pitch
    slots = check_holds(geometry, weights=weights, bits=bits, mapping=mapping)
    per_word = geometry.bits // pitch
    word, place = np.divmod(fault_map.cells, geometry.bits)
    slot, bit = np.divmod(place, pitch)
    used = (slot < per_word) & (bit < bits)
    index = (word * per_word + slot)[used] - mapping.offset
    bit, kind = bit[used], fault_map.kinds[used]
    if mapping.tiled:
        index %= slots
        copies = -(-weights // slots)
        order = np.argsort(index, kind="stable")
        index = (index[order][None] + slots * np.arange(copies)[:, None]).ravel()
        bit, kind = np.tile(bit[order], copies), np.tile(kind[order], copies)
    inside = (index >= 0) & (index < weights)
    index, bit, kind = index[inside], bit[inside], kind[inside]
    # The highest bit of a code stands for all above it, since a code is kept sign-extended.
    cell = np.where(bit == bits - 1, -(1 << (bits - 1)), 1 << bit).astype(np.int8)
    stuck, flips = kind != KINDS.index("flip"), kind != KINDS.index("stuck0")
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    return WeightFaults(
        weights=weights,
        bits=bits,
        index=index[starts].astype(np.int32),
        keep=~_joined(np.where(stuck, cell, np.int8(0)), starts),
        invert=_joined(np.where(flips, cell, np.int8(0)), starts),
    )


def _joined(masks: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the disjunction of each run of masks."""
    return np.bitwise_or.reduceat(masks, starts) if len(starts) else masks[:0]


def weight_codes(network: IntegerNetwork) -> np.ndarray:
    """Return the weights of a network as they are written to a memory, int8 (weights,)."""
    return np.concatenate([node.weight.ravel() for node in network.gemms()])


def split_layers(values: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Return the parts of an array over all weights, one per layer, as views of its shape."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    parts = np.split(values, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def logits_of(
    network: IntegerNetwork,
    codes: Tensor,
    weights: np.ndarray,
    *,
    run_node: RunNode = engine.run_node,
) -> Tensor:
    """Return the raw logits of a network that reads other weights, int32 (N, classes).

    Args:
        network: whose weights are replaced.
        codes: image codes (N, C, H, W).
        weights: int8 (weights,), any code of the width, -2**(bits - 1) too.
        run_node: computes a node; by default without protection.
    """
    return torch.cat(list(_logits(network, codes, weights, run_node)))


def _logits(
    network: IntegerNetwork, codes: Tensor, weights: np.ndarray, run_node: RunNode
) -> Iterator[Tensor]:
    gemms = network.gemms()
    parts = split_layers(weights, [node.weight.shape for node in gemms])
    read = {n.name: replace(n, weight=part) for n, part in zip(gemms, parts, strict=True)}
    last_use = {name: node.name for node in network.nodes for name in node.inputs}
    for batch in codes.split(_BATCH):
        values = {"input": batch}
        for node in network.nodes:
            faulty: Node = read[node.name] if isinstance(node, Gemm) else node
            values[node.name] = run_node(network, faulty, [values[i] for i in node.inputs])
            for name in node.inputs:
                if last_use[name] == node.name:
                    values.pop(name, None)
        yield values[network.nodes[-1].name]
