# SPDX-License-Identifier: Apache-2.0
"""A Brevitas model of traced operations, with constant scales.

Evaluation runs Brevitas's own quantizers. Training computes the same values with fused kernels,
because elementwise quantizer arithmetic over millions of weights and activations would take a third
of a step, and layers of codes on a CPU's matrix units where it has them (`quant.code_layers`). A
test holds all equal (but for ties where a scale is no power of two).
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from brevitas.core.scaling import PowerOfTwoIntScaling
from brevitas.inject.enum import RestrictValueType, ScalingImplType
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.nn.quant_layer import QuantNonLinearActLayer
from brevitas.quant.base import IntQuant, PerChannelPoTScaling8bit
from brevitas.quant.fixed_point import (
    Int8ActPerTensorFixedPoint,
    Int8WeightPerChannelFixedPoint,
    Uint8ActPerTensorFixedPoint,
)
from brevitas.quant.solver.bias import BiasQuantSolver
from torch import Tensor, nn

from quant.calibration import Formats, high_code, weight_limit
from quant.code_layers import multiply_codes, takes
from quant.convolution import conv2d
from quant.network import TensorFormat
from quant.ops import AddOp, FlattenOp, GemmOp, Op, PoolOp, keeps_format

# Takes a layer's name and its quantized weight (dequantized); gives the weight that the layer then
# computes with, which carries the gradient back to the one given and may be that one, changed.
Disturb = Callable[[str, Tensor], Tensor]
# Takes a layer's name and its weight codes, int8 (weights,); makes of them what a memory returns.
Corrupt = Callable[[str, np.ndarray], None]

_BLOCK_WEIGHTS = 1 << 17


class _Weight(Int8WeightPerChannelFixedPoint):
    """Narrow signed weights with a constant scale per output channel."""

    scaling_impl_type = ScalingImplType.CONST
    int_scaling_impl = PowerOfTwoIntScaling  # a scale is the threshold / 2**bits, exactly
    scaling_stats_op = None
    scaling_min_val = None


class _Bias(IntQuant, PerChannelPoTScaling8bit, BiasQuantSolver):
    """Integer bias at the accumulator's scale, given as a constant."""

    scaling_impl_type = ScalingImplType.CONST
    int_scaling_impl = PowerOfTwoIntScaling
    requires_input_scale = False


class _Signed(Int8ActPerTensorFixedPoint):
    scaling_impl_type = ScalingImplType.CONST
    int_scaling_impl = PowerOfTwoIntScaling
    scaling_min_val = None


class _Unsigned(Uint8ActPerTensorFixedPoint):
    scaling_impl_type = ScalingImplType.CONST
    int_scaling_impl = PowerOfTwoIntScaling
    scaling_min_val = None


class BrevitasModel(nn.Module):
    """Runs traced operations with Brevitas layers for all that is quantized.

    Attributes:
        ops: what it computes; their weights are those before training.
        formats: the constant scales.
        gemms: Brevitas layers by name of the operation (dots as slashes).
        acts: Brevitas activation quantizers by name, ``"input"`` included.
    """

    def __init__(self, ops: Sequence[Op], formats: Formats) -> None:
        super().__init__()
        self.ops = tuple(ops)
        self.formats = formats
        self._disturb: Disturb | None = None
        self._corrupt: Corrupt | None = None
        self._constant: dict[str, Tensor] | None = None
        self.gemms = nn.ModuleDict()
        restriction = _restriction(formats)
        image = _activation(formats.tensors["input"], "none", restriction)
        self.acts = nn.ModuleDict({"input": image})
        for op in self.ops:
            if isinstance(op, GemmOp):
                self.gemms[_key(op.name)] = _layer(op, formats)
            if op.name in formats.tensors and not keeps_format(op):
                activation = op.activation
                if activation == "none" and not formats.tensors[op.name].signed:
                    activation = "relu"  # changes nothing: the values are not negative
                fmt = formats.tensors[op.name]
                self.acts[_key(op.name)] = _activation(fmt, activation, restriction)

    def layer(self, name: str) -> QuantConv2d | QuantLinear:
        """Return the Brevitas layer of an operation."""
        return self.gemms[_key(name)]

    @contextlib.contextmanager
    def disturbed(self, disturb: Disturb) -> Iterator[None]:
        """Let training compute with other values than the quantized weights, within the block."""
        self._disturb = disturb
        try:
            yield
        finally:
            self._disturb = None

    @contextlib.contextmanager
    def corrupted(self, corrupt: Corrupt) -> Iterator[None]:
        """Let training compute with the codes that faults make of the weights', within the block.

        The gradient passes straight through. The model must be on the CPU.
        """
        self._corrupt = corrupt
        try:
            yield
        finally:
            self._corrupt = None

    @contextlib.contextmanager
    def constant_weights(self) -> Iterator[None]:
        """Find the codes of the weights once in the block, in which the weights must not change."""
        self._constant = {}
        try:
            yield
        finally:
            self._constant = None

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of normalized images (N, C, H, W)."""
        return deque(self.outputs(images), maxlen=1)[0][1].flatten(1)

    def outputs(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor's name and dequantized values, ``"input"`` first, logits last.

        In training they may be bfloat16, which holds them exactly; the logits are float32. A tensor
        is let go after its last consumer.
        """
        last_use = {name: k for k, op in enumerate(self.ops) for name in op.inputs}
        values = {"input": self.quantize("input", None, images)}
        yield "input", values["input"]
        for k, op in enumerate(self.ops):
            result = self._run(op, [values[name] for name in op.inputs])
            for name in op.inputs:
                if last_use[name] == k:
                    values.pop(name, None)
            values[op.name] = result
            yield op.name, result

    def compute(self, op: Op, inputs: Sequence[Tensor]) -> Tensor:
        """Return an operation's result before its activation and quantization."""
        if self.training and not keeps_format(op):
            inputs = [values.float() for values in inputs]
        x = inputs[0]
        if isinstance(op, GemmOp):
            return self._multiply(op, x)
        if isinstance(op, PoolOp):
            pool = F.max_pool2d if op.kind == "max" else F.avg_pool2d
            return pool(x, op.kernel, op.stride, op.padding)
        if isinstance(op, AddOp):
            return inputs[0] + inputs[1]
        return x.reshape(len(x), -1, 1, 1) if isinstance(op, FlattenOp) else x

    def _run(self, op: Op, inputs: Sequence[Tensor]) -> Tensor:
        """Return an operation's result; in training, bfloat16 where layers of codes are fast."""
        if self.training and isinstance(op, GemmOp) and self._disturb is None:
            x = inputs[0]
            if takes(op, self.formats, x):
                weight, codes = self.layer(op.name).weight, self._codes(op)
                return multiply_codes(op, self.formats, x, weight, self._bias(op), codes)
        return self.quantize(op.name, op, self.compute(op, inputs))

    def _multiply(self, op: GemmOp, x: Tensor) -> Tensor:
        layer = self.layer(op.name)
        if not self.training:
            y = layer(x.flatten(1)) if op.kind == "linear" else layer(x)
            return y.view(len(x), -1, 1, 1) if op.kind == "linear" else y
        weight, bias = self._weight(op), self._bias(op)
        if op.kind == "linear":
            return F.linear(x.flatten(1), weight, bias).view(len(x), -1, 1, 1)
        return conv2d(x, weight, bias, op.stride, op.padding, op.dilation, op.groups)

    def _weight(self, op: GemmOp) -> Tensor:
        """Return what training multiplies with: quantized, then disturbed or of corrupted codes."""
        weight, scale = self.layer(op.name).weight, self.weight_scale(op)
        if self._corrupt is not None:
            return _Dequantize.apply(weight, self._codes(op), scale)
        limit = weight_limit(self.formats.weight_bits)
        quantized = _FakeQuantizeParameter.apply(weight, scale, -limit, limit)
        return quantized if self._disturb is None else self._disturb(op.name, quantized)

    def _codes(self, op: GemmOp) -> Tensor:
        """Return the codes that training multiplies with, int8 like the layer's weight."""
        if self._constant is None:
            codes = self._quantized(op)
        else:
            if op.name not in self._constant:
                self._constant[op.name] = self._quantized(op)
            codes = self._constant[op.name]
        if self._corrupt is not None:
            codes = codes.clone()
            self._corrupt(op.name, codes.view(-1).numpy())
        return codes

    @torch.no_grad()
    def _quantized(self, op: GemmOp) -> Tensor:
        weight, scale = self.layer(op.name).weight, self.weight_scale(op)
        limit = weight_limit(self.formats.weight_bits)
        codes = torch.empty_like(weight, dtype=torch.int8)
        # By blocks of channels that stay in the cache.
        channels = max(1, _BLOCK_WEIGHTS // weight[0].numel())
        for block, values, step in zip(
            *(whole.split(channels) for whole in (codes, weight, scale)), strict=True
        ):
            block.copy_((values / step).round_().clamp_(-limit, limit))
        return codes

    def _bias(self, op: GemmOp) -> Tensor:
        bias = self.layer(op.name).bias
        half = 1 << (self.formats.bias_bits - 1)
        scale = _scales(self.formats.bias_scale(op), bias)
        return _FakeQuantizeParameter.apply(bias, scale, -half, half - 1)

    def weight_scale(self, op: GemmOp) -> Tensor:
        """Return the scale of each output channel, in the dimensions of the layer's weight."""
        weight = self.layer(op.name).weight
        scale = _scales(self.formats.weight_scale(op), weight)
        return scale.view(-1, *[1] * (weight.dim() - 1))

    def quantize(self, name: str, op: Op | None, x: Tensor) -> Tensor:
        """Return a result, or the image where `op` is None, after activation and quantization."""
        if _key(name) not in self.acts:
            return x
        if not self.training:
            return self.acts[_key(name)](x)
        fmt = self.formats.tensors[name]
        hi = high_code(op, fmt) if op is not None else fmt.hi
        return _FakeQuantize.apply(x, fmt.scale, fmt.lo, hi)


def build_model(ops: Sequence[Op], formats: Formats) -> BrevitasModel:
    """Return a Brevitas model in evaluation mode that starts from the operations' weights."""
    model = BrevitasModel(ops, formats)
    with torch.no_grad():
        for op in ops:
            if isinstance(op, GemmOp):
                layer = model.layer(op.name)
                layer.weight.copy_(op.weight.view_as(layer.weight))
                layer.bias.copy_(op.bias)
    return model.eval()


class _FakeQuantize(torch.autograd.Function):
    """Activations: the gradient passes where the value is within the range of the codes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, lo: int, hi: int) -> Tensor:
        ctx.save_for_backward(x)
        # As a ReLU: at and below 0 there is no gradient.
        ctx.range = ((lo - 0.5 if lo else 0.0) * scale, (hi + 0.5) * scale)
        return (x * (1 / scale)).round_().clamp_(lo, hi).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        passed = torch.ops.aten.hardtanh_backward(gradients[0], x, *ctx.range)
        return passed, None, None, None


class _FakeQuantizeParameter(torch.autograd.Function):
    """Weights: the gradient passes straight through, as in Brevitas with constant scales."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lo: int, hi: int) -> Tensor:
        return (x / scale).round_().clamp_(lo, hi).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None, None


class _Dequantize(torch.autograd.Function):
    """Codes of a weight, which receives the gradient as if it had been multiplied with."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None


def _key(name: str) -> str:
    # A ModuleDict takes no dots; a module path has no slash.
    return name.replace(".", "/")


def _scales(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like)


def _restriction(formats: Formats) -> RestrictValueType:
    mult = formats.requant == "mult"
    return RestrictValueType.FP if mult else RestrictValueType.POWER_OF_TWO


class _ReLU6(nn.Module):
    """Brevitas leaves out an `nn.ReLU6`: for a Hardtanh before a quantizer it trusts the latter."""

    def __init__(self) -> None:  # Brevitas looks at its arguments
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return x within 0..6."""
        return F.relu6(x)


def _activation(
    fmt: TensorFormat, activation: str, restriction: RestrictValueType
) -> QuantNonLinearActLayer:
    settings: dict[str, Any] = {
        "bit_width": fmt.bits,
        # Brevitas takes a threshold, 2**(bits of the magnitude) scales.
        "scaling_init": fmt.scale * 2.0 ** (fmt.bits - int(fmt.signed)),
        "restrict_scaling_type": restriction,
        "return_quant_tensor": False,
    }
    if fmt.signed:
        return QuantIdentity(act_quant=_Signed, **settings)
    if activation == "relu6":
        return QuantNonLinearActLayer(
            act_impl=_ReLU6,
            passthrough_act=True,
            input_quant=None,
            act_quant=_Unsigned,
            **settings,
        )
    return QuantReLU(act_quant=_Unsigned, **settings)


def _layer(op: GemmOp, formats: Formats) -> QuantConv2d | QuantLinear:
    weight = op.weight if op.kind == "conv" else op.weight.flatten(1)
    restriction = _restriction(formats)
    scales = torch.from_numpy(formats.weight_scale(op)).float()
    bias_scales = torch.from_numpy(formats.bias_scale(op)).float()
    settings: dict[str, Any] = {
        "bias": True,
        "weight_quant": _Weight,
        "weight_bit_width": formats.weight_bits,
        "weight_restrict_scaling_type": restriction,
        "weight_scaling_init": (scales * 2.0 ** (formats.weight_bits - 1)).view(
            -1, *[1] * (weight.dim() - 1)
        ),
        "bias_quant": _Bias,
        "bias_bit_width": formats.bias_bits,
        "bias_restrict_scaling_type": restriction,
        "bias_scaling_init": bias_scales * 2.0 ** (formats.bias_bits - 1),
    }
    if op.kind == "linear":
        return QuantLinear(weight.shape[1], weight.shape[0], **settings)
    return QuantConv2d(
        weight.shape[1] * op.groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=op.stride,
        padding=op.padding,
        dilation=op.dilation,
        groups=op.groups,
        **settings,
    )
