# SPDX-License-Identifier: Apache-2.0
"""The float operations that `quant.graph.trace` makes of a module, and their float meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

SUPPORTED = (
    "convolution, linear, ReLU, ReLU6, batch norm, max, average and global pooling, "
    "add, flatten, dropout"
)
Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Op:
    """One float operation.

    Attributes:
        name: path in the module tree, or the traced name of a function; unique.
        inputs: names of producing operations, or ``"input"``.
        shape: (C, H, W) of the output; (features, 1, 1) once flattened.
        activation: ``"none"``, ``"relu"`` or ``"relu6"``, applied to the result.
    """

    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, int, int]
    activation: str = "none"


@dataclass(frozen=True, kw_only=True, eq=False)
class GemmOp(Op):
    """Convolution, or a linear layer as a 1x1 convolution of a 1x1 image.

    Attributes:
        kind: ``"conv"`` or ``"linear"``.
        weight: float32 (out, in / groups, kh, kw).
        bias: float32 (out,).
    """

    kind: str
    weight: Tensor
    bias: Tensor
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    # By identity: tensors have no single truth value to compare by.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclass(frozen=True, kw_only=True, eq=False)
class AffineOp(Op):
    """Batch norm in inference: ``x * scale + shift`` per channel. Never left after `trace`."""

    scale: Tensor
    shift: Tensor

    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclass(frozen=True, kw_only=True)
class PoolOp(Op):
    """Pooling of `kind` ``"max"`` (padding never wins) or ``"avg"`` (padding counts as 0)."""

    kind: str
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)


@dataclass(frozen=True, kw_only=True)
class AddOp(Op):
    """Sum of two tensors of one shape."""


@dataclass(frozen=True, kw_only=True)
class ActivationOp(Op):
    """A ReLU or ReLU6 that no other operation could take in."""


@dataclass(frozen=True, kw_only=True)
class FlattenOp(Op):
    """(N, C, H, W) to (N, C*H*W, 1, 1)."""


def keeps_format(op: Op) -> bool:
    """Return whether an operation's output has the number format of its input."""
    return isinstance(op, FlattenOp) or (isinstance(op, PoolOp) and op.kind == "max")


def evaluate(op: Op, inputs: Sequence[Tensor]) -> Tensor:
    """Return an operation's float output, (N, C, H, W), in the dtype of its inputs."""
    x = inputs[0]
    if isinstance(op, GemmOp):
        weight, bias = op.weight.to(x.dtype), op.bias.to(x.dtype)
        x = F.conv2d(x, weight, bias, op.stride, op.padding, op.dilation, op.groups)
    elif isinstance(op, AffineOp):
        x = x * op.scale.to(x.dtype).view(-1, 1, 1) + op.shift.to(x.dtype).view(-1, 1, 1)
    elif isinstance(op, PoolOp):
        pool = F.max_pool2d if op.kind == "max" else F.avg_pool2d
        x = pool(x, op.kernel, op.stride, op.padding)
    elif isinstance(op, AddOp):
        x = inputs[0] + inputs[1]
    elif isinstance(op, FlattenOp):
        x = x.reshape(len(x), -1, 1, 1)
    return activate(op, x)


def activate(op: Op, x: Tensor) -> Tensor:
    """Return an operation's result after its activation."""
    if op.activation == "relu":
        return F.relu(x)
    return F.relu6(x) if op.activation == "relu6" else x


def run(ops: Sequence[Op], images: Tensor) -> dict[str, Tensor]:
    """Return every tensor by name, ``"input"`` included; the logits are (N, classes, 1, 1)."""
    values = {"input": images}
    for op in ops:
        values[op.name] = evaluate(op, [values[name] for name in op.inputs])
    return values


def nonnegative(ops: Sequence[Op]) -> dict[str, bool]:
    """Return for every tensor by name whether all its values are >= 0, whatever the image."""
    known = {"input": False}
    for op in ops:
        passes = isinstance(op, PoolOp | AddOp | FlattenOp)
        known[op.name] = op.activation != "none" or (passes and all(known[i] for i in op.inputs))
    return known
