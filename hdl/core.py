# SPDX-License-Identifier: Apache-2.0
"""The core: streams, front, skews, columns, deskew (ws), lanes, drain, output buffer, counters."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib.wiring import In, Member, Out

from hdl.array import ActivationSkew, Column, Deskew, WeightSkew
from hdl.config import AcceleratorConfig
from hdl.drain import Drain
from hdl.front import Front
from hdl.lane import Lane
from hdl.module import Part, place
from hdl.os_array import OutputStationaryColumn
from hdl.output import OutputBuffer
from hdl.protection import ViolationCounter
from hdl.registers import CORE


def byte_padded(bits: int) -> int:
    """Return the width of a stream's tdata that carries `bits` bits."""
    return -(-bits // 8) * 8


def stream_ports(config: AcceleratorConfig) -> dict[str, Member]:
    """Return the ports of the four streams, ``<stream>_tdata`` and so on."""
    streams = {
        "s_axis_param": 32,
        "s_axis_weight": config.cols * config.weight_bits,
        "s_axis_act": config.rows * config.act_bits,
        "m_axis_out": config.cols * config.act_bits,
    }
    ports = {}
    for name, width in streams.items():
        forward, back = (In, Out) if name.startswith("s_") else (Out, In)
        ports[f"{name}_tdata"] = forward(byte_padded(width))
        ports[f"{name}_tvalid"] = forward(1)
        ports[f"{name}_tready"] = back(1)
        ports[f"{name}_tlast"] = forward(1)
    return ports


class Core(Part):
    """The accelerator with its four streams, as docs/architecture.md describes it.

    ``s_axis_*_tlast`` is not looked at: the parameters say how many beats come.

    Members:
        s_axis_*, m_axis_out_*: the streams.
        params_complete: pulse: all parameter words of an output tile have been accepted.
        clear_counters: sets the violation counters to zero (only with a protection unit).
        violations_in, violations_out: the counters, where the protection unit checks.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.front = Front(config)
        self.activation_skew = ActivationSkew(config)
        self.weight_skew = WeightSkew(config)
        self.column = OutputStationaryColumn(config) if config.is_os else Column(config)
        self.drain = Drain(config)
        self.lane = Lane(config)
        self.output = OutputBuffer(config)
        parts: list[Part] = [self.front, self.activation_skew, self.weight_skew, self.column]
        if config.col_groups > 1 and not config.is_os:
            self.deskew = Deskew(config)
            parts.append(self.deskew)
        parts += [self.drain, self.lane, self.output]
        widths = set()
        widths |= {config.rows} if config.checks_input else set()
        widths |= {config.cols} if config.checks_output else set()
        self.counters = {width: ViolationCounter(width=width) for width in sorted(widths)}
        parts += self.counters.values()
        ports = stream_ports(config) | {"params_complete": Out(1)}
        if widths:
            ports["clear_counters"] = In(1)
        if config.checks_input:
            ports["violations_in"] = Out(32)
        if config.checks_output:
            ports["violations_out"] = Out(32)
        super().__init__(CORE, ports, has_reset=True, parts=tuple(parts))

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
            s_axis_param_tready=self.s_axis_param_tready,
            s_axis_weight_tready=self.s_axis_weight_tready,
            s_axis_act_tready=self.s_axis_act_tready,
            params_complete=self.params_complete,
        )
        drain = place(
            self,
            m,
            "drain",
            self.drain,
            advance=advance,
            params_taken=params_taken,
            **{k: v for k, v in front.items() if k in self.drain.signature.members},
        )
        sums = self._array(m, front, drain)
        codes, violated = self._lanes(m, front, drain, sums, advance)
        # The stream's own port, where no padding to whole bytes is needed.
        exact = len(codes) == len(self.m_axis_out_tdata)
        output = place(
            self,
            m,
            "output_buffer",
            self.output,
            code=codes,
            code_valid=drain["code_valid"],
            code_last=drain["code_last"],
            advance=advance,
            m_axis_out_tlast=self.m_axis_out_tlast,
            m_axis_out_tvalid=self.m_axis_out_tvalid,
            m_axis_out_tready=self.m_axis_out_tready,
            **({"m_axis_out_tdata": self.m_axis_out_tdata} if exact else {}),
        )
        if not exact:
            m.d.comb += self.m_axis_out_tdata.eq(output["m_axis_out_tdata"])
        if config.checks_output:
            place(
                self,
                m,
                "counter_out",
                self.counters[config.cols],
                enable=drain["code_valid"] & advance,
                violated=violated,
                clear=self.clear_counters,
                total=self.violations_out,
            )
        return m

    def _array(
        self, m: Module, front: dict[str, Signal], drain: dict[str, Signal]
    ) -> list[dict[str, Value]]:
        """Place skews, columns and deskew; return what each lane takes in from its column."""
        config = self.config
        check = {"bound_lo": "bound_lo", "bound_hi": "bound_hi"} if config.checks_input else {}
        if config.signs_travel:
            check["signed_in"] = "tile_signed"
        skew = place(
            self,
            m,
            "skew",
            self.activation_skew,
            acts=self.s_axis_act_tdata[: config.rows * config.act_bits],
            **{port: front[name] for port, name in check.items()},
        )
        if config.checks_input:
            place(
                self,
                m,
                "counter_in",
                self.counters[config.rows],
                enable=front["beat_valid"],
                violated=skew["violated"],
                clear=self.clear_counters,
                total=self.violations_in,
            )
        weights = place(self, m, "weight_skew", self.weight_skew, weights=front["weights"])
        if config.is_os:
            waves = {name: drain[name] for name in ("row", "write", "slot")}
            waves |= {name: drain[f"add_{name}"] for name in ("valid", "first")}
        else:
            waves = {"load": front["load"], "swap": front["beat_swap"]}
        left = {"act": skew["act"], **waves}
        columns = []
        for group in range(config.col_groups):
            left = place(
                self,
                m,
                f"col_{group}",
                self.column,
                act_in=left["act"],
                weight_in=weights["weight"].word_select(
                    group, config.dsp_pack * config.weight_bits
                ),
                **{f"{name}_in": left[name] for name in waves},
            )
            columns.append(left)
        if config.is_os:
            # Each lane writes its ring in its own column's time: nothing has to be aligned.
            return [
                {
                    "psum": column["psum"].word_select(lane, config.acc_bits),
                    "write_ring": column["write"],
                    "ring_write": column["slot"],
                }
                for column in columns
                for lane in range(config.dsp_pack)
            ]
        psums: Value = Cat(column["psum"] for column in columns)
        if config.col_groups > 1:
            psums = place(self, m, "deskew", self.deskew, psums=psums)["psum"]
        width = config.psum_bits(config.rows - 1)
        return [{"psum": psums.word_select(col, width)} for col in range(config.cols)]

    def _lanes(
        self,
        m: Module,
        front: dict[str, Signal],
        drain: dict[str, Signal],
        sums: Sequence[dict[str, Value]],
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
                param_word=front["param_word"],
                **{f"write_{w.name}": front[f"write_{w.name}"][col] for w in self.lane.words},
                advance=advance,
                **sums[col],
                **common,
            )
            for col in range(config.cols)
        ]
        violated = Cat(lane["violated"] for lane in lanes) if config.checks_output else Const(0)
        return Cat(lane["code"] for lane in lanes), violated
