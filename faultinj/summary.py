# SPDX-License-Identifier: Apache-2.0
"""The summary of a campaign: rates with intervals, by layer, bit, PE and kind, from its rows.

Every rate is reweighted by the strata that were sampled, and so is every interval. A group that
cuts across strata (bits, where layers were the strata) takes of each stratum the share that the
sample shows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from faultinj.stats import bootstrap_interval, margin_of, wilson
from faultinj.strata import Stratum, stratified_interval, stratified_rate

OUTCOMES = ("masked", "sdc_noncritical", "sdc_critical")
# Of rows whose class a bound proved not to change, so that nobody knows whether they are masked.
NOT_CRITICAL = "not_critical"
CRITICAL_SITES = 20
_RESAMPLES = 2000
NOT_MODELLED = (
    "Upsets of the FPGA's configuration memory, the dominant class in SRAM FPGAs.",
    "Transients in combinational logic (SETs); a stuck-at fault of a PE approximates one.",
    "Faults of the host's pooling and additions, which have no memory of the accelerator.",
)


@dataclass(frozen=True, kw_only=True)
class CampaignResult:
    """Summary of a campaign; rates are fractions 0..1, intervals hold together at `confidence`.

    Attributes:
        site, kind, multiplicity, burst: of the fault model; "list" for a fault list's site.
        protection: kind of the design's protection.
        n: experiments.
        planned: experiments at most, had no look stopped the campaign.
        population: all different experiments there are, drawn from without replacement; None for
            a fault list without one.
        bits: of this class of site: stored bits of one inference, or bits of the registers; None
            for a fault list without it.
        seed: of the sample.
        sampling: how the experiments were chosen, in words.
        looks: at how many experiments the campaign looked whether it can stop, up to the stop.
        margin: half-width of an interval of this sample size at a rate of one half.
        confidence: of the campaign.
        level: of each single interval; above `confidence` where several looks share the error.
        outcomes: per outcome (`OUTCOMES`, and `NOT_CRITICAL` where it occurs) count, detected,
            rate, ci_low, ci_high.
        strata: name, size, n, count of critical ones.
        by_layer, by_bit, by_kind, by_register: per group its name, n, one count per outcome,
            detected, and rate, ci_low, ci_high of the critical ones. The layer is that of the
            first fault; of several bits the highest counts.
        by_pe: the same per register, row and col of a register class; by_layer_bit: per layer, bit.
        critical_sites: places with the highest lower end of the critical rate.
        logit_change: mean, ci_low, ci_high (bootstrap over faults), max of the largest change of a
            logit; n of the experiments that have it.
        failure_factor: bits x P(SDC critical) of one flip, with its interval: times a rate of
            upsets per bit it is a rate of wrong answers. None for other faults.
        accuracy_faulty, accuracy_golden: percent of the experiments with the right class;
            accuracy_interval: of the former.
        images: in the population.
        seconds: of computation, resumed parts included.
    """

    site: str
    kind: str
    multiplicity: int
    burst: int
    protection: str
    n: int
    planned: int
    population: int | None
    bits: int | None
    seed: int
    sampling: str
    looks: list[int]
    margin: float
    confidence: float
    level: float
    outcomes: dict[str, dict[str, float]]
    strata: list[dict[str, Any]]
    by_layer: list[dict[str, Any]]
    by_bit: list[dict[str, Any]]
    by_kind: list[dict[str, Any]]
    by_register: list[dict[str, Any]]
    by_pe: list[dict[str, Any]]
    by_layer_bit: list[dict[str, Any]]
    critical_sites: list[dict[str, Any]]
    logit_change: dict[str, Any]
    failure_factor: dict[str, float] | None
    accuracy_faulty: float
    accuracy_golden: float
    accuracy_interval: tuple[float, float]
    images: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """Columns of the rows as arrays, and the strata they are of."""

    column: Mapping[str, np.ndarray]
    stratum: np.ndarray
    sizes: Sequence[int]
    drawn: np.ndarray
    level: float

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Outcomes to report."""
        bounded = bool((self.column["outcome"] == NOT_CRITICAL).any())
        return (*OUTCOMES, NOT_CRITICAL) if bounded else OUTCOMES

    def estimate(self, hit: np.ndarray, mine: np.ndarray | None = None) -> dict[str, float]:
        """Return rate and interval of `hit`, bool (n,), among the rows `mine` (all)."""
        stratum = self.stratum if mine is None else self.stratum[mine]
        hit = hit if mine is None else hit[mine]
        n = np.bincount(stratum, minlength=len(self.sizes))
        count = np.bincount(stratum, weights=hit, minlength=len(self.sizes)).astype(np.int64)
        strata = []
        for h, size in enumerate(self.sizes):
            if mine is not None:
                if not n[h]:
                    continue
                size = max(int(n[h]), size * int(n[h]) // int(self.drawn[h]))
            strata.append(Stratum(size=size, n=int(n[h]), count=int(count[h])))
        low, high = stratified_interval(strata, self.level)
        return {"rate": stratified_rate(strata), "ci_low": low, "ci_high": high}


def critical_interval(
    outcomes: np.ndarray, stratum: np.ndarray, sizes: Sequence[int], level: float
) -> tuple[float, float]:
    """Return the interval of the critical rate that a look decides by."""
    rows = _rows({}, stratum, sizes, level)
    found = rows.estimate(outcomes == "sdc_critical")
    return found["ci_low"], found["ci_high"]


def summarize(
    table: pa.Table,
    *,
    names: Sequence[str],
    sizes: Sequence[int],
    layers: Sequence[str],
    level: float,
    facts: Mapping[str, Any],
) -> CampaignResult:
    """Return the summary of the rows of `faultinj.rows`.

    Args:
        table: the rows.
        names, sizes: of the strata; sizes are experiments in the population.
        layers: names of tensors and layers in network order.
        level: of each interval.
        facts: the fields of `CampaignResult` that rows do not tell.
    """
    wanted = ("outcome", "detected", "layer", "bit", "kind", "register", "row", "col", "site",
              "element", "label", "golden_top1", "faulty_top1", "logit_change")  # fmt: skip
    column = {name: _array(table[name]) for name in wanted}
    rows = _rows(column, table["stratum"].to_numpy(), sizes, level)
    critical = column["outcome"] == "sdc_critical"
    order = {name: i for i, name in enumerate(layers)}
    outcomes = {}
    for outcome in rows.outcomes:
        mine = column["outcome"] == outcome
        outcomes[outcome] = {
            "count": int(mine.sum()),
            "detected": int((mine & column["detected"]).sum()),
            **rows.estimate(mine),
        }
    right = column["faulty_top1"] == column["label"]
    accuracy = rows.estimate(right)
    golden = rows.estimate(column["golden_top1"] == column["label"])
    population, n = facts["population"], len(critical)
    flips = facts["kind"] == "flip" and facts["multiplicity"] == facts["burst"] == 1
    rate = outcomes["sdc_critical"]
    registers = np.array([name is not None for name in column["register"]], dtype=bool)
    return CampaignResult(
        **facts,
        n=n,
        margin=margin_of(population, n, level) if population else margin_of(1 << 62, n, level),
        level=level,
        outcomes=outcomes,
        strata=[
            {
                "name": name,
                "size": size,
                "n": int(rows.drawn[h]),
                "count": int((critical & (rows.stratum == h)).sum()),
            }
            for h, (name, size) in enumerate(zip(names, sizes, strict=True))
        ],
        by_layer=_groups(rows, ("layer",), lambda key: (order[key[0]],)),
        by_bit=_groups(rows, ("bit",)),
        by_kind=_groups(rows, ("kind",)),
        by_register=_groups(rows, ("register",), mine=registers),
        by_pe=_groups(rows, ("register", "row", "col"), mine=registers),
        by_layer_bit=_groups(rows, ("layer", "bit"), lambda key: (order[key[0]], key[1])),
        critical_sites=_critical_sites(rows, critical),
        logit_change=_logit_change(rows, population, facts["seed"]),
        failure_factor={
            "bits": facts["bits"],
            **{key: facts["bits"] * rate[key] for key in ("rate", "ci_low", "ci_high")},
        }
        if flips and facts["bits"]
        else None,
        accuracy_faulty=100.0 * accuracy["rate"],
        accuracy_golden=100.0 * golden["rate"],
        accuracy_interval=(100.0 * accuracy["ci_low"], 100.0 * accuracy["ci_high"]),
    )


def _rows(
    column: Mapping[str, np.ndarray], stratum: np.ndarray, sizes: Sequence[int], level: float
) -> _Rows:
    drawn = np.bincount(stratum, minlength=len(sizes))
    return _Rows(column=column, stratum=stratum, sizes=sizes, drawn=drawn, level=level)


def _array(column: pa.ChunkedArray) -> np.ndarray:
    if column.null_count or pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=object)
    return np.asarray(column.to_numpy())


def _groups(
    rows: _Rows,
    keys: tuple[str, ...],
    sort: Callable[[tuple[Any, ...]], Any] | None = None,
    mine: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Return one row per value of the columns `keys` that occurs."""
    members: dict[tuple[Hashable, ...], list[int]] = {}
    places = range(len(rows.stratum)) if mine is None else np.flatnonzero(mine).tolist()
    columns = [rows.column[key].tolist() for key in keys]
    for i in places:
        members.setdefault(tuple(column[i] for column in columns), []).append(i)
    outcome, critical = rows.column["outcome"], rows.column["outcome"] == "sdc_critical"
    found = []
    for key in sorted(members, key=sort):
        index = np.array(members[key])
        counts = {name: int((outcome[index] == name).sum()) for name in rows.outcomes}
        found.append(
            {
                **dict(zip(keys, key, strict=True)),
                "n": len(index),
                **counts,
                "detected": int(rows.column["detected"][index].sum()),
                **rows.estimate(critical, index),
            }
        )
    return found


def _critical_sites(rows: _Rows, critical: np.ndarray) -> list[dict[str, Any]]:
    """Rank places by the lower end of their critical rate, then by count and logit change."""
    keys = ("layer", "register", "row", "col", "element")
    members: dict[tuple[Any, ...], list[int]] = {}
    # Registers are places of the array, whatever layer they serve; codes are places of a tensor.
    columns = [rows.column[key].tolist() for key in keys]
    for i in range(len(critical)):
        key = tuple(column[i] for column in columns)
        members.setdefault(key if key[1] is None else ("", *key[1:]), []).append(i)
    interval = lru_cache(maxsize=None)(lambda count, n: wilson(count, n, None, rows.level))
    change = rows.column["logit_change"]
    found = []
    for key, index in members.items():
        count = int(critical[index].sum())
        if not count:
            continue
        low, high = interval(count, len(index))
        bits = sorted({int(rows.column["bit"][i]) for i in index if critical[i]})
        largest = max((int(change[i]) for i in index if change[i] is not None), default=None)
        found.append(
            {
                **{
                    name: value
                    for name, value in zip(keys, key, strict=True)
                    if value not in ("", None)
                },
                "bits": bits,
                "n": len(index),
                "sdc_critical": count,
                "rate": count / len(index),
                "ci_low": low,
                "ci_high": high,
                "logit_change": largest,
            }
        )
    found.sort(
        key=lambda site: (-site["ci_low"], -site["sdc_critical"], -(site["logit_change"] or 0))
    )
    return found[:CRITICAL_SITES]


def _logit_change(rows: _Rows, population: int | None, seed: int) -> dict[str, Any]:
    change = rows.column["logit_change"]
    known = np.array([value is not None for value in change], dtype=bool)
    n = int(known.sum())
    result: dict[str, Any] = {"n": n, "mean": None, "ci_low": None, "ci_high": None, "max": None}
    if n < len(change) or not n:
        # A mode that proves "not critical" knows no change: the rest is no sample of all faults.
        return result | ({"max": int(max(change[known]))} if n else {})
    values = change.astype(np.float64)
    share = np.array([size / sum(rows.sizes) for size in rows.sizes])
    # Resampled within strata; with several the squared half-widths add up (stratified variance).
    mean, below, above = 0.0, 0.0, 0.0
    for h in np.flatnonzero(rows.drawn).tolist():
        mine = values[rows.stratum == h]
        size = rows.sizes[h] if population else None
        low, high = bootstrap_interval(
            mine.tolist(), seed=seed, confidence=rows.level, resamples=_RESAMPLES, population=size
        )
        mean += share[h] * mine.mean()
        below += (share[h] * (mine.mean() - low)) ** 2
        above += (share[h] * (high - mine.mean())) ** 2
    return result | {
        "mean": float(mean),
        "ci_low": max(0.0, float(mean - below**0.5)),
        "ci_high": float(mean + above**0.5),
        "max": int(values.max()),
    }
