# SPDX-License-Identifier: Apache-2.0
"""Faults inside a layer, in the integer engine: which outputs of a whole layer they change.

Register faults become rows and columns of output tiles by the schedule (`faultinj.tile_faults`),
weight faults one output channel. Only those outputs are computed again, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
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
from faultinj.lowering import check_fits, check_protection
from faultinj.propagation import Writes
from faultinj.protection import output_limits
from faultinj.register_times import ring_row
from faultinj.tile_faults import faulty_outputs, golden_outputs, touched
from faultinj.tile_part import TilePart
from hdl.config import AcceleratorConfig
from hdl.schedule import GemmShape, OutputTile, output_tiles
from hdl.tile import requantize
from quant import engine
from quant.network import Gemm
from trilat.errors import InputError

# Inferences with weight faults at a time.
_WEIGHT_BATCH = 32


class LayerFaultModel:
    """What register and weight faults do to the layers of a design on an accelerator."""

    def __init__(self, design: Design, config: AcceleratorConfig) -> None:
        """Remember the design."""
        self.design, self.config = design, config
        self._tiles: dict[str, list[OutputTile]] = {}
        # Output rows ahead of each tile of a layer, counted from the layer's or the inference's.
        self._rows_before: dict[tuple[str, bool], np.ndarray] = {}
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
            check_protection(self.design.protection, self.config)
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
        whole_inputs: Callable[[np.ndarray], Tensor],
    ) -> Writes:
        """Return what faults of several inferences write.

        Args:
            node: the layer.
            faults: of each inference.
            size: inferences in the batch.
            whole_inputs: gives inferences' input codes (n, H, W, C), before the input check.
        """
        layer = self.design.layers[node.name]
        parts, violations = [], np.zeros(size, dtype=np.int64)
        weights = {c: f for c, f in faults.items() if all(isinstance(x, WeightFault) for x in f)}
        for copies in _chunks(np.array(sorted(weights), dtype=np.int64)):
            codes = layer.check_input(whole_inputs(copies))
            new, more = self._weight_changes(node, [weights[int(c)] for c in copies], codes)
            violations[copies] += more
            parts.append((copies[new[0]], *new[1:]))
        for number, several in faults.items():
            if number not in weights:
                codes = layer.check_input(whole_inputs(np.array([number])))
                found, count = self._changes(node, several, codes[0])
                violations[number] = count
                parts += [(np.full(len(one[0]), number), *one) for one in found]
        columns = [np.zeros(0, dtype=np.int64)] * 4
        if parts:
            columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        width = self.design.shapes[node.name][2]
        copy, pixel, channel, value = columns
        return Writes(
            copy=copy, row=pixel // width, column=pixel % width, channel=channel, value=value,
            violations=violations,
        )  # fmt: skip

    def _faulty_filters(self, node: Gemm, faults: Sequence[LayerFault]) -> dict[int, np.ndarray]:
        """Return the filters (in / groups, kh, kw) with faulty weights, by output channel."""
        size = node.weight[0].size
        filters: dict[int, np.ndarray] = {}
        for fault in faults:
            if isinstance(fault, WeightFault):
                channel, element = divmod(fault.element, size)
                if channel not in filters:
                    filters[channel] = node.weight[channel].copy()
                at = slice(element, element + 1)
                flat = filters[channel].reshape(-1)
                flat[at] = written(
                    flat[at], self.design.network.weight_bits, True, mask_of(fault.bits), fault.kind
                )
        return filters

    def _weight_changes(
        self, node: Gemm, faults: Sequence[Sequence[LayerFault]], codes: Tensor
    ) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
        """Return (inference, pixel, channel, value) that weight faults write, and violations.

        One channel of one inference is a convolution with one filter: all of them are one grouped
        convolution, exact in floats.

        Args:
            node: the layer.
            faults: of each inference, weight faults alone.
            codes: (n, H, W, C) behind the input check.
        """
        size = node.weight[0].size
        jobs: list[tuple[int, int]] = []
        filters = []
        for number, several in enumerate(faults):
            for channel, faulty in sorted(self._faulty_filters(node, several).items()):
                jobs.append((number, channel))
                filters += [node.weight[channel], faulty]
        number, channel = np.array(jobs, dtype=np.int64).T
        kernel = np.stack(filters).astype(np.float64)
        bound = 255 * np.abs(kernel).reshape(len(kernel), -1).sum(axis=1).max()
        dtype = torch.float32 if bound < engine.EXACT_FLOAT32 else torch.float64
        per_in = node.weight.shape[1]
        first = channel // (len(node.bias) // node.groups) * per_in
        maps = codes.permute(0, 3, 1, 2)
        if node.groups == 1:
            image = maps[torch.from_numpy(number).to(codes.device)]
        else:
            pairs = zip(number.tolist(), first.tolist(), strict=True)
            image = torch.stack([maps[n, f : f + per_in] for n, f in pairs])
        image = image.to(dtype).reshape(1, -1, *maps.shape[2:])
        sums = engine.exact_conv2d(
            image, torch.from_numpy(kernel).to(codes.device, dtype), node, groups=len(number)
        )
        acc = sums.view(len(number), 2, -1).to(torch.int64).cpu().numpy()
        acc += node.bias[channel][:, None, None]
        part = self._part(
            node, np.zeros((0, size), np.int64), np.zeros((size, 1), np.int64), channel,
            np.zeros(0, np.int64), 0, 0,
        )  # fmt: skip
        codes_out, violated = requantized(self.design, part, acc)
        job, pixel = np.nonzero(codes_out[:, 0] != codes_out[:, 1])
        violations = np.zeros(len(faults), dtype=np.int64)
        counts = violated.sum(axis=2)
        np.add.at(violations, number, counts[:, 1] - counts[:, 0])
        return (number[job], pixel, channel[job], codes_out[job, 1, pixel]), violations

    def _changes(
        self, node: Gemm, faults: Sequence[LayerFault], codes: Tensor
    ) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray]], int]:
        """Return (pixels, channels, values) written in one inference, and further violations.

        Where weights are faulty too, every tile sees them, and registers what they then hold.
        """
        in_weights = [f for f in faults if isinstance(f, WeightFault)]
        registers = [f for f in faults if isinstance(f, RegisterFault)]
        weight = node.weight
        if in_weights:
            weight = weight.copy()
            for number, faulty in self._faulty_filters(node, in_weights).items():
                weight[number] = faulty
        new, violations = self._register_changes(node, weight, registers, codes)
        if in_weights:
            (_, pixel, channel, value), more = self._weight_changes(node, [in_weights], codes[None])
            # What a register writes is on top of it.
            pixels = self.design.shapes[node.name][1] * self.design.shapes[node.name][2]
            over = [one[1] * pixels + one[0] for one in new]
            kept = ~np.isin(channel * pixels + pixel, np.concatenate([[-1], *over]))
            new.append((pixel[kept], channel[kept], value[kept]))
            violations += int(more[0])
        return new, violations

    def _register_changes(
        self,
        node: Gemm,
        weight: np.ndarray,
        faults: Sequence[RegisterFault],
        codes: Tensor,
    ) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray]], int]:
        """Return what faults in registers write on top of `weight`, as `_changes`."""
        tiles = self.tiles(node)
        named = {f.tile for f in faults if f.tile is not None}
        everywhere = any(f.tile is None for f in faults)
        numbers = range(len(tiles)) if everywhere else sorted(named)
        new, violations = [], 0
        depth = weight[0].size
        images = codes.permute(2, 0, 1)[None]
        # Tiles with the same faults, rows and group are one part, side by side.
        bundles: dict[tuple[int, int, int, tuple[RegisterFault, ...]], list[OutputTile]] = {}
        for number in numbers:
            tile = tiles[number]
            mine = tuple(self._in_tile(node, f, number) for f in faults if f.tile in (None, number))
            bundles.setdefault((tile.group, tile.m0, tile.m1, mine), []).append(tile)
        acts: dict[int, Tensor] = {}
        for (group, m0, m1, here), several in bundles.items():
            spread = [self._channels(node, tile) for tile in several]
            channels, cols = (np.concatenate(part) for part in zip(*spread, strict=True))
            # First where something can change, then the operands of just that.
            nothing = np.broadcast_to(np.int64(0), (m1 - m0, depth))
            no_weights = np.broadcast_to(np.int64(0), (depth, len(channels)))
            index = np.arange(m1 - m0)
            frame = self._part(node, nothing, no_weights, channels, index, m1 - m0, cols)
            rows, columns = touched(self.config, frame, here)
            if not (rows.any() and columns.any()):
                continue
            if group not in acts:
                acts = {group: engine.im2col(node, images, group).cpu()}
            chosen, pixels = channels[columns], m0 + np.flatnonzero(rows)
            operands = acts[group][torch.from_numpy(pixels)].numpy().astype(np.int64)
            matrix = weight[chosen].transpose(2, 3, 1, 0).reshape(-1, len(chosen))
            matrix = np.where(chosen < 0, 0, matrix)
            part = self._part(node, operands, matrix, chosen, index[rows], m1 - m0, cols[columns])
            outputs, violated = faulty_outputs(self.config, part, here)
            clean, before = golden_outputs(self.config, part)
            at = np.nonzero((outputs != clean) & (chosen >= 0))
            new.append((pixels[at[0]], chosen[at[1]], outputs[at]))
            violations += int(violated.sum()) - int(before.sum())
        return new, violations

    def _in_tile(self, node: Gemm, fault: RegisterFault, number: int) -> RegisterFault:
        """Return a fault of a layer as its tile `number`, the first behind a reset, meets it."""
        if fault.register != "ring" or fault.tile is not None:
            return fault
        whole = fault.layer is None
        if (node.name, whole) not in self._rows_before:
            gemms = self.design.network.gemms()
            ahead = gemms[: [n.name for n in gemms].index(node.name)] if whole else []
            first = sum(tile.m1 - tile.m0 for n in ahead for tile in self.tiles(n))
            counts = [tile.m1 - tile.m0 for tile in self.tiles(node)]
            self._rows_before[node.name, whole] = first + np.cumsum([0, *counts])
        return ring_row(self.config, fault, int(self._rows_before[node.name, whole][number]))

    def _channels(self, node: Gemm, tile: OutputTile) -> tuple[np.ndarray, np.ndarray]:
        """Return channels and columns of a tile, int64 (n,).

        Columns past N have the limits of the layer where those are in the header: what they count
        as violations does too. Their channel is -1.
        """
        first = tile.group * (len(node.bias) // node.groups)
        channels = np.arange(first + tile.n0, first + tile.n1)
        if self.config.layer_bounds and self.config.checks_output:
            spare = self.config.cols - len(channels)
            channels = np.concatenate([channels, np.full(spare, -1)])
        return channels, np.arange(len(channels))

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
        """Return rows `acts` (r, K) and `channels` of a layer with weights (K, n).

        A channel of -1 is a column past N, as `lowering.lower` fills it.
        """
        spare = -acts.shape[1] % self.config.k_step
        limits = output_limits(node, self.design.protection)
        fmt_in = self.design.network.format_of(node.inputs[0])
        raw = node.output is None
        ones = np.ones(len(node.bias), np.int64)
        multiplier = ones if node.multiplier is None else node.multiplier
        shift = np.zeros(len(node.bias), np.int64) if raw else self.design.network.shift(node)
        past = channels < 0
        return TilePart(
            acts=_filled(acts, spare, axis=1),
            weights=_filled(weights, spare, axis=0),
            bias=np.where(past, np.clip(0, limits.lo[0], limits.hi[0]), node.bias[channels]),
            multiplier=np.where(past, 1, multiplier[channels]),
            shift=np.where(past, 0, shift[channels]),
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


def _filled(operands: np.ndarray, spare: int, *, axis: int) -> np.ndarray:
    """Return int64 operands with `spare` zeros more along K; broadcast zeros stay so."""
    if not any(operands.strides):
        shape = [n + spare * (i == axis) for i, n in enumerate(operands.shape)]
        return np.broadcast_to(np.int64(0), shape)
    widths = [(0, spare * (i == axis)) for i in range(2)]
    return np.pad(operands.astype(np.int64), widths)


def _chunks(copies: np.ndarray) -> list[np.ndarray]:
    """Return copies in pieces whose float inputs stay small."""
    return np.split(copies, range(_WEIGHT_BATCH, len(copies), _WEIGHT_BATCH)) if len(copies) else []


def requantized(design: Design, part: TilePart, acc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs and violations of sums with bias, int64 (n, versions, pixels)."""
    if part.raw:
        return acc, np.zeros(acc.shape, dtype=bool)

    def column(values: np.ndarray) -> np.ndarray:
        return values[:, None, None]

    code = requantize(acc, column(part.multiplier), column(part.shift))
    low, high = code < column(part.lo), code > column(part.hi)
    violated = (low & column(part.lo_is_bound)) | (high & column(part.hi_is_bound))
    out = np.clip(code, column(part.lo), column(part.hi))
    if design.protection.kind == "zero":
        out = np.where(violated, 0, out)
    return out, violated
