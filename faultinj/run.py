# SPDX-License-Identifier: Apache-2.0
"""`python -m faultinj.run`: a fault-injection campaign on a saved network, printed as a table."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from faultinj.campaign import OUTCOMES, CampaignResult, run_campaign
from faultinj.protection import GRANULARITIES, UNPROTECTED, Protection, profile_bounds
from faultinj.sampling import SITES, population_of, population_size
from faultinj.stats import sample_size
from hdl.config import DATAFLOWS, PLACES, PROTECTIONS, AcceleratorConfig
from quant import engine
from quant.data import Split, load_data, to_input
from quant.network import IntegerNetwork
from trilat.errors import InputError, run_command, unknown_name
from trilat.files import write_json
from trilat.progress import TerminalProgress

_PROFILE_IMAGES = 512
_SPLITS = ("train", "val", "test")


class _Parser(argparse.ArgumentParser):
    """Reports bad flags as one line, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = _Parser(
        prog="python -m faultinj.run",
        description="Inject random flips into inferences of a quantized network on an accelerator, "
        "and print how often the answer changes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--network", type=Path, required=True, metavar="FILE", help="saved IntegerNetwork")
    add("--data", default="digits", metavar="NAME", help="data set, or a folder")
    add("--split", default="test", help="images to run: train, val or test")
    add("--images", type=int, default=256, metavar="N", help="how many images of the split")
    add("--site", default="activations", help=f"where flips happen: {', '.join(SITES)}")
    add("--multiplicity", type=int, default=1, metavar="N", help="simultaneous flips")
    add("--faults", type=int, metavar="N", help="experiments; by default from --margin")
    add("--margin", type=float, default=0.01, metavar="E", help="wanted margin, in (0, 1)")
    add("--confidence", type=float, default=0.95, metavar="C", help="of all intervals, in (0, 1)")
    add("--protect", default="none", help=f"protection unit: {', '.join(PROTECTIONS)}")
    add("--protect-place", default="both", help=f"where it checks: {', '.join(PLACES)}")
    add(
        "--granularity",
        default="layer",
        help=f"of its output bounds: {', '.join(GRANULARITIES)}",
    )
    add("--dataflow", default="ws", help=f"of the array: {', '.join(DATAFLOWS)}")
    add("--rows", type=int, default=16, metavar="N", help="PEs along K (ws) or M (os)")
    add("--cols", type=int, default=16, metavar="N", help="PEs along N (output channels)")
    add("--psum-depth", type=int, default=256, metavar="N", help="largest M of a ws tile")
    add("--seed", type=int, default=0, metavar="N", help="of data split and faults")
    add("-o", "--output", type=Path, metavar="FILE", help="write one Parquet row per experiment")
    add("--json", type=Path, metavar="FILE", help="write the summary as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""

    def action() -> int:
        result = run(main_parser().parse_args(argv))
        _print(result, Console())
        return 0

    return run_command("python -m faultinj.run", action)


def run(arguments: argparse.Namespace) -> CampaignResult:
    """Run the campaign that the flags describe; raises InputError for bad ones."""
    network = IntegerNetwork.load(arguments.network)
    if arguments.split not in _SPLITS:
        raise unknown_name("split", arguments.split, list(_SPLITS))
    for flag in ("images", "multiplicity"):
        if getattr(arguments, flag) < 1:
            raise InputError(f"--{flag} must be at least 1, not {getattr(arguments, flag)}")
    if arguments.seed < 0:
        raise InputError(f"--seed must be at least 0, not {arguments.seed}")
    config = AcceleratorConfig(
        dataflow=arguments.dataflow,
        rows=arguments.rows,
        cols=arguments.cols,
        act_bits=network.act_bits,
        weight_bits=network.weight_bits,
        max_k=max(math.prod(node.weight.shape[1:]) for node in network.gemms()),
        psum_depth=arguments.psum_depth,
        protect=arguments.protect,
        protect_place=arguments.protect_place,
    )
    population = population_of(network, config, arguments.site)
    count = arguments.faults
    # Asked for even where --faults is given, so that a bad margin is never passed over.
    total = population_size(population, arguments.images, arguments.multiplicity)
    planned = sample_size(total, arguments.margin, arguments.confidence)
    progress = TerminalProgress()
    data = load_data(arguments.data, seed=arguments.seed, progress=progress)
    codes, labels = _codes(network, getattr(data, arguments.split), arguments.images)
    if data.num_classes != network.num_classes:
        raise InputError(
            f"the network has {network.num_classes} classes, {data.name} has {data.num_classes}"
        )
    protection = UNPROTECTED
    if arguments.protect != "none":
        training, _ = _codes(network, data.train, _PROFILE_IMAGES)
        protection = Protection(
            kind=arguments.protect,
            place=arguments.protect_place,
            granularity=arguments.granularity,
            bounds=profile_bounds(network, training),
        )
    result = run_campaign(
        network,
        config,
        codes,
        labels,
        site=arguments.site,
        multiplicity=arguments.multiplicity,
        faults=planned if count is None else count,
        seed=arguments.seed,
        protection=protection,
        confidence=arguments.confidence,
        output=arguments.output,
        progress=progress,
    )
    if arguments.json is not None:
        write_json(arguments.json, result.to_json())
    return result


def _codes(network: IntegerNetwork, split: Split, count: int) -> tuple[torch.Tensor, np.ndarray]:
    """Return image codes and labels of the first `count` images of a split."""
    normalization = network.metadata.get("normalization")
    if not isinstance(normalization, dict) or not {"mean", "std"} <= set(normalization):
        raise InputError("the network file does not say how its images are normalized")
    images = to_input(
        split.images[:count], network.input_shape, normalization["mean"], normalization["std"]
    )
    return engine.image_codes(network, images), split.labels[:count]


def _print(result: CampaignResult, console: Console) -> None:
    percent = f"{100 * result.confidence:g} %"
    table = Table(
        title=f"{result.n} experiments of {result.multiplicity} flip"
        f"{'s' if result.multiplicity > 1 else ''} in {result.site}, protection "
        f"{result.protection}",
        caption=f"{result.images} images, population {result.population:.4g}, seed {result.seed}, "
        f"margin {100 * result.margin:.2g} points ({percent}); accuracy of the right class "
        f"{result.accuracy_golden:.2f} % without and {result.accuracy_faulty:.2f} % with faults; "
        f"{result.seconds:.1f} s",
    )
    for heading in ("outcome", "count", "detected", "rate", f"{percent} interval"):
        table.add_column(heading, justify="left" if heading == "outcome" else "right")
    for outcome in OUTCOMES:
        row = result.outcomes[outcome]
        table.add_row(
            outcome,
            str(row["count"]),
            str(row["detected"]),
            f"{100 * row['rate']:.3f} %",
            f"{100 * row['ci_low']:.3f} .. {100 * row['ci_high']:.3f} %",
        )
    console.print(table)
    for label, rows in (("layer", result.by_layer), ("bit", result.by_bit)):
        table = Table(title=f"critical by {label}")
        for heading in (label, "n", "masked", "non-critical", "critical", f"{percent} interval"):
            table.add_column(heading, justify="left" if heading == label else "right")
        for row in rows:
            table.add_row(
                str(row[label]),
                str(row["n"]),
                *(str(row[outcome]) for outcome in OUTCOMES),
                f"{100 * row['ci_low']:.2f} .. {100 * row['ci_high']:.2f} %",
            )
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
