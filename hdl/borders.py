# SPDX-License-Identifier: Apache-2.0
"""What only the whole shows: how a flat netlist differs from modules that were mapped alone.

Across the borders of modules, flat synthesis removes what nothing reads, keeps one of several
primitives that have the same inputs, and makes shift registers of registers in a row. All three
are decided by how the modules are connected, so they are found here in the mapped netlists: no
primitive is mapped again. Of a module only what its neighbours can change is looked at, once for
each way in which they do (nearly all PEs are in the same situation), so the time grows with the
ports of the array and hardly with what is inside.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hdl.border_module import Cone, Delay, Module
from hdl.netlist import CONSTANTS, Bit, Netlist


@dataclass(frozen=True, kw_only=True)
class Changes:
    """By what a flat netlist differs: primitive -> instances, negative where there are fewer.

    Attributes:
        unread: what drives nothing where it stands.
        equal: what has the same inputs as another of its kind.
        chained: registers in a row that become shift registers, or longer ones.
        ends: modules in which a register became the end of a shift register.
    """

    unread: dict[str, int]
    equal: dict[str, int]
    chained: dict[str, int]
    ends: frozenset[str]


def changes(
    netlists: Mapping[str, Netlist],
    top: str,
    shift_register: Callable[[int], Mapping[str, int]] | None,
) -> Changes:
    """Return what a flat netlist of `top` has more and less than its modules mapped alone.

    Args:
        netlists: of `top` and all modules below it.
        top: module; all of its ports are read and driven from outside.
        shift_register: primitives of one of that many stages; None if registers stay registers.
    """
    design = _elaborate({name: Module(name, net) for name, net in netlists.items()}, top)
    design.merge()
    cones = design.sweep()
    unread: Counter[str] = Counter()
    equal: Counter[str] = Counter()
    for number, cell in design.representative:
        equal[design.instances[number].module.cells[cell].kind] -= 1
    for instance, cone in zip(design.instances, cones, strict=True):
        stays = cone.cells | design.merged(instance)
        if len(stays) < len(instance.module.cells):
            for number, found in enumerate(instance.module.cells):
                if number not in stays:
                    unread[found.kind] -= 1
    chained: Counter[str] = Counter()
    ends: set[str] = set()
    if shift_register is not None:
        for chain in _chains(design, cones):
            made = shift_register(sum(delay.stages for delay, _ in chain))
            kinds = Counter(module.cells[delay.cell].kind for delay, module in chain)
            chained.update(made)
            chained.subtract(kinds)
            last, module = chain[0]
            if last.stages == 1 and made.get("FDRE", 0) == 0:
                ends.add(module.name)
    return Changes(
        unread=dict(sorted(unread.items())),
        equal=dict(sorted(equal.items())),
        chained={kind: n for kind, n in sorted(chained.items()) if n},
        ends=frozenset(ends),
    )


@dataclass(frozen=True, kw_only=True)
class _Instance:
    """An instance of a module; `nets` gives the net of the whole for nets of the module."""

    number: int
    module: Module
    nets: dict[Bit, int]


@dataclass
class _Design:
    """The whole. A net is its number; `parent` joins those that carry the same value.

    Attributes:
        instances: parents first.
        parent: of each net; that of a joined net is another one.
        outputs: nets that are read from outside.
        representative: (instance, cell) -> the one of the same inputs that is kept.
    """

    instances: list[_Instance] = field(default_factory=list)
    parent: list[int] = field(default_factory=lambda: list(range(len(CONSTANTS))))
    outputs: list[int] = field(default_factory=list)
    representative: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._merged: dict[int, set[int]] = {}

    def new(self) -> int:
        """Return a new net."""
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def find(self, net: int) -> int:
        """Return the net that stands for all that are joined with this one."""
        parent = self.parent
        while parent[net] != net:
            parent[net] = parent[parent[net]]
            net = parent[net]
        return net

    def net(self, instance: _Instance, bit: Bit) -> int:
        """Return the joined net of a net of a module, which gets one if it has none."""
        if isinstance(bit, str):
            return self.find(CONSTANTS.index(bit))
        if bit not in instance.nets:
            instance.nets[bit] = self.new()
        return self.find(instance.nets[bit])

    def merged(self, instance: _Instance) -> frozenset[int]:
        """Return the primitives of an instance that another one stands for."""
        return frozenset(self._merged.get(instance.number, ()))

    def kept(self, number: int, cell: int) -> tuple[int, int]:
        """Return what stands for a primitive, given as (instance, cell)."""
        found = (number, cell)
        while found in self.representative:
            found = self.representative[found]
        return found

    def merge(self) -> None:
        """Join the outputs of primitives with the same inputs, until there are no more of them.

        Only nets that are read in several places, and constants, can lead to equal primitives.
        What is equal within one instance without its neighbours stays: flat synthesis has it too,
        as ABC makes it anew.
        """
        readers: dict[int, list[int]] = {}
        for instance in self.instances:
            for bit in instance.module.sources:
                readers.setdefault(self.net(instance, bit), []).append(instance.number)
        self._merge_twins(readers)
        constants = {self.find(number) for number in range(len(CONSTANTS))}
        seen: dict[tuple[Any, ...], tuple[int, int]] = {}
        waiting = deque(range(len(self.instances)))
        queued = set(waiting)
        while waiting:
            number = waiting.popleft()
            queued.discard(number)
            instance, module = self.instances[number], self.instances[number].module
            nets = {bit: self.net(instance, bit) for bit in module.sources}
            known = frozenset(
                bit for bit, net in nets.items() if net in constants or len(readers[net]) > 1
            )
            for cell in module.decided(known):
                if (number, cell) in self.representative:
                    continue
                inputs = tuple(self.net(instance, bit) for bit in module.inputs[cell])
                key = (module.cells[cell].kind, module.cells[cell].parameters, inputs)
                other = self.kept(*seen.setdefault(key, (number, cell)))
                if other == (number, cell) or not module.outputs[cell]:
                    continue
                if other[0] == number:
                    continue
                self.representative[number, cell] = other
                self._merged.setdefault(number, set()).add(cell)
                for affected in self._join(instance, cell, other, readers):
                    if affected not in queued:
                        queued.add(affected)
                        waiting.append(affected)

    def _merge_twins(self, readers: dict[int, list[int]]) -> None:
        """Join within an instance what is equal because it is given one value twice.

        A sum that is extended by its sign for the next row, for example.
        """
        for instance in self.instances:
            first: dict[int, int] = {}
            joined = set()
            for bit in instance.module.sources:
                other = first.setdefault(self.net(instance, bit), bit)
                if other != bit:
                    joined.add((bit, other))
            for cell, stays in instance.module.twins(frozenset(joined)) if joined else ():
                twin = instance.number, stays
                self.representative[instance.number, cell] = twin
                self._merged.setdefault(instance.number, set()).add(cell)
                self._join(instance, cell, twin, readers)

    def _join(
        self,
        instance: _Instance,
        cell: int,
        other: tuple[int, int],
        readers: dict[int, list[int]],
    ) -> list[int]:
        """Join the outputs of a primitive with those of its like; return what reads them."""
        affected = []
        twin = self.instances[other[0]]
        outputs = zip(instance.module.outputs[cell], twin.module.outputs[other[1]], strict=True)
        for mine, theirs in outputs:
            gone, stays = self.net(instance, mine), self.net(twin, theirs)
            if gone != stays:
                self.parent[gone] = stays
                all_of_them = readers.pop(gone, []) + readers.pop(stays, [])
                if all_of_them:
                    readers[stays] = all_of_them
                affected += all_of_them
        return affected

    def sweep(self) -> list[Cone]:
        """Return for each instance what of it is needed for the outputs of the whole."""
        driver: dict[int, tuple[int, int]] = {}
        for instance in self.instances:
            for bit in instance.module.border:
                if bit in instance.module.driver:
                    cell, index = instance.module.driver[bit]
                    number, cell = self.kept(instance.number, cell)
                    out = self.instances[number].module.outputs[cell][index]
                    assert isinstance(out, int)
                    driver[self.net(instance, bit)] = (number, out)
        wanted: list[set[int]] = [set() for _ in self.instances]
        waiting: deque[int] = deque()
        queued: set[int] = set()

        def want(number: int, bit: int) -> None:
            if bit not in wanted[number]:
                wanted[number].add(bit)
                if number not in queued:
                    queued.add(number)
                    waiting.append(number)

        for net in self.outputs:
            if self.find(net) in driver:
                want(*driver[self.find(net)])
        cones = [module.cone(frozenset(), frozenset()) for module in
                 (instance.module for instance in self.instances)]  # fmt: skip
        while waiting:
            number = waiting.popleft()
            queued.discard(number)
            instance = self.instances[number]
            cone = instance.module.cone(frozenset(wanted[number]), self.merged(instance))
            cones[number] = cone
            for bit in cone.outside:
                net = self.net(instance, bit)
                if net in driver:
                    want(*driver[net])
            for cell, index in cone.elsewhere:
                other, twin = self.kept(number, cell)
                out = self.instances[other].module.outputs[twin][index]
                assert isinstance(out, int)
                want(other, out)
        return cones


def _elaborate(modules: Mapping[str, Module], top: str) -> _Design:
    """Return all instances below `top`, with the nets that lead from one to another."""
    design = _Design()

    def place(module: Module, nets: dict[Bit, int]) -> None:
        for bit in module.border:
            if bit not in nets:
                nets[bit] = design.new()
        instance = _Instance(number=len(design.instances), module=module, nets=nets)
        design.instances.append(instance)
        for name, pins in module.netlist.children:
            inner: dict[Bit, int] = {}
            for port, bits in modules[name].netlist.ports.items():
                for local, outer in zip(bits, pins.get(port, ()), strict=False):
                    net = design.net(instance, outer)
                    # An output that is a constant, or joined with another port inside.
                    known = CONSTANTS.index(local) if isinstance(local, str) else inner.get(local)
                    if known is None:
                        inner[local] = net
                    elif design.find(known) != net:
                        design.parent[net] = design.find(known)
            place(modules[name], inner)

    place(modules[top], {})
    netlist, instance = modules[top].netlist, design.instances[0]
    design.outputs = [
        design.net(instance, bit)
        for name, bits in netlist.ports.items()
        if name not in netlist.inputs
        for bit in bits
    ]
    return design


# A net of the whole, or one inside of an instance.
_Net = int | tuple[int, Bit]


def _chains(design: _Design, cones: Sequence[Cone]) -> Iterable[list[tuple[Delay, Module]]]:
    """Yield the delays that stand in a row without a tap between them, the last one first."""
    taps: Counter[_Net] = Counter(design.find(net) for net in design.outputs)
    # By the net that it drives: the delay, what drives it, its control.
    behind: dict[_Net, tuple[Delay, Module, _Net, tuple[_Net, ...]]] = {}

    def net(instance: _Instance, bit: Bit) -> _Net:
        if isinstance(bit, str) or bit in instance.nets:
            return design.net(instance, bit)
        return instance.number, bit

    for instance, cone in zip(design.instances, cones, strict=True):
        module = instance.module
        for bit, count in module.readers(cone.cells).items():
            taps[net(instance, bit)] += count
        for delay in module.delays(cone.cells):
            control = tuple(net(instance, bit) for bit in delay.control)
            behind[net(instance, delay.out)] = (delay, module, net(instance, delay.data), control)

    def before(out: _Net) -> _Net | None:
        _, _, data, control = behind[out]
        joined = taps[data] == 1 and data in behind and behind[data][3] == control
        return data if joined else None

    inner = {before(out) for out in behind}
    for out in behind:
        if out not in inner:
            chain = []
            stage: _Net | None = out
            while stage is not None:
                chain.append(behind[stage][:2])
                stage = before(stage)
            if len(chain) > 1:
                yield chain
