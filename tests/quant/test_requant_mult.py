# SPDX-License-Identifier: Apache-2.0
"""Networks with scales of any value: exact on the array, within one step in floats."""

from __future__ import annotations

import copy
import dataclasses
import functools
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from small_networks import NETWORKS, digits, images, spec
from torch import nn

from faultinj.lowering import lower, raise_output
from faultinj.protection import UNPROTECTED
from hdl.config import AcceleratorConfig
from hdl.tile import reference_output
from quant import engine
from quant.agreement import compare_each_layer, compare_layers
from quant.calibration import Formats, choose_formats, high_code, weight_limit
from quant.export import _codes, exact_dtype, to_network
from quant.graph import trace
from quant.models import ModelSpec, build_model
from quant.network import Gemm, IntegerNetwork
from quant.ops import GemmOp, Op, keeps_format, run
from quant.quantize import QuantizedModel, quantize
from quant.run import main

CASES = [
    ("resnet", 8, 8), ("resnet", 2, 2), ("mobile", 2, 8), ("vgg", 8, 2),
    ("branches", 4, 4), ("pools 3", 8, 8), ("global 5", 2, 2), ("wide", 8, 8),
]  # fmt: skip


@functools.cache
def quantized(name: str, weight_bits: int, act_bits: int, method: str = "ptq") -> QuantizedModel:
    return quantize(
        spec(name),
        digits(),
        weight_bits=weight_bits,
        act_bits=act_bits,
        method=method,
        seed=0,
        epochs=1 if method == "qat" else None,
        requant="mult",
    )


@functools.cache
def formats_of(name: str, bits: int, requant: str) -> tuple[tuple[Op, ...], dict, Formats]:
    source = spec(name)
    ops = trace(source.module, source.input_shape)
    with torch.no_grad():
        values = run(ops, images(source, 16))
        formats = choose_formats(ops, values, weight_bits=bits, act_bits=bits, requant=requant)
    return ops, values, formats


def squared_error(values: torch.Tensor, scale: float, lo: int, hi: int) -> float:
    x = values.double().numpy()
    return float(((np.clip(np.rint(x / scale), lo, hi) * scale - x) ** 2).sum())


@pytest.mark.parametrize(("name", "weight_bits", "act_bits"), CASES)
def test_the_tile_reference_gives_the_engines_words(
    name: str, weight_bits: int, act_bits: int, tmp_path: Path
) -> None:
    model = quantized(name, weight_bits, act_bits)
    model.network.save(tmp_path / "network.safetensors")
    network = IntegerNetwork.load(tmp_path / "network.safetensors")
    assert network.content_hash() == model.network.content_hash()
    assert network.multiplies
    config = AcceleratorConfig(
        rows=16, cols=7, act_bits=act_bits, weight_bits=weight_bits, max_k=4096, psum_depth=64,
        requant="mult",
    )  # fmt: skip
    values = engine.forward(network, engine.image_codes(network, images(spec(name), 1)))
    for node in network.gemms():
        assert (node.multiplier is None) == (node.output is None)
        tiles = [
            (tile, reference_output(config, job).rows)
            for tile, job in lower(network, config, node, values[node.inputs[0]], UNPROTECTED)
        ]
        result = raise_output(network, config, node, tiles)
        assert torch.equal(result, values[node.name]), node.name


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize(("name", "weight_bits", "act_bits"), CASES)
def test_each_layer_is_within_one_step(
    name: str, weight_bits: int, act_bits: int, optimized: bool
) -> None:
    model = quantized(name, weight_bits, act_bits)
    batch = images(spec(name), 8)
    found = compare_each_layer(model, batch, optimized=optimized)
    assert [layer.name for layer in found] == ["input", *(n.name for n in model.network.nodes)]
    golden = engine.forward(model.network, engine.image_codes(model.network, batch))
    for layer in found:
        assert layer.words == golden[layer.name].numel()
        assert layer.largest <= 1, layer
        kind = "input" if layer.name == "input" else type(model.network.node(layer.name)).__name__
        # Codes on the same grid meet ties, which floats break either way; sums hardly ever do.
        share = 0.15 if kind in ("Add", "AvgPool", "Requantize") else 0.005
        assert max(layer.brevitas_off, layer.onnx_off) <= share * layer.words, layer


def test_a_layer_that_is_off_by_more_is_noticed() -> None:
    model = quantized("vgg", 8, 8)
    broken = []
    for node in model.network.nodes:
        if isinstance(node, Gemm) and node.multiplier is not None:
            node = dataclasses.replace(node, multiplier=node.multiplier // 32)
        broken.append(node)
    network = dataclasses.replace(model.network, nodes=tuple(broken))
    found = compare_each_layer(dataclasses.replace(model, network=network), images(spec("vgg"), 4))
    assert found[0].largest == 0
    for layer, node in zip(found[1:], network.nodes, strict=True):
        wrong = isinstance(node, Gemm) and node.multiplier is not None
        assert (layer.largest > 1) == wrong, layer
        assert (min(layer.brevitas_off, layer.onnx_off) > 0) == wrong


def test_weights_half_way_between_codes_are_the_same_in_float64() -> None:
    model = quantized("wide", 8, 8)
    module = copy.deepcopy(model.module)
    layer, last = module.layer("3"), module.ops[-1]
    assert isinstance(last, GemmOp)
    scale = torch.from_numpy(module.formats.weight_scale(last)).float()[:, None]
    with torch.no_grad():
        layer.weight.copy_((torch.floor(layer.weight / scale) + 0.5) * scale)
    single = torch.round(layer.weight / scale)
    double = torch.round(layer.weight.double() / scale.double())
    assert bool((single != double).any())  # the case is there
    network = to_network(module, name="half", input_shape=(1, 16, 16), metadata={})
    assert exact_dtype(network) == torch.float64
    half = QuantizedModel(module=module, network=network, history={})
    assert max(x.largest for x in compare_each_layer(half, images(spec("wide"), 8))) <= 1


def test_within_one_step_after_fine_tuning_with_constant_scales() -> None:
    tuned, calibrated = quantized("resnet", 4, 4, "qat"), quantized("resnet", 4, 4)
    for ours, theirs in zip(tuned.network.gemms(), calibrated.network.gemms(), strict=True):
        assert np.array_equal(ours.weight_scale, theirs.weight_scale)
    assert tuned.network.content_hash() != calibrated.network.content_hash()
    assert max(x.largest for x in compare_each_layer(tuned, images(spec("resnet"), 8))) <= 1


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("name", ["mobile", "branches"])
def test_training_computes_what_brevitas_evaluates_but_for_ties(name: str, bits: int) -> None:
    model = quantized(name, bits, bits).module
    for op in model.ops[:-1]:
        fmt = model.formats.tensors[op.name]
        values = torch.linspace(-1.5, 1.5, 4001).view(1, 1, 1, -1) * fmt.hi * fmt.scale
        with torch.no_grad():
            evaluated = model.eval().quantize(op.name, op, values)
            trained = model.train().quantize(op.name, op, values)
        assert int((evaluated != trained).sum()) <= 8
        assert float((evaluated - trained).abs().max()) <= 1.001 * fmt.scale
    batch = images(spec(name), 4)
    op = model.ops[0]
    with torch.no_grad():
        expected = model.eval().compute(op, [batch])
        assert torch.allclose(model.train().compute(op, [batch]), expected, atol=1e-6)
    model.eval()


@pytest.mark.parametrize(("name", "weight_bits", "act_bits"), CASES)
def test_multipliers_are_the_ratios_of_the_scales(
    name: str, weight_bits: int, act_bits: int
) -> None:
    model = quantized(name, weight_bits, act_bits)
    network, formats = model.network, model.module.formats
    ops = {op.name: op for op in model.module.ops}
    for node in network.gemms():
        wanted = formats.weight_scale(ops[node.name])
        assert np.array_equal(node.weight_scale, wanted)
        assert np.array_equal(wanted, wanted.astype(np.float32))
        if node.output is None:
            continue
        assert node.multiplier is not None
        source = Fraction(network.format_of(node.inputs[0]).scale)
        triples = zip(wanted, node.multiplier, network.shift(node), strict=True)
        for scale, multiplier, shift in triples:
            ratio = source * Fraction(float(scale)) / Fraction(node.output.scale)
            assert abs(int(multiplier) - ratio * Fraction(2) ** int(shift)) <= Fraction(1, 2)
            assert 1 << 15 <= multiplier < 1 << 16


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_weight_scales_are_near_the_best_of_a_dense_search(bits: int) -> None:
    ops, _, formats = formats_of("vgg", bits, "mult")
    _, _, powers = formats_of("vgg", bits, "shift")
    limit, ratios = weight_limit(bits), []
    for op in (op for op in ops if isinstance(op, GemmOp) and op.name in formats.tensors):
        rows = op.weight.flatten(1)
        pairs = zip(formats.weight_scale(op), powers.weight_scale(op), rows, strict=True)
        for found, power, row in pairs:
            error = squared_error(row, found, -limit, limit)
            assert error <= squared_error(row, power, -limit, limit) * (1 + 1e-6)
            peak = float(row.abs().max()) / limit
            best = min(squared_error(row, peak * k / 200, -limit, limit) for k in range(20, 211))
            ratios.append(error / best)
    assert np.mean(ratios) <= 1.01
    # At 8 bits a kernel of 27 weights has many local optima, all of them tiny errors.
    assert max(ratios) <= (1.1 if bits < 8 else 2)


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("name", ["resnet", "branches", "mobile", "pools 7"])
def test_joined_tensors_share_a_mantissa_and_lose_nothing(name: str, bits: int) -> None:
    ops, values, formats = formats_of(name, bits, "mult")
    _, _, powers = formats_of(name, bits, "shift")
    own = ["input", *(op.name for op in ops[:-1] if not keeps_format(op))]
    # Connected components by repeated painting, an independent way to find who is joined.
    colour = {n: k for k, n in enumerate(["input", *(op.name for op in ops)])}
    for _ in ops:
        for op in ops[:-1]:
            if not isinstance(op, GemmOp):
                least = min(colour[n] for n in (op.name, *op.inputs))
                colour |= dict.fromkeys((op.name, *op.inputs), least)
    assert len({colour[n] for n in own}) > 1
    for first in {colour[n] for n in own}:
        names = [n for n in own if colour[n] == first]
        assert len({formats.tensors[n].mantissa for n in names}) == 1
        assert 1 <= formats.tensors[names[0]].mantissa < 2

        def loss(chosen: Formats, names: list[str] = names) -> float:
            found = 0.0
            for n in names:
                fmt = chosen.tensors[n]
                error = squared_error(values[n], fmt.scale, fmt.lo, fmt.hi)
                found += error / float(values[n].double().square().sum())
            return found

        assert loss(formats) <= loss(powers) * (1 + 1e-6), names
    mantissas = {fmt.mantissa for fmt in formats.tensors.values()}
    assert len(mantissas) == len({colour[n] for n in own}) and 1.0 not in mantissas


@pytest.mark.parametrize("bits", [2, 8])
def test_channels_of_zeros_and_biases_beyond_all_weights(bits: int) -> None:
    torch.manual_seed(0)
    conv, fc = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)
    with torch.no_grad():
        conv.weight[0] = 0
        conv.bias.copy_(torch.tensor([0.0, 1e4, -1e4, 1e-9]))
        fc.weight *= 1e-6
    module = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), fc)
    source = ModelSpec(name="odd", module=module, input_shape=(1, 8, 8), identity="odd")
    model = quantize(
        source, digits(), weight_bits=bits, act_bits=bits, method="ptq", seed=0, requant="mult"
    )
    assert max(x.largest for x in compare_each_layer(model, images(source, 8))) <= 1


def test_a_single_layer_has_scales_and_no_multiplier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    source = ModelSpec(name="one", module=module, input_shape=(1, 4, 4), identity="one")
    model = quantize(
        source, digits(), weight_bits=3, act_bits=5, method="ptq", seed=0, requant="mult"
    )
    model.network.save(tmp_path / "one.safetensors")
    network = IntegerNetwork.load(tmp_path / "one.safetensors")
    assert network.content_hash() == model.network.content_hash()
    assert network.input.mantissa != 1 and not network.multiplies
    for layer in compare_each_layer(model, images(source, 8)):
        assert layer.largest == 0


def test_relu6_saturates_at_the_code_nearest_to_6() -> None:
    ops, _, formats = formats_of("mobile", 8, "mult")
    for op in (op for op in ops if op.activation == "relu6"):
        scale = Fraction(formats.tensors[op.name].scale)
        assert high_code(op, formats.tensors[op.name]) == min(round(Fraction(6) / scale), 255)


def test_codes_of_24_bits_are_read_back_from_floats() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-(1 << 23), 1 << 23, 4096)
    codes[:4] = -(1 << 23), (1 << 23) - 1, 0, 1
    scale = rng.uniform(0.5, 1, len(codes)).astype(np.float32)
    value = torch.from_numpy(codes.astype(np.float32) * scale)
    tensor = SimpleNamespace(value=value, scale=torch.from_numpy(scale))
    found = _codes("layer", tensor, scale.astype(np.float64), 2.0**-23)
    assert np.array_equal(found, codes)
    half = SimpleNamespace(value=torch.tensor([1.5]), scale=torch.tensor([1.0]))
    for rounding in (0.0, 2.0**-23):
        with pytest.raises(ValueError, match="not whole codes"):
            _codes("layer", half, np.ones(1), rounding)


def test_powers_of_two_stay_bit_for_bit_equal() -> None:
    model = quantize(
        spec("vgg"), digits(), weight_bits=4, act_bits=4, method="ptq", seed=0, requant="shift"
    )
    batch = images(spec("vgg"), 8)
    assert not model.network.multiplies
    assert compare_layers(model, batch).different == {}
    for layer in compare_each_layer(model, batch):
        assert (layer.brevitas_off, layer.onnx_off, layer.largest) == (0, 0, 0)


SOURCE = """
from torch import nn

input_shape = (1, 8, 8)


def small(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(128, num_classes),
    )
"""


def test_the_command_prints_each_layers_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, weights = tmp_path / "mine.py", tmp_path / "float.safetensors"
    source.write_text(SOURCE)
    model = f"{source}:small"
    float_model = build_model(model, num_classes=10, data_shape=(1, 8, 8), seed=0)
    save_file(float_model.module.state_dict(), weights)
    output, graph = tmp_path / "net.safetensors", tmp_path / "net.onnx"
    arguments = ["--model", model, "--weights", str(weights), "--method", "ptq", "--jobs", "1"]
    assert main([*arguments, "--requant", "mult", "-o", str(output), "--onnx", str(graph)]) == 0
    printed = capsys.readouterr().out
    network = IntegerNetwork.load(output)
    assert network.multiplies
    table = printed[printed.index("words off the engine's") :].splitlines()
    assert "(32 images)" in table[0]
    names = [line.split()[0] for line in table[2:] if "%" in line]
    assert names == ["input", *(node.name for node in network.nodes)]
    onnx.checker.check_model(onnx.load(graph))
    assert main([*arguments, "--requant", "float"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "unknown requantization 'float'" in error


def test_all_small_networks_are_among_the_cases() -> None:
    assert {name for name, _, _ in CASES} >= set(NETWORKS) - {"lenet", "pools 7"}
