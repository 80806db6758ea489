# SPDX-License-Identifier: Apache-2.0
"""How long work tells how far it is: a bar with an ETA in a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

Advance = Callable[[int], None]


class Progress(Protocol):
    """Where long work reports: ``with progress.task("QAT W4A8", total) as advance: advance(1)``."""

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Return a context that yields a function which counts finished units."""
        ...


class NoProgress:
    """Says nothing; the default of every function."""

    @contextlib.contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Yield a function that does nothing."""
        yield lambda count: None


class TerminalProgress:
    """Bars with an ETA on a terminal; elsewhere a line when a task starts, ends, and every 30 s."""

    def __init__(self, console: Console | None = None) -> None:
        """Report on `console`, by default standard error."""
        self.console = console or Console(stderr=True)

    @contextlib.contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Yield a function that counts finished units of `total`."""
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            with Bars(*columns, console=self.console, transient=True) as bars:
                bar = bars.add_task(description, total=total)
                yield lambda count: bars.advance(bar, count)
        else:
            yield from self._lines(description, total)

    def _lines(self, description: str, total: int) -> Iterator[Advance]:
        start = spoken = time.monotonic()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, spoken
            done += count
            now = time.monotonic()
            if now - spoken > 30 and 0 < done < total:
                spoken = now
                eta = (now - start) / done * (total - done)
                self.console.print(f"{description}: {done}/{total}, ETA {eta:.0f} s")

        yield advance
        self.console.print(f"{description}: done in {time.monotonic() - start:.1f} s")
