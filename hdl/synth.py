# SPDX-License-Identifier: Apache-2.0
"""`python -m hdl.synth`: FPGA resources, delay, clock, fit and energy of one configuration."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hdl import vivado, yosys
from hdl.bandwidth import feed, full_tiles
from hdl.config import AcceleratorConfig
from hdl.cost import TOPS, Cost, synthesize
from hdl.devices import RESOURCES, Device, device_named, fit, largest_array, require_family
from hdl.families import FAMILIES
from hdl.gen import config_parser, generate
from hdl.netlist_check import MismatchError
from hdl.pnr import check_routing, route
from trilat.errors import InputError, run_command, unknown_name
from trilat.files import write_json
from trilat.progress import TerminalProgress


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
    for change in cost.changes:
        counts = (change.lut, change.lut_memory, change.ff, change.dsp)
        memory = (f"{change.bram36:g}", str(change.carry), "")
        result.add_row(change.reason, "", *map(str, counts), *memory)
    result.add_section()
    totals = (cost.lut, cost.lut_memory, cost.ff, cost.dsp)
    memory = (f"{cost.bram36:g}", str(cost.carry), f"{cost.delay_ns:.3f}")
    result.add_row("total", "", *map(str, totals), *memory)
    return result


def main_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m hdl.synth",
        description="FPGA resources and logic delay of an accelerator; its clock after routing, "
        "what it takes of a device, and what its streams need.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        parents=[config_parser()],
    )
    default = Path(os.environ.get("TRILAT_CACHE", Path.home() / ".cache" / "trilat")) / "hdl"
    parser.add_argument(
        "--family",
        default=None,
        help=f"FPGA family: {', '.join(FAMILIES)} (default: that of --device, else xc7)",
    )
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
    group = parser.add_argument_group("device and memory")
    group.add_argument("--device", metavar="NAME", help="part: what it takes, the largest array")
    group.add_argument(
        "--bandwidth", type=float, metavar="GB/S", help="of the memory: what is left of the speed"
    )
    group.add_argument(
        "--clock", type=float, metavar="MHZ", help="for --bandwidth (default: what is measured)"
    )
    group = parser.add_argument_group("clock after routing (pip install 'trilat[pnr]')")
    group.add_argument("--pnr", action="store_true", help="place and route with nextpnr")
    group.add_argument("--seeds", type=int, default=3, metavar="N", help="of nextpnr")
    group.add_argument("--target", type=float, metavar="MHZ", help="clock to ask nextpnr for")
    group = parser.add_argument_group("Vivado, run by the user")
    group.add_argument(
        "--vivado",
        type=Path,
        metavar="DIR",
        help="write an out-of-context project to DIR, and read its reports if they are there",
    )
    group.add_argument("--part", default=vivado.PART, help="for --vivado")
    group.add_argument(
        "--period", type=float, default=vivado.PERIOD_NS, metavar="NS", help="for --vivado"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = main_parser().parse_args(argv)

    def action() -> int:
        names = {field.name for field in fields(AcceleratorConfig)}
        config = AcceleratorConfig(**{k: v for k, v in vars(arguments).items() if k in names})
        device = _checked(arguments)
        console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
        try:
            return _report(arguments, config, device, console)
        except OSError as error:
            raise InputError(f"cannot write {error.filename}: {error.strerror}") from None
        except (yosys.YosysError, MismatchError) as error:
            print(f"python -m hdl.synth: {error}", file=sys.stderr)
            return 1

    return run_command("python -m hdl.synth", action)


def _checked(arguments: argparse.Namespace) -> Device | None:
    """Check what is not part of the configuration, before anything runs; set the family."""
    device = None if arguments.device is None else device_named(arguments.device)
    arguments.family = arguments.family or (device.family if device else "xc7")
    if arguments.family not in FAMILIES:
        raise unknown_name("FPGA family", arguments.family, sorted(FAMILIES))
    if device:
        require_family(device, arguments.family)
    if arguments.jobs < 1:
        raise InputError(f"--jobs must be at least 1, not {arguments.jobs}")
    for name in ("bandwidth", "clock"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < 1e5:
            raise InputError(f"--{name} must be positive, not {value:g}")
    if arguments.pnr:
        check_routing(arguments.family, arguments.seeds, arguments.target)
    return device


def _report(
    arguments: argparse.Namespace,
    config: AcceleratorConfig,
    device: Device | None,
    console: Console,
) -> int:
    """Compute, print and write what was asked for."""
    top = TOPS[arguments.top]
    common = {"cache": arguments.cache, "jobs": arguments.jobs, "progress": TerminalProgress()}
    result: dict[str, Any] = {}
    if arguments.vivado is not None:
        result["vivado"] = _vivado(arguments, config, console)

    def cost_of(candidate: AcceleratorConfig) -> Cost:
        return synthesize(candidate, family=arguments.family, top=top, **common)

    cost = cost_of(config)
    console.print(table(cost))
    console.print(f"LUT-equivalent area: {cost.lut_equivalent:g}")
    console.print(f"longest path in {cost.critical_path}", soft_wrap=True)
    console.print(cost.scope)
    tools = ", ".join(f"{name} {number}" for name, number in cost.tools.items())
    console.print(f"{tools}; {cost.seconds:.1f} s")
    clock, source = 1000 / cost.delay_ns, "logic delay alone, an upper bound"
    if arguments.pnr:
        seeds, target = arguments.seeds, arguments.target
        found = route(
            generate(config),
            family=arguments.family,
            top=top,
            seeds=seeds,
            target_mhz=target,
            **common,
        )
        result["pnr"] = found.to_json()
        clock, source = found.median_mhz, "median after routing"
        console.print(
            f"after routing: median {found.median_mhz:g} MHz of {len(found.seeds)} seeds "
            f"({found.lowest_mhz:g} to {found.highest_mhz:g}). {found.scope}"
        )
        console.print(", ".join(f"{name} {number}" for name, number in found.tools.items()))
    if arguments.clock is not None:
        clock, source = arguments.clock, "given"
    result["streams"] = _streams(config, arguments.bandwidth, clock, source, console)
    if device:
        result["device"] = _fit(cost, config, device, cost_of, console)
    if arguments.json is not None:
        write_json(arguments.json, {**cost.to_json(), **result})
    return 0


def _vivado(
    arguments: argparse.Namespace, config: AcceleratorConfig, console: Console
) -> dict[str, Any] | None:
    verilog = generate(config)
    settings = {"part": arguments.part, "period_ns": arguments.period}
    files = vivado.write_project(arguments.vivado, verilog, **settings)
    found = vivado.read_reports(arguments.vivado, verilog, **settings)
    if found is None:
        console.print(f"wrote {files[-1]}; run it with Vivado, then this command again")
        return None
    console.print(
        f"Vivado {found.version}, {found.part}, out of context: {found.lut} LUT "
        f"({found.lut_memory} of these memory), {found.ff} FF, {found.dsp} DSP, "
        f"{found.bram36:g} BRAM36; {found.fmax_mhz:g} MHz asked for {1000 / found.period_ns:g}"
    )
    return found.to_json()


def _streams(
    config: AcceleratorConfig,
    bandwidth: float | None,
    clock: float,
    source: str,
    console: Console,
) -> dict[str, Any]:
    fed = feed(config, [full_tiles(config)], bandwidth=bandwidth, clock_mhz=clock)
    rates = fed.gigabytes_per_second(clock)
    each = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
    console.print(
        f"streams at {clock:.1f} MHz ({source}), whole tiles back to back: "
        f"{sum(rates.values()):.3g} GB/s ({each})"
    )
    result = {"clock_mhz": clock, "clock": source, "gb_per_s": rates}
    if bandwidth is None:
        return result
    if fed.slowdown > 1:
        console.print(
            f"[bold]{bandwidth:g} GB/s cannot feed it[/bold]: at most {100 / fed.slowdown:.1f} % "
            f"of its cycles, {clock / fed.slowdown:.1f} MHz would do"
        )
    else:
        console.print(f"{bandwidth:g} GB/s feed it")
    return {**result, "bandwidth": bandwidth, "share_of_cycles": 1 / fed.slowdown}


def _fit(
    cost: Cost,
    config: AcceleratorConfig,
    device: Device,
    cost_of: Callable[[AcceleratorConfig], Cost],
    console: Console,
) -> dict[str, Any]:
    taken = fit(cost, device)
    shares = ", ".join(f"{100 * taken.shares[k]:.1f} % {RESOURCES[k]}" for k in RESOURCES)
    console.print(
        f"{device.name} ({device.source}): {'fits' if taken.fits else 'does not fit'}: {shares}"
    )
    largest = largest_array(config, device, cost_of)
    if largest is None:
        console.print("no smaller array with these settings was found that fits")
        return {"name": device.name, "fits": taken.fits, "shares": taken.shares}
    most = fit(largest.cost, device)
    rows, cols = largest.config.rows, largest.config.cols
    console.print(
        f"largest array with these settings: {rows}x{cols}, bound by {RESOURCES[most.tightest]} "
        f"({100 * most.shares[most.tightest]:.1f} %); {largest.tried} arrays were mapped. Before "
        "placement: a part filled to the brim hardly routes"
    )
    return {
        "name": device.name,
        "fits": taken.fits,
        "shares": taken.shares,
        "largest": {"rows": rows, "cols": cols, "shares": most.shares},
    }


if __name__ == "__main__":
    sys.exit(main())
