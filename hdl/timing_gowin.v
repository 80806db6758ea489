// SPDX-License-Identifier: Apache-2.0
// Timing of Gowin GW2A cells for `sta`, in ps: unconditional arcs under the names of the mapped
// cells. Yosys's own arcs are of another part.
//
// Source of every number: Project Apicula's data base of the GW2A-18 (apycula 0.32, speed grade
// C8/I7), the largest of the four values of an arc. The multipliers have no published delay:
// products are mapped to LUTs.

(* blackbox *)
module DFF(input CLK, D, output Q);
  specify (posedge CLK => (Q : D)) = 232; $setup(D, posedge CLK, 35); endspecify
endmodule

(* blackbox *)
module DFFE(input CLK, CE, D, output Q);
  specify
    (posedge CLK => (Q : D)) = 232; $setup(D, posedge CLK, 35); $setup(CE, posedge CLK, 35);
  endspecify
endmodule

(* blackbox *)
module DFFR(input CLK, RESET, D, output Q);
  specify
    (posedge CLK => (Q : D)) = 232; $setup(D, posedge CLK, 35); $setup(RESET, posedge CLK, 35);
  endspecify
endmodule

(* blackbox *)
module DFFRE(input CLK, CE, RESET, D, output Q);
  specify
    (posedge CLK => (Q : D)) = 232; $setup(D, posedge CLK, 35);
    $setup(CE, posedge CLK, 35); $setup(RESET, posedge CLK, 35);
  endspecify
endmodule

(* blackbox *)
module DFFS(input CLK, SET, D, output Q);
  specify
    (posedge CLK => (Q : D)) = 232; $setup(D, posedge CLK, 35); $setup(SET, posedge CLK, 35);
  endspecify
endmodule

(* blackbox *)
module DFFSE(input CLK, CE, SET, D, output Q);
  specify
    (posedge CLK => (Q : D)) = 232; $setup(D, posedge CLK, 35);
    $setup(CE, posedge CLK, 35); $setup(SET, posedge CLK, 35);
  endspecify
endmodule

(* blackbox *)
module LUT1(input I0, output F);
  specify (I0 => F) = 549; endspecify
endmodule

(* blackbox *)
module LUT2(input I0, I1, output F);
  specify (I0 => F) = 549; (I1 => F) = 570; endspecify
endmodule

(* blackbox *)
module LUT3(input I0, I1, I2, output F);
  specify (I0 => F) = 549; (I1 => F) = 570; (I2 => F) = 462; endspecify
endmodule

(* blackbox *)
module LUT4(input I0, I1, I2, I3, output F);
  specify (I0 => F) = 549; (I1 => F) = 570; (I2 => F) = 462; (I3 => F) = 371; endspecify
endmodule

// A LUT input to OFX takes 105 more than to F.
(* blackbox *)
module MUX2_LUT5(input I0, I1, S0, output O);
  specify (I0 => O) = 105; (I1 => O) = 105; (S0 => O) = 269; endspecify
endmodule

(* blackbox *)
module MUX2_LUT6(input I0, I1, S0, output O);
  specify (I0 => O) = 105; (I1 => O) = 105; (S0 => O) = 269; endspecify
endmodule

(* blackbox *)
module MUX2_LUT7(input I0, I1, S0, output O);
  specify (I0 => O) = 105; (I1 => O) = 105; (S0 => O) = 269; endspecify
endmodule

(* blackbox *)
module MUX2_LUT8(input I0, I1, S0, output O);
  specify (I0 => O) = 105; (I1 => O) = 105; (S0 => O) = 269; endspecify
endmodule

(* blackbox *)
module ALU(input I0, I1, I3, CIN, output SUM, COUT);
  specify
    (I0 => SUM) = 549; (I1 => SUM) = 570; (I3 => SUM) = 371; (CIN => SUM) = 470;
    (I0 => COUT) = 549; (I1 => COUT) = 570; (I3 => COUT) = 371; (CIN => COUT) = 35;
  endspecify
endmodule

(* blackbox *)
module RAM16SDP1(input DI, input [3:0] WAD, RAD, input WRE, CLK, output DO);
  specify
    (posedge CLK => (DO : 1'bx)) = 314;
    (RAD[0] *> DO) = 549; (RAD[1] *> DO) = 570; (RAD[2] *> DO) = 462; (RAD[3] *> DO) = 371;
    $setup(DI, posedge CLK, 35); $setup(WAD, posedge CLK, 35); $setup(WRE, posedge CLK, 35);
  endspecify
endmodule

(* blackbox *)
module RAM16SDP2(input [1:0] DI, input [3:0] WAD, RAD, input WRE, CLK, output [1:0] DO);
  specify
    (posedge CLK => (DO : 2'bx)) = 314;
    (RAD[0] *> DO) = 549; (RAD[1] *> DO) = 570; (RAD[2] *> DO) = 462; (RAD[3] *> DO) = 371;
    $setup(DI, posedge CLK, 35); $setup(WAD, posedge CLK, 35); $setup(WRE, posedge CLK, 35);
  endspecify
endmodule

(* blackbox *)
module RAM16SDP4(input [3:0] DI, WAD, RAD, input WRE, CLK, output [3:0] DO);
  specify
    (posedge CLK => (DO : 4'bx)) = 314;
    (RAD[0] *> DO) = 549; (RAD[1] *> DO) = 570; (RAD[2] *> DO) = 462; (RAD[3] *> DO) = 371;
    $setup(DI, posedge CLK, 35); $setup(WAD, posedge CLK, 35); $setup(WRE, posedge CLK, 35);
  endspecify
endmodule

// Without the output register (READ_MODE 0).
(* blackbox *)
module SDPB(
  input CLKA, CEA, CLKB, CEB, OCE, RESETA, RESETB, input [13:0] ADA, ADB, input [31:0] DI,
  input [2:0] BLKSELA, BLKSELB, output [31:0] DO
);
  specify
    (posedge CLKB => (DO : 32'bx)) = 2260;
    $setup(DI, posedge CLKA, 35); $setup(ADA, posedge CLKA, 35); $setup(CEA, posedge CLKA, 87);
    $setup(ADB, posedge CLKB, 35); $setup(CEB, posedge CLKB, 87);
    $setup(RESETA, posedge CLKA, 438); $setup(RESETB, posedge CLKB, 438);
  endspecify
endmodule

(* blackbox *)
module SDPX9B(
  input CLKA, CEA, CLKB, CEB, OCE, RESETA, RESETB, input [13:0] ADA, ADB, input [35:0] DI,
  input [2:0] BLKSELA, BLKSELB, output [35:0] DO
);
  specify
    (posedge CLKB => (DO : 36'bx)) = 2260;
    $setup(DI, posedge CLKA, 35); $setup(ADA, posedge CLKA, 35); $setup(CEA, posedge CLKA, 87);
    $setup(ADB, posedge CLKB, 35); $setup(CEB, posedge CLKB, 87);
    $setup(RESETA, posedge CLKA, 438); $setup(RESETB, posedge CLKB, 438);
  endspecify
endmodule

(* blackbox *)
module DPB(
  input CLKA, CEA, WREA, OCEA, RESETA, CLKB, CEB, WREB, OCEB, RESETB, input [13:0] ADA, ADB,
  input [15:0] DIA, DIB, input [2:0] BLKSELA, BLKSELB, output [15:0] DOA, DOB
);
  specify
    (posedge CLKA => (DOA : 16'bx)) = 2260; (posedge CLKB => (DOB : 16'bx)) = 2260;
    $setup(DIA, posedge CLKA, 35); $setup(ADA, posedge CLKA, 35); $setup(CEA, posedge CLKA, 87);
    $setup(DIB, posedge CLKB, 35); $setup(ADB, posedge CLKB, 35); $setup(CEB, posedge CLKB, 87);
    $setup(WREA, posedge CLKA, 35); $setup(RESETA, posedge CLKA, 438);
    $setup(WREB, posedge CLKB, 35); $setup(RESETB, posedge CLKB, 438);
  endspecify
endmodule

(* blackbox *)
module DPX9B(
  input CLKA, CEA, WREA, OCEA, RESETA, CLKB, CEB, WREB, OCEB, RESETB, input [13:0] ADA, ADB,
  input [17:0] DIA, DIB, input [2:0] BLKSELA, BLKSELB, output [17:0] DOA, DOB
);
  specify
    (posedge CLKA => (DOA : 18'bx)) = 2260; (posedge CLKB => (DOB : 18'bx)) = 2260;
    $setup(DIA, posedge CLKA, 35); $setup(ADA, posedge CLKA, 35); $setup(CEA, posedge CLKA, 87);
    $setup(DIB, posedge CLKB, 35); $setup(ADB, posedge CLKB, 35); $setup(CEB, posedge CLKB, 87);
    $setup(WREA, posedge CLKA, 35); $setup(RESETA, posedge CLKA, 438);
    $setup(WREB, posedge CLKB, 35); $setup(RESETB, posedge CLKB, 438);
  endspecify
endmodule
