# SPDX-License-Identifier: Apache-2.0
"""Flips in PE activation registers, in the integer engine: which outputs of a layer they change.

The schedule turns (row, column, cycle) of an output tile into one operand of one output pixel,
wrong from that column on; only those outputs are computed again, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from faultinj.faults import RegisterFault, mask_of, written
from faultinj.lowering import gemm_shape
from faultinj.protection import Protection, checked_input, output_limits
from faultinj.tile_faults import first_cycle
from hdl.config import AcceleratorConfig
from hdl.schedule import OutputTile, k_tile_period, output_tiles
from hdl.tile import requantize
from quant import engine
from quant.network import Gemm, IntegerNetwork
from trilat.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class Changes:
    """New values of some outputs of one image: int64 (F,) each; equal ones may be among them.

    Attributes:
        channels, rows, columns: of the output tensor.
        values: codes, or raw logits.
        violations: by how much the output check counts more.
    """

    channels: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    violations: int


class PeFaults:
    """What flips in PE activation registers do to the layers of a network on an accelerator.

    Attributes:
        cols: columns that the input counts refer to, see `faultinj.protection.run_node`.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        config: AcceleratorConfig,
        protection: Protection,
        *,
        cols: int | None = None,
    ) -> None:
        """Remember the design; `cols` defaults to the accelerator's."""
        self.network, self.config, self.protection = network, config, protection
        self.cols = config.cols if cols is None else cols
        self._tiles: dict[str, list[OutputTile]] = {}
        self._weights: dict[tuple[str, int], np.ndarray] = {}

    def tiles(self, node: Gemm) -> list[OutputTile]:
        """Return the output tiles of a layer."""
        if node.name not in self._tiles:
            shape = gemm_shape(self.network, node)
            self._tiles[node.name] = list(output_tiles(self.config, shape))
        return self._tiles[node.name]

    def changes(self, node: Gemm, codes: Tensor, faults: Sequence[RegisterFault]) -> Changes:
        """Return the outputs of a layer that simultaneous flips change.

        Args:
            node: the layer.
            codes: its input for one image, (1, C, H, W), before the input check.
            faults: flips of PE activation registers of this layer.
        """
        # (group, first column, pixel) -> index in K -> [(column, mask)]
        hits: dict[tuple[int, int, int], dict[int, list[tuple[int, int]]]] = {}
        for fault in faults:
            place = self._operand(node, fault)
            if place is not None:
                tile, pixel, k = place
                sums = hits.setdefault((tile.group, tile.n0, pixel), {})
                sums.setdefault(k, []).append((fault.col, mask_of(fault.bits)))
        if not hits:
            none = np.zeros(0, dtype=np.int64)
            return Changes(channels=none, rows=none, columns=none, values=none, violations=0)
        checked = checked_input(self.network, node, codes, self.protection)
        width = engine.output_size(node, codes.shape[2], codes.shape[3])[1]
        outputs, violations = [], 0
        for (group, n0, pixel), wrong in hits.items():
            channels, values, more = self._recompute(node, checked, group, n0, pixel, wrong, width)
            row, column = divmod(pixel, width)
            outputs.append(
                (channels, np.full(len(values), row), np.full(len(values), column), values)
            )
            violations += more
        channels, rows, columns, values = (
            np.concatenate(part) for part in zip(*outputs, strict=True)
        )
        return Changes(
            channels=channels, rows=rows, columns=columns, values=values, violations=violations
        )

    def _operand(self, node: Gemm, fault: RegisterFault) -> tuple[OutputTile, int, int] | None:
        """Return (tile, output pixel, index in K) of the operand that a flip meets, if any."""
        if fault.register != "pe_activation" or fault.cycle is None:
            raise InputError(f"campaigns flip PE activation registers, not {fault.register} "
                             f"({fault.kind})")  # fmt: skip
        tiles = self.tiles(node)
        if not 0 <= fault.tile < len(tiles):
            raise InputError(f"{node.name} has output tiles 0..{len(tiles) - 1}, not {fault.tile}")
        tile = tiles[fault.tile]
        m = tile.m1 - tile.m0
        late = fault.cycle - first_cycle(self.config, m, fault)
        k, beat = divmod(late, k_tile_period(self.config, m))
        # Which output row and which index of K the register's operand belongs to.
        if self.config.is_os:
            row, index = fault.row, k
        else:
            row, index = beat, k * self.config.rows + fault.row
        # Past K and past N every weight is zero; between K tiles the register holds no beat.
        depth = node.weight[0].size
        if k < 0 or row >= m or index >= depth or fault.col >= tile.n1 - tile.n0:
            return None
        return tile, tile.m0 + row, index

    def _recompute(
        self,
        node: Gemm,
        codes: Tensor,
        group: int,
        n0: int,
        pixel: int,
        wrong: dict[int, list[tuple[int, int]]],
        width: int,
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Return (channels, values, further violations) of one row of an output tile."""
        fmt = self.network.format_of(node.inputs[0])
        per_group = len(node.bias) // node.groups
        n1 = min(n0 + self.config.cols, per_group)
        weights = self._matrix(node, group)[:, n0:n1].astype(np.int64)
        operands = _window(node, codes, group, *divmod(pixel, width))
        channels = group * per_group + np.arange(n0, n1)
        clean = operands @ weights + node.bias[channels]
        faulty = clean.copy()
        for k, flips in wrong.items():
            masks = np.zeros(n1 - n0, dtype=np.int64)
            for col, mask in flips:
                masks[col:] ^= mask
            seen = written(np.full(n1 - n0, operands[k]), fmt.bits, fmt.signed, masks, "flip")
            faulty += (seen - operands[k]) * weights[k]
        changed = faulty != clean
        channels = channels[changed]
        if node.output is None:
            return channels, faulty[changed], 0
        limits = output_limits(node, self.protection)
        shift = self.network.shift(node)[channels]
        multiplier = None if node.multiplier is None else node.multiplier[channels]
        lo, hi = limits.lo[channels], limits.hi[channels]
        lo_is_bound, hi_is_bound = limits.lo_is_bound[channels], limits.hi_is_bound[channels]

        def finished(total: np.ndarray) -> tuple[np.ndarray, int]:
            code = requantize(total, multiplier, shift)
            violated = ((code < lo) & lo_is_bound) | ((code > hi) & hi_is_bound)
            out = np.clip(code, lo, hi)
            if self.protection.kind == "zero":
                out = np.where(violated, 0, out)
            return out, int(violated.sum())

        values, after = finished(faulty[changed])
        return channels, values, after - finished(clean[changed])[1]

    def _matrix(self, node: Gemm, group: int) -> np.ndarray:
        key = (node.name, group)
        if key not in self._weights:
            self._weights[key] = engine.weight_matrix(node, group).numpy()
        return self._weights[key]


def _window(node: Gemm, codes: Tensor, group: int, row: int, column: int) -> np.ndarray:
    """Return the K activations of one output pixel, int64, as a row of `engine.im2col`."""
    channels = node.weight.shape[1]
    kh, kw = node.weight.shape[2:]
    height, width = codes.shape[2:]
    ys = row * node.stride[0] - node.padding[0] + np.arange(kh) * node.dilation[0]
    xs = column * node.stride[1] - node.padding[1] + np.arange(kw) * node.dilation[1]
    inside_y, inside_x = (ys >= 0) & (ys < height), (xs >= 0) & (xs < width)
    out = np.zeros((kh, kw, channels), dtype=np.int64)
    image = codes[0, group * channels : (group + 1) * channels]
    part = image[:, ys[inside_y]][:, :, xs[inside_x]].permute(1, 2, 0)
    out[np.ix_(inside_y, inside_x)] = part.cpu().numpy()
    return out.reshape(-1)
