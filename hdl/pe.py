# SPDX-License-Identifier: Apache-2.0
"""One processing element of the weight-stationary array."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib.wiring import In, Out

from hdl.config import AcceleratorConfig
from hdl.module import Part, place
from hdl.multiplier import Multiplier, signed_operand


def lane_names(config: AcceleratorConfig, name: str) -> list[str]:
    """Return the names of what a PE has for each of the columns that it serves."""
    count = config.dsp_pack
    return [name] if count == 1 else [f"{name}_{lane}" for lane in range(count)]


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
        multiplier: in lookup tables; without one the product is left to a multiplier block.
    """

    def __init__(
        self, config: AcceleratorConfig, *, psum_bits: int, multiplier: Multiplier | None
    ) -> None:
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
        super().__init__(
            f"trilat_pe_p{psum_bits}",
            members,
            has_reset=False,
            parts=() if multiplier is None else (multiplier,),
        )

    def elaborate(self, platform: object) -> Module:
        """Build the PE."""
        m = self.new_module()
        m.d.data += [
            self.act.eq(self.act_in),
            self.swap.eq(self.swap_in),
            self.load.eq(self.load_in),
        ]
        weights = []
        for lane, loading in enumerate(self._lanes("weight_loading")):
            active = Signal(len(loading), name=lane_names(self.config, "weight_active")[lane])
            with m.If(self.load_in):
                m.d.data += loading.eq(self._lanes("weight_in")[lane])
            with m.If(self.swap_in):
                m.d.data += active.eq(loading)
            weights.append(active)
        products = self._multiply(m, weights)
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

    def _multiply(self, m: Module, weights: list[Signal]) -> list[Signal]:
        """Return the product registers."""
        bits = self.config.product_bits
        products = [Signal(bits, name=name) for name in lane_names(self.config, "product")]
        if self.multiplier is not None:
            pins = {"act": self.act, "weight": weights[0], "product": products[0]}
            place(self, m, "multiplier", self.multiplier, **pins)
            return products
        operand = signed_operand(self.config, self.act)
        if len(weights) == 1:
            m.d.data += products[0].eq(operand.as_signed() * weights[0].as_signed())
        else:
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
        return products
