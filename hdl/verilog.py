# SPDX-License-Identifier: Apache-2.0
"""From Yosys's Verilog to Verilog that reads as if it were written by hand.

Yosys writes a net for every operator and two `always` blocks for every register. The rewriting
here changes no name that Amaranth code gave, and no logic:

* a register's next-value block (``always @*``) becomes the clocked block itself, and registers
  with the same conditions share one block;
* a one-bit net without a name that is used once is written where it is used;
* declarations, port lists and instances take one line each where they can.

It knows the few forms that Yosys writes for trilat's modules, and refuses any other.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field

_LINE = 100
_NAME = re.compile(r"\b[A-Za-z_]\w*\b")
_TEMPORARY = re.compile(r"\bnet_\d+\b")
_BIT = r"(?:\w+(?:\[\d+\])?|1'h[01]|\([^()]*(?:\([^()]*(?:\([^()]*\)[^()]*)*\)[^()]*)*\))"


@dataclass
class _Net:
    """A declared net or register."""

    kind: str
    range: str = ""
    init: str = ""

    @property
    def is_bit(self) -> bool:
        return self.range == ""


@dataclass
class _Register:
    """Assignments of one register: its default, and ``(condition, value)`` in ascending order."""

    default: str
    steps: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Module:
    name: str
    ports: dict[str, str] = field(default_factory=dict)
    nets: dict[str, _Net] = field(default_factory=dict)
    assigns: dict[str, str] = field(default_factory=dict)
    registers: dict[str, _Register] = field(default_factory=dict)
    memories: list[str] = field(default_factory=list)
    instances: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)


def tidy(verilog: str) -> str:
    """Return the modules of Yosys's output, rewritten; ValueError for a form not known here."""
    verilog = re.sub(r"/\*.*?\*/\n", "", verilog)
    verilog = re.sub(r"\\(\S+) ", lambda m: _plain(m[1]), verilog)
    verilog = re.sub(r"'h0+\b", "'h0", verilog)
    modules = re.findall(r"^module .*?^endmodule\n", verilog, re.M | re.S)
    return "\n".join(_write(_simplify(_parse(text))) for text in modules)


def _plain(name: str) -> str:
    """Return an ordinary identifier for an escaped one."""
    if re.fullmatch(r"\$\d+", name):
        return f"net_{name[1:]}"
    return re.sub(r"\W", "_", name).strip("_")


def _parse(text: str) -> _Module:
    header = re.match(r"module (\w+)\((.*?)\);\n", text, re.S)
    assert header is not None
    module = _Module(name=header[1], ports={p.strip(): "" for p in header[2].split(",")})
    following: dict[str, _Register] = {}
    clocked: list[tuple[str, str]] = []
    forms: list[tuple[str, str]] = [
        ("instance", r"  (trilat_\w+) (\w+) \(\n(.*?)\n  \);\n"),
        ("memory", r"  reg (\[\S+\]) (\w+) (\[\S+\]);\n"),
        ("net", r"  (input|output|wire|reg) (?:(\[\S+\]) )?(\w+)(?: = ([^;\n]*))?\s*;\n"),
        ("assign", r"  assign (\w+) = ([^;]*?)\s*;\n"),
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
        elif form == "next":
            name, register = _parse_next(match[1])
            following[name] = register
        elif form == "clocked":
            clocked.append((match[1], match[2]))
        else:
            module.memories.append(match[0])
    for name, value in clocked:
        module.registers[name] = following.get(value, _Register(default=value))
    for name in following:
        del module.nets[name]
    return module


def _declare(module: _Module, kind: str, bits: str, name: str, init: str) -> None:
    if kind in ("input", "output"):
        module.ports[name] = kind
    elif "dump_module" not in name:
        module.nets[name] = _Net(kind=kind, range=bits, init=init.strip())


def _parse_next(body: str) -> tuple[str, _Register]:
    """Read ``next = default; if (condition) begin next = value; end ...``, nested or not."""
    lines = [line.strip() for line in body.splitlines()]
    name, default = _split(lines[0])
    register = _Register(default=default)
    conditions: list[str] = []
    for line in lines[1:]:
        if line == "end":
            conditions.pop()
        elif line.startswith("if ("):
            conditions.append(line.removeprefix("if (").removesuffix(") begin").strip())
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


def _simplify(module: _Module) -> _Module:
    for name, register in module.registers.items():
        register.default = "" if register.default == name else _compress(register.default)
    _name_memory_outputs(module)
    for name, value in module.assigns.items():
        module.assigns[name] = _widen_constant(module, _compress(value))
    _drop_unused(module)
    _open_unused_outputs(module)
    _inline(module)
    return module


def _name_memory_outputs(module: _Module) -> None:
    """Give the output register of a memory the name of the port that it drives."""
    for name, value in list(module.assigns.items()):
        if re.fullmatch(r"_\d+_", value):
            del module.assigns[name]
            module.nets[name].kind = "reg"
            del module.nets[value]
            module.memories = [re.sub(rf"\b{value}\b", name, m) for m in module.memories]


def _widen_constant(module: _Module, value: str) -> str:
    """Give the constant of an operation the width of its other operand."""
    match = re.fullmatch(r"(\w+) (==|<|\+|-) (\d+)'h(\w+)", value)
    if match is None:
        return value
    bits = module.nets[match[1]].range
    width = int(bits[1:].partition(":")[0]) + 1 if bits else 1
    return f"{match[1]} {match[2]} {max(width, int(match[3]))}'h{match[4]}"


def _compress(value: str) -> str:
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


def _texts(module: _Module) -> list[str]:
    """Return every text that reads nets."""
    texts = list(module.assigns.values()) + module.memories
    for register in module.registers.values():
        texts.append(register.default)
        texts += [text for step in register.steps for text in step]
    texts += [pin for _, pins in module.instances.values() for pin in pins.values()]
    return texts


def _uses(module: _Module) -> dict[str, int]:
    counts: dict[str, int] = {}
    for text in _texts(module):
        for name in _NAME.findall(text):
            counts[name] = counts.get(name, 0) + 1
    return counts


def _drop_unused(module: _Module) -> None:
    while True:
        uses = _uses(module)
        dead = [n for n in module.assigns if n not in module.ports and not uses.get(n)]
        if not dead:
            break
        for name in dead:
            del module.assigns[name]
    for name in [n for n in module.nets if n not in module.ports]:
        if name not in uses and name not in module.assigns and name not in module.registers:
            del module.nets[name]


def _open_unused_outputs(module: _Module) -> None:
    """Leave open the instances' outputs that drive a net without a name and without a reader."""
    uses = _uses(module)
    for _, pins in module.instances.values():
        for pin, value in pins.items():
            if _TEMPORARY.fullmatch(value) and value not in module.assigns and uses[value] == 1:
                pins[pin] = ""
                del module.nets[value]


def _is_bit_expression(module: _Module, value: str) -> bool:
    """Whether a value has one bit in any context: so parentheses can stand for its net."""

    def is_bit(text: str) -> bool:
        if text.startswith("("):
            return True
        name = text.partition("[")[0]
        return "'" in text or "[" in text or (name in module.nets and module.nets[name].is_bit)

    if re.search(r"\$signed|[{}]", value):
        return False
    if re.fullmatch(r"[|&] [\w\[\]:]+|\S+ (?:==|!=|<|>|<=|>=) \S+", value):
        return True
    logic = re.fullmatch(rf"(?:~ )?({_BIT})|({_BIT}) [&|^] ({_BIT})", value)
    mux = re.fullmatch(rf"({_BIT}) +\? ({_BIT}) +: ({_BIT})", value)
    match = logic or mux
    return match is not None and all(is_bit(g) for g in match.groups() if g)


def _inline(module: _Module) -> None:
    changed = True
    while changed:
        changed = False
        uses = _uses(module)
        for name in list(module.assigns):
            value = module.assigns[name]
            if not _TEMPORARY.fullmatch(name) or uses.get(name) != 1:
                continue
            bit = _is_bit_expression(module, value)
            if _put_in_register(module, name, value) or (bit and _put(module, name, value)):
                del module.assigns[name], module.nets[name]
                changed = True


def _put_in_register(module: _Module, name: str, value: str) -> bool:
    """Put `value` where `name` is all that a register takes, if both have the same width.

    The low bits of a sum, difference or product do not depend on the width it is computed in.
    """
    if len(value) > _LINE - 30:
        return False
    net = module.nets[name]
    arithmetic = re.fullmatch(r"[^?]+ [-+*] [^?]+", value) is not None
    for target, register in module.registers.items():
        goal = module.nets[target]
        forms = {name} if net.range == goal.range else set()
        if arithmetic:
            forms.add(f"{name}{goal.range}" if goal.range else f"{name}[0]")
        if register.default in forms:
            register.default = value
            return True
        for i, (condition, step) in enumerate(register.steps):
            if step in forms:
                register.steps[i] = (condition, value)
                return True
    return False


def _put(module: _Module, name: str, value: str) -> bool:
    """Put `value` where `name` is used, if that place gives it a context of one bit."""
    simple = re.fullmatch(r"\w+(\[\d+\])?", value) is not None
    inner = value if simple else f"({value})"
    whole = re.compile(rf"\b{name}\b(?!\[)")
    for target, text in module.assigns.items():
        if whole.search(text):
            new = whole.sub(lambda _: inner, text)
            if _is_bit_expression(module, text) and len(new) < _LINE - 30:
                module.assigns[target] = new if new != inner else value
                return True
            return False
    for register in module.registers.values():
        for i, (condition, step) in enumerate(register.steps):
            if whole.search(condition):
                new = value if condition == name else whole.sub(lambda _: inner, condition)
                register.steps[i] = (new, step)
                return True
    for _, pins in module.instances.values():
        for pin, connected in pins.items():
            if connected == name:
                pins[pin] = value
                return True
    return False


def _write(module: _Module) -> str:
    text = "".join(
        [
            _write_header(module),
            *_write_nets(module),
            *module.memories,
            *_write_registers(module),
            *_write_instances(module),
            *_write_outputs(module),
            "endmodule\n",
        ]
    )
    # Unary operators stand close to their operand.
    return re.sub(r"(?<=[(=?:{] )([~|&]) |(?<=[(!])([~|&]) ", lambda m: m[1] or m[2], text)


def _write_header(module: _Module) -> str:
    first = [p for p in ("aclk", "aresetn") if p in module.ports]
    names = first + [p for p in module.ports if p not in first]
    width = max(len(module.nets[n].range) for n in names)
    lines = []
    for name in names:
        net = module.nets[name]
        init = f" = {net.init}" if net.init else ""
        space = f" {net.range:>{width}}" if width else ""
        lines.append(f"  {module.ports[name]:<6} {net.kind:<4}{space} {name}{init}")
    return f"module {module.name} (\n" + ",\n".join(lines) + "\n);\n"


def _write_nets(module: _Module) -> list[str]:
    """Declare registers, then nets; a net that is assigned stands behind all it reads."""
    lines = []
    inner = {n: net for n, net in module.nets.items() if n not in module.ports}
    same: dict[str, list[str]] = {}
    for name in sorted((n for n in inner if n not in module.assigns), key=_natural):
        net = inner[name]
        kind = f"{net.kind} {net.range}".strip()
        if net.init:
            lines.append(f"  {kind} {name} = {net.init};\n")
        else:
            same.setdefault(kind, []).append(name)
    lines += [_wrap(f"  {kind} {', '.join(names)};") for kind, names in same.items()]
    done: set[str] = set()

    def visit(name: str) -> None:
        if name in done:
            return
        done.add(name)
        for read in _NAME.findall(module.assigns[name]):
            if read in module.assigns and read not in module.ports:
                visit(read)
        net = inner[name]
        bits = " " + net.range if net.range else ""
        lines.append(_wrap(f"  wire{bits} {name} = {module.assigns[name]};"))

    for name in module.assigns:
        if name not in module.ports:
            visit(name)
    return lines


def _write_registers(module: _Module) -> list[str]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, register in module.registers.items():
        groups.setdefault(tuple(c for c, _ in register.steps), []).append(name)
    lines = []
    for conditions, names in groups.items():
        lines.append("  always @(posedge aclk) begin\n")
        for name in names:
            if module.registers[name].default:
                lines.append(_wrap(f"    {name} <= {module.registers[name].default};"))
        for i, condition in enumerate(conditions):
            body = [f"{name} <= {module.registers[name].steps[i][1]};" for name in names]
            if len(body) == 1:
                lines.append(f"    if ({condition}) {body[0]}\n")
            else:
                lines.append(f"    if ({condition}) begin\n")
                lines += [f"      {line}\n" for line in body]
                lines.append("    end\n")
        lines.append("  end\n")
    return lines


def _write_instances(module: _Module) -> list[str]:
    lines = []
    for name in sorted(module.instances, key=_natural):
        kind, pins = module.instances[name]
        first = [p for p in ("aclk", "aresetn") if p in pins]
        line = "   "
        lines.append(f"  {kind} {name} (\n")
        order = first + [p for p in pins if p not in first]
        for pin in order:
            text = f" .{pin}({_compress(pins[pin])})"
            text += "" if pin == order[-1] else ","
            if len(line) + len(text) > _LINE and line.strip():
                lines.append(_wrap(line))
                line = "   "
            line += text
        lines += [_wrap(line), "  );\n"]
    return lines


def _wrap(line: str) -> str:
    """Return a line, with newline, broken behind commas where it is too long."""
    indent = len(line) - len(line.lstrip())
    rest = " " * (indent + 2)
    wrapped = textwrap.wrap(line, _LINE, subsequent_indent=rest)
    return "\n".join(wrapped) + "\n"


def _write_outputs(module: _Module) -> list[str]:
    return [
        _wrap(f"  assign {name} = {value};")
        for name, value in module.assigns.items()
        if name in module.ports
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which col_10 comes behind col_2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
