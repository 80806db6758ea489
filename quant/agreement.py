# SPDX-License-Identifier: Apache-2.0
"""Comparison of the three forms of a quantized network, tensor by tensor.

The Brevitas model, onnxruntime on the exported ONNX QCDQ graph and the integer engine must give
the same code in every word of every layer: the first promise of the design. With multipliers the
floats of the other two round where the engine does not; there each layer is compared alone, on
the engine's codes, and may be off by one in the last place (`compare_each_layer`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnx.utils
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor

from quant import engine
from quant.brevitas_model import BrevitasModel
from quant.export import exact_dtype
from quant.network import Gemm, IntegerNetwork
from quant.onnx_export import INPUT_NAME, OUTPUT_NAME, to_onnx
from quant.ops import GemmOp
from quant.quantize import QuantizedModel

_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class LayerAgreement:
    """How many words of a network's tensors are equal in Brevitas, onnxruntime and the engine.

    Attributes:
        layers: tensors compared: the image's codes, every layer's, and the logits.
        images: images run.
        words: codes compared, over all layers and images; a logit is one word.
        words_equal: those equal in all three.
        different: per layer, by name, the words that are not; empty where all agree.
        brevitas_float: float type in which Brevitas's sums are exact whatever the image.
        onnx_bound: largest ``sum(|a * w|) + |bias|`` of any layer on these images; onnxruntime,
            which computes in float32, is exact where it is below 2**24.
    """

    layers: int
    images: int
    words: int
    words_equal: int
    different: dict[str, int]
    brevitas_float: str
    onnx_bound: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-able data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class LayerDifference:
    """How far Brevitas and onnxruntime are from the engine in one layer, on the engine's inputs.

    Attributes:
        name: of the layer; ``"input"`` is the image's quantization, the last one gives the logits.
        words: codes (or logits) compared.
        brevitas_off, onnx_off: those that differ.
        largest: the largest difference of either in steps of the code (of the accumulator).
    """

    name: str
    words: int
    brevitas_off: int
    onnx_off: int
    largest: int


def compare_each_layer(
    quantized: QuantizedModel, images: Tensor, *, optimized: bool = False
) -> tuple[LayerDifference, ...]:
    """Compare every layer of the three forms on identical inputs: the engine's codes.

    Args:
        quantized: what `quant.quantize.quantize` returns.
        images: normalized float32 (N, C, H, W), at least one.
        optimized: as in `compare_layers`.
    """
    network = quantized.network
    dtype = exact_dtype(network)
    module = copy.deepcopy(quantized.module).eval()
    if dtype != torch.float32:
        _round_parameters(module)
        module = module.to(dtype)
    sessions = _layer_sessions(network, optimized=optimized)
    rows = []
    golden = [
        engine.forward(network, engine.image_codes(network, batch))
        for batch in images.split(_BATCH)
    ]
    for op in (None, *module.ops):
        name = "input" if op is None else op.name
        words = brevitas_off = onnx_off = largest = 0
        for batch, codes in zip(images.split(_BATCH), golden, strict=True):
            expected = codes[name].numpy().reshape(-1).astype(np.int64)
            if op is None:
                feed = {INPUT_NAME: batch.numpy()}
                value = batch.to(dtype)
            else:
                feed = {source: codes[source].numpy() for source in op.inputs}
                inputs = [codes[k].to(dtype) * network.format_of(k).scale for k in op.inputs]
                with _exact_kernels():
                    value = module.compute(op, inputs)
            with torch.no_grad():
                value = module.quantize(name, op, value)
            (found,) = sessions[name].run(None, feed)
            brevitas = _steps(network, name, value.numpy()) - expected
            is_codes = found.dtype != np.float32  # all but the logits
            other = found.reshape(-1) if is_codes else _steps(network, name, found)
            other = other.astype(np.int64) - expected
            words += len(expected)
            brevitas_off += int(np.count_nonzero(brevitas))
            onnx_off += int(np.count_nonzero(other))
            largest = max(largest, int(np.abs(brevitas).max()), int(np.abs(other).max()))
        rows.append(
            LayerDifference(
                name=name,
                words=words,
                brevitas_off=brevitas_off,
                onnx_off=onnx_off,
                largest=largest,
            )
        )
    return tuple(rows)


def compare_layers(
    quantized: QuantizedModel, images: Tensor, *, optimized: bool = False
) -> LayerAgreement:
    """Run images through all three forms and compare every word.

    Args:
        quantized: what `quant.quantize.quantize` returns.
        images: normalized float32 (N, C, H, W), at least one.
        optimized: let onnxruntime apply its default graph optimizations, which fuse most layers
            into integer kernels; otherwise it runs the graph as written.
    """
    network = quantized.network
    dtype = exact_dtype(network)
    module = quantized.module.eval()
    if dtype != torch.float32:
        module = copy.deepcopy(module).to(dtype)
    session = onnx_session(network, optimized=optimized)
    words = bound = 0
    different: dict[str, int] = {}
    names = ["input", *(node.name for node in network.nodes)]
    for batch in images.split(_BATCH):
        golden = engine.forward(network, engine.image_codes(network, batch))
        bound = max(bound, _largest_sum(network, golden))
        brevitas = brevitas_codes(network, module, batch)
        runtime = onnx_codes(network, session, batch)
        for name in names:
            expected = golden[name].numpy().reshape(-1)
            same = (expected == brevitas[name].reshape(-1)) & (
                expected == runtime[name].reshape(-1)
            )
            words += len(expected)
            if not same.all():
                different[name] = different.get(name, 0) + int((~same).sum())
    return LayerAgreement(
        layers=len(names),
        images=len(images),
        words=words,
        words_equal=words - sum(different.values()),
        different=different,
        brevitas_float=str(dtype).removeprefix("torch."),
        onnx_bound=bound,
    )


def brevitas_codes(
    network: IntegerNetwork, module: BrevitasModel, images: Tensor
) -> dict[str, np.ndarray]:
    """Return every tensor's codes as the Brevitas model gives them, float64, by name.

    Args:
        network: gives the scales.
        module: the Brevitas model, in the float type that keeps it exact.
        images: normalized float32 (N, C, H, W).
    """
    dtype = next(module.parameters()).dtype
    codes = {}
    with _exact_kernels():
        for name, value in module.outputs(images.to(dtype)):
            codes[name] = value.double().numpy() / _scale(network, name)
    return codes


@contextlib.contextmanager
def _exact_kernels() -> Iterator[None]:
    # NNPACK may choose Winograd, which is not exact.
    with torch.no_grad(), torch.backends.nnpack.flags(enabled=False):
        yield


def onnx_session(network: IntegerNetwork, *, optimized: bool) -> onnxruntime.InferenceSession:
    """Return a single-threaded CPU session of the exported network that gives every tensor.

    Args:
        network: what to run.
        optimized: with onnxruntime's default graph optimizations, or none.
    """
    return _session(to_onnx(network, all_tensors=True), optimized=optimized)


def _round_parameters(module: BrevitasModel) -> None:
    """Set weights and biases to their quantized values, in place.

    A weight half-way between two codes in float32 may not be so in float64, which would make
    another network of the same module.
    """
    with torch.no_grad():
        for op in module.ops:
            if isinstance(op, GemmOp):
                layer = module.layer(op.name)
                layer.weight.copy_(layer.quant_weight().value)
                layer.bias.copy_(layer.quant_bias().value)


def _layer_sessions(
    network: IntegerNetwork, *, optimized: bool
) -> dict[str, onnxruntime.InferenceSession]:
    """Return a session per layer, from the codes of its inputs to its own, cut from the export."""
    whole = onnx.utils.Extractor(to_onnx(network, all_tensors=True))
    parts = {"input": whole.extract_model([INPUT_NAME], ["input"])}
    for node in network.nodes:
        output = OUTPUT_NAME if node.output is None else node.name
        parts[node.name] = whole.extract_model(list(node.inputs), [output])
    return {name: _session(part, optimized=optimized) for name, part in parts.items()}


def _session(model: onnx.ModelProto, *, optimized: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def onnx_codes(
    network: IntegerNetwork, session: onnxruntime.InferenceSession, images: Tensor
) -> dict[str, np.ndarray]:
    """Return every tensor's codes by name as a session of `onnx_session` gives them."""
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {INPUT_NAME: images.numpy()})
    codes = dict(zip(names, values, strict=True))
    last = network.nodes[-1].name
    logits = codes.pop(OUTPUT_NAME).astype(np.float64)
    return {**codes, last: logits / _scale(network, last)}


def _scale(network: IntegerNetwork, name: str) -> float:
    """Return the value of a tensor's code 1; of raw logits, the accumulator's."""
    if name == "input":
        return network.input.scale
    node = network.node(name)
    if node.output is not None:
        return node.output.scale
    assert isinstance(node, Gemm)
    return network.format_of(node.inputs[0]).scale * float(node.weight_scale[0])


def _steps(network: IntegerNetwork, name: str, values: np.ndarray) -> np.ndarray:
    """Return dequantized values as the nearest integers in units of their scale, flat int64."""
    return np.rint(values.reshape(-1).astype(np.float64) / _scale(network, name)).astype(np.int64)


def _largest_sum(network: IntegerNetwork, codes: dict[str, Tensor]) -> int:
    """Return the largest ``sum(|a * w|) + |bias|`` of any layer and word on these codes."""
    largest = 0
    for node in network.gemms():
        image = codes[node.inputs[0]].double().abs()
        weight = torch.from_numpy(np.abs(node.weight)).double()
        bias = torch.from_numpy(np.abs(node.bias)).double()
        geometry = (node.stride, node.padding, node.dilation, node.groups)
        largest = max(largest, int(F.conv2d(image, weight, bias, *geometry).max()))
    return largest
