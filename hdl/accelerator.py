# SPDX-License-Identifier: Apache-2.0
"""The top: streams, front, skews, columns, deskew, lanes, drain, output buffer, counters."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib.wiring import In, Out

from hdl.array import ActivationSkew, Column, Deskew, WeightSkew
from hdl.config import AcceleratorConfig
from hdl.drain import Drain
from hdl.front import Front
from hdl.lane import Lane
from hdl.module import Part, place
from hdl.output import OutputBuffer
from hdl.protection import ViolationCounter

TOP = "trilat_accelerator"


def byte_padded(bits: int) -> int:
    """Return the width of a stream's tdata that carries `bits` bits."""
    return -(-bits // 8) * 8


class Accelerator(Part):
    """The accelerator with its four streams, as docs/architecture.md describes it.

    ``s_axis_*_tlast`` is not looked at: the parameters say how many beats come. The counters
    `violations_in` and `violations_out` exist where the protection unit checks.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.front = Front(config)
        self.activation_skew = ActivationSkew(config)
        self.weight_skew = WeightSkew(config)
        self.column = Column(config)
        self.deskew = Deskew(config)
        self.drain = Drain(config)
        self.lane = Lane(config)
        self.output = OutputBuffer(config)
        if config.checks_input:
            self.counter_in = ViolationCounter(width=config.rows)
        if config.checks_output:
            self.counter_out = ViolationCounter(width=config.cols)
        parts: list[Part] = [self.front, self.activation_skew, self.weight_skew, self.column]
        parts += [self.deskew] if config.cols > 1 else []
        parts += [self.drain, self.lane, self.output]
        parts += [self.counter_in] if config.checks_input else []
        parts += [self.counter_out] if config.checks_output else []
        widths = {
            "s_axis_param": 32,
            "s_axis_weight": config.cols * config.weight_bits,
            "s_axis_act": config.rows * config.act_bits,
            "m_axis_out": config.cols * config.act_bits,
        }
        ports = {}
        for name, width in widths.items():
            forward, back = (In, Out) if name.startswith("s_") else (Out, In)
            ports[f"{name}_tdata"] = forward(byte_padded(width))
            ports[f"{name}_tvalid"] = forward(1)
            ports[f"{name}_tready"] = back(1)
            ports[f"{name}_tlast"] = forward(1)
        if config.checks_input:
            ports["violations_in"] = Out(32)
        if config.checks_output:
            ports["violations_out"] = Out(32)
        super().__init__(TOP, ports, has_reset=True, parts=tuple(parts))

    def elaborate(self, platform: object) -> Module:
        """Connect the parts."""
        m = self.new_module()
        config = self.config
        # Two signals run against the flow of data.
        params_taken, advance = Signal(name="params_taken"), Signal(name="advance")

        front = place(
            self,
            m,
            "front",
            self.front,
            s_axis_param_tdata=self.s_axis_param_tdata,
            s_axis_param_tvalid=self.s_axis_param_tvalid,
            s_axis_weight_tdata=self.s_axis_weight_tdata[: config.cols * config.weight_bits],
            s_axis_weight_tvalid=self.s_axis_weight_tvalid,
            s_axis_act_tvalid=self.s_axis_act_tvalid,
            params_taken=params_taken,
        )
        psums = self._array(m, front)
        drain = place(
            self,
            m,
            "drain",
            self.drain,
            advance=advance,
            **{
                k: front[k]
                for k in ("beat_valid", "beat_first", "beat_last", "beat_end")
                + ("params_complete", "next_m", "next_raw", "next_signed")
            },
        )
        codes, violated = self._lanes(m, front, drain, psums, advance)
        output = place(
            self,
            m,
            "output_buffer",
            self.output,
            code=codes,
            code_valid=drain["code_valid"],
            code_last=drain["code_last"],
            m_axis_out_tready=self.m_axis_out_tready,
        )
        m.d.comb += [params_taken.eq(drain["params_taken"]), advance.eq(output["advance"])]
        m.d.comb += [
            getattr(self, f"s_axis_{stream}_tready").eq(front[f"s_axis_{stream}_tready"])
            for stream in ("param", "weight", "act")
        ]
        m.d.comb += [
            getattr(self, f"m_axis_out_{port}").eq(output[f"m_axis_out_{port}"])
            for port in ("tdata", "tlast", "tvalid")
        ]
        if config.checks_output:
            count = place(
                self,
                m,
                "counter_out",
                self.counter_out,
                enable=drain["code_valid"] & advance,
                violated=violated,
            )
            m.d.comb += self.violations_out.eq(count["total"])
        return m

    def _array(self, m: Module, front: dict[str, Signal]) -> Value:
        """Place skews, columns and deskew; return the aligned sums of all columns."""
        config = self.config
        check = {}
        if config.checks_input:
            check = {
                "signed_in": front["signed"],
                "bound_lo": front["bound_lo"],
                "bound_hi": front["bound_hi"],
            }
        skew = place(
            self,
            m,
            "skew",
            self.activation_skew,
            acts=self.s_axis_act_tdata[: config.rows * config.act_bits],
            **check,
        )
        if config.checks_input:
            count = place(
                self,
                m,
                "counter_in",
                self.counter_in,
                enable=front["beat_valid"],
                violated=skew["violated"],
            )
            m.d.comb += self.violations_in.eq(count["total"])
        weights = place(self, m, "weight_skew", self.weight_skew, weights=front["weights"])
        left = {
            "act": skew["act"],
            "load": front["load"],
            "act_signed": front["beat_signed"],
            "swap": front["beat_swap"],
        }
        psums = []
        for col in range(config.cols):
            left = place(
                self,
                m,
                f"col_{col}",
                self.column,
                act_in=left["act"],
                load_in=left["load"],
                signed_in=left["act_signed"],
                swap_in=left["swap"],
                weight_in=weights["weight"].word_select(col, config.weight_bits),
            )
            psums.append(left["psum"])
        if config.cols == 1:
            return psums[0]
        return place(self, m, "deskew", self.deskew, psums=Cat(psums))["psum"]

    def _lanes(
        self,
        m: Module,
        front: dict[str, Signal],
        drain: dict[str, Signal],
        psums: Value,
        advance: Signal,
    ) -> tuple[Value, Value]:
        """Place the lanes; return the codes and violations of all columns."""
        config = self.config
        common = {k: v for k, v in drain.items() if k in self.lane.signature.members}
        lanes = [
            place(
                self,
                m,
                f"lane_{col}",
                self.lane,
                psum=psums.word_select(col, len(psums) // config.cols),
                param_word=front["param_word"],
                write_bias=front["write_bias"][col],
                write_limits=front["write_limits"][col],
                advance=advance,
                **common,
            )
            for col in range(config.cols)
        ]
        violated = Cat(lane["violated"] for lane in lanes) if config.checks_output else Const(0)
        return Cat(lane["code"] for lane in lanes), violated
