# SPDX-License-Identifier: Apache-2.0
"""`python -m faultinj.chips`: accuracy of a network over chips with faulty weight memories."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from faultinj.chip_campaign import ChipResult, accuracy_over_chips
from faultinj.random_maps import MAP_KINDS, PROFILES, RandomChips
from quant import engine
from quant.data import Split, load_data, to_input
from quant.faq import load_unrounded
from quant.fault_map import FaultMap, MemoryGeometry, check_rate
from quant.method_names import POLICIES
from quant.network import IntegerNetwork
from quant.weight_memory import WeightMapping, weight_codes
from trilat.errors import InputError, run_command, unknown_name
from trilat.files import write_json
from trilat.progress import TerminalProgress

_SPLITS = ("train", "val", "test")
_DESCRIPTION = """\
Write a network's weights to the faulty memories of many chips and print the accuracy that is left:
mean, standard deviation, 95 % bootstrap interval over the chips and the worst chip, per fault rate.
Chips are drawn at random, or read from chip files; the faults at a lower rate are a subset of those
at a higher one.
"""
_EPILOG = """\
examples:
  python -m faultinj.chips --network net.safetensors --rates 0.001,0.01 --chips 50
  python -m faultinj.chips --network net.safetensors --kind stuck --rates 0.04 --faq \\
      --unrounded unrounded.safetensors
  python -m faultinj.chips --network net.safetensors --rates 0.01 --save-chips chips/
  python -m faultinj.chips --network net.safetensors --rates 0.01 --chip chips/chip0.safetensors

plain: right under faults. robust: right without and with faults (RErr of RandBET is 100 - robust).
Energy is that of SRAM accesses at the lowest published voltage that errs no more often.
"""


class _Parser(argparse.ArgumentParser):
    """Reports bad flags as one line, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see python -m faultinj.chips --help)")


def main_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = _Parser(
        prog="python -m faultinj.chips",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("network and data").add_argument
    add("--network", type=Path, required=True, metavar="FILE", help="saved IntegerNetwork")
    add("--data", default="digits", metavar="NAME", help="data set, or a folder (digits)")
    add("--split", default="test", help="images to run: train, val or test (test)")
    add("--images", type=int, default=1000, metavar="N", help="how many of the split (1000)")
    add = parser.add_argument_group("chips").add_argument
    add("--rates", default="0.001,0.01", metavar="P,P", help="shares of faulty cells (0.001,0.01)")
    add("--chips", type=int, default=20, metavar="N", help="how many are drawn (20)")
    add("--chip", type=Path, nargs="+", metavar="FILE", help="chip files, in place of drawn chips")
    add("--kind", default="flip", help=f"of faults: {', '.join(MAP_KINDS)} (flip)")
    add("--stuck1-share", type=float, default=0.5, metavar="S", help="stuck at 1, of stuck (0.5)")
    add(
        "--column-spread",
        type=float,
        default=0.0,
        metavar="D",
        help="standard deviation of the columns' relative rates (0)",
    )
    add("--profile", help=f"share and spread of a profiled SRAM: {', '.join(PROFILES)}")
    add("--words", type=int, metavar="N", help="of the memory (as many as the network needs)")
    add("--word-bits", type=int, default=8, metavar="N", help="bits of a word (8)")
    add("--words-per-row", type=int, default=1, metavar="N", help="words in a row of cells (1)")
    add("--save-chips", type=Path, metavar="FOLDER", help="write the drawn chips as chip files")
    add = parser.add_argument_group("weights on the chip").add_argument
    add("--offset", type=int, default=0, metavar="N", help="slot of the first weight (0)")
    add("--pitch", type=int, default=8, metavar="N", help="bits of a weight's slot (8)")
    add("--tiled", action="store_true", help="reuse the memory as a buffer, again and again")
    add("--faq", action="store_true", help="fault-aware quantization: codes chosen for each chip")
    add("--merge", metavar="POLICY", help=f"with --faq, one set of codes: {', '.join(POLICIES)}")
    add("--unrounded", type=Path, metavar="FILE", help="of python -m quant.run, for --faq")
    add = parser.add_argument_group("run").add_argument
    add("--seed", type=int, default=0, metavar="N", help="of data split, chips, bootstrap (0)")
    add("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""

    def action() -> int:
        arguments = main_parser().parse_args(argv)
        results = run(arguments)
        _print(results, Console(width=None if sys.stdout.isatty() else 120, highlight=False))
        return 0

    return run_command("python -m faultinj.chips", action)


def run(arguments: argparse.Namespace) -> tuple[ChipResult, ...]:
    """Run the campaign that the flags describe; raises InputError for bad ones."""
    rates = _rates(arguments.rates)
    _check(arguments)
    network = IntegerNetwork.load(arguments.network)
    unrounded = load_unrounded(arguments.unrounded, network) if arguments.unrounded else None
    mapping = WeightMapping(offset=arguments.offset, tiled=arguments.tiled, pitch=arguments.pitch)
    chips: Sequence[FaultMap]
    if arguments.chip:
        chips = [FaultMap.load(path) for path in arguments.chip]
    else:
        chips = _drawn(arguments, network, max(rates))
        chips[0]  # bad shares and spreads are told before any data are read
    progress = TerminalProgress()
    data = load_data(arguments.data, seed=arguments.seed, progress=progress)
    if data.num_classes != network.num_classes:
        raise InputError(
            f"the network has {network.num_classes} classes, {data.name} has {data.num_classes}"
        )
    codes, labels = _codes(network, getattr(data, arguments.split), arguments.images)
    results = accuracy_over_chips(
        network,
        codes,
        labels,
        chips,
        rates=rates,
        mapping=mapping,
        faq=arguments.faq,
        unrounded=unrounded,
        merge=arguments.merge,
        seed=arguments.seed,
        progress=progress,
    )
    try:
        if arguments.save_chips is not None:
            for number, chip in enumerate(chips):
                chip.save(arguments.save_chips / f"chip{number}.safetensors")
        if arguments.json is not None:
            record = {
                "network": network.content_hash(),
                "flags": {k: _plain(v) for k, v in vars(arguments).items() if k != "json"},
                "results": [result.to_json() for result in results],
            }
            write_json(arguments.json, record)
    except OSError as error:
        raise InputError(f"cannot write: {error}") from None
    return results


def _plain(value: object) -> object:
    """Return a flag's value as JSON takes it."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _drawn(arguments: argparse.Namespace, network: IntegerNetwork, rate: float) -> RandomChips:
    words = arguments.words
    if words is None:
        per_word = max(1, arguments.word_bits // arguments.pitch)
        rows = -(-(arguments.offset + len(weight_codes(network))) // per_word)
        words = -(-rows // arguments.words_per_row) * arguments.words_per_row
    kind, share, spread = arguments.kind, arguments.stuck1_share, arguments.column_spread
    if arguments.profile is not None:
        profile = PROFILES[arguments.profile]
        kind, share, spread = "stuck", profile.stuck1_share, profile.column_spread
    return RandomChips(
        geometry=MemoryGeometry(
            words=words, bits=arguments.word_bits, words_per_row=arguments.words_per_row
        ),
        chips=arguments.chips,
        rate=rate,
        kind=kind,
        stuck1_share=share,
        column_spread=spread,
        seed=arguments.seed,
    )


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = sorted({float(word) for word in text.split(",")})
    except ValueError:
        raise InputError(f"rates must be numbers separated by commas, not {text!r}") from None
    for rate in rates:
        check_rate(rate)
    return tuple(rates)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.split not in _SPLITS:
        raise unknown_name("split", arguments.split, list(_SPLITS))
    for flag in ("images", "chips"):
        if getattr(arguments, flag) < 1:
            raise InputError(f"--{flag} must be at least 1, not {getattr(arguments, flag)}")
    if arguments.words_per_row < 1 or arguments.word_bits < 1:
        raise InputError("--words-per-row and --word-bits must be at least 1")
    if arguments.seed < 0:
        raise InputError(f"--seed must be at least 0, not {arguments.seed}")
    if arguments.profile is not None and arguments.profile not in PROFILES:
        raise unknown_name("profile", arguments.profile, list(PROFILES))
    if arguments.merge is not None and not arguments.faq:
        raise InputError("--merge is for --faq")
    if arguments.merge not in (None, *POLICIES):
        raise unknown_name("merge policy", arguments.merge, list(POLICIES))
    if arguments.unrounded is not None and not arguments.faq:
        raise InputError("--unrounded is for --faq")


def _codes(network: IntegerNetwork, split: Split, count: int) -> tuple[torch.Tensor, np.ndarray]:
    """Return image codes and labels of the first `count` images of a split."""
    normalization = network.metadata.get("normalization")
    if not isinstance(normalization, dict) or not {"mean", "std"} <= set(normalization):
        raise InputError("the network file does not say how its images are normalized")
    images = to_input(
        split.images[:count], network.input_shape, normalization["mean"], normalization["std"]
    )
    return engine.image_codes(network, images), split.labels[:count]


def _print(results: Sequence[ChipResult], console: Console) -> None:
    first = results[0]
    table = Table(
        title=f"{first.chips} chips, {first.images} images"
        f"{', fault-aware quantization' if first.faq else ''}; {first.clean:.2f} % without faults",
        caption="accuracies in %, 95 % bootstrap interval over chips; bits: share that reads other "
        "than quantized; SRAM access energy alone",
    )
    for name in ("faulty cells", "bits", "plain", "std", "interval", "worst", "robust", "std",
                 "V/Vmin", "saved"):  # fmt: skip
        table.add_column(name, justify="right")
    for row in results:
        table.add_row(
            f"{100 * row.rate:g} %",
            f"{100 * row.flipped_bits:.3g} %",
            f"{row.plain.mean:.2f}",
            f"{row.plain.std:.2f}",
            f"{row.plain.ci_low:.2f} .. {row.plain.ci_high:.2f}",
            f"{row.plain.min:.2f}",
            f"{row.robust.mean:.2f}",
            f"{row.robust.std:.2f}",
            f"{row.voltage:.3f}",
            f"{100 * row.energy_saved:.1f} %",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
