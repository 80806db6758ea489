// SPDX-License-Identifier: Apache-2.0
// Simulation models of Gowin block RAM for the netlist check; Yosys has none. Written after the
// documented behaviour (SUG283, UG285): port A writes and port B reads, no output register, no
// block select. A word that is being written reads as undefined: the inverted old bits stand
// for it. Addresses count data bits; 18 and 36 bits have byte enables in ADA.
module SDPB(
  input CLKA, CEA, CLKB, CEB, OCE, RESETA, RESETB, input [13:0] ADA, ADB, input [31:0] DI,
  input [2:0] BLKSELA, BLKSELB, output [31:0] DO
);
  parameter READ_MODE = 1'b0;
  parameter BIT_WIDTH_0 = 32;
  parameter BIT_WIDTH_1 = 32;
  parameter BLK_SEL_0 = 3'b000;
  parameter BLK_SEL_1 = 3'b000;
  parameter RESET_MODE = "SYNC";
  trilat_gowin_ram #(
    .WRITE(BIT_WIDTH_0), .READ(BIT_WIDTH_1), .BYTE(8), .PLAIN(READ_MODE == 0)
  ) ram (
    .CLKA(CLKA), .CEA(CEA), .CLKB(CLKB), .CEB(CEB), .RESETB(RESETB), .ADA(ADA), .ADB(ADB),
    .DI(DI), .DO(DO)
  );
endmodule

module SDPX9B(
  input CLKA, CEA, CLKB, CEB, OCE, RESETA, RESETB, input [13:0] ADA, ADB, input [35:0] DI,
  input [2:0] BLKSELA, BLKSELB, output [35:0] DO
);
  parameter READ_MODE = 1'b0;
  parameter BIT_WIDTH_0 = 36;
  parameter BIT_WIDTH_1 = 36;
  parameter BLK_SEL_0 = 3'b000;
  parameter BLK_SEL_1 = 3'b000;
  parameter RESET_MODE = "SYNC";
  trilat_gowin_ram #(
    .WRITE(BIT_WIDTH_0), .READ(BIT_WIDTH_1), .BYTE(9), .PLAIN(READ_MODE == 0)
  ) ram (
    .CLKA(CLKA), .CEA(CEA), .CLKB(CLKB), .CEB(CEB), .RESETB(RESETB), .ADA(ADA), .ADB(ADB),
    .DI(DI), .DO(DO)
  );
endmodule

module DPB(
  input CLKA, CEA, WREA, OCEA, RESETA, CLKB, CEB, WREB, OCEB, RESETB, input [13:0] ADA, ADB,
  input [15:0] DIA, DIB, input [2:0] BLKSELA, BLKSELB, output [15:0] DOA, DOB
);
  parameter READ_MODE0 = 1'b0;
  parameter READ_MODE1 = 1'b0;
  parameter WRITE_MODE0 = 2'b00;
  parameter WRITE_MODE1 = 2'b00;
  parameter BIT_WIDTH_0 = 16;
  parameter BIT_WIDTH_1 = 16;
  parameter BLK_SEL_0 = 3'b000;
  parameter BLK_SEL_1 = 3'b000;
  parameter RESET_MODE = "SYNC";
  wire [31:0] word;
  trilat_gowin_ram #(
    .WRITE(BIT_WIDTH_0), .READ(BIT_WIDTH_1), .BYTE(8), .PLAIN(READ_MODE1 == 0)
  ) ram (
    .CLKA(CLKA), .CEA(CEA && WREA), .CLKB(CLKB), .CEB(CEB && !WREB), .RESETB(RESETB), .ADA(ADA),
    .ADB(ADB), .DI({16'd0, DIA}), .DO(word)
  );
  assign DOB = word;
endmodule

module DPX9B(
  input CLKA, CEA, WREA, OCEA, RESETA, CLKB, CEB, WREB, OCEB, RESETB, input [13:0] ADA, ADB,
  input [17:0] DIA, DIB, input [2:0] BLKSELA, BLKSELB, output [17:0] DOA, DOB
);
  parameter READ_MODE0 = 1'b0;
  parameter READ_MODE1 = 1'b0;
  parameter WRITE_MODE0 = 2'b00;
  parameter WRITE_MODE1 = 2'b00;
  parameter BIT_WIDTH_0 = 18;
  parameter BIT_WIDTH_1 = 18;
  parameter BLK_SEL_0 = 3'b000;
  parameter BLK_SEL_1 = 3'b000;
  parameter RESET_MODE = "SYNC";
  wire [35:0] word;
  trilat_gowin_ram #(
    .WRITE(BIT_WIDTH_0), .READ(BIT_WIDTH_1), .BYTE(9), .PLAIN(READ_MODE1 == 0)
  ) ram (
    .CLKA(CLKA), .CEA(CEA && WREA), .CLKB(CLKB), .CEB(CEB && !WREB), .RESETB(RESETB), .ADA(ADA),
    .ADB(ADB), .DI({18'd0, DIA}), .DO(word)
  );
  assign DOB = word;
endmodule

// 512 words of four bytes of BYTE bits; WRITE and READ are port widths in bits.
module trilat_gowin_ram #(parameter WRITE = 36, READ = 36, BYTE = 9, PLAIN = 1) (
  input CLKA, CEA, CLKB, CEB, RESETB, input [13:0] ADA, ADB, input [4*BYTE-1:0] DI,
  output [4*BYTE-1:0] DO
);
  localparam WORD = 4 * BYTE;
  // An output register has no model: an unknown module stops the check.
  generate if (!PLAIN) trilat_no_model_of_this_ram_mode missing(); endgenerate
  reg [WORD-1:0] words [0:511];
  wire [8:0] wa = ADA[13:5], ra = ADB[13:5];
  wire [WORD-1:0] d, m;
  genvar i;
  generate
    for (i = 0; i < WORD; i = i + 1) begin : bits
      assign d[i] = DI[i % WRITE];
      if (WRITE == 4 * BYTE) assign m[i] = ADA[i / BYTE];
      else if (WRITE == 2 * BYTE) assign m[i] = ADA[4] == i / WRITE && ADA[(i / BYTE) % 2];
      else if (WRITE == BYTE) assign m[i] = ADA[4:3] == i / WRITE;
      else assign m[i] = ADA[4:0] / WRITE == i / WRITE;
    end
  endgenerate
  always @(posedge CLKA) if (CEA) words[wa] <= (words[wa] & ~m) | (d & m);
  wire clash = `TRUE_WORD_LOST && CEA && wa == ra;
  wire [WORD-1:0] word = words[ra] ^ ({WORD{clash}} & m);
  wire [WORD-1:0] shifted;
  generate
    if (READ == 4 * BYTE) assign shifted = word;
    else if (READ == 2 * BYTE) assign shifted = word >> (ADB[4] * READ);
    else if (READ == BYTE) assign shifted = word >> (ADB[4:3] * READ);
    else assign shifted = word >> (ADB[4:0] / READ * READ);
  endgenerate
  reg [WORD-1:0] q = 0;
  always @(posedge CLKB) if (CEB) q <= RESETB ? 0 : shifted;
  assign DO = q;
endmodule
