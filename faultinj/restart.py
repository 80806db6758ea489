# SPDX-License-Identifier: Apache-2.0
"""Runs under faults that start from the golden run: at the faulty layer, and only while it differs.

Many faults share a batch, each on an image copy of its own; a copy leaves the batch as soon as all
that is still to be read equals the golden run. The answer is that of a full forward with the same
faults, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from faultinj.faults import Fault, MemoryFault, RegisterFault
from faultinj.pe_faults import PeFaults
from faultinj.protection import Protection, run_node
from faultinj.storage import corrupt
from quant.network import Gemm, IntegerNetwork

_COMPRESS = 0.75


@dataclass(frozen=True, kw_only=True, eq=False)
class GoldenRun:
    """The fault-free run of a protected design on a batch of images.

    Attributes:
        values: every tensor by name.
        violations: by node, int64 (N,), what the protection unit counts in it.
    """

    values: dict[str, Tensor]
    violations: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class FaultyRun:
    """Logits (B, classes) under faults, and violations (B,) beyond those of the golden run."""

    logits: Tensor
    violations: Tensor


def golden_run(
    network: IntegerNetwork, codes: Tensor, protection: Protection, *, cols: int
) -> GoldenRun:
    """Run a batch of image codes without faults; `cols` as in `protection.run_node`."""
    values, violations = {"input": codes}, {}
    for node in network.nodes:
        count = torch.zeros(len(codes), dtype=torch.int64, device=codes.device)
        values[node.name] = run_node(
            network, node, [values[n] for n in node.inputs], protection, count, cols=cols
        )
        violations[node.name] = count
    return GoldenRun(values=values, violations=violations)


def site_of(fault: Fault) -> str:
    """Return the tensor that a fault changes first."""
    return fault.tensor if isinstance(fault, MemoryFault) else fault.layer


def run_faulty(
    network: IntegerNetwork,
    golden: GoldenRun,
    images: np.ndarray,
    faults: Sequence[Sequence[Fault]],
    protection: Protection,
    pe_faults: PeFaults,
) -> FaultyRun:
    """Return the outcome of `faults[b]`, all in one inference, on golden image `images[b]`.

    Args:
        network: the network.
        golden: its golden run under the same protection.
        images: int64 (B,), indices into the golden batch.
        faults: of each copy; memory faults and flips of PE activation registers.
        protection: of the design.
        pe_faults: applies the latter; its accelerator's columns are those of the golden run.
    """
    return _Resumed(network, golden, images, faults, protection, pe_faults).run()


class _Resumed:
    """State of one `run_faulty`: the copies still in the batch and the tensors that may differ."""

    def __init__(
        self,
        network: IntegerNetwork,
        golden: GoldenRun,
        images: np.ndarray,
        faults: Sequence[Sequence[Fault]],
        protection: Protection,
        pe_faults: PeFaults,
    ) -> None:
        self.network, self.golden, self.protection = network, golden, protection
        self.pe_faults = pe_faults
        self.device = golden.values["input"].device
        self.images = torch.from_numpy(np.asarray(images, dtype=np.int64)).to(self.device)
        self.copies = torch.arange(len(images), device=self.device)  # still in the batch
        self.at: dict[str, list[tuple[int, Fault]]] = {}
        for copy, several in enumerate(faults):
            for fault in several:
                self.at.setdefault(site_of(fault), []).append((copy, fault))
        self.values: dict[str, Tensor] = {}
        self.differs: dict[str, Tensor] = {}
        self.last_use = {n: i for i, node in enumerate(network.nodes) for n in node.inputs}
        last = network.nodes[-1].name
        self.logits = golden.values[last][self.images].clone()
        self.violations = torch.zeros(len(images), dtype=torch.int64, device=self.device)

    def run(self) -> FaultyRun:
        names = ["input", *(node.name for node in self.network.nodes)]
        due = np.full(len(self.copies), -1)  # position of the last fault of each copy
        for name, several in self.at.items():
            for copy, _ in several:
                due[copy] = max(due[copy], names.index(name))
        pending = torch.from_numpy(due).to(self.device)
        if "input" in self.at:
            self._keep("input", self._corrupted("input", self._golden("input")))
        for index, node in enumerate(self.network.nodes):
            read = any(name in self.values for name in node.inputs)
            if not read and node.name not in self.at:
                continue
            inputs = [self._input(name) for name in node.inputs]
            if read:
                counted = torch.zeros(len(self.copies), dtype=torch.int64, device=self.device)
                output = run_node(
                    self.network, node, inputs, self.protection, counted, cols=self.pe_faults.cols
                )
                counted -= self.golden.violations[node.name][self.images[self.copies]]
                self.violations[self.copies] += counted
            else:
                output = self._golden(node.name)
            if node.name in self.at and isinstance(node, Gemm):
                self._flip_registers(node, inputs[0], output)
                output = self._corrupted(node.name, output)
            self._keep(node.name, output)
            self._forget(index, pending)
            if not len(self.copies):
                break
        last = self.network.nodes[-1].name
        if last in self.values:
            self.logits[self.copies] = self.values[last]
        return FaultyRun(logits=self.logits, violations=self.violations)

    def _golden(self, name: str) -> Tensor:
        return self.golden.values[name][self.images[self.copies]]

    def _input(self, name: str) -> Tensor:
        return self.values[name] if name in self.values else self._golden(name)

    def _mine(self, name: str) -> list[tuple[int, Fault]]:
        """Return (row in the batch, fault) of a tensor's faults whose copies are still here."""
        row = {int(copy): i for i, copy in enumerate(self.copies.tolist())}
        return [(row[copy], fault) for copy, fault in self.at[name] if copy in row]

    def _corrupted(self, name: str, codes: Tensor) -> Tensor:
        """Apply memory faults to `codes`, which this run owns."""
        kinds: dict[str, list[tuple[int, int, int]]] = {}
        for row, fault in self._mine(name):
            if isinstance(fault, MemoryFault):
                places = [(row, fault.element, bit) for bit in fault.bits]
                kinds.setdefault(fault.kind, []).extend(places)
        for kind, places in kinds.items():
            rows, elements, bits = np.array(places, dtype=np.int64).T
            corrupt(codes, self.network.format_of(name), rows, elements, bits, kind)
        return codes

    def _flip_registers(self, node: Gemm, codes: Tensor, output: Tensor) -> None:
        by_row: dict[int, list[RegisterFault]] = {}
        for row, fault in self._mine(node.name):
            if isinstance(fault, RegisterFault):
                by_row.setdefault(row, []).append(fault)
        for row, several in by_row.items():
            changes = self.pe_faults.changes(node, codes[row : row + 1], several)
            places = (changes.channels, changes.rows, changes.columns)[: output.dim() - 1]
            index = tuple(torch.from_numpy(place).to(self.device) for place in places)
            values = torch.from_numpy(changes.values).to(self.device, output.dtype)
            output[row][index] = values
            self.violations[self.copies[row]] += changes.violations

    def _keep(self, name: str, value: Tensor) -> None:
        differs = (value != self._golden(name)).flatten(1).any(dim=1)
        if differs.any():
            self.values[name], self.differs[name] = value, differs

    def _forget(self, index: int, pending: Tensor) -> None:
        """Drop tensors that nobody reads any more, and copies that equal the golden run."""
        for name in [n for n in self.values if self.last_use.get(n, -1) <= index]:
            if name != self.network.nodes[-1].name:
                del self.values[name], self.differs[name]
        alive = pending[self.copies] > index + 1
        for differs in self.differs.values():
            alive = alive | differs
        if alive.sum() <= _COMPRESS * len(alive):
            self.copies = self.copies[alive]
            self.values = {n: v[alive] for n, v in self.values.items()}
            self.differs = {n: d[alive] for n, d in self.differs.items()}
