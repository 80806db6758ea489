# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from hdl.config import ACT_SIGNS, AcceleratorConfig, signed_width
from trilat.errors import InputError


def holds(bits: int, value: int) -> bool:
    return -(1 << (bits - 1)) <= value <= (1 << (bits - 1)) - 1


@pytest.mark.parametrize(
    ("lo", "hi"), [(-1, 0), (0, 0), (-8, 7), (-9, 7), (-8, 8), (0, 255), (-5, 1)]
)
def test_signed_width_is_the_narrowest(lo: int, hi: int) -> None:
    bits = signed_width(lo, hi)
    assert holds(bits, lo) and holds(bits, hi)
    assert bits == 1 or not (holds(bits - 1, lo) and holds(bits - 1, hi))


@pytest.mark.parametrize("mult", ["dsp", "lut"])
@pytest.mark.parametrize("sign", ACT_SIGNS)
@pytest.mark.parametrize(("act", "weight"), list(itertools.product(range(2, 9), range(2, 9))))
def test_widths_hold_every_product_and_sum_exactly(
    act: int, weight: int, sign: str, mult: str
) -> None:
    config = AcceleratorConfig(
        rows=5, act_bits=act, weight_bits=weight, max_k=23, act_sign=sign, mult=mult
    )
    lowest = 0 if sign == "unsigned" else -(1 << (act - 1))
    acts = range(lowest, 1 << (act - (sign == "signed")))
    assert config.act_span == (acts[0], acts[-1])
    # What a faulty register holds: any word as wide as the code, with its sign.
    lowest = -(1 << act) if sign == "runtime" else acts[0]
    assert config.operand_span == (lowest, acts[-1])
    weights = range(-(1 << (weight - 1)), 1 << (weight - 1))
    for code in {acts[0], acts[-1], lowest + 1}:
        assert all(holds(config.product_bits, code * w) for w in (weights[0], weights[-1]))
    bits = config.product_bits
    products = [a * w for a in {lowest, *acts} for w in weights]
    assert holds(bits, max(products)) is (sign != "runtime" or mult == "dsp")
    products = [(p + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1)) for p in products]
    low, high = min(products), max(products)
    assert not (holds(bits - 1, low) and holds(bits - 1, high))
    for row in range(5):
        bits = config.psum_bits(row)
        assert holds(bits, low * (row + 1)) and holds(bits, high * (row + 1))
        assert not (holds(bits - 1, low * (row + 1)) and holds(bits - 1, high * (row + 1)))
    # Five K tiles of five rows, of codes, which are wider than one of any operands.
    assert config.max_k_tiles == 5
    ends = [25 * code * w for code in (acts[0], acts[-1]) for w in weights]
    assert all(holds(config.acc_bits, end) for end in ends)
    assert not all(holds(config.acc_bits - 1, end) for end in ends)
    assert config.acc_bits >= config.psum_bits(4)
    one = replace(config, max_k=1)
    assert (one.acc_bits, replace(one, rows=1).acc_bits) == (one.psum_bits(4), one.psum_bits(0))
    assert replace(one, dataflow="os").acc_bits == one.product_bits
    assert config.raw_beats * act >= config.sum_bits > (config.raw_beats - 1) * act


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rows", 0, "rows must be an integer in 1..64, not 0"),
        ("cols", 65, "cols must be an integer in 1..64, not 65"),
        ("rows", True, "rows must be an integer in 1..64, not True"),
        ("cols", "16", "cols must be an integer in 1..64, not '16'"),
        ("act_bits", 1, "act_bits must be an integer in 2..8, not 1"),
        ("weight_bits", 9, "weight_bits must be an integer in 2..8, not 9"),
        ("max_k", 0, "max_k must be an integer in 1..65536, not 0"),
        ("psum_depth", 1, "psum_depth must be an integer in 2..65535, not 1"),
        ("protect", "clamp", "protect must be one of none, clip, zero, not 'clamp'"),
        ("protect_place", "in", "protect_place must be one of both, input, output, not 'in'"),
        ("act_sign", True, "act_sign must be one of runtime, unsigned, signed, not True"),
        ("requant", "float", "requant must be one of shift, mult, not 'float'"),
        ("bounds", "tile", "bounds must be one of channel, layer, not 'tile'"),
    ],
)
def test_bad_fields_are_named(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError) as error:
        AcceleratorConfig(**{field: value})
    assert str(error.value) == message


def test_json_round_trip_and_hash() -> None:
    config = AcceleratorConfig(rows=3, cols=5, protect="zero", protect_place="input")
    assert AcceleratorConfig.from_json(config.to_json()) == config
    assert config.config_hash() != AcceleratorConfig(rows=3, cols=5).config_hash()
    with pytest.raises(InputError, match="unknown accelerator fields: depth"):
        AcceleratorConfig.from_json({"depth": 3})


@pytest.mark.parametrize(
    ("protect", "place", "checks"),
    [
        ("none", "both", (False, False)),
        ("clip", "both", (True, True)),
        ("zero", "input", (True, False)),
        ("clip", "output", (False, True)),
    ],
)
def test_where_a_protection_unit_checks(
    protect: str, place: str, checks: tuple[bool, bool]
) -> None:
    config = AcceleratorConfig(protect=protect, protect_place=place)
    assert (config.checks_input, config.checks_output) == checks


@pytest.mark.parametrize(
    ("mult", "bits", "expected"),
    [("dsp", 2, True), ("lut", 8, False), ("auto", 4, False), ("auto", 6, True), ("auto", 8, True)],
)
def test_which_multipliers_are_blocks(mult: str, bits: int, expected: bool) -> None:
    assert AcceleratorConfig(act_bits=bits, weight_bits=bits, mult=mult).uses_dsp is expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mult": "luts"}, "mult must be one of auto, dsp, lut, not 'luts'"),
        ({"dsp_pack": 0}, "dsp_pack must be an integer in 1..4, not 0"),
        (
            {"dsp_pack": 2, "mult": "lut"},
            "dsp_pack 2 needs products in multiplier blocks: mult dsp",
        ),
        ({"dsp_pack": 2, "cols": 5}, "cols 5 must be a multiple of dsp_pack 2"),
        ({"dsp_pack": 4}, "dsp_pack 4 needs an operand of 57 bits, more than 25"),
        (
            {"dsp_pack": 2, "dataflow": "os", "act_bits": 4, "weight_bits": 4},
            "dsp_pack 2 needs products in multiplier blocks: mult dsp",
        ),
        (
            {"dsp_pack": 3, "dataflow": "os", "cols": 8},
            "cols 8 must be a multiple of dsp_pack 3",
        ),
        (
            {"dsp_pack": 4, "dataflow": "os", "act_bits": 4, "weight_bits": 4, "mult": "dsp"},
            "dsp_pack 4 needs an operand of 29 bits, more than 25",
        ),
    ],
)
def test_bad_multipliers_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        AcceleratorConfig(**fields)
    assert str(error.value) == message
