# SPDX-License-Identifier: Apache-2.0
"""`python -m dse.energy`: modelled energy of one inference, and what its streams carry."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from faultinj.lowering import check_fits, gemm_shape, lower
from faultinj.protection import UNPROTECTED
from hdl.activity import WeightedJob, activity
from hdl.bandwidth import feed
from hdl.config import AcceleratorConfig
from hdl.energy import energy
from hdl.gen import config_parser
from quant import engine
from quant.data import load_data, to_input
from quant.network import IntegerNetwork
from trilat.errors import InputError, run_command
from trilat.files import write_json

# Output tiles of each layer whose toggles are counted, evenly spaced.
_TILES = 4


def measured_activity(
    network: IntegerNetwork, config: AcceleratorConfig, image: torch.Tensor, *, seed: int
) -> float:
    """Return the toggle activity of one image's inference, relative to random data.

    Args:
        network: computes on `config`; protection is left out.
        config: the accelerator.
        image: codes (1, C, H, W).
        seed: of the random data.
    """
    config = replace(config, protect="none")
    values = engine.forward(network, image)
    jobs = []
    for node in network.gemms():
        tiles = [
            job for _, job in lower(network, config, node, values[node.inputs[0]], UNPROTECTED)
        ]
        chosen = tiles[:: -(-len(tiles) // _TILES)]
        jobs += [WeightedJob(job=job, count=len(tiles) / len(chosen)) for job in chosen]
    return activity(config, jobs, seed=seed)


def main_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m dse.energy",
        description="Energy of one inference by the model of hdl.energy, cycles and stream bytes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        parents=[config_parser()],
    )
    parser.add_argument(
        "--network", type=Path, required=True, metavar="FILE", help="IntegerNetwork (safetensors)"
    )
    parser.add_argument(
        "--activity",
        type=float,
        default=1.0,
        metavar="A",
        help="toggles of operands and sums relative to random data",
    )
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="data set or folder: count the toggles of its first validation image instead",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random data")
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="of the memory")
    parser.add_argument("--clock", type=float, default=100.0, metavar="MHZ", help="for --bandwidth")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = main_parser().parse_args(argv)

    def action() -> int:
        names = {field.name for field in fields(AcceleratorConfig)}
        config = AcceleratorConfig(**{k: v for k, v in vars(arguments).items() if k in names})
        for name in ("bandwidth", "clock"):
            value = getattr(arguments, name)
            if value is not None and not 0 < value < 1e5:
                raise InputError(f"--{name} must be positive, not {value:g}")
        network = IntegerNetwork.load(arguments.network)
        check_fits(network, config)
        shapes = [gemm_shape(network, node) for node in network.gemms()]
        toggles = arguments.activity
        if arguments.data is not None:
            image = _first_image(network, arguments.data, arguments.seed)
            toggles = measured_activity(network, config, image, seed=arguments.seed)
        found = energy(config, shapes, activity=toggles)
        fed = feed(config, shapes, bandwidth=arguments.bandwidth, clock_mhz=arguments.clock)
        for name in ("mac", "register", "buffer", "stream", "total"):
            value = getattr(found, name)
            print(f"{name:<9}{value:>16,.0f} units {100 * value / found.total:6.1f} %")
        print(found.scope)
        rates = fed.gigabytes_per_second(arguments.clock)
        each = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
        clock = f"{arguments.clock:g} MHz"
        print(f"{fed.cycles} cycles with streams never starved; GB/s at {clock}: {each}")
        if arguments.bandwidth is not None:
            print(
                f"{arguments.bandwidth:g} GB/s: {fed.capped_cycles} cycles at least, "
                f"{fed.slowdown:.2f} times as many"
            )
        if arguments.json is not None:
            record = {
                **asdict(found), **asdict(fed), "activity": toggles, "config": config.to_json(),
                "data": arguments.data, "seed": arguments.seed,
            }  # fmt: skip
            try:
                write_json(arguments.json, record)
            except OSError as error:
                raise InputError(f"cannot write {arguments.json}: {error.strerror}") from None
        return 0

    return run_command("python -m dse.energy", action)


def _first_image(network: IntegerNetwork, name: str, seed: int) -> torch.Tensor:
    if seed < 0:
        raise InputError(f"--seed must be at least 0, not {seed}")
    data = load_data(name, seed=seed)
    norm = network.metadata.get("normalization", {"mean": data.mean, "std": data.std})
    floats = to_input(data.val.images[:1], network.input_shape, norm["mean"], norm["std"])
    return engine.image_codes(network, floats)


if __name__ == "__main__":
    sys.exit(main())
