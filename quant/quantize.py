# SPDX-License-Identifier: Apache-2.0
"""Quantization of a trained float model: calibration alone, or training after it."""

from __future__ import annotations

import copy
import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from quant import engine
from quant.brevitas_model import BrevitasModel, build_model
from quant.calibration import REQUANTS, WEIGHT_SCALES, choose_formats
from quant.data import DataSet, Split, stratified, to_input
from quant.export import exactness_bound, to_network
from quant.fault_map import FaultMap
from quant.fault_training import ChipGroup, chip_record, clipped, step_for
from quant.fine_tuning import LARGEST_SHARE, fine_tune
from quant.graph import trace
from quant.method_names import METHODS, Method, parse_method
from quant.models import ModelSpec
from quant.network import IntegerNetwork
from quant.ops import GemmOp, Op, activate, evaluate
from quant.weight_memory import WeightMapping
from trilat.errors import InputError, unknown_name
from trilat.progress import NoProgress, Progress

__all__ = ["METHODS", "QuantizedModel", "check_settings", "network_accuracy", "quantize"]

_CALIBRATION_IMAGES = 128
# Floats of all tensors of all calibration images that are held at once (1 GiB).
_CALIBRATION_FLOATS = 1 << 28
# Default length of fine-tuning: so many multiply-accumulates forward (one epoch of VGG11 on the
# digits), twice as many at 2 bits, within these epochs.
_TRAINING_MACS = 2.0e11
_EPOCHS = (1, 20)
_CHOICE_IMAGES = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedModel:
    """A quantized network in both of its forms, which compute the same integers.

    Attributes:
        module: the Brevitas model, in evaluation mode.
        network: what the accelerator computes.
        history: JSON-able account of how it came about.
    """

    module: BrevitasModel
    network: IntegerNetwork
    history: dict[str, Any]


def quantize(
    spec: ModelSpec,
    data: DataSet,
    *,
    weight_bits: int,
    act_bits: int,
    method: str,
    seed: int,
    epochs: int | None = None,
    chips: Sequence[FaultMap] = (),
    mapping: WeightMapping | None = None,
    requant: str = "shift",
    weight_scale: str = "channel",
    progress: Progress | None = None,
) -> QuantizedModel:
    """Quantize a trained float model.

    Post-training (``"ptq"``): scales of least squared error on calibration images
    from the training split, then biases corrected layer by layer so that the mean of every
    channel stays that of the float model. Quantization-aware (``"qat"``): fine-tuning from there
    with the scales held constant. The other methods (`quant.method_names`) are such training with
    other steps. The same arguments give the same network.

    Args:
        spec: the float model; it is not changed.
        data: train is used for calibration and fine-tuning, val for the accuracy reported.
        weight_bits, act_bits: 2..8.
        method: a name of `quant.method_names`.
        seed: of the calibration images, the order of training and its random faults.
        epochs: of fine-tuning; by default as many as a fixed amount of arithmetic allows. Weight
            clipping takes as many again before it.
        chips: that ``retrain`` trains for.
        mapping: of the weights to their cells; by default one after the other.
        requant: ``"shift"`` for powers of two as scales, ``"mult"`` for scales of any value, which
            take an accelerator with multipliers (``qat`` and ``ptq``).
        weight_scale: ``"channel"`` for one of least squared error per output channel; ``"layer"``
            for one that just holds the largest weight of a layer, for comparison with published
            work (with ``"shift"``).
        progress: where the stages report.

    Raises:
        InputError: a width outside 2..8, an unknown method, an unsupported layer, ``retrain``
            without a chip, chips without it, or a chip that cannot hold the network.
    """
    chosen = check_settings(weight_bits, act_bits, method, len(chips))
    check_requant(requant, chosen.name)
    if weight_scale not in WEIGHT_SCALES:
        raise unknown_name("weight scale", weight_scale, list(WEIGHT_SCALES))
    if weight_scale == "layer" and requant == "mult":
        raise InputError("one weight scale per layer goes with requantization by shift, not mult")
    scales = {"requant": requant, "weight_scale": weight_scale}
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs must be at least 1, not {epochs}")
    progress = progress or NoProgress()
    start = time.monotonic()
    label = f"W{weight_bits}A{act_bits}"
    ops = trace(spec.module, spec.input_shape)
    if ops[-1].shape[0] < data.num_classes:
        raise InputError(
            f"the model gives {ops[-1].shape[0]} logits, the data has {data.num_classes} classes"
        )
    epochs = epochs or default_epochs(ops, len(data.train), min(weight_bits, act_bits))
    if chosen.wmax is not None:
        wide = _calibrated(ops, spec, data, 8, 8, seed, progress, **scales)
        ops = clipped(wide, data, spec.input_shape, chosen.wmax, epochs, seed, progress)
    model = _calibrated(ops, spec, data, weight_bits, act_bits, seed, progress, **scales)
    group = ChipGroup(maps=tuple(chips), mapping=mapping or WeightMapping())
    history: dict[str, Any] = {"method": chosen.name, "seed": seed}
    if method == "qat":
        history |= _fine_tuned(model, spec, data, epochs, seed, progress, f"QAT {label}")
    elif chosen.trained:
        losses = fine_tune(
            model,
            data,
            spec.input_shape,
            epochs=epochs,
            seed=seed,
            share=LARGEST_SHARE,
            step=step_for(chosen, model, data, group, epochs, seed),
            wmax=None if chosen.wmax is None else lambda done: chosen.wmax or 0.0,
            progress=progress,
            description=f"{chosen.name} {label}",
        )
        history |= {"epochs": epochs, "losses": losses}
    metadata = _metadata(spec, data, chosen.name, seed, epochs if chosen.trained else None)
    network = to_network(model, name=spec.name, input_shape=spec.input_shape, metadata=metadata)
    if chips:
        history["chips"] = chip_record(chosen, model, network, data, group, _CHOICE_IMAGES)
    accuracy = history.get("val_accuracy") or network_accuracy(network, data, data.val)
    network.metadata["val_accuracy"] = accuracy
    network.metadata["exactness_bound"] = max(exactness_bound(network).values())
    history |= {"val_accuracy": accuracy, "seconds": time.monotonic() - start}
    return QuantizedModel(module=model, network=network, history=history)


def check_settings(weight_bits: int, act_bits: int, method: str, chips: int = 0) -> Method:
    """Return the method; raise InputError for a width outside 2..8 or what does not go together.

    Args:
        weight_bits, act_bits, method: as in `quantize`.
        chips: how many chips are given.
    """
    for name, bits in (("weight", weight_bits), ("activation", act_bits)):
        if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
            raise InputError(f"{name} bits must be an integer in 2..8, not {bits!r}")
    chosen = parse_method(method)
    if chosen.faq:
        raise InputError(
            f"method {method}: faq converts a trained network for each chip (python -m "
            f"faultinj.chips --faq); train it as {chosen.training}"
        )
    if chosen.policy is not None and not chips:
        raise InputError(f"method {method} needs the fault map of a chip (--chip FILE)")
    if chosen.policy is None and chips:
        raise InputError(f"method {method} has no use for a chip (accepted with one: retrain)")
    return chosen


def check_requant(requant: str, method: str) -> None:
    """Raise InputError for an unknown requantization, or one that the method does not know."""
    if requant not in REQUANTS:
        raise unknown_name("requantization", requant, list(REQUANTS))
    if requant == "mult" and method not in ("qat", "ptq"):
        raise InputError(f"--requant mult goes with the methods qat and ptq, not {method}")


def network_accuracy(network: IntegerNetwork, data: DataSet, split: Split) -> float:
    """Return a network's top-1 accuracy on a split in percent."""
    right = 0
    for k in range(0, len(split), 256):
        images = to_input(split.images[k : k + 256], network.input_shape, data.mean, data.std)
        scores = engine.logits(network, engine.image_codes(network, images))
        labels = torch.from_numpy(split.labels[k : k + 256])
        right += int((engine.top1(scores) == labels).sum())
    return 100.0 * right / len(split)


def default_epochs(ops: Sequence[Op], images: int, bits: int) -> int:
    """Return the epochs of fine-tuning that a fixed amount of arithmetic allows."""
    macs = sum(
        op.weight[0].numel() * op.shape[0] * op.shape[1] * op.shape[2]
        for op in ops
        if isinstance(op, GemmOp)
    )
    low, high = _EPOCHS
    wanted = _TRAINING_MACS * (2 if bits == 2 else 1)
    return min(max(round(wanted / (macs * images)), low), high)


def _calibrated(
    ops: Sequence[Op],
    spec: ModelSpec,
    data: DataSet,
    weight_bits: int,
    act_bits: int,
    seed: int,
    progress: Progress,
    *,
    requant: str,
    weight_scale: str,
) -> BrevitasModel:
    """Return the post-training quantized model."""
    floats = int(sum(np.prod(op.shape) for op in ops) + np.prod(spec.input_shape))
    count = min(_CALIBRATION_IMAGES, len(data.train), max(16, _CALIBRATION_FLOATS // floats))
    chosen, _ = stratified(data.train.labels, count, seed)
    images = to_input(data.train.images[chosen], spec.input_shape, data.mean, data.std)
    description = f"calibration W{weight_bits}A{act_bits}"
    with torch.no_grad(), progress.task(description, 2 * len(ops)) as advance:
        values, means = {"input": images}, {}
        for op in ops:
            inputs = [values[name] for name in op.inputs]
            result = evaluate(replace(op, activation="none"), inputs)
            means[op.name] = result.mean((0, 2, 3))
            values[op.name] = activate(op, result)
            advance(1)
        formats = choose_formats(
            ops,
            values,
            weight_bits=weight_bits,
            act_bits=act_bits,
            requant=requant,
            weight_scale=weight_scale,
        )
        del values
        model = build_model(ops, formats).train()
        quantized = {"input": model.quantize("input", None, images)}
        for op in ops:
            result = model.compute(op, [quantized[name] for name in op.inputs])
            if isinstance(op, GemmOp):
                error = means[op.name] - result.mean((0, 2, 3))
                model.layer(op.name).bias += error
                result = result + error.view(-1, 1, 1)
            quantized[op.name] = model.quantize(op.name, op, result)
            advance(1)
    return model.eval()


def _fine_tuned(
    model: BrevitasModel,
    spec: ModelSpec,
    data: DataSet,
    epochs: int,
    seed: int,
    progress: Progress,
    description: str,
) -> dict[str, Any]:
    """Fine-tune a calibrated model in place, or leave it where that lowers its accuracy.

    The choice is made on up to `_CHOICE_IMAGES` validation images.
    """
    sample = Split(images=data.val.images[:_CHOICE_IMAGES], labels=data.val.labels[:_CHOICE_IMAGES])
    before = copy.deepcopy(model.state_dict())
    calibrated = _model_accuracy(model, spec, data, sample)
    losses = fine_tune(
        model,
        data,
        spec.input_shape,
        epochs=epochs,
        seed=seed,
        progress=progress,
        description=description,
    )
    tuned = _model_accuracy(model, spec, data, sample)
    if tuned < calibrated:
        model.load_state_dict(before)
    history = {
        "epochs": epochs,
        "losses": losses,
        "calibrated_accuracy": calibrated,
        "tuned_accuracy": tuned,
        "kept": "tuned" if tuned >= calibrated else "calibrated",
    }
    if len(sample) == len(data.val):
        history["val_accuracy"] = max(tuned, calibrated)
    return history


def _model_accuracy(model: BrevitasModel, spec: ModelSpec, data: DataSet, split: Split) -> float:
    network = to_network(model, name=spec.name, input_shape=spec.input_shape, metadata={})
    return network_accuracy(network, data, split)


def _metadata(
    spec: ModelSpec, data: DataSet, method: str, seed: int, epochs: int | None
) -> dict[str, Any]:
    packages = ("trilat", "torch", "brevitas", "numpy")
    return {
        "model": spec.name,
        "model_identity": spec.identity,
        "data": data.name,
        "data_fingerprint": data.fingerprint,
        "normalization": {"mean": list(data.mean), "std": list(data.std)},
        "method": method,
        "epochs": epochs,
        "seed": seed,
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
