# SPDX-License-Identifier: Apache-2.0
"""Random faults in the registers of a tile, of which a wanted share changes its output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from faultinj.faults import KINDS, RegisterFault
from faultinj.register_times import idle_start
from hdl.config import AcceleratorConfig
from hdl.registers import register_places, register_slice
from hdl.tile import TileJob, TileOutput
from sim.cycles import stream_cycles
from sim.jobs import random_job
from sim.replay import equal_outputs

# How often a fault that would change nothing is drawn again.
_REDRAWS = 60

Predict = Callable[[AcceleratorConfig, TileJob, Sequence[RegisterFault]], TileOutput]


def edge_tile(config: AcceleratorConfig, rng: np.random.Generator) -> TileJob:
    """Return a random tile such as a layer's last one: K and N end inside the array."""
    job = random_job(config, rng)
    depth = job.acts.shape[1] - int(rng.integers(config.k_step))
    width = int(rng.integers(1, config.cols + 1))
    acts, weights = job.acts.copy(), job.weights.copy()
    acts[:, depth:] = 0
    weights[depth:] = 0
    weights[:, width:] = 0
    nothing = np.arange(config.cols) >= width
    # As `faultinj.lowering.lower` fills columns past N: what they give is within their limits.
    shared = config.layer_bounds
    alone = nothing & (not shared)
    factor = job.multiplier
    return replace(
        job,
        acts=acts,
        weights=weights,
        bias=np.where(nothing, np.clip(0, job.lo, job.hi) if shared else 0, job.bias),
        shift=np.where(nothing, 0, job.shift),
        multiplier=None if factor is None else np.where(nothing, int(shared), factor),
        lo=np.where(alone, 0, job.lo),
        hi=np.where(alone, 0, job.hi),
        lo_is_bound=job.lo_is_bound & ~alone,
        hi_is_bound=job.hi_is_bound & ~alone,
    )


def draw(
    config: AcceleratorConfig,
    job: TileJob,
    register: str,
    kind: str,
    bits: int,
    rng: np.random.Generator,
) -> RegisterFault:
    """Return a fault in a random register of a class, in a random cycle of the tile.

    Words of memories are drawn among those that the tile uses.

    Args:
        config: the accelerator.
        job: the tile.
        register: class of the register.
        kind: of the fault.
        bits: length of the burst of adjacent bits, at most the register's width.
        rng: source of the choices.
    """
    places = register_places(config, register)
    if register in ("psum_buffer", "ring"):
        places = [place for place in places if place[0] < job.m]
    row, col = places[rng.integers(len(places))]
    width = register_slice(config, register, row, col).bits
    bits = min(bits, width)
    low = int(rng.integers(width - bits + 1))
    lead = idle_start(config) - 1
    # Loading happens ahead of the tile's first activation beat, all else from it on.
    early = register.startswith("next_") or register in ("weight_loading", "weight_skew")
    first = -lead if early or rng.random() < 0.1 else 0
    return RegisterFault(
        layer="tile",
        image=0,
        tile=0,
        register=register,
        row=row,
        col=col,
        bits=tuple(range(low, low + bits)),
        cycle=int(rng.integers(first, stream_cycles(config, [job]))) if kind == "flip" else None,
        kind=kind,
    )


def draw_faults(
    config: AcceleratorConfig,
    job: TileJob,
    clean: TileOutput,
    classes: Sequence[str],
    number: int,
    wanted: bool,
    rng: np.random.Generator,
    predict: Predict,
) -> tuple[list[RegisterFault], TileOutput]:
    """Return a fault, every tenth time two, of the class and the kind whose turn it is.

    Half are transient. Where an effect is wanted, a draw without one is repeated.

    Args:
        config: the accelerator.
        job: the tile.
        clean: its output without faults.
        classes: of registers, which take turns.
        number: of the draw.
        wanted: whether the faults are to change the output.
        rng: source of the choices.
        predict: what says which output there must be.

    Returns:
        The faults and the output that is predicted with them.
    """
    turn = number // len(classes)
    kind = KINDS[(0, 1, 0, 2)[turn % 4]]
    for _ in range(_REDRAWS if wanted else 1):
        bits = 1 if rng.random() < 0.8 else int(rng.integers(2, 5))
        faults = [draw(config, job, classes[number % len(classes)], kind, bits, rng)]
        if number % 10 == 9:
            more = draw(config, job, classes[int(rng.integers(len(classes)))], "flip", 1, rng)
            # What is stuck and flipped at once has no order: there, one fault stays alone.
            if _place(more) != _place(faults[0]):
                faults.append(more)
        output = predict(config, job, faults)
        if not equal_outputs(output, clean):
            break
    return faults, output


def _place(fault: RegisterFault) -> tuple[str, int, int]:
    return fault.register, fault.row, fault.col
