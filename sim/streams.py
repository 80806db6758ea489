# SPDX-License-Identifier: Apache-2.0
"""Output tiles as the stimulus files that the harness plays, and its records as output rows.

The layout of the files is described in harness.v. Everything is vectorized: a VGG-size layer is
millions of beats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hdl.config import AcceleratorConfig
from hdl.tile import TileJob, TileOutput, param_words, stream_beats

_LAST, _FIRST = 1, 2


class ProtocolError(RuntimeError):
    """The accelerator's output stream broke its protocol; the message says where."""


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack rows of codes into beats: element 0 lowest, padded with zeros to whole bytes.

    Args:
        codes: integers (beats, elements); the low `bits` of each are used.
        bits: width of an element.

    Returns:
        uint8 (beats, ceil(elements * bits / 8)), lowest byte first.
    """
    word = codes.astype("<i8").view(np.uint8).reshape(*codes.shape, 8)[..., : -(-bits // 8)]
    if bits % 8 == 0:
        return np.ascontiguousarray(word).reshape(len(codes), -1)
    lanes = np.unpackbits(word, axis=-1, bitorder="little", count=bits)
    return np.packbits(lanes.reshape(len(codes), -1), axis=1, bitorder="little")


def unpack(beats: np.ndarray, elements: int, bits: int) -> np.ndarray:
    """Return the unsigned codes, int64 (beats, elements), that `pack` packed."""
    flat = np.unpackbits(beats, axis=1, bitorder="little", count=elements * bits)
    return flat.reshape(len(beats), elements, bits).astype(np.int64) @ (1 << np.arange(bits))


def write_stimulus(
    config: AcceleratorConfig, jobs: Sequence[TileJob], alone: Sequence[bool], folder: Path
) -> None:
    """Write ``param.bin``, ``weight.bin`` and ``act.bin`` for `jobs` into `folder`.

    Args:
        config: the accelerator.
        jobs: output tiles in the order in which they are sent.
        alone: for each job, whether it is sent only after all output of those before it has left.
        folder: existing folder.
    """
    with (
        (folder / "param.bin").open("wb") as param,
        (folder / "weight.bin").open("wb") as weight,
        (folder / "act.bin").open("wb") as act,
    ):
        for index, job in enumerate(jobs):
            after = index if alone[index] else 0
            words = np.array(param_words(config, job), dtype=np.int64)[:, None]
            param.write(_records(pack(words, 32), after, period=len(words)))
            beats = stream_beats(config, job)
            packed = pack(beats.weights, config.weight_bits)
            weight.write(_records(packed, after, period=beats.weight_last))
            act.write(_records(pack(beats.acts, config.act_bits), after, period=beats.act_last))


def _records(beats: np.ndarray, after: int, *, period: int) -> bytes:
    """Return the file records of one job's beats; tlast ends every `period` beats."""
    records = np.empty((len(beats), 5 + beats.shape[1]), np.uint8)
    records[:, :4] = np.frombuffer(after.to_bytes(4, "big"), np.uint8)
    records[:, 4] = 0
    records[period - 1 :: period, 4] = _LAST
    records[0, 4] |= _FIRST
    records[:, 5:] = beats[:, ::-1]
    return records.tobytes()


class SimulationError(RuntimeError):
    """The simulator failed, or the accelerator hung; the message says where."""


@dataclass(frozen=True, kw_only=True)
class TileTiming:
    """When an output tile ran, in cycles since reset.

    Attributes:
        first_accept: cycle in which its first activation beat was accepted.
        last_output: cycle in which its last output beat was taken.
    """

    first_accept: int
    last_output: int


@dataclass(frozen=True, kw_only=True, eq=False)
class RunResult:
    """What a run of output tiles gave.

    Attributes:
        outputs: of every job, in order. The violation counts of a tile are exact where no other
            tile was in flight; of tiles sent back to back only their sum is.
        timings: cycles of every job, see TileTiming.
        cycles: from the first accepted activation beat to the last output beat of the run.
        seconds: wall-clock of the simulation.
    """

    outputs: list[TileOutput]
    timings: list[TileTiming]
    cycles: int
    seconds: float

    @property
    def cycles_per_second(self) -> float:
        """Simulated cycles per second of wall-clock."""
        return self.timings[-1].last_output / self.seconds


def read_timings(folder: Path) -> list[TileTiming]:
    """Return the timings of the output tiles that left, from ``tiles.txt``."""
    pairs = [line.split() for line in (folder / "tiles.txt").read_text().splitlines()]
    return [TileTiming(first_accept=int(a), last_output=int(b)) for a, b in pairs]


def read_counters(folder: Path) -> np.ndarray:
    """Return what each output tile added to the counters, int64 (tiles, 2), ``counters.txt``.

    Columns: violations_in, violations_out. What was counted between a tile's start and the next
    one's is its own where tiles do not overlap; the sum over tiles is exact in any case.

    Raises:
        ProtocolError: an offered output beat changed before it was taken.
    """
    lines = (folder / "counters.txt").read_text().splitlines()
    values = np.array([[int(v) for v in line.split()] for line in lines], dtype=np.int64)
    if values[-1, 2]:
        raise ProtocolError(f"m_axis_out changed an offered beat {values[-1, 2]} times")
    return np.diff(values[:, :2], axis=0, prepend=0)


def read_outputs(
    config: AcceleratorConfig, jobs: Sequence[TileJob], folder: Path
) -> list[np.ndarray]:
    """Return the output rows, int64 (M, cols), of every job from ``output.txt``.

    Raises:
        ProtocolError: too few or too many beats, or a tlast anywhere but on the last of a tile.
    """
    data = np.frombuffer((folder / "output.txt").read_bytes(), np.uint8)
    size = -(-config.cols * config.act_bits // 8)
    width = 2 + 2 * size + 1  # tlast, blank, hexadecimal digits, newline
    lines = data.reshape(-1, width)
    digits = np.ascontiguousarray(lines[:, 2:])  # bytes.fromhex skips the newlines
    beats = np.frombuffer(bytes.fromhex(digits.tobytes().decode()), np.uint8)
    return output_rows(config, jobs, beats.reshape(-1, size)[:, ::-1], lines[:, 0] == ord("1"))


def output_beats(config: AcceleratorConfig, job: TileJob) -> int:
    """Return the beats of a job on ``m_axis_out``."""
    return job.m * (config.raw_beats if job.raw else 1)


def output_rows(
    config: AcceleratorConfig, jobs: Sequence[TileJob], beats: np.ndarray, last: np.ndarray
) -> list[np.ndarray]:
    """Return the output rows, int64 (M, cols), of every job.

    Args:
        config: the accelerator.
        jobs: what was sent.
        beats: uint8 (beats, bytes) tdata of ``m_axis_out``, lowest byte first.
        last: bool (beats,) tlast.

    Raises:
        ProtocolError: as `read_outputs`.
    """
    codes = unpack(beats, config.cols, config.act_bits)
    counts = [output_beats(config, job) for job in jobs]
    ends = np.cumsum(counts) - 1
    if len(codes) != sum(counts):
        raise ProtocolError(f"{len(codes)} output beats instead of {sum(counts)}")
    if not np.array_equal(np.flatnonzero(last), ends):
        wrong = sorted(set(np.flatnonzero(last)) ^ set(ends))[0]
        raise ProtocolError(f"tlast is wrong at output beat {wrong}")
    rows, start = [], 0
    for job, count in zip(jobs, counts, strict=True):
        part, bits = codes[start : start + count], config.act_bits
        start += count
        signed = job.signed_out
        if job.raw:
            # Beat j of a row carries bits j*act_bits.. of every sign-extended sum.
            slices = part.reshape(job.m, config.raw_beats, config.cols)
            weights = np.int64(1) << (np.arange(config.raw_beats) * config.act_bits)
            part = (slices * weights[None, :, None]).sum(axis=1)
            bits, signed = config.raw_beats * config.act_bits, True
        rows.append(part - ((part >> (bits - 1)) << bits) if signed else part)
    return rows
