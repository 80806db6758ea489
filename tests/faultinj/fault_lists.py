# SPDX-License-Identifier: Apache-2.0
"""Random fault lists over all sites and kinds, for tests of the fault engine."""

from __future__ import annotations

import numpy as np
import torch
from integer_networks import (
    Builder,
    multiplied,
    plain_network,
    random_codes,
    residual_network,
)

from faultinj.faults import REGISTERS, MemoryFault, RegisterFault, WeightFault
from faultinj.lowering import tensor_shapes
from faultinj.protection import Protection, profile_bounds
from faultinj.storage import stored_activations
from hdl.config import AcceleratorConfig
from hdl.registers import (
    PARAMETER_CLASSES,
    register_classes,
    register_places,
    register_slice,
)
from hdl.schedule import k_tile_period, param_word_count
from quant import engine
from quant.network import AvgPool


def depthwise_network(seed=0, weight_bits=8, act_bits=8):
    """Depthwise and grouped layers, a global average pool, channels that are whole words."""
    b = Builder(seed=seed, weight_bits=weight_bits, act_bits=act_bits, shape=(2, 7, 6))
    last = b.gemm("stem", "input", 8, (3, 3), (2, 2), (1, 1))
    last = b.gemm("depth", last, 8, (3, 3), padding=(1, 1), groups=8, signed=True)
    last = b.gemm("point", last, 16, hi=(1 << act_bits) - 2)
    last = b.gemm("grouped", last, 8, (2, 3), padding=(1, 0), groups=2)
    _, height, width = b.shapes[last]
    last = b.pool(AvgPool, "pool", last, (height, width), (1, 1), exponent=-3)
    b.gemm("fc", b.flatten("flat", last), 6, op="linear", raw=True)
    return b.build()


NETWORKS = {
    "plain": plain_network,
    "residual": residual_network,
    "depthwise": depthwise_network,
}


def codes_of(network, count, seed=0):
    values = torch.from_numpy(random_codes(network, count, seed))
    return values.to(engine.code_dtype(network.input))


def design(
    make, kind, *, dataflow="ws", rows=3, cols=4, bits=8, seed=1, images=5, bounds="channel",
    requant="shift", pack=1,
):  # fmt: skip
    """(network, accelerator, image codes, protection) with bounds from other images."""
    network = NETWORKS[make](seed=seed, weight_bits=bits, act_bits=bits)
    if requant == "mult":
        network = multiplied(network)
    profiled = profile_bounds(network, codes_of(network, 2, seed=9))
    protection = Protection(kind=kind, granularity=bounds, bounds=profiled)
    config = AcceleratorConfig(
        dataflow=dataflow, rows=rows, cols=cols, act_bits=bits, weight_bits=bits, max_k=128,
        psum_depth=10, protect=kind, bounds=bounds, requant=requant,
        mult="dsp" if pack > 1 else "auto", dsp_pack=pack,
    )  # fmt: skip
    return network, config, codes_of(network, images), protection


def some_bits(rng, width: int) -> tuple[int, ...]:
    """One bit, a burst of adjacent ones, or several."""
    form = rng.integers(4)
    if form < 2 or width == 1:
        return (int(rng.integers(width)),)
    count = int(rng.integers(2, min(width, 4) + 1))
    if form == 2:
        first = int(rng.integers(width - count + 1))
        return tuple(range(first, first + count))
    return tuple(sorted(int(b) for b in rng.choice(width, count, replace=False)))


def register_fault(network, config, image: int, rng) -> RegisterFault:
    """A fault of any register class, most of them at a time when the tile is in the array."""
    shapes = tensor_shapes(network)
    node = network.gemms()[int(rng.integers(len(network.gemms())))]
    pixels = int(np.prod(shapes[node.name][1:]))
    blocks = node.groups * -(-(len(node.bias) // node.groups) // config.cols)
    splits = -(-pixels // config.max_m)
    tile = int(rng.integers(blocks * splits))
    m = min(config.max_m, pixels - tile % splits * config.max_m)
    k_tiles = -(-node.weight[0].size // config.k_step)
    classes = [r for r in register_classes(config) if r in REGISTERS[config.dataflow]]
    register = classes[int(rng.integers(len(classes)))]
    places = register_places(config, register)
    if register in ("ring", "psum_buffer"):
        places = [(row, col) for row, col in places if row < m]
    row, col = places[int(rng.integers(len(places)))]
    kind = str(rng.choice(["flip", "flip", "stuck0", "stuck1"]))
    span = k_tiles * k_tile_period(config, m)
    cycle: int | None = int(rng.integers(span + config.rows + config.cols))
    if register.startswith("next_") or (register == "weight_loading" and rng.random() < 0.5):
        cycle = -int(rng.integers(1 + param_word_count(config)))
    elif register == "ring" or register in PARAMETER_CLASSES:
        drained = span - k_tile_period(config, m) + config.rows + config.col_groups + 4
        cycle = drained + row if register == "ring" else int(rng.integers(drained + m))
    everywhere = kind != "flip" and rng.random() < 0.5
    return RegisterFault(
        layer=None if everywhere and rng.random() < 0.5 else node.name, image=image,
        tile=None if everywhere else tile, register=register, row=row, col=col,
        bits=some_bits(rng, register_slice(config, register, row, col).bits),
        cycle=cycle if kind == "flip" else None, kind=kind,
    )  # fmt: skip


def random_fault(network, config, image: int, rng):
    kind = str(rng.choice(["flip", "flip", "stuck0", "stuck1"]))
    site = rng.integers(4)
    if site == 0:
        storage = stored_activations(network)
        tensor = int(rng.integers(len(storage.names)))
        element = int(rng.integers(np.diff(storage.starts)[tensor]))
        return MemoryFault(
            tensor=storage.names[tensor], image=image, element=element,
            bits=some_bits(rng, network.act_bits), kind=kind,
        )  # fmt: skip
    if site == 1:
        node = network.gemms()[int(rng.integers(len(network.gemms())))]
        return WeightFault(
            layer=node.name, image=image, element=int(rng.integers(node.weight.size)),
            bits=some_bits(rng, network.weight_bits), kind=kind,
        )  # fmt: skip
    return register_fault(network, config, image, rng)


def random_experiments(network, config, images: int, count: int, *, seed: int):
    """Experiments of one fault, or of up to three of different places in one image."""
    rng = np.random.default_rng(seed)
    experiments = []
    while len(experiments) < count:
        image = int(rng.integers(images))
        several = int(rng.choice([1, 1, 1, 2, 3]))
        faults = tuple(random_fault(network, config, image, rng) for _ in range(several))
        # Two faults in one register, word or set of parameters have no order.
        places = {_place(fault) for fault in faults}
        if len(places) == several:
            experiments.append(faults)
    return experiments


def _place(fault):
    if isinstance(fault, RegisterFault):
        if fault.register == "ring":
            return ("ring",)  # whose words count from one reset
        return (fault.register.removeprefix("next_"), fault.row, fault.col)
    return (type(fault).__name__, getattr(fault, "tensor", None) or fault.layer, fault.element)
