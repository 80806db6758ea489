# SPDX-License-Identifier: Apache-2.0
"""A mapped module as its primitives and what they are connected to, without what Yosys adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# A net of one module, as Yosys numbers it; a constant is a string.
Bit = int | str
CONSTANTS = ("0", "1", "x", "z")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One primitive of a netlist.

    Attributes:
        kind: primitive.
        parameters: as Yosys writes them, sorted, in one string.
        inputs, outputs: pin -> nets, element 0 first.
    """

    kind: str
    parameters: str
    inputs: dict[str, list[Bit]]
    outputs: dict[str, list[Bit]]


@dataclass(frozen=True, kw_only=True)
class Netlist:
    """A module's primitives, and how it connects its submodules.

    Attributes:
        ports: name -> nets.
        inputs: those of `ports` that are inputs.
        cells: the primitives.
        children: submodule and what its ports are connected to (port -> nets), for each instance.
    """

    ports: dict[str, list[Bit]]
    inputs: tuple[str, ...]
    cells: tuple[Cell, ...]
    children: tuple[tuple[str, dict[str, list[Bit]]], ...]


def read_netlist(module: Mapping[str, Any], submodules: Iterable[str]) -> Netlist:
    """Return a module of Yosys JSON in the form that is kept."""
    known = set(submodules)
    cells, children = [], []
    for cell in module["cells"].values():
        pins = cell["connections"]
        if cell["type"] in known:
            children.append((cell["type"], pins))
        elif cell["type"] != "$scopeinfo":
            directions = cell["port_directions"]
            parameters = sorted(cell["parameters"].items())
            cells.append(
                Cell(
                    kind=cell["type"],
                    parameters=" ".join(f"{name}={value}" for name, value in parameters),
                    inputs={pin: b for pin, b in pins.items() if directions[pin] == "input"},
                    outputs={pin: b for pin, b in pins.items() if directions[pin] != "input"},
                )
            )
    ports = module["ports"]
    return Netlist(
        ports={name: port["bits"] for name, port in ports.items()},
        inputs=tuple(name for name, port in ports.items() if port["direction"] == "input"),
        cells=tuple(cells),
        children=tuple(children),
    )


def netlist_from_json(data: Mapping[str, Any]) -> Netlist:
    """Read a netlist from its fields and those of its cells by name."""
    return Netlist(
        ports=data["ports"],
        inputs=tuple(data["inputs"]),
        cells=tuple(Cell(**cell) for cell in data["cells"]),
        children=tuple((name, pins) for name, pins in data["children"]),
    )
