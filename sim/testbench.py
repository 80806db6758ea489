# SPDX-License-Identifier: Apache-2.0
"""The cocotb testbench: clock, reset, and register faults between two clock edges.

Runs inside the simulator (sim.runner starts it). It reads ``plan.json`` from the working folder:
``{"linger": cycles, "moments": [{"tile", "cycle", "early", "writes": WRITES}],
"stuck": {tile: WRITES}}`` with WRITES a list of ``{"path", "word", "kind", "mask"}``, moments in
the order in which they come, each register once in a moment. harness.v moves the beats and wakes
it by `attention`, so Python works once per fault and not once per cycle; where bits are stuck, once
per cycle. It writes ``verdict.json``: ``{"finished", "tiles_out", "handshakes",
"moments": faults reached}``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge

PERIOD_NS = 2
RESET_CYCLES = 4
NEVER = 0xFFFFFFFF


class Registers:
    """Writes faults into registers, whose handles it keeps."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.handles: dict[tuple[str, int | None], Any] = {}

    def write(self, writes: list[dict[str, Any]]) -> None:
        """Write bits of registers at hierarchical paths like ``col_0.pe_0.act``."""
        for write in writes:
            key = write["path"], write["word"]
            if key not in self.handles:
                handle = self.root
                for name in write["path"].split("."):
                    handle = handle[name]
                self.handles[key] = handle if key[1] is None else handle[key[1]]
            handle, mask = self.handles[key], write["mask"]
            value = int(handle.value)
            if write["kind"] == "flip":
                handle.value = value ^ mask
            else:
                handle.value = value | mask if write["kind"] == "stuck1" else value & ~mask

    async def hold(self, dut: Any, stuck: dict[str, list[dict[str, Any]]]) -> None:
        """Write stuck bits in the middle of every cycle of their tiles."""
        while True:
            await FallingEdge(dut.aclk)
            self.write(stuck.get(str(int(dut.tiles_out.value)), []))


@cocotb.test()
async def stream_tiles(dut: Any) -> None:
    """Play the stimulus to its end, writing the planned faults on the way."""
    plan = json.loads(Path("plan.json").read_text())
    dut.aresetn.value = 0
    dut.alarm_tile.value = NEVER
    dut.alarm_cycle.value = NEVER
    dut.alarm_early.value = 0
    registers = Registers(dut.dut)
    Clock(dut.aclk, PERIOD_NS, unit="ns").start(start_high=False)
    await ClockCycles(dut.aclk, RESET_CYCLES)
    await FallingEdge(dut.aclk)
    dut.aresetn.value = 1

    def over() -> bool:
        return bool(dut.hung.value == 1 or dut.finished.value == 1)

    if plan["stuck"]:
        cocotb.start_soon(registers.hold(dut, plan["stuck"]))
    reached = 0
    for moment in plan["moments"]:
        dut.alarm_tile.value = moment["tile"]
        dut.alarm_cycle.value = moment["cycle"]
        dut.alarm_early.value = int(moment["early"])
        await dut.attention.value_change
        if over():
            break
        # The harness toggles `attention` at the falling edge: the middle of the cycle.
        registers.write(moment["writes"])
        reached += 1
    dut.alarm_tile.value = NEVER
    while not over():
        await dut.attention.value_change
    finished = dut.finished.value == 1
    if finished:
        # Whatever still comes out now is too much, and read_outputs will say so.
        await ClockCycles(dut.aclk, plan["linger"])
    verdict = {
        "finished": finished,
        "tiles_out": int(dut.tiles_out.value),
        "handshakes": str(dut.handshakes.value),
        "moments": reached,
    }
    Path("verdict.json").write_text(json.dumps(verdict))
