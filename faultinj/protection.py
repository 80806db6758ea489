# SPDX-License-Identifier: Apache-2.0
"""Activation protection in the integer engine: what the accelerator's protection unit does.

Bounds come from fault-free runs on training data. The unit saturates (`clip`) or squashes (`zero`)
what lies outside them, where a layer reads its activations and where it writes its codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hdl.config import PLACES, PROTECTIONS
from quant import engine
from quant.network import Gemm, IntegerNetwork, Node
from trilat.errors import InputError, unknown_name

GRANULARITIES = ("layer", "channel")


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorBounds:
    """Lowest and highest code of a tensor in fault-free runs.

    Attributes:
        lo, hi: over the whole tensor.
        channel_lo, channel_hi: per channel, int64 (C,).
    """

    lo: int
    hi: int
    channel_lo: np.ndarray
    channel_hi: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounds:
    """Profiled bounds of every tensor that a layer reads or writes in codes, by name."""

    tensors: dict[str, TensorBounds]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return {
            name: {
                "lo": b.lo,
                "hi": b.hi,
                "channel_lo": b.channel_lo.tolist(),
                "channel_hi": b.channel_hi.tolist(),
            }
            for name, b in self.tensors.items()
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Bounds:
        """Read `to_json`'s data; raises InputError if it is something else."""
        try:
            return Bounds(
                tensors={
                    str(name): TensorBounds(
                        lo=int(b["lo"]),
                        hi=int(b["hi"]),
                        channel_lo=np.array(b["channel_lo"], dtype=np.int64),
                        channel_hi=np.array(b["channel_hi"], dtype=np.int64),
                    )
                    for name, b in data.items()
                }
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"these are no activation bounds: {error!r}") from None


@dataclass(frozen=True, kw_only=True, eq=False)
class Protection:
    """What the protection unit does, where, and how fine its bounds are.

    Attributes:
        kind: ``none``, ``clip`` (to the violated bound) or ``zero``.
        place: ``input`` (codes that a layer reads), ``output`` (codes that it writes), ``both``.
        granularity: of the output bounds: one per ``layer`` or per output ``channel``. The input
            check has one pair of bounds per layer in either case.
        bounds: None only for kind ``none``.
    """

    kind: str = "none"
    place: str = "both"
    granularity: str = "layer"
    bounds: Bounds | None = None

    def __post_init__(self) -> None:
        """Raise InputError for an unknown choice or missing bounds."""
        for label, value, accepted in (
            ("protection", self.kind, PROTECTIONS),
            ("place of protection", self.place, PLACES),
            ("granularity", self.granularity, GRANULARITIES),
        ):
            if value not in accepted:
                raise unknown_name(label, value, list(accepted))
        if self.kind != "none" and self.bounds is None:
            raise InputError(f"protection {self.kind} needs profiled bounds")

    @property
    def checks_input(self) -> bool:
        """Whether the codes that a layer reads are checked."""
        return self.kind != "none" and self.place != "output"

    @property
    def checks_output(self) -> bool:
        """Whether the codes that a layer writes are checked."""
        return self.kind != "none" and self.place != "input"


UNPROTECTED = Protection()


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputLimits:
    """Saturation codes of a layer's channels, int64 (out,), and which of them are bounds."""

    lo: np.ndarray
    hi: np.ndarray
    lo_is_bound: np.ndarray
    hi_is_bound: np.ndarray


def profile_bounds(network: IntegerNetwork, codes: Tensor, *, batch: int = 64) -> Bounds:
    """Return the bounds of every tensor that a layer reads or writes, over all of `codes`.

    Args:
        network: the network, run without faults and without protection.
        codes: image codes (N, C, H, W) of training data, N >= 1.
        batch: images at a time.
    """
    if not len(codes):
        raise ValueError("bounds need at least one image")
    names = {node.inputs[0] for node in network.gemms()}
    names |= {node.name for node in network.gemms() if node.output is not None}
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    for part in codes.split(batch):
        values = engine.forward(network, part)
        for name in names:
            lo, hi = values[name].amin(dim=(0, 2, 3)), values[name].amax(dim=(0, 2, 3))
            low[name] = torch.minimum(low[name], lo) if name in low else lo
            high[name] = torch.maximum(high[name], hi) if name in high else hi
    return Bounds(
        tensors={
            name: TensorBounds(
                lo=int(low[name].min()),
                hi=int(high[name].max()),
                channel_lo=low[name].cpu().numpy().astype(np.int64),
                channel_hi=high[name].cpu().numpy().astype(np.int64),
            )
            for name in sorted(names)
        }
    )


def input_limits(network: IntegerNetwork, node: Gemm, protection: Protection) -> tuple[int, int]:
    """Return the lowest and highest code that pass a layer's input check.

    Zero always passes: the stream also carries the zeros of padding.
    """
    fmt = network.format_of(node.inputs[0])
    if not protection.checks_input:
        return fmt.lo, fmt.hi
    bounds = _bounds_of(protection, node.inputs[0])
    return max(min(bounds.lo, 0), fmt.lo), min(max(bounds.hi, 0), fmt.hi)


def output_limits(node: Gemm, protection: Protection) -> OutputLimits:
    """Return the saturation codes of a layer, per output channel.

    A profiled code is a protection bound where it is strictly tighter than the node's own
    saturation code, and nothing elsewhere. Raw logits have no bounds.
    """
    count = len(node.bias)
    lo, hi = np.full(count, node.lo), np.full(count, node.hi)
    if node.output is None or not protection.checks_output:
        none = np.zeros(count, dtype=bool)
        return OutputLimits(lo=lo, hi=hi, lo_is_bound=none, hi_is_bound=none)
    bounds = _bounds_of(protection, node.name)
    if protection.granularity == "channel":
        low, high = bounds.channel_lo, bounds.channel_hi
    else:
        low, high = np.full(count, bounds.lo), np.full(count, bounds.hi)
    return OutputLimits(
        lo=np.maximum(lo, low),
        hi=np.minimum(hi, high),
        lo_is_bound=low > lo,
        hi_is_bound=high < hi,
    )


def run_node(
    network: IntegerNetwork,
    node: Node,
    inputs: Sequence[Tensor],
    protection: Protection,
    violations: Tensor | None = None,
    *,
    cols: int = 1,
) -> Tensor:
    """Return a node's output as the protected accelerator gives it.

    Args:
        network: owner of the node.
        node: what to compute.
        inputs: codes of `node.inputs`, each (N, C, H, W), unchanged.
        protection: what the layers check.
        violations: int64 (N,) to which is added what the accelerator's two counters would count.
        cols: of the array: the input stream is sent once per `cols` output channels.
    """
    if not isinstance(node, Gemm) or protection.kind == "none":
        return engine.run_node(network, node, inputs)
    codes = checked_input(network, node, inputs[0], protection, violations, cols=cols)
    if node.output is None or not protection.checks_output:
        return engine.run_node(network, node, [codes])
    rounded = engine.unsaturated(network, node, codes)
    return _saturate(node, rounded, protection, violations)


def forward(
    network: IntegerNetwork, codes: Tensor, protection: Protection, *, cols: int = 1
) -> tuple[dict[str, Tensor], Tensor]:
    """Return every tensor by name as in `engine.forward`, and the violations, int64 (N,)."""
    violations = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
    values = {"input": codes}
    for node in network.nodes:
        inputs = [values[name] for name in node.inputs]
        values[node.name] = run_node(network, node, inputs, protection, violations, cols=cols)
    return values, violations


def checked_input(
    network: IntegerNetwork,
    node: Gemm,
    codes: Tensor,
    protection: Protection,
    violations: Tensor | None = None,
    *,
    cols: int = 1,
) -> Tensor:
    """Return a layer's input behind its input check; arguments as in `run_node`."""
    fmt = network.format_of(node.inputs[0])
    lo, hi = input_limits(network, node, protection)
    if (lo, hi) == (fmt.lo, fmt.hi):
        return codes
    if violations is None and protection.kind == "clip":
        return codes.clamp(lo, hi)
    violated = (codes < lo) | (codes > hi)
    if violations is not None:
        reads = times_read(node, codes.shape[2], codes.shape[3]).to(codes.device)
        tiles = -(-(len(node.bias) // node.groups) // cols)
        violations += tiles * (violated.sum(dim=1) * reads).sum(dim=(1, 2))
    if protection.kind == "clip":
        return codes.clamp(lo, hi)
    return codes.masked_fill(violated, 0)


def _saturate(
    node: Gemm, rounded: Tensor, protection: Protection, violations: Tensor | None
) -> Tensor:
    assert node.output is not None
    limits = output_limits(node, protection)
    dtype = engine.code_dtype(node.output)
    if not (limits.lo_is_bound.any() or limits.hi_is_bound.any()):
        return rounded.clamp_(node.lo, node.hi).to(dtype)

    def per_channel(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(rounded.device, rounded.dtype).view(1, -1, 1, 1)

    lo, hi = per_channel(limits.lo), per_channel(limits.hi)
    if violations is None and protection.kind == "clip":
        return torch.minimum(rounded, hi, out=rounded).maximum(lo).to(dtype)
    # A limit that is no bound is moved out of reach, so that only bounds can be violated.
    lowest = per_channel(np.where(limits.lo_is_bound, limits.lo.astype(np.float64), -np.inf))
    highest = per_channel(np.where(limits.hi_is_bound, limits.hi.astype(np.float64), np.inf))
    violated = (rounded < lowest) | (rounded > highest)
    if violations is not None:
        violations += violated.sum(dim=(1, 2, 3))
    out = torch.minimum(rounded, hi, out=rounded).maximum(lo)
    return (out.masked_fill_(violated, 0) if protection.kind == "zero" else out).to(dtype)


def times_read(node: Gemm, height: int, width: int) -> Tensor:
    """Return how many windows read each pixel, int64 (H, W)."""
    rows, cols = engine.output_size(node, height, width)
    counts = []
    for axis, (extent, windows) in enumerate(((height, rows), (width, cols))):
        count = np.zeros(extent, dtype=np.int64)
        for tap in range(node.weight.shape[2 + axis]):
            place = np.arange(windows) * node.stride[axis]
            place += tap * node.dilation[axis] - node.padding[axis]
            np.add.at(count, place[(place >= 0) & (place < extent)], 1)
        counts.append(count)
    return torch.from_numpy(np.outer(*counts))


def _bounds_of(protection: Protection, name: str) -> TensorBounds:
    assert protection.bounds is not None
    try:
        return protection.bounds.tensors[name]
    except KeyError:
        raise InputError(f"the activation bounds have no tensor {name!r}") from None
