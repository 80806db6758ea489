# SPDX-License-Identifier: Apache-2.0
"""The simulator that the tests of RTL and schedule share."""

from __future__ import annotations

from pathlib import Path

import pytest
from rtl_bench import Bench, all_registers
from rtl_configs import CONFIGS, PROBED

CACHE = Path(__file__).parents[2] / ".cache" / "hdl-tests"


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench(
        list(CONFIGS.values()), CACHE, {config: all_registers(config) for config in PROBED}
    )
