// SPDX-License-Identifier: Apache-2.0
// Two activation beats through a 2x2 array: the raw sums are the matrix product plus the bias, for
// every activation, weight and bias, and for both sign conventions. A beat holds the two elements of
// a row of the activations, with OS those of a column; weight rows come last one first, with OS in
// order.
module prove_matrix_product (
    input aclk
);
  localparam BEATS = `RAW_BEATS;
  (* anyconst *) reg [2*`ACT-1:0] acts_0, acts_1;  // of row m, element k
  (* anyconst *) reg [2*`WEIGHT-1:0] weights_0, weights_1;  // of row k, element n
  (* anyconst *) reg [`ACC-1:0] bias_0, bias_1;
  (* anyconst *) reg signed_in;
`ifdef OS
  localparam [15:0] K_TILES = 2;
  wire [2*`WEIGHT-1:0] weights_first = weights_0, weights_second = weights_1;
  wire [2*`ACT-1:0] beat_first = {acts_1[`ACT-1:0], acts_0[`ACT-1:0]};
  wire [2*`ACT-1:0] beat_second = {acts_1[2*`ACT-1:`ACT], acts_0[2*`ACT-1:`ACT]};
`else
  localparam [15:0] K_TILES = 1;
  wire [2*`WEIGHT-1:0] weights_first = weights_1, weights_second = weights_0;
  wire [2*`ACT-1:0] beat_first = acts_0, beat_second = acts_1;
`endif

  reg [7:0] cycle = 0;
  reg [2:0] params_sent = 0;
  reg [1:0] weights_sent = 0, acts_sent = 0;
  reg [7:0] outs = 0;
  wire param_ready, weight_ready, act_ready, out_valid, out_last;
  wire [7:0] out_data;
  wire param_valid = cycle > 0 && params_sent < 6;
  wire weight_valid = cycle > 0 && weights_sent < 2;
  wire act_valid = cycle > 0 && acts_sent < 2;
  wire [31:0] word =
      params_sent == 0 ? {K_TILES, 16'd2} :
      params_sent == 1 ? {30'd0, 1'b1, signed_in} :
      params_sent == 2 ? {{32 - `ACC{bias_0[`ACC-1]}}, bias_0} :
      params_sent == 4 ? {{32 - `ACC{bias_1[`ACC-1]}}, bias_1} : 32'd0;
  trilat_core dut (
      .aclk(aclk), .aresetn(cycle > 0), .s_axis_param_tdata(word),
      .s_axis_param_tvalid(param_valid), .s_axis_param_tready(param_ready),
      .s_axis_param_tlast(1'b0),
      .s_axis_weight_tdata(weights_sent == 0 ? weights_first : weights_second),
      .s_axis_weight_tvalid(weight_valid), .s_axis_weight_tready(weight_ready),
      .s_axis_weight_tlast(1'b0),
      .s_axis_act_tdata(acts_sent == 0 ? beat_first : beat_second), .s_axis_act_tvalid(act_valid),
      .s_axis_act_tready(act_ready), .s_axis_act_tlast(1'b0),
      .m_axis_out_tdata(out_data), .m_axis_out_tvalid(out_valid), .m_axis_out_tready(1'b1),
      .m_axis_out_tlast(out_last));
  always @(posedge aclk) begin
    cycle <= cycle + 1;
    if (param_valid && param_ready) params_sent <= params_sent + 1;
    if (weight_valid && weight_ready) weights_sent <= weights_sent + 1;
    if (act_valid && act_ready) acts_sent <= acts_sent + 1;
    if (out_valid) outs <= outs + 1;
  end

  function signed [15:0] act(input [`ACT-1:0] code);
    act = $signed({signed_in & code[`ACT-1], code});
  endfunction
  function signed [15:0] weight(input [`WEIGHT-1:0] code);
    weight = $signed(code);
  endfunction
  wire [2*`ACT-1:0] row = outs < BEATS ? acts_0 : acts_1;
  wire signed [15:0] sum_0 = act(row[`ACT-1:0]) * weight(weights_0[`WEIGHT-1:0])
      + act(row[2*`ACT-1:`ACT]) * weight(weights_1[`WEIGHT-1:0]) + $signed(bias_0);
  wire signed [15:0] sum_1 = act(row[`ACT-1:0]) * weight(weights_0[2*`WEIGHT-1:`WEIGHT])
      + act(row[2*`ACT-1:`ACT]) * weight(weights_1[2*`WEIGHT-1:`WEIGHT]) + $signed(bias_1);
  wire [7:0] part = outs < BEATS ? outs : outs - BEATS;
  wire signed [15:0] shifted_0 = sum_0 >>> (part * `ACT);
  wire signed [15:0] shifted_1 = sum_1 >>> (part * `ACT);
  always @(posedge aclk) begin
    if (cycle > 0 && out_valid) begin
      assert (out_data == {shifted_1[`ACT-1:0], shifted_0[`ACT-1:0]});
      assert (out_last == (outs == 2 * BEATS - 1));
      assert (outs < 2 * BEATS);
    end
    // Everything has come out at the end, so that the rest is not empty words.
    if (cycle == `LATEST) assert (outs == 2 * BEATS);
  end
endmodule
