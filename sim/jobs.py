# SPDX-License-Identifier: Apache-2.0
"""Random output tiles, to try an accelerator without a network."""

from __future__ import annotations

import numpy as np

from hdl.config import AcceleratorConfig
from hdl.tile import TileJob, with_common_limits


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Return the lowest and highest code of a word."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def random_job(
    config: AcceleratorConfig,
    rng: np.random.Generator,
    *,
    m: int | None = None,
    k_tiles: int | None = None,
    raw: bool | None = None,
) -> TileJob:
    """Return a tile with random contents; sizes, signs and `raw` are random where not given.

    Shifts spread the sums over the output word; with a protection unit, bounds are tighter than
    the word in most columns and violated by a good part of the elements.
    """
    m = int(rng.integers(1, min(config.max_m, 24) + 1)) if m is None else m
    most = min(config.max_k_tiles, 5 * config.rows // config.k_step)
    k_tiles = int(rng.integers(1, most + 1)) if k_tiles is None else k_tiles
    raw = bool(rng.random() < 0.25) if raw is None else raw
    signed_in, signed_out = (bool(v) for v in rng.integers(0, 2, 2))
    if signed_in not in config.act_signs:
        signed_in = not signed_in
    lo_in, hi_in = code_range(config.act_bits, signed_in)
    lo_out, hi_out = code_range(config.act_bits, signed_out)
    # Every code that a register can hold, the most negative weight among them.
    lo_w, hi_w = code_range(config.weight_bits, True)
    rows, cols = k_tiles * config.k_step, config.cols
    spread = hi_in * hi_w * np.sqrt(rows)
    shift = np.log2(max(spread / (1 << config.act_bits), 1)).round() + rng.integers(-1, 2, cols)
    reach = min(int(spread) + 1, (1 << (config.acc_bits - 1)) - 1)
    bounds = np.sort(rng.integers(lo_out, hi_out + 1, (2, cols)), axis=0)
    tight = (rng.random((2, cols)) < 0.7) & (config.protect != "none")
    lo, hi = np.where(tight[0], bounds[0], lo_out), np.where(tight[1], bounds[1], hi_out)
    low, high = (int(v) for v in np.sort(rng.integers(lo_in, hi_in + 1, 2)))
    multiplier = None
    if config.multiplies:
        multiplier = rng.integers(1 << 15, 1 << 16, cols)
        shift = shift + 16
    job = TileJob(
        acts=rng.integers(lo_in, hi_in + 1, (m, rows)),
        weights=rng.integers(lo_w, hi_w + 1, (rows, cols)),
        bias=rng.integers(-reach, reach + 1, cols),
        shift=np.clip(shift, 0, (1 << config.shift_bits) - 1).astype(np.int64),
        lo=lo,
        hi=hi,
        lo_is_bound=lo > lo_out,
        hi_is_bound=hi < hi_out,
        signed_in=signed_in,
        signed_out=signed_out,
        raw=raw,
        input_lo=min(low, 0),
        input_hi=max(high, 0),
        multiplier=multiplier,
    )
    return with_common_limits(config, job)
