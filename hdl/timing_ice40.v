// SPDX-License-Identifier: Apache-2.0
// Timing of the iCE40 UltraPlus multiplier for `sta`, in ps; Yosys's library has no arcs for it.
//
// Source: icestorm, icefuzz/timings_up5k.txt, largest value of each port group, from the cells
// MUL_S_16X16_BYPASS (9050), MAC_U_16X16_BYPASS (6504 set-up, 11233 through the adder),
// ADS_U_32P32_BYPASS (3905, 5122, 5263), MUL_S_16X16_ALL_PIPELINE (15, 228, 291, 2009).
// Where an internal register feeds an unregistered output no arc is published: the clock-to-q of
// a logic cell (1391) plus the combinational arc stands for it.
(* blackbox *)
module SB_MAC16(
  input CLK, CE, input [15:0] C, A, B, D, input AHOLD, BHOLD, CHOLD, DHOLD,
  input IRSTTOP, IRSTBOT, ORSTTOP, ORSTBOT, OLOADTOP, OLOADBOT, ADDSUBTOP, ADDSUBBOT,
  input OHOLDTOP, OHOLDBOT, CI, ACCUMCI, SIGNEXTIN, output [31:0] O,
  output CO, ACCUMCO, SIGNEXTOUT
);
  parameter [0:0] A_REG = 0;
  parameter [0:0] B_REG = 0;
  parameter [0:0] C_REG = 0;
  parameter [0:0] D_REG = 0;
  parameter [0:0] PIPELINE_16x16_MULT_REG2 = 0;
  parameter [1:0] TOPOUTPUT_SELECT = 0;
  localparam ADDED = TOPOUTPUT_SELECT != 3;
  localparam MIDDLE = PIPELINE_16x16_MULT_REG2;
  localparam LAST = TOPOUTPUT_SELECT == 1 || (MIDDLE && !ADDED);
  localparam PRODUCT = ADDED ? 11233 : 9050;
  localparam CLOCK = LAST ? 2009 : 1391 + (MIDDLE ? 5263 : PRODUCT);
  generate
  if (A_REG || LAST || MIDDLE) begin
    specify $setup(A, posedge CLK, A_REG ? 15 : 6504); endspecify
  end else begin
    specify (A *> O) = PRODUCT; endspecify
  end
  if (B_REG || LAST || MIDDLE) begin
    specify $setup(B, posedge CLK, B_REG ? 15 : 6504); endspecify
  end else begin
    specify (B *> O) = PRODUCT; endspecify
  end
  if (ADDED && (C_REG || LAST)) begin
    specify $setup(C, posedge CLK, C_REG ? 228 : 3905); endspecify
  end else if (ADDED) begin
    specify (C *> O) = 3905; endspecify
  end
  if (ADDED && (D_REG || LAST)) begin
    specify $setup(D, posedge CLK, D_REG ? 291 : 5122); endspecify
  end else if (ADDED) begin
    specify (D *> O) = 5122; endspecify
  end
  if (A_REG || B_REG || C_REG || D_REG || LAST || MIDDLE) begin
    specify (posedge CLK => (O : 32'bx)) = CLOCK; endspecify
  end
  endgenerate
endmodule
