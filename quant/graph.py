# SPDX-License-Identifier: Apache-2.0
"""From a user's float module to a short tuple of operations with batch norm and ReLU folded in.

`trace` is the only door: what it returns computes the same function as the module, and that is
checked on random images before it returns. What it cannot express is an InputError that names the
layer's type and its path in the module tree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn

from quant.ops import (
    ActivationOp,
    AddOp,
    AffineOp,
    FlattenOp,
    GemmOp,
    Op,
    PoolOp,
    nonnegative,
    run,
)
from quant.tracing import traced_ops
from trilat.errors import InputError


def trace(module: nn.Module, input_shape: tuple[int, int, int]) -> tuple[Op, ...]:
    """Return the operations of a float module, in the order in which they run.

    Batch norm is folded into the layer before it (in float64, then rounded to float32) or becomes
    a depthwise 1x1 convolution; a ReLU joins the operation before it, across a max pooling too,
    with which it commutes. Dropout and identities vanish. The last operation gives the logits.

    Args:
        module: any module made of the supported layers; it is not changed.
        input_shape: (C, H, W) of one image.

    Raises:
        InputError: an unsupported layer or setting, with its type and path.
    """
    module = deepcopy(module).eval().float().cpu()
    ops = traced_ops(module, input_shape)
    ops = _fold_activations(_fold_batch_norms(ops))
    ops = _drop_idle_flattens(ops)
    _check_end(ops)
    _check_same_function(module, ops, input_shape)
    return tuple(ops)


def _consumers(ops: Sequence[Op], name: str) -> int:
    return sum(op.inputs.count(name) for op in ops)


def _without(ops: list[Op], dropped: Op, substitute: str) -> list[Op]:
    """Return `ops` without one of them; its consumers read `substitute` instead."""
    return [
        replace(op, inputs=tuple(substitute if i == dropped.name else i for i in op.inputs))
        for op in ops
        if op is not dropped
    ]


def _fold_batch_norms(ops: list[Op]) -> list[Op]:
    while norm := next((op for op in ops if isinstance(op, AffineOp)), None):
        position = ops.index(norm)
        source = next((op for op in ops if op.name == norm.inputs[0]), None)
        scale, shift = norm.scale.double(), norm.shift.double()
        if isinstance(source, GemmOp) and _consumers(ops, source.name) == 1:
            folded = replace(
                source,
                weight=(source.weight.double() * scale.view(-1, 1, 1, 1)).float(),
                bias=(source.bias.double() * scale + shift).float(),
            )
            ops[ops.index(source)] = folded
            ops = _without(ops, norm, source.name)
        else:
            ops[position] = GemmOp(
                name=norm.name,
                inputs=norm.inputs,
                shape=norm.shape,
                kind="conv",
                weight=scale.float().view(-1, 1, 1, 1),
                bias=shift.float(),
                groups=norm.shape[0],
            )
    return ops


def _fold_activations(ops: list[Op]) -> list[Op]:
    done: set[str] = set()
    while pending := [op for op in ops if isinstance(op, ActivationOp) and op.name not in done]:
        op = pending[0]
        source = next((o for o in ops if o.name == op.inputs[0]), None)
        alone = source is not None and _consumers(ops, source.name) == 1
        if op.activation == "relu" and nonnegative(ops)[op.inputs[0]]:
            ops = _without(ops, op, op.inputs[0])
        elif alone and isinstance(source, PoolOp) and source.kind == "max":
            # relu(max(x)) = max(relu(x)): the activation moves in front of the pooling.
            shape = next((o.shape for o in ops if o.name == source.inputs[0]), None)
            if shape is None:
                done.add(op.name)
                continue
            moved = replace(op, inputs=source.inputs, shape=shape)
            ops = _without(ops, op, source.name)
            position = ops.index(source)
            ops[position : position + 1] = [moved, replace(source, inputs=(op.name,))]
        elif alone and isinstance(source, GemmOp | AddOp | ActivationOp | PoolOp):
            ops[ops.index(source)] = replace(source, activation=op.activation)
            ops = _without(ops, op, source.name)
        else:
            done.add(op.name)
    return ops


def _drop_idle_flattens(ops: list[Op]) -> list[Op]:
    shapes = {op.name: op.shape for op in ops}
    for op in [o for o in ops if isinstance(o, FlattenOp)]:
        if shapes.get(op.inputs[0]) == op.shape:
            # Earlier removals have replaced operations: look this one up again.
            current = next(o for o in ops if o.name == op.name)
            ops = _without(ops, current, current.inputs[0])
    return ops


def _check_end(ops: list[Op]) -> None:
    last = ops[-1] if ops else None
    if not isinstance(last, GemmOp) or last.activation != "none" or last.shape[1:] != (1, 1):
        what = f"ends with {_described(last)}" if last else "has no layers"
        raise InputError(
            f"the model {what}; it must end with a linear layer or a convolution to 1x1 pixels, "
            "whose sums are the logits"
        )


def _described(op: Op) -> str:
    kind = type(op).__name__.removesuffix("Op").lower()
    if isinstance(op, PoolOp | GemmOp):
        kind = {"max": "max pooling", "avg": "average pooling"}.get(op.kind, op.kind)
    with_activation = f" and {op.activation}" if op.activation != "none" else ""
    return f"{kind}{with_activation} at '{op.name}' of shape {'x'.join(map(str, op.shape))}"


def _check_same_function(
    module: nn.Module, ops: Sequence[Op], input_shape: tuple[int, int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *input_shape, generator=generator)
    with torch.no_grad():
        expected = module(images.clone()).flatten(1)
        found = run(ops, images)[ops[-1].name].flatten(1)
    largest = float(expected.abs().max())
    if not math.isfinite(largest):
        raise InputError("the model's weights give infinite or undefined outputs")
    if float((found - expected).abs().max()) > 1e-3 * (largest + 1e-6):
        raise InputError(
            "the model does not compute what its layers say, e.g. it changes a tensor in place "
            "that is used again"
        )
