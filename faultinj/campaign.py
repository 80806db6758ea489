# SPDX-License-Identifier: Apache-2.0
"""Fault-injection campaigns on the integer engine: what flips do to an inference, and how sure.

Outcomes are relative to the golden run of the same (protected) design on the same image:
``masked`` (equal logits), ``sdc_noncritical`` (other logits, same top-1), ``sdc_critical`` (other
top-1). A fault is `detected` where the protection unit counts more violations than in that run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from faultinj.engine import run_faults
from faultinj.faults import Fault, site_of, to_json
from faultinj.lowering import check_fits
from faultinj.protection import UNPROTECTED, Protection
from faultinj.rate import RateResult, accuracy_under_rate, calibrate_rate
from faultinj.sampling import population_of, population_size, sample
from faultinj.stats import margin_of, wilson
from hdl.config import AcceleratorConfig
from quant.network import IntegerNetwork
from trilat.errors import InputError
from trilat.files import replacing
from trilat.progress import Progress

__all__ = [
    "OUTCOMES",
    "CampaignResult",
    "FaultRecord",
    "RateResult",
    "accuracy_under_rate",
    "calibrate_rate",
    "inject",
    "run_campaign",
]

OUTCOMES = ("masked", "sdc_noncritical", "sdc_critical")


@dataclass(frozen=True, kw_only=True)
class FaultRecord:
    """One experiment: simultaneous faults in one inference, and what came of them.

    Attributes:
        faults: what was injected.
        image: index of the image.
        outcome: one of `OUTCOMES`.
        detected: whether the protection unit counted more than in the golden run.
        violations: by how much.
        label, golden_top1, faulty_top1: classes.
    """

    faults: tuple[Fault, ...]
    image: int
    outcome: str
    detected: bool
    violations: int
    label: int
    golden_top1: int
    faulty_top1: int


@dataclass(frozen=True, kw_only=True)
class CampaignResult:
    """Summary of a campaign; rates are fractions 0..1 with intervals at `confidence`.

    Attributes:
        site: ``activations`` or ``pe_activation``.
        multiplicity: simultaneous flips per experiment.
        protection: kind of the design's protection.
        n: experiments.
        population: all different experiments there are; drawn from without replacement.
        bits: of this class of site: stored bits of one inference, or bits of the registers.
        seed: of the sample.
        margin: half-width of an interval of this sample size at a rate of one half.
        confidence: of margin and intervals.
        outcomes: per outcome count, detected, rate, ci_low, ci_high.
        by_layer: per tensor or layer of the first fault: layer, n, one count per outcome, and
            rate, ci_low, ci_high of the critical ones.
        by_bit: the same per bit position; of several flips the highest counts.
        accuracy_faulty, accuracy_golden: percent of the experiments with the right class.
        images: in the population.
        seconds: wall-clock.
    """

    site: str
    multiplicity: int
    protection: str
    n: int
    population: int
    bits: int
    seed: int
    margin: float
    confidence: float
    outcomes: dict[str, dict[str, float]]
    by_layer: list[dict[str, Any]]
    by_bit: list[dict[str, Any]]
    accuracy_faulty: float
    accuracy_golden: float
    images: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return asdict(self)


def run_campaign(
    network: IntegerNetwork,
    config: AcceleratorConfig,
    codes: Tensor,
    labels: np.ndarray | Tensor,
    *,
    site: str,
    multiplicity: int = 1,
    faults: int,
    seed: int = 0,
    protection: Protection = UNPROTECTED,
    confidence: float = 0.95,
    output: Path | None = None,
    progress: Progress | None = None,
) -> CampaignResult:
    """Inject a random sample of flips and sort what they do into outcomes.

    Args:
        network: the network.
        config: the accelerator; of account for PE registers alone.
        codes: image codes (N, C, H, W), the images of the population.
        labels: classes, (N,).
        site: ``activations`` (stored bits of image and layers, before pooling) or
            ``pe_activation`` (activation registers of the PEs, every register, bit and cycle).
        multiplicity: flips per experiment, all in one inference.
        faults: experiments, drawn uniformly without replacement.
        seed: of the sample; networks of one shape on one array get the same faults.
        protection: of the design.
        confidence: of the intervals and the margin, in (0, 1).
        output: where to write one Parquet row per experiment, whole or not at all.
        progress: told about finished experiments.

    Raises:
        InputError: unknown site, more faults than there are, no image, or the network does not
            fit the accelerator.
    """
    start = time.perf_counter()
    if not len(codes):
        raise InputError("a campaign needs at least one image")
    check_fits(network, config)
    population = population_of(network, config, site)
    chosen = sample(
        population, images=len(codes), multiplicity=multiplicity, count=faults, seed=seed
    )
    records = inject(
        network, config, codes, labels, chosen, protection=protection, progress=progress
    )
    total = population_size(population, len(codes), multiplicity)
    names = population.storage.names if site == "activations" else population.layers
    order = {name: i for i, name in enumerate(names)}
    first = [min((site_of(f) for f in r.faults), key=order.__getitem__) for r in records]
    highest = [max(max(f.bits) for f in r.faults) for r in records]
    result = CampaignResult(
        site=site,
        multiplicity=multiplicity,
        protection=protection.kind,
        n=len(records),
        population=total,
        bits=population.physical_bits,
        seed=seed,
        margin=margin_of(total, len(records), confidence),
        confidence=confidence,
        outcomes=_outcomes(records, total, confidence),
        by_layer=_strata("layer", names, first, records, confidence),
        by_bit=_strata("bit", range(config.act_bits), highest, records, confidence),
        accuracy_faulty=100.0 * float(np.mean([r.faulty_top1 == r.label for r in records])),
        accuracy_golden=100.0 * float(np.mean([r.golden_top1 == r.label for r in records])),
        images=len(codes),
        seconds=time.perf_counter() - start,
    )
    if output is not None:
        _write_rows(output, records, first, highest, network, result)
    return result


def inject(
    network: IntegerNetwork,
    config: AcceleratorConfig,
    codes: Tensor,
    labels: np.ndarray | Tensor,
    experiments: Sequence[Sequence[Fault]],
    *,
    protection: Protection = UNPROTECTED,
    progress: Progress | None = None,
) -> list[FaultRecord]:
    """Return one record per experiment, in order; each is independent of all others.

    Args:
        network, config, codes, labels, protection, progress: as in `run_campaign`.
        experiments: simultaneous faults, at least one, all in one image.
    """
    truth = torch.as_tensor(labels).cpu().numpy()
    done = run_faults(network, config, codes, experiments, protection=protection, progress=progress)
    critical = done.faulty_top1 != done.golden_top1
    outcome = np.where(done.logit_change == 0, 0, 1 + critical)
    return [
        FaultRecord(
            faults=tuple(experiment),
            image=experiment[0].image,
            outcome=OUTCOMES[outcome[i]],
            detected=bool(done.violations[i] > 0),
            violations=int(done.violations[i]),
            label=int(truth[experiment[0].image]),
            golden_top1=int(done.golden_top1[i]),
            faulty_top1=int(done.faulty_top1[i]),
        )
        for i, experiment in enumerate(experiments)
    ]


def _outcomes(
    records: Sequence[FaultRecord], population: int, confidence: float
) -> dict[str, dict[str, float]]:
    rows = {}
    for outcome in OUTCOMES:
        mine = [r for r in records if r.outcome == outcome]
        low, high = wilson(len(mine), len(records), population, confidence)
        rows[outcome] = {
            "count": len(mine),
            "detected": sum(r.detected for r in mine),
            "rate": len(mine) / len(records),
            "ci_low": low,
            "ci_high": high,
        }
    return rows


def _strata(
    label: str,
    keys: Iterable[object],
    key_of: Sequence[object],
    records: Sequence[FaultRecord],
    confidence: float,
) -> list[dict[str, Any]]:
    """Return one row per key that has records; intervals are of the critical rate."""
    rows = []
    for key in keys:
        mine = [r for r, one in zip(records, key_of, strict=True) if one == key]
        if mine:
            counts = {o: sum(r.outcome == o for r in mine) for o in OUTCOMES}
            # A part of the sample: without the finite-population factor, which only narrows.
            low, high = wilson(counts["sdc_critical"], len(mine), None, confidence)
            rows.append(
                {
                    label: key,
                    "n": len(mine),
                    **counts,
                    "detected": sum(r.detected for r in mine),
                    "rate": counts["sdc_critical"] / len(mine),
                    "ci_low": low,
                    "ci_high": high,
                }
            )
    return rows


def _write_rows(
    path: Path,
    records: Sequence[FaultRecord],
    layers: Sequence[str],
    bits: Sequence[int],
    network: IntegerNetwork,
    result: CampaignResult,
) -> None:
    table = pa.table(
        {
            "image": [r.image for r in records],
            "layer": list(layers),
            "bit": list(bits),
            "faults": [json.dumps([to_json(f) for f in r.faults]) for r in records],
            "outcome": [r.outcome for r in records],
            "detected": [r.detected for r in records],
            "violations": [r.violations for r in records],
            "label": [r.label for r in records],
            "golden_top1": [r.golden_top1 for r in records],
            "faulty_top1": [r.faulty_top1 for r in records],
        }
    )
    keys = ("site", "multiplicity", "protection", "population", "seed", "images")
    header = {key: getattr(result, key) for key in keys} | {"network": network.content_hash()}
    table = table.replace_schema_metadata({"trilat.campaign": json.dumps(header)})
    with replacing(Path(path)) as temporary:
        pq.write_table(table, temporary)
