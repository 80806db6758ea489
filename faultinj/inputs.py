# SPDX-License-Identifier: Apache-2.0
"""What the commands of this room read: a network, images of a data set, an accelerator, bounds."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from faultinj.protection import UNPROTECTED, Protection, profile_bounds
from hdl.config import AcceleratorConfig
from quant import engine
from quant.data import DataSet, Split, to_input
from quant.network import IntegerNetwork
from trilat.errors import InputError
from trilat.progress import Progress

PROFILE_IMAGES = 512


def network_of(arguments: argparse.Namespace, data: DataSet, progress: Progress) -> IntegerNetwork:
    """Return the saved network, or train and quantize the named model as `quant.run` does."""
    if arguments.network is not None:
        network = IntegerNetwork.load(arguments.network)
    else:
        from quant.models import load_weights, model_for
        from quant.quantize import check_settings, quantize
        from quant.training import train_float

        seed = arguments.seed
        check_settings(arguments.weight_bits, arguments.act_bits, arguments.method)
        weights = arguments.weights
        spec, data = model_for(data, arguments.model, weights=weights, seed=seed)
        if weights:
            load_weights(spec.module, weights)
        else:
            train_float(spec, data, seed=seed, progress=progress)
        network = quantize(
            spec,
            data,
            weight_bits=arguments.weight_bits,
            act_bits=arguments.act_bits,
            method=arguments.method,
            seed=seed,
            progress=progress,
        ).network
    if data.num_classes != network.num_classes:
        raise InputError(
            f"the network has {network.num_classes} classes, {data.name} has {data.num_classes}"
        )
    return network


def accelerator_of(arguments: argparse.Namespace, network: IntegerNetwork) -> AcceleratorConfig:
    """Return the accelerator that the flags describe, wide enough for the network."""
    return AcceleratorConfig(
        dataflow=arguments.dataflow,
        rows=arguments.rows,
        cols=arguments.cols,
        act_bits=network.act_bits,
        weight_bits=network.weight_bits,
        max_k=max(math.prod(node.weight.shape[1:]) for node in network.gemms()),
        psum_depth=arguments.psum_depth,
        protect=arguments.protect,
        protect_place=arguments.protect_place,
        act_sign=arguments.act_sign,
        bounds=arguments.bounds,
        requant="mult" if network.multiplies else "shift",
    )


def protection_of(
    kind: str, place: str, granularity: str, network: IntegerNetwork, data: DataSet
) -> Protection:
    """Return a protection with bounds from fault-free runs on the first training images."""
    if kind == "none":
        return UNPROTECTED
    training, _ = image_codes(network, data.train, PROFILE_IMAGES)
    bounds = profile_bounds(network, training)
    return Protection(kind=kind, place=place, granularity=granularity, bounds=bounds)


def image_codes(network: IntegerNetwork, split: Split, count: int) -> tuple[Tensor, np.ndarray]:
    """Return image codes and labels of the first `count` images of a split."""
    normalization = network.metadata.get("normalization")
    if not isinstance(normalization, dict) or not {"mean", "std"} <= set(normalization):
        raise InputError("the network file does not say how its images are normalized")
    images = to_input(
        split.images[:count], network.input_shape, normalization["mean"], normalization["std"]
    )
    return engine.image_codes(network, images), split.labels[:count]


def device_of(name: str) -> torch.device:
    """Return a device by its torch name; raises InputError where there is none."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"cannot compute on device {name!r} (accepted: cpu, cuda): {reason}"
        ) from None
    return device


def writable(path: Path) -> Path:
    """Return the path of a folder to write; raises InputError where that cannot be."""
    parent = path
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"cannot write to {path}: {parent} is a file")
    return path
