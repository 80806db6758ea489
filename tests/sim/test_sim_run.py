# SPDX-License-Identifier: Apache-2.0
"""`python -m sim.run`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from integer_networks import multiplied, plain_network

from faultinj.lowering import check_fits
from sim.run import main
from trilat.errors import InputError


@pytest.mark.slow
def test_random_jobs(sim_cache, tmp_path, capsys):
    report = tmp_path / "result.json"
    arguments = ["--random-jobs", "40", "--rows", "2", "--cols", "3", "--act-bits", "4"]
    arguments += ["--weight-bits", "3", "--faults", "12", "--cache", str(sim_cache)]
    assert main([*arguments, "--json", str(report)]) == 0
    text = capsys.readouterr().out
    assert "40 of 40 random tiles equal to the reference" in text
    assert "register flips predicted exactly: 12 of 12" in text
    result = json.loads(report.read_text())
    assert result["agrees"] and result["faults_corrupting"] >= 6


@pytest.mark.slow
def test_network_on_digits(sim_cache, tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    plain_network(act_bits=4, weight_bits=4).save(path)
    # The array of test_verify.py, protected, and a cache given by a relative path.
    cache = os.path.relpath(sim_cache, Path.cwd())
    arguments = ["--network", str(path), "--data", "digits", "--rows", "5", "--cols", "4"]
    arguments += ["--protect", "zero", "--faults", "10", "--cache", cache]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "random W4A4 on 5x4, one whole image: " in text
    assert "output words equal to the engine's: " in text
    assert "register flips predicted exactly: 10 of 10" in text


@pytest.mark.parametrize("multiplies", [False, True])
def test_requantization_is_the_networks(multiplies, tmp_path, monkeypatch, capsys):
    network = plain_network()
    path = tmp_path / "net.safetensors"
    (multiplied(network) if multiplies else network).save(path)

    def verify(network, config, *_, **__):
        check_fits(network, config)
        raise InputError(f"the accelerator has requant {config.requant}")

    monkeypatch.setattr("sim.verify.verify", verify)
    assert main(["--network", str(path)]) == 2
    expected = f"requant {'mult' if multiplies else 'shift'}\n"
    assert capsys.readouterr().err.endswith(expected)
    # Asked for, it is what it is: an array that multiplies runs either, one that shifts does not.
    assert main(["--network", str(path), "--requant", "mult"]) == 2
    assert capsys.readouterr().err.endswith("requant mult\n")
    assert main(["--network", str(path), "--requant", "shift"]) == 2
    message = "the network's layers have multipliers" if multiplies else "has requant shift"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --network FILE or --random-jobs N"),
        (["--random-jobs", "0"], "--random-jobs must be at least 1, not 0"),
        (["--random-jobs", "3", "--rows", "0"], "rows must be an integer in 1..64, not 0"),
        (["--random-jobs", "3", "--act-bits", "9"], "act_bits must be an integer in 2..8, not 9"),
        (["--random-jobs", "3", "--faults", "-1"], "--faults must be at least 0, not -1"),
        (["--random-jobs", "3", "--stalls", "2"], "stalls must be a chance in 0..0.99, not 2.0"),
        (["--network", "no/such/file"], "no such network file: no/such/file"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"python -m sim.run: error: {message}\n"
    assert list(tmp_path.iterdir()) == []
