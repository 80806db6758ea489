# SPDX-License-Identifier: Apache-2.0
"""When a register holds what: the tables of docs/architecture.md, the other way round.

A fault in a cycle meets the beats, words or rows that its register holds then. All cycles are those
of an output tile sent alone to an idle accelerator whose streams never starve; in a stream of tiles
they hold for everything but loading weights and parameters of the lanes, which may come earlier.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from faultinj.faults import RegisterFault
from hdl.config import AcceleratorConfig
from hdl.register_map import SCALE_FIELDS, parameter_words
from hdl.registers import PARAMETER_CLASSES
from hdl.schedule import (
    PSUM_LATENCY,
    act_register_cycle,
    collector_levels,
    k_tile_period,
    multiply_stages,
    param_word_count,
)

# Faults in these change operands alone, which the sums hold whatever code they become.
OPERANDS = ("skew", "pe_activation", "weight_active", "weight_loading", "weight_skew", "pe_weight")
# Stages of the requantizer behind the issue of a row in which a parameter is looked at, without
# those that multiply.
_SCALE_STAGE, _LIMITS_STAGE = 2, 6


def first_cycle(config: AcceleratorConfig, m: int, fault: RegisterFault) -> int:
    """Return the cycle in which an array register holds (or meets) the first beat of a tile."""
    if fault.register == "skew":
        return 1 + fault.col
    if fault.register == "weight_skew":
        return 1 + fault.row
    if fault.register == "deskew":
        return config.rows + config.col_group(fault.col) + 4 + fault.row
    later = {"product": 1, "psum": 2, "accumulator": 2}.get(fault.register, 0)
    return act_register_cycle(config, m, fault.row, fault.col, 0, 0) + later


def beats_met(
    config: AcceleratorConfig, m: int, k_tiles: int, index: np.ndarray, fault: RegisterFault
) -> np.ndarray:
    """Return which beats a fault of an array register meets, bool (k_tiles, len(index)).

    Args:
        config: the accelerator.
        m: beats of a K tile.
        k_tiles: K tiles (output-stationary: beats, and `index` is one of them).
        index: int64, the beats of a K tile that are asked for.
        fault: of any register but loading weights, words and parameters.
    """
    if fault.cycle is None:
        return np.ones((k_tiles, len(index)), dtype=bool)
    met = np.zeros((k_tiles, len(index)), dtype=bool)
    k, beat = divmod(fault.cycle - first_cycle(config, m, fault), k_tile_period(config, m))
    if 0 <= k < k_tiles:
        if fault.register == "weight_active":
            met[k] = index >= beat  # until the next weight is swapped in
        else:
            met[k] = index == beat
    return met


def weights_met(
    config: AcceleratorConfig, m: int, k_tiles: int, fault: RegisterFault
) -> np.ndarray:
    """Return which weights of its column a fault meets on their way in, bool (k_tiles, rows).

    Weight-stationary, ``weight_skew`` and ``weight_loading``. Beat b of a block carries the
    weights of row rows - 1 - b and moves into the array in cycle j of the K tile before; the first
    block follows the parameter words' first, as if the K tile before had begun `lead` cycles ago.
    """
    rows = config.rows
    met = np.zeros((k_tiles, rows), dtype=bool)
    delay = config.col_group(fault.col) + 2
    if fault.cycle is None:
        # What passes row r ends there or below.
        met[:, fault.row if fault.register == "weight_loading" else 0 :] = True
        return met
    starts = (np.arange(k_tiles) - 1) * k_tile_period(config, m)
    starts[0] = 1 - idle_start(config)
    for k, start in enumerate(starts):
        if fault.register == "weight_skew":
            beat = fault.cycle - (int(start) + 1 + fault.row)
            if 0 <= beat < rows:
                met[k, rows - 1 - beat] = True
            continue
        # The last beat that has moved on reaches down to this row.
        moved = fault.cycle - (int(start) + delay)
        swapped = k * k_tile_period(config, m) + fault.row + delay
        if moved >= fault.row and fault.cycle < swapped:
            beat = min(moved, rows - 1) - fault.row
            met[k, rows - 1 - beat] = True
    return met


def psum_words_met(
    config: AcceleratorConfig, m: int, k_tiles: int, fault: RegisterFault
) -> np.ndarray:
    """Return behind which K tiles a word of the psum buffer is read faulty, bool (k_tiles,)."""
    met = np.zeros(k_tiles, dtype=bool)
    if fault.row >= m:
        return met
    period = k_tile_period(config, m)
    for k in range(k_tiles - 1) if fault.cycle is None else ():
        met[k] = True
    if fault.cycle is not None:
        written = fault.row + config.rows + config.col_groups + 4
        k, late = divmod(fault.cycle - written, period)
        # Read for the next K tile so many cycles before its sum is written.
        met[k : k + 1] = 0 <= k < k_tiles - 1 and late <= period - PSUM_LATENCY
    return met


def issue_cycles(
    config: AcceleratorConfig, m: int, k_tiles: int, index: np.ndarray, *, raw: bool
) -> np.ndarray:
    """Return when the beats of output rows are read from the ring, int64 (rows, beats)."""
    beats = config.raw_beats if raw else 1
    if config.is_os:
        first = k_tiles - 1 + config.col_groups + 4 + collector_levels(config)
    else:
        period = k_tile_period(config, m)
        first = (k_tiles - 1) * period + config.rows + config.col_groups + 4
    return first + index[:, None] * beats + np.arange(beats)


def ring_met(
    config: AcceleratorConfig,
    m: int,
    k_tiles: int,
    index: np.ndarray,
    fault: RegisterFault,
    *,
    raw: bool,
) -> np.ndarray:
    """Return which output beats a fault in a ring word meets, bool (rows, beats).

    The tile is the first one behind a reset, so that its row i is in word i.
    """
    read = issue_cycles(config, m, k_tiles, index, raw=raw)
    mine = np.broadcast_to((index == fault.row)[:, None], read.shape)
    if fault.cycle is None:
        return mine
    if config.is_os:
        group = config.col_group(fault.col)
        written = k_tiles - 1 + fault.row + group + 5 + collector_levels(config)
    else:
        period = k_tile_period(config, m)
        written = (k_tiles - 1) * period + fault.row + config.rows + config.col_groups + 4
    return mine & (read >= fault.cycle) & (fault.cycle >= written)


def ring_row(config: AcceleratorConfig, fault: RegisterFault, before: int) -> RegisterFault:
    """Return a permanent fault of a ring word as that of the row that a tile writes there.

    Args:
        config: the accelerator.
        fault: of the ring.
        before: rows that have left the array since the reset when the tile begins.
    """
    return replace(fault, row=(fault.row - before) % (2 * config.max_m))


def parameter_met(
    config: AcceleratorConfig,
    m: int,
    k_tiles: int,
    index: np.ndarray,
    fault: RegisterFault,
    *,
    raw: bool,
) -> np.ndarray:
    """Return which output beats a fault in a parameter meets, bool (rows, beats)."""
    assert fault.register in PARAMETER_CLASSES
    issue = issue_cycles(config, m, k_tiles, index, raw=raw)
    if fault.cycle is None:
        return np.ones(issue.shape, dtype=bool)
    name = fault.register.removeprefix("next_")
    words = param_word_count(config)
    # The last parameter word is accepted in cycle words - 1 of an idle accelerator; two cycles
    # later the set is taken, and it is the present one from the cycle behind.
    present = words + 2 - idle_start(config)
    if fault.register != name:
        loaded = _loaded(config, name, fault.col) - idle_start(config)
        return np.full(issue.shape, loaded <= fault.cycle < present)
    stage = _LIMITS_STAGE + multiply_stages(config)
    if name in SCALE_FIELDS:
        stage = _SCALE_STAGE
    return (issue + stage >= fault.cycle) & (fault.cycle >= present)


def _loaded(config: AcceleratorConfig, name: str, col: int) -> int:
    """Return when a next parameter is there, in cycles from the first parameter word on.

    A word of a column passes a register on its way to the lane, one of the header does not.
    """
    layout = parameter_words(config)
    for number, word in enumerate(layout.header):
        if any(field.name == name for field in word.fields):
            return number + 1
    number = next(
        i for i, word in enumerate(layout.column) if any(f.name == name for f in word.fields)
    )
    return len(layout.header) + col * len(layout.column) + number + 2


def idle_start(config: AcceleratorConfig) -> int:
    """Return the cycles from the first parameter word to the first activation beat of a tile."""
    words = param_word_count(config)
    return max(0 if config.is_os else config.rows, words) + 1
