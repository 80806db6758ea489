# SPDX-License-Identifier: Apache-2.0
"""A fault is a value: where, which bits, when, what kind. The same one runs in software and RTL."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hdl.config import AcceleratorConfig
from hdl.registers import CONTROL_CLASSES, LANE_CLASSES, REGISTER_CLASSES, register_slice
from trilat.errors import InputError, unknown_name

KINDS = ("flip", "stuck0", "stuck1")
# Registers whose faults `faultinj.tile_faults` predicts, by dataflow; see docs/architecture.md.
REGISTERS = {
    dataflow: (*REGISTER_CLASSES[dataflow], *LANE_CLASSES[dataflow]) for dataflow in ("ws", "os")
}


@dataclass(frozen=True, kw_only=True)
class MemoryFault:
    """Bits of one stored code: of the image, or of a layer's requantized output.

    Attributes:
        tensor: ``"input"`` or the name of a layer with quantized output.
        image: index of the image in the run.
        element: index of the code in (C, H, W) order.
        bits: which bits of the code, 0 is the lowest.
        kind: ``flip``, ``stuck0`` or ``stuck1``.
    """

    tensor: str
    image: int
    element: int
    bits: tuple[int, ...]
    kind: str = "flip"

    def __post_init__(self) -> None:
        """Raise InputError for an unknown kind."""
        _check_kind(self.kind)


@dataclass(frozen=True, kw_only=True)
class RegisterFault:
    """Bits of one register of the systolic array.

    Attributes:
        layer: name of the layer; None for a permanent fault that every layer meets.
        image: index of the image in the run.
        tile: index of the output tile within the layer, in the order of
            `hdl.schedule.output_tiles`; None for a permanent fault that every tile meets.
        register: class of the register, one of those of `hdl.registers`; what a fault does is
            predicted for those in `REGISTERS` of the accelerator's dataflow, and seen in the RTL
            alone for the others, control bits.
        row, col: of the PE. For ``skew``, `row` is the row and `col` the stage (0..row); for
            ``deskew`` and ``weight_skew``, `col` is the column and `row` the stage
            (0..cols - 2 - col, 0..col); for ``psum_buffer`` and ``ring``, `row` is the word; for
            parameters of a lane it is 0; as in `hdl.registers`. Rows take the words of the ring
            in turn, from word 0 on behind the reset ahead of what the fault names: of its tile,
            or all tiles of its layer, or of the inference.
        bits: which bits of the register, 0 is the lowest.
        cycle: of the output tile, 0 being that of its first accepted activation beat in a run
            without stalls; None for a permanent fault (``stuck0``, ``stuck1``).
        kind: ``flip``, ``stuck0`` or ``stuck1``.
    """

    layer: str | None
    image: int
    tile: int | None
    register: str
    row: int
    col: int
    bits: tuple[int, ...]
    cycle: int | None
    kind: str = "flip"

    def __post_init__(self) -> None:
        """Raise InputError for an unknown register or kind, or a kind without its time."""
        tables = (REGISTER_CLASSES, LANE_CLASSES, CONTROL_CLASSES)
        known = list(dict.fromkeys(name for t in tables for names in t.values() for name in names))
        if self.register not in known:
            raise unknown_name("register", self.register, known)
        _check_kind(self.kind)
        if (self.cycle is None) == (self.kind == "flip"):
            raise InputError("a flip needs a cycle, and a stuck-at fault has none")
        if self.kind == "flip" and (self.layer is None or self.tile is None):
            raise InputError("a flip needs a layer and an output tile")
        if self.layer is None and self.tile is not None:
            raise InputError("an output tile needs its layer")


@dataclass(frozen=True, kw_only=True)
class WeightFault:
    """Bits of one stored weight, wrong in a whole inference.

    Attributes:
        layer: name of the layer.
        image: index of the image in the run.
        element: index of the weight in (out, in / groups, kh, kw) order.
        bits: which bits of the code, two's complement, 0 is the lowest.
        kind: ``flip``, ``stuck0`` or ``stuck1``.
    """

    layer: str
    image: int
    element: int
    bits: tuple[int, ...]
    kind: str = "flip"

    def __post_init__(self) -> None:
        """Raise InputError for an unknown kind."""
        _check_kind(self.kind)


# Where a permanent fault without a layer is.
EVERY_LAYER = "*"
LayerFault = RegisterFault | WeightFault
Fault = MemoryFault | RegisterFault | WeightFault
_SITES = {"memory": MemoryFault, "register": RegisterFault, "weight": WeightFault}


def site_of(fault: Fault) -> str:
    """Return the tensor that a fault changes first; `EVERY_LAYER` where it is in all of them."""
    if isinstance(fault, MemoryFault):
        return fault.tensor
    return EVERY_LAYER if fault.layer is None else fault.layer


def to_json(fault: Fault) -> dict[str, Any]:
    """Return JSON-able data that names the fault completely."""
    site = next(name for name, kind in _SITES.items() if isinstance(fault, kind))
    return {"site": site, **asdict(fault), "bits": list(fault.bits)}


def from_json(data: dict[str, Any]) -> Fault:
    """Read `to_json`'s data; raises InputError if it is something else."""
    fields = dict(data)
    site = fields.pop("site", None)
    try:
        fields["bits"] = tuple(int(b) for b in fields["bits"])
        if site in _SITES:
            return _SITES[site](**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"this is no fault: {error!r}") from None
    *names, last = _SITES
    raise InputError(f"a fault's site is {', '.join(names)} or {last}, not {site!r}")


def check_register_fault(config: AcceleratorConfig, fault: RegisterFault) -> None:
    """Raise InputError where the accelerator has no such predicted register or bit."""
    known = REGISTERS[config.dataflow]
    if fault.register not in known:
        raise unknown_name(
            f"register class predicted for dataflow {config.dataflow}", fault.register, list(known)
        )
    width = register_slice(config, fault.register, fault.row, fault.col).bits
    if not fault.bits or min(fault.bits) < 0 or max(fault.bits) >= width:
        raise InputError(f"{fault.register} has bits 0..{width - 1}, not {fault.bits}")


def mask_of(bits: tuple[int, ...]) -> int:
    """Return the word with ones at `bits`; naming one twice is naming it once."""
    return sum(1 << bit for bit in set(bits))


def written(
    value: np.ndarray, width: int, signed: bool, mask: np.ndarray | int, kind: str
) -> np.ndarray:
    """Return codes as a faulty word of `width` bits holds them, int64.

    Args:
        value: integer codes that fit the word.
        width: of the word.
        signed: how its bits are read: two's complement or unsigned.
        mask: ones at the faulty bits, below 2**width.
        kind: what happens to them.
    """
    word = value.astype(np.int64) & ((1 << width) - 1)
    if kind == "flip":
        word = word ^ mask
    elif kind == "stuck1":
        word = word | mask
    else:
        word = word & ~mask
    if signed:
        half = 1 << (width - 1)
        word = (word ^ half) - half
    return word


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise unknown_name("kind of fault", kind, list(KINDS))
