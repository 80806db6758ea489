# SPDX-License-Identifier: Apache-2.0
"""Runs output tiles through the simulated Verilog, and register faults in it, without cocotb.

One process of injector.cpp per accelerator stays alive: tiles are loaded once, and each list of
faults is a run of its own that begins with the same state. Only stimulus, faults and outputs cross
into Python. `sim.runner` does the same under cocotb, some hundred times slower; the tests hold the
two equal.
"""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from faultinj.faults import KINDS, RegisterFault, mask_of
from hdl.config import AcceleratorConfig
from hdl.registers import CORE, register_slice
from hdl.schedule import k_tile_period
from hdl.tile import TileJob, TileOutput, k_tiles, param_words, stream_beats
from sim.build import build_injector, stream_bytes
from sim.streams import (
    ProtocolError,
    RunResult,
    SimulationError,
    TileTiming,
    output_beats,
    output_rows,
    pack,
)
from trilat.errors import InputError

_RESET_CYCLES = 4
_ALWAYS = -(1 << 31)
_LAST, _FIRST = 1, 2
# States kept of a run without faults, at most about so many, and the least cycles between two.
_STATES, _LEAST_INTERVAL = 256, 16
# Lists of faults in a request.
_BATCH = 256

COMPLETE, HANG, FRAMING = "complete", "hang", "framing"


@dataclass(frozen=True, kw_only=True, eq=False)
class FaultyRun:
    """What came out of a tile under faults.

    Attributes:
        outcome: ``complete``; ``hang``, where nothing moved any more although output was missing;
            ``framing``, where the output had the wrong number of beats, tlast in the wrong place or
            changed while it was offered.
        output: of a complete run, else None.
        simulated: cycles that were simulated; the others are those of the run without faults.
    """

    outcome: str
    output: TileOutput | None
    simulated: int


class Injector:
    """A running simulation of one accelerator; use it in a ``with`` statement.

    Args:
        config: the accelerator; its Verilog is generated and compiled, or taken from `cache`.
        cache: folder of finished simulators.
        trace: a build that can write waveforms, see `trace`.

    Raises:
        InputError: a system tool is missing.
    """

    def __init__(self, config: AcceleratorConfig, cache: Path, *, trace: bool = False) -> None:
        self.config = config
        program = build_injector(config, cache, trace=trace)
        self._process = subprocess.Popen(
            [str(program.resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._registers: dict[tuple[str, int | None], int] = {}
        self._jobs: list[TileJob] = []
        self._start = 0

    @property
    def pid(self) -> int:
        """Return the number of the simulator's process, to measure it by."""
        return self._process.pid

    def __enter__(self) -> Injector:
        """Return the injector."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def stream(
        self,
        jobs: Sequence[TileJob],
        *,
        stalls: float = 0.0,
        seed: int = 0,
        shortcuts: bool = False,
    ) -> RunResult:
        """Run output tiles back to back without faults; those of `inject` are then these.

        Args:
            jobs: output tiles, at least one.
            stalls: chance in every cycle that a stream pauses, 0..0.99, on each of the four.
            seed: of the pauses.
            shortcuts: keep states, so that runs with faults begin ahead of the first one and end
                when nothing differs any more. Changes no result.

        Raises:
            InputError: `stalls` is out of range.
            SimulationError: the accelerator hung or the simulator ended.
            sim.streams.ProtocolError: an output stream with wrong length, tlast or handshake.
        """
        if not 0 <= stalls <= 0.99:
            raise InputError(f"stalls must be a chance in 0..0.99, not {stalls}")
        config = self.config
        beats = sum(output_beats(config, job) for job in jobs)
        about = sum(_cycles_about(config, job) for job in jobs)
        interval = max(_LEAST_INTERVAL, about // _STATES) if shortcuts else 0
        # The longest legal silence: the pipeline, the drain of a tile, the parameter words.
        silence = 400 + 8 * (config.rows + config.cols + max(output_beats(config, j) for j in jobs))
        settings = struct.pack(
            "<6IQ",
            beats,
            stream_bytes(config.cols, config.act_bits),
            int(silence / (1 - stalls)),
            2 * (config.rows + config.cols) + 16,
            round(stalls * 65536),
            interval,
            seed % (1 << 64),
        )
        start = time.perf_counter()
        self._send(b"L" + settings + b"".join(_streams(config, jobs)))
        run = self._receive()
        seconds = time.perf_counter() - start
        if run.hung:
            raise SimulationError(
                f"the accelerator hung in output tile {len(run.last_output)} of {len(jobs)}: "
                f"nothing moved for {int(silence / (1 - stalls))} cycles (valid and ready of "
                f"param, weight, act, out: {run.handshakes:08b})"
            )
        if run.breaches:
            raise ProtocolError(f"m_axis_out changed an offered beat {run.breaches} times")
        rows = output_rows(config, jobs, run.beats, run.last)
        self._jobs = list(jobs)
        self._start = run.first_accept[0]
        counts = np.diff(np.vstack([run.counted[1:], run.violations]), axis=0, prepend=0)
        return RunResult(
            outputs=[
                TileOutput(rows=row, violations_in=int(count[0]), violations_out=int(count[1]))
                for row, count in zip(rows, counts, strict=True)
            ],
            timings=[
                TileTiming(first_accept=first, last_output=last)
                for first, last in zip(run.first_accept, run.last_output, strict=True)
            ],
            cycles=run.last_output[-1] - run.first_accept[0] + 1,
            seconds=seconds,
        )

    def load(self, job: TileJob, *, shortcuts: bool = True) -> TileOutput:
        """Run one output tile without faults, to run it with faults then; see `stream`."""
        return self.stream([job], shortcuts=shortcuts).outputs[0]

    def inject(self, lists: Sequence[Sequence[RegisterFault]]) -> Iterator[FaultyRun]:
        """Yield what comes out of the loaded tile under each list of simultaneous faults.

        Cycles count from the tile's first activation beat in the run without faults, and are
        negative ahead of it. A cycle behind the end of a run changes nothing.

        Raises:
            InputError: no such register or bit, or a cycle ahead of the reset.
            SimulationError: the simulator ended.
        """
        encoded = [self._encode(faults) for faults in lists]
        for at in range(0, len(encoded), _BATCH):
            part = encoded[at : at + _BATCH]
            self._send(b"F" + struct.pack("<I", len(part)) + b"".join(part))
            for _ in part:
                yield self._faulty(self._receive())

    def trace(
        self, faults: Sequence[RegisterFault], file: Path, window: tuple[int, int]
    ) -> FaultyRun:
        """Run the loaded tile under faults and write the waveform of a window of cycles (VCD).

        The injector must have been made with `trace`.

        Args:
            faults: simultaneous faults.
            file: to write; time 2 (c + RESET) is the middle of cycle c after reset.
            window: first and last cycle, counted as the faults' are.
        """
        path = str(file.resolve()).encode()
        first, last = (self._start + cycle for cycle in window)
        head = struct.pack("<I", len(path)) + path + struct.pack("<2i", first, last)
        self._send(b"T" + head + self._encode(faults))
        return self._faulty(self._receive())

    def _faulty(self, run: _Answer) -> FaultyRun:
        outcome, output = HANG, None
        if not run.hung:
            try:
                rows = output_rows(self.config, self._jobs, run.beats, run.last)
                outcome = FRAMING if run.breaches else COMPLETE
            except ProtocolError:
                outcome = FRAMING
            if outcome == COMPLETE:
                totals = (int(v) for v in run.violations)
                output = TileOutput(
                    rows=np.concatenate(rows), **dict(zip(_COUNTERS, totals, strict=True))
                )
        return FaultyRun(outcome=outcome, output=output, simulated=run.simulated)

    def _encode(self, faults: Sequence[RegisterFault]) -> bytes:
        """Return injector.cpp's list of faults."""
        parts = [struct.pack("<I", len(faults))]
        for fault in faults:
            place = register_slice(self.config, fault.register, fault.row, fault.col)
            if not fault.bits or min(fault.bits) < 0 or max(fault.bits) >= place.bits:
                raise InputError(f"{fault.register} has bits 0..{place.bits - 1}, not {fault.bits}")
            cycle = _ALWAYS if fault.cycle is None else self._start + fault.cycle
            if fault.cycle is not None and cycle < -_RESET_CYCLES:
                raise InputError(
                    f"cycle {fault.cycle} is ahead of the reset, "
                    f"{self._start + _RESET_CYCLES} cycles before the first activation beat"
                )
            target = self._register(place.path, place.word)
            kind = KINDS.index(fault.kind)
            parts.append(struct.pack("<i4I", cycle, target, kind, place.low, mask_of(fault.bits)))
        return b"".join(parts)

    def _register(self, path: str, word: int | None) -> int:
        """Return injector.cpp's number of a register."""
        if (path, word) not in self._registers:
            scope, _, variable = f"TOP.{CORE}.{path}".rpartition(".")
            texts = [struct.pack("<I", len(t)) + t.encode() for t in (scope, variable)]
            self._send(b"R" + b"".join(texts) + struct.pack("<i", -1 if word is None else word))
            number = struct.unpack("<i", self._read(4))[0]
            if number < 0:
                raise SimulationError(f"the simulator has no register {path}")
            self._registers[path, word] = number
        return self._registers[path, word]

    def _receive(self) -> _Answer:
        head = struct.unpack("<Ii5I", self._read(28))
        first_accept, last_output, counted = (self._numbers() for _ in range(3))
        size = struct.unpack("<I", self._read(4))[0]
        width = 1 + stream_bytes(self.config.cols, self.config.act_bits)
        beats = np.frombuffer(self._read(size), np.uint8).reshape(-1, width)
        return _Answer(
            hung=head[0] != 0,
            simulated=head[2],
            handshakes=head[3],
            breaches=head[4],
            violations=np.array(head[5:], dtype=np.int64),
            first_accept=first_accept.tolist(),
            last_output=last_output.tolist(),
            counted=counted.astype(np.int64).reshape(-1, 2),
            beats=beats[:, 1:],
            last=beats[:, 0] == _LAST,
        )

    def _numbers(self) -> np.ndarray:
        count = struct.unpack("<I", self._read(4))[0]
        return np.frombuffer(self._read(4 * count), "<i4")

    def _pipe(self, stream: IO[bytes] | None) -> IO[bytes]:
        assert stream is not None
        return stream

    def _send(self, data: bytes) -> None:
        pipe = self._pipe(self._process.stdin)
        try:
            pipe.write(data)
            pipe.flush()
        except BrokenPipeError:
            raise SimulationError(f"the simulator ended: exit {self._process.wait()}") from None

    def _read(self, size: int) -> bytes:
        data = self._pipe(self._process.stdout).read(size)
        if len(data) != size:
            raise SimulationError(f"the simulator ended: exit {self._process.wait()}")
        return data


def stream_jobs(
    config: AcceleratorConfig,
    jobs: Sequence[TileJob],
    *,
    cache: Path,
    stalls: float = 0.0,
    seed: int = 0,
) -> RunResult:
    """Run output tiles back to back in a simulation of their own; see `Injector.stream`."""
    with Injector(config, cache) as injector:
        return injector.stream(jobs, stalls=stalls, seed=seed)


_COUNTERS = ("violations_in", "violations_out")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answer:
    """What injector.cpp says of a run."""

    hung: bool
    simulated: int
    handshakes: int
    breaches: int
    violations: np.ndarray
    first_accept: list[int]
    last_output: list[int]
    counted: np.ndarray
    beats: np.ndarray
    last: np.ndarray


def _streams(config: AcceleratorConfig, jobs: Sequence[TileJob]) -> Iterator[bytes]:
    """Yield the number, the bytes and the beats of the three input streams."""
    parts: list[list[np.ndarray]] = [[], [], []]
    for job in jobs:
        words = np.array(param_words(config, job), dtype=np.int64)[:, None]
        beats = stream_beats(config, job)
        for part, packed, period in (
            (parts[0], pack(words, 32), len(words)),
            (parts[1], pack(beats.weights, config.weight_bits), beats.weight_last),
            (parts[2], pack(beats.acts, config.act_bits), beats.act_last),
        ):
            flags = np.zeros((len(packed), 1), np.uint8)
            flags[period - 1 :: period] = _LAST
            flags[0] |= _FIRST
            part.append(np.hstack([flags, packed]))
    for part in parts:
        data = np.vstack(part)
        yield struct.pack("<2I", len(data), data.shape[1] - 1) + data.tobytes()


def _cycles_about(config: AcceleratorConfig, job: TileJob) -> int:
    return k_tiles(config, job) * k_tile_period(config, job.m) + output_beats(config, job) + 100
