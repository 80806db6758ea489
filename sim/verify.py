# SPDX-License-Identifier: Apache-2.0
"""Holds the simulated Verilog against the integer engine, the schedule and predicted faults."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from faultinj import protection as protected
from faultinj.lowering import check_fits, gemm_shape, lower, raise_output
from faultinj.protection import UNPROTECTED, Protection
from faultinj.tile_faults import predict
from hdl.config import AcceleratorConfig
from hdl.schedule import GemmShape, OutputTile, k_tile_period, network_cycles
from hdl.tile import TileJob, TileOutput, k_tiles
from quant.network import Gemm, IntegerNetwork
from sim.cycles import stream_cycles
from sim.inject import Injector, stream_jobs
from sim.jobs import random_job
from sim.replay import draw_faults, first_difference, replay, tile_cycles_about
from trilat.progress import NoProgress, Progress

# Disagreements that a result lists one by one; all of them are counted.
LISTED = 20
# Shares of the budget for the streamed tiles and for the replayed faults; the rest is Python's.
_STREAM_SHARE, _FAULT_SHARE = 0.6, 0.2
# Cycles that the speed of the simulation is measured over.
_MEASURED_CYCLES = 20_000


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What was compared and how much of it agreed.

    Attributes:
        whole_image: every output tile of one image was streamed, each layer fed with what the RTL
            gave for the one before; else tiles of every layer were sampled.
        tiles, tiles_total: output tiles streamed, and of one whole image.
        macs_share: share of the image's multiplications in the streamed tiles.
        layers: layers with at least one streamed tile.
        outputs_compared, outputs_equal: output words (codes or raw sums) against the engine's.
        violations, violations_expected: of the protection counters.
        cycles, cycles_predicted: of the streamed tiles, simulated and from the schedule.
        faults_replayed: register flips run in RTL, each in a tile of its own.
        faults_predicted: of those, the ones whose whole tile came out as predicted.
        faults_corrupting: of those, the ones that changed an output word.
        cycles_per_second: of the simulator.
        seconds: wall-clock of everything, building the simulator included.
        disagreements: the first ones, see `agrees`.
    """

    whole_image: bool
    tiles: int
    tiles_total: int
    macs_share: float
    layers: int
    outputs_compared: int
    outputs_equal: int
    violations: int
    violations_expected: int
    cycles: int
    cycles_predicted: int
    faults_replayed: int
    faults_predicted: int
    faults_corrupting: int
    cycles_per_second: float
    seconds: float
    disagreements: tuple[dict[str, Any], ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether everything that was compared was equal."""
        return (
            self.outputs_compared == self.outputs_equal
            and self.violations == self.violations_expected
            and self.cycles == self.cycles_predicted
            and self.faults_replayed == self.faults_predicted
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return {**asdict(self), "disagreements": list(self.disagreements), "agrees": self.agrees}


def verify(
    network: IntegerNetwork,
    config: AcceleratorConfig,
    codes: Tensor,
    *,
    protection: Protection = UNPROTECTED,
    fault_count: int = 20,
    seed: int = 0,
    budget_s: float = 90.0,
    cache: Path,
    progress: Progress | None = None,
) -> VerifyResult:
    """Stream a network's first image through its RTL and replay faults there.

    Args:
        network: the quantized network.
        config: the accelerator, of the network's widths.
        codes: image codes (N, C, H, W), N >= 1; the first is used.
        protection: as in the accelerator, with bounds.
        fault_count: flips of PE activation registers to replay, every fifth of several bits.
            Of those drawn without effect at most half are kept, so that the comparison is one of
            corrupted outputs.
        seed: of the sampled tiles and faults.
        budget_s: seconds for the simulation; decides whether the whole image is streamed.
        cache: folder of finished simulators.
        progress: where to report.

    Raises:
        InputError: network and accelerator do not fit, or a system tool is missing.
        sim.streams.SimulationError, sim.streams.ProtocolError: the accelerator misbehaves.
    """
    start = time.monotonic()
    progress = progress or NoProgress()
    rng = np.random.default_rng(seed)
    check_fits(network, config)
    image = codes[:1]
    golden, _ = protected.forward(network, image, protection, cols=config.cols)
    with progress.task("building the simulator", 1) as advance:
        speed = measure_speed(config, cache)
        advance(1)
    gemms = network.gemms()
    shapes = {node.name: gemm_shape(network, node) for node in gemms}
    costs = {name: network_cycles(config, [shape]) for name, shape in shapes.items()}
    stream_s = _STREAM_SHARE * budget_s
    whole = sum(costs.values()) / speed <= stream_s
    flow: dict[str, Tensor] = {"input": image}
    parts: list[LayerCheck] = []
    with progress.task("RTL against the engine", sum(costs.values())) as advance:
        for node in network.nodes:
            inputs = [flow[name] for name in node.inputs]
            if not isinstance(node, Gemm):
                flow[node.name] = protected.run_node(network, node, inputs, protection)
                continue
            tiles = list(lower(network, config, node, inputs[0], protection))
            chosen = list(range(len(tiles)))
            if not whole:
                share = costs[node.name] / sum(costs.values())
                chosen = sample_tiles(config, tiles, speed * stream_s * share, rng)
            rows, part = check_layer(
                config, shapes[node.name], node.name, tiles, chosen, golden[node.name], cache=cache
            )
            parts.append(part)
            flow[node.name] = golden[node.name]
            if whole:
                outputs = [(tile, row) for (tile, _), row in zip(tiles, rows, strict=True)]
                flow[node.name] = raise_output(network, config, node, outputs)
            advance(costs[node.name])
    with progress.task("RTL against predicted faults", fault_count) as advance:
        allowance = speed * _FAULT_SHARE * budget_s
        faulty = draw_faults(network, config, golden, protection, fault_count, allowance, rng)
        replayed = replay(config, faulty, cache=cache)
        advance(fault_count)
    macs = sum(s.groups * s.m * s.k * s.n for s in shapes.values())
    found = [d for part in parts for d in part.disagreements] + list(replayed.disagreements)
    return VerifyResult(
        whole_image=whole,
        tiles=sum(p.tiles for p in parts),
        tiles_total=sum(p.tiles_total for p in parts),
        macs_share=sum(p.macs for p in parts) / macs,
        layers=len(parts),
        outputs_compared=sum(p.compared for p in parts),
        outputs_equal=sum(p.equal for p in parts),
        violations=sum(p.violations for p in parts),
        violations_expected=sum(p.violations_expected for p in parts),
        cycles=sum(p.cycles for p in parts),
        cycles_predicted=sum(p.cycles_predicted for p in parts),
        faults_replayed=replayed.replayed,
        faults_predicted=replayed.predicted,
        faults_corrupting=replayed.corrupting,
        cycles_per_second=round(speed, 1),
        seconds=round(time.monotonic() - start, 3),
        disagreements=tuple(found[:LISTED]),
    )


@dataclass(frozen=True, kw_only=True)
class LayerCheck:
    """Comparison of one layer's streamed tiles; fields as in VerifyResult, `macs` a count."""

    tiles: int
    tiles_total: int
    macs: int
    compared: int
    equal: int
    violations: int
    violations_expected: int
    cycles: int
    cycles_predicted: int
    disagreements: tuple[dict[str, Any], ...]


def check_layer(
    config: AcceleratorConfig,
    shape: GemmShape,
    name: str,
    tiles: Sequence[tuple[OutputTile, TileJob]],
    chosen: Sequence[int],
    golden: Tensor,
    *,
    cache: Path,
) -> tuple[list[np.ndarray], LayerCheck]:
    """Stream tiles of one layer back to back and compare every output word with the engine's.

    Args:
        config: the accelerator.
        shape: of the layer's GEMM.
        name: of the layer.
        tiles: all output tiles of the layer.
        chosen: indices of those to stream.
        golden: the layer's output of one image by the engine, (1, out, H, W) or (1, classes).
        cache: folder of finished simulators.

    Returns:
        The output rows of the chosen tiles, and the comparison.
    """
    jobs = [tiles[i][1] for i in chosen]
    run = stream_jobs(config, jobs, cache=cache)
    words = golden.cpu().numpy().astype(np.int64).reshape(shape.groups * shape.n, shape.m)
    compared = equal = macs = violations = 0
    found: list[dict[str, Any]] = []
    for index, job, output in zip(chosen, jobs, run.outputs, strict=True):
        tile = tiles[index][0]
        first = tile.group * shape.n
        expected = np.zeros_like(output.rows)
        expected[:, : tile.n1 - tile.n0] = words[
            first + tile.n0 : first + tile.n1, tile.m0 : tile.m1
        ].T
        violations_in, violations_out = _violations(config, job)
        violations += violations_in + violations_out
        macs += (tile.m1 - tile.m0) * (tile.n1 - tile.n0) * shape.k
        compared += output.rows.size
        equal += int((output.rows == expected).sum())
        if not np.array_equal(output.rows, expected):
            reference = TileOutput(
                rows=expected, violations_in=violations_in, violations_out=violations_out
            )
            found.append(
                {
                    "kind": "output",
                    "layer": name,
                    "tile": index,
                    **first_difference(output, reference),
                }
            )
    counted = sum(o.violations_in + o.violations_out for o in run.outputs)
    whole = len(jobs) == len(tiles)
    predicted = network_cycles(config, [shape]) if whole else stream_cycles(config, jobs)
    for kind, ours, theirs in (
        ("violations", counted, violations),
        ("cycles", run.cycles, predicted),
    ):
        if ours != theirs:
            found.append({"kind": kind, "layer": name, "rtl": ours, "expected": theirs})
    return [o.rows for o in run.outputs], LayerCheck(
        tiles=len(jobs),
        tiles_total=len(tiles),
        macs=macs,
        compared=compared,
        equal=equal,
        violations=counted,
        violations_expected=violations,
        cycles=run.cycles,
        cycles_predicted=predicted,
        disagreements=tuple(found),
    )


def _violations(config: AcceleratorConfig, job: TileJob) -> tuple[int, int]:
    """Return what a tile without faults adds to the counters, by the specification."""
    if config.protect == "none":
        return 0, 0
    clean = predict(config, job, ())
    return clean.violations_in, clean.violations_out


def measure_speed(config: AcceleratorConfig, cache: Path) -> float:
    """Return simulated cycles per second of wall-clock."""
    rng = np.random.default_rng(0)
    m = min(config.max_m, 64)
    tiles = min(config.max_k_tiles, 32 * config.rows // config.k_step)
    job = random_job(config, rng, m=m, k_tiles=tiles, raw=False)
    count = 1 + _MEASURED_CYCLES // (k_tile_period(config, m) * k_tiles(config, job))
    with Injector(config, cache) as injector:
        return injector.stream([job] * count).cycles_per_second


def sample_tiles(
    config: AcceleratorConfig,
    tiles: Sequence[tuple[OutputTile, TileJob]],
    allowance: float,
    rng: np.random.Generator,
) -> list[int]:
    """Return which of a layer's tiles to stream, ascending.

    The first tile, the last one in n, the last one in m and the very last one are always among
    them (every tile has the last K tile); random ones follow up to `allowance` cycles.
    """
    places = [tile for tile, _ in tiles]
    n_last, m_last = max(p.n0 for p in places), max(p.m0 for p in places)
    edges = {(0, 0), (n_last, 0), (0, m_last), (n_last, m_last)}
    chosen = {i for i, p in enumerate(places) if p.group == 0 and (p.n0, p.m0) in edges}
    chosen.add(len(tiles) - 1)
    spent = sum(tile_cycles_about(config, tiles[i][1]) for i in chosen)
    for index in rng.permutation(len(tiles)):
        cost = tile_cycles_about(config, tiles[index][1])
        if int(index) in chosen or spent + cost > allowance:
            continue
        chosen.add(int(index))
        spent += cost
    return sorted(chosen)
