# SPDX-License-Identifier: Apache-2.0
"""Faults inside a layer, in the integer engine: which outputs of a whole layer they change.

Register faults become rows and columns of output tiles by the schedule (`faultinj.tile_faults`),
weight faults one output channel. Only those outputs are computed again, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from faultinj.faults import (
    LayerFault,
    RegisterFault,
    WeightFault,
    check_register_fault,
    mask_of,
    written,
)
from faultinj.golden import Design
from faultinj.lowering import check_fits
from faultinj.propagation import Writes
from faultinj.protection import output_limits
from faultinj.tile_faults import faulty_outputs, golden_outputs, touched
from faultinj.tile_part import TilePart
from hdl.config import AcceleratorConfig
from hdl.schedule import GemmShape, OutputTile, output_tiles
from quant import engine
from quant.network import Gemm
from trilat.errors import InputError


class LayerFaultModel:
    """What register and weight faults do to the layers of a design on an accelerator."""

    def __init__(self, design: Design, config: AcceleratorConfig) -> None:
        """Remember the design."""
        self.design, self.config = design, config
        self._tiles: dict[str, list[OutputTile]] = {}
        self._fits = False

    def tiles(self, node: Gemm) -> list[OutputTile]:
        """Return the output tiles of a layer."""
        if node.name not in self._tiles:
            _, rows, cols = self.design.shapes[node.name]
            out, channels, kh, kw = node.weight.shape
            shape = GemmShape(
                m=rows * cols, k=channels * kh * kw, n=out // node.groups, groups=node.groups
            )
            self._tiles[node.name] = list(output_tiles(self.config, shape))
        return self._tiles[node.name]

    def check(self, node: Gemm, fault: LayerFault) -> None:
        """Raise InputError where a layer has no such weight, bit, tile or register."""
        if isinstance(fault, WeightFault):
            bits, size = self.design.network.weight_bits, node.weight.size
            if not 0 <= fault.element < size:
                raise InputError(f"{node.name} has weights 0..{size - 1}, not {fault.element}")
            if not fault.bits or min(fault.bits) < 0 or max(fault.bits) >= bits:
                raise InputError(f"weights have bits 0..{bits - 1}, not {fault.bits}")
            return
        if not self._fits:
            check_fits(self.design.network, self.config)
            self._fits = True
        check_register_fault(self.config, fault)
        count = len(self.tiles(node))
        if fault.tile is not None and not 0 <= fault.tile < count:
            raise InputError(f"{node.name} has output tiles 0..{count - 1}, not {fault.tile}")

    def writes(
        self,
        node: Gemm,
        faults: dict[int, list[LayerFault]],
        size: int,
        whole_input: Callable[[int], Tensor],
    ) -> Writes:
        """Return what faults of several inferences write.

        Args:
            node: the layer.
            faults: of each inference.
            size: inferences in the batch.
            whole_input: gives an inference's input codes (H, W, C), before the input check.
        """
        parts, violations = [], np.zeros(size, dtype=np.int64)
        for copy, several in faults.items():
            codes = self.design.layers[node.name].check_input(whole_input(copy).clone())
            new, more = self._changes(node, several, codes)
            violations[copy] = more
            parts += [(np.full(len(one[0]), copy), *one) for one in new]
        columns = [np.concatenate(c) for c in zip(*parts, strict=True)] if parts else [
            np.zeros(0, dtype=np.int64)] * 4  # fmt: skip
        width = self.design.shapes[node.name][2]
        copy, pixel, channel, value = columns
        return Writes(
            copy=copy, row=pixel // width, column=pixel % width, channel=channel, value=value,
            violations=violations,
        )  # fmt: skip

    def _changes(
        self, node: Gemm, faults: Sequence[LayerFault], codes: Tensor
    ) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray]], int]:
        """Return (pixels, channels, values) written in one inference, and further violations."""
        weight = node.weight
        changed: dict[int, np.ndarray] = {}
        for fault in faults:
            if isinstance(fault, WeightFault):
                weight = weight.copy() if weight is node.weight else weight
                flat = weight.reshape(-1)
                bits, element = self.design.network.weight_bits, fault.element
                flat[element] = written(
                    flat[element : element + 1], bits, True, mask_of(fault.bits), fault.kind
                )[0]
                changed[element // weight[0].size] = weight
        registers = [f for f in faults if isinstance(f, RegisterFault)]
        images = codes.permute(2, 0, 1)[None]
        new, violations = [], 0
        per_group = len(node.bias) // node.groups
        for channel in sorted(changed):
            group = channel // per_group
            acts = engine.im2col(node, images, group).cpu().numpy().astype(np.int64)
            index = np.array([channel])
            sums = []
            for source in (weight, node.weight):
                column = source[channel].transpose(1, 2, 0).reshape(-1, 1)
                part = self._part(node, acts, column, index, np.arange(len(acts)), len(acts), 0)
                sums.append(golden_outputs(self.config, part))
            different = np.flatnonzero(sums[0][0][:, 0] != sums[1][0][:, 0])
            values = sums[0][0][different, 0]
            new.append((different, np.full(len(different), channel), values))
            violations += int(sums[0][1].sum()) - int(sums[1][1].sum())
        if registers:
            more, count = self._register_changes(node, weight, registers, images)
            new += more
            violations += count
        return new, violations

    def _register_changes(
        self,
        node: Gemm,
        weight: np.ndarray,
        faults: Sequence[RegisterFault],
        images: Tensor,
    ) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray]], int]:
        tiles = self.tiles(node)
        everywhere = [f for f in faults if f.tile is None]
        numbers = (
            range(len(tiles))
            if everywhere
            else sorted({f.tile for f in faults if f.tile is not None})
        )
        new, violations = [], 0
        per_group = len(node.bias) // node.groups
        acts: dict[int, np.ndarray] = {}
        # Tiles with the same faults, rows and group are one part, side by side.
        bundles: dict[tuple[object, ...], list[OutputTile]] = {}
        for number in numbers:
            tile = tiles[number]
            mine = tuple(i for i, f in enumerate(faults) if f.tile in (None, number))
            bundles.setdefault((tile.group, tile.m0, tile.m1, mine), []).append(tile)
        for (group, m0, m1, mine), several in bundles.items():
            assert isinstance(group, int) and isinstance(m0, int) and isinstance(m1, int)
            if group not in acts:
                acts = {group: engine.im2col(node, images, group).cpu().numpy().astype(np.int64)}
            here = [faults[i] for i in mine]  # type: ignore[attr-defined]
            channels = np.concatenate([np.arange(t.n0, t.n1) for t in several]) + group * per_group
            cols = np.concatenate([np.arange(t.n1 - t.n0) for t in several])
            matrix = weight[channels].transpose(2, 3, 1, 0).reshape(-1, len(channels))
            part = self._part(node, acts[group][m0:m1], matrix, channels, np.arange(m1 - m0),
                              m1 - m0, cols)  # fmt: skip
            rows, columns = touched(self.config, part, here)
            if not (rows.any() and columns.any()):
                continue
            part = part.taken(rows, columns)
            codes, violated = faulty_outputs(self.config, part, here)
            clean, before = golden_outputs(self.config, part)
            at = np.nonzero(codes != clean)
            pixels, chosen = m0 + np.flatnonzero(rows), channels[columns]
            new.append((pixels[at[0]], chosen[at[1]], codes[at]))
            violations += int(violated.sum()) - int(before.sum())
        return new, violations

    def _part(
        self,
        node: Gemm,
        acts: np.ndarray,
        weights: np.ndarray,
        channels: np.ndarray,
        index: np.ndarray,
        m: int,
        cols: np.ndarray | int,
    ) -> TilePart:
        """Return rows `acts` (r, K) and `channels` of a layer with weights (K, n)."""
        step = self.config.k_step
        spare = -acts.shape[1] % step
        limits = output_limits(node, self.design.protection)
        fmt_in = self.design.network.format_of(node.inputs[0])
        raw = node.output is None
        shift = np.zeros(len(node.bias), np.int64) if raw else self.design.network.shift(node)
        return TilePart(
            acts=np.pad(acts, ((0, 0), (0, spare))),
            weights=np.pad(weights.astype(np.int64), ((0, spare), (0, 0))),
            bias=node.bias[channels],
            shift=shift[channels],
            lo=limits.lo[channels],
            hi=limits.hi[channels],
            lo_is_bound=limits.lo_is_bound[channels],
            hi_is_bound=limits.hi_is_bound[channels],
            index=index,
            cols=np.broadcast_to(np.asarray(cols), channels.shape),
            m=m,
            signed_in=fmt_in.signed,
            signed_out=node.output is None or node.output.signed,
            raw=raw,
        )
