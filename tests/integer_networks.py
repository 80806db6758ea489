# SPDX-License-Identifier: Apache-2.0
"""Random integer networks and a brute-force reference, for the tests of several rooms."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

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


class Builder:
    """Grows a network with random weights, node by node."""

    def __init__(self, *, seed: int, weight_bits: int, act_bits: int, shape, signed=True):
        self.rng = np.random.default_rng(seed)
        self.weight_bits, self.act_bits = weight_bits, act_bits
        self.input = TensorFormat(bits=act_bits, signed=signed, exponent=-3)
        self.shape = shape
        self.nodes: list[Node] = []
        self.formats = {"input": self.input}
        self.shapes = {"input": shape}

    def _fmt(self, signed: bool, exponent: int) -> TensorFormat:
        return TensorFormat(bits=self.act_bits, signed=signed, exponent=exponent)

    def _push(self, node: Node, shape) -> str:
        self.nodes.append(node)
        self.shapes[node.name] = shape
        if node.output is not None:
            self.formats[node.name] = node.output
        return node.name

    def gemm(
        self, name, source, out, kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1),
        groups=1, *, signed=False, hi=None, raw=False, shift=None, op="conv", bias=True,
    ) -> str:  # fmt: skip
        cin, height, width = self.shapes[source]
        limit = (1 << (self.weight_bits - 1)) - 1
        weight = self.rng.integers(-limit, limit + 1, (out, cin // groups, *kernel), dtype=np.int8)
        if raw:  # classes that do not lead whatever the image
            mean = weight.mean(axis=(1, 2, 3), keepdims=True)
            weight = np.clip(np.round(weight - mean), -limit, limit).astype(np.int8)
        k = cin // groups * kernel[0] * kernel[1]
        typical = limit * (1 << self.act_bits) * np.sqrt(k) / 4
        base = max(0, round(np.log2(max(typical / (1 << self.act_bits), 1))))
        shifts = np.clip(base + self.rng.integers(-1, 2, out), 0, 31)
        if shift is not None:
            shifts = np.full(out, shift)
        output = None if raw else self._fmt(signed, -2)
        exponent_in = self.formats[source].exponent
        exponents = np.full(out, -4) if raw else output.exponent - exponent_in - shifts
        reach = int(typical) // 4 + 1
        values = self.rng.integers(-reach, reach + 1, out) * bool(bias)
        size = [
            (n + 2 * p - d * (t - 1) - 1) // s + 1
            for n, p, d, t, s in zip(
                (height, width), padding, dilation, kernel, stride, strict=True
            )
        ]
        return self._push(
            Gemm(
                name=name, inputs=(source,), output=output,
                lo=0 if raw else output.lo, hi=0 if raw else (output.hi if hi is None else hi),
                op=op, weight=weight, bias=values.astype(np.int64),
                weight_exponent=exponents.astype(np.int64), stride=stride, padding=padding,
                dilation=dilation, groups=groups,
            ),
            (out, *size),
        )  # fmt: skip

    def pool(self, kind, name, source, kernel, stride, padding=(0, 0), exponent=None) -> str:
        channels, *size = self.shapes[source]
        fmt = self.formats[source]
        if exponent is not None:
            fmt = self._fmt(fmt.signed, exponent)
        size = [
            (n + 2 * p - k) // s + 1
            for n, p, k, s in zip(size, padding, kernel, stride, strict=True)
        ]
        node = kind(
            name=name, inputs=(source,), output=fmt, lo=fmt.lo, hi=fmt.hi, kernel=kernel,
            stride=stride, padding=padding,
        )  # fmt: skip
        return self._push(node, (channels, *size))

    def add(self, name, sources, exponent, *, signed=False) -> str:
        fmt = self._fmt(signed, exponent)
        node = Add(name=name, inputs=tuple(sources), output=fmt, lo=fmt.lo, hi=fmt.hi)
        return self._push(node, self.shapes[sources[0]])

    def requantize(self, name, source, exponent, *, signed=False) -> str:
        fmt = self._fmt(signed, exponent)
        node = Requantize(name=name, inputs=(source,), output=fmt, lo=fmt.lo, hi=fmt.hi)
        return self._push(node, self.shapes[source])

    def flatten(self, name, source) -> str:
        fmt = self.formats[source]
        node = Flatten(name=name, inputs=(source,), output=fmt, lo=fmt.lo, hi=fmt.hi)
        return self._push(node, (int(np.prod(self.shapes[source])), 1, 1))

    def build(self) -> IntegerNetwork:
        cin = self.shape[0]
        return IntegerNetwork(
            name="random", weight_bits=self.weight_bits, act_bits=self.act_bits, input=self.input,
            input_shape=self.shape, num_classes=self.shapes[self.nodes[-1].name][0],
            nodes=tuple(self.nodes),
            metadata={"normalization": {"mean": [0.5] * cin, "std": [0.25] * cin}},
        )  # fmt: skip


def plain_network(seed=0, weight_bits=8, act_bits=8, shape=(1, 8, 8), classes=10):
    """A small VGG: two convolutions with pooling, two linear layers."""
    b = Builder(seed=seed, weight_bits=weight_bits, act_bits=act_bits, shape=shape)
    last = b.gemm("conv1", "input", 6, (3, 3), padding=(1, 1))
    last = b.pool(MaxPool, "pool1", last, (2, 2), (2, 2))
    last = b.gemm("conv2", last, 8, (3, 3), padding=(1, 1), hi=(1 << act_bits) * 3 // 4)
    last = b.pool(MaxPool, "pool2", last, (2, 2), (2, 2))
    last = b.flatten("flatten", last)
    last = b.gemm("fc1", last, 12, op="linear")
    b.gemm("fc2", last, classes, op="linear", raw=True, bias=False)
    return b.build()


def residual_network(seed=0, weight_bits=8, act_bits=8, shape=(3, 9, 7), classes=5):
    """Every node type: strided, dilated, grouped, depthwise layers, adds, both kinds of pool."""
    b = Builder(seed=seed, weight_bits=weight_bits, act_bits=act_bits, shape=shape)
    stem = b.gemm("stem", "input", 4, (3, 3), padding=(1, 1))
    left = b.gemm("block.conv1", stem, 4, (3, 3), (2, 2), (1, 1), groups=2)
    left = b.gemm("block.conv2", left, 6, (3, 1), padding=(2, 0), dilation=(2, 1), signed=True)
    right = b.gemm("block.down", stem, 6, (1, 1), (2, 2), signed=True)
    joined = b.add("block.add", (left, right), 0)
    again = b.gemm("depthwise", joined, 6, (3, 3), padding=(1, 1), groups=6, signed=True)
    fine = b.requantize("fine", again, -4, signed=True)
    joined = b.add("add2", (joined, fine), -5)
    pooled = b.pool(MaxPool, "maxpool", joined, (3, 2), (2, 1), (1, 1))
    pooled = b.pool(AvgPool, "avgpool", pooled, (2, 3), (1, 1), (1, 1), exponent=-4)
    flat = b.flatten("flatten", pooled)
    b.gemm("fc", flat, classes, op="linear", raw=True, bias=False)
    return b.build()


def multiplied(network: IntegerNetwork, seed: int = 0) -> IntegerNetwork:
    """The network with multipliers in all layers but the last, for about the same codes."""
    rng = np.random.default_rng([seed, 7])
    nodes = []
    for node in network.nodes:
        if isinstance(node, Gemm) and node.output is not None:
            multiplier = rng.integers(1 << 15, 1 << 16, len(node.bias))
            edge = rng.random(len(multiplier)) < 0.2
            multiplier = np.where(edge, rng.choice(np.array([1 << 15, (1 << 16) - 1])), multiplier)
            node = replace(node, multiplier=multiplier, weight_exponent=node.weight_exponent - 16)
        nodes.append(node)
    return replace(network, nodes=tuple(nodes))


def random_codes(network: IntegerNetwork, count: int, seed: int = 0) -> np.ndarray:
    """Image codes over the whole word, int64 (count, C, H, W)."""
    rng = np.random.default_rng([seed, 99])
    shape = (count, *network.input_shape)
    return rng.integers(network.input.lo, network.input.hi, shape, endpoint=True)


def brute_gemm(node: Gemm, image: np.ndarray) -> np.ndarray:
    """Sums of one image (C, H, W), by loops over outputs: int64 (out, H', W')."""
    out, per_group, kh, kw = node.weight.shape
    (ph, pw), (sh, sw), (dh, dw) = node.padding, node.stride, node.dilation
    channels, height, width = image.shape
    rows = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    cols = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    padded = np.zeros((channels, height + 2 * ph, width + 2 * pw), np.int64)
    padded[:, ph : ph + height, pw : pw + width] = image
    weight = node.weight.astype(np.int64)
    acc = np.zeros((out, rows, cols), np.int64)
    for n in range(out):
        first = n // (out // node.groups) * per_group
        for y in range(rows):
            for x in range(cols):
                window = padded[
                    first : first + per_group,
                    y * sh : y * sh + dh * (kh - 1) + 1 : dh,
                    x * sw : x * sw + dw * (kw - 1) + 1 : dw,
                ]
                acc[n, y, x] = (window * weight[n]).sum() + node.bias[n]
    return acc


def exact_round(numerator: int, exponent: int, lo: int, hi: int, divisor: int = 1) -> int:
    """clip(round_half_even(numerator * 2**exponent / divisor), lo, hi) in rationals."""
    value = Fraction(numerator) * Fraction(2) ** exponent / divisor
    return min(max(round(value), lo), hi)


def brute_node(network: IntegerNetwork, node: Node, inputs: list[np.ndarray]) -> np.ndarray:
    """A node's output of one image, int64 (C, H, W), by loops."""
    exponents = [network.format_of(name).exponent for name in node.inputs]
    image = inputs[0]
    if isinstance(node, Flatten):
        return image.reshape(-1, 1, 1)
    if isinstance(node, Gemm):
        acc = brute_gemm(node, image)
        if node.output is None:
            return acc
        shift, factor = network.shift(node), np.ones(len(acc), np.int64)
        if node.multiplier is not None:
            factor = node.multiplier
        return np.array(
            [
                [
                    [
                        exact_round(int(v) * int(factor[n]), -int(shift[n]), node.lo, node.hi)
                        for v in row
                    ]
                    for row in plane
                ]
                for n, plane in enumerate(acc)
            ]
        )
    if isinstance(node, MaxPool | AvgPool):
        (ph, pw), (sh, sw), (kh, kw) = node.padding, node.stride, node.kernel
        channels, height, width = image.shape
        rows, cols = (height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1
        out = np.zeros((channels, rows, cols), np.int64)
        for index in np.ndindex(out.shape):
            c, y, x = index
            window = [
                int(image[c, i, j])
                for i in range(y * sh - ph, y * sh - ph + kh)
                for j in range(x * sw - pw, x * sw - pw + kw)
                if 0 <= i < height and 0 <= j < width
            ]
            if isinstance(node, MaxPool):
                out[index] = max(window)
            else:
                exponent = exponents[0] - node.output.exponent
                out[index] = exact_round(sum(window), exponent, node.lo, node.hi, kh * kw)
        return out
    out = np.zeros(image.shape, np.int64)
    for index in np.ndindex(out.shape):
        finest = min(exponents)
        total = sum(int(t[index]) << (e - finest) for t, e in zip(inputs, exponents, strict=True))
        out[index] = exact_round(total, finest - node.output.exponent, node.lo, node.hi)
    return out


def brute_forward(network: IntegerNetwork, image: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor of one image (C, H, W)."""
    values = {"input": image}
    for node in network.nodes:
        values[node.name] = brute_node(network, node, [values[n] for n in node.inputs])
    return values
