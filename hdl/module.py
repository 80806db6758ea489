# SPDX-License-Identifier: Apache-2.0
"""How trilat's Amaranth components become Verilog modules that are emitted once and instantiated.

Amaranth emits one Verilog module per Python object. An array of equal PEs shall be one module
with many instances, so every kind of module is a `Part` of its own, and a parent refers to it by
name (an Amaranth `Instance`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from amaranth.hdl import ClockDomain, Instance, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hdl.register_map import Field


class Part(wiring.Component):
    """A component that becomes one Verilog module.

    Every part has the clock input ``aclk``; a part with control registers has ``aresetn``,
    synchronous and active low.

    Attributes:
        verilog_name: name of the Verilog module; parts of the same name are the same module.
        parts: the parts that this one instantiates.

    Of `members`, those that are None are left out.
    """

    def __init__(
        self,
        verilog_name: str,
        members: Mapping[str, Any],
        *,
        has_reset: bool,
        parts: tuple[Part, ...] = (),
    ) -> None:
        reset = {"aresetn": In(1)} if has_reset else {}
        present = {name: member for name, member in members.items() if member is not None}
        super().__init__({"aclk": In(1), **reset, **present})
        self.verilog_name = verilog_name
        self.parts = parts

    def new_module(self) -> Module:
        """Return an Amaranth module with two domains on ``aclk``.

        ``data`` has no reset; ``sync``, for control, has that of ``aresetn``, if the part has it.
        """
        m = Module()
        data = ClockDomain("data", reset_less=True)
        data.clk = self.aclk
        m.domains += data
        if "aresetn" in self.signature.members:
            sync = ClockDomain("sync")
            sync.clk = self.aclk
            m.domains += sync
            m.d.comb += sync.rst.eq(~self.aresetn)
        return m

    def hierarchy(self) -> Iterator[Part]:
        """Yield this part and every part below it, each kind once, parents first."""
        seen: dict[str, Part] = {}
        waiting: list[Part] = [self]
        while waiting:
            part = waiting.pop(0)
            if part.verilog_name not in seen:
                seen[part.verilog_name] = part
                waiting.extend(part.parts)
        yield from seen.values()


def flags(*names: str) -> list[Signal]:
    """Return one-bit signals of these names (Amaranth names only what is assigned singly)."""
    return [Signal(name=name) for name in names]


def bits_of(word: Value, field: Field, width: int | None = None) -> Value:
    """Return a field of a word of `hdl.register_map`, or only its `width` lowest bits."""
    return word[field.low : field.low + (field.bits if width is None else width)]


def place(
    parent: Part, m: Module, name: str, part: Part, **connections: Value | None
) -> dict[str, Value]:
    """Instantiate `part` as `name` in `m`; clock and reset are connected by this function.

    Args:
        parent: the part that `m` elaborates.
        m: module that gets the instance.
        name: of the instance.
        part: what to instantiate.
        connections: a value for every input of the part but the clock and the reset, and a
            signal for any output; None stands for no connection.

    Returns:
        The signal of every output of the part, by port name; where none was given, it is a new
        one named ``<instance>_<port>``.
    """
    members = part.signature.members
    given = {port: value for port, value in connections.items() if value is not None}
    inputs = {k: getattr(parent, k) for k in ("aclk", "aresetn") if k in members}
    outputs: dict[str, Value] = {}
    for port, member in members.items():
        if port in inputs:
            continue
        if member.flow == In:
            inputs[port] = given.pop(port)
        elif port in given:
            outputs[port] = given.pop(port)
        else:
            outputs[port] = Signal(member.shape, name=f"{name}_{port}")
    if given:
        raise TypeError(f"{part.verilog_name} has no ports {sorted(given)}")
    m.submodules[name] = Instance(
        part.verilog_name,
        **{f"i_{k}": v for k, v in inputs.items()},
        **{f"o_{k}": v for k, v in outputs.items()},
    )
    return outputs
