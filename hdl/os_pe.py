# SPDX-License-Identifier: Apache-2.0
"""One processing element of the output-stationary array."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib.wiring import In, Out

from hdl.config import AcceleratorConfig
from hdl.module import Part, place
from hdl.multiplier import Multiplier, signed_operand


class OutputStationaryElement(Part):
    """Multiply an activation by a weight and add the product to the sum kept here.

    Every output is a register that loads in every cycle, but `acc`: it loads while `valid` is
    high, the product alone while `first` is high too. Nothing is reset: a beat under way at a
    reset runs out of the array ahead of all that follows it, and `first` overwrites what it left.

    Latency: `act_in` to `act` 1 cycle, to the product register 2, to `acc` 3. The markers of a
    beat are in `valid` and `first` together with its product.

    Members:
        act_in, act: activation, `operand_bits` wide; travels right.
        weight_in, weight: weight code; travels down.
        valid_in, valid: there is a beat, one cycle behind its operands; travels down.
        first_in, first: it is the first of its output tile; travels with `valid`.
        acc: sum of the products so far.

    Args:
        config: gives all widths.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.multiplier = None if config.uses_dsp else Multiplier(config)
        super().__init__(
            "trilat_pe_os",
            {
                "act_in": In(config.operand_bits),
                "weight_in": In(config.weight_bits),
                "valid_in": In(1),
                "first_in": In(1),
                "act": Out(config.operand_bits),
                "weight": Out(config.weight_bits),
                "valid": Out(1),
                "first": Out(1),
                "acc": Out(config.acc_bits),
            },
            has_reset=False,
            parts=() if self.multiplier is None else (self.multiplier,),
        )

    def elaborate(self, platform: object) -> Module:
        """Build the PE."""
        m = self.new_module()
        product = Signal(self.config.product_bits, name="product")
        if self.multiplier is None:
            operand = signed_operand(self.config, self.act)
            m.d.data += product.eq(operand.as_signed() * self.weight.as_signed())
        else:
            pins = {"act": self.act, "weight": self.weight, "product": product}
            place(self, m, "multiplier", self.multiplier, **pins)
        m.d.data += [
            self.act.eq(self.act_in),
            self.weight.eq(self.weight_in),
            self.valid.eq(self.valid_in),
            self.first.eq(self.first_in),
        ]
        so_far = Signal.like(self.acc)
        m.d.comb += so_far.eq(Mux(self.first, 0, self.acc))
        with m.If(self.valid):
            m.d.data += self.acc.eq(product.as_signed() + so_far.as_signed())
        return m
