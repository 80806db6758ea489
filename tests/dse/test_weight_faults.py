# SPDX-License-Identifier: Apache-2.0
"""Accuracy over chips as the search's objective, recomputed weight by weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_model import open_tiny

from dse.bench import Bench, Loaded, codes, network
from dse.records import Design
from dse.stages import (
    TARGET_DROP,
    accuracy_under_faults,
    fault_rate,
    open_stages,
    protection,
    voltage_curve,
)
from dse.weight_faults import IMAGES, curve_rates, save_chip_codes
from faultinj.protection import UNPROTECTED, Protection, run_node
from faultinj.random_maps import random_map
from faultinj.sram import RATES
from quant import engine
from quant.faq import fault_aware_codes, load_unrounded
from quant.fault_map import FaultMap, MemoryGeometry
from quant.map_groups import merge_maps
from quant.method_names import parse_method
from quant.network import Gemm, IntegerNetwork
from quant.weight_memory import WeightMapping, faults_of_weights, weight_codes
from trilat.errors import InputError
from trilat.progress import NoProgress

PTQ = Design(method="ptq", weight_bits=4, act_bits=4, protect="none", rows=2, cols=2)
STUCK = ("--faults", "weights:0.03", "--fault-kind", "stuck", "--chips", "5")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("stuck")
    return open_tiny(folder, "--method", "ptq,ptq+faq", "--protect", "none,zero", *STUCK)


def chips(net: IntegerNetwork, count: int, rate: float, kind: str = "stuck") -> list[FaultMap]:
    geometry = MemoryGeometry(words=sum(node.weight.size for node in net.gemms()), bits=8)
    return [random_map(geometry, rate=rate, kind=kind, seed=0, chip=c) for c in range(count)]


def accuracy_with(
    bench: Bench, loaded: Loaded, weights: np.ndarray, unit: Protection = UNPROTECTED
) -> float:
    """Return the accuracy of a network that reads `weights`, node by node."""
    values, labels = codes(bench, loaded, "val", IMAGES)
    net, start = loaded.network, 0
    for node in net.nodes:  # a chain: every node reads the one before
        if isinstance(node, Gemm):
            part = weights[start : start + node.weight.size].reshape(node.weight.shape)
            start += node.weight.size
            node = replace(node, weight=part)
        values = run_node(net, node, [values], unit)
    return 100 * float((engine.top1(values) == labels).double().mean())


def read_by_bits(written: np.ndarray, chip: FaultMap, bits: int) -> np.ndarray:
    """Return what a chip of stuck cells gives, cell by cell; a weight has a word of 8 bits."""
    words = [int(code) % (1 << bits) for code in written]
    for cell, kind in zip(chip.cells.tolist(), chip.kinds.tolist(), strict=True):
        word, bit = divmod(cell, 8)
        if bit < bits and word < len(words):  # KINDS: flip, stuck0, stuck1
            words[word] = words[word] & ~(1 << bit) | (kind == 2) << bit
    return np.array([w - (1 << bits) if w >> (bits - 1) else w for w in words], dtype=np.int8)


def accuracies(
    bench: Bench,
    loaded: Loaded,
    maps: list[FaultMap],
    written: list[np.ndarray],
    unit: Protection = UNPROTECTED,
) -> list[float]:
    bits = loaded.network.weight_bits
    return [
        accuracy_with(bench, loaded, read_by_bits(stored, chip, bits), unit)
        for chip, stored in zip(maps, written, strict=True)
    ]


def faulty(bench: Bench, design: Design, rate: float) -> dict:
    return accuracy_under_faults(bench, network(bench, design), design, rate, "val")[-1].value


def test_every_design_meets_the_same_chips(bench: Bench) -> None:
    loaded = network(bench, PTQ)
    plain, maps = weight_codes(loaded.network), chips(loaded.network, 5, 0.03)
    value = faulty(bench, PTQ, 0.03)
    expected = accuracies(bench, loaded, maps, [plain] * 5)
    assert value["mean"] == pytest.approx(np.mean(expected))
    assert (value["min"], value["max"]) == (min(expected), max(expected))
    assert value["std"] == pytest.approx(np.std(expected, ddof=1))
    assert value["ci_low"] <= value["mean"] <= value["ci_high"]
    assert (value["site"], value["chips"], value["images"]) == ("weights", 5, IMAGES)
    assert value["bits"] == 4 * len(plain)
    # Protected: range checks see the wrong sums.
    zero = replace(PTQ, protect="zero")
    unit, _ = protection(bench, loaded, "zero")
    expected = accuracies(bench, loaded, maps, [plain] * 5, unit)
    assert faulty(bench, zero, 0.03)["mean"] == pytest.approx(np.mean(expected))


def test_faq_chooses_codes_for_each_chip_without_training(bench: Bench) -> None:
    loaded, design = network(bench, PTQ), replace(PTQ, method="ptq+faq")
    assert network(bench, design).result.key == loaded.result.key
    plain, maps = weight_codes(loaded.network), chips(loaded.network, 5, 0.03)
    unrounded = load_unrounded(loaded.result.folder / "unrounded.safetensors", loaded.network)
    written = []
    for chip in maps:
        faults = faults_of_weights(chip, weights=len(plain), bits=4, mapping=WeightMapping())
        written.append(fault_aware_codes(plain, faults, unrounded=unrounded))
    value = faulty(bench, design, 0.03)
    assert value["mean"] == pytest.approx(np.mean(accuracies(bench, loaded, maps, written)))
    assert value["mean"] > faulty(bench, PTQ, 0.03)["mean"]
    assert (value["faq"], value["conversion"]) == (True, "for each chip")


def test_the_same_flags_give_the_same_figures_and_nothing_twice(bench, tmp_path) -> None:
    again = open_tiny(tmp_path, "--method", "ptq", "--protect", "none,zero", *STUCK)
    assert faulty(again, PTQ, 0.03) == faulty(bench, PTQ, 0.03)
    loaded = network(bench, PTQ)
    assert accuracy_under_faults(bench, loaded, PTQ, 0.03, "val")[-1].cached
    # Other chips are another stage.
    more = open_tiny(
        bench.store.root.parent, "--method", "ptq", "--faults", "weights:0.03", "--fault-kind",
        "stuck", "--chips", "6",
    )  # fmt: skip
    assert not accuracy_under_faults(more, network(more, PTQ), PTQ, 0.03, "val")[-1].cached
    assert fault_rate(bench).value["how"] == "given by the user"


@pytest.mark.parametrize(("kind", "method"), [("flip", "ptq"), ("stuck", "ptq+faq")])
def test_calibrated_rate_costs_the_widest_unprotected_design_5_to_20_points(
    tmp_path: Path, kind: str, method: str
) -> None:
    words = ("--faults", "weights", "--fault-kind", kind, "--chips", "6", "--protect", "zero")
    bench = open_tiny(tmp_path, "--bits", "4,8", "--method", method, *words)
    found = fault_rate(bench).value
    assert (found["site"], found["kind"], found["chips"]) == ("weights", kind, 6)
    loaded = network(bench, bench.settings.space.widest())
    assert loaded.network.weight_bits == 8
    plain = weight_codes(loaded.network)
    clean, after = accuracy_with(bench, loaded, plain), []
    for chip in chips(loaded.network, 6, found["rate"], kind):
        faults = faults_of_weights(chip, weights=len(plain), bits=8, mapping=WeightMapping())
        after.append(accuracy_with(bench, loaded, faults.read(plain)))
    assert TARGET_DROP / 2 <= clean - np.mean(after) <= TARGET_DROP * 2


def test_curve_goes_from_published_rate_to_rate_until_too_much_is_lost(bench: Bench) -> None:
    rates = curve_rates(bench, 0.03)
    assert set(rates) == {0.03, *RATES} and list(rates) == sorted(rates)
    record = type("Trial", (), {"number": 7, "design": PTQ})
    curve = voltage_curve(bench, record, 0.03).value
    results = curve["results"]
    assert curve["number"] == 7
    assert [one["rate"] for one in results] == list(rates[: len(results)])
    assert all(one["golden"] - one["mean"] < 30 for one in results[:-1])
    assert faulty(bench, PTQ, 0.03) in results


def saved_chips(folder: Path, words: int, **flags) -> list[str]:
    paths = []
    for number, rate in enumerate(flags.pop("rates", (0.03, 0.03))):
        path = folder / f"chip{number}.safetensors"
        geometry = MemoryGeometry(words=words, bits=8)
        random_map(geometry, rate=rate, chip=number, **{"kind": "stuck", "seed": 9, **flags}).save(
            path
        )
        paths.append(str(path))
    return paths


def test_chip_files_take_the_place_of_drawn_chips_and_are_trained_for(tmp_path: Path) -> None:
    paths = saved_chips(tmp_path, 1000)
    method = ("--method", "ptq,ptq+faq,retrain", "--faults", "weights", "--chip", ",".join(paths))
    bench = open_tiny(tmp_path, *method)
    answer = fault_rate(bench).value
    assert (answer["rate"], answer["how"], answer["chips"]) == (0.03, "of the chip files", 2)
    maps = [FaultMap.load(Path(path)) for path in paths]
    loaded = network(bench, PTQ)
    expected = accuracies(bench, loaded, maps, [weight_codes(loaded.network)] * 2)
    assert faulty(bench, PTQ, 0.03)["mean"] == pytest.approx(np.mean(expected))
    # Retraining stores one set of codes, those for the merged map.
    design = replace(PTQ, method="retrain:majority")
    trained = network(bench, design)
    plain = weight_codes(trained.network)
    merged = merge_maps(maps, "majority")
    faults = faults_of_weights(merged, weights=len(plain), bits=4, mapping=WeightMapping())
    unrounded = load_unrounded(trained.result.folder / "unrounded.safetensors", trained.network)
    written = fault_aware_codes(plain, faults, unrounded=unrounded)
    value = faulty(bench, design, 0.03)
    expected = accuracies(bench, trained, maps, [written] * 2)
    assert value["mean"] == pytest.approx(np.mean(expected))
    assert value["conversion"] == "for the merged map (majority)"
    assert max(curve_rates(bench, 0.03)) == 0.03  # beyond it the files say nothing
    # What a point's folder says to store is what was measured, for each chip or for both.
    for name in ("retrain:majority", "ptq+faq"):
        design = replace(PTQ, method=name)
        loaded = network(bench, design)
        save_chip_codes(tmp_path / "codes.safetensors", bench, loaded, parse_method(name))
        stored = load_file(tmp_path / "codes.safetensors")
        expected = accuracies(bench, loaded, maps, [stored["0"], stored["1"]])
        assert faulty(bench, design, 0.03)["mean"] == pytest.approx(np.mean(expected))
        assert np.array_equal(stored["0"], stored["1"]) == (name != "ptq+faq")


def test_a_study_belongs_to_its_chips(tmp_path: Path) -> None:
    paths = saved_chips(tmp_path, 1000)
    found = []
    for path in (*paths, None):
        chip = ("--chip", path) if path else ()
        bench = open_tiny(tmp_path, "--method", "ptq", "--faults", "weights", *chip)
        found.append(open_stages(bench.settings, bench.store, NoProgress()).identity)
    assert found[0] != found[1] and "chip" not in found[2]


@pytest.mark.parametrize(
    ("method", "faults", "flags", "message"),
    [
        ("ptq", "weights", {"rates": (0.01, 0.02)}, "different rates, 0.01 to 0.02; give the one"),
        ("ptq", "weights:0.1", {}, "complete up to a rate of 0.03, 0.1 was asked for"),
        ("ptq+faq", "weights", {"kind": "flip"}, "faq is for stuck cells, and a chip of --chip"),
        ("retrain", "auto", {"kind": "flip"}, "only maps of stuck cells can be merged"),
    ],
)
def test_chips_that_do_not_fit_are_told_before_training(
    tmp_path, method, faults, flags, message
) -> None:
    paths = ",".join(saved_chips(tmp_path, 1000, **flags))
    with pytest.raises(InputError) as error:
        open_tiny(tmp_path, "--method", method, "--faults", faults, "--chip", paths)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_a_chip_that_cannot_hold_the_network_is_told(tmp_path: Path) -> None:
    (path, *_) = saved_chips(tmp_path, 60)
    with pytest.raises(InputError, match="cannot hold 792 weights"):
        open_tiny(tmp_path, "--method", "ptq", "--faults", "weights", "--chip", path)
