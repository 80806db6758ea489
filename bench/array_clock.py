# SPDX-License-Identifier: Apache-2.0
"""The arrays that `bench.hardware` places and routes: trilat's and a plain one, each alone.

Alone means columns, skews and deskew as `bench.hardware` counts them: no streams, lanes, psum
memory, requantizer or AXI4-Lite. Paths through ports are not counted, and every input goes through
the register of a skew or of a PE first.
"""

from __future__ import annotations

from dataclasses import replace

from amaranth.hdl import Cat, Module, Value
from amaranth.lib.wiring import In, Member, Out

from hdl.array import ActivationSkew, Column, Deskew, WeightSkew
from hdl.config import AcceleratorConfig
from hdl.gen import emit
from hdl.module import Part, place
from hdl.os_array import OutputStationaryColumn

TOP = "trilat_array"
PLAIN_TOP = "plain_array"


class ArrayAlone(Part):
    """An array with its skews and deskew; what else a column takes and gives are ports."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.skews = ActivationSkew(config), WeightSkew(config)
        self.column = OutputStationaryColumn(config) if config.is_os else Column(config)
        self.deskew = None if config.is_os or config.col_groups == 1 else Deskew(config)
        members = self.column.signature.members
        # Between neighbours in a row of columns, besides the activations.
        self.waves = [n[:-3] for n in members if n.endswith("_in") and n[:-3] in members]
        self.waves.remove("act")
        ports: dict[str, Member | None] = {
            "acts": In(config.rows * config.act_bits),
            "weights": In(config.cols * config.weight_bits),
            "signed_in": In(1) if config.signs_travel else None,
            **{f"{n}_in": In(members[f"{n}_in"].shape) for n in self.waves},
            "psum": Out(config.col_groups * len(self.column.psum)),
        }
        parts = [*self.skews, self.column, *([self.deskew] if self.deskew else [])]
        super().__init__(TOP, ports, has_reset=False, parts=tuple(parts))

    def elaborate(self, platform: object) -> Module:
        """Connect the parts."""
        m = self.new_module()
        acts, weights = self.skews
        left = {n: getattr(self, f"{n}_in") for n in self.waves}
        sign = {"signed_in": self.signed_in} if self.config.signs_travel else {}
        left["act"] = place(self, m, "skew", acts, acts=self.acts, **sign)["act"]
        weight = place(self, m, "weight_skew", weights, weights=self.weights)["weight"]
        sums = []
        for group in range(self.config.col_groups):
            left = place(
                self,
                m,
                f"col_{group}",
                self.column,
                act_in=left["act"],
                weight_in=weight.word_select(group, len(self.column.weight_in)),
                **{f"{n}_in": left[n] for n in self.waves},
            )
            sums.append(left["psum"])
        psum: Value = Cat(sums)
        if self.deskew:
            psum = place(self, m, "deskew", self.deskew, psums=psum)["psum"]
        m.d.comb += self.psum.eq(psum)
        return m


def array_verilog(config: AcceleratorConfig) -> str:
    """Return the Verilog of an array alone, its top module `TOP`."""
    return emit(ArrayAlone(config))


def plain_verilog(config: AcceleratorConfig, pe: str, acc_bits: int) -> str:
    """Return the Verilog of a plain array behind the same skews, its top module `PLAIN_TOP`.

    Args:
        config: gives size, dataflow and the widths of the operands.
        pe: Verilog of the module ``plain_pe``.
        acc_bits: width of its sums.
    """
    rows, cols, act, weight = config.rows, config.cols, config.act_bits, config.weight_bits
    markers: tuple[str, ...]
    if config.is_os:
        down, loading, markers = "drain", "weight", ("valid", "first", "shift")
    else:
        down, loading, markers = "psum", "weight_loading", ("load", "swap")
    wires = {"act": act, loading: weight, down: acc_bits, **dict.fromkeys(markers, 1)}
    # The other markers, weights and sums travel down.
    sideways = {"act", "load"}
    declared = "\n".join(
        f"  wire signed [{bits - 1}:0] {name} [0:{rows}][0:{cols}];" for name, bits in wires.items()
    )
    pins = []
    for name in wires:
        source = f"{name}[r][c]"
        target = f"{name}[r][c+1]" if name in sideways else f"{name}[r+1][c]"
        entry = "weight" if name.startswith("weight") else name
        pins += [f".{entry}_in({source})", f".{name}({target})"]
    tops = "\n".join(f"    assign {m}[0][c] = {m}_in[c];" for m in markers if m not in sideways)
    lefts = "\n".join(f"    assign {m}[r][0] = {m}_in[r];" for m in markers if m in sideways)
    inputs = ", ".join(f"input [{(rows if m in sideways else cols) - 1}:0] {m}_in" for m in markers)
    text = f"""\
module {PLAIN_TOP} (
  input aclk, input [{rows * act - 1}:0] acts, input [{cols * weight - 1}:0] weights, {inputs},
  output [{cols * acc_bits - 1}:0] sums
);
{declared}
  wire [{rows * act - 1}:0] skewed;
  wire [{cols * weight - 1}:0] skewed_weights;
  trilat_activation_skew skew (.aclk(aclk), .acts(acts), .act(skewed));
  trilat_weight_skew weight_skew (.aclk(aclk), .weights(weights), .weight(skewed_weights));
  genvar r, c;
  generate
    for (r = 0; r < {rows}; r = r + 1) begin : left
    assign act[r][0] = skewed[r*{act} +: {act}];
{lefts}
    end
    for (c = 0; c < {cols}; c = c + 1) begin : top
    assign {loading}[0][c] = skewed_weights[c*{weight} +: {weight}];
    assign {down}[0][c] = 0;
{tops}
    assign sums[c*{acc_bits} +: {acc_bits}] = {down}[{rows}][c];
    end
    for (r = 0; r < {rows}; r = r + 1) begin : row
      for (c = 0; c < {cols}; c = c + 1) begin : col
        plain_pe pe (.aclk(aclk), {", ".join(pins)});
      end
    end
  endgenerate
endmodule
"""
    signed = replace(config, act_sign="signed")  # as the operands of a plain PE are
    parts = [emit(part) for part in (ActivationSkew(signed), WeightSkew(config))]
    return "\n".join([*parts, pe, text])
