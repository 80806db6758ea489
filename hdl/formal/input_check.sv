// SPDX-License-Identifier: Apache-2.0
// Behind the input check every code lies inside the bounds, one inside them is unchanged, and
// exactly those outside are counted; row r comes r + 1 cycles later, its sign above it.
module prove_input_check (
    input aclk,
    input [`ROWS*`ACT-1:0] acts,
    input signed_in,
    input [`ACT-1:0] bound_lo,
    input [`ACT-1:0] bound_hi
);
  wire [`ROWS*(`ACT+1)-1:0] act;
  wire [`ROWS-1:0] violated;
  trilat_activation_skew dut (
      .aclk(aclk), .acts(acts), .act(act), .signed_in(signed_in), .bound_lo(bound_lo),
      .bound_hi(bound_hi), .violated(violated));

  function signed [`ACT:0] value(input [`ACT-1:0] code, input is_signed);
    value = {is_signed & code[`ACT-1], code};
  endfunction
  wire signed [`ACT:0] lo = value(bound_lo, signed_in);
  wire signed [`ACT:0] hi = value(bound_hi, signed_in);
  always @(*) assume (lo <= hi);

  genvar r;
  generate
    for (r = 0; r < `ROWS; r = r + 1) begin : row
      wire signed [`ACT:0] given = value(acts[r*`ACT+:`ACT], signed_in);
      wire inside = given >= lo && given <= hi;
      // Stage s of the delay: what was given, the bounds it met.
      reg [`ACT-1:0] code[0:r];
      reg was_inside[0:r];
      reg was_signed[0:r];
      reg signed [`ACT:0] low[0:r], high[0:r];
      reg [7:0] age = 0;
      integer s;
      always @(posedge aclk) begin
        if (age <= r) age <= age + 1;
        code[0] <= acts[r*`ACT+:`ACT];
        was_inside[0] <= inside;
        was_signed[0] <= signed_in;
        low[0] <= lo;
        high[0] <= hi;
        for (s = 1; s <= r; s = s + 1) begin
          code[s] <= code[s-1];
          was_inside[s] <= was_inside[s-1];
          was_signed[s] <= was_signed[s-1];
          low[s] <= low[s-1];
          high[s] <= high[s-1];
        end
      end
      wire signed [`ACT:0] out_value = act[r*(`ACT+1)+:`ACT+1];
      wire [`ACT-1:0] out = out_value[`ACT-1:0];
      always @(posedge aclk) begin
        if (age > 0) assert (violated[r] == !was_inside[0]);
        if (age > r) begin
          assert (out_value == value(out, was_signed[r]));
          if (was_inside[r]) assert (out == code[r]);
          else begin
`ifdef SQUASH
            assert (out == 0);
`else
            assert (out_value >= low[r] && out_value <= high[r]);
            // The violated bound, not the other one.
            assert (out_value == (value(code[r], was_signed[r]) < low[r] ? low[r] : high[r]));
`endif
          end
        end
      end
    end
  endgenerate
endmodule
