// SPDX-License-Identifier: Apache-2.0
// The performance counters, from any counts: each adds what docs/architecture.md says of the cycle
// before the last, and starts at zero after a reset or a clear.
module prove_counters (
    input aclk,
    input aresetn,
    input clear,
    input complete,
    input [3:0] valid,  // param, weight, act, out
    input [3:0] ready,
    input last
);
  wire [2:0] status, in_flight;
  wire e_busy, e_param, e_weight, e_act, e_blocked, e_tiles;
  wire [31:0] busy, param, weight, act, blocked, tiles;
  trilat_counters dut (
      .aclk(aclk), .aresetn(aresetn), .clear_counters(clear), .params_complete(complete),
      .s_axis_param_tvalid(valid[0]), .s_axis_param_tready(ready[0]),
      .s_axis_weight_tvalid(valid[1]), .s_axis_weight_tready(ready[1]),
      .s_axis_act_tvalid(valid[2]), .s_axis_act_tready(ready[2]),
      .m_axis_out_tvalid(valid[3]), .m_axis_out_tready(ready[3]), .m_axis_out_tlast(last),
      .status(status), .cycles_busy(busy), .cycles_param_starved(param),
      .cycles_weight_starved(weight), .cycles_act_starved(act), .cycles_out_blocked(blocked),
      .tiles_done(tiles), .probe_in_flight(in_flight), .probe_cycles_busy_event(e_busy),
      .probe_cycles_param_starved_event(e_param), .probe_cycles_weight_starved_event(e_weight),
      .probe_cycles_act_starved_event(e_act), .probe_cycles_out_blocked_event(e_blocked),
      .probe_tiles_done_event(e_tiles));

  // Tiles that have all their parameters and have not left.
  reg [2:0] tiles_inside = 0;
  wire inside = tiles_inside != 0;
  wire done = valid[3] & ready[3] & last;
  wire [5:0] now = {done, inside & valid[3] & ~ready[3], {3{inside}} & ready[2:0] & ~valid[2:0],
                    inside};
  reg [5:0] event_before = 0;
  reg [191:0] sums = 0;
  reg [2:0] seen = 0;
  integer i;
  always @(posedge aclk) begin
    tiles_inside <= aresetn ? tiles_inside + complete - done : 0;
    seen <= aresetn ? {valid[3] & ~ready[3], ~ready[0], inside} : 0;
    event_before <= aresetn ? now : 0;
    for (i = 0; i < 6; i = i + 1)
      sums[32*i+:32] <= aresetn & ~clear ? sums[32*i+:32] + event_before[i] : 0;
    assert (status == seen && in_flight == tiles_inside);
    assert ({e_tiles, e_blocked, e_act, e_weight, e_param, e_busy} == event_before);
    assert ({tiles, blocked, act, weight, param, busy} == sums);
  end
endmodule
