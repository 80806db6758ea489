# SPDX-License-Identifier: Apache-2.0
"""Modules of delay lines with one line of each length: a bit more wide is mapped as fast.

The skews and deskew of an array are registers in a row, a line for each bit of each row or column:
their number grows with the square of the array's size, and most of the time of mapping would be
theirs. Lines of one length are mapped alike, so one of each is left in the Verilog (`thin`), and
the others are put back into its netlist (`widen`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hdl.netlist import Bit, Cell, Netlist

# A bit of a port or register.
_Place = tuple[str, int]

_PORT = re.compile(r"(input|output)\s+(wire|reg)\s*(?:\[(\d+):0\])?\s*(\w+)(?:\s*=\s*\S+)?")
_REG = re.compile(r"^\s*reg\s*(?:\[(\d+):0\])?\s*(\w+ = [^;]*);", flags=re.M)
_WIRE = re.compile(r"^\s*wire\s*(?:\[(\d+):0\])?\s*(\w+) = (.*?);", flags=re.M | re.S)
_ALWAYS = re.compile(r"^\s*always @\(posedge aclk\) begin\n(.*?)^\s*end\n", flags=re.M | re.S)
_NEXT = re.compile(r"\s*(\w+) <= (.*?);", flags=re.S)
_ASSIGN = re.compile(r"^\s*assign (\w+) = (.*?);", flags=re.M | re.S)
_TERM = re.compile(r"(\w+)(?:\[(\d+)(?::(\d+))?\])?")


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Lines of one length from one port to another.

    Attributes:
        source, sink: input port, output port.
        stages: registers of a line.
        bits: (bit of source, bit of sink) of each line; the first is the one that is mapped.
    """

    source: str
    sink: str
    stages: int
    bits: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class _Parsed:
    """A module of registers without conditions.

    Attributes:
        inputs, outputs: port -> bits.
        next: register -> what each bit takes in: a place, or an expression of one bit.
        assigned: output port -> likewise.
        rest: the text between ports and registers: nets that are computed.
        reads: by how many a place is read.
    """

    inputs: dict[str, int]
    outputs: dict[str, int]
    next: dict[str, list[_Place | str]]
    assigned: dict[str, list[_Place | str]]
    rest: list[str]
    reads: Counter[_Place]


def thin(text: str) -> tuple[str, tuple[Copies, ...]]:
    """Return a module with one delay line of each kind, and the lines that it stands for.

    Args:
        text: a module as trilat writes it, without comments.

    Returns:
        The Verilog: the same ports, bits of outputs without a line being 0; and the kinds that have
        several lines. The text itself and nothing if the module has anything but registers that
        always take in the next value, or no lines that are alike.
    """
    parsed = _parse(text)
    if parsed is None:
        return text, ()
    kinds: dict[tuple[str, str, int], list[tuple[int, int]]] = {}
    places: dict[tuple[str, int], list[_Place]] = {}
    for sink, bits in parsed.assigned.items():
        for bit, term in enumerate(bits):
            line = _line(term, parsed)
            if line is not None:
                (source, origin), passed = line
                kinds.setdefault((source, sink, len(passed)), []).append((origin, bit))
                places[sink, bit] = passed
    copies = tuple(
        Copies(source=source, sink=sink, stages=stages, bits=tuple(bits))
        for (source, sink, stages), bits in kinds.items()
        if len(bits) > 1
    )
    dropped = {(kind.sink, bit) for kind in copies for _, bit in kind.bits[1:]}
    gone = {place for line in dropped for place in places[line]}
    return (_write(text, parsed, dropped, gone) if gone else text), copies


def widen(netlist: Netlist, copies: Iterable[Copies]) -> Netlist:
    """Return the netlist of the whole module from that of the one with a line of each kind.

    Raises:
        ValueError: a line is not primitives in a row.
    """
    pins = [*netlist.ports.values()]
    pins += [
        bits for cell in netlist.cells for bits in (*cell.inputs.values(), *cell.outputs.values())
    ]
    free = max((bit for bits in pins for bit in bits if isinstance(bit, int)), default=1) + 1
    ports = {name: list(bits) for name, bits in netlist.ports.items()}
    driver = {
        bit: cell
        for cell in netlist.cells
        for bits in cell.outputs.values()
        for bit in bits
        if isinstance(bit, int)
    }
    cells = list(netlist.cells)
    for kind in copies:
        (origin, end), *others = kind.bits
        row, inner = _row(ports[kind.source][origin], ports[kind.sink][end], driver)
        for source, sink in others:
            names: dict[Bit, Bit] = {ports[kind.source][origin]: ports[kind.source][source]}
            for net in inner:
                names[net] = free
                free += 1
            cells += [_renamed(cell, names) for cell in row]
            ports[kind.sink][sink] = names[ports[kind.sink][end]]
    return replace(netlist, ports=ports, cells=tuple(cells))


def _row(source: Bit, sink: Bit, driver: dict[int, Cell]) -> tuple[list[Cell], list[Bit]]:
    """Return the primitives between two nets, and the nets that they drive."""
    row: list[Cell] = []
    net = sink
    while net != source:
        cell = driver.get(net) if isinstance(net, int) else None
        # What has a driver is no clock, and none of its outputs leads anywhere else.
        data = [
            bit
            for bits in (cell.inputs.values() if cell else ())
            for bit in bits
            if bit == source or bit in driver
        ]
        if cell is None or len(data) != 1 or len(row) > len(driver):
            raise ValueError(f"no row of primitives leads from net {source} to net {sink}")
        row.append(cell)
        net = data[0]
    inner = [bit for cell in row for bits in cell.outputs.values() for bit in bits]
    return row, [bit for bit in dict.fromkeys(inner) if isinstance(bit, int)]


def _renamed(cell: Cell, names: dict[Bit, Bit]) -> Cell:
    return replace(
        cell,
        inputs={pin: [names.get(bit, bit) for bit in bits] for pin, bits in cell.inputs.items()},
        outputs={pin: [names.get(bit, bit) for bit in bits] for pin, bits in cell.outputs.items()},
    )


def _line(term: _Place | str, parsed: _Parsed) -> tuple[_Place, list[_Place]] | None:
    """Return where a line comes from and its registers, last first; None if it is more."""
    passed: list[_Place] = []
    while not isinstance(term, str) and parsed.reads[term] == 1:
        name, bit = term
        if name in parsed.inputs:
            return (term, passed) if passed else None
        if name not in parsed.next or name in parsed.outputs:
            return None
        passed.append(term)
        term = parsed.next[name][bit]
    return None


def _parse(text: str) -> _Parsed | None:
    """Return what a module consists of; None if that is more than such registers."""
    head, _, body = text.partition(");\n")
    ports = {m[4]: (m[1], int(m[3] or 0) + 1) for m in _PORT.finditer(head)}
    registers: dict[str, int] = {
        m[4]: ports[m[4]][1] for m in _PORT.finditer(head) if m[2] == "reg"
    }
    for match in _REG.finditer(body):
        for declared in match[2].split(","):
            name, _, start = declared.strip().partition(" = ")
            if not re.fullmatch(r"\d+'h0+", start):
                return None
            registers[name] = int(match[1] or 0) + 1
    following = [m for block in _ALWAYS.finditer(body) for m in _NEXT.finditer(block[1])]
    left = body
    for pattern in (_ALWAYS, _REG, _WIRE, _ASSIGN):
        left = pattern.sub("", left)
    blocks = "".join(_NEXT.sub("", block[1]) for block in _ALWAYS.finditer(body))
    if left.strip() != "endmodule" or blocks.strip() or "aclk" not in ports:
        return None
    widths = {**{name: bits for name, (_, bits) in ports.items()}, **registers}
    reads: Counter[_Place] = Counter()

    def expression(value: str, width: int) -> list[_Place | str] | None:
        bits = _bits(value, width, widths)
        for bit in bits or ():
            reads.update([bit] if not isinstance(bit, str) else _mentioned(bit, widths))
        return bits

    taken = {m[1]: expression(m[2], registers.get(m[1], 0)) for m in following}
    given = {m[1]: expression(m[2], ports[m[1]][1]) for m in _ASSIGN.finditer(body)}
    computed = [m[0] for m in _WIRE.finditer(body)]
    for text_of_net in computed:
        reads.update(_mentioned(text_of_net, widths))
    if set(taken) != set(registers) or None in [*taken.values(), *given.values()]:
        return None
    return _Parsed(
        inputs={n: bits for n, (way, bits) in ports.items() if way == "input" and n != "aclk"},
        outputs={n: bits for n, (way, bits) in ports.items() if way == "output"},
        next={name: bits for name, bits in taken.items() if bits is not None},
        assigned={name: bits for name, bits in given.items() if bits is not None},
        rest=computed,
        reads=reads,
    )


def _bits(value: str, width: int, widths: dict[str, int]) -> list[_Place | str] | None:
    """Return an expression bit by bit, bit 0 first; None if it is wider than its parts tell."""
    value = " ".join(value.split())
    terms = _split(value[1:-1]) if value.startswith("{") and value.endswith("}") else [value]
    found: list[_Place | str] = []
    for term in reversed(terms):
        match = _TERM.fullmatch(term)
        if match is None or match[1] not in widths:
            found.append(term)  # of one bit, or the width below is wrong
            continue
        high = int(match[2]) if match[2] else widths[match[1]] - 1
        low = int(match[3]) if match[3] else high if match[2] else 0
        found += [(match[1], bit) for bit in range(low, high + 1)]
    return found if len(found) == width else None


def _split(terms: str) -> list[str]:
    """Return the terms of a concatenation; commas in brackets do not separate."""
    parts, depth = [""], 0
    for letter in terms:
        depth += (letter in "({[") - (letter in ")}]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _mentioned(text: str, widths: dict[str, int]) -> list[_Place]:
    """Return the bits that an expression reads, each twice: what is computed with ends a line."""
    found = []
    for match in _TERM.finditer(text):
        if match[1] in widths:
            high = int(match[2]) if match[2] else widths[match[1]] - 1
            low = int(match[3]) if match[3] else high if match[2] else 0
            found += [(match[1], bit) for bit in range(low, high + 1)] * 2
    return found


def _write(text: str, parsed: _Parsed, dropped: set[_Place], gone: set[_Place]) -> str:
    """Return the module without the registers `gone` and with 0 for the output bits `dropped`."""
    place = {
        name: {bit: i for i, bit in enumerate(b for b in range(len(bits)) if (name, b) not in gone)}
        for name, bits in parsed.next.items()
    }

    def moved(match: re.Match[str]) -> str:
        kept = place.get(match[1])
        if kept is None or len(kept) == len(parsed.next[match[1]]):
            return match[0]
        # What an expression reads is no line, so all of it is still there.
        high = int(match[2]) if match[2] else len(parsed.next[match[1]]) - 1
        low = int(match[3]) if match[3] else high if match[2] else 0
        bits = [f"{match[1]}[{kept[bit]}]" for bit in range(high, low - 1, -1)]
        return bits[0] if len(bits) == 1 else "{" + ", ".join(bits) + "}"

    def term(bit: _Place | str) -> str:
        if isinstance(bit, str):
            return _TERM.sub(moved, bit)
        name, number = bit
        if name in place:
            return f"{name}[{place[name][number]}]" if len(place[name]) > 1 else name
        wide = parsed.inputs.get(name, 1) > 1
        return f"{name}[{number}]" if wide else name

    def concatenated(bits: Iterable[_Place | str]) -> str:
        return "{" + ", ".join(term(bit) for bit in reversed(list(bits))) + "}"

    lines = [text.partition(");\n")[0] + ");"]
    kept = {name: bits for name, bits in place.items() if bits and name not in parsed.outputs}
    for name, bits in kept.items():
        lines.append(f"  reg [{len(bits) - 1}:0] {name} = {len(bits)}'h0;")
    lines += [_TERM.sub(moved, net) for net in parsed.rest]
    lines.append("  always @(posedge aclk) begin")
    for name, bits in place.items():
        if bits:
            lines.append(f"    {name} <= {concatenated(parsed.next[name][bit] for bit in bits)};")
    lines.append("  end")
    for name, terms in parsed.assigned.items():
        values = ["1'b0" if (name, i) in dropped else bit for i, bit in enumerate(terms)]
        lines.append(f"  assign {name} = {concatenated(values)};")
    return "\n".join([*lines, "endmodule", ""])
