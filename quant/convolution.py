# SPDX-License-Identifier: Apache-2.0
"""`F.conv2d` with gradients that are fast on CPUs for small images too.

oneDNN computes the weight gradient of a 3x3 convolution over 2x2 or 4x4 pixels at 10 to 25 GFLOP/s
per core, matrix products over the pixels that are not padding reach 60 to 100: the deep layers of
a VGG11 train two to eight times faster. Large images are faster channels-last, small ones are not.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]

_TAPS_UP_TO_PIXELS = 16
_CHANNELS_LAST_FROM_PIXELS = 64


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Return what `F.conv2d` returns; the gradients differ from its own by rounding alone."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:  # which autocast leaves alone
        # Here and not within the function: its backward would meet tensors of two types, for which
        # oneDNN has no kernel where there is one input channel.
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    layout = torch.contiguous_format
    if x.shape[2] * x.shape[3] >= _CHANNELS_LAST_FROM_PIXELS:
        layout = torch.channels_last
    x = x.contiguous(memory_format=layout)
    return _Convolution.apply(x, weight, bias, stride, padding, dilation, groups)


@contextlib.contextmanager
def fast_convolutions(module: nn.Module) -> Iterator[None]:
    """Let the convolutions of a module on the CPU compute by `conv2d` within the context."""
    changed = [
        layer
        for layer in module.modules()
        if type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.weight.device.type == "cpu"
        and "forward" not in vars(layer)
    ]
    for layer in changed:
        layer.forward = functools.partial(_forward, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
    geometry = (layer.stride, layer.padding, layer.dilation)
    stride, padding, dilation = (cast(Pair, pair) for pair in geometry)
    return conv2d(x, layer.weight, layer.bias, stride, padding, dilation, layer.groups)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = (stride, padding, dilation, groups)
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        pixels = gradient.shape[2] * gradient.shape[3]
        by_taps = stride == (1, 1) and groups == 1 and pixels <= _TAPS_UP_TO_PIXELS
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not by_taps, False]
        x_gradient, weight_gradient, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, stride, padding, dilation, False, (0, 0), groups, wanted
        )
        if by_taps and ctx.needs_input_grad[1]:
            weight_gradient = _weight_gradient(x, gradient, weight.shape, padding, dilation)
        bias_gradient = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return x_gradient, weight_gradient, bias_gradient, None, None, None, None


def _weight_gradient(
    x: Tensor, gradient: Tensor, shape: torch.Size, padding: Pair, dilation: Pair
) -> Tensor:
    """Return the weight gradient at stride 1: one matrix product per tap, padding left out."""
    outputs, inputs, kh, kw = shape
    (height, width), (rows, cols) = x.shape[2:], gradient.shape[2:]
    pixels = x.permute(2, 3, 0, 1).contiguous()
    errors = gradient.permute(2, 3, 0, 1).contiguous()
    taps = x.new_zeros(kh, kw, outputs, inputs)
    for i in range(kh):
        down = i * dilation[0] - padding[0]
        top, bottom = max(0, -down), min(rows, height - down)
        for j in range(kw):
            right = j * dilation[1] - padding[1]
            left, end = max(0, -right), min(cols, width - right)
            if top >= bottom or left >= end:
                continue  # this tap sees padding alone
            error = errors[top:bottom, left:end].reshape(-1, outputs)
            seen = pixels[top + down : bottom + down, left + right : end + right]
            torch.mm(error.t(), seen.reshape(-1, inputs), out=taps[i, j])
    return taps.permute(2, 3, 0, 1).contiguous()
