# SPDX-License-Identifier: Apache-2.0
"""Chooses the scale of every tensor and weight channel of a network.

Every scale minimizes the squared error of quantization, of the weights themselves or of
activations on calibration images, within what the accelerator can do: requantization shifts of
0..31 and biases that fit its accumulator. With `requant` shift scales are powers of two; with mult
they have a mantissa of 24 bits, and tensors that the host joins without a layer share it. For
comparison with published work a layer's weights can share the scale that holds the largest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from quant.network import MAX_MULTIPLIER, TensorFormat
from quant.ops import GemmOp, Op, keeps_format, nonnegative

REQUANTS = ("shift", "mult")
WEIGHT_SCALES = ("channel", "layer")
MAX_SHIFT = 31
RELU6_MAX_EXPONENT = 1  # 6 = 3 * 2**1: up to here a code stands for 6 exactly
# Input scale * weight scale / output scale, for which a multiplier and a shift of 0..63 have 16
# digits; a factor of two from the ends leaves room to round.
MULTIPLIER_RANGE = (2.0**-47, (MAX_MULTIPLIER + 1) / 2)
# Biases of more bits would leave no room for exact float32 sums.
_MAX_BIAS_BITS = 24
_SAMPLES = 1 << 18
_CANDIDATES = 7
# Of scales of any value: those tried first, per octave; of weights, whose few values make many
# local optima, those around the best one; then the best one moves to the least squared error for
# its codes, so many times.
_MANTISSAS = {"shift": (1.0,), "mult": tuple(2.0 ** (k / 8) for k in range(8))}
_NEARBY = tuple(1 + k / 256 for k in range(-16, 17) if k)
_REFINEMENTS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Formats:
    """The scales of a network.

    Attributes:
        weight_bits, act_bits: 2..8.
        bias_bits: width of a bias code, two's complement; fits every accelerator for the network.
        tensors: format by name of all quantized tensors, ``"input"`` included; the last
            operation's raw logits have none.
        weights: exponents by name of the layer, int64 (out,).
        mantissas: of the weights' scales by name of the layer, float64 (out,), each a float32 in
            1..2; None makes them 1, and all scales powers of two.
    """

    weight_bits: int
    act_bits: int
    bias_bits: int
    tensors: dict[str, TensorFormat]
    weights: dict[str, np.ndarray]
    mantissas: dict[str, np.ndarray] | None = None

    @property
    def requant(self) -> str:
        """How sums become codes: ``"shift"``, or ``"mult"`` where scales have mantissas."""
        return "shift" if self.mantissas is None else "mult"

    def weight_scale(self, op: GemmOp) -> np.ndarray:
        """Return the values of a layer's weight code 1, float64 (out,), each a float32."""
        mantissa = 1.0 if self.mantissas is None else self.mantissas[op.name]
        return mantissa * np.exp2(self.weights[op.name].astype(np.float64))

    def bias_scale(self, op: GemmOp) -> np.ndarray:
        """Return the scales of a layer's accumulator, and so of its bias, float64 (out,)."""
        return self.tensors[op.inputs[0]].scale * self.weight_scale(op)


def high_code(op: Op, fmt: TensorFormat) -> int:
    """Return the code at which an operation's output saturates above."""
    if op.activation == "relu6":
        return min(fmt.hi, int(np.rint(np.float32(6) / np.float32(fmt.scale))))
    return fmt.hi


def weight_limit(weight_bits: int) -> int:
    """Return the largest weight code; the range is symmetric."""
    return (1 << (weight_bits - 1)) - 1


def choose_formats(
    ops: Sequence[Op],
    values: Mapping[str, Tensor],
    *,
    weight_bits: int,
    act_bits: int,
    requant: str = "shift",
    weight_scale: str = "channel",
) -> Formats:
    """Choose all scales.

    Args:
        ops: of `quant.graph.trace`.
        values: every float tensor by name on calibration images (`quant.ops.run`).
        weight_bits, act_bits: 2..8.
        requant: ``"shift"`` for powers of two, ``"mult"`` for scales of any value.
        weight_scale: of `WEIGHT_SCALES`; ``"layer"`` goes with ``"shift"`` alone.
    """
    tensors = _tensor_formats(ops, values, act_bits, requant)
    gemms = [op for op in ops if isinstance(op, GemmOp)]
    bias_bits = _bias_bits(gemms, weight_bits, act_bits)
    weights, mantissas = {}, {}
    for op in gemms:
        source, output = tensors[op.inputs[0]], tensors.get(op.name)
        # The bias must fit: |bias| <= (2**(bias_bits - 1) - 1) * input scale * weight scale.
        largest = op.bias.abs().double().numpy() / ((1 << (bias_bits - 1)) - 1)
        if requant == "shift":
            if weight_scale == "layer":
                wanted = _largest_exponents(op.weight, weight_bits)
            else:
                wanted = _weight_exponents(op.weight, weight_bits, per_channel=output is not None)
            weights[op.name] = _fitting_exponents(wanted, largest, source, output)
        else:
            scales = _weight_scales(op.weight, weight_bits, per_channel=output is not None)
            scales = _fitting_scales(scales, largest, source, output)
            mantissa, exponent = np.frexp(scales.astype(np.float32).astype(np.float64))
            weights[op.name] = exponent.astype(np.int64) - 1
            mantissas[op.name] = 2.0 * mantissa
    return Formats(
        weight_bits=weight_bits,
        act_bits=act_bits,
        bias_bits=bias_bits,
        tensors=tensors,
        weights=weights,
        mantissas=None if requant == "shift" else mantissas,
    )


def _fitting_exponents(
    wanted: np.ndarray, largest: np.ndarray, source: TensorFormat, output: TensorFormat | None
) -> np.ndarray:
    """Return the weight exponents nearest to those wanted that bias and shifts allow."""
    low = np.full(len(wanted), -126)
    positive = largest > 0
    low[positive] = np.ceil(np.log2(largest[positive])).astype(np.int64) - source.exponent
    if output is None:
        return np.maximum(wanted, low.max()).astype(np.int64)
    high = output.exponent - source.exponent
    return np.clip(wanted, np.clip(low, high - MAX_SHIFT, high), high).astype(np.int64)


def _fitting_scales(
    wanted: np.ndarray, largest: np.ndarray, source: TensorFormat, output: TensorFormat | None
) -> np.ndarray:
    """Return the weight scales nearest to those wanted that bias and multipliers allow."""
    low = largest / source.scale * (1 + 2.0**-22)  # the scale will be rounded to float32
    if output is None:
        return np.maximum(wanted, max(low.max(), 2.0**-126))
    least, most = (factor * output.scale / source.scale for factor in MULTIPLIER_RANGE)
    return np.clip(wanted, np.clip(low, least, most), most)


def _bias_bits(gemms: Sequence[GemmOp], weight_bits: int, act_bits: int) -> int:
    """Return the bits of the narrowest accumulator that holds the longest reduction."""
    longest = max(op.weight[0].numel() for op in gemms)
    reach = longest * ((1 << act_bits) - 1) << (weight_bits - 1)
    return min(_MAX_BIAS_BITS, (reach - 1).bit_length() + 1)


def _tensor_formats(
    ops: Sequence[Op], values: Mapping[str, Tensor], bits: int, requant: str
) -> dict[str, TensorFormat]:
    """Return the format of every tensor but the logits, by name."""
    positive = nonnegative(ops)
    formats: dict[str, TensorFormat] = {}
    for names in _joined(ops):
        rows = [_sample(values[name]) for name in names]
        words = [TensorFormat(bits=bits, signed=not positive[n], exponent=0) for n in names]
        exponents, mantissa = _shared_scale(rows, words, requant)
        for name, word, exponent in zip(names, words, exponents, strict=True):
            formats[name] = replace(word, exponent=exponent, mantissa=mantissa)
    for op in ops[:-1]:
        if keeps_format(op):
            formats[op.name] = formats[op.inputs[0]]
        elif op.activation == "relu6" and requant == "shift":
            fmt = formats[op.name]
            formats[op.name] = replace(fmt, exponent=min(fmt.exponent, RELU6_MAX_EXPONENT))
    return formats


def _joined(ops: Sequence[Op]) -> list[list[str]]:
    """Return the tensors with scales of their own, those together that the host joins.

    Between two of them there is an add, an average pool or a change of format, which shift codes
    and so need one mantissa.
    """
    owner = {"input": "input"}  # the tensor whose format it is
    group = {"input": ["input"]}
    for op in ops[:-1]:
        owner[op.name] = owner[op.inputs[0]] if keeps_format(op) else op.name
        if keeps_format(op):
            continue
        group[op.name] = [op.name]
        for name in () if isinstance(op, GemmOp) else op.inputs:
            if group[owner[name]] is not group[op.name]:
                group[op.name] += group[owner[name]]
                group |= dict.fromkeys(group[op.name], group[op.name])
    return list({id(names): names for names in group.values()}.values())


def _sample(values: Tensor) -> Tensor:
    """Return at most `_SAMPLES` of a tensor's values, evenly spaced, (1, values)."""
    flat = values.flatten()
    return flat[None, :: max(1, -(-len(flat) // _SAMPLES))]


def _shared_scale(
    rows: Sequence[Tensor], words: Sequence[TensorFormat], requant: str
) -> tuple[list[int], float]:
    """Return exponents and the one mantissa of the least sum of relative squared errors."""
    energies = [max(float(row.double().square().sum()), 1e-30) for row in rows]
    least, exponents, mantissa = math.inf, [0] * len(rows), 1.0
    for candidate in _MANTISSAS[requant]:
        found = [
            _best_exponents(row, word.lo, word.hi, candidate)
            for row, word in zip(rows, words, strict=True)
        ]
        error = sum(float(e[0]) / energy for (_, e), energy in zip(found, energies, strict=True))
        if error < least:
            least, mantissa = error, candidate
            exponents = [int(best[0]) for best, _ in found]
    if requant == "shift":
        return exponents, mantissa
    for _ in range(_REFINEMENTS):
        above = below = 0.0
        for row, word, exponent, energy in zip(rows, words, exponents, energies, strict=True):
            unit = row.double() * 2.0**-exponent
            codes = (unit / mantissa).round_().clamp_(word.lo, word.hi)
            weight = 4.0**exponent / energy
            above += weight * float((unit * codes).sum())
            below += weight * float(codes.square().sum())
        mantissa = above / below if above > 0 and below > 0 else mantissa
    digits, extra = math.frexp(float(np.float32(mantissa)))
    return [exponent + extra - 1 for exponent in exponents], 2.0 * digits


def _weight_exponents(weight: Tensor, bits: int, *, per_channel: bool) -> np.ndarray:
    limit = weight_limit(bits)
    rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
    exponents, _ = _best_exponents(rows, -limit, limit)
    return exponents if per_channel else np.repeat(exponents, len(weight))


def _largest_exponents(weight: Tensor, bits: int) -> np.ndarray:
    """Return for every channel the exponent that just holds the largest weight of the layer."""
    largest = max(float(weight.abs().max()), 1e-30)
    exponent = math.ceil(math.log2(largest / weight_limit(bits)))
    return np.full(len(weight), exponent, dtype=np.int64)


def _weight_scales(weight: Tensor, bits: int, *, per_channel: bool) -> np.ndarray:
    """Return the scales of the least squared error, float64 (out,)."""
    limit = weight_limit(bits)
    rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
    scales = np.ones(len(rows))
    least = np.full(len(rows), math.inf)
    for mantissa in _MANTISSAS["mult"]:
        exponents, error = _best_exponents(rows, -limit, limit, mantissa)
        better = error < least
        scales = np.where(better, mantissa * np.exp2(exponents.astype(np.float64)), scales)
        least = np.where(better, error, least)
    center = scales
    for factor in _NEARBY:
        unit = torch.from_numpy(center * factor).to(rows.dtype)[:, None]
        error = _squared_error(rows, unit, -limit, limit).numpy()
        scales = np.where(error < least, center * factor, scales)
        least = np.minimum(error, least)
    for _ in range(_REFINEMENTS):
        unit = torch.from_numpy(scales).to(rows.dtype)[:, None]
        codes = (rows / unit).round_().clamp_(-limit, limit)
        above = (rows * codes).sum(dim=1, dtype=torch.float64).numpy()
        below = codes.square().sum(dim=1, dtype=torch.float64).numpy()
        scales = np.divide(above, below, out=scales, where=(above > 0) & (below > 0))
    return scales if per_channel else np.repeat(scales, len(weight))


def _best_exponents(
    rows: Tensor, lo: int, hi: int, mantissa: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return per row the exponent of the least squared error and that error.

    Candidates go down from the one that just holds the largest magnitude; of equals the
    largest wins. A row of zeros gets 0.

    Args:
        rows: float32 (rows, values).
        lo, hi: range of the codes.
        mantissa: of the scale, which is ``mantissa * 2**exponent``.

    Returns:
        Exponents, int64 (rows,), and squared errors, float64 (rows,).
    """
    peak = rows.abs().amax(dim=1).clamp(min=1e-30)
    top = torch.ceil(torch.log2(peak / (max(hi, 1) * mantissa))).long()
    best_error = torch.full((len(rows),), math.inf, dtype=torch.float64)
    best = top.clone()
    for step in range(_CANDIDATES):
        scale = torch.exp2((top - step).float())[:, None] * mantissa
        total = _squared_error(rows, scale, lo, hi)
        better = total < best_error
        best_error = torch.where(better, total, best_error)
        best = torch.where(better, top - step, best)
    best[rows.abs().amax(dim=1) == 0] = 0
    return best.numpy(), best_error.numpy()


def _squared_error(rows: Tensor, scale: Tensor, lo: int, hi: int) -> Tensor:
    """Return the squared error of each row's quantization with its scale, float64 (rows,)."""
    error = ((rows / scale).round_().clamp_(lo, hi) * scale).sub_(rows).square_()
    return error.sum(dim=1, dtype=torch.float64)
