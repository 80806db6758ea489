// SPDX-License-Identifier: Apache-2.0
// Every parameter word goes to its place, one cycle behind its acceptance, and no word is accepted
// before both sides have taken the words of the tile before.
module prove_parameters (
    input aclk,
    input aresetn,
    input [31:0] data,
    input valid,
    input [`WEIGHTS-1:0] weight_data,
    input weight_valid,
    input act_valid,
    input params_taken
);
  wire ready, complete, take_header, header_waits, lanes_wait, second_word;
  wire [31:0] word;
  wire [`COLS-1:0] write_bias, write_limits;
  wire [`COLS+1:0] turn;
  wire [`ROW_COUNT-1:0] next_m;
  trilat_front dut (
      .aclk(aclk), .aresetn(aresetn), .s_axis_param_tdata(data), .s_axis_param_tvalid(valid),
      .s_axis_param_tready(ready), .s_axis_weight_tdata(weight_data),
      .s_axis_weight_tvalid(weight_valid), .s_axis_act_tvalid(act_valid),
      .params_taken(params_taken), .param_word(word), .write_bias(write_bias),
      .write_limits(write_limits), .params_complete(complete), .next_m(next_m),
      .probe_take_header(take_header), .probe_header_waits(header_waits),
      .probe_lanes_wait(lanes_wait), .probe_turn(turn), .probe_second_word(second_word));

  localparam WORDS = 2 + 2 * `COLS;
  wire accept = valid & ready;
  reg [7:0] index = 0;
  reg header = 0, lanes = 0;
  reg accepted = 0;
  reg [7:0] accepted_index;
  reg [31:0] accepted_word;
  reg [`ROW_COUNT-1:0] m;
  wire last = accept & index == WORDS - 1;
  always @(posedge aclk) begin
    if (accept & index == 0) m <= data[`ROW_COUNT-1:0];
    accepted <= aresetn & accept;
    accepted_index <= index;
    accepted_word <= data;
    if (!aresetn) begin
      index <= 0;
      header <= 0;
      lanes <= 0;
    end else begin
      if (accept) index <= last ? 0 : index + 1;
      header <= last | header & ~take_header;
      lanes <= last | lanes & ~params_taken;
    end
  end

  genvar c;
  generate
    for (c = 0; c < `COLS; c = c + 1)
      always @(posedge aclk) begin
        assert (write_bias[c] == (accepted && accepted_index == 2 + 2 * c));
        assert (write_limits[c] == (accepted && accepted_index == 3 + 2 * c));
        assert (turn[2+c] == (index == 2 + 2 * c || index == 3 + 2 * c));
      end
  endgenerate
  always @(posedge aclk) begin
    if (accepted) assert (word == accepted_word);
    assert (complete == (accepted && accepted_index == WORDS - 1));
    if (ready) assert (!header && !lanes);
    if (take_header) assert (header);
    if (header || lanes || index != 0) assert (next_m == m);
    // How the front holds this; makes the proof inductive.
    assert (index < WORDS && header_waits == header && lanes_wait == lanes);
    assert (turn[0] == (index == 0) && turn[1] == (index == 1));
    assert (second_word == (index >= 2 && index[0]));
    if (header || lanes) assert (index == 0);
  end
endmodule
