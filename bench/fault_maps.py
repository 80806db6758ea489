# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.fault_maps`: applying a chip's fault map to all weights of VGG11.

The baseline makes what training frameworks inject into: a float32 copy of the model per chip, from
a dense map of all its cells, bit by bit. Times are processor time of one thread, the median of
alternating rounds.
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
from quant.fault_map import FaultMap, MemoryGeometry
from quant.models import build_model
from quant.weight_memory import WeightFaults, WeightMapping, faults_of_weights
from trilat.errors import InputError, run_command
from trilat.files import write_json

RATES = (0.001, 0.01, 0.1)
CHIPS = 50
AIM_MS = 50.0


def float_copy(codes: np.ndarray, masks: Sequence[np.ndarray], scale: float) -> np.ndarray:
    """Return the baseline: a faulty float32 copy of all weights.

    Args:
        codes: int8 (weights,).
        masks: uint8 (weights,), one of 0 and 1 per bit.
        scale: of the codes.
    """
    words = codes.view(np.uint8).copy()
    for bit, mask in enumerate(masks):
        words ^= mask << np.uint8(bit)
    return words.view(np.int8).astype(np.float32) * np.float32(scale)


def dense_masks(fault_map: FaultMap) -> list[np.ndarray]:
    """Return a map of flips in words of 8 bits as one array of 0 and 1 per bit."""
    cells = np.zeros(fault_map.geometry.cells, dtype=np.uint8)
    cells[fault_map.cells] = 1
    return [np.ascontiguousarray(mask) for mask in cells.reshape(-1, 8).T]


def bytes_of(faults: WeightFaults) -> int:
    """Return the bytes that hold a chip's faults."""
    return faults.index.nbytes + faults.keep.nbytes + faults.invert.nbytes


def measure(rate: float, rounds: int) -> dict[str, Any]:
    """Return milliseconds of sampling, mapping, applying and of the baseline at one rate."""
    spec = build_model("vgg11", num_classes=10, data_shape=(3, 32, 32), seed=0)
    weights = sum(p.numel() for p in spec.module.parameters() if p.ndim > 1)
    codes = np.random.default_rng(0).integers(-127, 128, weights).astype(np.int8)
    geometry = MemoryGeometry(words=weights, bits=8)
    fault_map, sampling = _timed(lambda: random_map(geometry, rate=rate, seed=0))
    faults, mapping = _timed(
        lambda: faults_of_weights(fault_map, weights=weights, bits=8, mapping=WeightMapping())
    )
    masks = dense_masks(fault_map)
    if not np.array_equal(faults.read(codes), float_copy(codes, masks, 1.0).astype(np.int8)):
        raise RuntimeError("the two ways to apply a map disagree")
    times: dict[str, list[float]] = {"apply": [], "float copy": []}
    for _ in range(rounds):
        times["apply"].append(_timed(lambda: faults.read(codes))[1])
        times["float copy"].append(_timed(lambda: float_copy(codes, masks, 2.0**-7))[1])
    apply, copy = (statistics.median(t) for t in times.values())
    return {
        "rate": rate,
        "weights": weights,
        "faulty_words": len(faults.index),
        "sample_ms": sampling,
        "map_ms": mapping,
        "apply_ms": apply,
        "float_copy_ms": copy,
        "ratio": copy / apply,
        "chips_mb": CHIPS * bytes_of(faults) / 1e6,
        "float_copies_mb": CHIPS * 4 * weights / 1e6,
    }


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = action()
    return result, 1000 * (time.process_time() - start)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.fault_maps", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args(argv)

    def action() -> int:
        torch.set_num_threads(1)
        rows = [measure(rate, 5 if arguments.quick else 25) for rate in RATES]
        _print(rows)
        if arguments.json is not None:
            try:
                write_json(arguments.json, {"fault_maps": rows})
            except OSError as error:
                raise InputError(f"cannot write {arguments.json}: {error.strerror}") from None
        return 0

    return run_command("python -m bench.fault_maps", action)


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(
        title=f"Fault maps of VGG11: {rows[0]['weights']} weights of 8 bits, one thread",
        caption=f"applying aims below {AIM_MS:g} ms; MB are those of {CHIPS} chips at once",
    )
    for name in ("rate", "faulty words", "draw ms", "map ms", "apply ms", "float copy ms",
                 "ratio", "MB", "MB as copies"):  # fmt: skip
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['rate']:g}",
            str(row["faulty_words"]),
            *(f"{row[k]:.1f}" for k in ("sample_ms", "map_ms", "apply_ms", "float_copy_ms")),
            f"{row['ratio']:.1f}",
            *(f"{row[k]:.0f}" for k in ("chips_mb", "float_copies_mb")),
        )
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
