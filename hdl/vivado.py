# SPDX-License-Identifier: Apache-2.0
"""Vivado out of context: the script and constraints that a user runs, and their reports read back.

trilat never starts Vivado. Clock and period are the only constraints: an out-of-context run has
no pads, and its ports' paths are not timed.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trilat.errors import InputError
from trilat.files import content_hash, write_text

TOP = "trilat_accelerator"
PART = "xc7z020clg400-1"
PERIOD_NS = 5.0

_SCRIPT = """\
# SPDX-License-Identifier: Apache-2.0
# Out-of-context synthesis, placement and routing of {top} in Vivado, without a project on disk:
#   vivado -mode batch -nojournal -nolog -source {script}
# from this folder. `python -m hdl.synth --vivado .` with the same flags reads the reports back.
set part {part}
create_project -in_memory -part $part
read_verilog {verilog}
read_xdc -mode out_of_context {constraints}
synth_design -top {top} -part $part -mode out_of_context
opt_design
place_design
phys_opt_design
route_design
report_utilization -file utilization_{key}.rpt
report_timing_summary -max_paths 1 -file timing_{key}.rpt
"""

_CONSTRAINTS = """\
# SPDX-License-Identifier: Apache-2.0
# The only clock; aresetn is synchronous to it. An out-of-context run has no pads to constrain.
create_clock -name aclk -period {period:.3f} [get_ports aclk]
"""


@dataclass(frozen=True, kw_only=True)
class VivadoResult:
    """Utilization and timing as Vivado reported them after routing, out of context.

    Attributes:
        version: of Vivado, as its reports state it.
        part: device that the reports name.
        lut, lut_memory, ff, dsp: as in `hdl.synth.Cost`; Vivado packs LUTs in pairs.
        bram36: block RAM tiles of 36 kbit; a RAMB18 is half of one.
        carry: carry primitives (CARRY4, CARRY8).
        period_ns: of the clock that was asked for.
        slack_ns: worst negative slack of set-up.
        fmax_mhz: 1000 / (period_ns - slack_ns): one run, one seed, out of context.
    """

    version: str
    part: str
    lut: int
    lut_memory: int
    ff: int
    dsp: int
    bram36: float
    carry: int
    period_ns: float
    slack_ns: float
    fmax_mhz: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-able data."""
        return asdict(self)


def constraints(period_ns: float) -> str:
    """Return the XDC file of the clock."""
    return _CONSTRAINTS.format(period=period_ns)


def script(
    *, verilog: str, constraints_file: str, name: str, key: str, part: str = PART, top: str = TOP
) -> str:
    """Return the Tcl script of an out-of-context run.

    Args:
        verilog: name of the Verilog file beside the script.
        constraints_file: name of the XDC file beside it.
        name: of the script itself, for its comment.
        key: what the reports' names end in (see `report_key`).
        part: a full part number.
        top: module.
    """
    return _SCRIPT.format(
        top=top,
        part=part,
        verilog=verilog,
        constraints=constraints_file,
        script=name,
        key=key,
    )


def report_key(verilog: str, part: str, period_ns: float) -> str:
    """Return what names the reports of a run: reports of another design are never read."""
    return content_hash([verilog, part, period_ns])


def write_project(folder: Path, verilog: str, *, part: str, period_ns: float) -> list[Path]:
    """Write Verilog, constraints and script into `folder`; return the files.

    Raises:
        InputError: `part` is not a part number, or the period is not positive.
    """
    if not re.fullmatch(r"xc\w+(-\w+)*", part):
        raise InputError(
            f"{part!r} is not a Vivado part number: give one with package and speed grade, "
            f"like {PART}"
        )
    if not 0.1 <= period_ns <= 1000:
        raise InputError(f"the clock period must be 0.1 to 1000 ns, not {period_ns:g}")
    key = report_key(verilog, part, period_ns)
    files = {
        f"{TOP}.v": verilog,
        f"{TOP}.xdc": constraints(period_ns),
        "vivado.tcl": script(
            verilog=f"{TOP}.v",
            constraints_file=f"{TOP}.xdc",
            name="vivado.tcl",
            key=key,
            part=part,
        ),
    }
    for file, text in files.items():
        write_text(folder / file, text)
    return [folder / file for file in files]


def read_reports(folder: Path, verilog: str, *, part: str, period_ns: float) -> VivadoResult | None:
    """Return what Vivado reported of this very design in `folder`; None before it was run.

    Raises:
        InputError: a report lacks a figure, or only one of the two is there.
    """
    key = report_key(verilog, part, period_ns)
    files = [folder / f"{kind}_{key}.rpt" for kind in ("utilization", "timing")]
    present = [file.is_file() for file in files]
    if not any(present):
        return None
    for file, there in zip(files, present, strict=True):
        if not there:
            raise InputError(f"{file} is missing: run vivado.tcl to its end")
    utilization, timing = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return parse_reports(utilization, timing)


def parse_reports(utilization: str, timing: str) -> VivadoResult:
    """Read the texts of `report_utilization` and `report_timing_summary`.

    Raises:
        InputError: a figure is not there.
    """
    slack = _slack(timing)
    period = _period(timing)
    return VivadoResult(
        version=_find(r"^\|\s*Tool Version\s*:\s*Vivado v\.?(\S+)", utilization, "Tool Version"),
        part=_find(r"^\|\s*Device\s*:\s*(\S+)", utilization, "Device"),
        lut=int(_used(utilization, r"(?:Slice|CLB) LUTs\*?")),
        lut_memory=int(_used(utilization, r"LUT as Memory")),
        ff=int(_used(utilization, r"Register as Flip Flop")),
        dsp=int(_used(utilization, r"DSPs")),
        bram36=float(_used(utilization, r"Block RAM Tile")),
        carry=int(_used(utilization, r"CARRY[48]", missing="0")),
        period_ns=period,
        slack_ns=slack,
        fmax_mhz=round(1000 / (period - slack), 2),
    )


def _used(text: str, label: str, missing: str | None = None) -> str:
    """Return the column "Used" of a row of a utilization report (the first such row)."""
    found = re.search(rf"^\|\s*{label}\s*\|\s*([\d.]+)\s*\|", text, flags=re.M)
    if found is None and missing is None:
        raise InputError(f"the utilization report has no row {label!r}: is it of Vivado?")
    return missing or "" if found is None else found[1]


def _find(pattern: str, text: str, what: str) -> str:
    found = re.search(pattern, text, flags=re.M)
    if found is None:
        raise InputError(f"the report has no line {what!r}: is it of Vivado?")
    return found[1]


def _slack(timing: str) -> float:
    """Return the worst set-up slack: first number below the heading WNS(ns) of the summary."""
    text = timing.partition("Design Timing Summary")[2]
    found = re.search(r"^\s*WNS\(ns\).*\n[\s-]*\n\s*(-?\d+\.\d+|NA)\s", text, flags=re.M)
    if found is None or found[1] == "NA":
        raise InputError("the timing report has no worst slack (WNS): was the clock constrained?")
    return float(found[1])


def _period(timing: str) -> float:
    text = timing.partition("Clock Summary")[2]
    found = re.search(r"^aclk\s+\{[^}]*\}\s+(\d+\.\d+)\s", text, flags=re.M)
    if found is None:
        raise InputError("the timing report has no clock aclk in its Clock Summary")
    return float(found[1])
