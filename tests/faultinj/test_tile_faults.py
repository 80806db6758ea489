# SPDX-License-Identifier: Apache-2.0
"""Predictions from the schedule against a model that moves every register in every cycle."""

from __future__ import annotations

import itertools
from dataclasses import replace

import clocked_array
import numpy as np
import pytest
from clocked_array import as_word, clocked, word_count
from hypothesis import given, settings
from hypothesis import strategies as st

from faultinj.faults import (
    REGISTERS,
    MemoryFault,
    RegisterFault,
    from_json,
    to_json,
    written,
)
from faultinj.products import products
from faultinj.register_times import ring_row
from faultinj.tile_faults import predict
from hdl.config import AcceleratorConfig
from hdl.registers import register_classes, register_places, register_slice
from hdl.schedule import k_tile_period
from hdl.tile import TileJob, check_input, reference_output, with_common_limits
from trilat.errors import InputError


def random_job(config: AcceleratorConfig, m: int, tiles: int, seed: int, *, raw=False) -> TileJob:
    rng = np.random.default_rng(seed)
    signed = bool(seed % 2)
    low, high = (
        (-(1 << config.act_bits - 1), (1 << config.act_bits - 1) - 1)
        if signed
        else (
            0,
            (1 << config.act_bits) - 1,
        )
    )
    limit = (1 << config.weight_bits - 1) - 1
    cols = config.cols
    job = TileJob(
        acts=rng.integers(low, high + 1, (m, tiles * config.k_step)),
        weights=rng.integers(-limit, limit + 1, (tiles * config.k_step, cols)),
        bias=rng.integers(-50, 50, cols), shift=rng.integers(0, 3, cols),
        lo=np.zeros(cols, np.int64), hi=rng.integers(1, high + 1, cols),
        lo_is_bound=rng.integers(0, 2, cols).astype(bool),
        hi_is_bound=rng.integers(0, 2, cols).astype(bool),
        signed_in=signed, signed_out=False, raw=raw, input_lo=low + 1, input_hi=high - 1,
    )  # fmt: skip
    if config.multiplies:
        factor = rng.integers(1 << 14, 1 << 16, cols)
        job = replace(job, multiplier=factor, shift=job.shift + 15)
    return with_common_limits(config, job)


def sites(config: AcceleratorConfig, register: str) -> list[tuple[int, int]]:
    places = register_places(config, register)
    if register == "ring":  # a tile alone fills the first words
        return [(row, col) for row, col in places if row < 4]
    return [(row, col) for row, col in places if row < max(config.rows, config.cols, 4)]


def registers_of(config: AcceleratorConfig) -> list[str]:
    return [r for r in register_classes(config) if r in REGISTERS[config.dataflow]]


def assert_predicted(config, job, faults) -> bool:
    rows, violations = clocked(config, job, check_input(config, job)[0], faults)
    got = predict(config, job, faults)
    np.testing.assert_array_equal(got.rows, rows, err_msg=str(faults))
    assert got.violations_out == violations, faults
    golden = reference_output(config, job)
    assert got.violations_in == golden.violations_in
    return not np.array_equal(got.rows, golden.rows)


# (bounds, requant): where parameters are, and what they are.
PARAMETERS = [("channel", "shift"), ("channel", "mult"), ("layer", "shift"), ("layer", "mult")]


@pytest.mark.parametrize("dataflow", ["ws", "os"])
@pytest.mark.parametrize(
    "rows,cols,pack,bounds,requant",
    [
        (1, 1, 1, "channel", "shift"),
        (2, 3, 1, "channel", "shift"),
        (3, 2, 1, "layer", "shift"),
        (2, 4, 2, "channel", "shift"),
        (1, 2, 1, "channel", "mult"),
        (3, 2, 1, "layer", "mult"),
    ],
)
@pytest.mark.parametrize("m,tiles,raw", [(1, 2, True), (4, 2, True), (3, 3, False)])
def test_every_register_in_drawn_cycles(dataflow, rows, cols, pack, bounds, requant, m, tiles, raw):
    config = AcceleratorConfig(
        dataflow=dataflow, rows=rows, cols=cols, act_bits=3, weight_bits=3, max_k=9,
        dsp_pack=pack, mult="dsp" if pack > 1 else "auto", psum_depth=5, protect="zero",
        bounds=bounds, requant=requant,
    )  # fmt: skip
    if config.is_os:
        m, tiles = min(m, rows), tiles * 3
    job = random_job(config, m, tiles, seed=rows + 10 * m, raw=raw)
    start, rng = -max(rows, word_count(config)) - 1, np.random.default_rng(rows)
    for register in registers_of(config):
        for row, col in sites(config, register):
            width = register_slice(config, register, row, col).bits
            end = tiles * k_tile_period(config, m) + rows + cols + m * config.raw_beats + 12
            for cycle in rng.choice(np.arange(start, end), 1, replace=False).tolist():
                fault = RegisterFault(
                    layer="l", image=0, tile=0, register=register, row=row, col=col,
                    bits=(cycle % width,), cycle=cycle,
                )  # fmt: skip
                assert_predicted(config, job, [fault])


@pytest.mark.parametrize("dataflow", ["ws", "os"])
@pytest.mark.parametrize("bounds,requant", PARAMETERS)
def test_every_class_corrupts_in_some_cycle(dataflow, bounds, requant):
    config = AcceleratorConfig(
        dataflow=dataflow, rows=2, cols=2, act_bits=4, weight_bits=4, max_k=9, psum_depth=3,
        protect="zero", bounds=bounds, requant=requant,
    )  # fmt: skip
    job = random_job(config, 2, 4 if config.is_os else 2, seed=1)
    job = replace(
        job, shift=np.full(2, 16 if config.multiplies else 1),
        lo=np.full(2, -8), hi=np.full(2, 7), hi_is_bound=np.ones(2, bool), signed_out=True,
        lo_is_bound=np.zeros(2, bool),
    )  # fmt: skip
    registers = registers_of(config)
    if (bounds, requant) != PARAMETERS[0]:  # the array is the same
        registers = [r for r in registers if r.removeprefix("next_") in clocked_array.PARAMETERS]
    for register in registers:
        if register == "deskew":
            row, col = 0, 0
        else:
            row, col = sites(config, register)[-1 if "skew" in register else 0]
        width = register_slice(config, register, row, col).bits
        counts = [0, 0]
        for cycle in range(-12, 28):
            fault = RegisterFault(
                layer="l", image=0, tile=0, register=register, row=row, col=col,
                bits=(width - 1,), cycle=cycle,
            )  # fmt: skip
            counts[assert_predicted(config, job, [fault])] += 1
        assert all(counts) or (register.endswith("is_bound") and counts[0]), register


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_several_faults_at_once(data, seed):
    rows, pack = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 1, 2, 3]))
    bits = st.integers(2, 8 if pack == 1 else 4)
    config = AcceleratorConfig(
        dataflow=data.draw(st.sampled_from(["ws", "os"])),
        rows=rows, cols=pack * data.draw(st.integers(1, 4 // pack)), act_bits=data.draw(bits),
        weight_bits=data.draw(bits), max_k=16, dsp_pack=pack, mult="dsp" if pack > 1 else "auto",
        protect=data.draw(st.sampled_from(["none", "clip", "zero"])),
        bounds=data.draw(st.sampled_from(["channel", "layer"])),
        requant=data.draw(st.sampled_from(["shift", "mult"])),
    )  # fmt: skip
    m = data.draw(st.integers(1, min(6, config.max_m)))
    tiles = data.draw(st.integers(1, 12 if config.is_os else 3))
    job = random_job(config, m, tiles, seed, raw=data.draw(st.booleans()))
    registers = [r for r in registers_of(config) if sites(config, r)]
    faults = []
    for _ in range(data.draw(st.integers(1, 4))):
        register = data.draw(st.sampled_from(registers))
        row, col = data.draw(st.sampled_from(sites(config, register)))
        width = register_slice(config, register, row, col).bits
        kind = data.draw(st.sampled_from(["flip", "flip", "stuck0", "stuck1"]))
        faults.append(
            RegisterFault(
                layer="l", image=0, tile=0, register=register, row=row, col=col, kind=kind,
                bits=tuple(sorted(data.draw(st.sets(st.integers(0, width - 1), min_size=1)))),
                cycle=data.draw(st.integers(-12, 30)) if kind == "flip" else None,
            )
        )  # fmt: skip
    flips = {}
    for fault in faults:  # two kinds of fault in one register have no order
        if flips.setdefault((fault.register, fault.row, fault.col), fault) is not fault:
            return
    assert_predicted(config, job, faults)


@pytest.mark.parametrize("dataflow", ["ws", "os"])
@pytest.mark.parametrize("mult,pack", [("lut", 1), ("dsp", 1), ("dsp", 2), ("dsp", 3)])
@pytest.mark.parametrize("first", [0, 2])
def test_least_operands_at_once(dataflow, mult, pack, first):
    # The least that a register can hold, -4, times the least weight, -2, is no product of codes.
    config = AcceleratorConfig(
        dataflow=dataflow, rows=5, cols=6, act_bits=2, weight_bits=2, max_k=15, psum_depth=4,
        mult=mult, dsp_pack=pack,
    )  # fmt: skip
    job = random_job(config, 4, 3 if dataflow == "ws" else 15, seed=3, raw=True)

    def stuck(register: str, row: int, col: int) -> list[RegisterFault]:
        top = register_slice(config, register, row, col).bits - 1
        return [
            RegisterFault(
                layer="l", image=0, tile=0, register=register, row=row, col=col, cycle=None,
                bits=bits, kind=kind,
            )
            for kind, bits in (("stuck1", (top,)), ("stuck0", tuple(range(top))))
        ]  # fmt: skip

    weight = "pe_weight" if config.is_os else "weight_active"
    faults = [f for row in range(first, 5) for f in stuck("pe_activation", row, 0)]
    assert assert_predicted(config, job, faults)
    for col in (0, 1, 3, 4):
        for row in range(first, 5):
            faults += stuck(weight, row, col)
        assert assert_predicted(config, job, faults)


@pytest.mark.parametrize("pack", [2, 3])
def test_products_of_tiles_side_by_side_do_not_meet(pack):
    config = AcceleratorConfig(cols=6, act_bits=2, weight_bits=2, mult="dsp", dsp_pack=pack)
    rng = np.random.default_rng(pack)
    # Of the second tile a fault reaches the last group, of the third one it is all of N.
    cols = [np.arange(6), np.arange(6 - pack, 6), np.arange(pack)]
    operands, weights = rng.integers(-4, 4, (50, 1)), rng.integers(-2, 2, (50, 6))
    assert ((operands == -4) & (weights == -2)).any()
    alone = [products(config, some, operands, weights[:, some]) for some in cols]
    for some, made in zip(cols, alone, strict=True):
        acts = np.broadcast_to(operands, (50, config.col_groups))
        expected = clocked_array.products(config, acts, weights)[:, some]
        np.testing.assert_array_equal(made, expected)
    beside = np.concatenate(cols)
    together = products(config, beside, operands, weights[:, beside])
    np.testing.assert_array_equal(together, np.concatenate(alone, axis=1))


@pytest.mark.parametrize("dataflow", ["ws", "os"])
def test_words_of_the_ring_are_taken_in_turn(dataflow):
    config = AcceleratorConfig(
        dataflow=dataflow, rows=3, cols=2, act_bits=4, weight_bits=4, max_k=9, psum_depth=3
    )
    for m, before in ((3, 0), (3, 2), (1, 5), (2, 4), (3, 600)):
        job = random_job(config, m, 2, seed=before, raw=True)
        met = []
        for word, kind in itertools.product(range(6), ("stuck0", "stuck1")):
            fault = RegisterFault(
                layer=None, image=0, tile=None, register="ring", row=word, col=1, bits=(2, 3),
                cycle=None, kind=kind,
            )  # fmt: skip
            rows, _ = clocked(config, job, job.acts, [fault], before)
            got = predict(config, job, [ring_row(config, fault, before)])
            np.testing.assert_array_equal(got.rows, rows)
            changed = (got.rows != reference_output(config, job).rows).any(axis=1)
            met += [(word, row) for row in np.flatnonzero(changed)]
        assert met and all(word == (row + before) % 6 for word, row in met)


def test_two_flips_of_one_bit_cancel():
    config = AcceleratorConfig(rows=2, cols=2, act_bits=4, weight_bits=4, max_k=4)
    job = random_job(config, 3, 1, seed=3, raw=True)
    fault = RegisterFault(
        layer="l", image=0, tile=0, register="psum", row=1, col=0, bits=(2,), cycle=6
    )
    golden = reference_output(config, job).rows
    assert not np.array_equal(predict(config, job, [fault]).rows, golden)
    np.testing.assert_array_equal(predict(config, job, [fault, fault]).rows, golden)


@pytest.mark.parametrize("width", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
def test_every_bit_of_every_code(width, signed):
    low = -(1 << width - 1) if signed else 0
    codes = np.arange(low, low + (1 << width))
    for bit in range(width):
        for kind in ("flip", "stuck0", "stuck1"):
            got = written(codes, width, signed, 1 << bit, kind)
            for before, after in zip(codes, got, strict=True):
                text = list(format(int(before) & ((1 << width) - 1), f"0{width}b"))
                old = text[width - 1 - bit]
                text[width - 1 - bit] = {"flip": "01"[old == "0"], "stuck0": "0", "stuck1": "1"}[
                    kind
                ]
                assert int(after) == as_word(int("".join(text), 2), width, signed)


def test_faults_are_json_and_bad_ones_are_named():
    config = AcceleratorConfig(rows=3, cols=2)
    fault = RegisterFault(
        layer="conv1", image=3, tile=2, register="skew", row=1, col=1, bits=(0, 7), cycle=9
    )
    memory = MemoryFault(tensor="input", image=1, element=5, bits=(2,), kind="stuck1")
    for one in (fault, memory):
        assert from_json(to_json(one)) == one
    job = random_job(AcceleratorConfig(rows=3, cols=2), 2, 1, seed=0)
    for change, message in (
        ({"row": 3}, "no skew register at row 3, column 1 in an array of 3 x 2"),
        ({"col": 2}, "no skew register at row 1, column 2"),
        ({"register": "deskew", "row": 1, "col": 0}, "no deskew register at row 1, column 0"),
        ({"register": "deskew", "row": 0, "col": 1}, "no deskew register at row 0, column 1"),
        ({"bits": (9,)}, r"skew has bits 0\.\.8, not \(9,\)"),
        ({"bits": ()}, r"skew has bits 0\.\.8, not \(\)"),
        ({"register": "accumulator"}, "unknown register class predicted for dataflow ws"),
        ({"register": "pe_act"}, "unknown register 'pe_act'; did you mean pe_activation"),
        ({"kind": "burnt"}, "unknown kind of fault 'burnt'"),
        ({"kind": "stuck0"}, "a stuck-at fault has none"),
        ({"cycle": None}, "a flip needs a cycle"),
    ):
        with pytest.raises(InputError, match=message):
            predict(config, job, [RegisterFault(**(fault.__dict__ | change))])
    with pytest.raises(InputError, match="site is memory, register or weight, not 'disk'"):
        from_json({"site": "disk", "bits": [1]})
    with pytest.raises(InputError, match="this is no fault"):
        from_json({"site": "memory", "bits": [1]})
