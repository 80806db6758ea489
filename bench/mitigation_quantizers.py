# SPDX-License-Identifier: Apache-2.0
"""T1: the quantizers of the RandBET paper, weights only, on a CNN with group norms."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from rich.table import Table

from bench.mitigation_cells import (
    Bench,
    Cell,
    Effort,
    Found,
    chips_of,
    first,
)
from bench.mitigation_tables import Finding, errors, lines, percent, robust_error
from faultinj.chip_campaign import spread
from quant.data import DataSet, Split
from quant.fault_map import FaultMap
from quant.method_names import parse_method
from quant.models import seeded
from quant.rquant import SCHEMES, NormCnn, Scheme, quantized, right_answers, train
from quant.weight_memory import WeightMapping, faults_of_weights
from trilat.figures import Figure

MODEL = "norm-cnn"
EPOCHS = 5
RATES = (1e-3, 5e-3, 0.01, 0.05)
_IMAGES = 9000  # as in the paper's code, unless another number is asked for
# Points of RErr at 1 % that say that a quantizer fails there, or that it does not.
_LOST, _KEPT = 20.0, 10.0
# Name in `Cell.method` of each scheme, to which clipping and bit errors are joined by +.
METHODS = dict(zip(("normal", "asymmetric", "unsigned", "rquant"), SCHEMES, strict=True))
# RErr in %, CIFAR-10, SimpleNet, at p = 0.1, 0.5 and 1 %, as printed in the RandBET paper.
PAPER = {
    ("normal", 8): (6.37, 24.76, 72.65),
    ("asymmetric", 8): (7.85, 40.78, 76.72),
    ("unsigned", 8): (7.49, 17.00, 54.57),
    ("rquant", 8): (5.54, 11.28, 32.05),
    ("unsigned+clip:0.1", 4): (90.39, 90.36, 90.36),
    ("rquant+clip:0.1", 4): (5.99, 7.71, 10.62),
}


def cells(effort: Effort) -> list[Cell]:
    """Return the rows: four schemes at 8 bits, truncation against rounding at 4."""
    rows = [(name, label, 8) for name, label in METHODS.items()]
    rows += [
        ("unsigned+clip:0.1", "+unsigned, clip 0.1: truncation", 4),
        ("rquant+clip:0.1", "+rounding (RQuant), clip 0.1", 4),
    ]
    images = _IMAGES if effort.images == Effort.images else effort.images
    return [
        Cell(
            table="T1",
            row=label,
            model=MODEL,
            data=effort.grey,
            method=method,
            bits=bits,
            rates=RATES,
            epochs=effort.epochs or EPOCHS,
            chips=effort.chips,
            images=images,
            seed=effort.seed,
        )
        for method, label, bits in rows
    ]


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Train and measure a cell; JSON-able: clean, and plain and robust accuracy per rate."""
    data = bench.data(cell.data)
    name, _, rest = cell.method.partition("+")
    scheme, training = SCHEMES[METHODS[name]], parse_method(rest or "qat")
    with seeded(cell.seed):
        module = NormCnn(data.shape[0], data.num_classes)
    train(
        module,
        data,
        data.shape,
        scheme=scheme,
        bits=cell.bits,
        epochs=cell.epochs or EPOCHS,
        seed=cell.seed,
        wmax=training.wmax,
        bit_errors=training.bit_errors,
        progress=bench.progress,
    )
    split = first(data.test, cell.images)
    weights = sum(p.numel() for p in module.parameters())
    clean = _answers(module, data, split, scheme, cell.bits, None)
    kept: list[list[np.ndarray]] = [[] for _ in cell.rates]
    with bench.progress.task("chips", cell.chips) as advance:
        for chip in chips_of(cell, weights):
            for k, rate in enumerate(cell.rates):
                kept[k].append(_answers(module, data, split, scheme, cell.bits, chip.at(rate)))
            advance(1)
    rates = []
    for rate, answers in zip(cell.rates, kept, strict=True):
        plain = [100 * float(a.mean()) for a in answers]
        robust = [100 * float((a & clean).mean()) for a in answers]
        rates.append(
            {
                "rate": rate,
                "plain": asdict(spread(plain, cell.seed)),
                "robust": asdict(spread(robust, cell.seed)),
            }
        )
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


def table(cells: list[Cell], found: Found) -> Table:
    """Return errors per rate, beside the paper's."""
    result = Table(
        title=f"T1: quantizers of weights alone, error in % on {cells[0].data}",
        caption="plain error / RErr (wrong clean or faulty), mean over "
        f"{cells[0].chips} chips of bit flips, 95 % interval of RErr; paper: RErr on CIFAR-10 at "
        "0.1, 0.5 and 1 %",
    )
    headings = ("bits", "clean", *(percent(rate) for rate in cells[0].rates), "paper")
    result.add_column("quantizer")
    for heading in headings:
        result.add_column(heading, justify="right")
    for cell in cells:
        paper = PAPER.get((cell.method, cell.bits))
        text = " ".join(f"{value:g}" for value in paper) if paper else "-"
        result.add_row(cell.row, str(cell.bits), *errors(cell, found.get(cell)), text)
    return result


def figure(cells: list[Cell], found: Found) -> Figure:
    """Return RErr against the rate."""
    return lines(cells, found, title="T1: quantizers of weights alone")


def findings(cells: list[Cell], found: Found) -> list[Finding]:
    """Return whether rounding alone rescues 4 bits."""
    cut, rounded = (
        next(c for c in cells if (c.method, c.bits) == (method, 4))
        for method in ("unsigned+clip:0.1", "rquant+clip:0.1")
    )
    expected = (
        f"rounding alone rescues 4 bits: at 1 % truncation has an RErr above {_LOST:g} %, "
        f"rounding one below {_KEPT:g} % (RandBET, CIFAR-10: 90.36 and 10.62 %)"
    )
    if cut not in found or rounded not in found:
        return [Finding(expected=expected, found="", met=None)]
    values = [robust_error(found[cell], 0.01) for cell in (cut, rounded)]
    text = f"truncation {values[0]:.2f} %, rounding {values[1]:.2f} %"
    met = values[0] > _LOST and values[1] < _KEPT
    return [Finding(expected=expected, found=text, met=met)]
