# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from integer_networks import brute_node, plain_network, random_codes, residual_network

from faultinj.chip_campaign import accuracy_over_chips, calibrate_chip_rate
from faultinj.chips import main
from faultinj.protection import Protection, forward, profile_bounds, run_node
from faultinj.random_maps import RandomChips, random_map
from quant import engine
from quant.faq import fault_aware_codes, save_unrounded
from quant.fault_map import FaultMap, MemoryGeometry
from quant.map_groups import merge_maps
from quant.network import Gemm, IntegerNetwork
from quant.weight_memory import WeightMapping, faults_of_weights, logits_of, weight_codes
from trilat.errors import InputError


def image_codes(network: IntegerNetwork, count: int) -> torch.Tensor:
    return torch.from_numpy(random_codes(network, count)).to(engine.code_dtype(network.input))


def chips_for(network: IntegerNetwork, count: int, rate: float, kind: str) -> list[FaultMap]:
    geometry = MemoryGeometry(words=len(weight_codes(network)), bits=8)
    return [random_map(geometry, rate=rate, kind=kind, seed=5, chip=c) for c in range(count)]


def brute_logits(network: IntegerNetwork, image: np.ndarray, weights: np.ndarray) -> list[int]:
    """Walk over the network in exact integers with weights taken one after the other."""
    values, taken = {"input": image}, 0
    for node in network.nodes:
        if isinstance(node, Gemm):
            part = weights[taken : taken + node.weight.size].reshape(node.weight.shape)
            taken += node.weight.size
            node = replace(node, weight=part)
        values[node.name] = brute_node(network, node, [values[i] for i in node.inputs])
    return values[network.nodes[-1].name].ravel().tolist()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("make", [plain_network, residual_network])
def test_faulty_logits_are_exact(make, bits: int) -> None:
    network = make(seed=bits, weight_bits=bits, act_bits=bits)
    # Every code of the word, the lowest included, which only a fault writes.
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    rng = np.random.default_rng(bits)
    weights = rng.integers(low, high + 1, len(weight_codes(network))).astype(np.int8)
    codes = image_codes(network, 3)
    found = logits_of(network, codes, weights)
    for image, scores in zip(codes.numpy().astype(np.int64), found, strict=True):
        assert brute_logits(network, image, weights) == scores.tolist()


def test_accuracy_counts_by_hand() -> None:
    network = plain_network(seed=1)
    codes = image_codes(network, 40)
    labels = engine.top1(engine.logits(network, codes)).numpy()
    labels[:10] = (labels[:10] + 1) % 10  # wrong without faults
    chips, rates = chips_for(network, 4, 0.05, "stuck"), (0.0, 0.002, 0.05)
    results = accuracy_over_chips(network, codes, labels, chips, rates=rates, seed=3)
    written = weight_codes(network)
    for rate, result in zip(rates, results, strict=True):
        plain, robust, flipped = [], [], 0
        for chip in chips:
            faults = faults_of_weights(
                chip.at(rate), weights=len(written), bits=8, mapping=WeightMapping()
            )
            read = faults.read(written)
            flipped += sum(
                bin((int(a) ^ int(b)) & 255).count("1") for a, b in zip(read, written, strict=True)
            )
            top = engine.top1(logits_of(network, codes, read)).numpy()
            plain.append(100 * (top == labels).mean())
            robust.append(100 * (top == labels)[10:].sum() / 40)
        assert result.clean == 75.0
        assert result.plain.mean == pytest.approx(np.mean(plain))
        assert result.robust.mean == pytest.approx(np.mean(robust))
        assert result.plain.std == pytest.approx(np.std(plain, ddof=1))
        assert (result.plain.min, result.plain.max) == (min(plain), max(plain))
        assert result.plain.ci_low <= result.plain.mean <= result.plain.ci_high
        assert result.flipped_bits == pytest.approx(flipped / (4 * 8 * len(written)))
    assert results[0].plain.mean == results[0].robust.mean == 75.0
    assert results[2].robust.mean < 75.0


@pytest.mark.parametrize("kind", ["clip", "zero"])
def test_a_protected_design_checks_wrong_sums(kind: str) -> None:
    network = plain_network(seed=1)
    codes = image_codes(network, 40)
    # Bounds from few images are tight, so that faulty sums leave them.
    unit = Protection(kind=kind, granularity="channel", bounds=profile_bounds(network, codes[:4]))
    golden, _ = forward(network, codes, unit)
    labels = engine.top1(golden[network.nodes[-1].name])
    chips, written = chips_for(network, 3, 0.02, "stuck"), weight_codes(network)
    result, *_ = accuracy_over_chips(network, codes, labels, chips, rates=[0.02], protection=unit)
    assert result.clean == 100.0
    expected, violated = [], 0
    for chip in chips:
        faults = faults_of_weights(chip, weights=len(written), bits=8, mapping=WeightMapping())
        read, taken = faults.read(written), 0
        values, violations = {"input": codes}, torch.zeros(len(codes), dtype=torch.int64)
        for node in network.nodes:
            if isinstance(node, Gemm):
                part = read[taken : taken + node.weight.size].reshape(node.weight.shape)
                taken += node.weight.size
                node = replace(node, weight=part)
            inputs = [values[name] for name in node.inputs]
            values[node.name] = run_node(network, node, inputs, unit, violations)
        violated += int(violations.sum())
        top = engine.top1(values[network.nodes[-1].name])
        expected.append(100 * float((top == labels).double().mean()))
    assert violated > 0
    assert result.plain.mean == pytest.approx(np.mean(expected))
    bare, *_ = accuracy_over_chips(network, codes, labels, chips, rates=[0.02])
    assert bare.plain.mean != result.plain.mean


def test_calibration_finds_the_loss_over_chips() -> None:
    network = plain_network(seed=1)
    codes = image_codes(network, 60)
    labels = engine.top1(engine.logits(network, codes))
    geometry = MemoryGeometry(words=len(weight_codes(network)), bits=8)
    chips = RandomChips(geometry=geometry, chips=5, rate=0.0, kind="flip", seed=2)
    rate = calibrate_chip_rate(network, codes, labels, chips, target_drop=10)
    assert rate == calibrate_chip_rate(network, codes, labels, chips, target_drop=10)
    found, *_ = accuracy_over_chips(network, codes, labels, chips.at(rate), rates=[rate])
    assert 5 <= 100 - found.plain.mean <= 20
    with pytest.raises(InputError, match="no fault rate makes this network lose about 10 points"):
        calibrate_chip_rate(network, codes[:4], np.full(4, -1), chips)


def test_faq_loses_less() -> None:
    network = plain_network(seed=1)
    codes = image_codes(network, 60)
    labels = engine.top1(engine.logits(network, codes))
    chips = chips_for(network, 6, 0.02, "stuck")
    plain, faq = (
        accuracy_over_chips(network, codes, labels, chips, rates=[0.02], faq=faq)[0]
        for faq in (False, True)
    )
    assert faq.plain.mean > plain.plain.mean + 5
    assert (plain.faq, faq.faq) == (False, True)


def test_a_group_may_share_one_set_of_codes() -> None:
    network = plain_network(seed=1)
    codes = image_codes(network, 30)
    labels = engine.top1(engine.logits(network, codes))
    chips, rate = chips_for(network, 3, 0.01, "stuck"), 0.005
    found = accuracy_over_chips(
        network, codes, labels, chips, rates=[rate, 0.01], faq=True, merge="ignore"
    )[0]
    written, size = weight_codes(network), len(weight_codes(network))
    faults = [
        faults_of_weights(m, weights=size, bits=8, mapping=WeightMapping())
        for m in (merge_maps([c.at(rate) for c in chips], "ignore"), *(c.at(rate) for c in chips))
    ]
    stored = fault_aware_codes(written, faults[0])
    expected = [
        100
        * float((engine.top1(logits_of(network, codes, f.read(stored))) == labels).double().mean())
        for f in faults[1:]
    ]
    assert found.plain.mean == pytest.approx(np.mean(expected))
    assert found.plain.min == min(expected)
    with pytest.raises(InputError, match="only maps of stuck cells"):
        accuracy_over_chips(
            network, codes, labels, chips_for(network, 2, 0.01, "flip"), rates=[rate], faq=True,
            merge="ignore",
        )  # fmt: skip


def test_nothing_to_measure_is_told() -> None:
    network = plain_network(seed=1)
    codes = image_codes(network, 2)
    chips = chips_for(network, 1, 0.01, "flip")
    for images, some, rates in ((codes[:0], chips, [0.1]), (codes, [], [0.1]), (codes, chips, [])):
        with pytest.raises(InputError, match="at least one image, one rate and one chip"):
            accuracy_over_chips(network, images, np.zeros(len(images)), some, rates=rates)
    with pytest.raises(InputError, match=r"complete up to a rate of 0\.01"):
        accuracy_over_chips(network, codes, np.zeros(2), chips, rates=[0.1])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("network")
    network = plain_network(seed=1)
    network.save(folder / "net.safetensors")
    save_unrounded(folder / "unrounded.safetensors", network, weight_codes(network) + 0.25)
    return folder / "net.safetensors", folder / "unrounded.safetensors"


def test_the_command_prints_and_writes(files, tmp_path, capsys) -> None:
    network, unrounded = files
    flags = ["--network", str(network), "--images", "20", "--json", str(tmp_path / "a.json")]
    drawn = ["--chips", "3", "--kind", "stuck", "--rates", "0.02,0.001", "--words-per-row", "4"]
    assert main([*flags, *drawn, "--save-chips", str(tmp_path / "chips")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "3 chips, 20 images" in out and "0.1 %" in out and "2 %" in out
    first = json.loads((tmp_path / "a.json").read_text())
    assert [r["rate"] for r in first["results"]] == [0.001, 0.02]
    saved = sorted((tmp_path / "chips").iterdir())
    assert len(saved) == 3
    again = [*flags, "--rates", "0.02,0.001", "--chip", *map(str, saved)]
    assert main(again) == 0
    assert json.loads((tmp_path / "a.json").read_text())["results"] == first["results"]
    assert main([*again, "--faq", "--unrounded", str(unrounded)]) == 0
    assert json.loads((tmp_path / "a.json").read_text())["results"][0]["faq"]
    assert main([*flags, "--profile", "profile2", "--chips", "1", "--words", "64", "--tiled"]) == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--rates", "much"], "rates must be numbers separated by commas, not 'much'"),
        (["--rates", "1.5"], "a fault rate must be a probability in 0..1, not 1.5"),
        (["--chips", "0"], "--chips must be at least 1, not 0"),
        (["--kind", "stock"], "unknown kind of fault 'stock'; did you mean stuck"),
        (["--profile", "chip9"], "unknown profile 'chip9'"),
        (["--words", "64"], "cannot hold 990 weights from slot 0 on"),
        (["--word-bits", "4"], "do not fit words of 4 bits"),
        (["--chip", "none.safetensors"], "no such chip file: none.safetensors"),
        (["--unrounded", "x.safetensors"], "--unrounded is for --faq"),
        (["--faq", "--unrounded", "x.safetensors"], "no such file of unrounded weights"),
        (["--merge", "ignore"], "--merge is for --faq"),
        (["--faq", "--merge", "vote"], "unknown merge policy 'vote'"),
        (["--split", "all"], "unknown split 'all'"),
        (["--offset", "-1"], "the offset of the weights must be at least 0"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_flags(files, tmp_path, capsys, flags: list[str], message: str) -> None:
    output = tmp_path / "a.json"
    assert main(["--network", str(files[0]), "--json", str(output), *flags]) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if "error" in line]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in captured.err and not captured.out and not output.exists()
