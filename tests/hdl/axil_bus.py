# SPDX-License-Identifier: Apache-2.0
"""Runs inside the simulator: someone else's AXI4-Lite master against `trilat_axil`.

Reads and writes run at the same time, with random pauses on all five channels.
"""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp

from hdl.axil import RegisterFile
from hdl.register_map import IDENTIFICATION, INTERFACE_VERSION, REGISTERS

INPUTS = {word.name: (0x9E3779B9 * (i + 3)) & 0xFFFFFFFF for i, word in enumerate(REGISTERS)}


def pauses(rng: random.Random, chance: float) -> Any:
    while True:
        yield rng.random() < chance


@cocotb.test()
async def reads_and_writes_at_once(dut: Any) -> None:
    rng = random.Random(5)
    part = RegisterFile()
    expected = {"id": IDENTIFICATION, "version": INTERFACE_VERSION, "control": 0}
    for word in part.inputs:
        bits = max(f.low + f.bits for f in word.fields)
        expected[word.name] = INPUTS[word.name] & ((1 << bits) - 1)
        getattr(dut, word.name).value = expected[word.name]
    dut.aresetn.value = 0
    Clock(dut.aclk, 10, unit="ns").start()
    master = AxiLiteMaster(
        AxiLiteBus.from_prefix(dut, "s_axil"), dut.aclk, dut.aresetn, reset_active_level=False
    )
    for _ in range(4):
        await RisingEdge(dut.aclk)
    dut.aresetn.value = 1
    write, read = master.write_if, master.read_if
    for channel in (write.aw_channel, write.w_channel, write.b_channel,
                    read.ar_channel, read.r_channel):  # fmt: skip
        channel.set_pause_generator(pauses(rng, rng.choice([0.2, 0.5, 0.7])))
    pulses = 0

    async def count() -> None:
        nonlocal pulses
        while True:
            await RisingEdge(dut.aclk)
            pulses += int(dut.clear_counters.value)

    cocotb.start_soon(count())
    offsets = {word.offset: word for word in REGISTERS}
    addresses = [*offsets, 0x40, 0x7C, 0x800, 0xFFC]
    done = {"reads": 0}

    async def reader() -> None:
        for _ in range(300):
            address = rng.choice(addresses)
            answer = await master.read(address, 4)
            if address in offsets:
                assert answer.resp == AxiResp.OKAY
                assert int.from_bytes(answer.data, "little") == expected[offsets[address].name]
            else:
                assert answer.resp == AxiResp.SLVERR
            done["reads"] += 1

    reading = cocotb.start_soon(reader())
    cleared = 0
    for _ in range(200):
        address = rng.choice([*addresses, *[0x18] * 10])
        # One byte, or all four; where it is not the lowest, its strobe is not set.
        lane, size = rng.choice([(0, 4), (0, 1), (1, 1), (3, 1), (2, 2)])
        data = bytes(rng.randrange(256) for _ in range(size))
        answer = await master.write(address + lane, data)
        takes = address in offsets and offsets[address].writable
        assert answer.resp == (AxiResp.OKAY if takes else AxiResp.SLVERR)
        cleared += takes and lane == 0 and data[0] & 1
    await reading
    for _ in range(3):
        await RisingEdge(dut.aclk)
    assert done["reads"] == 300
    assert pulses == cleared > 10
