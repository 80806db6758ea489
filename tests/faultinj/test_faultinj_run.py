# SPDX-License-Identifier: Apache-2.0
"""The commands: tables and files for good input, one line and exit code 2 for bad."""

from __future__ import annotations

import json
import math
import re

import pyarrow.parquet as pq
import pytest
from integer_networks import plain_network

from faultinj.compare import main as compare
from faultinj.faults import MemoryFault, RegisterFault, WeightFault, to_json
from faultinj.run import main


@pytest.fixture(scope="module")
def network_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "net.safetensors"
    plain_network(seed=1).save(path)
    return path


def test_a_campaign_from_the_command_line(network_file, tmp_path, capsys):
    folder = tmp_path / "run"
    flags = [
        "--network", str(network_file), "--images", "20", "--site", "pe_activation", "--protect",
        "clip", "--rows", "4", "--cols", "8", "--margin", "0.1", "-o", str(folder),
    ]  # fmt: skip
    assert main(flags) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "97 experiments of 1 flip in pe_activation" in out
    for word in ("masked", "sdc_critical", "conv1", "critical by bit", "bits x P(SDC critical)"):
        assert word in out
    assert pq.read_table(folder / "rows.parquet").num_rows == 97
    first = json.loads((folder / "summary.json").read_text())
    assert first["n"] == 97 and first["protection"] == "clip" and first["confidence"] == 0.95
    assert sum(row["n"] for row in first["by_pe"]) == 97
    assert main(flags) == 0
    assert json.loads((folder / "summary.json").read_text()) == first


def test_the_report_opens_without_network_and_says_what_it_covers(network_file, tmp_path):
    flags = ["--network", str(network_file), "--images", "9", "--faults", "120", "--stratify",
             "layer,bit", "--looks", "2", "-o", str(tmp_path / "run")]  # fmt: skip
    assert main(flags) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    inside = json.loads(re.search(r'id="summary">(.*?)</script>', page, re.DOTALL)[1])
    assert inside == json.loads((tmp_path / "run" / "summary.json").read_text())
    body = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", body)
    for words in ("configuration memory", "SETs", "32 strata", "all looks hold together",
                  "Most critical sites", "reweighted"):  # fmt: skip
        assert words in body, words
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])
    heat = figures["layer-bit"]["data"][0]
    assert heat["y"] == ["input", "conv1", "conv2", "fc1"] and heat["x"] == list("01234567")
    cells = {(row["layer"], row["bit"]): row["rate"] for row in inside["by_layer_bit"]}
    assert heat["z"][1][7] == pytest.approx(100 * cells["conv1", 7])
    for name in set(re.findall(r'data-figure="([^"]+)"', body)):
        assert name in figures


def test_more_sets_of_faults_than_a_float_can_count(network_file, tmp_path, capsys):
    flags = ["--network", str(network_file), "--images", "2", "--faults", "5", "--multiplicity",
             "200", "-o", str(tmp_path / "run")]  # fmt: skip
    assert main(flags) == 0
    population = json.loads((tmp_path / "run" / "summary.json").read_text())["population"]
    assert population > 10**309
    exponent = len(str(population)) - 1
    assert f"e+{exponent} experiments" in (tmp_path / "run" / "report.html").read_text()


def test_exhaustive_stuck_and_rate(network_file, tmp_path, capsys):
    path = tmp_path / "tiny.safetensors"
    plain_network(seed=2, weight_bits=2, act_bits=2, shape=(1, 4, 4)).save(path)
    common = ["--network", str(path), "--images", "1"]
    assert main([*common, "--exhaustive", "--kind", "stuck1", "-o", str(tmp_path / "all")]) == 0
    summary = json.loads((tmp_path / "all" / "summary.json").read_text())
    assert summary["n"] == summary["population"] == summary["bits"] == 312
    assert summary["failure_factor"] is None  # of flips alone
    capsys.readouterr()
    assert main([*common, "--rate", "0.01", "-o", str(tmp_path / "rate")]) == 0
    assert "bootstrap over 8 fault maps" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "rate" / "summary.json").read_text())["rate"] == 0.01
    assert main([*common, "--rate", "0.02", "-o", str(tmp_path / "rate")]) == 2
    assert "holds another campaign (rate is 0.01, not 0.02)" in capsys.readouterr().err


def test_the_top1_bound_and_the_fields_of_the_array(network_file, tmp_path, capsys):
    common = ["--network", str(network_file), "--images", "15", "--faults", "200"]
    assert main([*common, "-o", str(tmp_path / "all")]) == 0
    flags = [*common, "--top1-bound", "--bounds", "layer", "-o", str(tmp_path / "bound")]
    capsys.readouterr()
    assert main(flags) == 0
    assert "the class was proven not to change" in " ".join(capsys.readouterr().out.split())
    every, bound = (
        {
            row["experiment"]: row
            for row in pq.read_table(tmp_path / name / "rows.parquet").to_pylist()
        }
        for name in ("all", "bound")
    )
    proven = [i for i in bound if bound[i]["outcome"] == "not_critical"]
    assert 0 < len(proven) < 200
    for i, row in bound.items():
        assert row["faults"] == every[i]["faults"] and row["faulty_top1"] == every[i]["faulty_top1"]
        if i in proven:
            assert row["logit_change"] is None and every[i]["outcome"] != "sdc_critical"
        else:
            assert (row["outcome"], row["logit_change"]) == (
                every[i]["outcome"], every[i]["logit_change"])  # fmt: skip
    header = json.loads((tmp_path / "bound" / "campaign.json").read_text())
    assert header["top1_bound"] is True and header["accelerator"]["bounds"] == "layer"
    assert "nobody knows which" in (tmp_path / "bound" / "report.html").read_text()
    assert main([flag for flag in flags if flag != "--top1-bound"]) == 2
    one_line(capsys, "holds another campaign")


def test_two_designs_on_one_list(network_file, tmp_path, capsys):
    common = ["--network", str(network_file), "--images", "15", "--site", "activations"]
    a, b = tmp_path / "a", tmp_path / "b"
    assert main([*common, "--faults", "200", "-o", str(a)]) == 0
    replay = ["--faults-from", str(a / "rows.parquet")]
    assert main([*common, *replay, "--protect", "zero", "-o", str(b)]) == 0
    assert main([*common, *replay, "--protect", "clip", "-o", str(b)]) == 2
    capsys.readouterr()
    assert compare([str(a), str(b), "--json", str(tmp_path / "pairs.json")]) == 0
    assert "McNemar's exact p = " in capsys.readouterr().out
    found = json.loads((tmp_path / "pairs.json").read_text())
    one, other = (
        {r["experiment"]: r["outcome"] == "sdc_critical" for r in pq.read_table(p).to_pylist()}
        for p in (a / "rows.parquet", b / "rows.parquet")
    )
    assert found["only_a"] == sum(one[i] and not other[i] for i in one)
    assert found["only_b"] == sum(other[i] and not one[i] for i in one)
    assert found["difference"] == pytest.approx((found["only_b"] - found["only_a"]) / 200)
    assert found["ci_low"] < found["difference"] < found["ci_high"]
    discordant = found["only_a"] + found["only_b"]
    tail = sum(math.comb(discordant, k) for k in range(min(found["only_a"], found["only_b"]) + 1))
    assert found["p_value"] == pytest.approx(min(1.0, tail * 2 / 2**discordant))
    assert main([*common, "--faults", "200", "--seed", "1", "-o", str(tmp_path / "c")]) == 0
    capsys.readouterr()
    assert compare([str(a), str(tmp_path / "c")]) == 2
    assert "met different faults, the first in experiment 0" in capsys.readouterr().err
    assert compare([str(a), str(tmp_path / "none.parquet")]) == 2
    assert "no such fault list" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--site", "activation"], "unknown fault site 'activation'; did you mean activations"),
        (["--site", "psum", "--dataflow", "os"], "unknown site of an array with dataflow os"),
        (["--kind", "flop"], "unknown kind of fault 'flop'; did you mean flip"),
        (["--burst", "9"], "no word of activations has 9 adjacent bits"),
        (["--margin", "0"], "margin must be between 0 and 1, not 0"),
        (["--margin", "1.5", "--faults", "9"], "margin must be between 0 and 1, not 1.5"),
        (["--margin", "wide"], "argument --margin: invalid float value: 'wide'"),
        (["--confidence", "95"], "confidence must be between 0 and 1, not 95"),
        (["--faults", "0"], "faults must be at least 1, not 0"),
        (["--faults", "9", "--exhaustive"], "--faults and --exhaustive exclude each other"),
        (["--exhaustive"], "a campaign has at most 1000000 experiments, not"),
        (["--stratify", "image"], "unknown stratum 'image' (accepted: layer, bit)"),
        (["--looks", "0"], "looks must be in 1..20, not 0"),
        (["--spending", "all"], "unknown spending of alpha 'all'"),
        (["--multiplicity", "0"], "multiplicity must be at least 1, not 0"),
        (["--images", "-3"], "--images must be at least 1, not -3"),
        (["--seed", "-1"], "seed must be at least 0, not -1"),
        (["--rate", "0.7"], "the fault rate must be a probability in 0..0.5, not 0.7"),
        (["--rows", "0"], "rows must be an integer in 1..64, not 0"),
        (["--protect", "cut"], "protect must be one of none, clip, zero, not 'cut'"),
        (["--granularity", "pixel", "--protect", "clip"], "unknown granularity 'pixel'"),
        (["--act-sign", "none"], "act_sign must be one of runtime, unsigned, signed, not 'none'"),
        (
            ["--act-sign", "signed"],
            "conv2 reads unsigned activations, the accelerator has act_sign",
        ),
        (["--act-sign", "signed", "--rate", "0.01"], "conv2 reads unsigned activations"),
        (["--bounds", "word"], "bounds must be one of channel, layer, not 'word'"),
        (
            ["--bounds", "layer", "--granularity", "channel", "--protect", "clip"],
            "bounds per channel do not run on an accelerator with bounds layer",
        ),
        (
            [
                "--bounds",
                "layer",
                "--granularity",
                "channel",
                "--protect",
                "clip",
                "--rate",
                "0.01",
            ],
            "bounds per channel do not run on an accelerator with bounds layer",
        ),
        (["--top1-bound", "--protect", "clip"], "the top-1 bound stops before all violations"),
        (["--top1-bound", "--rate", "0.01"], "--top1-bound and --rate exclude each other"),
        (["--split", "all"], "unknown split 'all'"),
        (["--data", "digit"], "unknown data set 'digit'"),
        (["--device", "gpu9"], "cannot compute on device 'gpu9' (accepted: cpu, cuda)"),
        (["--memory", "0"], "--memory must be in 0.0625..1024 GiB, not 0"),
        (["--faults-from", "none.parquet"], "no such fault list: none.parquet"),
        (["--model", "lenet5"], "one of the arguments --network and --model is required"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_flags(network_file, tmp_path, capsys, flags, message):
    output = tmp_path / "run"
    assert main(["--network", str(network_file), "-o", str(output), *flags]) == 2
    one_line(capsys, message)
    assert not (output / "rows.parquet").exists()


def one_line(capsys, message):
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if "error" in line]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in captured.err and not captured.out


REGISTER = {
    "layer": "conv1", "image": 0, "tile": 0, "register": "pe_activation", "row": 0, "col": 0,
    "bits": (0,), "cycle": 9,
}  # fmt: skip
MEMORY = {"tensor": "conv1", "image": 0, "element": 0, "bits": (0,)}


@pytest.mark.parametrize(
    "fault,message",
    [
        (RegisterFault(**REGISTER | {"row": 4}), "no pe_activation register at row 4, column 0"),
        (RegisterFault(**REGISTER | {"col": 8}), "no pe_activation register at row 0, column 8"),
        (RegisterFault(**REGISTER | {"bits": (9,)}), "pe_activation has bits 0..8, not (9,)"),
        (RegisterFault(**REGISTER | {"cycle": 9999}), "output tile 0 of conv1 has cycles -18.."),
        (RegisterFault(**REGISTER | {"cycle": -99}), "output tile 0 of conv1 has cycles -18.."),
        (RegisterFault(**REGISTER | {"tile": 1}), "conv1 has output tiles 0..0, not 1"),
        (RegisterFault(**REGISTER | {"layer": "conv9"}), "the network has no layer 'conv9'"),
        (WeightFault(layer="fc1", image=0, element=384, bits=(0,)), "fc1 has weights 0..383"),
        (WeightFault(layer="fc1", image=0, element=0, bits=(8,)), "a stored weight has bits 0..7"),
        (RegisterFault(**REGISTER | {"register": "accumulator"}), "dataflow ws has no accumulator"),
        (MemoryFault(**MEMORY | {"tensor": "fc2"}), "no stored tensor 'fc2' (there are: input"),
        (MemoryFault(**MEMORY | {"element": 384}), "conv1 has elements 0..383, not 384"),
        (MemoryFault(**MEMORY | {"bits": (3, 8)}), "a stored activation has bits 0..7, not [3, 8]"),
        (MemoryFault(**MEMORY | {"image": 5}), "images are 0..4, not 5"),
    ],
)
def test_faults_outside_the_design(network_file, tmp_path, capsys, fault, message):
    path = tmp_path / "faults.json"
    good = [to_json(MemoryFault(**MEMORY)), [to_json(MemoryFault(**MEMORY | {"element": 7}))]]
    flags = ["--network", str(network_file), "--images", "5", "--rows", "4", "--cols", "8",
             "--faults-from", str(path), "-o", str(tmp_path / "run")]  # fmt: skip
    path.write_text(json.dumps([*good, to_json(fault)]))
    assert main(flags) == 2
    one_line(capsys, message)
    assert not (tmp_path / "run").exists()
    path.write_text(json.dumps(good))
    assert main(flags) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["n"] == 2 and summary["population"] is None


@pytest.mark.parametrize(
    "text,message",
    [
        ("{}", "is no list of faults"),
        ("[", "is no JSON"),
        ("[]", "has no faults"),
        ("[[]]", "experiment 0: an experiment has at least one fault"),
        ('[{"site": "disk", "bits": [1]}]', "experiment 0: a fault's site is memory"),
        ("[3]", "experiment 0"),
    ],
)
def test_files_that_are_no_fault_list(network_file, tmp_path, capsys, text, message):
    path = tmp_path / "faults.json"
    path.write_text(text)
    assert main(["--network", str(network_file), "--faults-from", str(path)]) == 2
    one_line(capsys, message)
    broken = tmp_path / "faults.parquet"
    broken.write_bytes(b"PAR1 is not enough")
    assert main(["--network", str(network_file), "--faults-from", str(broken)]) == 2
    one_line(capsys, "is no Parquet file of faults")


def test_lists_of_another_configuration_and_folders(network_file, tmp_path, capsys):
    common = ["--network", str(network_file), "--images", "5", "--site", "pe_activation"]
    array = ["--rows", "4", "--cols", "8"]
    assert main([*common, *array, "--faults", "20", "-o", str(tmp_path / "a")]) == 0
    capsys.readouterr()
    replay = ["--faults-from", str(tmp_path / "a" / "rows.parquet")]
    assert main([*common, *replay, "--rows", "8", "--cols", "8"]) == 2
    one_line(capsys, "lists faults of another configuration: rows 4 instead of 8")
    assert main([*common, *array, "--faults", "21", "-o", str(tmp_path / "a")]) == 2
    one_line(capsys, "holds another campaign (plan.faults is 20, not 21)")
    inside = tmp_path / "a" / "rows.parquet" / "deeper"
    assert main([*common, *array, "--faults", "20", "-o", str(inside)]) == 2
    one_line(capsys, "cannot write to")


def test_bad_network_files(tmp_path, capsys):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors here")
    assert main(["--network", str(broken)]) == 2
    assert "is not a safetensors file" in capsys.readouterr().err
    assert main(["--network", str(tmp_path / "none.safetensors")]) == 2
    assert "no such network file" in capsys.readouterr().err
    assert main([]) == 2
    assert "one of the arguments --network and --model is required" in capsys.readouterr().err
