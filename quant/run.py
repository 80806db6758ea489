# SPDX-License-Identifier: Apache-2.0
"""`python -m quant.run`: train, quantize, compare and export one network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from quant.method_names import HELP
from trilat.errors import InputError, run_command

if TYPE_CHECKING:
    from quant.agreement import LayerDifference

_AGREEMENT_IMAGES = 32


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints in the one line that all commands of trilat give."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m quant.run",
        description="Train a network in float, quantize it with Brevitas, compare Brevitas, "
        "onnxruntime and the integer engine bit for bit, and write the integer network.",
    )
    parser.add_argument("--model", default="lenet5", help="name or path/to/file.py:factory")
    parser.add_argument("--data", default="digits", help="name or folder (default: %(default)s)")
    parser.add_argument("--weights", type=Path, help="float weights, .safetensors; skips training")
    parser.add_argument("--weight-bits", type=int, default=8, help="2..8 (default: %(default)s)")
    parser.add_argument("--act-bits", type=int, default=8, help="2..8 (default: %(default)s)")
    parser.add_argument("--method", default="qat", help=HELP + " (default: %(default)s)")
    parser.add_argument(
        "--chip",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="chip files of python -m faultinj.chips, for --method retrain; several are merged",
    )
    parser.add_argument(
        "--tiled", action="store_true", help="the chip's memory is a buffer, filled again and again"
    )
    parser.add_argument(
        "--requant",
        default="shift",
        help="shift: scales are powers of two; mult: any, for an accelerator with multipliers "
        "(default: %(default)s)",
    )
    parser.add_argument("--float-epochs", type=int, help="of float training")
    parser.add_argument("--epochs", type=int, help="of quantization-aware fine-tuning")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--jobs", type=int, help="threads (default: all cores)")
    parser.add_argument("-o", "--output", type=Path, help="integer network, .safetensors")
    parser.add_argument(
        "--unrounded",
        type=Path,
        metavar="FILE",
        help="the weights before rounding, .safetensors, for fault-aware quantization of chips",
    )
    parser.add_argument("--onnx", type=Path, help="the same network as ONNX QCDQ")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = _parser().parse_args(argv)
    return run_command("python -m quant.run", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    # Imported here: these take seconds that `--help` and mistyped flags need not wait for.
    import torch

    from quant.agreement import compare_each_layer, compare_layers
    from quant.data import load_data, to_input
    from quant.export import unrounded_weights
    from quant.faq import save_unrounded
    from quant.fault_map import FaultMap
    from quant.graph import trace
    from quant.models import load_weights, model_for
    from quant.onnx_export import export_onnx
    from quant.ops import GemmOp
    from quant.quantize import check_requant, check_settings, network_accuracy, quantize
    from quant.training import float_accuracy, train_float
    from quant.weight_memory import WeightMapping, check_holds
    from trilat.progress import TerminalProgress

    count = len(arguments.chip)
    chosen = check_settings(arguments.weight_bits, arguments.act_bits, arguments.method, count)
    chips = [FaultMap.load(path) for path in arguments.chip]
    check_requant(arguments.requant, chosen.name)
    if arguments.jobs:
        torch.set_num_threads(arguments.jobs)
    progress, seed = TerminalProgress(), arguments.seed
    data = load_data(arguments.data, seed=seed, progress=progress)
    spec, data = model_for(data, arguments.model, weights=arguments.weights, seed=seed)
    # Names an unsupported layer, or a chip that is too small, before any training.
    ops = trace(spec.module, spec.input_shape)
    mapping = WeightMapping(tiled=arguments.tiled)
    weights = sum(op.weight.numel() for op in ops if isinstance(op, GemmOp))
    for chip in chips:
        bits = arguments.weight_bits
        check_holds(chip.geometry, weights=weights, bits=bits, mapping=mapping)
    if arguments.weights:
        load_weights(spec.module, arguments.weights)
    else:
        train_float(spec, data, seed=seed, epochs=arguments.float_epochs, progress=progress)
    result = quantize(
        spec,
        data,
        weight_bits=arguments.weight_bits,
        act_bits=arguments.act_bits,
        method=arguments.method,
        seed=seed,
        epochs=arguments.epochs,
        chips=chips,
        mapping=mapping,
        requant=arguments.requant,
        progress=progress,
    )
    network = result.network
    print(f"{'accuracy':10} {'val':>7} {'test':>7}")
    float_test = float_accuracy(spec, data, data.test)
    print(f"{'float':10} {float_accuracy(spec, data, data.val):6.2f}% {float_test:6.2f}%")
    test = network_accuracy(network, data, data.test)
    label = f"W{network.weight_bits}A{network.act_bits} {arguments.method}"
    print(f"{label:10} {result.history['val_accuracy']:6.2f}% {test:6.2f}%")
    if chips:
        record = result.history["chips"]
        print(
            f"{'chips':10} {record['mean']:6.2f}% on average, {record['worst']:.2f}% on the worst "
            f"of {len(chips)}, on validation images"
        )
    images = to_input(data.val.images[:_AGREEMENT_IMAGES], spec.input_shape, data.mean, data.std)
    if arguments.requant == "mult":
        agrees = _print_differences(compare_each_layer(result, images), len(images))
    else:
        agreement = compare_layers(result, images)
        agrees = agreement.words_equal == agreement.words
        print(
            f"Brevitas = onnxruntime = engine: {agreement.words_equal} of {agreement.words} words "
            f"equal ({agreement.layers} tensors x {agreement.images} images)"
        )
    try:
        if arguments.output:
            network.save(arguments.output)
            print(f"wrote {arguments.output} (network {network.content_hash()})")
        if arguments.unrounded:
            save_unrounded(arguments.unrounded, network, unrounded_weights(result.module))
            print(f"wrote {arguments.unrounded}")
        if arguments.onnx:
            export_onnx(network, arguments.onnx)
            print(f"wrote {arguments.onnx}")
    except OSError as error:
        raise InputError(f"cannot write: {error}") from None
    return 0 if agrees else 1


def _print_differences(layers: Sequence[LayerDifference], images: int) -> bool:
    """Print each layer's share of words that are off; return whether all are within one."""
    print(
        f"words off the engine's, each layer on the engine's inputs ({images} images):\n"
        f"{'layer':<24} {'words':>9} {'Brevitas':>9} {'onnxruntime':>12} {'at most':>8}"
    )
    for layer in layers:
        brevitas, onnx = (100 * n / layer.words for n in (layer.brevitas_off, layer.onnx_off))
        print(
            f"{layer.name:<24} {layer.words:>9} {brevitas:>8.4f}% {onnx:>11.4f}% {layer.largest:>8}"
        )
    return max(layer.largest for layer in layers) <= 1


def _check(arguments: argparse.Namespace) -> None:
    for name in ("float_epochs", "epochs", "jobs"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    for path in (arguments.output, arguments.unrounded, arguments.onnx):
        if path is not None and path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file to write")


if __name__ == "__main__":
    sys.exit(main())
