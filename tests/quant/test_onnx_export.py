# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from integer_networks import Builder, multiplied, plain_network
from onnx import numpy_helper
from small_networks import digits, images, spec

from quant import engine
from quant.network import Gemm, IntegerNetwork
from quant.onnx_export import export_onnx, to_onnx
from quant.quantize import quantize
from trilat.errors import InputError


def network(name: str, weight_bits: int, act_bits: int) -> IntegerNetwork:
    return quantize(
        spec(name), digits(), weight_bits=weight_bits, act_bits=act_bits, method="ptq", seed=0
    ).network


@pytest.mark.parametrize("bits", [(2, 3), (8, 8)])
def test_written_file_is_valid_and_gives_the_logits(bits: tuple[int, int], tmp_path: Path) -> None:
    found = network("mobile", *bits)
    path = tmp_path / "net.onnx"
    export_onnx(found, path)
    onnx.checker.check_model(str(path), full_check=True)
    batch = images(spec("mobile"), 5)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": batch.numpy()})
    golden = engine.logits(found, engine.image_codes(found, batch)).numpy()
    last = found.gemms()[-1]
    exponent = found.format_of(last.inputs[0]).exponent + int(last.weight_exponent[0])
    assert np.array_equal(logits, golden * 2.0**exponent)
    export_onnx(found, path)  # replaces
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_same_network_same_bytes() -> None:
    found = network("vgg", 4, 4)
    assert to_onnx(found).SerializeToString() == to_onnx(found).SerializeToString()


def test_is_qcdq_around_float_layers() -> None:
    graph = to_onnx(network("resnet", 4, 4)).graph
    producer = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "Conv":
            assert all(producer[name].op_type == "DequantizeLinear" for name in node.input)
        if node.op_type == "Clip":
            assert producer[node.input[0]].op_type == "QuantizeLinear"
        if node.op_type == "DequantizeLinear" and node.input[0] in producer:
            assert producer[node.input[0]].op_type == "Clip"  # below 8 bits every code has one


@pytest.mark.parametrize(("bits", "dtype", "zero"), [((4, 8), np.int8, 0), ((8, 8), np.uint8, 128)])
def test_weights_are_stored_as_codes(bits: tuple[int, int], dtype: type, zero: int) -> None:
    found = network("vgg", *bits)
    stored = {t.name: numpy_helper.to_array(t) for t in to_onnx(found).graph.initializer}
    for node in found.gemms():
        codes = stored[f"{node.name}/weight_codes"]
        assert codes.dtype == dtype
        same = codes.astype(int).reshape(node.weight.shape) - zero
        assert np.array_equal(same, node.weight)
        assert np.array_equal(stored[f"{node.name}/bias_codes"], node.bias)
        assert stored[f"{node.name}/bias_codes"].dtype == np.int32


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize("act_bits", [2, 7, 8])
def test_pairs_of_extreme_products_do_not_saturate(act_bits: int, optimized: bool) -> None:
    # Two products of 255 * 127 pass 16 bits, where an integer kernel may saturate silently.
    builder = Builder(seed=0, weight_bits=8, act_bits=act_bits, shape=(8, 6, 6), signed=True)
    first = builder.gemm("a", "input", 16, (3, 3), padding=(1, 1))
    builder.gemm("b", first, 16, (3, 3), padding=(1, 1), signed=True)
    builder.gemm("fc", "b", 4, (6, 6), raw=True)
    for node in builder.nodes:
        assert isinstance(node, Gemm)
        node.weight[::2] = 127
        node.weight[1::2] = -127
    found = IntegerNetwork(
        name="extreme", weight_bits=8, act_bits=act_bits, input=builder.input,
        input_shape=(8, 6, 6), num_classes=4, nodes=tuple(builder.nodes),
    )  # fmt: skip
    fmt = found.input
    rng = np.random.default_rng(0)
    codes = rng.choice([fmt.lo, fmt.hi], (4, 8, 6, 6)).astype(np.float32)
    codes[0] = fmt.hi
    batch = torch.from_numpy(codes * np.float32(2.0**fmt.exponent))
    golden = engine.forward(found, engine.image_codes(found, batch))
    options = onnxruntime.SessionOptions()
    if not optimized:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(
        to_onnx(found, all_tensors=True).SerializeToString(), options,
        providers=["CPUExecutionProvider"],
    )  # fmt: skip
    names = [output.name for output in session.get_outputs()]
    values = dict(zip(names, session.run(names, {"image": batch.numpy()}), strict=True))
    for name in ("input", "a", "b"):
        assert np.array_equal(values[name], golden[name].numpy()), name


def test_all_tensors_are_outputs_only_when_asked_for() -> None:
    found = network("vgg", 3, 3)
    assert [o.name for o in to_onnx(found).graph.output] == ["logits"]
    names = {o.name for o in to_onnx(found, all_tensors=True).graph.output}
    assert names == {"logits", "input", *(n.name for n in found.nodes[:-1])}


def test_multipliers_without_scales_are_refused() -> None:
    message = "^conv1 has multipliers but no scales: ONNX computes with scales$"
    with pytest.raises(InputError, match=message):
        to_onnx(multiplied(plain_network()))
