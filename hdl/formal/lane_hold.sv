// SPDX-License-Identifier: Apache-2.0
// While `advance` is low every stage of a lane's requantizer keeps its value. So a run with stalls
// is one without them, in which some cycles are repeated: the proof of the requantizer covers it.
module prove_lane_hold (
    input aclk,
    input [`PSUM-1:0] psum,
    input first,
    input [`ROW-1:0] read_row,
    input [`ROW-1:0] write_row,
    input write_psum,
    input write_ring,
    input [`RING-1:0] ring_write,
    input [31:0] param_word,
    input write_bias,
    input write_limits,
    input take_scale,
    input take_limits,
    input advance,
    input [`RING-1:0] ring_read,
    input raw_1,
    input [`AMOUNT-`RAW_ZEROS-1:0] amount_raw,
    input raw_4,
    input raw_5,
    input signed_5
);
  localparam SUM = `ACC + 1;
  wire [`ACC-1:0] read, word;
  wire [SUM-1:0] total, rounded;
  wire [SUM:0] coarse, fine;
  wire [`AMOUNT-1:0] amount;
  wire [2:0] fine_amount;
  wire coarse_sticky, fine_sticky, violated;
  wire low_5a, high_5a, violation;
  wire [`ACT-1:0] value_5a, lo_5a, hi_5a, code;
  trilat_lane dut (
      .aclk(aclk), .psum(psum), .first(first), .read_row(read_row), .write_row(write_row),
      .write_psum(write_psum), .write_ring(write_ring), .ring_write(ring_write),
      .param_word(param_word), .write_bias(write_bias), .write_limits(write_limits),
      .take_scale(take_scale), .take_limits(take_limits), .advance(advance),
      .ring_read(ring_read), .raw_1(raw_1), .amount_raw(amount_raw), .raw_4(raw_4),
      .raw_5(raw_5), .signed_5(signed_5), .code(code), .violated(violated),
      .probe_ring_read__data(read), .probe_ring_word(word), .probe_total(total),
      .probe_amount(amount), .probe_coarse(coarse), .probe_coarse_sticky(coarse_sticky),
      .probe_fine_amount(fine_amount), .probe_fine(fine), .probe_fine_sticky(fine_sticky),
      .probe_rounded(rounded), .probe_low_5a(low_5a), .probe_high_5a(high_5a),
      .probe_value_5a(value_5a), .probe_lo_5a(lo_5a), .probe_hi_5a(hi_5a),
      .probe_violation(violation));

  localparam ALL = 2 * `ACC + 2 * SUM + 2 * (SUM + 1) + `AMOUNT + 3 + 6 + 4 * `ACT;
  wire [ALL-1:0] stages = {
      read, word, total, rounded, coarse, fine, amount, fine_amount, coarse_sticky, fine_sticky,
      low_5a, high_5a, value_5a, lo_5a, hi_5a, violation, violated, code};
  reg held = 0;
  reg [ALL-1:0] before;
  always @(posedge aclk) begin
    held <= ~advance;
    before <= stages;
    if (held) assert (stages == before);
  end
endmodule
