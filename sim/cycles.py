# SPDX-License-Identifier: Apache-2.0
"""When the output tiles of a stream run, from their sizes alone: exact while nothing stalls."""

from __future__ import annotations

from collections.abc import Sequence

from hdl.config import AcceleratorConfig
from hdl.schedule import k_tile_period, output_latency, param_word_count
from hdl.tile import TileJob, k_tiles

# From the last parameter word to the first beat of its tile, behind a tile that is being accepted.
_BEHIND_TILE = 3


def tile_times(config: AcceleratorConfig, jobs: Sequence[TileJob]) -> list[tuple[int, int]]:
    """Return (cycle of the first activation beat, of the last output beat) of every tile.

    Cycle 0 is the first beat of the first tile; senders and receiver are always ready. A tile
    starts when the one before has been accepted and its own parameter words are in, and those
    wait until the tile before the last has left: there are two sets of parameter registers.
    An output-stationary tile ends no sooner than the rows of the one before have left the array.
    """
    words = param_word_count(config)
    times: list[tuple[int, int]] = []
    ends = 0
    for index, job in enumerate(jobs):
        start, left = 0, -1
        if index > 0:
            before = jobs[index - 1]
            accepting = k_tiles(config, before) * k_tile_period(config, before.m)
            start = times[-1][0] + max(accepting, words + _BEHIND_TILE)
            left = times[-1][1]
        if index > 1:
            # Words come from two cycles before its last output on.
            start = max(start, times[-2][1] + words)
        accepted = (k_tiles(config, job) - 1) * k_tile_period(config, job.m)
        if index > 0 and config.is_os:
            # A column gives one row a cycle, behind the last beat of its tile.
            start = max(start, ends + jobs[index - 1].m - accepted)
        ends = start + accepted
        beats = job.m * (config.raw_beats if job.raw else 1)
        first = ends + output_latency(config)
        times.append((start, max(first - 1, left) + beats))
    return times


def stream_cycles(config: AcceleratorConfig, jobs: Sequence[TileJob]) -> int:
    """Return the cycles from the first accepted beat to the last output beat of a stream."""
    return tile_times(config, jobs)[-1][1] + 1
