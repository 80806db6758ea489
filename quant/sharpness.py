# SPDX-License-Identifier: Apache-2.0
"""Sharpness-aware quantization, and how sharp and how sparse a quantized network is.

After SAQ (arXiv:2111.12273, whose code was read) as FlatENN (Malhotra and Gupta, arXiv:2301.00675,
of which abstracts were read) uses it against faults in weight memories: the perturbation is added
after quantization, along the gradient at the quantized weights, with one norm over all layers. That
FlatENN's SAQ is this one follows from its name. Ours: batch norms are folded, so the perturbation
acts on the folded weights, and biases have none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quant import engine
from quant.brevitas_model import BrevitasModel, Disturb
from quant.fine_tuning import Loss, Step, cross_entropy
from quant.network import Flatten, IntegerNetwork, MaxPool
from quant.ops import GemmOp


def sharpness_step(*, rho: float, loss: Loss = cross_entropy) -> Step:
    """Return the step of sharpness-aware training: the gradient at the worst point nearby.

    Args:
        rho: length of the perturbation over all quantized weights.
        loss: of either pass.
    """

    def step(model: BrevitasModel, images: Tensor, labels: Tensor) -> float:
        clean = loss(model, images, labels)
        clean.backward()
        disturb = _ascent(model, rho)
        model.zero_grad()
        with model.disturbed(disturb):
            loss(model, images, labels).backward()
        return float(clean.detach())

    return step


def sharpness(
    model: BrevitasModel, images: Tensor, labels: Tensor, rhos: Sequence[float]
) -> list[float]:
    """Return the loss at a distance of each rho from the quantized weights, uphill.

    Args:
        model: left as it was, gradients apart, which are cleared.
        images: normalized, float32 (N, C, H, W); all in one batch.
        labels: int64 (N,).
        rhos: distances; 0 gives the loss itself.
    """
    training = model.training
    model.train().zero_grad()
    cross_entropy(model, images, labels).backward()
    losses = []
    with torch.no_grad():
        for rho in rhos:
            with model.disturbed(_ascent(model, rho)):
                losses.append(float(cross_entropy(model, images, labels)))
    model.zero_grad()
    model.train(training)
    return losses


def activation_sparsity(network: IntegerNetwork, codes: Tensor) -> dict[str, float]:
    """Return the share of zeros, 0..1, among every unsigned tensor that a layer computes.

    Args:
        network: the network.
        codes: image codes (N, C, H, W).
    """
    names = [
        node.name
        for node in network.nodes
        if node.output is not None
        and not node.output.signed
        and not isinstance(node, MaxPool | Flatten)
    ]
    zeros = dict.fromkeys(names, 0)
    counted = dict.fromkeys(names, 0)
    for batch in codes.split(64):
        values = engine.forward(network, batch)
        for name in names:
            zeros[name] += int((values[name] == 0).sum())
            counted[name] += values[name].numel()
    return {name: zeros[name] / counted[name] for name in names}


def _ascent(model: BrevitasModel, rho: float) -> Disturb:
    """Return the disturbance of length `rho` along the weights' present gradients."""
    gradients = {
        op.name: model.layer(op.name).weight.grad for op in model.ops if isinstance(op, GemmOp)
    }
    norm = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(g) for g in gradients.values() if g is not None])
    )
    factor = rho / (float(norm) + 1e-12)

    def disturb(name: str, values: Tensor) -> Tensor:
        gradient = gradients[name]
        return values if gradient is None else values.add_(gradient, alpha=factor)

    return disturb
