# SPDX-License-Identifier: Apache-2.0
"""The stimulus files and records of the harness, against integers packed by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdl.config import AcceleratorConfig
from hdl.tile import param_words
from sim.jobs import random_job
from sim.streams import ProtocolError, pack, read_counters, read_outputs, unpack, write_stimulus


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    bits=st.integers(1, 32),
    beats=st.integers(1, 4),
    elements=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_pack_is_one_long_integer_per_beat(bits, beats, elements, seed):
    values = np.random.default_rng(seed).integers(0, 1 << bits, (beats, elements))
    packed = pack(values, bits)
    assert packed.shape == (beats, -(-elements * bits // 8))
    for beat, row in zip(packed, values, strict=True):
        expected = sum(int(v) << (bits * i) for i, v in enumerate(row))
        assert int.from_bytes(beat.tobytes(), "little") == expected
    assert np.array_equal(unpack(packed, elements, bits), values)


def test_negative_codes_are_two_s_complement():
    assert pack(np.array([[-1, -8, 7]]), 4).tolist() == [[0x8F, 0x07]]


def test_stimulus_records(tmp_path):
    config = AcceleratorConfig(rows=2, cols=3, act_bits=8, weight_bits=4, max_k=16, psum_depth=8)
    rng = np.random.default_rng(0)
    jobs = [random_job(config, rng, m=2, k_tiles=2), random_job(config, rng, m=1, k_tiles=1)]
    write_stimulus(config, jobs, [False, True], tmp_path)

    param = (tmp_path / "param.bin").read_bytes()
    words = [param_words(config, job) for job in jobs]
    expected = b"".join(
        after.to_bytes(4, "big")
        + bytes([(i == 7) | (i == 0) << 1])
        + (word & 0xFFFFFFFF).to_bytes(4, "big")
        for after, tile in enumerate(words)
        for i, word in enumerate(tile)
    )
    assert param == expected

    weight = np.frombuffer((tmp_path / "weight.bin").read_bytes(), np.uint8).reshape(-1, 5 + 2)
    # Rows of a block bottom first; the first tile has two blocks, the second waits for one tile.
    assert weight[:, 3].tolist() == [0, 0, 0, 0, 1, 1]
    assert weight[:, 4].tolist() == [2, 1, 0, 1, 2, 1]
    order = [1, 0, 3, 2]
    beats = [int.from_bytes(bytes(w[5:]), "big") for w in weight[:4]]
    for beat, row in zip(beats, order, strict=True):
        codes = [int(v) & 15 for v in jobs[0].weights[row]]
        assert beat == codes[0] | codes[1] << 4 | codes[2] << 8

    act = np.frombuffer((tmp_path / "act.bin").read_bytes(), np.uint8).reshape(-1, 5 + 2)
    assert act[:, 4].tolist() == [2, 1, 0, 1, 3]
    for record, (beat, k) in zip(act, [(0, 0), (1, 0), (0, 1), (1, 1)], strict=False):
        codes = [int(v) & 255 for v in jobs[0].acts[beat, 2 * k : 2 * k + 2]]
        assert [int(v) for v in record[5:]] == codes[::-1]


def test_outputs_of_codes_and_of_raw_sums(tmp_path):
    config = AcceleratorConfig(rows=1, cols=2, act_bits=4, weight_bits=4, max_k=4, psum_depth=8)
    rng = np.random.default_rng(1)
    codes = random_job(config, rng, m=2, raw=False)
    codes = dataclasses.replace(codes, signed_out=True)
    raw = random_job(config, rng, m=1, raw=True)
    sums, beats = [-5, 300], config.raw_beats
    lines = ["0 8f", "1 07"]  # (-1, -8), (7, 0)
    for beat in range(beats):
        low, high = ((value >> (4 * beat)) & 15 for value in sums)
        lines.append(f"{int(beat == beats - 1)} {low | high << 4:02x}")
    (tmp_path / "output.txt").write_text("\n".join(lines) + "\n")
    rows = read_outputs(config, [codes, raw], tmp_path)
    assert rows[0].tolist() == [[-1, -8], [7, 0]]
    assert rows[1].tolist() == [sums]

    (tmp_path / "output.txt").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ProtocolError, match=r"^\d+ output beats instead of \d+$"):
        read_outputs(config, [codes, raw], tmp_path)
    (tmp_path / "output.txt").write_text("\n".join(["1" + lines[0][1:], *lines[1:]]) + "\n")
    with pytest.raises(ProtocolError, match=r"^tlast is wrong at output beat 0$"):
        read_outputs(config, [codes, raw], tmp_path)


def test_counters_are_per_tile_and_breaches_are_errors(tmp_path):
    (tmp_path / "counters.txt").write_text("3 0 0\n3 2 0\n10 2 0\n")
    assert read_counters(tmp_path).tolist() == [[3, 0], [0, 2], [7, 0]]
    (tmp_path / "counters.txt").write_text("3 0 4\n")
    with pytest.raises(ProtocolError, match="changed an offered beat 4 times"):
        read_counters(tmp_path)
