# SPDX-License-Identifier: Apache-2.0
"""Several accelerators in one simulator, met by the bus models of cocotbext-axi.

Building a simulator takes far longer than running it, and much of that does not depend on the
design: a dozen configurations are one simulator.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cocotb_tools.config
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hdl.config import (
    ACT_SIGNS,
    BOUNDS,
    MULTIPLIERS,
    PLACES,
    PROTECTIONS,
    REQUANTS,
    AcceleratorConfig,
)
from hdl.gen import generate
from hdl.register_map import REGISTERS
from hdl.tile import TileJob, param_words, reference_output, stream_beats
from sim.drive import trial_job
from sim.runner import environment
from sim.streams import pack, unpack
from trilat import verilator
from trilat.files import content_hash

SMALLEST = AcceleratorConfig(rows=1, cols=1, act_bits=2, weight_bits=2, max_k=1, psum_depth=2)
FIRST = (SMALLEST, replace(SMALLEST, dataflow="os"))
# Kinds that are drawn in turn: dataflow, columns of a multiplier block.
KINDS = (("os", (1,)), ("ws", (1,)), ("os", (2, 3, 4)), ("ws", (2, 3, 4)))


@st.composite
def configs(draw: st.DrawFn, dataflow: str, packs: Sequence[int]) -> AcceleratorConfig:
    rows, pack = draw(st.integers(1, 6)), draw(st.sampled_from(packs))
    # Columns that share a multiplier block are narrow.
    bits = st.integers(2, {1: 8, 2: 4, 3: 3, 4: 2}[pack])
    return AcceleratorConfig(
        dataflow=dataflow,
        rows=rows,
        cols=pack * draw(st.integers(1, 6 // pack)),
        act_bits=draw(bits),
        weight_bits=draw(bits),
        max_k=draw(st.sampled_from([rows, 3 * rows - 1, 5 * rows, 4608, 65535])),
        psum_depth=draw(st.integers(2, 12)),
        protect=draw(st.sampled_from(PROTECTIONS)),
        protect_place=draw(st.sampled_from(PLACES)),
        act_sign=draw(st.sampled_from(ACT_SIGNS)),
        bounds=draw(st.sampled_from(BOUNDS)),
        requant=draw(st.sampled_from(REQUANTS)),
        mult="dsp" if pack > 1 else draw(st.sampled_from(MULTIPLIERS)),
        dsp_pack=pack,
    )


def drawn(dataflow: str, packs: Sequence[int], tries: int) -> list[AcceleratorConfig]:
    """Return different configurations of a kind, the same in every run."""
    found: list[AcceleratorConfig] = []

    @settings(
        max_examples=tries,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(configs(dataflow, packs))
    def collect(config: AcceleratorConfig) -> None:
        if config not in (*found, *FIRST):
            found.append(config)

    collect()
    return found


def drawn_configs(count: int) -> list[AcceleratorConfig]:
    """Return the smallest configurations and others of all `KINDS`, the same in every run."""
    kinds = [drawn(dataflow, packs, 10 * count) for dataflow, packs in KINDS]
    # Hypothesis starts with the smallest and varies one into the next: neighbours are alike.
    kinds = [kind[:: -max(1, 3 * len(kind) // (2 * count))] for kind in kinds]
    mixed = [config for same in zip(*kinds, strict=False) for config in same]
    assert len(mixed) >= count
    return [*FIRST, *mixed][:count]


@dataclass(frozen=True, kw_only=True)
class Round:
    """Tiles sent back to back, possibly behind a reset in the middle of others.

    Attributes:
        jobs: what comes out of them is compared.
        before: sent ahead of the reset.
        reset_after: cycles up to the reset; 0: none.
        pause: about the share of cycles in which each stream pauses.
        seed: of the pauses.
    """

    jobs: Sequence[TileJob]
    before: Sequence[TileJob]
    reset_after: int
    pause: float
    seed: int


def rounds(config: AcceleratorConfig, seed: int) -> list[Round]:
    rng = np.random.default_rng(seed)
    jobs = [[trial_job(config, rng) for _ in range(n)] for n in (6, 6, 3, 3, 4)]
    reset_after = int(rng.integers(12, 30 + 4 * (config.rows + config.cols)))
    return [
        Round(jobs=jobs[0], before=[], reset_after=0, pause=0.0, seed=seed),
        Round(jobs=jobs[1], before=[], reset_after=0, pause=0.5, seed=seed + 1),
        Round(jobs=jobs[2], before=jobs[3], reset_after=reset_after, pause=0.3, seed=seed + 2),
        Round(jobs=jobs[4], before=[], reset_after=0, pause=0.8, seed=seed + 3),
    ]


def frames(config: AcceleratorConfig, jobs: Sequence[TileJob]) -> dict[str, list[str]]:
    """Return the frames of the three input streams: parameter words, weight blocks, K tiles."""
    found: dict[str, list[str]] = {"param": [], "weight": [], "act": []}
    for job in jobs:
        words = np.array(param_words(config, job), dtype=np.int64)[:, None]
        found["param"].append(pack(words, 32).tobytes().hex())
        beats = stream_beats(config, job)
        for name, values, bits, period in (
            ("weight", beats.weights, config.weight_bits, beats.weight_last),
            ("act", beats.acts, config.act_bits, beats.act_last),
        ):
            data = pack(values, bits)
            for first in range(0, len(data), period):
                found[name].append(data[first : first + period].tobytes().hex())
    return found


def output_rows(config: AcceleratorConfig, job: TileJob, frame: str) -> np.ndarray:
    """Return the rows in a frame of m_axis_out."""
    size = -(-config.cols * config.act_bits // 8)
    data = np.frombuffer(bytes.fromhex(frame), np.uint8).reshape(-1, size)
    codes = unpack(data, config.cols, config.act_bits)
    bits = config.act_bits
    if job.raw:
        parts = codes.reshape(-1, config.raw_beats, config.cols)
        weights = np.int64(1) << (np.arange(config.raw_beats) * bits)
        codes, bits = (parts * weights[None, :, None]).sum(axis=1), config.raw_beats * bits
    signed = job.raw or job.signed_out
    return codes - ((codes >> (bits - 1)) << bits) if signed else codes


def output_frame(config: AcceleratorConfig, job: TileJob, rows: np.ndarray) -> bytes:
    """Return the frame of m_axis_out that `output_rows` reads back."""
    count, bits = (config.raw_beats if job.raw else 1), config.act_bits
    beats = np.stack([rows >> (j * bits) for j in range(count)], axis=1)
    return pack(beats.reshape(-1, config.cols), bits).tobytes()


class AxiBench:
    """One simulator for several configurations."""

    def __init__(self, configs: Sequence[AcceleratorConfig], cache: Path) -> None:
        self.configs = list(configs)
        self.verilog = [generate(config) for config in self.configs]
        sources = []
        for number, text in enumerate(self.verilog):
            own = re.sub(r"\btrilat_", f"trilat{number}_", text).replace("`resetall", "")
            sources += [own, wrapper(number, own)]
        top = "".join(f"  axi_{n} axi_{n} ();\n" for n in range(len(self.configs)))
        sources.append(f"module bench;\n{top}endmodule\n")
        key = content_hash([*sources, verilator.version(), importlib.metadata.version("cocotb")])
        self.simulator = cache / f"axi-{key}"
        if self.simulator.exists():
            return
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="trilat-axi-") as name:
            folder = Path(name)
            (folder / "bench.v").write_text("\n".join(sources))
            (folder / "accessible.vlt").write_text(
                '`verilator_config\npublic_flat_rw -module "axi_*" -var "*"\n'
            )
            main = Path(cocotb_tools.config.share_dir) / "lib" / "verilator" / "verilator.cpp"
            verilator.build(
                [folder / "accessible.vlt", folder / "bench.v", main],
                self.simulator,
                top="bench",
                arguments=("--vpi", "--no-timing", "-LDFLAGS", "-lcocotbvpi_verilator"),
                libraries=Path(cocotb_tools.config.libs_dir),
                optimize="-O0",
                jobs=2,
                runtime_cache=cache,
            )

    def run(self, plans: Sequence[Sequence[Round]]) -> list[list[dict[str, object]]]:
        """Run the rounds of every configuration; return what the bus models saw."""
        plan = [
            [
                {
                    "frames": frames(config, item.jobs),
                    "before": frames(config, item.before),
                    "reset_after": item.reset_after,
                    "pause": item.pause,
                    "seed": item.seed,
                    "expected": len(item.jobs),
                    "patience": 20_000,
                }
                for item in items
            ]
            for config, items in zip(self.configs, plans, strict=True)
        ]
        with tempfile.TemporaryDirectory(prefix="trilat-axi-") as name:
            folder = Path(name)
            offsets = {word.name: word.offset for word in REGISTERS if not word.writable}
            (folder / "plan.json").write_text(json.dumps({"rounds": plan, "registers": offsets}))
            here = str(Path(__file__).parent)
            env = environment("bench", "axi_testbench")
            done = subprocess.run(
                [str(self.simulator.resolve())],
                cwd=folder,
                env={**env, "PYTHONPATH": f"{here}:{env['PYTHONPATH']}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            log = folder / "log.json"
            assert log.is_file(), "\n".join(done.stdout.splitlines()[-40:])
            return json.loads(log.read_text())


def wrapper(number: int, verilog: str) -> str:
    """Return a module `axi_<number>` with the accelerator and a variable for each of its ports."""
    header = re.search(rf"module trilat{number}_accelerator \((.*?)\n\);", verilog, re.S)
    assert header is not None
    lines, pins = [], []
    for line in header[1].split("\n"):
        port = re.match(r"\s*(input|output)\s+(?:wire|reg)\s+(\[\d+:0\])?\s*(\w+)", line)
        if port is None:
            continue
        kind = (
            f"reg {port[2] or ''} {port[3]} = 0"
            if port[1] == "input"
            else (f"wire {port[2] or ''} {port[3]}")
        )
        lines.append(f"  {kind};")
        pins.append(f".{port[3]}({port[3]})")
    body = "\n".join(lines)
    return (
        f"module axi_{number};\n{body}\n"
        f"  trilat{number}_accelerator dut ({', '.join(pins)});\nendmodule\n"
    )


def differences(
    config: AcceleratorConfig, items: Sequence[Round], results: Sequence[dict[str, object]]
) -> list[str]:
    """Return what differs from the specification, a line each."""
    found = []
    total = np.zeros(2, dtype=np.int64)
    done = 0
    for number, (item, result) in enumerate(zip(items, results, strict=False)):
        if "error" in result:
            return [*found, f"round {number}: {result['error']}"]
        if item.reset_after:
            total[:] = done = 0
        for tile, (job, frame) in enumerate(zip(item.jobs, result["frames"], strict=True)):
            expected = reference_output(config, job)
            total += expected.violations_in, expected.violations_out
            if not np.array_equal(output_rows(config, job, frame), expected.rows):
                found.append(f"round {number}, tile {tile}")
        for name, value in zip(("violations_in", "violations_out"), total, strict=True):
            counted = result["registers"][name]
            if counted != value:
                found.append(f"round {number}: {name} {counted}, not {value}")
        done += len(item.jobs)
        if result["registers"]["tiles_done"] != done:
            found.append(f"round {number}: {result['registers']['tiles_done']} tiles done")
        if result["registers"]["shape"] & 0xFFFF != config.rows | config.cols << 8:
            found.append(f"round {number}: shape {result['registers']['shape']:#x}")
    return found
