# SPDX-License-Identifier: Apache-2.0
"""Runs inside the simulator: the bus models of cocotbext-axi on the ports of several accelerators.

Reads ``plan.json`` and writes ``log.json``, see axi_bench.py.
"""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, SimTimeoutError, with_timeout
from cocotbext.axi import (
    AxiLiteBus,
    AxiLiteMaster,
    AxiStreamBus,
    AxiStreamSink,
    AxiStreamSource,
)

PERIOD_NS = 2
SOURCES = ("param", "weight", "act")
# Cycles in which something too much would come out.
LINGER = 60


def pauses(rng: random.Random, chance: float):
    """Yield whether a stream pauses in a cycle; pauses last 1..5 cycles."""
    while True:
        if rng.random() < chance / 3:
            yield from [True] * rng.randint(1, 5)
        yield False


async def run_round(dut, sources, sink, plan):
    """Send a round's frames; return the frames that come out, each a list of bytes."""
    rng = random.Random(plan["seed"])
    for bus in (*sources.values(), sink):
        bus.set_pause_generator(pauses(rng, plan["pause"]))
    if plan["reset_after"]:
        for name, source in sources.items():
            for frame in plan["before"][name]:
                source.send_nowait(bytes.fromhex(frame))
        await ClockCycles(dut.aclk, plan["reset_after"])
        await FallingEdge(dut.aclk)
        dut.aresetn.value = 0
        for bus in (*sources.values(), sink):
            bus.clear()
        await FallingEdge(dut.aclk)
        dut.aresetn.value = 1
        for bus in (*sources.values(), sink):
            bus.clear()
    for name, source in sources.items():
        for frame in plan["frames"][name]:
            source.send_nowait(bytes.fromhex(frame))
    frames = []
    for _ in range(plan["expected"]):
        frame = await with_timeout(sink.recv(compact=False), plan["patience"] * PERIOD_NS, "ns")
        frames.append(bytes(frame.tdata).hex())
    await ClockCycles(dut.aclk, LINGER)
    if not sink.empty() or sink.active:
        raise AssertionError("more output beats than asked for")
    if not all(source.idle() for source in sources.values()):
        raise AssertionError("input beats were not accepted")
    return frames


@cocotb.test()
async def every_accelerator(top):
    """Run the rounds of every accelerator, one after the other."""
    logging.disable(logging.INFO)
    log = []
    plan = json.loads(Path("plan.json").read_text())
    for number, rounds in enumerate(plan["rounds"]):
        dut = getattr(top, f"axi_{number}")
        dut.aresetn.value = 0
        clock = Clock(dut.aclk, PERIOD_NS, unit="ns")
        clock.start()
        sources = {
            name: AxiStreamSource(
                AxiStreamBus.from_prefix(dut, f"s_axis_{name}"), dut.aclk, dut.aresetn, False
            )
            for name in SOURCES
        }
        sink = AxiStreamSink(
            AxiStreamBus.from_prefix(dut, "m_axis_out"), dut.aclk, dut.aresetn, False
        )
        registers = AxiLiteMaster(
            AxiLiteBus.from_prefix(dut, "s_axil"), dut.aclk, dut.aresetn, False
        )
        await ClockCycles(dut.aclk, 3)
        await FallingEdge(dut.aclk)
        dut.aresetn.value = 1
        results = []
        for item in rounds:
            try:
                frames = await run_round(dut, sources, sink, item)
                results.append({"frames": frames})
            except (SimTimeoutError, AssertionError) as error:
                results.append({"error": f"{type(error).__name__}: {error}"})
                break
            results[-1]["registers"] = {
                name: await registers.read_dword(offset)
                for name, offset in plan["registers"].items()
            }
        log.append(results)
        clock.stop()
    Path("log.json").write_text(json.dumps(log))
