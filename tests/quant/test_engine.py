# SPDX-License-Identifier: Apache-2.0
"""The engine against loops over Python integers, at every width and every kind of node."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_networks import (
    Builder,
    brute_forward,
    brute_gemm,
    multiplied,
    plain_network,
    random_codes,
    residual_network,
)

from hdl.tile import round_half_even_shift
from quant import engine
from quant.network import AvgPool, Gemm, IntegerNetwork, MaxPool, TensorFormat


def as_codes(network: IntegerNetwork, values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).to(engine.code_dtype(network.input))


def assert_equal_to_brute_force(network: IntegerNetwork, values: np.ndarray) -> None:
    got = engine.forward(network, as_codes(network, values))
    for index, image in enumerate(values):
        for name, expected in brute_forward(network, image).items():
            mine = got[name][index].numpy().astype(np.int64).reshape(expected.shape)
            np.testing.assert_array_equal(mine, expected, err_msg=f"{name}, image {index}")


@pytest.mark.parametrize("make", [plain_network, residual_network])
@pytest.mark.parametrize("weight_bits,act_bits", [(2, 2), (3, 7), (4, 4), (5, 8), (8, 2), (8, 8)])
def test_every_tensor_equals_brute_force(make, weight_bits, act_bits):
    network = make(seed=weight_bits * 10 + act_bits, weight_bits=weight_bits, act_bits=act_bits)
    assert_equal_to_brute_force(network, random_codes(network, 2))


@pytest.mark.parametrize("weight_bits,act_bits", [(2, 2), (3, 7), (8, 8)])
def test_multipliers_equal_brute_force(weight_bits, act_bits):
    network = residual_network(seed=3, weight_bits=weight_bits, act_bits=act_bits)
    network = multiplied(network)
    assert network.multiplies
    assert_equal_to_brute_force(network, random_codes(network, 2))


@pytest.mark.parametrize("make", [residual_network, lambda seed: multiplied(plain_network(seed))])
@pytest.mark.parametrize("end", ["lo", "hi"])
def test_extreme_codes(end, make):
    network = make(seed=5)
    values = np.full((1, *network.input_shape), getattr(network.input, end))
    assert_equal_to_brute_force(network, values)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 2, 4]),
    signed=st.booleans(),
)
def test_any_convolution(seed, size, kernel, stride, padding, dilation, groups, signed):
    for axis in range(2):
        if size[axis] + 2 * padding[axis] < dilation[axis] * (kernel[axis] - 1) + 1:
            return
    b = Builder(seed=seed, weight_bits=8, act_bits=8, shape=(4, *size), signed=signed)
    b.gemm("conv", "input", 8, kernel, stride, padding, dilation, groups, signed=True)
    network = b.build()
    values = random_codes(network, 2, seed)
    node = network.nodes[0]
    assert isinstance(node, Gemm)
    codes = as_codes(network, values)
    acc = engine.accumulate(node, codes)
    assert acc.dtype == torch.int32
    for index in range(2):
        np.testing.assert_array_equal(acc[index].numpy(), brute_gemm(node, values[index]))
    # The GEMM view of the same layer.
    for group in range(groups):
        product = engine.im2col(node, codes, group).numpy().astype(np.int64)
        product = product @ engine.weight_matrix(node, group).numpy().astype(np.int64)
        part = slice(group * (8 // groups), (group + 1) * (8 // groups))
        view = acc[:, part].permute(0, 2, 3, 1).reshape(-1, 8 // groups).numpy()
        np.testing.assert_array_equal(product + node.bias[part], view)
    got = engine.run_node(network, node, [codes]).numpy()
    shift = network.shift(node)[None, :, None, None]
    expected = np.clip(round_half_even_shift(acc.numpy(), shift), node.lo, node.hi)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 9])
@pytest.mark.parametrize("shift", [9, 20])
@pytest.mark.parametrize("channels", [600, 1400])
def test_sums_beyond_float32_stay_exact(groups, size, shift, channels):
    # Every weight at its limit and codes near theirs: sums of up to 4e8, and odd ones.
    fmt = TensorFormat(bits=8, signed=False, exponent=0)
    rng = np.random.default_rng(size)
    weight = rng.choice([-127, 126, 127], (2 * groups, channels, 3, 3), p=[0.3, 0.35, 0.35])
    node = Gemm(
        name="conv", inputs=("input",), output=fmt, lo=0, hi=255, op="conv",
        weight=weight.astype(np.int8), bias=rng.integers(-9999, 9999, 2 * groups),
        weight_exponent=np.full(2 * groups, -shift), padding=(1, 1), groups=groups,
    )  # fmt: skip
    network = IntegerNetwork(
        name="big", weight_bits=8, act_bits=8, input=fmt,
        input_shape=(channels * groups, size, size),
        num_classes=2 * groups, nodes=(node,),
    )  # fmt: skip
    values = rng.integers(200, 256, (2, *network.input_shape))
    codes = as_codes(network, values)
    expected = np.stack([brute_gemm(node, image) for image in values])
    assert size < 2 or np.abs(expected).max() > engine.EXACT_FLOAT32
    np.testing.assert_array_equal(engine.accumulate(node, codes).numpy(), expected)
    rounded = np.clip(round_half_even_shift(expected, shift), 0, 255)
    np.testing.assert_array_equal(engine.run_node(network, node, [codes]).numpy(), rounded)


def test_sums_beyond_32_bits_are_refused():
    fmt = TensorFormat(bits=8, signed=False, exponent=0)
    node = Gemm(
        name="huge", inputs=("input",), output=None, lo=0, hi=0, op="linear",
        weight=np.full((1, 66400, 1, 1), 127, np.int8), bias=np.zeros(1, np.int64),
        weight_exponent=np.zeros(1, np.int64),
    )  # fmt: skip
    network = IntegerNetwork(
        name="big", weight_bits=8, act_bits=8, input=fmt, input_shape=(66400, 1, 1),
        num_classes=1, nodes=(node,),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"^huge: sums can reach 2150364000, beyond the 32 bits"):
        engine.check_bounds(network)
    with pytest.raises(ValueError, match=r"^huge: sums can reach"):
        engine.logits(network, torch.zeros((1, 66400, 1, 1), dtype=torch.uint8))


@pytest.mark.parametrize("bits,signed", [(2, True), (3, False), (8, True), (8, False)])
@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (1, 5)])
@pytest.mark.parametrize("exponent", [-2, 0, 3])
def test_average_pool_of_every_sum(bits, signed, kernel, exponent):
    """Each sum that a window can have, against torch's division and rounding in float64."""
    source = TensorFormat(bits=bits, signed=signed, exponent=exponent)
    target = TensorFormat(bits=bits, signed=signed, exponent=0)
    area = kernel[0] * kernel[1]
    sums = np.arange(source.lo * area, source.hi * area + 1)
    windows = np.full((len(sums), area), source.lo)
    for place in range(area):
        left = sums - windows.sum(axis=1)
        windows[:, place] += np.minimum(left, source.hi - source.lo)
    node = AvgPool(
        name="pool", inputs=("input",), output=target, lo=target.lo, hi=target.hi, kernel=kernel,
        stride=kernel,
    )  # fmt: skip
    network = IntegerNetwork(
        name="pool", weight_bits=8, act_bits=bits, input=source, input_shape=(1, *kernel),
        num_classes=1, nodes=(node,),
    )  # fmt: skip
    codes = as_codes(network, windows.reshape(-1, 1, *kernel))
    got = engine.run_node(network, node, [codes]).flatten().numpy()
    exact = [round(Fraction(int(s)) * Fraction(2) ** exponent / area) for s in sums]
    np.testing.assert_array_equal(got, np.clip(exact, target.lo, target.hi))
    if area & (area - 1) == 0:  # torch divides exactly
        mean = torch.nn.functional.avg_pool2d(codes.double(), kernel) * 2.0**exponent
        expected = torch.round(mean).clamp(target.lo, target.hi).flatten()
        np.testing.assert_array_equal(got, expected.numpy())


@pytest.mark.parametrize("shift", [-3, 0, 1, 4, 31])
def test_requantize_every_half(shift):
    fmt = TensorFormat(bits=8, signed=True, exponent=0)
    acc = torch.arange(-5000, 5000, dtype=torch.int64)
    if shift == 31:
        acc = acc * (1 << 29)
    expected = [min(max(round(Fraction(int(a)) / Fraction(2) ** shift), -100), 90) for a in acc]
    got = engine.requantize(acc, shift, -100, 90, fmt)
    assert got.dtype == torch.int8
    np.testing.assert_array_equal(got.numpy(), expected)


def test_image_codes_round_half_to_even_and_saturate():
    network = replace(
        plain_network(), input=TensorFormat(bits=4, signed=True, exponent=-1), input_shape=(1, 1, 6)
    )
    images = torch.tensor([[-99.0, -0.25, 0.25, 0.75, 1.25, 99.0]]).view(1, 1, 1, 6)
    assert engine.image_codes(network, images).flatten().tolist() == [-8, 0, 0, 2, 2, 7]


def test_max_pool_padding_never_wins():
    b = Builder(seed=0, weight_bits=8, act_bits=8, shape=(1, 3, 3))
    b.pool(MaxPool, "pool", "input", (3, 3), (2, 2), (1, 1))
    network = b.build()
    codes = torch.full((1, 1, 3, 3), -77, dtype=torch.int8)
    assert (engine.run_node(network, network.nodes[0], [codes]) == -77).all()


def test_logits_do_not_depend_on_the_batch_and_ties_go_to_the_lowest_class():
    network = plain_network(seed=3)
    codes = as_codes(network, random_codes(network, 11))
    whole = engine.logits(network, codes)
    assert whole.shape == (11, 10) and whole.dtype == torch.int32
    for batch in (1, 4, 64):
        assert torch.equal(engine.logits(network, codes, batch=batch), whole)
    assert engine.logits(network, codes[:0]).shape == (0, 10)
    assert engine.top1(torch.tensor([[1, 3, 3], [2, 2, 2], [0, 1, 2]])).tolist() == [1, 0, 2]
    labels = engine.top1(whole).numpy()
    labels[:1] = (labels[:1] + 1) % 10
    assert engine.accuracy(network, codes, labels) == pytest.approx(100 * 10 / 11)


def test_two_networks_with_equal_names_do_not_share_weights():
    first, second = plain_network(seed=1), plain_network(seed=2)
    codes = as_codes(first, random_codes(first, 3))
    one, two = engine.logits(first, codes), engine.logits(second, codes)
    assert not torch.equal(one, two)
    assert torch.equal(engine.logits(first, codes), one)


def test_golden_inputs_are_not_changed():
    network = residual_network(seed=4)
    codes = as_codes(network, random_codes(network, 3))
    before = codes.clone()
    values = engine.forward(network, codes)
    again = engine.forward(network, codes)
    assert torch.equal(codes, before)
    for name, value in values.items():
        assert torch.equal(value, again[name]), name
