# SPDX-License-Identifier: Apache-2.0
"""The published schedule: which tile runs when, and which beat each register holds in a cycle.

Closed forms only; tests compare them with the emitted Verilog in simulation. The table they
implement is in docs/architecture.md, "Registers and time of the array".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hdl.config import AcceleratorConfig


# Cycles from the read of a psum-buffer word to the next read that sees its new sum.
PSUM_LATENCY = 3


@dataclass(frozen=True, kw_only=True)
class GemmShape:
    """Size of one layer's work for one image: `groups` times (M x K) by (K x N)."""

    m: int
    k: int
    n: int
    groups: int = 1


@dataclass(frozen=True, kw_only=True)
class OutputTile:
    """Place of an output tile in its layer: rows m0..m1 and columns n0..n1 of group `group`."""

    group: int
    n0: int
    n1: int
    m0: int
    m1: int
    k_tiles: int


def output_tiles(config: AcceleratorConfig, gemm: GemmShape) -> Iterator[OutputTile]:
    """Yield the output tiles of a layer in the order in which they are sent."""
    k_tiles = -(-gemm.k // config.rows)
    for group in range(gemm.groups):
        for n0 in range(0, gemm.n, config.cols):
            for m0 in range(0, gemm.m, config.psum_depth):
                yield OutputTile(
                    group=group,
                    n0=n0,
                    n1=min(n0 + config.cols, gemm.n),
                    m0=m0,
                    m1=min(m0 + config.psum_depth, gemm.m),
                    k_tiles=k_tiles,
                )


def act_register_cycle(
    config: AcceleratorConfig, m: int, row: int, col: int, k: int, beat: int
) -> int:
    """Return the cycle in which the activation register of PE(row, col) holds beat (k, beat)."""
    return k * k_tile_period(config, m) + beat + row + col + 2


def k_tile_period(config: AcceleratorConfig, m: int) -> int:
    """Return the cycles between the first beats of two K tiles of `m` beats, without stalls."""
    return max(m, config.rows, PSUM_LATENCY)
