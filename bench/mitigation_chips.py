# SPDX-License-Identifier: Apache-2.0
"""T3: all methods on the same chips, their maps unknown or known, and what each costs.

Unknown maps are of bit flips or of stuck cells; known ones of stuck cells alone, since a cell that
is known to flip is undone by storing the inverse. One row retrains for the flips of one chip
nonetheless, as the RandBET paper did to show that such training does not transfer.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from bench.mitigation_cells import (
    Bench,
    Cell,
    Effort,
    Found,
    Trained,
    chips_of,
    codes_and_labels,
    over_chips,
)
from bench.mitigation_methods import MODEL, RANDBET, epochs_of
from bench.mitigation_tables import Finding, at_rate, errors, lines, percent, robust_error
from faultinj.chip_campaign import spread
from quant import engine
from quant.brevitas_model import BrevitasModel
from quant.chip_training import chip_step, introduced, model_faults
from quant.data import DataSet
from quant.export import to_network, unrounded_weights
from quant.faq import FaultAwareTable, fault_aware_codes
from quant.fault_map import FaultMap
from quant.fine_tuning import BATCH, LARGEST_SHARE, fine_tune
from quant.map_groups import group_chips, merge_maps
from quant.method_names import parse_method
from quant.network import IntegerNetwork
from quant.weight_memory import WeightMapping, faults_of_weights, logits_of, weight_codes
from trilat.figures import Figure

RATES = (0.01, 0.05, 0.1, 0.2)
FIXED_RATES = (0.005, 0.01, 0.02, 0.05)  # plain training fails at the last, as in the paper
BITS = 8
CLIP = "clip:0.1"
GROUP = 5  # chips of a TRE-Map group
RETRAINING_IMAGES, FIXED_IMAGES = 3200, 6400  # of each retraining, one pass
_SHARE = LARGEST_SHARE / 2
_MAPPING = WeightMapping()
# How `Cell.on_chip` is read in a table.
ON_CHIP = {
    "": "",
    "faq": " + FAQ",
    "retrain": ", retrained per chip",
    "retrain+faq": ", retrained per chip, FAQ inside",
    "fixed": f", retrained for the flips of one chip at {percent(FIXED_RATES[-1])}",
}


def cells(effort: Effort) -> list[Cell]:
    """Return the rows: unknown chips under flips, under stuck cells, then known chips."""
    unknown = ("qat", CLIP, "saq:0.3", f"{CLIP}+saq:0.3", RANDBET)
    rows = [(method, kind, "", 1) for kind in ("flip", "stuck") for method in unknown]
    rows += [(method, "stuck", "faq", 1) for method in unknown]
    rows += [
        ("qat", "stuck", "retrain", 1),
        ("qat", "stuck", "retrain+faq", 1),
        (CLIP, "stuck", "retrain+faq", 1),
        ("qat", "stuck", "retrain+faq", GROUP),
        ("qat", "flip", "fixed", 1),
    ]
    return [
        Cell(
            table="T3",
            row=method + ON_CHIP[on_chip].replace("per chip", _shared(group)),
            model=MODEL,
            data=effort.grey,
            method=method,
            bits=BITS,
            rates=FIXED_RATES if on_chip == "fixed" else RATES,
            kind=kind,
            on_chip=on_chip,
            group=group,
            extra=_extra(on_chip),
            epochs=effort.epochs or epochs_of(method),
            chips=effort.chips,
            images=effort.images,
            seed=effort.seed,
        )
        for method, kind, on_chip, group in rows
    ]


def _extra(on_chip: str) -> tuple[tuple[str, int], ...]:
    if on_chip in ("", "faq"):
        return ()
    return (("images", FIXED_IMAGES if on_chip == "fixed" else RETRAINING_IMAGES),)


def _shared(group: int) -> str:
    return "per chip" if group == 1 else f"for groups of {group} (TRE-Map)"


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Measure a cell on its chips, with the network that T2 has trained."""
    trained = bench.network(cell.model, cell.data, cell.method, cell.bits, cell.epochs)
    costs: dict[str, Any] = {
        "training_epochs": trained.epochs,
        "training_seconds": trained.seconds,
    }
    if cell.on_chip == "":
        return {**over_chips(cell, bench, trained), **costs}
    if cell.on_chip == "faq":
        found = over_chips(cell, bench, trained, faq=True, unrounded=trained.unrounded)
        return {**found, **costs, "conversion_ms": _conversion_ms(cell, trained)}
    return {**_retrained(cell, bench, trained), **costs}


def _conversion_ms(cell: Cell, trained: Trained) -> float:
    """Return the median processor time of choosing the codes of one chip at the highest rate."""
    written = weight_codes(trained.network)
    times = []
    for chip in chips_of(cell, len(written)):
        start = time.process_time()
        faults = faults_of_weights(chip, weights=len(written), bits=cell.bits, mapping=_MAPPING)
        # With a table of its own: its rows are part of the conversion.
        fault_aware_codes(
            written, faults, unrounded=trained.unrounded, table=FaultAwareTable(cell.bits)
        )
        times.append(time.process_time() - start)
    return 1000 * float(np.median(times))


def _retrained(cell: Cell, bench: Bench, trained: Trained) -> dict[str, Any]:
    """Return accuracy per rate where every group of chips has weights of its own."""
    data, seed = bench.data(cell.data), cell.seed
    spec = bench.float_network(cell.model, cell.data)
    start_model = trained.model(spec)
    codes, labels = codes_and_labels(cell, bench, trained.network)
    truth = torch.from_numpy(labels)
    chips = chips_of(cell, len(weight_codes(trained.network)))
    fixed = cell.on_chip == "fixed"
    trained_rates = (max(cell.rates),) if fixed else cell.rates
    right: dict[str, list[_Right]] = {"own": [], "other": []}
    seconds = []
    with bench.progress.task("retraining", len(trained_rates) * len(chips)) as advance:
        for rate in trained_rates:
            maps = [chip.at(rate) for chip in chips]
            for group in group_chips(maps, cell.group):
                start = time.process_time()
                model = _retrain(
                    cell, start_model, data, spec.input_shape, [maps[k] for k in group]
                )
                seconds.append(time.process_time() - start)
                network = to_network(
                    model, name=cell.model, input_shape=spec.input_shape, metadata={}
                )
                measured = _Measured(network=network, model=model, codes=codes, truth=truth)
                for at in cell.rates if fixed else (rate,):
                    mine = [chips[k].at(at) for k in group]
                    right["own"] += measured.on(mine, at, faq="faq" in cell.on_chip)
                    if fixed:
                        next_chip = chips[(group[0] + 1) % len(chips)]
                        right["other"] += measured.on([next_chip.at(at)], at, faq=False)
                advance(len(group))
    found = {name: _rates(rows, cell.rates, seed) for name, rows in right.items() if rows}
    return {
        **found["own"],
        **({"others": found["other"]} if fixed else {}),
        "chip_epochs": dict(cell.extra)["images"] / len(data.train) / cell.group,
        "chip_seconds": float(np.mean(seconds)) / cell.group,
    }


def _retrain(
    cell: Cell,
    start: BrevitasModel,
    data: DataSet,
    input_shape: tuple[int, int, int],
    maps: Sequence[FaultMap],
) -> BrevitasModel:
    """Return a copy of a model retrained for the merged map of some chips, in one short pass."""
    model = copy.deepcopy(start)
    rng = np.random.default_rng([cell.seed, 3])
    count = min(dict(cell.extra)["images"], len(data.train))
    chosen = rng.permutation(len(data.train))[:count]
    part = replace(data.train, images=data.train.images[chosen], labels=data.train.labels[chosen])
    steps = -(-count // BATCH) // 2
    faults_at = introduced(model, merge_maps(maps), _MAPPING, steps=steps, seed=cell.seed)
    wmax = parse_method(cell.method).wmax
    fine_tune(
        model,
        replace(data, train=part),
        input_shape,
        epochs=1,
        seed=cell.seed,
        share=_SHARE,
        step=chip_step(faults_at, faq="faq" in cell.on_chip),
        wmax=None if wmax is None else lambda done: wmax,
    )
    return model


@dataclass(frozen=True, kw_only=True)
class _Right:
    """Shares of images in percent: right without faults, with them, and both; on one chip."""

    rate: float
    clean: float
    plain: float
    robust: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Measured:
    """A retrained network and the images that it is measured on."""

    network: IntegerNetwork
    model: BrevitasModel
    codes: Tensor
    truth: Tensor

    def on(self, maps: Sequence[FaultMap], rate: float, *, faq: bool) -> list[_Right]:
        """Return what is right on each chip; with `faq`, codes are chosen for the merged map."""
        plain = weight_codes(self.network)
        written = plain
        if faq:
            merged = model_faults(self.model, merge_maps(maps), _MAPPING)
            written = fault_aware_codes(plain, merged, unrounded=unrounded_weights(self.model))
        clean = self._right(plain)
        found = []
        for fault_map in maps:
            faulty = self._right(model_faults(self.model, fault_map, _MAPPING).read(written))
            shares = [100 * float(x.double().mean()) for x in (clean, faulty, clean & faulty)]
            found.append(_Right(rate=rate, clean=shares[0], plain=shares[1], robust=shares[2]))
        return found

    def _right(self, weights: np.ndarray) -> Tensor:
        return engine.top1(logits_of(self.network, self.codes, weights)) == self.truth


def _rates(rows: Sequence[_Right], rates: Sequence[float], seed: int) -> dict[str, Any]:
    """Return the form of `bench.mitigation_cells.as_rates`; clean is a mean over all networks."""
    result = []
    for rate in rates:
        mine = [row for row in rows if row.rate == rate]
        result.append(
            {
                "rate": rate,
                "plain": asdict(spread([row.plain for row in mine], seed)),
                "robust": asdict(spread([row.robust for row in mine], seed)),
            }
        )
    return {"clean": float(np.mean([row.clean for row in rows])), "rates": result}


def table(cells: list[Cell], found: Found) -> Table:
    """Return errors per rate beside the costs of training and conversion."""
    what = "training on one fixed map" if cells[0].on_chip == "fixed" else "all methods"
    result = Table(
        title=f"T3: {what} on the same {cells[0].chips} chips, error in % on "
        f"{cells[0].data}, {cells[0].model}, {cells[0].bits} bits",
        caption="plain error / RErr (wrong clean or faulty), mean over chips, 95 % interval of "
        "RErr; training: epochs (CPU s) behind the float network; per chip: epochs (CPU s) of "
        "retraining, or ms of choosing the codes",
    )
    result.add_column("method")
    result.add_column("chip")
    for heading in ("clean", *(percent(rate) for rate in cells[0].rates), "training", "per chip"):
        result.add_column(heading, justify="right")
    for cell in cells:
        one = found.get(cell)
        known = "unknown" if cell.on_chip == "" else "known"
        chip = f"{known}, {'flips' if cell.kind == 'flip' else 'stuck'}"
        costs = ["-", "-"]
        if one is not None:
            costs[0] = f"{one['training_epochs']} ({one['training_seconds']:.0f} s)"
            if "conversion_ms" in one:
                costs[1] = f"{one['conversion_ms']:.1f} ms"
            elif "chip_seconds" in one:
                costs[1] = f"{one['chip_epochs']:.2f} ({one['chip_seconds']:.1f} s)"
        result.add_row(cell.row, chip, *errors(cell, one), *costs)
        if one is not None and "others" in one:
            others = errors(cell, {"clean": one["clean"], "rates": one["others"]["rates"]})
            result.add_row("    the same weights on another chip", chip, *others, "", "")
    return result


def figure(cells: list[Cell], found: Found) -> Figure:
    """Return RErr against the rate."""
    return lines(cells, found, title="T3: all methods on the same chips")


def findings(cells: list[Cell], found: Found) -> list[Finding]:
    """Return whether training for one map fails on the same chip at a lower rate."""
    cell = next(cell for cell in cells if cell.on_chip == "fixed")
    high = max(cell.rates)
    expected = (
        f"training on one fixed map (flips at {percent(high)}) fails on that chip's own map at a "
        "lower rate: plain error and RErr are larger there (RandBET, RErr, CIFAR-10: 7.87 % at "
        "2.5 %, 14.14 % at 1 %)"
    )
    if cell not in found:
        return [Finding(expected=expected, found="", met=None)]
    one = found[cell]
    plain = {rate: 100 - at_rate(one, rate)["plain"]["mean"] for rate in cell.rates}
    robust = {rate: robust_error(one, rate) for rate in cell.rates}
    said = ", ".join(f"{plain[r]:.2f} / {robust[r]:.2f} % at {percent(r)}" for r in cell.rates)
    others = robust_error(one["others"], high)
    text = (
        f"own map, plain error / RErr: {said}; without faults {100 - one['clean']:.2f} %; another "
        f"chip at {percent(high)}: {others:.2f} %"
    )
    lower = [rate for rate in cell.rates if rate < high]
    met = all(max(error[rate] for rate in lower) > error[high] for error in (plain, robust))
    return [Finding(expected=expected, found=text, met=met)]
