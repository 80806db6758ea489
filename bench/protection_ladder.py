# SPDX-License-Identifier: Apache-2.0
"""Where range checks matter: accuracy at rising fault rates, each step stored.

Two kinds of faults. Flips in stored activation codes, in memory words as wide as the codes or of
8 bits whatever the code's width: there an upper bit that flips makes a code that no fault-free run
has. And simultaneous flips in psum registers of the array, whose sums are wider than any code.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.protection_cells import (
    Bench,
    Case,
    Variant,
    accelerator_of,
    behaviour,
    protection_of,
    stored,
)
from dse.store import Result
from faultinj.campaign import run_campaign
from faultinj.compare import compare_files
from faultinj.inputs import image_codes
from faultinj.protection import Bounds
from faultinj.rate import accuracies_under_rate
from faultinj.sampling import FaultModel, Plan
from faultinj.stats import bootstrap_interval
from quant.data import DataSet
from quant.network import IntegerNetwork

WORDS = ("code", "byte")
# Units of the ladder; at one place alone a unit does less than at both.
LADDER_VARIANTS = tuple(
    Variant(kind=kind, granularity=granularity)
    for kind, granularity in (
        ("none", "layer"), ("clip", "layer"), ("clip", "channel"), ("zero", "layer"),
        ("zero", "channel"),
    )
)  # fmt: skip
PSUM_VARIANTS = LADDER_VARIANTS[:2]
_FORMAT = 1
_ROWS = "psum.parquet"


def in_bytes(network: IntegerNetwork) -> IntegerNetwork:
    """Return a network with the same codes in activation words of 8 bits.

    It runs on an accelerator for 8-bit activations; its layers saturate where they did.
    """

    def wide(node: Any) -> Any:
        return node if node.output is None else replace(node, output=replace(node.output, bits=8))

    return replace(
        network,
        act_bits=8,
        input=replace(network.input, bits=8),
        nodes=tuple(map(wide, network.nodes)),
    )


def climb(
    bench: Bench,
    case: Case,
    network: IntegerNetwork,
    data: DataSet,
    variant: Variant,
    bounds: Bounds,
    word: str,
) -> list[dict[str, Any]]:
    """Return the accuracy of every repetition at every rate: rate, and accuracies in percent.

    Raises:
        MissingError: it is not stored, and nothing is to be computed.
    """
    target = in_bytes(network) if word == "byte" else network
    protection, ladder = protection_of(variant, bounds), bench.ladder
    inputs = {
        "format": _FORMAT,
        "network": target.content_hash(),
        "data": data.fingerprint,
        "behaviour": behaviour(target, protection),
        "rates": ladder.rates,
        "repetitions": ladder.choosing + ladder.reporting,
        "images": ladder.images,
        "seed": bench.effort.seed,
    }

    def compute(folder: Path) -> list[dict[str, Any]]:
        # The image's codes are those of the network itself, whatever the word that holds them.
        codes, labels = image_codes(network, data.test, ladder.images)
        steps = []
        name = f"{case.label()}, {variant.label()}, rising rates"
        with bench.progress.task(name, len(ladder.rates)) as advance:
            for rate in ladder.rates:
                accuracies = accuracies_under_rate(
                    target,
                    codes,
                    labels,
                    rate=rate,
                    protection=protection,
                    repetitions=ladder.choosing + ladder.reporting,
                    seed=bench.effort.seed,
                )
                steps.append({"rate": rate, "accuracies": accuracies})
                advance(1)
        return steps

    return list(stored(bench, "protection-ladder", inputs, compute).value)


def best_step(
    plain: list[dict[str, Any]],
    others: dict[Variant, list[dict[str, Any]]],
    choosing: int,
    seed: int,
) -> dict[str, Any]:
    """Return the rate and the unit of the largest gain, and figures from other fault maps.

    Args:
        plain: steps without protection, as of `climb`.
        others: steps of each protection, on the same fault maps.
        choosing: the first so many repetitions choose, the others are reported.
        seed: of the bootstrap.

    Returns:
        JSON-able: rate, variant, and in percent mean, ci_low, ci_high of ``unprotected``,
        ``protected`` and their paired ``gain`` (bootstrap over fault maps).
    """

    def gain(variant: Variant, step: int, part: slice) -> np.ndarray:
        mine, without = others[variant][step]["accuracies"], plain[step]["accuracies"]
        return np.array(mine[part]) - np.array(without[part])

    chosen, reported = slice(0, choosing), slice(choosing, None)
    variant, step = max(
        ((variant, step) for variant in others for step in range(len(plain))),
        key=lambda one: float(gain(one[0], one[1], chosen).mean()),
    )
    values = {
        "unprotected": plain[step]["accuracies"][reported],
        "protected": others[variant][step]["accuracies"][reported],
        "gain": gain(variant, step, reported).tolist(),
    }
    return {"rate": plain[step]["rate"], "variant": asdict(variant)} | {
        name: _spread(numbers, seed) for name, numbers in values.items()
    }


def spread_of(steps: list[dict[str, Any]], choosing: int, seed: int) -> list[dict[str, Any]]:
    """Return mean, ci_low and ci_high of every step, over the repetitions that are reported."""
    return [
        {"rate": step["rate"], **_spread(step["accuracies"][choosing:], seed)} for step in steps
    ]


def _spread(values: list[float], seed: int) -> dict[str, float]:
    low, high = bootstrap_interval(values, seed=seed)
    return {"mean": float(np.mean(values)), "ci_low": low, "ci_high": high}


def psum_step(
    bench: Bench,
    case: Case,
    network: IntegerNetwork,
    data: DataSet,
    variant: Variant,
    bounds: Bounds,
    flips: int,
) -> dict[str, Any]:
    """Return what simultaneous flips in psum registers do; raises MissingError.

    JSON-able: flips, accuracy_golden, accuracy_faulty with accuracy_interval, critical and, for a
    protection, `paired`, the difference of its critical rate to that without.
    """

    def run(variant: Variant) -> Result:
        def compute(folder: Path) -> dict[str, Any]:
            codes, labels = image_codes(network, data.test, bench.ladder.images)
            result = run_campaign(
                network,
                accelerator_of(bench, network, variant),
                codes,
                labels,
                model=FaultModel(site="psum", multiplicity=flips),
                plan=Plan(faults=bench.ladder.psum_experiments, seed=bench.effort.seed),
                protection=protection_of(variant, bounds),
                progress=bench.progress,
                output=folder / _ROWS,
            )
            return {
                "flips": flips,
                "accuracy_golden": result.accuracy_golden,
                "accuracy_faulty": result.accuracy_faulty,
                "accuracy_interval": result.accuracy_interval,
                "critical": result.outcomes["sdc_critical"],
            }

        inputs = {
            "format": _FORMAT,
            "network": network.content_hash(),
            "data": data.fingerprint,
            "variant": asdict(variant),
            "flips": flips,
            "experiments": bench.ladder.psum_experiments,
            "images": bench.ladder.images,
            "rows": bench.effort.rows,
            "cols": bench.effort.cols,
            "seed": bench.effort.seed,
        }
        return stored(bench, "protection-psum", inputs, compute)

    found = run(variant)
    if variant.kind == "none":
        return dict(found.value)
    plain = run(PSUM_VARIANTS[0])
    paired = compare_files(plain.folder / _ROWS, found.folder / _ROWS)
    return {**found.value, "paired": asdict(paired)}
