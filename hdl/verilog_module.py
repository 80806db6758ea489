# SPDX-License-Identifier: Apache-2.0
"""One module of Yosys's Verilog, taken apart.

It knows the few forms that Yosys writes for trilat's modules, and refuses any other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Longest line of the Verilog that is written.
LINE = 100
NAME = re.compile(r"\b[A-Za-z_]\w*\b")


@dataclass
class Net:
    """A declared net or register."""

    kind: str
    range: str = ""
    init: str = ""

    @property
    def is_bit(self) -> bool:
        """Whether it has one bit."""
        return self.range == ""


@dataclass
class Register:
    """Assignments of one register: its default, and ``(condition, value)`` in ascending order."""

    default: str
    steps: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class VerilogModule:
    """A module: every value is an expression in Verilog; ports are nets as well.

    Attributes:
        name: of the module.
        ports: name -> ``input`` or ``output``.
        nets: by name.
        assigns: net -> value.
        registers: by name.
        memories: declaration and always block of each, as text.
        instances: name -> (module, port -> value).
        unread: nets of which a part was assigned; nothing may read them.
    """

    name: str
    ports: dict[str, str] = field(default_factory=dict)
    nets: dict[str, Net] = field(default_factory=dict)
    assigns: dict[str, str] = field(default_factory=dict)
    registers: dict[str, Register] = field(default_factory=dict)
    memories: list[str] = field(default_factory=list)
    instances: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)


# No word is used that was read in the cycle of its writing (tests/sim/test_memories.py): tools need
# not build what gives the old one, which ECP5's block RAMs do not by themselves.
_MEMORY_ATTRIBUTE = "(* no_rw_check *)"


def plain(name: str) -> str:
    """Return an ordinary identifier for an escaped one."""
    if re.fullmatch(r"\$\d+", name):
        return f"net_{name[1:]}"
    return re.sub(r"\W", "_", name).strip("_")


def parse(text: str) -> VerilogModule:
    """Return a module of Yosys's Verilog; ValueError for a form not known here."""
    header = re.match(r"module (\w+)\((.*?)\);\n", text, re.S)
    assert header is not None
    module = VerilogModule(name=header[1], ports={p.strip(): "" for p in header[2].split(",")})
    following: dict[str, Register] = {}
    clocked: list[tuple[str, str]] = []
    forms: list[tuple[str, str]] = [
        ("instance", r"  (trilat_\w+) (\w+) \(\n(.*?)\n  \);\n"),
        ("memory", r"  reg (\[\S+\]) (\w+) (\[\S+\]);\n"),
        ("net", r"  (input|output|wire|reg) (?:(\[\S+\]) )?(\w+)(?: = ([^;\n]*))?\s*;\n"),
        ("assign", r"  assign (\w+) = ([^;]*?)\s*;\n"),
        # A sum whose highest bits nothing reads, and what is left of the wider one.
        ("assign", r"  assign \{ net_\d+\[[\d:]+\], (\w+) \} = ([^;]*?)\s*;\n"),
        ("unread", r"  assign (net_\d+)\[[\d:]+\] = \w+;\n"),
        ("next", r"  always @\* begin\n    if \(\w+\) begin end\n(.*?)\n  end\n"),
        ("clocked", r"  always @\(posedge aclk\)\n    (\w+) <= ([^;]*?)\s*;\n"),
        ("block", r"  always @\(posedge aclk\) begin\n.*?\n  end\n"),
    ]
    position, end = header.end(), text.rindex("endmodule")
    while position < end:
        matches = ((f, re.compile(p, re.S).match(text, position)) for f, p in forms)
        form, match = next(((f, found) for f, found in matches if found), ("", None))
        if match is None:
            raise ValueError(f"{module.name}: unknown form: {text[position : position + 120]!r}")
        position = match.end()
        if form == "instance":
            pins = re.findall(r"\.(\w+)\((.*?)\)(?:,|$)", match[3], re.M)
            module.instances[match[2]] = (match[1], {k: v.strip() for k, v in pins})
        elif form == "net":
            _declare(module, *match.groups(default=""))
        elif form == "assign":
            module.assigns[match[1]] = match[2]
        elif form == "unread":
            module.unread.add(match[1])
        elif form == "next":
            name, register = _parse_next(match[1])
            following[name] = register
        elif form == "memory":
            module.memories.append(match[0].replace("reg", f"{_MEMORY_ATTRIBUTE} reg", 1))
        elif form == "clocked":
            clocked.append((match[1], match[2]))
        else:
            module.memories.append(match[0])
    for name, value in clocked:
        module.registers[name] = following.get(value, Register(default=value))
    for name in following:
        del module.nets[name]
    return module


def _declare(module: VerilogModule, kind: str, bits: str, name: str, init: str) -> None:
    if kind in ("input", "output"):
        module.ports[name] = kind
    elif "dump_module" not in name:
        module.nets[name] = Net(kind=kind, range=bits, init=init.strip())


def _parse_next(body: str) -> tuple[str, Register]:
    """Read ``next = default; if (condition) begin next = value; end ...``, nested or not.

    A branch of a ``casez`` counts as a condition ``signal == constant``.
    """
    lines = [line.strip() for line in body.splitlines()]
    name, default = _split(lines[0])
    register = Register(default=default)
    conditions: list[str] = []
    for line in lines[1:]:
        if line in ("end", "endcase"):
            conditions.pop()
        elif line.startswith("if ("):
            conditions.append(line.removeprefix("if (").removesuffix(") begin").strip())
        elif line.startswith("casez ("):
            conditions.append(line.removeprefix("casez (").removesuffix(")").strip())
        elif re.fullmatch(r"\d+'\w+:", line):
            conditions[-1] = f"{conditions[-1].partition(' == ')[0]} == {line[:-1]}"
        else:
            target, value = _split(line)
            if target != name:
                raise ValueError(f"{target} is assigned in the block of {name}")
            register.steps.append((" && ".join(conditions), value))
    return name, register


def _split(statement: str) -> tuple[str, str]:
    target, found, value = statement.removesuffix(";").partition(" = ")
    if not found:
        raise ValueError(f"unknown statement: {statement!r}")
    return target.strip(), value.strip()


def compress(value: str) -> str:
    """Write equal neighbours in a concatenation as a replication."""

    def replicate(match: re.Match[str]) -> str:
        items = [item.strip() for item in match[1].split(",")]
        result, i = [], 0
        while i < len(items):
            count = 1
            while i + count < len(items) and items[i + count] == items[i]:
                count += 1
            if count > 2:
                result.append(f"{{{count}{{{items[i]}}}}}")
            else:
                result += [items[i]] * count
            i += count
        return result[0] if len(result) == 1 else f"{{{', '.join(result)}}}"

    return re.sub(r"\{([^{}]*)\}", replicate, value)
