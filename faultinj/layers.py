# SPDX-License-Identifier: Apache-2.0
"""Nodes of a network on patches: rectangles of their inputs, padding included.

A convolution of a patch is the convolution of a small image without padding, so any number of
windows at any places of any images is one batch. Layers run on the 8-bit units where the CPU has
them: oneDNN's linear kernel multiplies, shifts, rounds half to even and saturates in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from faultinj.protection import Protection, input_limits, output_limits
from quant import engine
from quant.network import AvgPool, Flatten, Gemm, IntegerNetwork, MaxPool, Node

# Beyond this shift an accumulator above 2**24, which float32 rounds, need not saturate.
_MAX_SHIFT = 14
_MAX_BIAS = 1 << 23
# Of at least so many maps of at most this many pixels the border is computed apart, with fewer
# taps.
_BORDER_PIXELS = 16
_BORDER_MAPS = 32
# im2col rows are made and multiplied in pieces of this many bytes, which stay in the cache, but of
# no fewer rows than this.
_PIECE_BYTES = 3 << 19
_PIECE_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Which inputs an output pixel reads along one axis: `size` taps, one every `dilation`.

    Attributes:
        span: input pixels from the first tap to the last.
        stride, padding: as in torch.
    """

    span: int
    stride: int
    padding: int

    def outputs(self, length: int, extent: int) -> int:
        """Return how many outputs `length` neighbouring inputs can change, at most `extent`."""
        return min(-(-(length + self.span - 1) // self.stride), extent)

    def first_output(self, first: Tensor, count: int, extent: int) -> Tensor:
        """Return the first of `count` outputs that hold all that read inputs from `first` on."""
        start = torch.div(
            first + self.padding - self.span + self.stride, self.stride, rounding_mode="floor"
        )
        return start.clamp_(0, extent - count)

    def inputs(self, count: int) -> int:
        """Return how many inputs `count` neighbouring outputs read."""
        return (count - 1) * self.stride + self.span


# Weights, scale, zero points and scaled bias of oneDNN.
Span = tuple[int, int]  # first and end
_Packed = tuple[Tensor, Tensor, Tensor, Tensor]
_PIXEL = Reach(span=1, stride=1, padding=0)


def reach_of(node: Node) -> tuple[Reach, Reach]:
    """Return the vertical and the horizontal reach of a node (a pixel alone for an addition)."""
    if isinstance(node, Gemm):
        kernel, dilation = node.weight.shape[2:], node.dilation
    elif isinstance(node, MaxPool | AvgPool):
        kernel, dilation = node.kernel, (1, 1)
    else:
        return _PIXEL, _PIXEL
    vertical, horizontal = (
        Reach(span=(taps - 1) * step + 1, stride=stride, padding=padding)
        for taps, step, stride, padding in zip(
            kernel, dilation, node.stride, node.padding, strict=True
        )
    )
    return vertical, horizontal


def has_int8_units() -> bool:
    """Return whether the CPU multiplies 8-bit codes exactly in oneDNN's kernels.

    Older ones add pairs of products in 16 bits, with saturation.
    """
    return bool(torch.cpu._is_vnni_supported()) and hasattr(torch.ops.onednn, "qlinear_pointwise")


class Layer:
    """One node of a protected design, ready to run on patches.

    Attributes:
        node: the node.
        reach: vertical and horizontal.
        counts: whether its output check can count violations.
        pad_code: what stands for padding in a patch.
    """

    def __init__(
        self, network: IntegerNetwork, node: Node, protection: Protection, *, int8: bool
    ) -> None:
        """Prepare weights and limits; `int8` allows the 8-bit units, if there are any."""
        self.network, self.node = network, node
        self.reach = reach_of(node)
        self._bare = node
        if isinstance(node, Gemm | MaxPool | AvgPool):
            self._bare = replace(node, padding=(0, 0))
        self.counts = self.checks_input = False
        fmt = network.format_of(node.inputs[0])
        self.pad_code = fmt.lo if isinstance(node, MaxPool) else 0
        self._zero = protection.kind == "zero"
        self._int8 = False
        self._kernels: dict[tuple[tuple[Span, Span], int], _Packed] = {}
        if isinstance(node, Gemm):
            self.input_limits = input_limits(network, node, protection)
            self.checks_input = self.input_limits != (fmt.lo, fmt.hi)
            self._limits = output_limits(node, protection)
            bounds = self._limits.lo_is_bound | self._limits.hi_is_bound
            self.counts = bool(bounds.any())
            if int8 and has_int8_units() and node.groups == 1 and self._exact_in_float():
                self._int8 = True

    @property
    def changes_patches(self) -> bool:
        """Whether `run` writes into the patches it is given."""
        return self.checks_input

    def check_input(self, codes: Tensor) -> Tensor:
        """Return a Gemm's input codes behind the input check, in place."""
        if not self.checks_input:
            return codes
        lo, hi = self.input_limits
        if self._zero:
            return codes.masked_fill_((codes < lo) | (codes > hi), 0)
        return codes.clamp_(lo, hi)

    def run(self, patches: list[Tensor], *, whole: bool) -> tuple[Tensor, Tensor | None]:
        """Return output codes, and how many of them each pixel's output check replaced.

        Args:
            patches: of each input, (B, h, w, C), contiguous, padding included; may be overwritten.
            whole: the patches are whole maps with their padding.

        Returns:
            Codes (B, h', w', C'), or raw logits int32 (B, 1, 1, classes); and int32 (B, h', w'),
            or None where nothing is counted.
        """
        node = self.node
        if isinstance(node, Flatten):
            codes = patches[0].permute(0, 3, 1, 2).reshape(len(patches[0]), 1, 1, -1)
            return codes, None
        if isinstance(node, MaxPool):
            return _max_pool(node, patches[0]), None
        if isinstance(node, Gemm):
            patches = [self.check_input(patches[0])]
            if node.output is not None:
                return self._limit(self._codes(patches[0], whole))
            assert isinstance(self._bare, Gemm)
            sums = engine.accumulate(self._bare, patches[0].permute(0, 3, 1, 2))
            return sums.permute(0, 2, 3, 1).contiguous(), None
        out = engine.run_node(self.network, self._bare, [p.permute(0, 3, 1, 2) for p in patches])
        return out.permute(0, 2, 3, 1).contiguous(), None

    def _codes(self, patch: Tensor, whole: bool) -> Tensor:
        """Return the requantized sums, saturated at the ends of an 8-bit word."""
        assert isinstance(self.node, Gemm) and self.node.output is not None
        if self._int8 and patch.device.type == "cpu":
            return self._codes_int8(patch, whole)
        assert isinstance(self._bare, Gemm)
        # Limits lie within the word, so saturating there first loses nothing.
        code = engine.unsaturated(self.network, self._bare, patch.permute(0, 3, 1, 2))
        signed = self.node.output.signed
        code = code.clamp_(-128, 127) if signed else code.clamp_(0, 255)
        return code.to(engine.code_dtype(self.node.output)).permute(0, 2, 3, 1).contiguous()

    def _limit(self, codes: Tensor) -> tuple[Tensor, Tensor | None]:
        assert self.node.output is not None
        lo, hi = self.node.lo, self.node.hi
        limits = self._limits
        if not self.counts:
            word = (-128, 127) if self.node.output.signed else (0, 255)
            return (codes if (lo, hi) == word else codes.clamp_(lo, hi)), None

        def bound(values: np.ndarray, used: np.ndarray, otherwise: int) -> Tensor:
            return torch.from_numpy(np.where(used, values, otherwise)).to(codes.device, codes.dtype)

        low = codes < bound(limits.lo, limits.lo_is_bound, torch.iinfo(codes.dtype).min)
        high = codes > bound(limits.hi, limits.hi_is_bound, torch.iinfo(codes.dtype).max)
        violated = low | high
        used = np.ones(len(limits.lo), dtype=bool)
        out = torch.maximum(torch.minimum(codes, bound(limits.hi, used, 0)),
                            bound(limits.lo, used, 0))  # fmt: skip
        if self._zero:
            out.masked_fill_(violated, 0)
        return out, violated.sum(dim=3, dtype=torch.int32)

    def _exact_in_float(self) -> bool:
        """Whether float32 requantizes every accumulator right, however large.

        A sum above 2**24 is rounded, but never to one below; after a shift of at most
        `_MAX_SHIFT` it saturates with or without its bias.
        """
        assert isinstance(self.node, Gemm)
        if self.node.output is None or self.node.multiplier is not None:
            return False
        shift, bias = self.network.shift(self.node), np.abs(self.node.bias)
        return int(shift.max()) <= _MAX_SHIFT and int(bias.max()) <= _MAX_BIAS

    def _codes_int8(self, patch: Tensor, whole: bool) -> Tensor:
        node = self.node
        assert isinstance(node, Gemm)
        spare = -patch.shape[3] % 8
        if spare:  # whole 64-bit words copy several times faster
            patch = F.pad(patch, (0, spare))
        count, height, width, _ = patch.shape
        rows = (height - self.reach[0].span) // node.stride[0] + 1
        cols = (width - self.reach[1].span) // node.stride[1] + 1
        taps, channels = node.weight.shape[2:], len(node.bias)
        if whole and count >= _BORDER_MAPS:
            areas = _areas(node, height, width, rows, cols)
        else:
            areas = [_Area(rows=(0, rows), cols=(0, cols), taps=((0, taps[0]), (0, taps[1])))]
        out = torch.empty((count, rows, cols, channels), dtype=self._dtype)
        for area in areas:
            packed = self._packed(area.taps, patch.shape[3])
            (r0, r1), (c0, c1) = area.rows, area.cols
            bytes_each = area.pixels * area.count_taps * patch.shape[3]
            step = max(1, _PIECE_BYTES // bytes_each, _PIECE_ROWS // area.pixels)
            for start in range(0, count, step):
                piece = _im2col(node, patch[start : start + step], area)
                part = out[start : start + step, r0:r1, c0:c1]
                part.copy_(
                    self._product(piece, packed)[: part.numel() // channels].view(part.shape)
                )
        return out

    @property
    def _dtype(self) -> torch.dtype:
        assert self.node.output is not None
        return engine.code_dtype(self.node.output)

    def _packed(self, taps: tuple[Span, Span], channels: int) -> _Packed:
        """Return the weights of a rectangle of taps for patches of `channels`, computed once."""
        node = self.node
        assert isinstance(node, Gemm)
        key = (taps, channels)
        if key not in self._kernels:
            scale = np.exp2(-self.network.shift(node).astype(np.float64))
            (i0, i1), (j0, j1) = taps
            part = node.weight[:, :, i0:i1, j0:j1].transpose(0, 2, 3, 1)
            part = np.pad(part, ((0, 0), (0, 0), (0, 0), (0, channels - part.shape[3])))
            matrix = torch.from_numpy(np.ascontiguousarray(part).reshape(len(part), -1))
            self._kernels[key] = (
                torch.ops.onednn.qlinear_prepack(matrix, None),
                torch.from_numpy(scale).to(torch.float32),
                torch.zeros(len(scale), dtype=torch.int32),
                torch.from_numpy(node.bias * scale).to(torch.float32),
            )
        return self._kernels[key]

    def _product(self, codes: Tensor, packed: _Packed) -> Tensor:
        weight, scale, zeros, bias = packed
        return torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, 0, weight, scale, zeros, bias, 1.0, 0, self._dtype, "none", [], ""
        )


@dataclass(frozen=True, kw_only=True)
class _Area:
    """A rectangle of outputs, and the rectangle of taps that is not padding for all of them."""

    rows: Span
    cols: Span
    taps: tuple[Span, Span]

    @property
    def pixels(self) -> int:
        return (self.rows[1] - self.rows[0]) * (self.cols[1] - self.cols[0])

    @property
    def count_taps(self) -> int:
        (i0, i1), (j0, j1) = self.taps
        return (i1 - i0) * (j1 - j0)


def _areas(node: Gemm, height: int, width: int, rows: int, cols: int) -> list[_Area]:
    """Split the outputs of a padded map: its border reads fewer taps.

    A 3x3 convolution of a 4x4 map has 31 % of its taps in the padding, of a 2x2 map 56 %.
    """
    if rows * cols > _BORDER_PIXELS:
        kh, kw = node.weight.shape[2:]
        return [_Area(rows=(0, rows), cols=(0, cols), taps=((0, kh), (0, kw)))]
    down, across = (
        _tap_runs(count, extent, node.weight.shape[2 + axis], node, axis)
        for axis, (count, extent) in enumerate(((rows, height), (cols, width)))
    )
    return [_Area(rows=r, cols=c, taps=(i, j)) for r, i in down for c, j in across]


def _tap_runs(count: int, extent: int, taps: int, node: Gemm, axis: int) -> list[tuple[Span, Span]]:
    """Return runs of outputs along an axis with the taps that they all read, at least one."""
    runs: list[tuple[Span, Span]] = []
    pad = node.padding[axis]
    for output in range(count):
        places = output * node.stride[axis] + np.arange(taps) * node.dilation[axis]
        inside = np.flatnonzero((places >= pad) & (places < extent - pad))
        used = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 1)
        if runs and runs[-1][1] == used:
            runs[-1] = ((runs[-1][0][0], output + 1), used)
        else:
            runs.append(((output, output + 1), used))
    return runs


def _im2col(node: Gemm, patch: Tensor, area: _Area) -> Tensor:
    """Return the activations of an area of a patch's outputs, (>= B * pixels, K of its taps).

    Rows behind those of the patch hold anything.
    K is ordered (kh, kw, cin); the channels are a multiple of 8.
    """
    view = patch.view(torch.int64)
    b, y, x, c = view.stride()
    (sh, sw), (dh, dw) = node.stride, node.dilation
    (r0, r1), (c0, c1) = area.rows, area.cols
    (i0, i1), (j0, j1) = area.taps
    first = (r0 * sh + i0 * dh) * y + (c0 * sw + j0 * dw) * x
    windows = view.as_strided(
        (len(view), r1 - r0, c1 - c0, i1 - i0, j1 - j0, view.shape[3]),
        (b, y * sh, x * sw, y * dh, x * dw, c),
        view.storage_offset() + first,
    )
    count = len(view) * area.pixels
    rows = torch.empty((_bucket(count), windows[0, 0, 0].numel()), dtype=torch.int64)
    rows[:count].view(windows.shape).copy_(windows)
    return rows.view(patch.dtype)


def _bucket(count: int) -> int:
    """Round up to one of four numbers per power of two: oneDNN compiles a kernel for each.

    That takes as long as multiplying hundreds of rows.
    """
    step = max(8, 1 << max(count.bit_length() - 3, 0))
    return -(-count // step) * step


def _max_pool(node: MaxPool, patch: Tensor) -> Tensor:
    (sh, sw), (kh, kw) = node.stride, node.kernel
    rows = (patch.shape[1] - kh) // sh + 1
    cols = (patch.shape[2] - kw) // sw + 1
    best = patch[:, : (rows - 1) * sh + 1 : sh]
    for i in range(1, kh):
        best = torch.maximum(best, patch[:, i : i + (rows - 1) * sh + 1 : sh])
    out = best[:, :, : (cols - 1) * sw + 1 : sw]
    for j in range(1, kw):
        out = torch.maximum(out, best[:, :, j : j + (cols - 1) * sw + 1 : sw])
    return out.contiguous()
