# SPDX-License-Identifier: Apache-2.0
"""The FPGA families: how Yosys maps to each, and what its primitives count as."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from hdl import yosys
from hdl.timing import cell_library


@dataclass(frozen=True, kw_only=True)
class Family:
    """One FPGA family.

    Attributes:
        name: as on the command line.
        device: the part whose speed and capacities the figures refer to.
        synth: Yosys command, in pieces around the mapping of memories.
        read_cells: Yosys command that reads the cell library.
        cells: files of that library under Yosys's share folder.
        defines: macros of that library.
        lut: primitive -> LUTs it takes; memories in LUTs among them (`lut_memory`).
        ff, dsp, carry: primitives of each kind.
        bram: primitive -> blocks of `bram_unit`.
        lut_memory: primitives of `lut` that are memories or shift registers.
        free: primitives that take no resource.
        lut_per_dsp, lut_per_bram: capacity ratios of `device`.
        launch, capture: ps, clock to q and set-up of the flip-flop.
    """

    name: str
    device: str
    synth: str
    before_memory: str
    after_memory: str
    start: str
    read_cells: str
    cells: tuple[str, ...]
    defines: str = ""
    lut: dict[str, int]
    ff: str
    dsp: tuple[str, ...]
    bram: dict[str, float]
    bram_unit: str
    carry: tuple[str, ...]
    lut_memory: tuple[str, ...]
    free: tuple[str, ...]
    lut_per_dsp: int
    lut_per_bram: int
    launch: int
    capture: int

    def script(self, top: str, has_memory: bool) -> list[str]:
        """Return the Yosys commands that map the module `top`, already read.

        The step that maps memories reads large files, so it is left out where there are none.
        """
        if has_memory:
            steps = [f"{self.synth} -run {self.start}:check"]
        else:
            steps = [
                f"{self.synth} -run {self.start}:{self.before_memory}",
                f"{self.synth} -run {self.after_memory}:check",
            ]
        early = ["proc -latches error"] if self.name == "ice40" else []
        return [self.read_cells, f"hierarchy -check -top {top}", *early, *steps]

    def count(self, kind: str, n: int) -> dict[str, float]:
        """Return what `n` primitives of a kind take, by field of `hdl.synth.Cost`."""
        counts: dict[str, float] = {}
        if kind in self.lut:
            counts["lut"] = n * self.lut[kind]
        if kind in self.lut_memory:
            counts["lut_memory"] = n * self.lut[kind]
        if re.fullmatch(self.ff, kind):
            counts["ff"] = n
        if kind in self.dsp:
            counts["dsp"] = n
        if kind in self.bram:
            counts["bram36"] = n * self.bram[kind]
        if kind in self.carry:
            counts["carry"] = n
        if not counts and kind not in self.free:
            raise yosys.YosysError(f"primitive {kind} of {self.name} is not counted as anything")
        return counts

    def prepare(self, folder: Path) -> None:
        """Write into `folder` what the script reads besides the module.

        On xc7 that is Yosys's own definitions for mapping block RAM without its parameters for
        initial contents: they take ten seconds to expand, and no memory here has contents.
        """
        if self.name == "xc7":
            text = (yosys.share() / "xilinx/brams_defs.vh").read_text(encoding="utf-8")
            entry = r"^\s*\.INITP?_[0-9A-F]{2}\(slice_initp?\('h[0-9a-f]+\)\),(?: \\)?\n"
            text = re.sub(entry, "", text, flags=re.M)
            text = re.sub(r"^(`define PARAMS_INITP?_\d+) \\$", r"\1", text, flags=re.M)
            (folder / "brams_defs.vh").write_text(text, encoding="utf-8")

    def own_files(self) -> list[str]:
        """Return trilat's own models of the family: timing, simulation."""
        return [_own(f"timing_{self.name}.v"), _own(f"models_{self.name}.v")]

    def library(self) -> str:
        """Return Yosys's cell library of the family, macros first."""
        text = "".join((yosys.share() / file).read_text(encoding="utf-8") for file in self.cells)
        text = re.sub(r"^`include.*$", "", text, flags=re.M)
        return self.defines + text

    def timing_models(self, cells: set[str]) -> str:
        """Return Verilog of black boxes with the timing arcs of `cells`."""
        # ECP5 is timed from one data base alone; Yosys's arcs are of another speed.
        library = "" if self.name == "ecp5" else self.library()
        return cell_library(cells, _own(f"timing_{self.name}.v"), library)

    def simulation_models(self, cells: set[str]) -> str:
        """Return Verilog models of `cells` and what they are made of."""
        own = _own(f"models_{self.name}.v")
        library = self.library()
        head = re.split(r"^(?:\(\*.*\*\)\s*)?module\b", library, maxsplit=1, flags=re.M)[0]
        parts = [head]
        seen = set(re.findall(r"^module\s+(\w+)", own, flags=re.M))
        waiting = sorted((cells | {"LUT2", "LUT4"}) - seen)
        for cell in waiting:
            found = re.search(
                rf"^module\s+{re.escape(cell)}\s*[(#;].*?^endmodule", library, flags=re.M | re.S
            )
            if found:
                parts.append(found[0])
        return "\n".join([*parts, own])


def _own(name: str) -> str:
    file = resources.files("hdl") / name
    return file.read_text(encoding="utf-8") if file.is_file() else ""


XC7 = Family(
    name="xc7",
    device="Xilinx 7-series; delays of artix7 from prjxray-db as in Yosys, capacities of xc7z020",
    synth="synth_xilinx -family xc7 -noiopad -noclkbuf",
    start="prepare",
    before_memory="map_memory",
    after_memory="map_ffram",
    read_cells="read_verilog -lib -specify +/xilinx/cells_sim.v",
    cells=("xilinx/cells_sim.v",),
    lut={
        **{f"LUT{n}": 1 for n in range(1, 7)},
        "INV": 1,
        "SRL16E": 1,
        "SRLC32E": 1,
        "RAM32X1S": 1,
        "RAM64X1S": 1,
        "RAM128X1S": 2,
        "RAM256X1S": 4,
        "RAM32X1D": 2,
        "RAM64X1D": 2,
        "RAM128X1D": 4,
        "RAM32M": 4,
        "RAM64M": 4,
    },
    ff=r"FD[RSCP]E",
    dsp=("DSP48E1",),
    bram={"RAMB18E1": 0.5, "RAMB36E1": 1.0},
    bram_unit="BRAM36",
    carry=("CARRY4",),
    lut_memory=(
        *("SRL16E", "SRLC32E", "RAM32X1S", "RAM64X1S", "RAM128X1S", "RAM256X1S", "RAM32X1D"),
        *("RAM64X1D", "RAM128X1D", "RAM32M", "RAM64M"),
    ),
    free=("MUXF7", "MUXF8", "VCC", "GND"),
    lut_per_dsp=242,
    lut_per_bram=380,
    launch=303,
    capture=1,
)

ECP5 = Family(
    name="ecp5",
    device="Lattice ECP5; delays of speed grade 6 from prjtrellis-db, capacities of LFE5U-85",
    synth="synth_lattice -family ecp5 -noflatten",
    start="coarse",
    before_memory="map_ram",
    after_memory="map_ffram",
    read_cells="read_verilog -lib -specify +/lattice/cells_sim_ecp5.v +/lattice/cells_bb_ecp5.v",
    cells=("ecp5/common_sim.vh", "ecp5/ccu2c_sim.vh"),
    lut={"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6},
    ff=r"TRELLIS_FF",
    dsp=("MULT18X18D",),
    bram={"DP16KD": 1.0},
    bram_unit="DP16KD",
    carry=("CCU2C",),
    lut_memory=("TRELLIS_DPR16X4",),
    free=("PFUMX", "L6MUX21", "VLO", "VHI"),
    # 83,640 LUT4, 156 multipliers, 208 memory blocks.
    lut_per_dsp=536,
    lut_per_bram=402,
    launch=525,
    capture=1,
)

ICE40 = Family(
    name="ice40",
    device="Lattice iCE40 UltraPlus, products in LUTs; delays and capacities of UP5K from icestorm",
    # Without -dsp: Yosys 0.70 ties a PE's registered product to 0 when it infers SB_MAC16.
    synth="synth_ice40 -device u -noflatten",
    start="flatten",
    before_memory="map_ram",
    after_memory="map_ffram",
    read_cells="read_verilog -D ICE40_U -lib -specify +/ice40/cells_sim.v",
    cells=("ice40/cells_sim.v",),
    defines="`define ICE40_U\n",
    lut={"SB_LUT4": 1},
    ff=r"SB_DFF\w*",
    dsp=(),
    bram={"SB_RAM40_4K": 1.0},
    bram_unit="SB_RAM40_4K",
    carry=("SB_CARRY",),
    lut_memory=(),
    free=(),
    # 5,280 LUT4, 8 multipliers, 30 memory blocks.
    lut_per_dsp=660,
    lut_per_bram=176,
    launch=1391,
    capture=1,
)

FAMILIES = {family.name: family for family in (XC7, ECP5, ICE40)}
