# SPDX-License-Identifier: Apache-2.0
"""Whole mapped netlists do what the specification says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hdl.config import DATAFLOWS, AcceleratorConfig
from hdl.families import FAMILIES
from hdl.gen import generate
from sim import gate_level
from sim.gate_level import NetlistError, check_netlist

NETLISTS = "whole netlists checked against the specification"


def config(dataflow: str, size: int, bits: int) -> AcceleratorConfig:
    return AcceleratorConfig(
        dataflow=dataflow,
        rows=size,
        cols=size,
        act_bits=bits,
        weight_bits=bits,
        max_k=4 * size,
        psum_depth=4,
        protect="clip",
    )


@pytest.mark.slow
def test_smallest_netlist(sim_cache: Path, verified: Callable[[str, int], None]) -> None:
    sim_cache.mkdir(parents=True, exist_ok=True)
    assert check_netlist(config("ws", 1, 2), "ice40", runtime_cache=sim_cache).runs > 0
    verified(NETLISTS, 1)


@pytest.mark.nightly
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_netlists(
    family: str,
    dataflow: str,
    size: int,
    bits: int,
    sim_cache: Path,
    verified: Callable[[str, int], None],
) -> None:
    sim_cache.mkdir(parents=True, exist_ok=True)
    assert check_netlist(config(dataflow, size, bits), family, runtime_cache=sim_cache).runs > 0
    verified(NETLISTS, 1)


@pytest.mark.nightly
@pytest.mark.parametrize(("bits", "pack"), [(8, 2), (3, 4)])
@pytest.mark.parametrize("dataflow", DATAFLOWS)
@pytest.mark.parametrize("family", ["xc7", "ecp5"])
def test_netlists_of_columns_that_share_multiplier_blocks(
    family: str,
    dataflow: str,
    bits: int,
    pack: int,
    sim_cache: Path,
    verified: Callable[[str, int], None],
) -> None:
    packed = replace(config(dataflow, 2, bits), cols=4, mult="dsp", dsp_pack=pack)
    sim_cache.mkdir(parents=True, exist_ok=True)
    assert check_netlist(packed, family, runtime_cache=sim_cache).runs > 0
    verified(NETLISTS, 1)


@pytest.mark.nightly
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_netlists_with_block_memories(
    family: str, sim_cache: Path, verified: Callable[[str, int], None]
) -> None:
    deep = replace(config("ws", 2, 4), psum_depth=256)
    sim_cache.mkdir(parents=True, exist_ok=True)
    assert check_netlist(deep, family, runtime_cache=sim_cache).runs > 0
    verified(NETLISTS, 1)


@pytest.mark.nightly
def test_a_wrong_netlist_is_seen(sim_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(given: AcceleratorConfig) -> str:
        text = generate(given)
        assert "(fine_sticky | fine[1])" in text
        return text.replace("(fine_sticky | fine[1])", "1'b1")

    monkeypatch.setattr(gate_level, "generate", wrong)
    sim_cache.mkdir(parents=True, exist_ok=True)
    with pytest.raises(NetlistError, match="tdata differs in run"):
        check_netlist(config("ws", 1, 2), "ice40", runtime_cache=sim_cache)
