# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.protection`: what range checks buy and cost, network by network, width by width.

For each network (model, data, QAT or PTQ, one width) and each protection (none, clip, zero; at
input, output, both; bounds per layer or per channel): accuracy without faults and false alarms on
test images, bounds being those of training images alone; accuracy where every stored activation
bit flips at a rate, also at rising rates and for codes in words of 8 bits; outcomes of single flips
in stored activations and PE activation registers, detected or not, the same faults for every
protection of a network; the share of faults for which the check is blind because codes fill its
range; accuracy under many flips in psum registers; and the LUTs of the unit. One table sums it up
beside the claims. Every result is stored: a run that was stopped or killed goes on, and names what
is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.protection_cells import (
    GROUPS,
    Bench,
    Case,
    Effort,
    Ladder,
    MissingError,
    Variant,
    bounds_of,
    lut_of,
    measure,
    network_of,
    unit_of,
)
from bench.protection_ladder import LADDER_VARIANTS, PSUM_VARIANTS, WORDS, climb, psum_step
from bench.protection_report import write_report
from bench.protection_summary import (
    CLAIMS,
    WORD_NAMES,
    Measured,
    details,
    summary,
    summary_table,
    verdicts,
)
from dse.store import Store, default_root
from faultinj.protection import Bounds
from quant.data import DataSet, load_data
from quant.network import IntegerNetwork
from trilat.errors import InputError, run_command
from trilat.files import write_json
from trilat.progress import TerminalProgress

PAIRS = (("lenet5", "mnist"), ("alexnet", "cifar10"))
METHODS = ("qat", "ptq")
WIDTHS = (8, 7, 6, 5, 4, 3, 2)
QUICK = Effort(
    faults=150, images=64, rates=(1e-2,), repetitions=4, rows=4, cols=4, float_epochs=8, epochs=2
)
QUICK_LADDER = Ladder(
    rates=(1e-2, 1e-1), choosing=2, reporting=4, images=64, flips=(8,), psum_experiments=64
)
# Of the quick run, two units alone are synthesized: those of the first group.
_QUICK_LUTS = GROUPS[0]


def main_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.protection",
        description=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, full, ladder = parser.add_argument, Effort(), Ladder()
    add("--data", type=Path, metavar="DIR", help="folder with mnist/ and cifar10/; a set that is "
        "not there is skipped")  # fmt: skip
    add("--models", default=",".join(m for m, _ in PAIRS), help="which networks, by commas")
    add("--methods", default=",".join(METHODS), help="by commas")
    add("--bits", default=",".join(map(str, WIDTHS)), help="widths, by commas, in the order in "
        "which they are computed")  # fmt: skip
    add("--float-epochs", type=int, metavar="N", help="of float training (default: by the data)")
    add("--qat-epochs", type=int, metavar="N", help="of fine-tuning (default: by the network)")
    add("--faults", type=int, default=full.faults, metavar="N", help="per site and cell")
    add("--images", type=int, default=full.images, metavar="N", help="of the test split")
    add("--rates", default=_listed(full.rates), help="flips per stored bit, for every protection")
    add("--ladder", default=_listed(ladder.rates), help="rising flips per stored bit, for the "
        "protections at both places")  # fmt: skip
    add("--ladder-images", type=int, default=ladder.images, metavar="N", help="of the test split")
    add("--psum-flips", default=_listed(ladder.flips), help="flips at once in psum registers")
    add("--rows", type=int, default=full.rows, metavar="N", help="of the array")
    add("--cols", type=int, default=full.cols, metavar="N", help="of the array")
    add("--seed", type=int, default=0, metavar="N", help="of training and faults")
    add("--minutes", type=float, metavar="T", help="start nothing new after so long")
    add("--stored", action="store_true", help="compute nothing: print what is stored")
    add("--cache", type=Path, metavar="DIR", help="of the results (default: dse.run's)")
    add("--quick", action="store_true", help="LeNet-5 on the digits, within a minute")
    add("--html", type=Path, metavar="FILE", help="write a report with plots to FILE")
    add("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command("python -m bench.protection", lambda: _run(main_parser().parse_args(argv)))


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _run(arguments: argparse.Namespace) -> int:
    effort, ladder, cases = _wanted(arguments)
    start = time.monotonic()
    minutes = float("inf") if arguments.minutes is None else arguments.minutes
    if arguments.stored:
        minutes = float("-inf")
    bench = Bench(
        store=Store(root=(arguments.cache or default_root()).absolute()),
        effort=effort,
        ladder=ladder,
        progress=TerminalProgress(),
        until=start + minutes * 60,
    )
    measured = Measured(choosing=ladder.choosing, seed=effort.seed)
    _measure(bench, arguments.data, cases, measured)
    cases.sort(key=lambda case: (_PLACE[case.model], METHODS.index(case.method), -case.bits))
    rows = summary(measured, cases)
    lines = [*verdicts(rows, measured), CLAIMS]
    console = Console(width=None if sys.stdout.isatty() else 220)
    if rows:
        console.print(summary_table(rows))
    for line in lines:
        console.print(line, soft_wrap=True)
    for table in details(measured, cases):
        console.print(table)
    if measured.missing:
        console.print(f"missing, {len(measured.missing)}:", soft_wrap=True)
        for line in measured.missing:
            console.print(f"  {line}", soft_wrap=True)
    console.print(f"{len(measured.cells)} cells, {time.monotonic() - start:.0f} s")
    if arguments.json is not None:
        write_json(arguments.json, _figures(measured, rows, effort, ladder, lines))
    if arguments.html is not None:
        write_report(arguments.html, measured, rows, lines, effort, ladder)
    return 0


_PLACE = {model: number for number, (model, _) in enumerate(PAIRS)}


def _figures(
    measured: Measured,
    rows: list[dict[str, Any]],
    effort: Effort,
    ladder: Ladder,
    lines: list[str],
) -> dict[str, Any]:
    """Return all figures, JSON-able."""
    return {
        "effort": asdict(effort),
        "ladder": asdict(ladder),
        "summary": rows,
        "conclusions": lines,
        "cells": [
            {"case": asdict(case), "variant": asdict(variant), **found}
            for (case, variant), found in measured.cells.items()
        ],
        "ladders": [
            {"case": asdict(case), "word": word, "variant": asdict(variant), "steps": steps}
            for (case, word), several in measured.ladders.items()
            for variant, steps in several.items()
        ],
        "psums": [
            {"case": asdict(case), "variant": asdict(variant), **found}
            for case, several in measured.psums.items()
            for (variant, _), found in several.items()
        ],
        "luts": [
            {"bits": bits, "variant": asdict(variant), "lut": lut}
            for (bits, variant), lut in measured.luts.items()
        ],
        "missing": measured.missing,
    }


def _wanted(arguments: argparse.Namespace) -> tuple[Effort, Ladder, list[Case]]:
    if arguments.quick:
        return QUICK, QUICK_LADDER, [Case(model="lenet5", data="digits", method="ptq", bits=4)]
    try:
        widths = [int(part) for part in arguments.bits.split(",")]
        rates = tuple(float(part) for part in arguments.rates.split(","))
        steps = tuple(float(part) for part in arguments.ladder.split(","))
        flips = tuple(int(part) for part in arguments.psum_flips.split(","))
    except ValueError as error:
        raise InputError(
            f"--bits, --rates, --ladder and --psum-flips are numbers, divided by commas: {error}"
        ) from None
    models, methods = arguments.models.split(","), arguments.methods.split(",")
    known = dict(PAIRS)
    for given, accepted in ((models, list(known)), (methods, METHODS), (widths, WIDTHS)):
        for one in given:
            if one not in accepted:
                wanted = ", ".join(map(str, accepted))
                raise InputError(f"{one!r} is none of the accepted: {wanted}")
    for name in ("faults", "images", "ladder_images", "float_epochs", "qat_epochs"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    effort = Effort(
        faults=arguments.faults,
        images=arguments.images,
        rates=rates,
        rows=arguments.rows,
        cols=arguments.cols,
        float_epochs=arguments.float_epochs,
        epochs=arguments.qat_epochs,
        seed=arguments.seed,
    )
    ladder = Ladder(rates=steps, images=arguments.ladder_images, flips=flips)
    return (
        effort,
        ladder,
        [
            Case(model=model, data=known[model], method=method, bits=bits)
            for bits in widths
            for model in models
            for method in methods
        ],
    )


def _data(folder: Path | None, name: str, bench: Bench) -> DataSet | None:
    if name == "digits":
        return load_data(name, seed=bench.effort.seed)
    if folder is None or not (folder / name).is_dir():
        return None
    return load_data(str(folder / name), seed=bench.effort.seed, progress=bench.progress)


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A network, its data and its bounds."""

    network: IntegerNetwork
    data: DataSet
    bounds: Bounds


def _measure(bench: Bench, folder: Path | None, cases: Sequence[Case], measured: Measured) -> None:
    """Fill in `measured`: what tells most for all networks before what tells less."""
    sets = {name: _data(folder, name, bench) for name in dict.fromkeys(c.data for c in cases)}
    for case in cases:
        if sets[case.data] is None:
            where = f"no {case.data}/ in {folder}" if folder else "no --data"
            measured.missing.append(f"{case.label()}: {where}")
    known = [case for case in cases if sets[case.data] is not None]
    ready: dict[Case, _Prepared] = {}

    def cells(group: Sequence[Variant]) -> None:
        for case in known:
            if case not in ready:
                data = sets[case.data]
                assert data is not None
                try:
                    network = network_of(bench, case, data)
                except MissingError:
                    names = (f"{case.label()}, {variant.label()}" for variant in group)
                    measured.missing += [f"{name}: not computed" for name in names]
                    continue
                bounds = bounds_of(network, data)
                ready[case] = _Prepared(network=network, data=data, bounds=bounds)
            _measure_group(bench, case, ready[case], group, measured)

    def luts(group: Sequence[Variant]) -> None:
        for bits in dict.fromkeys(case.bits for case in ready):
            _measure_luts(bench, bits, group, measured)

    first, second, places = GROUPS
    cells(first)
    cells(second)
    for case, one in ready.items():
        if case.bits in bench.ladder.psum_bits:
            _measure_psums(bench, case, one, measured)
    luts(first)
    luts(second)
    cells(places)
    luts(places)


def _measure_group(
    bench: Bench, case: Case, one: _Prepared, group: Sequence[Variant], measured: Measured
) -> None:
    for variant in group:
        with _noted(measured, f"{case.label()}, {variant.label()}"):
            measured.cells[case, variant] = measure(
                bench, case, variant, one.network, one.data, one.bounds
            )
        for word in WORDS:
            # Codes of 8 bits fill their words.
            if variant not in LADDER_VARIANTS or (word == "byte" and case.bits == 8):
                continue
            with _noted(measured, f"{case.label()}, {variant.label()}, {WORD_NAMES[word]}"):
                steps = climb(bench, case, one.network, one.data, variant, one.bounds, word)
                measured.ladders.setdefault((case, word), {})[variant] = steps


def _measure_luts(bench: Bench, bits: int, group: Sequence[Variant], measured: Measured) -> None:
    for variant in group:
        if bench.effort == QUICK and variant not in _QUICK_LUTS:
            continue
        with _noted(measured, f"LUTs at {bits} bits, {variant.label()}"):
            measured.luts[bits, variant] = lut_of(bench, unit_of(bench, bits, variant))["lut"]


def _measure_psums(bench: Bench, case: Case, one: _Prepared, measured: Measured) -> None:
    for variant in PSUM_VARIANTS:
        for flips in bench.ladder.flips:
            with _noted(measured, f"{case.label()}, {variant.label()}, {flips} psum flips"):
                found = psum_step(bench, case, one.network, one.data, variant, one.bounds, flips)
                measured.psums.setdefault(case, {})[variant, flips] = found


@contextlib.contextmanager
def _noted(measured: Measured, name: str) -> Iterator[None]:
    """Note what is neither stored nor computed in time as missing."""
    try:
        yield
    except MissingError:
        measured.missing.append(f"{name}: not computed")


if __name__ == "__main__":
    sys.exit(main())
