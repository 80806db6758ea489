# SPDX-License-Identifier: Apache-2.0
"""The baseline of `bench.faults` is the model it says, and its faults are drawn as it says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from integer_networks import plain_network, random_codes, residual_network

from bench.faults import draw, main
from bench.plain_float import plain_model
from quant import engine
from trilat.errors import InputError


def test_the_plain_model_is_the_network_without_quantization():
    network = plain_network(seed=1)
    model = plain_model(network)
    first = network.gemms()[0]
    codes = torch.from_numpy(random_codes(network, 2)).to(torch.int8)
    floats = codes.to(torch.float32) * 2.0**network.input.exponent
    got = model[0](floats)
    unit = 2.0 ** (network.input.exponent + first.weight_exponent)
    want = engine.accumulate(first, codes).double() * torch.from_numpy(unit)[:, None, None]
    np.testing.assert_allclose(got.detach().numpy(), want.numpy(), rtol=1e-5)
    assert model(floats).shape == (2, network.num_classes)
    with pytest.raises(InputError, match="no branches"):
        plain_model(residual_network())


def test_faults_are_drawn_over_bits_or_layers():
    network = plain_network(seed=1)
    for site in ("activation", "weight"):
        shares = {}
        for law in ("bits", "layers"):
            faults = draw(network, site, law, 3000, 4, np.random.default_rng(0))
            assert [f[0].image for f in faults[:5]] == [0, 1, 2, 3, 0]
            counts = Counter(getattr(f[0], "tensor", None) or f[0].layer for f in faults)
            shares[law] = counts[("conv1" if site == "activation" else "conv2")] / 3000
        assert shares["bits"] > 1.5 * shares["layers"]


def test_bad_input_is_one_line(tmp_path, capsys):
    assert main([]) == 2
    assert "give --network" in capsys.readouterr().err
    network = replace(plain_network(), metadata={})
    network.save(tmp_path / "n.safetensors")
    assert main(["--network", str(tmp_path / "n.safetensors"), "--data", "nowhere"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
