# SPDX-License-Identifier: Apache-2.0
"""Holds `faultinj.tile_faults.predict` against the RTL, fault by fault and bit by bit.

Also a command: ``python -m sim.agree --help``. Faults are drawn over configurations, register
classes, kinds and multiplicities, and each runs in the simulated Verilog; every output word and
both violation counters must be the predicted ones. Faults in control bits, of which nothing is
predicted, are counted by what came of them. A disagreement prints the fault and leaves the
waveform of the cycles around it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hdl.config import AcceleratorConfig
from sim import CACHE
from sim.agreement import Agreement, agree
from trilat.errors import InputError, run_command
from trilat.files import write_json
from trilat.progress import NoProgress, Progress, TerminalProgress

# Both dataflows, all shapes, widths 2, 4, 8 and mixed, every protection, multiplier, place of the
# limits and requantization.
CONFIGURATIONS = {
    "ws 1x1 a8w8": AcceleratorConfig(rows=1, cols=1, max_k=12, psum_depth=9),
    "ws 1x8 a4w2 clip, packed": AcceleratorConfig(
        rows=1, cols=8, act_bits=4, weight_bits=2, max_k=12, psum_depth=6, protect="clip",
        mult="dsp", dsp_pack=4,
    ),
    "ws 5x3 a2w8 zero": AcceleratorConfig(
        rows=5, cols=3, act_bits=2, max_k=33, psum_depth=16, protect="zero"
    ),
    "ws 5x3 a8w4, lut": AcceleratorConfig(
        rows=5, cols=3, weight_bits=4, max_k=64, psum_depth=24, mult="lut"
    ),
    "ws 8x8 a4w4 clip output": AcceleratorConfig(
        rows=8, cols=8, act_bits=4, weight_bits=4, max_k=64, psum_depth=32, protect="clip",
        protect_place="output",
    ),
    "ws 8x8 a8w8": AcceleratorConfig(rows=8, cols=8, max_k=64, psum_depth=32),
    "ws 16x16 a8w8": AcceleratorConfig(psum_depth=64),
    "ws 16x16 a2w2 zero": AcceleratorConfig(
        act_bits=2, weight_bits=2, psum_depth=64, protect="zero"
    ),
    "ws 5x3 a8w8 clip, mult": AcceleratorConfig(
        rows=5, cols=3, max_k=64, psum_depth=16, protect="clip", requant="mult"
    ),
    "ws 4x6 a4w8 zero, mult, layer": AcceleratorConfig(
        rows=4, cols=6, act_bits=4, max_k=64, psum_depth=16, protect="zero", requant="mult",
        bounds="layer",
    ),
    "os 1x1 a2w2": AcceleratorConfig(
        dataflow="os", rows=1, cols=1, act_bits=2, weight_bits=2, max_k=20
    ),
    "os 1x8 a8w8 zero": AcceleratorConfig(
        dataflow="os", rows=1, cols=8, max_k=30, protect="zero"
    ),
    "os 5x3 a4w8 clip, lut": AcceleratorConfig(
        dataflow="os", rows=5, cols=3, act_bits=4, max_k=70, protect="clip", mult="lut"
    ),
    "os 8x8 a8w2": AcceleratorConfig(
        dataflow="os", rows=8, cols=8, weight_bits=2, max_k=70
    ),
    "os 4x5 a8w4 clip, layer": AcceleratorConfig(
        dataflow="os", rows=4, cols=5, weight_bits=4, max_k=70, protect="clip", bounds="layer"
    ),
    "os 3x8 a3w3 zero, packed": AcceleratorConfig(
        dataflow="os", rows=3, cols=8, act_bits=3, weight_bits=3, max_k=40, protect="zero",
        mult="dsp", dsp_pack=4,
    ),
    "os 16x16 a8w8": AcceleratorConfig(dataflow="os"),
    "os 16x16 a4w4 clip input": AcceleratorConfig(
        dataflow="os", act_bits=4, weight_bits=4, protect="clip", protect_place="input"
    ),
}  # fmt: skip


def agree_all(
    configurations: dict[str, AcceleratorConfig],
    faults: int,
    *,
    seed: int,
    cache: Path,
    control: int = 0,
    cocotb: int = 0,
    waves: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Agreement]:
    """Return the agreement of every configuration; `faults` and the others are shared evenly.

    Args:
        configurations: by name.
        faults, control: in all.
        seed: of tiles and faults.
        cache: folder of finished simulators.
        cocotb: of each configuration, see `agree`.
        waves: see `agree`.
        progress: where to report.
    """
    results = {}
    share, rest = (-(-n // len(configurations)) for n in (faults, control))
    with (progress or NoProgress()).task("faults in RTL", len(configurations)) as advance:
        for number, (name, config) in enumerate(configurations.items()):
            rng = np.random.default_rng([seed, number])
            results[name] = agree(
                config, share, rng, cache=cache, control=rest, cocotb=cocotb, waves=waves
            )
            advance(1)
    return results


def table(results: dict[str, Agreement]) -> str:
    """Return the counts by configuration, by class and kind, and those of control bits."""
    total = Agreement()
    for result in results.values():
        total.add(result)

    def line(name: str, one: Agreement, keys: Iterable[tuple[str, str]]) -> str:
        keys = list(keys)
        run, agreeing, corrupting = (
            sum(counts[key] for key in keys) for counts in (one.run, one.agreeing, one.corrupting)
        )
        return f"{name:<28}{run:>8}{agreeing:>10}{corrupting:>12}"

    lines = [f"{'configuration':<28}{'faults':>8}{'predicted':>10}{'corrupting':>12}"]
    lines += [line(name, one, one.run) for name, one in results.items()]
    lines += ["", f"{'register, kind':<28}{'faults':>8}{'predicted':>10}{'corrupting':>12}"]
    lines += [line(" ".join(key), total, [key]) for key in sorted(total.run)]
    lines += ["", line("all", total, total.run)]
    if total.cocotb:
        lines.append(f"equal under cocotb: {total.cocotb_equal} of {total.cocotb}")
    if total.control:
        outcomes = ("masked", "sdc", "hang", "framing")
        lines += ["", f"{'control bit':<28}" + "".join(f"{name:>10}" for name in outcomes)]
        for register in sorted({register for register, _ in total.control}):
            counts = "".join(f"{total.control[register, name]:>10}" for name in outcomes)
            lines.append(f"{register:<28}{counts}")
    return "\n".join(lines)


def main_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m sim.agree", description=__doc__)
    parser.add_argument("--faults", type=int, default=5600, help="over all configurations")
    parser.add_argument("--control", type=int, default=560, help="faults in control bits")
    parser.add_argument(
        "--cocotb", type=int, default=0, metavar="N",
        help="run N faults of each configuration under cocotb too (a build of 1 to 2 minutes each)",
    )  # fmt: skip
    parser.add_argument(
        "--only", metavar="TEXT", help="configurations with this in their name, e.g. '5x3'"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--waves", type=Path, default=Path("waves"), help="folder of waveforms")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of finished simulators")
    parser.add_argument("--json", type=Path, help="also write the counts here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if everything agreed, 1 if not, 2 for bad input."""
    args = main_parser().parse_args(argv)
    return run_command("python -m sim.agree", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    for name, least in (("faults", 1), ("control", 0), ("cocotb", 0), ("seed", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    chosen = {n: c for n, c in CONFIGURATIONS.items() if args.only is None or args.only in n}
    if not chosen:
        raise InputError(
            f"--only {args.only!r} is in no name of a configuration: {', '.join(CONFIGURATIONS)}"
        )
    results = agree_all(
        chosen,
        args.faults,
        seed=args.seed,
        cache=args.cache,
        control=args.control,
        cocotb=args.cocotb,
        waves=args.waves,
        progress=TerminalProgress(),
    )
    print(table(results))
    for result in results.values():
        for entry in result.disagreements:
            print(f"DISAGREEMENT {json.dumps(entry)}")
    if args.json is not None:
        write_json(args.json, {name: result.to_json() for name, result in results.items()})
    return 0 if all(result.agrees for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
