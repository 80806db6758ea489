# SPDX-License-Identifier: Apache-2.0
"""A network that trains in seconds, as a user's file: for tests of the real stages."""

from __future__ import annotations

from pathlib import Path

from dse.bench import Bench, float_model, open_bench
from dse.settings import parse
from dse.store import Store
from trilat.progress import NoProgress

_SOURCE = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 3 * 3, 10)
    )
"""


def open_tiny(folder: Path, *words: str, cache: str = "cache") -> Bench:
    """Return the bench of a search over the tiny network on the digits, trained in float."""
    file = folder / "tiny.py"
    file.write_text(_SOURCE)
    flags = ["--model", f"{file}:build", "--bits", "4", "--rows", "2", "--cols", "2", "--jobs", "1"]
    bench = open_bench(parse([*flags, *words]), Store(root=folder / cache), NoProgress())
    float_model(bench)
    return bench
