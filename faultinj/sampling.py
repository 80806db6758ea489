# SPDX-License-Identifier: Apache-2.0
"""Populations of faults, and samples of them without replacement: uniform, stratified, or all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from faultinj.faults import KINDS, REGISTERS, Fault, MemoryFault, RegisterFault, WeightFault
from faultinj.lowering import gemm_shape
from faultinj.register_times import first_cycle, idle_start
from faultinj.sequential import SPENDINGS, look_sizes, spend
from faultinj.storage import stored_activations
from faultinj.strata import allocate
from hdl.config import AcceleratorConfig
from hdl.registers import (
    LANE_CLASSES,
    register_classes,
    register_places,
    register_slice,
)
from hdl.schedule import k_tile_period, output_tiles, tile_cycles
from quant.network import IntegerNetwork
from trilat.errors import InputError, unknown_name

_CLASSES = tuple(dict.fromkeys(name for names in REGISTERS.values() for name in names))
# Where faults can be: memories, one class of registers, or all of the array's classes.
SITES = ("activations", "weights", "registers", *_CLASSES)
STRATA = ("layer", "bit")
ALLOCATIONS = ("proportional", "equal")
# The most experiments of one campaign, exhaustive or not: parts are written as they are done, but
# the fault list and the rows that the summary is made of stay in memory, some 3 KiB for each.
MAX_EXPERIMENTS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class FaultModel:
    """What is injected in one experiment.

    Attributes:
        site: one of `SITES`.
        kind: ``flip``, ``stuck0`` or ``stuck1``.
        multiplicity: simultaneous faults, at independent places of one inference.
        burst: adjacent bits of one word that each of them hits.
    """

    site: str = "activations"
    kind: str = "flip"
    multiplicity: int = 1
    burst: int = 1

    def __post_init__(self) -> None:
        """Raise InputError for an unknown choice or a number below 1."""
        if self.site not in SITES:
            raise unknown_name("fault site", self.site, list(SITES))
        if self.kind not in KINDS:
            raise unknown_name("kind of fault", self.kind, list(KINDS))
        for name in ("multiplicity", "burst"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a campaign samples and when it stops.

    Attributes:
        faults: experiments, the most where it may stop early; None for all there are.
        seed: of the sample.
        confidence: of all intervals, in (0, 1).
        stratify: parts that are sampled each for itself: of `STRATA`, none for a uniform sample.
        allocation: ``proportional`` to the strata's sizes, or ``equal``.
        looks: how often the campaign looks whether it can stop, the end included.
        spending: of the error over the looks, one of `faultinj.sequential.SPENDINGS`.
        margin: half-width of the critical rate's interval at which a look stops the campaign.
    """

    faults: int | None
    seed: int = 0
    confidence: float = 0.95
    stratify: tuple[str, ...] = ()
    allocation: str = "proportional"
    looks: int = 1
    spending: str = "pocock"
    margin: float = 0.01

    def __post_init__(self) -> None:
        """Raise InputError for an unknown choice or a number out of its range."""
        for label, values, accepted in (
            ("stratum", self.stratify, STRATA),
            ("allocation", (self.allocation,), ALLOCATIONS),
            ("spending of alpha", (self.spending,), SPENDINGS),
        ):
            for value in values:
                if value not in accepted:
                    raise unknown_name(label, value, list(accepted))
        if self.faults is not None and self.faults < 1:
            raise InputError(f"faults must be at least 1, not {self.faults}")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, not {self.seed}")
        if not 0 < self.margin < 1:
            raise InputError(f"margin must be between 0 and 1, not {self.margin:g}")
        spend(self.looks, self.confidence, self.spending)


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Faults of one tensor, or of one register class in one output tile.

    Fault `number` of a block is slot ``number % len(bits)`` of its round ``number // len(bits)``.

    Attributes:
        layer: tensor or layer.
        tile: output tile, -1 for a memory.
        register: class, empty for a memory.
        m: rows of the output tile.
        rounds: codes of the tensor, or cycles in which the registers hold beats of the tile.
        rows, cols, bits: int64 (S,): register and lowest faulty bit of each slot of a round.
    """

    layer: str
    tile: int
    register: str
    m: int
    rounds: int
    rows: np.ndarray
    cols: np.ndarray
    bits: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """All single faults of one inference, numbered 0..size - 1, block after block.

    A register counts the cycles of an output tile from the one in which it holds the tile's first
    operand: k_tiles times the period of a K tile. Words, parameters and weights on their way count
    all cycles of a tile alone, from its first parameter word on. Permanent faults have no time.

    Attributes:
        site, kind, burst: as in `FaultModel`.
        size: faults of one inference.
        blocks: in network order.
        starts: int64 (blocks + 1,), where each begins.
        physical_bits: bits that can flip at any one time: of the memory, or of the registers.
        config: the accelerator.
    """

    site: str
    kind: str
    burst: int
    size: int
    blocks: tuple[Block, ...]
    starts: np.ndarray
    physical_bits: int
    config: AcceleratorConfig

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of tensors or layers, in network order."""
        return tuple(dict.fromkeys(block.layer for block in self.blocks))


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Experiments in the order drawn, so that each look sees the first ones.

    Attributes:
        experiments: simultaneous faults of each.
        stratum: int64 (E,), which stratum each is of.
        names, sizes: of the strata; sizes are experiments in the population.
        looks: how many experiments each look sees.
    """

    experiments: list[tuple[Fault, ...]]
    stratum: np.ndarray
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    looks: tuple[int, ...]


def check_site(config: AcceleratorConfig, site: str) -> None:
    """Raise InputError where the array has no such site."""
    if site in _CLASSES and site not in register_classes(config):
        accepted = ["activations", "weights", "registers", *_names(config, "registers")]
        raise unknown_name(f"site of an array with dataflow {config.dataflow}", site, accepted)


def _names(config: AcceleratorConfig, site: str) -> list[str]:
    """Return the register classes of a site: all that the array has."""
    if site != "registers":
        return [site]
    present = register_classes(config)
    return [name for name in REGISTERS[config.dataflow] if name in present]


def population_of(
    network: IntegerNetwork,
    config: AcceleratorConfig,
    site: str,
    *,
    kind: str = "flip",
    burst: int = 1,
) -> Population:
    """Return the single faults of one inference.

    Raises:
        InputError: an unknown site, one that the array does not have, or a burst that is longer
            than every word.
    """
    if site not in SITES:
        raise unknown_name("fault site", site, list(SITES))
    check_site(config, site)
    if site == "activations":
        blocks, bits = _memory_blocks(network, burst)
    elif site == "weights":
        blocks, bits = _weight_blocks(network, burst)
    else:
        names = _names(config, site)
        blocks, bits = _register_blocks(network, config, names, burst, permanent=kind != "flip")
    starts = np.cumsum([0, *(block.rounds * len(block.bits) for block in blocks)], dtype=np.int64)
    if not starts[-1]:
        raise InputError(f"no word of {site} has {burst} adjacent bits")
    return Population(
        site=site,
        kind=kind,
        burst=burst,
        size=int(starts[-1]),
        blocks=tuple(blocks),
        starts=starts,
        physical_bits=bits,
        config=config,
    )


def _memory_blocks(network: IntegerNetwork, burst: int) -> tuple[list[Block], int]:
    storage = stored_activations(network)
    bits = np.arange(max(0, storage.bits - burst + 1))
    none = np.full(len(bits), -1)
    blocks = [
        Block(layer=name, tile=-1, register="", m=0, rounds=int(n), rows=none, cols=none, bits=bits)
        for name, n in zip(storage.names, np.diff(storage.starts), strict=True)
    ]
    return blocks, storage.total_bits


def _weight_blocks(network: IntegerNetwork, burst: int) -> tuple[list[Block], int]:
    bits = np.arange(max(0, network.weight_bits - burst + 1))
    none = np.full(len(bits), -1)
    sizes = {node.name: node.weight.size for node in network.gemms()}
    blocks = [
        Block(layer=name, tile=-1, register="", m=0, rounds=n, rows=none, cols=none, bits=bits)
        for name, n in sizes.items()
    ]
    return blocks, sum(sizes.values()) * network.weight_bits


def _register_blocks(
    network: IntegerNetwork,
    config: AcceleratorConfig,
    names: Sequence[str],
    burst: int,
    *,
    permanent: bool,
) -> tuple[list[Block], int]:
    places = {
        name: [
            (row, col, register_slice(config, name, row, col).bits)
            for row, col in register_places(config, name)
        ]
        for name in names
    }
    slots = {
        name: np.array(
            [(r, c, b) for r, c, width in several for b in range(width - burst + 1)], dtype=np.int64
        ).reshape(-1, 3)
        for name, several in places.items()
    }
    total = sum(width for several in places.values() for _, _, width in several)
    blocks = []
    for name in names if permanent else ():
        rows, cols, bits = slots[name].T
        blocks.append(
            Block(layer="", tile=-1, register=name, m=0, rounds=1, rows=rows, cols=cols, bits=bits)
        )
    for node in () if permanent else network.gemms():
        for index, tile in enumerate(output_tiles(config, gemm_shape(network, node))):
            m = tile.m1 - tile.m0
            for name in names:
                rows, cols, bits = slots[name].T
                if _whole_tile(config, name):
                    rounds = tile_cycles(config, m=m, k_tiles=tile.k_tiles, raw=node.output is None)
                    rounds += idle_start(config) - 1
                else:
                    rounds = tile.k_tiles * k_tile_period(config, m)
                blocks.append(
                    Block(
                        layer=node.name,
                        tile=index,
                        register=name,
                        m=m,
                        rounds=rounds,
                        rows=rows,
                        cols=cols,
                        bits=bits,
                    )
                )
    return blocks, total


def _whole_tile(config: AcceleratorConfig, name: str) -> bool:
    """Return whether a class holds words, parameters or weights on their way, not beats."""
    loading = name in ("weight_loading", "weight_skew") and not config.is_os
    return loading or name in LANE_CLASSES[config.dataflow]


def population_size(population: Population, images: int, multiplicity: int) -> int:
    """Return how many sets of `multiplicity` different faults in one of `images` there are."""
    return images * math.comb(population.size, multiplicity)


def fault_at(population: Population, image: int, number: int) -> Fault:
    """Return fault `number` of an image's inference."""
    index = int(np.searchsorted(population.starts, number, side="right")) - 1
    block = population.blocks[index]
    turn, slot = divmod(number - int(population.starts[index]), len(block.bits))
    low = int(block.bits[slot])
    bits = tuple(range(low, low + population.burst))
    if population.site == "weights":
        return WeightFault(
            layer=block.layer, image=image, element=turn, bits=bits, kind=population.kind
        )
    if not block.register:
        return MemoryFault(
            tensor=block.layer, image=image, element=turn, bits=bits, kind=population.kind
        )
    permanent = not block.layer
    fault = RegisterFault(
        layer=None if permanent else block.layer,
        image=image,
        tile=None if permanent else block.tile,
        register=block.register,
        row=int(block.rows[slot]),
        col=int(block.cols[slot]),
        bits=bits,
        cycle=None if permanent else 0,
        kind=population.kind,
    )
    if permanent:
        return fault
    if _whole_tile(population.config, block.register):
        return replace(fault, cycle=turn + 1 - idle_start(population.config))
    return replace(fault, cycle=turn + first_cycle(population.config, block.m, fault))


def draw(population: Population, *, images: int, model: FaultModel, plan: Plan) -> Sample:
    """Return a campaign's experiments, each different from all others.

    The same seed gives the same faults for networks of the same shape on the same array.

    Raises:
        InputError: more experiments than there are or than fit a campaign, or strata of sets.
    """
    total = population_size(population, images, model.multiplicity)
    count = total if plan.faults is None else plan.faults
    if count > total:
        raise InputError(f"there are only {total} different faults, {count} were asked for")
    if count > MAX_EXPERIMENTS:
        raise InputError(
            f"a campaign has at most {MAX_EXPERIMENTS} experiments, not {count}: lower their "
            "number, or the number of images"
        )
    seed = [plan.seed, model.multiplicity, model.burst, *model.site.encode()]
    looks = look_sizes(count, plan.looks)
    if plan.stratify:
        if model.multiplicity > 1:
            raise InputError("strata are of single faults; several at once have no layer or bit")
        return _stratified(population, images, plan, count, seed)
    rng = np.random.default_rng(seed)
    if plan.faults is None:
        sets = itertools.combinations(range(population.size), model.multiplicity)
        pairs = [(image, one) for one in sets for image in range(images)]
    elif model.multiplicity == 1:
        chosen = rng.choice(total, count, replace=False)
        pairs = [(int(n) // population.size, (int(n) % population.size,)) for n in chosen]
    else:
        seen: dict[tuple[int, tuple[int, ...]], None] = {}  # in the order of drawing
        while len(seen) < count:
            numbers = rng.choice(population.size, model.multiplicity, replace=False)
            seen[int(rng.integers(images)), tuple(sorted(int(n) for n in numbers))] = None
        pairs = list(seen)
    return Sample(
        experiments=[
            tuple(fault_at(population, image, number) for number in numbers)
            for image, numbers in pairs
        ],
        stratum=np.zeros(count, dtype=np.int64),
        names=("all",),
        sizes=(total,),
        looks=tuple(looks),
    )


def _stratified(
    population: Population, images: int, plan: Plan, count: int, seed: Sequence[int]
) -> Sample:
    # Members of a stratum: per block that has some, the slots that belong to it.
    members: dict[tuple[str, int], list[tuple[int, np.ndarray]]] = {}
    for index, block in enumerate(population.blocks):
        layer = block.layer if "layer" in plan.stratify else ""
        for bit in np.unique(block.bits) if "bit" in plan.stratify else [-1]:
            slots = np.flatnonzero(block.bits == bit) if bit >= 0 else np.arange(len(block.bits))
            members.setdefault((layer, int(bit)), []).append((index, slots))
    keys = sorted(members, key=lambda key: (population.layers.index(key[0]) if key[0] else 0, key))
    ends = {
        key: np.cumsum([population.blocks[i].rounds * len(slots) for i, slots in members[key]])
        for key in keys
    }
    sizes = [images * int(ends[key][-1]) for key in keys]
    steps: list[list[int]] = []
    for seen in look_sizes(count, plan.looks):
        before = steps[-1] if steps else None
        equal = plan.allocation == "equal"
        steps.append(allocate(sizes, seen, equal=equal, previous=before))
    drawn = []
    for i, key in enumerate(keys):
        rng = np.random.default_rng([*seed, i])
        numbers = []
        for n in rng.choice(sizes[i], steps[-1][i], replace=False):
            image, place = divmod(int(n), int(ends[key][-1]))
            which = int(np.searchsorted(ends[key], place, side="right"))
            index, slots = members[key][which]
            turn, slot = divmod(place - (int(ends[key][which - 1]) if which else 0), len(slots))
            width = len(population.blocks[index].bits)
            number = int(population.starts[index]) + turn * width + int(slots[slot])
            numbers.append((image, number))
        drawn.append(numbers)
    experiments: list[tuple[Fault, ...]] = []
    stratum: list[int] = []
    previous = [0] * len(keys)
    for step in steps:
        for i, numbers in enumerate(drawn):
            mine = numbers[previous[i] : step[i]]
            experiments += [(fault_at(population, *one),) for one in mine]
            stratum += [i] * len(mine)
        previous = step
    names = [
        ", ".join(filter(None, (layer, f"bit {bit}" if bit >= 0 else ""))) for layer, bit in keys
    ]
    return Sample(
        experiments=experiments,
        stratum=np.array(stratum, dtype=np.int64),
        names=tuple(names),
        sizes=tuple(sizes),
        looks=tuple(dict.fromkeys(sum(step) for step in steps)),
    )
