# SPDX-License-Identifier: Apache-2.0
"""What the stages of a run share, and the networks that they measure: float, then quantized."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dse.background import Background
from dse.evaluation import Answer
from dse.records import Design
from dse.settings import Settings
from dse.store import Result, Store
from quant import engine
from quant.agreement import compare_each_layer, compare_layers
from quant.data import DataSet, Split, load_data, stratified, to_input
from quant.export import unrounded_weights
from quant.faq import save_unrounded
from quant.fault_map import KINDS, FaultMap
from quant.graph import trace
from quant.map_groups import merge_maps
from quant.method_names import parse_method
from quant.models import ModelSpec, load_weights, model_for
from quant.network import IntegerNetwork
from quant.onnx_export import export_onnx
from quant.ops import GemmOp
from quant.quantize import QuantizedModel, quantize
from quant.training import float_accuracy, train_float
from quant.weight_memory import WeightMapping, check_holds
from trilat.errors import InputError
from trilat.files import content_hash
from trilat.progress import Progress

# One more whenever a stage's figures change for the same inputs; old results are then not reused.
STAGE_VERSION = {
    "float": 3,
    "network": 4,
    "bounds": 1,
    "rate": 2,
    "accuracy": 1,
    "faults": 3,
    "chips": 2,
    "synthesis": 8,
    "verilog": 3,
    "campaign": 3,
    "verify": 3,
}
# Libraries whose release may change a stage's figures.
_LEARNING = ("torch", "numpy")
_QUANTIZING = (*_LEARNING, "brevitas")
UNROUNDED = "unrounded.safetensors"
AGREEMENT_IMAGES = 16  # of the validation split, compared word for word


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A quantized network, in memory: its bounds and its images' codes."""

    result: Result
    network: IntegerNetwork
    codes: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What all stages of a run share.

    Attributes:
        settings, store, data, spec, progress: of the run.
        max_k: longest reduction of the network.
        origin: what the float weights come from, JSON-able; part of every key.
        chips: of the chip files.
        chip_rate: up to which their faults count; None where the objective is another one.
        loaded: networks in memory, by (training, weight bits, activation bits, requantization).
        helper: synthesises ahead; empty where nothing does.
    """

    settings: Settings
    store: Store
    data: DataSet
    spec: ModelSpec
    progress: Progress
    max_k: int
    origin: dict[str, Any]
    chips: tuple[FaultMap, ...] = ()
    chip_rate: float | None = None
    loaded: dict[tuple[str, int, int, str], Loaded] = field(default_factory=dict)
    helper: list[Background] = field(default_factory=list)


def open_bench(settings: Settings, store: Store, progress: Progress) -> Bench:
    """Load data, model and weights; writes nothing. Raises InputError for bad input."""
    torch.set_num_threads(settings.jobs)
    data = load_data(settings.data, seed=settings.seed, progress=progress)
    spec, data = model_for(data, settings.model, weights=settings.weights, seed=settings.seed)
    layers = [op for op in trace(spec.module, spec.input_shape) if isinstance(op, GemmOp)]
    chips = tuple(FaultMap.load(path) for path in settings.chips)
    count = sum(layer.weight.numel() for layer in layers)
    for chip, bits in itertools.product(chips, settings.space.weight_bits):
        check_holds(chip.geometry, weights=count, bits=bits, mapping=WeightMapping())
    _check_chips(settings, chips)
    weights = None
    if settings.weights:
        load_weights(spec.module, settings.weights)
        weights = content_hash(settings.weights.read_bytes())
    return Bench(
        settings=settings,
        store=store,
        data=data,
        spec=spec,
        progress=progress,
        max_k=max(layer.weight[0].numel() for layer in layers),
        origin={
            "model": spec.identity,
            "data": data.fingerprint,
            "weights": weights,
            "seed": settings.seed,
        },
        chips=chips,
        chip_rate=_chip_rate(settings, chips),
    )


def _check_chips(settings: Settings, chips: Sequence[FaultMap]) -> None:
    """Raise InputError, before any training, for chips that a method cannot be had for."""
    for method in map(parse_method, settings.space.method):
        if method.policy is not None:
            merge_maps(chips, method.policy)
        if method.faq and any((chip.kinds == KINDS.index("flip")).any() for chip in chips):
            raise InputError(
                f"method {method.name}: faq is for stuck cells, and a chip of --chip has cells "
                "that flip; a known one is undone by storing the inverse"
            )


def _chip_rate(settings: Settings, chips: Sequence[FaultMap]) -> float | None:
    """Return the rate up to which the faults of chip files count: the user's, or the files'."""
    if not chips or settings.faults.site != "weights":
        return None
    if settings.faults.rate is not None:
        for chip in chips:
            chip.at(settings.faults.rate)
        return settings.faults.rate
    rates = sorted({chip.rate for chip in chips})
    if len(rates) > 1:
        raise InputError(
            f"the chips of --chip are complete up to different rates, {rates[0]:g} to "
            f"{rates[-1]:g}; give the one to compare at, e.g. --faults weights:{rates[0]:g}"
        )
    return rates[0]


def key(stage: str, packages: Sequence[str] = (), **inputs: Any) -> dict[str, Any]:
    """Return the inputs of a stage's key: its version, the libraries that decide it, the rest."""
    libraries = {name: version(name) for name in packages}
    return {"stage_version": STAGE_VERSION[stage], "libraries": libraries, **inputs}


def float_model(bench: Bench) -> Result:
    """Train the float model, or measure the user's; `bench.spec` then holds its weights."""
    spec, data = bench.spec, bench.data

    def compute(folder: Path) -> dict[str, Any]:
        history = {}
        if not bench.settings.weights:
            history = train_float(spec, data, seed=bench.settings.seed, progress=bench.progress)
        save_file(_tensors(spec), folder / "float.safetensors")
        return {
            "history": history,
            "val_accuracy": float_accuracy(spec, data, data.val),
            "test_accuracy": float_accuracy(spec, data, data.test),
        }

    inputs = key("float", _LEARNING, origin=bench.origin)
    result = bench.store.run("float", inputs, compute)
    if result.cached:
        spec.module.load_state_dict(load_file(result.folder / "float.safetensors"))
        spec.module.eval()
    return result


def _tensors(spec: ModelSpec) -> dict[str, torch.Tensor]:
    return {name: t.detach().contiguous() for name, t in spec.module.state_dict().items()}


def describe_model(bench: Bench) -> Answer:
    """Return what the report says of the float model."""
    result = float_model(bench)
    weights = bench.settings.weights
    value = {
        "name": bench.spec.name,
        "input_shape": list(bench.spec.input_shape),
        "float_val_accuracy": result.value["val_accuracy"],
        "float_test_accuracy": result.value["test_accuracy"],
        "weights": str(weights) if weights else f"trained here, seed {bench.settings.seed}",
    }
    return Answer(value=value, results=(result,))


def network(bench: Bench, design: Design) -> Loaded:
    """Quantize as a design wants it: IntegerNetwork, ONNX and the counts of their agreement.

    Methods that differ in `faq` alone share the network; its unrounded weights lie beside it.
    """
    chosen = parse_method(design.method)
    method, requant = chosen.training, design.requant
    weight_bits, act_bits = design.weight_bits, design.act_bits
    name = (method, weight_bits, act_bits, requant)
    for_chips = chosen.policy is not None
    if name in bench.loaded:
        loaded = bench.loaded[name]
        return replace(loaded, result=replace(loaded.result, cached=True))

    def compute(folder: Path) -> dict[str, Any]:
        model = quantize(
            bench.spec,
            bench.data,
            weight_bits=weight_bits,
            act_bits=act_bits,
            method=method,
            seed=bench.settings.seed,
            chips=objective_chips(bench) if for_chips else (),
            requant=requant,
            progress=bench.progress,
        )
        model.network.save(folder / "network.safetensors")
        export_onnx(model.network, folder / "network.onnx")
        save_unrounded(folder / UNROUNDED, model.network, unrounded_weights(model.module))
        images = to_images(bench, sample(bench.data.val, AGREEMENT_IMAGES, bench.settings.seed))
        with bench.progress.task(f"Brevitas = ONNX = engine W{weight_bits}A{act_bits}", 1) as step:
            agreement = _agreement(model, images)
            step(1)
        return {
            "hash": model.network.content_hash(),
            "history": model.history,
            "agreement": {
                "method": method,
                "weight_bits": weight_bits,
                "act_bits": act_bits,
                "network_hash": model.network.content_hash(),
                **agreement,
            },
        }

    inputs = key(
        "network",
        _QUANTIZING,
        origin=bench.origin,
        method=method,
        weight_bits=weight_bits,
        act_bits=act_bits,
    )
    if requant != "shift":
        inputs["requant"] = requant
    if for_chips:
        inputs["chips"] = chip_files(bench)
    result = bench.store.run("network", inputs, compute)
    loaded = Loaded(
        result=result, network=IntegerNetwork.load(result.folder / "network.safetensors")
    )
    bench.loaded[name] = loaded
    return loaded


def _agreement(model: QuantizedModel, images: torch.Tensor) -> dict[str, Any]:
    """Return the counts of `RunRecord.model`: of equal words, or with multipliers of those off."""
    if model.module.formats.requant == "shift":
        found = compare_layers(model, images)
        return {"equal": found.words_equal, **found.to_json()}
    layers = compare_each_layer(model, images)
    return {
        "requant": "mult",
        "layers": len(layers),
        "images": len(images),
        "words": sum(layer.words for layer in layers),
        "brevitas_off": sum(layer.brevitas_off for layer in layers),
        "onnx_off": sum(layer.onnx_off for layer in layers),
        "largest": max(layer.largest for layer in layers),
    }


def objective_chips(bench: Bench) -> tuple[FaultMap, ...]:
    """Return the chips of the chip files at the rate of the objective."""
    rate = bench.chip_rate
    return tuple(chip if rate is None else chip.at(rate) for chip in bench.chips)


def chip_files(bench: Bench) -> dict[str, Any]:
    """Return what identifies the chips of the chip files, JSON-able."""
    hashes = [content_hash(path.read_bytes()) for path in bench.settings.chips]
    return {"files": hashes, "rate": bench.chip_rate}


def sample(split: Split, count: int, seed: int) -> Split:
    """Return `count` images of a split, every class in proportion, or all where it has fewer."""
    if len(split) <= count:
        return split
    chosen, _ = stratified(split.labels, count, seed)
    return Split(images=split.images[chosen], labels=split.labels[chosen])


def to_images(bench: Bench, split: Split) -> torch.Tensor:
    """Return a split's images as the network takes them, float32 (N, C, H, W)."""
    return to_input(split.images, bench.spec.input_shape, bench.data.mean, bench.data.std)


def codes(
    bench: Bench, loaded: Loaded, split: str, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and labels (int64) of `count` images of a split, the same for all designs."""
    part = sample(getattr(bench.data, split), count, bench.settings.seed)
    name = f"{split}-{len(part)}"
    if name not in loaded.codes:
        parts = [
            engine.image_codes(
                loaded.network,
                to_images(bench, Split(images=part.images[k:j], labels=part.labels[k:j])),
            )
            for k in range(0, len(part), 256)
            for j in (min(k + 256, len(part)),)
        ]
        loaded.codes[name] = torch.cat(parts)
    return loaded.codes[name], torch.from_numpy(part.labels)
