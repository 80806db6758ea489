// SPDX-License-Identifier: Apache-2.0
// The memory in the block RAMs of 7-series and UltraScale+, for the netlist check.
// 1024 words of LANES bytes, each with a parity bit; READ and WRITE are port widths with parity,
// at most two words. Addresses count data bits.
module trilat_sdp_ram #(
  parameter LANES = 2, READ = 0, WRITE = 0, MODE = "SDP", OLD = 1, PLAIN = 1,
  parameter A = LANES == 2 ? 14 : 15
) (
  input clk, read, reset, write, input [A-1:0] read_at, write_at, input [2*LANES-1:0] enable,
  input [16*LANES-1:0] d, input [2*LANES-1:0] dp,
  output [16*LANES-1:0] q, output [2*LANES-1:0] qp
);
  localparam D = 8 * LANES;
  localparam L = LANES == 2 ? 4 : 5;
  // Other uses have no model: an unknown module stops the check.
  generate if (MODE != "SDP" || !PLAIN) trilat_no_model_of_this_ram_mode missing(); endgenerate

  reg [D-1:0] data0 [0:511], data1 [0:511];
  reg [LANES-1:0] parity0 [0:511], parity1 [0:511];

  wire [8:0] wa = write_at[A-1:L+1], ra = read_at[A-1:L+1];
  wire w1 = write_at[L], r1 = read_at[L];
  // Both words, with the bits that are written.
  wire [2*D-1:0] wd, wm;
  wire [2*LANES-1:0] wp, wpm;
  genvar i;
  generate
    if (WRITE == 18 * LANES) begin
      assign wd = d; assign wp = dp; assign wpm = enable;
      for (i = 0; i < 2 * LANES; i = i + 1) assign wm[8*i +: 8] = {8{enable[i]}};
    end else if (WRITE == 9 * LANES) begin
      assign wd = {2{d[D-1:0]}}; assign wp = {2{dp[LANES-1:0]}};
      assign wpm = {{LANES{w1}} & enable[LANES-1:0], {LANES{!w1}} & enable[LANES-1:0]};
      for (i = 0; i < 2 * LANES; i = i + 1) assign wm[8*i +: 8] = {8{wpm[i]}};
    end else if (WRITE == 18) begin
      assign wd = {2 * LANES / 2{d[15:0]}}; assign wp = {2 * LANES / 2{dp[1:0]}};
      for (i = 0; i < 2 * LANES; i = i + 1) begin
        assign wpm[i] = write_at[L:4] == i / 2 && enable[i % 2];
        assign wm[8*i +: 8] = {8{wpm[i]}};
      end
    end else if (WRITE == 9) begin
      assign wd = {2 * LANES{d[7:0]}}; assign wp = {2 * LANES{dp[0]}};
      for (i = 0; i < 2 * LANES; i = i + 1) begin
        assign wpm[i] = write_at[L:3] == i && enable[0];
        assign wm[8*i +: 8] = {8{wpm[i]}};
      end
    end else begin
      assign wp = 0; assign wpm = 0;
      for (i = 0; i < 2 * D; i = i + 1) begin
        assign wd[i] = d[i % WRITE];
        assign wm[i] = write_at[L:0] / WRITE == i / WRITE && enable[0];
      end
    end
  endgenerate

  always @(posedge clk) if (write) begin
    data0[wa] <= (data0[wa] & ~wm[D-1:0]) | (wd[D-1:0] & wm[D-1:0]);
    data1[wa] <= (data1[wa] & ~wm[2*D-1:D]) | (wd[2*D-1:D] & wm[2*D-1:D]);
    parity0[wa] <= (parity0[wa] & ~wpm[LANES-1:0]) | (wp[LANES-1:0] & wpm[LANES-1:0]);
    parity1[wa] <= (parity1[wa] & ~wpm[2*LANES-1:LANES])
                   | (wp[2*LANES-1:LANES] & wpm[2*LANES-1:LANES]);
  end

  wire clash = `TRUE_WORD_LOST && !OLD && write && wa == ra;
  wire [2*D-1:0] rd = {data1[ra], data0[ra]} ^ ({2*D{clash}} & wm);
  wire [2*LANES-1:0] rp = {parity1[ra], parity0[ra]} ^ ({2*LANES{clash}} & wpm);
  wire [2*D-1:0] shifted;
  wire [2*LANES-1:0] shifted_parity;
  generate
    if (READ == 18 * LANES) begin
      assign shifted = rd; assign shifted_parity = rp;
    end else if (READ == 9 * LANES) begin
      assign shifted = r1 ? rd >> D : rd; assign shifted_parity = r1 ? rp >> LANES : rp;
    end else begin
      localparam BITS = READ == 18 ? 16 : READ == 9 ? 8 : READ;
      assign shifted = rd >> (read_at[L:0] / BITS * BITS);
      assign shifted_parity = READ >= 9 ? rp >> (read_at[L:0] / BITS * BITS / 8) : 0;
    end
  endgenerate
  reg [2*D-1:0] q_register = 0;
  reg [2*LANES-1:0] qp_register = 0;
  always @(posedge clk) if (read) begin
    q_register <= reset ? 0 : shifted;
    qp_register <= reset ? 0 : shifted_parity;
  end
  assign q = q_register;
  assign qp = qp_register;
endmodule
