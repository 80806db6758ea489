# SPDX-License-Identifier: Apache-2.0
"""Clocks on ECP5 after routing, for `bench.hardware --pnr`.

Arrays stand beside plain ones; cores, with all their lanes, beside the same with protection.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.array_clock import PLAIN_TOP, TOP, array_verilog, plain_verilog
from bench.hardware_cases import SIZE, Case, cases, plain_pe, protected_designs
from hdl.config import AcceleratorConfig
from hdl.gen import generate
from hdl.pnr import route, router_of
from hdl.registers import CORE
from trilat.progress import TerminalProgress

_FAMILY = "ecp5"


@dataclass(frozen=True, kw_only=True)
class ClockResult:
    """Clocks of two designs after routing.

    Attributes:
        name: of the design.
        target_mhz: clock that was asked for.
        mhz: of the design, one a seed.
        other_mhz: of what it stands beside, likewise.
        met: whether it is as fast as it is to be.
        bar: how fast that is, for reports.
    """

    name: str
    target_mhz: float
    mhz: tuple[float, ...]
    other_mhz: tuple[float, ...]
    met: bool
    bar: str


def measure_clocks(
    seeds: int, target_mhz: float, cache: Path, progress: TerminalProgress
) -> dict[str, Any]:
    """Print and return the clocks of all arrays with a bar, and those of cores with protection.

    Raises:
        InputError: bad seeds or target.
        yosys.YosysError: Yosys or nextpnr failed.
    """

    def clocks(verilog: str, top: str, config: AcceleratorConfig) -> tuple[float, ...]:
        return route(
            verilog,
            family=_FAMILY,
            top=top,
            seeds=seeds,
            target_mhz=target_mhz,
            use_dsp=config.uses_dsp,
            cache=cache,
            progress=progress,
        ).fmax_mhz

    def array(case: Case, least: float) -> ClockResult:
        mhz = clocks(array_verilog(case.config), TOP, case.config)
        plain = plain_verilog(case.config, plain_pe(case), case.acc_bits)
        return ClockResult(
            name=case.name,
            target_mhz=target_mhz,
            mhz=mhz,
            other_mhz=clocks(plain, PLAIN_TOP, case.config),
            met=statistics.median(mhz) >= least,
            bar=f"{least:g} MHz",
        )

    def core(name: str, config: AcceleratorConfig) -> ClockResult:
        protected = replace(config, protect="clip", protect_place="both")
        without = clocks(generate(config), CORE, config)
        mhz = clocks(generate(protected), CORE, protected)
        return ClockResult(
            name=name,
            target_mhz=target_mhz,
            mhz=mhz,
            other_mhz=without,
            met=statistics.median(mhz) >= min(without),
            bar="lowest without",
        )

    arrays = [array(case, case.mhz_bar) for case in cases() if case.mhz_bar is not None]
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    console.print(clock_table(f"{SIZE}x{SIZE} array alone", "plain", arrays))
    # Not 16x16 as for their area: a core of that size takes several times as long to route.
    cores = [
        core(name, replace(config, rows=SIZE, cols=SIZE)) for name, config, _ in protected_designs()
    ]
    title = f"{SIZE}x{SIZE} core with protection at both places, bounds per layer"
    console.print(clock_table(title, "without", cores))
    console.print(
        f"{router_of(_FAMILY).device}, out of context: paths through ports not counted. Arrays are "
        "columns and skews without lanes, streams or AXI4-Lite; cores are all but AXI4-Lite"
    )
    return {
        "clocks": [asdict(row) for row in arrays],
        "protection clocks": [asdict(row) for row in cores],
    }


def clock_table(title: str, other: str, results: Sequence[ClockResult]) -> Table:
    """Return clocks after routing as a terminal table."""
    result = Table(
        title=f"{title}, on {_FAMILY} after routing, MHz: median (range) over seeds",
        title_justify="left",
    )
    columns = ("design", "target", "seeds", "clock", other, "ratio", "bar", "met")
    for number, name in enumerate(columns):
        result.add_column(name, justify="left" if number == 0 else "right")

    def spread(clocks: Sequence[float]) -> str:
        return f"{statistics.median(clocks):.1f} ({min(clocks):.1f} to {max(clocks):.1f})"

    for row in results:
        result.add_row(
            row.name,
            f"{row.target_mhz:g}",
            str(len(row.mhz)),
            spread(row.mhz),
            spread(row.other_mhz),
            f"{statistics.median(row.mhz) / statistics.median(row.other_mhz):.2f}",
            row.bar,
            "yes" if row.met else "NO",
        )
    return result
