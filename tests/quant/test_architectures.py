# SPDX-License-Identifier: Apache-2.0
"""The built-in networks: their published sizes, their widths, and promise 1 for each of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from small_networks import digits, images
from torch import nn

from dse.settings import parser
from quant.agreement import compare_layers
from quant.data import to_input
from quant.models import MODELS, ModelSpec, build_model
from quant.network import Add, Gemm
from quant.quantize import QuantizedModel, quantize
from trilat.errors import InputError

NARROW = {
    "vgg11": 0.06,
    "vgg16": 0.06,
    "lenet5": 0.5,
    "alexnet": 0.06,
    "resnet18": 0.06,
    "resnet32": 0.25,
    "mobilenetv2": 0.1,
}


def built(name: str, classes: int = 10) -> ModelSpec:
    return build_model(name, num_classes=classes, data_shape=(1, 8, 8), seed=0)


def used_to_digits(name: str) -> ModelSpec:
    """Random weights, batch norms that have seen the digits."""
    spec, data = built(name), digits()
    with torch.no_grad():
        spec.module.train()(to_input(data.train.images[:64], spec.input_shape, data.mean, data.std))
    spec.module.eval()
    return spec


def quantized(name: str, weight_bits: int, act_bits: int) -> QuantizedModel:
    return quantize(
        used_to_digits(name),
        digits(),
        weight_bits=weight_bits,
        act_bits=act_bits,
        method="ptq",
        seed=0,
    )


def shapes(module: nn.Module) -> list[tuple[int, ...]]:
    """(out, in / groups, kernel, stride) of all convolutions."""
    return [
        (*m.weight.shape[:3], m.stride[0]) for m in module.modules() if isinstance(m, nn.Conv2d)
    ]


# --- sizes ------------------------------------------------------------------------------------


def parameters(name: str, classes: int) -> int:
    return sum(p.numel() for p in built(name, classes).module.parameters())


def test_vgg16_is_configuration_d() -> None:
    convolutions = shapes(built("vgg16").module)
    assert [c[0] for c in convolutions] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert all(c[2:] == (3, 1) for c in convolutions)
    # The paper's 138,357,544 without the three linear layers and 13 biases each channel, with two
    # parameters of batch norm per channel and one linear layer instead.
    linear = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    channels = sum(c[0] for c in convolutions)
    assert parameters("vgg16", 10) == 138_357_544 - linear + channels + 512 * 10 + 10


def test_resnet32_has_three_stages_of_five_blocks() -> None:
    # With shortcuts that pad it has 464,154 parameters (0.46 M in the paper's table 6).
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert parameters("resnet32", 10) == 464_154 + projections
    convolutions = shapes(built("resnet32").module)
    kernels = [c for c in convolutions if c[2] == 3]
    assert len(kernels) + 1 == 32
    assert [c[0] for c in kernels] == [16] * 11 + [32] * 10 + [64] * 10
    assert [c for c in convolutions if c[2] == 1] == [(32, 16, 1, 2), (64, 32, 1, 2)]


def test_mobilenetv2_is_the_papers_table_2() -> None:
    # Strides change no parameter: 3,504,872 for 1000 classes, as everywhere.
    assert parameters("mobilenetv2", 1000) == 3_504_872
    module = built("mobilenetv2").module
    assert sum(isinstance(m, nn.ReLU6) for m in module.modules()) == 35
    assert not any(isinstance(m, nn.ReLU) for m in module.modules())
    depthwise = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(depthwise) == 17 and all(m.groups == m.out_channels for m in depthwise)
    assert [m.stride[0] for m in depthwise] == [1, 1, 1, 2, 1, 1, 2] + [1] * 6 + [2, 1, 1, 1]


# --- widths -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_width_scales_every_hidden_layer(name: str) -> None:
    whole, half = built(name).module, built(f"{name}:0.5").module

    def layers(module: nn.Module) -> list[nn.Conv2d | nn.Linear]:
        return [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]

    pairs = list(zip(layers(whole), layers(half), strict=True))
    for wide, narrow in pairs[:-1]:
        assert len(narrow.weight) == len(wide.weight) / 2
    assert len(pairs[-1][1].weight) == 10
    assert half(torch.zeros(2, *MODELS[name][1])).shape == (2, 10)


def test_a_width_is_part_of_name_and_identity() -> None:
    specs = [built(f"lenet5{width}") for width in ("", ":1", ":1.0", ":0.5", ":.50", ":2")]
    assert [s.name for s in specs] == ["lenet5"] * 3 + ["lenet5:0.5"] * 2 + ["lenet5:2"]
    assert len({s.identity for s in specs}) == 3
    assert built("mobilenetv2:0.001").module(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("width", ["", "0", "-1", "4.1", "inf", "nan", "half", "0.5:2", "1e99"])
def test_bad_widths(width: str) -> None:
    with pytest.raises(InputError, match="the width must be a number above 0 and at most 4") as e:
        built(f"vgg11:{width}")
    assert "\n" not in str(e.value)


def test_names_that_are_none() -> None:
    with pytest.raises(InputError, match=r"unknown model 'resnet34'; did you mean resnet32") as e:
        built("resnet34:0.5")
    for name in (*MODELS, "NAME:WIDTH"):
        assert name in str(e.value)


def test_help_names_every_network() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    for text in (parser().format_help(), makefile):
        words = re.findall(r"\w+", text)
        assert [name for name in MODELS if name not in words] == []


# --- promise 1 --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bits"),
    [*((name, (4, 4)) for name in MODELS), ("mobilenetv2", (8, 8)), ("mobilenetv2", (2, 3))],
)
def test_every_word_of_every_layer_is_equal(name: str, bits: tuple[int, int]) -> None:
    model = quantized(f"{name}:{NARROW[name]}", *bits)
    found = compare_layers(model, images(built(name), 4))
    assert found.different == {}
    assert found.layers == len(model.network.nodes) + 1


def test_mobilenetv2s_bottlenecks_are_signed_and_its_relu6_ends_at_6() -> None:
    network = quantized("mobilenetv2:0.1", 4, 6).network
    adds = [node for node in network.nodes if isinstance(node, Add)]
    assert len(adds) == 10
    for node in adds:
        assert node.output is not None and node.output.signed and node.lo == -32
        # One operand is a bottleneck, the other a bottleneck or the sum before.
        assert all(network.format_of(source).signed for source in node.inputs)
    unsigned = [
        n for n in network.nodes if isinstance(n, Gemm) and n.output and not n.output.signed
    ]
    assert len(unsigned) == 35
    for node in unsigned:
        assert node.output is not None
        assert node.lo == 0 and node.hi * node.output.scale <= 6
