# SPDX-License-Identifier: Apache-2.0
"""What only the whole shows: by hand, and as Yosys finds it in the flat netlist."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest

from hdl import yosys
from hdl.borders import changes
from hdl.config import AcceleratorConfig
from hdl.families import FAMILIES
from hdl.gen import generate
from hdl.mapping import below, instances, split_modules, whole_pes
from hdl.netlist import Cell, Netlist, read_netlist
from hdl.registers import CORE

XC7 = FAMILIES["xc7"]
CLOCK = 2


def register(data, out, *, enable="1", reset="0"):
    """Return a register on net 2."""
    pins = {"C": [CLOCK], "CE": [enable], "D": [data], "R": [reset]}
    return Cell(kind="FDRE", parameters="", inputs=pins, outputs={"Q": [out]})


def lut(inputs, out):
    """Return a LUT."""
    pins = {f"I{i}": [bit] for i, bit in enumerate(inputs)}
    return Cell(kind=f"LUT{len(inputs)}", parameters="", inputs=pins, outputs={"O": [out]})


def shift(stages, data, out):
    """Return a shift register of fixed length, up to 16."""
    address = {f"A{i}": [str((stages - 1) >> i & 1)] for i in range(4)}
    pins = {"CLK": [CLOCK], "CE": ["1"], "D": [data], **address}
    return Cell(kind="SRL16E", parameters="", inputs=pins, outputs={"Q": [out]})


def netlist(ports, inputs, cells, children=()):
    """Return a module; `ports` name -> nets."""
    return Netlist(
        ports={"clk": [CLOCK], **ports},
        inputs=("clk", *inputs),
        cells=tuple(cells),
        children=tuple((name, {"clk": [CLOCK], **pins}) for name, pins in children),
    )


def found(modules):
    """Return the changes of a hand-made design."""
    result = changes(modules, "top", XC7.shift_register)
    return result.unread, result.equal, result.chained, result.ends


def test_what_nothing_reads_goes_with_all_that_it_alone_needs():
    leaf = netlist(
        {"a": [3], "q": [5], "r": [6]}, ["a"], [lut([3], 4), register(4, 5), register(3, 6)]
    )
    # q of the second leaf is not connected, r of both is read.
    children = [("leaf", {"a": [3], "q": [4], "r": [5]}), ("leaf", {"a": [6], "r": [7]})]
    top = netlist({"x": [3], "y": [6], "o": [4, 5, 7]}, ["x", "y"], [], children)
    unread, equal, chained, _ = found({"leaf": leaf, "top": top})
    assert unread == {"FDRE": -1, "LUT1": -1}
    assert equal == chained == {}


def test_equal_registers_are_followed_from_module_to_module():
    # Two kinds of leaf, each: p = reg(a), q = lut(p, b), and a loop that stays.
    cells = [register(3, 5), lut([5, 4], 6), lut([5, 8], 7), register(7, 8)]
    one = netlist({"a": [3], "b": [4], "p": [5], "q": [6], "s": [8]}, ["a", "b"], cells)
    two = replace(one, cells=(*one.cells, lut([3, 4], 9)))
    both = {"a": [3], "b": [4]}
    children = [
        ("one", {**both, "p": [10], "q": [11], "s": [30]}),
        ("two", {**both, "p": [12], "q": [13], "s": [31]}),
        # What the two give is equal, so these are too.
        ("one", {"a": [11], "b": [10], "p": [14], "q": [15], "s": [32]}),
        ("two", {"a": [13], "b": [12], "p": [16], "q": [17], "s": [33]}),
        # b is another net here: only the register is equal.
        ("one", {"a": [11], "b": [3], "p": [18], "q": [19], "s": [34]}),
    ]
    outputs = [*range(10, 20), *range(30, 35)]
    top = netlist({"x": [3], "y": [4], "o": outputs}, ["x", "y"], [], children)
    unread, equal, _, _ = found({"one": one, "two": two, "top": top})
    assert equal == {"FDRE": -3, "LUT2": -2}
    assert unread == {"LUT2": -2}


def test_what_is_given_one_value_twice_merges_within_an_instance():
    # A sum of three bits, whose highest two may be one: their LUTs are then equal, and what is
    # behind them too, but not the two LUTs that ABC made of the same bit.
    cells = [
        register(6, 7), lut([3, 7], 10), lut([4, 7], 11), lut([5, 7], 12),
        register(11, 13), register(12, 14), lut([3, 7], 15),
    ]  # fmt: skip
    leaf = netlist({"s": [3, 4, 5], "p": [6], "q": [10, 13, 14, 15]}, ["s", "p"], cells)
    children = [
        ("leaf", {"s": [3, 4, 4], "p": [6], "q": [20, 21, 22, 23]}),
        ("leaf", {"s": [3, 4, 5], "p": [7], "q": [24, 25, 26, 27]}),
    ]
    top = netlist({"x": [3, 4, 5, 6, 7], "o": list(range(20, 28))}, ["x"], [], children)
    unread, equal, _, _ = found({"leaf": leaf, "top": top})
    assert equal == {"FDRE": -1, "LUT2": -1} and unread == {}
    # One of the two alone is read: it may be the one that is not kept.
    top = netlist({"x": [3, 4, 5, 6, 7], "o": [22]}, ["x"], [], children[:1])
    unread, equal, _, _ = found({"leaf": leaf, "top": top})
    assert equal == {"FDRE": -1, "LUT2": -1}
    assert unread == {"LUT2": -2}


def test_an_output_may_be_an_input_or_a_constant():
    leaf = netlist({"a": [3], "through": [3], "zero": ["0"], "q": [4]}, ["a"], [register(3, 4)])
    children = [
        ("leaf", {"a": [3], "through": [4], "zero": [5], "q": [6]}),
        ("leaf", {"a": [4], "q": [7]}),
        ("leaf", {"a": [5], "q": [8]}),
        ("leaf", {"a": ["0"], "q": [9]}),
    ]
    top = netlist({"x": [3], "o": [6, 7, 8, 9]}, ["x"], [], children)
    assert found({"leaf": leaf, "top": top})[1] == {"FDRE": -2}


@pytest.mark.parametrize(
    ("first", "last", "tap", "change"),
    [
        # 2 and 1 registers: three make a shift register.
        ([register(3, 5), register(5, 4)], register(3, 4), False, {"FDRE": -3, "SRL16E": 1}),
        ([register(3, 4)], register(3, 4), False, {}),
        ([shift(4, 3, 4)], register(3, 4), False, {"FDRE": -1}),
        ([register(3, 4)], shift(4, 3, 4), False, {"FDRE": -1}),
        ([shift(10, 3, 4)], shift(9, 3, 4), False, {"SRL16E": -2, "SRLC32E": 1}),
        # 16 + 1: one too many stays a register.
        ([shift(16, 3, 4)], register(3, 4), False, {}),
        # Read between them, reset, or not on the same enable.
        ([register(3, 5), register(5, 4)], register(3, 4), True, {}),
        ([register(3, 5), register(5, 4)], register(3, 4, reset=CLOCK), False, {}),
        ([register(3, 5), register(5, 4)], register(3, 4, enable=CLOCK), False, {}),
    ],
)
def test_registers_in_a_row(first, last, tap, change):
    modules = {
        "first": netlist({"a": [3], "q": [4]}, ["a"], first),
        "last": netlist({"a": [3], "q": [4]}, ["a"], [last]),
        "top": netlist(
            {"x": [3], "o": [5, 4] if tap else [5]},
            ["x"],
            [],
            [("first", {"a": [3], "q": [4]}), ("last", {"a": [4], "q": [5]})],
        ),
    }
    _, _, chained, ends = found(modules)
    assert chained == change
    made = bool(change) and last.kind == "FDRE"
    assert ends == ({"last"} if made else set())


LENGTHS = (*range(1, 36), 48, 49, 50, 64, 65, 66, 96, 97, 98, 127, 128, 129, 130, 131, 145, 160)


def test_shift_registers_of_all_lengths_are_as_yosys_makes_them(tmp_path):
    lines = []
    for n in LENGTHS:
        following = f"{{r[{n - 2}:0], d}}" if n > 1 else "d"
        lines.append(
            f"module m{n}(input clk, d, output q); reg [{n - 1}:0] r; assign q = r[{n - 1}];\n"
            f"always @(posedge clk) r <= {following};\nendmodule"
        )
    instances = "\n".join(f"m{n} i{n}(.clk(clk), .d(d), .q(q[{n}]));" for n in LENGTHS)
    lines.append(f"module top(input clk, d, output [200:0] q);\n{instances}\nendmodule")
    (tmp_path / "all.v").write_text("\n".join(lines))
    XC7.prepare(tmp_path)
    script = ["read_verilog all.v", *XC7.script("top", False)]
    script += ["select m*", "write_json -selected all.json"]
    yosys.run(script, tmp_path, "chains")
    modules = json.loads((tmp_path / "all.json").read_text())["modules"]
    for n in LENGTHS:
        made = Counter(cell["type"] for cell in modules[f"m{n}"]["cells"].values())
        assert made == Counter(XC7.shift_register(n)), n


def as_gate(cell):
    """Return a primitive as a gate of Yosys, which merges gates alone."""
    kind, pins = cell["type"], cell["connections"]
    if re.fullmatch(r"LUT\d", kind):
        size = int(kind[3:])
        parameters = {"WIDTH": f"{size:032b}", "LUT": cell["parameters"]["INIT"]}
        pins = {"A": [pins[f"I{i}"][0] for i in range(size)], "Y": pins["O"]}
        kind = "$lut"
    elif kind == "INV":
        kind, parameters, pins = "$_NOT_", {}, {"A": pins["I"], "Y": pins["O"]}
    elif kind in ("FDRE", "FDSE"):
        given = {"C": pins["C"], "D": pins["D"], "Q": pins["Q"]}
        value, reset = (0, "R") if kind == "FDRE" else (1, "S")
        parameters = {}
        if pins[reset] != ["0"]:
            given |= {"E": pins["CE"], "R": pins[reset]}
            kind = f"$_SDFFE_PP{value}P_"
        elif pins["CE"] != ["1"]:
            given |= {"E": pins["CE"]}
            kind = "$_DFFE_PP_"
        else:
            kind = "$_DFF_P_"
        pins = given
    else:
        return cell
    directions = {pin: "output" if pin in ("Y", "Q") else "input" for pin in pins}
    return {
        **cell,
        "type": kind,
        "parameters": parameters,
        "port_directions": directions,
        "connections": pins,
    }


def as_primitive(cell):
    """Return the kind of primitive that a cell was before `as_gate`, or has become since."""
    kind = cell["type"]
    if kind == "$lut":
        return f"LUT{int(cell['parameters']['WIDTH'], 2)}"
    if kind == "$_NOT_":
        return "INV"
    if kind.startswith(("$_DFF", "$_SDFF")):
        return "FDSE" if "PP1P" in kind else "FDRE"
    # A module of the library, with its parameters.
    return kind.split("\\")[1] if kind.startswith("$paramod") else kind


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"rows": 3, "cols": 2, "protect": "clip"},
        {"rows": 2, "cols": 3, "dataflow": "os", "mult": "lut"},
        {"rows": 2, "cols": 4, "mult": "dsp", "dsp_pack": 2},
        {"rows": 2, "cols": 4, "dataflow": "os", "mult": "dsp", "dsp_pack": 2},
    ],
    ids=str,
)
def test_a_core_changes_as_yosys_changes_it_when_it_is_flat(fields, tmp_path):
    """The same netlists, flattened, merged and swept by Yosys, have these primitives."""
    config = AcceleratorConfig(act_bits=4, weight_bits=3, max_k=64, psum_depth=16, **fields)
    texts = split_modules(generate(config))
    inside = below([CORE], instances(texts))
    (tmp_path / "all.v").write_text("\n".join(texts[name] for name in sorted(inside)))
    XC7.prepare(tmp_path)
    family = replace(XC7, synth=f"{XC7.synth} -nosrl")
    script = ["read_verilog all.v", *family.script(CORE, True)]
    script += ["select trilat_*", "write_json -selected tree.json"]
    yosys.run(script, tmp_path, "map")
    tree = json.loads((tmp_path / "tree.json").read_text())["modules"]
    gates = {name: {**module, "cells": {n: as_gate(c) for n, c in module["cells"].items()}}
             for name, module in tree.items()}  # fmt: skip
    (tmp_path / "gates.json").write_text(json.dumps({"modules": gates}))
    script = [XC7.read_cells, "read_json gates.json", f"hierarchy -check -top {CORE}"]
    # What is equal within a module is not what is looked for.
    script += ["opt_merge", "select trilat_*", "write_json -selected merged.json", "select -clear"]
    script += ["flatten", "opt_merge", "opt_clean", "opt_merge", "opt_clean"]
    script += ["xilinx_srl -fixed -minlen 3", "techmap -map +/xilinx/cells_map.v", "clean"]
    script += [f"select {CORE}", "write_json -selected flat.json"]
    yosys.run(script, tmp_path, "whole")
    merged = json.loads((tmp_path / "merged.json").read_text())["modules"]
    netlists = {name: read_netlist(tree[name], inside) for name in inside}

    def count(name):
        kinds = [as_primitive(cell) for cell in merged[name]["cells"].values()]
        total = Counter(kind for kind in kinds if kind not in inside)
        for child, _ in netlists[name].children:
            total.update(count(child))
        return total

    composed = count(CORE)
    del composed["$scopeinfo"]
    result = changes(netlists, CORE, XC7.shift_register)
    for part in (result.unread, result.equal, result.chained):
        assert part
        composed.update(part)
    flat = json.loads((tmp_path / "flat.json").read_text())["modules"][CORE]
    whole = Counter(as_primitive(cell) for cell in flat["cells"].values())
    del whole["$scopeinfo"]
    assert {kind: n for kind, n in composed.items() if n} == whole


def test_a_pe_takes_in_what_is_below_it():
    texts = {
        "trilat_pe_a": "module trilat_pe_a();\n  inner x ();\nendmodule\n",
        "inner": "module inner();\n  deeper y ();\nendmodule\n",
        "deeper": "module deeper();\nendmodule\n",
        "column": "module column();\n  trilat_pe_a p ();\nendmodule\n",
    }
    mapped, inside = whole_pes(texts)
    assert list(mapped) == ["trilat_pe_a", "column"]
    assert sorted(inside) == ["deeper", "inner"]
    with pytest.raises(ValueError, match="inner"):
        whole_pes({**texts, "other": "module other();\n  inner z ();\nendmodule\n"})
