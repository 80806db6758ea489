# SPDX-License-Identifier: Apache-2.0
"""End-to-end outcome of a register fault: its tile in the RTL, all else on the integer engine.

Also a command: ``python -m sim.crosslayer --help``. A simulation stays alive between faults; what
comes before the faulty tile is golden, and what follows is computed once more by the engine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faultinj import protection as protected
from faultinj.faults import KINDS, RegisterFault, to_json
from faultinj.lowering import check_fits, gemm_shape, lower
from faultinj.protection import UNPROTECTED, Protection
from hdl.config import AcceleratorConfig
from hdl.registers import register_classes
from hdl.schedule import OutputTile
from hdl.tile import TileJob, TileOutput
from quant.network import Gemm, IntegerNetwork
from sim import CACHE
from sim.fault_draws import draw
from sim.inject import Injector
from trilat.errors import InputError, run_command, unknown_name
from trilat.files import write_json

OUTCOMES = ("masked", "sdc", "critical", "hang", "framing")


@dataclass(frozen=True, kw_only=True)
class CrossLayerResult:
    """What a fault did to the network's answer.

    Attributes:
        outcome: ``masked`` (equal logits), ``sdc`` (other logits, same top-1), ``critical`` (other
            top-1), or ``hang`` and ``framing`` as in `sim.inject.FaultyRun`, without an answer.
        golden_top1, faulty_top1: classes, the lowest at a tie; -1 without an answer.
        logit_change: largest change of a logit.
        words_changed: output words of the tile that changed.
        detected: the protection unit counted more violations than without the fault.
    """

    outcome: str
    golden_top1: int
    faulty_top1: int
    logit_change: int
    words_changed: int
    detected: bool


class CrossLayer:
    """One image on an accelerator, of which any tile can be run with faults in RTL.

    Use it in a ``with`` statement.

    Args:
        network: the network.
        config: the accelerator.
        codes: one image, (1, C, H, W).
        protection: as in the accelerator.
        cache: folder of finished simulators.

    Raises:
        InputError: network and accelerator do not fit, or a system tool is missing.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        config: AcceleratorConfig,
        codes: Tensor,
        *,
        protection: Protection = UNPROTECTED,
        cache: Path,
    ) -> None:
        check_fits(network, config)
        self.network, self.config, self.protection = network, config, protection
        self.golden, _ = protected.forward(network, codes, protection, cols=config.cols)
        self._tiles: dict[str, list[tuple[OutputTile, TileJob]]] = {}
        self._loaded: tuple[str, int] | None = None
        self._clean: TileOutput | None = None
        self._injector = Injector(config, cache)

    def __enter__(self) -> CrossLayer:
        """Return it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the simulation."""
        self._injector.__exit__(kind, error, trace)

    def layer(self, name: str) -> Gemm:
        """Return a layer by name; InputError if the network has no such layer."""
        layers = {node.name: node for node in self.network.gemms()}
        if name not in layers:
            raise unknown_name("layer", name, list(layers))
        return layers[name]

    def tiles(self, name: str) -> list[tuple[OutputTile, TileJob]]:
        """Return a layer's output tiles."""
        if name not in self._tiles:
            node = self.layer(name)
            codes = self.golden[node.inputs[0]]
            self._tiles[name] = list(lower(self.network, self.config, node, codes, self.protection))
        return self._tiles[name]

    def run(self, faults: Sequence[RegisterFault]) -> CrossLayerResult:
        """Return the outcome of simultaneous faults in one tile.

        Raises:
            InputError: the faults are of several tiles, or of one that the layer does not have, or
                a register, bit or cycle that there is not.
        """
        places = {(fault.layer, fault.tile) for fault in faults}
        if len(places) != 1:
            raise InputError(f"faults of one tile are needed, not of {len(places)}")
        name, index = places.pop()
        if name is None or index is None:
            raise InputError("a fault needs its layer and tile: one tile runs in RTL")
        tiles = self.tiles(name)
        if not 0 <= index < len(tiles):
            raise InputError(f"{name} has tiles 0..{len(tiles) - 1}, not {index}")
        tile, job = tiles[index]
        if self._loaded != (name, index):
            self._clean, self._loaded = self._injector.load(job), (name, index)
        assert self._clean is not None
        run = next(iter(self._injector.inject([faults])))
        node = self.layer(name)
        golden = self.golden[self.network.nodes[-1].name].flatten()
        top1 = int(golden.argmax())
        if run.output is None:
            return CrossLayerResult(
                outcome=run.outcome,
                golden_top1=top1,
                faulty_top1=-1,
                logit_change=0,
                words_changed=0,
                detected=False,
            )
        extra = (run.output.violations_in + run.output.violations_out) - (
            self._clean.violations_in + self._clean.violations_out
        )
        used = tile.n1 - tile.n0
        changed = int((run.output.rows != self._clean.rows)[:, :used].sum())
        logits = golden
        if changed:
            later, after = self._propagate(node, tile, run.output.rows[:, :used])
            logits, extra = later.flatten(), extra + after
        change = int((logits.long() - golden.long()).abs().max())
        faulty = int(logits.argmax())
        outcome = "critical" if faulty != top1 else "sdc" if change else "masked"
        return CrossLayerResult(
            outcome=outcome,
            golden_top1=top1,
            faulty_top1=faulty,
            logit_change=change,
            words_changed=changed,
            detected=extra > 0,
        )

    def _propagate(self, node: Gemm, tile: OutputTile, rows: np.ndarray) -> tuple[Tensor, int]:
        """Return the logits behind a faulty tile, and the violations later layers count more."""
        shape = gemm_shape(self.network, node)
        faulty = self.golden[node.name].clone()
        words = faulty.view(shape.groups * shape.n, shape.m)
        first = tile.group * shape.n
        part = torch.from_numpy(np.ascontiguousarray(rows.T)).to(faulty.dtype)
        words[first + tile.n0 : first + tile.n1, tile.m0 : tile.m1] = part
        values = {node.name: faulty}
        counted = torch.zeros(1, dtype=torch.int64)
        before = torch.zeros(1, dtype=torch.int64)
        at = [n.name for n in self.network.nodes].index(node.name)
        for later in self.network.nodes[at + 1 :]:
            if not any(name in values for name in later.inputs):
                continue
            golden = [self.golden[name] for name in later.inputs]
            inputs = [values.get(n, g) for n, g in zip(later.inputs, golden, strict=True)]
            output = self._node(later, inputs, counted)
            if self.protection.kind != "none" and isinstance(later, Gemm):
                self._node(later, golden, before)
            if not torch.equal(output, self.golden[later.name]):
                values[later.name] = output
        last = self.network.nodes[-1].name
        return values.get(last, self.golden[last]), int(counted - before)

    def _node(self, node: Any, inputs: Sequence[Tensor], violations: Tensor) -> Tensor:
        return protected.run_node(
            self.network, node, inputs, self.protection, violations, cols=self.config.cols
        )


def random_fault(
    cross: CrossLayer, classes: Sequence[str], rng: np.random.Generator, *, layer: str | None = None
) -> RegisterFault:
    """Return a random fault of a random tile: half of them flips, a quarter each stuck bits.

    Args:
        cross: network and accelerator.
        classes: registers to draw from.
        rng: source of the choices.
        layer: its name, or None for any.
    """
    names = [node.name for node in cross.network.gemms()]
    name = str(rng.choice(names)) if layer is None else layer
    tiles = cross.tiles(name)
    index = int(rng.integers(len(tiles)))
    kind = KINDS[(0, 0, 1, 2)[rng.integers(4)]]
    fault = draw(cross.config, tiles[index][1], str(rng.choice(classes)), kind, 1, rng)
    return RegisterFault(**{**asdict(fault), "layer": name, "tile": index})


def main_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m sim.crosslayer", description=__doc__)
    parser.add_argument("--network", type=Path, required=True, help="integer network (safetensors)")
    parser.add_argument("--data", default="digits", help="data set the image is taken from")
    parser.add_argument("--image", type=int, default=0, help="index in the validation split")
    parser.add_argument("--dataflow", choices=("ws", "os"), default="ws")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--cols", type=int, default=16)
    parser.add_argument("--faults", type=int, default=100, help="random register faults")
    parser.add_argument("--register", help="class of the registers; by default all of them")
    parser.add_argument("--layer", help="name of the layer; by default any")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of finished simulators")
    parser.add_argument("--json", type=Path, help="write faults and outcomes here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 for bad input."""
    args = main_parser().parse_args(argv)
    return run_command("python -m sim.crosslayer", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    from quant.data import load_data, to_input
    from quant.engine import image_codes

    for name, least in (("faults", 1), ("seed", 0), ("image", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    network = IntegerNetwork.load(args.network)
    longest = max(int(np.prod(node.weight.shape[1:])) for node in network.gemms())
    config = AcceleratorConfig(
        dataflow=args.dataflow,
        rows=args.rows,
        cols=args.cols,
        act_bits=network.act_bits,
        weight_bits=network.weight_bits,
        max_k=max(longest, AcceleratorConfig.max_k),
        requant="mult" if network.multiplies else "shift",
    )
    classes = register_classes(config) if args.register is None else (args.register,)
    if args.register is not None and args.register not in register_classes(config):
        raise unknown_name("register class", args.register, list(register_classes(config)))
    data = load_data(args.data, seed=args.seed)
    if args.image >= len(data.val.images):
        raise InputError(f"--image must be 0..{len(data.val.images) - 1}, not {args.image}")
    norm = network.metadata.get("normalization", {"mean": data.mean, "std": data.std})
    image = data.val.images[args.image : args.image + 1]
    codes = image_codes(
        network, to_input(image, network.input_shape, tuple(norm["mean"]), tuple(norm["std"]))
    )
    rng = np.random.default_rng(args.seed)
    counts: Counter[str] = Counter()
    records = []
    with CrossLayer(network, config, codes, cache=args.cache) as cross:
        start = time.perf_counter()
        for _ in range(args.faults):
            fault = random_fault(cross, classes, rng, layer=args.layer)
            result = cross.run([fault])
            counts[result.outcome] += 1
            records.append({"fault": to_json(fault), **asdict(result)})
        seconds = time.perf_counter() - start
    print(", ".join(f"{name}: {counts[name]}" for name in OUTCOMES))
    print(f"{1000 * seconds / args.faults:.1f} ms a fault, {args.faults} faults")
    if args.json is not None:
        write_json(args.json, {"seed": args.seed, "config": config.to_json(), "faults": records})
    return 0


if __name__ == "__main__":
    sys.exit(main())
