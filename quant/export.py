# SPDX-License-Identifier: Apache-2.0
"""From a Brevitas model to the IntegerNetwork that it computes, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from quant.brevitas_model import BrevitasModel
from quant.calibration import Formats, high_code
from quant.network import (
    MAX_MULTIPLIER,
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
            scale = model.formats.weight_scale(op).astype(np.float32)
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
    formats = model.formats
    # A code times a scale of 24 digits is a rounded float32; the code is still the nearest integer.
    rounding = 0.0 if formats.requant == "shift" else 2.0**-23
    weight_codes = _codes(op.name, weight, formats.weight_scale(op), rounding)
    bias_codes = _codes(op.name, bias, formats.bias_scale(op), rounding)
    return Gemm(
        **common,
        op=op.kind,
        weight=weight_codes.reshape(op.weight.shape).astype(np.int8),
        bias=bias_codes,
        **_scaling(formats, op),
        stride=op.stride,
        padding=op.padding,
        dilation=op.dilation,
        groups=op.groups,
    )


def _scaling(formats: Formats, op: GemmOp) -> dict[str, Any]:
    """Return a layer's scales, and with `requant` mult its multipliers, by name of the field."""
    if formats.requant == "shift":
        return {"weight_exponent": formats.weights[op.name]}
    scale, output = formats.weight_scale(op), formats.tensors.get(op.name)
    if output is None:
        mantissa, exponent = np.frexp(scale)
        return {"weight_exponent": exponent.astype(np.int64), "weight_mantissa": mantissa}
    source = formats.tensors[op.inputs[0]]
    digits = MAX_MULTIPLIER.bit_length()
    ratio = source.scale * scale / output.scale
    # As many digits of the ratio as a multiplier has; rounding can make one more of them.
    shift = digits - np.frexp(ratio)[1].astype(np.int64)
    multiplier = np.rint(np.ldexp(ratio, shift)).astype(np.int64)
    carried = multiplier > MAX_MULTIPLIER
    shift, multiplier = shift - carried, multiplier >> carried
    exponent = output.exponent - source.exponent - shift
    return {
        "weight_exponent": exponent,
        "weight_mantissa": scale / np.exp2(exponent.astype(np.float64)),
        "multiplier": multiplier,
    }


def _codes(name: str, quantized: Any, scale: np.ndarray, rounding: float) -> np.ndarray:
    """Return the codes of a Brevitas quantized tensor, whose value each may be off by `rounding`.

    Args:
        name: of the layer.
        quantized: value and scale as Brevitas gives them.
        scale: what its scale must be once rounded to float32, (out,).
        rounding: largest relative error of a value.
    """
    expected = scale.astype(np.float32).astype(np.float64)
    if not np.array_equal(quantized.scale.flatten().double().numpy(), expected):
        raise ValueError(f"{name}: Brevitas's scales are not the model's")
    values = quantized.value.double().numpy()
    found = values / expected.reshape(-1, *[1] * (values.ndim - 1))
    codes = np.rint(found)
    if (np.abs(found - codes) > rounding * np.abs(found)).any():
        raise ValueError(f"{name}: Brevitas's quantized values are not whole codes")
    return codes.astype(np.int64)
