# SPDX-License-Identifier: Apache-2.0
"""The loop of quantization-aware training: constant scales, one step per batch.

What a step does is a function; `quant.randbet`, `quant.sharpness` and `quant.chip_training` have
others than the plain one here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quant.brevitas_model import BrevitasModel
from quant.data import DataSet, to_input
from quant.ops import GemmOp
from trilat.progress import NoProgress, Progress

BATCH = 32
LARGEST_SHARE = 0.01  # of a layer's typical weight, by which Adam moves a weight per step
# Of the loss that guessing has, ln(classes): RandBET's 1.75 for 10 classes and 3.5 for 100.
_LEARNT_SHARE = 0.76

# Gives the loss of a batch of images and labels.
Loss = Callable[[BrevitasModel, Tensor, Tensor], Tensor]
# Adds the gradient of a batch to the parameters and gives its loss without faults, or, where a
# step never computes that, the loss that it follows.
Step = Callable[[BrevitasModel, Tensor, Tensor], float]


def cross_entropy(model: BrevitasModel, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of a batch."""
    return F.cross_entropy(model(images), labels)


def sparse_loss(penalty: float) -> Loss:
    """Return cross-entropy plus an L1 penalty on the activations behind every ReLU.

    Activation sparsity is one side of FlatENN (Malhotra and Gupta); the paper's own recipe was
    not seen, this is the usual one.

    Args:
        penalty: weight of the sum over layers of the mean activation.
    """

    def loss(model: BrevitasModel, images: Tensor, labels: Tensor) -> Tensor:
        rectified = {op.name for op in model.ops if op.activation != "none"}
        total, logits = torch.zeros(()), images
        for name, values in model.outputs(images):
            logits = values
            if name in rectified:
                total = total + values.float().mean()  # not negative, so its own magnitude
        return F.cross_entropy(logits.flatten(1), labels) + penalty * total

    return loss


def plain_step(loss: Loss = cross_entropy) -> Step:
    """Return the step of plain quantization-aware training: one pass forward and back."""

    def step(model: BrevitasModel, images: Tensor, labels: Tensor) -> float:
        value = loss(model, images, labels)
        value.backward()
        return float(value.detach())

    return step


def learnt(classes: int) -> float:
    """Return the loss below which a network has begun to tell its classes apart."""
    return _LEARNT_SHARE * float(np.log(classes))


def fine_tune(
    model: BrevitasModel,
    data: DataSet,
    input_shape: tuple[int, int, int],
    *,
    epochs: int,
    seed: int,
    share: float | None = None,
    step: Step | None = None,
    wmax: Callable[[float], float] | None = None,
    after_step: Callable[[int], bool] | None = None,
    progress: Progress | None = None,
    description: str = "QAT",
) -> list[float]:
    """Train weights and biases in place with constant scales; the model ends in eval mode.

    Args:
        model: what is trained.
        data: its train split is learnt.
        input_shape: (C, H, W) of the model.
        epochs: at most.
        seed: of the order of images.
        share: the highest learning rate, as a share of a layer's typical weight; by default less
            for wide words, which have less to repair.
        step: what is done with each batch; by default plain quantization-aware training.
        wmax: the bound that weights are projected to after every step, for the share of training
            that is done, 0..1; None for no bound.
        after_step: told the number of finished steps; true ends the training. The learning rate
            is then constant, since its end is not known; otherwise it is one cycle.
        progress: where it reports, by images.
        description: of the work there.

    Returns:
        The mean loss of each epoch, the last one perhaps of its part that was trained.
    """
    step = step or plain_step()
    rng = np.random.default_rng(seed)
    batches = -(-len(data.train) // BATCH)
    groups = _parameter_groups(model, share)
    optimizer = torch.optim.Adam(groups, fused=True)
    schedule: Any = None
    if after_step is None:
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in groups],
            total_steps=epochs * batches,
            pct_start=0.1,
        )
    losses: list[float] = []
    done = 0
    total_images = epochs * len(data.train)
    with (progress or NoProgress()).task(description, total_images) as advance:
        for _ in range(epochs):
            total, seen, ended = 0.0, 0, False
            for batch in np.array_split(rng.permutation(len(data.train)), batches):
                images = to_input(data.train.images[batch], input_shape, data.mean, data.std)
                labels = torch.from_numpy(data.train.labels[batch])
                model.train()
                optimizer.zero_grad()
                total += step(model, images, labels) * len(batch)
                seen += len(batch)
                optimizer.step()
                if schedule is not None:
                    schedule.step()
                done += 1
                if wmax is not None:
                    clip_weights(model, wmax(done / (epochs * batches)))
                advance(len(batch))
                if after_step is not None and (ended := after_step(done)):
                    break
            losses.append(total / seen)
            if ended:
                break
    model.eval()
    return losses


def clip_weights(model: BrevitasModel, wmax: float) -> None:
    """Project every weight onto -wmax..wmax; biases are left alone."""
    with torch.no_grad():
        for op in model.ops:
            if isinstance(op, GemmOp):
                model.layer(op.name).weight.clamp_(-wmax, wmax)


def _parameter_groups(model: BrevitasModel, share: float | None) -> list[dict[str, Any]]:
    """Return the parameters of each layer with its learning rate.

    Adam moves a weight by about the rate per step, so the rate is a share of the layer's typical
    weight: the same for every size of layer.
    """
    if share is None:
        width = min(model.formats.weight_bits, model.formats.act_bits)
        share = LARGEST_SHARE * 2.0 ** (-(width - 2) / 2)
    groups = []
    for op in model.ops:
        if not isinstance(op, GemmOp):
            continue
        layer = model.layer(op.name)
        typical = float(layer.weight.detach().square().mean().sqrt())
        groups.append({"params": list(layer.parameters()), "lr": share * max(typical, 1e-6)})
    return groups
