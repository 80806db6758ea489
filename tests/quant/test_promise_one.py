# SPDX-License-Identifier: Apache-2.0
"""The first promise: Brevitas, onnxruntime and the integer engine give the same integers."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from small_networks import NETWORKS, digits, images, spec

from quant import engine
from quant.agreement import brevitas_codes, compare_layers, onnx_codes, onnx_session
from quant.brevitas_model import BrevitasModel
from quant.calibration import Formats
from quant.export import exactness_bound
from quant.network import AvgPool, Gemm, IntegerNetwork, TensorFormat
from quant.ops import GemmOp, PoolOp
from quant.quantize import QuantizedModel, quantize

PAIRS = [(2, 2), (4, 4), (8, 8), (2, 8)]
MORE_PAIRS = [(3, 3), (8, 2), (5, 7), (7, 5)]
CASES = [(name, pair) for name in NETWORKS for pair in PAIRS if name != "wide"]
CASES += [(name, pair) for name in ("vgg", "mobile") for pair in MORE_PAIRS]


def quantized(name: str, weight_bits: int, act_bits: int, method: str = "ptq") -> QuantizedModel:
    return quantize(
        spec(name),
        digits(),
        weight_bits=weight_bits,
        act_bits=act_bits,
        method=method,
        seed=0,
        epochs=1 if method == "qat" else None,
    )


@pytest.mark.parametrize(
    ("name", "bits"), CASES, ids=[f"{name}-W{w}A{a}" for name, (w, a) in CASES]
)
def test_every_word_of_every_layer_is_equal(name: str, bits: tuple[int, int]) -> None:
    model = quantized(name, *bits)
    found = compare_layers(model, images(spec(name), 8))
    assert found.different == {}
    assert found.words_equal == found.words
    assert found.images == 8
    assert found.layers == len(model.network.nodes) + 1
    assert found.onnx_bound < 1 << 24
    # A comparison of constants would prove nothing.
    codes = engine.forward(model.network, engine.image_codes(model.network, images(spec(name), 8)))
    for node in model.network.nodes[:-1]:
        assert len(codes[node.name].unique()) > 1, node.name


@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (2, 8)], ids=lambda b: f"W{b[0]}A{b[1]}")
@pytest.mark.parametrize("name", ["vgg", "resnet", "mobile", "pools 7"])
def test_equal_under_the_default_optimizations_of_onnxruntime(
    name: str, bits: tuple[int, int]
) -> None:
    found = compare_layers(quantized(name, *bits), images(spec(name), 8), optimized=True)
    assert found.different == {}


@pytest.mark.parametrize("bits", [(4, 4), (2, 3)], ids=lambda b: f"W{b[0]}A{b[1]}")
def test_equal_after_training(bits: tuple[int, int]) -> None:
    model = quantized("resnet", *bits, method="qat")
    found = compare_layers(model, images(spec("resnet"), 8))
    assert found.different == {}


def test_equal_in_float64_where_sums_can_leave_float32() -> None:
    model = quantized("wide", 8, 8)
    assert exactness_bound(model.network)["3"] >= 1 << 24
    found = compare_layers(model, images(spec("wide"), 8))
    assert found.brevitas_float == "float64"
    assert found.onnx_bound < 1 << 24  # on these images, so onnxruntime's float32 is exact too
    assert found.different == {}
    # The model itself is not changed by the comparison.
    assert model.module.layer("3").weight.dtype == torch.float32


def test_a_single_wrong_weight_is_noticed() -> None:
    model = quantized("vgg", 4, 4)
    node = model.network.nodes[0]
    assert isinstance(node, Gemm)
    weight = node.weight.copy()
    weight[0, 0, 1, 1] += 1 if weight[0, 0, 1, 1] < 7 else -1
    nodes = (dataclasses.replace(node, weight=weight), *model.network.nodes[1:])
    broken = dataclasses.replace(model, network=dataclasses.replace(model.network, nodes=nodes))
    found = compare_layers(broken, images(spec("vgg"), 8))
    assert found.words_equal < found.words
    assert node.name in found.different


def rounded(total: int, shift: int, area: int, lo: int, hi: int) -> int:
    """The specification of an average pool, in fractions; Python's round is half to even."""
    return min(max(round(Fraction(total) * Fraction(2) ** shift / area), lo), hi)


def pool_only(area: int, bits: int, signed: bool, shift: int) -> tuple[IntegerNetwork, PoolOp]:
    """A network that is an average pool of `area` x 1 pixels behind the image."""
    image = TensorFormat(bits=bits, signed=True, exponent=0)
    source = TensorFormat(bits=bits, signed=signed, exponent=0)
    output = TensorFormat(bits=bits, signed=signed, exponent=-shift)
    pool = AvgPool(
        name="pool", inputs=("input",), output=output, lo=output.lo, hi=output.hi,
        kernel=(area, 1), stride=(area, 1),
    )  # fmt: skip
    last = Gemm(
        name="fc", inputs=("pool",), output=None, lo=0, hi=0, op="linear",
        weight=np.ones((1, 1, 1, 1), np.int8), bias=np.zeros(1, np.int64),
        weight_exponent=np.zeros(1, np.int64),
    )  # fmt: skip
    network = IntegerNetwork(
        name="pool", weight_bits=2, act_bits=bits, input=source if not signed else image,
        input_shape=(1, area, 1), num_classes=1, nodes=(pool, last),
    )  # fmt: skip
    op = PoolOp(
        name="pool", inputs=("input",), shape=(1, 1, 1), kind="avg",
        kernel=(area, 1), stride=(area, 1),
    )  # fmt: skip
    return network, op


@pytest.mark.parametrize("shift", [-1, 0, 2])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("bits", "area"), [*itertools.product((2, 3), (2, 3, 6, 9, 25, 49)), (8, 9), (8, 25), (8, 49)]
)
def test_average_pool_of_every_possible_sum(bits: int, area: int, signed: bool, shift: int) -> None:
    network, op = pool_only(area, bits, signed, shift)
    fmt = network.input
    sums = np.arange(fmt.lo * area, fmt.hi * area + 1)
    # Each column spreads one sum over the window as evenly as it goes.
    codes = np.stack([(sums + k) // area for k in range(area)], axis=1)
    assert np.array_equal(codes.sum(axis=1), sums)
    batch = torch.from_numpy(codes).float().view(-1, 1, area, 1)
    output = network.nodes[0].output
    assert output is not None
    expected = [rounded(int(s), shift, area, output.lo, output.hi) for s in sums]
    golden = engine.forward(network, engine.image_codes(network, batch))["pool"]
    assert golden.flatten().tolist() == expected
    formats = Formats(
        weight_bits=2, act_bits=bits, bias_bits=8,
        tensors={"input": fmt, "pool": output}, weights={"fc": np.zeros(1, np.int64)},
    )  # fmt: skip
    fc = GemmOp(
        name="fc", inputs=("pool",), shape=(1, 1, 1), kind="linear",
        weight=torch.ones(1, 1, 1, 1), bias=torch.zeros(1),
    )  # fmt: skip
    module = BrevitasModel((op, fc), formats).eval()
    assert brevitas_codes(network, module, batch)["pool"].flatten().tolist() == expected
    for optimized in (False, True):
        session = onnx_session(network, optimized=optimized)
        assert onnx_codes(network, session, batch)["pool"].flatten().tolist() == expected
