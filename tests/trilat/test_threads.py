# SPDX-License-Identifier: Apache-2.0
"""Threads that wait sleep, in every room that computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Ends where PyTorch is looked for, and says what it would read.
_PROBE = """
import importlib, os, sys

class Torch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Torch())
importlib.import_module(sys.argv[1])
"""
_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["quant.engine", "faultinj.run", "sim.agree", "bench.faults"])
@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_policy_is_set_before_pytorch_unless_given(module: str, given: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    command = [sys.executable, "-c", _PROBE, module]
    done = subprocess.run(
        command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (given or "PASSIVE")
