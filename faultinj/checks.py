# SPDX-License-Identifier: Apache-2.0
"""Fault lists against the network and the array that they are to meet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from faultinj.faults import (
    REGISTERS,
    Fault,
    MemoryFault,
    RegisterFault,
    WeightFault,
    check_register_fault,
)
from faultinj.lowering import gemm_shape
from faultinj.register_times import idle_start
from faultinj.storage import stored_activations
from hdl.config import AcceleratorConfig
from hdl.schedule import output_tiles, tile_cycles
from quant.network import Gemm, IntegerNetwork
from trilat.errors import InputError

_ARRAY = ("dataflow", "rows", "cols", "act_bits", "weight_bits", "psum_depth", "dsp_pack")


def fault_space(
    network: IntegerNetwork, config: AcceleratorConfig, experiments: Iterable[Sequence[Fault]]
) -> dict[str, Any]:
    """Return what the sites of a fault list are counted in, JSON-able.

    Lists can be replayed on designs of the same space: for stored activations the tensors' sizes
    and their width, for registers the array and the layers' sizes as well.
    """
    storage = stored_activations(network)
    sizes = np.diff(storage.starts)
    space: dict[str, Any] = {
        "tensors": {name: int(n) for name, n in zip(storage.names, sizes, strict=True)},
        "act_bits": network.act_bits,
    }
    if any(not isinstance(fault, MemoryFault) for several in experiments for fault in several):
        space |= {name: getattr(config, name) for name in _ARRAY}
        shapes = {node.name: gemm_shape(network, node) for node in network.gemms()}
        space["layers"] = {name: [s.m, s.k, s.n, s.groups] for name, s in shapes.items()}
    return space


def check_space(name: str, listed: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise InputError where a fault list was drawn for another configuration."""
    for key in sorted(listed.keys() | here.keys()):
        one, other = listed.get(key), here.get(key)
        if one != other:
            what = f"{key} {one} instead of {other}"
            if isinstance(one, dict) and isinstance(other, dict):
                n = next(n for n in {**one, **other} if one.get(n) != other.get(n))
                what = f"{n} in {key} has {one.get(n)} instead of {other.get(n)}"
            raise InputError(f"{name} lists faults of another configuration: {what}")


def check_faults(
    network: IntegerNetwork,
    config: AcceleratorConfig,
    experiments: Sequence[Sequence[Fault]],
    images: int,
) -> None:
    """Raise InputError for the first fault that is outside the network, array, word or tile.

    Args:
        network: the network.
        config: the accelerator.
        experiments: the faults.
        images: how many images there are.
    """
    storage = stored_activations(network)
    elements = dict(zip(storage.names, np.diff(storage.starts).tolist(), strict=True))
    nodes = {node.name: node for node in network.gemms()}

    @cache
    def tiles(layer: str) -> list[int]:
        """Cycles of each output tile of a layer."""
        shape = gemm_shape(network, nodes[layer])
        return [
            tile_cycles(config, m=tile.m1 - tile.m0, k_tiles=tile.k_tiles, raw=shape.raw)
            for tile in output_tiles(config, shape)
        ]

    for number, several in enumerate(experiments):
        for fault in several:
            try:
                if not 0 <= fault.image < images:
                    raise InputError(f"images are 0..{images - 1}, not {fault.image}")
                if isinstance(fault, MemoryFault):
                    _check_memory(fault, elements, storage.bits)
                    continue
                if fault.layer is not None and fault.layer not in nodes:
                    raise InputError(f"the network has no layer {fault.layer!r}")
                if isinstance(fault, WeightFault):
                    _check_weight(fault, nodes[fault.layer], network.weight_bits)
                else:
                    _check_register(config, fault, tiles(fault.layer) if fault.layer else [])
            except InputError as error:
                raise InputError(f"experiment {number}: {error}") from None


def _check_memory(fault: MemoryFault, elements: dict[str, int], bits: int) -> None:
    if fault.tensor not in elements:
        raise InputError(f"no stored tensor {fault.tensor!r} (there are: {', '.join(elements)})")
    count = elements[fault.tensor]
    if not 0 <= fault.element < count:
        raise InputError(f"{fault.tensor} has elements 0..{count - 1}, not {fault.element}")
    if not fault.bits or min(fault.bits) < 0 or max(fault.bits) >= bits:
        raise InputError(f"a stored activation has bits 0..{bits - 1}, not {list(fault.bits)}")


def _check_weight(fault: WeightFault, node: Gemm, bits: int) -> None:
    count = node.weight.size
    if not 0 <= fault.element < count:
        raise InputError(f"{fault.layer} has weights 0..{count - 1}, not {fault.element}")
    if not fault.bits or min(fault.bits) < 0 or max(fault.bits) >= bits:
        raise InputError(f"a stored weight has bits 0..{bits - 1}, not {list(fault.bits)}")


def _check_register(config: AcceleratorConfig, fault: RegisterFault, tiles: list[int]) -> None:
    if fault.register not in REGISTERS[config.dataflow]:
        raise InputError(f"an array with dataflow {config.dataflow} has no {fault.register}")
    check_register_fault(config, fault)
    if fault.tile is None:
        return
    if not 0 <= fault.tile < len(tiles):
        raise InputError(f"{fault.layer} has output tiles 0..{len(tiles) - 1}, not {fault.tile}")
    # Parameters and weights are loaded before the first activation beat.
    first, cycles = 1 - idle_start(config), tiles[fault.tile]
    if fault.cycle is not None and not first <= fault.cycle < cycles:
        raise InputError(
            f"output tile {fault.tile} of {fault.layer} has cycles {first}..{cycles - 1}, not "
            f"{fault.cycle}"
        )
