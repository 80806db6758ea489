# SPDX-License-Identifier: Apache-2.0
"""What `bench.protection` measures: one network under one protection, each result stored."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from dse.bench import STAGE_VERSION
from dse.store import Result, Store
from faultinj.campaign import run_campaign
from faultinj.compare import compare_files
from faultinj.faults import MemoryFault
from faultinj.inputs import PROFILE_IMAGES, image_codes
from faultinj.protection import (
    UNPROTECTED,
    Bounds,
    Protection,
    forward,
    input_limits,
    output_limits,
    profile_bounds,
)
from faultinj.rate import accuracy_under_rate
from faultinj.rows import read_faults
from faultinj.sampling import FaultModel, Plan
from faultinj.stats import wilson
from hdl.config import AcceleratorConfig
from hdl.cost import synthesize
from quant.data import DataSet
from quant.models import build_model, load_weights
from quant.network import Gemm, IntegerNetwork
from quant.quantize import quantize
from quant.training import train_float
from trilat.files import content_hash
from trilat.progress import Progress

SITES = ("activations", "pe_activation")
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A protection: kind, place and granularity of its output bounds."""

    kind: str
    place: str = "both"
    granularity: str = "layer"

    def label(self) -> str:
        """Return it in words."""
        if self.kind == "none":
            return "none"
        per = "" if self.place == "input" else f", per {self.granularity}"
        return f"{self.kind} at {self.place}{per}"


# What is measured for all networks before the next group; the first group tells the most.
GROUPS = (
    (Variant(kind="none"), Variant(kind="clip")),
    (
        Variant(kind="clip", granularity="channel"),
        Variant(kind="zero"),
        Variant(kind="zero", granularity="channel"),
    ),
    # The input check has one pair of bounds per layer, whatever the granularity.
    tuple(
        Variant(kind=kind, place=place, granularity=granularity)
        for kind in ("clip", "zero")
        for place, granularity in (("output", "layer"), ("output", "channel"), ("input", "layer"))
    ),
)
VARIANTS = tuple(variant for group in GROUPS for variant in group)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A quantized network: model, data set, method and one width for weights and activations."""

    model: str
    data: str
    method: str
    bits: int

    def label(self) -> str:
        """Return it in words."""
        return f"{self.model}/{self.data} {self.method} {self.bits} bits"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes:
        faults: experiments per site.
        images: of the test split.
        rates: flips per stored activation bit.
        repetitions: fault maps per rate.
        rows, cols: of the array (weight-stationary).
        float_epochs, epochs: of training and fine-tuning; None for the defaults.
        seed: of all random choices.
    """

    faults: int = 2000
    images: int = 500
    rates: tuple[float, ...] = (1e-3, 1e-2)
    repetitions: int = 8
    rows: int = 16
    cols: int = 16
    float_epochs: int | None = None
    epochs: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """What is measured at rising fault rates, to find where protection gains most.

    Attributes:
        rates: flips per bit of a stored word.
        choosing, reporting: fault maps per image: those at which rate and protection are chosen,
            and others, from which their figures come; so the choice does not flatter them.
        images: of the test split.
        flips: simultaneous flips in psum registers, per inference.
        psum_experiments: inferences with such flips.
        psum_bits: widths at which psum registers are looked at.
    """

    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    choosing: int = 4
    reporting: int = 8
    images: int = 250
    flips: tuple[int, ...] = (1, 32, 256)
    psum_experiments: int = 150
    psum_bits: tuple[int, ...] = (8, 4, 2)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Store, effort and progress of a run.

    Attributes:
        store: of the results.
        effort: how much is measured.
        ladder: what is measured at rising rates.
        progress: where to report.
        until: on `time.monotonic`'s clock, when to stop computing: from then on, what is not stored
            is missing.
    """

    store: Store
    effort: Effort
    ladder: Ladder
    progress: Progress
    until: float


class MissingError(Exception):
    """A result that is not stored, when nothing is to be computed any more."""


def network_of(bench: Bench, case: Case, data: DataSet) -> IntegerNetwork:
    """Return the trained and quantized network of a case; raises MissingError."""
    effort = bench.effort
    inputs: dict[str, Any] = {
        "format": _FORMAT,
        "model": case.model,
        "data": data.fingerprint,
        "seed": effort.seed,
        "epochs": effort.float_epochs,
    }

    def spec() -> Any:
        return build_model(
            case.model, num_classes=data.num_classes, data_shape=data.shape, seed=effort.seed
        )

    def train(folder: Path) -> None:
        trained = spec()
        train_float(
            trained, data, seed=effort.seed, epochs=effort.float_epochs, progress=bench.progress
        )
        tensors = {name: t.contiguous() for name, t in trained.module.state_dict().items()}
        save_file(tensors, folder / "float.safetensors")

    def quantized(folder: Path) -> None:
        loaded = spec()
        load_weights(loaded.module, trained.folder / "float.safetensors")
        result = quantize(
            loaded,
            data,
            weight_bits=case.bits,
            act_bits=case.bits,
            method=case.method,
            seed=effort.seed,
            epochs=effort.epochs,
            progress=bench.progress,
        )
        result.network.save(folder / "network.safetensors")

    trained = stored(bench, "protection-float", inputs, train)
    inputs |= {"method": case.method, "bits": case.bits, "qat_epochs": effort.epochs}
    found = stored(bench, "protection-network", inputs, quantized)
    return IntegerNetwork.load(found.folder / "network.safetensors")


def measure(
    bench: Bench,
    case: Case,
    variant: Variant,
    network: IntegerNetwork,
    data: DataSet,
    bounds: Bounds,
) -> dict[str, Any]:
    """Return the figures of one cell; raises MissingError. Unprotected cells come first.

    JSON-able: accuracy (percent, with interval), false_alarms, per rate the accuracy under faults,
    per site the campaign (SDC rates, 3x2 table, accuracy), the share of blind faults and the
    paired difference to no protection.
    """
    effort = bench.effort
    inputs = {
        "format": _FORMAT,
        "network": network.content_hash(),
        "data": data.fingerprint,
        "variant": asdict(variant),
        "effort": asdict(effort),
    }

    def of(other: Variant) -> Result | None:
        return bench.store.find("protection-cell", _json({**inputs, "variant": asdict(other)}))

    plain = None if variant.kind == "none" else of(VARIANTS[0])
    protection = protection_of(variant, bounds)

    def twin() -> Result | None:
        """Return the cell of a unit that does the same in this network, e.g. one that is blind."""
        mine = behaviour(network, protection)
        same = (v for v in VARIANTS if behaviour(network, protection_of(v, bounds)) == mine)
        return next(filter(None, map(of, same)), None)

    def compute(folder: Path) -> dict[str, Any]:
        found = None if plain is None else twin()
        if plain is not None and found is not None:
            for site in SITES:
                rows = folder / f"{site}.parquet"
                shutil.copyfile(found.folder / rows.name, rows)
                paired = compare_files(plain.folder / rows.name, rows)
                found.value["sites"][site]["paired"] = asdict(paired)
            return dict(found.value)
        codes, labels = image_codes(network, data.test, effort.images)
        with bench.progress.task(f"{case.label()}, {variant.label()}", len(SITES)) as advance:
            sites = {}
            for site in SITES:
                rows = folder / f"{site}.parquet"
                sites[site] = _campaign(
                    bench, network, variant, protection, codes, labels, site, rows
                )
                if plain is not None:
                    paired = compare_files(plain.folder / rows.name, rows)
                    sites[site]["paired"] = asdict(paired)
                advance(1)
        return {
            **_clean(network, protection, codes, labels),
            "rates": [
                accuracy_under_rate(
                    network,
                    codes,
                    labels,
                    rate=rate,
                    protection=protection,
                    repetitions=effort.repetitions,
                    seed=effort.seed,
                ).to_json()
                for rate in effort.rates
            ],
            "sites": sites,
        }

    return dict(stored(bench, "protection-cell", inputs, compute).value)


def protection_of(variant: Variant, bounds: Bounds) -> Protection:
    """Return what a variant does with profiled bounds."""
    return Protection(**asdict(variant), bounds=bounds) if variant.kind != "none" else UNPROTECTED


def behaviour(network: IntegerNetwork, protection: Protection) -> str:
    """Return a hash over all that a protection does in a network: equal ones give equal results.

    Units with different names do the same where bounds are blind, or agree.
    """
    limits: list[Any] = []
    active = False
    for node in network.gemms():
        fmt, read = network.format_of(node.inputs[0]), input_limits(network, node, protection)
        out = output_limits(node, protection)
        arrays = (out.lo, out.hi, out.lo_is_bound, out.hi_is_bound)
        limits.append([read, [array.tolist() for array in arrays]])
        active |= read != (fmt.lo, fmt.hi) or bool((out.lo_is_bound | out.hi_is_bound).any())
    return content_hash([protection.kind if active else "none", limits])


def bounds_of(network: IntegerNetwork, data: DataSet) -> Bounds:
    """Return bounds from fault-free runs on training images alone."""
    codes, _ = image_codes(network, data.train, PROFILE_IMAGES)
    return profile_bounds(network, codes)


def _campaign(
    bench: Bench,
    network: IntegerNetwork,
    variant: Variant,
    protection: Protection,
    codes: Tensor,
    labels: np.ndarray,
    site: str,
    rows: Path,
) -> dict[str, Any]:
    result = run_campaign(
        network,
        accelerator_of(bench, network, variant),
        codes,
        labels,
        model=FaultModel(site=site),
        plan=Plan(faults=bench.effort.faults, seed=bench.effort.seed),
        protection=protection,
        output=rows,
    )
    blind = [blind_fault(network, protection, one[0]) for one in read_faults(rows).experiments]
    low, high = wilson(sum(blind), len(blind))
    kept = ("n", "population", "bits", "outcomes", "accuracy_faulty", "accuracy_interval",
            "accuracy_golden", "failure_factor", "margin")  # fmt: skip
    return {name: getattr(result, name) for name in kept} | {
        "blind": {"rate": sum(blind) / len(blind), "ci_low": low, "ci_high": high}
    }


def accelerator_of(bench: Bench, network: IntegerNetwork, variant: Variant) -> AcceleratorConfig:
    """Return the array with a variant's protection unit."""
    return AcceleratorConfig(
        rows=bench.effort.rows,
        cols=bench.effort.cols,
        act_bits=network.act_bits,
        weight_bits=network.weight_bits,
        max_k=max(int(np.prod(node.weight.shape[1:])) for node in network.gemms()),
        protect=variant.kind,
        protect_place=variant.place,
    )


def _clean(
    network: IntegerNetwork, protection: Protection, codes: Tensor, labels: np.ndarray
) -> dict[str, Any]:
    """Return fault-free accuracy and false alarms on the test images."""
    right, alarmed, violations = 0, 0, 0
    for start in range(0, len(codes), 64):
        part = codes[start : start + 64]
        # Counted once per code, whatever the array: as memory faults are.
        values, counted = forward(network, part, protection, cols=1 << 30)
        top = values[network.nodes[-1].name].argmax(dim=1).cpu().numpy()
        right += int((top == labels[start : start + 64]).sum())
        alarmed += int((counted > 0).sum())
        violations += int(counted.sum())
    n = len(codes)
    return {
        "accuracy": 100 * right / n,
        "accuracy_interval": [100 * end for end in wilson(right, n)],
        "false_alarms": {
            "images": alarmed,
            "of": n,
            "violations": violations,
            "interval": list(wilson(alarmed, n)),
        },
    }


def blind_fault(network: IntegerNetwork, protection: Protection, fault: Any) -> bool:
    """Return whether no bound lies in the way of a fault: its first checks see the full range.

    A faulty stored code first meets the input checks of the layers that read it, behind pooling
    and additions, and then their output checks; a faulty PE register, the output check of its
    layer. A check whose bounds are the format's own cannot be violated.
    """
    if isinstance(fault, MemoryFault):
        readers = _readers(network, fault.tensor)
        return all(
            _full_input(network, node, protection) and _full_output(node, protection)
            for node in readers
        )
    node = network.node(fault.layer)
    assert isinstance(node, Gemm)
    return _full_output(node, protection)


def _readers(network: IntegerNetwork, tensor: str) -> list[Gemm]:
    found, names = [], {tensor}
    for node in network.nodes:
        if names.isdisjoint(node.inputs):
            continue
        if isinstance(node, Gemm):
            found.append(node)
        else:
            names.add(node.name)
    return found


def _full_input(network: IntegerNetwork, node: Gemm, protection: Protection) -> bool:
    fmt = network.format_of(node.inputs[0])
    return input_limits(network, node, protection) == (fmt.lo, fmt.hi)


def _full_output(node: Gemm, protection: Protection) -> bool:
    limits = output_limits(node, protection)
    return not (limits.lo_is_bound.any() or limits.hi_is_bound.any())


def unit_of(bench: Bench, bits: int, variant: Variant) -> AcceleratorConfig:
    """Return the accelerator whose LUTs a variant takes: one for all networks of a width.

    An unprotected array saturates at the ends of its layer's range, so bounds per layer are what
    it has anyway.
    """
    return AcceleratorConfig(
        rows=bench.effort.rows,
        cols=bench.effort.cols,
        act_bits=bits,
        weight_bits=bits,
        protect=variant.kind,
        protect_place=variant.place,
        bounds=variant.granularity,
    )


def lut_of(bench: Bench, config: AcceleratorConfig) -> dict[str, Any]:
    """Return lut, ff, dsp and bram36 of an accelerator on xc7; raises MissingError."""

    def compute(folder: Path) -> dict[str, Any]:
        cost = synthesize(config, cache=bench.store.root / "modules", progress=bench.progress)
        return {name: getattr(cost, name) for name in ("lut", "ff", "dsp", "bram36")}

    inputs = {"stage_version": STAGE_VERSION["synthesis"], "config": config.to_json()}
    return dict(stored(bench, "protection-lut", inputs, compute).value)


def stored(
    bench: Bench, stage: str, inputs: dict[str, Any], compute: Callable[[Path], Any]
) -> Result:
    """Return a stored result, or compute and store it; raises MissingError where that is not to be.

    Args:
        bench: whose store.
        stage, inputs, compute: as of `Store.run`.
    """
    if time.monotonic() > bench.until:
        found = bench.store.find(stage, _json(inputs))
        if found is None:
            raise MissingError(stage)
        return found
    return bench.store.run(stage, inputs, compute)


def _json(inputs: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(inputs)))
