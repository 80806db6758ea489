# SPDX-License-Identifier: Apache-2.0
"""The emitted Verilog in simulation: golden outputs, cycles, and register flips as predicted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from faultinj.faults import REGISTERS, RegisterFault
from faultinj.register_times import first_cycle
from faultinj.tile_faults import predict
from hdl.config import AcceleratorConfig
from hdl.registers import PARAMETER_CLASSES, register_slice
from hdl.schedule import k_tile_period
from hdl.tile import TileJob, k_tiles, reference_output
from sim import runner
from sim.cycles import tile_times
from sim.jobs import random_job
from sim.replay import FaultyTile, compare_jobs, equal_outputs, flip_tiles, replay
from sim.runner import SimulationError, run_jobs
from trilat.errors import InputError

# One word per sign and width, every protection, single rows and columns, odd shapes, two and four
# columns to a multiplier block.
CONFIGS = {
    "1x1": AcceleratorConfig(
        rows=1, cols=1, act_bits=8, weight_bits=8, max_k=12, psum_depth=9, protect="none"
    ),
    "1x8": AcceleratorConfig(
        rows=1, cols=8, act_bits=4, weight_bits=2, max_k=12, psum_depth=6, protect="clip",
        mult="dsp", dsp_pack=4,
    ),
    "5x3": AcceleratorConfig(
        rows=5, cols=3, act_bits=2, weight_bits=8, max_k=33, psum_depth=16, protect="zero"
    ),
    "4x4": AcceleratorConfig(
        rows=4, cols=4, act_bits=8, weight_bits=4, max_k=64, psum_depth=32,
        protect="clip", protect_place="output", bounds="layer",
    ),
    "os 5x3": AcceleratorConfig(
        dataflow="os", rows=5, cols=3, act_bits=8, weight_bits=4, max_k=70, protect="zero",
        mult="lut", requant="mult",
    ),
    "os 3x4": AcceleratorConfig(
        dataflow="os", rows=3, cols=4, max_k=40, protect="clip", mult="dsp", dsp_pack=2
    ),
}  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(params=list(CONFIGS))
def config(request) -> AcceleratorConfig:
    return CONFIGS[request.param]


def streamed_classes(config: AcceleratorConfig) -> list[str]:
    """Classes whose cycles hold for tiles in a stream too; test_inject.py has the others."""
    alone = {"ring", "weight_loading", *PARAMETER_CLASSES}
    alone |= set() if config.is_os else {"weight_skew"}
    return [name for name in REGISTERS[config.dataflow] if name not in alone]


def random_fault(config: AcceleratorConfig, job: TileJob, rng, bits: int) -> RegisterFault:
    """A flip in any register, in the cycles in which the tile passes it or next to them."""
    places = [
        (register, row, col)
        for register in streamed_classes(config)
        for row in range(max(config.rows, config.cols))
        for col in range(max(config.rows, config.cols))
        if exists(config, register, row, col)
    ]
    names = sorted({place[0] for place in places})
    register = names[rng.integers(len(names))]
    places = [place for place in places if place[0] == register]
    _, row, col = places[rng.integers(len(places))]
    width = register_slice(config, register, row, col).bits
    chosen = rng.choice(width, min(bits, width), replace=False)
    fault = RegisterFault(
        layer="tile", image=0, tile=0, register=register, row=row, col=col,
        bits=tuple(int(b) for b in chosen), cycle=0,
    )  # fmt: skip
    span = k_tile_period(config, job.m) * k_tiles(config, job)
    cycle = first_cycle(config, job.m, fault) + int(rng.integers(-1, span + 1))
    return dataclasses.replace(fault, cycle=max(cycle, 0))


def exists(config: AcceleratorConfig, register: str, row: int, col: int) -> bool:
    try:
        register_slice(config, register, row, col)
    except InputError:
        return False
    return True


@pytest.mark.parametrize("stalls", [0.0, 0.3, 0.8])
def test_random_tiles_give_the_reference_output(config, stalls, sim_cache):
    rng = np.random.default_rng(7)
    jobs = [random_job(config, rng) for _ in range(150)]
    # The hardest sizes for a sum that is read back: short K tiles, several of them.
    jobs += [
        random_job(config, rng, m=min(m, config.max_m), k_tiles=min(4, config.max_k_tiles))
        for m in (1, 2, 3, 2, 1)
        for _ in range(20)
    ]
    run = run_jobs(config, jobs, cache=sim_cache, stalls=stalls, seed=3)
    assert compare_jobs(config, jobs, run.outputs) == []


def test_cycles_are_those_of_the_schedule(config, sim_cache):
    rng = np.random.default_rng(11)
    jobs = [random_job(config, rng) for _ in range(200)]
    run = run_jobs(config, jobs, cache=sim_cache)
    start = run.timings[0].first_accept
    measured = [(t.first_accept - start, t.last_output - start) for t in run.timings]
    assert measured == tile_times(config, jobs)


def test_flips_in_every_register_class_give_the_predicted_outputs(config, sim_cache):
    rng = np.random.default_rng(13)
    jobs = [random_job(config, rng) for _ in range(300)]
    faults = [
        [random_fault(config, job, rng, bits=1 + number % 3) for _ in range(1 + number % 2)]
        for number, job in enumerate(jobs)
    ]
    run = run_jobs(config, jobs, faults, cache=sim_cache)
    predicted = [predict(config, job, group) for job, group in zip(jobs, faults, strict=True)]
    wrong = [
        group
        for output, expected, group in zip(run.outputs, predicted, faults, strict=True)
        if not equal_outputs(output, expected)
    ]
    assert wrong == []
    corrupting = sum(
        not np.array_equal(expected.rows, reference_output(config, job).rows)
        for expected, job in zip(predicted, jobs, strict=True)
    )
    assert corrupting > len(jobs) // 4
    reached = {fault.register for group in faults for fault in group}
    known = streamed_classes(config)
    assert reached == {r for r in known if r != "deskew" or config.cols > 1}


def test_a_named_activation_flip_changes_one_operand_of_the_columns_it_feeds(sim_cache):
    config = CONFIGS["4x4"]
    job = random_job(config, np.random.default_rng(2), m=5, k_tiles=2, raw=True)
    # PE(2, 1) holds beat 3 of K tile 1 in cycle P + 3 + 2 + 1 + 2, P = max(5, 4).
    fault = RegisterFault(
        layer="tile", image=0, tile=0, register="pe_activation", row=2, col=1, bits=(6,),
        cycle=5 + 3 + 2 + 1 + 2,
    )  # fmt: skip
    run = run_jobs(config, [job, job], [[fault], []], cache=sim_cache)
    expected = reference_output(config, job).rows.copy()
    code = int(job.acts[3, 4 + 2])
    flipped = (code & 255) ^ 64
    flipped -= 256 * (job.signed_in and flipped > 127)
    expected[3, 1:] += (flipped - code) * job.weights[4 + 2, 1:]
    assert np.array_equal(run.outputs[0].rows, expected)
    assert np.array_equal(run.outputs[1].rows, reference_output(config, job).rows)


def test_a_wrong_prediction_is_a_disagreement(sim_cache):
    config = CONFIGS["4x4"]
    rng = np.random.default_rng(5)
    tiles = flip_tiles(config, [random_job(config, rng) for _ in range(10)], 20, rng)
    right = replay(config, tiles, cache=sim_cache)
    assert (right.replayed, right.predicted, right.disagreements) == (20, 20, ())
    assert right.corrupting >= 10
    late = [dataclasses.replace(fault, cycle=fault.cycle + 1) for fault in tiles[0].faults]
    rows = tiles[1].predicted.rows.copy()
    rows[0, 2] ^= 1
    wrong = dataclasses.replace(tiles[1].predicted, rows=rows)
    altered: list[FaultyTile] = [
        dataclasses.replace(tiles[0], faults=tuple(late)),
        dataclasses.replace(tiles[1], predicted=wrong),
        *tiles[2:],
    ]
    counts = replay(config, altered, cache=sim_cache)
    assert counts.predicted == 18
    assert counts.disagreements[0]["faults"][0]["cycle"] == late[0].cycle
    listed = counts.disagreements[1]
    assert (listed["row"], listed["col"], listed["words"]) == (0, 2, 1)
    assert (listed["rtl"], listed["expected"]) == (rows[0, 2] ^ 1, rows[0, 2])


def test_a_wrong_output_is_a_disagreement(sim_cache):
    config = CONFIGS["4x4"]
    jobs = [random_job(config, np.random.default_rng(3), m=4) for _ in range(3)]
    outputs = run_jobs(config, jobs, cache=sim_cache).outputs
    weights = jobs[1].weights.copy()
    weights[0, 0] = -weights[0, 0] or 1
    altered = [jobs[0], dataclasses.replace(jobs[1], weights=weights, raw=True), jobs[2]]
    found = compare_jobs(config, altered, outputs)
    assert [entry["tile"] for entry in found if entry["kind"] == "output"] == [1]


def test_a_hang_is_named(sim_cache, monkeypatch):
    config = CONFIGS["4x4"]
    job = random_job(config, np.random.default_rng(3), m=4, k_tiles=2)
    write = runner.write_stimulus

    def without_last_beat(config, jobs, alone, folder):
        write(config, jobs, alone, folder)
        path = folder / "act.bin"
        path.write_bytes(path.read_bytes()[: -(5 + config.rows)])

    monkeypatch.setattr(runner, "write_stimulus", without_last_beat)
    with pytest.raises(SimulationError, match=r"hung in output tile 0 of 1: nothing moved for"):
        run_jobs(config, [job], cache=sim_cache)


def test_bad_requests_are_refused(sim_cache):
    config = CONFIGS["4x4"]
    job = random_job(config, np.random.default_rng(3))
    flip = RegisterFault(
        layer="", image=0, tile=0, register="psum", row=0, col=0, bits=(0,), cycle=3
    )
    early = dataclasses.replace(flip, cycle=-99)
    with pytest.raises(InputError, match=r"^stalls must be a chance in 0\.\.0\.99, not 1$"):
        run_jobs(config, [job], cache=sim_cache, stalls=1)
    with pytest.raises(InputError, match="need a run without stalls"):
        run_jobs(config, [job], [[flip]], cache=sim_cache, stalls=0.1)
    with pytest.raises(InputError, match="cycle -99 is ahead of the tile: -12 is its first"):
        run_jobs(config, [job], [[early]], cache=sim_cache)
