// SPDX-License-Identifier: Apache-2.0
// Timing of ECP5 cells for `sta`, in ps: unconditional arcs under the names of the mapped cells.
//
// Source of every number: prjtrellis-db, ECP5/timing/speed_6/cells.json (slowest corner; the
// largest value of a port group). Yosys's own models give flip-flops, memories and multipliers
// no times at all. `sta` ignores a set-up of 0, so 0 is written as 1.

(* blackbox *)
module TRELLIS_FF(input CLK, LSR, CE, DI, M, output Q);
  specify
    (posedge CLK => (Q : DI)) = 525;
    $setup(DI, posedge CLK, 1);
    $setup(CE, posedge CLK, 1);
    $setup(LSR, posedge CLK, 424);
    $setup(M, posedge CLK, 1);
  endspecify
endmodule

(* blackbox *)
module LUT4(input A, B, C, D, output Z);
  specify
    (A => Z) = 236;
    (B => Z) = 236;
    (C => Z) = 236;
    (D => Z) = 236;
  endspecify
endmodule

// A..D to OFX0 takes 401, of which the LUT4 before this multiplexer is 236.
(* blackbox *)
module PFUMX(input ALUT, BLUT, C0, output Z);
  specify
    (ALUT => Z) = 165;
    (BLUT => Z) = 165;
    (C0 => Z) = 256;
  endspecify
endmodule

(* blackbox *)
module L6MUX21(input D0, D1, SD, output Z);
  specify
    (D0 => Z) = 239;
    (D1 => Z) = 242;
    (SD => Z) = 252;
  endspecify
endmodule

(* blackbox *)
module CCU2C(input CIN, A0, B0, C0, D0, A1, B1, C1, D1, output S0, S1, COUT);
  specify
    (A0 => S0) = 236; (B0 => S0) = 236; (C0 => S0) = 236; (D0 => S0) = 236;
    (A1 => S1) = 236; (B1 => S1) = 236; (C1 => S1) = 236; (D1 => S1) = 236;
    (A0 => S1) = 714; (B0 => S1) = 714; (C0 => S1) = 714; (D0 => S1) = 714;
    (A0 => COUT) = 447; (B0 => COUT) = 447; (C0 => COUT) = 447; (D0 => COUT) = 447;
    (A1 => COUT) = 447; (B1 => COUT) = 447; (C1 => COUT) = 447; (D1 => COUT) = 447;
    (CIN => S0) = 443;
    (CIN => S1) = 474;
    (CIN => COUT) = 71;
  endspecify
endmodule

(* blackbox *)
module TRELLIS_DPR16X4(
  input [3:0] DI, WAD, input WRE, WCK, input [3:0] RAD, output [3:0] DO
);
  specify
    (posedge WCK => (DO : 4'bx)) = 929;
    (RAD *> DO) = 236;
    $setup(DI, posedge WCK, 1);
    $setup(WAD, posedge WCK, 1);
    $setup(WRE, posedge WCK, 392);
  endspecify
endmodule

// The netlist's numbered pins (A0, A1, ...) are gathered into buses before `sta` reads it.
// REGS=NONE in the source, and with an output register REGS=OUTPUT (`hdl.timing.timed_as`).
(* blackbox *)
module MULT18X18D(
  input [17:0] A, B, C, SRIA, SRIB, input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
  input CLK0, CLK1, CLK2, CLK3, input [3:0] CE, RST, output [35:0] P, output SIGNEDP,
  output [17:0] SROA, SROB, ROA, ROB, ROC
);
  specify
    (A *> P) = 3927;
    (B *> P) = 3927;
    (SIGNEDA *> P) = 3728;
    (SIGNEDB *> P) = 3728;
  endspecify
endmodule

(* blackbox *)
module MULT18X18D_OUTPUT(
  input [17:0] A, B, C, SRIA, SRIB, input SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
  input CLK0, CLK1, CLK2, CLK3, input [3:0] CE, RST, output [35:0] P, output SIGNEDP,
  output [17:0] SROA, SROB, ROA, ROB, ROC
);
  specify
    (posedge CLK0 => (P : 36'bx)) = 735;
    $setup(A, posedge CLK0, 3486);
    $setup(B, posedge CLK0, 3486);
    $setup(SIGNEDA, posedge CLK0, 3287);
    $setup(SIGNEDB, posedge CLK0, 3287);
  endspecify
endmodule

(* blackbox *)
module DP16KD(
  input [17:0] DIA, DIB, input [13:0] ADA, ADB, input [2:0] CSA, CSB,
  input CEA, OCEA, CLKA, WEA, RSTA, CEB, OCEB, CLKB, WEB, RSTB, output [17:0] DOA, DOB
);
  parameter REGMODE_A = "NOREG";
  parameter REGMODE_B = "NOREG";
  specify
    (posedge CLKA => (DOA : 18'bx)) = REGMODE_A == "OUTREG" ? 973 : 5609;
    (posedge CLKB => (DOB : 18'bx)) = REGMODE_B == "OUTREG" ? 956 : 5830;
    $setup(DIA, posedge CLKA, 218);
    $setup(ADA, posedge CLKA, 251);
    $setup(CSA, posedge CLKA, 20);
    $setup(CEA, posedge CLKA, 211);
    $setup(OCEA, posedge CLKA, 226);
    $setup(RSTA, posedge CLKA, 579);
    $setup(WEA, posedge CLKA, 139);
    $setup(DIB, posedge CLKB, 134);
    $setup(ADB, posedge CLKB, 205);
    $setup(CSB, posedge CLKB, 1);
    $setup(CEB, posedge CLKB, 340);
    $setup(OCEB, posedge CLKB, 253);
    $setup(RSTB, posedge CLKB, 585);
    $setup(WEB, posedge CLKB, 1);
  endspecify
endmodule
