# SPDX-License-Identifier: Apache-2.0
"""Predictions from the schedule against a model that moves every register in every cycle."""

from __future__ import annotations

import numpy as np
import pytest
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
from faultinj.tile_faults import predict
from hdl.config import AcceleratorConfig
from hdl.registers import register_slice
from hdl.schedule import k_tile_period
from hdl.tile import TileJob, check_input, finish, reference_output
from trilat.errors import InputError


def as_word(value: int, width: int, signed: bool) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if signed and value >> (width - 1) else value


def clocked(config: AcceleratorConfig, job: TileJob, faults) -> tuple[np.ndarray, np.ndarray]:
    """The array, cycle by cycle, as a table of registers that all load at once."""
    rows, cols, m = config.rows, config.cols, job.m
    tiles = job.acts.shape[1] // rows
    period = k_tile_period(config, m)
    acts, _ = check_input(config, job)
    skew = [[0] * (r + 1) for r in range(rows)]
    act = [[0] * cols for _ in range(rows)]
    active = [[0] * cols for _ in range(rows)]
    product = [[0] * cols for _ in range(rows)]
    psum = [[0] * cols for _ in range(rows)]
    deskew = [[0] * (cols - 1 - c) for c in range(cols)]
    acc = np.zeros((m, cols), dtype=np.int64)
    beat_of = {k * period + b: (k, b) for k in range(tiles) for b in range(m)}

    def registers(fault):
        if fault.register == "skew":
            return skew[fault.row], fault.col
        if fault.register == "deskew":
            return deskew[fault.col], fault.row
        table = {"pe_activation": act, "product": product, "psum": psum, "weight_active": active}
        return table[fault.register][fault.row], fault.col

    for cycle in range(-5, tiles * period + 2 * (rows + cols) + 8):
        for fault in faults:
            if fault.kind == "flip" and fault.cycle != cycle:
                continue
            place, index = registers(fault)
            width = register_slice(config, fault.register, fault.row, fault.col).bits
            signed = job.signed_in or fault.register not in ("skew", "pe_activation")
            mask = sum(1 << b for b in fault.bits)
            old = place[index]
            new = {"flip": old ^ mask, "stuck1": old | mask, "stuck0": old & ~mask}[fault.kind]
            place[index] = as_word(new, width, signed)
        # Columns of a beat are aligned in the cycle in which the lanes take it.
        done = beat_of.get(cycle - (rows + cols + 2))
        if done:
            for c in range(cols):
                acc[done[1], c] += deskew[c][-1] if deskew[c] else psum[-1][c]
        entering = beat_of.get(cycle)
        codes = [
            int(acts[entering[1], entering[0] * rows + r]) if entering else 0 for r in range(rows)
        ]
        new_skew = [[codes[r], *skew[r][:-1]] for r in range(rows)]
        new_act = [[skew[r][r], *act[r][:-1]] for r in range(rows)]
        new_product = [[act[r][c] * active[r][c] for c in range(cols)] for r in range(rows)]
        new_psum = [
            [
                as_word((psum[r - 1][c] if r else 0) + product[r][c], config.psum_bits(r), True)
                for c in range(cols)
            ]
            for r in range(rows)
        ]
        new_deskew = [[psum[-1][c], *deskew[c][:-1]] if deskew[c] else [] for c in range(cols)]
        for r in range(rows):
            for c in range(cols):
                arriving = beat_of.get(cycle - (r + c + 1))
                if arriving and arriving[1] == 0:
                    active[r][c] = int(job.weights[arriving[0] * rows + r, c])
        skew, act, product, psum, deskew = new_skew, new_act, new_product, new_psum, new_deskew
    return finish(config, job, acc)


def clocked_os(config: AcceleratorConfig, job: TileJob, faults) -> tuple[np.ndarray, np.ndarray]:
    """The output-stationary array, cycle by cycle; a sum is read one cycle after its last beat."""
    rows, cols, count = config.rows, config.cols, job.acts.shape[1]
    acts = np.zeros((rows, count), dtype=np.int64)
    acts[: job.m] = check_input(config, job)[0]
    skew = [[0] * (r + 1) for r in range(rows)]
    weight_skew = [[0] * (c + 1) for c in range(cols)]
    act = [[0] * cols for _ in range(rows)]
    weight = [[0] * cols for _ in range(rows)]
    product = [[0] * cols for _ in range(rows)]
    sums = [[0] * cols for _ in range(rows)]
    read = np.zeros((rows, cols), dtype=np.int64)

    def register(fault):
        if fault.register == "skew":
            return skew[fault.row], fault.col
        if fault.register == "weight_skew":
            return weight_skew[fault.col], fault.row
        table = {"pe_activation": act, "pe_weight": weight, "product": product}
        return table.get(fault.register, sums)[fault.row], fault.col

    for cycle in range(-5, count + rows + cols + 8):
        for fault in faults:
            if fault.kind == "flip" and fault.cycle != cycle:
                continue
            place, index = register(fault)
            width = register_slice(config, fault.register, fault.row, fault.col).bits
            signed = job.signed_in or fault.register not in ("skew", "pe_activation")
            mask = sum(1 << b for b in fault.bits)
            old = place[index]
            new = {"flip": old ^ mask, "stuck1": old | mask, "stuck0": old & ~mask}[fault.kind]
            place[index] = as_word(new, width, signed)
        entering = 0 <= cycle < count
        next_sums = [row.copy() for row in sums]
        for r in range(rows):
            for c in range(cols):
                if cycle == count - 1 + r + c + 4:
                    read[r, c] = sums[r][c]
                arriving = cycle - (r + c + 3)
                if 0 <= arriving < count:
                    before = sums[r][c] if arriving else 0
                    next_sums[r][c] = as_word(before + product[r][c], config.acc_bits, True)
        product = [[act[r][c] * weight[r][c] for c in range(cols)] for r in range(rows)]
        act = [[skew[r][r], *act[r][:-1]] for r in range(rows)]
        weight = [
            [weight_skew[c][c] if r == 0 else weight[r - 1][c] for c in range(cols)]
            for r in range(rows)
        ]
        skew = [[int(acts[r, cycle]) if entering else 0, *skew[r][:-1]] for r in range(rows)]
        weight_skew = [
            [int(job.weights[cycle, c]) if entering else 0, *weight_skew[c][:-1]]
            for c in range(cols)
        ]
        sums = next_sums
    return finish(config, job, read[: job.m])


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
    return TileJob(
        acts=rng.integers(low, high + 1, (m, tiles * config.k_step)),
        weights=rng.integers(-limit, limit + 1, (tiles * config.k_step, cols)),
        bias=rng.integers(-50, 50, cols), shift=rng.integers(0, 3, cols),
        lo=np.zeros(cols, np.int64), hi=rng.integers(1, high + 1, cols),
        lo_is_bound=rng.integers(0, 2, cols).astype(bool),
        hi_is_bound=rng.integers(0, 2, cols).astype(bool),
        signed_in=signed, signed_out=False, raw=raw, input_lo=low + 1, input_hi=high - 1,
    )  # fmt: skip


def sites(config: AcceleratorConfig, register: str) -> list[tuple[int, int]]:
    if register == "skew":
        return [(r, s) for r in range(config.rows) for s in range(r + 1)]
    if register == "deskew":
        return [(s, c) for c in range(config.cols) for s in range(config.cols - 1 - c)]
    if register == "weight_skew":
        return [(s, c) for c in range(config.cols) for s in range(c + 1)]
    return [(r, c) for r in range(config.rows) for c in range(config.cols)]


def assert_predicted(config, job, faults) -> bool:
    model = clocked_os if config.is_os else clocked
    rows, violations = model(config, job, faults)
    got = predict(config, job, faults)
    np.testing.assert_array_equal(got.rows, rows, err_msg=str(faults))
    assert got.violations_out == violations, faults
    golden = reference_output(config, job)
    assert got.violations_in == golden.violations_in
    return not np.array_equal(got.rows, golden.rows)


@pytest.mark.parametrize("dataflow", ["ws", "os"])
@pytest.mark.parametrize("rows,cols", [(1, 1), (2, 3), (3, 2), (1, 4)])
@pytest.mark.parametrize("m,tiles", [(1, 2), (4, 2)])
def test_every_register_in_every_cycle(dataflow, rows, cols, m, tiles):
    config = AcceleratorConfig(
        dataflow=dataflow, rows=rows, cols=cols, act_bits=3, weight_bits=3, max_k=8
    )
    if config.is_os:
        m, tiles = min(m, rows), tiles * 3
    job = random_job(config, m, tiles, seed=rows + 10 * m, raw=True)
    seen = {register: [0, 0] for register in REGISTERS[config.dataflow]}
    for register in REGISTERS[config.dataflow]:
        for row, col in sites(config, register):
            width = register_slice(config, register, row, col).bits
            for cycle in range(-2, tiles * k_tile_period(config, m) + rows + cols + 6):
                bit = (cycle + 2) % width
                fault = RegisterFault(
                    layer="l", image=0, tile=0, register=register, row=row, col=col, bits=(bit,),
                    cycle=cycle,
                )  # fmt: skip
                seen[register][assert_predicted(config, job, [fault])] += 1
    for register, (masked, corrupting) in seen.items():
        if sites(config, register):
            assert masked and corrupting, register


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_several_faults_at_once(data, seed):
    rows, cols = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    config = AcceleratorConfig(
        dataflow=data.draw(st.sampled_from(["ws", "os"])),
        rows=rows, cols=cols, act_bits=data.draw(st.integers(2, 8)),
        weight_bits=data.draw(st.integers(2, 8)), max_k=16,
        protect=data.draw(st.sampled_from(["none", "clip", "zero"])),
    )  # fmt: skip
    m = data.draw(st.integers(1, min(6, config.max_m)))
    tiles = data.draw(st.integers(1, 12 if config.is_os else 3))
    job = random_job(config, m, tiles, seed, raw=data.draw(st.booleans()))
    registers = [r for r in REGISTERS[config.dataflow] if sites(config, r)]
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
                cycle=data.draw(st.integers(0, 30)) if kind == "flip" else None,
            )
        )  # fmt: skip
    flips = {}
    for fault in faults:  # two kinds of fault in one register have no order
        if flips.setdefault((fault.register, fault.row, fault.col), fault) is not fault:
            return
    assert_predicted(config, job, faults)


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
        ({"bits": (8,)}, r"skew has bits 0\.\.7, not \(8,\)"),
        ({"bits": ()}, r"skew has bits 0\.\.7, not \(\)"),
        ({"register": "accumulator"}, "unknown register class of an array with dataflow ws"),
        ({"register": "pe_act"}, "unknown register 'pe_act'; did you mean pe_activation"),
        ({"kind": "burnt"}, "unknown kind of fault 'burnt'"),
        ({"kind": "stuck0"}, "a stuck-at fault has none"),
        ({"cycle": None}, "a flip needs a cycle"),
    ):
        with pytest.raises(InputError, match=message):
            predict(config, job, [RegisterFault(**(fault.__dict__ | change))])
    with pytest.raises(InputError, match="site is memory or register, not 'disk'"):
        from_json({"site": "disk", "bits": [1]})
    with pytest.raises(InputError, match="this is no fault"):
        from_json({"site": "memory", "bits": [1]})
