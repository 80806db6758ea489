# SPDX-License-Identifier: Apache-2.0
"""The multiplier in lookup tables: every pair of codes of every pair of widths, in the Verilog."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hdl.config import AcceleratorConfig
from hdl.families import FAMILIES
from hdl.gen import emit, generate
from hdl.mapping import map_modules, split_modules
from hdl.multiplier import Multiplier
from trilat import verilator

# Both operands recoded, odd and even; the other pairs are for the nightly run.
WIDTHS = [(2, 2), (2, 3), (2, 8), (8, 2), (3, 5), (5, 3), (4, 4), (7, 6), (8, 8)]
OTHERS = [pair for pair in itertools.product(range(2, 9), range(2, 9)) if pair not in WIDTHS]

# The product of the pair before, computed by the simulator, beside that of the device.
BENCH = """
module bench_{a}_{w};
  reg aclk = 0;
  reg signed [{a}:0] act;
  reg signed [{top}:0] weight;
  wire signed [{bits}:0] product;
  integer x, y, wrong;
  trilat_{a}_{w} device (
    .aclk(aclk), .act(act[{a}-1:0]), .act_signed(act[{a}] | ~act[{a}-1]), .weight(weight),
    .product(product)
  );
  initial begin
    wrong = 0;
    for (x = -(1 << ({a} - 1)); x < (1 << {a}); x = x + 1)
      for (y = -(1 << {top}); y < (1 << {top}); y = y + 1) begin
        act = x[{a}:0];
        weight = y[{top}:0];
        #1 aclk = 1;
        #1 aclk = 0;
        if ({{{{{pad}{{product[{bits}]}}}}, product}} != x * y) wrong = wrong + 1;
      end
    $display("{a} {w} %0d", wrong);
  end
endmodule
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "widths", [WIDTHS, pytest.param(OTHERS, marks=pytest.mark.nightly)], ids=["some", "others"]
)
def test_every_pair_of_codes(tmp_path: Path, widths: list[tuple[int, int]]) -> None:
    texts = []
    for a, w in widths:
        config = AcceleratorConfig(act_bits=a, weight_bits=w, mult="lut")
        texts.append(emit(Multiplier(config)).replace("trilat_multiplier", f"trilat_{a}_{w}"))
        bits = config.product_bits - 1
        texts.append(BENCH.format(a=a, w=w, top=w - 1, bits=bits, pad=31 - bits))
    benches = "".join(f"  bench_{a}_{w} bench_{a}_{w} ();\n" for a, w in widths)
    texts.append(f"module bench;\n{benches}endmodule\n")
    source = tmp_path / "bench.v"
    source.write_text("".join(texts))
    simulator = tmp_path / "simulator"
    verilator.build(
        [source], simulator, top="bench", arguments=("--main", "--timing"), optimize="-O0"
    )
    done = subprocess.run([simulator], capture_output=True, text=True, check=True)
    results = {tuple(map(int, line.split())) for line in done.stdout.splitlines() if line[0] != "-"}
    assert results == {(a, w, 0) for a, w in widths}


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
    ],
    ids=str,
)
def test_netlists_agree(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """Every PE as mapped is simulated against its RTL; `map_modules` raises where they differ."""
    config = AcceleratorConfig(rows=3, cols=6, max_k=64, **fields)
    texts = split_modules(generate(config))
    kinds = [name for name in texts if name.startswith(("trilat_pe_", "trilat_multiplier"))]
    verilog = "\n".join(texts[name] for name in kinds)
    mapped = map_modules(
        verilog, FAMILIES[family], cache=tmp_path, jobs=1, advance=lambda done: None
    )
    assert set(mapped) == set(kinds)
    assert all(module.vectors for module in mapped.values())
