# SPDX-License-Identifier: Apache-2.0
"""The top: the core."""

from __future__ import annotations

from amaranth.hdl import Const, Module
from amaranth.lib.wiring import Out

from hdl.config import AcceleratorConfig
from hdl.core import Core, stream_ports
from hdl.module import Part, place

TOP = "trilat_accelerator"


class Accelerator(Part):
    """The core behind the ports that a system connects to."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.core = Core(config)
        self.counters = [n for n in self.core.signature.members if n.startswith("violations_")]
        ports = stream_ports(config) | {name: Out(32) for name in self.counters}
        super().__init__(TOP, ports, has_reset=True, parts=(self.core,))

    def elaborate(self, platform: object) -> Module:
        """Connect the core."""
        m = self.new_module()
        shared = self.core.signature.members.keys() & self.signature.members.keys()
        outside = {name: getattr(self, name) for name in shared - {"aclk", "aresetn"}}
        if self.counters:
            outside["clear_counters"] = Const(0)
        place(self, m, "core", self.core, **outside)
        return m
