# SPDX-License-Identifier: Apache-2.0
"""The fault engine: what thousands of independent experiments do to the logits, exactly.

`run_faults` takes a list of experiments (simultaneous faults in one inference) and gives arrays, in
the order of the list. How it is fast: docs/architecture.md, "The fault engine".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from faultinj.faults import EVERY_LAYER, KINDS, Fault, LayerFault, MemoryFault, site_of
from faultinj.golden import Design, Golden, golden_run
from faultinj.layer_faults import LayerFaultModel
from faultinj.propagation import EngineOptions, LayerFaults, Propagation, StoredFaults, Writes
from faultinj.protection import UNPROTECTED, Protection
from faultinj.top1_bound import top1_radius
from hdl.config import AcceleratorConfig
from quant.network import Gemm, IntegerNetwork
from trilat.errors import InputError
from trilat.progress import NoProgress, Progress

__all__ = [
    "EngineOptions",
    "FaultOutcomes",
    "check_options",
    "prepared_design",
    "run_faults",
    "run_on",
]

MEMORY_BYTES = 4 << 30
_MAX_BATCH = 256
_MAX_IMAGES = 1024
_KEPT_DESIGNS = 2
# Memory faults know no array: their input check counts every activation once, whatever the array.
_ONE_PASS = 1 << 30


@dataclass(frozen=True, kw_only=True, eq=False)
class FaultOutcomes:
    """What experiments did, one entry each.

    Attributes:
        golden_top1, faulty_top1: int64 (F,), classes.
        logit_change: int64 (F,), largest absolute change of a logit; 0 where masked.
        violations: int64 (F,), what the protection unit counts beyond the golden run.
        bounded: bool (F,), only with `EngineOptions.top1_bound`: the class was proven not to
            change; `logit_change` is unknown there, and 0.
    """

    golden_top1: np.ndarray
    faulty_top1: np.ndarray
    logit_change: np.ndarray
    violations: np.ndarray
    bounded: np.ndarray


def run_faults(
    network: IntegerNetwork,
    config: AcceleratorConfig,
    codes: Tensor,
    experiments: Sequence[Sequence[Fault]],
    *,
    protection: Protection = UNPROTECTED,
    options: EngineOptions | None = None,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress | None = None,
) -> FaultOutcomes:
    """Return the outcome of every experiment, each independent of all others.

    Args:
        network: the network.
        config: the accelerator; of account for faults in registers alone.
        codes: image codes (N, C, H, W), on the device that computes; unchanged.
        experiments: simultaneous faults, at least one, all in one image.
        protection: of the design.
        options: shortcuts; by default all that are exact and complete.
        memory_bytes: what golden tensors and batches may take, beyond the network's own weights.
        progress: told about finished experiments.

    Raises:
        InputError: a fault names an image, tensor, element, bit or register that there is not, or
            the memory does not hold one image.
    """
    options = options or EngineOptions()
    check_options(options, protection)
    memory_only = all(isinstance(f, MemoryFault) for e in experiments for f in e)
    cols = _ONE_PASS if memory_only else config.cols
    design = prepared_design(network, protection, cols=cols, int8=options.int8)
    model = LayerFaultModel(design, config)
    plan = plan_of(model, experiments, len(codes))
    outcomes = _empty(len(experiments))
    with (progress or NoProgress()).task("faults", len(experiments)) as advance:
        for first, last in image_chunks(design, len(codes), memory_bytes):
            mine = np.flatnonzero((plan.image >= first) & (plan.image < last))
            if not len(mine):
                continue
            golden = golden_run(design, codes[first:last])
            for done in run_chunk(
                golden, model, plan, mine, first, options, memory_bytes, outcomes
            ):
                advance(done)
    return outcomes


def check_options(options: EngineOptions, protection: Protection) -> None:
    """Raise InputError for shortcuts that a protected design does not allow."""
    if options.top1_bound and protection.kind != "none":
        raise InputError("the top-1 bound stops before all violations are counted: "
                         "it needs a design without protection")  # fmt: skip


def run_on(
    golden: Golden,
    model: LayerFaultModel,
    experiments: Sequence[Sequence[Fault]],
    *,
    options: EngineOptions | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> FaultOutcomes:
    """Return the outcome of experiments on a golden batch that is at hand.

    Args:
        golden: the golden run; the faults' images count in it.
        model: of faults inside of layers, for the same design.
        experiments, options, memory_bytes: as in `run_faults`.
    """
    plan = plan_of(model, experiments, len(golden.logits))
    outcomes = _empty(len(experiments))
    mine = np.arange(len(experiments))
    for _ in run_chunk(
        golden, model, plan, mine, 0, options or EngineOptions(), memory_bytes, outcomes
    ):
        pass
    return outcomes


# The last designs: their packed weights take longer to make than a small batch to run.
_designs: list[Design] = []


def prepared_design(
    network: IntegerNetwork, protection: Protection, *, cols: int = _ONE_PASS, int8: bool = True
) -> Design:
    """Return a prepared design, one of the last ones where all of it is the same."""
    for kept in _designs:
        same = kept.network is network and kept.protection is protection
        if same and (kept.cols, kept.int8) == (cols, int8):
            return kept
    _designs.append(Design(network, protection, cols=cols, int8=int8))
    del _designs[:-_KEPT_DESIGNS]
    return _designs[-1]


def _empty(count: int) -> FaultOutcomes:
    numbers = {
        name: np.zeros(count, dtype=np.int64)
        for name in ("golden_top1", "faulty_top1", "logit_change", "violations")
    }
    return FaultOutcomes(**numbers, bounded=np.zeros(count, dtype=bool))


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Experiments as arrays.

    Attributes:
        experiments: as they were given.
        image: int64 (E,).
        first, last: int64 (E,), index in `Design.names` of the first and last faulty tensor.
        spread: int64 (E,), pixels of the smallest rectangle around the faults in the first tensor.
        stored: every faulty bit of stored codes, by experiment (its `copy`).
        starts: int64 (E + 1,), where each experiment's bits begin.
        inside: by experiment, faults inside of layers by the index of the layer's tensor.
    """

    experiments: Sequence[Sequence[Fault]]
    image: np.ndarray
    first: np.ndarray
    last: np.ndarray
    spread: np.ndarray
    stored: StoredFaults
    starts: np.ndarray
    inside: dict[int, dict[int, list[LayerFault]]]


def plan_of(model: LayerFaultModel, experiments: Sequence[Sequence[Fault]], images: int) -> Plan:
    """Check experiments and return them as arrays; raises InputError as `run_faults`."""
    design = model.design
    gemms = design.network.gemms()
    inside: dict[int, dict[int, list[LayerFault]]] = {}
    order = {name: i for i, name in enumerate(design.names)}
    bits: list[tuple[int, int, int, int, int]] = []
    count = len(experiments)
    image = np.zeros(count, dtype=np.int64)
    first, last = np.full(count, len(order)), np.full(count, -1)
    for number, experiment in enumerate(experiments):
        if not experiment:
            raise InputError("an experiment needs at least one fault")
        image[number] = experiment[0].image
        for fault in experiment:
            if fault.image != image[number]:
                raise InputError("the faults of an experiment must be in one image")
            site = site_of(fault)
            every = site == EVERY_LAYER
            tensors = [order[n.name] for n in gemms] if every else [order.get(site, -1)]
            if tensors[0] < 0:
                raise InputError(f"the network has no tensor {site!r}")
            if isinstance(fault, MemoryFault):
                kind = KINDS.index(fault.kind)
                bits += [(number, tensors[0], fault.element, bit, kind) for bit in fault.bits]
            else:
                for tensor in tensors:
                    node = design.network.nodes[tensor - 1]
                    if tensor == 0 or not isinstance(node, Gemm):
                        raise InputError(f"{site} is no layer of the array")
                    model.check(node, fault)
                    inside.setdefault(number, {}).setdefault(tensor, []).append(fault)
            first[number] = min(first[number], *tensors)
            last[number] = max(last[number], *tensors)
    if count and not 0 <= image.min() <= image.max() < images:
        wrong = image[(image < 0) | (image >= images)][0]
        raise InputError(f"images are 0..{images - 1}; a fault names {wrong}")
    table = np.array(bits, dtype=np.int64).reshape(-1, 5)
    stored = StoredFaults(
        copy=table[:, 0], tensor=table[:, 1], element=table[:, 2], bit=table[:, 3],
        kind=table[:, 4],
    )  # fmt: skip
    _check_stored(design, stored)
    return Plan(
        experiments=experiments,
        image=image,
        first=first,
        last=last,
        spread=_spread(design, stored, first),
        stored=stored,
        starts=np.searchsorted(stored.copy, np.arange(count + 1)),
        inside=inside,
    )


def run_chunk(
    golden: Golden,
    model: LayerFaultModel,
    plan: Plan,
    mine: np.ndarray,
    first_image: int,
    options: EngineOptions,
    memory_bytes: int,
    outcomes: FaultOutcomes,
) -> Iterator[int]:
    """Run the experiments `mine` on a golden batch; yield how many more are done.

    Args:
        golden: of the images from `first_image` on.
        model: of faults inside of layers.
        plan: of all experiments.
        mine: int64, which of them.
        first_image: number of the golden batch's first image.
        options, memory_bytes: as in `run_faults`.
        outcomes: filled in at `mine`.
    """
    size = batch_size(golden.design, memory_bytes)
    radius = top1_radius(golden) if options.top1_bound else {}
    # Inferences that begin at one tensor share a batch, narrow ones first.
    mine = mine[np.lexsort((mine, plan.spread[mine], plan.first[mine]))]
    cuts = np.flatnonzero(np.diff(plan.first[mine])) + 1
    for group in np.split(mine, cuts):
        for batch in np.split(group, range(size, len(group), size)):
            local = plan.image[batch] - first_image
            result = Propagation(
                golden, local, _stored_of(plan, batch), _inside_of(model, plan, batch),
                plan.last[batch], options, radius,
            ).run()  # fmt: skip
            outcomes.golden_top1[batch] = golden.top1.cpu().numpy()[local]
            outcomes.faulty_top1[batch] = result.top1.cpu().numpy()
            outcomes.logit_change[batch] = result.change.cpu().numpy()
            outcomes.violations[batch] = result.violations.cpu().numpy()
            outcomes.bounded[batch] = result.bounded.cpu().numpy()
            yield len(batch)


def image_chunks(design: Design, count: int, memory_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of images whose golden tensors fit half of the memory."""
    size = min(memory_bytes // 2 // design.bytes_per_image, _MAX_IMAGES)
    if size < 1:
        raise InputError(
            f"one image's golden tensors take {design.bytes_per_image} bytes, more than half of "
            f"the {memory_bytes} that are allowed"
        )
    for start in range(0, count, size):
        yield start, min(start + size, count)


def batch_size(design: Design, memory_bytes: int) -> int:
    """Return how many inferences a batch may hold."""
    sizes = {name: int(np.prod(shape)) for name, shape in design.shapes.items()}
    # Whole maps in the worst case: codes in and out, compared, and sums or codes in float32.
    largest = max(
        12 * sizes[node.name] + sum(12 * sizes[name] for name in node.inputs)
        for node in design.network.nodes
    )
    return int(np.clip(memory_bytes // 4 // largest, 1, _MAX_BATCH))


def _stored_of(plan: Plan, batch: np.ndarray) -> StoredFaults:
    """Return the stored faults of a batch, whose experiments count from 0."""
    counts = plan.starts[batch + 1] - plan.starts[batch]
    copy = np.repeat(np.arange(len(batch)), counts)
    within = np.arange(len(copy)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = plan.stored.kept(plan.starts[batch][copy] + within)
    return replace(chosen, copy=copy)


def _inside_of(model: LayerFaultModel, plan: Plan, batch: np.ndarray) -> dict[str, LayerFaults]:
    """Return what changes outputs of layers in a batch, by name of the layer."""
    by_layer: dict[int, dict[int, list[LayerFault]]] = {}
    for copy, number in enumerate(batch):
        for tensor, several in plan.inside.get(int(number), {}).items():
            by_layer.setdefault(tensor, {})[copy] = several

    def changes(several: dict[int, list[LayerFault]]) -> LayerFaults:
        def writes(node: Gemm, copies: np.ndarray, whole: Callable[[np.ndarray], Tensor]) -> Writes:
            left = {int(copy): several[int(copy)] for copy in copies if int(copy) in several}
            return model.writes(node, left, len(batch), whole)

        return writes

    return {model.design.names[tensor]: changes(some) for tensor, some in by_layer.items()}


def _check_stored(design: Design, stored: StoredFaults) -> None:
    bits = design.network.act_bits
    wrong = np.flatnonzero((stored.bit < 0) | (stored.bit >= bits))
    if len(wrong):
        raise InputError(f"stored codes have bits 0..{bits - 1}, not {stored.bit[wrong[0]]}")
    for tensor in np.unique(stored.tensor):
        name = design.names[tensor]
        if name == design.last:
            raise InputError(f"{name} gives raw logits, which are not stored")
        size = int(np.prod(design.shapes[name]))
        element = stored.element[stored.tensor == tensor]
        wrong = element[(element < 0) | (element >= size)]
        if len(wrong):
            raise InputError(f"{name} has codes 0..{size - 1}, not {wrong[0]}")


def _spread(design: Design, stored: StoredFaults, first: np.ndarray) -> np.ndarray:
    """Return the pixels of the rectangle around each experiment's stored faults."""
    count = len(first)
    area = np.ones(count, dtype=np.int64)
    widths = np.array([design.shapes[name][2] for name in design.names])
    pixels = widths * np.array([design.shapes[name][1] for name in design.names])
    mine = stored.tensor == first[stored.copy]
    copy, tensor = stored.copy[mine], stored.tensor[mine]
    row, column = np.divmod(stored.element[mine] % pixels[tensor], widths[tensor])
    for places in (row, column):
        low, high = np.full(count, 1 << 40), np.full(count, -1)
        np.minimum.at(low, copy, places)
        np.maximum.at(high, copy, places)
        area *= np.maximum(high - low + 1, 1)
    return area
