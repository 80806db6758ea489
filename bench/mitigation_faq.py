# SPDX-License-Identifier: Apache-2.0
"""T5: fault-aware quantization for chips whose stuck cells are known, without any training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from bench.mitigation_cells import GIVEN, Bench, Cell, Effort, Found, chips_of, first
from bench.mitigation_tables import Finding, at_rate, percent
from faultinj.chip_campaign import spread
from quant import engine
from quant.chip_training import chip_step, introduced
from quant.data import DataSet, to_input
from quant.export import unrounded_weights
from quant.faq import FaultAwareTable, fault_aware_codes
from quant.fault_map import FaultMap
from quant.fine_tuning import BATCH
from quant.models import ModelSpec, build_model, load_weights
from quant.quantize import QuantizedModel, quantize
from quant.training import train_float
from quant.weight_memory import WeightMapping, faults_of_weights, logits_of, weight_codes
from trilat.figures import LOG_AXIS, SERIES, SYMBOLS, Figure, bars
from trilat.files import content_hash, replacing

RATES = (0.01, 0.02, 0.04, 0.1)
# Bits of a weight, and whether a layer's share one scale, which holds the largest of them.
PER_LAYER = (("weight_scale", "layer"),)
ROWS = (
    (8, "FAQ", ()),
    (4, "FAQ", ()),
    (8, "FAQ, a scale per layer", PER_LAYER),
)
# Points that FAQ gains on CIFAR-10 at 4 % faulty cells, from the abstract of Hanif and Shafique
# (IJCNN 2023); word width and number format were not seen.
PAPER_RATE, PAPER_GAIN = 0.04, {"vgg11": 70.47, "resnet18": 76.38}
# Per chip and rate an image takes VGG11 6 ms of a core, narrow networks 1 ms, LeNet-5 0.1 ms.
IMAGES = {GIVEN: 200, "vgg11:0.25": 500, "resnet18:0.125": 500}
NARROW_EPOCHS = 3
CONVERSION = 0.01  # of an epoch, at most; the paper's is 0.05
POINTS = (-100.0, 100.0)  # that one accuracy can be above another
_ABOUT = 10.0  # points by which a gain may fall short of the paper's
_REPEATS = 3


def networks(effort: Effort) -> list[tuple[str, str, int | None, int, bool]]:
    """Return model, data, epochs of its float training, test images and whether it is heavy."""
    sets = [("lenet5", effort.grey, effort.epochs, False)]
    if effort.colour is not None:
        narrow = effort.epochs or NARROW_EPOCHS
        sets += [
            (GIVEN, effort.colour, None, False),
            ("vgg11:0.25", effort.colour, narrow, False),
            ("resnet18:0.125", effort.colour, narrow, False),
            ("resnet18", effort.colour, None, True),
            ("resnet32", effort.colour, None, True),
        ]
    return [
        (model, data, epochs, min(effort.images, IMAGES.get(model, effort.images)), heavy)
        for model, data, epochs, heavy in sets
    ]


def cells(effort: Effort) -> list[Cell]:
    """Return the rows: every network at two widths, and with one weight scale per layer."""
    return [
        Cell(
            table="T5",
            row=row,
            model=model,
            data=data,
            method="ptq",
            bits=bits,
            rates=RATES,
            kind="stuck",
            on_chip="faq",
            extra=extra,
            epochs=epochs,
            chips=effort.chips,
            images=images,
            seed=effort.seed,
            heavy=heavy,
        )
        for model, data, epochs, images, heavy in networks(effort)
        for bits, row, extra in ROWS
        if bits in effort.widths
    ]


def calibrated(cell: Cell, bench: Bench) -> tuple[QuantizedModel, DataSet]:
    """Return a cell's network, quantized without training, and its data.

    Raises:
        MissingError: VGG11 at full width is not there.
    """
    spec, data = _float_network(cell, bench), bench.data_of(cell.model, cell.data)
    result = quantize(
        spec,
        data,
        weight_bits=cell.bits,
        act_bits=8,
        method="ptq",
        seed=cell.seed,
        weight_scale="layer" if cell.extra == PER_LAYER else "channel",
        progress=bench.progress,
    )
    return result, data


def _float_network(cell: Cell, bench: Bench) -> ModelSpec:
    """Return a cell's float network, which is trained once."""
    if cell.epochs is None:
        return bench.float_network(cell.model, cell.data)
    data = bench.data(cell.data)
    spec = build_model(
        cell.model, num_classes=data.num_classes, data_shape=data.shape, seed=cell.seed
    )
    depends = [spec.identity, data.fingerprint, cell.epochs, cell.seed, version("torch")]
    path = bench.folder / "networks" / f"{content_hash(depends)}.safetensors"
    if not path.is_file():
        train_float(spec, data, seed=cell.seed, epochs=cell.epochs, progress=bench.progress)
        with replacing(path) as temporary:
            save_file(spec.module.state_dict(), temporary)
    load_weights(spec.module, path)
    return spec


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Measure the same chips with plain and with fault-aware codes, and what conversion takes."""
    result, data = calibrated(cell, bench)
    network, split = result.network, first(data.test, cell.images)
    images = engine.image_codes(
        network, to_input(split.images, network.input_shape, data.mean, data.std)
    )
    labels = torch.from_numpy(split.labels)
    plain, unrounded = weight_codes(network), unrounded_weights(result.module)

    def right(weights: np.ndarray) -> Tensor:
        return engine.top1(logits_of(network, images, weights)) == labels

    chips, clean = chips_of(cell, len(plain)), right(plain)
    table = FaultAwareTable(cell.bits)
    found: list[dict[str, list[float]]] = [
        {name: [] for name in ("plain", "robust", "faq", "faq_robust")} for _ in cell.rates
    ]
    with bench.progress.task("chips", len(chips) * len(cell.rates)) as advance:
        for chip in chips:
            for rate, row in zip(cell.rates, found, strict=True):
                faults = faults_of_weights(
                    chip.at(rate), weights=len(plain), bits=cell.bits, mapping=WeightMapping()
                )
                aware = fault_aware_codes(plain, faults, unrounded=unrounded, table=table)
                for name, codes in (("plain", plain), ("faq", aware)):
                    answers = right(faults.read(codes))
                    both = "robust" if name == "plain" else "faq_robust"
                    row[name].append(_percent(answers))
                    row[both].append(_percent(answers & clean))
                advance(1)
    rates = []
    for rate, row in zip(cell.rates, found, strict=True):
        gains = [faq - without for faq, without in zip(row["faq"], row["plain"], strict=True)]
        spreads = {name: asdict(spread(values, cell.seed)) for name, values in row.items()}
        gain = asdict(spread(gains, cell.seed, within=POINTS))
        rates.append({"rate": rate, **spreads, "gain": gain})
    return {"clean": _percent(clean), "rates": rates, **_costs(result, data, chips[0], cell)}


def _costs(
    result: QuantizedModel, data: DataSet, chip: FaultMap, cell: Cell
) -> dict[str, float | list[float]]:
    """Return processor seconds of converting all weights per rate, and of an epoch."""
    plain, unrounded = weight_codes(result.network), unrounded_weights(result.module)
    conversions = []
    for rate in cell.rates:

        def convert(rate: float = rate) -> None:
            faults = faults_of_weights(
                chip.at(rate), weights=len(plain), bits=cell.bits, mapping=WeightMapping()
            )
            fault_aware_codes(plain, faults, unrounded=unrounded, table=FaultAwareTable(cell.bits))

        conversions.append(_seconds(convert))
    model = result.module.train()
    step = chip_step(introduced(model, chip, WeightMapping(), steps=0, seed=0))
    pixels = to_input(data.train.images[:BATCH], result.network.input_shape, data.mean, data.std)
    labels = torch.from_numpy(data.train.labels[:BATCH])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)  # every step alike

    def one_step() -> None:
        optimizer.zero_grad()
        step(model, pixels, labels)
        optimizer.step()

    one_step()  # faults are laid out in the first
    steps = -(-len(data.train) // BATCH)
    return {"conversion_seconds": conversions, "epoch_seconds": steps * _seconds(one_step)}


def _seconds(action: Callable[[], None]) -> float:
    taken = []
    for _ in range(_REPEATS):
        start = time.process_time()
        action()
        taken.append(time.process_time() - start)
    return median(taken)


def _percent(answers: Tensor) -> float:
    return 100.0 * float(answers.double().mean())


def table(cells: list[Cell], found: Found) -> Table:
    """Return accuracy with and without FAQ per width and rate."""
    cell = cells[0]
    paper = PAPER_GAIN.get(cell.model.partition(":")[0]) if cell.data == "cifar10" else None
    result = Table(
        title=f"T5: FAQ without training, {cell.model} on {cell.data}, accuracy in %",
        caption=f"mean over {cell.chips} chips of stuck cells, {cell.images} test images, 95 % "
        "interval over chips; gain: paired by chip; RErr: wrong clean or faulty; conversion: "
        "processor time for all weights of a chip, over that of a retraining epoch; paper: gain "
        "on CIFAR-10, from the abstract",
    )
    headings = (
        *("bits", "stuck cells", "clean", "plain", "FAQ", "gain", "paper"),
        *("RErr plain", "RErr FAQ", "conversion", "of an epoch"),
    )
    for heading in headings:
        result.add_column(heading, justify="right")
    for cell in cells:
        one = found.get(cell)
        for k, rate in enumerate(cell.rates):
            start = [_width(cell), percent(rate)]
            if one is None:
                result.add_row(*start, *["-"] * (len(headings) - 2))
                continue
            row, seconds = one["rates"][k], one["conversion_seconds"][k]
            result.add_row(
                *start,
                f"{one['clean']:.1f}",
                *(with_interval(row[name]) for name in ("plain", "faq", "gain")),
                f"{paper:g}" if paper and rate == PAPER_RATE else "",
                f"{100 - row['robust']['mean']:.1f}",
                f"{100 - row['faq_robust']['mean']:.1f}",
                f"{1000 * seconds:.3g} ms",
                f"{100 * seconds / one['epoch_seconds']:.2g} %",
            )
    return result


def _width(cell: Cell) -> str:
    return f"{cell.bits}, scale per layer" if cell.extra == PER_LAYER else str(cell.bits)


def with_interval(values: dict[str, float]) -> str:
    """Return a mean with its 95 % interval."""
    return f"{values['mean']:.1f} ({values['ci_low']:.1f} .. {values['ci_high']:.1f})"


def figure(cells: list[Cell], found: Found) -> Figure:
    """Return accuracy against the rate of stuck cells, with and without FAQ."""
    data = []
    for number, cell in enumerate(cell for cell in cells if cell in found):
        rows = found[cell]["rates"]
        for name, label, dash in (("plain", "plain", "dot"), ("faq", "FAQ", "solid")):
            means = [row[name]["mean"] for row in rows]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"{label}, bits: {_width(cell)}",
                    "x": [100 * row["rate"] for row in rows],
                    "y": means,
                    "error_y": bars(
                        means,
                        [row[name]["ci_low"] for row in rows],
                        [row[name]["ci_high"] for row in rows],
                    ),
                    "marker": {"symbol": SYMBOLS[number % len(SYMBOLS)]},
                    "line": {"color": SERIES[number % len(SERIES)], "dash": dash},
                }
            )
    layout = {
        "title": {"text": f"T5: FAQ, {cells[0].model} on {cells[0].data}"},
        "xaxis": {**LOG_AXIS, "title": {"text": "stuck cells (%)"}},
        "yaxis": {"title": {"text": "accuracy (%)"}, "rangemode": "tozero"},
    }
    return {"data": data, "layout": layout}


def findings(cells: list[Cell], found: Found) -> list[Finding]:
    """Return what FAQ gains at the paper's rate, and what its conversion takes of an epoch."""
    gains = []
    for name, gain in PAPER_GAIN.items():
        for scale, extra in (("channel", ()), ("layer", PER_LAYER)):
            of_name = [c for c in cells if c.model.partition(":")[0] == name and c.extra == extra]
            there = [c for c in of_name if c.bits == 8 and c in found]
            points = {c.model: at_rate(found[c], PAPER_RATE)["gain"]["mean"] for c in there}
            gains.append(
                Finding(
                    expected=f"FAQ gains {gain:g} points, or at most {_ABOUT:g} fewer, on {name} "
                    f"at {percent(PAPER_RATE)} stuck cells (abstract of the FAQ paper), with a "
                    f"weight scale per {scale}",
                    found=", ".join(f"{model}: {value:+.1f}" for model, value in points.items()),
                    met=max(points.values()) >= gain - _ABOUT if points else None,
                )
            )
    shares = [
        100 * max(found[c]["conversion_seconds"]) / found[c]["epoch_seconds"]
        for c in cells
        if c in found
    ]
    conversion = Finding(
        expected=f"conversion for a chip takes under {100 * CONVERSION:g} % of a retraining epoch "
        "(the paper: under 5 %)",
        found=f"at most {max(shares):.2g} %, over {len(shares)} cells" if shares else "",
        met=max(shares) < 100 * CONVERSION if shares else None,
    )
    return [*gains, conversion]
