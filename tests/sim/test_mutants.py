# SPDX-License-Identifier: Apache-2.0
"""Defects of the RTL are caught."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.mutations import DESIGNS, main
from hdl.gen import generate
from sim.drive import EQUAL, build_driver, drive, trial_runs
from sim.mutants import DEFECTS, Defect, plant

CONFIG = DESIGNS["2x2 clip"].config


@pytest.fixture(scope="module")
def simulator(sim_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutants")
    (folder / "design.v").write_text(plant(generate(CONFIG)))
    sim_cache.mkdir(parents=True, exist_ok=True)
    build_driver(
        [folder / "design.v"],
        CONFIG,
        folder / "simulator",
        selected=True,
        shell=True,
        optimize="-O0",
        runtime_cache=sim_cache,
    )
    return folder / "simulator"


@pytest.mark.slow
def test_every_named_defect_is_caught(
    simulator: Path, verified: Callable[[str, int], None]
) -> None:
    verdicts = drive(simulator, CONFIG, trial_runs(CONFIG), (0, len(DEFECTS)))
    words = {verdict.mutant: verdict.word for verdict in verdicts}
    assert words.pop(0) == EQUAL
    survivors = [DEFECTS[m - 1].name for m, word in words.items() if word == EQUAL]
    assert survivors == [] and len(words) == len(DEFECTS) >= 20
    # The runs differ in each of these ways for some defect.
    assert {"tdata", "tlast", "unstable", "axil"} <= set(words.values())
    verified("named defects caught in simulation", len(words))


def test_a_defect_that_finds_no_place_is_refused() -> None:
    lost = Defect(name="lost", module="trilat_lane", old="no such text", new="")
    with pytest.raises(ValueError, match="nothing in the Verilog to plant 'lost' in"):
        plant("module trilat_lane (\n);\nendmodule\n", [lost])


def test_names_are_unique() -> None:
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS)


@pytest.mark.nightly
def test_drawn_mutants_are_caught(tmp_path: Path, verified: Callable[[str, int], None]) -> None:
    assert main(["--cache", str(tmp_path), "--json", str(tmp_path / "mutants.json")]) == 0
    designs = json.loads((tmp_path / "mutants.json").read_text())["designs"]
    words = [mutant["verdict"] for design in designs.values() for mutant in design["drawn"]]
    caught = sum(word != EQUAL for word in words)
    verified(f"of {len(words)} mutants drawn by Yosys caught in simulation", caught)
