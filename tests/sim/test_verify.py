# SPDX-License-Identifier: Apache-2.0
"""Real layers of small networks through the RTL, and what a verification says when it fails."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from integer_networks import plain_network, random_codes, residual_network

from faultinj.protection import Protection, profile_bounds
from hdl.config import AcceleratorConfig
from quant.engine import code_dtype
from sim import verify as module
from sim.verify import verify
from trilat.errors import InputError

pytestmark = pytest.mark.slow


def config_for(network, **fields) -> AcceleratorConfig:
    return AcceleratorConfig(
        rows=5, cols=4, act_bits=network.act_bits, weight_bits=network.weight_bits, max_k=128,
        psum_depth=16, **fields,
    )  # fmt: skip


def codes_of(network, count=6):
    return torch.from_numpy(random_codes(network, count)).to(code_dtype(network.input))


@pytest.mark.parametrize("dataflow,pack", [("ws", 1), ("os", 1), ("os", 2)])
def test_whole_image_of_every_kind_of_layer(dataflow, pack, sim_cache):
    network = residual_network(act_bits=8, weight_bits=4)
    config = config_for(network, dataflow=dataflow, dsp_pack=pack)
    result = verify(network, config, codes_of(network), fault_count=30, seed=1, cache=sim_cache)
    assert result.agrees and result.whole_image and result.disagreements == ()
    assert result.macs_share == 1 and result.tiles == result.tiles_total
    assert result.layers == len(network.gemms())
    assert result.outputs_compared == result.outputs_equal > 1000
    assert result.cycles == result.cycles_predicted
    assert result.faults_replayed == result.faults_predicted == 30
    assert result.faults_corrupting >= 15
    assert json.loads(json.dumps(result.to_json()))["agrees"] is True


def test_protected_image_with_violations(sim_cache):
    network = plain_network(act_bits=4, weight_bits=4)
    codes = codes_of(network)
    bounds = profile_bounds(network, codes[1:])
    # Bounds that the image violates, as a test image may.
    tight = {
        name: dataclasses.replace(
            b, hi=max(b.hi - 2, b.lo), channel_hi=np.maximum(b.channel_hi - 2, b.channel_lo)
        )
        for name, b in bounds.tensors.items()
    }
    protection = Protection(
        kind="zero", granularity="channel", bounds=dataclasses.replace(bounds, tensors=tight)
    )
    config = config_for(network, protect="zero")
    result = verify(
        network, config, codes, protection=protection, fault_count=20, seed=2, cache=sim_cache
    )
    assert result.agrees and result.whole_image
    assert result.violations == result.violations_expected > 10


def test_sampled_tiles_cover_every_layer(sim_cache):
    network = residual_network(act_bits=8, weight_bits=4)
    result = verify(
        network, config_for(network), codes_of(network), fault_count=5, seed=1,
        budget_s=0.001, cache=sim_cache,
    )  # fmt: skip
    assert result.agrees and not result.whole_image
    assert result.layers == len(network.gemms())
    assert 0 < result.macs_share < 1 and result.tiles < result.tiles_total


def test_edges_are_always_sampled():
    network = plain_network(act_bits=8, weight_bits=8)
    config = config_for(network)
    node = network.gemms()[0]
    tiles = list(module.lower(network, config, node, codes_of(network)[:1], Protection()))
    chosen = module.sample_tiles(config, tiles, 0, np.random.default_rng(0))
    places = {(tiles[i][0].n0, tiles[i][0].m0) for i in chosen}
    assert places == {(0, 0), (4, 0), (0, 48), (4, 48)}
    everything = module.sample_tiles(config, tiles, 1e9, np.random.default_rng(0))
    assert everything == list(range(len(tiles)))


def test_a_network_that_differs_from_the_engine_is_reported(sim_cache, monkeypatch):
    network = residual_network(act_bits=8, weight_bits=4)
    lower = module.lower

    def with_another_bias(network, config, node, codes, protection):
        for number, (tile, job) in enumerate(lower(network, config, node, codes, protection)):
            bias = job.bias + (node.name == "fc" and number == 0)
            yield tile, dataclasses.replace(job, bias=bias)

    monkeypatch.setattr(module, "lower", with_another_bias)
    result = verify(
        network, config_for(network), codes_of(network), fault_count=0, seed=1, cache=sim_cache
    )
    assert not result.agrees
    assert result.outputs_compared - result.outputs_equal == config_for(network).cols
    assert result.disagreements[0]["layer"] == "fc"
    assert result.disagreements[0]["rtl"] == result.disagreements[0]["expected"] + 1


def test_widths_must_be_those_of_the_network(sim_cache):
    network = plain_network(act_bits=4, weight_bits=4)
    config = dataclasses.replace(config_for(network), act_bits=8)
    with pytest.raises(InputError, match="the network has act_bits 4, the accelerator 8"):
        verify(network, config, codes_of(network), cache=sim_cache)
