// SPDX-License-Identifier: Apache-2.0
// The ring between array and requantizer is a queue, as long as it has room: rows are read in the
// order in which they were written, none twice, none before it is there.
module prove_ring (
    input aclk,
    input aresetn,
    input beat_valid,
    input beat_first,
    input beat_last,
    input beat_end,
    input params_complete,
    input [`ROW_COUNT-1:0] next_m,
    input next_raw,
    input next_signed,
    input advance
);
  localparam SIZE = 2 * `DEPTH;
  wire write_ring, issue, drained;
  wire [`RING-1:0] ring_write, ring_read;
  wire [`RING:0] available;
  trilat_drain dut (
      .aclk(aclk), .aresetn(aresetn), .beat_valid(beat_valid), .beat_first(beat_first),
      .beat_last(beat_last), .beat_end(beat_end), .params_complete(params_complete),
      .next_m(next_m), .next_raw(next_raw), .next_signed(next_signed), .advance(advance),
      .write_ring(write_ring), .ring_write(ring_write), .ring_read(ring_read),
      .probe_available(available), .probe_issue(issue), .probe_drained(drained));
  // The sender's parameters and the two sets of parameter registers keep it: see the documentation.
  always @(*) assume (!(write_ring && available == SIZE && !drained));

  // Rows written and read so far, and where each of them has its place.
  reg [15:0] written = 0, taken = 0;
  reg [`RING-1:0] next_write = 0, next_read = 0;
  always @(posedge aclk) begin
    if (!aresetn) begin
      written <= 0;
      taken <= 0;
      next_write <= 0;
      next_read <= 0;
    end else begin
      written <= written + write_ring;
      taken <= taken + drained;
      if (write_ring) next_write <= next_write == SIZE - 1 ? 0 : next_write + 1;
      if (drained) next_read <= next_read == SIZE - 1 ? 0 : next_read + 1;
    end
    assert (available == written - taken && available <= SIZE);
    assert (ring_write == next_write && ring_read == next_read);
    assert (ring_write < SIZE && ring_read < SIZE);
    // The distance of the places is the number of rows: no place is written before it is read.
    assert ((ring_read + available) % SIZE == ring_write);
    if (issue) assert (available != 0);
    if (drained) assert (issue && advance);
  end
endmodule
