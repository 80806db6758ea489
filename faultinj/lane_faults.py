# SPDX-License-Identifier: Apache-2.0
"""Behind the array: ring, bias, requantization and output check under faults of the lanes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from faultinj.faults import RegisterFault, mask_of, written
from faultinj.register_times import parameter_met, ring_met
from faultinj.tile_part import TilePart
from hdl.config import AcceleratorConfig
from hdl.registers import LANE_CLASSES, PARAMETER_CLASSES, in_header, register_slice
from hdl.tile import requantize, wrap

# Words and parameters of the lanes behind the sums.
BEHIND_SUMS = ("ring", *PARAMETER_CLASSES)


def is_behind_sums(fault: RegisterFault) -> bool:
    """Return whether a fault leaves the sums as they are."""
    return fault.register in BEHIND_SUMS


def finished(
    config: AcceleratorConfig,
    part: TilePart,
    acc: np.ndarray,
    faults: Sequence[RegisterFault] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Return output codes or raw sums, int64 (rows, n), and which were violations, bool.

    Args:
        config: the accelerator.
        part: rows and columns.
        acc: int64 (rows, n), their sums over all K, at any width.
        faults: of the part; those in front of the ring are not looked at.
    """
    word = wrap(acc, config.acc_bits)[:, None]
    values = {
        name: np.broadcast_to(getattr(part, name).astype(np.int64), word.shape)
        for name in PARAMETER_CLASSES
        if not name.startswith("next_")
    }
    # What passes through the next set is in the present one later.
    for fault in sorted(faults, key=lambda f: not f.register.startswith("next_")):
        name = fault.register.removeprefix("next_")
        if fault.register == "ring":
            word = _changed(config, part, word, fault)
        elif name in values:
            values[name] = _changed(config, part, values[name], fault)
    total = word + values["bias"]
    if part.raw:
        return _joined(config, total), np.zeros(acc.shape, dtype=bool)
    total, values = total[:, 0], {name: value[:, 0] for name, value in values.items()}
    code = requantize(total, values["multiplier"], values["shift"])
    low, high = code < values["lo"], code > values["hi"]
    out = np.where(high, values["hi"], np.where(low, values["lo"], code))
    if config.layer_bounds:
        # Such limits have a sign above the code: a fault there lets out what is no code.
        out = written(out, config.act_bits, part.signed_out, 0, "flip")
    violated = np.zeros(acc.shape, dtype=bool)
    violated |= (low & (values["lo_is_bound"] != 0)) | (high & (values["hi_is_bound"] != 0))
    if not config.checks_output:
        return out, np.zeros(acc.shape, dtype=bool)
    if config.protect == "zero":
        out = np.where(violated, 0, out)
    return out, violated


def _changed(
    config: AcceleratorConfig, part: TilePart, value: np.ndarray, fault: RegisterFault
) -> np.ndarray:
    """Return values (rows, beats, n) of a ring word or a parameter under one fault."""
    name = fault.register.removeprefix("next_")
    count, beats = part.acts.shape[1] // config.k_step, config.raw_beats if part.raw else 1
    when = ring_met if fault.register == "ring" else parameter_met
    met = when(config, part.m, count, part.index, fault, raw=part.raw)
    hit = met[:, :, None] & _columns(config, part, fault)
    if not hit.any():
        return value
    value = np.broadcast_to(value, (len(part.index), beats, len(part.cols)))
    signed = name in ("ring", "bias") or (name in ("lo", "hi") and part.signed_out)
    signed |= name == fault.register and name in ("lo", "hi") and in_header(config, name)
    width = register_slice(config, fault.register, fault.row, fault.col).bits
    wrong = written(value, width, signed, mask_of(fault.bits), fault.kind)
    return np.where(hit, wrong, value)


def _joined(config: AcceleratorConfig, total: np.ndarray) -> np.ndarray:
    """Return raw sums from the totals that each of their beats is cut from, (rows, beats, n)."""
    if total.shape[1] == 1:
        return total[:, 0]
    bits = config.act_bits
    shifts = (np.arange(config.raw_beats) * bits)[:, None]
    pieces = (total >> shifts) & ((1 << bits) - 1)
    return wrap((pieces << shifts).sum(axis=1), config.raw_beats * bits)


def touched(
    config: AcceleratorConfig, part: TilePart, fault: RegisterFault
) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows and which columns of a part a fault can change, as boolean masks."""
    assert fault.register in LANE_CLASSES[config.dataflow]
    when = ring_met if fault.register == "ring" else parameter_met
    k_tiles = part.k_tiles(config)
    met = when(config, part.m, k_tiles, part.index, fault, raw=part.raw)
    return np.asarray(met.any(axis=1)), _columns(config, part, fault)


def _columns(config: AcceleratorConfig, part: TilePart, fault: RegisterFault) -> np.ndarray:
    """Return which columns a fault is in, bool (n,)."""
    if in_header(config, fault.register):
        return np.ones(len(part.cols), dtype=bool)
    return part.cols == fault.col
