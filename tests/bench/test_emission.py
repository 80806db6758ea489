# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import emission
from hdl.config import AcceleratorConfig
from hdl.gen import generate


def test_figures_are_those_of_the_emitted_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(emission, "AIMS", {2: (3.0, 1500), 3: (15.0, None)})
    assert emission.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    first, second = json.loads((tmp_path / "out.json").read_text())["emission"]
    assert first["lines"] == generate(AcceleratorConfig(rows=2, cols=2)).count("\n")
    assert first["flat"]["lines"] > 4 * 20 and second["flat"] is None
    assert min(first["seconds"], first["cpu"], second["cpu"]) > 0
    assert "< 1500" in capsys.readouterr().out


def test_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(emission, "AIMS", {1: (3.0, 1500)})
    (tmp_path / "file").write_text("")
    assert emission.main(["--quick", "--json", str(tmp_path / "file" / "x.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
