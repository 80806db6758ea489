# SPDX-License-Identifier: Apache-2.0
"""Writes a simplified module as Verilog text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from itertools import groupby

from hdl.verilog_module import LINE, NAME, VerilogModule, compress

# A branch of a case statement: condition around it, signal, constant.
_BRANCH = re.compile(r"(?:(.*) && )?(\w+) == (\d+'h\w+)")


def write(module: VerilogModule) -> str:
    """Return the text of a module."""
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


def _write_header(module: VerilogModule) -> str:
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


def _write_nets(module: VerilogModule) -> list[str]:
    """Declare registers, then nets; a net that is assigned stands behind all it reads."""
    lines = []
    inner = {n: net for n, net in module.nets.items() if n not in module.ports}
    same: dict[str, list[str]] = {}
    for name in sorted((n for n in inner if n not in module.assigns), key=_natural):
        net = inner[name]
        init = f" = {net.init}" if net.init else ""
        same.setdefault(f"{net.kind} {net.range}".strip(), []).append(name + init)
    lines += [_wrap(f"  {kind} {', '.join(names)};") for kind, names in same.items()]
    done: set[str] = set()

    def visit(name: str) -> None:
        if name in done:
            return
        done.add(name)
        for read in NAME.findall(module.assigns[name]):
            if read in module.assigns and read not in module.ports:
                visit(read)
        net = inner[name]
        bits = " " + net.range if net.range else ""
        lines.append(_wrap(f"  wire{bits} {name} = {module.assigns[name]};"))

    for name in module.assigns:
        if name not in module.ports:
            visit(name)
    return lines


def _write_registers(module: VerilogModule) -> list[str]:
    """Write a block for registers of the same conditions, and one for those that have their own."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in _numbered(list(module.registers)):
        groups.setdefault(tuple(c for c, _ in module.registers[name].steps), []).append(name)
    shared, single = [], []
    for conditions, names in groups.items():
        lines = []
        for name in names:
            if module.registers[name].default:
                lines.append(_wrap(f"    {name} <= {module.registers[name].default};"))
        steps = [
            (condition, [f"{name} <= {module.registers[name].steps[i][1]};" for name in names])
            for i, condition in enumerate(conditions)
        ]
        for selector, branches in groupby(steps, lambda step: _selector(step[0])):
            lines += _write_steps(selector, list(branches))
        if len(names) > 1:
            shared += ["  always @(posedge aclk) begin\n", *lines, "  end\n"]
        else:
            single += lines
    if single:
        shared += ["  always @(posedge aclk) begin\n", *single, "  end\n"]
    return shared


def _selector(condition: str) -> tuple[str, str] | None:
    """Return what is around a branch of a case statement, and its signal; None for no branch."""
    branch = _BRANCH.fullmatch(condition)
    return (branch[1] or "", branch[2]) if branch else None


def _write_steps(
    selector: tuple[str, str] | None, steps: list[tuple[str, list[str]]]
) -> Iterator[str]:
    """Yield conditional assignments; a case statement where several have one selector."""
    if selector is None or len(steps) == 1:
        for condition, body in steps:
            yield from _block(4, f"if ({condition})", body)
        return
    around, signal = selector
    if around:
        yield f"    if ({around})\n"
    yield f"    {'  ' if around else ''}case ({signal})\n"
    for condition, body in steps:
        yield from _block(8 if around else 6, f"{condition.rpartition(' == ')[2]}:", body)
    yield f"      {'  ' if around else ''}default: ;\n"
    yield f"    {'  ' if around else ''}endcase\n"


def _block(indent: int, head: str, body: list[str]) -> Iterator[str]:
    margin = " " * indent
    if len(body) == 1:
        yield _wrap(f"{margin}{head} {body[0]}")
        return
    yield f"{margin}{head} begin\n"
    yield from (_wrap(f"{margin}  {line}") for line in body)
    yield f"{margin}end\n"


def _write_instances(module: VerilogModule) -> list[str]:
    lines = []
    for name in sorted(module.instances, key=_natural):
        kind, pins = module.instances[name]
        first = [p for p in ("aclk", "aresetn") if p in pins]
        line = "   "
        lines.append(f"  {kind} {name} (\n")
        order = first + [p for p in pins if p not in first]
        for pin in order:
            text = f" .{pin}({compress(pins[pin])})"
            text += "" if pin == order[-1] else ","
            if len(line) + len(text) > LINE and line.strip():
                lines.append(_wrap(line))
                line = "   "
            line += text
        lines += [_wrap(line), "  );\n"]
    return lines


def _wrap(line: str) -> str:
    """Return a line, with newline, broken where it is too long, but not around a `=`."""
    indent = len(line) - len(line.lstrip())
    rest = " " * (indent + 2)
    wrapped = textwrap.wrap(line.replace(" = ", "\0=\0"), LINE, subsequent_indent=rest)
    return "\n".join(wrapped).replace("\0", " ") + "\n"


def _write_outputs(module: VerilogModule) -> list[str]:
    return [
        _wrap(f"  assign {name} = {value};")
        for name, value in module.assigns.items()
        if name in module.ports
    ]


def _numbered(names: list[str]) -> list[str]:
    """Return the names in their order, but those that differ in a number alone by that number."""
    same: dict[str, list[str]] = {}
    for name in names:
        same.setdefault(re.sub(r"\d+", "0", name), []).append(name)
    ordered = {stem: iter(sorted(group, key=_natural)) for stem, group in same.items()}
    return [next(ordered[re.sub(r"\d+", "0", name)]) for name in names]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which col_10 comes behind col_2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
