# SPDX-License-Identifier: Apache-2.0
"""From a Brevitas model to the IntegerNetwork that it computes, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from quant.brevitas_model import BrevitasModel
from quant.calibration import high_code
from quant.network import (
    Add,
    AvgPool,
    Flatten,
    Gemm,
    IntegerNetwork,
    MaxPool,
    Node,
    Requantize,
)
from quant.ops import ActivationOp, AddOp, FlattenOp, GemmOp, Op, PoolOp

# Every integer up to here, and every partial sum of a layer below it, is exact in float32.
EXACT_IN_FLOAT32 = 1 << 24


def to_network(
    model: BrevitasModel,
    *,
    name: str,
    input_shape: tuple[int, int, int],
    metadata: dict[str, Any],
) -> IntegerNetwork:
    """Return the integer network of a Brevitas model.

    Weight and bias codes are read from Brevitas's quantized tensors and must be whole numbers at
    the model's constant scales; anything else is a defect and raises ValueError.
    """
    model.eval()
    formats = model.formats
    with torch.no_grad():
        nodes = tuple(_node(model, op) for op in model.ops)
    last = nodes[-1]
    assert isinstance(last, Gemm)
    return IntegerNetwork(
        name=name,
        weight_bits=formats.weight_bits,
        act_bits=formats.act_bits,
        input=formats.tensors["input"],
        input_shape=input_shape,
        num_classes=last.weight.shape[0],
        nodes=nodes,
        metadata=metadata,
    )


def unrounded_weights(model: BrevitasModel) -> np.ndarray:
    """Return the model's weights in units of their scales, before rounding, float32 (weights,).

    In the order of `quant.weight_memory.weight_codes`.
    """
    parts = []
    for op in model.ops:
        if isinstance(op, GemmOp):
            weight = model.layer(op.name).weight.detach().cpu().numpy()
            scale = np.exp2(model.formats.weights[op.name].astype(np.float32))
            parts.append((weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).ravel())
    return np.concatenate(parts)


def exactness_bound(network: IntegerNetwork) -> dict[str, int]:
    """Return per layer the largest ``sum(|a * w|) + |bias|`` over its channels, for any image.

    Where it is below 2**24, every partial sum of the layer is exact in float32 in any order, so
    Brevitas and onnxruntime compute its integers in float32; above, only float64 must.
    """
    bounds = {}
    for node in network.gemms():
        fmt = network.format_of(node.inputs[0])
        largest = max(-fmt.lo, fmt.hi)
        sums = np.abs(node.weight.astype(np.int64)).sum(axis=(1, 2, 3)) * largest
        bounds[node.name] = int((sums + np.abs(node.bias)).max())
    return bounds


def exact_dtype(network: IntegerNetwork) -> torch.dtype:
    """Return the float type in which every layer's sums are exact, whatever the image."""
    worst = max(exactness_bound(network).values())
    return torch.float32 if worst < EXACT_IN_FLOAT32 else torch.float64


def _node(model: BrevitasModel, op: Op) -> Node:
    fmt = model.formats.tensors.get(op.name)
    common: dict[str, Any] = {
        "name": op.name,
        "inputs": op.inputs,
        "output": fmt,
        "lo": 0 if fmt is None or op.activation != "none" else fmt.lo,
        "hi": 0 if fmt is None else high_code(op, fmt),
    }
    if isinstance(op, GemmOp):
        return _gemm(model, op, common)
    if isinstance(op, PoolOp):
        kind = MaxPool if op.kind == "max" else AvgPool
        return kind(**common, kernel=op.kernel, stride=op.stride, padding=op.padding)
    if isinstance(op, AddOp):
        return Add(**common)
    if isinstance(op, FlattenOp):
        return Flatten(**common)
    if isinstance(op, ActivationOp):
        return Requantize(**common)
    raise TypeError(f"no integer meaning for a {type(op).__name__}")


def _gemm(model: BrevitasModel, op: GemmOp, common: dict[str, Any]) -> Gemm:
    layer = model.layer(op.name)
    weight, bias = layer.quant_weight(), layer.quant_bias()
    exponents = model.formats.weights[op.name]
    weight_codes = _codes(op.name, weight.value, weight.scale, exponents)
    bias_codes = _codes(op.name, bias.value, bias.scale, model.formats.bias_exponent(op))
    return Gemm(
        **common,
        op=op.kind,
        weight=weight_codes.reshape(op.weight.shape).astype(np.int8),
        bias=bias_codes,
        weight_exponent=exponents,
        stride=op.stride,
        padding=op.padding,
        dilation=op.dilation,
        groups=op.groups,
    )


def _codes(name: str, values: Tensor, scale: Tensor, exponents: np.ndarray) -> np.ndarray:
    expected = np.exp2(exponents.astype(np.float64))
    if not np.array_equal(scale.flatten().double().numpy(), expected):
        raise ValueError(f"{name}: Brevitas's scales are not the model's powers of two")
    codes = values.double().numpy() / expected.reshape(-1, *[1] * (values.dim() - 1))
    if not np.array_equal(codes, np.rint(codes)):
        raise ValueError(f"{name}: Brevitas's quantized values are not whole codes")
    return codes.astype(np.int64)
