# SPDX-License-Identifier: Apache-2.0
"""Chooses the power-of-two scale of every tensor and weight channel of a network.

Every exponent minimizes the squared error of quantization, of the weights themselves or of
activations on calibration images, within what the accelerator can do: requantization shifts of
0..31 and biases that fit its accumulator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quant.network import TensorFormat
from quant.ops import GemmOp, Op, keeps_format, nonnegative

MAX_SHIFT = 31
RELU6_MAX_EXPONENT = 1  # 6 = 3 * 2**1: up to here a code stands for 6 exactly
# Biases of more bits would leave no room for exact float32 sums.
_MAX_BIAS_BITS = 24
_SAMPLES = 1 << 18
_CANDIDATES = 7


@dataclass(frozen=True, kw_only=True, eq=False)
class Formats:
    """The scales of a network.

    Attributes:
        weight_bits, act_bits: 2..8.
        bias_bits: width of a bias code, two's complement; fits every accelerator for the network.
        tensors: format by name of all quantized tensors, ``"input"`` included; the last
            operation's raw logits have none.
        weights: exponents by name of the layer, int64 (out,).
    """

    weight_bits: int
    act_bits: int
    bias_bits: int
    tensors: dict[str, TensorFormat]
    weights: dict[str, np.ndarray]

    def bias_exponent(self, op: GemmOp) -> np.ndarray:
        """Return the exponents of a layer's accumulator, and so of its bias, int64 (out,)."""
        return self.tensors[op.inputs[0]].exponent + self.weights[op.name]


def high_code(op: Op, fmt: TensorFormat) -> int:
    """Return the code at which an operation's output saturates above."""
    if op.activation == "relu6":
        return min(fmt.hi, int(6 / 2.0**fmt.exponent))
    return fmt.hi


def weight_limit(weight_bits: int) -> int:
    """Return the largest weight code; the range is symmetric."""
    return (1 << (weight_bits - 1)) - 1


def choose_formats(
    ops: Sequence[Op], values: Mapping[str, Tensor], *, weight_bits: int, act_bits: int
) -> Formats:
    """Choose all exponents.

    Args:
        ops: of `quant.graph.trace`.
        values: every float tensor by name on calibration images (`quant.ops.run`).
        weight_bits, act_bits: 2..8.
    """
    positive = nonnegative(ops)
    tensors = {"input": _tensor_format(values["input"], act_bits, signed=True)}
    for op in ops[:-1]:
        source = tensors[op.inputs[0]]
        if keeps_format(op):
            tensors[op.name] = source
            continue
        limit = RELU6_MAX_EXPONENT if op.activation == "relu6" else None
        signed = not positive[op.name]
        tensors[op.name] = _tensor_format(values[op.name], act_bits, signed=signed, limit=limit)
    gemms = [op for op in ops if isinstance(op, GemmOp)]
    bias_bits = _bias_bits(gemms, weight_bits, act_bits)
    weights = {}
    for op in gemms:
        per_channel = op is not ops[-1]
        wanted = _weight_exponents(op.weight, weight_bits, per_channel=per_channel)
        e_in = tensors[op.inputs[0]].exponent
        # The bias must fit: |bias| <= (2**(bias_bits - 1) - 1) * 2**(e_in + e_w).
        largest = op.bias.abs().double().numpy() / ((1 << (bias_bits - 1)) - 1)
        low = np.full(len(wanted), -126)
        positive_bias = largest > 0
        low[positive_bias] = np.ceil(np.log2(largest[positive_bias])).astype(np.int64) - e_in
        if per_channel:
            e_out = tensors[op.name].exponent
            low = np.clip(low, e_out - e_in - MAX_SHIFT, e_out - e_in)
            wanted = np.clip(wanted, low, e_out - e_in)
        else:
            wanted = np.maximum(wanted, low.max())
        weights[op.name] = wanted.astype(np.int64)
    return Formats(
        weight_bits=weight_bits,
        act_bits=act_bits,
        bias_bits=bias_bits,
        tensors=tensors,
        weights=weights,
    )


def _bias_bits(gemms: Sequence[GemmOp], weight_bits: int, act_bits: int) -> int:
    """Return the bits of the narrowest accumulator that holds the longest reduction."""
    longest = max(op.weight[0].numel() for op in gemms)
    reach = longest * ((1 << act_bits) - 1) << (weight_bits - 1)
    return min(_MAX_BIAS_BITS, (reach - 1).bit_length() + 1)


def _tensor_format(
    values: Tensor, bits: int, *, signed: bool, limit: int | None = None
) -> TensorFormat:
    flat = values.flatten()
    if len(flat) > _SAMPLES:
        flat = flat[:: -(-len(flat) // _SAMPLES)]
    widest = TensorFormat(bits=bits, signed=signed, exponent=0)
    exponent = _best_exponents(flat[None], widest.lo, widest.hi)[0]
    if limit is not None:
        exponent = min(exponent, limit)
    return TensorFormat(bits=bits, signed=signed, exponent=int(exponent))


def _weight_exponents(weight: Tensor, bits: int, *, per_channel: bool) -> np.ndarray:
    limit = weight_limit(bits)
    rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
    exponents = _best_exponents(rows, -limit, limit)
    return exponents if per_channel else np.repeat(exponents, len(weight))


def _best_exponents(rows: Tensor, lo: int, hi: int) -> np.ndarray:
    """Return per row the exponent of the least squared error, int64 (rows,).

    Candidates go down from the one that just holds the largest magnitude; of equals the
    largest wins. A row of zeros gets 0.
    """
    peak = rows.abs().amax(dim=1).clamp(min=1e-30)
    top = torch.ceil(torch.log2(peak / max(hi, 1))).long()
    best_error = torch.full((len(rows),), math.inf, dtype=torch.float64)
    best = top.clone()
    for step in range(_CANDIDATES):
        scale = torch.exp2((top - step).float())[:, None]
        error = ((rows / scale).round_().clamp_(lo, hi) * scale).sub_(rows).square_()
        total = error.sum(dim=1, dtype=torch.float64)
        better = total < best_error
        best_error = torch.where(better, total, best_error)
        best = torch.where(better, top - step, best)
    best[rows.abs().amax(dim=1) == 0] = 0
    return best.numpy()
