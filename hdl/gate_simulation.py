# SPDX-License-Identifier: Apache-2.0
"""A gate-level module as a Python function of a clock cycle, and random inputs for it.

Many streams are run at once: bit s of an integer is the value of a net in stream s. A submodule is
opaque: its outputs are inputs of the simulation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hdl import yosys

# Different words of a memory that one stream addresses.
_WORDS = 8

_GATES = {
    "$_BUF_": "{A}",
    "$_NOT_": "m ^ {A}",
    "$_AND_": "{A} & {B}",
    "$_OR_": "{A} | {B}",
    "$_XOR_": "{A} ^ {B}",
    "$_NAND_": "m ^ ({A} & {B})",
    "$_NOR_": "m ^ ({A} | {B})",
    "$_XNOR_": "m ^ {A} ^ {B}",
    "$_ANDNOT_": "{A} & (m ^ {B})",
    "$_ORNOT_": "{A} | (m ^ {B})",
    "$_MUX_": "{A} ^ (({A} ^ {B}) & {S})",
}
_FLIP_FLOPS = {"$_DFF_P_", "$_DFF_PP0_", "$_DFF_PP1_", "$_DFF_PN0_", "$_DFF_PN1_"}

# An input or output of a simulation: submodule instance ("" for the module), port, bit.
Pin = tuple[str, str, int]


class Simulation:
    """A gate-level module, compiled to one Python function that runs a clock cycle."""

    def __init__(
        self,
        module: Mapping[str, Any],
        name: str,
        clocks: Sequence[str],
        streams: int,
        undefined: Callable[[], int],
    ) -> None:
        self.inputs: dict[Pin, Any] = {}
        self.outputs: dict[Pin, Any] = {}
        self._mask = (1 << streams) - 1
        self._undefined = undefined
        self._name = name
        self._clock = {
            bit
            for pin, port in module["ports"].items()
            if pin in clocks and port["direction"] == "input"
            for bit in port["bits"]
        }
        self._memories: list[Memory] = []
        self._addresses: list[tuple[int, list[Any]]] = []  # (words of the memory, bits)
        self._muxes: dict[Any, tuple[Any, Any]] = {}  # output -> its two inputs
        self._registers: list[tuple[Any, Any]] = []  # (D, Q)
        # Name of a node -> bits it reads, bits it drives, line of Python.
        self._nodes: list[tuple[list[Any], list[Any], str]] = []
        self._late: list[str] = []
        for pin, port in module["ports"].items():
            pins = self.inputs if port["direction"] == "input" else self.outputs
            for i, bit in enumerate(port["bits"]):
                if bit not in self._clock:
                    pins["", pin, i] = bit
        for cell_name, cell in module["cells"].items():
            self._add(cell_name, cell, streams)
        self._ports = {pin: port["bits"] for pin, port in module["ports"].items()}
        self._state = _initial(module, [q for _, q in self._registers], self._mask)
        self._compile()

    def _add(self, cell_name: str, cell: Mapping[str, Any], streams: int) -> None:
        pins = cell["connections"]
        kind = cell["type"]
        if kind in _GATES:
            reads = [pins[pin][0] for pin in ("A", "B", "S") if pin in pins]
            text = _GATES[kind].format(**{pin: _v(pins[pin][0]) for pin in pins if pin != "Y"})
            self._nodes.append((reads, pins["Y"], f"{_v(pins['Y'][0])} = {text}"))
            if kind == "$_MUX_":
                self._muxes[pins["Y"][0]] = (pins["A"][0], pins["B"][0])
        elif kind in _FLIP_FLOPS:
            self._require_clock(cell_name, pins["C"])
            active = "1" if kind.startswith("$_DFF_PP") else "0"
            if "R" in pins and pins["R"][0] not in ("0", "1"):
                raise yosys.YosysError(f"{self._name}: {cell_name} has an asynchronous reset")
            if "R" in pins and pins["R"][0] == active:
                raise yosys.YosysError(f"{self._name}: {cell_name} is always in reset")
            self._registers.append((pins["D"][0], pins["Q"][0]))
        elif kind == "$mem_v2":
            self._add_memory(cell_name, cell, streams)
        elif kind == "$scopeinfo":
            return
        elif kind.startswith("$"):
            raise yosys.YosysError(f"{self._name}: cannot simulate {kind} ({cell_name})")
        else:
            for pin, bits in pins.items():
                driven = cell["port_directions"][pin] == "output"
                for i, bit in enumerate(bits):
                    if bit not in self._clock:
                        (self.inputs if driven else self.outputs)[cell_name, pin, i] = bit

    def _add_memory(self, cell_name: str, cell: Mapping[str, Any], streams: int) -> None:
        pins = cell["connections"]
        values = cell["parameters"]
        width, address = int(values["WIDTH"], 2), int(values["ABITS"], 2)
        reads, writes = int(values["RD_PORTS"], 2), int(values["WR_PORTS"], 2)
        if "1" in values["RD_CLK_ENABLE"][-reads:] or (
            writes and "0" in values["WR_CLK_ENABLE"][-writes:]
        ):
            raise yosys.YosysError(f"{self._name}: {cell_name} has an unexpected kind of port")
        self._require_clock(cell_name, pins["WR_CLK"])
        memory = Memory(int(values["SIZE"], 2), width, values["INIT"], streams)
        index = len(self._memories)
        self._memories.append(memory)
        for port in range(reads):
            at = pins["RD_ADDR"][port * address : (port + 1) * address]
            data = pins["RD_DATA"][port * width : (port + 1) * width]
            text = f"({''.join(_v(b) + ', ' for b in data)}) = mem[{index}].read({_list(at)})"
            self._nodes.append((at, data, text))
            self._addresses.append((memory.size, at))
        for port in range(writes):
            at = pins["WR_ADDR"][port * address : (port + 1) * address]
            data = pins["WR_DATA"][port * width : (port + 1) * width]
            enable = pins["WR_EN"][port * width : (port + 1) * width]
            self._addresses.append((memory.size, at))
            self._late.append(f"mem[{index}].write({_list(at)}, {_list(data)}, {_list(enable)})")

    def _require_clock(self, cell_name: str, bits: Sequence[Any]) -> None:
        if any(bit not in self._clock for bit in bits):
            raise yosys.YosysError(f"{self._name}: {cell_name} is not on the clock {bits}")

    def _compile(self) -> None:
        driver = {bit: i for i, (_, drives, _) in enumerate(self._nodes) for bit in drives}
        known = set(self.inputs.values()) | {q for _, q in self._registers}
        order = _topological(self._nodes, driver, self._name)
        needed = {bit for reads, _, _ in self._nodes for bit in reads}
        needed |= set(self.outputs.values()) | {d for d, _ in self._registers}
        undriven = sorted(
            bit for bit in needed if isinstance(bit, int) and bit not in driver and bit not in known
        )
        lines = ["def step(s, i, x, mem, m):", " v_0 = 0", " v_1 = m"]
        lines += [f" {_v(q)} = s[{n}]" for n, (_, q) in enumerate(self._registers)]
        lines += [
            f" {_v(bit)} = i[{n}]"
            for n, bit in enumerate(self.inputs.values())
            if isinstance(bit, int)
        ]
        lines += [" v_x = v_z = x()"]
        lines += [f" {_v(bit)} = x()" for bit in undriven]
        lines += [f" {self._nodes[n][2]}" for n in order]
        lines += [f" {text}" for text in self._late]
        after = _list([d for d, _ in self._registers])
        lines.append(f" return {after}, {_list(list(self.outputs.values()))}")
        space: dict[str, Any] = {}
        # The text is made of net numbers alone.
        exec(compile("\n".join(lines), f"<gates of {self._name}>", "exec"), space)
        self._step = space["step"]

    @property
    def only_connects(self) -> bool:
        """Whether there is neither gate nor register, but for those of submodules."""
        return not (self._nodes or self._registers or self._memories)

    def addresses(self) -> dict[str, int]:
        """Return the input ports that are addresses of memories, and how many words those have."""
        found: dict[str, int] = {}
        for size, muxed in self._addresses:
            at = [self._unmuxed(bit) for bit in muxed]
            for pin, bits in self._ports.items():
                if at[: len(bits)] == bits and all(bit == "0" for bit in at[len(bits) :]):
                    found[pin] = min(size, found.get(pin, size))
        return found

    def _unmuxed(self, bit: Any) -> Any:
        """Return what drives a bit behind multiplexers whose other input is undefined."""
        while bit in self._muxes:
            a, b = self._muxes[bit]
            if "x" not in (a, b):
                break
            bit = b if a == "x" else a
        return bit

    def step(self, values: Mapping[Pin, int]) -> dict[Pin, int]:
        """Run a cycle; return the outputs during it, before the clock edge."""
        given = [values[pin] for pin in self.inputs]
        self._state, out = self._step(
            self._state, given, self._undefined, self._memories, self._mask
        )
        return dict(zip(self.outputs, out, strict=True))


def _v(bit: Any) -> str:
    return f"v_{bit}"


def _list(bits: Sequence[Any]) -> str:
    return f"[{', '.join(map(_v, bits))}]"


def _topological(
    nodes: Sequence[tuple[list[Any], list[Any], str]], driver: Mapping[Any, int], name: str
) -> list[int]:
    waiting = [len({driver[bit] for bit in reads if bit in driver}) for reads, _, _ in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for n, (reads, _, _) in enumerate(nodes):
        for source in {driver[bit] for bit in reads if bit in driver}:
            readers[source].append(n)
    order = [n for n, count in enumerate(waiting) if count == 0]
    for n in order:
        for reader in readers[n]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                order.append(reader)
    if len(order) < len(nodes):
        raise yosys.YosysError(f"{name}: combinational loop")
    return order


def _initial(module: Mapping[str, Any], registers: Sequence[Any], mask: int) -> list[int]:
    values: dict[Any, int] = {}
    for net in module["netnames"].values():
        init = net["attributes"].get("init")
        if init is not None:
            for bit, value in zip(net["bits"], reversed(init), strict=False):
                if value in "01":
                    values[bit] = mask if value == "1" else 0
    return [values.get(bit, 0) for bit in registers]


class Memory:
    """A memory of every stream, words as integers of up to 64 bits."""

    def __init__(self, size: int, width: int, init: str, streams: int) -> None:
        if width > 64:
            raise yosys.YosysError(f"memory words of {width} bits, more than 64")
        self.width = width
        self.size = size
        self._streams = streams
        self._rows = np.arange(streams)
        digits = init.replace("x", "0").rjust(size * width, "0")[-size * width :]
        words = [int(digits[len(digits) - (n + 1) * width :][:width], 2) for n in range(size)]
        self._words = np.tile(np.array(words, dtype=np.uint64), (streams, 1))

    def _numbers(self, bits: Sequence[int]) -> np.ndarray:
        raw = b"".join(bit.to_bytes(self._streams // 8, "little") for bit in bits)
        table = np.frombuffer(raw, dtype=np.uint8).reshape(len(bits), -1)
        table = np.unpackbits(table, axis=1, bitorder="little").astype(np.uint64)
        weights = np.uint64(1) << np.arange(len(bits), dtype=np.uint64)
        return (table * weights[:, None]).sum(axis=0, dtype=np.uint64)

    def read(self, address: Sequence[int]) -> list[int]:
        """Return the word at an address, bit 0 first; 0 beyond the last word."""
        at = self._numbers(address).astype(np.int64)
        inside = at < self.size
        words = np.where(inside, self._words[self._rows, np.where(inside, at, 0)], 0)
        shifts = np.arange(self.width, dtype=np.uint64)[:, None]
        table = ((words.astype(np.uint64) >> shifts) & np.uint64(1)).astype(np.uint8)
        packed = np.packbits(table, axis=1, bitorder="little")
        return [int.from_bytes(row.tobytes(), "little") for row in packed]

    def write(self, address: Sequence[int], data: Sequence[int], enable: Sequence[int]) -> None:
        """Write those bits of a word whose `enable` is set."""
        if not any(enable):
            return
        at = self._numbers(address).astype(np.int64)
        inside = at < self.size
        at = np.where(inside, at, 0)
        keep = self._words[self._rows, at]
        mask = np.where(inside, self._numbers(enable), np.uint64(0))
        self._words[self._rows, at] = (keep & ~mask) | (self._numbers(data) & mask)


class Stimuli:
    """Random inputs: full-range in half of the streams, small numbers in the others.

    Addresses are few in each stream, the same for ports of equally deep memories.
    """

    def __init__(
        self, pins: Sequence[Pin], addresses: Mapping[str, int], seed: int, streams: int
    ) -> None:
        self._random = random.Random(seed)
        self._addresses = dict(addresses)
        self._words = {
            size: [
                [self._random.randrange(size if s % 2 else min(size, 16)) for _ in range(_WORDS)]
                for s in range(streams)
            ]
            for size in sorted(set(addresses.values()))
        }
        self._streams = streams
        self._pins = pins
        self._all = (1 << streams) - 1
        half = self._all >> (streams // 2)
        ports = sorted({pin[:2] for pin in pins})
        # In stream s of the lower half, bits from `limit` up are 0.
        self._limits = {
            port: [self._random.randint(1, 6) for _ in range(streams // 2)] for port in ports
        }
        self._masks: dict[Pin, int] = {}
        for pin in pins:
            mask = self._all ^ half
            for s, limit in enumerate(self._limits[pin[:2]]):
                mask |= (pin[2] < limit) << s
            self._masks[pin] = mask

    def next(self, cycle: int) -> dict[Pin, int]:
        """Return the inputs of a cycle; in the first two every stream is in reset."""
        values = {
            pin: self._random.getrandbits(self._streams) & self._masks[pin] for pin in self._pins
        }
        for port, size in self._addresses.items():
            chosen = [self._random.choice(words) for words in self._words[size]]
            for pin in self._pins:
                if pin[:2] == ("", port):
                    values[pin] = sum((word >> pin[2] & 1) << s for s, word in enumerate(chosen))
        for pin in self._pins:
            if pin[1] == "aresetn":
                # Two cycles of reset, then a rare one, in a quarter of the streams only.
                rare = self._all
                for _ in range(5):
                    rare &= self._random.getrandbits(self._streams)
                values[pin] = 0 if cycle < 2 else self._all ^ (rare >> (self._streams * 3 // 4))
        return values
