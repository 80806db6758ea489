# SPDX-License-Identifier: Apache-2.0
"""`python -m sim.run`: a network, or random tiles, through the simulated Verilog."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hdl.config import (
    ACT_SIGNS,
    BOUNDS,
    DATAFLOWS,
    PLACES,
    PROTECTIONS,
    REQUANTS,
    AcceleratorConfig,
)
from hdl.tile import TileJob
from sim import CACHE
from trilat.errors import InputError, run_command
from trilat.files import write_json

# Images of the training split that protection bounds are profiled on.
_PROFILE_IMAGES = 256


def main_parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m sim.run``."""
    parser = argparse.ArgumentParser(
        prog="python -m sim.run",
        description="Stream one image of a quantized network, or random output tiles, through the "
        "accelerator's Verilog under Verilator; compare every output word, the cycles and the "
        "violation counters with the integer engine; replay register flips and compare the "
        "corrupted outputs with their prediction. Exit code 1 where anything differs.",
    )
    parser.add_argument("--network", type=Path, help="IntegerNetwork file (safetensors)")
    parser.add_argument("--data", default="digits", help="data set of the image (default digits)")
    parser.add_argument("--image", type=int, default=0, help="index in the validation split")
    parser.add_argument(
        "--random-jobs", type=int, metavar="N", help="N random tiles instead of a network"
    )
    parser.add_argument(
        "--dataflow", choices=DATAFLOWS, default="ws", help="weight- or output-stationary array"
    )
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--cols", type=int, default=8)
    parser.add_argument("--act-bits", type=int, help="2..8; the network's, or 8 for random tiles")
    parser.add_argument(
        "--weight-bits", type=int, help="2..8; the network's, or 8 for random tiles"
    )
    parser.add_argument("--protect", choices=PROTECTIONS, default="none")
    parser.add_argument("--protect-place", choices=PLACES, default="both")
    parser.add_argument("--act-sign", choices=ACT_SIGNS, default="runtime")
    parser.add_argument("--bounds", choices=BOUNDS, default="channel", help="of the accelerator")
    parser.add_argument(
        "--requant", choices=REQUANTS, help="the network's, or shift for random tiles"
    )
    parser.add_argument(
        "--granularity", choices=("layer", "channel"), default="layer", help="of output bounds"
    )
    parser.add_argument("--faults", type=int, default=50, help="register flips to replay")
    parser.add_argument(
        "--stalls", type=float, default=0.0, help="chance 0..0.99 of a pause (random tiles only)"
    )
    parser.add_argument("--budget", type=float, default=90.0, help="seconds of simulation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of finished simulators")
    parser.add_argument("--json", type=Path, help="also write the result here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if everything agreed, 1 if not, 2 for bad input."""
    args = main_parser().parse_args(argv)
    return run_command("python -m sim.run", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    if (args.network is None) == (args.random_jobs is None):
        raise InputError("give either --network FILE or --random-jobs N")
    for name in ("faults", "seed", "image"):
        if getattr(args, name) < 0:
            raise InputError(f"--{name} must be at least 0, not {getattr(args, name)}")
    if not 0 <= args.stalls <= 0.99:
        raise InputError(f"stalls must be a chance in 0..0.99, not {args.stalls}")
    if args.budget <= 0:
        raise InputError(f"--budget must be above 0 seconds, not {args.budget}")
    result = _network(args) if args.random_jobs is None else _random(args)
    if args.json is not None:
        write_json(args.json, result)
    return 0 if result["agrees"] else 1


def _network(args: argparse.Namespace) -> dict[str, object]:
    import torch

    from faultinj.protection import Protection, profile_bounds
    from quant.data import load_data, to_input
    from quant.engine import image_codes
    from quant.network import IntegerNetwork
    from sim.verify import verify
    from trilat.progress import TerminalProgress

    if args.stalls:
        raise InputError("--stalls is for --random-jobs; a network's cycles are compared")
    network = IntegerNetwork.load(args.network)
    for name in ("act_bits", "weight_bits"):
        if getattr(args, name) not in (None, getattr(network, name)):
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} must be the network's, {getattr(network, name)}, or left out")
    longest = max(int(np.prod(node.weight.shape[1:])) for node in network.gemms())
    config = AcceleratorConfig(
        dataflow=args.dataflow,
        rows=args.rows,
        cols=args.cols,
        act_bits=network.act_bits,
        weight_bits=network.weight_bits,
        max_k=max(longest, AcceleratorConfig.max_k),
        protect=args.protect,
        protect_place=args.protect_place,
        act_sign=args.act_sign,
        bounds=args.bounds,
        requant=args.requant or ("mult" if network.multiplies else "shift"),
    )
    data = load_data(args.data, seed=args.seed)
    if args.image >= len(data.val.images):
        raise InputError(f"--image must be 0..{len(data.val.images) - 1}, not {args.image}")
    norm = network.metadata.get("normalization", {"mean": data.mean, "std": data.std})

    def codes(images: np.ndarray) -> torch.Tensor:
        floats = to_input(images, network.input_shape, tuple(norm["mean"]), tuple(norm["std"]))
        return image_codes(network, floats)

    bounds = None
    if args.protect != "none":
        bounds = profile_bounds(network, codes(data.train.images[:_PROFILE_IMAGES]))
    protection = Protection(
        kind=args.protect, place=args.protect_place, granularity=args.granularity, bounds=bounds
    )
    result = verify(
        network,
        config,
        codes(data.val.images[args.image : args.image + 1]),
        protection=protection,
        fault_count=args.faults,
        seed=args.seed,
        budget_s=args.budget,
        cache=args.cache,
        progress=TerminalProgress(),
    )
    share = "one whole image" if result.whole_image else f"{100 * result.macs_share:.1f} % of it"
    print(
        f"{network.name} W{network.weight_bits}A{network.act_bits} on {args.rows}x{args.cols}, "
        f"{share}: {result.tiles} of {result.tiles_total} output tiles in {result.layers} layers\n"
        f"output words equal to the engine's: {result.outputs_equal} of {result.outputs_compared}\n"
        f"violations counted: {result.violations}, expected {result.violations_expected}\n"
        f"cycles: {result.cycles}, by the schedule {result.cycles_predicted}\n"
        f"register flips predicted exactly: {result.faults_predicted} of "
        f"{result.faults_replayed} ({result.faults_corrupting} corrupted an output)\n"
        f"{result.seconds:.1f} s, {result.cycles_per_second:.0f} cycles/s"
    )
    _print_disagreements(result.to_json()["disagreements"])
    return result.to_json()


def _random(args: argparse.Namespace) -> dict[str, object]:
    from sim.cycles import stream_cycles
    from sim.inject import stream_jobs
    from sim.jobs import random_job
    from sim.replay import compare_jobs, flip_tiles, replay

    if args.random_jobs < 1:
        raise InputError(f"--random-jobs must be at least 1, not {args.random_jobs}")
    config = AcceleratorConfig(
        dataflow=args.dataflow,
        rows=args.rows,
        cols=args.cols,
        act_bits=8 if args.act_bits is None else args.act_bits,
        weight_bits=8 if args.weight_bits is None else args.weight_bits,
        protect=args.protect,
        protect_place=args.protect_place,
        act_sign=args.act_sign,
        bounds=args.bounds,
        requant=args.requant or "shift",
    )
    rng = np.random.default_rng(args.seed)
    jobs: list[TileJob] = [random_job(config, rng) for _ in range(args.random_jobs)]
    run = stream_jobs(config, jobs, cache=args.cache, stalls=args.stalls, seed=args.seed)
    found = compare_jobs(config, jobs, run.outputs)
    expected = run.cycles if args.stalls else stream_cycles(config, jobs)
    if run.cycles != expected:
        found.append({"kind": "cycles", "rtl": run.cycles, "expected": expected})
    replayed = replay(config, flip_tiles(config, jobs, args.faults, rng), cache=args.cache)
    found += replayed.disagreements
    result = {
        "tiles": len(jobs),
        "cycles": run.cycles,
        "cycles_per_second": round(run.cycles_per_second, 1),
        "faults_replayed": replayed.replayed,
        "faults_predicted": replayed.predicted,
        "faults_corrupting": replayed.corrupting,
        "disagreements": found,
        "agrees": not found,
    }
    different = sum(d["kind"] == "output" for d in found)
    print(
        f"{args.rows}x{args.cols}: {len(jobs) - different} of {len(jobs)} random tiles equal to "
        f"the reference, {run.cycles} cycles\n"
        f"register flips predicted exactly: {replayed.predicted} of {replayed.replayed} "
        f"({replayed.corrupting} corrupted an output)"
    )
    _print_disagreements(found)
    return result


def _print_disagreements(found: Sequence[object]) -> None:
    for entry in found[:5]:
        print(f"DISAGREEMENT {json.dumps(entry)}")


if __name__ == "__main__":
    sys.exit(main())
