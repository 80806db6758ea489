# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from integer_networks import multiplied, plain_network

from dse.energy import main


@pytest.fixture
def network(tmp_path):
    file = tmp_path / "network.safetensors"
    plain_network().save(file)
    return file


def test_the_command_prints_and_writes_the_parts(network, tmp_path, capsys):
    record = tmp_path / "energy.json"
    flags = ["--rows", "4", "--cols", "4", "--network", str(network)]
    assert main([*flags, "--bandwidth", "0.01", "--json", str(record)]) == 0
    printed = capsys.readouterr().out
    assert "A model for comparing designs" in printed
    assert "times as many" in printed
    data = json.loads(record.read_text())
    parts = sum(data[name] for name in ("mac", "register", "buffer", "stream"))
    assert data["total"] == pytest.approx(parts)
    assert data["capped_cycles"] > data["cycles"]


def test_a_network_with_multipliers_on_an_array_that_has_them(tmp_path, capsys):
    file = tmp_path / "network.safetensors"
    multiplied(plain_network()).save(file)
    flags = ["--rows", "4", "--cols", "4", "--network", str(file)]
    assert main([*flags, "--requant", "mult"]) == 0
    assert "total" in capsys.readouterr().out
    assert main(flags) == 2
    assert "multipliers, the accelerator requant shift" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--weight-bits", "4"], "weight_bits"),
        (["--bandwidth", "0"], "--bandwidth must be positive"),
        (["--activity", "9"], "activity"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(flags, what, network, tmp_path, capsys):
    record = tmp_path / "energy.json"
    assert main(["--network", str(network), "--json", str(record), *flags]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert error.count("\n") == 1
    assert not record.exists()


def test_activity_is_counted_on_data(network, tmp_path, capsys):
    record = tmp_path / "energy.json"
    flags = ["--rows", "4", "--cols", "4", "--network", str(network), "--json", str(record)]
    assert main([*flags, "--data", "digits"]) == 0
    measured = json.loads(record.read_text())
    assert main(flags) == 0
    random = json.loads(record.read_text())
    # Digits are mostly background, and a ReLU gives zeros.
    assert 0.1 < measured["activity"] < 0.9
    assert random["activity"] == 1
    for part in ("mac", "register"):
        assert measured[part] == pytest.approx(measured["activity"] * random[part])
    assert measured["stream"] == random["stream"]
    assert main([*flags, "--data", "digits"]) == 0
    assert json.loads(record.read_text()) == measured
