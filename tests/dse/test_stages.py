# SPDX-License-Identifier: Apache-2.0
"""The real rooms, end to end, on LeNet-5 and digits: small, but nothing is a stand-in."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from dse import space
from dse.records import RunRecord
from dse.report import write_report
from dse.run import run
from dse.settings import parse
from dse.stages import open_stages
from hdl.config import AcceleratorConfig
from hdl.tile import round_half_even_shift
from quant import engine, quantize
from quant.data import load_data, to_input
from quant.network import IntegerNetwork
from trilat.progress import NoProgress

pytestmark = pytest.mark.slow
WORDS = "--model lenet5 --method ptq --bits 4,8 --rows 2 --cols 3 --protect none,clip --trials 5"


def search(out, *words):
    settings = parse([*WORDS.split(), "--jobs", "1", "--out", str(out), *words])
    with Path("/dev/null").open("w") as sink:
        return run(
            settings, open_stages, write_report, console=Console(file=sink), progress=NoProgress()
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRILAT_CACHE", str(folder / "cache"))
        yield folder / "out", search(folder / "out")


def point_folders(finished):
    out, record = finished
    return [(p, out / p.folder) for p in record.points]


def test_methods_of_the_space_are_those_of_quantization():
    assert space.METHODS == quantize.METHODS


def test_what_is_written(finished):
    out, record = finished
    assert (out / "report.html").stat().st_size > 10_000
    assert (out / "pareto.csv").exists() and (out / "pareto.json").exists()
    assert RunRecord.from_json(json.loads((out / "run.json").read_text())) == record
    assert len(record.trials) == 5 and record.model["float_val_accuracy"] > 80
    for counts in record.model["agreement"]:
        assert counts["equal"] == counts["words"] > 0
    for trial in record.trials:
        time_us = trial.cycles * trial.cost["delay_ns"] / 1000
        assert trial.objectives["time_us"] == pytest.approx(time_us)
        area = trial.cost["lut"] + 242 * trial.cost["dsp"] + 380 * trial.cost["bram36"]
        assert trial.objectives["lut_equivalent"] == pytest.approx(area)
        assert trial.objectives["faulty_accuracy"] == trial.faulty["mean"]


def test_a_given_second_run_computes_nothing(finished, monkeypatch):
    out, record = finished
    monkeypatch.setenv("TRILAT_CACHE", str(out.parent / "cache"))
    before = (out / "run.json").read_bytes()
    assert search(out) == record
    assert (out / "run.json").read_bytes() == before


def test_the_chosen_point_is_verified_in_rtl(finished):
    _, record = finished
    (verified,) = [p.verification for p in record.points if p.verification]
    assert verified["outputs_equal"] == verified["outputs_compared"] > 0
    assert verified["faults_predicted"] == verified["faults_replayed"] > 0


def test_accuracies_are_those_of_the_written_network(finished):
    _, record = finished
    data = load_data("digits", seed=0)
    trials = {t.number: t for t in record.trials}
    for point, folder in point_folders(finished):
        trial = trials[point.number]
        network = IntegerNetwork.load(folder / "network.safetensors")
        assert network.content_hash() == trial.network_hash
        if trial.design.protect != "none":
            continue
        for split, value in (
            (data.val, trial.objectives["accuracy"]),
            (data.test, point.test_accuracy),
        ):
            images = to_input(split.images, network.input_shape, data.mean, data.std)
            codes = engine.image_codes(network, images)
            labels = torch.from_numpy(split.labels)
            assert engine.accuracy(network, codes, labels) == pytest.approx(value)


def elements(beat, count, bits, signed):
    word = int(beat, 16)
    values = [(word >> (i * bits)) & ((1 << bits) - 1) for i in range(count)]
    return [v - (1 << bits) if signed and v >> (bits - 1) else v for v in values]


def test_vectors_hold_what_the_accelerator_must_answer(finished):
    """Decode the streams as docs/architecture.md lays them out, and compute again from them."""
    for _, folder in point_folders(finished):
        config = AcceleratorConfig.from_json(
            json.loads((folder / "config.json").read_text())["accelerator"]
        )
        for vector in json.loads((folder / "vectors.json").read_text()):
            words = [int(word, 16) for word in vector["s_axis_param"]]
            m, k_tiles = words[0] & 0xFFFF, words[0] >> 16
            signed_in, raw = words[1] & 1, words[1] >> 1 & 1
            acts = np.array(
                [elements(b, config.rows, config.act_bits, signed_in) for b in vector["s_axis_act"]]
            ).reshape(k_tiles, m, config.rows)
            blocks = [
                elements(b, config.cols, config.weight_bits, True) for b in vector["s_axis_weight"]
            ]
            weights = np.array(blocks).reshape(k_tiles, config.rows, config.cols)[:, ::-1]
            bias = np.array([w - (1 << 32) if w >> 31 else w for w in words[2::2]])
            if config.protect == "clip":
                low, high = (code(words[1] >> k, config, signed_in) for k in (8, 16))
                acts = acts.clip(low, high)
            total = np.einsum("kmr,krc->mc", acts, weights) + bias
            expected = np.array(vector["expected_rows"])
            assert bool(raw) == vector["raw"]
            if not raw:
                signed_out = words[1] >> 2 & 1
                shift = np.array([w & 31 for w in words[3::2]])
                low, high = (
                    np.array([code(w >> k, config, signed_out) for w in words[3::2]])
                    for k in (8, 16)
                )
                total = round_half_even_shift(total, shift).clip(low, high)
            np.testing.assert_array_equal(expected, total)


def code(word, config, signed):
    return elements(f"{word & 0xFF:x}", 1, config.act_bits, signed)[0]


def test_every_point_can_be_rebuilt(finished):
    for point, folder in point_folders(finished):
        names = {path.name for path in folder.iterdir()}
        assert {"accelerator.v", "config.json", "network.onnx", "area_delay.json"} <= names
        assert any("hdl.gen" in line for line in point.rebuild)
        assert "module trilat_accelerator" in (folder / "accelerator.v").read_text()
