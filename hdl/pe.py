# SPDX-License-Identifier: Apache-2.0
"""One processing element of the weight-stationary array."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value
from amaranth.lib.wiring import In, Out

from hdl.config import AcceleratorConfig
from hdl.module import Part, place
from hdl.multiplier import act_name, lane_names


class ProcessingElement(Part):
    """Multiply an activation by the active weight and add the product to a partial sum.

    Every output is a register that loads in every cycle, but the weights: `weight_loading` takes
    the weight from above while `load_in` is high, `weight_active` takes `weight_loading` while
    `swap_in` is high, which comes with the first activation that needs it. Nothing is reset:
    swaps and loads under way at a reset run out of the array ahead of all that follows it.

    With `dsp_pack` columns to a multiplier block it does so for each of them: what is marked with
    * has a number behind its name then.

    Latency: `act_in` to `act` 1 cycle, to the product register 2, to `psum` 3.

    Members:
        act_in, act: activation, `operand_bits` wide; travels right.
        swap_in, swap: travels down.
        load_in, load: travels right.
        weight_in*, weight_loading*: travels down when `load_in` is high.
        psum_in*, psum*: partial sum; travels down. The top row has no `psum_in`.

    Args:
        config: gives the widths of codes and product.
        psum_bits: width of the partial sum; that of row 0 makes a PE of the top row.
        multiplier: `hdl.multiplier.multiplier` of the same configuration.
    """

    def __init__(self, config: AcceleratorConfig, *, psum_bits: int, multiplier: Part) -> None:
        self.config, self.multiplier = config, multiplier
        self.is_top = psum_bits == config.psum_bits(0)
        members = {
            "act_in": In(config.operand_bits),
            "swap_in": In(1),
            "load_in": In(1),
            **{name: In(config.weight_bits) for name in lane_names(config, "weight_in")},
            **{name: In(psum_bits) for name in lane_names(config, "psum_in") if not self.is_top},
            "act": Out(config.operand_bits),
            "swap": Out(1),
            "load": Out(1),
            **{name: Out(config.weight_bits) for name in lane_names(config, "weight_loading")},
            **{name: Out(psum_bits) for name in lane_names(config, "psum")},
        }
        super().__init__(f"trilat_pe_p{psum_bits}", members, has_reset=False, parts=(multiplier,))

    def elaborate(self, platform: object) -> Module:
        """Build the PE."""
        m = self.new_module()
        m.d.data += [
            self.act.eq(self.act_in),
            self.swap.eq(self.swap_in),
            self.load.eq(self.load_in),
        ]
        pins: dict[str, Value] = {act_name(self.config): self.act}
        for lane, loading in enumerate(self._lanes("weight_loading")):
            active = Signal(len(loading), name=lane_names(self.config, "weight_active")[lane])
            with m.If(self.load_in):
                m.d.data += loading.eq(self._lanes("weight_in")[lane])
            with m.If(self.swap_in):
                m.d.data += active.eq(loading)
            pins[lane_names(self.config, "weight")[lane]] = active
        names = lane_names(self.config, "product")
        products = [Signal(self.config.product_bits, name=name) for name in names]
        pins |= dict(zip(names, products, strict=True))
        place(self, m, "multiplier", self.multiplier, **pins)
        for lane, psum in enumerate(self._lanes("psum")):
            product = products[lane]
            if self.is_top:
                m.d.data += psum.eq(product)
            else:
                above = self._lanes("psum_in")[lane]
                m.d.data += psum.eq(above.as_signed() + product.as_signed())
        return m

    def _lanes(self, name: str) -> list[Signal]:
        return [getattr(self, member) for member in lane_names(self.config, name)]
