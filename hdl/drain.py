# SPDX-License-Identifier: Apache-2.0
"""Control of all lanes: where sums are accumulated, and when rows are requantized."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib.wiring import In, Out

from hdl.config import AcceleratorConfig
from hdl.front import layer_limits
from hdl.lane import amount_bits, limit_ports, raw_zeros
from hdl.module import Part, flags
from hdl.os_array import row_bits
from hdl.schedule import collector_levels


def _stages(config: AcceleratorConfig) -> list[str]:
    """Return the stages of the lanes' requantizer behind stage 0, the last one with the code."""
    return ["0a", "1", "2", *(["2a", "2b"] if config.multiplies else []), "3", "4", "5", "5a", "6"]


def _array_ports(config: AcceleratorConfig) -> dict[str, Any]:
    ring = range(2 * config.max_m)
    if config.is_os:
        return {
            "beat_rows": In(range(config.max_m + 1)),
            "add_valid": Out(1),
            "add_first": Out(1),
            "row": Out(row_bits(config)),
            "write": Out(1),
            "slot": Out(ring),
        }
    row = range(config.psum_depth)
    return {
        "beat_end": In(1),
        "first": Out(1),
        "read_row": Out(row),
        "write_row": Out(row),
        "write_psum": Out(1),
        "write_ring": Out(1),
        "ring_write": Out(ring),
    }


class Drain(Part):
    """Follow the beats through the array, and drain finished rows through the lanes.

    The lanes' parameters are taken in three groups as the tiles before leave their stages:
    rows (how many, raw, signed; here), scale (bias, shift) and limits (lo, hi and flags, here if
    they are those of all lanes).
    Outputs are registers, except `take_scale` and `take_limits`: two levels of logic behind
    registers and `advance`.

    Of an output-stationary array there is nothing to accumulate: once the last beat of a tile has
    been added, its rows are collected one a cycle, see `hdl.os_array.OutputStationaryColumn`.

    Members:
        beat_*: as the front gives them, with skew stage 0.
        params_complete, next_*: of the front; `params_taken` answers.
        advance: the requantizer's stages move.
        add_valid, add_first, row, write, slot: for the first column of an output-stationary array.
        lo, hi, lo_is_bound, hi_is_bound, lo_5a, hi_5a: limits of the tile in stage 5, lo and hi in
            two's complement, and of that in stage 5a, as codes (bounds per layer).
        (the others): see `hdl.lane.Lane`.
        code_valid, code_last: of stage 6.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        limits: dict[str, Any] = {"signed_5": Out(1)}
        if config.layer_bounds:
            limits = {f"next_{field.name}": In(field.bits) for field in layer_limits(config)}
            limits |= {name: Out(shape) for name, shape in limit_ports(config).items()}
        super().__init__(
            "trilat_drain",
            {
                "beat_valid": In(1),
                "beat_first": In(1),
                "beat_last": In(1),
                **_array_ports(config),
                "params_complete": In(1),
                "params_taken": Out(1),
                "next_m": In(range(config.max_m + 1)),
                "next_raw": In(1),
                "next_signed": In(1),
                "take_scale": Out(1),
                "take_limits": None if config.layer_bounds else Out(1),
                "advance": In(1),
                "ring_read": Out(range(2 * config.max_m)),
                "raw_1": Out(1),
                "amount_raw": Out(amount_bits(config) - raw_zeros(config)),
                "raw_4": Out(1),
                "raw_5": Out(1),
                **limits,
                "code_valid": Out(1),
                "code_last": Out(1),
            },
            has_reset=True,
        )

    def elaborate(self, platform: object) -> Module:
        """Build both halves, joined by the ring."""
        m = self.new_module()
        self._drain(m, self._collect(m) if self.config.is_os else self._accumulate(m))
        return m

    def _accumulate(self, m: Module) -> Value:
        """Say where the lanes add up their beats; return when a row is written to the ring."""
        # Stage 0 of the skew is one cycle behind acceptance, the read of the psum memory
        # rows + groups of columns, two before the sums of all columns are aligned.
        delay = self.config.rows + self.config.col_groups - 1
        lines = {}
        for name in ("valid", "first", "last", "end"):
            line = Signal(delay, name=f"{name}_line")
            domain = "sync" if name == "valid" else "data"
            m.d[domain] += line.eq(Cat(getattr(self, f"beat_{name}"), line[:-1]))
            lines[name] = line[-1]
        word_valid, word_first, word_last = flags("word_valid", "word_first", "word_last")
        add_valid, add_last = flags("add_valid", "add_last")
        word_row, add_row = (Signal.like(self.read_row, name=f"{n}_row") for n in ("word", "add"))
        with m.If(lines["valid"]):
            m.d.sync += self.read_row.eq(self.read_row + 1)
        with m.If(lines["valid"] & lines["end"]):
            m.d.sync += self.read_row.eq(0)
        m.d.sync += [
            word_valid.eq(lines["valid"]),
            add_valid.eq(word_valid),
            self.write_psum.eq(add_valid),
            self.write_ring.eq(add_valid & add_last),
        ]
        m.d.data += [
            word_first.eq(lines["first"]),
            word_last.eq(lines["last"]),
            word_row.eq(self.read_row),
            self.first.eq(word_first),
            add_last.eq(word_last),
            add_row.eq(word_row),
            self.write_row.eq(add_row),
        ]
        self._step(m, self.ring_write, self.write_ring)
        return self.write_ring

    def _collect(self, m: Module) -> Value:
        """Lead the rows of a finished tile out; return when a row is written to the ring."""
        # The markers reach a PE one cycle behind the operands, with its product.
        add_last, add_rows = Signal(), Signal.like(self.beat_rows)
        m.d.sync += self.add_valid.eq(self.beat_valid)
        m.d.data += [
            self.add_first.eq(self.beat_first),
            add_last.eq(self.beat_last),
            add_rows.eq(self.beat_rows),
        ]
        # The next tile ends no sooner than its rows can follow: see `Front`.
        rows_left = Signal.like(self.beat_rows, name="rows_to_collect")
        collecting = Signal()
        m.d.comb += collecting.eq(rows_left.any())
        with m.If(collecting):
            m.d.sync += [self.row.eq(self.row + 1), rows_left.eq(rows_left - 1)]
        with m.If(self.add_valid & add_last):
            m.d.sync += [self.row.eq(0), rows_left.eq(add_rows)]
        # To the first column's ring, and from there to that of the last one.
        levels = collector_levels(self.config)
        line = Signal(levels + self.config.col_groups, name="collected_line")
        m.d.sync += line.eq(Cat(collecting, line[:-1]))
        m.d.comb += self.write.eq(line[levels - 1] if levels else collecting)
        self._step(m, self.slot, self.write)
        return line[-1]

    def _step(self, m: Module, index: Signal, enable: Value) -> None:
        """Move an index of the ring on while `enable` is high."""
        with m.If(enable):
            m.d.sync += index.eq(index + 1)
        with m.If(enable & (index == 2 * self.config.max_m - 1)):
            m.d.sync += index.eq(0)

    def _drain(self, m: Module, written: Value) -> None:
        config, advance = self.config, self.advance
        *stages, code = _stages(config)
        valid = {s: Signal(name=f"valid_{s}") for s in stages} | {code: self.code_valid}
        last = {s: Signal(name=f"last_{s}") for s in stages} | {code: self.code_last}
        ports = {s: getattr(self, f"raw_{s}") for s in ("1", "4", "5")}
        raw = {s: ports[s] if s in ports else Signal(name=f"raw_{s}") for s in stages[:-1]}

        # Stage 0: a row is read from the ring, once, or once for every beat of its raw sums.
        available = Signal(range(2 * config.max_m + 1))
        rows_left = Signal.like(self.next_m, name="rows_left")
        amount, amount_0a = (Signal.like(self.amount_raw, name=n) for n in ("amount", "amount_0a"))
        is_raw, have_rows = flags("is_raw", "have_rows")
        issue, row_done, tile_done = flags("issue", "row_done", "tile_done")
        step = config.act_bits >> raw_zeros(config)
        last_amount = (config.raw_beats - 1) * step
        m.d.comb += [
            issue.eq(have_rows & available.any()),
            row_done.eq(issue & (~is_raw | (amount == last_amount))),
            tile_done.eq(row_done & (rows_left == 1)),
        ]
        drained = Signal()
        m.d.comb += drained.eq(row_done & advance)
        with m.If(written & ~drained):
            m.d.sync += available.eq(available + 1)
        with m.If(~written & drained):
            m.d.sync += available.eq(available - 1)
        self._step(m, self.ring_read, drained)
        with m.If(drained):
            m.d.data += rows_left.eq(rows_left - 1)
        with m.If(advance & issue):
            m.d.sync += amount.eq(amount + step)
        with m.If(drained):
            m.d.sync += amount.eq(0)
        with m.If(advance):
            m.d.sync += valid["0a"].eq(issue)
            m.d.data += [
                last["0a"].eq(tile_done),
                raw["0a"].eq(is_raw),
                amount_0a.eq(amount),
                self.amount_raw.eq(amount_0a),
            ]
            for before, s in pairwise([*stages, code]):
                m.d.sync += valid[s].eq(valid[before])
                m.d.data += last[s].eq(last[before])
                if s in raw:
                    m.d.data += raw[s].eq(raw[before])

        # A group is taken when the one before has been released by the last beat of its tile.
        take_rows = Signal()
        take_limits = Signal(name="take_limits") if config.layer_bounds else self.take_limits
        groups = {
            "rows": (have_rows, take_rows, tile_done),
            "scale": (Signal(name="have_scale"), self.take_scale, valid["1"] & last["1"]),
            "limits": (Signal(name="have_limits"), take_limits, valid["5"] & last["5"]),
        }
        left = []
        for name, (have, take, release) in groups.items():
            waits = Signal(name=f"{name}_wait")
            gone = advance & release
            m.d.comb += take.eq(waits & (~have | gone))
            m.d.sync += [
                have.eq(take | (have & ~gone)),
                waits.eq(self.params_complete | (waits & ~take)),
            ]
            left.append((waits, take))
        waiting, remain = flags("groups_wait", "groups_remain")
        m.d.comb += [
            waiting.eq(Cat(waits for waits, _ in left).any()),
            remain.eq(Cat(waits & ~take for waits, take in left).any()),
        ]
        m.d.sync += self.params_taken.eq(waiting & ~remain)
        with m.If(take_rows):
            m.d.data += [rows_left.eq(self.next_m), is_raw.eq(self.next_raw)]
        if config.layer_bounds:
            with m.If(advance):
                m.d.data += [self.lo_5a.eq(self.lo), self.hi_5a.eq(self.hi)]
        with m.If(take_limits):
            if not config.layer_bounds:
                m.d.data += self.signed_5.eq(self.next_signed)
            for name in (field.name for field in layer_limits(config)):
                limit = getattr(self, f"next_{name}")
                if name in ("lo", "hi"):
                    limit = Cat(limit, self.next_signed & limit[-1])
                m.d.data += getattr(self, name).eq(limit)
