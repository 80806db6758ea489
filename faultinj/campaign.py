# SPDX-License-Identifier: Apache-2.0
"""Fault-injection campaigns on the integer engine: what flips do to an inference, and how sure.

Outcomes are relative to the golden run of the same (protected) design on the same image:
``masked`` (equal logits), ``sdc_noncritical`` (other logits, same top-1), ``sdc_critical`` (other
top-1). A fault is `detected` where the protection unit counts more violations than in that run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from faultinj.checks import check_faults, check_space, fault_space
from faultinj.engine import EngineOptions, check_options, run_faults
from faultinj.faults import EVERY_LAYER, Fault, to_json
from faultinj.lowering import check_fits, check_protection
from faultinj.parts import CampaignFolder, open_folder
from faultinj.protection import UNPROTECTED, Protection
from faultinj.rate import RateResult, accuracy_under_rate, calibrate_rate
from faultinj.rows import SCHEMA, FaultList, to_table, with_weights, write_rows
from faultinj.sampling import FaultModel, Plan, Sample, draw, population_of, population_size
from faultinj.sequential import spend
from faultinj.summary import (
    NOT_CRITICAL,
    OUTCOMES,
    CampaignResult,
    critical_interval,
    summarize,
)
from hdl.config import AcceleratorConfig
from quant.network import IntegerNetwork
from trilat.errors import InputError
from trilat.files import content_hash
from trilat.progress import Advance, NoProgress, Progress

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

DEFAULT_MEMORY = 4 << 30
# Experiments of a part of a campaign folder: what a kill can cost.
PART = 1024
# Changes when the same fault list gives other rows than before.
_FORMAT = 1


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
        logit_change: largest absolute change of a logit; None where the engine proved "not
            critical" without computing the logits.
    """

    faults: tuple[Fault, ...]
    image: int
    outcome: str
    detected: bool
    violations: int
    label: int
    golden_top1: int
    faulty_top1: int
    logit_change: int | None


def run_campaign(
    network: IntegerNetwork,
    config: AcceleratorConfig,
    codes: Tensor,
    labels: np.ndarray | Tensor,
    *,
    model: FaultModel,
    plan: Plan,
    protection: Protection = UNPROTECTED,
    top1_bound: bool = False,
    replay: FaultList | None = None,
    folder: Path | None = None,
    output: Path | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: Progress | None = None,
) -> CampaignResult:
    """Inject a sample of faults, or all there are, and sort what they do into outcomes.

    Args:
        network: the network.
        config: the accelerator; of account for register faults alone.
        codes: image codes (N, C, H, W), the images of the population.
        labels: classes, (N,).
        model: what is injected in one experiment.
        plan: how many, and which. Networks of one shape on one array get the same faults.
        protection: of the design; the accelerator's unit is the same one.
        top1_bound: as in `inject`.
        replay: inject these faults instead; of `model` and `plan` only seed and confidence count.
        folder: keeps finished parts, so that a killed campaign goes on where it stopped; then
            has the rows (rows.parquet).
        output: where to write the rows, one per experiment, whole or not at all.
        memory: bytes that golden values and batches may take.
        progress: told about finished experiments.

    Raises:
        InputError: sites that the array does not have, more faults than there are, faults
            outside the network or array, no image, the network or its protection does not fit the
            accelerator, the top-1 bound with a protection, or a folder of another campaign.
    """
    if not len(codes):
        raise InputError("a campaign needs at least one image")
    check_fits(network, config)
    check_protection(protection, config)
    check_options(EngineOptions(top1_bound=top1_bound), protection)
    if replay is None:
        population = population_of(network, config, model.site, kind=model.kind, burst=model.burst)
        sample = draw(population, images=len(codes), model=model, plan=plan)
        total: int | None = population_size(population, len(codes), model.multiplicity)
        bits: int | None = population.physical_bits
        levels = spend(plan.looks, plan.confidence, plan.spending)
    else:
        space = fault_space(network, config, replay.experiments)
        if replay.space is not None:
            check_space("the fault list", replay.space, space)
        check_faults(network, config, replay.experiments, len(codes))
        sample = Sample(
            experiments=replay.experiments,
            stratum=replay.stratum,
            names=replay.names,
            sizes=replay.sizes,
            looks=(len(replay.experiments),),
        )
        total, bits = replay.population, replay.bits
        levels = [max(replay.level or 0.0, plan.confidence)]
    identity = _identity(network, config, codes, labels, protection, model, plan, replay)
    identity["top1_bound"] = top1_bound
    opened = None if folder is None else open_folder(Path(folder), identity)
    job = _Job(network, config, codes, labels, sample, protection, top1_bound, memory, opened)
    table, looks, level = job.run(levels, plan.margin, progress or NoProgress())
    layers = [EVERY_LAYER, "input", *(node.name for node in network.nodes)]
    facts = _described(model, plan, replay, sample) | {
        "protection": protection.kind,
        "planned": len(sample.experiments),
        "population": total,
        "bits": bits,
        "seed": plan.seed,
        "looks": looks,
        "confidence": plan.confidence,
        "images": len(codes),
        "seconds": round(job.seconds, 3),
    }
    result = summarize(
        table, names=sample.names, sizes=sample.sizes, layers=layers, level=level, facts=facts
    )
    header = {
        **identity,
        "space": fault_space(network, config, sample.experiments),
        "strata": [
            {"name": name, "size": size}
            for name, size in zip(sample.names, sample.sizes, strict=True)
        ],
        "population": total,
        "bits": bits,
        "level": level,
    }
    rows = with_weights(table, sample.sizes)
    for path in (output, None if folder is None else Path(folder) / "rows.parquet"):
        if path is not None:
            write_rows(path, rows, header)
    return result


class _Job:
    """The experiments of a campaign, computed part by part up to the look that stops it."""

    def __init__(
        self,
        network: IntegerNetwork,
        config: AcceleratorConfig,
        codes: Tensor,
        labels: np.ndarray | Tensor,
        sample: Sample,
        protection: Protection,
        top1_bound: bool,
        memory: int,
        folder: CampaignFolder | None,
    ) -> None:
        self.network, self.config, self.codes, self.labels = network, config, codes, labels
        self.sample, self.protection, self.memory = sample, protection, memory
        self.top1_bound, self.folder, self.seconds = top1_bound, folder, 0.0
        names = [EVERY_LAYER, "input", *(node.name for node in network.nodes)]
        self.order = {name: i for i, name in enumerate(names)}

    def run(
        self, levels: Sequence[float], margin: float, progress: Progress
    ) -> tuple[pa.Table, list[int], float]:
        """Return the rows, the looks taken, and the level of the interval at the last one."""
        tables: list[pa.Table] = []
        looks: list[int] = []
        first, number = 0, 0
        levels = levels[-len(self.sample.looks) :]
        images = np.array([several[0].image for several in self.sample.experiments])
        with progress.task("faults", len(images)) as advance:
            for last, level in zip(self.sample.looks, levels, strict=True):
                # Neighbours share their images' golden runs.
                mine = first + np.argsort(images[first:last], kind="stable")
                for part in np.split(mine, range(PART, len(mine), PART)):
                    tables.append(self._part(number, part.tolist(), advance))
                    number += 1
                first = last
                looks.append(last)
                if len(levels) > 1 and level < 1 and last < self.sample.looks[-1]:
                    table = pa.concat_tables(tables)
                    low, high = critical_interval(
                        np.array(table["outcome"].to_pylist()),
                        table["stratum"].to_numpy(),
                        self.sample.sizes,
                        level,
                    )
                    if (high - low) / 2 <= margin:
                        break
        table = pa.concat_tables(tables).sort_by("experiment")
        return table.replace_schema_metadata(None), looks, level

    def _part(self, number: int, members: list[int], advance: Advance) -> pa.Table:
        """Return the rows of some experiments, stored or computed now."""
        found = self.folder.load(number) if self.folder else None
        if found is not None:
            self.seconds += found[1]
            advance(len(members))
            return found[0].cast(SCHEMA)
        start = time.perf_counter()
        records = inject(
            self.network,
            self.config,
            self.codes,
            self.labels,
            [self.sample.experiments[i] for i in members],
            protection=self.protection,
            memory=self.memory,
            top1_bound=self.top1_bound,
            progress=_Within(advance),
        )
        table = to_table(records, members, self.sample.stratum[members].tolist(), self.order)
        seconds = time.perf_counter() - start
        self.seconds += seconds
        if self.folder:
            self.folder.store(number, table, seconds)
        return table


@dataclass(frozen=True)
class _Within:
    """Progress of a part of a task that is already shown."""

    advance: Advance

    @contextlib.contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Yield the function that counts for the whole."""
        yield self.advance


def _identity(
    network: IntegerNetwork,
    config: AcceleratorConfig,
    codes: Tensor,
    labels: np.ndarray | Tensor,
    protection: Protection,
    model: FaultModel,
    plan: Plan,
    replay: FaultList | None,
) -> dict[str, Any]:
    """Return all that the rows of a campaign depend on, JSON-able."""
    images = codes.cpu().numpy()
    bounds = protection.bounds.to_json() if protection.bounds else None
    listed = None
    if replay is not None:
        listed = content_hash(
            [[[to_json(f) for f in several] for several in replay.experiments],
             replay.stratum.tolist(), list(replay.sizes)]
        )  # fmt: skip
    return {
        "format": _FORMAT,
        "network": network.content_hash(),
        "accelerator": config.to_json(),
        "images": {
            "count": len(images),
            "codes": content_hash(images.tobytes() + str(images.dtype).encode()),
            "labels": content_hash(np.asarray(labels, dtype=np.int64).tobytes()),
        },
        "protection": {
            "kind": protection.kind,
            "place": protection.place,
            "granularity": protection.granularity,
            "bounds": content_hash(bounds),
        },
        "fault_model": None if replay else asdict(model),
        "plan": {"seed": plan.seed, "confidence": plan.confidence} if replay else asdict(plan),
        "fault_list": listed,
    }


def _described(
    model: FaultModel, plan: Plan, replay: FaultList | None, sample: Sample
) -> dict[str, Any]:
    if replay is not None:
        first = [several[0] for several in replay.experiments]
        of = replay.header.get("fault_model") or {}
        kinds = {fault.kind for several in replay.experiments for fault in several}
        return {
            "site": of.get("site", "list"),
            "kind": kinds.pop() if len(kinds) == 1 else "mixed",
            "multiplicity": max(len(several) for several in replay.experiments),
            "burst": max(len(fault.bits) for fault in first),
            "sampling": f"a list of {len(first)} experiments",
        }
    if plan.faults is None:
        how = "all there are"
    elif plan.stratify:
        how = (
            f"{len(sample.names)} strata by {' and '.join(plan.stratify)}, {plan.allocation} "
            "allocation, uniform without replacement within each"
        )
    else:
        how = "uniform without replacement"
    return {**asdict(model), "sampling": how}


def inject(
    network: IntegerNetwork,
    config: AcceleratorConfig,
    codes: Tensor,
    labels: np.ndarray | Tensor,
    experiments: Sequence[Sequence[Fault]],
    *,
    protection: Protection = UNPROTECTED,
    memory: int = DEFAULT_MEMORY,
    top1_bound: bool = False,
    progress: Progress | None = None,
) -> list[FaultRecord]:
    """Return one record per experiment, in order; each is independent of all others.

    Args:
        network, config, codes, labels, protection, memory, progress: as in `run_campaign`.
        experiments: simultaneous faults, at least one, all in one image.
        top1_bound: stop where the class provably cannot change any more; such rows say
            `NOT_CRITICAL` and no logit change.
    """
    truth = torch.as_tensor(labels).cpu().numpy()
    done = run_faults(
        network,
        config,
        codes,
        experiments,
        protection=protection,
        options=EngineOptions(top1_bound=top1_bound),
        memory_bytes=memory,
        progress=progress,
    )
    critical = done.faulty_top1 != done.golden_top1
    names = np.array([*OUTCOMES, NOT_CRITICAL])
    outcome = names[np.where(done.bounded, 3, np.where(done.logit_change == 0, 0, 1 + critical))]
    return [
        FaultRecord(
            faults=tuple(experiment),
            image=experiment[0].image,
            outcome=str(outcome[i]),
            detected=bool(done.violations[i] > 0),
            violations=int(done.violations[i]),
            label=int(truth[experiment[0].image]),
            golden_top1=int(done.golden_top1[i]),
            faulty_top1=int(done.faulty_top1[i]),
            logit_change=None if done.bounded[i] else int(done.logit_change[i]),
        )
        for i, experiment in enumerate(experiments)
    ]
