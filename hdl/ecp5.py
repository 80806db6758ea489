# SPDX-License-Identifier: Apache-2.0
"""Modules of a PE in the primitives of the ECP5, for what Yosys leaves unused of them.

Each takes the place of the emitted module of the same name and interface, and computes the same,
cycle by cycle (`hdl.netlist_check` compares them, with models of the primitives).

- Yosys maps `*` to MULT18X18D without its registers: the product crosses the fabric to flip-flops
  before it is held, on the longest path of the whole array. Here it is held in the block.
- Of the four inputs of a bit of carry logic Yosys uses two. Here the accumulator's has a third:
  whether what is added to is 0, the choice for which a bit takes a table of its own otherwise.
- A multiplier in lookup tables is a tree of adders whose bits take all four: they multiply two
  rows bit by bit and add them, so that no table stands before an adder, and few adders in a row.
"""

from __future__ import annotations

import re

from hdl.ecp5_tables import table_multiplier

_BLOCK = """\
// The product in a multiplier block of the ECP5, with its output register.
module trilat_multiplier (
  input  wire aclk,
  input  wire [{act_top}:0] {act},
  input  wire [{weight_top}:0] weight,
  output wire [{product_top}:0] product
);
  // At the top of the block's operands: a constant below costs no wire, a long sign would.
  wire [17:0] a = {{{operand}, {act_rest}'b0}};
  wire [17:0] b = {{weight, {weight_rest}'b0}};
  wire [35:0] p;
  assign product = p[{high}:{low}];
  MULT18X18D #(
    .REG_OUTPUT_CLK("CLK0"), .REG_OUTPUT_CE("CE0"), .REG_OUTPUT_RST("RST0")
  ) block (
    .CLK0(aclk), .CE0(1'b1), .RST0(1'b0),
    .SIGNEDA(1'b1), .SIGNEDB(1'b1), .SOURCEA(1'b0), .SOURCEB(1'b0),
{pins}
  );
endmodule
"""

_ACCUMULATOR = """\
// A sum of products in the carry logic of the ECP5.
module trilat_accumulator (
  input  wire aclk,
  input  wire valid,
  input  wire first,
  input  wire [{product_top}:0] product,
  output reg  [{top}:0] acc = {bits}'h0
);
  wire [{pairs_top}:0] a = {{{{{rest}{{product[{product_top}]}}}}, product}};
  wire [{pairs_top}:0] b = {so_far};
  wire [{pairs_top}:0] sum;
  wire [{carries}:0] carry;
  assign carry[0] = 1'b0;
  genvar i;
  generate
    for (i = 0; i < {carries}; i = i + 1) begin : pair
      // a ^ (b & ~first) propagates; where that is 0, the carry is a.
      CCU2C #(
        .INIT0(16'hA6AA), .INIT1(16'hA6AA), .INJECT1_0("NO"), .INJECT1_1("NO")
      ) add (
        .CIN(carry[i]), .COUT(carry[i+1]),
        .A0(a[2*i]), .B0(b[2*i]), .C0(first), .D0(1'b1), .S0(sum[2*i]),
        .A1(a[2*i+1]), .B1(b[2*i+1]), .C1(first), .D1(1'b1), .S1(sum[2*i+1])
      );
    end
  endgenerate
  always @(posedge aclk) if (valid) acc <= sum[{top}:0];
endmodule
"""


def in_primitives(name: str, text: str) -> str:
    """Return Verilog of a module in primitives of the ECP5, or `text` where there is no such.

    Args:
        name: of the module.
        text: as emitted. A multiplier of several products at a time stays: they are wider than a
            block.
    """
    ports = re.findall(r"^\s*(?:in|out)put\s+\w+\s+(?:\[(\d+):0\] )?(\w+)", text, flags=re.M)
    bits = {port: int(top or 0) + 1 for top, port in ports}
    if name == "trilat_multiplier" and "product" in bits:
        build = _block_multiplier if " * " in text else table_multiplier
        return build(bits, "act" if "act" in bits else "unsigned_act")
    if name == "trilat_accumulator":
        return _accumulator(bits)
    return text


def _block_multiplier(bits: dict[str, int], act: str) -> str:
    is_unsigned = act == "unsigned_act"
    act_rest = 18 - bits[act] - is_unsigned
    weight_rest = 18 - bits["weight"]
    low = act_rest + weight_rest
    pins = [f".{name.upper()}{i}({name}[{i}])" for name, n in (("a", 18), ("b", 18), ("p", 36))
            for i in range(n)]  # fmt: skip
    return _BLOCK.format(
        act=act,
        act_top=bits[act] - 1,
        weight_top=bits["weight"] - 1,
        product_top=bits["product"] - 1,
        operand=f"1'b0, {act}" if is_unsigned else act,
        act_rest=act_rest,
        weight_rest=weight_rest,
        high=low + bits["product"] - 1,
        low=low,
        pins=",\n".join("    " + ", ".join(pins[i : i + 6]) for i in range(0, len(pins), 6)),
    )


def _accumulator(bits: dict[str, int]) -> str:
    acc, product = bits["acc"], bits["product"]
    pairs = -(-acc // 2)
    return _ACCUMULATOR.format(
        product_top=product - 1,
        top=acc - 1,
        bits=acc,
        pairs_top=2 * pairs - 1,
        rest=2 * pairs - product,
        so_far="acc" if acc % 2 == 0 else "{1'b0, acc}",
        carries=pairs,
    )
