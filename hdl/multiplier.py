# SPDX-License-Identifier: Apache-2.0
"""A PE's multiplier with its product register: in a multiplier block, or in lookup tables.

In lookup tables it is one row of adders for every two bits of an operand.
Radix-4 recoding after Booth (1951), but with the digits -2, -1, 0 and 1 and a carry between
them: a digit is chosen by two bits, so that one bit of a row is a function of four, where
Booth's own digits -2..2 take five. With 6-input tables the choice and its addition to the rows
before it are one table a bit (as in Kumm, Abbas and Zipf, ARITH 2015); with 4-input tables the
choice is one, the addition another.

The lowest digit is 0..3 and carries nothing: its row is the digit less two, and the adder of the
first row, which has nothing else to add, adds the two. So the second digit, too, is chosen by its
own two bits alone, and an operand of four bits takes no logic but the rows. With more digits,
the one with the sign takes all of -2..2.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib.wiring import In, Out

from hdl.config import AcceleratorConfig, Span, product_span, signed_width
from hdl.module import Part, flags

# The digit of the two lowest bits of an operand with more.
_LOWEST = (0, 3)


def act_name(config: AcceleratorConfig) -> str:
    """Return the name of a multiplier's input for the activation, which says what it is."""
    return "unsigned_act" if config.act_sign == "unsigned" else "act"


def signed_operand(config: AcceleratorConfig, act: Value) -> Value:
    """Return an activation as a multiplier takes it, in two's complement.

    Args:
        config: the accelerator.
        act: what a PE has of it, `operand_bits` wide.
    """
    return Cat(act, Const(0, 1)) if config.act_sign == "unsigned" else act


def lane_names(config: AcceleratorConfig, name: str) -> list[str]:
    """Return the names of what a PE has for each of the columns that it serves."""
    count = config.dsp_pack
    return [name] if count == 1 else [f"{name}_{lane}" for lane in range(count)]


def multiplier(config: AcceleratorConfig) -> Part:
    """Return the multiplier of every PE; a module of its own, so that it can be exchanged."""
    return BlockMultiplier(config) if config.uses_dsp else TableMultiplier(config)


class BlockMultiplier(Part):
    """Products of an activation and the weights that share a multiplier block, registered.

    The tools map `*` to such a block, and the product register into it.

    Members:
        act or unsigned_act: activation, `operand_bits` wide.
        weight*: weight code; numbered where several columns share the block.
        product*: register, loads in every cycle.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            "trilat_multiplier",
            {
                act_name(config): In(config.operand_bits),
                **{name: In(config.weight_bits) for name in lane_names(config, "weight")},
                **{name: Out(config.product_bits) for name in lane_names(config, "product")},
            },
            has_reset=False,
        )

    def elaborate(self, platform: object) -> Module:
        """Multiply once, whatever the number of weights."""
        m = self.new_module()
        bits = self.config.product_bits
        operand = signed_operand(self.config, getattr(self, act_name(self.config)))
        weights, products = (
            [getattr(self, member) for member in lane_names(self.config, name)]
            for name in ("weight", "product")
        )
        if len(weights) == 1:
            m.d.data += products[0].eq(operand.as_signed() * weights[0].as_signed())
            return m
        # One multiplication of the weights, each as far above the last as a product is wide.
        packed: Value = weights[0].as_signed()
        for lane, weight in enumerate(weights[1:], 1):
            packed = Cat(Const(0, lane * bits), weight).as_signed() + packed
        both = Signal(len(packed), name="packed_weights")
        result = Signal(len(packed) + len(operand), name="packed_products")
        m.d.comb += [both.eq(packed), result.eq(both.as_signed() * operand.as_signed())]
        m.d.data += products[0].eq(result[:bits])
        for lane, product in enumerate(products[1:], 1):
            # A negative product below has borrowed one, and its sign says so.
            low = lane * bits
            m.d.data += product.eq(result[low : low + bits] + result[low - 1])
        return m


class TableMultiplier(Part):
    """The product of an activation and a weight, registered, exact for every code.

    Of the least operands that registers can hold, which only a fault makes, it is the exact
    product's lowest `product_bits`.

    Members:
        act or unsigned_act: activation, `operand_bits` wide.
        weight: weight code.
        product: register, loads in every cycle.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            "trilat_multiplier",
            {
                act_name(config): In(config.operand_bits),
                "weight": In(config.weight_bits),
                "product": Out(config.product_bits),
            },
            has_reset=False,
        )

    def elaborate(self, platform: object) -> Module:
        """Build a row for every two bits of the narrower operand, and add them up."""
        m = self.new_module()
        config = self.config
        act = signed_operand(config, getattr(self, act_name(config)))
        if len(self.weight) <= len(act):
            multiplicand, span, multiplier = act, config.operand_span, self.weight
        else:
            multiplicand, span, multiplier = self.weight, config.weight_span, act
        digits: Span = (0, 0)
        total: Value = Const(0, 2)
        done: list[Value] = []
        carry: Value | None = None
        for low in range(0, len(multiplier), 2):
            ends = self._ends(multiplier, low)
            digits = digits[0] + (ends[0] << low), digits[1] + (ends[1] << low)
            width = min(signed_width(*product_span(digits, span)), config.product_bits) - low
            if ends == _LOWEST:
                total = Cat(Const(0, 1), multiplicand)  # the two that its row lacks
            row, negative, carry = self._row(m, multiplicand, multiplier, low, carry, width)
            left = total
            if not low:
                # Nothing is added to the lowest bit: it is of the product already.
                done.append(Signal(name="lowest"))
                m.d.comb += done[0].eq(multiplier[0] & multiplicand[0])
                adjusted = Signal(name="adjusted")
                m.d.comb += adjusted.eq(negative & ~done[0])
                negative, left = adjusted, total[1:]
            # The lowest bit carries into the next one where the digit is negative.
            added = Signal(width + (1 if low else 0), name=f"partial_{low // 2}")
            left, right = (Cat(negative, value)[: len(added)].as_signed() for value in (left, row))
            m.d.comb += added.eq(left + right)
            done += [*added[1:3]] if low else [added[1]]
            total = added[3:] if low else added[2:]
        m.d.data += self.product.eq(Cat(*done, total))
        return m

    @staticmethod
    def _ends(multiplier: Value, low: int) -> Span:
        """Return the least and the greatest digit at bit `low`; one above bit 2 has a carry."""
        bits, carry = len(multiplier) - low, int(low > 2)
        if bits == 1:
            return -1, carry
        if bits == 2:
            return -2, 1 + carry
        return (-2, 1) if low else _LOWEST

    def _row(
        self,
        m: Module,
        multiplicand: Value,
        multiplier: Value,
        low: int,
        carry: Value | None,
        width: int,
    ) -> tuple[Value, Value, Value | None]:
        """Return a digit times the multiplicand, less one where the digit is negative; whether
        it is; and the carry into the next digit. Of the lowest of several digits, two less; the
        row of the first one goes without its lowest bit.
        """
        number, bits = low // 2, multiplier[low : low + 2]
        zero, bit, high = Const(0, 1), bits[0], bits[-1]
        once = Cat(multiplicand, multiplicand[-1])[:width]
        twice = Cat(zero, multiplicand)[:width]
        negative, single = flags(f"negative_{number}", f"single_{number}")
        used = slice(0 if low else 1, None)
        row = Signal(len(once[used]), name=f"row_{number}")
        double: Value = negative  # where it is not single
        following: Value | None = None
        m.d.comb += single.eq(bit if carry is None else bit ^ carry)
        if self._ends(multiplier, low) == _LOWEST:
            m.d.comb += negative.eq(~high)
        elif carry is None:  # -2 high + bit, or -bit
            m.d.comb += negative.eq(high)
            following = high
        elif len(bits) == 1:  # -bit + carry
            m.d.comb += negative.eq(bit & ~carry)
        elif low == len(multiplier) - 2:  # -2 high + bit + carry
            double = Signal(name=f"double_{number}")
            both = bit & carry
            m.d.comb += [negative.eq(high & ~both), double.eq((high ^ both) & ~single)]
        else:  # 2 high + bit + carry, less 4 where that is 2 or more
            following = Signal(name=f"carry_{number}")
            both = bit & carry
            m.d.comb += [negative.eq(high ^ both), following.eq(high | both)]
        if len(bits) == 1:
            double = zero
        chosen = Signal.like(row, name=f"chosen_{number}")
        m.d.comb += [
            chosen.eq(Mux(single, once[used], Mux(double, twice[used], 0))),
            row.eq(chosen ^ negative.replicate(len(row))),
        ]
        return row, negative, following
