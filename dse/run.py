# SPDX-License-Identifier: Apache-2.0
"""The main command: search the design space, then measure, verify and report the Pareto front."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from dse.evaluation import Stages
from dse.records import RunRecord
from dse.search import open_study
from dse.session import Report, Session
from dse.settings import Settings, check_folder, parse
from dse.store import Store, default_root
from trilat.errors import InputError, run_command
from trilat.files import write_json
from trilat.progress import Progress, TerminalProgress

STUDY_FILE, JOURNAL, LOCK = "study.json", "study.journal", ".lock"
STUDY_VERSION = 1

OpenStages = Callable[[Settings, Store, Progress], Stages]


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""

    def action() -> int:
        settings = parse(argv)
        # Imported here: torch and plotly take seconds that a mistyped flag need not wait for.
        from dse.report import write_report
        from dse.stages import open_stages

        run(settings, open_stages, write_report)
        return 0

    return run_command("python -m dse.run", lambda: _disk_errors(action))


def run(
    settings: Settings,
    open_stages: OpenStages,
    write_report: Report,
    *,
    console: Console | None = None,
    progress: Progress | None = None,
) -> RunRecord:
    """Search, report, and return the record; goes on where an earlier run stopped.

    Args:
        settings: what to search.
        open_stages: gives the stages; writes nothing and raises InputError for bad input.
        write_report: writes the report into the run folder and returns its path.
        console: where results are printed, by default standard output.
        progress: where stages tell how far they are.

    Raises:
        InputError: `settings.out` cannot be written, or holds something else.
    """
    console = console or Console(highlight=False)
    started = time.monotonic()
    out, store = settings.out, Store(root=default_root())
    check_folder(out)
    check_folder(store.root)
    check_study(out, None)  # what is not a run folder is refused before the data are loaded
    stages = open_stages(settings, store, progress or TerminalProgress())
    identity = {
        "version": STUDY_VERSION,
        "space": {name: list(values) for name, values in settings.space.knobs().items()},
        "model": settings.model,
        "data": stages.data.get("name", settings.data),
        "weights": settings.weights is not None,
        **{
            name: value
            for name, value in settings.flags().items()
            if name == "faults" or (name in ("fault_kind", "chips") and value is not None)
        },
        "seed": settings.seed,
        "family": settings.family,
        **stages.identity,
    }
    identity = json.loads(json.dumps(identity))
    check_study(out, identity)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        write_json(out / STUDY_FILE, identity)
        study = open_study(out / JOURNAL)
        session = Session(settings, stages, study, console, out, started)
        return session.run(write_report)


def check_study(out: Path, identity: dict[str, Any] | None) -> None:
    """Check that `out` is free, or holds a study of the same identity; writes nothing.

    Args:
        out: run folder.
        identity: what must be equal, or None to check only that it is a run folder.

    Raises:
        InputError: it holds other files, or another study; the first difference is named.
    """
    if not out.exists():
        return
    file = out / STUDY_FILE
    if not file.exists():
        if any(path.name != LOCK for path in out.iterdir()):
            raise InputError(
                f"{out} holds files but no study of trilat; choose another folder with --out"
            )
        return
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); choose another --out") from None
    if identity is None or stored == identity:
        return
    names = [n for n in [*identity, *stored] if identity.get(n) != stored.get(n)]
    name = names[0]
    there, here = (stored.get(name), identity.get(name))
    if name == "space" and isinstance(there, dict) and isinstance(here, dict):
        name = next(n for n in here if here[n] != there.get(n))
        there, here = there.get(name), here[name]
    raise InputError(
        f"{out} holds a study of another design space: {name} is {there} there and {here} here; "
        "choose another folder with --out"
    )


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the run folder for this process alone; the lock ends with the process."""
    with (out / LOCK).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another run is working in {out}; wait for it or end it") from None
        yield


def _disk_errors(action: Callable[[], int]) -> int:
    """Run `action`; a full disk becomes one line. Nothing is half-written by then."""
    try:
        return action()
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):
            raise InputError(
                "no space left on the disk; free some and run the same command again: it goes on"
            ) from error
        raise


if __name__ == "__main__":
    sys.exit(main())
