# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.emission`: lines and seconds of the Verilog against a flat emission.

The flat emission is what Amaranth makes when every PE is a component of its own: the same PEs in
the same array, one Verilog module per instance, written by `amaranth.back.verilog`. It holds the
array alone, without streams, skews, lanes and AXI4-Lite, which the emitted Verilog has.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from amaranth.back import verilog
from amaranth.hdl import Module, Signal
from amaranth.lib.wiring import Component, In, Out
from rich.console import Console
from rich.table import Table

from hdl.config import AcceleratorConfig
from hdl.gen import emit, generate
from hdl.multiplier import multiplier
from hdl.pe import ProcessingElement
from trilat.errors import InputError, run_command
from trilat.files import write_json

# Seconds and lines that are aimed at, by size; None where no number is set.
AIMS = {16: (3.0, 1500), 64: (15.0, None)}


class FlatArray(Component):
    """The PEs of the array as separate components."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config, self.multiplier = config, multiplier(config)
        bits, weight = config.operand_bits, config.weight_bits
        super().__init__(
            {
                "acts": In(config.rows * bits),
                "swap_in": In(config.cols),
                "load_in": In(config.rows),
                "weights": In(config.cols * weight),
                "psums": Out(config.cols * config.psum_bits(config.rows - 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Connect every PE to its neighbours."""
        m = Module()
        config, bits, weight = self.config, self.config.operand_bits, self.config.weight_bits
        clock = Signal()
        left = [
            {"act": self.acts.word_select(r, bits), "load": self.load_in[r]}
            for r in range(config.rows)
        ]
        width = config.psum_bits(config.rows - 1)
        for col in range(config.cols):
            above: dict[str, Any] = {
                "swap": self.swap_in[col],
                "weight_loading": self.weights.word_select(col, weight),
            }
            for row in range(config.rows):
                pe = ProcessingElement(
                    config, psum_bits=config.psum_bits(row), multiplier=self.multiplier
                )
                m.submodules[f"pe_{row}_{col}"] = pe
                m.d.comb += [
                    pe.aclk.eq(clock),
                    pe.act_in.eq(left[row]["act"]),
                    pe.load_in.eq(left[row]["load"]),
                    pe.swap_in.eq(above["swap"]),
                    pe.weight_in.eq(above["weight_loading"]),
                ]
                if row:
                    m.d.comb += pe.psum_in.eq(above["psum"].as_signed())
                left[row] = {"act": pe.act, "load": pe.load}
                above = {name: getattr(pe, name) for name in ("swap", "weight_loading", "psum")}
            m.d.comb += self.psums.word_select(col, width).eq(above["psum"])
        return m


def emit_flat(config: AcceleratorConfig) -> str:
    """Return the Verilog of the flat array; the multiplier of its PEs is a module of its own."""
    array = FlatArray(config)
    return str(verilog.convert(array)) + emit(array.multiplier)


def _cpu() -> float:
    """Return the processor seconds of this process and of those that it waited for."""
    return sum(os.times()[:4])


def measure(emit: Callable[[], str], repeats: int) -> dict[str, Any]:
    """Return the lines of what `emit` gives, and wall-clock and processor time of its best run."""
    text = ""
    seconds = cpu = float("inf")
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), _cpu()
        text = emit()
        seconds = min(seconds, time.perf_counter() - start)
        cpu = min(cpu, _cpu() - start_cpu)
    return {"lines": text.count("\n"), "seconds": round(seconds, 2), "cpu": round(cpu, 2)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.emission", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="each once, the flat one at 16x16 only"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args(argv)

    def action() -> int:
        rows: list[dict[str, Any]] = []
        for size, (seconds_aim, lines_aim) in AIMS.items():
            config = AcceleratorConfig(rows=size, cols=size)
            row: dict[str, Any] = {"size": size, "lines_aim": lines_aim, "seconds_aim": seconds_aim}
            # Behind the cache: emitted anew each time.
            row |= measure(partial(generate.__wrapped__, config), 1 if arguments.quick else 3)
            row["flat"] = None
            if size == min(AIMS) or not arguments.quick:
                row["flat"] = measure(partial(emit_flat, config), 1)
            rows.append(row)
        console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
        console.print(_table(rows))
        if arguments.json is not None:
            try:
                write_json(arguments.json, {"emission": rows})
            except OSError as error:
                raise InputError(f"cannot write {arguments.json}: {error.strerror}") from None
        return 0

    return run_command("python -m bench.emission", action)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        title="Verilog of the whole accelerator; flat: its array alone, a module for each PE",
        caption="seconds of wall-clock depend on what else the machine does; CPU s less so",
    )
    columns = ("array", "lines", "aim", "flat", "ratio", "s", "aim", "CPU s", "flat CPU s", "ratio")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        flat = row["flat"]
        lines_aim = "-" if row["lines_aim"] is None else f"< {row['lines_aim']}"
        cells = [f"{row['size']}x{row['size']}", str(row["lines"]), lines_aim]
        cells += ["-", "-"] if flat is None else [str(flat["lines"]), _ratio(flat, row, "lines")]
        cells += [f"{row['seconds']:.1f}", f"< {row['seconds_aim']:g}", f"{row['cpu']:.1f}"]
        cells += ["-", "-"] if flat is None else [f"{flat['cpu']:.1f}", _ratio(flat, row, "cpu")]
        table.add_row(*cells)
    return table


def _ratio(flat: dict[str, Any], row: dict[str, Any], name: str) -> str:
    return f"{flat[name] / row[name]:.1f}"


if __name__ == "__main__":
    sys.exit(main())
