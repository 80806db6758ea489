# SPDX-License-Identifier: Apache-2.0
"""Faults on their way through a network: only windows that differ from the golden run.

Many faulty inferences share a batch. Each starts at the tensor that its first fault changes, holds
of every tensor the rectangle in which it may differ, and leaves the batch as soon as all that is
still to be read equals the golden run. The logits are those of full forwards, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from faultinj.golden import Golden, element_index, padded
from faultinj.layers import Layer
from faultinj.storage import corrupt
from faultinj.tables import Window, gather, place, wide
from quant.network import Flatten, Gemm, Node


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Shortcuts of the fault engine. All but the last give the same results on or off.

    Attributes:
        restart: begin at the first faulty tensor, not at the image.
        window: compute only what can differ, not whole maps.
        drop: forget an inference once it equals the golden run.
        int8: use the CPU's 8-bit units where they are exact.
        top1_bound: forget it as soon as what is left provably cannot change the class; there is
            then no logit change to report.
    """

    restart: bool = True
    window: bool = True
    drop: bool = True
    int8: bool = True
    top1_bound: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredFaults:
    """Faulty bits of stored codes: int64 (F,) each, one entry per bit.

    Attributes:
        tensor: index in `Design.names`.
        copy: which inference of the batch.
        element: index of the code in (C, H, W) order.
        bit: which bit of it.
        kind: index in `faultinj.faults.KINDS`.
    """

    tensor: np.ndarray
    copy: np.ndarray
    element: np.ndarray
    bit: np.ndarray
    kind: np.ndarray

    def kept(self, index: np.ndarray) -> StoredFaults:
        """Return the entries at `index`."""
        return StoredFaults(
            tensor=self.tensor[index],
            copy=self.copy[index],
            element=self.element[index],
            bit=self.bit[index],
            kind=self.kind[index],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Writes:
    """New output codes (or logits) of a layer: int64 (W,) each, and int64 (B,) violations.

    Attributes:
        copy, row, column, channel: where; `copy` counts in the batch.
        value: what.
        violations: per inference, by how much the checks count more.
    """

    copy: np.ndarray
    row: np.ndarray
    column: np.ndarray
    channel: np.ndarray
    value: np.ndarray
    violations: np.ndarray


# Node, the copies (numbers in the batch) that are left, a function that returns the whole input
# maps (n, H, W, C) of some of them -> what their register and weight faults write.
LayerFaults = Callable[[Gemm, np.ndarray, Callable[[np.ndarray], Tensor]], Writes]


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchOutcome:
    """What became of a batch: int64 (B,) each but the last.

    Attributes:
        top1: class.
        change: largest absolute change of a logit.
        violations: beyond those of the golden run.
        bounded: bool (B,), proven not to change the class; `change` is unknown.
    """

    top1: Tensor
    change: Tensor
    violations: Tensor
    bounded: Tensor


class Propagation:
    """One batch of faulty inferences."""

    def __init__(
        self,
        golden: Golden,
        images: np.ndarray,
        stored: StoredFaults,
        layer_faults: dict[str, LayerFaults],
        last_site: np.ndarray,
        options: EngineOptions,
        radius: dict[str, Tensor] | None = None,
    ) -> None:
        """Prepare a batch.

        Args:
            golden: the golden run.
            images: int64 (B,), which image of it each inference has.
            stored: faults of stored codes.
            layer_faults: what changes outputs of a layer, by its name.
            last_site: int64 (B,), index in `Design.names` of the last tensor that a fault changes.
            options: shortcuts.
            radius: see `faultinj.top1_bound`; by tensor, int64 (N,).
        """
        self.golden, self.design, self.options = golden, golden.design, options
        device = golden.logits.device
        self.all_images = self.images = torch.from_numpy(images).to(device)
        self.copies = torch.arange(len(images), device=device)
        self.stored, self.layer_faults = stored, layer_faults
        self.last_site = torch.from_numpy(last_site).to(device)
        self.windows: dict[str, Window] = {}
        self.differs: dict[str, Tensor] = {}
        self.radius = radius or {}
        self.top1 = golden.top1[self.images].clone()
        self.change = torch.zeros_like(self.top1)
        self.violations = torch.zeros_like(self.top1)
        self.bounded = torch.zeros_like(self.top1, dtype=torch.bool)

    def run(self) -> BatchOutcome:
        """Follow the batch to its logits."""
        names = self.design.names
        sites = set(np.unique(self.stored.tensor)) | {names.index(n) for n in self.layer_faults}
        first = 0 if not self.options.restart else min(sites, default=0)
        if first == 0:
            if 0 in sites or not self.options.restart:
                self._begin("input", 0 in sites)
            first = 1
        for index in range(first, len(names)):
            node = self.design.network.nodes[index - 1]
            read = any(name in self.windows for name in node.inputs)
            if read or index in sites:
                self._step(node, read, index in sites)
            self._forget(index)
            if not len(self.copies):
                break
        return BatchOutcome(
            top1=self.top1, change=self.change, violations=self.violations, bounded=self.bounded
        )

    def _begin(self, name: str, faulty: bool) -> None:
        """Start at a tensor that no live tensor leads to."""
        mine = self._mine(name) if faulty else self.stored.kept(np.zeros(0, dtype=np.int64))
        _, rows, columns = element_index(self.design.shapes[name], mine.element)
        window = self._golden_window(name, *self._box(name, mine.copy, rows, columns))
        self._corrupt(name, window, mine)
        self._keep(name, window)

    def _step(self, node: Node, read: bool, faulty: bool) -> None:
        name = node.name
        mine = self._mine(name) if faulty else None
        writes = self._writes(node) if faulty and name in self.layer_faults else None
        window = None
        if read:
            window = self._computed(node, whole=faulty or not self.options.window)
        if node.output is None and isinstance(node, Gemm):
            self._finish(None if window is None else window.codes.flatten(1), writes)
            return
        if window is None:
            assert mine is not None
            _, rows, columns = element_index(self.design.shapes[name], mine.element)
            places = (mine.copy, rows, columns)
            if writes is not None:
                both = zip(places, (writes.copy, writes.row, writes.column), strict=True)
                places = tuple(np.concatenate(pair) for pair in both)  # type: ignore[assignment]
            window = self._golden_window(name, *self._box(name, *places))
        if writes is not None and len(writes.copy):
            at = self._places(window, writes.copy, writes.row, writes.column, writes.channel)
            values = torch.from_numpy(writes.value).to(window.codes.device, window.codes.dtype)
            window.codes.view(-1)[at] = values
        if mine is not None:
            self._corrupt(name, window, mine)
        self._keep(name, window)

    def _mine(self, name: str) -> StoredFaults:
        """Return the faults of a tensor whose inferences are still here, rows for `copy`."""
        stored = self.stored
        chosen = np.flatnonzero(stored.tensor == self.design.names.index(name))
        row = np.full(len(self.images), -1)
        row[self.copies.cpu().numpy()] = np.arange(len(self.copies))
        mine = stored.kept(chosen)
        rows = row[mine.copy]
        alive = mine.kept(np.flatnonzero(rows >= 0))
        return StoredFaults(
            tensor=alive.tensor, copy=rows[rows >= 0], element=alive.element, bit=alive.bit,
            kind=alive.kind,
        )  # fmt: skip

    def _box(
        self, name: str, copy: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Return top, left and the common size of rectangles that hold each copy's places."""
        _, height, width = self.design.shapes[name]
        count, device = len(self.copies), self.images.device
        if not self.options.window:
            zero = torch.zeros(count, dtype=torch.int64, device=device)
            return zero, zero, (height, width)
        sides = []
        for places, extent in ((rows, height), (columns, width)):
            low, high = np.full(count, extent), np.full(count, -1)
            np.minimum.at(low, copy, places)
            np.maximum.at(high, copy, places)
            size = max(int((high - low).max(initial=0)) + 1, 1)
            start = np.clip(np.minimum(low, extent - size), 0, None)
            sides.append((torch.from_numpy(start).to(device), size))
        (top, h), (left, w) = sides
        return top, left, (h, w)

    def _golden_window(self, name: str, top: Tensor, left: Tensor, size: tuple[int, int]) -> Window:
        codes = gather(self.golden.tables[name], self.images[self.copies], top, left, size)
        return Window(codes=codes, top=top, left=left)

    def _corrupt(self, name: str, window: Window, faults: StoredFaults) -> None:
        """Change the named bits of stored codes, in place."""
        if not len(faults.copy):
            return
        h, w = window.size
        channel, row, column = element_index(self.design.shapes[name], faults.element)
        row = row - window.top.cpu().numpy()[faults.copy]
        column = column - window.left.cpu().numpy()[faults.copy]
        element = (channel * h + row) * w + column
        fmt = self.design.network.format_of(name)
        codes = window.codes.permute(0, 3, 1, 2)
        for index, kind in enumerate(("flip", "stuck0", "stuck1")):
            some = faults.kind == index
            if some.any():
                corrupt(codes, fmt, faults.copy[some], element[some], faults.bit[some], kind)

    @staticmethod
    def _places(
        window: Window, copy: np.ndarray, row: np.ndarray, column: np.ndarray, channel: np.ndarray
    ) -> Tensor:
        """Return the flat index in a window's codes of places in the map."""
        h, w = window.size
        row = row - window.top.cpu().numpy()[copy]
        column = column - window.left.cpu().numpy()[copy]
        flat = ((copy * h + row) * w + column) * window.codes.shape[3] + channel
        return torch.from_numpy(flat).to(window.codes.device)

    def _patch(
        self, layer: Layer, name: str, top: Tensor, left: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Return what a layer reads of an input around a window, (B, h, w, C)."""
        window = self.windows.get(name)
        images = self.images[self.copies]
        if window is None:
            return gather(
                self.golden.tables[name], images, top, left, size, lowest=bool(layer.pad_code)
            )
        if window.size == self.design.shapes[name][1:]:
            (py, px) = (reach.padding for reach in layer.reach)
            height, width = window.size
            if size == (height + 2 * py, width + 2 * px):
                return padded(layer, window.codes)
        patch = gather(
            self.golden.tables[name], images, top, left, size, lowest=bool(layer.pad_code)
        )
        place(window, patch, top, left)
        return patch

    def _computed(self, node: Node, *, whole: bool) -> Window:
        """Return the outputs of a node that the live tensors may change."""
        layer = self.design.layers[node.name]
        _, height, width = self.design.shapes[node.name]
        live = [self.windows[name] for name in node.inputs if name in self.windows]
        self._count_inputs(node)
        zero = torch.zeros(len(self.copies), dtype=torch.int64, device=self.images.device)
        if isinstance(node, Flatten):
            whole = True
        starts, sizes, origins, inputs = [], [], [], []
        for axis, extent in enumerate((height, width)):
            reach = layer.reach[axis]
            first = [w.top if axis == 0 else w.left for w in live]
            low = torch.stack(first).amin(dim=0)
            ends = [start + w.size[axis] for start, w in zip(first, live, strict=True)]
            length = int((torch.stack(ends).amax(dim=0) - low).max())
            count = extent if whole else reach.outputs(length, extent)
            start = zero if count == extent else reach.first_output(low, count, extent)
            starts.append(start)
            sizes.append(count)
            origins.append(start * reach.stride - reach.padding)
            inputs.append(reach.inputs(count))
        all_of_it = sizes == [height, width]
        if all_of_it:
            # Whole maps with all of their padding, also what no output reads.
            pads = [reach.padding for reach in layer.reach]
            shape = self.design.shapes[node.inputs[0]][1:]
            inputs = [extent + 2 * pad for extent, pad in zip(shape, pads, strict=True)]
        patches = [
            self._patch(layer, name, origins[0], origins[1], (inputs[0], inputs[1]))
            for name in node.inputs
        ]
        codes, replaced = layer.run(patches, whole=all_of_it)
        window = Window(codes=codes, top=starts[0], left=starts[1])
        if replaced is not None:
            images = self.images[self.copies]
            before = gather(
                self.golden.counts[node.name], images, starts[0], starts[1], window.size
            )
            more = replaced.sum(dim=(1, 2)) - before.sum(dim=(1, 2, 3))
            self.violations[self.copies] += more
        return window

    def _count_inputs(self, node: Node) -> None:
        """Count what the input check of a layer finds in a live input."""
        if not isinstance(node, Gemm) or not self.design.layers[node.name].checks_input:
            return
        window = self.windows[node.inputs[0]]
        golden = self._golden_window(node.inputs[0], window.top, window.left, window.size)
        for codes, sign in ((window.codes, 1), (golden.codes, -1)):
            found = self.design.input_violations(node, codes, window.top, window.left)
            self.violations[self.copies] += sign * found

    def _writes(self, node: Node) -> Writes:
        """Return what faults inside a layer write, rows for `copy`."""
        assert isinstance(node, Gemm)
        copies = self.copies.cpu().numpy()
        row = np.full(len(self.images), -1)
        row[copies] = np.arange(len(copies))
        name = node.inputs[0]

        def whole_inputs(several: np.ndarray) -> Tensor:
            chosen = torch.from_numpy(several).to(self.images.device)
            maps = self.golden.tables[name].maps()
            whole = maps[self.all_images[chosen]]
            if name in self.windows:
                window = self.windows[name].kept(torch.from_numpy(row[several]).to(chosen.device))
                zero = torch.zeros_like(chosen)
                place(window, whole, zero, zero)
            return whole

        writes = self.layer_faults[node.name](node, copies, whole_inputs)
        self.violations[self.copies] += torch.from_numpy(
            writes.violations[copies]).to(self.violations.device)  # fmt: skip
        return Writes(
            copy=row[writes.copy], row=writes.row, column=writes.column, channel=writes.channel,
            value=writes.value, violations=writes.violations,
        )  # fmt: skip

    def _finish(self, logits: Tensor | None, writes: Writes | None) -> None:
        """Take the logits of the inferences that are left."""
        images = self.images[self.copies]
        golden = self.golden.logits[images]
        if logits is None:
            logits = golden.clone()
        if writes is not None:
            where = (torch.from_numpy(writes.copy), torch.from_numpy(writes.channel))
            values = torch.from_numpy(writes.value).to(logits.device)
            if len(values) and int(values.abs().max()) >= 1 << 31:
                logits = logits.to(torch.int64)
            logits[where] = values.to(logits.dtype)
        index = torch.arange(logits.shape[1], device=logits.device)
        best = logits == logits.amax(dim=1, keepdim=True)
        self.top1[self.copies] = torch.where(best, index, logits.shape[1]).amin(dim=1)
        difference = logits.to(torch.int64) - golden.to(torch.int64)
        self.change[self.copies] = difference.abs().amax(dim=1)

    def _keep(self, name: str, window: Window) -> None:
        """Keep a tensor where any inference differs in it."""
        if self.options.drop:
            differs = self._differing(name, window)
            if not self.options.restart:  # what has not met its faults goes on
                differs |= self.last_site[self.copies] > self.design.names.index(name)
            self._prove(name, window, differs)
        else:
            differs = torch.ones(len(self.copies), dtype=torch.bool, device=self.images.device)
        if differs.any():
            self.windows[name], self.differs[name] = window, differs

    def _differing(self, name: str, window: Window) -> Tensor:
        """Return which inferences differ from the golden run in a tensor, bool (B,)."""
        h, w = window.size
        # Most that differ at all do so in the middle; only the others are compared as a whole.
        y, x = h // 2, w // 2
        middle = self._golden_window(name, window.top + y, window.left + x, (1, 1))
        differs = (wide(window.codes[:, y, x]) != wide(middle.codes[:, 0, 0])).any(dim=1)
        rest = (~differs).nonzero().squeeze(1)
        if h * w > 1 and len(rest):
            part = window.kept(rest)
            images = self.images[self.copies[rest]]
            golden = gather(self.golden.tables[name], images, part.top, part.left, (h, w))
            differs[rest] = (wide(part.codes) != wide(golden)).flatten(1).any(dim=1)
        return differs

    def _prove(self, name: str, window: Window, differs: Tensor) -> None:
        """Mark inferences whose difference is too small to change the class as done."""
        index = self.design.names.index(name)
        if name not in self.radius or any(self.design.last_use[n] >= index for n in self.windows):
            return
        images = self.images[self.copies]
        golden = self._golden_window(name, window.top, window.left, window.size)
        distance = (window.codes.to(torch.int16) - golden.codes.to(torch.int16)).abs_()
        near = distance.flatten(1).sum(dim=1) <= self.radius[name][images]
        near &= differs & (self.last_site[self.copies] <= index)
        self.bounded[self.copies] |= near
        differs &= ~near

    def _forget(self, index: int) -> None:
        """Drop tensors that nobody reads any more, and inferences that equal the golden run."""
        for name in [n for n in self.windows if self.design.last_use.get(n, -1) <= index - 1]:
            del self.windows[name], self.differs[name]
        if not self.options.drop:
            return
        alive = self.last_site[self.copies] > index
        for differs in self.differs.values():
            alive = alive | differs
        left = alive.nonzero().squeeze(1)
        if len(left) <= 0.95 * len(alive):
            self.copies = self.copies[left]
            self.windows = {n: w.kept(left) for n, w in self.windows.items()}
            self.differs = {n: d[left] for n, d in self.differs.items()}
