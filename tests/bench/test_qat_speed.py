# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import qat_speed
from bench.qat_speed import CODES, FLOAT32, PLAIN, main
from quant import code_layers


def test_ratios_are_those_of_the_times_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, threads = tmp_path / "figures.json", torch.get_num_threads()
    flags = ["--model", "lenet5", "--batch", "8", "--threads", "1", "--quick"]
    assert main([*flags, "--json", str(path)]) == 0
    assert torch.get_num_threads() == threads
    assert "QAT of lenet5, 8 bits, batch 8, 1 threads, 3 rounds" in capsys.readouterr().out
    paths = json.loads(path.read_text())["paths"]
    assert set(paths) == {PLAIN, FLOAT32} | ({CODES} if code_layers.has_fast_codes() else set())
    assert paths[PLAIN]["wall_ratio"] == paths[PLAIN]["cpu_ratio"] == 1
    for row in paths.values():
        assert row["images_per_second"] == pytest.approx(8 / row["wall_seconds"])


@pytest.mark.slow
@pytest.mark.skipif(not code_layers.has_fast_codes(), reason="needs a CPU with AMX")
def test_accuracies_of_both_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figures.json"
    monkeypatch.setattr(qat_speed, "SEEDS", (0, 1))
    assert main(["--accuracy", "--epochs", "1", "--threads", "1", "--json", str(path)]) == 0
    assert "the spread of seeds" in capsys.readouterr().out
    found = json.loads(path.read_text())
    means = []
    for name in (FLOAT32, CODES):
        values = found["accuracies"][name]
        assert len(values) == 2 and min(values) > 50
        assert found["spread"][name] == pytest.approx(max(values) - min(values))
        means.append(sum(values) / 2)
    assert found["difference"] == pytest.approx(means[1] - means[0])


def test_bad_settings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bits", "9"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["--threads", "0"]) == 2


def test_accuracy_without_amx(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_layers, "has_fast_codes", lambda: False)
    assert main(["--accuracy"]) == 2
    assert "AMX" in capsys.readouterr().err
