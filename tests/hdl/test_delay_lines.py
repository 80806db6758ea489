# SPDX-License-Identifier: Apache-2.0
"""Modules of delay lines, mapped with one line of each length, against the whole module."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest

from hdl import netlist_check, yosys
from hdl.config import AcceleratorConfig
from hdl.delay_lines import Copies, thin, widen
from hdl.families import FAMILIES
from hdl.gen import generate
from hdl.mapping import split_modules
from hdl.netlist import read_netlist
from hdl.timing import CLOCKS

LINE = "  reg [3:0] r = 4'h0;\n  always @(posedge aclk) begin\n    r <= d;\n  end\n"
SKEWS = ("trilat_activation_skew", "trilat_weight_skew", "trilat_deskew")


def skews(**fields):
    config = AcceleratorConfig(**{"act_bits": 3, "weight_bits": 4, **fields})
    texts = split_modules(generate(config))
    return {name: texts[name] for name in SKEWS if name in texts}


def mapped(texts, family, folder):
    """Return the netlists of modules mapped one by one, as Yosys JSON."""
    found = {}
    for name, text in texts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "module.v").write_text(text)
        FAMILIES[family].prepare(folder / name)
        script = ["read_verilog module.v", *FAMILIES[family].script(name, False)]
        yosys.run([*script, f"select {name}", "write_json -selected n.json"], folder / name, "map")
        found[name] = json.loads((folder / name / "n.json").read_text())["modules"][name]
    return found


def as_json(netlist, like):
    """Return a netlist as Yosys JSON, ports as those of `like`; its registers start at 0."""
    starts = [b for cell in netlist.cells if "FF" in cell.kind for (b,) in cell.outputs.values()]
    return {
        **like,
        "ports": {p: {**port, "bits": netlist.ports[p]} for p, port in like["ports"].items()},
        "netnames": {
            f"q{b}": {"hide_name": 1, "bits": [b], "attributes": {"init": "0"}} for b in starts
        },
        "cells": {
            f"c{number}": {
                "type": cell.kind,
                "parameters": dict(re.findall(r"(\w+)=(.*?)(?= \w+=|$)", cell.parameters)),
                "attributes": {},
                "port_directions": {
                    **dict.fromkeys(cell.inputs, "input"),
                    **dict.fromkeys(cell.outputs, "output"),
                },
                "connections": {**cell.inputs, **cell.outputs},
            }
            for number, cell in enumerate(netlist.cells)
        },
    }


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("xc7", {"rows": 3, "cols": 4}),
        ("xc7", {"rows": 35, "cols": 19, "act_sign": "unsigned"}),  # all kinds of shift registers
        ("xc7", {"rows": 2, "cols": 5, "dataflow": "os"}),
        ("ecp5", {"rows": 4, "cols": 3, "act_sign": "signed"}),
        ("gowin", {"rows": 3, "cols": 2}),
    ],
)
def test_a_widened_netlist_is_that_of_the_whole_module(family, fields, tmp_path):
    whole = skews(**fields)
    thinned = {name: thin(text) for name, text in whole.items()}
    assert all(copies for _, copies in thinned.values())
    narrow = mapped({name: text for name, (text, _) in thinned.items()}, family, tmp_path / "thin")
    wide = {name: widen(read_netlist(narrow[name], ()), thinned[name][1]) for name in whole}
    full = mapped(whole, family, tmp_path / "whole")
    for name, netlist in wide.items():
        expected = Counter(cell["type"] for cell in full[name]["cells"].values())
        del expected["$scopeinfo"]
        assert Counter(cell.kind for cell in netlist.cells) == expected, name
        assert len(narrow[name]["cells"]) < len(netlist.cells)
    # And it computes what the module does: simulated against its whole Verilog.
    kinds = {cell.kind for netlist in wide.values() for cell in netlist.cells}
    (tmp_path / "check").mkdir()
    checked = netlist_check.check(
        {name: as_json(netlist, narrow[name]) for name, netlist in wide.items()},
        whole,
        models=FAMILIES[family].simulation_models(kinds, collisions=False),
        clocks=CLOCKS,
        folder=tmp_path / "check",
    )
    assert all(result.bits for result in checked.values())


def test_a_line_in_the_wrong_place_is_seen(tmp_path):
    text = skews(rows=2, cols=3, dataflow="os")["trilat_weight_skew"]
    narrow_text, copies = thin(text)
    narrow = mapped({"trilat_weight_skew": narrow_text}, "xc7", tmp_path)["trilat_weight_skew"]
    (first, (one, end), (other, last), *rest) = copies[1].bits
    wrong = replace(copies[1], bits=(first, (one, last), (other, end), *rest))
    netlist = widen(read_netlist(narrow, ()), [copies[0], wrong, *copies[2:]])
    (tmp_path / "check").mkdir()
    with pytest.raises(netlist_check.MismatchError):
        netlist_check.check(
            {"trilat_weight_skew": as_json(netlist, narrow)},
            {"trilat_weight_skew": text},
            models=FAMILIES["xc7"].simulation_models({"FDRE", "SRL16E"}, collisions=False),
            clocks=CLOCKS,
            folder=tmp_path / "check",
        )


def module(body, ports="input wire aclk, input wire [3:0] d, output wire [3:0] q"):
    return f"module m (\n  {ports}\n);\n{body}endmodule\n"


def test_what_has_more_than_lines_is_left_as_it_is():
    text = module(LINE + "  assign q = r;\n")
    thinned, (kind,) = thin(text)
    assert kind == Copies(source="d", sink="q", stages=1, bits=((0, 0), (1, 1), (2, 2), (3, 3)))
    assert "reg [0:0] r" in thinned and "assign q = {1'b0, 1'b0, 1'b0, r}" in thinned
    for other in (
        module(LINE.replace("r <= d", "if (d[0]) r <= d") + "  assign q = r;\n"),
        module(LINE.replace("4'h0", "4'h5") + "  assign q = r;\n"),
        module(LINE + "  assign q = r ^ d;\n"),
        module(LINE + "  inner i (.a(r), .q(q));\n"),
        module("  assign q = d;\n"),
        module(LINE.replace("r <= d", "r <= {r[2:0], r[3]}") + "  assign q = r;\n"),
    ):
        assert thin(other) == (other, ())


def test_what_is_read_elsewhere_too_is_no_line_by_itself():
    body = (
        "  reg [3:0] r = 4'h0;\n  reg s = 1'h0;\n  always @(posedge aclk) begin\n"
        "    r <= d;\n    s <= (r[1] & d[2]);\n  end\n  assign q = {s, r[2:0]};\n"
    )
    # r[1] and d[2] are read by s as well, r[3] by nothing.
    assert thin(module(body)) == (module(body), ())
    _, (kind,) = thin(module(body.replace("r[1] & d[2]", "d[3] & d[3]")))
    assert kind.bits == ((0, 0), (1, 1), (2, 2))


def test_a_line_through_an_output_is_left_whole():
    ports = "input wire aclk, input wire [3:0] d, output reg [3:0] seen = 4'h0, output wire [3:0] q"
    body = LINE.replace("r <= d;", "seen <= d;\n    r <= seen;") + "  assign q = r;\n"
    assert thin(module(body, ports)) == (module(body, ports), ())


def test_an_expression_still_reads_what_it_read():
    body = (
        "  reg [3:0] r = 4'h0;\n  reg s = 1'h0;\n  always @(posedge aclk) begin\n"
        "    r <= d;\n    s <= (|r[3:2]);\n  end\n  assign q = {s, s, r[1:0]};\n"
    )
    thinned, (kind,) = thin(module(body))
    assert kind.bits == ((0, 0), (1, 1))
    assert "reg [2:0] r" in thinned and "(|{r[2], r[1]})" in thinned


def test_a_row_of_other_primitives_cannot_be_widened():
    _, copies = thin(module(LINE + "  assign q = r;\n"))
    netlist = read_netlist(
        {
            "ports": {
                "d": {"direction": "input", "bits": [2, 3, 4, 5]},
                "q": {"direction": "output", "bits": [6, "0", "0", "0"]},
            },
            "cells": {},
        },
        (),
    )
    with pytest.raises(ValueError, match="no row of primitives"):
        widen(netlist, copies)
