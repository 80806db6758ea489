# SPDX-License-Identifier: Apache-2.0
"""Populations of faults, and samples of them without replacement."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from faultinj.faults import Fault, MemoryFault, RegisterFault
from faultinj.lowering import gemm_shape
from faultinj.storage import Storage, stored_activations
from hdl.config import AcceleratorConfig
from hdl.schedule import act_register_cycle, k_tile_period, output_tiles
from quant.network import IntegerNetwork
from trilat.errors import InputError, unknown_name

SITES = ("activations", "pe_activation")


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """All single flips of one inference, numbered 0..size - 1.

    Attributes:
        site: one of `SITES`.
        size: stored activation bits, or (layer, output tile, row, column, bit, cycle) of the PE
            activation registers, where each register counts the cycles of an output tile from the
            one in which it holds the tile's first operand: k_tiles times the period of a K tile.
        storage: of the network.
        layers: names of the layers.
        tiles: int64 (T, 4) per output tile: layer, index in it, M, k_tiles.
        starts: int64 (T + 1,), where each tile's flips begin.
        config: the accelerator.
    """

    site: str
    size: int
    storage: Storage
    layers: tuple[str, ...]
    tiles: np.ndarray
    starts: np.ndarray
    config: AcceleratorConfig

    @property
    def physical_bits(self) -> int:
        """Bits that can flip at any one time: stored bits of an inference, or register bits."""
        if self.site == "activations":
            return self.storage.total_bits
        return self.config.rows * self.config.col_groups * self.config.act_bits


def population_of(network: IntegerNetwork, config: AcceleratorConfig, site: str) -> Population:
    """Return the single flips of one inference; raises InputError for an unknown site."""
    if site not in SITES:
        raise unknown_name("fault site", site, list(SITES))
    storage = stored_activations(network)
    layers = tuple(node.name for node in network.gemms())
    tiles, sizes = [], []
    per_cycle = config.rows * config.col_groups * config.act_bits
    for layer, node in enumerate(network.gemms()):
        for index, tile in enumerate(output_tiles(config, gemm_shape(network, node))):
            m = tile.m1 - tile.m0
            tiles.append((layer, index, m, tile.k_tiles))
            sizes.append(per_cycle * tile.k_tiles * k_tile_period(config, m))
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Population(
        site=site,
        size=storage.total_bits if site == "activations" else int(starts[-1]),
        storage=storage,
        layers=layers,
        tiles=np.array(tiles, dtype=np.int64),
        starts=starts,
        config=config,
    )


def population_size(population: Population, images: int, multiplicity: int) -> int:
    """Return how many sets of `multiplicity` different flips in one of `images` there are."""
    return images * math.comb(population.size, multiplicity)


def fault_at(population: Population, image: int, number: int) -> Fault:
    """Return flip `number` of an image's inference."""
    config = population.config
    if population.site == "activations":
        element, bit = divmod(number, population.storage.bits)
        tensor, place = population.storage.locate(np.array([element]))
        return MemoryFault(
            tensor=population.storage.names[int(tensor[0])],
            image=image,
            element=int(place[0]),
            bits=(bit,),
        )
    tile = int(np.searchsorted(population.starts, number, side="right")) - 1
    layer, index, m, _ = (int(v) for v in population.tiles[tile])
    rest, bit = divmod(number - int(population.starts[tile]), config.act_bits)
    rest, group = divmod(rest, config.col_groups)
    col = group * config.dsp_pack
    cycle, row = divmod(rest, config.rows)
    return RegisterFault(
        layer=population.layers[layer],
        image=image,
        tile=index,
        register="pe_activation",
        row=row,
        col=col,
        bits=(bit,),
        cycle=cycle + act_register_cycle(config, m, row, col, 0, 0),
    )


def sample(
    population: Population, *, images: int, multiplicity: int, count: int, seed: int
) -> list[tuple[Fault, ...]]:
    """Return `count` different sets of simultaneous flips, uniform over all there are.

    The same seed gives the same faults for networks of the same shape on the same array.

    Raises:
        InputError: there are fewer sets than asked for.
    """
    total = population_size(population, images, multiplicity)
    if multiplicity < 1 or count < 1:
        raise InputError(
            f"faults and multiplicity must be at least 1, not {count} and {multiplicity}"
        )
    if count > total:
        raise InputError(f"there are only {total} different faults, {count} were asked for")
    rng = np.random.default_rng([seed, multiplicity, SITES.index(population.site)])
    if multiplicity == 1:
        chosen = rng.choice(total, count, replace=False)
        pairs = [divmod(int(n), population.size) for n in chosen]
        return [(fault_at(population, image, number),) for image, number in pairs]
    seen: dict[tuple[int, ...], None] = {}  # in the order of drawing
    while len(seen) < count:
        numbers = rng.choice(population.size, multiplicity, replace=False)
        seen[(int(rng.integers(images)), *sorted(int(n) for n in numbers))] = None
    return [
        tuple(fault_at(population, image, number) for number in numbers) for image, *numbers in seen
    ]
