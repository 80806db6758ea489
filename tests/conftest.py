# SPDX-License-Identifier: Apache-2.0
"""Puts this folder on the import path, for the helpers that several rooms' tests share, and ends a
run of the tests with what was verified of the hardware.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

_PREFIX = "verified: "


@pytest.fixture
def verified(record_property: Callable[[str, object], None]) -> Callable[[str, int], None]:
    """Return a function that records what the test has verified, and how many of it.

    The sums over all tests that passed stand at the end of the run.
    """

    def record(what: str, count: int = 1) -> None:
        record_property(_PREFIX + what, count)

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    totals: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, count in report.user_properties:
            if name.startswith(_PREFIX):
                totals[name.removeprefix(_PREFIX)] += count
    if totals:
        terminalreporter.section("verified")
        for what, count in sorted(totals.items()):
            terminalreporter.line(f"{count:6} {what}")
