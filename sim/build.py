# SPDX-License-Identifier: Apache-2.0
"""Simulators of emitted Verilog, built once and kept under the hash of all they depend on.

There are two: the one that everything uses, a C++ program that moves the streams and writes the
faults itself (`build_injector`), and the one that it is held against, under cocotb (`build`).
Verilator is called directly and not by cocotb's runner, which makes every signal of the design
accessible: on a 16x16 array that triples the build time and halves the speed of the simulation.
Here only the registers that faults are written to are accessible, and the harness's ports.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import cocotb_tools.config

from hdl.config import AcceleratorConfig
from hdl.gen import generate
from hdl.registers import CORE, LIMIT_CLASSES, PARAMETER_CLASSES
from trilat import verilator
from trilat.files import content_hash, write_text

HARNESS = Path(__file__).with_name("harness.v")
INJECTOR = Path(__file__).with_name("injector.cpp")
# Ports of the harness that the testbench reads or writes.
_HARNESS_PORTS = (
    "aclk", "aresetn", "alarm_tile", "alarm_cycle", "alarm_early", "attention", "finished", "hung",
    "tiles_out", "handshakes",
)  # fmt: skip
# Where the registers of hdl.registers are: (module, variable); `_?` where a PE serves several
# columns.
_REGISTERS = (
    *(("trilat_pe_*", name) for name in ("act", "swap", "valid", "first")),
    *(
        ("trilat_pe_*", name + number)
        for name in ("psum", "weight_loading", "weight_active", "weight")
        for number in ("", "_?")
    ),
    *(("trilat_multiplier", name) for name in ("product", "product_?")),
    ("trilat_accumulator", "acc"),
    *(("trilat_activation_skew", name) for name in ("row_*", "act")),
    *(("trilat_weight_skew", name) for name in ("col_*", "weight")),
    ("trilat_deskew", "col_*"),
    *(("trilat_lane", name) for name in ("psums", "ring", *PARAMETER_CLASSES)),
    *(("trilat_drain", name) for name in ("valid_line", "first_line", "last_line")),
    *(("trilat_drain", name) for name in LIMIT_CLASSES),
    *(("trilat_front", name) for name in ("beat_last", *(f"next_{n}" for n in LIMIT_CLASSES))),
)


def stream_bytes(elements: int, bits: int) -> int:
    """Return the bytes of a stream's tdata with `elements` elements of `bits` bits."""
    return -(-elements * bits // 8)


@cache
def build_simulator(config: AcceleratorConfig, folder: Path, *, jobs: int = 1) -> Path:
    """Return the cocotb simulator of a configuration's Verilog, as `build` makes it.

    Args:
        config: the accelerator.
        folder: cache of finished simulators.
        jobs: parallel compiler processes.
    """
    return build(config, generate(config), folder, registers=_REGISTERS, jobs=jobs)


@cache
def build_injector(
    config: AcceleratorConfig, folder: Path, *, trace: bool = False, jobs: int = 1
) -> Path:
    """Return the program of injector.cpp with a configuration's core, for `sim.inject`.

    Args:
        config: the accelerator.
        folder: cache of finished simulators.
        trace: it can write waveforms.
        jobs: parallel compiler processes.

    Raises:
        InputError: perl, make or g++ is missing.
        trilat.verilator.VerilatorError: the Verilog or its C++ does not compile.
    """
    verilog, control = generate(config), _visible(_REGISTERS)
    checks = [f"-D{name}" for name in _checks(config)]
    arguments = (
        # In one object of plain data, whose bytes are the state of the simulation.
        "--flatten", "--no-timing", "-O3", "--x-assign", "fast",
        *(["--trace-vcd"] if trace else []),
        *(["-CFLAGS", " ".join(checks)] if checks else []),
    )  # fmt: skip
    key = content_hash([verilog, control, arguments, INJECTOR.read_text(), verilator.version()])
    executable = folder / f"injector-{key}"

    def compile_it(source: Path, control_file: Path) -> None:
        verilator.build(
            [control_file, source, INJECTOR],
            executable,
            top=CORE,
            arguments=arguments,
            jobs=jobs,
            runtime_cache=folder,
        )

    return _once(executable, verilog, control, compile_it)


def _once(
    executable: Path, verilog: str, control: str, compile_it: Callable[[Path, Path], None]
) -> Path:
    """Return an executable, compiled first where it is not there.

    Args:
        executable: named after all that it depends on.
        verilog, control: what `compile_it` finds in the two files that it is given.
        compile_it: makes the executable.
    """
    if os.access(executable, os.X_OK):
        return executable
    executable.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="trilat-sim-") as name:
        source, control_file = Path(name) / "accelerator.v", Path(name) / "accessible.vlt"
        write_text(source, verilog)
        write_text(control_file, control)
        compile_it(source, control_file)
    return executable


def _checks(config: AcceleratorConfig) -> list[str]:
    """Return the macros that say which ports of the protection unit there are."""
    return [
        name
        for name, there in (
            ("CHECKS", config.protect != "none"),
            ("CHECKS_INPUT", config.checks_input),
            ("CHECKS_OUTPUT", config.checks_output),
        )
        if there
    ]


def _visible(variables: Sequence[tuple[str, str]]) -> str:
    """Return the `.vlt` text that makes (module, variable) names accessible."""
    return "`verilator_config\n" + "".join(
        f'public_flat_rw -module "{module}" -var "{variable}"\n' for module, variable in variables
    )


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
    control = _visible([("harness", port) for port in _HARNESS_PORTS] + list(registers))
    arguments = (
        "--vpi", "--no-timing", "-O3", "--x-assign", "fast", f"+define+DUT={top}",
        *(f"+define+{name}" for name in _checks(config)),
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
    main = Path(cocotb_tools.config.share_dir) / "lib" / "verilator" / "verilator.cpp"

    def compile_it(source: Path, control_file: Path) -> None:
        verilator.build(
            [control_file, HARNESS, source, main],
            executable,
            top="harness",
            arguments=arguments,
            libraries=Path(cocotb_tools.config.libs_dir),
            jobs=jobs,
            runtime_cache=folder,
        )

    return _once(executable, verilog, control, compile_it)
