# SPDX-License-Identifier: Apache-2.0
"""The command: a table and files for good input, one line and exit code 2 for bad."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from integer_networks import plain_network

from faultinj.run import main


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "net.safetensors"
    plain_network(seed=1).save(path)
    return path


def test_a_campaign_from_the_command_line(network_file, tmp_path, capsys):
    rows, summary = tmp_path / "rows.parquet", tmp_path / "summary.json"
    flags = [
        "--network", str(network_file), "--images", "20", "--site", "pe_activation", "--protect",
        "clip", "--rows", "4", "--cols", "8", "--margin", "0.1", "-o", str(rows), "--json",
        str(summary),
    ]  # fmt: skip
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert "97 experiments of 1 flip in pe_activation" in " ".join(out.split())
    for word in ("masked", "sdc_critical", "conv1", "critical by bit"):
        assert word in out
    assert pq.read_table(rows).num_rows == 97
    first = json.loads(summary.read_text())
    assert first["n"] == 97 and first["protection"] == "clip" and first["confidence"] == 0.95
    assert main(flags) == 0
    assert json.loads(summary.read_text()) | {"seconds": 0} == first | {"seconds": 0}


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--site", "activation"], "unknown fault site 'activation'; did you mean activations"),
        (["--margin", "0"], "margin must be between 0 and 1, not 0"),
        (["--margin", "1.5", "--faults", "9"], "margin must be between 0 and 1, not 1.5"),
        (["--margin", "wide"], "argument --margin: invalid float value: 'wide'"),
        (["--confidence", "95"], "confidence must be between 0 and 1, not 95"),
        (["--faults", "0"], "faults and multiplicity must be at least 1, not 0 and 1"),
        (["--multiplicity", "0"], "--multiplicity must be at least 1, not 0"),
        (["--images", "-3"], "--images must be at least 1, not -3"),
        (["--seed", "-1"], "--seed must be at least 0, not -1"),
        (["--rows", "0"], "rows must be an integer in 1..64, not 0"),
        (["--protect", "cut"], "protect must be one of none, clip, zero, not 'cut'"),
        (["--granularity", "pixel", "--protect", "clip"], "unknown granularity 'pixel'"),
        (["--split", "all"], "unknown split 'all'"),
        (["--data", "digit"], "unknown data set 'digit'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_flags(network_file, tmp_path, capsys, flags, message):
    output = tmp_path / "rows.parquet"
    assert main(["--network", str(network_file), "-o", str(output), *flags]) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if "error" in line]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in captured.err and not captured.out
    assert not output.exists()


def test_bad_network_files(tmp_path, capsys):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors here")
    assert main(["--network", str(broken)]) == 2
    assert "is not a safetensors file" in capsys.readouterr().err
    assert main(["--network", str(tmp_path / "none.safetensors")]) == 2
    assert "no such network file" in capsys.readouterr().err
    assert main([]) == 2
    assert "the following arguments are required: --network" in capsys.readouterr().err
