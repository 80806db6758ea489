# SPDX-License-Identifier: Apache-2.0
"""The protection table: missing cells are named, blind faults are those that no bound can see."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from integer_networks import plain_network, random_codes

from bench.protection import main
from bench.protection_cells import VARIANTS, blind_fault
from faultinj.campaign import inject
from faultinj.faults import MemoryFault, RegisterFault
from faultinj.protection import Bounds, Protection, TensorBounds, profile_bounds
from hdl.config import AcceleratorConfig
from quant import engine


def test_variants_are_every_unit_once():
    assert len(VARIANTS) == len(set(VARIANTS)) == 11
    assert VARIANTS[0].kind == "none"


def test_nothing_stored_is_named_and_computed_nowhere(tmp_path, capsys):
    path = tmp_path / "figures.json"
    flags = ["--stored", "--cache", str(tmp_path / "cache"), "--json", str(path)]
    assert main([*flags, "--models", "lenet5", "--bits", "8,2"]) == 0
    out = capsys.readouterr().out
    assert "lenet5/mnist qat 8 bits: no --data" in out and "claimed (third-party" in out
    found = json.loads(path.read_text())
    assert found["cells"] == [] and len(found["missing"]) == 4
    assert main([*flags, "--data", str(tmp_path), "--methods", "ptq", "--bits", "4"]) == 0
    assert f"alexnet/cifar10 ptq 4 bits: no cifar10/ in {tmp_path}" in capsys.readouterr().out
    assert main([*flags, "--quick"]) == 0
    assert "missing, 11:" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--bits", "9"], "9 is none of the accepted: 8, 7, 6, 5, 4, 3, 2"),
        (["--bits", "x"], "--bits and --rates are numbers, divided by commas"),
        (["--models", "vgg11"], "'vgg11' is none of the accepted: lenet5, alexnet"),
        (["--faults", "0"], "--faults must be at least 1, not 0"),
    ],
)
def test_bad_flags(flags, message, capsys):
    assert main(flags) == 2
    assert message in capsys.readouterr().err


def with_range(bounds, name, lo, hi):
    """Bounds with another range for one tensor."""
    channels = len(bounds.tensors[name].channel_lo)
    tensor = TensorBounds(
        lo=lo, hi=hi, channel_lo=np.full(channels, lo), channel_hi=np.full(channels, hi)
    )
    return Bounds(tensors={**bounds.tensors, name: tensor})


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("place", ["input", "output", "both"])
def test_blind_faults_are_never_detected_where_they_hit(place, granularity):
    network = plain_network(seed=4, weight_bits=4, act_bits=4)
    values = torch.from_numpy(random_codes(network, 6))
    codes = values.to(engine.code_dtype(network.input))
    profiled = profile_bounds(network, codes[:1])
    fmt = network.format_of("fc1")
    # Only fc2 reads fc1, and fc2 has no output bounds: what fc1 holds is unseen at full range.
    bounds = with_range(profiled, "fc1", fmt.lo, fmt.hi)
    protection = Protection(kind="clip", place=place, granularity=granularity, bounds=bounds)
    config = AcceleratorConfig(
        rows=4, cols=4, act_bits=4, weight_bits=4, max_k=128, protect="clip", protect_place=place
    )
    size = len(network.node("fc1").bias)
    faults = [
        MemoryFault(tensor="fc1", image=image, element=e, bits=(3,))
        for image in range(6)
        for e in range(size)
    ]
    assert all(blind_fault(network, protection, fault) for fault in faults)
    labels = np.zeros(6, dtype=np.int64)
    records = inject(network, config, codes, labels, [(f,) for f in faults], protection=protection)
    assert not any(record.detected for record in records)
    # The same faults are seen once the range is narrow: the test above could have failed.
    bounds = with_range(with_range(profiled, "fc1", 0, 5), "conv1", 0, 5)
    narrow = Protection(kind="clip", place=place, granularity=granularity, bounds=bounds)
    assert all(blind_fault(network, narrow, fault) == (place == "output") for fault in faults)
    seen = inject(network, config, codes, labels, [(f,) for f in faults], protection=narrow)
    assert any(record.detected for record in seen) == (place != "output")
    register = {"image": 0, "tile": 0, "register": "pe_activation", "row": 0, "col": 0,
                "bits": (0,), "cycle": 9}  # fmt: skip
    assert blind_fault(network, narrow, RegisterFault(layer="fc2", **register))
    found = blind_fault(network, narrow, RegisterFault(layer="conv1", **register))
    assert found == (place == "input")
