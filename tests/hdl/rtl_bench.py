# SPDX-License-Identifier: Apache-2.0
"""A bench for the emitted Verilog that shares nothing with `sim`: one Verilog file, no cocotb.

Beats are packed with Python integers, one by one, so that a mistake in the fast packing of `sim`
or in the accelerator cannot hide behind the same mistake here.
"""

from __future__ import annotations

import random
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hdl.config import AcceleratorConfig
from hdl.core import byte_padded
from hdl.gen import generate
from hdl.registers import register_slice
from hdl.tile import TileJob, k_tiles, param_words, with_common_limits
from trilat import verilator
from trilat.files import content_hash

SOURCES = ("param", "weight", "act")


def all_registers(config: AcceleratorConfig) -> list[tuple[str, int, int]]:
    """Return every register of the schedule's table as (class, row, col)."""
    rows, cols = range(config.rows), range(config.cols)
    names = ("pe_activation", "product", "psum")
    if config.is_os:
        names = ("pe_activation", "pe_weight", "product", "accumulator")
    pack = config.dsp_pack
    places = [
        (name, row, col)
        for name in names
        for row in rows
        for col in cols
        if name != "pe_activation" or col % pack == 0
    ]
    places += [("skew", row, stage) for row in rows for stage in range(row + 1)]
    if config.is_os:
        return places + [
            ("weight_skew", stage, col) for col in cols for stage in range(col // pack + 1)
        ]
    last = (config.cols - 1) // pack
    places += [("deskew", stage, col) for col in cols for stage in range(last - col // pack)]
    return places


@dataclass
class Run:
    """What a simulation showed.

    Attributes:
        act_cycles: cycle in which each activation beat was accepted.
        out_cycles: cycle in which each output beat was taken.
        beats: (tdata, tlast) of each output beat.
        violations: totals (in, out); 0 where there is no counter.
        samples: probed registers (cycles, probes), as unsigned words; cycle 0 first.
        breaches: cycles in which an offered output beat changed, or valid was withdrawn.
    """

    act_cycles: list[int] = field(default_factory=list)
    out_cycles: list[int] = field(default_factory=list)
    beats: list[tuple[int, int]] = field(default_factory=list)
    violations: tuple[int, int] = (0, 0)
    samples: list[list[int]] = field(default_factory=list)
    breaches: int = 0


def widths(config: AcceleratorConfig) -> dict[str, int]:
    return {
        "param": 32,
        "weight": byte_padded(config.cols * config.weight_bits),
        "act": byte_padded(config.rows * config.act_bits),
        "out": byte_padded(config.cols * config.act_bits),
    }


def testbench(
    config: AcceleratorConfig, number: int, probes: Sequence[tuple[str, int, int]]
) -> str:
    """Return the Verilog of bench `number`; a probe is (class, row, col)."""
    width = widths(config)
    declare, load, drive, connect = [], [], [], []
    for name in SOURCES:
        w = width[name]
        declare.append(f"""
  reg [{w - 1}:0] {name}_tdata; reg {name}_tvalid; wire {name}_tready;
  reg [{w + 15}:0] {name}_beats [0:{(1 << 17) - 1}];
  integer {name}_count, {name}_next, {name}_wait;
""")
        load.append(f"""
      if (!$value$plusargs("{name}=%d", {name}_count)) $fatal;
      if ({name}_count > 0) $readmemh("{name}.hex", {name}_beats, 0, {name}_count - 1);""")
        drive.append(f"""
      if ({name}_tvalid === 1'b0 || {name}_tready) begin
        if ({name}_next < {name}_count && {name}_wait == 0) begin
          {name}_tvalid <= 1'b1;
          {name}_tdata <= {name}_beats[{name}_next][{w - 1}:0];
          {name}_wait <= {{16'd0, {name}_beats[{name}_next + 1][{w}+:16]}};
          {name}_next <= {name}_next + 1;
        end else begin
          {name}_tvalid <= 1'b0;
          {name}_tdata <= ~{name}_tdata;
          if ({name}_wait != 0) {name}_wait <= {name}_wait - 1;
        end
      end""")
        connect += [
            f".s_axis_{name}_tdata({name}_tdata), .s_axis_{name}_tvalid({name}_tvalid)",
            f".s_axis_{name}_tready({name}_tready), .s_axis_{name}_tlast(1'b0)",
        ]
    clear = "".join(
        f"""
      {n}_tvalid <= 1'b0; {n}_tdata <= 0; {n}_next <= 0;
      {n}_wait <= {{16'd0, {n}_beats[0][{width[n]}+:16]}};"""
        for n in SOURCES
    )
    connect.append(".params_complete()")
    if config.protect != "none":
        connect.append(".clear_counters(1'b0)")
    if config.checks_input:
        connect.append(".violations_in(violations_in)")
    if config.checks_output:
        connect.append(".violations_out(violations_out)")
    sample = ""
    if probes:
        places = [register_slice(config, *probe) for probe in probes]
        values = ", ".join(f"dut.{p.path}[{p.low}+:{p.bits}]" for p in places)
        sample = f'$fdisplay(file, "S{" %h" * len(probes)}", {values});'
    return f"""`timescale 1ns/1ns
module bench_{number};
  reg aclk = 1'b0, aresetn = 1'b0;
  integer cycle = 0, number, file, outputs = 0, expected, stall, seed, reset_at, limit, idle = 0;
  wire [31:0] violations_in, violations_out;
  wire [{width["out"] - 1}:0] out_tdata; wire out_tvalid, out_tlast; reg out_tready = 1'b0;
  reg [{width["out"]}:0] held; reg was_held = 1'b0;
{"".join(declare)}
  trilat{number}_core dut (.aclk(aclk), .aresetn(aresetn),
    .m_axis_out_tdata(out_tdata), .m_axis_out_tvalid(out_tvalid), .m_axis_out_tready(out_tready),
    .m_axis_out_tlast(out_tlast), {", ".join(connect)});
  // Only the selected bench has a clock.
  initial begin
    if ($value$plusargs("bench=%d", number) && number == {number}) begin
      file = $fopen("log.txt", "w");
      if (!$value$plusargs("expected=%d", expected)) $fatal;
      if (!$value$plusargs("stall=%d", stall)) $fatal;
      if (!$value$plusargs("seed=%d", seed)) $fatal;
      if (!$value$plusargs("reset_at=%d", reset_at)) $fatal;
      if (!$value$plusargs("limit=%d", limit)) $fatal;{"".join(load)}
      forever #1 aclk = ~aclk;
    end
  end
  always @(posedge aclk) begin
    cycle <= cycle + 1;
    aresetn <= !(cycle < 3 || (cycle >= reset_at && cycle < reset_at + 2));
    out_tready <= aresetn && ($unsigned($random(seed)) % 100 >= stall);
    if (!aresetn) begin{clear}
      was_held <= 1'b0;
      if (cycle > reset_at) begin
        outputs <= 0;
        $fdisplay(file, "R");
      end
    end else begin{"".join(drive)}
      if (act_tvalid && act_tready) $fdisplay(file, "A %0d", cycle);
      if (out_tvalid && out_tready) begin
        $fdisplay(file, "O %0d %h %b", cycle, out_tdata, out_tlast);
        outputs <= outputs + 1;
      end
      was_held <= out_tvalid && !out_tready;
      held <= {{out_tlast, out_tdata}};
      if (was_held && (!out_tvalid || held != {{out_tlast, out_tdata}})) $fdisplay(file, "B");
    end
    {sample}
    if (outputs >= expected) idle <= idle + 1;
    if (idle == 60 || cycle > limit) begin
      $fdisplay(file, "V %0d %0d", {"violations_in" if config.checks_input else "0"},
                {"violations_out" if config.checks_output else "0"});
      $fclose(file);
      $finish;
    end
  end
endmodule
"""


class Bench:
    """One simulator for several configurations, since compiling takes far longer than running."""

    def __init__(
        self,
        configs: Sequence[AcceleratorConfig],
        cache: Path,
        probes: Mapping[AcceleratorConfig, Sequence[tuple[str, int, int]]],
    ) -> None:
        """Build it, or take it from `cache`; `probes` are the registers to record."""
        self.configs = list(configs)
        sources = {}
        for number, config in enumerate(self.configs):
            # One name space for all modules: number those of each configuration.
            design = re.sub(r"\btrilat_", f"trilat{number}_", generate(config))
            sources[f"design_{number}.v"] = design.replace("`resetall", "")
            sources[f"bench_{number}.v"] = testbench(config, number, probes.get(config, ()))
        benches = "".join(f"  bench_{i} bench_{i} ();\n" for i in range(len(configs)))
        sources["bench.v"] = f"module bench;\n{benches}endmodule\n"
        name = content_hash({**sources, "verilator": verilator.version()})
        self.simulator = cache / f"simulator-{name}"
        if self.simulator.exists():
            return
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in sources]
            for path in paths:
                path.write_text(sources[path.name])
            verilator.build(
                paths,
                self.simulator,
                top="bench",
                arguments=("--main", "--timing"),
                optimize="-O0",
            )

    def run(
        self,
        config: AcceleratorConfig,
        jobs: Sequence[TileJob],
        *,
        seed: int = 0,
        gap: int = 0,
        stall: int = 0,
        reset_at: int = 1 << 30,
        limit: int | None = None,
    ) -> Run:
        """Stream `jobs`.

        Args:
            config: one of the bench's.
            jobs: output tiles.
            seed: of the pauses.
            gap: a source pauses before a beat with this chance in percent, for 1..8 cycles.
            stall: chance in percent that the receiver is not ready in a cycle.
            reset_at: cycle of a reset, after which everything is sent again.
            limit: cycles after which the simulation gives up.
        """
        rng = random.Random(seed)
        beats = {name: [] for name in SOURCES}
        for job in jobs:
            for name, values in job_beats(config, job).items():
                beats[name] += values
        expected = sum(job.m * (config.raw_beats if job.raw else 1) for job in jobs)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            width = widths(config)
            for stream, values in beats.items():
                with (folder / f"{stream}.hex").open("w") as out:
                    for value in values:
                        pause = rng.randint(1, 8) if rng.random() * 100 < gap else 0
                        out.write(f"{pause << width[stream] | value:x}\n")
            total = sum(len(v) for v in beats.values()) + expected
            options = {
                "bench": self.configs.index(config),
                "expected": expected,
                "stall": stall,
                "seed": seed,
                "reset_at": reset_at,
            }
            options |= {stream: len(v) for stream, v in beats.items()}
            options["limit"] = limit or 20 * total + 3000 + (reset_at if reset_at < 1 << 29 else 0)
            subprocess.run(
                [str(self.simulator), *(f"+{k}={v}" for k, v in options.items())],
                cwd=folder,
                check=True,
                capture_output=True,
            )
            return read_log((folder / "log.txt").read_text())


def read_log(text: str) -> Run:
    run = Run()
    for line in text.splitlines():
        kind, *values = line.split()
        if kind == "A":
            run.act_cycles.append(int(values[0]))
        elif kind == "O":
            run.out_cycles.append(int(values[0]))
            run.beats.append((int(values[1], 16), int(values[2])))
        elif kind == "S":
            run.samples.append([int(v, 16) for v in values])
        elif kind == "V":
            run.violations = (int(values[0]), int(values[1]))
        elif kind == "B":
            run.breaches += 1
        elif kind == "R":
            run.act_cycles, run.out_cycles, run.beats = [], [], []
    return run


def pack(codes: Sequence[int], bits: int) -> int:
    return sum((int(code) & ((1 << bits) - 1)) << (i * bits) for i, code in enumerate(codes))


def job_beats(config: AcceleratorConfig, job: TileJob) -> dict[str, list[int]]:
    weights, acts = [], []
    if config.is_os:
        weights = [pack(row, config.weight_bits) for row in job.weights]
        acts = [pack(column, config.act_bits) for column in job.acts.T]
        return {"param": param_words(config, job), "weight": weights, "act": acts}
    for k in range(k_tiles(config, job)):
        rows = slice(k * config.rows, (k + 1) * config.rows)
        weights += [pack(row, config.weight_bits) for row in job.weights[rows][::-1]]
        acts += [pack(row, config.act_bits) for row in job.acts[:, rows]]
    return {"param": param_words(config, job), "weight": weights, "act": acts}


def read_rows(config: AcceleratorConfig, jobs: Sequence[TileJob], run: Run) -> list[np.ndarray]:
    """Return the output rows of every job; checks tlast and the padding."""
    beats = iter(run.beats)
    bits, result = config.act_bits, []
    for job in jobs:
        rows = []
        count = config.raw_beats if job.raw else 1
        for m in range(job.m):
            words = [0] * config.cols
            for j in range(count):
                data, last = next(beats)
                assert last == (m == job.m - 1 and j == count - 1)
                assert data >> (bits * config.cols) == 0
                for c in range(config.cols):
                    words[c] |= (data >> (c * bits) & ((1 << bits) - 1)) << (j * bits)
            width = count * bits
            if job.raw or job.signed_out:
                words = [w - (1 << width) if w >> (width - 1) else w for w in words]
            rows.append(words)
        result.append(np.array(rows, dtype=np.int64))
    assert next(beats, None) is None, "more output beats than asked for"
    return result


def random_job(
    config: AcceleratorConfig,
    rng: np.random.Generator,
    *,
    m: int,
    k_tiles: int,
    raw: bool = False,
    signed_in: bool | None = None,
    signed_out: bool | None = None,
    extreme: bool = False,
) -> TileJob:
    """Return a job; `extreme` makes all codes the ends of their ranges."""
    bits, cols, count = config.act_bits, config.cols, k_tiles * config.k_step
    signed_in = bool(rng.integers(2)) if signed_in is None else signed_in
    if signed_in not in config.act_signs:
        signed_in = not signed_in
    signed_out = bool(rng.integers(2)) if signed_out is None else signed_out

    def ends(signed: bool) -> tuple[int, int]:
        return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)

    def codes(low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        if extreme:
            return rng.choice(np.array([low, high], dtype=np.int64), shape)
        return rng.integers(low, high + 1, shape)

    w = config.weight_bits
    low, high = ends(signed_in)
    bounds = np.sort(rng.integers(low, high + 1, 2))
    acts = codes(low, high, (m, count))
    weights = codes(-(1 << (w - 1)), (1 << (w - 1)) - 1, (count, cols))
    if extreme:
        weights[:] = weights[:1] if rng.integers(2) else weights
        acts[:] = acts[:, :1] if rng.integers(2) else acts
    sums = np.abs(acts @ weights).max(initial=1)
    out_low, out_high = ends(signed_out)
    limits = np.sort(rng.integers(out_low, out_high + 1, (2, cols)), axis=0)
    wide = rng.integers(0, 2, cols).astype(bool)
    limits[0, wide], limits[1, wide] = out_low, out_high
    bias_limit = 1 << (config.acc_bits - 1)
    bias = rng.integers(-sums - 1, sums + 2, cols).clip(-bias_limit, bias_limit - 1)
    if extreme:
        bias = rng.choice(np.array([-bias_limit, bias_limit - 1]), cols)
    fitting = max(int(sums).bit_length() - bits, 0)
    shift = np.where(
        rng.random(cols) < 0.2, rng.integers(0, 32, cols), rng.integers(0, fitting + 3, cols)
    ).clip(0, 31)
    multiplier = None
    if config.multiplies:
        multiplier = rng.choice(np.array([0, 1, 1 << 15, (1 << 16) - 1]), cols)
        multiplier = np.where(
            rng.random(cols) < 0.3, multiplier, rng.integers(1 << 15, 1 << 16, cols)
        )
        shift = (shift + np.where(multiplier < 2, 0, 16)).clip(0, 63)
    job = TileJob(
        acts=acts,
        weights=weights,
        bias=bias,
        shift=shift,
        lo=limits[0],
        hi=limits[1],
        lo_is_bound=rng.integers(0, 2, cols).astype(bool),
        hi_is_bound=rng.integers(0, 2, cols).astype(bool),
        signed_in=signed_in,
        signed_out=signed_out,
        raw=raw,
        input_lo=int(bounds[0]),
        input_hi=int(bounds[1]),
        multiplier=multiplier,
    )
    return with_common_limits(config, job)
