# SPDX-License-Identifier: Apache-2.0
"""Layers of codes in training, on the matrix units of a CPU (AMX).

With scales that are powers of two, the operands of a layer in quantization-aware training are
codes of at most 8 bits. oneDNN sums their products in integers, so the forward pass gives the very
codes that float32 gives as long as it is exact. Values between layers are bfloat16, whose 8 digits
hold a code times a power of two exactly, and gradients are products of bfloat16 summed in float32:
weights, scales and quantizers stay float32, gradients differ by rounding.

oneDNN's convolutions of a few pixels are far from what the unit can do; there, matrix products over
explicit columns take their place.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quant.calibration import Formats, high_code
from quant.network import TensorFormat
from quant.ops import GemmOp

# Below so many products in a batch, float32 takes less time than the steps around a product.
_FROM_MACS = 1 << 25
# Outputs with fewer pixels are faster by columns.
_CONVOLVE_FROM_PIXELS = 64
_WEIGHTS_CONVOLVE_FROM_PIXELS = 256
# Images whose bfloat16 columns are held at once; larger blocks of memory cost page faults.
_COLUMNS_BYTES = 16 << 20


@functools.cache
def has_fast_codes() -> bool:
    """Return whether the CPU multiplies 8-bit codes and bfloat16 in matrix units."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_int8")) and bool(has.get("amx_bf16"))


def takes(op: GemmOp, formats: Formats, x: Tensor) -> bool:
    """Return whether `multiply_codes` computes a layer on its input, faster than float32 would.

    It takes no groups and no scales but powers of two.
    """
    rows, cols = op.shape[1:]
    return (
        op.groups == 1
        and formats.requant == "shift"
        and x.device.type == "cpu"
        and has_fast_codes()
        and len(x) * rows * cols * op.weight.numel() >= _FROM_MACS
    )


def multiply_codes(
    op: GemmOp, formats: Formats, x: Tensor, weight: Tensor, bias: Tensor, codes: Tensor
) -> Tensor:
    """Return a layer's output after activation and quantization, or raw logits in float32.

    Args:
        op: the layer, without groups.
        formats: of its input, weights and output, powers of two; an output without one is logits.
        x: (N, C, H, W), codes of the input's format times its scale, in any float type.
        weight: float32, only to receive the gradient with respect to the quantized weight.
        bias: float32 (out,), quantized at the accumulator's scale.
        codes: int8 like `weight`, what is multiplied.

    Returns:
        (N, out, H', W'), bfloat16 codes times the output's scale. Its gradient passes where the
        result is above 0 and below half a step beyond the highest code (signed: between half a
        step beyond both ends), which is looked at in bfloat16.
    """
    return _Layer.apply(x, weight, bias, codes, op, formats)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        codes: Tensor,
        op: GemmOp,
        formats: Formats,
    ) -> Tensor:
        source, output = formats.tensors[op.inputs[0]], formats.tensors.get(op.name)
        x = x.to(torch.bfloat16)
        scale = torch.from_numpy(formats.weight_scale(op).astype(np.float32))
        codes = codes.view(op.weight.shape)
        product = _Product(op, source, x, codes, scale, bias)
        ctx.op, ctx.scale = op, scale
        if output is None:
            ctx.range = None
            ctx.save_for_backward(x, codes)
            return product.result(torch.float32)
        # Twice through the unit costs less than float32 results through memory.
        before = product.result(torch.bfloat16)
        found = product.result(torch.int8 if output.signed else torch.uint8, output.scale)
        hi = high_code(op, output)
        if output.bits < 8 or hi < output.hi:
            found.clamp_(output.lo, hi)
        low = output.lo - 0.5 if output.lo else 0.0
        ctx.range = (low * output.scale, (hi + 0.5) * output.scale)
        ctx.save_for_backward(x, codes, before)
        return found.to(torch.bfloat16).mul_(output.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        op, (x, codes, *before) = ctx.op, ctx.saved_tensors
        errors = gradients[0].to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        if before:
            errors = torch.ops.aten.hardtanh_backward(errors, before[0], *ctx.range)
        x_gradient = weight_gradient = bias_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = _input_gradient(op, x, errors, codes, ctx.scale)
        if ctx.needs_input_grad[1]:
            weight_gradient = _weight_gradient(op, x, errors)
            weight_gradient = weight_gradient if op.kind == "conv" else weight_gradient.flatten(1)
        if ctx.needs_input_grad[2]:
            bias_gradient = errors.sum((0, 2, 3)).to(torch.float32)
        return x_gradient, weight_gradient, bias_gradient, None, None, None


class _Product:
    """Integer sums of a layer, ready to be given in several types."""

    def __init__(
        self,
        op: GemmOp,
        source: TensorFormat,
        x: Tensor,
        codes: Tensor,
        scale: Tensor,
        bias: Tensor,
    ) -> None:
        self._shape = (len(x), *_output_size(op, x), len(codes))
        # oneDNN takes unsigned codes: signed ones have their zero in the middle.
        zero = 128 if source.signed else 0
        image = (x * (1 / source.scale)).add_(zero).to(torch.uint8)
        geometry = (op.stride, op.padding, op.dilation)
        if self._shape[1] * self._shape[2] < _CONVOLVE_FROM_PIXELS:
            columns = _columns(op, _padded(op, image, zero))
            image = columns[None, :, None, :].permute(0, 3, 1, 2)
            codes = _by_taps(codes)[:, :, None, None]
            geometry = ((1, 1), (0, 0), (1, 1))
        elif _sees_padding_alone(op):
            # Where the zero is not 0 oneDNN then reads memory that nobody has written.
            image = _padded(op, image, zero).permute(0, 3, 1, 2)
            geometry = (op.stride, (0, 0), op.dilation)
        self._geometry = (*geometry, 1)
        self._image = image.contiguous(memory_format=torch.channels_last)
        self._input = (source.scale, zero)
        self._weights = (scale, torch.zeros(len(codes), dtype=torch.int32))
        self._bias = bias
        self._packed = torch.ops.onednn.qconv_prepack(
            codes, scale, *self._input, *self._geometry, list(image.shape)
        )

    def result(self, dtype: torch.dtype, step: float = 1.0) -> Tensor:
        """Return the sums plus bias over `step`, (N, out, H', W'); integers round half to even."""
        sums = torch.ops.onednn.qconv2d_pointwise(
            self._image, *self._input, self._packed, *self._weights, self._bias, *self._geometry,
            step, 0, dtype, "none", [], None,
        )  # fmt: skip
        return sums.permute(0, 2, 3, 1).reshape(self._shape).permute(0, 3, 1, 2)


def _input_gradient(op: GemmOp, x: Tensor, errors: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    errors = errors * scale.to(torch.bfloat16).view(-1, 1, 1)
    rows, cols = errors.shape[2:]
    if op.stride != (1, 1) or rows * cols >= _CONVOLVE_FROM_PIXELS:
        weight = codes.to(torch.bfloat16)
        return _convolution_backward(op, errors, x, weight, [True, False, False])[0]
    # Columns of the errors, the last tap first, times the weights.
    out, channels, kh, kw = codes.shape
    matrix = _by_taps(codes).view(out, -1, channels).transpose(0, 1).to(torch.bfloat16)
    down, right = op.dilation[0] * (kh - 1), op.dilation[1] * (kw - 1)
    ph, pw = down - op.padding[0], right - op.padding[1]  # negative ones crop
    spread = F.pad(errors.permute(0, 2, 3, 1), (0, 0, pw, pw, ph, ph))
    found = _columns(op, spread, mirrored=True) @ matrix.reshape(-1, channels)
    return found.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def _weight_gradient(op: GemmOp, x: Tensor, errors: Tensor) -> Tensor:
    """Return the weight gradient, float32 (out, C, kh, kw)."""
    out, channels, kh, kw = op.weight.shape
    rows, cols = errors.shape[2:]
    if rows * cols >= _WEIGHTS_CONVOLVE_FROM_PIXELS:
        weight = x.new_empty(op.weight.shape)  # its values do not matter
        found = _convolution_backward(op, errors, x, weight, [False, True, False])[1]
        return found.to(torch.float32)
    image, errors = _padded(op, x), errors.permute(0, 2, 3, 1)
    images = max(1, _COLUMNS_BYTES // (2 * rows * cols * channels * kh * kw))
    parts = [
        error.reshape(-1, out).t() @ _columns(op, seen)
        for seen, error in zip(image.split(images), errors.split(images), strict=True)
    ]
    total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0, dtype=torch.float32)
    gradient = total.view(out, kh, kw, channels).permute(0, 3, 1, 2)
    return gradient.to(torch.float32, memory_format=torch.contiguous_format)


def _convolution_backward(
    op: GemmOp, errors: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.contiguous(memory_format=torch.channels_last)
    return torch.ops.aten.convolution_backward(
        errors, x, weight, None, op.stride, op.padding, op.dilation, False, (0, 0), 1, wanted
    )


def _output_size(op: GemmOp, x: Tensor) -> tuple[int, int]:
    rows, cols = (
        (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        for size, padding, dilation, taps, stride in zip(
            x.shape[2:], op.padding, op.dilation, op.weight.shape[2:], op.stride, strict=True
        )
    )
    return rows, cols


def _sees_padding_alone(op: GemmOp) -> bool:
    """Return whether there is a window without a pixel of the image."""
    sizes = zip(op.padding, op.dilation, op.weight.shape[2:], strict=True)
    return any(padding > dilation * (taps - 1) for padding, dilation, taps in sizes)


def _padded(op: GemmOp, x: Tensor, value: int = 0) -> Tensor:
    """Return an image (N, C, H, W) with its padding, (N, H', W', C)."""
    (ph, pw), image = op.padding, x.permute(0, 2, 3, 1)
    return F.pad(image, (0, 0, pw, pw, ph, ph), value=value) if ph or pw else image


def _by_taps(codes: Tensor) -> Tensor:
    """Return weights (out, C, kh, kw) as a matrix (out, kh * kw * C)."""
    return codes.permute(0, 2, 3, 1).reshape(len(codes), -1)


def _columns(op: GemmOp, image: Tensor, *, mirrored: bool = False) -> Tensor:
    """Return the windows of a padded image (N, H, W, C) as rows (N * H' * W', kh * kw * C)."""
    (kh, kw), (dh, dw), (sh, sw) = op.weight.shape[2:], op.dilation, op.stride
    height, width = image.shape[1] - dh * (kh - 1), image.shape[2] - dw * (kw - 1)
    taps = [
        image[:, i * dh : i * dh + height : sh, j * dw : j * dw + width : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    return torch.cat(taps[::-1] if mirrored else taps, dim=3).flatten(0, 2)
