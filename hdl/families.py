# SPDX-License-Identifier: Apache-2.0
"""The FPGA families: how Yosys maps to each, and what its primitives count as."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from hdl import ecp5, yosys
from hdl.timing import cell_library


@dataclass(frozen=True, kw_only=True)
class Family:
    """One FPGA family.

    Attributes:
        name: as on the command line.
        device: the part whose speed and capacities the figures refer to.
        synth: Yosys command, run from label `start`, in pieces around the mapping of memories, up
            to label `end`.
        finish: commands behind it.
        early: commands before it.
        read_cells: Yosys command that reads the cell library.
        cells: files of that library under Yosys's share folder.
        extra_cells: file of more of them, of which only `extra` are read, as black boxes.
        own_timing: whether timing comes from trilat's own file alone, not from Yosys's library.
        models: trilat's simulation models, files in this folder.
        defines: macros of that library.
        lut: primitive -> LUTs it takes; memories in LUTs among them (`lut_memory`).
        ff, dsp, carry: primitives of each kind.
        bram: primitive -> blocks of `bram_unit`.
        lut_memory: primitives of `lut` that are memories or shift registers.
        free: primitives that take no resource.
        target: ps including wires, the delay for which ABC maps modules; 0 for none. Alone, a
            module without a long path would be mapped for a speed that the whole cannot use: flat
            synthesis trades it for area. So this is a little less than the longest path of any
            whole, and what is slower is mapped for speed; where PEs are slower, the other modules
            are mapped for their delay behind a shift register (`with_path`). Of 2.6 to 3.0 ns,
            tried on designs of `bench.synthesis`, none brings all of them to what flat synthesis
            makes of them.
        in_primitives: gives a module, by name and text, in primitives of the family where Yosys
            would not make the best of them; or None.
        shift_registers: whether registers in a row become shift registers, and longer ones.
        lut_per_dsp, lut_per_bram: capacity ratios of `device`.
        launch, capture: ps, clock to q and set-up of the flip-flop.
    """

    name: str
    device: str
    synth: str
    before_memory: str
    after_memory: str
    start: str
    end: str = "check"
    early: tuple[str, ...] = ()
    finish: tuple[str, ...] = ()
    read_cells: str
    cells: tuple[str, ...]
    extra_cells: str = ""
    extra: tuple[str, ...] = ()
    own_timing: bool = False
    models: tuple[str, ...] = ()
    defines: str = ""
    lut: dict[str, int]
    ff: str
    dsp: tuple[str, ...]
    bram: dict[str, float]
    bram_unit: str
    carry: tuple[str, ...]
    lut_memory: tuple[str, ...]
    free: tuple[str, ...]
    target: int = 0
    in_primitives: Callable[[str, str], str] | None = None
    shift_registers: bool = False
    lut_per_dsp: int
    lut_per_bram: int
    launch: int
    capture: int

    def without_dsp(self) -> Family:
        """Return the family without inference of multiplier blocks."""
        return replace(self, synth=self.synth + (" -nodsp" if self.dsp else ""))

    def adapted(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Return the texts of modules by name, with the family's primitives where that is better.

        Products in them are those that are meant for multiplier blocks, with `without_dsp` or not.
        """
        if self.in_primitives is None:
            return dict(texts)
        return {name: self.in_primitives(name, text) for name, text in texts.items()}

    def with_path(self, delay: int) -> Family:
        """Return the family with the target that a whole with a path of `delay` ps allows.

        In steps of 500 ps, lest each size of an array had a target of its own.
        """
        if not self.target:
            return self
        return replace(self, target=max(self.target, 500 * round(delay / 500)))

    def script(self, top: str, has_memory: bool) -> list[str]:
        """Return the Yosys commands that map the module `top`, already read.

        The step that maps memories reads large files, so it is left out where there are none.
        """
        if has_memory:
            steps = [f"{self.synth} -run {self.start}:{self.end}"]
        else:
            steps = [
                f"{self.synth} -run {self.start}:{self.before_memory}",
                f"{self.synth} -run {self.after_memory}:{self.end}",
            ]
        target = [f"scratchpad -set abc9.D {self.target}"] if self.target else []
        return [*self._begin(top), *target, *steps, *self.finish]

    def flat_script(self, top: str) -> list[str]:
        """Return the Yosys commands that map `top` and all below it, already read, as one module.

        The usual way to use Yosys: its time grows with the number of PEs.
        """
        if "-noflatten" in self.synth:
            flat = self.synth.replace(" -noflatten", "")
        else:
            flat = f"{self.synth} -flatten"
        return [*self._begin(top), f"{flat} -run {self.start}:{self.end}", *self.finish]

    def _begin(self, top: str) -> list[str]:
        read = [self.read_cells, *(["read_verilog -lib extra_cells.v"] if self.extra else [])]
        return [*read, f"hierarchy -check -top {top}", *self.early]

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

    def shift_register(self, stages: int) -> dict[str, int]:
        """Return the primitives of a chain of registers without taps, as Yosys maps it on Xilinx.

        Up to 16 stages take a LUT, up to 32 two of a slice's halves; one stage too many stays a
        register, and so do chains of one or two.
        """
        if not self.shift_registers or stages < 3:
            return {"FDRE": stages}
        if stages == 17 or stages % 32 == 1:
            shorter = self.shift_register(stages - 1)
            return {**shorter, "FDRE": 1 + shorter.get("FDRE", 0)}
        whole, rest = divmod(stages, 32)
        cells = {"SRLC32E": whole} if whole else {}
        if rest > 17:
            return {"SRLC32E": whole + 1}
        if rest == 17:
            return {**cells, "SRL16E": 1, "FDRE": 1}
        return {**cells, "SRL16E": 1} if rest else cells

    def prepare(self, folder: Path) -> None:
        """Write into `folder` what the script reads besides the module.

        On Xilinx that is Yosys's own definitions for mapping block RAM without its parameters for
        initial contents: they take ten seconds to expand, and no memory here has contents.
        """
        if self.extra:
            text = (yosys.share() / self.extra_cells).read_text(encoding="utf-8")
            kept = [_module(name, text) for name in self.extra]
            (folder / "extra_cells.v").write_text("\n".join(kept), encoding="utf-8")
        if self.name in ("xc7", "xcup"):
            text = (yosys.share() / "xilinx/brams_defs.vh").read_text(encoding="utf-8")
            entry = r"^\s*\.INITP?_[0-9A-F]{2}\(slice_initp?\('h[0-9a-f]+\)\),(?: \\)?\n"
            text = re.sub(entry, "", text, flags=re.M)
            text = re.sub(r"^(`define PARAMS_INITP?_\d+) \\$", r"\1", text, flags=re.M)
            (folder / "brams_defs.vh").write_text(text, encoding="utf-8")

    def own_files(self) -> list[str]:
        """Return trilat's own models of the family: timing, simulation."""
        return [_own(f"timing_{self.name}.v"), *map(_own, self.models)]

    def library(self) -> str:
        """Return Yosys's cell library of the family, macros first."""
        text = "".join((yosys.share() / file).read_text(encoding="utf-8") for file in self.cells)
        text = re.sub(r"^`include.*$", "", text, flags=re.M)
        return self.defines + text

    def timing_models(self, cells: set[str]) -> str:
        """Return Verilog of black boxes with the timing arcs of `cells`."""
        library = "" if self.own_timing else self.library()
        return cell_library(cells, _own(f"timing_{self.name}.v"), library)

    def simulation_models(self, cells: set[str], *, collisions: bool = True) -> str:
        """Return Verilog models of `cells` and what they are made of.

        With `collisions` a block RAM gives no true word that is read as it is written, where the
        vendor does not promise one; without, it gives the old one, as the RTL does.
        """
        own = "\n".join(map(_own, self.models))
        library = self.library()
        head = re.split(r"^(?:\(\*.*\*\)\s*)?module\b", library, maxsplit=1, flags=re.M)[0]
        parts = [head, f"`define TRUE_WORD_LOST {int(collisions)}"]
        seen = set(re.findall(r"^module\s+(\w+)", own, flags=re.M))
        # What models of Yosys are made of.
        waiting = sorted((cells | {"LUT2", "LUT4", "MUX2"}) - seen)
        for cell in waiting:
            found = _module(cell, library)
            if found:
                parts.append(found)
        return "\n".join([*parts, own])


def _module(name: str, library: str) -> str:
    """Return the text of a module of a Verilog library; nothing if it is not there."""
    pattern = rf"^module\s+{re.escape(name)}\s*[(#;].*?^endmodule"
    found = re.search(pattern, library, flags=re.M | re.S)
    return found[0] if found else ""


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
    models=("models_xc7.v", "models_xilinx_ram.v"),
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
    target=2800,
    shift_registers=True,
    lut_per_dsp=242,
    lut_per_bram=380,
    launch=303,
    capture=1,
)

ECP5 = Family(
    name="ecp5",
    device="Lattice ECP5; delays of speed grade 6 from prjtrellis-db, capacities of LFE5U-85",
    # Pairs of tables with a multiplexer behind them save no delay here, and take a tenth more.
    synth="synth_lattice -family ecp5 -nowidelut -noflatten",
    start="coarse",
    before_memory="map_ram",
    after_memory="map_ffram",
    read_cells="read_verilog -lib -specify +/lattice/cells_sim_ecp5.v +/lattice/cells_bb_ecp5.v",
    cells=("ecp5/common_sim.vh", "ecp5/ccu2c_sim.vh"),
    # Yosys's arcs are of another speed grade.
    own_timing=True,
    models=("models_ecp5.v",),
    lut={"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6},
    ff=r"TRELLIS_FF",
    dsp=("MULT18X18D",),
    in_primitives=ecp5.in_primitives,
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
    early=("proc -latches error",),
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

XCUP = Family(
    name="xcup",
    device="Xilinx UltraScale+; delays of RapidWright's model, capacities of xczu3eg",
    synth="synth_xilinx -family xcup -noiopad -noclkbuf",
    start="prepare",
    before_memory="map_memory",
    after_memory="map_ffram",
    read_cells="read_verilog -lib -specify +/xilinx/cells_sim.v",
    cells=("xilinx/cells_sim.v",),
    extra_cells="xilinx/cells_xtra.v",
    extra=("DSP48E2", "RAMB18E2", "RAMB36E2", "URAM288"),
    own_timing=True,
    models=("models_xcup.v", "models_xilinx_ram.v"),
    lut={
        **{f"LUT{n}": 1 for n in range(1, 7)},
        "INV": 1,
        "SRL16E": 1,
        "SRLC32E": 1,
        "RAM32M16": 8,
        "RAM64M8": 8,
    },
    ff=r"FD[RSCP]E",
    dsp=("DSP48E2",),
    bram={"RAMB18E2": 0.5, "RAMB36E2": 1.0},
    bram_unit="BRAM36",
    carry=("CARRY4",),
    lut_memory=("SRL16E", "SRLC32E", "RAM32M16", "RAM64M8"),
    free=("MUXF7", "MUXF8", "VCC", "GND"),
    shift_registers=True,
    # 70,560 LUTs, 360 DSPs, 216 block RAMs.
    lut_per_dsp=196,
    lut_per_bram=327,
    launch=77,
    capture=1,
)

GOWIN = Family(
    name="gowin",
    device="Gowin GW2A, products in LUTs; delays of GW2A-18 C8/I7 from Apicula, its capacities",
    # Without multipliers: no delay of theirs is published. Without multiplexers behind pairs of
    # tables, which save no delay and become tables of constants in a module that is mapped alone.
    synth="synth_gowin -family gw2a -noiopads -nodsp -nowidelut -noflatten",
    start="coarse",
    before_memory="map_ram",
    after_memory="map_ffram",
    # The last step without its cells for constants.
    end="map_cells",
    finish=("techmap -map +/gowin/cells_map.v", "opt_lut_ins -tech gowin", "clean"),
    read_cells="read_verilog -lib -specify +/gowin/cells_sim.v",
    cells=("gowin/cells_sim.v",),
    extra_cells="gowin/cells_xtra_gw2a.v",
    extra=("SDPB", "SDPX9B", "DPB", "DPX9B"),
    own_timing=True,
    models=("models_gowin.v",),
    # A bit of carry logic takes the LUT of its place; a distributed RAM four LUTs and two for its
    # write port.
    lut={
        **{f"LUT{n}": 1 for n in range(1, 5)},
        "ALU": 1,
        "RAM16SDP1": 6,
        "RAM16SDP2": 6,
        "RAM16SDP4": 6,
    },
    ff=r"DFF\w*",
    dsp=(),
    bram={"SDPB": 1.0, "SDPX9B": 1.0, "DPB": 1.0, "DPX9B": 1.0},
    bram_unit="BSRAM",
    carry=("ALU",),
    lut_memory=("RAM16SDP1", "RAM16SDP2", "RAM16SDP4"),
    free=("MUX2_LUT5", "MUX2_LUT6", "MUX2_LUT7", "MUX2_LUT8"),
    # 20,736 LUT4, 48 multipliers, 46 memory blocks.
    lut_per_dsp=432,
    lut_per_bram=450,
    launch=232,
    capture=35,
)

FAMILIES = {family.name: family for family in (XC7, XCUP, ECP5, ICE40, GOWIN)}
