# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from tiny_model import open_tiny

from dse.bench import network
from dse.records import Design
from faultinj.lowering import check_fits


def test_a_network_with_multipliers_is_one_of_its_own(tmp_path: Path) -> None:
    bench = open_tiny(tmp_path, "--method", "ptq", "--requant", "shift,mult")
    shift, mult = (
        Design(
            method="ptq", weight_bits=4, act_bits=4, protect="none", rows=2, cols=2, requant=requant
        )
        for requant in ("shift", "mult")
    )
    assert {shift, mult} <= set(bench.settings.space.designs())
    plain, scaled = network(bench, shift), network(bench, mult)
    assert plain.network.content_hash() != scaled.network.content_hash()
    assert all(node.multiplier is not None for node in scaled.network.gemms()[:-1])
    for design, loaded in ((shift, plain), (mult, scaled)):
        check_fits(loaded.network, design.config(bench.max_k))
    counts = plain.result.value["agreement"]
    assert counts["equal"] == counts["words"] > 0
    counts = scaled.result.value["agreement"]
    assert counts["words"] > 0 and counts["largest"] <= 1
    assert max(counts["brevitas_off"], counts["onnx_off"]) < counts["words"]
