// SPDX-License-Identifier: Apache-2.0
// Plays stimulus files into the four AXI streams of the accelerator's core and records what comes out.
//
// Every beat is moved here and not in Python, which would be some ten times slower. The cocotb
// testbench (testbench.py) makes clock and reset, writes register faults and is told of events by
// `attention`. Files lie in the working folder; streams.py writes and reads them.
//
//   param.bin, weight.bin, act.bin   records: 4 bytes number of output tiles that must have left
//                                    before this beat is offered, 1 byte flags (bit 0 tlast, bit 1
//                                    first beat of an output tile), then tdata, highest byte first
//   output.txt    one line per output beat: tlast and tdata, in hexadecimal
//   tiles.txt     one line per output tile that left: cycle of its first activation beat, cycle of
//                 its last output beat
//   counters.txt  violations_in, violations_out and breaches of the output's protocol, one line
//                 when each output tile but the first starts, and one at the end
//
// Plusargs: +tiles=N output tiles in all, +stall=0..65535 chance in 65536 that a stream pauses
// for a cycle, +seed=N of the pauses, +quiet=N cycles without a transfer that count as a hang.

`default_nettype none

module source #(
    parameter BYTES = 1,
    parameter FILE = ""
) (
    input  wire               aclk,
    input  wire               aresetn,
    input  wire [31:0]        tiles_out,
    input  wire               pause,
    output reg  [8*BYTES-1:0] tdata,
    output reg                tvalid,
    output reg                tlast,
    output reg                first,
    input  wire               tready
);
  integer file;
  integer got;
  reg [8*BYTES+39:0] beat;
  reg [31:0] after;
  reg loaded;
  reg spent;

  initial begin
    file = $fopen(FILE, "rb");
    if (file == 0) $fatal(1, "cannot open %s", FILE);
    loaded = 1'b0;
    spent = 1'b0;
    tvalid = 1'b0;
  end

  always @(posedge aclk) begin
    if (aresetn) begin
      if ((tvalid & tready | ~loaded) & ~spent) begin
        got = $fread(beat, file);
        if (got == BYTES + 5) begin
          after = beat[8*BYTES+8+:32];
          tlast <= beat[8*BYTES];
          first <= beat[8*BYTES+1];
          tdata <= beat[8*BYTES-1:0];
          loaded <= 1'b1;
          tvalid <= after <= tiles_out & ~pause;
        end else begin
          spent <= 1'b1;
          loaded <= 1'b0;
          tvalid <= 1'b0;
        end
      end else if (tvalid & tready) tvalid <= 1'b0;
      else if (loaded & ~tvalid) tvalid <= after <= tiles_out & ~pause;
    end
  end
endmodule

module harness #(
    parameter WEIGHT_BYTES = 1,
    parameter ACT_BYTES = 1,
    parameter OUT_BYTES = 1
) (
    input wire aclk,
    input wire aresetn,
    // The next register fault: in cycle `alarm_cycle` of output tile `alarm_tile`, counted from its
    // first activation beat or, with `alarm_early`, from its first parameter word.
    input wire [31:0] alarm_tile,
    input wire [31:0] alarm_cycle,
    input wire alarm_early,
    // Toggles in the middle of a cycle when the alarm is due, when the last tile has left and
    // when nothing has moved for too long.
    output reg attention,
    output reg finished,
    output reg hung,
    output reg [31:0] tiles_out,
    output wire [7:0] handshakes
);
  integer tiles, stall, seed, quiet_limit;
  integer output_file, tiles_file, counters_file;
  reg [63:0] random, shuffled;
  reg [31:0] now, act_tile, act_cycle, param_tile, param_cycle, quiet, protocol_errors;
  reg [31:0] first_accept[0:15];

  wire [31:0] param_tdata;
  wire [8*WEIGHT_BYTES-1:0] weight_tdata;
  wire [8*ACT_BYTES-1:0] act_tdata;
  wire [8*OUT_BYTES-1:0] out_tdata;
  wire param_tvalid, param_tready, param_tlast, param_first;
  wire weight_tvalid, weight_tready, weight_tlast, weight_first;
  wire act_tvalid, act_tready, act_tlast, act_first;
  wire out_tvalid, out_tlast;
  wire [31:0] violations_in, violations_out;
  wire [3:0] pause = {
      random[15:0] < stall[15:0], random[31:16] < stall[15:0],
      random[47:32] < stall[15:0], random[63:48] < stall[15:0]
  };
  wire out_tready = ~pause[3];

  source #(.BYTES(4), .FILE("param.bin")) param_source (
      .aclk(aclk), .aresetn(aresetn), .tiles_out(tiles_out), .pause(pause[0]),
      .tdata(param_tdata), .tvalid(param_tvalid), .tlast(param_tlast),
      .first(param_first), .tready(param_tready));
  source #(.BYTES(WEIGHT_BYTES), .FILE("weight.bin")) weight_source (
      .aclk(aclk), .aresetn(aresetn), .tiles_out(tiles_out), .pause(pause[1]),
      .tdata(weight_tdata), .tvalid(weight_tvalid), .tlast(weight_tlast),
      .first(weight_first), .tready(weight_tready));
  source #(.BYTES(ACT_BYTES), .FILE("act.bin")) act_source (
      .aclk(aclk), .aresetn(aresetn), .tiles_out(tiles_out), .pause(pause[2]),
      .tdata(act_tdata), .tvalid(act_tvalid), .tlast(act_tlast),
      .first(act_first), .tready(act_tready));

  `DUT dut (
      .aclk(aclk), .aresetn(aresetn),
      .s_axis_param_tdata(param_tdata), .s_axis_param_tvalid(param_tvalid),
      .s_axis_param_tready(param_tready), .s_axis_param_tlast(param_tlast),
      .s_axis_weight_tdata(weight_tdata), .s_axis_weight_tvalid(weight_tvalid),
      .s_axis_weight_tready(weight_tready), .s_axis_weight_tlast(weight_tlast),
      .s_axis_act_tdata(act_tdata), .s_axis_act_tvalid(act_tvalid),
      .s_axis_act_tready(act_tready), .s_axis_act_tlast(act_tlast),
      .m_axis_out_tdata(out_tdata), .m_axis_out_tvalid(out_tvalid),
      .params_complete(),
`ifdef CHECKS_INPUT
      .violations_in(violations_in),
`endif
`ifdef CHECKS_OUTPUT
      .violations_out(violations_out),
`endif
`ifdef CHECKS
      .clear_counters(1'b0),
`endif
      .m_axis_out_tready(out_tready), .m_axis_out_tlast(out_tlast));
`ifndef CHECKS_INPUT
  assign violations_in = 32'd0;
`endif
`ifndef CHECKS_OUTPUT
  assign violations_out = 32'd0;
`endif


  assign handshakes = {
      param_tvalid, param_tready, weight_tvalid, weight_tready,
      act_tvalid, act_tready, out_tvalid, out_tready
  };
  wire moved = param_tvalid & param_tready | weight_tvalid & weight_tready
      | act_tvalid & act_tready | out_tvalid & out_tready;
  wire tile_starts = act_tvalid & act_tready & act_first;
  wire [31:0] this_tile = act_tile + {31'b0, tile_starts};
  wire [31:0] this_cycle = tile_starts ? 32'd0 : act_cycle;
  wire param_starts = param_tvalid & param_tready & param_first;
  wire [31:0] this_param_tile = param_tile + {31'b0, param_starts};
  wire [31:0] this_param_cycle = param_starts ? 32'd0 : param_cycle;
  wire alarm = alarm_early ? this_param_tile == alarm_tile & this_param_cycle == alarm_cycle
      : this_tile == alarm_tile & this_cycle == alarm_cycle;
  reg [8*OUT_BYTES:0] held;
  reg holding;

  initial begin
    if (!$value$plusargs("tiles=%d", tiles)) tiles = 0;
    if (!$value$plusargs("stall=%d", stall)) stall = 0;
    if (!$value$plusargs("seed=%d", seed)) seed = 0;
    if (!$value$plusargs("quiet=%d", quiet_limit)) quiet_limit = 10000;
    random = {32'h9e3779b9, seed ^ 32'h7f4a7c15};
    output_file = $fopen("output.txt", "w");
    tiles_file = $fopen("tiles.txt", "w");
    counters_file = $fopen("counters.txt", "w");
    {now, tiles_out, quiet, protocol_errors, act_cycle, param_cycle} = 0;
    act_tile = 32'hffffffff;
    param_tile = 32'hffffffff;
    {attention, finished, hung, holding} = 0;
  end

  always @(posedge aclk) begin
    // Marsaglia's xorshift64.
    shuffled = random ^ (random << 13);
    shuffled = shuffled ^ (shuffled >> 7);
    random <= shuffled ^ (shuffled << 17);
    if (aresetn) begin
      now <= now + 1;
      quiet <= moved ? 0 : quiet + 1;
      act_cycle <= this_cycle + 1;
      act_tile <= this_tile;
      param_cycle <= this_param_cycle + 1;
      param_tile <= this_param_tile;
      if (tile_starts) first_accept[this_tile[3:0]] <= now;
      if (tile_starts & this_tile != 0)
        $fdisplay(counters_file, "%0d %0d %0d", violations_in, violations_out, protocol_errors);
      // A beat that was offered and not taken must stay as it is.
      if (holding & (~out_tvalid | held != {out_tlast, out_tdata}))
        protocol_errors <= protocol_errors + 1;
      holding <= out_tvalid & ~out_tready;
      held <= {out_tlast, out_tdata};
      if (out_tvalid & out_tready) begin
        $fdisplay(output_file, "%x %x", out_tlast, out_tdata);
        if (out_tlast) begin
          $fdisplay(tiles_file, "%0d %0d", first_accept[tiles_out[3:0]], now);
          tiles_out <= tiles_out + 1;
        end
      end
    end
  end

  always @(negedge aclk)
    if (aresetn) begin
      if (alarm) attention <= ~attention;
      if (~finished & tiles_out == tiles) begin
        finished <= 1'b1;
        attention <= ~attention;
      end
      if (~hung & ~finished & quiet == quiet_limit) begin
        hung <= 1'b1;
        attention <= ~attention;
      end
    end

  final begin
    $fdisplay(counters_file, "%0d %0d %0d", violations_in, violations_out, protocol_errors);
    $fclose(counters_file);
    $fclose(output_file);
    $fclose(tiles_file);
  end
endmodule
