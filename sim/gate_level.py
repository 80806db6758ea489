# SPDX-License-Identifier: Apache-2.0
"""Whole mapped netlists against the specification of the accelerator.

Yosys maps the core and all below it to an FPGA family, as for `hdl.synth`; the netlist, flat and
with the simulation models of its primitives, is driven like the RTL. What a netlist leaves
undefined is random.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdl import yosys
from hdl.config import AcceleratorConfig
from hdl.families import FAMILIES, Family
from hdl.gen import generate
from hdl.mapping import below, groups, instances, map_group, split_modules, whole_pes
from hdl.netlist_check import without_contents
from hdl.registers import CORE
from sim.drive import EQUAL, build_driver, drive, trial_runs


@dataclass(frozen=True, kw_only=True)
class NetlistResult:
    """A netlist that did what the specification says.

    Attributes:
        cells: primitives in it.
        runs: runs of tiles that it was driven through, see `sim.drive.trial_runs`.
    """

    cells: int
    runs: int


class NetlistError(RuntimeError):
    """A netlist gave something else than the specification; the message says what and when."""


def check_netlist(
    config: AcceleratorConfig, family: str, *, seed: int = 0, runtime_cache: Path | None = None
) -> NetlistResult:
    """Map a whole core and compare its netlist with the specification.

    Args:
        config: a small accelerator: every primitive becomes several lines of C++.
        family: of `hdl.families`.
        seed: of the tiles.
        runtime_cache: as in `trilat.verilator.build`.

    Raises:
        NetlistError: an output differs.
        yosys.YosysError: Yosys failed.
    """
    with tempfile.TemporaryDirectory(prefix="trilat-netlist-") as name:
        folder = Path(name)
        cells = write_netlist(generate(config), FAMILIES[family], folder)
        simulator = folder / "simulator"
        build_driver(
            [folder / "netlist.v"], config, simulator, optimize="-O0", runtime_cache=runtime_cache
        )
        runs = trial_runs(config, seed=seed, tiles=20)
        for verdict in drive(simulator, config, runs):
            if verdict.word != EQUAL:
                raise NetlistError(
                    f"{family} netlist of {config}: {verdict.word} differs in run {verdict.run}, "
                    f"cycle {verdict.cycle}"
                )
    return NetlistResult(cells=cells, runs=len(runs))


def write_netlist(verilog: str, family: Family, folder: Path) -> int:
    """Map the core; write it flat with the models of its primitives to ``netlist.v``.

    Returns:
        The number of primitives.
    """
    texts = split_modules(verilog)
    inside = below([CORE], instances(texts))
    texts, inside_pes = whole_pes({name: texts[name] for name in texts if name in inside})
    netlists: dict[str, Any] = {}
    for number, group in enumerate(groups(texts)):
        work = folder / f"map{number}"
        work.mkdir()
        found = map_group(group, texts, inside_pes, family, work)
        netlists |= {name: without_contents(module) for name, module in found.items()}
    kinds = [c["type"] for m in netlists.values() for c in m["cells"].values()]
    primitives = [kind for kind in kinds if kind not in netlists and kind != "$scopeinfo"]
    (folder / "netlists.json").write_text(json.dumps({"modules": netlists}), encoding="utf-8")
    models = family.simulation_models(set(primitives))
    (folder / "models.v").write_text(models, encoding="utf-8")
    yosys.run(
        [
            "read_verilog models.v",
            "read_json netlists.json",
            f"hierarchy -check -top {CORE}",
            "proc",
            "flatten",
            "opt_clean",
            "write_verilog -noattr netlist.v",
        ],
        folder,
        "flat",
    )
    return len(primitives)
