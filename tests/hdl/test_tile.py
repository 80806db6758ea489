# SPDX-License-Identifier: Apache-2.0
"""The specification in NumPy against exact fractions and loops over Python integers."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtl_bench import random_job

from hdl.config import AcceleratorConfig
from hdl.tile import param_words, reference_output, round_half_even_shift, wrap
from trilat.errors import InputError


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.integers(-(2**33), 2**33), st.integers(0, 31))
def test_rounding_is_half_to_even(value: int, shift: int) -> None:
    assert int(round_half_even_shift(np.array(value), shift)) == round(Fraction(value, 1 << shift))


@pytest.mark.parametrize("shift", [0, 1, 2, 5])
def test_rounding_of_every_small_value(shift: int) -> None:
    values = np.arange(-200, 201)
    expected = [round(Fraction(int(v), 1 << shift)) for v in values]
    assert round_half_even_shift(values, shift).tolist() == expected


@given(st.integers(-(2**40), 2**40), st.integers(2, 33))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_wrap_is_two_s_complement(value: int, bits: int) -> None:
    wrapped = int(wrap(np.array(value), bits))
    assert (wrapped - value) % (1 << bits) == 0
    assert -(1 << (bits - 1)) <= wrapped < 1 << (bits - 1)


@pytest.mark.parametrize("protect", ["none", "clip", "zero"])
@pytest.mark.parametrize("raw", [False, True])
def test_reference_against_loops(protect: str, raw: bool) -> None:
    config = AcceleratorConfig(rows=3, cols=4, max_k=12, psum_depth=8, protect=protect)
    rng = np.random.default_rng(1)
    for seed in range(6):
        job = random_job(config, rng, m=5, k_tiles=1 + seed % 4, raw=raw)
        got = reference_output(config, job)
        violations_in = violations_out = 0
        for m in range(job.m):
            acts = []
            for code in job.acts[m].tolist():
                inside = min(max(code, job.input_lo), job.input_hi)
                violations_in += inside != code and protect != "none"
                if protect == "none":
                    inside = code
                acts.append(0 if protect == "zero" and inside != code else inside)
            for c in range(config.cols):
                total = sum(a * int(w) for a, w in zip(acts, job.weights[:, c], strict=True))
                total += int(job.bias[c])
                if raw:
                    assert got.rows[m, c] == total
                    continue
                code = round(Fraction(total, 1 << int(job.shift[c])))
                lo, hi = int(job.lo[c]), int(job.hi[c])
                violated = (code < lo and job.lo_is_bound[c]) or (code > hi and job.hi_is_bound[c])
                violations_out += bool(violated) and protect != "none"
                out = 0 if violated and protect == "zero" else min(max(code, lo), hi)
                assert got.rows[m, c] == out
        assert (got.violations_in, got.violations_out) == (violations_in, violations_out)


def test_parameter_words_by_hand() -> None:
    config = AcceleratorConfig(rows=2, cols=1, act_bits=8, max_k=4, psum_depth=4)
    rng = np.random.default_rng(0)
    job = random_job(config, rng, m=3, k_tiles=2, signed_in=True, signed_out=True)
    job = replace(
        job,
        input_lo=-2,
        input_hi=5,
        bias=np.array([-1]),
        shift=np.array([7]),
        lo=np.array([-128]),
        hi=np.array([127]),
        lo_is_bound=np.array([True]),
        hi_is_bound=np.array([False]),
    )
    assert param_words(config, job) == [0x0002_0003, 0x0005FE05, 0xFFFFFFFF, 0x017F8007]
    layer = replace(config, bounds="layer", act_sign="signed")
    expected = [0x0002_0003, 0x0005FE04, 0x017F8000, 0xFFFFFFFF, 0x00000007]
    assert param_words(layer, job) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"act_sign": "unsigned"},
            "the tile has signed activations, the accelerator act_sign unsigned",
        ),
        (
            {"bounds": "layer"},
            "the columns of the tile differ in lo, the accelerator has bounds layer",
        ),
    ],
)
def test_what_a_tile_cannot_have_is_named(change: dict[str, str], message: str) -> None:
    config = AcceleratorConfig(rows=2, cols=2, max_k=4, psum_depth=4)
    job = random_job(config, np.random.default_rng(0), m=2, k_tiles=1, signed_in=True)
    job = replace(job, lo=np.array([0, 1]), hi=np.array([2, 2]))
    reference_output(config, job)
    for run in (reference_output, param_words):
        with pytest.raises(InputError) as error:
            run(replace(config, **change), job)
        assert str(error.value) == message
