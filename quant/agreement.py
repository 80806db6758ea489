# SPDX-License-Identifier: Apache-2.0
"""Bit-for-bit comparison of the three forms of a quantized network, tensor by tensor.

The Brevitas model, onnxruntime on the exported ONNX QCDQ graph and the integer engine must give
the same code in every word of every layer: the first promise of the design.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor

from quant import engine
from quant.brevitas_model import BrevitasModel
from quant.export import exact_dtype
from quant.network import Gemm, IntegerNetwork
from quant.onnx_export import INPUT_NAME, OUTPUT_NAME, to_onnx
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
        onnx = onnx_codes(network, session, batch)
        for name in names:
            expected = golden[name].numpy().reshape(-1)
            same = (expected == brevitas[name].reshape(-1)) & (expected == onnx[name].reshape(-1))
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
    # NNPACK may choose Winograd, which is not exact.
    with torch.no_grad(), torch.backends.nnpack.flags(enabled=False):
        for name, value in module.outputs(images.to(dtype)):
            codes[name] = value.double().numpy() * 2.0 ** -_exponent(network, name)
    return codes


def onnx_session(network: IntegerNetwork, *, optimized: bool) -> onnxruntime.InferenceSession:
    """Return a single-threaded CPU session of the exported network that gives every tensor.

    Args:
        network: what to run.
        optimized: with onnxruntime's default graph optimizations, or none.
    """
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    options.intra_op_num_threads = 1
    graph = to_onnx(network, all_tensors=True).SerializeToString()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def onnx_codes(
    network: IntegerNetwork, session: onnxruntime.InferenceSession, images: Tensor
) -> dict[str, np.ndarray]:
    """Return every tensor's codes by name as a session of `onnx_session` gives them."""
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {INPUT_NAME: images.numpy()})
    codes = dict(zip(names, values, strict=True))
    last = network.nodes[-1].name
    logits = codes.pop(OUTPUT_NAME).astype(np.float64)
    return {**codes, last: logits * 2.0 ** -_exponent(network, last)}


def _exponent(network: IntegerNetwork, name: str) -> int:
    """Return the exponent of a tensor's codes; of raw logits, the accumulator's."""
    if name == "input":
        return network.input.exponent
    node = network.node(name)
    if node.output is not None:
        return node.output.exponent
    assert isinstance(node, Gemm)
    return network.format_of(node.inputs[0]).exponent + int(node.weight_exponent[0])


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
