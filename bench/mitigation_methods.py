# SPDX-License-Identifier: Apache-2.0
"""T2: training for an unknown chip, in the accelerator's number format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from bench import mitigation_quantizers
from bench.mitigation_cells import (
    GIVEN,
    Bench,
    Cell,
    Effort,
    Found,
    over_chips,
)
from bench.mitigation_tables import Finding, errors, lines, percent, robust_error
from faultinj.sram import voltage_at
from trilat.figures import Figure

MODEL = "lenet5"
RATES = (0.01, 0.05, 0.1, 0.15, 0.2)
COLOUR_RATES = (1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.015, 0.02, 0.025)
_TENS, _WITHIN = 10.0, 5.0  # points of RErr at 1 % above the clean error
EPOCHS = 1
CLIPS = ("clip:0.2", "clip:0.1", "clip:0.05")
RANDBET = "clip:0.12+randbet:0.1"
RANDBET_EPOCHS = 2
METHODS = ("qat", *CLIPS, "saq:0.3", RANDBET)
# At 20 % noise has to be averaged over more inputs than LeNet-5 has.
WIDE_MODEL, WIDE_RANDBET, WIDE_EPOCHS = f"{MODEL}:4", "clip:0.12+randbet:0.2", 4
# Of the comparison mode of `quant.rquant`, as T1 names them.
WEIGHTS_ONLY = ("normal", "rquant", "rquant+clip:0.1", "rquant+clip:0.1+randbet:0.1")
WEIGHTS_ONLY_EPOCHS = 3
COLOUR_METHODS = ("qat", *CLIPS, "saq:0.3", "clip:0.1+randbet:0.01")
COLOUR_MODEL = "vgg11:0.25"
# An image takes the given VGG11 6 ms of a core, for each chip and rate.
GIVEN_IMAGES = 200


def cells(effort: Effort) -> list[Cell]:
    """Return the rows: LeNet-5, weights alone and a wide LeNet-5 on grey images, then VGG11s."""
    sets: list[tuple[str, str, tuple[str, ...], tuple[float, ...]]] = [
        (MODEL, effort.grey, METHODS, RATES),
        (mitigation_quantizers.MODEL, effort.grey, WEIGHTS_ONLY, RATES),
    ]
    if effort.colour is not None:
        sets.append((WIDE_MODEL, effort.grey, (WIDE_RANDBET,), RATES))
        sets.append((GIVEN, effort.colour, COLOUR_METHODS, COLOUR_RATES))
        sets.append((COLOUR_MODEL, effort.colour, COLOUR_METHODS, COLOUR_RATES))
    return [
        Cell(
            table="T2",
            row=method,
            model=model,
            data=data,
            method=method,
            bits=bits,
            rates=rates,
            epochs=effort.epochs or epochs_of(method, model),
            chips=effort.chips,
            images=min(effort.images, GIVEN_IMAGES) if model == GIVEN else effort.images,
            seed=effort.seed,
            heavy=model not in (MODEL, mitigation_quantizers.MODEL),
        )
        for model, data, methods, rates in sets
        for bits in (effort.widths if model not in (WIDE_MODEL, GIVEN) else (8,))
        for method in methods
    ]


def epochs_of(method: str, model: str = MODEL) -> int | None:
    """Return the epochs of training by a method: random bit errors need more."""
    if model == mitigation_quantizers.MODEL:
        return WEIGHTS_ONLY_EPOCHS  # from drawn weights
    if model == WIDE_MODEL:
        return WIDE_EPOCHS
    if model != MODEL:
        return None
    return RANDBET_EPOCHS if "randbet" in method else EPOCHS


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Train and measure a cell."""
    if cell.model == mitigation_quantizers.MODEL:
        return mitigation_quantizers.measure(cell, bench)
    trained = bench.network(cell.model, cell.data, cell.method, cell.bits, cell.epochs)
    found = over_chips(cell, bench, trained)
    return {**found, "training_seconds": trained.seconds, "training_epochs": trained.epochs}


def table(cells: list[Cell], found: Found) -> Table:
    """Return errors per rate."""
    result = Table(
        title=f"T2: methods for an unknown chip, error in % on {cells[0].data}, "
        + _network(cells[0]),
        caption="plain error / RErr (wrong clean or faulty), mean over "
        f"{cells[0].chips} chips of bit flips, 95 % interval of RErr; in the "
        "headings, energy per SRAM access that a supply with so many faults saves",
    )
    result.add_column("method")
    saved = (
        f"{percent(rate)} (-{100 * (1 - voltage_at(rate) ** 2):.0f} %)" for rate in cells[0].rates
    )
    for heading in ("bits", "clean", *saved):
        result.add_column(heading, justify="right")
    for cell in cells:
        result.add_row(cell.row, str(cell.bits), *errors(cell, found.get(cell)))
    return result


def figure(cells: list[Cell], found: Found) -> Figure:
    """Return RErr against the rate."""
    return lines(cells, found, title=f"T2: methods for an unknown chip, {cells[0].data}")


def _network(cell: Cell) -> str:
    if cell.model == mitigation_quantizers.MODEL:
        return f"{cell.model}, weights only"
    return f"{cell.model}, the accelerator's format"


def findings(cells: list[Cell], found: Found) -> list[Finding]:
    """Return what clipping saves at two rates, and whether a network survives 20 %."""
    mine = [cell for cell in cells if cell.model == MODEL]
    colour = [[cell for cell in cells if cell.model == model] for model in (GIVEN, COLOUR_MODEL)]
    grey = [cell for cell in cells if cell.rates == RATES]
    at_1 = [
        _clipping(some, found, 0.01, "RandBET, CIFAR-10: from 27.73 to 1.74")
        for some in (mine, *colour)
        if some
    ]
    return [
        *at_1,
        _clipping(mine, found, 0.05, "RandBET, MNIST: from 85.98 to 0.21, and 0.38 at 1 % before"),
        _survival(grey, found),
    ]


def _clipping(cells: list[Cell], found: Found, rate: float, paper: str) -> Finding:
    plain, *clipped = (
        next(c for c in cells if (c.method, c.bits) == (method, 8))
        for method in ("qat", "clip:0.1", "clip:0.05")
    )
    expected = (
        f"{plain.model}: clipping to 0.05 or 0.1 brings RErr at {percent(rate)} from over "
        f"{_TENS:g} points above the clean error to within {_WITHIN:g} ({paper})"
    )
    there = [cell for cell in clipped if cell in found]
    if plain not in found or not there:
        return Finding(expected=expected, found="", met=None)
    excess = {cell.row: _excess(found[cell], rate) for cell in (plain, *there)}
    said = ", ".join(f"{row} {value:+.2f}" for row, value in excess.items())
    met = excess[plain.row] > _TENS and min(excess[cell.row] for cell in there) <= _WITHIN
    return Finding(expected=expected, found=f"points above clean: {said}", met=met)


def _survival(cells: list[Cell], found: Found) -> Finding:
    expected = "an MNIST network survives 20 % with an RErr under 1 % (RandBET: 0.94 %)"
    there = {cell: robust_error(found[cell], max(RATES)) for cell in cells if cell in found}
    if not there:
        return Finding(expected=expected, found="", met=None)
    best = min(there, key=lambda cell: there[cell])
    text = f"best: {there[best]:.2f} % ({best.model}, {best.row}, {best.bits} bits)"
    return Finding(expected=expected, found=text, met=there[best] < 1)


def _excess(one: Mapping[str, Any], rate: float) -> float:
    return robust_error(one, rate) - (100.0 - float(one["clean"]))
