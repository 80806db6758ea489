# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.mitigations`: published ways to survive faulty weight memories, side by side.

T1: the quantizers of the RandBET paper, weights only (`quant.rquant`), on a CNN with group norms.
T2: training for an unknown chip, width by width, in the accelerator's number format.
T3: all methods on the same chips, maps unknown or known, and what each costs.
T4: retraining for known chips, each alone or merged (TRE-Map): epochs, speed-up, accuracy.
T5: fault-aware quantization for known chips without training (FAQ): points gained, conversion time.
T6: activation sparsity against faulty accuracy, with and without sharpness-aware training.

Every cell is trained and measured on its own and kept under the hash of all that it depends on: a
run that was stopped goes on with the same command, and cells that are not there are named.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from json import loads
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from bench import (
    mitigation_chips,
    mitigation_faq,
    mitigation_maps,
    mitigation_methods,
    mitigation_quantizers,
    mitigation_sparsity,
)
from bench.mitigation_cells import Bench, Cell, Effort, MissingError
from bench.mitigation_report import Section, write_markdown, write_report
from bench.mitigation_tables import Finding
from trilat.errors import InputError, run_command, unknown_name
from trilat.files import write_json
from trilat.progress import TerminalProgress

TABLES: dict[str, ModuleType] = {
    "T1": mitigation_quantizers,
    "T2": mitigation_methods,
    "T3": mitigation_chips,
    "T4": mitigation_maps,
    "T5": mitigation_faq,
    "T6": mitigation_sparsity,
}
QUICK = Effort(chips=3, images=180, epochs=1, widths=(8,), grey="digits", colour=None)


def main_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.mitigations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, full = parser.add_argument, Effort()
    add("--tables", default=",".join(TABLES), help="comma-separated (default: %(default)s)")
    add("--data", type=Path, default=Path("../shared/data"), metavar="DIR",
        help="with mnist/ and cifar10/; cells without data are skipped (%(default)s)")  # fmt: skip
    add("--epochs", type=int, help="of each training (default: what each table says)")
    add("--chips", type=int, default=full.chips, help="per cell (default: %(default)s)")
    add("--images", type=int, default=full.images, help="of the test split (default: %(default)s; "
        "T1: 9000)")  # fmt: skip
    add("--seed", type=int, default=full.seed, help="of training and chips (default: %(default)s)")
    add("--minutes", type=float, help="start no further cell after so long; 0 computes nothing")
    add("--heavy", action="store_true", help="also cells that take long without a GPU")
    add("--cells", type=Path, default=Path(".cache/mitigations"), help="where cells are kept")
    add("--quick", action="store_true", help="digits, one epoch, 3 chips: a trial of the command")
    add("--json", type=Path, metavar="FILE", help="write all finished cells to FILE")
    add("--html", type=Path, metavar="FILE", help="write tables and plots as one page to FILE")
    add("--markdown", type=Path, metavar="FILE", help="write the tables to FILE, as in docs/")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = main_parser().parse_args(argv)
    return run_command("python -m bench.mitigations", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    names = [word.strip() for word in arguments.tables.split(",")]
    for name in names:
        if name not in TABLES:
            raise unknown_name("table", name, list(TABLES))
    for name in ("epochs", "chips", "images"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, not {value}")
    effort = QUICK
    if not arguments.quick:
        settings = {
            name: getattr(arguments, name) for name in ("chips", "images", "epochs", "seed")
        }
        effort = Effort(**settings)
    bench = Bench(
        effort=effort,
        folder=arguments.cells,
        sources=arguments.data,
        progress=TerminalProgress(),
    )
    wanted = {name: TABLES[name].cells(effort) for name in names}
    found: dict[Cell, dict[str, Any]] = {}
    missing: dict[Cell, str] = {}
    for cell, result in _results(bench, wanted, arguments.minutes, arguments.heavy):
        if isinstance(result, str):
            missing[cell] = result
        else:
            found[cell] = result
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False)
    sections: list[Section] = []
    findings: list[Finding] = []
    for name in names:
        for cells in _parts(wanted[name]):
            drawn = TABLES[name].figure(cells, found) if found.keys() & set(cells) else None
            sections.append(Section(table=TABLES[name].table(cells, found), figure=drawn))
            console.print(sections[-1].table)
        if hasattr(TABLES[name], "findings"):
            findings += TABLES[name].findings(wanted[name], found)
    console.print("expected and found:")
    for one in findings:
        console.print(f"  {one.verdict}: {one.expected}. {one.found}", soft_wrap=True)
    named = {
        reason: [cell.name() for cell, why in missing.items() if why == reason]
        for reason in dict.fromkeys(missing.values())
    }
    for reason, cell_names in named.items():
        console.print(f"missing, {reason}: {'; '.join(cell_names)}", soft_wrap=True)
    total = sum(len(cells) for cells in wanted.values())
    console.print(f"{len(found)} of {total} cells are there")
    _write(arguments, bench, sections, findings, named, found)
    return 0


def _write(
    arguments: argparse.Namespace,
    bench: Bench,
    sections: Sequence[Section],
    findings: Sequence[Finding],
    missing: dict[str, list[str]],
    found: dict[Cell, dict[str, Any]],
) -> None:
    """Write what the user asked for; InputError where that is impossible."""
    effort = asdict(bench.effort)
    try:
        if arguments.json is not None:
            told = [asdict(one) for one in findings]
            value = {"effort": effort, "cells": list(found.values()), "findings": told,
                     "missing": missing}  # fmt: skip
            write_json(arguments.json, value)
        if arguments.html is not None:
            write_report(arguments.html, sections, findings, missing, effort)
        if arguments.markdown is not None:
            write_markdown(arguments.markdown, sections, findings, missing)
    except OSError as error:
        raise InputError(f"cannot write {error.filename}: {error.strerror}") from None


def _results(
    bench: Bench, wanted: dict[str, list[Cell]], minutes: float | None, heavy: bool
) -> Iterator[tuple[Cell, dict[str, Any] | str]]:
    """Yield every cell with its figures, or with the reason why there are none."""
    start, done = time.monotonic(), 0
    left = [cell for cells in wanted.values() for cell in cells]
    for number, cell in enumerate(left):
        try:
            path = bench.path(cell)
        except MissingError as error:
            yield cell, str(error)
            continue
        spent = time.monotonic() - start
        if path.is_file():
            yield cell, loads(path.read_text(encoding="utf-8"))
        elif cell.heavy and not heavy:
            yield cell, "takes long without a GPU (--heavy)"
        elif minutes is not None and spent >= 60 * minutes:
            yield cell, "not computed yet (the same command goes on)"
        else:
            eta = f", ETA {spent / done * (len(left) - number) / 60:.0f} min" if done else ""
            print(f"cell {number + 1} of {len(left)}: {cell.name()}{eta}", file=sys.stderr)
            try:
                yield cell, _measured(bench, cell, path)
            except MissingError as error:
                yield cell, str(error)
            done += 1


def _measured(bench: Bench, cell: Cell, path: Path) -> dict[str, Any]:
    began = time.process_time()
    figures = TABLES[cell.table].measure(cell, bench)
    figures |= {"seconds": time.process_time() - began, "cell": cell.settings()}
    try:
        write_json(path, figures)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    return figures


def _parts(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return the cells of a table by network, data and rates: each part is a table of its own."""
    parts: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        parts.setdefault((cell.model, cell.data, cell.rates), []).append(cell)
    return list(parts.values())


if __name__ == "__main__":
    sys.exit(main())
