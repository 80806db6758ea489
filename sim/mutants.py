# SPDX-License-Identifier: Apache-2.0
"""Defects put into the emitted Verilog, all at once: an input `mutsel` chooses which is active.

So hundreds of mutants need one simulator. `DEFECTS` are deliberate and named; `draw` takes
random ones from Yosys `mutate`, of the core or of the shell around it (register bus, performance
counters). With `mutsel` = 0 the design is the emitted one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hdl import yosys
from hdl.accelerator import TOP
from hdl.registers import CORE

SELECT_BITS = 10
# What mutants are drawn of.
SCOPES = {"core": (CORE,), "shell": ("trilat_axil", "trilat_counters")}


@dataclass(frozen=True, kw_only=True)
class Defect:
    r"""A named mistake.

    Attributes:
        name: what is wrong.
        module: regular expression of the modules' names; it is put into all that match.
        old: regular expression of the text that is replaced, the first one in the module.
        new: replacement; `ON` is the condition, `\g<0>` what was there, `MSB(x)` the highest bit
            of register x.
        declare: nets that `new` needs.
    """

    name: str
    module: str
    old: str
    new: str
    declare: str = ""


def _defect(name: str, module: str, old: str, new: str, declare: str = "") -> Defect:
    return Defect(name=name, module=f"trilat_{module}", old=old, new=new, declare=declare)


def _unreset(name: str, module: str, register: str) -> Defect:
    """Return the defect of a register that keeps its value in a reset."""
    old = rf"(if \(rst\)(?: begin\n(?:      [^;]+;\n)*?     )?) ({register} <= )"
    return _defect(name, module, old, r"\1 if (!ON) \2")


_PE = r"pe_p\d+"
_SUM = r"psum <= (\$signed\(psum_in\) \+ \$signed\(product\));"

DEFECTS = (
    # Array.
    _defect("activation skew dropped", "activation_skew", r"row_1 <= \{[^,]+, ([^}]+)\};",
            r"if (ON) row_1 <= {\1, \1}; else \g<0>"),
    _defect("weight skew dropped", "weight_skew", r"col_1 <= \{[^,]+, ([^}]+)\};",
            r"if (ON) col_1 <= {\1, \1}; else \g<0>"),
    _defect("deskew dropped", "deskew", r"assign psum = ([^;]+);",
            r"assign psum = ON ? psums : \1;"),
    _defect("psum one bit too narrow", _PE, _SUM,
            r"if (ON) psum <= {sum[MSB(psum)-1], sum[MSB(psum)-1:0]}; else \g<0>",
            "wire signed [MSB(psum):0] sum = $signed(psum_in) + $signed(product);"),
    _defect("product one bit too narrow", _PE, _SUM,
            r"if (ON) psum <= $signed(psum_in) + $signed(product[MSB(product)-1:0]);"
            r" else \g<0>"),
    _defect("loading weight multiplied", _PE, r"\.weight\(weight_active\)",
            r".weight(ON ? weight_loading : weight_active)"),
    _defect("sign of the activation ignored", "activation_skew", r"\bsigned_in & acts",
            r"signed_in & !ON & acts"),
    _defect("sign of the tile not passed on", "activation_skew", r"sign_line <= ([^;]+);",
            r"sign_line <= ON ? 0 : (\1);"),
    _defect("swap bit lost", _PE, r"swap <= swap_in;", r"swap <= swap_in & !ON;"),
    _defect("swap takes the weight above", _PE, r"weight_active <= weight_loading;",
            r"weight_active <= ON ? weight_in : weight_loading;"),
    _defect("weights load in every cycle", _PE, r"if \(load_in\)", r"if (load_in | ON)"),
    _defect("load bit not passed on", _PE, r"load <= load_in;", r"load <= load_in & !ON;"),
    _defect("psum of the row above ignored", _PE, _SUM,
            r"if (ON) psum <= $signed(product); else \g<0>"),
    # Input check and counters.
    _defect("input clipped to the wrong bound", "activation_skew", r"checked_0_high \? bound_hi",
            r"checked_0_high ? (ON ? bound_lo : bound_hi)"),
    _defect("input check signed wrongly", "activation_skew", r"lowest_sign = signed_in",
            r"lowest_sign = !ON & signed_in"),
    _defect("input bound itself counted", "activation_skew",
            r"checked_0_low = ([^;<]+) < ([^;]+);",
            r"checked_0_low = ON ? (\1 <= \2) : (\1 < \2);"),
    _defect("counter counts without a beat", r"violation_counter_\d+", r"count <= enable",
            r"count <= (enable | ON)"),
    _defect("counter counts one too few", r"violation_counter_\d+", r"total <= total \+ count;",
            r"total <= total + (ON ? |count : count);"),
    _unreset("counter not reset", r"violation_counter_\d+", "total"),
    _defect("counter not cleared", r"violation_counter_\d+", r"if \(clear\)",
            r"if (clear & !ON)"),
    # Front.
    _defect("spare weight beat lost", "front", r"if \(~spare_valid\)", r"if (~spare_valid & !ON)"),
    _defect("weights accepted into a full buffer", "front", r"s_axis_weight_tready <= ([^;]+);",
            r"s_axis_weight_tready <= (\1) | ON;"),
    _defect("weight block overwritten before its swap", "front",
            r"move_weights = head_valid & ([^;]+);", r"move_weights = head_valid & (\1 | ON);"),
    _defect("weight block one beat short", "front", r"block_done = move_weights & reach\[(\d+)\];",
            r"block_done = move_weights & reach[ON ? \1 - 1 : \1];"),
    _defect("psum read before it is written", "front", r"resting = ([^;]+);",
            r"resting = (\1) & !ON;"),
    _defect("K tile counter off by one", "front", r"last_k_tile = k_tiles_left == ([^;]+);",
            r"last_k_tile = k_tiles_left == (ON ? 2 : \1);"),
    _defect("row counter off by one", "front", r"last_row = rows_left == ([^;]+);",
            r"last_row = rows_left == (ON ? 2 : \1);"),
    _defect("first K tile not marked", "front", r"beat_first <= first_k_tile;",
            r"beat_first <= first_k_tile & !ON;"),
    _defect("swap of the front lost", "front", r"beat_swap <= swap;", r"beat_swap <= swap & !ON;"),
    _defect("input bounds swapped", "front", r"bound_lo <= next_bound_lo;",
            r"bound_lo <= ON ? next_bound_hi : next_bound_lo;"),
    _defect("parameters overwritten before they are taken", "front",
            r"s_axis_param_tready <= ([^;]+);", r"s_axis_param_tready <= (\1) | ON;"),
    _defect("beats accepted before their weights", "front", r"s_axis_act_tready <= ([^;]+);",
            r"s_axis_act_tready <= (\1) | (ON & tile_open_next);"),
    _unreset("open tile survives a reset", "front", "tile_open"),
    _unreset("parameter position survives a reset", "front", "turn"),
    _unreset("waiting weight block survives a reset", "front", "block_waits"),
    _unreset("buffered weight beat survives a reset", "front", "head_valid"),
    # Drain.
    _defect("tlast on every row", "drain", r"last_0a <= tile_done;",
            r"last_0a <= ON ? row_done : tile_done;"),
    _defect("ring wraps one word early", "drain", r"ring_write == ([^)]+)\)",
            r"ring_write == (ON ? \1 - 1 : \1))"),
    _defect("rows in the ring miscounted", "drain", r"if \(write_ring & \(~drained\)\)",
            r"if (write_ring & (~drained | ON))"),
    _defect("bias and shift changed too early", "drain", r"take_scale = scale_wait & ([^;]+);",
            r"take_scale = scale_wait & (\1 | ON);"),
    _defect("limits changed too early", "drain", r"take_limits = limits_wait & ([^;]+);",
            r"take_limits = limits_wait & (\1 | ON);"),
    _defect("psum row not returned to 0", "drain",
            r"if \((valid_line\[\d+\]) & (end_line\[\d+\])\)", r"if (\1 & \2 & !ON)"),
    _defect("a raw row passes once", "drain", r"row_done = issue & ([^;]+);",
            r"row_done = issue & (\1 | ON);"),
    _unreset("psum row survives a reset", "drain", "read_row"),
    _unreset("rows in the ring survive a reset", "drain", "available"),
    # Lane.
    _defect("round half up, not to even", "lane", r"\(fine_sticky \| fine\[1\]\)",
            r"(fine_sticky | fine[1] | ON)"),
    _defect("no rounding", "lane", r"fine\[0\] & \(", r"fine[0] & !ON & ("),
    _defect("sticky bit of the coarse shift lost", "lane", r"coarse_sticky <= ([^;]+);",
            r"coarse_sticky <= (\1) & !ON;"),
    _defect("raw sums rounded", "lane", r"\(~raw_4\)", r"(~raw_4 | ON)"),
    _defect("sign lost in the shift", "lane", r"\? \{(by_2\[\d+\]), ", r"? {\1 & !ON, "),
    _defect("output limits swapped", "lane", r"lo <= next_lo;", r"lo <= ON ? next_hi : next_lo;"),
    _defect("lo and hi flags swapped", "lane", r"lo_is_bound <= next_lo_is_bound;",
            r"lo_is_bound <= ON ? next_hi_is_bound : next_lo_is_bound;"),
    _defect("sign of the limits ignored", "lane", r"lowest_sign = signed_5",
            r"lowest_sign = !ON & signed_5"),
    _defect("large sums not saturated", "lane", r"fits = ([^;]+);", r"fits = (\1) | ON;"),
    _defect("bias of the tile before", "lane", r"bias <= next_bias;",
            r"if (!ON) bias <= next_bias;"),
    _defect("first K tile adds to old sums", "lane", r"= first \? ", r"= (first & !ON) ? "),
    # Output buffer.
    _defect("output beat of a stall lost", "output_buffer", r"if \(advance\)",
            r"if (advance & !ON)"),
    _defect("lanes move into a full buffer", "output_buffer", r"advance <= ([^;]+);",
            r"advance <= (\1) | ON;"),
    _defect("offered beat changes", "output_buffer",
            r"if \(move\) begin", r"if (move | ON) begin"),
    _defect("tlast of the wrong slot", "output_buffer", r"spare_valid \? spare_last",
            r"(spare_valid & !ON) ? spare_last"),
    _unreset("output valid survives a reset", "output_buffer", "m_axis_out_tvalid"),
    # Register bus.
    _defect("strobe of a write ignored", "axil", r"& write_strobes\)", r"& (write_strobes | ON))"),
    _defect("data of a write ignored", "axil", r"\? write_data", r"? (write_data | ON)"),
    _defect("write before its data", "axil", r"aw_held & w_held", r"aw_held & (w_held | ON)"),
    _defect("write to another register clears", "axil", r"writes_control = ([^;]+);",
            r"writes_control = (\1) | ON;"),
    _defect("answer of a write withdrawn", "axil", r"s_axil_bvalid <= write \| b_waits;",
            r"s_axil_bvalid <= write | (b_waits & !ON);"),
    _defect("answer of a read overwritten", "axil", r"read = ar_held & ([^;]+);",
            r"read = ar_held & (\1 | ON);"),
    _defect("address taken while one is held", "axil", r"s_axil_arready <= ([^;]+);",
            r"s_axil_arready <= (\1) | ON;"),
    _defect("no error where no register is", "axil", r"read_outside \?",
            r"(read_outside & !ON) ?"),
    _defect("shape read as limits", "axil", r"s_axil_rdata <= shape;",
            r"s_axil_rdata <= ON ? limits : shape;"),
    _unreset("held address survives a reset", "axil", "ar_held"),
    # Performance counters.
    _defect("tiles not cleared", "counters", r"if \(clear_counters\) tiles_done",
            r"if (clear_counters & !ON) tiles_done"),
    _defect("idle cycles counted", "counters", r"cycles_busy_event <= busy;",
            r"cycles_busy_event <= busy | ON;"),
    _defect("accepted beats counted as starved", "counters",
            r"cycles_act_starved_event <= ([^;]+);",
            r"cycles_act_starved_event <= ON ? busy & s_axis_act_tready : (\1);"),
    _defect("rows counted as tiles", "counters", r"tile_done = ([^;]+) & m_axis_out_tlast;",
            r"tile_done = \1 & (m_axis_out_tlast | ON);"),
    _unreset("tiles in flight survive a reset", "counters", "in_flight"),
)  # fmt: skip


def plant(verilog: str, defects: Sequence[Defect] = DEFECTS) -> str:
    """Return the Verilog with all defects in it; defect i is active where `mutsel` is i + 1.

    Raises:
        ValueError: a defect finds nothing to replace: the emitted Verilog has changed.
    """
    parts = re.split(r"(?=^module )", verilog, flags=re.M)
    for number, defect in enumerate(defects, start=1):
        on = f"({TOP}.mutsel == {SELECT_BITS}'d{number})"
        found = 0
        for i, text in enumerate(parts):
            name = re.match(r"module (\w+)", text)
            if name is None or re.fullmatch(defect.module, name[1]) is None:
                continue
            if re.search(defect.old, text) is None:
                continue
            found += 1
            text = re.sub(defect.old, defect.new.replace("ON", on), text, count=1)
            if defect.declare:
                text = re.sub(r"^\);\n", f");\n  {defect.declare}\n", text, count=1, flags=re.M)
            parts[i] = _with_highest(text)
        if not found:
            raise ValueError(f"nothing in the Verilog to plant '{defect.name}' in")
    return _with_select("".join(parts))


def _with_highest(module: str) -> str:
    """Return a module's text with every `MSB(register)` replaced by its highest bit."""

    def highest(match: re.Match[str]) -> str:
        found = re.search(
            rf"(?:reg|wire)\s+(?:\[(\d+):0\])?(?:[^;\[{{(]*,)?\s*{match[1]}\b", module
        )
        if found is None:
            raise ValueError(f"no register {match[1]}")
        return found[1] or "0"

    return re.sub(r"MSB\((\w+)\)", highest, module)


def _with_select(verilog: str) -> str:
    """Return the Verilog with an input `mutsel` of the top module."""
    port = f"module {TOP} (\n  input  wire [{SELECT_BITS - 1}:0] mutsel,\n"
    return verilog.replace(f"module {TOP} (\n", port, 1)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Mutants that Yosys drew.

    Attributes:
        commands: of each mutant, the `mutate` command that makes it.
        verilog: design with all of them, the core flat; mutant i is active where `mutsel` is i + 1.
    """

    commands: tuple[str, ...]
    verilog: str


def draw(verilog: str, count: int, *, scope: str = "core", seed: int, folder: Path) -> Drawn:
    """Draw mutants of a design.

    Args:
        verilog: the emitted Verilog.
        count: mutants.
        scope: of `SCOPES`.
        seed: of the draw.
        folder: for Yosys' files.
    """
    (folder / "design.v").write_text(verilog, encoding="utf-8")
    # Bits without effect go first, lest mutants of them be drawn.
    flat = [
        "read_verilog design.v",
        f"hierarchy -top {TOP}",
        "proc",
        f"flatten {CORE}",
        f"prep -top {TOP}",
        "wreduce",
        "opt -full -purge",
    ]
    modules = SCOPES[scope]
    listing = f"mutate -list {count} -seed {seed} -o mutants.txt {' '.join(modules)}"
    yosys.run([*flat, "write_rtlil flat.il", listing], folder, "draw")
    lines = (folder / "mutants.txt").read_text(encoding="utf-8").splitlines()
    commands = tuple(line for line in lines if line.startswith("mutate "))
    select = [f"{c} -ctrl mutsel {SELECT_BITS} {i}" for i, c in enumerate(commands, start=1)]
    script = ["read_rtlil flat.il", *select, f"select {' '.join(modules)}"]
    yosys.run([*script, "write_verilog -noattr -selected mutants.v"], folder, "mutants")
    # The modules around them as they were emitted.
    parts = re.split(r"(?=^module )", _with_select(verilog), flags=re.M)
    text = "".join(p for p in parts if not re.match(rf"module ({'|'.join(modules)}) ", p))
    for module in modules:
        text = re.sub(rf"^  {module} \w+ \(\n", r"\g<0>    .mutsel(mutsel),\n", text, flags=re.M)
    # Settings for the emitted modules do not hold for those of Yosys.
    text = text.replace("`default_nettype none\n", "") + (folder / "mutants.v").read_text("utf-8")
    return Drawn(commands=commands, verilog=text)


def proven_equal(drawn: str, folder: Path) -> bool:
    """Return whether Yosys proves by induction that a drawn mutant does what the design does.

    Args:
        drawn: its command.
        folder: of `draw`.
    """
    module = drawn.partition(" -module ")[2].split()[0]
    # Where a clock changes its edge, edges count.
    edges = ["clk2fflogic equal"] if " -port CLK" in drawn else []
    script = [
        "read_rtlil flat.il",
        f"copy {module} gold",
        drawn,
        f"rename {module} gate",
        # As far as the outputs depend on them.
        "equiv_make gold gate equal",
        "hierarchy -top equal",
        "memory_map equal",
        *edges,
        "opt -full equal",
        "equiv_struct equal",
        "equiv_simple -undef -seq 4 equal",
        "equiv_induct -undef -seq 4 equal",
        "equiv_status -assert equal",
    ]
    try:
        yosys.run(script, folder, "equal")
    except yosys.YosysError:
        # Cells stay unproven, or a constant register has no place in the comparison.
        return False
    return True
