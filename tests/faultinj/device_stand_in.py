# SPDX-License-Identifier: Apache-2.0
"""A device that is not there: CPU tensors that refuse what CUDA tensors refuse.

Within `pretended()`, ``torch.device("cuda")`` is a second memory. Its tensors say that they are on
it, cannot become NumPy arrays, and do not meet CPU tensors in one operation (but scalars, indices
and copies, as in CUDA). What computes is the CPU: nothing is said about CUDA's kernels.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda")


class OnDevice(Tensor):
    """A tensor of the device; all its operations go through the mode."""

    __torch_function__ = torch._C._disabled_torch_function_impl


def _is_device(value) -> bool:
    return isinstance(value, torch.device) and value.type == DEVICE.type


def _check_mixed(func, args, kwargs) -> None:
    if func in (Tensor.copy_, Tensor.to):
        return
    if func is Tensor.__getitem__:
        args = args[:1]  # indices may be anywhere
    if func is Tensor.__setitem__:
        args = (args[0], args[2])
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    there = [t for t in tensors if isinstance(t, OnDevice)]
    here = [t for t in tensors if not isinstance(t, OnDevice) and t.dim() > 0]
    if there and here:
        raise RuntimeError(f"{func.__name__}: expected all tensors to be on the same device")


class _Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_flatten((args, kwargs))[0]
        there = any(isinstance(leaf, OnDevice) for leaf in leaves)
        if func == Tensor.device.__get__ and there:  # a new object each time
            return DEVICE
        if func is Tensor.numpy and there:
            raise TypeError("can't convert cuda device type tensor to numpy")
        _check_mixed(func, args, kwargs)
        moves = any(_is_device(leaf) for leaf in leaves)
        leaves_device = func is Tensor.cpu or any(
            isinstance(leaf, torch.device) and leaf.type == "cpu" for leaf in leaves
        )

        def inside(value):
            if _is_device(value):
                return torch.device("cpu")
            return value.as_subclass(Tensor) if isinstance(value, OnDevice) else value

        # A move is a copy, never the same memory.
        result = func(*tree_map(inside, args), **tree_map(inside, kwargs))
        copied = (moves and not there) or (leaves_device and there)
        outside = (there or moves) and not leaves_device

        def wrapped(value):
            if not isinstance(value, Tensor):
                return value
            value = value.clone() if copied and func in (Tensor.to, Tensor.cpu) else value
            return value.as_subclass(OnDevice) if outside else value

        return tree_map(wrapped, result)


@contextlib.contextmanager
def pretended():
    with _Mode():
        yield DEVICE
