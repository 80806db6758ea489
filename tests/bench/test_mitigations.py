# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from bench import mitigation_quantizers, mitigations


def test_cells_resume_and_missing_ones_are_named(tmp_path, capsys, monkeypatch) -> None:
    calls = []

    def measured(cell, bench):
        calls.append(cell)
        accuracy = {"mean": 90.0, "ci_low": 89.0, "ci_high": 91.0}
        rates = [{"rate": r, "plain": accuracy, "robust": accuracy} for r in cell.rates]
        return {"clean": 95.0, "rates": rates}

    monkeypatch.setattr(mitigation_quantizers, "measure", measured)
    flags = ["--quick", "--tables", "T1", "--cells", str(tmp_path / "cells")]
    assert mitigations.main([*flags, "--minutes", "0"]) == 0
    assert not calls
    out = capsys.readouterr().out
    assert "missing, not computed yet (the same command goes on): T1 per-layer (Normal)," in out
    assert mitigations.main([*flags, "--json", str(tmp_path / "all.json")]) == 0
    assert len(calls) == 6 and "missing" not in capsys.readouterr().out
    assert len(json.loads((tmp_path / "all.json").read_text())["cells"]) == 6
    assert mitigations.main(flags) == 0
    assert len(calls) == 6  # nothing is computed twice


@pytest.mark.parametrize(
    "flags, message",
    [(["--tables", "T9"], "unknown table 'T9'"), (["--chips", "0"], "--chips must be at least 1")],
)  # fmt: skip
def test_bad_flags(flags, message, capsys) -> None:
    assert mitigations.main(flags) == 2
    assert message in capsys.readouterr().err
