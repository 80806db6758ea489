# SPDX-License-Identifier: Apache-2.0
"""`python -m faultinj.run`: a fault-injection campaign, printed as tables and kept in a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

from faultinj.campaign import DEFAULT_MEMORY, CampaignResult, RateResult, run_campaign
from faultinj.faults import KINDS
from faultinj.inputs import (
    accelerator_of,
    device_of,
    image_codes,
    network_of,
    protection_of,
    writable,
)
from faultinj.lowering import check_fits, check_protection
from faultinj.parts import open_folder
from faultinj.protection import GRANULARITIES, Protection
from faultinj.rate import accuracy_under_rate
from faultinj.report import write_report
from faultinj.rows import FaultList, read_faults
from faultinj.sampling import (
    ALLOCATIONS,
    MAX_EXPERIMENTS,
    SITES,
    STRATA,
    FaultModel,
    Plan,
    population_of,
    population_size,
)
from faultinj.sequential import SPENDINGS, spend
from faultinj.stats import sample_size
from faultinj.summary import NOT_CRITICAL
from hdl.config import ACT_SIGNS, BOUNDS, DATAFLOWS, PLACES, PROTECTIONS, AcceleratorConfig
from quant.data import load_data
from quant.network import IntegerNetwork
from trilat.errors import InputError, run_command, unknown_name
from trilat.files import content_hash, write_json
from trilat.progress import Progress, TerminalProgress

_SPLITS = ("train", "val", "test")
_RATE_REPETITIONS = 8
_BOUNDED = "; not_critical: masked or SDC, the class was proven not to change"
# Headings that leave room for the names of layers.
_SHORT = {"sdc_noncritical": "SDC", "sdc_critical": "critical", "not_critical": "proven"}


class _Parser(argparse.ArgumentParser):
    """Reports bad flags as one line, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = _Parser(
        prog="python -m faultinj.run",
        description="Inject random faults into inferences of a quantized network on an "
        "accelerator, and print how often the answer changes. With -o, a campaign that was "
        "stopped or killed goes on with the same command.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    group = parser.add_argument_group("network and images").add_argument
    group("--network", type=Path, metavar="FILE", help="saved IntegerNetwork")
    group("--model", metavar="NAME", help="instead of --network: train and quantize it first")
    group("--weights", type=Path, metavar="FILE", help="float weights of the model")
    group("--weight-bits", type=int, default=8, metavar="N", help="of the model, 2..8")
    group("--act-bits", type=int, default=8, metavar="N", help="of the model, 2..8")
    group("--method", default="qat", help="of the model: qat or ptq")
    group("--data", default="digits", metavar="NAME", help="data set, or a folder")
    group("--split", default="test", help=f"images to run: {', '.join(_SPLITS)}")
    group("--images", type=int, default=256, metavar="N", help="the first N images of the split")
    group = parser.add_argument_group("accelerator").add_argument
    group("--dataflow", default="ws", help=f"of the array: {', '.join(DATAFLOWS)}")
    group("--rows", type=int, default=16, metavar="N", help="PEs along K (ws) or M (os)")
    group("--cols", type=int, default=16, metavar="N", help="PEs along N (output channels)")
    group("--psum-depth", type=int, default=256, metavar="N", help="largest M of a ws tile")
    group("--act-sign", default="runtime", help=f"of its activations: {', '.join(ACT_SIGNS)}")
    group("--bounds", default="channel", help=f"limits of its outputs per: {', '.join(BOUNDS)}")
    group("--protect", default="none", help=f"protection unit: {', '.join(PROTECTIONS)}")
    group("--protect-place", default="both", help=f"where it checks: {', '.join(PLACES)}")
    group("--granularity", default="layer", help=f"of bounds: {', '.join(GRANULARITIES)}")
    group = parser.add_argument_group("faults").add_argument
    group("--site", default="activations", help=f"where: {', '.join(SITES)}")
    group("--kind", default="flip", help=f"what: {', '.join(KINDS)}")
    group("--multiplicity", type=int, default=1, metavar="N", help="simultaneous faults")
    group("--burst", type=int, default=1, metavar="N", help="adjacent bits of each fault")
    group("--rate", type=float, metavar="P", help="instead: accuracy where each stored "
          "activation bit flips with probability P")  # fmt: skip
    group("--faults-from", type=Path, metavar="FILE", help="instead: the faults of another "
          "campaign (rows.parquet) or of a JSON list")  # fmt: skip
    group = parser.add_argument_group("sampling").add_argument
    group("--faults", type=int, metavar="N", help="experiments; by default from --margin; at most "
          f"{MAX_EXPERIMENTS}, as fault list and rows are kept in memory beside --memory, about "
          "3 KiB for each")  # fmt: skip
    group("--margin", type=float, default=0.01, metavar="E", help="wanted margin, in (0, 1)")
    group("--confidence", type=float, default=0.95, metavar="C", help="of intervals, in (0, 1)")
    group("--exhaustive", action="store_true", help="all faults there are")
    group("--stratify", default="", metavar="PARTS", help=f"of {', '.join(STRATA)}, by commas")
    group("--allocation", default="proportional", help=f"to strata: {', '.join(ALLOCATIONS)}")
    group("--looks", type=int, default=1, metavar="K", help="stop at the first of K looks at "
          "which the critical rate has the wanted margin")  # fmt: skip
    group("--spending", default="pocock", help=f"of the error: {', '.join(SPENDINGS)}")
    group("--seed", type=int, default=0, metavar="N", help="of data split, training and faults")
    group = parser.add_argument_group("running").add_argument
    group("--top1-bound", action="store_true", help="stop where the class provably cannot change "
          "any more: those rows say `not_critical` and have no logit change; without protection "
          "alone")  # fmt: skip
    group("--device", default="cpu", help="torch device that computes")
    gib = DEFAULT_MEMORY >> 30
    group("--memory", type=float, default=gib, metavar="GIB", help="budget for activations")
    group("-o", "--output", type=Path, metavar="DIR", help="folder for rows.parquet, "
          "summary.json and report.html")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""

    def action() -> int:
        arguments = main_parser().parse_args(argv)
        result = run(arguments)
        if isinstance(result, CampaignResult):
            _print(result, Console())
        else:
            _print_rate(result, Console())
        if arguments.output is not None:
            kept = "summary.json" if arguments.rate is not None else "report.html"
            Console(highlight=False).print(f"wrote {arguments.output / kept}", soft_wrap=True)
        return 0

    return run_command("python -m faultinj.run", action)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Target:
    """What the faults meet."""

    network: IntegerNetwork
    config: AcceleratorConfig
    codes: Tensor
    labels: np.ndarray
    protection: Protection


def run(arguments: argparse.Namespace) -> CampaignResult | RateResult:
    """Run the campaign that the flags describe; raises InputError for bad ones."""
    _check(arguments)
    model = FaultModel(
        site=arguments.site,
        kind=arguments.kind,
        multiplicity=arguments.multiplicity,
        burst=arguments.burst,
    )
    plan = Plan(
        faults=arguments.faults,
        seed=arguments.seed,
        confidence=arguments.confidence,
        stratify=tuple(part for part in arguments.stratify.split(",") if part),
        allocation=arguments.allocation,
        looks=arguments.looks,
        spending=arguments.spending,
        margin=arguments.margin,
    )
    replay = read_faults(arguments.faults_from) if arguments.faults_from else None
    device = device_of(arguments.device)
    progress = TerminalProgress()
    data = load_data(arguments.data, seed=arguments.seed, progress=progress)
    network = network_of(arguments, data, progress)
    config = accelerator_of(arguments, network)
    codes, labels = image_codes(network, getattr(data, arguments.split), arguments.images)
    if replay is None and arguments.rate is None and not arguments.exhaustive:
        plan = _sized(plan, model, network, config, len(codes))
    protection = protection_of(
        arguments.protect, arguments.protect_place, arguments.granularity, network, data
    )
    if arguments.rate is not None:
        check_fits(network, config)
        check_protection(protection, config)
    target = _Target(
        network=network,
        config=config,
        codes=codes.to(device),
        labels=labels,
        protection=protection,
    )
    if arguments.rate is not None:
        return _run_rate(arguments, target, progress)
    return _run_faults(arguments, target, model, plan, replay, progress)


def _check(arguments: argparse.Namespace) -> None:
    if (arguments.network is None) == (arguments.model is None):
        raise InputError("one of the arguments --network and --model is required")
    if arguments.split not in _SPLITS:
        raise unknown_name("split", arguments.split, list(_SPLITS))
    if arguments.images < 1:
        raise InputError(f"--images must be at least 1, not {arguments.images}")
    if not 0.0625 <= arguments.memory <= 1024:
        raise InputError(f"--memory must be in 0.0625..1024 GiB, not {arguments.memory:g}")
    chosen = [
        flag
        for flag, given in (
            ("--faults", arguments.faults is not None),
            ("--exhaustive", arguments.exhaustive),
            ("--faults-from", arguments.faults_from is not None),
            ("--rate", arguments.rate is not None),
        )
        if given
    ]
    if len(chosen) > 1:
        raise InputError(f"{chosen[0]} and {chosen[1]} exclude each other")
    if arguments.top1_bound and arguments.rate is not None:
        raise InputError("--top1-bound and --rate exclude each other")
    if arguments.output is not None:
        writable(arguments.output)


def _sized(
    plan: Plan,
    model: FaultModel,
    network: IntegerNetwork,
    config: AcceleratorConfig,
    images: int,
) -> Plan:
    """Return the plan with the number of experiments that its margin asks for at most."""
    population = population_of(network, config, model.site, kind=model.kind, burst=model.burst)
    total = population_size(population, images, model.multiplicity)
    level = spend(plan.looks, plan.confidence, plan.spending)[-1]
    # Asked for even where --faults is given, so that a bad margin is never passed over.
    planned = sample_size(total, plan.margin, level)
    fields = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    return Plan(**fields | {"faults": planned if plan.faults is None else plan.faults})


def _run_faults(
    arguments: argparse.Namespace,
    target: _Target,
    model: FaultModel,
    plan: Plan,
    replay: FaultList | None,
    progress: Progress,
) -> CampaignResult:
    result = run_campaign(
        target.network,
        target.config,
        target.codes,
        target.labels,
        model=model,
        plan=plan,
        protection=target.protection,
        top1_bound=arguments.top1_bound,
        replay=replay,
        folder=arguments.output,
        memory=int(arguments.memory * (1 << 30)),
        progress=progress,
    )
    if arguments.output is not None:
        facts = {
            "network": f"{target.network.name}, {target.network.weight_bits}-bit weights, "
            f"{target.network.act_bits}-bit activations ({target.network.content_hash()})",
            "images": f"first {result.images} of {Path(arguments.data).name} {arguments.split}",
            "accelerator": f"{target.config.dataflow} {target.config.rows}x{target.config.cols}",
            "protection": "none"
            if target.protection.kind == "none"
            else f"{target.protection.kind} at {target.protection.place}, bounds per "
            f"{target.protection.granularity}",
        }
        write_json(arguments.output / "summary.json", {"facts": facts, **result.to_json()})
        write_report(arguments.output / "report.html", result, facts)
    return result


def _run_rate(arguments: argparse.Namespace, target: _Target, progress: Progress) -> RateResult:
    if arguments.output is not None:
        protection = target.protection
        bounds = protection.bounds.to_json() if protection.bounds else None
        identity = {
            "network": target.network.content_hash(),
            "rate": arguments.rate,
            "seed": arguments.seed,
            "images": content_hash(target.codes.cpu().numpy().tobytes()),
            "protection": [protection.kind, protection.place, protection.granularity],
            "bounds": content_hash(bounds),
        }
        open_folder(arguments.output, identity)
    result = accuracy_under_rate(
        target.network,
        target.codes,
        target.labels,
        rate=arguments.rate,
        protection=target.protection,
        repetitions=_RATE_REPETITIONS,
        seed=arguments.seed,
        progress=progress,
    )
    if arguments.output is not None:
        write_json(arguments.output / "summary.json", result.to_json())
    return result


def _print_rate(result: RateResult, console: Console) -> None:
    console.print(
        f"accuracy {result.mean:.2f} % (95 % interval {result.ci_low:.2f} .. "
        f"{result.ci_high:.2f}, bootstrap over {result.repetitions} fault maps; range "
        f"{result.min:.2f} .. {result.max:.2f}) where each of {result.bits} stored activation "
        f"bits flips with probability {result.rate:g}; {result.golden:.2f} % without faults; "
        f"{result.images} images, seed {result.seed}, {result.seconds:.1f} s"
    )


def _print(result: CampaignResult, console: Console) -> None:
    percent = f"{100 * result.confidence:g} %"
    what = result.kind if result.burst == 1 else f"burst of {result.burst} bits ({result.kind})"
    population = "unknown" if result.population is None else f"{Decimal(result.population):.4g}"
    early = f" of at most {result.planned}" if result.n < result.planned else ""
    table = Table(
        title=f"{result.n}{early} experiments of {result.multiplicity} {what}"
        f"{'s' if result.multiplicity > 1 else ''} in {result.site}, protection "
        f"{result.protection}",
        caption=f"{result.sampling}; {result.images} images, population {population}, seed "
        f"{result.seed}, margin {100 * result.margin:.2g} points ({percent}); accuracy of the "
        f"right class {result.accuracy_golden:.2f} % without and {result.accuracy_faulty:.2f} % "
        f"with faults; {result.seconds:.1f} s{_BOUNDED if NOT_CRITICAL in result.outcomes else ''}",
    )
    for heading in ("outcome", "count", "detected", "rate", f"{percent} interval"):
        table.add_column(heading, justify="left" if heading == "outcome" else "right")
    for outcome, row in result.outcomes.items():
        table.add_row(
            outcome,
            str(row["count"]),
            str(row["detected"]),
            f"{100 * row['rate']:.3f} %",
            f"{100 * row['ci_low']:.3f} .. {100 * row['ci_high']:.3f} %",
        )
    console.print(table)
    for label, rows in (
        ("layer", result.by_layer),
        ("bit", result.by_bit),
        ("register", result.by_register),
    ):
        if label == "register" and len(rows) < 2:
            continue
        table = Table(title=f"critical by {label}")
        names = list(result.outcomes)
        short = (_SHORT.get(name, name) for name in names)
        for heading in (label, "n", *short, "rate", f"{percent} interval"):
            table.add_column(heading, justify="left" if heading == label else "right", no_wrap=True)
        for line in rows:
            table.add_row(
                str(line[label]),
                str(line["n"]),
                *(str(line[outcome]) for outcome in names),
                f"{100 * line['rate']:.2f} %",
                f"{100 * line['ci_low']:.2f} .. {100 * line['ci_high']:.2f}",
            )
        console.print(table)
    factor = result.failure_factor
    if factor is not None:
        console.print(
            f"bits x P(SDC critical) = {factor['rate']:.4g} ({percent} interval "
            f"{factor['ci_low']:.4g} .. {factor['ci_high']:.4g}): times the rate of upsets per "
            "bit, the rate of wrong answers"
        )


if __name__ == "__main__":
    sys.exit(main())
