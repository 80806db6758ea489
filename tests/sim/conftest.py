# SPDX-License-Identifier: Apache-2.0
"""Simulators built by one test are kept for the next, and for the next run of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sim_cache() -> Path:
    """Return the folder of finished simulators, in the repository's ignored ``.cache``."""
    return Path(__file__).resolve().parents[2] / ".cache" / "sim-tests"
