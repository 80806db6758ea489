# SPDX-License-Identifier: Apache-2.0
"""Self-checking cocotb testbench of one accelerator: `python run.py` runs it.

It plays the output tiles of vectors.json back to back, without and with random stalls on all four
streams, and compares every beat, every cycle count and every register with what the file says.

Signals are driven and read at the falling edge of the clock: all outputs are registers, so what is
seen there is what the next rising edge takes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

HERE = Path(__file__).resolve().parent
VECTORS = json.loads((HERE / "vectors.json").read_text())
REGISTERS = {r["name"]: r for r in json.loads((HERE / "registers.json").read_text())["registers"]}
SOURCES = ("param", "weight", "act")
OKAY, SLVERR = 0, 2


async def start(dut: Any) -> None:
    """Start the clock, reset for some cycles, and leave in the middle of the first one after."""
    for name in SOURCES:
        for port in ("tdata", "tvalid", "tlast"):
            getattr(dut, f"s_axis_{name}_{port}").value = 0
    for port in ("awaddr", "awprot", "awvalid", "wdata", "wstrb", "wvalid", "bready",
                 "araddr", "arprot", "arvalid", "rready"):  # fmt: skip
        getattr(dut, f"s_axil_{port}").value = 0
    dut.m_axis_out_tready.value = 0
    dut.aresetn.value = 0
    Clock(dut.aclk, 10, unit="ns").start(start_high=False)
    for _ in range(4):
        await FallingEdge(dut.aclk)
    dut.aresetn.value = 1
    await FallingEdge(dut.aclk)


def input_beats(name: str) -> list[tuple[int, int]]:
    """Return the beats of a stream as (tdata, tlast), all tiles back to back."""
    beats = []
    for tile in VECTORS["tiles"]:
        for block in tile[name]:
            beats += [(int(beat, 16), int(i == len(block) - 1)) for i, beat in enumerate(block)]
    return beats


async def play(dut: Any, *, stall: float, seed: int) -> dict[str, int]:
    """Play all tiles, each stream pausing in a cycle with the chance `stall`; check the output.

    Returns:
        What the performance counters must have counted, and `cycles` from the first accepted
        activation beat to the last output beat.
    """
    rng = random.Random(seed)
    waiting = {name: input_beats(name)[::-1] for name in SOURCES}
    offered = dict.fromkeys(SOURCES, False)
    expected = [
        (int(beat, 16), int(i == len(tile["out"]) - 1), number, i)
        for number, tile in enumerate(VECTORS["tiles"])
        for i, beat in enumerate(tile["out"])
    ][::-1]
    now = silent = 0
    first = None
    held = None
    # Cycles in which a stream made the accelerator wait; in which it has all parameters of a tile,
    # two behind the last word, and no more the whole tile, one behind its last beat.
    waits: dict[str, list[bool]] = {name: [] for name in (*SOURCES, "out")}
    began, ended = [], []
    while expected:
        moved = False
        for name in SOURCES:
            valid = getattr(dut, f"s_axis_{name}_tvalid")
            if not offered[name] and waiting[name] and rng.random() >= stall:
                data, last = waiting[name][-1]
                getattr(dut, f"s_axis_{name}_tdata").value = data
                getattr(dut, f"s_axis_{name}_tlast").value = last
                valid.value = 1
                offered[name] = True
            elif not offered[name]:
                valid.value = 0
            ready = getattr(dut, f"s_axis_{name}_tready").value == 1
            waits[name].append(ready and not offered[name])
            if offered[name] and ready:
                _, last = waiting[name].pop()
                offered[name] = False
                moved = True
                if name == "act" and first is None:
                    first = now
                if name == "param" and last:
                    began.append(now + 2)
        ready = rng.random() >= stall
        dut.m_axis_out_tready.value = int(ready)
        valid_out = dut.m_axis_out_tvalid.value == 1
        if held is not None:
            assert valid_out, "m_axis_out withdrew a beat"
        if valid_out:
            beat = (int(dut.m_axis_out_tdata.value), int(dut.m_axis_out_tlast.value))
            assert held in (None, beat), "m_axis_out changed a beat that was not taken"
            held = None if ready else beat
            if ready:
                data, last, tile, index = expected.pop()
                place = f"output tile {tile}, beat {index}"
                assert beat[0] == data, f"{place}: {beat[0]:x} instead of {data:x}"
                assert beat[1] == last, f"{place}: tlast is {beat[1]}"
                moved = True
                if last:
                    ended.append(now + 1)
        waits["out"].append(valid_out and not ready)
        silent = 0 if moved else silent + 1
        assert silent < VECTORS["quiet_cycles"], f"nothing moves, {len(expected)} beats missing"
        now += 1
        await FallingEdge(dut.aclk)
    assert not any(waiting.values()), "input beats are left"
    dut.m_axis_out_tready.value = 1
    for name in SOURCES:
        getattr(dut, f"s_axis_{name}_tvalid").value = 0
    for _ in range(VECTORS["linger_cycles"]):
        assert dut.m_axis_out_tvalid.value == 0, "an output beat too many"
        await FallingEdge(dut.aclk)
    assert first is not None
    busy = [sum(b <= c for b in began) > sum(e <= c for e in ended) for c in range(now)]
    seen = {"cycles": now - first, "cycles_busy": sum(busy)}
    for name, cycles in waits.items():
        counter = "cycles_out_blocked" if name == "out" else f"cycles_{name}_starved"
        seen[counter] = sum(w and b for w, b in zip(cycles, busy, strict=True))
    return seen


async def handshake(dut: Any, valid: str, ready: str) -> None:
    """Hold a valid of `s_axil` until its ready has been seen."""
    getattr(dut, f"s_axil_{valid}").value = 1
    for _ in range(20):
        taken = getattr(dut, f"s_axil_{ready}").value == 1
        await FallingEdge(dut.aclk)
        if taken:
            getattr(dut, f"s_axil_{valid}").value = 0
            return
    raise AssertionError(f"s_axil_{ready} stays low")


async def answer(dut: Any, valid: str, ready: str, *signals: str) -> list[int]:
    """Wait for a valid of `s_axil`, let it wait for two cycles, take it."""
    for _ in range(20):
        if getattr(dut, f"s_axil_{valid}").value == 1:
            values = [int(getattr(dut, f"s_axil_{s}").value) for s in signals]
            for _ in range(2):
                await FallingEdge(dut.aclk)
                assert getattr(dut, f"s_axil_{valid}").value == 1, f"s_axil_{valid} fell"
                again = [int(getattr(dut, f"s_axil_{s}").value) for s in signals]
                assert again == values, f"s_axil_{signals[0]} changed"
            await handshake(dut, ready, valid)
            return values
        await FallingEdge(dut.aclk)
    raise AssertionError(f"s_axil_{valid} stays low")


async def read(dut: Any, address: int) -> tuple[int, int]:
    """Return (data, response) of a read."""
    dut.s_axil_araddr.value = address
    await handshake(dut, "arvalid", "arready")
    data, response = await answer(dut, "rvalid", "rready", "rdata", "rresp")
    return data, response


async def write(dut: Any, address: int, data: int, *, strobes: int = 15, data_first: bool) -> int:
    """Return the response of a write whose address and data come one behind the other."""
    dut.s_axil_awaddr.value = address
    dut.s_axil_wdata.value = data
    dut.s_axil_wstrb.value = strobes
    channels = [("awvalid", "awready"), ("wvalid", "wready")]
    for valid, ready in channels[::-1] if data_first else channels:
        assert dut.s_axil_bvalid.value == 0, "a response before address and data were there"
        await handshake(dut, valid, ready)
    (response,) = await answer(dut, "bvalid", "bready", "bresp")
    return response


async def value_of(dut: Any, name: str) -> int:
    """Return what a register reads."""
    data, response = await read(dut, REGISTERS[name]["offset"])
    assert response == OKAY, f"reading {name}: response {response}"
    return data


@cocotb.test()
async def registers(dut: Any) -> None:
    """Every register reads its value after reset, and only the writable ones take a write."""
    await start(dut)
    for name, register in REGISTERS.items():
        assert await value_of(dut, name) == register["reset"], name
        for data_first in (False, True):
            response = await write(dut, register["offset"], 0, data_first=data_first)
            assert response == (OKAY if register["writable"] else SLVERR), name
    beyond = 4 * len(REGISTERS)
    for address in (beyond, 1 << 11, (1 << 12) - 4):
        assert (await read(dut, address))[1] == SLVERR
        assert await write(dut, address, 1, data_first=True) == SLVERR


@cocotb.test()
async def tiles_back_to_back(dut: Any) -> None:
    """All tiles without a stall: every beat, and the cycles of the published schedule."""
    await start(dut)
    seen = await play(dut, stall=0.0, seed=0)
    assert seen["cycles"] == VECTORS["cycles"], f"{seen['cycles']} cycles"
    assert seen["cycles_out_blocked"] == 0
    await check_counters(dut, seen)


@cocotb.test()
async def tiles_with_stalls(dut: Any) -> None:
    """All tiles with many stalls, then again after the counters were cleared."""
    await start(dut)
    for number, stall in enumerate((0.3, 0.7)):
        seen = await play(dut, stall=stall, seed=number)
        await check_counters(dut, seen)
        control = REGISTERS["control"]["offset"]
        assert await write(dut, control, 1, strobes=0b1110, data_first=False) == OKAY
        assert await value_of(dut, "tiles_done") == len(VECTORS["tiles"]), "strobe 0 was not set"
        assert await write(dut, control, 1, data_first=bool(number)) == OKAY
        for name in REGISTERS:
            if name.startswith(("cycles_", "tiles_", "violations_")):
                assert await value_of(dut, name) == 0, f"{name} was not cleared"


async def check_counters(dut: Any, seen: dict[str, int]) -> None:
    """Compare the counters behind all tiles with what `play` saw and with the vectors."""
    assert await value_of(dut, "status") == 0, "busy when all is done"
    assert await value_of(dut, "tiles_done") == len(VECTORS["tiles"])
    for name in REGISTERS:
        if name.startswith("cycles_"):
            assert await value_of(dut, name) == seen[name], name
        if name.startswith("violations_"):
            assert await value_of(dut, name) == VECTORS[name], name
