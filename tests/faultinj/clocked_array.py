# SPDX-License-Identifier: Apache-2.0
"""The accelerator behind its streams, cycle by cycle: what register faults do, without the table.

A model of its own, written after the Verilog: every register loads at the same edge, faults are
written between two edges. Only when beats and words are accepted is taken from the schedule: one
output tile, sent to an idle accelerator whose streams never starve. Cycle 0 accepts its first
activation beat; the model starts when the first parameter word and weight beat are accepted.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from hdl.config import AcceleratorConfig
from hdl.registers import register_slice
from hdl.schedule import collector_levels, k_tile_period
from hdl.tile import TileJob

LIMITS = ("lo", "hi", "lo_is_bound", "hi_is_bound")
PARAMETERS = ("bias", "shift", "multiplier", *LIMITS)


def column_words(config: AcceleratorConfig) -> tuple[tuple[str, ...], ...]:
    """What each parameter word of a column carries."""
    if config.bounds == "layer":
        return ("bias",), ("shift", "multiplier")
    if config.requant == "mult":
        return ("bias",), ("shift", "multiplier"), LIMITS
    return ("bias",), ("shift", *LIMITS)


def word_count(config: AcceleratorConfig) -> int:
    return 2 + (config.bounds == "layer") + config.cols * len(column_words(config))


def as_word(value, width: int, signed: bool = True):
    value = value & ((1 << width) - 1)
    return value - ((value >> (width - 1)) << width) if signed else value


def faulty(old: int, fault, width: int, signed: bool) -> int:
    mask = sum(1 << bit for bit in set(fault.bits))
    old = int(old) & ((1 << width) - 1)
    new = {"flip": old ^ mask, "stuck1": old | mask, "stuck0": old & ~mask}[fault.kind]
    return as_word(new, width, signed)


class Lanes:
    """Ring, parameters and requantizer of all columns; rows leave at one a cycle."""

    def __init__(self, config: AcceleratorConfig, job: TileJob, start: int, first: int) -> None:
        self.config, self.job, self.start, self.first = config, job, start, first
        cols = config.cols
        # Both multiplying stages come behind the total, stage 2.
        self.extra = 2 if config.requant == "mult" else 0
        self.ring = np.zeros((2 * config.max_m, cols), np.int64)
        self.params = {name: np.zeros(cols, np.int64) for name in PARAMETERS}
        self.next = {name: np.zeros(cols, np.int64) for name in PARAMETERS}
        self.available, self.slot, self.beat, self.left = 0, first, 0, job.m
        self.stages: list = [None] * (7 + self.extra)
        self.beats: list[np.ndarray] = []
        self.violations = 0

    def step(self, cycle: int, ring_writes) -> None:
        config, job = self.config, self.job
        words = word_count(config)
        raw_beats = config.raw_beats if job.raw else 1
        since = cycle - self.start  # the first parameter word is accepted in 0
        issue = since >= words + 2 and self.available > 0 and self.left > 0
        one, two, five = self.stages[1], self.stages[2 + self.extra], self.stages[5 + self.extra]
        new = [None] * len(self.stages)
        if issue:
            new[0] = (self.ring[self.slot].copy(), self.beat)
        new[1] = self.stages[0]  # from the ring's output to a register
        if one is not None:
            factor = self.params["multiplier"] if self.extra and not job.raw else 1
            total = (one[0] + self.params["bias"]) * factor
            new[2] = (total, one[1], self.params["shift"].copy())
        for stage in range(2, 2 + self.extra):
            new[stage + 1] = self.stages[stage]
        if two is not None:
            total, beat, shift = two
            if job.raw:
                new[3 + self.extra] = (total >> (beat * config.act_bits)) & (
                    (1 << config.act_bits) - 1
                )
            else:
                rounded = [
                    round(Fraction(int(t), 1 << int(s))) for t, s in zip(total, shift, strict=True)
                ]
                new[3 + self.extra] = np.array(rounded)
        for stage in range(3 + self.extra, 5 + self.extra):
            new[stage + 1] = self.stages[stage]
        if five is not None:
            self.beats.append(five if job.raw else self._saturated(five))
        self.stages = new
        if issue:
            self.beat += 1
            if self.beat == raw_beats:
                self.beat, self.left = 0, self.left - 1
                self.slot = (self.slot + 1) % len(self.ring)
                self.available -= 1
        for row, col, value, counted in ring_writes:
            self.ring[(self.first + row) % len(self.ring), col] = value
            self.available += counted
        if since == words + 1:
            self.params = {name: value.copy() for name, value in self.next.items()}
        # One word at a time: those of the header, then of each column, which take a cycle more.
        if config.bounds == "layer" and since == 2:
            for name in LIMITS:
                self.next[name][:] = getattr(job, name)
        header, parts = 2 + (config.bounds == "layer"), column_words(config)
        col, word = divmod(since - 1 - header, len(parts))
        if 0 <= col < config.cols:
            for name in parts[word]:
                values = getattr(job, name)
                self.next[name][col] = 1 if values is None else int(values[col])

    def _saturated(self, code: np.ndarray) -> np.ndarray:
        p = self.params
        out = code.copy()
        for c in range(self.config.cols):
            high, low = code[c] > p["hi"][c], code[c] < p["lo"][c]
            value = p["hi"][c] if high else p["lo"][c] if low else code[c]
            # Faulty limits of a layer may be no codes.
            out[c] = as_word(value, self.config.act_bits, self.job.signed_out)
            violated = (low and p["lo_is_bound"][c]) or (high and p["hi_is_bound"][c])
            if self.config.checks_output and violated:
                self.violations += 1
                if self.config.protect == "zero":
                    out[c] = 0
        return out

    def rows(self) -> np.ndarray:
        if not self.job.raw:
            return np.array(self.beats)
        count, bits = self.config.raw_beats, self.config.act_bits
        beats = np.array(self.beats).reshape(self.job.m, count, -1)
        word = sum(beats[:, j] << (j * bits) for j in range(count))
        return as_word(word, count * bits)

    def write(self, fault, width: int) -> None:
        name = fault.register.removeprefix("next_")
        signed = name in ("ring", "bias") or (name in ("lo", "hi") and self.job.signed_out)
        if name == "ring":
            self.ring[fault.row, fault.col] = faulty(
                self.ring[fault.row, fault.col], fault, width, True
            )
            return
        present = name == fault.register
        table = self.params if present else self.next
        cols = [fault.col]
        if self.config.bounds == "layer" and name in LIMITS:
            cols = list(range(self.config.cols))
            signed |= present and name in ("lo", "hi")
        for col in cols:
            table[name][col] = faulty(table[name][col], fault, width, signed)


def is_code(config: AcceleratorConfig, name: str, row: int, col: int) -> bool:
    """Whether a register holds a code that the tile's convention alone gives its meaning."""
    if config.act_sign == "runtime":
        return name == "skew" and col < row  # behind the skew activations are two's complement
    return name in ("skew", "pe_activation")


def products(config: AcceleratorConfig, act: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What the multipliers make of a register of each group and a weight of each column; int64."""
    bits, pack = config.product_bits, config.dsp_pack
    made = np.zeros(weights.shape, np.int64)
    for row, col in np.ndindex(*weights.shape):
        group, lane = divmod(col, pack)
        word = sum(int(weights[row, group * pack + j]) << (j * bits) for j in range(lane + 1))
        word *= int(act[row, group])
        low = lane * bits
        made[row, col] = as_word((word >> low) + (word >> (low - 1) & 1 if low else 0), bits)
    return made


LANE_REGISTERS = ("ring", *PARAMETERS, *(f"next_{name}" for name in PARAMETERS))


def _due(faults, cycle: int):
    return [f for f in faults if f.kind != "flip" or f.cycle == cycle]


def clocked(config: AcceleratorConfig, job: TileJob, acts: np.ndarray, faults, before: int = 0):
    """(output rows, violations_out) of a tile; `acts` are its codes behind the input check.

    So many rows have left the array `before`.
    """
    first = before % (2 * config.max_m)
    return (_clocked_os if config.is_os else _clocked_ws)(config, job, acts, faults, first)


def _clocked_ws(config: AcceleratorConfig, job: TileJob, acts: np.ndarray, faults, first: int):
    rows, cols, groups, m = config.rows, config.cols, config.col_groups, job.m
    tiles, period = job.acts.shape[1] // rows, k_tile_period(config, m)
    group = np.array([config.col_group(c) for c in range(cols)])
    start = -(max(rows, word_count(config)) + 1)
    lanes = Lanes(config, job, start, first)
    skew = [np.zeros(r + 1, np.int64) for r in range(rows)]
    act = np.zeros((rows, groups), np.int64)
    wskew = [np.zeros(g + 1, np.int64) for g in group]
    loading, active, product, psum = (np.zeros((rows, cols), np.int64) for _ in range(4))
    deskew = [np.zeros(groups - 1 - g, np.int64) for g in group]
    memory = np.zeros((config.psum_depth, cols), np.int64)
    read, word, acc = (np.zeros(cols, np.int64) for _ in range(3))
    load = [np.zeros(rows, bool) for _ in range(groups + 1)]
    beats = job.weights.reshape(tiles, rows, cols)[:, ::-1].reshape(-1, cols)
    moved, waits, reach = 0, False, 1
    widths = np.array([config.psum_bits(r) for r in range(rows)])
    beat_of = {k * period + b: (k, b) for k in range(tiles) for b in range(m)}
    swap_at = {k * period for k in range(tiles)}

    def write(fault) -> None:
        width = register_slice(config, fault.register, fault.row, fault.col).bits
        r, c, name = fault.row, fault.col, fault.register
        if name in LANE_REGISTERS:
            return lanes.write(fault, width)
        signed = job.signed_in or not is_code(config, name, r, c)
        table, at = {
            "skew": lambda: (skew[r], c),
            "weight_skew": lambda: (wskew[c], r),
            "deskew": lambda: (deskew[c], r),
            "pe_activation": lambda: (act, (r, group[c])),
            "psum_buffer": lambda: (memory, (r, c)),
        }.get(name, lambda: ({"weight_loading": loading, "weight_active": active,
                              "product": product, "psum": psum}[name], (r, c)))()  # fmt: skip
        table[at] = faulty(table[at], fault, width, signed)

    end = (tiles - 1) * period + m * (config.raw_beats if job.raw else 1) + rows + groups + 18
    for cycle in range(start, end):
        for fault in _due(faults, cycle):
            write(fault)
        done = beat_of.get(cycle - (rows + groups + 2))
        ahead = beat_of.get(cycle + 2 - (rows + groups + 2))
        before = beat_of.get(cycle - 1 - (rows + groups + 2))
        # Lanes.
        bottom = np.array([deskew[c][-1] if len(deskew[c]) else psum[-1, c] for c in range(cols)])
        ring = []
        if before is not None:
            if before[0] == tiles - 1:
                ring = [(before[1], c, acc[c], c == cols - 1) for c in range(cols)]
            written = (before[1], acc.copy())
        next_acc = acc
        if done is not None:
            so_far = word if done[0] else np.zeros(cols, np.int64)
            next_acc = as_word(so_far + bottom, config.acc_bits)
        word = read
        if ahead is not None:
            read = memory[ahead[1]].copy()
        if before is not None:
            memory[written[0]] = written[1]
        acc = next_acc
        lanes.step(cycle, ring)
        # Array.
        deskew = [
            np.concatenate([[psum[-1, c]], deskew[c][:-1]]) if len(deskew[c]) else deskew[c]
            for c in range(cols)
        ]
        above = np.vstack([np.zeros((1, cols), np.int64), psum[:-1]])
        psum = np.array([as_word((above + product)[r], int(widths[r])) for r in range(rows)])
        product = products(config, act, active)
        entering = beat_of.get(cycle)
        act = np.column_stack([[skew[r][-1] for r in range(rows)], act[:, :-1]])
        codes = acts[entering[1]].reshape(tiles, rows)[entering[0]] if entering else [0] * rows
        skew = [np.concatenate([[codes[r]], skew[r][:-1]]) for r in range(rows)]
        # Weights: a swap follows its beat; loads travel with the group.
        for r in range(rows):
            for c in range(cols):
                if cycle - (r + group[c] + 1) in swap_at:
                    active[r, c] = loading[r, c]
        shifted = np.vstack([[line[-1] for line in wskew], loading[:-1]])
        for c in range(cols):
            taken = load[group[c]]
            loading[taken, c] = shifted[taken, c]
        head = beats[moved] if moved < len(beats) and cycle > start else None
        swap = cycle in swap_at
        moves = head is not None and (not waits or swap)
        entering_weights = head if head is not None else np.zeros(cols, np.int64)
        wskew = [np.concatenate([[entering_weights[c]], wskew[c][:-1]]) for c in range(cols)]
        load = [np.arange(rows) < reach if moves else np.zeros(rows, bool), *load[:-1]]
        finished = moves and reach == rows
        waits = finished or (waits and not swap)
        if moves:
            moved, reach = moved + 1, 1 if finished else reach + 1
    return lanes.rows(), lanes.violations


def _clocked_os(config: AcceleratorConfig, job: TileJob, acts: np.ndarray, faults, first: int):
    rows, cols, groups, count = config.rows, config.cols, config.col_groups, job.acts.shape[1]
    group = np.arange(cols) // config.dsp_pack
    levels = collector_levels(config)
    start = -(word_count(config) + 1)
    lanes = Lanes(config, job, start, first)
    codes = np.zeros((rows, count), np.int64)
    codes[: job.m] = acts
    skew = [np.zeros(r + 1, np.int64) for r in range(rows)]
    wskew = [np.zeros(g + 1, np.int64) for g in group]
    act = np.zeros((rows, groups), np.int64)
    weight, product, sums = (np.zeros((rows, cols), np.int64) for _ in range(3))
    collected: dict[tuple[int, int], int] = {}
    distance = np.add.outer(np.arange(rows), group)

    def write(fault) -> None:
        width = register_slice(config, fault.register, fault.row, fault.col).bits
        r, c, name = fault.row, fault.col, fault.register
        if name in LANE_REGISTERS:
            return lanes.write(fault, width)
        signed = job.signed_in or not is_code(config, name, r, c)
        if name == "skew":
            skew[r][c] = faulty(skew[r][c], fault, width, signed)
        elif name == "weight_skew":
            wskew[c][r] = faulty(wskew[c][r], fault, width, signed)
        elif name == "pe_activation":
            act[r, group[c]] = faulty(act[r, group[c]], fault, width, signed)
        else:
            table = {"pe_weight": weight, "product": product, "accumulator": sums}[name]
            table[r, c] = faulty(table[r, c], fault, width, signed)

    end = count + job.m * (config.raw_beats if job.raw else 1) + cols + levels + 18
    for cycle in range(start, end):
        for fault in _due(faults, cycle):
            write(fault)
        for r in range(job.m):
            for c in range(cols):
                if cycle == count - 1 + distance[r, c] + 4:
                    collected[r, c] = int(sums[r, c])
        ring = [
            (r, c, collected[r, c], c == cols - 1)
            for r in range(job.m)
            for c in range(cols)
            if cycle == count - 1 + distance[r, c] + 4 + levels
        ]
        lanes.step(cycle, ring)
        arriving = cycle - (distance + 3)
        valid, first = (arriving >= 0) & (arriving < count), arriving == 0
        added = as_word(np.where(first, 0, sums) + product, config.acc_bits)
        sums = np.where(valid, added, sums)
        product = products(config, act, weight)
        act = np.column_stack([[skew[r][-1] for r in range(rows)], act[:, :-1]])
        weight = np.vstack([[wskew[c][-1] for c in range(cols)], weight[:-1]])
        now = 0 <= cycle < count
        skew = [
            np.concatenate([[codes[r, cycle] if now else 0], skew[r][:-1]]) for r in range(rows)
        ]
        wskew = [
            np.concatenate([[job.weights[cycle, c] if now else 0], wskew[c][:-1]])
            for c in range(cols)
        ]
    return lanes.rows(), lanes.violations
