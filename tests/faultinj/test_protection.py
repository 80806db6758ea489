# SPDX-License-Identifier: Apache-2.0
"""Protection in the engine against the same layers lowered to tiles and the tile reference."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from integer_networks import (
    brute_forward,
    multiplied,
    plain_network,
    random_codes,
    residual_network,
)

from faultinj.lowering import check_fits, gemm_shape, lower, raise_output, tensor_shapes
from faultinj.protection import (
    Bounds,
    Protection,
    TensorBounds,
    forward,
    input_limits,
    output_limits,
    profile_bounds,
    run_node,
)
from hdl.config import AcceleratorConfig
from hdl.tile import reference_output
from quant import engine
from quant.network import Gemm
from trilat.errors import InputError


def codes_of(network, count, seed=0):
    values = torch.from_numpy(random_codes(network, count, seed))
    return values.to(engine.code_dtype(network.input))


def tightened(network, codes) -> Bounds:
    """Bounds inside those of some images, so that other images violate them, low ones too."""
    tensors = {}
    for name, b in profile_bounds(network, codes).tensors.items():
        lo = np.minimum(b.channel_lo + np.arange(len(b.channel_lo)) % 2, b.channel_hi)
        tensors[name] = TensorBounds(
            lo=min(b.lo + 1, b.hi),
            hi=max(b.hi - 2, b.lo),
            channel_lo=lo,
            channel_hi=np.maximum(b.channel_hi * 3 // 4, lo),
        )
    return Bounds(tensors=tensors)


def config_for(network, protection, rows, cols, depth):
    return AcceleratorConfig(
        rows=rows, cols=cols, act_bits=network.act_bits, weight_bits=network.weight_bits,
        max_k=256, psum_depth=depth, protect=protection.kind, protect_place=protection.place,
        bounds=protection.granularity, requant="mult" if network.multiplies else "shift",
    )  # fmt: skip


@pytest.mark.parametrize(
    "make,bits",
    [
        (plain_network, 8),
        (residual_network, 8),
        (plain_network, 3),
        (lambda **k: multiplied(residual_network(**k)), 5),
    ],
    ids=["plain8", "residual8", "plain3", "multiplied5"],
)
@pytest.mark.parametrize("kind", ["none", "clip", "zero"])
@pytest.mark.parametrize(
    "place,granularity",
    [("both", "layer"), ("input", "layer"), ("output", "channel"), ("both", "channel")],
)
@pytest.mark.parametrize("rows,cols,depth", [(3, 4, 5), (16, 16, 256), (1, 1, 7)])
def test_engine_equals_tiles(make, bits, kind, place, granularity, rows, cols, depth):
    network = make(seed=bits, weight_bits=bits, act_bits=bits)
    protection = Protection(
        kind=kind, place=place, granularity=granularity,
        bounds=tightened(network, codes_of(network, 3)),
    )  # fmt: skip
    config = config_for(network, protection, rows, cols, depth)
    images = codes_of(network, 2, seed=7)
    values, violations = forward(network, images, protection, cols=cols)
    for index in range(2):
        count = 0
        for node in network.gemms():
            source = values[node.inputs[0]][index : index + 1]
            rows_of = []
            for tile, job in lower(network, config, node, source, protection):
                out = reference_output(config, job)
                rows_of.append((tile, out.rows))
                count += out.violations_in + out.violations_out
            got = raise_output(network, config, node, reversed(rows_of))
            expected = values[node.name][index : index + 1]
            assert got.dtype == expected.dtype
            assert torch.equal(got, expected), node.name
        assert count == int(violations[index])
    if kind == "none":
        assert violations.sum() == 0
    else:
        assert violations.min() > 0
        # The fast path without counting gives the same codes.
        again = {"input": images}
        for node in network.nodes:
            again[node.name] = run_node(
                network, node, [again[name] for name in node.inputs], protection
            )
            assert torch.equal(again[node.name], values[node.name])


@pytest.mark.parametrize("make", [plain_network, residual_network])
def test_bounds_are_extremes_of_what_layers_read_and_write(make):
    network = make(seed=2)
    codes = codes_of(network, 5)
    bounds = profile_bounds(network, codes, batch=2)
    runs = [brute_forward(network, image.numpy().astype(np.int64)) for image in codes]
    expected = {n.inputs[0] for n in network.gemms()} | {
        n.name for n in network.gemms() if n.output
    }
    assert set(bounds.tensors) == expected
    for name, b in bounds.tensors.items():
        stack = np.stack([run[name] for run in runs])
        assert (b.lo, b.hi) == (stack.min(), stack.max())
        np.testing.assert_array_equal(b.channel_lo, stack.min(axis=(0, 2, 3)))
        np.testing.assert_array_equal(b.channel_hi, stack.max(axis=(0, 2, 3)))
    again = Bounds.from_json(json.loads(json.dumps(bounds.to_json())))
    assert again.to_json() == bounds.to_json()


@pytest.mark.parametrize("kind", ["clip", "zero"])
@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_no_false_alarm_on_the_profiled_images(kind, granularity):
    network = residual_network(seed=6)
    codes = codes_of(network, 6)
    protection = Protection(
        kind=kind, granularity=granularity, bounds=profile_bounds(network, codes)
    )
    values, violations = forward(network, codes, protection)
    assert violations.sum() == 0
    golden = engine.forward(network, codes)
    for name, value in values.items():
        assert torch.equal(value, golden[name]), name


def test_a_bound_is_one_only_where_it_is_tighter_than_the_saturation_code():
    network = plain_network(seed=1)
    node = network.gemms()[1]
    assert node.lo == 0 and node.hi == 192
    size = len(node.bias)
    edge = TensorBounds(
        lo=0, hi=192, channel_lo=np.arange(size), channel_hi=np.full(size, 193) - np.arange(size)
    )
    bounds = Bounds(tensors={node.name: edge, node.inputs[0]: edge})
    layer = output_limits(node, Protection(kind="clip", bounds=bounds))
    assert not layer.lo_is_bound.any() and not layer.hi_is_bound.any()
    channel = output_limits(node, Protection(kind="clip", granularity="channel", bounds=bounds))
    np.testing.assert_array_equal(channel.lo_is_bound, np.arange(size) > 0)
    np.testing.assert_array_equal(channel.hi_is_bound, np.arange(size) > 1)
    np.testing.assert_array_equal(channel.hi, np.minimum(192, 193 - np.arange(size)))


def test_zero_passes_every_input_check():
    network = plain_network(seed=1)
    node = network.gemms()[0]
    for lo, hi, expected in ((5, 9, (0, 9)), (-9, -5, (-9, 0)), (-3, 4, (-3, 4))):
        bound = TensorBounds(lo=lo, hi=hi, channel_lo=np.array([lo]), channel_hi=np.array([hi]))
        protection = Protection(kind="clip", bounds=Bounds(tensors={"input": bound}))
        assert input_limits(network, node, protection) == expected


def test_shapes_are_those_of_the_engine():
    network = residual_network(seed=0)
    values = engine.forward(network, codes_of(network, 1))
    for name, shape in tensor_shapes(network).items():
        assert shape == tuple(values[name].reshape(shape).shape)
        assert np.prod(shape) == values[name].numel()
    shape = gemm_shape(network, network.gemms()[1])
    assert (shape.m, shape.k, shape.n, shape.groups) == (20, 18, 2, 2)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"kind": "cut"}, "unknown protection 'cut'"),
        ({"kind": "clip"}, "protection clip needs profiled bounds"),
        ({"place": "inside"}, "unknown place of protection 'inside'"),
        ({"granularity": "pixel"}, "unknown granularity 'pixel'"),
    ],
)
def test_bad_protection(change, message):
    with pytest.raises(InputError, match=message):
        Protection(**change)


def test_what_does_not_fit_is_named():
    network = plain_network(seed=0)
    node = network.gemms()[0]
    source = codes_of(network, 1)
    good = config_for(network, Protection(), 4, 4, 16)
    for change, message in (
        ({"act_bits": 4}, "the network has act_bits 8, the accelerator 4"),
        ({"max_k": 20}, "conv2 sums 54 products, the accelerator at most max_k = 20"),
        ({"protect": "clip"}, "does not run on an accelerator"),
        (
            {"act_sign": "unsigned"},
            "^conv1 reads signed activations, the accelerator has act_sign unsigned$",
        ),
        (
            {"act_sign": "signed"},
            "^conv2 reads unsigned activations, the accelerator has act_sign signed$",
        ),
    ):
        with pytest.raises(InputError, match=message):
            list(lower(network, replace(good, **change), node, source, Protection()))
    assert isinstance(node, Gemm)
    message = "^the network's layers have multipliers, the accelerator requant shift$"
    with pytest.raises(InputError, match=message):
        check_fits(multiplied(network), good)
    check_fits(network, replace(good, requant="mult"))
    fine = Protection(
        kind="clip", granularity="channel", bounds=tightened(network, codes_of(network, 1))
    )
    coarse = replace(config_for(network, fine, 4, 4, 16), bounds="layer")
    message = "^bounds per channel do not run on an accelerator with bounds layer$"
    with pytest.raises(InputError, match=message):
        list(lower(network, coarse, node, source, fine))
    with pytest.raises(ValueError, match="do not cover every output once"):
        raise_output(network, good, node, [])
    with pytest.raises(InputError, match="these are no activation bounds"):
        Bounds.from_json({"conv1": {"lo": 1}})


def test_a_network_that_shifts_runs_on_an_array_that_multiplies():
    network = plain_network(seed=2)
    config = replace(config_for(network, Protection(), 4, 3, 16), requant="mult")
    codes = codes_of(network, 1)
    values, _ = forward(network, codes, Protection())
    for node in network.gemms():
        tiles = [
            (tile, reference_output(config, job).rows)
            for tile, job in lower(network, config, node, values[node.inputs[0]], Protection())
        ]
        assert torch.equal(raise_output(network, config, node, tiles), values[node.name])
