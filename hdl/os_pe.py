# SPDX-License-Identifier: Apache-2.0
"""One processing element of the output-stationary array."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib.wiring import In, Out

from hdl.config import AcceleratorConfig
from hdl.module import Part, place
from hdl.multiplier import act_name, lane_names, multiplier


class Accumulator(Part):
    """Add up products; a module of its own, so that it can be exchanged.

    Members:
        valid: there is a product.
        first: it is the first one of a sum.
        product: product register of a PE.
        acc: sum so far; a register that loads while `valid` is high.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            "trilat_accumulator",
            {
                "valid": In(1),
                "first": In(1),
                "product": In(config.product_bits),
                "acc": Out(config.acc_bits),
            },
            has_reset=False,
        )

    def elaborate(self, platform: object) -> Module:
        """Build the adder."""
        m = self.new_module()
        so_far = Signal.like(self.acc)
        m.d.comb += so_far.eq(Mux(self.first, 0, self.acc))
        with m.If(self.valid):
            m.d.data += self.acc.eq(self.product.as_signed() + so_far.as_signed())
        return m


class OutputStationaryElement(Part):
    """Multiply an activation by a weight and add the product to the sum kept here.

    Every output is a register that loads in every cycle, but `acc`: it loads while `valid` is
    high, the product alone while `first` is high too. Nothing is reset: a beat under way at a
    reset runs out of the array ahead of all that follows it, and `first` overwrites what it left.

    With `dsp_pack` columns to a multiplier block it does so for each of them: what is marked with
    * has a number behind its name then.

    Latency: `act_in` to `act` 1 cycle, to the product register 2, to `acc` 3. The markers of a
    beat are in `valid` and `first` together with its product.

    Members:
        act_in, act: activation, `operand_bits` wide; travels right.
        weight_in*, weight*: weight code; travels down.
        valid_in, valid: there is a beat, one cycle behind its operands; travels down.
        first_in, first: it is the first of its output tile; travels with `valid`.
        acc*: sum of the products so far.

    Args:
        config: gives all widths.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.multiplier, self.accumulator = multiplier(config), Accumulator(config)
        super().__init__(
            "trilat_pe_os",
            {
                "act_in": In(config.operand_bits),
                **{name: In(config.weight_bits) for name in lane_names(config, "weight_in")},
                "valid_in": In(1),
                "first_in": In(1),
                "act": Out(config.operand_bits),
                **{name: Out(config.weight_bits) for name in lane_names(config, "weight")},
                "valid": Out(1),
                "first": Out(1),
                **{name: Out(config.acc_bits) for name in lane_names(config, "acc")},
            },
            has_reset=False,
            parts=(self.multiplier, self.accumulator),
        )

    def elaborate(self, platform: object) -> Module:
        """Build the PE."""
        m = self.new_module()
        weights, products, sums, accumulators = (
            lane_names(self.config, name) for name in ("weight", "product", "acc", "accumulator")
        )
        pins: dict[str, Value] = {act_name(self.config): self.act}
        pins |= {name: getattr(self, name) for name in weights}
        pins |= {name: Signal(self.config.product_bits, name=name) for name in products}
        place(self, m, "multiplier", self.multiplier, **pins)
        m.d.data += self.act.eq(self.act_in)
        for weight, weight_in in zip(weights, lane_names(self.config, "weight_in"), strict=True):
            m.d.data += getattr(self, weight).eq(getattr(self, weight_in))
        m.d.data += [self.valid.eq(self.valid_in), self.first.eq(self.first_in)]
        for name, product, acc in zip(accumulators, products, sums, strict=True):
            place(
                self,
                m,
                name,
                self.accumulator,
                valid=self.valid,
                first=self.first,
                product=pins[product],
                acc=getattr(self, acc),
            )
        return m
