// SPDX-License-Identifier: Apache-2.0
// Weight beats leave the front in the order in which they were accepted, none lost or doubled;
// a block is `ROWS` of them, and none moves into the array over a block that waits for its swap.
module prove_weight_buffer (
    input aclk,
    input aresetn,
    input [31:0] param_data,
    input param_valid,
    input [`WEIGHTS-1:0] data,
    input valid,
    input act_valid,
    input params_taken
);
  wire ready, act_ready, starts, move, head_valid, spare_valid, block_waits;
  wire [`WEIGHTS-1:0] weights, spare;
  wire [`ROWS-1:0] load, reach;
  trilat_front dut (
      .aclk(aclk), .aresetn(aresetn), .s_axis_param_tdata(param_data),
      .s_axis_param_tvalid(param_valid), .s_axis_weight_tdata(data),
      .s_axis_weight_tvalid(valid), .s_axis_weight_tready(ready),
      .s_axis_act_tvalid(act_valid), .s_axis_act_tready(act_ready), .params_taken(params_taken),
      .weights(weights), .load(load), .probe_move_weights(move), .probe_head_valid(head_valid),
      .probe_spare_valid(spare_valid), .probe_spare_weights(spare),
      .probe_block_waits(block_waits), .probe_reach(reach), .probe_k_tile_starts(starts));

  reg [1:0] count = 0;
  reg [`WEIGHTS-1:0] first, second;
  wire push = valid & ready;
  always @(posedge aclk) begin
    if (!aresetn) count <= 0;
    else count <= count + push - move;
    if (move) first <= count == 2 ? second : data;
    else if (count == 0) first <= data;
    if (count + push - move == 2) second <= count == 2 & ~move ? second : data;
  end

  // The block that is being loaded: beats so far; and whether a complete one waits.
  wire swap = act_valid & act_ready & starts;
  reg [7:0] beats = 0;
  reg waits = 0;
  always @(posedge aclk) begin
    if (!aresetn) begin
      beats <= 0;
      waits <= 0;
    end else begin
      beats <= move ? (beats == `ROWS - 1 ? 0 : beats + 1) : beats;
      waits <= move & beats == `ROWS - 1 | waits & ~swap;
    end
  end
  reg moved = 0;
  reg [`ROWS-1:0] reached;
  always @(posedge aclk) begin
    moved <= aresetn & move;
    reached <= (2 << beats) - 1;
  end

  always @(posedge aclk) begin
    if (move) assert (count != 0 && weights == first);
    if (move) assert (!waits || swap);
    // A swap takes a complete block.
    if (swap) assert (waits);
    // Row r takes a weight from the r+1-th beat of a block on.
    assert (load == (moved ? reached : 0));
    assert (!(ready && count == 2));
    // How the front holds this; makes the proof inductive.
    assert (count <= 2 && head_valid == (count != 0) && spare_valid == (count == 2));
    if (count != 0) assert (weights == first);
    if (spare_valid) assert (spare == second);
    assert (beats < `ROWS && reach == (2 << beats) - 1 && block_waits == waits);
    if (act_ready && starts) assert (waits);
  end
endmodule
