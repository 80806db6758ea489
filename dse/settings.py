# SPDX-License-Identifier: Apache-2.0
"""What the user asked for: the flags of `python -m dse.run`, checked before anything is written."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import shutil
from dataclasses import dataclass
from os import W_OK, access
from pathlib import Path
from typing import Any, NoReturn

from dse.space import Space, parse_space
from faultinj.random_maps import MAP_KINDS
from hdl.families import FAMILIES
from quant.method_names import HELP, parse_method
from trilat.errors import InputError, unknown_name

DEFAULT_TRIALS = 24
NEEDED_BYTES = 500_000_000
VERIFY = ("best", "all", "none")
FAULT_SITES = ("activations", "weights")
DEFAULT_CHIPS = 20

_DESCRIPTION = """\
Search the trade-off between accuracy, accuracy under faults, area and time of one quantized
accelerator: train and quantize the network at every width, inject faults, synthesise the array,
and write the Pareto front with all that is needed to build each of its points.
"""
_EPILOG = """\
examples:
  python -m dse.run --model vgg11 --bits 4,8
  python -m dse.run --model lenet5 --data mnist --bits 2,4,8 --rows 8,16 --cols 8,16 --trials 40
  python -m dse.run --model nets/mine.py:build --data data/mine --weights mine.safetensors
  python -m dse.run --model lenet5 --faults weights --fault-kind stuck --protect none \\
      --method qat,qat+faq,clip:0.1+randbet:0.01
  make dse MODEL=vgg11 BITS=4,8        # the same flags as variables; sets up .venv first

The run folder gets report.html, pareto.csv, pareto.json, run.json, study.journal (Optuna) and
points/NAME/ per Pareto point. A run that was stopped, even killed, goes on with the same command;
more --trials on the same --out continue its study. Stages are cached in .cache/trilat (or
$TRILAT_CACHE): what was once trained, measured or synthesised is not computed again.
exit code: 0 done, 2 bad input (one line says what, nothing is written), 130 interrupted.
"""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The faults under which a design's accuracy is an objective.

    Attributes:
        site: ``activations`` (every inference meets flips of its own) or ``weights`` (chips whose
            weight memories have faulty cells, the same chips for all designs).
        rate: per stored activation bit, or share of faulty cells; None to calibrate it, or with
            chip files to take theirs.
        kind: of the cells of drawn chips, of `faultinj.random_maps.MAP_KINDS`.
        chips: how many are drawn.
    """

    site: str = "activations"
    rate: float | None = None
    kind: str = "flip"
    chips: int = DEFAULT_CHIPS


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The checked flags.

    Attributes:
        model, data: as the user named them.
        space: what the search may choose from.
        weights: trained float weights, or None to train.
        trials: distinct designs to evaluate, at most the size of the space.
        faults: of the objective.
        seed: of every random choice.
        out: run folder.
        jobs: cores to use.
        verify: which points are simulated in RTL: ``best``, ``all`` or ``none``.
        family: target of synthesis.
        chips: chip files that the method ``retrain`` trains for, and that faults in weights are
            those of.
    """

    model: str
    data: str
    space: Space
    weights: Path | None
    trials: int
    faults: Faults
    seed: int
    out: Path
    jobs: int
    verify: str
    family: str
    chips: tuple[Path, ...] = ()

    def flags(self) -> dict[str, Any]:
        """Return every flag by name, as the record and the report show them."""
        space, faults = self.space, self.faults
        drawn = faults.site == "weights" and not self.chips
        return {
            "model": self.model,
            "bits": _join(sorted({*space.weight_bits, *space.act_bits})),
            "data": self.data,
            "weights": str(self.weights) if self.weights else None,
            "trials": self.trials,
            "rows": _join(space.rows),
            "cols": _join(space.cols),
            "protect": _join(space.protect),
            "method": _join(space.method),
            "dataflow": _join(space.dataflow),
            "requant": _join(space.requant),
            "faults": _faults_flag(faults),
            "fault_kind": faults.kind if drawn else None,
            "chips": faults.chips if drawn else None,
            "seed": self.seed,
            "out": str(self.out),
            "jobs": self.jobs,
            "verify": self.verify,
            "family": self.family,
            "chip": _join(self.chips) or None,
        }

    def command(self) -> str:
        """Return the command line that reproduces the run, with every flag that shapes it."""
        words = ["python", "-m", "dse.run"]
        for name, value in self.flags().items():
            if value is not None and name != "jobs":
                words += [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join(words)


def _join(values: Any) -> str:
    return ",".join(str(value) for value in values)


def _faults_flag(faults: Faults) -> str | float:
    if faults.site == "activations":
        return "auto" if faults.rate is None else faults.rate
    return "weights" if faults.rate is None else f"weights:{faults.rate}"


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints in the one line that all commands of trilat give."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see python -m dse.run --help)")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the main command."""
    result = _Parser(
        prog="python -m dse.run",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = result.add_argument_group("network and data")
    what.add_argument(
        "--model",
        default="vgg11",
        help="vgg11, vgg16, lenet5, alexnet, resnet18, resnet32 or mobilenetv2, each also with a "
        "share of its channels (vgg11:0.25), or path/to/file.py:factory for your own "
        "torch.nn.Module (default: %(default)s)",
    )
    what.add_argument(
        "--data",
        default="digits",
        help="digits (scikit-learn's, offline), cifar10, cifar100, mnist, fashion-mnist, imagenet "
        "(Hugging Face hub or its cache), or a folder of Parquet files, images or CIFAR's binary "
        "files; a part of it: imagenet:side=224,images=10000 "
        "(default: %(default)s)",
    )
    what.add_argument(
        "--weights",
        metavar="FILE",
        help="trained float weights (.safetensors, keys of the model's state dict): skips float "
        "training",
    )
    what.add_argument(
        "--method",
        default="qat",
        help=f"how networks are quantized; several, separated by commas, are a knob: {HELP}; with "
        "faults in weights +faq as well, as in qat+faq: codes chosen for each chip's stuck cells "
        "(default: %(default)s)",
    )
    what.add_argument(
        "--chip",
        default="",
        metavar="FILE,FILE",
        help="chip files of python -m faultinj.chips: retrain trains for their merged fault map, "
        "and --faults weights takes them in place of drawn chips",
    )
    space = result.add_argument_group("design space (comma-separated lists)")
    space.add_argument(
        "--bits",
        default="4,8",
        help="widths 2..8; weights and activations choose independently (default: %(default)s)",
    )
    space.add_argument(
        "--rows", default="4,8", help="rows of the array, 1..64 (default: %(default)s)"
    )
    space.add_argument(
        "--cols", default="4,8", help="columns of the array, 1..64 (default: %(default)s)"
    )
    space.add_argument(
        "--protect",
        default="none,clip,zero",
        help="activation-protection unit: none, clip (saturate at the violated bound), zero "
        "(squash) (default: %(default)s)",
    )
    space.add_argument(
        "--dataflow",
        default="ws",
        help="array: ws (weight-stationary), os (output-stationary), or both as a knob: ws,os "
        "(default: %(default)s)",
    )
    space.add_argument(
        "--requant",
        default="shift",
        help="how a sum becomes a code: shift (scales are powers of two), mult (a multiplier per "
        "output channel; methods qat and ptq), or both as a knob: shift,mult "
        "(default: %(default)s)",
    )
    search = result.add_argument_group("search")
    search.add_argument(
        "--trials",
        default=str(DEFAULT_TRIALS),
        metavar="N",
        help="distinct designs to evaluate, at most the size of the space (default: %(default)s)",
    )
    search.add_argument(
        "--faults",
        default="auto",
        metavar="RATE",
        help="of the second objective: probability that a stored activation bit flips, or auto: "
        "calibrated so that the widest unprotected design loses about 10 points; weights or "
        "weights:RATE: share of faulty cells of weight memories, over chips (default: %(default)s)",
    )
    search.add_argument(
        "--fault-kind",
        metavar="KIND",
        help=f"what the cells of drawn chips do, with --faults weights: {', '.join(MAP_KINDS)} "
        "(at either value) (default: flip)",
    )
    search.add_argument(
        "--chips",
        metavar="N",
        help=f"chips to draw, with --faults weights (default: {DEFAULT_CHIPS})",
    )
    search.add_argument(
        "--family",
        default="xc7",
        help="synthesis target: xc7, xcup, ecp5, ice40 or gowin (default: %(default)s)",
    )
    search.add_argument(
        "--seed", default="0", metavar="N", help="of every random choice (default: %(default)s)"
    )
    run = result.add_argument_group("run")
    run.add_argument(
        "--out",
        metavar="FOLDER",
        help="run folder (default: runs/MODEL-DATA-BITS)",
    )
    run.add_argument("--jobs", default="2", metavar="N", help="cores to use (default: %(default)s)")
    run.add_argument(
        "--verify",
        default="best",
        help="which Pareto points to stream through their simulated RTL: best (the one closest to "
        "the best of every objective), all or none (default: %(default)s)",
    )
    return result


def parse(argv: list[str] | None = None) -> Settings:
    """Return the checked flags. Raises InputError for the first bad one; touches no file."""
    args = parser().parse_args(argv)
    space = parse_space(
        bits=args.bits,
        rows=args.rows,
        cols=args.cols,
        protect=args.protect,
        method=args.method,
        dataflow=args.dataflow,
        requant=args.requant,
    )
    for kind, name, accepted in (
        ("family", args.family, sorted(FAMILIES)),
        ("verify", args.verify, VERIFY),
    ):
        if name not in accepted:
            raise unknown_name(kind, name, list(accepted))
    if args.weights is not None and not Path(args.weights).is_file():
        raise InputError(f"weights must be a .safetensors file, and there is no {args.weights!r}")
    chips = _chips(args.chip)
    faults = _faults(args.faults, args.fault_kind, args.chips, files=bool(chips))
    _check_methods(space, faults, files=bool(chips))
    return Settings(
        model=args.model,
        data=args.data,
        space=space,
        weights=Path(args.weights) if args.weights else None,
        trials=min(_integer("trials", args.trials, 1), len(space.designs())),
        faults=faults,
        seed=_integer("seed", args.seed, 0),
        out=Path(args.out) if args.out else default_out(args.model, args.data, args.bits),
        jobs=_integer("jobs", args.jobs, 1),
        verify=args.verify,
        family=args.family,
        chips=chips,
    )


def _chips(text: str) -> tuple[Path, ...]:
    chips = tuple(Path(word.strip()) for word in text.split(",") if word.strip())
    for path in chips:
        if not path.is_file():
            raise InputError(f"chip must be chip files separated by commas; there is no {path}")
    return chips


def _faults(text: str, kind: str | None, count: str | None, *, files: bool) -> Faults:
    site, _, rate = text.partition(":")
    if site not in FAULT_SITES:
        site, rate = "activations", text
    for flag, value in (("--fault-kind", kind), ("--chips", count)):
        if value is not None and site != "weights":
            raise InputError(f"{flag} is for --faults weights")
        if value is not None and files:
            raise InputError(f"{flag} is for drawn chips, not for those of --chip")
    if kind is not None and kind not in MAP_KINDS:
        raise unknown_name("fault-kind", kind, list(MAP_KINDS))
    return Faults(
        site=site,
        rate=None if site == text else _rate(rate, text),
        kind=kind or "flip",
        chips=DEFAULT_CHIPS if count is None else _integer("chips", count, 1),
    )


def _check_methods(space: Space, faults: Faults, *, files: bool) -> None:
    """Raise InputError for a method without the chips that it needs, or chips without a use."""
    methods = [parse_method(name) for name in space.method]
    retrain = any(method.policy is not None for method in methods)
    if retrain and not files:
        raise InputError("method retrain needs the fault map of a chip (--chip FILE)")
    if files and not retrain and faults.site != "weights":
        raise InputError("--chip is for the method retrain and for --faults weights")
    for method in methods:
        if "mult" in space.requant and not parse_method(method.training).plain:
            raise InputError(f"--requant mult goes with the methods qat and ptq, not {method.name}")
        if method.faq and faults.site != "weights":
            raise InputError(
                f"method {method.name}: faq chooses codes for chips with faulty weight memories "
                "(--faults weights --fault-kind stuck)"
            )
        if method.faq and not files and faults.kind == "flip":
            raise InputError(
                f"method {method.name}: faq is for stuck cells (--fault-kind stuck); a known cell "
                "that flips is undone by storing the inverse"
            )


def default_out(model: str, data: str, bits: str) -> Path:
    """Return the run folder's default, e.g. ``runs/vgg11-digits-4-8``."""
    file, colon, factory = model.rpartition(":")
    network = f"{Path(file).stem}-{factory}" if colon else model
    words = [network, Path(data).resolve().name if "/" in data else data, bits]
    return Path("runs") / "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", word) for word in words)


def _integer(name: str, text: str, low: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise InputError(f"{name} must be an integer, not {text!r}") from None
    if not low <= value < 2**31:
        raise InputError(f"{name} must be at least {low} and below 2**31, not {value}")
    return value


def _rate(rate: str, text: str) -> float | None:
    if rate == "auto":
        return None
    try:
        value = float(rate)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise InputError(
            "faults must be auto or a rate per bit between 0 and 1, e.g. 1e-4, or weights or "
            f"weights:RATE for faulty weight memories, not {text!r}"
        )
    return value


def check_folder(folder: Path, *, needed: int = NEEDED_BYTES) -> None:
    """Check that results can be written to `folder`, which need not exist; writes nothing.

    Raises:
        InputError: it is a file, lies below one, cannot be written to, or its disk is full.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{folder} cannot be a folder: {existing} is a file")
    if not access(existing, W_OK):
        raise InputError(f"{folder} cannot be written: no permission to write in {existing}")
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"not enough disk space for {folder}: {needed / 1e6:.0f} MB are needed, "
            f"{free / 1e6:.0f} MB are free"
        )
