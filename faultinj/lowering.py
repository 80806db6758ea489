# SPDX-License-Identifier: Apache-2.0
"""From a layer to the output tiles that the accelerator is sent, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from faultinj.protection import Protection, input_limits, output_limits
from hdl.config import AcceleratorConfig
from hdl.schedule import GemmShape, OutputTile, output_tiles
from hdl.tile import TileJob
from quant import engine
from quant.network import AvgPool, Flatten, Gemm, IntegerNetwork, MaxPool
from trilat.errors import InputError

Shape = tuple[int, int, int]


def tensor_shapes(network: IntegerNetwork) -> dict[str, Shape]:
    """Return (C, H, W) of ``"input"`` and of every node's output."""
    shapes: dict[str, Shape] = {"input": network.input_shape}
    for node in network.nodes:
        channels, height, width = shapes[node.inputs[0]]
        if isinstance(node, Gemm):
            shape = (len(node.bias), *engine.output_size(node, height, width))
        elif isinstance(node, MaxPool | AvgPool):
            shape = (channels, *engine.output_size(node, height, width))
        elif isinstance(node, Flatten):
            shape = (channels * height * width, 1, 1)
        else:
            shape = (channels, height, width)
        shapes[node.name] = shape
    return shapes


def gemm_shape(network: IntegerNetwork, node: Gemm) -> GemmShape:
    """Return the size of a layer's GEMM for one image."""
    _, rows, cols = tensor_shapes(network)[node.name]
    out, channels, kh, kw = node.weight.shape
    return GemmShape(
        m=rows * cols,
        k=channels * kh * kw,
        n=out // node.groups,
        groups=node.groups,
        raw=node.output is None,
    )


def check_fits(network: IntegerNetwork, config: AcceleratorConfig) -> None:
    """Raise InputError where the accelerator cannot compute the network exactly."""
    for name in ("act_bits", "weight_bits"):
        mine, its = getattr(network, name), getattr(config, name)
        if mine != its:
            raise InputError(f"the network has {name} {mine}, the accelerator {its}")
    for node in network.gemms():
        signed = network.format_of(node.inputs[0]).signed
        if signed not in config.act_signs:
            raise InputError(
                f"{node.name} reads {'signed' if signed else 'unsigned'} activations, the "
                f"accelerator has act_sign {config.act_sign}"
            )
    if network.multiplies and not config.multiplies:
        raise InputError("the network's layers have multipliers, the accelerator requant shift")
    limit = 1 << (config.acc_bits - 1)
    for node in network.gemms():
        k = math.prod(node.weight.shape[1:])
        if k > config.max_k:
            raise InputError(f"{node.name} sums {k} products, the accelerator at most max_k = "
                             f"{config.max_k}")  # fmt: skip
        if node.bias.min() < -limit or node.bias.max() >= limit:
            raise InputError(f"{node.name}: a bias needs more than {config.acc_bits} bits")


def check_protection(protection: Protection, config: AcceleratorConfig) -> None:
    """Raise InputError where the accelerator's protection unit is another one."""
    if (protection.kind, protection.kind == "none" or protection.place) != (
        config.protect,
        config.protect == "none" or config.protect_place,
    ):
        raise InputError(
            f"protection {protection.kind} ({protection.place}) does not run on an accelerator "
            f"with {config.protect} ({config.protect_place})"
        )
    if protection.checks_output and protection.granularity == "channel" and config.layer_bounds:
        raise InputError("bounds per channel do not run on an accelerator with bounds layer")


def lower(
    network: IntegerNetwork,
    config: AcceleratorConfig,
    node: Gemm,
    codes: Tensor,
    protection: Protection,
) -> Iterator[tuple[OutputTile, TileJob]]:
    """Yield a layer's output tiles for one image, in the order in which they are sent.

    Args:
        network: owner of the layer.
        config: the accelerator, with the same protection unit as `protection`.
        node: the layer.
        codes: its input for one image, (1, C, H, W), before the input check.
        protection: gives the bounds.
    """
    if len(codes) != 1:
        raise ValueError(f"one image at a time, not {len(codes)}")
    check_protection(protection, config)
    check_fits(network, config)
    shape = gemm_shape(network, node)
    fmt_in = network.format_of(node.inputs[0])
    fmt_out = node.output
    zeros = np.zeros(len(node.bias), dtype=np.int64)
    shift = zeros if fmt_out is None else network.shift(node)
    limits = output_limits(node, protection)
    low, high = input_limits(network, node, protection)
    depth = -(-shape.k // config.k_step) * config.k_step
    acts = weights = np.zeros((0, 0), dtype=np.int64)
    group = -1
    for tile in output_tiles(config, shape):
        if tile.group != group:
            group = tile.group
            acts = _padded(engine.im2col(node, codes, group), shape.m, depth)
            weights = _padded(engine.weight_matrix(node, group), depth, shape.n + config.cols)
        first = group * shape.n + tile.n0
        count = tile.n1 - tile.n0

        def columns(values: np.ndarray, first: int = first, count: int = count) -> np.ndarray:
            out = np.zeros(config.cols, dtype=values.dtype)
            out[:count] = values[first : first + count]
            return out

        bias = columns(node.bias)
        multiplier = None if node.multiplier is None else columns(node.multiplier)
        limit: Callable[[np.ndarray], np.ndarray] = columns
        if config.layer_bounds:
            # Columns past N have the layer's limits too: what they give is within.
            if multiplier is not None:
                multiplier[count:] = 1
            limit = partial(np.resize, new_shape=config.cols)
            bias[count:] = np.clip(0, limits.lo[0], limits.hi[0])

        yield (
            tile,
            TileJob(
                acts=acts[tile.m0 : tile.m1],
                weights=weights[:, tile.n0 : tile.n0 + config.cols],
                bias=bias,
                multiplier=multiplier,
                shift=columns(shift),
                lo=limit(limits.lo),
                hi=limit(limits.hi),
                lo_is_bound=limit(limits.lo_is_bound),
                hi_is_bound=limit(limits.hi_is_bound),
                signed_in=fmt_in.signed,
                signed_out=fmt_out is None or fmt_out.signed,
                raw=fmt_out is None,
                input_lo=low,
                input_hi=high,
            ),
        )


def raise_output(
    network: IntegerNetwork,
    config: AcceleratorConfig,
    node: Gemm,
    tiles: Iterable[tuple[OutputTile, np.ndarray]],
) -> Tensor:
    """Return a layer's output for one image from the rows of its output tiles.

    Args:
        network: owner of the layer.
        config: the accelerator.
        node: the layer.
        tiles: every output tile with its rows, int64 (M, cols), in any order.

    Returns:
        What `quant.engine.run_node` gives: codes (1, out, H, W), or raw logits int32 (1, classes).

    Raises:
        ValueError: an output is missing or given twice.
    """
    channels, height, width = tensor_shapes(network)[node.name]
    per_group = channels // node.groups
    out = np.zeros((channels, height * width), dtype=np.int64)
    seen = np.zeros(out.shape, dtype=np.int64)
    for tile, rows in tiles:
        if rows.shape != (tile.m1 - tile.m0, config.cols):
            raise ValueError(f"{node.name}: rows of shape {rows.shape} for {tile}")
        place = (
            slice(tile.group * per_group + tile.n0, tile.group * per_group + tile.n1),
            slice(tile.m0, tile.m1),
        )
        out[place] = rows[:, : tile.n1 - tile.n0].T
        seen[place] += 1
    if (seen != 1).any():
        raise ValueError(f"{node.name}: the tiles do not cover every output once")
    result = torch.from_numpy(out).view(1, channels, height, width)
    if node.output is None:
        return result.to(torch.int32).flatten(1)
    return result.to(engine.code_dtype(node.output))


def _padded(matrix: Tensor, rows: int, cols: int) -> np.ndarray:
    out = np.zeros((rows, cols), dtype=np.int64)
    out[: matrix.shape[0], : matrix.shape[1]] = matrix.cpu().numpy()
    return out
