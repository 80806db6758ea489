# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

import bench.hardware
import bench.hardware_clocks
from bench.hardware_cases import SIZE, cases
from hdl.families import FAMILIES
from hdl.gen import generate
from hdl.mapping import instances, split_modules
from hdl.registers import CORE
from trilat.progress import TerminalProgress

PLAIN = {"LUT6": 3, "FDRE": 5, "DSP48E1": 1}


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_area_per_pe_counts_every_instance_of_the_array(
    case: bench.hardware.Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one LUT in each column, two in each PE and nothing else, 64 PEs and 8 columns show."""

    def mapped(texts: dict[str, str], family: object, cache: Path) -> dict[str, SimpleNamespace]:
        def cells(name: str) -> dict[str, int]:
            if name == "plain_pe":
                return PLAIN
            return {"LUT6": 2} if "_pe_" in name else {"LUT6": int("column" in name)}

        timing = SimpleNamespace(delay=1500)
        return {n: SimpleNamespace(cells=cells(n), timing=timing, vectors=7) for n in texts}

    monkeypatch.setattr(bench.hardware, "_map", mapped)
    advanced: list[int] = []
    row = bench.hardware.measure(case, FAMILIES["xc7"], tmp_path, advanced.append)
    groups = SIZE // case.config.dsp_pack
    assert row.area.lut == (2 * SIZE * groups + groups) / SIZE**2
    assert (row.plain.lut, row.plain.ff, row.plain.dsp) == (3, 5, 1)
    assert row.delay_ns == 1.5
    assert sum(advanced) == 2
    if "xc7" in case.lut_bar or "xc7" in case.dsp_bar:
        assert row.met is True
    else:
        assert row.met is None


def test_array_is_what_stands_between_streams_and_lanes() -> None:
    for case in cases():
        inside = Counter(instances(split_modules(generate(case.config)))[CORE])
        outside = {name for name in inside if name not in bench.hardware.ARRAY}
        assert outside <= {"trilat_front", "trilat_drain", "trilat_lane", "trilat_output_buffer"}


def test_protected_core_is_as_fast_as_the_slowest_seed_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def route(verilog: str, *, top: str, seeds: int, **settings: object) -> SimpleNamespace:
        asked.append((top, seeds))
        if top != CORE:
            return SimpleNamespace(fmax_mhz=(170.0, 190.0, 200.0))
        if "module trilat_violation_counter" in verilog:
            return SimpleNamespace(fmax_mhz=(99.0, 119.0, 150.0))
        return SimpleNamespace(fmax_mhz=(120.0, 130.0, 140.0))

    monkeypatch.setattr(bench.hardware_clocks, "route", route)
    progress = TerminalProgress()
    found = bench.hardware_clocks.measure_clocks(3, 200.0, tmp_path, progress)
    assert [(row["name"], row["met"]) for row in found["clocks"]] == [
        ("OS int8, DSP", True),
        ("OS int4, LUT", True),
    ]
    # A median of 119 MHz is below all seeds without protection.
    assert [row["met"] for row in found["protection clocks"]] == [False] * 3
    assert asked.count((CORE, 3)) == 6


@pytest.mark.parametrize(
    ("flags", "what"),
    [(["--seeds", "0"], "--seeds must be 1 to 1000"), (["--mhz", "0"], "target clock must be 1")],
)
def test_bad_flags_end_before_anything_is_mapped(
    flags: list[str],
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench.hardware, "_run", lambda **settings: pytest.fail("mapped"))
    assert bench.hardware.main(["--pnr", *flags, "--cache", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert error.count("\n") == 1
