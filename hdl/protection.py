# SPDX-License-Identifier: Apache-2.0
"""The activation-protection unit: the input check and the violation counters.

The output check is part of the requantizer's saturation (hdl/lane.py).
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib.wiring import In, Out

from hdl.module import Part


def extend(code: Value, signed: Value) -> Value:
    """Return a code as a signed value one bit wider, two's complement if `signed` is high."""
    return Cat(code, signed & code[-1]).as_signed()


def check_code(
    m: Module, code: Value, lo: Value, hi: Value, signed: Value, *, squash: bool, name: str
) -> tuple[Value, Value]:
    """Return the code inside [lo, hi], and whether it was outside.

    Args:
        m: module that gets the logic.
        code, lo, hi: codes of one width.
        signed: whether they are two's complement.
        squash: replace a code outside by 0, not by the violated bound.
        name: of the signal with the resulting code.
    """
    value = extend(code, signed)
    low = value < extend(lo, signed)
    high = value > extend(hi, signed)
    checked = Signal(len(code), name=name)
    if squash:
        m.d.comb += checked.eq(Mux(low | high, 0, code))
    else:
        # High last: what a clip gives for bounds that cross.
        m.d.comb += checked.eq(Mux(high, hi, Mux(low, lo, code)))
    return checked, low | high


class ViolationCounter(Part):
    """Count the set bits of `violated` while `enable` is high, 32 bits, wrapping.

    `total` shows a beat two cycles after it was presented.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__(
            f"trilat_violation_counter_{width}",
            {"enable": In(1), "violated": In(width), "total": Out(32)},
            has_reset=True,
        )

    def elaborate(self, platform: object) -> Module:
        """Build the population count and the counter behind it."""
        m = self.new_module()
        count = Signal(range(len(self.violated) + 1))
        m.d.sync += [
            count.eq(Mux(self.enable, sum(bit for bit in self.violated), 0)),
            self.total.eq(self.total + count),
        ]
        return m
