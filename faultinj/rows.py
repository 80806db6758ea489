# SPDX-License-Identifier: Apache-2.0
"""Rows of a campaign, one per experiment, as an Arrow table; and fault lists read back from them.

The scalar columns describe the first fault of an experiment, in network order; `faults` has all of
them in the JSON of `faultinj.faults`, from which an experiment can be repeated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from faultinj.faults import Fault, from_json, site_of, to_json
from trilat.errors import InputError
from trilat.files import replacing

if TYPE_CHECKING:
    from faultinj.campaign import FaultRecord

METADATA = b"trilat.campaign"
# A list without a population is read as one drawn from an endless population.
ENDLESS = 1 << 62

SCHEMA = pa.schema(
    [
        ("experiment", pa.int64()),
        ("image", pa.int64()),
        ("site", pa.string()),
        ("layer", pa.string()),
        ("register", pa.string()),
        ("tile", pa.int64()),
        ("row", pa.int64()),
        ("col", pa.int64()),
        ("element", pa.int64()),
        ("bits", pa.list_(pa.int64())),
        ("cycle", pa.int64()),
        ("kind", pa.string()),
        ("bit", pa.int64()),
        ("outcome", pa.string()),
        ("detected", pa.bool_()),
        ("violations", pa.int64()),
        ("label", pa.int64()),
        ("golden_top1", pa.int64()),
        ("faulty_top1", pa.int64()),
        ("logit_change", pa.int64()),
        ("stratum", pa.int64()),
        ("faults", pa.string()),
    ]
)
_SITE_COLUMNS = ("register", "tile", "row", "col", "element", "cycle", "kind")


@dataclass(frozen=True, kw_only=True, eq=False)
class FaultList:
    """Experiments of another campaign, or written by hand.

    Attributes:
        experiments: simultaneous faults of each.
        stratum: int64 (E,), which stratum each is of.
        names, sizes: of the strata.
        population: experiments it was drawn from; None for a list without one.
        level: of each interval, that of the look at which the list ended; None without one.
        space: what its sites are counted in, as of `faultinj.checks.fault_space`; None if unknown.
        bits: that can flip at any one time; None if unknown.
        header: of the file.
    """

    experiments: list[tuple[Fault, ...]]
    stratum: np.ndarray
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    population: int | None
    level: float | None
    space: dict[str, Any] | None
    bits: int | None
    header: dict[str, Any]


def to_table(
    records: Sequence[FaultRecord],
    numbers: Sequence[int],
    stratum: Sequence[int],
    order: Mapping[str, int],
) -> pa.Table:
    """Return the rows of some experiments.

    Args:
        records: what came of each.
        numbers: of the experiments in their campaign.
        stratum: of each.
        order: position of tensors and layers in the network, by name.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for record, number, part in zip(records, numbers, stratum, strict=True):
        first = min(record.faults, key=lambda fault: order[site_of(fault)])
        described = to_json(first)
        row = {
            "experiment": number,
            "site": described["site"],
            "layer": site_of(first),
            **{name: described.get(name) for name in _SITE_COLUMNS},
            "bits": list(first.bits),
            "bit": max(max(fault.bits) for fault in record.faults),
            "stratum": part,
            "faults": json.dumps([to_json(fault) for fault in record.faults]),
        }
        for name in ("image", "outcome", "detected", "violations", "label", "golden_top1",
                     "faulty_top1", "logit_change"):  # fmt: skip
            row[name] = getattr(record, name)
        for name, values in columns.items():
            values.append(row[name])
    return pa.table(columns, schema=SCHEMA)


def with_weights(table: pa.Table, sizes: Sequence[int]) -> pa.Table:
    """Return the rows with a column `weight`: experiments of the population that each stands for.

    One where the population is not known, or has more sets of faults than a float can tell: then
    all rows are of one stratum and weigh the same. A weighted mean over rows is the reweighted
    estimate of `faultinj.strata`.
    """
    stratum = table["stratum"].to_numpy()
    drawn = np.bincount(stratum, minlength=len(sizes))
    each = np.array(
        [
            1.0 if size == ENDLESS or size > sys.float_info.max else size / max(int(n), 1)
            for size, n in zip(sizes, drawn, strict=True)
        ]
    )
    return table.append_column("weight", pa.array(each[stratum], pa.float64()))


def write_rows(path: Path, table: pa.Table, header: Mapping[str, Any]) -> None:
    """Write rows to a Parquet file with the campaign's header, whole or not at all."""
    table = table.replace_schema_metadata({METADATA: json.dumps(header, sort_keys=True)})
    with replacing(Path(path)) as temporary:
        pq.write_table(table, temporary)


def read_rows(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Return the rows and the header of a Parquet file; raises InputError for anything else."""
    try:
        table = pq.read_table(path)
        header = json.loads((table.schema.metadata or {}).get(METADATA, b"{}"))
    except FileNotFoundError:
        raise InputError(f"no such fault list: {path}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} is no Parquet file of faults: {_line(error)}") from None
    missing = {"faults", "image", "stratum"} - set(table.column_names)
    if missing:
        raise InputError(f"{path} is no list of faults: it has no column {min(missing)!r}")
    return table, header


def read_faults(path: Path) -> FaultList:
    """Read a fault list: rows of a campaign (Parquet), or JSON.

    JSON is a list of experiments, each a fault of `faultinj.faults.to_json` or a list of
    simultaneous ones.

    Raises:
        InputError: no such file, or something else is in it.
    """
    path = Path(path)
    header: dict[str, Any] = {}
    if path.suffix == ".json":
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"no such fault list: {path}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is no JSON: {_line(error)}") from None
        if not isinstance(data, list):
            raise InputError(f"{path} is no list of faults")
        stratum = np.zeros(len(data), dtype=np.int64)
    else:
        table, header = read_rows(path)
        try:
            data = [json.loads(text) for text in table["faults"].to_pylist()]
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: column faults is no JSON: {_line(error)}") from None
        stratum = table["stratum"].to_numpy().astype(np.int64)
    experiments = []
    for number, one in enumerate(data):
        several = one if isinstance(one, list) else [one]
        try:
            experiments.append(tuple(from_json(fault) for fault in several))
        except (InputError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{path}, experiment {number}: {_line(error)}") from None
        if not several or len({fault.image for fault in experiments[-1]}) != 1:
            raise InputError(
                f"{path}, experiment {number}: an experiment has at least one fault, all in one "
                "image"
            )
    if not experiments:
        raise InputError(f"{path} has no faults")
    strata = header.get("strata") or [{"name": "all", "size": ENDLESS}]
    if not 0 <= stratum.min() <= stratum.max() < len(strata):
        raise InputError(f"{path}: its rows name strata that its header does not have")
    return FaultList(
        experiments=experiments,
        stratum=stratum,
        names=tuple(str(one["name"]) for one in strata),
        sizes=tuple(int(one["size"]) for one in strata),
        population=header.get("population"),
        level=header.get("level"),
        space=header.get("space"),
        bits=header.get("bits"),
        header=header,
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
