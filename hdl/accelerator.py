# SPDX-License-Identifier: Apache-2.0
"""The top: the core with its four streams, and AXI4-Lite around it."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Signal, Value

from hdl.axil import PerformanceCounters, RegisterFile, axil_ports
from hdl.config import AcceleratorConfig
from hdl.core import Core, stream_ports
from hdl.module import Part, place
from hdl.register_map import config_values

TOP = "trilat_accelerator"


class Accelerator(Part):
    """The core behind AXI4-Stream and AXI4-Lite ports.

    The streams pass through; the shell only watches their handshakes.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.core = Core(config)
        self.counters = PerformanceCounters()
        self.registers = RegisterFile()
        super().__init__(
            TOP,
            stream_ports(config) | axil_ports(),
            has_reset=True,
            parts=(self.core, self.counters, self.registers),
        )

    def elaborate(self, platform: object) -> Module:
        """Connect the three parts."""
        m = self.new_module()
        clear = Signal(name="clear_counters")
        core = place(self, m, "core", self.core, **self._shared(self.core, clear))
        counters = place(
            self,
            m,
            "counters",
            self.counters,
            params_complete=core["params_complete"],
            **self._shared(self.counters, clear),
        )
        values: dict[str, Value] = {n: Const(v, 32) for n, v in config_values(self.config).items()}
        values |= {
            word.name: counters[word.name]
            for word in self.registers.inputs
            if word.name in counters
        }
        for name in ("violations_in", "violations_out"):
            values[name] = core.get(name, Const(0, 32))
        place(
            self,
            m,
            "registers",
            self.registers,
            clear_counters=clear,
            **values,
            **{name: getattr(self, name) for name in axil_ports()},
        )
        return m

    def _shared(self, part: Part, clear: Signal) -> dict[str, Value]:
        """Return the ports of the top that `part` has too, and its `clear_counters`."""
        own = {"aclk", "aresetn"}
        shared: dict[str, Value] = {
            name: getattr(self, name)
            for name in part.signature.members
            if name in self.signature.members and name not in own
        }
        if "clear_counters" in part.signature.members:
            shared["clear_counters"] = clear
        return shared
