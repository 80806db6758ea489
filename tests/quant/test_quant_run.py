# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from json import loads
from pathlib import Path

import onnx
import pytest

from faultinj.chips import main as campaign
from faultinj.random_maps import random_map
from faultinj.run import main as faults
from quant.fault_map import MemoryGeometry
from quant.network import IntegerNetwork
from quant.run import main

SOURCE = """
from torch import nn

input_shape = (1, 8, 8)


def small(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(128, num_classes),
    )


def curved(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, num_classes))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_trains_quantizes_compares_and_writes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, graph = tmp_path / "out" / "net.safetensors", tmp_path / "out" / "net.onnx"
    arguments = ["--model", f"{source}:small", "--weight-bits", "3", "--act-bits", "5"]
    arguments += ["--float-epochs", "1", "--epochs", "1", "--jobs", "1"]
    assert main([*arguments, "-o", str(output), "--onnx", str(graph)]) == 0
    printed = capsys.readouterr().out
    network = IntegerNetwork.load(output)
    assert (network.weight_bits, network.act_bits) == (3, 5)
    assert network.content_hash() in printed
    assert "5 tensors x 32 images" in printed
    words = 32 * (64 + 512 + 128 + 128 + 10)
    assert f"{words} of {words} words equal" in printed
    onnx.checker.check_model(onnx.load(graph))


def test_retrains_for_chips_and_their_file_fits_the_campaign(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chips = [tmp_path / f"chip{k}.safetensors" for k in range(2)]
    for number, path in enumerate(chips):
        geometry = MemoryGeometry(words=1352, bits=8)
        random_map(geometry, rate=0.02, kind="stuck", seed=0, chip=number).save(path)
    network, unrounded = tmp_path / "net.safetensors", tmp_path / "unrounded.safetensors"
    arguments = ["--model", f"{source}:small", "--float-epochs", "2", "--epochs", "1"]
    arguments += ["--jobs", "1", "--method", "retrain", "--chip", *map(str, chips)]
    assert main([*arguments, "-o", str(network), "--unrounded", str(unrounded)]) == 0
    assert "on the worst of 2" in capsys.readouterr().out
    assert IntegerNetwork.load(network).metadata["method"] == "retrain:majority"
    flags = ["--network", str(network), "--unrounded", str(unrounded), "--rates", "0.02", "--faq"]
    json = tmp_path / "chips.json"
    flags += ["--chip", *map(str, chips), "--merge", "majority", "--json", str(json)]
    assert campaign(flags) == 0
    assert loads(json.read_text())["results"][0]["plain"]["min"] > 50


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("vgg16:0.1", marks=pytest.mark.nightly),
        pytest.param("resnet32:0.25", marks=pytest.mark.nightly),
        pytest.param("mobilenetv2:0.1", marks=pytest.mark.slow),
    ],
)
def test_deep_networks_go_all_the_way(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, campaign_folder = tmp_path / "net.safetensors", tmp_path / "campaign"
    arguments = ["--model", model, "--weight-bits", "6", "--act-bits", "5", "--jobs", "1"]
    arguments += ["--float-epochs", "1", "--epochs", "1", "-o", str(output)]
    assert main([*arguments, "--onnx", str(tmp_path / "net.onnx")]) == 0
    found = re.search(r"engine: (\d+) of (\d+) words equal", capsys.readouterr().out)
    assert found is not None and found[1] == found[2]
    assert IntegerNetwork.load(output).name == model
    flags = ["--network", str(output), "--images", "4", "--faults", "40", "--rows", "4"]
    flags += ["--cols", "4", "--site", "pe_activation", "-o", str(campaign_folder)]
    assert faults(flags) == 0
    assert loads((campaign_folder / "summary.json").read_text())["n"] == 40


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weight-bits", "9"], "weight bits must be an integer in 2..8, not 9"),
        (["--act-bits", "1"], "activation bits must be an integer in 2..8, not 1"),
        (["--method", "qta"], "did you mean qat"),
        (["--method", "retrain"], "method retrain needs the fault map of a chip"),
        (["--method", "retrain", "--chip", "none"], "no such chip file: none"),
        (["--method", "retrain", "--chip", "SMALL"], "cannot hold 61470 weights from slot 0"),
        (["--method", "qat", "--chip", "SMALL"], "method qat has no use for a chip"),
        (["--method", "randbet:2"], "needs a number above 0 and at most 0.5"),
        (["--model", "lenet"], "lenet5"),
        (["--model", "resnet32:0"], "the width must be a number above 0 and at most 4"),
        (["--data", "imagenet:224"], "'224' is not what to take of a set"),
        (["--model", "SOURCE:curved"], "unsupported layer Tanh at '2'"),
        (["--data", "digit"], "digits"),
        (["--weights", "missing.safetensors"], "missing.safetensors"),
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["-o", "."], "is a folder"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    flags: list[str],
    message: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    small = tmp_path / "chip"
    random_map(MemoryGeometry(words=64, bits=8), rate=0.1, seed=0).save(small)
    flags = [flag.replace("SOURCE", str(source)).replace("SMALL", str(small)) for flag in flags]
    if "-o" not in flags:
        flags += ["-o", "net.safetensors"]
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("python -m quant.run: error: ")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ""] == ["mine.py"]


def test_bad_flag_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--weight-bits", "four"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
