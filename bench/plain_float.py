# SPDX-License-Identifier: Apache-2.0
"""An IntegerNetwork's model in plain float32 PyTorch: the baseline of fault campaigns."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from quant.network import AvgPool, Flatten, Gemm, IntegerNetwork, MaxPool
from trilat.errors import InputError


def plain_model(network: IntegerNetwork) -> nn.Sequential:
    """Return the float model of a network without branches, in eval mode.

    Weights are the codes times their scales and activations are not quantized, so it takes the
    time of the float model with batch norm folded.

    Raises:
        InputError: the network has branches.
    """
    layers: list[nn.Module] = []
    previous = "input"
    for node in network.nodes:
        if node.inputs != (previous,):
            raise InputError(f"the plain model has no branches, {node.name} has inputs "
                             f"{', '.join(node.inputs)}")  # fmt: skip
        previous = node.name
        if isinstance(node, Gemm):
            scale = np.exp2(node.weight_exponent.astype(np.float64))[:, None, None, None]
            unit = 2.0 ** network.format_of(node.inputs[0]).exponent
            weight = torch.from_numpy(node.weight * scale).to(torch.float32)
            layer: nn.Conv2d | nn.Linear
            if node.op == "linear":
                layer = nn.Linear(weight.shape[1], weight.shape[0])
                weight = weight.flatten(1)
                layers.append(nn.Flatten())
            else:
                out, per_group, kh, kw = weight.shape
                layer = nn.Conv2d(
                    per_group * node.groups, out, (kh, kw), node.stride, node.padding,
                    node.dilation, node.groups,
                )  # fmt: skip
            layer.weight = nn.Parameter(weight)
            bias = node.bias * scale.flatten() * unit
            layer.bias = nn.Parameter(torch.from_numpy(bias).to(torch.float32))
            layers.append(layer)
            if node.output is not None and not node.output.signed:
                layers.append(nn.ReLU())
        elif isinstance(node, MaxPool):
            layers.append(nn.MaxPool2d(node.kernel, node.stride, node.padding))
        elif isinstance(node, AvgPool):
            layers.append(nn.AvgPool2d(node.kernel, node.stride, node.padding))
        elif isinstance(node, Flatten):
            layers.append(nn.Flatten())
        else:
            raise InputError(f"the plain model has no {type(node).__name__}")
    return nn.Sequential(*layers).eval()
