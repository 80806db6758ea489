# SPDX-License-Identifier: Apache-2.0
"""The stored activations of an inference: which bits there are, and how a fault changes them.

Stored are the image and every layer's requantized output, before pooling; not the logits, and not
what the host computes (pooling, adds), which has no memory of the accelerator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from faultinj.faults import written
from faultinj.lowering import Shape, tensor_shapes
from quant.network import IntegerNetwork, TensorFormat


@dataclass(frozen=True, kw_only=True, eq=False)
class Storage:
    """The stored codes of one image, one tensor after the other.

    Attributes:
        names: of the tensors, ``"input"`` first, then the layers in order.
        shapes: (C, H, W) of each.
        starts: int64 (tensors + 1,), where each begins in the count of all codes.
        bits: width of a code.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    starts: np.ndarray
    bits: int

    @property
    def elements(self) -> int:
        """Codes of one image."""
        return int(self.starts[-1])

    @property
    def total_bits(self) -> int:
        """Stored bits of one image."""
        return self.elements * self.bits

    def locate(self, elements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (index of the tensor, index of the code in it) of codes 0..elements - 1."""
        tensor = np.searchsorted(self.starts, elements, side="right") - 1
        return tensor, elements - self.starts[tensor]


def stored_activations(network: IntegerNetwork) -> Storage:
    """Return what a network stores per image."""
    shapes = tensor_shapes(network)
    names = ("input", *(n.name for n in network.gemms() if n.output is not None))
    sizes = [int(np.prod(shapes[name])) for name in names]
    return Storage(
        names=names,
        shapes=tuple(shapes[name] for name in names),
        starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        bits=network.act_bits,
    )


def flip(
    codes: Tensor, fmt: TensorFormat, images: np.ndarray, elements: np.ndarray, bits: np.ndarray
) -> None:
    """Flip many different bits of stored codes in place, in time linear in the tensor.

    Args:
        codes: (N, C, H, W), owned by the caller.
        fmt: their format.
        images, elements, bits: int64 (F,): as in `corrupt`, but no bit is named twice.
    """
    # Each bit is named once, so the sum of a word's bits is the word's mask.
    masks = torch.zeros(codes.numel(), dtype=torch.uint8)
    masks.scatter_add_(
        0,
        torch.from_numpy(images * codes[0].numel() + elements),
        torch.from_numpy((1 << bits).astype(np.uint8)),
    )
    words = codes.view(torch.uint8) ^ masks.view(codes.shape).to(codes.device)
    if fmt.signed:  # a code is kept sign-extended
        spare = 8 - fmt.bits
        words = (words.view(torch.int8) << spare) >> spare
    codes.copy_(words.view(codes.dtype))


def corrupt(
    codes: Tensor,
    fmt: TensorFormat,
    images: np.ndarray,
    elements: np.ndarray,
    bits: np.ndarray,
    kind: str = "flip",
) -> None:
    """Change single bits of stored codes in place.

    Args:
        codes: (N, C, H, W), owned by the caller.
        fmt: their format.
        images, elements, bits: int64 (F,): of fault f the image, the code in (C, H, W) order and
            the bit. The same bit named twice is one fault.
        kind: ``flip``, ``stuck0`` or ``stuck1``.
    """
    if not len(images):
        return
    size = codes[0].numel()
    words, inverse = np.unique(images * size + elements, return_inverse=True)
    masks = np.zeros(len(words), dtype=np.int64)
    np.bitwise_or.at(masks, inverse, np.int64(1) << bits)
    image, c, h, w = np.unravel_index(words, tuple(codes.shape))
    place = tuple(torch.from_numpy(i).to(codes.device) for i in (image, c, h, w))
    new = written(codes[place].cpu().numpy(), fmt.bits, fmt.signed, masks, kind)
    codes[place] = torch.from_numpy(new).to(codes.device, codes.dtype)
