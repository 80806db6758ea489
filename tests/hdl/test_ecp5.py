# SPDX-License-Identifier: Apache-2.0
"""PEs in primitives of the ECP5: what that saves, and that they compute what the RTL does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mapped_pes import map_pes

from hdl import yosys
from hdl.config import AcceleratorConfig
from hdl.ecp5 import in_primitives
from hdl.ecp5_tables import table_multiplier
from hdl.families import FAMILIES
from hdl.netlist_check import MismatchError


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"act_sign": "signed", "max_k": 255},
        {"act_bits": 3, "weight_bits": 5, "act_sign": "unsigned", "max_k": 1},
        {"dataflow": "ws", "act_sign": "unsigned"},
        {"dsp_pack": 2, "max_k": 63},
    ],
    ids=str,
)
def test_primitives_of_the_ecp5_take_registers_and_choices(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    config = AcceleratorConfig(
        **{"dataflow": "os", "rows": 1, "cols": 2, "mult": "dsp", "max_k": 64, **fields}
    )
    plain = replace(FAMILIES["ecp5"], in_primitives=None)
    (pe,) = map_pes(config, FAMILIES["ecp5"], tmp_path / "primitives").values()
    (inferred,) = map_pes(config, plain, tmp_path / "inferred").values()
    saved = {
        kind: inferred.cells.get(kind, 0) - pe.cells.get(kind, 0)
        for kind in ("LUT4", "TRELLIS_FF", "MULT18X18D")
    }
    assert saved.pop("MULT18X18D") == 0
    # Products that share a block are held outside of it.
    alone = config.dsp_pack == 1
    assert saved == {
        "TRELLIS_FF": config.product_bits if alone else 0,
        "LUT4": config.acc_bits * config.dsp_pack if config.is_os else 0,
    }
    assert pe.vectors and pe.timing.delay <= inferred.timing.delay


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"act_bits": 8, "weight_bits": 8},
        {"act_bits": 2, "weight_bits": 2, "act_sign": "unsigned"},
        {"act_bits": 5, "weight_bits": 3, "dataflow": "ws"},
    ],
    ids=str,
)
def test_a_multiplier_of_tables_is_carry_logic_alone(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    config = AcceleratorConfig(
        **{"dataflow": "os", "rows": 1, "cols": 2, "act_bits": 4, "weight_bits": 4, **fields},
        mult="lut",
        max_k=64,
    )
    family = FAMILIES["ecp5"].without_dsp()
    (pe,) = map_pes(config, family, tmp_path / "primitives").values()
    plain = replace(family, in_primitives=None)
    (inferred,) = map_pes(config, plain, tmp_path / "inferred").values()
    assert pe.cells["LUT4"] == 1  # of the lowest bit
    assert pe.cells["TRELLIS_FF"] == inferred.cells["TRELLIS_FF"]
    assert pe.vectors and pe.timing.delay < inferred.timing.delay

    def tables(cells: dict[str, int]) -> int:
        return cells["LUT4"] + 2 * cells["CCU2C"]

    assert tables(pe.cells) < 0.7 * tables(inferred.cells)


@pytest.mark.parametrize(
    ("act", "act_bits", "weight_bits", "lost"),
    [
        ("act", 2, 2, 0),
        ("act", 5, 4, 0),
        ("act", 5, 4, 1),
        ("act", 3, 6, 0),
        ("unsigned_act", 2, 2, 0),
        ("unsigned_act", 4, 4, 0),
        ("unsigned_act", 2, 7, 2),
        ("unsigned_act", 5, 3, 0),
    ],
)
def test_every_product_of_tables_is_proven(
    act: str, act_bits: int, weight_bits: int, lost: int, tmp_path: Path
) -> None:
    """Against `*`, for all operands; `lost` bits of the exact product are left out."""
    bits = act_bits + weight_bits - lost
    made = table_multiplier({act: act_bits, "weight": weight_bits, "product": bits}, act)
    extended = act if act == "act" else f"{{1'b0, {act}}}"
    reference = f"""
      module reference(
        input aclk, input [{act_bits - 1}:0] {act}, input [{weight_bits - 1}:0] weight,
        output reg [{bits - 1}:0] product
      );
        always @(posedge aclk) product <= $signed({extended}) * $signed(weight);
      endmodule
    """
    models = FAMILIES["ecp5"].simulation_models({"CCU2C"})
    defect = made.replace("carry_0[0] = ", "carry_0[0] = !")
    for name, text in (("made.v", made), ("defect.v", defect)):
        (tmp_path / name).write_text("\n".join([text, reference, models]), encoding="utf-8")
    proof = [
        "hierarchy -check",
        "proc",
        "flatten trilat_multiplier",
        "miter -equiv -make_outputs reference trilat_multiplier miter",
        "hierarchy -top miter",
        "flatten",
        # In the second cycle the registers have what the operands of the first one make.
        "sat -verify -set-def-inputs -seq 2 -prove-skip 1 -prove trigger 0 miter",
    ]
    assert "SUCCESS" in yosys.run(["read_verilog made.v", *proof], tmp_path, "prove")
    with pytest.raises(yosys.YosysError, match="proof did fail"):
        yosys.run(["read_verilog defect.v", *proof], tmp_path, "refute")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("16'hA6AA), .INIT1", "16'h96AA), .INIT1"), ('("CLK0")', '("NONE")'), ("{weight,", "{act,")],
)
def test_wrong_primitives_are_seen(right: str, wrong: str, tmp_path: Path) -> None:
    config = AcceleratorConfig(dataflow="os", rows=1, cols=1, mult="dsp", max_k=64)

    def defect(name: str, text: str) -> str:
        return in_primitives(name, text).replace(right, wrong)

    family = replace(FAMILIES["ecp5"], in_primitives=defect)
    with pytest.raises(MismatchError, match="netlist of trilat_pe_os differs from its RTL: acc"):
        map_pes(config, family, tmp_path)
