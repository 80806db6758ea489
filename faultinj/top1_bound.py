# SPDX-License-Identifier: Apache-2.0
"""How far the last tensors may be from the golden run before the class can change.

A logit minus that of the golden class changes by at most the sum of all code changes times the
largest difference of two weights. Below the margin of the golden run, that proves the class
without computing the logits. Further up every output may cross a rounding boundary, and the bound
says nothing; so it holds for the input of the last layer, and through max pools and flattening.
"""

from __future__ import annotations

import torch
from torch import Tensor

from faultinj.golden import Golden
from quant.network import Flatten, Gemm, MaxPool


def top1_radius(golden: Golden) -> dict[str, Tensor]:
    """Return the largest sum of code changes that cannot change the class, int64 (N,), by tensor.

    Tensors of which nothing is known are left out; -1 where not even no change is proven, which
    is so for classes that lead by the order of a tie.
    """
    network = golden.design.network
    node = network.nodes[-1]
    if not isinstance(node, Gemm) or node.groups != 1:
        return {}
    device = golden.logits.device
    weight = torch.from_numpy(node.weight).to(device, torch.int64).flatten(1)
    widest = (weight[:, None] - weight[None]).abs().amax(dim=2)[golden.top1]
    logits = golden.logits.to(torch.int64)
    margin = logits.gather(1, golden.top1[:, None]) - logits
    radius = torch.div(margin - 1, widest.clamp(min=1), rounding_mode="floor")
    others = torch.arange(logits.shape[1], device=device) != golden.top1[:, None]
    largest = torch.iinfo(torch.int64).max
    near = torch.where(others, radius, largest).amin(dim=1)
    found: dict[str, Tensor] = {}
    name = node.inputs[0]
    readers = [source for one in network.nodes for source in one.inputs]
    while readers.count(name) == 1:
        found[name] = near
        if name == "input":
            break
        producer = network.node(name)
        if isinstance(producer, MaxPool):
            reads = 1
            for taps, stride in zip(producer.kernel, producer.stride, strict=True):
                reads *= -(-taps // stride)
            near = torch.div(near, reads, rounding_mode="floor")
        elif not isinstance(producer, Flatten):
            break
        name = producer.inputs[0]
    return found
