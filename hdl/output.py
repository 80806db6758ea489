# SPDX-License-Identifier: Apache-2.0
"""The output stream's two-slot buffer."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib.wiring import In, Out

from hdl.config import AcceleratorConfig
from hdl.module import Part, flags


class OutputBuffer(Part):
    """Put codes on `m_axis_out` with full backpressure. Every output is a register.

    While `advance` is high the lanes move and `code` is taken if `code_valid`; a second slot
    takes the beat of the cycle in which the receiver stops.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        width = config.cols * config.act_bits
        super().__init__(
            "trilat_output_buffer",
            {
                "code": In(width),
                "code_valid": In(1),
                "code_last": In(1),
                "advance": Out(1),
                "m_axis_out_tdata": Out(width),
                "m_axis_out_tlast": Out(1),
                "m_axis_out_tvalid": Out(1),
                "m_axis_out_tready": In(1),
            },
            has_reset=True,
        )

    def elaborate(self, platform: object) -> Module:
        """Build the buffer."""
        m = self.new_module()
        spare = Signal(len(self.code))
        spare_last = Signal()
        spare_valid, spare_valid_next, take, move = flags(
            "spare_valid", "spare_valid_next", "take", "move"
        )
        m.d.comb += [
            take.eq(self.code_valid & self.advance),
            move.eq(~self.m_axis_out_tvalid | self.m_axis_out_tready),
            spare_valid_next.eq(~move & (spare_valid | take)),
        ]
        m.d.sync += [
            spare_valid.eq(spare_valid_next),
            self.advance.eq(~spare_valid_next),
        ]
        with m.If(move):
            m.d.sync += self.m_axis_out_tvalid.eq(spare_valid | take)
            m.d.data += [
                self.m_axis_out_tdata.eq(Mux(spare_valid, spare, self.code)),
                self.m_axis_out_tlast.eq(Mux(spare_valid, spare_last, self.code_last)),
            ]
        with m.If(self.advance):
            m.d.data += [spare.eq(self.code), spare_last.eq(self.code_last)]
        return m
