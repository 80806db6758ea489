# SPDX-License-Identifier: Apache-2.0
"""The protection table: missing cells are named, blind faults are those that no bound can see."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from integer_networks import plain_network, random_codes

from bench.protection import main
from bench.protection_cells import VARIANTS, Case, Variant, behaviour, blind_fault
from bench.protection_ladder import best_step, in_bytes
from bench.protection_summary import Measured, details, summary, summary_table, verdicts
from faultinj.campaign import inject
from faultinj.faults import MemoryFault, RegisterFault
from faultinj.protection import Bounds, Protection, TensorBounds, profile_bounds
from hdl.config import AcceleratorConfig
from quant import engine


def test_variants_are_every_unit_once():
    assert len(VARIANTS) == len(set(VARIANTS)) == 11
    assert VARIANTS[0].kind == "none"


def test_nothing_stored_is_named_and_computed_nowhere(tmp_path, capsys):
    path = tmp_path / "figures.json"
    flags = ["--stored", "--cache", str(tmp_path / "cache"), "--json", str(path)]
    assert main([*flags, "--models", "lenet5", "--bits", "8,2"]) == 0
    out = capsys.readouterr().out
    assert "lenet5/mnist qat 8 bits: no --data" in out and "claimed (third-party" in out
    found = json.loads(path.read_text())
    assert found["cells"] == [] and len(found["missing"]) == 4
    assert main([*flags, "--data", str(tmp_path), "--methods", "ptq", "--bits", "4"]) == 0
    assert f"alexnet/cifar10 ptq 4 bits: no cifar10/ in {tmp_path}" in capsys.readouterr().out
    assert main([*flags, "--quick"]) == 0
    assert "missing, 11:" in capsys.readouterr().out
    assert main([*flags, "--quick", "--html", str(tmp_path / "report.html")]) == 0
    assert "Activation protection, measured" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--bits", "9"], "9 is none of the accepted: 8, 7, 6, 5, 4, 3, 2"),
        (["--bits", "x"], "--bits, --rates, --ladder and --psum-flips are numbers, divided by"),
        (["--ladder", "0.1,"], "--bits, --rates, --ladder and --psum-flips are numbers, divided"),
        (["--models", "vgg11"], "'vgg11' is none of the accepted: lenet5, alexnet"),
        (["--faults", "0"], "--faults must be at least 1, not 0"),
    ],
)
def test_bad_flags(flags, message, capsys):
    assert main(flags) == 2
    assert message in capsys.readouterr().err


def test_the_reported_gain_is_not_that_of_the_maps_that_chose():
    clip, zero = Variant(kind="clip"), Variant(kind="zero")

    def steps(low, high):
        return [{"rate": 0.01, "accuracies": low}, {"rate": 0.1, "accuracies": high}]

    plain = steps([50, 50, 50, 50], [10, 10, 10, 20])
    others = {
        clip: steps([55, 55, 90, 90], [10, 10, 10, 10]),
        zero: steps([50, 50, 50, 50], [30, 10, 25, 31]),
    }
    # The first two maps gain 5 with clip at 0.01 and 10 with zero at 0.1; the others 40 and 13.
    found = best_step(plain, others, 2, seed=1)
    assert found["rate"] == 0.1 and Variant(**found["variant"]) == zero
    assert found["unprotected"]["mean"] == 15 and found["protected"]["mean"] == 28
    assert found["gain"]["mean"] == 13
    assert found["gain"]["ci_low"] <= 11 and found["gain"]["ci_high"] >= 15


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_codes_in_bytes_are_the_same_codes(bits):
    network = plain_network(seed=3, weight_bits=bits, act_bits=bits)
    wide = in_bytes(network)
    codes = torch.from_numpy(random_codes(network, 5)).to(engine.code_dtype(network.input))
    narrow, found = engine.forward(network, codes), engine.forward(wide, codes)
    assert all(torch.equal(narrow[name], found[name]) for name in narrow)
    assert all(wide.format_of(n).bits == 8 for n in narrow if n != network.nodes[-1].name)
    # A bit above the code's own: what no run without faults has, so the input check sees it.
    bounds = profile_bounds(wide, codes)
    protection = Protection(kind="clip", place="input", bounds=bounds)
    config = AcceleratorConfig(
        rows=4, cols=4, act_bits=8, weight_bits=bits, max_k=128, protect="clip",
        protect_place="input",
    )  # fmt: skip
    size = len(network.node("fc1").bias)
    faults = [(MemoryFault(tensor="fc1", image=0, element=e, bits=(bits,)),) for e in range(size)]
    labels = np.zeros(5, dtype=np.int64)
    records = inject(wide, config, codes, labels, faults, protection=protection)
    assert all(record.detected for record in records)


def test_units_that_do_the_same_are_told_by_what_they_do():
    network = plain_network(seed=4, weight_bits=4, act_bits=4)
    codes = torch.from_numpy(random_codes(network, 6)).to(engine.code_dtype(network.input))
    profiled = profile_bounds(network, codes)
    blind = profiled
    for name in profiled.tensors:
        fmt = network.format_of(name)
        blind = with_range(blind, name, fmt.lo, fmt.hi)
    none = behaviour(network, Protection())
    for kind in ("clip", "zero"):
        assert behaviour(network, Protection(kind=kind, bounds=blind)) == none
    tight = with_range(blind, "fc1", 0, 5)
    found = {
        behaviour(network, Protection(kind=kind, place=place, bounds=tight))
        for kind in ("clip", "zero")
        for place in ("input", "output")
    }
    assert len(found) == 4 and none not in found


def test_a_summary_of_part_of_the_results_names_no_figure_that_is_not_there():
    case = Case(model="lenet5", data="mnist", method="ptq", bits=4)
    measured = Measured(choosing=1, seed=0)
    assert summary(measured, [case]) == []
    plain = [{"rate": 0.1, "accuracies": [20.0, 20.0, 22.0]}]
    clip = [{"rate": 0.1, "accuracies": [60.0, 61.0, 63.0]}]
    none, unit = VARIANTS[:2]
    measured.ladders[case, "byte"] = {none: plain, unit: clip}
    measured.luts = {(4, none): 1000, (4, unit): 1050}
    rows = summary(measured, [case])
    assert len(rows) == 1 and rows[0]["code"] is None and rows[0]["accuracy"] is None
    assert rows[0]["byte"]["gain"]["mean"] == 41 and rows[0]["lut_more"] == pytest.approx(5)
    lines = verdicts(rows, measured)
    assert "+41.0 (+41.0 .. +41.0) points" in lines[0] and lines[0].endswith("+34: reached")
    assert "per layer +5.0 .. +5.0; claimed: under 10" in lines[1]
    assert summary_table(rows).row_count == 1
    assert [table.row_count for table in details(measured, [case])] == [2]


def with_range(bounds, name, lo, hi):
    """Bounds with another range for one tensor."""
    channels = len(bounds.tensors[name].channel_lo)
    tensor = TensorBounds(
        lo=lo, hi=hi, channel_lo=np.full(channels, lo), channel_hi=np.full(channels, hi)
    )
    return Bounds(tensors={**bounds.tensors, name: tensor})


@pytest.mark.parametrize("granularity", ["layer", "channel"])
@pytest.mark.parametrize("place", ["input", "output", "both"])
def test_blind_faults_are_never_detected_where_they_hit(place, granularity):
    network = plain_network(seed=4, weight_bits=4, act_bits=4)
    values = torch.from_numpy(random_codes(network, 6))
    codes = values.to(engine.code_dtype(network.input))
    profiled = profile_bounds(network, codes[:1])
    fmt = network.format_of("fc1")
    # Only fc2 reads fc1, and fc2 has no output bounds: what fc1 holds is unseen at full range.
    bounds = with_range(profiled, "fc1", fmt.lo, fmt.hi)
    protection = Protection(kind="clip", place=place, granularity=granularity, bounds=bounds)
    config = AcceleratorConfig(
        rows=4, cols=4, act_bits=4, weight_bits=4, max_k=128, protect="clip", protect_place=place
    )
    size = len(network.node("fc1").bias)
    faults = [
        MemoryFault(tensor="fc1", image=image, element=e, bits=(3,))
        for image in range(6)
        for e in range(size)
    ]
    assert all(blind_fault(network, protection, fault) for fault in faults)
    labels = np.zeros(6, dtype=np.int64)
    records = inject(network, config, codes, labels, [(f,) for f in faults], protection=protection)
    assert not any(record.detected for record in records)
    # The same faults are seen once the range is narrow: the test above could have failed.
    bounds = with_range(with_range(profiled, "fc1", 0, 5), "conv1", 0, 5)
    narrow = Protection(kind="clip", place=place, granularity=granularity, bounds=bounds)
    assert all(blind_fault(network, narrow, fault) == (place == "output") for fault in faults)
    seen = inject(network, config, codes, labels, [(f,) for f in faults], protection=narrow)
    assert any(record.detected for record in seen) == (place != "output")
    register = {"image": 0, "tile": 0, "register": "pe_activation", "row": 0, "col": 0,
                "bits": (0,), "cycle": 9}  # fmt: skip
    assert blind_fault(network, narrow, RegisterFault(layer="fc2", **register))
    found = blind_fault(network, narrow, RegisterFault(layer="conv1", **register))
    assert found == (place == "input")
