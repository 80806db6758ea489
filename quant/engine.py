# SPDX-License-Identifier: Apache-2.0
"""The golden integer forward: every code of every layer, exactly, on CPU or CUDA.

A tensor of codes is `torch.uint8` where its format is unsigned and `torch.int8` where it is
signed, shape (N, C, H, W) (memory order is not promised). Sums are computed in float32, whose
integers are exact up to 2**24: every layer is bounded by the largest sum that *any* codes can
reach, in any order of summation, and where the bound is above 2**24 its input channels are split
into parts that stay below (float64 for grouped layers). Powers of two scale floats exactly, so
requantization is one `round`, which rounds half to even.

On a CPU without 8-bit dot products, `torch._int_mm` (int8 to int32) does 0.6 G MAC/s where
float32 does 30 to 45 (one thread, K = 576..4608), hence one path for all machines.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quant.network import (
    Add,
    AvgPool,
    Flatten,
    Gemm,
    IntegerNetwork,
    MaxPool,
    Node,
    Requantize,
    TensorFormat,
)

EXACT_FLOAT32 = 1 << 24
# A sum of two parts rounds above 2**24 alone; with shifts up to this such a sum saturates anyway.
_MAX_SHIFT_OF_TWO_PARTS = 14
# Images up to this many pixels become one matrix: fewer MACs than taps that are mostly padding.
_DENSE_PIXELS = 4
# Outputs of at least this many pixels are faster channels-last, smaller ones channels-first.
_CHANNELS_LAST_PIXELS = 64


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A Gemm's weights as floats, split so that every partial sum is exact.

    Attributes:
        parts: (first channel, end, weight); all in float32, or a single one in float64. Weights
            are (out, in, kh, kw), or where `dense` (in * H * W, out * H' * W').
        bias: of the first part, (out,) or (out * H' * W',).
        layout: memory format in which the convolution is fastest.
        dense: one matrix product instead of a convolution.
        size: (H', W') of the output.
    """

    parts: tuple[tuple[int, int, Tensor], ...]
    bias: Tensor
    layout: torch.memory_format
    dense: bool
    size: tuple[int, int]


# By identity: a Gemm compares equal to another network's Gemm of the same name and format.
_prepared: dict[int, dict[Hashable, _Prepared]] = {}


def code_dtype(fmt: TensorFormat) -> torch.dtype:
    """Return the dtype of a format's codes: int8 if signed, else uint8."""
    return torch.int8 if fmt.signed else torch.uint8


def image_codes(network: IntegerNetwork, images: Tensor) -> Tensor:
    """Return the codes of normalized float32 images (N, C, H, W)."""
    scale = torch.tensor(network.input.scale, dtype=torch.float32, device=images.device)
    scaled = torch.round(images.to(torch.float32) / scale)
    return scaled.clamp_(network.input.lo, network.input.hi).to(code_dtype(network.input))


def output_size(node: Gemm | MaxPool | AvgPool, height: int, width: int) -> tuple[int, int]:
    """Return (rows, columns) of a node's output for an input of `height` x `width` pixels."""
    if isinstance(node, Gemm):
        kernel, dilation = node.weight.shape[2:], node.dilation
    else:
        kernel, dilation = node.kernel, (1, 1)
    size = [
        (extent + 2 * pad - step * (taps - 1) - 1) // stride + 1
        for extent, pad, step, taps, stride in zip(
            (height, width), node.padding, dilation, kernel, node.stride, strict=True
        )
    ]
    return size[0], size[1]


def im2col(node: Gemm, codes: Tensor, group: int = 0) -> Tensor:
    """Return the activations of a group's GEMM, (N*M, K) in the dtype of `codes`.

    Rows are image-major, then pixels in row-major order; K is ordered (kh, kw, cin).
    """
    channels = node.weight.shape[1]
    kh, kw = node.weight.shape[2:]
    rows, cols = output_size(node, codes.shape[2], codes.shape[3])
    (ph, pw), (sh, sw), (dh, dw) = node.padding, node.stride, node.dilation
    part = codes[:, group * channels : (group + 1) * channels].permute(0, 2, 3, 1)
    part = F.pad(part, (0, 0, pw, pw, ph, ph))
    taps = [
        part[
            :,
            i * dh : i * dh + (rows - 1) * sh + 1 : sh,
            j * dw : j * dw + (cols - 1) * sw + 1 : sw,
        ]
        for i in range(kh)
        for j in range(kw)
    ]
    return torch.stack(taps, dim=3).reshape(len(codes) * rows * cols, kh * kw * channels)


def weight_matrix(node: Gemm, group: int = 0) -> Tensor:
    """Return the weights of a group's GEMM, int8 (K, N), K ordered as in `im2col`."""
    outputs = node.weight.shape[0] // node.groups
    weight = torch.from_numpy(node.weight[group * outputs : (group + 1) * outputs])
    return weight.permute(2, 3, 1, 0).reshape(-1, outputs).contiguous()


def accumulate(node: Gemm, codes: Tensor) -> Tensor:
    """Return the exact sums of a layer, bias included, int32 (N, out, H, W).

    Raises:
        ValueError: the layer's weights can reach sums beyond 32 bits.
    """
    sums = _part_sums(node, codes, _prepare(node, codes, None))
    total = next(sums).to(torch.int32)
    for part in sums:
        total += part.to(torch.int32)
    return total


def requantize(
    acc: Tensor, shift: Tensor | int, lo: Tensor | int, hi: Tensor | int, fmt: TensorFormat
) -> Tensor:
    """Return ``clip(round_half_even(acc / 2**shift), lo, hi)`` as codes of `fmt`.

    Args:
        acc: integers of any shape, below 2**53 in magnitude.
        shift, lo, hi: integers or tensors that broadcast with `acc`; a negative shift multiplies.
        fmt: format of the result; lo and hi are codes of it.
    """
    scale = torch.exp2(-torch.as_tensor(shift, dtype=torch.float64, device=acc.device))
    code = torch.round(acc.to(torch.float64) * scale)
    low = torch.as_tensor(lo, dtype=torch.float64, device=acc.device)
    high = torch.as_tensor(hi, dtype=torch.float64, device=acc.device)
    return torch.minimum(torch.maximum(code, low), high).to(code_dtype(fmt))


def unsaturated(network: IntegerNetwork, node: Gemm, codes: Tensor) -> Tensor:
    """Return ``round_half_even(acc * multiplier / 2**shift)`` of a layer before saturation.

    Args:
        network: owner of `node`, a layer with quantized output.
        node: the layer.
        codes: its input, (N, in, H, W).

    Returns:
        Integers in a float tensor (N, out, H, W), which the caller may overwrite. Exact wherever
        they lie within the output's word; beyond it they may be rounded, never into it.
    """
    shift = network.shift(node)
    if node.multiplier is not None:
        # Exact: sums of up to 32 bits times 16 bits, in floats of 53.
        ratio = torch.from_numpy(node.multiplier * np.exp2(-shift.astype(np.float64)))
        acc = accumulate(node, codes).to(torch.float64)
        return acc.mul_(ratio.to(acc.device).view(1, -1, 1, 1)).round_()
    prepared = _prepare(node, codes, shift)
    if len(prepared.parts) > 2 or (
        len(prepared.parts) == 2 and int(shift.max()) > _MAX_SHIFT_OF_TWO_PARTS
    ):
        acc = accumulate(node, codes).to(torch.float64)
        factor = np.exp2(-shift.astype(np.float64))
        return acc.mul_(torch.from_numpy(factor).to(acc.device).view(1, -1, 1, 1)).round_()
    sums = _part_sums(node, codes, prepared)
    total = next(sums)
    for part in sums:
        total += part
    return total.round_()


def run_node(network: IntegerNetwork, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Return a node's output codes, or its raw logits, int32 (N, classes), where it has no format.

    Args:
        network: owner of the node.
        node: what to compute.
        inputs: codes of `node.inputs`, each (N, C, H, W).
    """
    if isinstance(node, Gemm):
        if node.output is None:
            return accumulate(node, inputs[0]).flatten(1)
        rounded = unsaturated(network, node, inputs[0])
        return rounded.clamp_(node.lo, node.hi).to(code_dtype(node.output))
    if isinstance(node, MaxPool):
        return _max_pool(node, inputs[0], network.format_of(node.inputs[0]))
    if isinstance(node, Flatten):
        return inputs[0].reshape(len(inputs[0]), -1, 1, 1)
    assert node.output is not None
    exponents = [network.format_of(name).exponent for name in node.inputs]
    if isinstance(node, AvgPool):
        return _avg_pool(node, inputs[0], exponents[0] - node.output.exponent)
    if isinstance(node, Add | Requantize):
        finest = min(exponents)
        total = torch.zeros((), dtype=torch.int32, device=inputs[0].device)
        for codes, exponent in zip(inputs, exponents, strict=True):
            if exponent - finest > 22:
                raise ValueError(f"{node.name}: scales of its inputs are over 2**22 apart")
            total = total + (codes.to(torch.int32) << (exponent - finest))
        return requantize(total, node.output.exponent - finest, node.lo, node.hi, node.output)
    raise TypeError(f"no integer meaning for a {type(node).__name__}")


def forward(network: IntegerNetwork, codes: Tensor) -> dict[str, Tensor]:
    """Return every tensor by name: ``"input"``, each node, and the logits under the last node."""
    values = {"input": codes}
    for node in network.nodes:
        values[node.name] = run_node(network, node, [values[name] for name in node.inputs])
    return values


def logits(network: IntegerNetwork, codes: Tensor, *, batch: int = 64) -> Tensor:
    """Return the raw logits of image codes, int32 (N, classes)."""
    last = network.nodes[-1].name
    if not len(codes):
        return torch.empty((0, network.num_classes), dtype=torch.int32, device=codes.device)
    return torch.cat([forward(network, part)[last] for part in codes.split(batch)])


def top1(scores: Tensor) -> Tensor:
    """Return the class of each row of logits, int64 (N,); the lowest index wins ties."""
    index = torch.arange(scores.shape[1], device=scores.device)
    best = scores == scores.amax(dim=1, keepdim=True)
    return torch.where(best, index, scores.shape[1]).amin(dim=1)


def accuracy(network: IntegerNetwork, codes: Tensor, labels: np.ndarray | Tensor) -> float:
    """Return the top-1 accuracy on image codes in percent."""
    truth = torch.as_tensor(labels, device=codes.device)
    return 100.0 * float((top1(logits(network, codes)) == truth).double().mean())


def check_bounds(network: IntegerNetwork) -> None:
    """Raise ValueError naming the first layer whose sums could leave 32 bits."""
    for node in network.gemms():
        _check_bound(node, int(_reach(node, network.format_of(node.inputs[0]).signed).max()))


def _check_bound(node: Gemm, bound: int) -> None:
    if bound >= 1 << 31:
        raise ValueError(
            f"{node.name}: sums can reach {bound}, beyond the 32 bits of an accumulator"
        )


def _reach(node: Gemm, signed: bool) -> np.ndarray:
    # Largest magnitude of any subset of the terms of a sum: order and grouping do not matter.
    lo, hi = (-128, 127) if signed else (0, 255)
    weight = node.weight.astype(np.int64)
    ends = np.stack([weight * lo, weight * hi])
    above = np.maximum(ends.max(axis=0), 0).sum(axis=(1, 2, 3))
    below = np.maximum(-ends.min(axis=0), 0).sum(axis=(1, 2, 3))
    return np.maximum(above, below) + np.abs(node.bias)


def _split(node: Gemm, signed: bool) -> list[tuple[int, int]]:
    """Return the ranges of input channels whose sums, with the bias, stay exact in float32."""
    lo, hi = (-128, 127) if signed else (0, 255)
    weight = node.weight.astype(np.int64)
    ends = np.stack([weight * lo, weight * hi])
    above = np.maximum(ends.max(axis=0), 0).sum(axis=(2, 3)).cumsum(axis=1)
    below = np.maximum(-ends.min(axis=0), 0).sum(axis=(2, 3)).cumsum(axis=1)
    room = EXACT_FLOAT32 - np.abs(node.bias)
    ranges, start = [], 0
    while start < weight.shape[1]:
        base_above = above[:, start - 1] if start else 0
        base_below = below[:, start - 1] if start else 0
        fits = np.maximum(above.T - base_above, below.T - base_below) <= room
        good = fits.all(axis=1)
        good[:start] = True
        end = len(good) if good.all() else int(good.argmin())
        if end == start:
            raise ValueError(f"{node.name}: a bias or one input channel alone exceeds 24 bits")
        ranges.append((start, end))
        start = end
    return ranges


def _prepare(node: Gemm, codes: Tensor, shift: np.ndarray | None) -> _Prepared:
    """Return the weights for inputs like `codes`, scaled by 2**-shift if given; computed once."""
    height, width = codes.shape[2:]
    key = (codes.dtype, codes.device, height, width, None if shift is None else shift.tobytes())
    if id(node) not in _prepared:
        _prepared[id(node)] = {}
        weakref.finalize(node, _prepared.pop, id(node), None)
    cache = _prepared[id(node)]
    if key not in cache:
        cache[key] = _compute_prepared(node, codes, shift)
    return cache[key]


def _compute_prepared(node: Gemm, codes: Tensor, shift: np.ndarray | None) -> _Prepared:
    height, width = codes.shape[2:]
    size = output_size(node, height, width)
    signed = codes.dtype == torch.int8
    bound = int(_reach(node, signed).max())
    _check_bound(node, bound)
    ranges, dtype = [(0, codes.shape[1])], torch.float32
    if bound > EXACT_FLOAT32:
        if node.groups == 1 and int(np.abs(node.bias).max()) <= EXACT_FLOAT32 // 2:
            ranges = _split(node, signed)
        else:
            dtype = torch.float64
    factor = np.exp2(-np.zeros(len(node.bias)) if shift is None else -shift.astype(np.float64))
    weight = torch.from_numpy(node.weight * factor[:, None, None, None]).to(codes.device, dtype)
    bias = torch.from_numpy(node.bias * factor).to(codes.device, dtype)
    layout = torch.contiguous_format
    taps = node.weight.shape[2] * node.weight.shape[3]
    dense = node.groups == 1 and height * width <= min(_DENSE_PIXELS, taps)
    parts = []
    for start, end in ranges:
        part = weight if node.groups > 1 else weight[:, start:end]
        if dense:
            part = _dense(node, part, height, width, size)
        elif size[0] * size[1] >= _CHANNELS_LAST_PIXELS:
            layout = torch.channels_last
        parts.append((start, end, part.contiguous(memory_format=layout)))
    if dense:
        bias = bias.repeat_interleave(size[0] * size[1])
    return _Prepared(parts=tuple(parts), bias=bias, layout=layout, dense=dense, size=size)


def _dense(node: Gemm, weight: Tensor, height: int, width: int, size: tuple[int, int]) -> Tensor:
    """Return the matrix (in * H * W, out * H' * W') that a convolution of tiny images is."""
    out, channels, kh, kw = weight.shape
    matrix = weight.new_zeros((channels, height, width, out, *size))
    for y, x, i, j in np.ndindex(*size, kh, kw):
        row = y * node.stride[0] - node.padding[0] + i * node.dilation[0]
        col = x * node.stride[1] - node.padding[1] + j * node.dilation[1]
        if 0 <= row < height and 0 <= col < width:
            matrix[:, row, col, :, y, x] = weight[:, :, i, j].T
    return matrix.view(channels * height * width, -1)


def _part_sums(node: Gemm, codes: Tensor, prepared: _Prepared) -> Iterator[Tensor]:
    """Yield the exact sums of each part, (N, out, H', W'), the bias in the first."""
    bias: Tensor | None = prepared.bias
    for start, end, weight in prepared.parts:
        part = codes if end - start == codes.shape[1] else codes[:, start:end]
        if prepared.dense:
            image = part.reshape(len(part), -1).to(weight.dtype)
            total = image @ weight if bias is None else torch.addmm(bias, image, weight)
            yield total.view(len(part), -1, *prepared.size)
        else:
            image = part.to(weight.dtype, memory_format=prepared.layout)
            with _exact_kernels():
                yield F.conv2d(
                    image, weight, bias, node.stride, node.padding, node.dilation, node.groups
                )
        bias = None


def exact_conv2d(image: Tensor, weight: Tensor, node: Gemm, *, groups: int) -> Tensor:
    """Return a convolution of integers in floats with a node's stride, padding and dilation.

    Exact where every sum of magnitudes is below 2**24 (float32) or 2**53 (float64).
    """
    with _exact_kernels():
        return F.conv2d(image, weight, None, node.stride, node.padding, node.dilation, groups)


@contextlib.contextmanager
def _exact_kernels() -> Iterator[None]:
    # NNPACK and cuDNN may choose Winograd or TF32, which are not exact.
    with (
        torch.backends.nnpack.flags(enabled=False),
        torch.backends.cudnn.flags(enabled=False, allow_tf32=False),
    ):
        yield


def _max_pool(node: MaxPool, codes: Tensor, fmt: TensorFormat) -> Tensor:
    # On strided views: torch's own pooling has no 8-bit kernel.
    rows, cols = output_size(node, codes.shape[2], codes.shape[3])
    image = codes.permute(0, 2, 3, 1)
    if any(node.padding):
        (ph, pw), lowest = node.padding, fmt.lo
        image = F.pad(image, (0, 0, pw, pw, ph, ph), value=lowest)
    (sh, sw), (kh, kw) = node.stride, node.kernel
    best = _running_max([image[:, i : i + (rows - 1) * sh + 1 : sh] for i in range(kh)])
    best = _running_max([best[:, :, j : j + (cols - 1) * sw + 1 : sw] for j in range(kw)])
    return best.permute(0, 3, 1, 2)


def _running_max(tensors: list[Tensor]) -> Tensor:
    best = tensors[0]
    for tensor in tensors[1:]:
        best = torch.maximum(best, tensor)
    return best


def _avg_pool(node: AvgPool, codes: Tensor, exponent: int) -> Tensor:
    """Round ``sum * 2**exponent / (kh * kw)`` half to even in integers."""
    assert node.output is not None
    area = node.kernel[0] * node.kernel[1]
    total = F.avg_pool2d(
        codes.to(torch.float64), node.kernel, node.stride, node.padding, divisor_override=1
    ).to(torch.int64)
    number = total << max(exponent, 0)
    divisor = area << max(-exponent, 0)
    floor = torch.div(number, divisor, rounding_mode="floor")
    twice = 2 * (number - floor * divisor)
    up = (twice > divisor) | ((twice == divisor) & (floor % 2 != 0))
    return (floor + up).clamp_(node.lo, node.hi).to(code_dtype(node.output))
