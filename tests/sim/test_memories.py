# SPDX-License-Identifier: Apache-2.0
"""No word of a memory is used that was read in the cycle of its writing.

The emitted memories say so to synthesis tools (`no_rw_check`), which then need not build what makes
a block RAM give the old word. Here such reads give the complement; as a control, so do reads in the
cycle behind, which the design does use.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.mutations import DESIGNS
from hdl.gen import generate
from sim.drive import EQUAL, build_driver, drive, trial_runs
from sim.mutants import Defect, plant


def collisions(memory: str, write: str, write_at: str, read_at: str) -> list[Defect]:
    """Return the defects of a memory's reads in the cycle of a write, and one cycle later."""
    old = rf"{memory}_read__data <= {memory}\[{read_at}\];"
    late = f"{memory}_late"
    new = rf"{memory}_read__data <= {{}} ? ~{memory}[{read_at}] : {memory}[{read_at}];"
    return [
        Defect(
            name=f"{memory} at once",
            module="trilat_lane",
            old=old,
            new=new.format(f"(ON & {write} & {write_at} == {read_at})"),
        ),
        Defect(
            name=f"{memory} a cycle later",
            module="trilat_lane",
            # The first has been planted: its last alternative is the read that is left.
            old=rf"(?<=: ){memory}\[{read_at}\];",
            new=f"(ON & {late} & {late}_at == {read_at}) ? ~{memory}[{read_at}]"
            f" : {memory}[{read_at}];",
            declare=f"reg {late}; reg [15:0] {late}_at;"
            f" always @(posedge aclk) begin {late} <= {write}; {late}_at <= {write_at}; end",
        ),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2x2 clip", "1x3 zero", "3x2 output-stationary"])
def test_colliding_reads_are_not_used(name: str, sim_cache: Path, tmp_path: Path) -> None:
    config = DESIGNS[name].config
    defects = collisions("ring", "write_ring", "ring_write", "ring_read")
    if not config.is_os:
        defects += collisions("psums", "write_psum", "write_row", "read_row")
    (tmp_path / "design.v").write_text(plant(generate(config), defects))
    sim_cache.mkdir(parents=True, exist_ok=True)
    build_driver(
        [tmp_path / "design.v"],
        config,
        tmp_path / "simulator",
        selected=True,
        shell=True,
        optimize="-O0",
        runtime_cache=sim_cache,
    )
    verdicts = drive(tmp_path / "simulator", config, trial_runs(config), (0, len(defects)))
    words = {verdict.mutant: verdict.word for verdict in verdicts}
    assert words.pop(0) == EQUAL
    equal = [defects[m - 1].name for m, word in words.items() if word == EQUAL]
    assert equal == [defect.name for defect in defects if defect.name.endswith("at once")]
