# SPDX-License-Identifier: Apache-2.0
"""T2: training for an unknown chip, in the accelerator's number format."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from bench.mitigation_cells import (
    Bench,
    Cell,
    Effort,
    Found,
    over_chips,
)
from bench.mitigation_tables import errors, lines, percent
from dse.charts import Figure

RATES = (0.01, 0.05, 0.1, 0.15, 0.2)
COLOUR_RATES = (1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.015, 0.02, 0.025)
WIDTHS = (8, 4, 2)
EPOCHS = 1
CLIPS = ("clip:0.2", "clip:0.1", "clip:0.05")
RANDBET = "clip:0.12+randbet:0.1"
RANDBET_EPOCHS = 2
METHODS = ("qat", *CLIPS, "saq:0.3", RANDBET)
COLOUR_METHODS = ("qat", *CLIPS, "saq:0.3", "clip:0.1+randbet:0.01")


def cells(effort: Effort) -> list[Cell]:
    """Return the rows: LeNet-5 on grey images, a quarter of VGG11 on colour ones."""
    sets = [("lenet5", effort.grey, METHODS, RATES)]
    if effort.colour is not None:
        sets.append(("vgg11:0.25", effort.colour, COLOUR_METHODS, COLOUR_RATES))
    return [
        Cell(
            table="T2",
            row=method,
            model=model,
            data=data,
            method=method,
            bits=bits,
            rates=rates,
            epochs=effort.epochs or (epochs_of(method) if data == effort.grey else None),
            chips=effort.chips,
            images=effort.images,
            seed=effort.seed,
            heavy=data == effort.colour,
        )
        for model, data, methods, rates in sets
        for bits in WIDTHS
        for method in methods
    ]


def epochs_of(method: str) -> int:
    """Return the epochs of training LeNet-5 by a method: random bit errors need more."""
    return RANDBET_EPOCHS if "randbet" in method else EPOCHS


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Train and measure a cell."""
    trained = bench.network(cell.model, cell.data, cell.method, cell.bits, cell.epochs)
    found = over_chips(cell, bench, trained)
    return {**found, "training_seconds": trained.seconds, "training_epochs": trained.epochs}


def table(cells: list[Cell], found: Found) -> Table:
    """Return errors per rate."""
    result = Table(
        title=f"T2: methods for an unknown chip, error in % on {cells[0].data}",
        caption="plain error / RErr (wrong clean or faulty), mean over "
        f"{cells[0].chips} chips of bit flips, 95 % interval of RErr",
    )
    result.add_column("method")
    for heading in ("bits", "clean", *(percent(rate) for rate in cells[0].rates)):
        result.add_column(heading, justify="right")
    for cell in cells:
        result.add_row(cell.row, str(cell.bits), *errors(cell, found.get(cell)))
    return result


def figure(cells: list[Cell], found: Found) -> Figure:
    """Return RErr against the rate."""
    return lines(cells, found, title=f"T2: methods for an unknown chip, {cells[0].data}")
