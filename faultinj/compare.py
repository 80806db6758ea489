# SPDX-License-Identifier: Apache-2.0
"""`python -m faultinj.compare A B`: two designs that met one fault list, compared pair by pair.

The list of the second campaign is that of the first: the same flags and seed on a design of the
same shape, or ``--faults-from A/rows.parquet``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from faultinj.paired import PairedResult, PairedStratum, compare_pairs
from faultinj.rows import ENDLESS, read_rows
from trilat.errors import InputError, run_command
from trilat.files import write_json


class _Parser(argparse.ArgumentParser):
    """Reports bad flags as one line, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def compare_files(first: Path, second: Path, confidence: float | None = None) -> PairedResult:
    """Compare the critical rates of two campaigns on one fault list.

    Args:
        first, second: rows.parquet of designs A and B.
        confidence: of the interval; by default the level that the campaigns' own intervals have.

    Raises:
        InputError: a file is none of a campaign, or the campaigns met different faults or images.
    """
    (a, header), (b, _) = read_rows(first), read_rows(second)
    for path, table in ((first, a), (second, b)):
        if missing := {"experiment", "outcome", "label"} - set(table.column_names):
            raise InputError(f"{path} has no outcomes: it has no column {min(missing)!r}")
    a, b = a.sort_by("experiment"), b.sort_by("experiment")
    # A campaign that stopped early met the first part of the list; pairs are what both met.
    n = min(len(a), len(b))
    a, b = a.slice(0, n), b.slice(0, n)
    for column, what in (("faults", "faults"), ("stratum", "strata"), ("label", "images")):
        different = np.array(a[column].to_pylist()) != np.array(b[column].to_pylist())
        if different.any():
            number = int(np.argmax(different))
            raise InputError(
                f"{first} and {second} met different {what}, the first in experiment {number}: "
                "give the second campaign --faults-from the first"
            )
    level = header.get("level") or 0.95
    strata = header.get("strata") or [{"size": ENDLESS}]
    pairs = _pairs(a, b, [int(one["size"]) for one in strata])
    return compare_pairs(pairs, level if confidence is None else confidence)


def _pairs(a: pa.Table, b: pa.Table, sizes: Sequence[int]) -> list[PairedStratum]:
    stratum = a["stratum"].to_numpy()
    one, other = (
        np.array([outcome == "sdc_critical" for outcome in table["outcome"].to_pylist()])
        for table in (a, b)
    )

    def counts(hit: np.ndarray) -> list[int]:
        return np.bincount(stratum[hit], minlength=len(sizes)).tolist()

    columns = zip(
        sizes,
        counts(np.ones(len(stratum), dtype=bool)),
        counts(one & ~other),
        counts(other & ~one),
        counts(one & other),
        strict=True,
    )
    return [
        PairedStratum(size=size, n=n, only_a=only_a, only_b=only_b, both=both)
        for size, n, only_a, only_b, both in columns
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _Parser(
        prog="python -m faultinj.compare",
        description="Compare two designs that met the same faults, by McNemar's exact test.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("a", type=Path, help="rows.parquet of design A, or its campaign folder")
    parser.add_argument("b", type=Path, help="of design B")
    parser.add_argument("--confidence", type=float, metavar="C", help="by default the campaigns'")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")

    def action() -> int:
        arguments = parser.parse_args(argv)
        first, second = (
            path / "rows.parquet" if path.is_dir() else path for path in (arguments.a, arguments.b)
        )
        result = compare_files(first, second, arguments.confidence)
        _print(result, Console())
        if arguments.json is not None:
            write_json(arguments.json, asdict(result))
        return 0

    return run_command("python -m faultinj.compare", action)


def _print(result: PairedResult, console: Console) -> None:
    table = Table(title=f"critical faults of {result.n} pairs")
    for heading in ("", "B critical", "B not"):
        table.add_column(heading, justify="right" if heading else "left")
    neither = result.n - result.both - result.only_a - result.only_b
    table.add_row("A critical", str(result.both), str(result.only_a))
    table.add_row("A not", str(result.only_b), str(neither))
    console.print(table)
    console.print(
        f"critical rate A {100 * result.rate_a:.3f} %, B {100 * result.rate_b:.3f} %; difference "
        f"B - A {100 * result.difference:+.3f} points ({100 * result.confidence:g} % interval "
        f"{100 * result.ci_low:+.3f} .. {100 * result.ci_high:+.3f}); McNemar's exact "
        f"p = {result.p_value:.3g}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
