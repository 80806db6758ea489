# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.protection`: what range checks buy and cost, network by network, width by width.

For each network (model, data, QAT or PTQ, one width) and each protection (none, clip, zero; at
input, output, both; bounds per layer or per channel): accuracy without faults and false alarms on
test images, bounds being those of training images alone; accuracy where every stored activation
bit flips at a rate; outcomes of single flips in stored activations and PE activation registers,
detected or not, the same faults for every protection of a network; the share of faults for which
the check is blind because codes fill its range; and the LUTs of the unit. Every cell is stored: a
run that was stopped or killed goes on, and names the cells that are missing.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.protection_cells import (
    SITES,
    VARIANTS,
    Bench,
    Case,
    Effort,
    MissingError,
    Variant,
    accelerator_of,
    bounds_of,
    lut_of,
    measure,
    network_of,
)
from dse.store import Store, default_root
from faultinj.summary import OUTCOMES
from quant.data import DataSet, load_data
from quant.network import IntegerNetwork
from trilat.errors import InputError, run_command
from trilat.files import write_json
from trilat.progress import TerminalProgress

PAIRS = (("lenet5", "mnist"), ("alexnet", "cifar10"))
METHODS = ("qat", "ptq")
WIDTHS = (8, 7, 6, 5, 4, 3, 2)
# Taheri et al., ISQED 2024, as a third party's summary has it; the text itself was not at hand.
CLAIMS = (
    "claimed (third-party summary of Taheri et al., ISQED 2024; unit and fault model not stated "
    "there): under 10 % more LUTs; reliability up to +34 (LeNet-5/MNIST) and +52 "
    "(AlexNet/CIFAR-10)"
)
QUICK = Effort(
    faults=150, images=64, rates=(1e-2,), repetitions=4, rows=4, cols=4, float_epochs=8, epochs=2
)

# Of the quick run, two units alone are synthesized.
_QUICK_LUTS = (Variant(kind="none"), Variant(kind="clip"))


def main_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.protection",
        description=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, full = parser.add_argument, Effort()
    add("--data", type=Path, metavar="DIR", help="folder with mnist/ and cifar10/; a set that is "
        "not there is skipped")  # fmt: skip
    add("--models", default=",".join(m for m, _ in PAIRS), help="which networks, by commas")
    add("--methods", default=",".join(METHODS), help="by commas")
    add("--bits", default=",".join(map(str, WIDTHS)), help="widths, by commas")
    add("--faults", type=int, default=full.faults, metavar="N", help="per site and cell")
    add("--images", type=int, default=full.images, metavar="N", help="of the test split")
    add("--rates", default=",".join(f"{r:g}" for r in full.rates), help="flips per stored bit")
    add("--rows", type=int, default=full.rows, metavar="N", help="of the array")
    add("--cols", type=int, default=full.cols, metavar="N", help="of the array")
    add("--seed", type=int, default=0, metavar="N", help="of training and faults")
    add("--minutes", type=float, metavar="T", help="start no new cell after so long")
    add("--stored", action="store_true", help="compute nothing: print what is stored")
    add("--cache", type=Path, metavar="DIR", help="of the results (default: dse.run's)")
    add("--quick", action="store_true", help="LeNet-5 on the digits, within a minute")
    add("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command("python -m bench.protection", lambda: _run(main_parser().parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    effort, cases = _wanted(arguments)
    bench = Bench(
        store=Store(root=(arguments.cache or default_root()).absolute()),
        effort=effort,
        progress=TerminalProgress(),
        compute=not arguments.stored,
    )
    start = time.monotonic()
    until = start + 60 * arguments.minutes if arguments.minutes else float("inf")
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    sets: dict[str, DataSet | None] = {}
    for case in cases:
        if case.data not in sets:
            sets[case.data] = _data(arguments, case.data, bench)
        data = sets[case.data]
        if data is None:
            where = f"no {case.data}/ in {arguments.data}" if arguments.data else "no --data"
            missing.append(f"{case.label()}: {where}")
            continue
        for variant, found in _cells(bench, case, data, until):
            if found is None:
                missing.append(f"{case.label()}, {variant.label()}: not computed")
            else:
                if found["lut"] is None:
                    missing.append(f"{case.label()}, {variant.label()}: LUTs not computed")
                rows.append({"case": asdict(case), "variant": asdict(variant), **found})
    console = Console(width=None if sys.stdout.isatty() else 170)
    for case in cases:
        mine = [row for row in rows if row["case"] == asdict(case)]
        if mine:
            for table in tables(case, mine):
                console.print(table)
    for line in conclusions(rows):
        console.print(line, soft_wrap=True)
    console.print(CLAIMS, soft_wrap=True)
    if missing:
        console.print(f"missing, {len(missing)}:", soft_wrap=True)
        for line in missing:
            console.print(f"  {line}", soft_wrap=True)
    console.print(f"{len(rows)} cells, {time.monotonic() - start:.0f} s")
    if arguments.json is not None:
        write_json(arguments.json, {"effort": asdict(effort), "cells": rows, "missing": missing,
                                    "claims": CLAIMS})  # fmt: skip
    return 0


def _wanted(arguments: argparse.Namespace) -> tuple[Effort, list[Case]]:
    if arguments.quick:
        return QUICK, [Case(model="lenet5", data="digits", method="ptq", bits=4)]
    try:
        widths = [int(part) for part in arguments.bits.split(",")]
        rates = tuple(float(part) for part in arguments.rates.split(","))
    except ValueError as error:
        raise InputError(f"--bits and --rates are numbers, divided by commas: {error}") from None
    models, methods = arguments.models.split(","), arguments.methods.split(",")
    known = dict(PAIRS)
    for given, accepted in ((models, list(known)), (methods, METHODS), (widths, WIDTHS)):
        for one in given:
            if one not in accepted:
                wanted = ", ".join(map(str, accepted))
                raise InputError(f"{one!r} is none of the accepted: {wanted}")
    for name in ("faults", "images"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(arguments, name)}")
    effort = Effort(
        faults=arguments.faults,
        images=arguments.images,
        rates=rates,
        rows=arguments.rows,
        cols=arguments.cols,
        seed=arguments.seed,
    )
    return effort, [
        Case(model=model, data=known[model], method=method, bits=bits)
        for model in models
        for method in methods
        for bits in widths
    ]


def _data(arguments: argparse.Namespace, name: str, bench: Bench) -> DataSet | None:
    if name == "digits":
        return load_data(name, seed=bench.effort.seed)
    folder = None if arguments.data is None else arguments.data / name
    if folder is None or not folder.is_dir():
        return None
    return load_data(str(folder), seed=bench.effort.seed, progress=bench.progress)


def _cells(
    bench: Bench, case: Case, data: DataSet, until: float
) -> Iterator[tuple[Variant, dict[str, Any] | None]]:
    """Yield every variant of a case with its figures, None where they are missing."""

    def late() -> bool:
        return time.monotonic() > until

    network: IntegerNetwork | None = None
    with contextlib.suppress(MissingError):
        network = None if late() else network_of(bench, case, data)
    if network is None:
        yield from ((variant, None) for variant in VARIANTS)
        return
    bounds = bounds_of(network, data)
    cells: dict[Variant, dict[str, Any] | None] = dict.fromkeys(VARIANTS)
    for variant in VARIANTS:
        with contextlib.suppress(MissingError):
            if not late():
                cells[variant] = measure(bench, case, variant, network, data, bounds)
    # Synthesis comes last: it takes longer than all the rest.
    for variant, found in cells.items():
        if found is not None:
            found["lut"] = None
            costed = bench.effort != QUICK or variant in _QUICK_LUTS
            with contextlib.suppress(MissingError):
                if costed and not late():
                    found["lut"] = lut_of(bench, accelerator_of(bench, network, variant))["lut"]
        yield variant, found


def tables(case: Case, rows: Sequence[dict[str, Any]]) -> Iterator[Table]:
    """Yield the tables of one network: accuracy and cost, then outcomes by site."""
    rates = [one["rate"] for one in rows[0]["rates"]]
    plain = next((row for row in rows if row["variant"]["kind"] == "none"), None)
    table = Table(title=f"{case.label()}: accuracy in % (95 % interval)", title_justify="left")
    for heading in ("protection", "no faults", *(f"{rate:g} / bit" for rate in rates),
                    "false alarms", "LUT", "more"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "protection" else "right")
    for row in rows:
        alarms = row["false_alarms"]
        more = ""
        if plain is not None and row is not plain and plain["lut"] and row["lut"]:
            more = f"{100 * (row['lut'] / plain['lut'] - 1):+.1f} %"
        table.add_row(
            _label(row),
            f"{row['accuracy']:.1f}",
            *(f"{o['mean']:.1f} ({o['ci_low']:.1f} .. {o['ci_high']:.1f})" for o in row["rates"]),
            f"{alarms['images']} of {alarms['of']} images",
            str(row["lut"] or "not computed"),
            more,
        )
    yield table
    for site in SITES:
        yield _site_table(case, site, rows)


def _site_table(case: Case, site: str, rows: Sequence[dict[str, Any]]) -> Table:
    n = rows[0]["sites"][site]["n"]
    table = Table(
        title=f"{case.label()}: {n} single flips in {site}; counts are detected + not detected",
        title_justify="left",
    )
    for heading in ("protection", *(o.removeprefix("sdc_") for o in OUTCOMES), "P(critical) %",
                    "against none, points", "McNemar p", "accuracy %", "blind %"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "protection" else "right")
    for row in rows:
        found = row["sites"][site]
        critical, paired = found["outcomes"]["sdc_critical"], found.get("paired")
        low, high = found["accuracy_interval"]
        table.add_row(
            _label(row),
            *(_split(found["outcomes"][outcome]) for outcome in OUTCOMES),
            f"{100 * critical['rate']:.2f} ({100 * critical['ci_low']:.2f} .. "
            f"{100 * critical['ci_high']:.2f})",
            ""
            if paired is None
            else f"{100 * paired['difference']:+.2f} ({100 * paired['ci_low']:+.2f} .. "
            f"{100 * paired['ci_high']:+.2f})",
            "" if paired is None else f"{paired['p_value']:.2g}",
            f"{found['accuracy_faulty']:.1f} ({low:.1f} .. {high:.1f})",
            f"{100 * found['blind']['rate']:.0f}",
        )
    return table


def _split(row: dict[str, Any]) -> str:
    return f"{row['detected']} + {row['count'] - row['detected']}"


def _label(row: dict[str, Any]) -> str:
    return Variant(**row["variant"]).label()


def conclusions(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return, per model, what to set beside the claims: the largest gain and the LUTs of it."""
    lines = []
    for model in dict.fromkeys(row["case"]["model"] for row in rows):
        mine = [row for row in rows if row["case"]["model"] == model]
        plain = {_case(row): row for row in mine if row["variant"]["kind"] == "none"}
        gains, luts = [], []
        for row in mine:
            base = plain.get(_case(row))
            if base is None or row is base:
                continue
            if row["lut"] and base["lut"]:
                luts.append(100 * (row["lut"] / base["lut"] - 1))
            for with_it, without in zip(row["rates"], base["rates"], strict=True):
                gains.append((with_it["mean"] - without["mean"], with_it["rate"], row))
        if not gains:
            continue
        gain, rate, row = max(gains, key=lambda one: one[0])
        more = f"{min(luts):+.1f} .. {max(luts):+.1f} %" if luts else "not computed"
        lines.append(
            f"measured, {model}: accuracy under faults up to {gain:+.1f} points "
            f"({Case(**row['case']).label()}, {_label(row)}, {rate:g} flips per stored bit); LUTs "
            f"{more}"
        )
    return lines


def _case(row: dict[str, Any]) -> Case:
    return Case(**row["case"])


if __name__ == "__main__":
    sys.exit(main())
