// SPDX-License-Identifier: Apache-2.0
// Timing of UltraScale+ cells for `sta`, in ps: unconditional arcs under the names of the mapped
// cells. Yosys has none for this family.
//
// Source of every number, unless said otherwise: the UltraScale+ delay model of RapidWright
// (timing/ultrascaleplus/intrasite_delay_terms.txt, logic delays; measured by its authors with
// Vivado). Delays of wires inside a slice are left out, as all wires are. A LUT's I0 is its
// slowest pin, as in Vivado. `sta` ignores a set-up of 0 or less, so it is written as 1.

(* blackbox *)
module FDRE(input C, CE, D, R, output Q);
  specify
    (posedge C => (Q : D)) = 77;
    $setup(D, posedge C, 1);
    $setup(CE, posedge C, 1);
    $setup(R, posedge C, 1);
  endspecify
endmodule

(* blackbox *)
module FDSE(input C, CE, D, S, output Q);
  specify
    (posedge C => (Q : D)) = 77;
    $setup(D, posedge C, 1);
    $setup(CE, posedge C, 1);
    $setup(S, posedge C, 1);
  endspecify
endmodule

(* blackbox *)
module INV(input I, output O);
  specify (I => O) = 35; endspecify
endmodule

(* blackbox *)
module LUT1(input I0, output O);
  specify (I0 => O) = 35; endspecify
endmodule

(* blackbox *)
module LUT2(input I0, I1, output O);
  specify (I0 => O) = 50; (I1 => O) = 35; endspecify
endmodule

(* blackbox *)
module LUT3(input I0, I1, I2, output O);
  specify (I0 => O) = 90; (I1 => O) = 50; (I2 => O) = 35; endspecify
endmodule

(* blackbox *)
module LUT4(input I0, I1, I2, I3, output O);
  specify (I0 => O) = 100; (I1 => O) = 90; (I2 => O) = 50; (I3 => O) = 35; endspecify
endmodule

(* blackbox *)
module LUT5(input I0, I1, I2, I3, I4, output O);
  specify
    (I0 => O) = 125; (I1 => O) = 100; (I2 => O) = 90; (I3 => O) = 50; (I4 => O) = 35;
  endspecify
endmodule

(* blackbox *)
module LUT6(input I0, I1, I2, I3, I4, I5, output O);
  specify
    (I0 => O) = 150; (I1 => O) = 125; (I2 => O) = 100;
    (I3 => O) = 90; (I4 => O) = 50; (I5 => O) = 35;
  endspecify
endmodule

(* blackbox *)
module MUXF7(input I0, I1, S, output O);
  specify (I0 => O) = 70; (I1 => O) = 70; (S => O) = 77; endspecify
endmodule

// Not in the source: counted as MUXF7.
(* blackbox *)
module MUXF8(input I0, I1, S, output O);
  specify (I0 => O) = 70; (I1 => O) = 70; (S => O) = 77; endspecify
endmodule

// Yosys maps to the four bits of half a CARRY8: its lower half's arcs. CI to CO[3], which alone
// joins the parts of a chain, is half of a whole CARRY8 (23) and of the wire to the next (26).
(* blackbox *)
module CARRY4(input [3:0] DI, S, input CI, CYINIT, output [3:0] CO, O);
  specify
    (CI => O[0]) = 56; (CI => O[1]) = 76; (CI => O[2]) = 67; (CI => O[3]) = 82;
    (CI => CO[0]) = 52; (CI => CO[1]) = 42; (CI => CO[2]) = 57; (CI => CO[3]) = 25;
    (CYINIT => O[0]) = 110; (CYINIT => O[1]) = 132; (CYINIT => O[2]) = 131;
    (CYINIT => O[3]) = 135;
    (CYINIT => CO[0]) = 107; (CYINIT => CO[1]) = 105; (CYINIT => CO[2]) = 110;
    (CYINIT => CO[3]) = 177;
    (DI[0] => O[1]) = 81; (DI[0] => O[2]) = 109; (DI[0] => O[3]) = 115;
    (DI[1] => O[2]) = 99; (DI[1] => O[3]) = 102; (DI[2] => O[3]) = 94;
    (DI[0] => CO[0]) = 57; (DI[0] => CO[1]) = 83; (DI[0] => CO[2]) = 90;
    (DI[0] => CO[3]) = 182;
    (DI[1] => CO[1]) = 73; (DI[1] => CO[2]) = 78; (DI[1] => CO[3]) = 144;
    (DI[2] => CO[2]) = 69; (DI[2] => CO[3]) = 134; (DI[3] => CO[3]) = 131;
    (S[0] => O[0]) = 65; (S[0] => O[1]) = 96; (S[0] => O[2]) = 134; (S[0] => O[3]) = 139;
    (S[1] => O[1]) = 56; (S[1] => O[2]) = 117; (S[1] => O[3]) = 123;
    (S[2] => O[2]) = 58; (S[2] => O[3]) = 86; (S[3] => O[3]) = 61;
    (S[0] => CO[0]) = 71; (S[0] => CO[1]) = 109; (S[0] => CO[2]) = 115; (S[0] => CO[3]) = 186;
    (S[1] => CO[1]) = 91; (S[1] => CO[2]) = 98; (S[1] => CO[3]) = 184;
    (S[2] => CO[2]) = 63; (S[2] => CO[3]) = 148; (S[3] => CO[3]) = 133;
  endspecify
endmodule

// LUTs as memory: clock to output, set-up of data, of enable and of the write address; a read is
// a LUT's slowest pins.
(* blackbox *)
module SRL16E(input A0, A1, A2, A3, CE, CLK, D, output Q);
  specify
    (posedge CLK => (Q : 1'bx)) = 312;
    (A0 => Q) = 150; (A1 => Q) = 125; (A2 => Q) = 100; (A3 => Q) = 90;
    $setup(D, posedge CLK, 81);
    $setup(CE, posedge CLK, 180);
  endspecify
endmodule

(* blackbox *)
module SRLC32E(input [4:0] A, input CE, CLK, D, output Q, Q31);
  specify
    (posedge CLK => (Q : 1'bx)) = 312;
    (posedge CLK => (Q31 : 1'bx)) = 312;
    (A *> Q) = 150;
    $setup(D, posedge CLK, 81);
    $setup(CE, posedge CLK, 180);
  endspecify
endmodule

(* blackbox *)
module RAM32M16(
  input [4:0] ADDRA, ADDRB, ADDRC, ADDRD, ADDRE, ADDRF, ADDRG, ADDRH,
  input [1:0] DIA, DIB, DIC, DID, DIE, DIF, DIG, DIH, input WCLK, WE,
  output [1:0] DOA, DOB, DOC, DOD, DOE, DOF, DOG, DOH
);
  specify
    (posedge WCLK => (DOA : 2'bx)) = 312; (posedge WCLK => (DOB : 2'bx)) = 312;
    (posedge WCLK => (DOC : 2'bx)) = 312; (posedge WCLK => (DOD : 2'bx)) = 312;
    (posedge WCLK => (DOE : 2'bx)) = 312; (posedge WCLK => (DOF : 2'bx)) = 312;
    (posedge WCLK => (DOG : 2'bx)) = 312; (posedge WCLK => (DOH : 2'bx)) = 312;
    (ADDRA *> DOA) = 165; (ADDRB *> DOB) = 165; (ADDRC *> DOC) = 165; (ADDRD *> DOD) = 165;
    (ADDRE *> DOE) = 165; (ADDRF *> DOF) = 165; (ADDRG *> DOG) = 165; (ADDRH *> DOH) = 165;
    $setup(ADDRH, posedge WCLK, 117);
    $setup(DIA, posedge WCLK, 81); $setup(DIB, posedge WCLK, 81);
    $setup(DIC, posedge WCLK, 81); $setup(DID, posedge WCLK, 81);
    $setup(DIE, posedge WCLK, 81); $setup(DIF, posedge WCLK, 81);
    $setup(DIG, posedge WCLK, 81); $setup(DIH, posedge WCLK, 81);
    $setup(WE, posedge WCLK, 180);
  endspecify
endmodule

(* blackbox *)
module RAM64M8(
  input [5:0] ADDRA, ADDRB, ADDRC, ADDRD, ADDRE, ADDRF, ADDRG, ADDRH,
  input DIA, DIB, DIC, DID, DIE, DIF, DIG, DIH, WCLK, WE,
  output DOA, DOB, DOC, DOD, DOE, DOF, DOG, DOH
);
  specify
    (posedge WCLK => (DOA : 1'bx)) = 312; (posedge WCLK => (DOB : 1'bx)) = 312;
    (posedge WCLK => (DOC : 1'bx)) = 312; (posedge WCLK => (DOD : 1'bx)) = 312;
    (posedge WCLK => (DOE : 1'bx)) = 312; (posedge WCLK => (DOF : 1'bx)) = 312;
    (posedge WCLK => (DOG : 1'bx)) = 312; (posedge WCLK => (DOH : 1'bx)) = 312;
    (ADDRA *> DOA) = 150; (ADDRB *> DOB) = 150; (ADDRC *> DOC) = 150; (ADDRD *> DOD) = 150;
    (ADDRE *> DOE) = 150; (ADDRF *> DOF) = 150; (ADDRG *> DOG) = 150; (ADDRH *> DOH) = 150;
    $setup(ADDRH, posedge WCLK, 117);
    $setup(DIA, posedge WCLK, 69); $setup(DIB, posedge WCLK, 69);
    $setup(DIC, posedge WCLK, 69); $setup(DID, posedge WCLK, 69);
    $setup(DIE, posedge WCLK, 69); $setup(DIF, posedge WCLK, 69);
    $setup(DIG, posedge WCLK, 69); $setup(DIH, posedge WCLK, 69);
    $setup(WE, posedge WCLK, 180);
  endspecify
endmodule

// Yosys uses this multiplier without its registers. A to P: 192 + 76 + 505 + 47 + 585 + 109, the
// stages of a path that RapidWright's tcl/rwroute/dump_all_dsp_delay.tcl quotes; B likewise.
(* blackbox *)
module DSP48E2(
  input [29:0] A, input [17:0] B, input [47:0] C, input [26:0] D,
  input [8:0] OPMODE, input [3:0] ALUMODE, input [4:0] INMODE, input [2:0] CARRYINSEL,
  input CARRYIN, input [29:0] ACIN, input [17:0] BCIN, input [47:0] PCIN, output [47:0] P
);
  parameter ADREG = 0;
  parameter AREG = 0;
  parameter BREG = 0;
  parameter CREG = 0;
  parameter DREG = 0;
  parameter MREG = 0;
  parameter PREG = 0;
  parameter USE_MULT = "MULTIPLY";
  parameter USE_SIMD = "ONE48";
  specify
    (A *> P) = 1514;
    (B *> P) = 1514;
  endspecify
endmodule

// Data inputs are not in the source: the largest set-up of an address stands for them. The
// source measured RAMB36E2; a RAMB18E2 is 20 to 40 ps faster.
(* blackbox *)
module RAMB18E2(
  input CLKARDCLK, CLKBWRCLK, ENARDEN, ENBWREN, REGCEAREGCE, REGCEB, ADDRENA, ADDRENB, SLEEP,
  input RSTRAMARSTRAM, RSTRAMB, RSTREGARSTREG, RSTREGB,
  input [13:0] ADDRARDADDR, ADDRBWRADDR, input [15:0] DINADIN, DINBDIN,
  input [1:0] DINPADINP, DINPBDINP, WEA, input [3:0] WEBWE,
  output [15:0] DOUTADOUT, DOUTBDOUT, output [1:0] DOUTPADOUTP, DOUTPBDOUTP
);
  parameter DOA_REG = 0;
  parameter DOB_REG = 0;
  specify
    (posedge CLKARDCLK => (DOUTADOUT : 16'bx)) = 1003;
    (posedge CLKARDCLK => (DOUTPADOUTP : 2'bx)) = 1003;
    (posedge CLKARDCLK => (DOUTBDOUT : 16'bx)) = 1003;
    (posedge CLKARDCLK => (DOUTPBDOUTP : 2'bx)) = 1003;
    $setup(ADDRARDADDR, posedge CLKARDCLK, 358);
    $setup(ADDRBWRADDR, posedge CLKBWRCLK, 383);
    $setup(ENARDEN, posedge CLKARDCLK, 342);
    $setup(ENBWREN, posedge CLKBWRCLK, 342);
    $setup(WEA, posedge CLKARDCLK, 394);
    $setup(WEBWE, posedge CLKBWRCLK, 394);
    $setup(DINADIN, posedge CLKBWRCLK, 383);
    $setup(DINBDIN, posedge CLKBWRCLK, 383);
    $setup(DINPADINP, posedge CLKBWRCLK, 383);
    $setup(DINPBDINP, posedge CLKBWRCLK, 383);
    $setup(RSTRAMARSTRAM, posedge CLKARDCLK, 342);
    $setup(RSTRAMB, posedge CLKBWRCLK, 342);
  endspecify
endmodule

(* blackbox *)
module RAMB36E2(
  input CLKARDCLK, CLKBWRCLK, ENARDEN, ENBWREN, REGCEAREGCE, REGCEB, ADDRENA, ADDRENB, SLEEP,
  input RSTRAMARSTRAM, RSTRAMB, RSTREGARSTREG, RSTREGB,
  input [14:0] ADDRARDADDR, ADDRBWRADDR, input [31:0] DINADIN, DINBDIN,
  input [3:0] DINPADINP, DINPBDINP, WEA, input [7:0] WEBWE,
  output [31:0] DOUTADOUT, DOUTBDOUT, output [3:0] DOUTPADOUTP, DOUTPBDOUTP
);
  parameter DOA_REG = 0;
  parameter DOB_REG = 0;
  specify
    (posedge CLKARDCLK => (DOUTADOUT : 32'bx)) = 1003;
    (posedge CLKARDCLK => (DOUTPADOUTP : 4'bx)) = 1003;
    (posedge CLKARDCLK => (DOUTBDOUT : 32'bx)) = 1003;
    (posedge CLKARDCLK => (DOUTPBDOUTP : 4'bx)) = 1003;
    $setup(ADDRARDADDR, posedge CLKARDCLK, 358);
    $setup(ADDRBWRADDR, posedge CLKBWRCLK, 383);
    $setup(ENARDEN, posedge CLKARDCLK, 342);
    $setup(ENBWREN, posedge CLKBWRCLK, 342);
    $setup(WEA, posedge CLKARDCLK, 394);
    $setup(WEBWE, posedge CLKBWRCLK, 394);
    $setup(DINADIN, posedge CLKBWRCLK, 383);
    $setup(DINBDIN, posedge CLKBWRCLK, 383);
    $setup(DINPADINP, posedge CLKBWRCLK, 383);
    $setup(DINPBDINP, posedge CLKBWRCLK, 383);
    $setup(RSTRAMARSTRAM, posedge CLKARDCLK, 342);
    $setup(RSTRAMB, posedge CLKBWRCLK, 342);
  endspecify
endmodule
