# SPDX-License-Identifier: Apache-2.0
"""The cocotb testbench: clock, reset, and register faults between two clock edges.

Runs inside the simulator (sim.runner starts it). It reads ``plan.json`` from the working folder:
``{"linger": cycles, "moments": [{"tile", "cycle", "flips": [{"path", "mask"}]}]}``, sorted by tile
and cycle, each path once in a moment. harness.v moves the beats and wakes it by `attention`, so
Python works once per fault and not once per cycle. It writes ``verdict.json``:
``{"finished", "tiles_out", "handshakes", "moments": faults reached}``.
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


def register_handle(root: Any, path: str) -> Any:
    """Return cocotb's handle of the register at a hierarchical path like ``array.pe_0_0.act``."""
    handle = root
    for name in path.split("."):
        handle = handle[name]
    return handle


@cocotb.test()
async def stream_tiles(dut: Any) -> None:
    """Play the stimulus to its end, writing the planned faults on the way."""
    plan = json.loads(Path("plan.json").read_text())
    dut.aresetn.value = 0
    dut.alarm_tile.value = NEVER
    dut.alarm_cycle.value = NEVER
    Clock(dut.aclk, PERIOD_NS, unit="ns").start(start_high=False)
    await ClockCycles(dut.aclk, RESET_CYCLES)
    await FallingEdge(dut.aclk)
    dut.aresetn.value = 1

    def over() -> bool:
        return bool(dut.hung.value == 1 or dut.finished.value == 1)

    handles: dict[str, Any] = {}
    reached = 0
    for moment in plan["moments"]:
        dut.alarm_tile.value = moment["tile"]
        dut.alarm_cycle.value = moment["cycle"]
        await dut.attention.value_change
        if over():
            break
        # The harness toggles `attention` at the falling edge: the middle of the cycle.
        for flip in moment["flips"]:
            path = flip["path"]
            if path not in handles:
                handles[path] = register_handle(dut.dut, path)
            handles[path].value = int(handles[path].value) ^ flip["mask"]
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
