# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.mitigations`: published ways to survive faulty weight memories, side by side.

T1: the quantizers of the RandBET paper, weights only (`quant.rquant`), on a CNN with group norms.
T2: methods that do not know the chip, in the accelerator's number format, on LeNet-5.

Every cell is trained and measured on its own and kept under the hash of all that it depends on: a
run that was stopped goes on with the same command, and cells that are not there are named.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from json import loads
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from faultinj.chip_campaign import accuracy_over_chips, spread
from faultinj.random_maps import random_map
from quant import engine
from quant.data import DataSet, Split, load_data, to_input
from quant.fault_map import FaultMap, MemoryGeometry
from quant.models import build_model, seeded
from quant.quantize import quantize
from quant.rquant import SCHEMES, NormCnn, Scheme, quantized, right_answers, train
from quant.training import train_float
from quant.weight_memory import WeightMapping, faults_of_weights, weight_codes
from trilat.errors import InputError, run_command, unknown_name
from trilat.files import content_hash, write_json
from trilat.progress import Progress, TerminalProgress

_VERSION = 1  # one more whenever a cell's figures change for the same settings
TABLES = ("T1", "T2")
T1_RATES = (1e-3, 5e-3, 0.01, 0.05)
T2_RATES = (0.01, 0.05, 0.1, 0.15, 0.2)
T2_METHODS = ("qat", "clip:0.2", "clip:0.1", "clip:0.05", "clip:0.05+randbet:0.1", "saq:0.3")
# RErr in %, CIFAR-10, SimpleNet, at p = 0.1, 0.5 and 1 %, as printed in the RandBET paper.
PAPER_T1 = {
    "per-layer (Normal)": (6.37, 24.76, 72.65),
    "+asymmetric": (7.85, 40.78, 76.72),
    "+unsigned": (7.49, 17.00, 54.57),
    "+rounding (RQuant)": (5.54, 11.28, 32.05),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of a table: what is trained, and on how many chips and images it is measured."""

    table: str
    row: str
    bits: int
    wmax: float | None
    epochs: int | None
    chips: int
    images: int
    seed: int

    def name(self) -> str:
        """Return how a missing cell is called."""
        return f"{self.table} {self.row}, {self.bits} bits"


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Return the cells of the tables asked for, in their order."""
    names = ("epochs", "chips", "images", "seed")
    common: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    rows: list[Cell] = []
    if "T1" in arguments.tables:
        rows += [Cell(table="T1", row=row, bits=8, wmax=None, **common) for row in SCHEMES]
        rows += [
            Cell(table="T1", row=row, bits=4, wmax=0.1, **common)
            for row in ("+unsigned", "+rounding (RQuant)")
        ]
    if "T2" in arguments.tables:
        rows += [
            Cell(table="T2", row=row, bits=bits, wmax=None, **common)
            for bits in (8, 4, 2)
            for row in T2_METHODS
        ]
    return rows


def measure(cell: Cell, data: DataSet, progress: Progress) -> dict[str, Any]:
    """Train and measure a cell; JSON-able: clean, and plain and robust accuracy per rate."""
    start = time.monotonic()
    found = _t1(cell, data, progress) if cell.table == "T1" else _t2(cell, data, progress)
    return {**found, "seconds": time.monotonic() - start, "cell": asdict(cell)}


def _t1(cell: Cell, data: DataSet, progress: Progress) -> dict[str, Any]:
    scheme, shape = SCHEMES[cell.row], data.shape
    with seeded(cell.seed):
        module = NormCnn(shape[0], data.num_classes)
    train(
        module,
        data,
        shape,
        scheme=scheme,
        bits=cell.bits,
        epochs=cell.epochs or 5,
        seed=cell.seed,
        wmax=cell.wmax,
        progress=progress,
    )
    split = _first(data.test, cell.images)
    weights = sum(p.numel() for p in module.parameters())
    clean = _answers(module, data, split, scheme, cell.bits, None)
    rates: list[dict[str, Any]] = [{"rate": rate} for rate in T1_RATES]
    kept: list[list[np.ndarray]] = [[] for _ in rates]
    with progress.task("chips", cell.chips) as advance:
        for chip in _chips(weights, max(T1_RATES), cell):
            for k, rate in enumerate(T1_RATES):
                kept[k].append(_answers(module, data, split, scheme, cell.bits, chip.at(rate)))
            advance(1)
    for row, answers in zip(rates, kept, strict=True):
        row["plain"] = asdict(spread([100 * float(a.mean()) for a in answers], cell.seed))
        both = [100 * float((a & clean).mean()) for a in answers]
        row["robust"] = asdict(spread(both, cell.seed))
    return {"clean": 100 * float(clean.mean()), "rates": rates}


def _answers(
    module: torch.nn.Module,
    data: DataSet,
    split: Split,
    scheme: Scheme,
    bits: int,
    chip: FaultMap | None,
) -> np.ndarray:
    """Return which images are right when the parameters lie in a chip's memory one by one."""
    read, start = {}, 0
    total = sum(p.numel() for p in module.parameters())
    faults = None
    if chip is not None:
        faults = faults_of_weights(chip, weights=total, bits=bits, mapping=WeightMapping())
    for name, parameter in module.named_parameters():
        stop = start + parameter.numel()
        part = None if faults is None else faults.part(start, stop)
        read[name] = quantized(parameter, scheme, bits, part)
        start = stop
    return right_answers(module, data, split, data.shape, read)


def _t2(cell: Cell, data: DataSet, progress: Progress) -> dict[str, Any]:
    spec = build_model(
        "lenet5", num_classes=data.num_classes, data_shape=data.shape, seed=cell.seed
    )
    train_float(spec, data, seed=cell.seed, epochs=cell.epochs, progress=progress)
    network = quantize(
        spec,
        data,
        weight_bits=cell.bits,
        act_bits=8,
        method=cell.row,
        seed=cell.seed,
        epochs=cell.epochs,
        progress=progress,
    ).network
    split = _first(data.test, cell.images)
    images = to_input(split.images, network.input_shape, data.mean, data.std)
    results = accuracy_over_chips(
        network,
        engine.image_codes(network, images),
        split.labels,
        _chips(len(weight_codes(network)), max(T2_RATES), cell),
        rates=T2_RATES,
        seed=cell.seed,
        progress=progress,
    )
    rows = [{"rate": r.rate, "plain": asdict(r.plain), "robust": asdict(r.robust)} for r in results]
    return {"clean": results[0].clean, "rates": rows}


def _chips(words: int, rate: float, cell: Cell) -> list[FaultMap]:
    geometry = MemoryGeometry(words=words, bits=8)
    return [
        random_map(geometry, rate=rate, seed=cell.seed, chip=chip) for chip in range(cell.chips)
    ]


def _first(split: Split, count: int) -> Split:
    return Split(images=split.images[:count], labels=split.labels[:count])


def main_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.mitigations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tables", default="T1,T2", help="comma-separated: T1, T2 (default: %(default)s)")
    add("--data", default="../shared/data/mnist", help="folder or name (default: %(default)s)")
    add("--epochs", type=int, help="of each training (default: 5 for T1; trilat's own for T2)")
    add("--chips", type=int, default=20, help="per cell (default: %(default)s)")
    add("--images", type=int, default=9000, help="of the test split (default: %(default)s)")
    add("--seed", type=int, default=0, help="of training and chips (default: %(default)s)")
    add("--minutes", type=float, help="start no further cell after so long")
    add("--cells", type=Path, default=Path(".cache/mitigations"), help="where cells are kept")
    add("--quick", action="store_true", help="digits, two epochs, 5 chips: a trial of the command")
    add("--json", type=Path, metavar="FILE", help="write all finished cells to FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = main_parser().parse_args(argv)
    return run_command("python -m bench.mitigations", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    arguments.tables = [word.strip() for word in arguments.tables.split(",")]
    for name in arguments.tables:
        if name not in TABLES:
            raise unknown_name("table", name, list(TABLES))
    if arguments.quick:
        arguments.data, arguments.epochs, arguments.chips = "digits", 2, 5
    for name in ("epochs", "chips", "images"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(arguments, name)}")
    progress = TerminalProgress()
    data = load_data(arguments.data, seed=arguments.seed, progress=progress)
    start = time.monotonic()
    found: dict[Cell, dict[str, Any]] = {}
    for cell in cells(arguments):
        depends = [_VERSION, asdict(cell), data.fingerprint, version("torch"), version("numpy")]
        path = arguments.cells / f"{content_hash(depends)}.json"
        if path.is_file():
            found[cell] = loads(path.read_text(encoding="utf-8"))
        elif arguments.minutes is None or time.monotonic() - start < 60 * arguments.minutes:
            found[cell] = measure(cell, data, progress)
            try:
                write_json(path, found[cell])
            except OSError as error:
                raise InputError(f"cannot write {path}: {error.strerror}") from None
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for table, rates in (("T1", T1_RATES), ("T2", T2_RATES)):
        rows = [cell for cell in cells(arguments) if cell.table == table]
        if rows:
            _print(console, table, rows, rates, found, data)
    if missing := [cell.name() for cell in cells(arguments) if cell not in found]:
        console.print(f"missing: {'; '.join(missing)} (the same command computes them)")
    if arguments.json is not None:
        write_json(arguments.json, {"data": data.name, "cells": list(found.values())})
    return 0


def _print(
    console: Console,
    name: str,
    rows: Sequence[Cell],
    rates: Sequence[float],
    found: dict[Cell, dict[str, Any]],
    data: DataSet,
) -> None:
    table = Table(
        title=f"{name}: error in % on {data.name}, {rows[0].chips} chips of bit flips",
        caption="plain error / RErr (wrong clean or faulty), means over chips; the paper's RErr is "
        "that of CIFAR-10 at 0.1, 0.5 and 1 %",
    )
    table.add_column("row")
    for heading in ("bits", "clean", *(f"{100 * rate:g} %" for rate in rates)):
        table.add_column(heading, justify="right")
    if name == "T1":
        table.add_column("paper", justify="right")
    for cell in rows:
        one = found.get(cell)
        figures = ["-"] * (1 + len(rates))
        if one is not None:
            figures = [f"{100 - one['clean']:.2f}"] + [
                f"{100 - r['plain']['mean']:.2f} / {100 - r['robust']['mean']:.2f}"
                for r in one["rates"]
            ]
        label = cell.row + ("" if cell.wmax is None else f", clip {cell.wmax:g}")
        line = [label, str(cell.bits), *figures]
        if name == "T1":
            paper = PAPER_T1.get(cell.row) if cell.bits == 8 else None
            line.append(" ".join(f"{value:g}" for value in paper) if paper else "-")
        table.add_row(*line)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
