# SPDX-License-Identifier: Apache-2.0
"""Register flips in the simulated Verilog, held against what faultinj predicts for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from faultinj.faults import RegisterFault, to_json
from faultinj.lowering import lower
from faultinj.protection import Protection
from faultinj.tile_faults import predict
from hdl.config import AcceleratorConfig
from hdl.schedule import act_register_cycle, k_tile_period
from hdl.tile import TileJob, TileOutput, k_tiles, reference_output
from quant.network import IntegerNetwork
from sim.inject import FaultyRun, Injector

# How often a fault that would change nothing is drawn again.
_REDRAWS = 30
# Tiles of a layer that faults are drawn in.
_TILES_PER_LAYER = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class FaultyTile:
    """An output tile with the faults that hit it, and what must come out.

    Attributes:
        job: the tile.
        faults: simultaneous or successive flips.
        predicted: by `faultinj.tile_faults.predict`.
        clean: the output without faults.
    """

    job: TileJob
    faults: tuple[RegisterFault, ...]
    predicted: TileOutput
    clean: TileOutput


@dataclass(frozen=True, kw_only=True)
class ReplayCounts:
    """Outcome of a replay: tiles run, tiles as predicted, tiles with a changed output in RTL."""

    replayed: int
    predicted: int
    corrupting: int
    disagreements: tuple[dict[str, Any], ...]


def equal_outputs(one: TileOutput, other: TileOutput) -> bool:
    """Return whether rows and violation counts are the same."""
    return (
        np.array_equal(one.rows, other.rows)
        and one.violations_in == other.violations_in
        and one.violations_out == other.violations_out
    )


def first_difference(rtl: TileOutput, expected: TileOutput) -> dict[str, Any]:
    """Return the first differing word and the counters of two outputs, JSON-able."""
    found: dict[str, Any] = {
        "violations_rtl": [rtl.violations_in, rtl.violations_out],
        "violations_expected": [expected.violations_in, expected.violations_out],
    }
    places = np.argwhere(rtl.rows != expected.rows)
    if len(places):
        row, col = (int(v) for v in places[0])
        found |= {
            "words": len(places),
            "row": row,
            "col": col,
            "rtl": int(rtl.rows[row, col]),
            "expected": int(expected.rows[row, col]),
        }
    return found


def random_flips(
    config: AcceleratorConfig,
    job: TileJob,
    rng: np.random.Generator,
    *,
    layer: str,
    tile: int,
    registers: int,
    bits: int,
) -> tuple[RegisterFault, ...]:
    """Return flips of PE activation registers at random places and times of a tile.

    Nine of ten times lie where the register holds an operand, the others anywhere in the tile.

    Args:
        config: the accelerator.
        job: the tile.
        rng: source of the choices.
        layer, tile: recorded in the faults.
        registers: how many flips, each in a register and a cycle of its own.
        bits: how many bits of each register.
    """
    faults = []
    for _ in range(registers):
        row = int(rng.integers(config.rows))
        col = int(rng.integers(config.col_groups)) * config.dsp_pack
        period, count = k_tile_period(config, job.m), k_tiles(config, job)
        # An output-stationary K tile is one beat of all rows.
        k, beat = int(rng.integers(count)), int(rng.integers(1 if config.is_os else job.m))
        if rng.random() < 0.1:
            beat = int(rng.integers(period))
        chosen = rng.choice(config.act_bits, size=min(bits, config.act_bits), replace=False)
        faults.append(
            RegisterFault(
                layer=layer,
                image=0,
                tile=tile,
                register="pe_activation",
                row=row,
                col=col,
                bits=tuple(sorted(int(b) for b in chosen)),
                cycle=act_register_cycle(config, job.m, row, col, k, beat),
            )
        )
    return tuple(faults)


def draw_faults(
    network: IntegerNetwork,
    config: AcceleratorConfig,
    golden: dict[str, Tensor],
    protection: Protection,
    count: int,
    allowance: float,
    rng: np.random.Generator,
) -> list[FaultyTile]:
    """Return tiles with random flips, spread over all layers.

    Every fifth flips two bits, every tenth also a second register. A draw that changes no output
    word is repeated unless fewer than half of those kept so far are of that kind.

    Args:
        network: the network.
        config: the accelerator.
        golden: input codes of every layer by tensor name, one image.
        protection: as in the accelerator.
        count: how many faulty tiles.
        allowance: cycles that they may take together; above it, they come from the layers with the
            shortest tiles.
        rng: source of the choices.
    """
    layers = []
    for node in network.gemms():
        jobs = [j for _, j in lower(network, config, node, golden[node.inputs[0]], protection)]
        indices = rng.choice(len(jobs), size=min(len(jobs), _TILES_PER_LAYER), replace=False)
        tiles = [(int(i), jobs[i], predict(config, jobs[i], ())) for i in indices]
        layers.append((node.name, tiles))
    return _draw(config, layers, count, allowance, rng)


def flip_tiles(
    config: AcceleratorConfig, jobs: Sequence[TileJob], count: int, rng: np.random.Generator
) -> list[FaultyTile]:
    """Return `count` of the given tiles with random flips, chosen as in `draw_faults`."""
    tiles = [(i, job, predict(config, job, ())) for i, job in enumerate(jobs)]
    return _draw(config, [("random", tiles)], count, float("inf"), rng)


def _draw(
    config: AcceleratorConfig,
    layers: Sequence[tuple[str, Sequence[tuple[int, TileJob, TileOutput]]]],
    count: int,
    allowance: float,
    rng: np.random.Generator,
) -> list[FaultyTile]:
    """Draw faults in layers given as (name, tiles), tiles as (index, job, output)."""
    costs = [max(tile_cycles_about(config, job) for _, job, _ in tiles) for _, tiles in layers]
    kept: list[FaultyTile] = []
    spent, silent = 0.0, 0
    for number in range(count):
        chosen = number % len(layers)
        if spent + costs[chosen] > allowance:
            chosen = int(np.argmin(costs))
        spent += costs[chosen]
        name, tiles = layers[chosen]
        for _ in range(_REDRAWS):
            index, job, clean = tiles[int(rng.integers(len(tiles)))]
            faults = random_flips(
                config,
                job,
                rng,
                layer=name,
                tile=index,
                registers=2 if number % 10 == 9 else 1,
                bits=2 if number % 5 == 4 else 1,
            )
            predicted = predict(config, job, faults)
            corrupting = not np.array_equal(predicted.rows, clean.rows)
            if corrupting or 2 * (silent + 1) <= number + 1:
                break
        silent += not corrupting
        kept.append(FaultyTile(job=job, faults=faults, predicted=predicted, clean=clean))
    return kept


def compare_jobs(
    config: AcceleratorConfig, jobs: Sequence[TileJob], outputs: Sequence[TileOutput]
) -> list[dict[str, Any]]:
    """Return the disagreements of fault-free tiles with `hdl.tile.reference_output`.

    Violations are compared in sum: those of tiles sent back to back have no exact owner.
    """
    expected = [reference_output(config, job) for job in jobs]
    found = [
        {"kind": "output", "tile": index, **first_difference(ours, theirs)}
        for index, (ours, theirs) in enumerate(zip(outputs, expected, strict=True))
        if not np.array_equal(ours.rows, theirs.rows)
    ]
    for name in ("violations_in", "violations_out"):
        ours, theirs = (sum(getattr(o, name) for o in group) for group in (outputs, expected))
        if ours != theirs:
            found.append({"kind": name, "rtl": ours, "expected": theirs})
    return found


def tile_cycles_about(config: AcceleratorConfig, job: TileJob) -> int:
    """Return about how many cycles a tile takes alone, to plan with."""
    outputs = job.m * (config.raw_beats if job.raw else 1)
    return k_tiles(config, job) * k_tile_period(config, job.m) + outputs + 4 * config.cols + 40


def replay(
    config: AcceleratorConfig, tiles: Sequence[FaultyTile], *, cache: Path, listed: int = 20
) -> ReplayCounts:
    """Run faulty tiles through the RTL and compare each with its prediction, bit for bit.

    Args:
        config: the accelerator.
        tiles: what to run.
        cache: folder of finished simulators.
        listed: disagreements to describe; all of them are counted.
    """
    predicted = corrupting = 0
    disagreements: list[dict[str, Any]] = []
    for tile, run in _faulty_runs(config, tiles, cache):
        output = run.output
        corrupting += output is None or not np.array_equal(output.rows, tile.clean.rows)
        if output is not None and equal_outputs(output, tile.predicted):
            predicted += 1
        elif len(disagreements) < listed:
            difference = {} if output is None else first_difference(output, tile.predicted)
            disagreements.append(
                {
                    "kind": "fault",
                    "faults": [to_json(fault) for fault in tile.faults],
                    "outcome": run.outcome,
                    **difference,
                }
            )
    return ReplayCounts(
        replayed=len(tiles),
        predicted=predicted,
        corrupting=corrupting,
        disagreements=tuple(disagreements),
    )


def _faulty_runs(
    config: AcceleratorConfig, tiles: Sequence[FaultyTile], cache: Path
) -> Iterator[tuple[FaultyTile, FaultyRun]]:
    """Yield every tile with what came out of it, those of one job together."""
    by_job: dict[int, list[FaultyTile]] = {}
    for tile in tiles:
        by_job.setdefault(id(tile.job), []).append(tile)
    with Injector(config, cache) as injector:
        for group in by_job.values():
            injector.load(group[0].job)
            yield from zip(group, injector.inject([t.faults for t in group]), strict=True)
