# SPDX-License-Identifier: Apache-2.0
"""Golden tensors as tables of pixels, from which windows of many images are taken at once.

A table has one row of C codes per pixel and image (channels last), so that a window of any image
at any place is a list of row numbers: one `index_select` serves thousands of faults.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """One tensor of a golden batch.

    Attributes:
        rows: (N * H * W + 2, C): the pixels in image-major, row-major order, then a row of zeros
            and a row of the lowest codes, which stand for padding.
        height, width: H, W.
    """

    rows: Tensor
    height: int
    width: int

    @property
    def channels(self) -> int:
        """C."""
        return self.rows.shape[1]

    @property
    def images(self) -> int:
        """N."""
        return (len(self.rows) - 2) // (self.height * self.width)

    def maps(self) -> Tensor:
        """Return the tensor itself, (N, H, W, C), a view."""
        return self.rows[:-2].view(-1, self.height, self.width, self.channels)


def empty_table(
    shape: tuple[int, int, int],
    count: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    lowest: int = 0,
) -> Table:
    """Return a table for `count` tensors of `shape` (C, H, W) whose maps are still to be set."""
    channels, height, width = shape
    rows = torch.zeros((count * height * width + 2, channels), dtype=dtype, device=device)
    rows[-1] = lowest
    return Table(rows=rows, height=height, width=width)


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Faulty codes of B inferences, each in a rectangle of its own; golden outside of it.

    Attributes:
        codes: (B, h, w, C), contiguous.
        top, left: int64 (B,): the pixel of codes[b, 0, 0]; the rectangle lies in the map.
    """

    codes: Tensor
    top: Tensor
    left: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.codes.shape[1], self.codes.shape[2]

    def kept(self, index: Tensor) -> Window:
        """Return the inferences at `index`."""
        return Window(
            codes=select_rows(self.codes, index), top=self.top[index], left=self.left[index]
        )


def wide(codes: Tensor) -> Tensor:
    """Return codes seen as 64-bit words where they can be: copies and comparisons run faster."""
    fits = codes.element_size() == 1 and codes.shape[-1] % 8 == 0 and codes.stride(-1) == 1
    fits = fits and codes.storage_offset() % 8 == 0
    fits = fits and all(stride % 8 == 0 for stride in codes.stride()[:-1])
    return codes.view(torch.int64) if fits else codes


def select_rows(codes: Tensor, index: Tensor) -> Tensor:
    """Return ``codes[index]`` along the first dimension."""
    return wide(codes).index_select(0, index).view(codes.dtype)


def gather(
    table: Table,
    images: Tensor,
    top: Tensor,
    left: Tensor,
    size: tuple[int, int],
    *,
    lowest: bool = False,
) -> Tensor:
    """Return rectangles of golden images, (B, h, w, C).

    Args:
        table: of the tensor.
        images: int64 (B,).
        top, left: int64 (B,), may lie outside of the map.
        size: (h, w).
        lowest: pixels outside of the map are the lowest code, instead of 0.
    """
    height, width = table.height, table.width
    if len(images) == 1:
        return _rectangle(table, int(images), (int(top), int(left)), size, lowest)[None]
    if size == (1, 1) == (height, width):
        rows = images
    else:
        ys = top[:, None] + torch.arange(size[0], device=top.device)
        xs = left[:, None] + torch.arange(size[1], device=top.device)
        rows = ((images[:, None] * height + ys) * width)[:, :, None] + xs[:, None, :]
        inside = ((ys >= 0) & (ys < height))[:, :, None] & ((xs >= 0) & (xs < width))[:, None, :]
        rows = torch.where(inside, rows, len(table.rows) - (1 if lowest else 2)).view(-1)
    return select_rows(table.rows, rows).view(len(images), *size, table.channels)


def _rectangle(
    table: Table, image: int, at: tuple[int, int], size: tuple[int, int], lowest: bool
) -> Tensor:
    """Return one rectangle as `gather` does, (h, w, C), by slices: there is no index to make."""
    rows, y = _meeting(at[0], size[0], table.height)
    columns, x = _meeting(at[1], size[1], table.width)
    golden = table.maps()[image, rows, columns]
    if golden.shape[:2] == size:
        return golden.clone(memory_format=torch.contiguous_format)
    patch = table.rows[-1 if lowest else -2].repeat(*size, 1)
    patch[y, x] = golden
    return patch


def _meeting(start: int, length: int, extent: int) -> tuple[slice, slice]:
    """Return where `length` places from `start` on meet 0..extent - 1: there, and among them."""
    first = min(max(start, 0), extent)
    end = max(min(start + length, extent), first)
    return slice(first, end), slice(first - start, end - start)


def place(window: Window, patch: Tensor, top: Tensor, left: Tensor) -> None:
    """Write a window's codes into patches of the same tensor, where they meet.

    Args:
        window: the codes.
        patch: (B, h, w, C), contiguous; changed in place.
        top, left: int64 (B,): the pixel of patch[b, 0, 0].
    """
    count, height, width, channels = patch.shape
    h, w = window.size
    if count == 1:
        rows_in, y = _meeting(int(window.top) - int(top), h, height)
        columns_in, x = _meeting(int(window.left) - int(left), w, width)
        patch[0, rows_in, columns_in] = window.codes[0, y, x]
        return
    ys = (window.top - top)[:, None] + torch.arange(h, device=patch.device)
    xs = (window.left - left)[:, None] + torch.arange(w, device=patch.device)
    inside = ((ys >= 0) & (ys < height))[:, :, None] & ((xs >= 0) & (xs < width))[:, None, :]
    base = torch.arange(count, device=patch.device)[:, None] * height
    rows = (((base + ys) * width)[:, :, None] + xs[:, None, :]).view(-1)
    codes = window.codes.view(-1, channels)
    if not bool(inside.all()):
        seen = inside.view(-1).nonzero().squeeze(1)
        rows, codes = rows[seen], select_rows(codes, seen)
    wide(patch.view(-1, channels)).index_copy_(0, rows, wide(codes))
