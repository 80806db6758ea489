# SPDX-License-Identifier: Apache-2.0
"""Multipliers: every pair of codes in lookup tables, on the ECP5 too; netlists of PEs by family."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mapped_pes import map_pes

from hdl.config import ACT_SIGNS, AcceleratorConfig
from hdl.ecp5 import in_primitives
from hdl.families import FAMILIES
from hdl.gen import emit
from hdl.multiplier import TableMultiplier, act_name
from trilat import verilator

# Both operands recoded, odd and even, each sign; the others are for the nightly run.
CASES = [
    *((a, w, "runtime") for a, w in ((2, 2), (2, 3), (2, 8), (8, 2), (3, 5), (5, 3), (4, 4))),
    *((7, 6, "runtime"), (8, 8, "runtime"), (4, 4, "unsigned"), (8, 3, "signed"), (2, 2, "signed")),
]
OTHERS = [
    case for case in itertools.product(range(2, 9), range(2, 9), ACT_SIGNS) if case not in CASES
]

# The product as the simulator computes it beside that of the device.
BENCH = """
module bench_{name};
  reg aclk = 0;
  reg signed [{a}:0] act;
  reg signed [{top}:0] weight;
  reg signed [31:0] exact;
  wire signed [{bits}:0] product;
  // Set here: Verilator 5.49 loses counts of a variable that the block itself sets before.
  integer x, y, equal = 0;
  trilat_{name} device (
    .aclk(aclk), .{port}(act[{operand}-1:0]), .weight(weight), .product(product)
  );
  initial begin
    for (x = {low}; x <= {high}; x = x + 1)
      for (y = -(1 << {top}); y < (1 << {top}); y = y + 1) begin
        act = x[{a}:0];
        weight = y[{top}:0];
        #1 aclk = 1;
        #1 aclk = 0;
        exact = x * y;
        if (product === exact[{bits}:0]) equal = equal + 1;
      end
    $display("{name} %0d", equal);
  end
endmodule
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases", [CASES, pytest.param(OTHERS, marks=pytest.mark.nightly)], ids=["some", "others"]
)
def test_every_pair_of_codes(tmp_path: Path, cases: list[tuple[int, int, str]]) -> None:
    texts, pairs = [], {}
    for a, w, sign in cases:
        config = AcceleratorConfig(act_bits=a, weight_bits=w, mult="lut", act_sign=sign)
        bits = config.product_bits - 1
        low, high = config.act_span
        if sign == "runtime":  # what a register holds with a fault in the sign, too
            low = -(1 << a)
        values = {"a": a, "operand": config.operand_bits, "top": w - 1, "bits": bits}
        emitted = emit(TableMultiplier(config))
        on_ecp5 = in_primitives("trilat_multiplier", emitted)
        for name, text in ((f"{a}_{w}_{sign}", emitted), (f"{a}_{w}_{sign}_ecp5", on_ecp5)):
            texts.append(text.replace("trilat_multiplier", f"trilat_{name}"))
            texts.append(
                BENCH.format(name=name, port=act_name(config), low=low, high=high, **values)
            )
            pairs[name] = str((high - low + 1) << w)
    benches = "".join(f"  bench_{name} bench_{name} ();\n" for name in pairs)
    texts.append(f"module bench;\n{benches}endmodule\n")
    texts.append(FAMILIES["ecp5"].simulation_models({"CCU2C"}))
    source = tmp_path / "bench.v"
    source.write_text("".join(texts))
    simulator = tmp_path / "simulator"
    verilator.build(
        [source], simulator, top="bench", arguments=("--main", "--timing"), optimize="-O0"
    )
    done = subprocess.run([simulator], capture_output=True, text=True, check=True)
    results = dict(line.split() for line in done.stdout.splitlines() if line[0] != "-")
    assert results == pairs


@pytest.mark.nightly
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(
    "fields",
    [
        {"act_bits": 2, "weight_bits": 2, "mult": "lut"},
        {"act_bits": 3, "weight_bits": 8, "mult": "lut"},
        {"act_bits": 8, "weight_bits": 8, "mult": "lut"},
        {"act_bits": 8, "weight_bits": 8, "mult": "lut", "dataflow": "os"},
        {"act_bits": 8, "weight_bits": 8, "mult": "dsp", "dsp_pack": 2},
        {"act_bits": 4, "weight_bits": 4, "mult": "dsp", "dsp_pack": 3},
        {"act_bits": 8, "weight_bits": 8, "mult": "dsp", "dsp_pack": 2, "dataflow": "os"},
    ],
    ids=str,
)
def test_netlists_agree(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """Every PE as mapped is simulated against its RTL; `map_modules` raises where they differ."""
    config = AcceleratorConfig(rows=3, cols=6, max_k=64, **fields)
    assert all(module.vectors for module in map_pes(config, FAMILIES[family], tmp_path).values())
