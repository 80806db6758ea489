# SPDX-License-Identifier: Apache-2.0
"""Public fault injectors, driven as their documentation shows."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn


def pytorchfi_pass(model: nn.Module, images: Tensor, *, seed: int) -> Callable[[], None]:
    """Return a pass of PyTorchFI 0.6.0: one 8-bit flip per image at a site of its own.

    Args:
        model: what is injected into; not changed.
        images: float32 (N, C, H, W).
        seed: of the sites.
    """
    from pytorchfi.neuron_error_models import (
        random_neuron_single_bit_inj_batched,
        single_bit_flip_func,
    )

    random.seed(seed)
    torch.manual_seed(seed)
    tool = single_bit_flip_func(
        model, len(images), input_shape=list(images.shape[1:]), layer_types=[nn.Conv2d],
        use_cuda=False, bits=8,
    )  # fmt: skip
    ranges = _ranges(model, images)

    def work() -> None:
        with torch.no_grad():
            random_neuron_single_bit_inj_batched(tool, ranges)(images)
            tool.fi_reset()

    return work


def _ranges(model: nn.Module, images: Tensor) -> list[float]:
    """Return the top of each convolution's range, above all of its values."""
    found: list[float] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: found.append(2 * float(out.abs().max())))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found
