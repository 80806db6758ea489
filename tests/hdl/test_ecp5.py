# SPDX-License-Identifier: Apache-2.0
"""PEs in primitives of the ECP5: what that saves, and that they compute what the RTL does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mapped_pes import map_pes

from hdl.config import AcceleratorConfig
from hdl.ecp5 import in_primitives
from hdl.families import FAMILIES
from hdl.netlist_check import MismatchError


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"act_sign": "signed", "max_k": 255},
        {"act_bits": 3, "weight_bits": 5, "act_sign": "unsigned", "max_k": 1},
        {"act_bits": 5, "weight_bits": 3, "mult": "lut"},
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
    alone = config.uses_dsp and config.dsp_pack == 1
    assert saved == {
        "TRELLIS_FF": config.product_bits if alone else 0,
        "LUT4": config.acc_bits * config.dsp_pack if config.is_os else 0,
    }
    assert pe.vectors and pe.timing.delay <= inferred.timing.delay


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
