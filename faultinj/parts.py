# SPDX-License-Identifier: Apache-2.0
"""The folder of a campaign: bound to what it depends on, filled part by part, resumed after a kill.

``campaign.json`` names all that the rows depend on; a folder of another campaign is refused. Parts
are renamed when whole, so a campaign killed at any moment goes on behind its last whole part, and
its files equal those of an uninterrupted one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trilat.errors import InputError
from trilat.files import content_hash, replacing, write_json

IDENTITY = "campaign.json"
_PARTS = "parts"
_SECONDS = b"trilat.seconds"


@dataclass(frozen=True, kw_only=True)
class CampaignFolder:
    """An open folder: `parts` are in ``path/parts``."""

    path: Path

    def load(self, number: int) -> tuple[pa.Table, float] | None:
        """Return part `number` and the seconds it took; None where it is still to be computed."""
        try:
            table = pq.read_table(self._part(number))
            return table, float((table.schema.metadata or {})[_SECONDS])
        except (OSError, KeyError, ValueError, pa.ArrowException):
            return None  # absent, or damaged by a power failure: computed again

    def store(self, number: int, table: pa.Table, seconds: float) -> None:
        """Keep part `number`, whole or not at all."""
        with replacing(self._part(number)) as temporary:
            pq.write_table(table.replace_schema_metadata({_SECONDS: f"{seconds:.3f}"}), temporary)

    def _part(self, number: int) -> Path:
        return self.path / _PARTS / f"part-{number:06d}.parquet"


def open_folder(path: Path, identity: dict[str, Any]) -> CampaignFolder:
    """Open the folder of a campaign, or make it.

    Args:
        path: of the folder.
        identity: JSON-able; all that the rows depend on.

    Raises:
        InputError: it holds another campaign or other files, or cannot be written.
    """
    identity = json.loads(json.dumps(identity, allow_nan=False))
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"cannot write to {path}: it is a file, a folder is needed")
        found = path / IDENTITY
        if found.exists():
            _check_same(path, json.loads(found.read_text(encoding="utf-8")), identity)
        elif path.exists() and any(not one.name.startswith(".") for one in path.iterdir()):
            raise InputError(f"{path} holds other files and no campaign: name a new folder")
        else:
            write_json(found, {"hash": content_hash(identity), **identity})
        parts = path / _PARTS
        parts.mkdir(exist_ok=True)
        for left in parts.glob(".part-*"):  # of a run that was killed while it wrote
            left.unlink(missing_ok=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"{path / IDENTITY} is damaged: name a new folder") from None
    return CampaignFolder(path=path)


def _check_same(path: Path, found: dict[str, Any], identity: dict[str, Any]) -> None:
    if found.get("hash") == content_hash(identity):
        return
    for key, value in identity.items():
        if found.get(key) != value:
            one, other = found.get(key), value
            while isinstance(one, dict) and isinstance(other, dict):
                name = next(n for n in {**other, **one} if one.get(n) != other.get(n))
                key = f"{key}.{name}"
                one, other = one.get(name), other.get(name)
            raise InputError(
                f"{path} holds another campaign ({key} is {_short(one)}, not {_short(other)}): "
                "name another folder"
            )
    raise InputError(f"{path} holds another campaign: name another folder")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
