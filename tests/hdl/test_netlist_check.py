# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from hdl import netlist_check, yosys
from hdl.families import FAMILIES

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


def map_to(family, name, text, folder):
    """Return the netlist that Yosys makes of one module."""
    (folder / "module.v").write_text(text)
    FAMILIES[family].prepare(folder)
    script = ["read_verilog module.v", *FAMILIES[family].script(name, False)]
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
@pytest.mark.parametrize("family", ["xc7", "ecp5", "ice40"])
def test_a_pe_agrees_and_a_broken_one_does_not(family, tmp_path):
    netlist = map_to(family, "pe", PE, tmp_path)
    kinds = {cell["type"] for cell in netlist["cells"].values()}
    assert kinds & {"DSP48E1", "MULT18X18D", "SB_LUT4"}
    result = compare(family, "pe", PE, netlist, tmp_path)
    assert result.vectors == netlist_check.STREAMS * netlist_check.CYCLES
    assert result.bits == 19 * result.vectors

    # One wrong wire: the two lowest bits of the sum's input change places.
    bits = netlist["ports"]["s"]["bits"]
    bits[0], bits[1] = bits[1], bits[0]
    with pytest.raises(netlist_check.MismatchError, match=r"^netlist of pe differs from its RTL"):
        compare(family, "pe", PE, netlist, tmp_path)


@pytest.mark.slow
def test_the_known_wrong_mapping_of_a_signed_chain_is_caught(tmp_path):
    netlist = map_to("xc7", "column", UNIFORM, tmp_path)
    with pytest.raises(netlist_check.MismatchError, match=r": q\[1[6-9]\]"):
        compare("xc7", "column", UNIFORM, netlist, tmp_path)


def test_a_memory_holds_what_was_written_in_each_stream():
    memory = netlist_check._Memory(size=8, width=3, init="x" * 24, streams=8)
    # Stream s writes s to address s; address and data bits are transposed alike.
    bits = [sum(((s >> i) & 1) << s for s in range(8)) for i in range(3)]
    memory.write(bits, bits, [0xFF] * 3)
    assert memory.read(bits) == bits
    memory.write(bits, [0xFF] * 3, [0b1] * 3)
    assert memory.read(bits) == [bit | 1 for bit in bits]
