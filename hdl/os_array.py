# SPDX-License-Identifier: Apache-2.0
"""The output-stationary array: a column of PEs, and how its finished sums are collected."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib.wiring import In, Out

from hdl.config import AcceleratorConfig
from hdl.module import Part, place
from hdl.multiplier import lane_names
from hdl.os_pe import OutputStationaryElement


def row_bits(config: AcceleratorConfig) -> int:
    """Width of the index of a row of PEs, at least 1."""
    return max((config.rows - 1).bit_length(), 1)


class OutputStationaryColumn(Part):
    """`rows` PEs, one below the other, and the collector of their sums.

    The sum of PE r of a tile is complete one cycle after that of PE r - 1, and stays at least one
    cycle: so one pipelined multiplexer per column, told a row index that counts up, takes one sum
    a cycle, with no second register in the PEs. `row` is in its register in the cycle in which
    PE `row` holds its complete sum; `psum` has that sum `hdl.schedule.collector_levels` cycles
    later, and in that cycle `write` and `slot` say whether and where the lane's ring takes it.

    With `dsp_pack` columns to a multiplier block it is that many of them, running in step: one
    multiplexer takes the sums of a row together.

    Members (element 0, the top row, in the lowest bits of a vector):
        act_in, act: activations from the column to the left, to the one to the right.
        weight_in: weight for the top PE, the leftmost column's lowest.
        valid_in, first_in, valid, first: into the top PE, and from it to the next column.
        row_in, write_in, slot_in, row, write, slot: to the next column.
        psum: the collected sum, the leftmost column's lowest.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.pe = OutputStationaryElement(config)
        slots = range(2 * config.max_m)
        super().__init__(
            "trilat_os_column",
            {
                "act_in": In(config.rows * config.operand_bits),
                "weight_in": In(config.dsp_pack * config.weight_bits),
                "valid_in": In(1),
                "first_in": In(1),
                "row_in": In(row_bits(config)),
                "write_in": In(1),
                "slot_in": In(slots),
                "act": Out(config.rows * config.operand_bits),
                "valid": Out(1),
                "first": Out(1),
                "row": Out(row_bits(config)),
                "write": Out(1),
                "slot": Out(slots),
                "psum": Out(config.dsp_pack * config.acc_bits),
            },
            has_reset=False,
            parts=(self.pe,),
        )

    def elaborate(self, platform: object) -> Module:
        """Chain the PEs and collect their sums."""
        m = self.new_module()
        markers = ("valid", "first")
        above: dict[str, Value] = {
            "valid": self.valid_in,
            "first": self.first_in,
        }
        names = {n: lane_names(self.config, n) for n in ("weight_in", "weight", "acc")}
        for lane, name in enumerate(names["weight"]):
            above[name] = self.weight_in.word_select(lane, self.config.weight_bits)
        acts, sums = [], []
        bits = self.config.operand_bits
        for row in range(self.config.rows):
            out = place(
                self,
                m,
                f"pe_{row}",
                self.pe,
                act_in=self.act_in[row * bits : (row + 1) * bits],
                valid_in=above["valid"],
                first_in=above["first"],
                **dict(zip(names["weight_in"], (above[n] for n in names["weight"]), strict=True)),
            )
            if row == 0:
                m.d.comb += [getattr(self, name).eq(out[name]) for name in markers]
            acts.append(out["act"])
            sums.append(Cat(out[name] for name in names["acc"]))
            above = dict(out)
        m.d.data += [
            self.row.eq(self.row_in),
            self.write.eq(self.write_in),
            self.slot.eq(self.slot_in),
        ]
        m.d.comb += [self.act.eq(Cat(acts)), self.psum.eq(self._collect(m, sums))]
        return m

    def _collect(self, m: Module, sums: Sequence[Value]) -> Value:
        """Return the sum of row `row`, registered once for every two bits of the index.

        One of four sums a level is one 6-input LUT per bit.
        """
        index: Value = self.row
        level = 0
        while len(sums) > 1:
            level += 1
            groups = [sums[i : i + 4] for i in range(0, len(sums), 4)]
            taken = [Signal.like(self.psum, name=f"sum_{level}_{i}") for i in range(len(groups))]
            m.d.data += [
                register.eq(_one_of(m, group, index, f"upper_{level}_{i}"))
                for i, (register, group) in enumerate(zip(taken, groups, strict=True))
            ]
            if len(taken) > 1:
                following = Signal(len(index) - 2, name=f"row_{level}")
                m.d.data += following.eq(index[2:])
                index = following
            sums = taken
        return sums[0]


def _one_of(m: Module, values: Sequence[Value], index: Value, name: str) -> Value:
    """Return the value at `index`, which is below their number where it matters.

    `name` is that of a net for the upper two of more than two values.
    """
    if len(values) == 1:
        return values[0]
    if len(values) == 2:
        return Mux(index[0], values[1], values[0])
    upper = Signal.like(values[0], name=name)
    m.d.comb += upper.eq(_one_of(m, values[2:], index, name))
    return Mux(index[1], upper, Mux(index[0], values[1], values[0]))
