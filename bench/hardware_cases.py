# SPDX-License-Identifier: Apache-2.0
"""The arrays of `bench.hardware`, their bars, and the plain PEs that they stand beside."""

from __future__ import annotations

from dataclasses import dataclass

from hdl.config import AcceleratorConfig

SIZE = 8

PLAIN_WS = """\
module plain_pe (
  input aclk, load_in, swap_in,
  input signed [{act}-1:0] act_in,
  input signed [{weight}-1:0] weight_in,
  input signed [{acc}-1:0] psum_in,
  output reg load, swap,
  output reg signed [{act}-1:0] act,
  output reg signed [{weight}-1:0] weight_loading,
  output reg signed [{acc}-1:0] psum
);
  reg signed [{weight}-1:0] weight_active;
  reg signed [{act}+{weight}-1:0] product;
  always @(posedge aclk) begin
    load <= load_in;
    swap <= swap_in;
    act <= act_in;
    if (load_in) weight_loading <= weight_in;
    if (swap_in) weight_active <= weight_loading;
    product <= act * weight_active;
    psum <= psum_in + product;
  end
endmodule
"""
PLAIN_OS = """\
module plain_pe (
  input aclk, valid_in, first_in, shift_in,
  input signed [{act}-1:0] act_in,
  input signed [{weight}-1:0] weight_in,
  input signed [{acc}-1:0] drain_in,
  output reg valid, first, shift,
  output reg signed [{act}-1:0] act,
  output reg signed [{weight}-1:0] weight,
  output reg signed [{acc}-1:0] drain
);
  reg signed [{act}+{weight}-1:0] product;
  reg signed [{acc}-1:0] acc;
  always @(posedge aclk) begin
    valid <= valid_in;
    first <= first_in;
    shift <= shift_in;
    act <= act_in;
    weight <= weight_in;
    product <= act * weight;
    if (valid) acc <= (first ? 0 : acc) + product;
    drain <= shift ? drain_in : acc;
  end
endmodule
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An array and its bars.

    Attributes:
        name: as printed.
        config: of the array.
        acc_bits: width of the plain array's sums.
        lut_bar, dsp_bar: family -> most LUTs, DSPs per PE.
        mhz_bar: least clock on ecp5 after routing; with one, the array is routed by ``--pnr``.
        quick: part of ``--quick``.
    """

    name: str
    config: AcceleratorConfig
    acc_bits: int
    lut_bar: dict[str, float]
    dsp_bar: dict[str, float]
    mhz_bar: float | None = None
    quick: bool = False


def cases() -> list[Case]:
    """Return the arrays of the table."""

    def config(dataflow: str, bits: int, mult: str, dsp_pack: int = 1) -> AcceleratorConfig:
        # The longest K for which an output-stationary array's sums have 24 or 16 bits.
        return AcceleratorConfig(
            dataflow=dataflow,
            rows=SIZE,
            cols=SIZE,
            act_bits=bits,
            weight_bits=bits,
            max_k=256,
            mult=mult,
            dsp_pack=dsp_pack,
        )

    return [
        Case(
            name="OS int8, LUT",
            config=config("os", 8, "lut"),
            acc_bits=24,
            lut_bar={"xc7": 120, "ecp5": 200},
            dsp_bar={},
            quick=True,
        ),
        Case(
            name="WS int8, LUT",
            config=config("ws", 8, "lut"),
            acc_bits=24,
            lut_bar={},
            dsp_bar={},
            quick=True,
        ),
        Case(
            name="OS int8, DSP",
            config=config("os", 8, "dsp"),
            acc_bits=24,
            lut_bar={},
            dsp_bar={"ecp5": 1},
            mhz_bar=140,
        ),
        Case(
            name="WS int8, DSP",
            config=config("ws", 8, "dsp"),
            acc_bits=24,
            lut_bar={},
            dsp_bar={"ecp5": 1},
        ),
        Case(
            name="WS int8, DSP, 2 columns each",
            config=config("ws", 8, "dsp", 2),
            acc_bits=24,
            lut_bar={},
            dsp_bar={"xc7": 0.5},
        ),
        Case(
            name="OS int8, DSP, 2 columns each",
            config=config("os", 8, "dsp", 2),
            acc_bits=24,
            lut_bar={},
            dsp_bar={"xc7": 0.5},
        ),
        Case(
            name="OS int4, LUT",
            config=config("os", 4, "lut"),
            acc_bits=16,
            lut_bar={"xc7": 40, "ecp5": 60},
            dsp_bar={},
            mhz_bar=180,
            quick=True,
        ),
        Case(
            name="WS int4, LUT",
            config=config("ws", 4, "lut"),
            acc_bits=16,
            lut_bar={"xc7": 40, "ecp5": 60},
            dsp_bar={},
            quick=True,
        ),
    ]


def plain_pe(case: Case) -> str:
    """Return the Verilog of the PE of a plain array."""
    return (PLAIN_OS if case.config.is_os else PLAIN_WS).format(
        act=case.config.act_bits, weight=case.config.weight_bits, acc=case.acc_bits
    )


def protected_designs() -> list[tuple[str, AcceleratorConfig, float | None]]:
    """Return name, unprotected 16x16 array and most LUTs that protection may add, in percent."""
    return [
        ("int8, LUT", AcceleratorConfig(mult="lut", bounds="layer"), 3.0),
        ("int8, DSP", AcceleratorConfig(mult="dsp", bounds="layer"), None),
        ("int4, LUT", AcceleratorConfig(act_bits=4, weight_bits=4, bounds="layer"), None),
    ]
