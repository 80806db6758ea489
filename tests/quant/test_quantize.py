# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import digits, spec
from torch import nn

from hdl.config import AcceleratorConfig
from quant import engine
from quant.brevitas_model import build_model
from quant.calibration import choose_formats
from quant.convolution import conv2d
from quant.data import to_input
from quant.export import exactness_bound, to_network
from quant.graph import trace
from quant.models import ModelSpec
from quant.network import IntegerNetwork
from quant.ops import GemmOp, run
from quant.quantize import default_epochs, quantize
from quant.training import float_accuracy
from trilat.errors import InputError
from trilat.progress import NoProgress


def calibrated(module: nn.Module, shape: tuple[int, int, int], weight_bits: int, act_bits: int):
    ops = trace(module, shape)
    batch = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = run(ops, batch)
        formats = choose_formats(ops, values, weight_bits=weight_bits, act_bits=act_bits)
    return ops, formats, build_model(ops, formats), batch


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_one_scale_per_layer_just_holds_its_largest_weight(bits: int) -> None:
    source = spec("vgg")
    ops, _, _, batch = calibrated(source.module, source.input_shape, bits, 8)
    with torch.no_grad():
        values = run(ops, batch)
        shared = choose_formats(ops, values, weight_bits=bits, act_bits=8, weight_scale="layer")
    layers = [op for op in ops if isinstance(op, GemmOp)]
    assert layers
    for op in layers:
        scales = shared.weight_scale(op)
        largest = float(op.weight.abs().max()) / (2 ** (bits - 1) - 1)
        assert np.array_equal(scales, np.full(len(op.weight), scales[0]))
        assert scales[0] / 2 < largest <= scales[0]


def test_scales_that_are_not_known_or_do_not_go_together() -> None:
    settings = {"weight_bits": 8, "act_bits": 8, "method": "ptq", "seed": 0}
    with pytest.raises(InputError, match=r"tensor.*accepted: channel, layer"):
        quantize(spec("vgg"), digits(), weight_scale="tensor", **settings)
    with pytest.raises(InputError, match="per layer goes with requantization by shift"):
        quantize(spec("vgg"), digits(), weight_scale="layer", requant="mult", **settings)


@pytest.mark.parametrize("bits", [(2, 2), (3, 5), (8, 8)])
@pytest.mark.parametrize("name", ["resnet", "mobile", "branches"])
def test_training_computes_what_brevitas_evaluates(name: str, bits: tuple[int, int]) -> None:
    source = spec(name)
    ops, _, model, batch = calibrated(source.module, source.input_shape, *bits)
    with torch.no_grad():
        evaluated = dict(model.eval().outputs(batch))
        trained = dict(model.train().outputs(batch))
    for op in ops:
        assert torch.equal(evaluated[op.name], trained[op.name]), op.name


def test_fused_gradients_are_those_of_brevitas() -> None:
    source = spec("vgg")
    _, _, model, batch = calibrated(source.module, source.input_shape, 4, 4)
    gradients = []
    for training in (False, True):
        model.train(training).zero_grad()
        model(batch).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for theirs, ours in zip(*gradients, strict=True):
        # Only activations within half a step of the ends of a range pass differently.
        assert float(F.cosine_similarity(theirs.flatten(), ours.flatten(), dim=0)) > 0.97


@pytest.mark.parametrize("geometry", [
    ((1, 1), (1, 1), (1, 1), 1), ((1, 1), (0, 2), (1, 1), 1), ((1, 1), (2, 2), (2, 2), 1),
    ((2, 1), (1, 1), (1, 1), 1), ((1, 1), (1, 1), (1, 1), 2), ((1, 1), (4, 4), (4, 4), 1),
])  # fmt: skip
@pytest.mark.parametrize("size", [(3, 3), (3, 5), (4, 4), (9, 9)])
def test_convolution_and_its_gradients(geometry, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((3, 4, *size), (6, 4 // geometry[3], 3, 3), (6,))
    ]
    found, expected = (function(*tensors, *geometry) for function in (conv2d, F.conv2d))
    torch.testing.assert_close(found, expected)
    direction = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, tensors, direction),
        torch.autograd.grad(expected, tensors, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def brute_force_exponent(values: np.ndarray, lo: int, hi: int) -> float:
    """Return the least squared error over every exponent that could matter."""
    errors = []
    for exponent in range(-24, 16):
        codes = np.clip(np.rint(values / 2.0**exponent), lo, hi)
        errors.append(float(((codes * 2.0**exponent - values) ** 2).sum()))
    return min(errors)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weight_scales_have_the_least_squared_error(bits: int) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    ops, formats, _, _ = calibrated(module, (3, 8, 8), bits, 8)
    limit = (1 << (bits - 1)) - 1
    for row, exponent in zip(ops[0].weight, formats.weights["0"], strict=True):
        values = row.flatten().double().numpy()
        codes = np.clip(np.rint(values / 2.0**exponent), -limit, limit)
        error = float(((codes * 2.0**exponent - values) ** 2).sum())
        assert error == pytest.approx(brute_force_exponent(values, -limit, limit), rel=1e-5)
    assert len(set(formats.weights["3"])) == 1


def extreme(scale: float, bias: float) -> nn.Module:
    """A layer whose channels span many orders of magnitude, one of them zero."""
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4))
    with torch.no_grad():
        for channel, size in enumerate((0.0, 1e-12, 1e-4, 1.0, 1e4, 1e9)):
            module[0].weight[channel] = (
                scale * size * torch.tensor([1.0, -0.5, 0.25])[:, None, None]
            )
        module[0].bias.fill_(bias)
    return module


@pytest.mark.parametrize("bits", [(2, 2), (4, 8), (8, 8)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("bias", [0.0, -3.0, 1e5])
def test_shifts_and_biases_fit_the_accelerator(
    bits: tuple[int, int], scale: float, bias: float
) -> None:
    module = extreme(scale, bias)
    _, _, model, batch = calibrated(module, (3, 2, 2), *bits)
    network = to_network(model, name="extreme", input_shape=(3, 2, 2), metadata={})
    node = network.gemms()[0]
    shift = network.shift(node)  # the network's own constructor has checked 0..31, too
    assert shift.min() >= 0 and shift.max() <= 31
    config = AcceleratorConfig(rows=1, cols=1, act_bits=bits[1], weight_bits=bits[0], max_k=24)
    for gemm in network.gemms():
        assert np.abs(gemm.bias).max() <= 1 << (config.acc_bits - 1)
        assert gemm.bias.max() < 1 << (config.acc_bits - 1)
    engine.forward(network, engine.image_codes(network, batch))


def test_relu6_saturates_at_six() -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU6(), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        module[0].weight.fill_(100.0)
    for act_bits in (2, 3, 8):
        _, formats, model, _ = calibrated(module, (1, 2, 2), 8, act_bits)
        network = to_network(model, name="relu6", input_shape=(1, 2, 2), metadata={})
        node = network.gemms()[0]
        assert node.hi * 2.0 ** formats.tensors["0"].exponent <= 6.0
        assert node.hi == min((1 << act_bits) - 1, 6.0 / 2.0 ** formats.tensors["0"].exponent)
        # Brevitas as well, whose quantizer alone would go on to its own range.
        images = torch.tensor([-1.0, 0.03, 1.0, 50.0]).reshape(1, 1, 2, 2)
        outputs = dict(model.eval().outputs(images))
        golden = engine.forward(network, engine.image_codes(network, images))
        codes = outputs["0"] * 2.0 ** -formats.tensors["0"].exponent
        assert torch.equal(codes, golden["0"].float())
        assert golden["0"].max() == node.hi


def test_exactness_bound_is_that_of_the_largest_codes() -> None:
    source = spec("lenet")
    _, _, model, _ = calibrated(source.module, source.input_shape, 4, 4)
    network = to_network(model, name="lenet", input_shape=source.input_shape, metadata={})
    node = network.gemms()[2]
    bound = exactness_bound(network)[node.name]
    rows = node.weight.reshape(len(node.weight), -1).astype(int)
    reached = [15 * np.abs(row).sum() + abs(b) for row, b in zip(rows, node.bias, strict=True)]
    assert bound == max(reached)


@pytest.mark.parametrize("method", ["ptq", "qat"])
def test_same_seed_same_network_saved_and_loaded(method: str, tmp_path: Path) -> None:
    arguments = {"weight_bits": 3, "act_bits": 4, "method": method, "seed": 5, "epochs": 1}
    first = quantize(spec("vgg"), digits(), **arguments)
    torch.manual_seed(99)  # the caller's random state has no part in it
    second = quantize(spec("vgg"), digits(), **arguments, progress=NoProgress())
    assert first.network.content_hash() == second.network.content_hash()
    first.network.save(tmp_path / "net.safetensors")
    loaded = IntegerNetwork.load(tmp_path / "net.safetensors")
    assert loaded.content_hash() == first.network.content_hash()
    metadata = loaded.metadata
    assert metadata["data_fingerprint"] == digits().fingerprint
    assert metadata["method"] == method
    assert metadata["val_accuracy"] == first.history["val_accuracy"]
    assert set(metadata["versions"]) == {"trilat", "torch", "brevitas", "numpy"}


def test_float_model_is_left_as_it_was() -> None:
    source = spec("vgg")
    before = {name: t.clone() for name, t in source.module.state_dict().items()}
    quantize(source, digits(), weight_bits=2, act_bits=2, method="qat", seed=0, epochs=1)
    for name, tensor in source.module.state_dict().items():
        assert torch.equal(before[name], tensor)


def trained() -> ModelSpec:
    """The small VGG after a few epochs on the digits."""
    source, data = spec("vgg"), digits(1000, 200)
    module = source.module.train()
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    pixels = to_input(data.train.images, source.input_shape, data.mean, data.std)
    labels = torch.from_numpy(data.train.labels)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        for chosen in torch.randperm(len(pixels), generator=generator).split(50):
            loss = F.cross_entropy(module(pixels[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    module.eval()
    return dataclasses.replace(source, module=module)


@pytest.mark.slow
def test_accuracy_near_float_and_training_repairs_two_bits() -> None:
    source, data = trained(), digits(1000, 200)
    base = float_accuracy(source, data, data.val)
    assert base > 90

    def accuracy(bits: int, method: str) -> float:
        model = quantize(
            source, data, weight_bits=bits, act_bits=bits, method=method, seed=0, epochs=3
        )
        return model.history["val_accuracy"]

    assert accuracy(8, "ptq") >= base - 1
    assert accuracy(4, "qat") >= base - 3
    calibrated_only, fine_tuned = accuracy(2, "ptq"), accuracy(2, "qat")
    assert fine_tuned > calibrated_only + 10
    assert fine_tuned > 70


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_bits": 1}, "^weight bits must be an integer in 2..8, not 1$"),
        ({"act_bits": 9}, "^activation bits must be an integer in 2..8, not 9$"),
        ({"act_bits": 4.0}, "not 4.0$"),
        ({"weight_bits": True}, "not True$"),
        ({"method": "qta"}, "unknown method 'qta'; did you mean qat"),
        ({"epochs": 0}, "^epochs must be at least 1, not 0$"),
    ],
)
def test_bad_settings_are_one_line(change: dict, message: str) -> None:
    settings = {"weight_bits": 4, "act_bits": 4, "method": "ptq", "seed": 0} | change
    with pytest.raises(InputError, match=message):
        quantize(spec("vgg"), digits(), **settings)


def test_too_few_logits() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 9))
    source = ModelSpec(name="few", module=module, input_shape=(1, 8, 8), identity="few")
    with pytest.raises(InputError, match="9 logits, the data has 10 classes"):
        quantize(source, digits(), weight_bits=4, act_bits=4, method="ptq", seed=0)


def test_default_epochs_follow_the_arithmetic() -> None:
    ops = trace(spec("lenet").module, (1, 28, 28))
    assert default_epochs(ops, 1257, 4) == 20
    assert default_epochs(ops, 50_000_000, 4) == 1
    assert default_epochs(ops, 100_000, 2) == 2 * default_epochs(ops, 100_000, 4)


def test_training_that_harms_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    source, data = spec("vgg"), digits(96, 24)
    # Labels that calibration alone gets right, and steps that are sure to destroy the network.
    network = quantize(source, data, weight_bits=4, act_bits=4, method="ptq", seed=0).network
    pixels = to_input(data.val.images, source.input_shape, data.mean, data.std)
    labels = engine.top1(engine.logits(network, engine.image_codes(network, pixels))).numpy()
    data = dataclasses.replace(data, val=dataclasses.replace(data.val, labels=labels))
    monkeypatch.setattr("quant.fine_tuning.LARGEST_SHARE", 100.0)
    result = quantize(source, data, weight_bits=4, act_bits=4, method="qat", seed=0, epochs=1)
    assert result.history["kept"] == "calibrated"
    assert result.history["tuned_accuracy"] < 100
    assert result.history["val_accuracy"] == 100
    assert result.network.content_hash() == network.content_hash()
