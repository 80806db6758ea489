# SPDX-License-Identifier: Apache-2.0
"""From Yosys's Verilog to Verilog that reads as if it were written by hand.

Yosys writes a net for every operator and two `always` blocks for every register. The rewriting
here changes no name that Amaranth code gave, and no logic:

* a register's next-value block (``always @*``) becomes the clocked block itself, and registers
  with the same conditions share one block;
* a net without a name that is used once is written where it is used, if that place gives it the
  same width: one bit, a whole register, or a branch of a choice;
* declarations, port lists and instances take one line each where they can.

It knows the few forms that Yosys writes for trilat's modules, and refuses any other.
"""

from __future__ import annotations

import re

from hdl.verilog_module import LINE, NAME, VerilogModule, compress, parse, plain
from hdl.verilog_writer import write

_TEMPORARY = re.compile(r"\bnet_\d+\b")
# Operands, once parentheses are emptied: of one bit, of any width, of a comparison.
_BIT = r"(?:\w+(?:\[\d+\])?|1'h[01]|\(\))"
_WORD = r"(?:[\w\[\]:']+|\{[^{}]*\}|\(\))"
_SIDE = rf"(?:{_WORD}|\$signed\(\))"


def tidy(verilog: str) -> str:
    """Return the modules of Yosys's output, rewritten; ValueError for a form not known here."""
    verilog = re.sub(r"/\*.*?\*/\n", "", verilog)
    verilog = re.sub(r"\\(\S+) ", lambda m: plain(m[1]), verilog)
    verilog = re.sub(r"'h0+\b", "'h0", verilog)
    verilog = re.sub(r"'d(\d+)\b", lambda m: f"'h{int(m[1]):x}", verilog)
    modules = re.findall(r"^module .*?^endmodule\n", verilog, re.M | re.S)
    return "\n".join(write(_simplify(parse(text))) for text in modules)


def _simplify(module: VerilogModule) -> VerilogModule:
    for name, register in module.registers.items():
        register.default = "" if register.default == name else compress(register.default)
        register.steps = [(condition, compress(value)) for condition, value in register.steps]
    _name_memory_outputs(module)
    for name, value in module.assigns.items():
        module.assigns[name] = _widen_constant(module, compress(value))
    _drop_unused(module)
    if read := module.unread & _uses(module).keys():
        raise ValueError(f"{module.name}: part of {sorted(read)} is assigned")
    _open_unused_outputs(module)
    _inline(module)
    return module


def _name_memory_outputs(module: VerilogModule) -> None:
    """Give the output register of a memory the name of the port that it drives."""
    for name, value in list(module.assigns.items()):
        if re.fullmatch(r"_\d+_", value):
            del module.assigns[name]
            module.nets[name].kind = "reg"
            del module.nets[value]
            module.memories = [re.sub(rf"\b{value}\b", name, m) for m in module.memories]


def _widen_constant(module: VerilogModule, value: str) -> str:
    """Give the constant of an operation the width of its other operand."""
    match = re.fullmatch(r"(\w+) (==|<|\+|-) (\d+)'h(\w+)", value)
    if match is None:
        return value
    bits = module.nets[match[1]].range
    width = int(bits[1:].partition(":")[0]) + 1 if bits else 1
    return f"{match[1]} {match[2]} {max(width, int(match[3]))}'h{match[4]}"


def _texts(module: VerilogModule) -> list[str]:
    """Return every text that reads nets; conditions that registers share count once."""
    texts = list(module.assigns.values()) + module.memories
    conditions = set()
    for register in module.registers.values():
        texts += [register.default, *(value for _, value in register.steps)]
        conditions.add(tuple(condition for condition, _ in register.steps))
    texts += [condition for block in conditions for condition in block]
    texts += [pin for _, pins in module.instances.values() for pin in pins.values()]
    return texts


def _uses(module: VerilogModule) -> dict[str, int]:
    counts: dict[str, int] = {}
    for text in _texts(module):
        for name in NAME.findall(text):
            counts[name] = counts.get(name, 0) + 1
    return counts


def _drop_unused(module: VerilogModule) -> None:
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


def _open_unused_outputs(module: VerilogModule) -> None:
    """Leave open the instances' outputs that drive a net without a name and without a reader."""
    uses = _uses(module)
    for _, pins in module.instances.values():
        for pin, value in pins.items():
            if _TEMPORARY.fullmatch(value) and value not in module.assigns and uses[value] == 1:
                pins[pin] = ""
                del module.nets[value]


def _outside(value: str) -> str:
    """Return `value` with nothing left between its outermost parentheses."""
    depth, result = 0, []
    for part in re.split(r"([()])", value):
        depth -= part == ")"
        if depth == 0:
            result.append(part)
        depth += part == "("
    return "".join(result)


def _is_bit_expression(module: VerilogModule, value: str) -> bool:
    """Whether a value has one bit in any context: so parentheses can stand for its net."""

    def is_bit(text: str) -> bool:
        if text == "()":
            return True
        name = text.partition("[")[0]
        return "'" in text or "[" in text or (name in module.nets and module.nets[name].is_bit)

    outside = _outside(value)
    if re.fullmatch(rf"[|&] {_WORD}|{_SIDE} (?:==|!=|<|>|<=|>=) {_SIDE}", outside):
        return True
    logic = re.fullmatch(rf"(?:~ )?({_BIT})|({_BIT}) [&|^] ({_BIT})", outside)
    choice = re.fullmatch(rf"({_BIT}) +\? ({_BIT}) +: ({_BIT})", outside)
    match = logic or choice
    return match is not None and all(is_bit(g) for g in match.groups() if g)


def _inline(module: VerilogModule) -> None:
    changed = True
    while changed:
        changed = False
        uses = _uses(module)
        for name in list(module.assigns):
            value = module.assigns[name]
            if not _TEMPORARY.fullmatch(name):
                continue
            same = module.nets.get(value)
            if same is not None and same.range == module.nets[name].range:
                _rename(module, name, value)
            elif uses.get(name) != 1 or not _put_anywhere(module, name, value):
                continue
            del module.assigns[name], module.nets[name]
            changed = True


def _put_anywhere(module: VerilogModule, name: str, value: str) -> bool:
    if _put_in_register(module, name, value) or _put_in_choice(module, name, value):
        return True
    return _is_bit_expression(module, value) and _put(module, name, value)


def _put_in_register(module: VerilogModule, name: str, value: str) -> bool:
    """Put `value` where `name` is all that a register takes, if both have the same width.

    The low bits of a sum, difference or product do not depend on the width it is computed in.
    """
    if len(value) > LINE:
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


def _put_in_choice(module: VerilogModule, name: str, value: str) -> bool:
    """Put a choice where `name` is the last branch of another one of the same width."""
    choice = rf"{_BIT} +\? {_WORD} +: "
    if re.fullmatch(rf"(?:{choice})+{_WORD}", _outside(value)) is None:
        return False
    net, outer = module.nets[name], re.compile(rf"(?:{choice})+{name}")
    for target, text in module.assigns.items():
        if module.nets[target].range == net.range and outer.fullmatch(_outside(text)):
            module.assigns[target] = text.removesuffix(name) + value
            return True
    for target, register in module.registers.items():
        if module.nets[target].range == net.range and outer.fullmatch(_outside(register.default)):
            register.default = register.default.removesuffix(name) + value
            return True
        for i, (condition, step) in enumerate(register.steps):
            if module.nets[target].range == net.range and outer.fullmatch(_outside(step)):
                register.steps[i] = (condition, step.removesuffix(name) + value)
                return True
    return False


def _put(module: VerilogModule, name: str, value: str) -> bool:
    """Put `value` where `name` is used, if that place gives it a context of one bit."""
    simple = re.fullmatch(r"\w+(\[\d+\])?", value) is not None
    inner = value if simple else f"({value})"
    whole = re.compile(rf"\b{name}\b(?!\[)")
    # An item of a concatenation, or what decides a choice.
    alone = re.compile(rf"[{{ ]{name}[,}}]|^{name} +\?")

    def placed(text: str) -> str:
        """Return the text with the value in it, or as it was."""
        new = whole.sub(lambda _: inner, text)
        takes = alone.search(text) or _is_bit_expression(module, text)
        if not takes or (len(new) > LINE and len(new) > len(text)):
            return text
        return value if new == inner else new

    for target, text in module.assigns.items():
        if whole.search(text):
            module.assigns[target] = placed(text)
            return module.assigns[target] != text
    found = False
    for register in module.registers.values():
        for i, (condition, step) in enumerate(register.steps):
            if whole.search(condition):
                new = value if condition == name else whole.sub(lambda _: inner, condition)
                register.steps[i] = (new, step)
                found = True
            elif whole.search(step) and placed(step) != step:
                register.steps[i] = (condition, placed(step))
                return True
        if whole.search(register.default) and placed(register.default) != register.default:
            register.default = placed(register.default)
            return True
    if found:
        return True
    for _, pins in module.instances.values():
        for pin, connected in pins.items():
            if connected == name:
                pins[pin] = value
                return True
    return False


def _rename(module: VerilogModule, name: str, new: str) -> None:
    """Use one net instead of another that is the same."""
    whole = re.compile(rf"\b{name}\b")
    for target, text in module.assigns.items():
        module.assigns[target] = whole.sub(new, text)
    module.memories = [whole.sub(new, text) for text in module.memories]
    for register in module.registers.values():
        register.default = whole.sub(new, register.default)
        register.steps = [(whole.sub(new, c), whole.sub(new, v)) for c, v in register.steps]
    for _, pins in module.instances.values():
        for pin, text in pins.items():
            pins[pin] = whole.sub(new, text)
