# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from hdl import netlist_check, yosys
from hdl.families import FAMILIES
from hdl.gate_simulation import Memory, Stimuli

PE = """
module pe(input aclk, input [7:0] a, input signed [7:0] w, input signed [18:0] s,
          output reg signed [18:0] q);
  reg signed [8:0] held = 0;
  reg signed [16:0] product = 0;
  always @(posedge aclk) begin
    held <= {1'b0, a};
    product <= held * w;
    q <= s + product;
  end
endmodule
"""

# Two rows of a column whose sums are all declared 20 bits wide: a chain that Yosys is known to
# map wrongly to 7-series multipliers.
UNIFORM = """
module column(input aclk, input signed [7:0] a0, a1, b0, b1, output signed [19:0] q);
  reg signed [19:0] p0 = 0, p1 = 0;
  always @(posedge aclk) begin
    p0 <= a0 * b0;
    p1 <= p0 + a1 * b1;
  end
  assign q = p1;
endmodule
"""


def memory(words, width):
    address = (words - 1).bit_length() - 1
    return f"""
module store(input aclk, input [{address}:0] ra, wa, input we, re, input [{width - 1}:0] d,
             output reg [{width - 1}:0] q);
  reg [{width - 1}:0] words [{words - 1}:0];
  always @(posedge aclk) begin
    if (we) words[wa] <= d;
    if (re) q <= words[ra];
  end
endmodule
"""


def map_to(family, name, text, folder, has_memory=False):
    """Return the netlist that Yosys makes of one module."""
    (folder / "module.v").write_text(text)
    FAMILIES[family].prepare(folder)
    script = ["read_verilog module.v", *FAMILIES[family].script(name, has_memory)]
    yosys.run([*script, f"select {name}", "write_json -selected out.json"], folder, "map")
    return json.loads((folder / "out.json").read_text())["modules"][name]


def compare(family, name, text, netlist, folder):
    cells = {cell["type"] for cell in netlist["cells"].values()}
    return netlist_check.check(
        {name: netlist},
        {name: text},
        models=FAMILIES[family].simulation_models(cells),
        clocks=("aclk",),
        folder=folder,
    )[name]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["xc7", "xcup", "ecp5", "ice40", "gowin"])
def test_a_pe_agrees_and_a_broken_one_does_not(family, tmp_path):
    netlist = map_to(family, "pe", PE, tmp_path)
    kinds = {cell["type"] for cell in netlist["cells"].values()}
    assert kinds & {"DSP48E1", "DSP48E2", "MULT18X18D", "SB_LUT4", "ALU"}
    result = compare(family, "pe", PE, netlist, tmp_path)
    assert result.vectors == netlist_check.STREAMS * netlist_check.CYCLES
    assert result.bits == 19 * result.vectors

    # One wrong wire: the two lowest bits of the sum's input change places.
    bits = netlist["ports"]["s"]["bits"]
    bits[0], bits[1] = bits[1], bits[0]
    with pytest.raises(netlist_check.MismatchError, match=r"^netlist of pe differs from its RTL"):
        compare(family, "pe", PE, netlist, tmp_path)


def test_exchanged_wires_of_a_module_that_only_connects_are_seen(tmp_path):
    text = """
module pair(input aclk, input [3:0] a, output [3:0] q);
  wire [3:0] between;
  inner one (.aclk(aclk), .d(a), .q(between));
  inner two (.aclk(aclk), .d(between), .q(q));
endmodule
"""
    inner = "module inner(input aclk, input [3:0] d, output [3:0] q);\nendmodule\n"
    (tmp_path / "pair.v").write_text(text)
    (tmp_path / "inner.v").write_text(inner)
    script = ["read_verilog pair.v", "read_verilog -lib inner.v", "hierarchy -top pair", "proc"]
    yosys.run([*script, "opt_clean", "write_json out.json"], tmp_path, "read")
    netlist = json.loads((tmp_path / "out.json").read_text())["modules"]["pair"]

    def checked():
        return netlist_check.check(
            {"pair": netlist},
            {"pair": text, "inner": inner},
            models="",
            clocks=("aclk",),
            folder=tmp_path,
        )["pair"]

    assert 0 < checked().vectors < netlist_check.STREAMS * netlist_check.CYCLES
    bits = netlist["cells"]["two"]["connections"]["d"]
    bits[2], bits[3] = bits[3], bits[2]
    with pytest.raises(netlist_check.MismatchError, match=r"two\.d"):
        checked()


@pytest.mark.slow
def test_the_known_wrong_mapping_of_a_signed_chain_is_caught(tmp_path):
    netlist = map_to("xc7", "column", UNIFORM, tmp_path)
    with pytest.raises(netlist_check.MismatchError, match=r": q\[1[6-9]\]"):
        compare("xc7", "column", UNIFORM, netlist, tmp_path)


def test_a_memory_holds_what_was_written_in_each_stream():
    memory = Memory(size=8, width=3, init="x" * 24, streams=8)
    # Stream s writes s to address s; address and data bits are transposed alike.
    bits = [sum(((s >> i) & 1) << s for s in range(8)) for i in range(3)]
    memory.write(bits, bits, [0xFF] * 3)
    assert memory.read(bits) == bits
    memory.write(bits, [0xFF] * 3, [0b1] * 3)
    assert memory.read(bits) == [bit | 1 for bit in bits]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "words", "width", "kind"),
    [
        # Not a power of two: what a word beyond the depth holds is undefined.
        ("xc7", 300, 20, "RAMB18E1"),
        ("xcup", 300, 20, "RAMB18E2"),
        ("ecp5", 300, 36, "DP16KD"),
        ("gowin", 300, 36, "SDPX9B"),
        ("gowin", 300, 18, "DPX9B"),
        ("gowin", 2000, 4, "DPB"),
        ("xc7", 20, 8, "RAM32M"),
    ],
)
def test_memories_agree_and_a_broken_one_does_not(family, words, width, kind, tmp_path):
    text = memory(words, width)
    netlist = map_to(family, "store", text, tmp_path, has_memory=True)
    assert kind in {cell["type"] for cell in netlist["cells"].values()}
    assert compare(family, "store", text, netlist, tmp_path).bits > 0
    # Two wires of the read address change places.
    bits = netlist["ports"]["ra"]["bits"]
    bits[0], bits[1] = bits[1], bits[0]
    with pytest.raises(netlist_check.MismatchError):
        compare(family, "store", text, netlist, tmp_path)


@pytest.mark.slow
def test_a_cascade_of_block_ram_agrees_and_its_halves_are_told_apart(tmp_path):
    text = memory(65536, 1)
    netlist = map_to("xc7", "store", text, tmp_path, has_memory=True)
    blocks = [c for c in netlist["cells"].values() if c["type"] == "RAMB36E1"]
    assert {c["parameters"]["RAM_EXTENSION_A"] for c in blocks} == {"LOWER", "UPPER"}
    assert compare("xc7", "store", text, netlist, tmp_path).bits > 0
    for block in blocks:
        upper = block["parameters"]["RAM_EXTENSION_A"] == "UPPER"
        pin = block["connections"]["ADDRARDADDR"]
        if upper:
            pin[15] = "0"
    with pytest.raises(netlist_check.MismatchError):
        compare("xc7", "store", text, netlist, tmp_path)


def test_addresses_stay_within_the_depth():
    pins = [("", "at", i) for i in range(4)] + [("", "d", 0)]
    stimuli = Stimuli(pins, {"at": 10}, seed=1, streams=8)
    seen = set()
    for cycle in range(50):
        values = stimuli.next(cycle)
        for s in range(8):
            seen.add(sum((values["", "at", i] >> s & 1) << i for i in range(4)))
    assert max(seen) < 10
    assert len(seen) > 5
