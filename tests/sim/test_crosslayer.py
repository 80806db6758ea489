# SPDX-License-Identifier: Apache-2.0
"""A faulty tile in RTL and the rest on the engine, against the whole network computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from integer_networks import plain_network, random_codes, residual_network

from faultinj.faults import REGISTERS, RegisterFault
from faultinj.lowering import lower, raise_output
from faultinj.protection import UNPROTECTED
from faultinj.tile_faults import predict
from hdl.config import AcceleratorConfig
from hdl.registers import register_classes
from quant.engine import code_dtype, run_node
from quant.network import Gemm
from sim.crosslayer import CrossLayer, main, random_fault
from trilat.errors import InputError

pytestmark = pytest.mark.slow


def array_for(network) -> AcceleratorConfig:
    """The array of test_verify.py, whose simulator is there already."""
    return AcceleratorConfig(
        rows=5, cols=4, act_bits=network.act_bits, weight_bits=network.weight_bits, max_k=128,
        psum_depth=16,
    )  # fmt: skip


def faulty_logits(network, config, codes, fault):
    """Every layer through its tiles and `predict`, from the image to the logits."""
    values = {"input": codes}
    for node in network.nodes:
        inputs = [values[name] for name in node.inputs]
        if isinstance(node, Gemm) and node.name == fault.layer:
            tiles = []
            for index, (tile, job) in enumerate(
                lower(network, config, node, inputs[0], UNPROTECTED)
            ):
                hit = [fault] if index == fault.tile else []
                tiles.append((tile, predict(config, job, hit).rows))
            values[node.name] = raise_output(network, config, node, tiles)
        else:
            values[node.name] = run_node(network, node, inputs)
    return values[network.nodes[-1].name].flatten()


@pytest.mark.parametrize("make", [plain_network, residual_network])
def test_outcomes_are_those_of_the_whole_network(make, sim_cache):
    network = make(act_bits=8, weight_bits=4)
    config = array_for(network)
    codes = torch.from_numpy(random_codes(network, 1)).to(code_dtype(network.input))
    rng = np.random.default_rng(4)
    classes = [name for name in REGISTERS["ws"] if name in register_classes(config)]
    seen = set()
    with CrossLayer(network, config, codes, cache=sim_cache) as cross:
        golden = cross.golden[network.nodes[-1].name].flatten()
        for _ in range(60):
            fault = random_fault(cross, classes, rng)
            result = cross.run([fault])
            expected = faulty_logits(network, config, codes, fault)
            assert result.golden_top1 == int(golden.argmax())
            assert result.faulty_top1 == int(expected.argmax())
            assert result.logit_change == int((expected.long() - golden.long()).abs().max())
            seen.add(result.outcome)
    assert {"masked", "sdc"} <= seen


def test_bad_faults_are_refused(sim_cache):
    network = plain_network(act_bits=8, weight_bits=4)
    codes = torch.from_numpy(random_codes(network, 1)).to(code_dtype(network.input))
    name = network.gemms()[0].name

    def fault(**fields):
        known = {"layer": name, "image": 0, "tile": 0, "register": "psum", "row": 0, "col": 0}
        known |= {"bits": (0,), "cycle": 3}
        return RegisterFault(**{**known, **fields})

    with CrossLayer(network, array_for(network), codes, cache=sim_cache) as cross:
        with pytest.raises(InputError, match="layer"):
            cross.run([fault(layer="none")])
        with pytest.raises(InputError, match=r"has tiles 0\.\.\d+, not 999"):
            cross.run([fault(tile=999)])
        with pytest.raises(InputError, match="faults of one tile are needed, not of 2"):
            cross.run([fault(), fault(tile=1)])


def test_command(sim_cache, tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    plain_network(act_bits=8, weight_bits=4).save(path)
    arguments = ["--network", str(path), "--rows", "5", "--cols", "4", "--faults", "20"]
    assert main([*arguments, "--cache", str(sim_cache), "--register", "valid"]) == 0
    text = capsys.readouterr().out
    assert "hang: " in text and "ms a fault, 20 faults" in text
    assert main([*arguments, "--register", "act"]) == 2
