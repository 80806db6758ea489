# SPDX-License-Identifier: Apache-2.0
"""IntegerNetwork to ONNX in QCDQ form: QuantizeLinear, Clip, DequantizeLinear around float layers.

The Clip on int8 or uint8 codes carries widths below 8 bits and the saturation of a ReLU6. Where all
scales are powers of two, float layers compute the engine's integers exactly as long as sums stay
below 2**24 (`quant.export.exactness_bound`); with multipliers a code may be off by one.

onnxruntime's default optimizations fuse these patterns into integer kernels. They stay exact but
for one: on x86 without VNNI, unsigned times signed 8-bit products are added in pairs that saturate
at 16 bits. So weights are int8 unless such a pair can overflow, which only W8A8 can; there they
are stored as uint8 with zero point 128, whose kernel has no such flaw.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quant.network import (
    Add,
    AvgPool,
    Flatten,
    Gemm,
    IntegerNetwork,
    MaxPool,
    Node,
    Requantize,
    TensorFormat,
)
from trilat.errors import InputError
from trilat.files import replacing

INPUT_NAME, OUTPUT_NAME = "image", "logits"
_OPSET, _IR_VERSION = 17, 9
_INT16_MAX = (1 << 15) - 1


def export_onnx(network: IntegerNetwork, path: Path, *, all_tensors: bool = False) -> None:
    """Write a network as ONNX QCDQ.

    The graph takes the normalized float32 ``image`` (N, C, H, W) and gives float32 ``logits``
    (N, classes), which are the raw accumulators times their scale.

    Args:
        network: what to write.
        path: of the file, usually ``.onnx``; replaced atomically.
        all_tensors: also give the int8 or uint8 codes of ``input`` and of every node as outputs,
            under their own names.
    """
    model = to_onnx(network, all_tensors=all_tensors)
    with replacing(Path(path)) as temporary:
        onnx.save(model, temporary)


def to_onnx(network: IntegerNetwork, *, all_tensors: bool = False) -> onnx.ModelProto:
    """Return what `export_onnx` writes, checked by ONNX's own checker."""
    writer = _Writer(network)
    writer.quantized("input", INPUT_NAME, network.input, network.input.lo, network.input.hi)
    for node in network.nodes:
        writer.node(node)
    image = helper.make_tensor_value_info(
        INPUT_NAME, TensorProto.FLOAT, ["N", *network.input_shape]
    )
    logits = helper.make_tensor_value_info(
        OUTPUT_NAME, TensorProto.FLOAT, ["N", network.num_classes]
    )
    outputs = [logits]
    if all_tensors:
        for name, fmt in writer.codes.items():
            shape = ["N", None, None, None]
            outputs.append(helper.make_tensor_value_info(name, _code_type(fmt), shape))
    graph = helper.make_graph(
        writer.nodes, network.name or "network", [image], outputs, writer.constants
    )
    model = helper.make_model(
        graph,
        producer_name="trilat",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    helper.set_model_props(
        model,
        {
            "weight_bits": str(network.weight_bits),
            "act_bits": str(network.act_bits),
            "network_hash": network.content_hash(),
        },
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _code_type(fmt: TensorFormat) -> int:
    return int(TensorProto.INT8 if fmt.signed else TensorProto.UINT8)


class _Writer:
    """Collects the graph; tensor X has codes `X` and dequantized values `X/value`."""

    def __init__(self, network: IntegerNetwork) -> None:
        self.network = network
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.codes: dict[str, TensorFormat] = {}

    def node(self, node: Node) -> None:
        """Add a network's node: float arithmetic, then quantization of its result."""
        values = [f"{name}/value" for name in node.inputs]
        if isinstance(node, Gemm):
            result = self._gemm(node, values[0])
        elif isinstance(node, MaxPool | AvgPool):
            result = self._pool(node, values[0])
        elif isinstance(node, Add):
            result = self._op("Add", values, f"{node.name}/sum")
        elif isinstance(node, Flatten):
            rows = self._op("Flatten", values, f"{node.name}/rows", axis=1)
            result = self._reshape(rows, f"{node.name}/flat", (0, -1, 1, 1))
        elif isinstance(node, Requantize):
            result = values[0]
        else:
            raise TypeError(f"no ONNX form of a {type(node).__name__}")
        if node.output is not None:
            self.quantized(node.name, result, node.output, node.lo, node.hi)

    def quantized(self, name: str, value: str, fmt: TensorFormat, lo: int, hi: int) -> None:
        """Add the quantization of `value` to codes `name` and back to ``name/value``."""
        dtype = np.int8 if fmt.signed else np.uint8
        scale = self._constant(f"{name}/scale", np.float32(fmt.scale))
        zero = self._constant(f"{name}/zero", dtype(0))
        word = np.iinfo(dtype)
        clipped = (lo, hi) != (word.min, word.max)
        code = f"{name}/word" if clipped else name
        self._op("QuantizeLinear", [value, scale, zero], code)
        if clipped:
            low = self._constant(f"{name}/lo", dtype(lo))
            high = self._constant(f"{name}/hi", dtype(hi))
            self._op("Clip", [code, low, high], name)
        self._op("DequantizeLinear", [name, scale, zero], f"{name}/value")
        self.codes[name] = fmt

    def _gemm(self, node: Gemm, value: str) -> str:
        scale_in = self.network.format_of(node.inputs[0]).scale
        if node.multiplier is not None and node.weight_mantissa is None:
            raise InputError(
                f"{node.name} has multipliers but no scales: ONNX computes with scales"
            )
        weight = node.weight if node.op == "conv" else node.weight.reshape(len(node.weight), -1)
        # Signed activations travel as unsigned ones too, shifted by 128.
        pair = (
            2 * ((1 << self.network.act_bits) - 1) * int(np.abs(weight.astype(int)).max(initial=0))
        )
        zero = 128 if pair > _INT16_MAX else 0
        w = self._dequantized(f"{node.name}/weight", weight, node.weight_scale, zero)
        b = self._dequantized(
            f"{node.name}/bias", node.bias.astype(np.int32), scale_in * node.weight_scale
        )
        last = node.output is None
        if node.op == "linear":
            rows = self._op("Flatten", [value], f"{node.name}/rows", axis=1)
            sums = OUTPUT_NAME if last else f"{node.name}/rows_sum"
            self._op("Gemm", [rows, w, b], sums, transB=1)
            return sums if last else self._reshape(sums, f"{node.name}/sum", (0, -1, 1, 1))
        sums = self._op(
            "Conv",
            [value, w, b],
            f"{node.name}/sum",
            kernel_shape=node.weight.shape[2:],
            strides=node.stride,
            pads=(*node.padding, *node.padding),
            dilations=node.dilation,
            group=node.groups,
        )
        return self._op("Flatten", [sums], OUTPUT_NAME, axis=1) if last else sums

    def _pool(self, node: MaxPool | AvgPool, value: str) -> str:
        settings: dict[str, Any] = {
            "kernel_shape": node.kernel,
            "strides": node.stride,
            "pads": (*node.padding, *node.padding),
        }
        if isinstance(node, MaxPool):
            return self._op("MaxPool", [value], f"{node.name}/max", **settings)
        return self._op(
            "AveragePool", [value], f"{node.name}/mean", count_include_pad=1, **settings
        )

    def _dequantized(self, name: str, codes: np.ndarray, scales: np.ndarray, zero: int = 0) -> str:
        if zero:
            codes = (codes.astype(np.int16) + zero).astype(np.uint8)
        scale = scales.astype(np.float32)
        inputs = [self._constant(f"{name}_codes", codes), self._constant(f"{name}_scale", scale)]
        if zero:
            zeros = np.full(len(codes), zero, dtype=np.uint8)
            inputs.append(self._constant(f"{name}_zero", zeros))
        return self._op("DequantizeLinear", inputs, name, axis=0)

    def _reshape(self, value: str, name: str, shape: tuple[int, ...]) -> str:
        target = self._constant(f"{name}_shape", np.asarray(shape, dtype=np.int64))
        return self._op("Reshape", [value, target], name)

    def _constant(self, name: str, value: np.ndarray | np.generic) -> str:
        array = np.ascontiguousarray(value) if isinstance(value, np.ndarray) else np.asarray(value)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def _op(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output
