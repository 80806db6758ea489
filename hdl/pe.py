# SPDX-License-Identifier: Apache-2.0
"""One processing element of the weight-stationary array."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib.wiring import In, Out

from hdl.config import AcceleratorConfig
from hdl.module import Part


class ProcessingElement(Part):
    """Multiply an activation by the active weight and add the product to a partial sum.

    Every output is a register that loads in every cycle, but the weights: `weight_loading` takes
    the weight from above while `load_in` is high, `weight_active` takes `weight_loading` while
    `swap_in` is high, which comes with the first activation that needs it. Nothing is reset:
    swaps and loads under way at a reset run out of the array ahead of all that follows it.

    Latency: `act_in` to `act` 1 cycle, to the product register 2, to `psum` 3.

    Members:
        act_in, act: activation code; travels right.
        signed_in, act_signed: whether it is two's complement; travels down.
        swap_in, swap: travels down.
        load_in, load: travels right.
        weight_in, weight_loading: travels down when `load_in` is high.
        psum_in, psum: partial sum; travels down. The top row has no `psum_in`.

    Args:
        config: gives the widths of codes and product.
        psum_bits: width of the partial sum; that of the product alone makes a PE of the top row.
    """

    def __init__(self, config: AcceleratorConfig, *, psum_bits: int) -> None:
        self.product_bits = config.product_bits
        self.is_top = psum_bits == config.product_bits
        weight = config.weight_bits
        super().__init__(
            f"trilat_pe_p{psum_bits}",
            {
                "act_in": In(config.act_bits),
                "signed_in": In(1),
                "swap_in": In(1),
                "load_in": In(1),
                "weight_in": In(weight),
                **({} if self.is_top else {"psum_in": In(psum_bits)}),
                "act": Out(config.act_bits),
                "act_signed": Out(1),
                "swap": Out(1),
                "load": Out(1),
                "weight_loading": Out(weight),
                "psum": Out(psum_bits),
            },
            has_reset=False,
        )

    def elaborate(self, platform: object) -> Module:
        """Build the PE."""
        m = self.new_module()
        weight_active = Signal(len(self.weight_loading))
        product = Signal(self.product_bits)
        act_sign = self.act_signed & self.act[-1]
        operand = Cat(self.act, act_sign).as_signed()
        m.d.data += [
            self.act.eq(self.act_in),
            self.act_signed.eq(self.signed_in),
            self.swap.eq(self.swap_in),
            self.load.eq(self.load_in),
            product.eq(operand * weight_active.as_signed()),
        ]
        if self.is_top:
            m.d.data += self.psum.eq(product)
        else:
            m.d.data += self.psum.eq(self.psum_in.as_signed() + product.as_signed())
        with m.If(self.load_in):
            m.d.data += self.weight_loading.eq(self.weight_in)
        with m.If(self.swap_in):
            m.d.data += weight_active.eq(self.weight_loading)
        return m
