# SPDX-License-Identifier: Apache-2.0
"""Weights that read other than they were written, in a training step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Words:
    """Some of a layer's quantized weights in units of their scales: what a memory holds of them.

    Attributes:
        values: the layer's weights, (out, ...), on the CPU.
        index: int64 (F,), into the flat weights.
    """

    def __init__(self, values: Tensor, scale: Tensor, index: Tensor) -> None:
        """Take the words at `index`; `scale` is per output channel, in the dimensions of values."""
        self.values, self.index = values, index
        self._scales = scale.reshape(-1)[index // values[0].numel()]

    def of(self, weight: Tensor) -> np.ndarray:
        """Return the words of a weight like `values`, float32 (F,), exact if it is quantized."""
        with torch.no_grad():
            return (weight.reshape(-1)[self.index] / self._scales).numpy()

    def codes(self) -> np.ndarray:
        """Return the words, int8 (F,)."""
        return self.of(self.values).astype(np.int8)

    def replaced(self, codes: np.ndarray) -> Tensor:
        """Put other words in place, int8 (F,), and return the weights.

        It changes `values`, whose own gradient does not notice: it passes straight through.
        """
        read = torch.from_numpy(codes).to(self.values.dtype) * self._scales
        return _Substitute.apply(self.values, self.index, read)


class _Substitute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, read: Tensor) -> Tensor:
        # In place: a copy of all weights would cost more than all else that is done here.
        ctx.mark_dirty(values)
        values.view(-1)[index] = read
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None
