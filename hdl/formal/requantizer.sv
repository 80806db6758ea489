// SPDX-License-Identifier: Apache-2.0
// A lane's output is clip(round_half_even((word + bias) / 2**shift), lo, hi) of the ring's word, or
// a part of the raw sum; with an output check inside the bounds (or 0), and counted if outside.
module prove_requantizer (
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
  wire [`ACT-1:0] code, lo, hi;
  wire signed [`ACC-1:0] word, bias;
  wire [4:0] shift;
`ifdef CHECKED
  wire violated, lo_is_bound, hi_is_bound;
`else
  wire lo_is_bound = 0, hi_is_bound = 0;
`endif
  trilat_lane dut (
      .aclk(aclk), .psum(psum), .write_ring(write_ring), .ring_write(ring_write),
`ifndef OS
      .first(first), .read_row(read_row), .write_row(write_row), .write_psum(write_psum),
`endif
      .param_word(param_word), .write_bias(write_bias), .write_limits(write_limits),
      .take_scale(take_scale), .take_limits(take_limits), .advance(advance),
      .ring_read(ring_read), .raw_1(raw_1), .amount_raw(amount_raw), .raw_4(raw_4),
      .raw_5(raw_5), .signed_5(signed_5), .code(code),
`ifdef CHECKED
      .violated(violated), .probe_lo_is_bound(lo_is_bound), .probe_hi_is_bound(hi_is_bound),
`endif
      .probe_ring_word(word), .probe_bias(bias), .probe_shift(shift), .probe_lo(lo),
      .probe_hi(hi));
  // Stalls: see lane_hold.sv.
  always @(*) assume (advance);

  wire [`AMOUNT-1:0] of_raw = amount_raw << `RAW_ZEROS;
  // Stages 2 to 5 of the pipeline as the table of hdl.lane names them.
  localparam SUM = `ACC + 1;
  localparam WIDE = SUM + 33;
  reg signed [SUM-1:0] total[2:5];
  reg [`AMOUNT-1:0] amount[2:5];
  reg raw[2:5];
  reg [2:0] age = 0;
  integer s;
  always @(posedge aclk)
    if (advance) begin
      if (age < 6) age <= age + 1;
      total[2] <= word + bias;
      amount[2] <= raw_1 ? of_raw : shift;
      raw[2] <= raw_1;
      for (s = 3; s <= 5; s = s + 1) begin
        total[s] <= total[s-1];
        amount[s] <= amount[s-1];
        raw[s] <= raw[s-1];
      end
    end
  // The drain gives each stage the flag of its beat, and amounts up to 31; with REACHED none but
  // those of the parts that a sum has.
  always @(*) begin
    assume (raw_4 == raw[4] && raw_5 == raw[5]);
    assume (of_raw <= 31);
`ifdef REACHED
    assume (of_raw % `ACT == 0 && of_raw < `RAW_BEATS * `ACT);
`endif
  end

  // The specification, in words that nothing overflows.
  wire signed [WIDE-1:0] sum = total[5];
  wire signed [WIDE-1:0] floor = sum >>> amount[5];
  wire signed [WIDE-1:0] twice_rest = (sum - (floor <<< amount[5])) <<< 1;
  wire signed [WIDE-1:0] unit = 1 <<< amount[5];
  wire up = twice_rest > unit || (twice_rest == unit && floor[0]);
  wire signed [WIDE-1:0] quotient = floor + $signed({1'b0, up});
  wire signed [WIDE-1:0] lowest = $signed({signed_5 & lo[`ACT-1], lo});
  wire signed [WIDE-1:0] highest = $signed({signed_5 & hi[`ACT-1], hi});
  always @(*) assume (lowest <= highest);
  wire under = quotient < lowest, over = quotient > highest;
  wire outside = under & lo_is_bound | over & hi_is_bound;
  // [0]: in stage 5a, [1]: in stage 6.
  reg signed [WIDE-1:0] results[0:1], leasts[0:1], mosts[0:1];
  reg [1:0] raws, signs, outsides;
  always @(posedge aclk)
    if (advance) begin
      results[0] <= raw[5] ? floor : under ? lowest : over ? highest : quotient;
      leasts[0] <= lowest;
      mosts[0] <= highest;
      results[1] <= results[0];
      leasts[1] <= leasts[0];
      mosts[1] <= mosts[0];
      raws <= {raws[0], raw[5]};
      signs <= {signs[0], signed_5};
      outsides <= {outsides[0], outside & ~raw[5]};
    end
  wire signed [WIDE-1:0] result = results[1], at_least = leasts[1], at_most = mosts[1];
  wire was_raw = raws[1], was_signed = signs[1], was_outside = outsides[1];

  wire signed [`ACT:0] value = $signed({was_signed & code[`ACT-1], code});
  always @(posedge aclk)
    if (age == 6) begin
`ifdef SQUASH
      if (was_outside) assert (code == 0);
      else assert (code == result[`ACT-1:0]);
      if (!was_raw && !was_outside) assert (value >= at_least && value <= at_most);
`else
      assert (code == result[`ACT-1:0]);
      if (!was_raw) assert (value >= at_least && value <= at_most);
`endif
`ifdef CHECKED
      assert (violated == was_outside);
`endif
    end
endmodule
