// SPDX-License-Identifier: Apache-2.0
// The whole core, for tiles of all sizes: every tile gives as many output beats as its parameters
// say, the last of them marked; and from the cycle `go` on, in which all senders and the receiver
// become ready for good, something always moves. Up to then any stream pauses at any time; with
// FREE none ever does, and the proof looks at more cycles.
module prove_flow (
    input aclk,
    input [31:0] param_data,
    input param_valid,
    input weight_valid,
    input act_valid,
    input [7:0] weight_data,
    input [7:0] act_data,
    input out_ready,
    input going
);
  reg started = 0, go = 0;
  wire param_ready, weight_ready, act_ready, out_valid, out_last;
  wire [7:0] out_data;
  wire pv = started & (param_valid | go);
  wire wv = started & (weight_valid | go);
  wire av = started & (act_valid | go);
  wire ready = out_ready | go;
  trilat_core dut (
      .aclk(aclk), .aresetn(started), .s_axis_param_tdata(param_data),
      .s_axis_param_tvalid(pv), .s_axis_param_tready(param_ready), .s_axis_param_tlast(1'b0),
      .s_axis_weight_tdata(weight_data), .s_axis_weight_tvalid(wv),
      .s_axis_weight_tready(weight_ready), .s_axis_weight_tlast(1'b0),
      .s_axis_act_tdata(act_data), .s_axis_act_tvalid(av), .s_axis_act_tready(act_ready),
      .s_axis_act_tlast(1'b0), .m_axis_out_tdata(out_data), .m_axis_out_tvalid(out_valid),
      .m_axis_out_tready(ready), .m_axis_out_tlast(out_last));

  // What has been promised: beats of the tiles whose words came, oldest first.
  localparam WORDS = 2 + 2 * `COLS;
  reg [7:0] index = 0, m = 0;
  reg [7:0] owed[0:3];
  reg [2:0] tiles = 0;
  wire accept = pv & param_ready;
  wire last_word = accept & index == WORDS - 1;
  reg raw = 0;
  wire pop = out_valid & ready;
  wire done = pop & owed[0] == 1;
  reg [7:0] idle = 0;
  wire moved = accept | wv & weight_ready | av & act_ready | pop;
  integer i;
`ifdef FREE
  always @(*) assume (going);
`endif
  always @(*) begin
    if (index == 0) begin
      assume (param_data[15:0] >= 1 && param_data[15:0] <= `DEPTH);
      assume (param_data[31:16] >= 1 && param_data[31:16] <= `K_TILES);
    end
  end
  always @(posedge aclk) begin
    started <= 1;
    go <= go | going;
    if (accept) begin
      index <= last_word ? 0 : index + 1;
      if (index == 0) m <= param_data[7:0];
      if (index == 1) raw <= param_data[1];
    end
    if (done) for (i = 0; i < 3; i = i + 1) owed[i] <= owed[i+1];
    else if (pop) owed[0] <= owed[0] - 1;
    if (last_word) owed[tiles - done] <= raw ? m * `RAW_BEATS : m;
    tiles <= tiles + last_word - done;
    idle <= !go || moved ? 0 : idle + 1;
    if (started) begin
      if (out_valid) assert (tiles != 0 && owed[0] != 0 && out_last == (owed[0] == 1));
      assert (tiles <= 3);
      assert (idle < `PATIENCE);
    end
  end
endmodule
