# SPDX-License-Identifier: Apache-2.0
"""T4: retraining for one chip's fault map, or once for the merged maps of a group (TRE-Map).

Every group starts from the network as post-training calibration leaves it and is retrained until
the mean accuracy of its chips, faults all in, is within `LOSS` points of the network without
faults, on validation images every `EVERY` steps. Epochs are counted in parts. The chips of a group
size are the same ones at every size, grouped by the similarity of their maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from rich.table import Table

from bench.mitigation_cells import Bench, Cell, Effort, Found, chips_of, first
from bench.mitigation_faq import POINTS, calibrated, networks, with_interval
from bench.mitigation_tables import Finding, percent
from faultinj.chip_campaign import spread
from quant import engine
from quant.chip_training import group_accuracy
from quant.data import to_input
from quant.export import to_network
from quant.fine_tuning import BATCH
from quant.group_retraining import retrain_until, speed_up
from quant.map_groups import group_chips
from quant.method_names import POLICIES
from quant.quantize import network_accuracy
from quant.weight_memory import WeightMapping, weight_codes
from trilat.figures import SERIES, SYMBOLS, Figure, bars

GROUPS = (1, 2, 5, 8)
RATES = (1e-3, 6e-3, 0.01)
ALONE_RATE = 0.1  # at which retraining with and without FAQ is compared, chip by chip
PAPER_RATE, PAPER_GROUP, SAVED, DROP = 6e-3, 5, 1.4, 0.6
POLICY = POLICIES[0]
LOSS = 1.0  # points of accuracy that retraining may leave
EVERY = 10  # steps of training between measurements
INTRODUCTION = 20  # steps over which faults come in
LIMIT = 0.2  # epochs at most
_EPOCHS = (0.0, LIMIT)
# VGG11 takes 0.3 s of a core a step, a quarter of it 0.05, LeNet-5 0.02.
LARGE_CHIPS = 8
VALIDATION = {"lenet5": 1000, "vgg11": 250}  # images; others 500
_RESAMPLES = 10_000


def cells(effort: Effort) -> list[Cell]:
    """Return the rows: every network, rate and group size, without FAQ inside and with it."""
    rows = []
    for model, data, epochs, images, heavy in networks(effort):
        large = model == "vgg11"
        extra = {
            "loss": LOSS,
            "every": EVERY,
            "introduction": INTRODUCTION,
            "limit": LIMIT,
            "policy": POLICY,
            "validation": VALIDATION.get(model, 500),
        }
        common = Cell(
            table="T4",
            row="",
            model=model,
            data=data,
            method="ptq",
            bits=8,
            rates=(),
            kind="stuck",
            extra=tuple(extra.items()),
            epochs=epochs,
            chips=min(effort.chips, LARGE_CHIPS) if large else effort.chips,
            images=images,
            seed=effort.seed,
            heavy=heavy,
        )
        for on_chip in ("retrain", "retrain+faq"):
            sizes = [(rate, group) for rate in RATES for group in GROUPS if group <= common.chips]
            rows += [
                replace(
                    common,
                    row=_row(on_chip, rate, group),
                    rates=(rate,),
                    on_chip=on_chip,
                    group=group,
                )
                for rate, group in [*sizes, (ALONE_RATE, 1)]
            ]
    return rows


def _row(on_chip: str, rate: float, group: int) -> str:
    return f"{on_chip}, {percent(rate)}, {group} merged"


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Retrain every group of a cell's chips; epochs, and test accuracy on each chip."""
    result, data = calibrated(cell, bench)
    settings, shape = dict(cell.extra), result.network.input_shape
    validation = first(data.val, settings["validation"])
    target = network_accuracy(result.network, data, validation) - settings["loss"]
    per_epoch = -(-len(data.train) // BATCH)
    split = first(data.test, cell.images)
    pixels = to_input(split.images, shape, data.mean, data.std)
    labels = torch.from_numpy(split.labels)
    chips = chips_of(cell, len(weight_codes(result.network)))
    groups = [g for g in group_chips(chips, cell.group) if len(g) == cell.group]
    found: list[dict[str, Any]] = []
    for group in groups:
        maps = [chips[chip] for chip in group]
        faq = cell.on_chip == "retrain+faq"
        trained = retrain_until(
            result.module,
            data,
            shape,
            maps,
            target=target,
            epochs=settings["limit"],
            every=settings["every"],
            seed=cell.seed,
            policy=settings["policy"],
            faq=faq,
            introduction=settings["introduction"] / per_epoch,
            images=len(validation),
            progress=bench.progress,
        )
        network = to_network(trained.model, name=cell.model, input_shape=shape, metadata={})
        tested = group_accuracy(
            trained.model,
            network,
            engine.image_codes(network, pixels),
            labels,
            maps,
            mapping=WeightMapping(),
            policy=settings["policy"],
            faq=faq,
        )
        found.append(
            {
                "chips": list(group),
                "epochs": trained.epochs,
                "reached": trained.reached,
                "accuracy": list(tested.chips),
            }
        )
    clean = network_accuracy(result.network, data, split)
    accuracy = asdict(spread([a for group in found for a in group["accuracy"]], cell.seed))
    return {"clean": clean, "target": target, "groups": found, "accuracy": accuracy}


def table(cells: list[Cell], found: Found) -> Table:
    """Return epochs, speed-up over chips alone, and accuracy, per rate and group size."""
    cell = cells[0]
    result = Table(
        title=f"T4: retraining for known chips, {cell.model} on {cell.data}, "
        f"{percent(cell.rates[0])} of the cells stuck",
        caption=f"8 bits, {cell.chips} chips of stuck cells (a last group that is not full is left "
        f"out), {cell.images} test images; epochs of a group until its mean validation accuracy is "
        f"within {LOSS:g} point of the network without faults, 95 % interval over groups; "
        "speed-up: epochs of its chips alone over those of the group, both summed over groups, at "
        "equal accuracy where all have reached it; "
        f"accuracy in %, 95 % interval over chips; a cell on which chips disagree: {POLICY}",
    )
    headings = (
        *("FAQ", "merged", "reached", "epochs", "speed-up"),
        *("clean", "mean", "worst", "against alone"),
    )
    for heading in headings:
        result.add_column(heading, justify="right")
    for cell in cells:
        start = [
            "inside" if cell.on_chip == "retrain+faq" else "no",
            str(cell.group),
        ]
        one = found.get(cell)
        if one is None:
            result.add_row(*start, *["-"] * (len(headings) - len(start)))
            continue
        groups = one["groups"]
        epochs = asdict(spread([group["epochs"] for group in groups], cell.seed, within=_EPOCHS))
        result.add_row(
            *start,
            f"{sum(group['reached'] for group in groups)} of {len(groups)}",
            f"{epochs['mean']:.3f} ({epochs['ci_low']:.3f} .. {epochs['ci_high']:.3f})",
            *against_alone(cell, found),
        )
    return result


def against_alone(cell: Cell, found: Found) -> list[str]:
    """Return speed-up, clean, mean and worst accuracy, and the difference to chips alone."""
    one = found[cell]
    accuracy = one["accuracy"]
    texts = [f"{one['clean']:.1f}", with_interval(accuracy), f"{accuracy['min']:.1f}"]
    paired = _paired(cell, found)
    if cell.group == 1 or paired is None:
        return ["", *texts, ""]
    alone, groups, gains = paired
    ratio = _speed_up(alone, groups, cell.seed)
    return [ratio, *texts, with_interval(asdict(spread(gains, cell.seed, within=POINTS)))]


def _paired(cell: Cell, found: Found) -> tuple[list[float], list[float], list[float]] | None:
    """Return a cell beside its chips alone, where these are there.

    Returns:
        Epochs of each group's chips alone, summed; epochs of each group; points of accuracy that
        each chip gains in its group.
    """
    single = found.get(replace(cell, group=1, row=_row(cell.on_chip, cell.rates[0], 1)))
    if single is None:
        return None
    alone = {group["chips"][0]: group for group in single["groups"]}
    groups = found[cell]["groups"]
    gains = [
        there - alone[chip]["accuracy"][0]
        for group in groups
        for chip, there in zip(group["chips"], group["accuracy"], strict=True)
    ]
    sums = [sum(alone[chip]["epochs"] for chip in group["chips"]) for group in groups]
    return sums, [group["epochs"] for group in groups], gains


def _speed_up(alone: Sequence[float], groups: Sequence[float], seed: int) -> str:
    """Return the ratio of two sums over groups with its bootstrap interval over groups."""
    if not sum(alone):
        return "none needed alone"
    text = f"{speed_up(alone, sum(groups)):.2f}"
    if len(groups) < 3:
        return text
    drawn = np.random.default_rng(seed).integers(len(groups), size=(_RESAMPLES, len(groups)))
    spent = np.asarray(groups)[drawn].sum(1)
    ratios = np.divide(np.asarray(alone)[drawn].sum(1), spent, where=spent > 0, out=spent + np.inf)
    # Of the ratios themselves: between two infinite ones nothing can be interpolated.
    low, high = np.quantile(ratios, (0.025, 0.975), method="inverted_cdf")
    return f"{text} ({low:.2f} .. {high:.2f})"


def findings(cells: list[Cell], found: Found) -> list[Finding]:
    """Return what merging saves at the paper's rate and group size, without and with FAQ inside."""
    told = []
    for on_chip, inside in (("retrain", "without FAQ"), ("retrain+faq", "with FAQ inside")):
        met, said = [], []
        for cell in cells:
            if (cell.on_chip, cell.rates[0], cell.group) != (on_chip, PAPER_RATE, PAPER_GROUP):
                continue
            paired = _paired(cell, found) if cell in found else None
            if paired is None:
                continue
            alone, groups, gains = paired
            drop = -float(np.mean(gains))
            reached = all(group["reached"] for group in found[cell]["groups"])
            said.append(
                f"{cell.model}: {_speed_up(alone, groups, cell.seed)} at {drop:.2f} points"
                + ("" if reached else ", target not reached by every group")
            )
            saved = speed_up(alone, sum(groups)) if sum(alone) else 0.0
            met.append(saved >= SAVED and drop < DROP and reached)
        told.append(
            Finding(
                expected=f"merging {PAPER_GROUP} maps at {percent(PAPER_RATE)} saves at least "
                f"{SAVED:g}x retraining at under {DROP:g} points (abstract of TRE-Map: 2x on "
                f"ResNet-32), {inside}",
                found="; ".join(said),
                met=any(met) if met else None,
            )
        )
    return told


def figure(cells: list[Cell], found: Found) -> Figure:
    """Return the epochs per chip against the group size, a line per rate, with and without FAQ."""
    lines: dict[tuple[str, float], list[Cell]] = {}
    for cell in cells:
        if cell in found:
            lines.setdefault((cell.on_chip, cell.rates[0]), []).append(cell)
    data = []
    for number, ((on_chip, rate), row) in enumerate(lines.items()):
        spreads = [
            spread(
                [group["epochs"] / cell.group for group in found[cell]["groups"]],
                cell.seed,
                within=(0.0, LIMIT / cell.group),
            )
            for cell in row
        ]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"{on_chip}, {percent(rate)}",
                "x": [cell.group for cell in row],
                "y": [s.mean for s in spreads],
                "error_y": bars(
                    [s.mean for s in spreads],
                    [s.ci_low for s in spreads],
                    [s.ci_high for s in spreads],
                ),
                "marker": {"symbol": SYMBOLS[number % len(SYMBOLS)]},
                "line": {"color": SERIES[number % len(SERIES)]},
            }
        )
    layout = {
        "title": {"text": f"T4: retraining, {cells[0].model} on {cells[0].data}"},
        "xaxis": {"title": {"text": "chips merged"}},
        "yaxis": {"title": {"text": "epochs per chip"}, "rangemode": "tozero"},
    }
    return {"data": data, "layout": layout}
