# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.utilization`: how busy an array is in each layer of a network, by the schedule.

Utilization is the share of the PEs' cycles that multiply operands of the network, from the first
activation beat to the last output beat of the layer, streams never starved. What that takes of
the streams is printed in GB/s. Images of a batch stand one below the other in M.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from faultinj.lowering import gemm_shape
from hdl.config import DATAFLOWS, AcceleratorConfig
from hdl.schedule import GemmShape, network_cycles, stream_bytes
from quant.models import build_model
from quant.network import IntegerNetwork
from trilat.errors import InputError, run_command
from trilat.files import write_json

_STREAMS = ("param", "weight", "act", "out")


def model_shapes(spec: str) -> dict[str, GemmShape]:
    """Return the GEMM of each layer of a float model for one 3 x 32 x 32 image, by name."""
    model = build_model(spec, num_classes=10, data_shape=(3, 32, 32), seed=0)
    shapes: dict[str, GemmShape] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, torch.Tensor)
            groups = int(getattr(module, "groups", 1))
            shapes[name] = GemmShape(
                m=output[0, 0].numel(), k=weight[0].numel(), n=len(weight) // groups, groups=groups
            )

        return hook

    for name, module in model.module.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(record(name))
    with torch.no_grad():
        model.module(torch.zeros(1, *model.input_shape))
    last = list(shapes)[-1]
    shapes[last] = replace(shapes[last], raw=True)
    return shapes


def measure(
    config: AcceleratorConfig, shapes: Sequence[GemmShape], delay_ns: float
) -> dict[str, Any]:
    """Return cycles, utilization and GB/s per stream of layers sent one behind the other."""
    cycles = network_cycles(config, shapes)
    macs = sum(s.groups * s.m * s.k * s.n for s in shapes)
    moved = [stream_bytes(config, shape) for shape in shapes]
    return {
        "cycles": cycles,
        "utilization": macs / (cycles * config.rows * config.cols),
        "gb_per_s": {
            name: sum(row[name] for row in moved) / (cycles * delay_ns) for name in moved[0]
        },
    }


def utilization(
    config: AcceleratorConfig, shapes: dict[str, GemmShape], batch: int, delay_ns: float
) -> list[dict[str, Any]]:
    """Return a row for each layer and one for the whole network, at `batch` and at batch 1."""
    parts = {name: [shape] for name, shape in shapes.items()}
    rows = []
    for name, layers in (parts | {"network": list(shapes.values())}).items():
        batched = [replace(layer, m=layer.m * batch) for layer in layers]
        row: dict[str, Any] = {"layer": name}
        if name in parts:
            row |= {"m": layers[0].m, "k": layers[0].k, "n": layers[0].n * layers[0].groups}
        row["batch"] = measure(config, batched, delay_ns)
        row["batch_1"] = measure(config, layers, delay_ns)
        rows.append(row)
    return rows


def table(config: AcceleratorConfig, rows: Sequence[dict[str, Any]], batch: int) -> Table:
    """Return the rows of one array as a terminal table."""
    result = Table(
        title=f"{config.dataflow} {config.rows}x{config.cols} "
        f"W{config.weight_bits}A{config.act_bits}, batch {batch} and batch 1",
        title_justify="left",
    )
    result.add_column("layer")
    for number in (batch, 1):
        for name in ("busy %", *_STREAMS):
            result.add_column(f"{name}\n@{number}", justify="right")
    for row in rows:
        size = f" {row['m']}x{row['k']}x{row['n']}" if "m" in row else ""
        cells = []
        for part in (row["batch"], row["batch_1"]):
            cells.append(f"{100 * part['utilization']:.1f}")
            cells += [f"{rate:.2f}" for rate in part["gb_per_s"].values()]
        result.add_row(row["layer"] + size, *cells)
    return result


def main_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.utilization",
        description=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--network", type=Path, metavar="FILE", help="saved IntegerNetwork")
    parser.add_argument("--model", default="vgg11", help="float model, where no --network is given")
    parser.add_argument(
        "--rows", type=int, default=16, metavar="N", help="PEs along K (ws), M (os)"
    )
    parser.add_argument("--cols", type=int, default=16, metavar="N", help="PEs along N")
    parser.add_argument("--bits", type=int, default=8, metavar="N", help="of a model's codes")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images")
    parser.add_argument("--delay-ns", type=float, default=5.0, metavar="T", help="clock period")
    parser.add_argument("--quick", action="store_true", help="the same; it takes seconds anyway")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    return parser


def _run(args: argparse.Namespace) -> int:
    if args.batch < 1 or args.delay_ns <= 0:
        raise InputError(f"--batch must be at least 1 and --delay-ns above 0, not {args.batch} and "
                         f"{args.delay_ns}")  # fmt: skip
    act_bits = weight_bits = args.bits
    if args.network is None:
        shapes = model_shapes(args.model)
    else:
        network = IntegerNetwork.load(args.network)
        act_bits, weight_bits = network.act_bits, network.weight_bits
        shapes = {node.name: gemm_shape(network, node) for node in network.gemms()}
    found, longest = {}, max(shape.k for shape in shapes.values())
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for dataflow in DATAFLOWS:
        config = AcceleratorConfig(
            dataflow=dataflow, rows=args.rows, cols=args.cols, act_bits=act_bits,
            weight_bits=weight_bits, max_k=longest,
        )  # fmt: skip
        found[dataflow] = utilization(config, shapes, args.batch, args.delay_ns)
        console.print(table(config, found[dataflow], args.batch))
    console.print(f"Layer MxKxN of one image; streams in GB/s at {args.delay_ns:g} ns a cycle; "
                  f"ws tiles of up to {config.psum_depth} rows.")  # fmt: skip
    for dataflow, rows in found.items():
        deep = [row for row in rows if row.get("k", 0) >= 64 and row["n"] % args.cols == 0]
        if deep:
            least = min(deep, key=lambda row: row["batch"]["utilization"])
            console.print(
                f"{dataflow}: layers with K >= 64 and N a multiple of {args.cols}: at least "
                f"{100 * least['batch']['utilization']:.1f} % at batch {args.batch} "
                f"({least['layer']})"
            )
    if args.json is not None:
        write_json(args.json, {"batch": args.batch, "delay_ns": args.delay_ns, "arrays": found})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    args = main_parser().parse_args(argv)
    return run_command("python -m bench.utilization", lambda: _run(args))


if __name__ == "__main__":
    sys.exit(main())
