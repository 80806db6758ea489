# SPDX-License-Identifier: Apache-2.0
"""MobileNetV2 on the accelerator: depthwise layers, linear bottlenecks and sums without ReLU."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from brute_force import run as brute_run
from fault_lists import random_experiments

from faultinj.engine import run_faults
from faultinj.faults import Fault, MemoryFault, RegisterFault, WeightFault
from faultinj.lowering import gemm_shape
from faultinj.protection import Protection, profile_bounds
from hdl.config import AcceleratorConfig
from hdl.schedule import network_cycles, output_tiles, tile_cycles
from quant import engine
from quant.data import load_data, to_input
from quant.models import build_model
from quant.network import IntegerNetwork
from quant.quantize import quantize

IMAGES = 3


@pytest.fixture(scope="module")
def mobilenet() -> tuple[IntegerNetwork, torch.Tensor]:
    """A network of random weights, and image codes."""
    data = load_data("digits", seed=0)
    spec = build_model("mobilenetv2:0.07", num_classes=10, data_shape=data.shape, seed=1)
    x = to_input(data.train.images[:64], spec.input_shape, data.mean, data.std)
    with torch.no_grad():
        spec.module.train()(x)
    spec.module.eval()
    network = quantize(spec, data, weight_bits=5, act_bits=6, method="ptq", seed=0).network
    return network, engine.image_codes(network, x[:IMAGES])


def accelerator(network: IntegerNetwork, **fields: object) -> AcceleratorConfig:
    return AcceleratorConfig(
        rows=4, cols=3, act_bits=network.act_bits, weight_bits=network.weight_bits,
        max_k=max(math.prod(node.weight.shape[1:]) for node in network.gemms()), **fields,
    )  # fmt: skip


def is_quick(pixels: dict[str, int], fault: Fault) -> bool:
    """Whether brute force steps through at most one tile of few rows for it."""
    if not isinstance(fault, RegisterFault):
        return True
    return fault.layer is not None and fault.tile is not None and pixels[fault.layer] <= 16


@pytest.mark.parametrize(("dataflow", "kind"), [("ws", "clip"), ("os", "none")])
def test_faults_are_those_of_brute_force(mobilenet, dataflow: str, kind: str) -> None:
    network, codes = mobilenet
    config = accelerator(network, dataflow=dataflow, protect=kind)
    bounds = profile_bounds(network, codes)
    protection = Protection(kind=kind, granularity="layer", bounds=bounds)
    pixels = {node.name: gemm_shape(network, node).m for node in network.gemms()}
    drawn = random_experiments(network, config, IMAGES, 60, seed=4)
    experiments = [e for e in drawn if all(is_quick(pixels, fault) for fault in e)][:20]
    assert {type(fault) for e in experiments for fault in e} == {
        MemoryFault, RegisterFault, WeightFault
    }  # fmt: skip
    done = run_faults(network, config, codes, experiments, protection=protection)
    golden = [brute_run(network, config, protection, c.numpy(), ())[0] for c in codes]
    for number, experiment in enumerate(experiments):
        image = experiment[0].image
        faulty, _ = brute_run(network, config, protection, codes[image].numpy(), experiment)
        assert done.logit_change[number] == np.abs(faulty - golden[image]).max(), experiment
        assert done.faulty_top1[number] == int(np.argmax(faulty)), experiment
    assert np.count_nonzero(done.logit_change) > 0


def test_a_depthwise_layer_is_a_small_gemm_per_channel(mobilenet) -> None:
    network, _ = mobilenet
    config = accelerator(network)
    depthwise = [node for node in network.gemms() if node.groups > 1]
    assert len(depthwise) == 17
    shapes = [gemm_shape(network, node) for node in network.gemms()]
    for node in depthwise:
        shape = gemm_shape(network, node)
        assert (shape.k, shape.n, shape.groups) == (9, 1, len(node.bias))
        tiles = list(output_tiles(config, shape))
        assert len(tiles) == len(node.bias) * -(-shape.m // config.max_m)
        assert {tile.k_tiles for tile in tiles} == {3}
    macs = sum(s.m * s.k * s.n * s.groups for s in shapes)
    # Each tile alone is slower than its place in the stream, the array's peak is faster.
    alone = sum(
        tile_cycles(config, m=tile.m1 - tile.m0, k_tiles=tile.k_tiles, raw=s.raw)
        for s in shapes
        for tile in output_tiles(config, s)
    )
    cycles = network_cycles(config, shapes)
    assert macs / (config.rows * config.cols) < cycles < alone + 1000 * len(shapes)
