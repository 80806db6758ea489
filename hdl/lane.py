# SPDX-License-Identifier: Apache-2.0
"""What stands behind each column: psum buffer, requantizer, output check."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hdl.config import MULTIPLIER_BITS, AcceleratorConfig
from hdl.module import Part, bits_of, flags
from hdl.protection import extend
from hdl.register_map import SCALE_FIELDS, parameter_words

# Bits of the shift amount that the first of the two shifter stages leaves to the second.
FINE_BITS = 3
# Bits of a sum that one multiplier block takes, which is 18 bits wide in most families.
_LOW_BITS = 17


def amount_bits(config: AcceleratorConfig) -> int:
    """Width of a shift amount: a parameter, or the lowest bit of any beat of a raw sum."""
    return max(config.shift_bits, ((config.raw_beats - 1) * config.act_bits).bit_length())


def raw_zeros(config: AcceleratorConfig) -> int:
    """Return how many low bits of a raw sum's amounts are 0: they are multiples of act_bits."""
    return (config.act_bits & -config.act_bits).bit_length() - 1


def limit_ports(config: AcceleratorConfig) -> dict[str, int]:
    """Return the widths of the limits that come from outside the lane (bounds per layer).

    The codes have their sign above them.
    """
    if not config.layer_bounds:
        return {}
    bits = config.act_bits + 1
    return {
        "lo": bits,
        "hi": bits,
        **{f"{name}_5a": config.act_bits for name in ("lo", "hi")},
        **({"lo_is_bound": 1, "hi_is_bound": 1} if config.checks_output else {}),
    }


def _sum_ports(config: AcceleratorConfig) -> dict[str, Any]:
    if config.is_os:
        return {"psum": In(config.acc_bits)}
    row = range(config.psum_depth)
    return {
        "psum": In(config.psum_bits(config.rows - 1)),
        "first": In(1),
        "read_row": In(row),
        "write_row": In(row),
        "write_psum": In(1),
    }


class Lane(Part):
    """Accumulate the sums of one column over K tiles, and turn them into output codes.

    What a memory gives passes a register before it is added to anything: a block RAM alone takes
    most of a cycle (5.6 ns on an ECP5).

    Accumulation: in the cycle in which `psum` holds a beat, that register holds the word of the
    psum memory that was asked for with `read_row` two cycles before; the sum is written one cycle
    later to `write_row` (`write_psum`) and, in the last K tile, to `ring_write` of the output ring
    (`write_ring`). An output-stationary array gives complete sums: there is no psum memory, and
    `psum` itself is written to the ring.

    Requantization: a pipeline that moves while `advance` is high. In stage 0 `ring_read` is an
    address, in 0a the ring gives the word, in 1 a register has it, 2 total, 3 and 4 shifted,
    5 rounded, 5a compared with the limits, 6 code.
    Raw sums take the same way: `amount_raw` selects the bits, and they are neither rounded nor
    saturated. With `requant` mult the total is multiplied in two further stages between 2 and 3,
    which are called 2a and 2b; raw sums by one.

    Parameters: a word of the parameter stream is written to the next bias or the next limits;
    `take_scale` makes bias, shift and multiplier the present ones, `take_limits` lo, hi and flags.
    With bounds per layer lo, hi and flags are inputs, of the beat in stage 5, and `lo_5a`, `hi_5a`
    the codes of the beat behind it.

    Members:
        psum: sum of the column, aligned with those of the others (ws).
        first: the beat in `psum` is one of the first K tile.
        read_row, write_row, write_psum, write_ring, ring_write: see above.
        param_word, write_*, take_scale, take_limits: see above; a write for each word.
        advance, ring_read: see above.
        raw_1, amount_raw: of the beat in stage 1; the amount without its `raw_zeros`.
        raw_4, raw_5, signed_5: of the beats in stages 4 and 5.
        lo, hi, lo_is_bound, hi_is_bound, lo_5a, hi_5a: see above.
        code: output code, or bits of a raw sum (stage 6).
        violated: `code` was beyond a protection bound (only with an output check).
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.words = parameter_words(config).column
        ring = range(2 * config.max_m)
        super().__init__(
            "trilat_lane",
            {
                **_sum_ports(config),
                "write_ring": In(1),
                "ring_write": In(ring),
                "param_word": In(32),
                **{f"write_{word.name}": In(1) for word in self.words},
                "take_scale": In(1),
                "take_limits": None if config.layer_bounds else In(1),
                "advance": In(1),
                "ring_read": In(ring),
                "raw_1": In(1),
                "amount_raw": In(amount_bits(config) - raw_zeros(config)),
                "raw_4": In(1),
                "raw_5": In(1),
                "signed_5": None if config.layer_bounds else In(1),
                **{name: In(bits) for name, bits in limit_ports(config).items()},
                "code": Out(config.act_bits),
                **({"violated": Out(1)} if config.checks_output else {}),
            },
            has_reset=False,
        )

    def elaborate(self, platform: object) -> Module:
        """Build the lane."""
        m = self.new_module()
        self._ring(m, self.psum if self.config.is_os else self._accumulate(m))
        self._parameters(m)
        total = self._add_bias(m)
        rounded = self._shift(m, total)
        self._saturate(m, rounded)
        return m

    def _accumulate(self, m: Module) -> Value:
        """Add the beats of a row over K tiles; return the sum that is written."""
        config = self.config
        m.submodules.psums = psums = Memory(shape=config.acc_bits, depth=config.psum_depth, init=[])
        psums_read = psums.read_port(domain="data")
        psums_write = psums.write_port(domain="data")
        acc = Signal(config.acc_bits)
        word, so_far = Signal(config.acc_bits, name="psum_word"), Signal(config.acc_bits)
        m.d.data += [
            word.eq(psums_read.data),
            acc.eq(so_far.as_signed() + self.psum.as_signed()),
        ]
        m.d.comb += [
            psums_read.addr.eq(self.read_row),
            psums_write.addr.eq(self.write_row),
            psums_write.data.eq(acc),
            psums_write.en.eq(self.write_psum),
            so_far.eq(Mux(self.first, 0, word)),
        ]
        return acc

    def _ring(self, m: Module, complete: Value) -> None:
        config = self.config
        m.submodules.ring = ring = Memory(shape=config.acc_bits, depth=2 * config.max_m, init=[])
        ring_write = ring.write_port(domain="data")
        ring_read = ring.read_port(domain="data")
        self._ring_word = Signal(config.acc_bits, name="ring_word")
        with m.If(self.advance):
            m.d.data += self._ring_word.eq(ring_read.data)
        m.d.comb += [
            ring_write.addr.eq(self.ring_write),
            ring_write.data.eq(complete),
            ring_write.en.eq(self.write_ring),
            ring_read.addr.eq(self.ring_read),
            ring_read.en.eq(self.advance),
        ]

    def _parameters(self, m: Module) -> None:
        config = self.config
        self._params: dict[str, Signal] = {n: getattr(self, n) for n in limit_ports(config)}
        for word, field in [(w, f) for w in self.words for f in w.fields]:
            name = field.name
            if name.endswith("_is_bound") and not config.checks_output:
                continue
            value = bits_of(self.param_word, field, config.acc_bits if name == "bias" else None)
            following = Signal(len(value), name=f"next_{name}")
            present = Signal(len(value), name=name)
            with m.If(getattr(self, f"write_{word.name}")):
                m.d.data += following.eq(value)
            with m.If(self.take_scale if name in SCALE_FIELDS else self.take_limits):
                m.d.data += present.eq(following)
            self._params[name] = present

    def _add_bias(self, m: Module) -> Value:
        total = Signal(self.config.sum_bits)
        with m.If(self.advance):
            m.d.data += total.eq(self._ring_word.as_signed() + self._params["bias"].as_signed())
        return total

    def _shift(self, m: Module, total: Value) -> Value:
        """Return round_half_even(total / 2**amount), registered.

        A guard bit below the total holds the half, `sticky` whether anything follows it.
        """
        config = self.config
        amount = Signal(amount_bits(config))
        amount_raw = Cat(Const(0, raw_zeros(config)), self.amount_raw)
        taken = Mux(self.raw_1, amount_raw, self._params["shift"])
        if config.multiplies:
            steps = [
                taken,
                Signal.like(amount, name="amount_2"),
                Signal.like(amount, name="amount_2a"),
            ]
            with m.If(self.advance):
                m.d.data += [b.eq(a) for a, b in pairwise([*steps, amount])]
            total = self._multiply(m, total)
        width = len(total) + 1
        coarse, coarse_sticky = Signal(width, name="coarse"), Signal(name="coarse_sticky")
        fine_amount = Signal(FINE_BITS)
        fine, fine_sticky = Signal(width, name="fine"), Signal(name="fine_sticky")
        rounded = Signal(len(total))

        value: Value = Cat(Const(0, 1), total)
        lost: Value = Const(0, 0)
        for k in reversed(range(FINE_BITS, len(amount))):
            value, lost = _shift_step(m, value, lost, amount[k], k)
        with m.If(self.advance):
            m.d.data += [
                *([] if config.multiplies else [amount.eq(taken)]),
                coarse.eq(value),
                coarse_sticky.eq(lost.any()),
                fine_amount.eq(amount[:FINE_BITS]),
            ]

        value, lost = coarse, coarse_sticky
        for k in reversed(range(FINE_BITS)):
            value, lost = _shift_step(m, value, lost, fine_amount[k], k)
        quotient = fine[1:]
        round_up = Signal()
        m.d.comb += round_up.eq(fine[0] & (fine_sticky | quotient[0]) & ~self.raw_4)
        with m.If(self.advance):
            m.d.data += [
                fine.eq(value),
                fine_sticky.eq(lost.any()),
                rounded.eq(quotient + round_up),
            ]
        return rounded

    def _multiply(self, m: Module, total: Value) -> Value:
        """Return the total times its multiplier, or a raw one as it is, two stages later.

        Two blocks side by side where the total is wider than one: their products have a register
        each, their sum another.
        """
        split = min(len(total), _LOW_BITS)
        factor = Signal(MULTIPLIER_BITS)
        operand = Cat(factor, Const(0, 1)).as_signed()
        partial = Signal(split + MULTIPLIER_BITS, name="low_product")
        with m.If(self.advance):
            m.d.data += factor.eq(Mux(self.raw_1, 1, self._params["multiplier"]))
        if len(total) == split:
            product = Signal(len(partial))
            with m.If(self.advance):
                m.d.data += [partial.eq(total.as_signed() * operand), product.eq(partial)]
            return product
        upper = Signal(len(total) - split + MULTIPLIER_BITS, name="high_product")
        product_low, product_high = Signal(split), Signal.like(upper, name="product_high")
        with m.If(self.advance):
            m.d.data += [
                partial.eq(Cat(total[:split], Const(0, 1)).as_signed() * operand),
                upper.eq(total[split:].as_signed() * operand),
                product_low.eq(partial[:split]),
                product_high.eq(upper + partial[split:]),
            ]
        return Cat(product_low, product_high)

    def _saturate(self, m: Module, rounded: Value) -> None:
        config, params, bits = self.config, self._params, self.config.act_bits
        # Compare few bits: the value is a code of either sign, or all beyond one end.
        low_part, high_part = rounded[: bits + 1], rounded[bits:]
        fits = Signal()
        m.d.comb += fits.eq(high_part.all() | ~high_part.any())
        negative = rounded[-1]
        if config.layer_bounds:
            lo, hi = self.lo.as_signed(), self.hi.as_signed()
        else:
            lo = extend(m, params["lo"], self.signed_5, "lowest")
            hi = extend(m, params["hi"], self.signed_5, "highest")
        below, above, low, high = flags("below", "above", "low", "high")
        m.d.comb += [
            below.eq(low_part.as_signed() < lo),
            above.eq(low_part.as_signed() > hi),
            low.eq(Mux(fits, below, negative) & ~self.raw_5),
            high.eq(Mux(fits, above, ~negative) & ~self.raw_5),
        ]
        low_5a, high_5a = flags("low_5a", "high_5a")
        value, lo_5a, hi_5a = (Signal(bits, name=f"{name}_5a") for name in ("value", "lo", "hi"))
        with m.If(self.advance):
            m.d.data += [low_5a.eq(low), high_5a.eq(high), value.eq(rounded[:bits])]
        if config.layer_bounds:
            lo_5a, hi_5a = self.lo_5a, self.hi_5a
        else:
            with m.If(self.advance):
                m.d.data += [lo_5a.eq(lo[:bits]), hi_5a.eq(hi[:bits])]
        code: Value = Mux(high_5a, hi_5a, Mux(low_5a, lo_5a, value))
        if config.checks_output:
            violation = Signal(name="violation")
            with m.If(self.advance):
                m.d.data += [
                    violation.eq((low & params["lo_is_bound"]) | (high & params["hi_is_bound"])),
                    self.violated.eq(violation),
                ]
            if config.protect == "zero":
                code = Mux(violation, 0, code)
        with m.If(self.advance):
            m.d.data += self.code.eq(code)


def _shift_step(m: Module, value: Value, lost: Value, enable: Value, k: int) -> tuple[Value, Value]:
    """Shift `value` right by 2**k if `enable`; add to `lost` whether a one falls out."""
    width, distance = len(value), 1 << k
    shifted, fallen = Signal(width, name=f"by_{distance}"), Signal(name=f"lost_by_{distance}")
    m.d.comb += [
        shifted.eq(
            Mux(enable, Cat(value[distance:], value[-1].replicate(min(distance, width))), value)
        ),
        fallen.eq(enable & value[: min(distance, width)].any()),
    ]
    return shifted, Cat(lost, fallen)
