# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtl_bench import Bench, job_beats, random_job, widths
from rtl_configs import CONFIGS

from hdl.config import AcceleratorConfig
from hdl.schedule import (
    GemmShape,
    act_register_cycle,
    k_tile_period,
    layer_cycles,
    network_cycles,
    output_latency,
    output_tiles,
    stream_bytes,
    tile_cycles,
)

# Output tiles as (M, K tiles, raw): alone, equal ones, and mixtures in which now the array, now
# the drain, now the parameter words are the slowest.
SEQUENCES = {
    "one": [(2, 1, False)],
    "one deep": [(2, 6, False)],
    "equal short": [(1, 1, False)] * 9,
    "equal long": [(2, 5, False)] * 6,
    "raw": [(2, 2, True)] * 5,
    "raw between": [(1, 3, False), (2, 1, True), (1, 1, False), (2, 4, False), (1, 1, True)],
    "long and short": [(0, 30, False), (0, 1, False), (1, 30, False), (0, 9, True)] * 2,
    "full": [(0, 2, False)] * 4 + [(0, 1, False)] * 5,
    "mixed": [(0, 1, False), (1, 1, False), (0, 3, True), (2, 2, False), (1, 6, False)] * 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("name", CONFIGS)
def test_cycles_equal_those_of_the_rtl(bench: Bench, name: str, sequence: str) -> None:
    config = CONFIGS[name]
    rng = np.random.default_rng(0)
    tiles = [
        (min(m, config.max_m) or config.max_m, min(k, config.max_k_tiles), raw)
        for m, k, raw in SEQUENCES[sequence]
    ]
    jobs = [random_job(config, rng, m=m, k_tiles=k, raw=raw) for m, k, raw in tiles]
    run = bench.run(config, jobs)
    measured = run.out_cycles[-1] - run.act_cycles[0] + 1
    gemms = [GemmShape(m=m, k=k * config.k_step, n=config.cols, raw=raw) for m, k, raw in tiles]
    assert network_cycles(config, gemms) == measured
    m, k, raw = tiles[0]
    beats = m * (config.raw_beats if raw else 1)
    alone = run.out_cycles[beats - 1] - run.act_cycles[0] + 1
    assert tile_cycles(config, m=m, k_tiles=k, raw=raw) == alone
    period = k_tile_period(config, m)
    of_a_k_tile = 1 if config.is_os else m
    expected = [
        run.act_cycles[0] + i * period + beat for i in range(k) for beat in range(of_a_k_tile)
    ]
    assert run.act_cycles[: of_a_k_tile * k] == expected
    last_beat = run.act_cycles[of_a_k_tile * (k - 1)]
    assert run.out_cycles[0] == last_beat + output_latency(config)


def as_single_tiles(config: AcceleratorConfig, gemm: GemmShape) -> list[GemmShape]:
    return [
        GemmShape(m=t.m1 - t.m0, k=t.k_tiles * config.k_step, n=config.cols, raw=gemm.raw)
        for t in output_tiles(config, gemm)
    ]


gemm_shapes = st.builds(
    GemmShape,
    m=st.integers(1, 40),
    k=st.integers(1, 30),
    n=st.integers(1, 60),
    groups=st.integers(1, 5),
    raw=st.booleans(),
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    dataflow=st.sampled_from(["ws", "os"]),
    rows=st.integers(1, 9),
    cols=st.integers(1, 9),
    depth=st.integers(2, 12),
    gemms=st.lists(gemm_shapes, min_size=1, max_size=4),
)
def test_grouping_equal_tiles_changes_nothing(
    dataflow: str, rows: int, cols: int, depth: int, gemms: list[GemmShape]
) -> None:
    config = AcceleratorConfig(dataflow=dataflow, rows=rows, cols=cols, psum_depth=depth, max_k=64)
    singles = [tile for gemm in gemms for tile in as_single_tiles(config, gemm)]
    assert network_cycles(config, gemms) == network_cycles(config, singles)
    if len(gemms) == 1:
        assert layer_cycles(config, gemms[0]) == network_cycles(config, singles)


def test_output_tiles_cover_the_layer_once() -> None:
    config = AcceleratorConfig(rows=4, cols=3, psum_depth=5, max_k=64)
    gemm = GemmShape(m=12, k=9, n=7, groups=2)
    covered = np.zeros((2, 12, 7), dtype=int)
    for tile in output_tiles(config, gemm):
        covered[tile.group, tile.m0 : tile.m1, tile.n0 : tile.n1] += 1
        assert tile.k_tiles == 3
        assert tile.m1 - tile.m0 <= 5 and tile.n1 - tile.n0 <= 3
    assert (covered == 1).all()


def test_vgg_size_by_hand_and_in_no_time() -> None:
    """Where the array is the bottleneck, each K tile costs its period and nothing else."""
    config = AcceleratorConfig()
    conv = GemmShape(m=1024, k=576, n=128)
    tiles = 8 * 4 * 36
    last = tile_cycles(config, m=256, k_tiles=36)
    assert layer_cycles(config, conv) == (tiles - 36) * 256 + last
    start = time.monotonic()
    huge = GemmShape(m=50176, k=4608, n=4096, groups=64)
    assert layer_cycles(config, huge) == (64 * 256 * 196 * 288 - 288) * 256 + tile_cycles(
        config, m=256, k_tiles=288
    )
    assert time.monotonic() - start < 1


def test_register_cycle_is_the_table_s() -> None:
    config = AcceleratorConfig(rows=4, cols=4)
    assert k_tile_period(config, 2) == 4
    assert k_tile_period(config, 9) == 9
    assert act_register_cycle(config, 2, row=3, col=1, k=5, beat=1) == 5 * 4 + 1 + 3 + 1 + 2


def test_output_stationary_by_hand() -> None:
    """Tiles of a layer follow each other every K cycles; short ones when rows or words let them."""
    config = AcceleratorConfig(dataflow="os")
    conv = GemmShape(m=1024, k=576, n=128)
    last = tile_cycles(config, m=16, k_tiles=576)
    assert last == 575 + (16 + 4 + 2) + 9 + 16
    assert layer_cycles(config, conv) == (8 * 64 - 1) * 576 + last
    tall = AcceleratorConfig(dataflow="os", rows=64, cols=4)
    last = tile_cycles(tall, m=64, k_tiles=27)
    assert layer_cycles(tall, GemmShape(m=640, k=27, n=4)) == 9 * 64 + last
    tiles = list(output_tiles(config, GemmShape(m=20, k=9, n=17, groups=2)))
    assert [(t.group, t.n0, t.n1, t.m0, t.m1, t.k_tiles) for t in tiles[:4]] == [
        (0, 0, 16, 0, 16, 9),
        (0, 0, 16, 16, 20, 9),
        (0, 16, 17, 0, 16, 9),
        (0, 16, 17, 16, 20, 9),
    ]
    assert len(tiles) == 8
    assert act_register_cycle(config, 5, row=3, col=1, k=7, beat=0) == 7 + 3 + 1 + 2


@pytest.mark.parametrize("dataflow", ["ws", "os"])
@pytest.mark.parametrize("raw", [False, True])
def test_stream_bytes_are_those_of_the_beats(dataflow: str, raw: bool) -> None:
    config = AcceleratorConfig(
        dataflow=dataflow, rows=3, cols=5, act_bits=7, weight_bits=3, max_k=64, psum_depth=4
    )
    gemm = GemmShape(m=10, k=8, n=11, groups=2, raw=raw)
    rng = np.random.default_rng(0)
    total = dict.fromkeys(("param", "weight", "act", "out"), 0)
    for tile in output_tiles(config, gemm):
        m = tile.m1 - tile.m0
        job = random_job(config, rng, m=m, k_tiles=tile.k_tiles, raw=raw)
        for name, beats in job_beats(config, job).items():
            total[name] += len(beats) * widths(config)[name] // 8
        total["out"] += m * (config.raw_beats if raw else 1) * widths(config)["out"] // 8
    assert tuple(stream_bytes(config, gemm).values()) == tuple(total.values())
