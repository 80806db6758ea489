# SPDX-License-Identifier: Apache-2.0
"""Layers of codes on matrix units against NumPy's int64, float64 autograd and the float32 path."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_networks import digits, images, spec

from quant import brevitas_model, code_layers
from quant.agreement import compare_layers
from quant.brevitas_model import BrevitasModel, build_model
from quant.calibration import Formats, choose_formats
from quant.code_layers import has_fast_codes, multiply_codes, takes
from quant.graph import trace
from quant.network import TensorFormat
from quant.ops import GemmOp, run
from quant.quantize import quantize

on_amx = pytest.mark.skipif(not has_fast_codes(), reason="needs a CPU with AMX")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """A drawn layer; `output` is None (logits), "signed", "relu" or "relu6"."""

    seed: int = 0
    images: int = 2
    channels: int = 1
    out: int = 1
    size: tuple[int, int] = (1, 1)
    kernel: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    weight_bits: int = 8
    act_bits: int = 8
    signed: bool = False
    output: str | None = "relu"

    def result_size(self) -> list[int]:
        return [
            (s + 2 * p - d * (k - 1) - 1) // t + 1
            for s, p, d, k, t in zip(
                self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        ]


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
layers = st.builds(
    Layer,
    seed=st.integers(0, 1000),
    images=st.integers(1, 3),
    channels=st.integers(1, 20),
    out=st.integers(1, 20),
    # Below 64 pixels, from 64 and from 256 on the products are computed in different ways.
    size=st.one_of(
        st.tuples(st.integers(1, 6), st.integers(1, 9)),
        st.tuples(st.integers(8, 11), st.integers(8, 12)),
        st.tuples(st.integers(16, 19), st.integers(17, 18)),
    ),
    kernel=pairs,
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    stride=st.one_of(st.just((1, 1)), pairs),
    dilation=st.one_of(st.just((1, 1)), pairs),
    weight_bits=st.integers(2, 8),
    act_bits=st.integers(2, 8),
    signed=st.booleans(),
    output=st.sampled_from([None, "signed", "relu", "relu6"]),
).filter(lambda layer: min(layer.result_size()) > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """The layer's operands, as integers and for `multiply_codes`."""

    op: GemmOp
    formats: Formats
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def values(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return input, weight and bias as leaves that want gradients."""
        scale = self.formats.weight_scale(self.op)
        found = (
            self.x * self.formats.tensors["input"].scale,
            self.weight * scale[:, None, None, None],
            self.bias * self.formats.bias_scale(self.op),
        )
        x, weight, bias = (torch.from_numpy(v).to(dtype).requires_grad_() for v in found)
        return x, weight, bias

    def result(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        codes = torch.from_numpy(self.weight).to(torch.int8)
        return multiply_codes(self.op, self.formats, x, weight, bias, codes)


def case(layer: Layer) -> Case:
    rng = np.random.default_rng(layer.seed)
    source = TensorFormat(bits=layer.act_bits, signed=layer.signed, exponent=-3)
    limit = (1 << (layer.weight_bits - 1)) - 1
    shape = (layer.out, layer.channels, *layer.kernel)
    weight = rng.integers(-limit, limit + 1, shape)
    x = rng.integers(source.lo, source.hi + 1, (layer.images, layer.channels, *layer.size))
    bias = rng.integers(-500, 501, layer.out)
    exponents = rng.integers(-9, -4, layer.out)
    tensors = {"input": source}
    if layer.output is not None:
        # So that some results saturate and some do not.
        spread = np.sqrt(np.prod(shape[1:])) * limit * source.hi * 2.0 ** (-3 - 7)
        tensors["op"] = TensorFormat(
            bits=layer.act_bits,
            signed=layer.output == "signed",
            exponent=int(np.log2(spread)) - layer.act_bits + 1,
        )
    op = GemmOp(
        name="op", inputs=("input",), shape=(layer.out, *layer.result_size()), kind="conv",
        activation="none" if layer.output in (None, "signed") else layer.output,
        weight=torch.from_numpy(weight).float(), bias=torch.zeros(layer.out),
        stride=layer.stride, padding=layer.padding, dilation=layer.dilation,
    )  # fmt: skip
    formats = Formats(
        weight_bits=layer.weight_bits, act_bits=layer.act_bits, bias_bits=20,
        tensors=tensors, weights={"op": exponents},
    )  # fmt: skip
    return Case(op=op, formats=formats, x=x, weight=weight, bias=bias)


def sums(case: Case) -> np.ndarray:
    """Return the accumulators, int64 (N, out, H', W'), tap by tap."""
    op, (ph, pw) = case.op, case.op.padding
    x = np.pad(case.x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    total = np.zeros((len(x), *op.shape), dtype=np.int64) + case.bias[:, None, None]
    for i in range(op.weight.shape[2]):
        for j in range(op.weight.shape[3]):
            rows = i * op.dilation[0] + op.stride[0] * np.arange(op.shape[1])
            cols = j * op.dilation[1] + op.stride[1] * np.arange(op.shape[2])
            seen = x[:, :, rows][:, :, :, cols]
            total += np.einsum("nchw,oc->nohw", seen, case.weight[:, :, i, j])
    return total


@on_amx
@settings(deadline=None, max_examples=60)
@given(layer=layers)
@example(layer=Layer())
@example(layer=Layer(signed=True, padding=(1, 1), kernel=(3, 3), output="signed"))
@example(layer=Layer(size=(8, 8), padding=(1, 1), kernel=(3, 3), signed=True))
@example(layer=Layer(channels=520, out=33, weight_bits=2, act_bits=2))
# Windows that see nothing but padding, whose code is not 0 inside.
@example(layer=Layer(size=(16, 17), kernel=(2, 2), padding=(2, 2), signed=True, channels=5))
@example(layer=Layer(size=(8, 8), kernel=(2, 1), padding=(2, 0), signed=True))
def test_codes_are_those_of_integer_arithmetic(layer: Layer) -> None:
    drawn = case(layer)
    found = drawn.result(*drawn.values(torch.float32)).detach()
    units = drawn.formats.bias_scale(drawn.op)[:, None, None]
    exact = sums(drawn) * units
    if layer.output is None:
        assert found.dtype == torch.float32
        assert np.array_equal(found.numpy(), exact)
        return
    fmt = drawn.formats.tensors["op"]
    hi = fmt.hi
    if layer.output == "relu6":
        hi = min(hi, int(np.rint(6 / fmt.scale)))
    codes = np.clip(np.rint(exact / fmt.scale), fmt.lo, hi)
    assert found.dtype == torch.bfloat16
    assert np.array_equal(found.double().numpy(), codes * fmt.scale)


@on_amx
@settings(deadline=None, max_examples=60)
@given(layer=layers)
@example(layer=Layer(size=(4, 4), padding=(1, 1), kernel=(3, 3), channels=64, out=8, images=3))
@example(layer=Layer(size=(2, 3), padding=(4, 4), kernel=(1, 1)))
def test_gradients_are_those_of_float64(layer: Layer) -> None:
    check_gradients(layer)


@on_amx
def test_gradients_summed_over_parts_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_layers, "_COLUMNS_BYTES", 2 * 2 * 25 * 27)  # two images
    check_gradients(Layer(images=5, channels=3, size=(5, 5), padding=(1, 1), kernel=(3, 3), out=4))


def check_gradients(layer: Layer) -> None:
    drawn = case(layer)
    leaves, truth = drawn.values(torch.float32), drawn.values(torch.float64)
    found = drawn.result(*leaves)
    op = drawn.op
    exact = F.conv2d(*truth, op.stride, op.padding, op.dilation)
    generator = torch.Generator().manual_seed(layer.seed)
    direction = torch.randn(exact.shape, generator=generator).to(torch.bfloat16)
    passed = direction.double()
    if layer.output is not None:
        fmt = drawn.formats.tensors["op"]
        hi = fmt.hi if layer.output != "relu6" else min(fmt.hi, round(6 / fmt.scale))
        low = (fmt.lo - 0.5) * fmt.scale if fmt.signed else 0.0
        before = exact.detach().to(torch.bfloat16).double()
        passed = passed * ((before > low) & (before < (hi + 0.5) * fmt.scale))
    ours = torch.autograd.grad(found, leaves, direction.to(found.dtype))
    theirs = torch.autograd.grad(exact, truth, passed)
    for got, want in zip(ours, theirs, strict=True):
        assert got.dtype == torch.float32 and got.shape == want.shape
        scale = float(want.abs().max())
        torch.testing.assert_close(got.double(), want, rtol=2**-7, atol=2**-10 * scale)


@pytest.mark.parametrize(
    ("bits", "signed"), [(8, False), (8, True), (4, False), (2, False), (3, True)]
)
def test_the_range_of_gradients_in_bfloat16(bits: int, signed: bool) -> None:
    """Its upper end moves by a quarter of a step at most, not at all where 8 bits are unsigned."""
    fmt = TensorFormat(bits=bits, signed=signed, exponent=0)
    exact = torch.linspace(fmt.lo - 2, fmt.hi + 2, 100_001, dtype=torch.float64)
    rounded = exact.to(torch.bfloat16).double()
    low = fmt.lo - 0.5 if signed else 0.0

    def passes(values: torch.Tensor) -> torch.Tensor:
        return (values > low) & (values < fmt.hi + 0.5)

    moved = exact[passes(exact) != passes(rounded)]
    distance = torch.minimum((moved - low).abs(), (moved - fmt.hi - 0.5).abs())
    assert (distance <= 0.2501).all()
    assert len(moved) == 0 or (bits, signed) != (8, False)


def model(name: str, weight_bits: int, act_bits: int, requant: str = "shift") -> BrevitasModel:
    source = spec(name)
    ops = trace(source.module, source.input_shape)
    with torch.no_grad():
        values = run(ops, images(source, 16))
        formats = choose_formats(
            ops, values, weight_bits=weight_bits, act_bits=act_bits, requant=requant
        )
    return build_model(ops, formats)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layers of codes however small."""
    monkeypatch.setattr(code_layers, "_FROM_MACS", 0)
    yield


def by_codes(outputs: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, values in outputs.items() if values.dtype == torch.bfloat16}


@on_amx
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("bits", [(2, 2), (3, 5), (8, 8)])
@pytest.mark.parametrize("name", ["vgg", "resnet", "mobile", "branches", "lenet"])
def test_training_computes_what_brevitas_evaluates(name: str, bits: tuple[int, int]) -> None:
    found, batch = model(name, *bits), images(spec(name), 8)
    with torch.no_grad():
        evaluated = dict(found.eval().outputs(batch))
        trained = dict(found.train().outputs(batch))
    assert by_codes(trained)
    for op in found.ops:
        assert torch.equal(evaluated[op.name], trained[op.name].float()), op.name


@on_amx
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", ["vgg", "resnet", "mobile", "branches"])
def test_gradients_of_a_network_are_near_those_in_float32(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, batch = model(name, 8, 8).train(), images(spec(name), 8)
    gradients = []
    for fast in (True, False):
        monkeypatch.setattr(code_layers, "has_fast_codes", lambda fast=fast: fast)
        found.zero_grad()
        found(batch).square().sum().backward()
        gradients.append([p.grad.clone() for p in found.parameters() if p.grad is not None])
    for ours, theirs in zip(*gradients, strict=True):
        assert not torch.equal(ours, theirs)
        assert float(F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)) > 0.999


def test_float32_where_layers_of_codes_are_no_gain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, batch = model("vgg", 4, 4).train(), images(spec("vgg"), 8)
    op = next(op for op in found.ops if isinstance(op, GemmOp))
    monkeypatch.setattr(code_layers, "has_fast_codes", lambda: True)
    assert not takes(op, found.formats, batch)  # small
    monkeypatch.setattr(code_layers, "_FROM_MACS", 0)
    assert takes(op, found.formats, batch)
    assert not takes(dataclasses.replace(op, groups=3), found.formats, batch)
    assert not takes(op, model("vgg", 4, 4, "mult").formats, batch)
    monkeypatch.setattr(code_layers, "has_fast_codes", lambda: False)
    assert not takes(op, found.formats, batch)
    found(batch).sum().backward()
    outputs = dict(found.outputs(batch))
    assert not by_codes(outputs)
    monkeypatch.setattr(brevitas_model, "takes", lambda *_: True)
    with found.disturbed(lambda _, values: values + 0.01):  # no codes
        assert not by_codes(dict(found.outputs(batch)))


@on_amx
@pytest.mark.usefixtures("always")
def test_faulty_codes_are_multiplied_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found, batch = model("vgg", 8, 8).train(), images(spec("vgg"), 8)

    def corrupt(_: str, codes: np.ndarray) -> None:
        codes[::3] ^= np.int8(0x14)
        codes[::12] = -128  # which only a fault writes

    outputs = []
    for fast in (True, False):
        monkeypatch.setattr(code_layers, "has_fast_codes", lambda fast=fast: fast)
        with found.corrupted(corrupt):
            outputs.append(dict(found.outputs(batch)))
    assert by_codes(outputs[0]) and not by_codes(outputs[1])
    for name, values in outputs[1].items():
        assert torch.equal(outputs[0][name].float(), values), name
    outputs[0][found.ops[-1].name].sum().backward()
    assert all(p.grad is not None for p in found.parameters())


@on_amx
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("method", ["qat", "randbet:0.01"])
def test_trained_networks_agree_and_repeat(method: str) -> None:
    arguments = {"weight_bits": 4, "act_bits": 4, "method": method, "seed": 5, "epochs": 1}
    first = quantize(spec("vgg"), digits(), **arguments)
    found = compare_layers(first, images(spec("vgg"), 8))
    assert found.different == {} and found.words_equal == found.words
    torch.manual_seed(99)  # the caller's random state has no part in it
    second = quantize(spec("vgg"), digits(), **arguments)
    assert first.network.content_hash() == second.network.content_hash()
