// SPDX-License-Identifier: Apache-2.0
// Simulation models of 7-series block RAM for the netlist check; Yosys has none. Written after
// the documented behaviour (UG473): one port writes and one reads, no output register, no
// cascade. A read of a word that is being written gives the old word in READ_FIRST mode;
// otherwise it is undefined, which the inverted old word stands for.
module RAMB18E1(
  input CLKARDCLK, CLKBWRCLK, ENARDEN, ENBWREN, REGCEAREGCE, REGCEB,
  input RSTRAMARSTRAM, RSTRAMB, RSTREGARSTREG, RSTREGB,
  input [13:0] ADDRARDADDR, ADDRBWRADDR, input [15:0] DIADI, DIBDI, input [1:0] DIPADIP, DIPBDIP,
  input [1:0] WEA, input [3:0] WEBWE,
  output [15:0] DOADO, DOBDO, output [1:0] DOPADOP, DOPBDOP
);
  parameter DOA_REG = 0;
  parameter DOB_REG = 0;
  parameter INIT_A = 0;
  parameter INIT_B = 0;
  parameter SRVAL_A = 0;
  parameter SRVAL_B = 0;
  parameter RAM_MODE = "TDP";
  parameter READ_WIDTH_A = 0;
  parameter READ_WIDTH_B = 0;
  parameter WRITE_MODE_A = "WRITE_FIRST";
  parameter WRITE_MODE_B = "WRITE_FIRST";
  parameter WRITE_WIDTH_A = 0;
  parameter WRITE_WIDTH_B = 0;
  generate if (RAM_MODE == "TDP" && READ_WIDTH_A == 0 && WRITE_WIDTH_B == 0) begin : a_writes
    wire [31:0] q;
    wire [3:0] qp;
    trilat_sdp_ram #(
      .LANES(2), .READ(READ_WIDTH_B), .WRITE(WRITE_WIDTH_A), .MODE("SDP"),
      .OLD(WRITE_MODE_A == "READ_FIRST"), .PLAIN(DOB_REG == 0)
    ) ram (
      .clk(CLKARDCLK), .read(ENBWREN), .reset(RSTRAMB), .read_at(ADDRBWRADDR),
      .write(ENARDEN), .write_at(ADDRARDADDR), .enable({2'b0, WEA}),
      .d({16'b0, DIADI}), .dp({2'b0, DIPADIP}), .q(q), .qp(qp)
    );
    assign DOBDO = q[15:0];
    assign DOPBDOP = qp[1:0];
  end else begin : b_writes
    trilat_sdp_ram #(
      .LANES(2), .READ(READ_WIDTH_A), .WRITE(WRITE_WIDTH_B), .MODE(RAM_MODE),
      .OLD(WRITE_MODE_B == "READ_FIRST"), .PLAIN(DOA_REG == 0)
    ) ram (
      .clk(CLKARDCLK), .read(ENARDEN), .reset(RSTRAMARSTRAM), .read_at(ADDRARDADDR),
      .write(ENBWREN), .write_at(ADDRBWRADDR), .enable(WEBWE),
      .d({DIBDI, DIADI}), .dp({DIPBDIP, DIPADIP}), .q({DOBDO, DOADO}), .qp({DOPBDOP, DOPADOP})
    );
  end endgenerate
endmodule

module RAMB36E1(
  output CASCADEOUTA, CASCADEOUTB, output [31:0] DOADO, DOBDO, output [3:0] DOPADOP, DOPBDOP,
  output [7:0] ECCPARITY, output [8:0] RDADDRECC, output SBITERR, DBITERR,
  input ENARDEN, CLKARDCLK, RSTRAMARSTRAM, RSTREGARSTREG, CASCADEINA, REGCEAREGCE, ENBWREN,
  input CLKBWRCLK, RSTRAMB, RSTREGB, CASCADEINB, REGCEB, INJECTDBITERR, INJECTSBITERR,
  input [15:0] ADDRARDADDR, ADDRBWRADDR, input [31:0] DIADI, DIBDI, input [3:0] DIPADIP, DIPBDIP,
  input [3:0] WEA, input [7:0] WEBWE
);
  parameter DOA_REG = 0;
  parameter DOB_REG = 0;
  parameter INIT_A = 0;
  parameter INIT_B = 0;
  parameter SRVAL_A = 0;
  parameter SRVAL_B = 0;
  parameter RAM_MODE = "TDP";
  parameter READ_WIDTH_A = 0;
  parameter READ_WIDTH_B = 0;
  parameter WRITE_MODE_A = "WRITE_FIRST";
  parameter WRITE_MODE_B = "WRITE_FIRST";
  parameter WRITE_WIDTH_A = 0;
  parameter WRITE_WIDTH_B = 0;
  parameter RAM_EXTENSION_A = "NONE";
  parameter RAM_EXTENSION_B = "NONE";
  // In a cascade, address bit 15 chooses between the lower and the upper block, and the lower
  // block's output leaves through the upper one.
  localparam ALONE = RAM_EXTENSION_A == "NONE" && RAM_EXTENSION_B == "NONE";
  localparam UPPER = RAM_EXTENSION_A == "UPPER";
  generate if (RAM_MODE == "TDP" && READ_WIDTH_A == 0 && WRITE_WIDTH_B == 0) begin : a_writes
    wire [63:0] q;
    wire [7:0] qp;
    trilat_sdp_ram #(
      .LANES(4), .READ(READ_WIDTH_B), .WRITE(WRITE_WIDTH_A), .MODE("SDP"),
      .OLD(WRITE_MODE_A == "READ_FIRST"), .PLAIN(DOB_REG == 0)
    ) ram (
      .clk(CLKARDCLK), .read(ENBWREN), .reset(RSTRAMB), .read_at(ADDRBWRADDR[14:0]),
      .write(ENARDEN && (ALONE || ADDRARDADDR[15] == UPPER)), .write_at(ADDRARDADDR[14:0]),
      .enable({4'b0, WEA}),
      .d({32'b0, DIADI}), .dp({4'b0, DIPADIP}), .q(q), .qp(qp)
    );
    reg mine = 0;
    always @(posedge CLKARDCLK) if (ENBWREN) mine <= ADDRBWRADDR[15];
    assign DOBDO = {q[31:1], UPPER && !mine ? CASCADEINB : q[0]};
    assign DOPBDOP = qp[3:0];
    assign CASCADEOUTB = q[0];
  end else begin : b_writes
    trilat_sdp_ram #(
      .LANES(4), .READ(READ_WIDTH_A), .WRITE(WRITE_WIDTH_B), .MODE(RAM_MODE),
      .OLD(WRITE_MODE_B == "READ_FIRST"), .PLAIN(DOA_REG == 0 && ALONE)
    ) ram (
      .clk(CLKARDCLK), .read(ENARDEN), .reset(RSTRAMARSTRAM), .read_at(ADDRARDADDR[14:0]),
      .write(ENBWREN), .write_at(ADDRBWRADDR[14:0]), .enable(WEBWE),
      .d({DIBDI, DIADI}), .dp({DIPBDIP, DIPADIP}), .q({DOBDO, DOADO}), .qp({DOPBDOP, DOPADOP})
    );
  end endgenerate
endmodule
