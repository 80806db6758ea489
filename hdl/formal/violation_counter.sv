// SPDX-License-Identifier: Apache-2.0
// The counter adds the set bits of `violated` of every enabled cycle, from any count, and starts at
// zero after a reset or a clear.
module prove_violation_counter (
    input aclk,
    input aresetn,
    input enable,
    input clear,
    input [`WIDTH-1:0] violated
);
  wire [31:0] total;
  wire [`COUNT-1:0] count;
  `COUNTER dut (
      .aclk(aclk), .aresetn(aresetn), .enable(enable), .clear(clear), .violated(violated),
      .total(total), .probe_count(count));

  reg [31:0] expected = 0;
  reg [`COUNT-1:0] last = 0;
  integer i;
  reg [`COUNT-1:0] ones;
  always @(*) begin
    ones = 0;
    for (i = 0; i < `WIDTH; i = i + 1) ones = ones + violated[i];
  end
  always @(posedge aclk) begin
    last <= aresetn && enable ? ones : 0;
    expected <= aresetn && !clear ? expected + last : 0;
    assert (total == expected);
    assert (count == last);
  end
endmodule
