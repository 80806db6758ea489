# SPDX-License-Identifier: Apache-2.0
"""Vivado's script and the reading of its reports; the reports are made, in Vivado's layout."""

import re

import pytest

from hdl import vivado
from trilat.errors import InputError

UTILIZATION = """Copyright 1986-2022 Xilinx, Inc. All Rights Reserved.
-----------------------------------------------------------------------------
| Tool Version : Vivado v.2023.2 (lin64) Build 4029153 Fri Oct 13 20:13:54 MDT 2023
| Design       : trilat_accelerator
| Device       : xc7z020clg400-1
| Design State : Routed
-----------------------------------------------------------------------------

1. Slice Logic
--------------

+----------------------------+------+-------+------------+-----------+-------+
|          Site Type         | Used | Fixed | Prohibited | Available | Util% |
+----------------------------+------+-------+------------+-----------+-------+
| Slice LUTs                 | 4321 |     0 |          0 |     53200 |  8.12 |
|   LUT as Logic             | 4200 |     0 |          0 |     53200 |  7.89 |
|   LUT as Memory            |  121 |     0 |          0 |     17400 |  0.70 |
|     LUT as Shift Register  |  121 |     0 |            |           |       |
| Slice Registers            | 5678 |     0 |          0 |    106400 |  5.34 |
|   Register as Flip Flop    | 5678 |     0 |          0 |    106400 |  5.34 |
|   Register as Latch        |    0 |     0 |          0 |    106400 |  0.00 |
+----------------------------+------+-------+------------+-----------+-------+

3. Memory
---------

| Block RAM Tile    |  4.5 |     0 |          0 |       140 |  3.21 |
|   RAMB36/FIFO*    |    0 |     0 |          0 |       140 |  0.00 |
|   RAMB18          |    9 |     0 |          0 |       280 |  3.21 |

4. DSP
------

| DSPs           |   64 |     0 |          0 |       220 | 29.09 |
|   DSP48E1 only |   64 |       |            |           |       |

8. Primitives
-------------

| FDRE     | 5670 |        Flop & Latch |
| CARRY4   |  512 |          CarryLogic |
"""

TIMING = """| Tool Version      : Vivado v.2023.2 (lin64) Build 4029153
------------------------------------------------------------------------------------------------
| Design Timing Summary
| ---------------------
------------------------------------------------------------------------------------------------

    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints      WHS(ns)
    -------      -------  ---------------------  -------------------      -------
     -0.250       -1.500                      9                12345        0.041


------------------------------------------------------------------------------------------------
| Clock Summary
| -------------
------------------------------------------------------------------------------------------------

Clock  Waveform(ns)         Period(ns)      Frequency(MHz)
-----  ------------         ----------      --------------
aclk   {0.000 2.500}        5.000           200.000
"""


def test_reports_are_read():
    result = vivado.parse_reports(UTILIZATION, TIMING)
    assert (result.lut, result.lut_memory, result.ff) == (4321, 121, 5678)
    assert (result.dsp, result.bram36, result.carry) == (64, 4.5, 512)
    assert (result.period_ns, result.slack_ns) == (5.0, -0.25)
    assert result.fmax_mhz == pytest.approx(1000 / 5.25, abs=0.01)
    assert (result.version, result.part) == ("2023.2", "xc7z020clg400-1")


def test_ultrascale_plus_rows_are_read():
    text = UTILIZATION.replace("Slice LUTs", "CLB LUTs").replace("CARRY4", "CARRY8")
    assert vivado.parse_reports(text, TIMING).lut == 4321
    assert vivado.parse_reports(text, TIMING).carry == 512


@pytest.mark.parametrize(
    ("utilization", "timing", "what"),
    [
        ("", TIMING, "Tool Version"),
        (UTILIZATION.replace("| DSPs ", "| DXPs "), TIMING, "DSPs"),
        (UTILIZATION, TIMING.replace("-0.250", "NA"), "WNS"),
        (UTILIZATION, TIMING.replace("aclk", "clk"), "Clock Summary"),
    ],
)
def test_a_report_that_lacks_a_figure_is_an_error(utilization, timing, what):
    with pytest.raises(InputError, match=re.escape(what)):
        vivado.parse_reports(utilization, timing)


def test_only_reports_of_this_design_are_read(tmp_path):
    verilog, settings = "module trilat_accelerator; endmodule\n", {"period_ns": 5.0}
    files = vivado.write_project(tmp_path, verilog, part=vivado.PART, **settings)
    assert {file.name for file in files} == {
        "trilat_accelerator.v",
        "trilat_accelerator.xdc",
        "vivado.tcl",
    }
    assert vivado.read_reports(tmp_path, verilog, part=vivado.PART, **settings) is None
    # The script names the reports; this is what Vivado would leave.
    tcl = (tmp_path / "vivado.tcl").read_text()
    for command, text in (("report_utilization", UTILIZATION), ("report_timing", TIMING)):
        name = re.search(rf"^{command}\S* .*-file (\S+)$", tcl, flags=re.M)[1]
        (tmp_path / name).write_text(text)
    result = vivado.read_reports(tmp_path, verilog, part=vivado.PART, **settings)
    assert result == vivado.parse_reports(UTILIZATION, TIMING)
    # Another design, part or clock: the reports are not of it.
    assert vivado.read_reports(tmp_path, verilog + "\n", part=vivado.PART, **settings) is None
    assert vivado.read_reports(tmp_path, verilog, part="xc7a35tcpg236-1", **settings) is None
    assert vivado.read_reports(tmp_path, verilog, part=vivado.PART, period_ns=4.0) is None
    next(tmp_path.glob("timing_*.rpt")).unlink()
    with pytest.raises(InputError, match="is missing"):
        vivado.read_reports(tmp_path, verilog, part=vivado.PART, **settings)


def test_the_script_is_out_of_context_and_has_one_clock():
    tcl = vivado.script(verilog="a.v", constraints_file="a.xdc", name="a.tcl", key="00")
    assert "-mode out_of_context" in tcl
    assert f"set part {vivado.PART}" in tcl
    assert tcl.index("read_verilog a.v") < tcl.index("synth_design") < tcl.index("route_design")
    assert "create_clock -name aclk -period 4.500 [get_ports aclk]" in vivado.constraints(4.5)


def test_bad_parts_and_periods_write_nothing(tmp_path):
    for settings in ({"part": "ice40; exit", "period_ns": 5}, {"part": "xc7z020", "period_ns": 0}):
        with pytest.raises(InputError):
            vivado.write_project(tmp_path / "p", "", **settings)
    assert not (tmp_path / "p").exists()
