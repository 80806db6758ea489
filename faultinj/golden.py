# SPDX-License-Identifier: Apache-2.0
"""The golden run of a protected design: what every faulty inference is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from faultinj.layers import Layer
from faultinj.lowering import Shape, tensor_shapes
from faultinj.protection import UNPROTECTED, Protection, times_read
from faultinj.tables import Table, empty_table
from quant import engine
from quant.network import Gemm, IntegerNetwork


class Design:
    """A network with its protection, prepared for many runs.

    Attributes:
        network, protection: the design.
        layers: of each node by name.
        shapes: (C, H, W) of every tensor.
        cols: of the array: the input stream, which the input check counts, is sent once per `cols`
            output channels.
        int8: whether the CPU's 8-bit units are allowed.
        last_use: index of the last node that reads a tensor.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        protection: Protection = UNPROTECTED,
        *,
        cols: int = 1 << 30,
        int8: bool = True,
    ) -> None:
        """Prepare; `int8` allows the CPU's 8-bit units."""
        self.network, self.protection, self.cols, self.int8 = network, protection, cols, int8
        self.layers = {n.name: Layer(network, n, protection, int8=int8) for n in network.nodes}
        self.shapes: dict[str, Shape] = tensor_shapes(network)
        self.last_use = {n: i for i, node in enumerate(network.nodes) for n in node.inputs}
        self.names = ("input", *(node.name for node in network.nodes))
        self._reads: dict[str, Tensor] = {}

    @property
    def last(self) -> str:
        """Name of the logits."""
        return self.network.nodes[-1].name

    @property
    def bytes_per_image(self) -> int:
        """Memory of one image's golden tensors: codes, and counts where a check counts."""
        total = 0
        for name, (channels, height, width) in self.shapes.items():
            pixels = height * width
            total += pixels * (channels * (4 if name == self.last else 1))
            total += 4 * pixels * (name in self.layers and self.layers[name].counts)
        return total

    def input_violations(self, node: Gemm, codes: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Return what a layer's input check counts in rectangles of its input, int64 (B,).

        Args:
            node: the layer.
            codes: (B, h, w, C), before the check.
            top, left: int64 (B,), where each rectangle is in the map.
        """
        lo, hi = self.layers[node.name].input_limits
        violated = ((codes < lo) | (codes > hi)).sum(dim=3)
        _, height, width = self.shapes[node.inputs[0]]
        if node.name not in self._reads:
            self._reads[node.name] = times_read(node, height, width)
        ys = top[:, None] + torch.arange(codes.shape[1], device=codes.device)
        xs = left[:, None] + torch.arange(codes.shape[2], device=codes.device)
        reads = self._reads[node.name].to(codes.device)[ys[:, :, None], xs[:, None, :]]
        tiles = -(-(len(node.bias) // node.groups) // self.cols)
        return tiles * (violated * reads).sum(dim=(1, 2))


@dataclass(frozen=True, kw_only=True, eq=False)
class Golden:
    """The golden run of a batch of images.

    Attributes:
        design: what was run.
        tables: of ``"input"`` and every node with codes.
        counts: of nodes whose output check counts: how many codes of each pixel it replaced.
        logits: int32 (N, classes).
        top1: int64 (N,).
    """

    design: Design
    tables: dict[str, Table]
    counts: dict[str, Table]
    logits: Tensor
    top1: Tensor


def golden_run(design: Design, codes: Tensor, *, batch: int = 64) -> Golden:
    """Run image codes (N, C, H, W) without faults, `batch` at a time."""
    network, count, device = design.network, len(codes), codes.device
    tables, counts = {}, {}
    for name in design.names[:-1]:
        fmt = network.format_of(name)
        tables[name] = empty_table(
            design.shapes[name], count, engine.code_dtype(fmt), device, lowest=fmt.lo
        )
        if name in design.layers and design.layers[name].counts:
            shape = (1, *design.shapes[name][1:])
            counts[name] = empty_table(shape, count, torch.int32, device)
    logits = torch.zeros((count, network.num_classes), dtype=torch.int32, device=device)
    for start in range(0, count, batch):
        part = slice(start, min(start + batch, count))
        tables["input"].maps()[part] = codes[part].permute(0, 2, 3, 1)
        for node in network.nodes:
            layer = design.layers[node.name]
            patches = [padded(layer, tables[name].maps()[part]) for name in node.inputs]
            out, replaced = layer.run(patches, whole=True)
            if node.name == design.last:
                logits[part] = out.flatten(1)
            else:
                tables[node.name].maps()[part] = out
            if replaced is not None:
                counts[node.name].maps()[part] = replaced.unsqueeze(3)
    return Golden(
        design=design, tables=tables, counts=counts, logits=logits, top1=engine.top1(logits)
    )


def padded(layer: Layer, maps: Tensor) -> Tensor:
    """Return whole maps (B, H, W, C) as patches of a layer: a copy with its padding around."""
    (top, left) = (reach.padding for reach in layer.reach)
    count, height, width, channels = maps.shape
    if not top and not left:
        return maps.clone() if layer.changes_patches else maps
    shape = (count, height + 2 * top, width + 2 * left, channels)
    patch = maps.new_full(shape, layer.pad_code)
    patch[:, top : top + height, left : left + width] = maps
    return patch


def element_index(shape: Shape, element: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (channel, row, column) of codes numbered in (C, H, W) order."""
    _, height, width = shape
    channel, pixel = np.divmod(element, height * width)
    row, column = np.divmod(pixel, width)
    return channel, row, column
