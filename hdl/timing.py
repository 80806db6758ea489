# SPDX-License-Identifier: Apache-2.0
"""Logic delay of a mapped module by Yosys's `sta`, module by module.

`sta` takes conditional timing arcs for none, so it finds no path through a flip-flop as the
libraries describe it; here every cell gets unconditional arcs first. A module is timed with its
submodules as black boxes that carry the arcs measured on them before: clock to each output,
each input to the clock (set-up), each input to each output. Logic only: wires have no delay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hdl import yosys

CLOCKS = ("aclk", "clk")
# Pins that a family's primitives number one by one, gathered into buses for `sta`.
_NUMBERED = {"MULT18X18D", "DP16KD"}
# Parameters that decide timing; all others are dropped, so that equal cells are analysed once.
_DECISIVE = re.compile(r"[ABCDMP]REG|ADREG|USE_\w+|DO[AB]_REG|REGMODE_[AB]")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Delays of a module in ps, register to register unless said otherwise.

    Attributes:
        delay: longest path, its ports launched and captured by the family's flip-flop.
        path: that path, one line a step, last first, as `sta` prints it.
        arrival: output port -> clock to that port.
        setup: input port -> that port to a register, set-up included.
        through: input port -> output port, or the bits of it that are reached (``q[7:4]``) ->
            combinational delay.
    """

    delay: int
    path: tuple[str, ...]
    arrival: dict[str, int] = field(default_factory=dict)
    setup: dict[str, int] = field(default_factory=dict)
    through: dict[str, dict[str, int]] = field(default_factory=dict)


def unconditional(library: str) -> str:
    """Return a Verilog cell library with the conditions of its timing arcs removed.

    Arcs of the falling edge are dropped; a set-up of 0, which `sta` ignores, becomes 1 ps.
    """
    lines = []
    for line in library.splitlines():
        text = line.split("//")[0]
        if re.search(r"\$setup\(|\(\s*(?:pos|neg)edge\s+\w+\s*[=*]>", text):
            if re.search(r"\bnegedge\b", text):
                continue
            text = re.sub(r"&&&[^,]*,", ",", text)
            text = re.sub(r",\s*(?:/\*.*?\*/)?\s*0\s*\)", ", 1)", text)
            text = re.sub(r"^(\s*)if\s*\(.*?\)\s*(?=\(posedge)", r"\1", text)
        lines.append(text)
    return "\n".join(lines) + "\n"


def cell_library(cells: set[str], own: str, library: str) -> str:
    """Return Verilog of the timing models of `cells`: those in `own`, the rest from `library`.

    Args:
        cells: cell types of a netlist.
        own: Verilog with models of trilat's own, unconditional.
        library: Verilog cell library of Yosys, with its macros before the first module.
    """
    ours = _modules(own)
    theirs = _modules(library)
    head = re.split(r"^(?:\(\*.*\*\)\s*)?module\b", library, maxsplit=1, flags=re.M)[0]
    parts = [head] if library else []
    for cell in sorted(cells):
        if cell in ours:
            parts.append("(* blackbox *)\n" + ours[cell])
        elif cell in theirs:
            parts.append(unconditional(theirs[cell]))
    return "\n".join(parts)


def timed_as(cell: Mapping[str, Any]) -> str:
    """Return the name of a cell's timing model: a block with an output register has its own."""
    registered = cell["parameters"].get("REG_OUTPUT_CLK", "NONE") != "NONE"
    return f"{cell['type']}_OUTPUT" if registered else str(cell["type"])


def _modules(text: str) -> dict[str, str]:
    found = re.finditer(r"^module\s+(\S+?)\s*[(#;].*?^endmodule", text, flags=re.M | re.S)
    return {match[1]: match[0] for match in found}


def timing_netlist(module: Mapping[str, Any]) -> dict[str, Any]:
    """Return a netlist (Yosys JSON of one module) as `sta` needs it.

    Outputs that drive nothing are cut off, lest a path end there; parameters that do not decide
    timing are dropped; numbered pins become buses. Names of nets are left out, as `sta` takes
    the square of a net's width.
    """
    used = {bit for port in module["ports"].values() for bit in port["bits"]}
    for cell in module["cells"].values():
        for pin, bits in cell["connections"].items():
            if cell["port_directions"][pin] == "input":
                used.update(bits)
    cells = {}
    for name, cell in module["cells"].items():
        if cell["type"] == "$scopeinfo":
            continue
        directions = dict(cell["port_directions"])
        pins = {
            pin: [bit if bit in used or directions[pin] == "input" else "x" for bit in bits]
            for pin, bits in cell["connections"].items()
        }
        if cell["type"] in _NUMBERED:
            pins, directions = _gather(pins, directions)
        cells[name] = {
            "type": timed_as(cell),
            "parameters": {
                key: value for key, value in cell["parameters"].items() if _DECISIVE.fullmatch(key)
            },
            "attributes": {},
            "port_directions": directions,
            "connections": pins,
        }
    return {"attributes": {}, "ports": module["ports"], "cells": cells}


def end_chains(module: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a Xilinx netlist with each register at an input port as the end of a shift register.

    What flat synthesis makes of it where registers of other modules lead to that port. None if
    there is no such register: with a reset there is none.
    """
    given = {
        bit
        for port in module["ports"].values()
        if port["direction"] == "input"
        for bit in port["bits"]
    }
    cells = dict(module["cells"])
    for name, cell in module["cells"].items():
        pins = cell["connections"]
        if cell["type"] == "FDRE" and pins["R"] == ["0"] and pins["D"][0] in given:
            pins = {"CLK": pins["C"], **{pin: pins[pin] for pin in ("CE", "D", "Q")}}
            pins |= {f"A{i}": ["1"] for i in range(4)}
            directions = {pin: "output" if pin == "Q" else "input" for pin in pins}
            cells[name] = {
                **cell,
                "type": "SRL16E",
                "parameters": {},
                "port_directions": directions,
                "connections": pins,
            }
    return None if cells == module["cells"] else {**module, "cells": cells}


def _gather(
    pins: dict[str, list[Any]], directions: dict[str, str]
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    buses: dict[str, dict[int, Any]] = {}
    for pin, bits in pins.items():
        name = pin if pin.startswith("CLK") else pin.rstrip("0123456789")
        number = pin[len(name) :]
        buses.setdefault(name, {})[int(number or 0)] = (bits[0], directions[pin])
    gathered = {
        name: [bits[i][0] if i in bits else "x" for i in range(max(bits) + 1)]
        for name, bits in buses.items()
    }
    return gathered, {name: next(iter(bits.values()))[1] for name, bits in buses.items()}


def black_box(name: str, ports: Mapping[str, Any], timing: Timing) -> str:
    """Return Verilog of a module as a black box with its measured arcs.

    Args:
        name: of the module.
        ports: as in Yosys JSON: name -> direction, bits.
        timing: its delays.
    """
    declared = ", ".join(
        f"{port['direction']} [{len(port['bits']) - 1}:0] {pin}" for pin, port in ports.items()
    )
    clock = next((pin for pin in CLOCKS if pin in ports), None)
    arcs = [
        f"({source} *> {sink}) = {delay};"
        for source, sinks in timing.through.items()
        for sink, delay in sinks.items()
    ]
    if clock is not None:
        arcs += [
            f"(posedge {clock} => ({pin} : {len(ports[pin]['bits'])}'bx)) = {delay};"
            for pin, delay in timing.arrival.items()
        ]
        arcs += [f"$setup({pin}, posedge {clock}, {ps});" for pin, ps in timing.setup.items()]
    body = "\n    ".join(arcs)
    specify = f"\n  specify\n    {body}\n  endspecify" if arcs else ""
    return f"(* blackbox *)\nmodule {name}({declared});{specify}\nendmodule\n"


def analyse(
    netlists: Mapping[str, Mapping[str, Any]],
    *,
    models: str,
    silent: Collection[str],
    opaque: Mapping[str, Collection[str]],
    launch: int,
    capture: int,
    folder: Path,
    whole: Collection[str] = (),
) -> dict[str, Timing]:
    """Time modules that do not instantiate each other.

    Args:
        netlists: module -> its netlist, Yosys JSON of one module.
        models: Verilog of the timing models of all their cells and submodules.
        silent: cell types that may have no arcs at all (submodules of wires alone).
        opaque: cell types some of whose inputs have no arcs, where a path may end, with those pins
            that are known to have a set-up.
        launch: ps, clock to q of the flip-flop that drives each input port.
        capture: ps, set-up of the flip-flop behind each output port.
        folder: where the files go.
        whole: modules that none instantiates: their longest path alone is measured.

    Raises:
        yosys.YosysError: Yosys failed, or a cell has no timing arcs.
    """
    ready = {
        name: _with_neighbours(timing_netlist(module), opaque) for name, module in netlists.items()
    }
    (folder / "timing.json").write_text(
        json.dumps({"modules": {name: netlist for name, (netlist, _) in ready.items()}}),
        encoding="utf-8",
    )
    (folder / "models.v").write_text(
        models + _NEIGHBOURS.format(launch=launch, capture=capture), encoding="utf-8"
    )
    script = ["read_verilog -lib -specify models.v", "read_json timing.json"]
    # One copy of a module per source of paths: the clock ("") and each data input.
    copies: dict[tuple[str, str], str] = {}
    for name, (_, launches) in ready.items():
        clocks = [pin for pin, port in netlists[name]["ports"].items() if _is_clock(pin, port)]
        sources = {**({"": clocks} if clocks else {}), **launches}
        if name in whole:
            sources = {"": [pin for kept in sources.values() for pin in kept]}
        for source, kept in sources.items():
            copy = copies[name, source] = f"trilat_sta_{len(copies)}"
            keep = " ".join(f"{copy}/w:{pin} %d" for pin in kept)
            script += [f"copy {name} {copy}", f"delete -port {copy}/i:* {keep}"]
            script += [f"tee -q -o {copy}.txt sta {copy}"]
    script += [
        # Arrivals are attributes of wires, of which those of the output ports are wanted.
        "delete trilat_sta_*/c:*",
        "delete trilat_sta_*/w:* trilat_sta_*/x:* %d",
        "select trilat_sta_*",
        "write_json -selected arrivals.json",
    ]
    _require_arcs(yosys.run(script, folder, "sta"), silent)
    timed = json.loads((folder / "arrivals.json").read_text(encoding="utf-8"))["modules"]

    result = {}
    for name in netlists:
        ports = netlists[name]["ports"]
        outputs = [pin for pin, port in ports.items() if port["direction"] == "output"]
        worst: tuple[int, tuple[str, ...]] = (0, ())
        arrival: dict[str, int] = {}
        setup: dict[str, int] = {}
        through: dict[str, dict[str, int]] = {}
        for (owner, source), copy in copies.items():
            if owner != name:
                continue
            report = (folder / f"{copy}.txt").read_text(encoding="utf-8")
            _require_arcs(report, silent)
            latest = _latest(report)
            worst = max(worst, latest, key=lambda candidate: candidate[0])
            reached = _arrivals(timed[copy]["netnames"], outputs)
            if source == "":
                arrival = reached
                continue
            if latest[0]:
                setup[source] = max(latest[0] - launch, 1)
            if reached:
                through[source] = {
                    _reached_bits(pin, timed[copy]["netnames"][pin]): max(ps - launch, 0)
                    for pin, ps in reached.items()
                }
        result[name] = Timing(
            delay=worst[0], path=worst[1], arrival=arrival, setup=setup, through=through
        )
    return result


_NEIGHBOURS = """
(* blackbox *)
module trilat_launch(input C, output Q);
  specify (posedge C => (Q : 1'bx)) = {launch}; endspecify
endmodule
(* blackbox *)
module trilat_capture(input C, D);
  specify $setup(D, posedge C, {capture}); endspecify
endmodule
(* blackbox *)
module trilat_pin(input C, D);
  specify $setup(D, posedge C, 1); endspecify
endmodule
"""


def _is_clock(pin: str, port: Mapping[str, Any]) -> bool:
    return port["direction"] == "input" and pin in CLOCKS


def _with_neighbours(
    module: dict[str, Any], opaque: Mapping[str, Collection[str]]
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Put a flip-flop before each input port and behind each output port.

    What drives an opaque cell gets an end point, should the pin it drives have no arc.

    Returns:
        The netlist, and for each data input the name of the clock port of its flip-flops.
    """
    pins = [bits for cell in module["cells"].values() for bits in cell["connections"].values()]
    every = [*pins, *(port["bits"] for port in module["ports"].values())]
    free = max((bit for bits in every for bit in bits if isinstance(bit, int)), default=1) + 1
    ports: dict[str, Any] = {}
    cells = dict(module["cells"])
    launches: dict[str, list[str]] = {}

    def neighbour(kind: str, pin: str, i: int, pins: dict[str, list[Any]]) -> None:
        directions = {"C": "input", "D": "input", "Q": "output"}
        cells[f"port.{pin}[{i}]"] = {
            "type": kind,
            "parameters": {},
            "attributes": {},
            "port_directions": {key: directions[key] for key in pins},
            "connections": pins,
        }

    pins += [port["bits"] for port in module["ports"].values() if port["direction"] == "output"]
    used = {bit for bits in pins for bit in bits}
    ends = {
        bit
        for cell in module["cells"].values()
        if cell["type"] in opaque
        for pin, bits in cell["connections"].items()
        if cell["port_directions"][pin] == "input" and pin not in opaque[cell["type"]]
        for bit in bits
        if isinstance(bit, int)
    }
    for bit in sorted(ends):
        neighbour("trilat_pin", "pin", bit, {"C": ["0"], "D": [bit]})
    for pin, port in module["ports"].items():
        if _is_clock(pin, port):
            ports[pin] = port
        elif port["direction"] == "output":
            ports[pin] = port
            for i, bit in enumerate(port["bits"]):
                neighbour("trilat_capture", pin, i, {"C": ["0"], "D": [bit]})
        else:
            clock = f"trilat_launch_{pin}"
            ports[clock] = {"direction": "input", "bits": [free]}
            launches[pin] = [clock]
            for i, bit in enumerate(port["bits"]):
                if bit in used:
                    neighbour("trilat_launch", pin, i, {"C": [free], "Q": [bit]})
            free += 1
    return {**module, "ports": ports, "cells": cells, "netnames": {}}, launches


def _latest(report: str) -> tuple[int, tuple[str, ...]]:
    """Return the delay in ps and the steps of the path that `sta` printed; 0 without a path."""
    found = re.search(r"^Latest arrival time in .* is (\d+):\n((?: .*\n)*)", report, flags=re.M)
    if found is None:
        if "No timing paths found" not in report:
            raise yosys.YosysError(f"sta printed no result:\n{report[-2000:]}")
        return 0, ()
    steps = [line.strip() for line in found[2].splitlines() if re.match(r"\s*\d+\s", line)]
    return int(found[1]), tuple(steps)


def _arrivals(netnames: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, int]:
    """Return the latest arrival at each output port that anything reaches, in ps."""
    reached = {}
    for pin in outputs:
        times = _bit_arrivals(netnames[pin])
        if times and max(times) >= 0:
            reached[pin] = max(times)
    return reached


def _bit_arrivals(net: Mapping[str, Any]) -> list[int]:
    """Return the arrival at each bit of a net that `sta` has seen, highest bit first; or -1."""
    return [int(value) for value in str(net["attributes"].get("sta_arrival", "")).split()]


def _reached_bits(pin: str, net: Mapping[str, Any]) -> str:
    """Return a port, or the range of its bits that something arrives at.

    An arc to every bit of a wide port, from each bit of another one, would be most of the time
    that `sta` takes, where a few bits alone pass.
    """
    times = _bit_arrivals(net)
    there = [i for i, time in enumerate(reversed(times)) if time >= 0]
    if len(times) < 2 or there[-1] - there[0] + 1 == len(times):
        return pin
    return f"{pin}[{there[-1]}:{there[0]}]"


def _require_arcs(report: str, silent: Collection[str]) -> None:
    for line in report.splitlines():
        bare = re.search(r"Module '(.*)' has no timing arcs", line)
        if bare and bare[1].split("\\")[-1] not in silent:
            raise yosys.YosysError(f"no timing is known for cell {bare[1]}: {line}")
        if re.search(r"not recognised! Ignoring|not a black- nor white-box", line):
            raise yosys.YosysError(f"no timing is known: {line}")
        if "does not terminate in a recognised endpoint" in line:
            raise yosys.YosysError(f"a path ends where nothing captures it: {line}")
