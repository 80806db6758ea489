// SPDX-License-Identifier: Apache-2.0
// The output buffer is a queue: nothing lost, doubled or reordered; an offered beat stays.
module prove_output_buffer (
    input aclk,
    input aresetn,
    input [`CODE-1:0] code,
    input code_valid,
    input code_last,
    input m_axis_out_tready
);
  wire advance, tlast, tvalid, spare_valid, spare_last;
  wire [`CODE-1:0] tdata, spare;
  trilat_output_buffer dut (
      .aclk(aclk), .aresetn(aresetn), .code(code), .code_valid(code_valid), .code_last(code_last),
      .advance(advance), .m_axis_out_tdata(tdata), .m_axis_out_tlast(tlast),
      .m_axis_out_tvalid(tvalid), .m_axis_out_tready(m_axis_out_tready),
      .probe_spare(spare), .probe_spare_last(spare_last), .probe_spare_valid(spare_valid));

  // The queue: `first` and `second` of `count` beats.
  reg [1:0] count = 0;
  reg [`CODE:0] first, second;
  wire push = code_valid & advance;
  wire pop = tvalid & m_axis_out_tready;
  wire [`CODE:0] beat = {code_last, code};
  always @(posedge aclk) begin
    if (!aresetn) count <= 0;
    else count <= count + push - pop;
    if (pop) first <= count == 2 ? second : beat;
    else if (count == 0) first <= beat;
    if (count + push - pop == 2) second <= count == 2 & ~pop ? second : beat;
  end

  reg waited = 0;
  reg [`CODE:0] offered;
  always @(posedge aclk) begin
    waited <= aresetn & tvalid & ~m_axis_out_tready;
    offered <= {tlast, tdata};
  end

  always @(posedge aclk) begin
    assert (tvalid == (count != 0));
    if (count != 0) assert ({tlast, tdata} == first);
    if (waited) assert (tvalid && {tlast, tdata} == offered);
    // What the buffer does not take, it does not let move.
    assert (!(advance && count == 2));
    // How the buffer holds the queue; makes the proof inductive.
    assert (count <= 2 && spare_valid == (count == 2));
    if (spare_valid) assert ({spare_last, spare} == second);
  end
endmodule
