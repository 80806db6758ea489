# SPDX-License-Identifier: Apache-2.0
"""The stored flat results are whole, and the bench notices one that is not reproduced."""

from dataclasses import replace

import pytest

from bench import synthesis
from hdl.mapping import split_modules


@pytest.fixture(scope="module")
def stored():
    return synthesis.load()


def test_stored_results_belong_to_their_verilog(stored):
    assert len(stored) >= 30
    assert len({result.key for result in stored}) == len(stored)
    for result in stored[:3]:
        assert synthesis.flat_key(result.verilog) == result.key
        assert synthesis.CORE in split_modules(result.verilog)
    assert all(result.lut > 0 and result.ff > 0 and result.delay_ns > 0 for result in stored)


def test_results_survive_the_file(stored, tmp_path):
    synthesis.store(stored[:2], tmp_path / "flat.parquet")
    assert synthesis.load(tmp_path / "flat.parquet") == stored[:2]
    assert synthesis.load(tmp_path / "none.parquet") == []


def test_a_result_that_is_not_reproduced_is_named(stored, monkeypatch):
    kept = {result.verilog: result for result in stored}
    monkeypatch.setattr(synthesis, "map_flat", lambda config, verilog: kept[verilog])
    assert synthesis.check_sample(stored, 3, seed=0) == []
    broken = [replace(result, ff=result.ff + 1) for result in stored]
    lines = synthesis.check_sample(broken, 3, seed=0)
    assert len(lines) == 3
    assert all("stored ff" in line for line in lines)


def test_errors_are_relative_to_flat():
    rows = [
        {"lut": 102, "lut_flat": 100, "ff": 99, "ff_flat": 100, "delay_ns": 3, "delay_ns_flat": 2},
        {"lut": 98, "lut_flat": 100, "ff": 100, "ff_flat": 100, "delay_ns": 2, "delay_ns_flat": 2},
    ]
    for row in rows:
        for name in ("lut", "ff", "delay_ns"):
            row[f"{name}_error"] = 100 * (row[name] / row[f"{name}_flat"] - 1)
    found = synthesis.summary(rows)
    assert found["lut"]["largest"] == pytest.approx(2)
    assert found["lut"]["of the total"] == pytest.approx(0)
    assert found["ff"]["mean"] == pytest.approx(0.5)
    assert found["delay_ns"]["largest"] == pytest.approx(50)
