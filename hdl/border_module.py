# SPDX-License-Identifier: Apache-2.0
"""A mapped module as its neighbours can change it: what is needed, decided, equal or a delay.

Answers are kept, since nearly all instances of a module are in one of few situations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from hdl.netlist import Bit, Cell, Netlist


@dataclass(frozen=True, kw_only=True)
class Delay:
    """A register or shift register that only delays: cell, stages, nets, what else decides."""

    cell: int
    stages: int
    data: Bit
    out: Bit
    control: tuple[Bit, ...]


@dataclass(frozen=True, kw_only=True)
class Cone:
    """What of a module is needed for some of its nets.

    Attributes:
        cells: the primitives.
        outside: nets without a driver in the module.
        elsewhere: outputs (cell, index) of primitives that another one stands for.
    """

    cells: frozenset[int]
    outside: tuple[int, ...]
    elsewhere: tuple[tuple[int, int], ...]


class Module:
    """A netlist with what is asked of it again and again."""

    def __init__(self, name: str, netlist: Netlist) -> None:
        self.name, self.netlist = name, netlist
        self.cells = netlist.cells
        self.inputs = [[b for bits in c.inputs.values() for b in bits] for c in self.cells]
        self.outputs = [[b for bits in c.outputs.values() for b in bits] for c in self.cells]
        self.driver = {
            bit: (number, index)
            for number, bits in enumerate(self.outputs)
            for index, bit in enumerate(bits)
            if isinstance(bit, int)
        }
        read = {bit for bits in self.inputs for bit in bits if isinstance(bit, int)}
        self.sources = sorted(read - set(self.driver))
        border = [*netlist.ports.values()]
        border += [bits for _, pins in netlist.children for bits in pins.values()]
        self.border = sorted({bit for bits in border for bit in bits if isinstance(bit, int)})
        # Asked for with few different arguments, as most instances are in the same situation.
        self.decided = cache(self._decided)
        self.cone = cache(self._cone)
        self.delays = cache(self._delays)
        self.readers = cache(self._readers)
        self.twins = cache(self._twins)

    def _decided(self, known: frozenset[Bit]) -> list[int]:
        """Return the primitives that depend on `known` and constants alone, drivers first.

        What is in a loop depends on itself: flat synthesis does not find its like either.
        """
        users: dict[Bit, list[int]] = {}
        left: dict[int, int] = {}
        ready = []
        for number, bits in enumerate(self.inputs):
            unknown = {bit for bit in bits if isinstance(bit, int) and bit not in known}
            left[number] = len(unknown)
            for bit in unknown:
                users.setdefault(bit, []).append(number)
            if not unknown:
                ready.append(number)
        for number in ready:
            for out in self.outputs[number]:
                for user in users.pop(out, ()):
                    left[user] -= 1
                    if left[user] == 0:
                        ready.append(user)
        return ready

    def _twins(self, joined: frozenset[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return what equals another primitive once nets are joined, each with the one that stays.

        Args:
            joined: nets without a driver here that carry the same value as another one.
        """
        names: dict[Bit, Bit] = {}
        names.update(joined)
        seen: dict[tuple[Any, ...], int] = {}
        found: dict[int, int] = {}
        before = -1
        while len(found) > before:
            before = len(found)
            seen.clear()
            for number, cell in enumerate(self.cells):
                if number in found or not self.outputs[number]:
                    continue
                inputs = tuple(names.get(bit, bit) for bit in self.inputs[number])
                other = seen.setdefault((cell.kind, cell.parameters, inputs), number)
                # What has the same inputs anyway was made twice by ABC, in a flat netlist too.
                if other != number and self.inputs[other] != self.inputs[number]:
                    found[number] = other
                    names.update(zip(self.outputs[number], self.outputs[other], strict=True))
        return list(found.items())

    def _cone(self, wanted: frozenset[int], elsewhere: frozenset[int]) -> Cone:
        """Return what is needed for the nets `wanted`, of which `elsewhere` is not built here."""
        cells: set[int] = set()
        outside: set[int] = set()
        other: set[tuple[int, int]] = set()
        waiting = list(wanted)
        while waiting:
            bit = waiting.pop()
            driver = self.driver.get(bit)
            if driver is None:
                outside.add(bit)
            elif driver[0] in elsewhere:
                other.add(driver)
            elif driver[0] not in cells:
                cells.add(driver[0])
                waiting += [b for b in self.inputs[driver[0]] if isinstance(b, int)]
        return Cone(
            cells=frozenset(cells),
            outside=tuple(sorted(outside)),
            elsewhere=tuple(sorted(other)),
        )

    def _readers(self, cells: frozenset[int]) -> Counter[Bit]:
        """Return by how many pins of `cells` each net is read."""
        return Counter(
            bit for number in cells for bit in self.inputs[number] if isinstance(bit, int)
        )

    def _delays(self, cells: frozenset[int]) -> list[Delay]:
        """Return those of `cells` that only delay."""
        read = self.readers(cells)
        found = []
        for number in sorted(cells):
            delay = _delay(number, self.cells[number], read)
            if delay is not None:
                found.append(delay)
        return found


def _delay(number: int, cell: Cell, read: Mapping[Bit, int]) -> Delay | None:
    """Return a Xilinx register without reset, or shift register of fixed length, as a delay."""
    pins = {pin: bits for pin, bits in cell.inputs.items() if pin != "A"}
    if cell.kind == "FDRE" and pins["R"] == ["0"]:
        stages, out, clock = 1, cell.outputs["Q"][0], pins["C"][0]
    elif cell.kind in ("SRL16E", "SRLC32E"):
        address = cell.inputs.get("A") or [pins[f"A{i}"][0] for i in range(4)]
        if any(bit not in ("0", "1") for bit in address):
            return None
        stages = 1 + sum(int(bit) << i for i, bit in enumerate(address))
        out, clock = cell.outputs["Q"][0], pins["CLK"][0]
        if "Q31" in cell.outputs and read[cell.outputs["Q31"][0]]:
            if read[out]:
                return None
            stages, out = 32, cell.outputs["Q31"][0]
    else:
        return None
    return Delay(
        cell=number, stages=stages, data=pins["D"][0], out=out, control=(clock, pins["CE"][0])
    )
