# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.mutations`: how many defects of the RTL the comparison with NumPy catches.

Named defects are put into the emitted Verilog of every design they apply to; further mutants are
drawn by Yosys `mutate`, of the core and of the shell around it (register bus and performance
counters). Each must make some output beat, `tlast`, register or handshake differ from what
hdl/tile.py, hdl/register_map.py and sim/driver.cpp say. Survivors are listed, with what is known
about them: equivalent, or caught by one of the proofs of `python -m hdl.prove`, for inputs that the
simulation does not reach.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import sim.drive
import sim.mutants
from hdl import prove, yosys
from hdl.config import AcceleratorConfig
from hdl.gen import generate
from hdl.properties import PROPERTIES, Property, requantizer
from sim.drive import DRIVER, EQUAL, build_driver, drive, trial_runs
from sim.mutants import DEFECTS, draw, plant, proven_equal
from trilat import verilator
from trilat.errors import InputError, run_command
from trilat.files import content_hash, write_json
from trilat.progress import TerminalProgress

CACHE = Path(".cache") / "mutations"
# Violation counts stay below 2**8 in runs of a few thousand beats; `python -m hdl.prove` proves the
# counter for all counts.
_COUNTER = re.compile(
    r"counter_(?:in|out)\..* -port [ABDQY] -portbit (\d+)| -wire violations_\w+ -wirebit (\d+)"
)
_REACHED_COUNT_BITS = 8
# Output tiles of a run without a reset; a mutant that is caught takes part of the first.
TILES = 240
_REFUTED = "not reached by the runs, refuted by the proof `{}`"
_REFUTED_BY = {_REFUTED.format(name) for name in ("axil", "counters", "requantizer")}
_HOLDS = "equivalent: the proof `{}` holds with it, for all inputs"
# The proof of each module of the shell.
_PROOFS = {
    "trilat_axil": PROPERTIES["axil"],
    "trilat_counters": PROPERTIES["counters"],
}
# A cell of a lane between the ring and the code, by its line in the Verilog: the requantizer.
_LANE_CELL = re.compile(r" -cell \$flatten\\lane_\d+\.(\$\S+design\.v:\d+\$\d+) ")
_REQUANTIZER = re.compile(
    r"(?:wire (?:\[\d+:0\] )?)?"
    r"(?:total|amount|by_\d+|lost_by_\d+|coarse\w*|fine\w*|round\w*|fits|\w+_sign|below|above|low|high"
    r"|code|checked\w*|violated) <?= "
)


@dataclass(frozen=True, kw_only=True)
class Design:
    """What is mutated.

    Attributes:
        config: a small array.
        named: whether the named defects are put into it.
        drawn: mutants drawn.
        scope: of what, of `sim.mutants.SCOPES`.
    """

    config: AcceleratorConfig
    named: bool
    drawn: int
    scope: str = "core"


DESIGNS = {
    "2x2 clip": Design(
        config=AcceleratorConfig(
            rows=2, cols=2, act_bits=3, weight_bits=3, max_k=6, psum_depth=3, protect="clip"
        ),
        named=True,
        drawn=60,
    ),
    "3x2 plain": Design(
        config=AcceleratorConfig(
            rows=3, cols=2, act_bits=4, weight_bits=2, max_k=12, psum_depth=6
        ),
        named=False,
        drawn=50,
    ),
    "1x3 zero": Design(
        config=AcceleratorConfig(
            rows=1, cols=3, act_bits=2, weight_bits=4, max_k=5, psum_depth=2,
            protect="zero", protect_place="output",
        ),
        named=False,
        drawn=40,
    ),
    "3x2 output-stationary": Design(
        config=AcceleratorConfig(
            dataflow="os", rows=3, cols=2, act_bits=3, weight_bits=4, max_k=18, protect="zero",
            protect_place="input",
        ),
        named=False,
        drawn=50,
    ),
    # Two columns to a multiplier block.
    "2x4 packed": Design(
        config=AcceleratorConfig(
            rows=2, cols=4, act_bits=3, weight_bits=3, max_k=6, psum_depth=3, mult="dsp",
            dsp_pack=2,
        ),
        named=False,
        drawn=40,
    ),
    "2x2 clip, shell": Design(
        config=AcceleratorConfig(
            rows=2, cols=2, act_bits=3, weight_bits=3, max_k=6, psum_depth=3, protect="clip"
        ),
        named=False,
        drawn=40,
        scope="shell",
    ),
}  # fmt: skip


def measure(design: Design, *, seed: int, cache: Path) -> dict[str, Any]:
    """Return the verdict of every mutant of a design, from `cache` if it is there.

    Args:
        design: what is mutated.
        seed: of drawn mutants and tiles.
        cache: folder of results and of Verilator's compiled runtime.
    """
    verilog = generate(design.config)
    key = content_hash(
        {
            "verilog": verilog,
            "seed": seed,
            "drawn": design.drawn,
            "named": design.named,
            "scope": design.scope,
            "code": [
                Path(f).read_text(encoding="utf-8")
                for f in (DRIVER, sim.drive.__file__, sim.mutants.__file__, __file__)
            ],
            "tools": [yosys.version(), verilator.version()],
        }
    )
    file = cache / f"result-{key}.json"
    if file.is_file():
        return read_json(file)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trilat-mutants-") as name:
        folder = Path(name)
        result: dict[str, Any] = {"named": [], "drawn": []}
        if design.named:
            words = _verdicts(design.config, plant(verilog), len(DEFECTS), seed, folder, cache)
            result["named"] = [
                {"name": defect.name, "verdict": word}
                for defect, word in zip(DEFECTS, words, strict=True)
            ]
        if design.drawn:
            for item in (*_PROOFS.values(), _lane(design.config)):
                verilog = prove.with_probes(verilog, item)
            drawn = draw(verilog, design.drawn, scope=design.scope, seed=seed, folder=folder)
            commands = drawn.commands
            words = _verdicts(design.config, drawn.verilog, len(commands), seed, folder, cache)
            lines = verilog.splitlines()
            for command, word in zip(commands, words, strict=True):
                mutant = {"command": command, "verdict": word}
                if word == EQUAL:
                    mutant["line"] = _source(command, lines)
                    mutant["known"] = _explain(command, mutant["line"], design.config, folder)
                result["drawn"].append(mutant)
    result["seconds"] = round(time.monotonic() - start, 1)
    write_json(file, result)
    return result


def read_json(file: Path) -> dict[str, Any]:
    """Return a stored result."""
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return data


def _verdicts(
    config: AcceleratorConfig, verilog: str, count: int, seed: int, folder: Path, cache: Path
) -> list[str]:
    """Return the verdicts of mutants 1..count; RuntimeError if the design itself differs."""
    source, simulator = folder / "mutants_of_design.v", folder / "simulator"
    source.write_text(verilog, encoding="utf-8")
    build_driver([source], config, simulator, selected=True, shell=True, runtime_cache=cache)
    words = [""] * (count + 1)
    for verdict in drive(simulator, config, trial_runs(config, seed=seed, tiles=TILES), (0, count)):
        words[verdict.mutant] = verdict.word
    if words[0] != EQUAL:
        raise RuntimeError(f"the design without a defect differs: {words[0]}")
    return words[1:]


def _lane(config: AcceleratorConfig) -> Property:
    """Return what a lane of a design must do, for the amounts that its core gives."""
    item = requantizer(config, ("", "", ""))
    return replace(item, defines=lambda config: {**item.defines(config), "REACHED": 1})


def _explain(command: str, line: str, config: AcceleratorConfig, folder: Path) -> str:
    """Return what is known about a survivor, which changes a line of the emitted Verilog."""
    if proven_equal(command, folder):
        return "equivalent, proven by induction"
    proof = _PROOFS.get(command.partition(" -module ")[2].split()[0])
    if proof:
        wrong = prove.refutes(proof, ["read_rtlil flat.il", command], folder)
        return (_REFUTED if wrong else _HOLDS).format(proof.wrapper)
    cell = _LANE_CELL.search(command)
    if cell and _REQUANTIZER.match(line):
        place = f"-module trilat_lane -cell {cell[1]}"
        lane = re.sub(r"-module \S+ -cell \S+", lambda _: place, command)
        read = ["read_verilog design.v", "hierarchy -top trilat_lane", "prep -top trilat_lane"]
        # Where the lane alone is simplified differently, there may be no such bit.
        with suppress(yosys.YosysError):
            wrong = prove.refutes(_lane(config), [*read, "wreduce", "opt -full", lane], folder)
            return (_REFUTED if wrong else _HOLDS).format("requantizer")
    counter = _COUNTER.search(command)
    if counter and int(counter[1] or counter[2]) >= _REACHED_COUNT_BITS:
        return "count that the runs do not reach; the proof `violation_counter` is for all counts"
    return "not proven equivalent"


def _source(command: str, lines: Sequence[str]) -> str:
    """Return the line of the emitted Verilog that a mutant changes."""
    places = re.findall(r"-src design\.v:(\d+)\.", command)
    return lines[int(places[-1]) - 1].strip() if places else ""


def main_parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m bench.mutations``."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.mutations",
        description="Put defects into small accelerators and count those that the comparison of "
        "the simulated RTL with its NumPy specification catches. Results are kept: a run that was "
        "interrupted goes on where it was. Exit code 1 if a named defect, or more than 5 % of the "
        "drawn mutants, survive simulation and proofs.",
    )
    parser.add_argument("--quick", action="store_true", help="one design, 40 drawn mutants")
    parser.add_argument("--seed", type=int, default=1, help="of mutants and tiles (default 1)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of results")
    parser.add_argument("--json", type=Path, help="also write the verdicts here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if enough was caught, 1 if not, 2 for bad input."""
    args = main_parser().parse_args(argv)
    return run_command("python -m bench.mutations", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    if args.seed < 0:
        raise InputError(f"--seed must be at least 0, not {args.seed}")
    designs = dict(DESIGNS)
    if args.quick:
        name, design = next(iter(DESIGNS.items()))
        designs = {name: Design(config=design.config, named=True, drawn=40)}
    results = {}
    with TerminalProgress().task("mutants", len(designs)) as advance:
        for name, design in designs.items():
            results[name] = measure(design, seed=args.seed, cache=args.cache)
            advance(1)
    if args.json is not None:
        write_json(args.json, {"seed": args.seed, "designs": results})
    return report(results)


def report(results: dict[str, dict[str, Any]]) -> int:
    """Print the table and the survivors; return the exit code."""
    console = Console(width=120)
    table = Table("design", "named", "caught", "drawn", "caught", "by proof", "share", "seconds")
    totals = [0] * 5
    for name, result in results.items():
        counts = []
        for kind in ("named", "drawn"):
            words = [mutant["verdict"] for mutant in result[kind]]
            counts += [len(words), sum(word != EQUAL for word in words)]
        counts.append(sum(m.get("known", "") in _REFUTED_BY for m in result["drawn"]))
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        table.add_row(name, *map(str, counts), _share(counts), f"{result['seconds']:.0f}")
    table.add_row("all", *map(str, totals), _share(totals), "")
    console.print(table)
    for name, result in results.items():
        for mutant in result["named"]:
            if mutant["verdict"] == EQUAL:
                console.print(f"{name}: survivor: {mutant['name']}", style="red", markup=False)
        for mutant in result["drawn"]:
            if mutant["verdict"] == EQUAL:
                what = re.sub(r" -(module|src|wirebit) \S+", "", mutant["command"])
                console.print(
                    f"{name}: survivor: {what}\n  {mutant['line']}\n  {mutant['known']}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
    known = [m["known"] for r in results.values() for m in r["drawn"] if m["verdict"] == EQUAL]
    for text, count in sorted(Counter(known).items()):
        console.print(f"{count} of {len(known)} survivors: {text}", markup=False, highlight=False)
    return 0 if totals[0] == totals[1] and totals[3] + totals[4] >= 0.95 * totals[2] else 1


def _share(counts: Sequence[int]) -> str:
    """Return the share of the drawn mutants that simulation or a proof caught."""
    _, _, drawn, caught, by_proof = counts
    return f"{100 * (caught + by_proof) / drawn:.1f} %" if drawn else "-"


if __name__ == "__main__":
    sys.exit(main())
