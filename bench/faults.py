# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.faults`: faulty inferences against plain float32 inferences, in ratios.

Plain is the same model in float32 PyTorch, batch norm folded, in inference mode. Every ratio is of
CPU time of one thread in alternating blocks of this process: faulty inferences per plain one.
Golden passes are counted: each image is run once for every `--faults-per-image` faults.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench import rtl_faults
from bench.fault_peers import pytorchfi_pass
from bench.plain_float import plain_model
from faultinj.engine import MEMORY_BYTES, EngineOptions, run_on
from faultinj.faults import Fault, MemoryFault, WeightFault
from faultinj.golden import Design, golden_run
from faultinj.layer_faults import LayerFaultModel
from faultinj.lowering import gemm_shape
from faultinj.sampling import FaultModel, Plan, population_of
from faultinj.sampling import draw as draw_sample
from faultinj.storage import stored_activations
from hdl.config import AcceleratorConfig
from hdl.schedule import network_cycles
from quant import engine
from quant.data import load_data, to_input
from quant.models import build_model, load_weights, weights_normalization
from quant.network import IntegerNetwork
from quant.quantize import quantize
from sim import CACHE
from trilat.errors import InputError, run_command
from trilat.files import write_json

_BATCH = 64
# Faulty inferences per plain one that are aimed at.
AIMS = {
    ("activation", "bits", 64): 10.0,
    ("activation", "layers", 64): 15.0,
    ("activation", "layers", 1): 4.0,
    ("weight", "layers", 64): 5.0,
}


def load_network(arguments: argparse.Namespace) -> tuple[IntegerNetwork, Tensor]:
    """Return the 8-bit network and image codes to run."""
    if arguments.network is None and arguments.weights is None:
        raise InputError("give --network (of python -m quant.run -o) or --weights of a vgg11")
    if min(arguments.rounds, arguments.faults_per_image) < 1:
        raise InputError("--rounds and --faults-per-image must be at least 1")
    data = load_data(arguments.data, seed=0)
    if arguments.network is not None:
        network = IntegerNetwork.load(arguments.network)
        found = network.metadata.get("normalization")
        if found is None:
            raise InputError(f"{arguments.network} does not say how its images are normalized")
        data = data.with_normalization(tuple(found["mean"]), tuple(found["std"]))
    else:
        if normalization := weights_normalization(arguments.weights):
            data = data.with_normalization(*normalization)
        spec = build_model("vgg11", num_classes=data.num_classes, data_shape=data.shape, seed=0)
        load_weights(spec.module, arguments.weights)
        network = quantize(spec, data, weight_bits=8, act_bits=8, method="ptq", seed=0).network
    images = to_input(data.test.images[:_BATCH], network.input_shape, data.mean, data.std)
    return network, engine.image_codes(network, images)


def draw(
    network: IntegerNetwork, site: str, law: str, count: int, images: int, rng: np.random.Generator
) -> list[tuple[Fault, ...]]:
    """Return single flips at sites of their own, image after image.

    Args:
        network: the network.
        site: ``activation`` (stored codes) or ``weight``.
        law: ``bits``, uniform over stored bits, or ``layers``, a layer first.
        count: of flips.
        images: in the batch.
        rng: source of the choices.
    """
    if site == "weight":
        names = [node.name for node in network.gemms()]
        sizes = np.array([node.weight.size for node in network.gemms()])
        width = network.weight_bits
    else:
        storage = stored_activations(network)
        names, sizes, width = list(storage.names), np.diff(storage.starts), storage.bits
    share = sizes / sizes.sum() if law == "bits" else None
    layer = rng.choice(len(names), count, p=share)
    element = (rng.random(count) * sizes[layer]).astype(np.int64)
    bit = rng.integers(width, size=count)
    faults: list[tuple[Fault, ...]] = []
    for i in range(count):
        bits, place = (int(bit[i]),), int(element[i])
        name = names[layer[i]]
        if site == "weight":
            faults.append((WeightFault(layer=name, image=i % images, element=place, bits=bits),))
        else:
            faults.append((MemoryFault(tensor=name, image=i % images, element=place, bits=bits),))
    return faults


def cpu_of(work: Callable[[], Any]) -> float:
    """Return the CPU seconds of this process that a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def ratio(
    plain: Callable[[], Any], plain_images: int, faulty: Callable[[], Any], faults: int, rounds: int
) -> dict[str, float]:
    """Return medians over alternating blocks, after one block of each."""
    repeats = max(1, round(cpu_of(faulty) / max(cpu_of(plain), 1e-6)))
    ratios, plain_ms, faulty_ms = [], [], []
    for _ in range(rounds):
        one = cpu_of(lambda: [plain() for _ in range(repeats)]) / (repeats * plain_images)
        other = cpu_of(faulty) / faults
        plain_ms.append(1e3 * one)
        faulty_ms.append(1e3 * other)
        ratios.append(one / other)
    return {
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "plain_ms": statistics.median(plain_ms),
        "faulty_ms": statistics.median(faulty_ms),
    }


def peak_bytes(*, reset: bool = False) -> int:
    """Return the most memory that this process has had; since the last reset, on Linux."""
    status, command = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if reset:
        command.write_text("5")
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return 1024 * int(fields["VmHWM"].split()[0])


def engine_rows(
    network: IntegerNetwork, codes: Tensor, model: nn.Module, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the ratios of the fault engine."""
    design = Design(network)
    layers = LayerFaultModel(design, AcceleratorConfig(max_k=65536))
    rng = np.random.default_rng(arguments.seed)
    cases = [
        ("activation", "bits", _BATCH, False),
        ("activation", "layers", _BATCH, False),
        ("activation", "bits", _BATCH, True),
        ("activation", "layers", _BATCH, True),
        ("activation", "layers", 1, False),
        ("activation alone", "layers", 1, False),
        ("weight", "layers", _BATCH, False),
    ]
    rows = []
    for site, law, batch, bound in cases:
        # All faults of a batch's images in one call, or each in a call of its own.
        alone = site.endswith(" alone")
        count = arguments.faults_per_image * batch
        # Sites of their own in every block, the one that warms up included.
        lists = [draw(network, site, law, count, batch, rng) for _ in range(arguments.rounds + 1)]
        image = codes[:batch]
        floats = image.to(torch.float32) * 2.0**network.input.exponent
        options = EngineOptions(top1_bound=bound)
        found: list[Any] = []

        def plain(floats: Tensor = floats) -> None:
            with torch.inference_mode():
                model(floats)

        def faulty(
            image: Tensor = image,
            lists: list[list[tuple[Fault, ...]]] = lists,
            options: EngineOptions = options,
            alone: bool = alone,
            found: list[Any] = found,
        ) -> None:
            faults = lists.pop()
            golden = golden_run(design, image)
            step = 1 if alone else len(faults)
            for start in range(0, len(faults), step):
                some = faults[start : start + step]
                found.append(run_on(golden, layers, some, options=options))

        row = ratio(plain, batch, faulty, count, arguments.rounds)
        change = np.concatenate([one.logit_change for one in found])
        bounded = np.concatenate([one.bounded for one in found])
        critical = np.concatenate([one.faulty_top1 != one.golden_top1 for one in found])
        what = "one flip a call" if alone else f"{site} flip"
        rows.append({
            "what": what, "law": law, "batch": batch, "top1_bound": bound,
            "faults": len(change),
            "aim": AIMS.get((site, law, batch)),
            "masked": float(((change == 0) & ~bounded).mean()), "bounded": float(bounded.mean()),
            "critical": float(critical.mean()), **row,
        })  # fmt: skip
    return rows


def peer_rows(
    network: IntegerNetwork, codes: Tensor, model: nn.Module, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the ratios of PyTorchFI 0.6.0: one 8-bit flip per image, sites drawn every pass."""
    rows, scale = [], 2.0**network.input.exponent
    for batch in (_BATCH, 1):
        floats = codes[:batch].to(torch.float32) * scale
        work = pytorchfi_pass(model, floats, seed=arguments.seed)

        def plain(floats: Tensor = floats) -> None:
            with torch.inference_mode():
                model(floats)

        row = ratio(plain, batch, work, batch, arguments.rounds)
        rows.append({"what": "PyTorchFI 0.6.0", "law": "layers", "batch": batch, "faults": batch,
                     "top1_bound": False, "aim": None, "masked": None, "bounded": 0.0,
                     "critical": None, **row})  # fmt: skip
    return rows


def rtl_figures(
    network: IntegerNetwork, codes: Tensor, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return what register flips take here, and what complete inferences in RTL would take.

    The flips are uniform over register bits and cycles of a 16x16 array. An inference of all tiles
    in RTL is not run for each: its cycles are the schedule's, at the speed of an int8 array
    measured here.
    """
    longest = max(int(np.prod(node.weight.shape[1:])) for node in network.gemms())
    config = AcceleratorConfig(
        act_bits=network.act_bits,
        weight_bits=network.weight_bits,
        max_k=max(longest, AcceleratorConfig.max_k),
        requant="mult" if network.multiplies else "shift",
    )
    count = arguments.faults_per_image * len(codes)
    population = population_of(network, config, "registers")
    plan = Plan(faults=count, seed=arguments.seed)
    faults = draw_sample(
        population, images=len(codes), model=FaultModel(site="registers"), plan=plan
    )
    design = Design(network)
    layers = LayerFaultModel(design, config)
    start = time.process_time()
    found = run_on(golden_run(design, codes), layers, faults.experiments)
    engine_s = (time.process_time() - start) / count
    cycles = network_cycles(config, [gemm_shape(network, node) for node in network.gemms()])
    rtl = rtl_faults.measure(quick=False, cocotb=True, cache=CACHE, seed=arguments.seed)
    speed = rtl["cycles_per_s"]
    return {
        "rtl_faults_per_s": rtl["short_shortcuts_faults_per_s"],
        "cocotb_faults_per_s": rtl["cocotb_faults_per_s"],
        "faults": count,
        "masked": float((found.logit_change == 0).mean()),
        "engine_ms": 1e3 * engine_s,
        "cycles": cycles,
        "cycles_per_s": speed,
        "rtl_s": cycles / speed,
        "ratio": cycles / speed / engine_s,
    }


def _table(rows: Sequence[dict[str, Any]], caption: str) -> Table:
    table = Table(title="Faulty inferences per plain float32 inference", caption=caption)
    for name in ("faults", "sites over", "batch", "top-1 bound", "n", "ratio", "lowest-highest",
                 "aim", "masked", "proven", "critical", "plain ms", "faulty ms"):  # fmt: skip
        table.add_column(name, justify="left" if name == "faults" else "right")

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    for row in rows:
        table.add_row(
            row["what"], row["law"], str(row["batch"]), "on" if row["top1_bound"] else "off",
            str(row["faults"]), f"{row['ratio']:.2f}",
            f"{row['lowest']:.2f}-{row['highest']:.2f}",
            "-" if row["aim"] is None else f"{row['aim']:g}", share(row["masked"]),
            share(row["bounded"]), share(row["critical"]), f"{row['plain_ms']:.2f}",
            f"{row['faulty_ms']:.3f}",
        )  # fmt: skip
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("--network", type=Path, help="integer network, of python -m quant.run -o")
    parser.add_argument("--weights", type=Path, help="float weights of a vgg11, quantized first")
    parser.add_argument("--data", default="cifar10", help="test images (default: %(default)s)")
    parser.add_argument("--faults-per-image", type=int, default=64, metavar="N",
                        help="faults for one golden pass (default: %(default)s)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="blocks (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of 16 faults per image, no RTL"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rounds, arguments.faults_per_image = 2, 16

    def action() -> int:
        torch.set_num_threads(1)
        network, codes = load_network(arguments)
        model = plain_model(network)
        before = peak_bytes(reset=True)
        rows = engine_rows(network, codes, model, arguments)
        peak = peak_bytes() - before
        if importlib.util.find_spec("pytorchfi") is None:
            print("PyTorchFI is not installed (pip install --no-deps pytorchfi==0.6.0): left out")
        else:
            rows += peer_rows(network, codes, model, arguments)
        caption = (
            f"one thread, CPU time, {arguments.rounds} rounds; a golden pass for every "
            f"{arguments.faults_per_image} faults of an image; the process grew by "
            f"{peak / 2**20:.0f} MiB at its peak, budget {MEMORY_BYTES / 2**20:.0f} MiB"
        )
        console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
        console.print(_table(rows, caption))
        rtl = {} if arguments.quick else rtl_figures(network, codes, arguments)
        if rtl:
            console.print(
                f"register flips, 16x16, uniform over bits and cycles: {rtl['engine_ms']:.2f} ms "
                f"an inference in the engine ({rtl['faults']} faults, {100 * rtl['masked']:.1f} % "
                f"masked); all tiles in RTL {rtl['rtl_s']:.2f} s ({rtl['cycles']:,} cycles by the "
                f"schedule at {rtl['cycles_per_s']:,.0f} cycles/s measured): {rtl['ratio']:,.0f} "
                "times as long",
                soft_wrap=True,
            )
            console.print(
                f"the same in RTL, tiles of 64 rows: {rtl['rtl_faults_per_s']:,.0f} faults/s, "
                f"{rtl['rtl_faults_per_s'] / rtl['cocotb_faults_per_s']:.1f} times plain cocotb "
                "(python -m bench.rtl_faults has more)",
                soft_wrap=True,
            )
        if arguments.json is not None:
            figures = {"network": network.content_hash(), "seed": arguments.seed,
                       "faults_per_image": arguments.faults_per_image, "peak_bytes": peak,
                       "faults": rows, "rtl": rtl}  # fmt: skip
            try:
                write_json(arguments.json, figures)
            except OSError as error:
                raise InputError(f"cannot write {arguments.json}: {error.strerror}") from None
        return 0

    return run_command("python -m bench.faults", action)


if __name__ == "__main__":
    sys.exit(main())
