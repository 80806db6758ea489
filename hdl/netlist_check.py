# SPDX-License-Identifier: Apache-2.0
"""Simulates a mapped netlist against its RTL: Yosys can map signed DSP chains wrongly.

Both sides are reduced to two-input gates and flip-flops by Yosys (the RTL by `proc` and
`techmap` alone; the netlist through the simulation models of its primitives), then run side by
side on random stimuli, many streams at once: bit s of an integer is the value of a net in
stream s. A submodule is opaque: what it is given is compared, what it gives is random, the same
on both sides. What a netlist leaves undefined is random. Ports that address a memory get few
words of it, so that what is written is read again, and none beyond its depth: what such a word
holds is undefined, and the accelerator never asks for one.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdl import yosys
from hdl.gate_simulation import Simulation, Stimuli

STREAMS = 64
CYCLES = 128
# Of modules that only connect others: every vector shows all that there is.
_WIRE_CYCLES = 8
_TO_GATES = ("proc", "memory_collect", "flatten", "techmap", "simplemap", "opt_clean")


class MismatchError(RuntimeError):
    """A netlist does not compute what its RTL does."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What was compared without a difference.

    Attributes:
        vectors: random input vectors (streams x cycles).
        bits: output bits compared, over all vectors.
    """

    vectors: int
    bits: int


def check(
    netlists: Mapping[str, Mapping[str, Any]],
    rtl: Mapping[str, str],
    *,
    models: str,
    clocks: Sequence[str],
    folder: Path,
    inside: Mapping[str, str] | None = None,
    seed: int = 0,
    streams: int = STREAMS,
    cycles: int = CYCLES,
) -> dict[str, CheckResult]:
    """Compare netlists with their RTL, module by module.

    Args:
        netlists: module -> its mapped netlist, Yosys JSON of one module.
        rtl: module -> its Verilog; these modules and all that they instantiate.
        models: Verilog simulation models of the primitives in the netlists.
        clocks: names that a clock port may have; all registers must be on it.
        folder: where the files go.
        inside: Verilog of modules that some of the netlists contain, not opaque.
        seed: of the stimuli.
        streams: independent stimuli, a multiple of 8.
        cycles: clock cycles of each.

    Returns:
        What was compared, by module.

    Raises:
        MismatchError: an output differs; says which, when and in how many streams.
        yosys.YosysError: Yosys failed, or a netlist holds what cannot be simulated.
    """
    left, right = _gates(netlists, rtl, inside or {}, models, folder)
    return {
        name: _compare(name, left[name], right[name], clocks, seed, streams, cycles)
        for name in netlists
    }


def _compare(
    name: str,
    left: Mapping[str, Any],
    right: Mapping[str, Any],
    clocks: Sequence[str],
    seed: int,
    streams: int,
    cycles: int,
) -> CheckResult:
    noise = random.Random(seed + 1)
    rtl_side = Simulation(left, name, clocks, streams, undefined=lambda: 0)
    net_side = Simulation(
        right, name, clocks, streams, undefined=lambda: noise.getrandbits(streams)
    )
    if rtl_side.only_connects:
        cycles = min(cycles, _WIRE_CYCLES)
    # A submodule's unused pin may be unconnected on one side; the others must be on both.
    inputs = sorted(set(rtl_side.inputs) | set(net_side.inputs))
    outputs = sorted(set(rtl_side.outputs) & set(net_side.outputs))
    stimuli = Stimuli(inputs, rtl_side.addresses(), seed, streams)
    for cycle in range(cycles):
        values = stimuli.next(cycle)
        want, got = rtl_side.step(values), net_side.step(values)
        for pin in outputs:
            difference = want[pin] ^ got[pin]
            if difference:
                where = f"{pin[0]}.{pin[1]}" if pin[0] else pin[1]
                raise MismatchError(
                    f"netlist of {name} differs from its RTL: {where}[{pin[2]}] in cycle {cycle}, "
                    f"in {difference.bit_count()} of {streams} random streams (seed {seed})"
                )
    return CheckResult(vectors=streams * cycles, bits=streams * cycles * len(outputs))


def flatten(names: Sequence[str]) -> list[str]:
    """Return the Yosys commands that put what these modules, just read, instantiate into them."""
    return ["proc", *(f"flatten {name}" for name in names)] if names else []


def _gates(
    netlists: Mapping[str, Mapping[str, Any]],
    rtl: Mapping[str, str],
    inside: Mapping[str, str],
    models: str,
    folder: Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the gate-level modules of both sides by name."""
    names = sorted(netlists)
    mapped = {f"trilat_mapped_{name}": without_contents(netlists[name]) for name in names}
    (folder / "netlists.json").write_text(json.dumps({"modules": mapped}), encoding="utf-8")
    instances = "\n".join(f"  {name} mapped_{i}();" for i, name in enumerate(mapped))
    files = {
        "checked.v": "\n".join([*(rtl[name] for name in names), *inside.values()]),
        "others.v": "\n".join(text for name, text in rtl.items() if name not in netlists),
        "submodules.v": "\n".join(rtl.values()),
        "models.v": models,
        "all.v": f"module trilat_mapped();\n{instances}\nendmodule\n",
    }
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    script = [
        "read_verilog checked.v",
        "read_verilog -lib others.v",
        "hierarchy -check",
        *flatten([name for name in names if _instantiates(rtl[name], inside)]),
        "select " + " ".join(names),
        *(step for step in _TO_GATES if step != "flatten"),
        "write_json -selected rtl_gates.json",
        "design -reset",
        "read_verilog models.v",
        "read_verilog -lib submodules.v",
        "read_json netlists.json",
        "read_verilog all.v",
        "setattr -mod -set keep_hierarchy 1 " + " ".join(mapped),
        "hierarchy -check -top trilat_mapped",
        "proc",
        "memory_collect",
        "flatten",
        "select " + " ".join(mapped),
        "opt_expr",
        *_TO_GATES[3:],
        "opt_expr",
        "opt_clean",
        "write_json -selected net_gates.json",
    ]
    yosys.run(script, folder, "check")
    left, right = (
        json.loads((folder / file).read_text(encoding="utf-8"))["modules"]
        for file in ("rtl_gates.json", "net_gates.json")
    )
    return left, {name: right[f"trilat_mapped_{name}"] for name in names}


def _instantiates(text: str, names: Iterable[str]) -> bool:
    return any(re.search(rf"^\s*{re.escape(name)}\s", text, flags=re.M) for name in names)


def without_contents(module: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the empty initial contents of memories, which our models do not take."""
    cells = {}
    for name, cell in module["cells"].items():
        kept = {
            key: value
            for key, value in cell["parameters"].items()
            if not (key.startswith(("INITVAL_", "INIT_RAM_")) and "1" not in str(value))
        }
        cells[name] = {**cell, "parameters": kept}
    return {**module, "cells": cells}
