# SPDX-License-Identifier: Apache-2.0
"""Constants from outside, put into the module that is given them."""

import re

import pytest

from hdl import yosys
from hdl.config import AcceleratorConfig
from hdl.constant_inputs import with_constants
from hdl.gen import generate
from hdl.mapping import split_modules

TEXTS = {
    "leaf": """module leaf (
  input  wire       aclk,
  input  wire [3:0] k,
  input  wire [3:0] part,
  output wire [3:0] q
);
  assign q = k & part[3:0];
  inner i (.k(k), .kk(q));
endmodule
""",
    "inner": "module inner (\n  input  wire [3:0] k,\n  input  wire [3:0] kk\n);\nendmodule\n",
    "top": """module top (
  input  wire       aclk,
  output wire [3:0] o
);
  leaf only (
    .aclk(aclk), .k(4'h9),
    .part(4'h3), .q(o)
  );
endmodule
""",
}


def test_a_constant_takes_the_place_of_the_input_but_in_a_part_of_it():
    found = with_constants(TEXTS)
    assert found["leaf"] == TEXTS["leaf"].replace("q = k", "q = 4'h9").replace("(k)", "(4'h9)")
    assert found["inner"] == TEXTS["inner"] and found["top"] == TEXTS["top"]
    again = with_constants(found)  # what the leaf gives is a constant now
    assert again["inner"] == TEXTS["inner"]  # which nothing there reads


def test_a_module_that_stands_in_two_places_keeps_its_inputs():
    twice = TEXTS["top"].replace("endmodule", "  leaf other (\n    .k(4'h9)\n  );\nendmodule")
    assert with_constants({**TEXTS, "top": twice})["leaf"] == TEXTS["leaf"]


@pytest.mark.parametrize("protect", ["none", "clip"])
def test_the_register_file_has_its_constants_and_the_whole_is_the_same(protect, tmp_path):
    config = AcceleratorConfig(
        rows=1, cols=2, act_bits=2, weight_bits=2, max_k=4, psum_depth=4, protect=protect
    )
    before = split_modules(generate(config))
    after = with_constants(before)
    assert [name for name in before if after[name] != before[name]] == ["trilat_axil"]
    hashed = [f"32'h{int(config.config_hash()[i : i + 8], 16):x}" for i in (0, 8)]
    assert all(f"s_axil_rdata <= {half};" in after["trilat_axil"] for half in hashed)
    assert ("violations_in;" in after["trilat_axil"]) == (protect == "clip")
    counts = []
    for name, texts in (("before", before), ("after", after)):
        (tmp_path / f"{name}.v").write_text("\n".join(texts.values()))
        script = [f"read_verilog {name}.v", "hierarchy -top trilat_accelerator", "proc", "flatten"]
        script += ["opt -full", "techmap", "opt -full", "clean -purge", f"tee -o {name}.txt stat"]
        yosys.run(script, tmp_path, name)
        text = (tmp_path / f"{name}.txt").read_text()
        found = re.findall(r"^ *(\d+) +(?:[\d.e+]+ +)?(\$\S+)$", text, flags=re.M)
        counts.append({kind: int(number) for number, kind in found})
    assert sum(counts[0].values()) > 500 and counts[0] == counts[1]
