# SPDX-License-Identifier: Apache-2.0
"""Simulators of emitted Verilog, built once and kept under the hash of all they depend on.

Verilator is called directly and not by cocotb's runner, which makes every signal of the design
accessible: on a 16x16 array that triples the build time and halves the speed of the simulation.
Here only the harness's ports and the registers that faults are written to are accessible.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cocotb_tools.config

from hdl.config import AcceleratorConfig
from hdl.gen import generate
from hdl.registers import CORE
from trilat import verilator
from trilat.files import content_hash, write_text

HARNESS = Path(__file__).with_name("harness.v")
# Ports of the harness that the testbench reads or writes.
_HARNESS_PORTS = (
    "aclk", "aresetn", "alarm_tile", "alarm_cycle", "attention", "finished", "hung", "tiles_out",
    "handshakes",
)  # fmt: skip
# Where the register classes of hdl.registers are: (module, variable); `_?` where a PE serves
# several columns.
_VARIABLES = {
    "pe_activation": (("trilat_pe_*", "act"),),
    "pe_weight": (("trilat_pe_*", "weight"),),
    "product": (
        ("trilat_multiplier", "product"),
        ("trilat_pe_*", "product"),
        ("trilat_pe_*", "product_?"),
    ),
    "accumulator": (("trilat_pe_*", "acc"),),
    "psum": (("trilat_pe_*", "psum"), ("trilat_pe_*", "psum_?")),
    "weight_active": (("trilat_pe_*", "weight_active"), ("trilat_pe_*", "weight_active_?")),
    "skew": (("trilat_activation_skew", "row_*"), ("trilat_activation_skew", "act")),
    "weight_skew": (("trilat_weight_skew", "col_*"), ("trilat_weight_skew", "weight")),
    "deskew": (("trilat_deskew", "col_*"),),
}


def stream_bytes(elements: int, bits: int) -> int:
    """Return the bytes of a stream's tdata with `elements` elements of `bits` bits."""
    return -(-elements * bits // 8)


@cache
def build_simulator(
    config: AcceleratorConfig, folder: Path, *, all_registers: bool = False, jobs: int = 1
) -> Path:
    """Return the simulator of a configuration's Verilog.

    Args:
        config: the accelerator.
        folder: cache of finished simulators.
        all_registers: faults can be written to every register class, not to PE activation
            registers alone. That doubles the build time of a 16x16 array.
        jobs: parallel compiler processes.
    """
    classes = _VARIABLES if all_registers else {"pe_activation"}
    registers = [
        place for name, places in _VARIABLES.items() if name in classes for place in places
    ]
    return build(config, generate(config), folder, registers=registers, jobs=jobs)


def build(
    config: AcceleratorConfig,
    verilog: str,
    folder: Path,
    *,
    registers: Sequence[tuple[str, str]] = (),
    top: str = CORE,
    jobs: int = 1,
) -> Path:
    """Return the simulator of `verilog` in its harness, from `folder` if it is there.

    Concurrent builds of the same simulator are safe: each works in a folder of its own and the
    last one to finish replaces the file.

    Args:
        config: what the Verilog was generated from.
        verilog: text of all modules.
        folder: cache of finished simulators.
        registers: (module, variable) names, `*` allowed, that faults can be written to.
        top: module that the harness instantiates: the core, whose registers `hdl.registers` names.
        jobs: parallel compiler processes.

    Raises:
        InputError: perl, make or g++ is missing.
        trilat.verilator.VerilatorError: the Verilog or its C++ does not compile.
    """
    accessible = [("harness", port) for port in _HARNESS_PORTS] + list(registers)
    control = "`verilator_config\n" + "".join(
        f'public_flat_rw -module "{module}" -var "{variable}"\n' for module, variable in accessible
    )
    arguments = (
        "--vpi", "--no-timing", "-O3", "--x-assign", "fast", f"+define+DUT={top}",
        *(["+define+CHECKS"] if config.protect != "none" else []),
        *(["+define+CHECKS_INPUT"] if config.checks_input else []),
        *(["+define+CHECKS_OUTPUT"] if config.checks_output else []),
        f"-GWEIGHT_BYTES={stream_bytes(config.cols, config.weight_bits)}",
        f"-GACT_BYTES={stream_bytes(config.rows, config.act_bits)}",
        f"-GOUT_BYTES={stream_bytes(config.cols, config.act_bits)}",
        "-LDFLAGS", "-lcocotbvpi_verilator",
    )  # fmt: skip
    key = content_hash(
        [
            verilog,
            control,
            list(arguments),
            HARNESS.read_text(),
            verilator.version(),
            importlib.metadata.version("cocotb"),
        ]
    )
    executable = folder / f"simulator-{key}"
    if os.access(executable, os.X_OK):
        return executable
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="trilat-sim-") as name:
        source, vlt = Path(name) / "accelerator.v", Path(name) / "accessible.vlt"
        write_text(source, verilog)
        write_text(vlt, control)
        main = Path(cocotb_tools.config.share_dir) / "lib" / "verilator" / "verilator.cpp"
        verilator.build(
            [vlt, HARNESS, source, main],
            executable,
            top="harness",
            arguments=arguments,
            libraries=Path(cocotb_tools.config.libs_dir),
            jobs=jobs,
            runtime_cache=folder,
        )
    return executable
