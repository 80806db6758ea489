# SPDX-License-Identifier: Apache-2.0
"""The stage cache: every expensive result, stored under the hash of all that it depends on.

An entry is a folder ``<root>/<stage>/<hash>/`` with the result's files and an ``entry.json``. It
is built under a temporary name and renamed when whole, so a run killed at any moment leaves either
no entry or a good one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dse.records import StageCost
from trilat.files import content_hash, write_json

ENTRY = "entry.json"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A stage's result, new or reused.

    Attributes:
        stage: its name.
        key: hash of all that it depends on; names the entry.
        value: JSON-able result.
        folder: where its files lie.
        seconds: what it took when it was computed.
        cached: whether it was reused.
    """

    stage: str
    key: str
    value: Any
    folder: Path
    seconds: float
    cached: bool

    def cost(self) -> StageCost:
        """Return what this use of the result took."""
        return StageCost(
            stage=self.stage, seconds=0.0 if self.cached else self.seconds, cached=self.cached
        )


def default_root() -> Path:
    """Return the cache folder: the environment's TRILAT_CACHE, or ``.cache/trilat`` here."""
    return Path(os.environ.get("TRILAT_CACHE") or Path(".cache") / "trilat").absolute()


@dataclass(frozen=True, kw_only=True)
class Store:
    """The stage cache in the folder `root`, which is made when the first result is stored."""

    root: Path

    def key(self, stage: str, inputs: dict[str, Any]) -> str:
        """Return the name of an entry: a hash over the stage and its (JSON-able) inputs."""
        return content_hash({"stage": stage, "inputs": inputs})

    def find(self, stage: str, inputs: dict[str, Any]) -> Result | None:
        """Return a stored result, or None where there is none or it is damaged."""
        key = self.key(stage, inputs)
        folder = self.root / stage / key
        try:
            entry = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
            sizes = {name: (folder / name).stat().st_size for name in entry["files"]}
            if sizes != entry["files"] or entry["inputs"] != inputs:
                return None
            return Result(
                stage=stage,
                key=key,
                value=entry["value"],
                folder=folder,
                seconds=entry["seconds"],
                cached=True,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None  # absent, or cut short by a power failure: computed again

    def run(self, stage: str, inputs: dict[str, Any], compute: Callable[[Path], Any]) -> Result:
        """Return the stored result of a stage, or compute and store it.

        Args:
            stage: name of the stage.
            inputs: all that the result depends on, JSON-able.
            compute: writes files into the folder it is given and returns a JSON-able value.
        """
        # What is compared with a stored entry must have gone through JSON itself (tuples, keys).
        inputs = json.loads(json.dumps(inputs, allow_nan=False))
        found = self.find(stage, inputs)
        if found is not None:
            return found
        parent = self.root / stage
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=parent, prefix=".new-"))
        try:
            start = time.monotonic()
            value = json.loads(json.dumps(compute(temporary), allow_nan=False))
            seconds = round(time.monotonic() - start, 3)
            files = {
                str(path.relative_to(temporary)): path.stat().st_size
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            }
            entry = {"inputs": inputs, "value": value, "seconds": seconds, "files": files}
            write_json(temporary / ENTRY, entry)
            temporary.chmod(0o755)
            folder = parent / self.key(stage, inputs)
            self._publish(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return Result(
            stage=stage,
            key=folder.name,
            value=value,
            folder=folder,
            seconds=seconds,
            cached=False,
        )

    def _publish(self, temporary: Path, folder: Path) -> None:
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            # A damaged entry, or another process that was faster; both results are the same.
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
            temporary.rename(folder)
