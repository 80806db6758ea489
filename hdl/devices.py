# SPDX-License-Identifier: Apache-2.0
"""Real parts and their capacities: what fits, and the largest array that does.

Figures are of the vendors' data sheets, named below. Routing, clocking and whatever else shares
the part are not counted: a design that needs nearly all of it will hardly route.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hdl.config import AcceleratorConfig
from hdl.cost import Cost
from trilat.errors import InputError, unknown_name

# Field of `Cost` -> name in reports.
RESOURCES = {"lut": "LUT", "ff": "FF", "dsp": "DSP", "bram36": "block RAM"}


@dataclass(frozen=True, kw_only=True)
class Device:
    """One part.

    Attributes:
        name: as on the command line.
        family: of `hdl.families.FAMILIES`, which maps to it.
        lut, ff, dsp: LUTs (as the family counts them), flip-flops, multiplier blocks.
        bram36: memory blocks in the family's `bram_unit`.
        source: data sheet.
    """

    name: str
    family: str
    lut: int
    ff: int
    dsp: int
    bram36: int
    source: str


def _devices(family: str, source: str, *rows: tuple[str, int, int, int, int]) -> list[Device]:
    return [
        Device(name=n, family=family, lut=lut, ff=ff, dsp=dsp, bram36=bram, source=source)
        for n, lut, ff, dsp, bram in rows
    ]


# Name, LUTs, flip-flops, multipliers, memory blocks.
DEVICES = {
    device.name: device
    for device in [
        *_devices(
            "xc7",
            "AMD DS190, Zynq-7000 SoC overview",
            ("xc7z010", 17_600, 35_200, 80, 60),
            ("xc7z020", 53_200, 106_400, 220, 140),
        ),
        *_devices(
            "xc7",
            "AMD DS180, 7 series FPGAs overview (four LUTs and eight flip-flops a slice)",
            ("xc7a35t", 20_800, 41_600, 90, 50),
            ("xc7a50t", 32_600, 65_200, 120, 75),
            ("xc7a100t", 63_400, 126_800, 240, 135),
            ("xc7a200t", 134_600, 269_200, 740, 365),
            ("xc7k160t", 101_400, 202_800, 600, 325),
            ("xc7k325t", 203_800, 407_600, 840, 445),
        ),
        *_devices(
            "xcup",
            "AMD DS891, Zynq UltraScale+ MPSoC overview",
            ("xczu3eg", 70_560, 141_120, 360, 216),
            ("xczu9eg", 274_080, 548_160, 2_520, 912),
        ),
        *_devices(
            "xcup",
            "AMD DS890, UltraScale architecture overview (Kintex UltraScale+)",
            ("xcku5p", 216_960, 433_920, 1_824, 480),
        ),
        *_devices(
            "ecp5",
            "Lattice FPGA-DS-02012, ECP5 and ECP5-5G family; LUT4 exact as in Project Trellis",
            ("lfe5u-25", 24_288, 24_288, 28, 56),
            ("lfe5u-45", 43_848, 43_848, 72, 108),
            ("lfe5u-85", 83_640, 83_640, 156, 208),
        ),
        *_devices(
            "ice40",
            "Lattice FPGA-DS-02008, iCE40 UltraPlus family",
            ("ice40up5k", 5_280, 5_280, 8, 30),
        ),
        *_devices(
            "ice40",
            "Lattice FPGA-DS-02029, iCE40 LP/HX family",
            ("ice40hx8k", 7_680, 7_680, 0, 32),
        ),
        *_devices(
            "gowin",
            "Gowin DS100, GW1N series",
            ("gw1n-9", 8_640, 6_480, 20, 26),
        ),
        *_devices(
            "gowin",
            "Gowin DS102, GW2A series",
            ("gw2a-18", 20_736, 15_552, 48, 46),
        ),
    ]
}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How much of a part a design takes.

    Attributes:
        device: the part.
        shares: field of `RESOURCES` -> used / capacity; above 1 it does not fit.
    """

    device: Device
    shares: dict[str, float]

    @property
    def fits(self) -> bool:
        """Whether no resource is exceeded."""
        return all(share <= 1 for share in self.shares.values())

    @property
    def tightest(self) -> str:
        """Resource of which the largest share is used."""
        return max(self.shares, key=lambda name: self.shares[name])


def device_named(name: str) -> Device:
    """Return a device.

    Raises:
        InputError: it is not in the table; lists what is, close matches first.
    """
    found = DEVICES.get(name.lower())
    if found is None:
        raise unknown_name("device", name, sorted(DEVICES))
    return found


def require_family(device: Device, family: str) -> None:
    """Raise InputError unless `family` is what maps to the device."""
    if device.family != family:
        raise InputError(
            f"device {device.name} is of family {device.family}, not {family}: "
            f"give --family {device.family} or none"
        )


def fit(cost: Cost, device: Device) -> Fit:
    """Return what share of the device a design takes."""
    shares = {}
    for name in RESOURCES:
        used, capacity = float(getattr(cost, name)), float(getattr(device, name))
        shares[name] = used / capacity if capacity else (float("inf") if used else 0.0)
    return Fit(device=device, shares=shares)


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The array of most PEs that fits a device.

    Attributes:
        config: of it.
        cost: of it, mapped.
        tried: arrays that were mapped on the way, this one included.
    """

    config: AcceleratorConfig
    cost: Cost
    tried: int


def largest_array(
    config: AcceleratorConfig,
    device: Device,
    cost_of: Callable[[AcceleratorConfig], Cost],
    *,
    steps: int = 6,
) -> Largest | None:
    """Return the array of most PEs that fits, all other settings the same; the squarest of equals.

    The array that should just fit is mapped, judging by the one mapped last (`_estimate`), until
    no larger one should fit or `steps` are spent. Only mapped arrays are answers.

    Args:
        config: rows and cols are where the search starts.
        device: the part.
        cost_of: cost of a configuration.
        steps: arrays to map at most, from 1 up.

    Returns:
        What was found; None if no array that was mapped fits.
    """
    sizes = sorted(
        ((r, c) for r in range(1, 65) for c in range(config.dsp_pack, 65, config.dsp_pack)),
        key=lambda size: (-size[0] * size[1], abs(size[0] - size[1]), size),
    )
    best: Largest | None = None
    tried: dict[tuple[int, int], bool] = {}
    size: tuple[int, int] | None = (config.rows, config.cols)
    while size is not None and len(tried) < steps:
        candidate = replace(config, rows=size[0], cols=size[1])
        cost = cost_of(candidate)
        tried[size] = fit(cost, device).fits
        if tried[size] and (best is None or _pes(candidate) > _pes(best.config)):
            best = Largest(config=candidate, cost=cost, tried=len(tried))
        size = next((s for s in sizes if _is_open(s, tried, best, cost, candidate, device)), None)
    return None if best is None else replace(best, tried=len(tried))


def _pes(config: AcceleratorConfig) -> int:
    return config.rows * config.cols


def _is_open(
    size: tuple[int, int],
    tried: dict[tuple[int, int], bool],
    best: Largest | None,
    cost: Cost,
    of: AcceleratorConfig,
    device: Device,
) -> bool:
    """Return whether an array may be the answer and has not been mapped."""
    rows, cols = size
    if best is not None and rows * cols <= _pes(best.config):
        return False
    if any(not fitted and rows >= r and cols >= c for (r, c), fitted in tried.items()):
        return False
    wanted = _estimate(cost, of, rows, cols)
    return all(wanted[name] <= getattr(device, name) for name in RESOURCES)


def _estimate(cost: Cost, of: AcceleratorConfig, rows: int, cols: int) -> dict[str, float]:
    """Return the resources of another size: PEs by their number, the rest by columns or edges."""
    pes = rows * cols / _pes(of)
    columns = cols / of.cols
    edges = (rows + cols) / (of.rows + of.cols)
    found = dict.fromkeys(RESOURCES, 0.0)
    for module in cost.modules:
        if "_pe_" in module.name:
            factor = pes
        else:
            by_column = module.count > 1 and module.count in (of.cols, of.col_groups)
            factor = columns if by_column else edges
        for name in RESOURCES:
            found[name] += factor * module.count * getattr(module, name)
    for change in cost.changes:
        for name in RESOURCES:
            found[name] += edges * getattr(change, name)
    return found
