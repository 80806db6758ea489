# SPDX-License-Identifier: Apache-2.0
"""The stages of faults in weight memories: their rate, and accuracy over the same chips.

All designs meet the same chips: drawn ones, words of 8 bits as many as the network has weights, or
those of chip files. A design's weights lie in them one after the other, so networks of all widths
have their bits in the same cells.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from dse.bench import UNROUNDED, Bench, Loaded, chip_files, codes, key, objective_chips
from dse.store import Result
from faultinj.chip_campaign import ChipResult, accuracy_over_chips, calibrate_chip_rate
from faultinj.protection import Protection
from faultinj.random_maps import RandomChips
from faultinj.sram import RATES
from quant.faq import fault_aware_codes, load_unrounded
from quant.fault_map import FaultMap, MemoryGeometry
from quant.map_groups import merge_maps
from quant.method_names import Method, parse_method
from quant.network import IntegerNetwork
from quant.weight_memory import WeightMapping, faults_of_weights, weight_codes
from trilat.files import replacing

IMAGES = 192  # of the validation split (or test split), as for faults in activations
# A curve over the rates ends where so many points are lost: nobody runs a memory there.
_LOST_POINTS = 30.0
# Chips with so many faulty cells in all are kept for the next design: 285 MB.
_KEPT_FAULTS = 1 << 24


def describe(bench: Bench, network: IntegerNetwork) -> dict[str, Any]:
    """Return what the record says of the chips; it identifies them, too."""
    faults = bench.settings.faults
    if bench.chips:
        return {"chips": len(bench.chips), "kind": "of the chip files", **chip_files(bench)}
    geometry = asdict(_geometry(network))
    return {"chips": faults.chips, "kind": faults.kind, "seed": bench.settings.seed, **geometry}


def chip_rate(bench: Bench, loaded: Loaded, target_drop: float) -> Result | float:
    """Return the share of faulty cells of the objective: given, of the chip files, or calibrated.

    Args:
        bench: of the run.
        loaded: the network that it is calibrated on.
        target_drop: points that it costs that network, without protection.
    """
    given = bench.chip_rate if bench.chips else bench.settings.faults.rate
    if given is not None:
        return given

    def compute(folder: Path) -> float:
        images, labels = codes(bench, loaded, "val", IMAGES)
        with bench.progress.task("fault rate", 1) as advance:
            rate = calibrate_chip_rate(
                loaded.network, images, labels, _drawn(bench, loaded, 0.0), target_drop=target_drop
            )
            advance(1)
        return rate

    inputs = key(
        "rate",
        network=loaded.network.content_hash(),
        data=bench.data.fingerprint,
        images=IMAGES,
        drop=target_drop,
        seed=bench.settings.seed,
        chips=describe(bench, loaded.network),
    )
    return bench.store.run("rate", inputs, compute)


def accuracy_on_chips(
    bench: Bench,
    loaded: Loaded,
    method: str,
    unit: Protection,
    inputs: dict[str, Any],
    rate: float,
    split: str,
) -> Result:
    """Return the stage of the accuracy over chips; its value is that of `as_faulty`.

    Args:
        bench: of the run.
        loaded: the network.
        method: of the design: it says whether the codes are chosen for each chip (`faq`), for the
            merged map of all (`retrain`), or not at all.
        unit: its protection.
        inputs: what every measurement of the protected network depends on.
        rate: share of faulty cells.
        split: of the images.
    """
    chosen = parse_method(method)
    converted = chosen.converts

    def compute(folder: Path) -> dict[str, Any]:
        images, labels = codes(bench, loaded, split, IMAGES)
        network = loaded.network
        unrounded = load_unrounded(loaded.result.folder / UNROUNDED, network) if converted else None
        (result,) = accuracy_over_chips(
            network,
            images,
            labels,
            _chips_at(bench, loaded, rate),
            rates=[rate],
            protection=unit,
            faq=converted,
            unrounded=unrounded,
            merge=None if chosen.faq else chosen.policy,
            seed=bench.settings.seed,
            progress=bench.progress,
        )
        return as_faulty(result, network, chosen)

    if converted:
        # Two trainings may round to equal codes and differ in what FAQ goes by.
        inputs = {**inputs, "unrounded": loaded.result.key, "conversion": conversion(chosen)}
    whole = key(
        "chips",
        **inputs,
        split=split,
        images=IMAGES,
        rate=rate,
        chips=describe(bench, loaded.network),
    )
    return bench.store.run("chips", whole, compute)


def conversion(method: Method) -> str:
    """Return how the stored codes are chosen, in words."""
    if method.faq:
        return "for each chip"
    return "none" if method.policy is None else f"for the merged map ({method.policy})"


def as_faulty(result: ChipResult, network: IntegerNetwork, method: Method) -> dict[str, Any]:
    """Return a result as `TrialRecord.faulty` has it: flat, with the spread of plain accuracy."""
    flat = result.to_json()
    bits = len(weight_codes(network)) * network.weight_bits
    return {
        "site": "weights",
        "conversion": conversion(method),
        "golden": flat.pop("clean"),
        **flat.pop("plain"),
        **flat,
        "bits": bits,
        "faulty_bits": result.rate * bits,
    }


def save_chip_codes(path: Path, bench: Bench, loaded: Loaded, method: Method) -> None:
    """Write the codes to store on each chip of the chip files: one safetensors file.

    Args:
        path: of the file. Its arrays ``0``, ``1``, ... are those of the chips, in order, int8
            (weights,) as of `quant.weight_memory.weight_codes`; its metadata names network, rate
            and chip files.
        bench: of the run.
        loaded: the network.
        method: one that converts.
    """
    network, chips = loaded.network, objective_chips(bench)
    plain = weight_codes(network)
    unrounded = load_unrounded(loaded.result.folder / UNROUNDED, network)
    maps = chips if method.policy is None or method.faq else (merge_maps(chips, method.policy),)
    stored = []
    for chip in maps:
        faults = faults_of_weights(
            chip, weights=len(plain), bits=network.weight_bits, mapping=WeightMapping()
        )
        stored.append(fault_aware_codes(plain, faults, unrounded=unrounded))
    arrays = {str(k): stored[k % len(stored)] for k in range(len(chips))}
    about: dict[str, Any] = {"network": network.content_hash(), "rate": bench.chip_rate}
    about["files"] = [str(file) for file in bench.settings.chips]
    with replacing(path) as temporary:
        save_file(arrays, temporary, metadata={"trilat.chip_codes": json.dumps(about)})


def curve_rates(bench: Bench, rate: float) -> tuple[float, ...]:
    """Return the rates of a curve over the supply voltage, ascending: the published, and `rate`."""
    limit = min((chip.rate for chip in bench.chips), default=1.0)
    return tuple(sorted({rate, *(r for r in RATES if r <= limit)}))


def goes_on(value: dict[str, Any]) -> bool:
    """Return whether a curve is worth a higher rate than that of a result."""
    return bool(value["golden"] - value["mean"] < _LOST_POINTS)


def _geometry(network: IntegerNetwork) -> MemoryGeometry:
    return MemoryGeometry(words=len(weight_codes(network)), bits=8)


def _drawn(bench: Bench, loaded: Loaded, rate: float) -> RandomChips:
    faults = bench.settings.faults
    return RandomChips(
        geometry=_geometry(loaded.network),
        chips=faults.chips,
        rate=rate,
        kind=faults.kind,
        seed=bench.settings.seed,
    )


def _chips_at(bench: Bench, loaded: Loaded, rate: float) -> Sequence[FaultMap]:
    if bench.chips:
        return bench.chips
    drawn = _drawn(bench, loaded, rate)
    small = drawn.chips * drawn.geometry.cells * rate <= _KEPT_FAULTS
    return _kept(drawn) if small else drawn


# The designs of a search meet the same chips one after the other.
@functools.lru_cache(maxsize=2)
def _kept(chips: RandomChips) -> tuple[FaultMap, ...]:
    return tuple(chips)
