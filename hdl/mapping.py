# SPDX-License-Identifier: Apache-2.0
"""Maps the modules of a Verilog file, times and checks them, and keeps the results.

Each kind of module is mapped once, in small groups with fixed members (`groups`): what Yosys
makes of one module can depend on the others in the same run, so a result must not depend on what
happens to be in the cache. A PE is mapped as one with all below it, as the border of a multiplier
runs through logic (`whole_pes`). PEs come first: ABC saves area in all others up to their delay.
Of delay lines one of each length is mapped (`hdl.delay_lines`), of modules that only connect
others nothing; a module that is given constants is mapped with them, alone, as they are others in
each configuration (`hdl.constant_inputs`). A group is stored under the hash of its modules, those
below them, that delay in steps, the family and the tool: another array size costs only the groups
that it changes.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hdl import netlist_check, yosys
from hdl.constant_inputs import with_constants
from hdl.delay_lines import thin, widen
from hdl.families import Family
from hdl.netlist import Netlist, netlist_from_json, read_netlist
from hdl.timing import CLOCKS, Timing, analyse, black_box, end_chains, timed_as
from trilat.files import content_hash, write_text
from trilat.progress import Advance

# Counts in every key: raise it when the meaning of a stored result changes.
_FORMAT = 7
_PE = "trilat_pe_"
# Behind a module's name: with the registers at its inputs as ends of shift registers.
_CHAINED = "$chained"
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, kw_only=True)
class MappedModule:
    """One module, mapped.

    Attributes:
        name: of the module.
        cells: primitive -> instances, without those of submodules.
        children: submodule -> instances.
        ports: name -> direction and bits, as in Yosys JSON.
        netlist: its primitives and what they are connected to.
        timing: its delays.
        chained: with each register behind an input port as the end of a shift register; None
            where there is none, or where registers stay registers.
        vectors: random vectors on which the netlist agreed with the RTL.
        seconds: wall-clock of mapping its group.
    """

    name: str
    cells: dict[str, int]
    children: dict[str, int]
    ports: dict[str, Any]
    netlist: Netlist
    timing: Timing
    chained: Timing | None
    vectors: int
    seconds: float


def split_modules(verilog: str) -> dict[str, str]:
    """Return the text of each module by name, without comments and attributes but `no_rw_check`."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", verilog, flags=re.S)
    text = re.sub(r"\(\*(?!\)|\s*no_rw_check\s*\*).*?\*\)", "", text, flags=re.S)
    found = re.finditer(r"^\s*module\s+(\w+).*?^\s*endmodule", text, flags=re.M | re.S)
    return {match[1]: match[0].strip() + "\n" for match in found}


def instances(modules: Mapping[str, str]) -> dict[str, Counter[str]]:
    """Return, for each module, how often it instantiates each other one."""
    names = "|".join(map(re.escape, modules))
    pattern = re.compile(rf"^\s*({names})\s+(?:#\(.*?\)\s*)?\\?\S+\s*\(", flags=re.M | re.S)
    return {
        name: Counter(pattern.findall(text.split("\n", 1)[1])) for name, text in modules.items()
    }


def levels(children: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the modules in levels: those of a level instantiate earlier ones only."""
    done: set[str] = set()
    result = []
    while len(done) < len(children):
        level = sorted(n for n, inner in children.items() if n not in done and done >= set(inner))
        if not level:
            raise ValueError("modules instantiate each other in a circle")
        result.append(level)
        done |= set(level)
    return result


def whole_pes(texts: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the modules that are mapped as such, and the texts of those mapped inside of PEs.

    Raises:
        ValueError: what is inside of a PE is instantiated elsewhere too.
    """
    children = instances(texts)
    pes = [name for name in texts if name.startswith(_PE)]
    inside = below(pes, children) - set(pes)
    if any(inside & set(children[name]) for name in texts if name not in inside.union(pes)):
        raise ValueError(f"{', '.join(sorted(inside))}: also instantiated outside of PEs")
    return (
        {name: text for name, text in texts.items() if name not in inside},
        {name: texts[name] for name in sorted(inside)},
    )


def groups(texts: Mapping[str, str], alone: Collection[str] = ()) -> list[list[str]]:
    """Return the modules that share a Yosys run, without those that are to be `alone`.

    A run costs a second before it does anything, so modules are run together where that does
    not make them depend on the size of the array too often: the PEs, by whose delay the others
    are mapped; each one with a memory, whose mapping is slow; others that multiply; the rest; those
    that connect others.
    """
    pes = [name for name in texts if name.startswith(_PE)]
    single = [name for name, text in texts.items() if name in alone or has_memory(text)]
    single = [name for name in single if name not in pes]
    others = [name for name in texts if name not in pes and name not in single]
    products = [name for name in others if " * " in texts[name]]
    wiring = [name for name in others if is_wiring(texts[name])]
    rest = [name for name in others if name not in products and name not in wiring]
    kinds = (pes, *([name] for name in single), products, rest, wiring)
    return [group for group in kinds if group]


def is_wiring(text: str) -> bool:
    """Return whether a module's Verilog has instances and nets alone: neither registers nor logic.

    What stands in it as a comment does not count, so it must have none.
    """
    return re.search(r"\breg\b|\balways\b|[&|^~?+\-*/<>!$]|==", text) is None


def has_memory(text: str) -> bool:
    """Return whether a module's Verilog declares a memory."""
    pattern = r"^\s*(?:\(\*.*\*\)\s*)?reg\s[^;=]*\S\s+\[\d+:\d+\]\s*;"
    return re.search(pattern, text, flags=re.M) is not None


def map_modules(
    verilog: str, family: Family, *, cache: Path, jobs: int, advance: Advance
) -> dict[str, MappedModule]:
    """Return every module of a Verilog file, mapped; only groups not in the cache are run.

    Args:
        verilog: the file.
        family: what to map to.
        cache: folder of the results, written atomically.
        jobs: Yosys processes at a time.
        advance: called with the number of modules done.

    Raises:
        yosys.YosysError: Yosys failed; its work folder stays under `cache`.
        netlist_check.MismatchError: a netlist does not compute what its RTL does.
    """
    emitted = split_modules(verilog)
    whole_texts, inside_pes = whole_pes(with_constants(emitted))
    children = instances(whole_texts)
    shared = groups(
        whole_texts, alone=[name for name, text in whole_texts.items() if text != emitted[name]]
    )
    thinned = {name: thin(text) for name, text in whole_texts.items()}
    texts = {name: text for name, (text, _) in thinned.items()}
    done: dict[str, MappedModule] = {}
    files: dict[int, Path] = {}
    mapped: dict[int, tuple[dict[str, Any], float]] = {}
    netlists: dict[str, Any] = {}
    timings: dict[str, Timing] = {}
    chained: dict[str, Timing | None] = {}
    uninstantiated = set(texts).difference(*children.values())
    with (
        yosys.work_folder(cache) as folder,
        ThreadPoolExecutor(max_workers=jobs) as pool,
    ):

        def time_level(names: Iterable[str], work: str) -> None:
            new = {name: netlists[name] for name in names if name in netlists}
            if not new:
                return
            ports = {name: module.ports for name, module in done.items()}
            ports |= {name: netlist["ports"] for name, netlist in netlists.items()}
            below_it = sorted({child for name in new for child in children[name]})
            inner = {child: timings[child] for child in below_it}
            boxes = [black_box(child, ports[child], timing) for child, timing in inner.items()]
            timed = _time(new, boxes, inner, uninstantiated, family, _new(folder, work))
            timings.update({name: timed[name] for name in new})
            chained.update({name: timed.get(name + _CHAINED) for name in new})

        def map_missing(numbers: Iterable[int], target: Family) -> None:
            tools = _tools(target)
            todo = []
            for number in numbers:
                file = files[number] = cache / _file_name(
                    shared[number], whole_texts, inside_pes, tools, target
                )
                if file.exists():
                    found = _load(file)
                    done.update(found)
                    timings.update({name: module.timing for name, module in found.items()})
                    chained.update({name: module.chained for name, module in found.items()})
                    advance(len(found))
                else:
                    todo.append(number)

            def run(number: int) -> tuple[dict[str, Any], float]:
                start = time.monotonic()
                work = _new(folder, f"map{number}")
                found = map_group(shared[number], texts, inside_pes, target, work)
                advance(len(found))
                return found, round(time.monotonic() - start, 2)

            mapped.update(zip(todo, _all(pool, run, todo), strict=True))
            for number in todo:
                netlists.update(mapped[number][0])

        def passes_block(name: str) -> bool:
            if name in done:
                return any(kind in family.dsp for kind in done[name].cells)
            return any(cell["type"] in family.dsp for cell in netlists[name]["cells"].values())

        # The PEs first, as theirs is the longest path where products are made of LUTs: from the end
        # of a shift register, as nearly every array delays its operands. What leads through a
        # multiplier block is none: ABC does not see through it in a flat netlist either.
        first = [i for i, group in enumerate(shared) if group[0].startswith(_PE)]
        map_missing(first, family)
        pes = [name for i in first for name in shared[i]]
        time_level(pes, "sta_pes")
        delays = [
            timing.delay
            for name in pes
            if not passes_block(name)
            for timing in (timings[name], chained[name])
            if timing is not None
        ]
        rest = [i for i in range(len(shared)) if i not in first]
        map_missing(rest, family.with_path(max(delays, default=0)))
        if not mapped:
            return done
        checked = pool.submit(_check, netlists, texts, inside_pes, family, _new(folder, "check"))
        for number, level in enumerate(levels(children)):
            time_level([name for name in level if name not in pes], f"sta{number}")
        agreed = checked.result()
    for number, (found, seconds) in mapped.items():
        result = {}
        for name, given in found.items():
            netlist = widen(read_netlist(given, texts), thinned[name][1])
            result[name] = MappedModule(
                name=name,
                cells=dict(sorted(Counter(cell.kind for cell in netlist.cells).items())),
                children=dict(sorted(Counter(kind for kind, _ in netlist.children).items())),
                ports={
                    port: {**pins, "bits": netlist.ports[port]}
                    for port, pins in given["ports"].items()
                },
                netlist=netlist,
                timing=timings[name],
                chained=chained[name],
                vectors=agreed[name].vectors,
                seconds=seconds,
            )
        write_text(files[number], json.dumps(result, default=vars))
        done |= result
    return done


def _file_name(
    group: list[str],
    texts: Mapping[str, str],
    inside_pes: Mapping[str, str],
    tools: Mapping[str, Any],
    family: Family,
) -> str:
    """Return the name under which a group's results are kept."""
    # All below the group count: their delays are part of its own.
    inside = [texts[name] for name in sorted(below(group, instances(texts)))]
    if any(name.startswith(_PE) for name in group):
        inside += sorted({*inside_pes.values(), *family.adapted(inside_pes).values()})
    return f"{family.name}-{group[0]}-{content_hash([group, inside, tools])}.json"


def below(names: Iterable[str], children: Mapping[str, Iterable[str]]) -> set[str]:
    """Return the modules of `names` and all that they instantiate, at any depth."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(children[name])
    return found


def _all(
    pool: ThreadPoolExecutor, action: Callable[[_In], _Out], items: Iterable[_In]
) -> list[_Out]:
    """Run `action` on all items; on the first error the rest is not started."""
    futures = [pool.submit(action, item) for item in items]
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _new(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    return path


def _load(file: Path) -> dict[str, MappedModule]:
    result = {}
    for name, data in json.loads(file.read_text(encoding="utf-8")).items():
        data["netlist"] = netlist_from_json(data["netlist"])
        for field in ("timing", "chained"):
            if data[field] is not None:
                data[field] = Timing(**{**data[field], "path": tuple(data[field]["path"])})
        result[name] = MappedModule(**data)
    return result


def _tools(family: Family) -> dict[str, Any]:
    """Return what besides the Verilog decides a result."""
    return {
        "format": _FORMAT,
        "yosys": yosys.version(),
        "script": [family.script("top", True), family.script("top", False)],
        "models": [family.timing_models(set()), family.own_files()],
        "neighbours": [family.launch, family.capture],
        "check": [netlist_check.STREAMS, netlist_check.CYCLES],
    }


def map_group(
    group: list[str],
    texts: Mapping[str, str],
    inside_pes: Mapping[str, str],
    family: Family,
    folder: Path,
) -> dict[str, Any]:
    """Map the modules of a group in one run; return their netlists as Yosys JSON."""
    children = instances(texts)
    outside = sorted({child for name in group for child in children[name]} - set(group))
    pes = [name for name in group if name.startswith(_PE)]
    read = [texts[name] for name in group]
    read += family.adapted(inside_pes).values() if pes else []
    (folder / "modules.v").write_text("\n".join(read), encoding="utf-8")
    (folder / "outside.v").write_text("\n".join(texts[n] for n in outside), encoding="utf-8")
    # Yosys maps what hangs below one top module.
    all_of_them = "\n".join(f"  {name} m{number}();" for number, name in enumerate(group))
    top = f"module trilat_group();\n{all_of_them}\nendmodule\n"
    (folder / "group.v").write_text(top, encoding="utf-8")
    family.prepare(folder)
    if all(is_wiring(texts[name]) for name in group):
        steps = ["hierarchy -check -top trilat_group", "proc", "opt_clean"]
    else:
        steps = [
            *netlist_check.flatten(pes if inside_pes else []),
            *family.script("trilat_group", any(has_memory(texts[name]) for name in group)),
        ]
    script = [
        "read_verilog modules.v group.v",
        *(["read_verilog -lib outside.v"] if outside else []),
        *steps,
        "select " + " ".join(group),
        "write_json -selected netlists.json",
    ]
    yosys.run(script, folder, "map")
    modules = json.loads((folder / "netlists.json").read_text(encoding="utf-8"))["modules"]
    return {name: modules[name] for name in group}


def _time(
    netlists: Mapping[str, Mapping[str, Any]],
    boxes: list[str],
    inner: Mapping[str, Timing],
    whole: Collection[str],
    family: Family,
    folder: Path,
) -> dict[str, Timing]:
    copies: dict[str, Mapping[str, Any]] = {}
    if family.shift_registers:
        candidates = {name + _CHAINED: end_chains(net) for name, net in netlists.items()}
        copies = {name: net for name, net in candidates.items() if net is not None}
    netlists = {**netlists, **copies}
    cells = {timed_as(cell) for netlist in netlists.values() for cell in netlist["cells"].values()}
    return analyse(
        netlists,
        whole=[*whole, *copies],
        models="\n".join([family.timing_models(cells - set(inner)), *boxes]),
        silent=inner,
        opaque={
            **dict.fromkeys((*family.dsp, *family.bram), ()),
            **{name: timing.setup for name, timing in inner.items()},
        },
        launch=family.launch,
        capture=family.capture,
        folder=folder,
    )


def _check(
    netlists: Mapping[str, Mapping[str, Any]],
    texts: Mapping[str, str],
    inside_pes: Mapping[str, str],
    family: Family,
    folder: Path,
) -> dict[str, netlist_check.CheckResult]:
    children = instances(texts)
    needed = set(netlists) | {c for name in netlists for c in children[name]}
    cells = {cell["type"] for netlist in netlists.values() for cell in netlist["cells"].values()}
    pes = [name for name in netlists if name.startswith(_PE)]
    return netlist_check.check(
        netlists,
        {name: text for name, text in texts.items() if name in needed},
        inside=inside_pes if pes else {},
        # Random addresses collide, in the RTL too, which says that no such word is used
        # (`no_rw_check`); whole netlists are simulated with true words lost (`sim.gate_level`).
        models=family.simulation_models(cells - set(texts), collisions=False),
        clocks=CLOCKS,
        folder=folder,
    )
