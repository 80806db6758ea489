// SPDX-License-Identifier: Apache-2.0
// Simulation models of UltraScale+ multiplier and block RAM for the netlist check; Yosys has none.
// Written after the documented behaviour (UG579, UG573); only what Yosys emits is modelled:
// multiplier without registers, either port writes and the other reads, no output register, no
// cascade.
module DSP48E2(
  input [29:0] A, input [17:0] B, input [47:0] C, input [26:0] D,
  input [8:0] OPMODE, input [3:0] ALUMODE, input [4:0] INMODE, input [2:0] CARRYINSEL,
  input CARRYIN, input [29:0] ACIN, input [17:0] BCIN, input [47:0] PCIN, output [47:0] P
);
  parameter ACASCREG = 0;
  parameter ADREG = 0;
  parameter ALUMODEREG = 0;
  parameter AMULTSEL = "A";
  parameter AREG = 0;
  parameter A_INPUT = "DIRECT";
  parameter BCASCREG = 0;
  parameter BMULTSEL = "B";
  parameter BREG = 0;
  parameter B_INPUT = "DIRECT";
  parameter CARRYINREG = 0;
  parameter CARRYINSELREG = 0;
  parameter CREG = 0;
  parameter DREG = 0;
  parameter INMODEREG = 0;
  parameter MREG = 0;
  parameter OPMODEREG = 0;
  parameter PREG = 0;
  parameter USE_MULT = "MULTIPLY";
  parameter USE_SIMD = "ONE48";
  localparam REGISTERS = AREG + BREG + MREG + PREG + OPMODEREG + ALUMODEREG + INMODEREG;
  // Other uses have no model: an unknown module stops the check.
  generate
    if (REGISTERS != 0 || A_INPUT != "DIRECT" || B_INPUT != "DIRECT")
      trilat_no_model_of_this_dsp_mode missing();
  endgenerate
  wire signed [26:0] a = A[26:0];
  wire signed [17:0] b = B;
  wire signed [47:0] product = a * b;
  // X and Y are the product's halves, Z and W are 0, the ALU adds: the one operation that Yosys
  // uses. Any other is undefined here.
  assign P = OPMODE == 9'b000000101 && ALUMODE == 0 && INMODE == 0 ? product : 48'bx;
endmodule

module RAMB18E2(
  input CLKARDCLK, CLKBWRCLK, ENARDEN, ENBWREN, REGCEAREGCE, REGCEB, ADDRENA, ADDRENB, SLEEP,
  input RSTRAMARSTRAM, RSTRAMB, RSTREGARSTREG, RSTREGB,
  input [13:0] ADDRARDADDR, ADDRBWRADDR, input [15:0] DINADIN, DINBDIN,
  input [1:0] DINPADINP, DINPBDINP, WEA, input [3:0] WEBWE,
  output [15:0] DOUTADOUT, DOUTBDOUT, output [1:0] DOUTPADOUTP, DOUTPBDOUTP
);
  parameter DOA_REG = 0;
  parameter DOB_REG = 0;
  parameter INIT_A = 0;
  parameter INIT_B = 0;
  parameter SRVAL_A = 0;
  parameter SRVAL_B = 0;
  parameter READ_WIDTH_A = 0;
  parameter READ_WIDTH_B = 0;
  parameter WRITE_MODE_A = "NO_CHANGE";
  parameter WRITE_MODE_B = "NO_CHANGE";
  parameter WRITE_WIDTH_A = 0;
  parameter WRITE_WIDTH_B = 0;
  generate if (READ_WIDTH_A == 0 && WRITE_WIDTH_B == 0) begin : a_writes
    wire [31:0] q;
    wire [3:0] qp;
    trilat_sdp_ram #(
      .LANES(2), .READ(READ_WIDTH_B), .WRITE(WRITE_WIDTH_A), .MODE("SDP"),
      .OLD(WRITE_MODE_A == "READ_FIRST"), .PLAIN(DOB_REG == 0)
    ) ram (
      .clk(CLKARDCLK), .read(ENBWREN), .reset(RSTRAMB), .read_at(ADDRBWRADDR),
      .write(ENARDEN), .write_at(ADDRARDADDR), .enable({2'b0, WEA}),
      .d({16'b0, DINADIN}), .dp({2'b0, DINPADINP}), .q(q), .qp(qp)
    );
    assign DOUTBDOUT = q[15:0];
    assign DOUTPBDOUTP = qp[1:0];
  end else begin : b_writes
    trilat_sdp_ram #(
      .LANES(2), .READ(READ_WIDTH_A), .WRITE(WRITE_WIDTH_B), .MODE("SDP"),
      .OLD(WRITE_MODE_B == "READ_FIRST"),
      .PLAIN(DOA_REG == 0 && READ_WIDTH_B == 0 && WRITE_WIDTH_A == 0)
    ) ram (
      .clk(CLKARDCLK), .read(ENARDEN), .reset(RSTRAMARSTRAM), .read_at(ADDRARDADDR),
      .write(ENBWREN), .write_at(ADDRBWRADDR), .enable(WEBWE),
      .d({DINBDIN, DINADIN}), .dp({DINPBDINP, DINPADINP}),
      .q({DOUTBDOUT, DOUTADOUT}), .qp({DOUTPBDOUTP, DOUTPADOUTP})
    );
  end endgenerate
endmodule

module RAMB36E2(
  input CLKARDCLK, CLKBWRCLK, ENARDEN, ENBWREN, REGCEAREGCE, REGCEB, ADDRENA, ADDRENB, SLEEP,
  input RSTRAMARSTRAM, RSTRAMB, RSTREGARSTREG, RSTREGB,
  input [14:0] ADDRARDADDR, ADDRBWRADDR, input [31:0] DINADIN, DINBDIN,
  input [3:0] DINPADINP, DINPBDINP, WEA, input [7:0] WEBWE,
  output [31:0] DOUTADOUT, DOUTBDOUT, output [3:0] DOUTPADOUTP, DOUTPBDOUTP
);
  parameter DOA_REG = 0;
  parameter DOB_REG = 0;
  parameter INIT_A = 0;
  parameter INIT_B = 0;
  parameter SRVAL_A = 0;
  parameter SRVAL_B = 0;
  parameter READ_WIDTH_A = 0;
  parameter READ_WIDTH_B = 0;
  parameter WRITE_MODE_A = "NO_CHANGE";
  parameter WRITE_MODE_B = "NO_CHANGE";
  parameter WRITE_WIDTH_A = 0;
  parameter WRITE_WIDTH_B = 0;
  generate if (READ_WIDTH_A == 0 && WRITE_WIDTH_B == 0) begin : a_writes
    wire [63:0] q;
    wire [7:0] qp;
    trilat_sdp_ram #(
      .LANES(4), .READ(READ_WIDTH_B), .WRITE(WRITE_WIDTH_A), .MODE("SDP"),
      .OLD(WRITE_MODE_A == "READ_FIRST"), .PLAIN(DOB_REG == 0)
    ) ram (
      .clk(CLKARDCLK), .read(ENBWREN), .reset(RSTRAMB), .read_at(ADDRBWRADDR),
      .write(ENARDEN), .write_at(ADDRARDADDR), .enable({4'b0, WEA}),
      .d({32'b0, DINADIN}), .dp({4'b0, DINPADINP}), .q(q), .qp(qp)
    );
    assign DOUTBDOUT = q[31:0];
    assign DOUTPBDOUTP = qp[3:0];
  end else begin : b_writes
    trilat_sdp_ram #(
      .LANES(4), .READ(READ_WIDTH_A), .WRITE(WRITE_WIDTH_B), .MODE("SDP"),
      .OLD(WRITE_MODE_B == "READ_FIRST"),
      .PLAIN(DOA_REG == 0 && READ_WIDTH_B == 0 && WRITE_WIDTH_A == 0)
    ) ram (
      .clk(CLKARDCLK), .read(ENARDEN), .reset(RSTRAMARSTRAM), .read_at(ADDRARDADDR),
      .write(ENBWREN), .write_at(ADDRBWRADDR), .enable(WEBWE),
      .d({DINBDIN, DINADIN}), .dp({DINPBDINP, DINPADINP}),
      .q({DOUTBDOUT, DOUTADOUT}), .qp({DOUTPBDOUTP, DOUTPADOUTP})
    );
  end endgenerate
endmodule
