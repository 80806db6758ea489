# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.qat_speed`: images per second of quantization-aware training, in ratios.

Plain is Brevitas itself in float32: its layers and quantizers, with the same weights, constant
scales, batch, optimizer and threads. Beside it run trilat's float32 kernels and its layers of codes
(on CPUs with AMX). A round is one step of each in turn; ratios are medians over rounds.
`--accuracy` trains one network with either of the last two instead, with three seeds each.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from quant import code_layers
from quant.brevitas_model import BrevitasModel
from quant.brevitas_model import build_model as brevitas_model
from quant.calibration import choose_formats
from quant.data import load_data
from quant.fine_tuning import plain_step
from quant.graph import trace
from quant.models import build_model
from quant.ops import run
from quant.quantize import network_accuracy, quantize
from quant.training import train_float
from trilat.errors import InputError, run_command
from trilat.files import write_json
from trilat.progress import Progress, TerminalProgress

AIM = 2.5  # times plain Brevitas
PLAIN, FLOAT32, CODES = "plain Brevitas", "float32 kernels", "layers of codes"
SEEDS = (0, 1, 2)


def measure(
    model: str, *, batch: int, bits: int, rounds: int, progress: Progress
) -> dict[str, Any]:
    """Return seconds per step of every path, and its images/s over those of plain Brevitas."""
    spec = build_model(model, num_classes=10, data_shape=(3, 32, 32), seed=0)
    random = torch.Generator().manual_seed(0)
    images = torch.randn(batch, *spec.input_shape, generator=random)
    labels = torch.randint(0, 10, (batch,), generator=random)
    ops = trace(spec.module, spec.input_shape)
    with torch.no_grad():
        values = run(ops, images[:8])
        formats = choose_formats(ops, values, weight_bits=bits, act_bits=bits)
    found = brevitas_model(ops, formats)
    step = plain_step()
    optimizer = torch.optim.Adam(found.parameters(), lr=0.0, fused=True)  # every round alike

    def whole(path: str) -> None:
        with _path(path, found):
            optimizer.zero_grad()
            step(found, images, labels)
            optimizer.step()

    wall: dict[str, list[float]] = {path: [] for path in _paths()}
    cpu: dict[str, list[float]] = {path: [] for path in _paths()}
    with progress.task(f"training steps of {model}", (rounds + 1) * len(wall)) as advance:
        for number in range(rounds + 1):
            for path in wall:
                taken = _timed(lambda path=path: whole(path))  # type: ignore[misc]
                if number:  # the first round warms up
                    cpu[path].append(taken[0])
                    wall[path].append(taken[1])
                advance(1)

    def ratio(seconds: dict[str, list[float]], path: str) -> float:
        pairs = zip(seconds[PLAIN], seconds[path], strict=True)
        return statistics.median(plain / own for plain, own in pairs)

    return {
        "model": model,
        "batch": batch,
        "bits": bits,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "load_average": os.getloadavg()[0],
        "paths": {
            path: {
                "wall_seconds": statistics.median(wall[path]),
                "cpu_seconds": statistics.median(cpu[path]),
                "images_per_second": batch / statistics.median(wall[path]),
                "wall_ratio": ratio(wall, path),
                "cpu_ratio": ratio(cpu, path),
            }
            for path in wall
        },
    }


def accuracies(
    model: str, data_spec: str, *, bits: int, epochs: int | None, progress: Progress
) -> dict[str, Any]:
    """Return the test accuracy of networks trained by either path, in percent, for each seed.

    Every seed has its own float network, from which both paths start, in the same order of images.
    However small a layer is, its codes are multiplied as such.
    """
    data = load_data(data_spec, seed=0, progress=progress)
    found: dict[str, list[float]] = {FLOAT32: [], CODES: []}
    for seed in SEEDS:
        spec = build_model(model, num_classes=data.num_classes, data_shape=data.shape, seed=seed)
        train_float(spec, data, seed=seed, progress=progress)
        for path, values in found.items():
            with _path(path), mock.patch.object(code_layers, "_FROM_MACS", 0):
                result = quantize(
                    spec, data, weight_bits=bits, act_bits=bits, method="qat",
                    seed=seed, epochs=epochs, progress=progress,
                )  # fmt: skip
            values.append(network_accuracy(result.network, data, data.test))
    return {
        "model": model,
        "data": data.name,
        "bits": bits,
        "test_images": len(data.test),
        "seeds": list(SEEDS),
        "accuracies": found,
        "spread": {path: max(values) - min(values) for path, values in found.items()},
        "difference": float(np.mean(found[CODES]) - np.mean(found[FLOAT32])),
    }


def _paths() -> list[str]:
    return [PLAIN, FLOAT32, *([CODES] if code_layers.has_fast_codes() else [])]


@contextlib.contextmanager
def _path(path: str, model: BrevitasModel | None = None) -> Iterator[None]:
    """Let training go one way within the block."""
    if model is not None:
        model.train()
        # Brevitas's own layers, in the mode that they have in training.
        model.training = path != PLAIN
    if path == CODES:
        yield
        return
    with mock.patch.object(code_layers, "has_fast_codes", return_value=False):
        yield


def _timed(action: Callable[[], Any]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return time.process_time() - cpu, time.perf_counter() - wall


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.qat_speed", description=__doc__)
    parser.add_argument(
        "--model", help="default: vgg11, with --accuracy lenet5; speed is measured at 3x32x32"
    )
    parser.add_argument("--batch", type=int, default=128, help="images per step (default: 128)")
    parser.add_argument("--bits", type=int, help="of words; default: 8, with --accuracy 3")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: as many as cores)")
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    parser.add_argument("--accuracy", action="store_true", help="train with three seeds instead")
    parser.add_argument("--data", default="digits", help="for --accuracy (default: digits)")
    parser.add_argument("--epochs", type=int, help="of QAT for --accuracy (default: by arithmetic)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args(argv)

    def action() -> int:
        found = _run(arguments)
        if arguments.json is not None:
            try:
                write_json(arguments.json, found)
            except OSError as error:
                raise InputError(f"cannot write {arguments.json}: {error.strerror}") from None
        return 0

    return run_command("python -m bench.qat_speed", action)


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    bits = arguments.bits if arguments.bits is not None else 3 if arguments.accuracy else 8
    threads = arguments.threads if arguments.threads is not None else os.cpu_count() or 1
    if arguments.batch < 1 or threads < 1 or not 2 <= bits <= 8:
        raise InputError(
            "--batch and --threads must be at least 1 and --bits in 2..8, "
            f"not {arguments.batch}, {threads} and {bits}"
        )
    if arguments.accuracy and not code_layers.has_fast_codes():
        raise InputError("--accuracy compares layers of codes, which take a CPU with AMX")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        progress = TerminalProgress()
        if arguments.accuracy:
            found = accuracies(
                arguments.model or "lenet5", arguments.data,
                bits=bits, epochs=arguments.epochs, progress=progress,
            )  # fmt: skip
            _print_accuracies(found)
            return found
        rounds = 3 if arguments.quick else 9
        found = measure(
            arguments.model or "vgg11",
            batch=arguments.batch, bits=bits, rounds=rounds, progress=progress,
        )  # fmt: skip
        _print_speed(found)
        return found
    finally:
        torch.set_num_threads(before)


def _print_speed(found: dict[str, Any]) -> None:
    table = Table(
        title=f"QAT of {found['model']}, {found['bits']} bits, batch {found['batch']}, "
        f"{found['threads']} threads, {found['rounds']} rounds, load {found['load_average']:.1f}",
        caption=f"aim: {AIM:g} times plain Brevitas",
    )
    names = ("path", "images/s", "wall s", "CPU s", "ratio (wall)", "ratio (CPU)")
    for name in names:
        table.add_column(name, justify="left" if name == "path" else "right")
    for path, row in found["paths"].items():
        table.add_row(
            path,
            f"{row['images_per_second']:.0f}",
            f"{row['wall_seconds']:.2f}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['wall_ratio']:.2f}",
            f"{row['cpu_ratio']:.2f}",
        )
    _console().print(table)
    if CODES not in found["paths"]:
        _console().print("no layers of codes: this CPU has no AMX")


def _print_accuracies(found: dict[str, Any]) -> None:
    table = Table(
        title=f"{found['model']} on {found['data']}, {found['bits']} bits, QAT: test accuracy in % "
        f"of {found['test_images']} images"
    )
    table.add_column("path")
    for seed in found["seeds"]:
        table.add_column(f"seed {seed}", justify="right")
    for name in ("mean", "spread"):
        table.add_column(name, justify="right")
    for path, values in found["accuracies"].items():
        cells = [*values, float(np.mean(values)), found["spread"][path]]
        table.add_row(path, *(f"{value:.2f}" for value in cells))
    _console().print(table)
    within = abs(found["difference"]) <= max(found["spread"].values())
    _console().print(
        f"difference of the means: {found['difference']:+.2f} points, "
        f"{'within' if within else 'BEYOND'} the spread of seeds"
    )


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
