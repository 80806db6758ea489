# SPDX-License-Identifier: Apache-2.0
"""The shell around the core: the AXI4-Lite slave `s_axil` and the performance counters."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib.wiring import In, Member, Out

from hdl.module import Part, flags
from hdl.register_map import (
    ADDRESS_BITS,
    IDENTIFICATION,
    INTERFACE_VERSION,
    REGISTERS,
    Word,
)

# Responses of the AXI specification.
_OKAY, _SLVERR = 0b00, 0b10
# Registers whose value is the same in every accelerator.
_FIXED = {"id": IDENTIFICATION, "version": INTERFACE_VERSION}
# An output tile in the requantizer, four beyond it: the most that have their parameters at once.
_MOST_IN_FLIGHT = 7


def axil_ports() -> dict[str, Member]:
    """Return the ports of ``s_axil``."""
    channels = {
        "aw": {"addr": ADDRESS_BITS, "prot": 3},
        "w": {"data": 32, "strb": 4},
        "b": {"resp": 2},
        "ar": {"addr": ADDRESS_BITS, "prot": 3},
        "r": {"data": 32, "resp": 2},
    }
    ports = {}
    for channel, payload in channels.items():
        forward, back = (Out, In) if channel in "br" else (In, Out)
        for name, width in payload.items():
            ports[f"s_axil_{channel}{name}"] = forward(width)
        ports[f"s_axil_{channel}valid"] = forward(1)
        ports[f"s_axil_{channel}ready"] = back(1)
    return ports


def _width(word: Word) -> int:
    return max(field.low + field.bits for field in word.fields)


class RegisterFile(Part):
    """AXI4-Lite slave: reads every register, writes the writable ones.

    Address and data of a write may come in any order and wait for each other here; reads and
    writes are independent. A write or a read is answered with OKAY; with SLVERR, and no effect,
    where no register is, and a write also where the register takes none. A field is written if the
    strobe of the byte that holds it is set. Every output is a register, no ready depends on a
    valid of the same cycle, and no valid on a ready.

    The registers are `REGISTERS`. The module is the same for all configurations: what differs
    comes as inputs.

    Members:
        s_axil_*: the bus; the lowest two bits of an address and `prot` are not looked at.
        (a register's name): its value.
        (a writable field's name): pulse with what was written.
    """

    def __init__(self) -> None:
        self.inputs = [w for w in REGISTERS if w.name not in _FIXED and not w.writable]
        self.writable = [w for w in REGISTERS if w.writable]
        pulses = {f.name: Out(f.bits) for word in self.writable for f in word.fields}
        values = {word.name: In(_width(word)) for word in self.inputs}
        super().__init__("trilat_axil", axil_ports() | values | pulses, has_reset=True)

    def elaborate(self, platform: object) -> Module:
        """Build the two independent halves."""
        m = self.new_module()
        self._writes(m)
        self._reads(m)
        return m

    def _take(self, m: Module, channel: str, done: Signal) -> Signal:
        """Take beats of a channel one at a time; return whether one is held, until `done`."""
        valid, ready = (getattr(self, f"s_axil_{channel}{s}") for s in ("valid", "ready"))
        held, held_next = flags(f"{channel}_held", f"{channel}_held_next")
        m.d.comb += held_next.eq((valid & ready) | (held & ~done))
        m.d.sync += [held.eq(held_next), ready.eq(~held_next)]
        return held

    def _decode(self, m: Module, name: str, channel: str) -> tuple[Signal, Signal]:
        """Return the number of the register that a held address names, and whether none is there.

        The registers fill the first bytes of the space, a power of two of them.
        """
        assert [word.offset for word in REGISTERS] == list(range(0, 4 * len(REGISTERS), 4))
        assert len(REGISTERS).bit_count() == 1
        index = Signal(range(len(REGISTERS)), name=f"{name}_index")
        outside = Signal(name=f"{name}_outside")
        address = getattr(self, f"s_axil_{channel}addr")
        with m.If(getattr(self, f"s_axil_{channel}ready")):
            m.d.data += [index.eq(address[2:]), outside.eq(address[2 + len(index) :].any())]
        return index, outside

    def _writes(self, m: Module) -> None:
        write, answer_waits = flags("write", "b_waits")
        address_held, data_held = self._take(m, "aw", write), self._take(m, "w", write)
        width = max(_width(word) for word in self.writable)
        data = Signal(width, name="write_data")
        strobes = Signal(-(-width // 8), name="write_strobes")
        m.d.comb += [
            answer_waits.eq(self.s_axil_bvalid & ~self.s_axil_bready),
            write.eq(address_held & data_held & ~answer_waits),
        ]
        index, outside = self._decode(m, "write", "aw")
        with m.If(self.s_axil_wready):
            m.d.data += [data.eq(self.s_axil_wdata), strobes.eq(self.s_axil_wstrb)]
        known = []
        for word in self.writable:
            (here,) = flags(f"writes_{word.name}")
            known.append(here)
            m.d.comb += here.eq((index == word.offset // 4) & ~outside)
            for field in word.fields:
                pulse = getattr(self, field.name)
                enable = write & here & strobes[field.low // 8]
                m.d.sync += pulse.eq(Mux(enable, data[field.low : field.low + field.bits], 0))
        m.d.sync += self.s_axil_bvalid.eq(write | answer_waits)
        with m.If(write):
            m.d.data += self.s_axil_bresp.eq(Mux(Cat(known).any(), _OKAY, _SLVERR))

    def _reads(self, m: Module) -> None:
        read, answer_waits = flags("read", "r_waits")
        held = self._take(m, "ar", read)
        index, outside = self._decode(m, "read", "ar")
        m.d.comb += [
            answer_waits.eq(self.s_axil_rvalid & ~self.s_axil_rready),
            read.eq(held & ~answer_waits),
        ]
        m.d.sync += self.s_axil_rvalid.eq(read | answer_waits)
        with m.If(read):
            m.d.data += self.s_axil_rdata.eq(0)
            m.d.data += self.s_axil_rresp.eq(Mux(outside, _SLVERR, _OKAY))
            with m.Switch(index):
                for word in REGISTERS:
                    if word.writable:
                        continue
                    with m.Case(word.offset // 4):
                        fixed = _FIXED.get(word.name)
                        value = getattr(self, word.name) if fixed is None else fixed
                        m.d.data += self.s_axil_rdata.eq(value)


class PerformanceCounters(Part):
    """Count what the streams do while the core is busy; 32 bits each, wrapping.

    A cycle shows in the counters two cycles later.

    Members:
        params_complete: pulse of the core.
        *_tvalid, *_tready, m_axis_out_tlast: of the streams.
        clear_counters: set all to zero.
        status: the register of that name.
        (the others): the registers of those names.
    """

    STREAMS = ("s_axis_param", "s_axis_weight", "s_axis_act", "m_axis_out")
    COUNTERS = (
        "cycles_busy",
        "cycles_param_starved",
        "cycles_weight_starved",
        "cycles_act_starved",
        "cycles_out_blocked",
        "tiles_done",
    )

    def __init__(self) -> None:
        handshakes = {f"{s}_{w}": In(1) for s in self.STREAMS for w in ("tvalid", "tready")}
        super().__init__(
            "trilat_counters",
            {
                **handshakes,
                "m_axis_out_tlast": In(1),
                "params_complete": In(1),
                "clear_counters": In(1),
                "status": Out(3),
                **{name: Out(32) for name in self.COUNTERS},
            },
            has_reset=True,
        )

    def elaborate(self, platform: object) -> Module:
        """Build the number of tiles in flight and, behind a register each, the counters."""
        m = self.new_module()
        in_flight = Signal(range(_MOST_IN_FLIGHT + 1))
        busy, tile_done, blocked = flags("busy", "tile_done", "out_blocked")
        ready = {s: getattr(self, f"{s}_tready") for s in self.STREAMS}
        valid = {s: getattr(self, f"{s}_tvalid") for s in self.STREAMS}
        m.d.comb += [
            blocked.eq(valid["m_axis_out"] & ~ready["m_axis_out"]),
            busy.eq(in_flight.any()),
            tile_done.eq(valid["m_axis_out"] & ready["m_axis_out"] & self.m_axis_out_tlast),
        ]
        with m.If(self.params_complete & ~tile_done):
            m.d.sync += in_flight.eq(in_flight + 1)
        with m.If(~self.params_complete & tile_done):
            m.d.sync += in_flight.eq(in_flight - 1)
        m.d.sync += self.status.eq(Cat(busy, ~ready["s_axis_param"], blocked))
        events = {
            "cycles_busy": busy,
            "cycles_out_blocked": busy & blocked,
            "tiles_done": tile_done,
        }
        for name in ("param", "weight", "act"):
            stream = f"s_axis_{name}"
            events[f"cycles_{name}_starved"] = busy & ready[stream] & ~valid[stream]
        for name in self.COUNTERS:
            event = Signal(name=f"{name}_event")
            total = getattr(self, name)
            m.d.sync += event.eq(events[name])
            with m.If(event):
                m.d.sync += total.eq(total + 1)
            with m.If(self.clear_counters):
                m.d.sync += total.eq(0)
        return m
