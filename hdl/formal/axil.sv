// SPDX-License-Identifier: Apache-2.0
// The register bus, for all addresses and pauses: every access has one answer, in order, with the
// response and the data that are due; an offered answer stays; only a write of 1 with its strobe to
// the control register clears the counters; an access that can be answered is, at once.
module prove_axil (
    input aclk,
    input aresetn,
    input [11:0] awaddr,
    input [2:0] prot,
    input awvalid,
    input [31:0] wdata,
    input [3:0] wstrb,
    input wvalid,
    input bready,
    input [11:0] araddr,
    input arvalid,
    input rready,
    input [31:0] hash_high,
    input [31:0] hash_low,
    input [31:0] shape,
    input [31:0] limits,
    input [2:0] status,
    input [31:0] busy,
    input [31:0] param_starved,
    input [31:0] weight_starved,
    input [31:0] act_starved,
    input [31:0] out_blocked,
    input [31:0] tiles,
    input [31:0] in,
    input [31:0] out
);
  wire awready, wready, bvalid, arready, rvalid, clear;
  wire [1:0] bresp, rresp;
  wire [31:0] rdata;
  wire aw_held, w_held, ar_held, write_data, write_strobes, write_outside, read_outside;
  wire [`INDEX-1:0] write_index, read_index;
  trilat_axil dut (
      .aclk(aclk), .aresetn(aresetn), .s_axil_awaddr(awaddr), .s_axil_awprot(prot),
      .s_axil_awvalid(awvalid), .s_axil_awready(awready), .s_axil_wdata(wdata),
      .s_axil_wstrb(wstrb), .s_axil_wvalid(wvalid), .s_axil_wready(wready),
      .s_axil_bresp(bresp), .s_axil_bvalid(bvalid), .s_axil_bready(bready),
      .s_axil_araddr(araddr), .s_axil_arprot(prot), .s_axil_arvalid(arvalid),
      .s_axil_arready(arready), .s_axil_rdata(rdata), .s_axil_rresp(rresp),
      .s_axil_rvalid(rvalid), .s_axil_rready(rready), .config_hash_high(hash_high),
      .config_hash_low(hash_low), .shape(shape), .limits(limits), .status(status),
      .cycles_busy(busy), .cycles_param_starved(param_starved),
      .cycles_weight_starved(weight_starved), .cycles_act_starved(act_starved),
      .cycles_out_blocked(out_blocked), .tiles_done(tiles), .violations_in(in),
      .violations_out(out), .clear_counters(clear), .probe_aw_held(aw_held), .probe_w_held(w_held),
      .probe_ar_held(ar_held), .probe_write_index(write_index), .probe_read_index(read_index),
      .probe_write_outside(write_outside), .probe_read_outside(read_outside),
      .probe_write_data(write_data), .probe_write_strobes(write_strobes));

  // Accepted and not yet answered; the one that is answered next.
  reg [1:0] addresses = 0, words = 0, reads = 0;
  reg [11:0] address, read_address;
  reg data, strobe;
  wire b = bvalid & bready, r = rvalid & rready;
  wire answer = aw_held & w_held & ~(bvalid & ~bready);
  wire read = ar_held & ~(rvalid & ~rready);
  wire control = address[11:2] == `CONTROL;
  reg [31:0] value;
  always @(*)
    case (read_address[11:2])
      `ID: value = `IDENTIFICATION;
      `VERSION: value = `INTERFACE;
      `CONFIG_HASH_HIGH: value = hash_high;
      `CONFIG_HASH_LOW: value = hash_low;
      `SHAPE: value = shape;
      `LIMITS: value = limits;
      `STATUS: value = status;
      `CYCLES_BUSY: value = busy;
      `CYCLES_PARAM_STARVED: value = param_starved;
      `CYCLES_WEIGHT_STARVED: value = weight_starved;
      `CYCLES_ACT_STARVED: value = act_starved;
      `CYCLES_OUT_BLOCKED: value = out_blocked;
      `TILES_DONE: value = tiles;
      `VIOLATIONS_IN: value = in;
      `VIOLATIONS_OUT: value = out;
      default: value = 0;
    endcase

  reg running = 0;  // out of reset
  reg waits_b = 0, waits_r = 0, answered = 0, has_read = 0, clears = 0, read_known = 0;
  reg [1:0] due_b = 0, offered_b = 0;
  reg [33:0] due_r = 0, offered_r = 0;
  always @(posedge aclk) begin
    if (!aresetn) begin
      addresses <= 0;
      words <= 0;
      reads <= 0;
    end else begin
      addresses <= addresses + (awvalid & awready) - b;
      words <= words + (wvalid & wready) - b;
      reads <= reads + (arvalid & arready) - r;
    end
    if (awvalid & awready) address <= awaddr;
    if (wvalid & wready) {data, strobe} <= {wdata[0], wstrb[0]};
    if (arvalid & arready) read_address <= araddr;
    running <= aresetn;
    waits_b <= aresetn & bvalid & ~bready;
    waits_r <= aresetn & rvalid & ~rready;
    offered_b <= bresp;
    offered_r <= {rresp, rdata};
    answered <= aresetn & answer;
    has_read <= aresetn & read;
    clears <= aresetn & answer & control & data & strobe;
    due_b <= control ? 2'b00 : 2'b10;
    read_known <= read_address[11:2] < `REGISTERS;
    due_r <= {read_address[11:2] < `REGISTERS ? 2'b00 : 2'b10, value};

    // One answer for each access, none without.
    assert (addresses == aw_held + bvalid);
    assert (words == w_held + bvalid);
    assert (reads == ar_held + rvalid);
    assert (!(awready & aw_held) && !(wready & w_held) && !(arready & ar_held));
    // What holds nothing takes something.
    if (running) assert (awready == !aw_held && wready == !w_held && arready == !ar_held);
    // An offered answer stays.
    if (waits_b) assert (bvalid && bresp == offered_b);
    if (waits_r) assert (rvalid && {rresp, rdata} == offered_r);
    // The right answer and effect, in the cycle behind.
    if (answered) assert (bvalid && bresp == due_b);
    assert (clear == clears);
    if (has_read) assert (rvalid && rresp == due_r[33:32]);
    if (has_read && read_known) assert (rdata == due_r[31:0]);
    // What is held is what was accepted; makes the proof inductive.
    if (aw_held) assert (write_outside == |address[11:2+`INDEX]);
    if (aw_held) assert (write_index == address[2+:`INDEX]);
    if (w_held) assert ({write_data, write_strobes} == {data, strobe});
    if (ar_held) assert (read_outside == |read_address[11:2+`INDEX]);
    if (ar_held) assert (read_index == read_address[2+:`INDEX]);
  end
endmodule
