# SPDX-License-Identifier: Apache-2.0
"""The activation-protection unit: the input check and the violation counters.

The output check is part of the requantizer's saturation (hdl/lane.py).
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib.wiring import In, Out

from hdl.module import Part, flags


def extend(m: Module, code: Value, is_signed: Value, name: str) -> Value:
    """Return a code as a signed value one bit wider, two's complement if `is_signed` is high."""
    sign = Signal(name=f"{name}_sign")
    m.d.comb += sign.eq(is_signed & code[-1])
    return Cat(code, sign).as_signed()


def check_code(
    m: Module, value: Value, lo: Value, hi: Value, *, squash: bool, name: str
) -> tuple[Value, Value]:
    """Return the code inside [lo, hi], and whether it was outside.

    Args:
        m: module that gets the logic.
        value, lo, hi: codes, as `extend` gives them.
        squash: replace a code outside by 0, not by the violated bound.
        name: of the signal with the resulting code, and stem of the others.
    """
    bits = len(value) - 1
    low, high, outside = flags(f"{name}_low", f"{name}_high", f"{name}_outside")
    checked = Signal(bits, name=name)
    m.d.comb += [low.eq(value < lo), high.eq(value > hi), outside.eq(low | high)]
    if squash:
        m.d.comb += checked.eq(Mux(outside, 0, value[:bits]))
    else:
        m.d.comb += checked.eq(Mux(high, hi[:bits], Mux(low, lo[:bits], value[:bits])))
    return checked, outside


class ViolationCounter(Part):
    """Count the set bits of `violated` while `enable` is high, 32 bits, wrapping.

    `total` shows a beat two cycles after it was presented; `clear` sets it to zero.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__(
            f"trilat_violation_counter_{width}",
            {"enable": In(1), "violated": In(width), "clear": In(1), "total": Out(32)},
            has_reset=True,
        )

    def elaborate(self, platform: object) -> Module:
        """Build the population count and the counter behind it."""
        m = self.new_module()
        sums: list[Value] = list(self.violated)
        level = 0
        while len(sums) > 1:
            level += 1
            pairs = []
            for i in range(0, len(sums) - 1, 2):
                pair = sums[i] + sums[i + 1]
                pairs.append(Signal(len(pair), name=f"sum_{level}_{i // 2}"))
                m.d.comb += pairs[-1].eq(pair)
            sums = pairs + sums[2 * len(pairs) :]
        count = Signal(len(sums[0]))
        m.d.sync += [count.eq(Mux(self.enable, sums[0], 0)), self.total.eq(self.total + count)]
        with m.If(self.clear):
            m.d.sync += self.total.eq(0)
        return m
