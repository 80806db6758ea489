# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.fault_training`: what training for faults costs on VGG11, in plain QAT steps.

Every method takes its step on the same batch in turn; times are processor time of one thread, the
median over rounds. So are ratios, each to the plain step of the same round: a shared machine is
faster at one time than at another. The conversion of all weights for one chip by fault-aware
quantization is set against one epoch of retraining for that chip, at the measured time per image.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from faultinj.random_maps import random_map
from quant.brevitas_model import build_model as brevitas_model
from quant.calibration import choose_formats
from quant.chip_training import chip_step, introduced, model_faults
from quant.export import to_network, unrounded_weights
from quant.faq import FaultAwareTable, fault_aware_codes
from quant.fault_map import MemoryGeometry
from quant.fine_tuning import BATCH, Step, plain_step
from quant.graph import trace
from quant.models import build_model
from quant.ops import run
from quant.randbet import bit_error_step
from quant.sharpness import sharpness_step
from quant.weight_memory import WeightMapping, weight_codes
from trilat.errors import InputError, run_command
from trilat.files import write_json

EPOCH_IMAGES = 50_000  # CIFAR-10
RANDBET_AIM, FAQ_AIM = 2.2, 0.01  # QAT steps; share of an epoch
RATE, CHIP_RATE = 0.01, 0.04
_ALWAYS = 1e9  # a threshold that no loss reaches


def measure(rounds: int) -> dict[str, Any]:
    """Return seconds per step of every method, and of one conversion and one epoch."""
    spec = build_model("vgg11", num_classes=10, data_shape=(3, 32, 32), seed=0)
    random = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=random)
    labels = torch.randint(0, 10, (BATCH,), generator=random)
    ops = trace(spec.module, spec.input_shape)
    with torch.no_grad():
        formats = choose_formats(ops, run(ops, images[:8]), weight_bits=8, act_bits=8)
    model = brevitas_model(ops, formats)
    network = to_network(model, name="vgg11", input_shape=spec.input_shape, metadata={})
    codes, mapping = weight_codes(network), WeightMapping()
    chip = random_map(
        MemoryGeometry(words=len(codes), bits=8), rate=CHIP_RATE, kind="stuck", seed=0
    )
    model.train()
    steps: dict[str, Step] = {
        "qat": plain_step(),
        "randbet, both passes": bit_error_step(rate=RATE, bits=8, seed=0, threshold=_ALWAYS),
        "saq": sharpness_step(rho=0.1),
        "retrain, FAQ inside": chip_step(introduced(model, chip, mapping, steps=0, seed=0)),
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)  # every round alike

    def whole(step: Step) -> None:
        optimizer.zero_grad()
        step(model, images, labels)
        optimizer.step()

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            taken = _timed(lambda step=step: whole(step))  # type: ignore[misc]
            if number:  # the first round warms up
                seconds[name].append(taken)
    unrounded = unrounded_weights(model)
    conversions = []
    for _ in range(rounds):
        table = FaultAwareTable(8)  # rows are built again for each conversion
        conversions.append(
            _timed(
                lambda table=table: fault_aware_codes(  # type: ignore[misc]
                    codes,
                    model_faults(model, chip, mapping),
                    unrounded=unrounded,
                    table=table,
                )
            )
        )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    epoch = median["retrain, FAQ inside"] * EPOCH_IMAGES / BATCH
    conversion = statistics.median(conversions)
    return {
        "batch": BATCH,
        "seconds": median,
        "ratios": {
            name: statistics.median(
                other / plain for other, plain in zip(values, seconds["qat"], strict=True)
            )
            for name, values in seconds.items()
        },
        "conversion_seconds": conversion,
        "patterns": table.patterns,
        "chip_rate": CHIP_RATE,
        "epoch_seconds": epoch,
        "conversion_share": conversion / epoch,
        "faulty_words": len(model_faults(model, chip, mapping).index),
        "weights": int(np.size(codes)),
    }


def _timed(action: Callable[[], Any]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.fault_training", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two rounds instead of 15")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args(argv)

    def action() -> int:
        torch.set_num_threads(1)
        found = measure(2 if arguments.quick else 15)
        _print(found)
        if arguments.json is not None:
            try:
                write_json(arguments.json, found)
            except OSError as error:
                raise InputError(f"cannot write {arguments.json}: {error.strerror}") from None
        return 0

    return run_command("python -m bench.fault_training", action)


def _print(found: dict[str, Any]) -> None:
    table = Table(
        title=f"VGG11, 8 bits, batch {found['batch']}, one thread",
        caption=f"aim: randbet at most {RANDBET_AIM:g} QAT steps",
    )
    for name in ("step", "CPU s", "QAT steps"):
        table.add_column(name, justify="left" if name == "step" else "right")
    for name, value in found["seconds"].items():
        table.add_row(name, f"{value:.3f}", f"{found['ratios'][name]:.2f}")
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table)
    console.print(
        f"FAQ for one chip at rate {found['chip_rate']:g} ({found['faulty_words']} of "
        f"{found['weights']} words, {found['patterns']} patterns): "
        f"{found['conversion_seconds']:.3f} CPU s, {100 * found['conversion_share']:.3f} % of a "
        f"retraining epoch of {EPOCH_IMAGES} images ({found['epoch_seconds']:.0f} CPU s); "
        f"aim: below {100 * FAQ_AIM:g} %"
    )


if __name__ == "__main__":
    sys.exit(main())
