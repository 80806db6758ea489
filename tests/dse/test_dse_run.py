# SPDX-License-Identifier: Apache-2.0
import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from test_search import objectives

from dse import run as command
from dse import settings as flags
from dse.evaluation import Answer, Evaluation, Point, Stages
from dse.records import OBJECTIVES, PointRecord, RunRecord
from dse.report import write_report
from dse.settings import default_out, parse
from trilat.errors import InputError
from trilat.files import content_hash
from trilat.progress import NoProgress

FAULTY = {"rate": 1e-3, "golden": 97.0, "mean": 80.0, "std": 1.0, "min": 70.0, "max": 90.0}
FAULTY |= {"ci_low": 79.0, "ci_high": 81.0, "repetitions": 4, "images": 10, "seed": 0}
AGREEMENT = {"weight_bits": 4, "act_bits": 4, "equal": 9, "words": 9}
VERIFIED = {"outputs_compared": 5, "outputs_equal": 5, "agrees": True}
VERIFIED |= {"faults_replayed": 2, "faults_predicted": 2}


def fake_stages(settings, store, progress, *, calls=None, data="digits", fail=None):
    """Stages that cost nothing: objectives by formula, through the real stage cache."""
    calls = [] if calls is None else calls

    def stage(name, inputs, value=None):
        def compute(folder):
            calls.append((name, *inputs.values()))
            if fail:
                fail(name, len(calls))
            return value

        return store.run(name, {"data": data, "seed": settings.seed, **inputs}, compute)

    def evaluate(design, rate):
        network = stage("network", {"w": design.weight_bits, "a": design.act_bits}, {"equal": 9})
        synthesis = stage("synthesis", {"design": design.label()}, {"lut": 100})
        values = objectives(design)
        return Evaluation(
            objectives=dict(zip(OBJECTIVES, values, strict=True)),
            accuracy_interval=(values[0] - 1, values[0] + 1),
            faulty={**FAULTY, "rate": rate},
            cost=synthesis.value,
            cycles=1000,
            config_hash=content_hash(design.label()),
            network_hash=network.key,
            agreement={
                "network_hash": network.key,
                "weight_bits": 4,
                "act_bits": 4,
                "equal": 9,
                "words": 9,
            },
            results=(network, synthesis),
        )

    def point(trial, rate, campaigns, verify, folder, out):
        result = stage("test", {"number": trial.number, "verify": verify}, {"accuracy": 96.0})
        (out / folder).mkdir(parents=True, exist_ok=True)
        (out / folder / "config.json").write_text("{}")
        record = PointRecord(
            number=trial.number,
            test_accuracy=result.value["accuracy"],
            test_interval=(95.0, 97.0),
            test_faulty=None,
            rate_curve=(),
            campaigns=({"site": "activations", "n": 1},) if campaigns == "draw" else (),
            verification=dict(VERIFIED) if verify else None,
            folder=str(folder),
            rebuild=("true",),
        )
        return Point(record=record, results=(result,))

    def model():
        result = stage("float", {}, {"name": settings.model, "float_val_accuracy": 99.0})
        return Answer(value=result.value, results=(result,))

    def rate():
        result = stage("rate", {}, {"rate": 1e-3, "how": "calibrated"})
        return Answer(value=result.value, results=(result,))

    def curve(trial, rate):
        result = stage("chips", {"number": trial.number, "rate": rate}, {"mean": 90.0})
        return Answer(value={"number": trial.number, "results": []}, results=(result,))

    return Stages(
        identity={"fingerprint": data},
        data={"name": data, "val": 270},
        versions={"trilat": "0"},
        notes=("not modelled: everything",),
        ahead=lambda designs: contextlib.nullcontext(),
        build_ahead=lambda designs: None,
        model=model,
        rate=rate,
        evaluate=evaluate,
        point=point,
        curve=curve,
    )


def go(*words, calls=None, report=None, **options):
    text = io.StringIO()
    record = command.run(
        parse(list(words)),
        lambda *args: fake_stages(*args, calls=calls, **options),
        report or (lambda record, folder: folder / "report.html"),
        console=Console(file=text, width=120),
        progress=NoProgress(),
    )
    return record, text.getvalue()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRILAT_CACHE", raising=False)
    monkeypatch.setattr(flags, "NEEDED_BYTES", 1)
    return tmp_path


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if ".cache" not in p.parts)


def test_a_run_reports_distinct_designs_and_its_front(here):
    record, text = go("--out", "r", report=write_report)
    assert len(record.trials) == len({t.design for t in record.trials}) == flags.DEFAULT_TRIALS
    numbers = [t.number for t in record.trials]
    assert numbers == list(range(flags.DEFAULT_TRIALS))
    front = {t.number for t in record.trials if t.pareto}
    assert {p.number for p in record.points} == front and front
    assert list(record.hypervolume) == sorted(record.hypervolume)
    assert sum(p.verification is not None for p in record.points) == 1
    assert record.stages["network"]["runs"] == 4
    assert record.stages["network"]["reuses"] == flags.DEFAULT_TRIALS - 4
    assert len(record.model["agreement"]) == 4
    # One line per trial, the table with test accuracies, and the report's path.
    assert sum(line.startswith("trial ") for line in text.splitlines()) == flags.DEFAULT_TRIALS
    assert "96.0" in text and "report: r/report.html" in text
    assert Path("r/report.html").stat().st_size > 1000 and Path("r/pareto.csv").exists()
    assert RunRecord.from_json(json.loads(Path("r/run.json").read_text())) == record


def test_an_identical_second_run_computes_nothing_and_changes_no_record(here):
    go("--out", "r", "--trials", "6")
    before = Path("r/run.json").read_bytes()
    calls = []
    _, text = go("--out", "r", "--trials", "6", calls=calls)
    assert calls == []
    assert Path("r/run.json").read_bytes() == before
    assert "going on after 6 finished trials" in text


def test_hardware_trials_never_retrain_and_a_new_folder_reuses_the_stages(here):
    calls = []
    go("--out", "r", "--trials", "10", calls=calls)
    assert sum(name == "network" for name, *_ in calls) == 4
    assert sum(name == "float" for name, *_ in calls) == 1
    again = []
    record, text = go("--out", "other", "--trials", "10", calls=again)
    assert again == []
    assert all(stage.cached for t in record.trials for stage in t.stages)
    assert text.count("cached") == 10


def test_more_trials_continue_the_study(here):
    short, _ = go("--out", "r", "--trials", "11")
    longer, _ = go("--out", "r", "--trials", "13")
    whole, _ = go("--out", "whole", "--trials", "13")
    designs = [t.design for t in longer.trials]
    assert [t.design for t in short.trials] == designs[:11]
    assert [t.design for t in whole.trials] == designs
    assert longer.hypervolume == whole.hypervolume


def test_trials_are_capped_at_the_size_of_the_space(here):
    words = ("--bits", "4", "--rows", "4", "--cols", "4,8", "--protect", "none")
    record, _ = go("--out", "r", *words)
    assert len(record.trials) == 2 and record.settings["trials"] == 2


def test_verify_chooses_points(here):
    everyone, _ = go("--out", "a", "--trials", "5", "--verify", "all")
    assert all(p.verification for p in everyone.points) and len(everyone.points) > 1
    none, _ = go("--out", "n", "--trials", "5", "--verify", "none")
    assert not any(p.verification for p in none.points)


def test_faults_in_weights_are_measured_from_rate_to_rate(here):
    record, _ = go("--out", "r", "--trials", "12", *WEIGHTS, "--method", "qat,ptq")
    trials = record.trials
    wanted = set()
    for method in ("qat", "ptq"):
        mine = [t for t in trials if t.design.method == method]
        wanted.add(max(t.objectives["faulty_accuracy"] for t in mine))
    wanted.add(trials[0].objectives["faulty_accuracy"])  # the widest unprotected design
    (chosen,) = [
        t for t in trials for p in record.points if p.verification and p.number == t.number
    ]
    wanted.add(chosen.objectives["faulty_accuracy"])
    found = [trials[curve["number"]] for curve in record.voltage]
    assert {t.objectives["faulty_accuracy"] for t in found} == wanted
    # Arrays aside, no design is measured twice.
    assert len({t.design.label().rsplit(" ", 1)[0] for t in found}) == len(found)
    calls = []
    again, _ = go("--out", "r", "--trials", "12", *WEIGHTS, "--method", "qat,ptq", calls=calls)
    assert calls == [] and again == record
    assert "faults is weights there and auto here" in refused("--out", "r", "--method", "qat,ptq")
    assert "chips is 20 there and 5" in refused(
        "--out", "r", "--method", "qat,ptq", *WEIGHTS, "--chips", "5"
    )
    activations, _ = go("--out", "a", "--trials", "2")
    assert activations.voltage == ()


def test_a_disagreement_is_told(here, monkeypatch):
    monkeypatch.setitem(VERIFIED, "outputs_equal", 4)
    monkeypatch.setitem(VERIFIED, "agrees", False)
    _, text = go("--out", "r", "--trials", "2")
    assert "DISAGREEMENT: trial" in text and "4 of 5 outputs equal" in text


def test_a_stopped_run_goes_on_and_equals_one_that_was_not(here):
    words = ("--trials", "9", "--out")
    whole, _ = go(*words, "whole")
    for stop in (1, 2, 9, 18):
        shutil.rmtree(".cache", ignore_errors=True)
        shutil.rmtree("r", ignore_errors=True)

        def interrupt(name, count, stop=stop):
            if count == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            go(*words, "r", fail=interrupt)
        resumed, _ = go(*words, "r")
        assert [t.design for t in resumed.trials] == [t.design for t in whole.trials]
        assert resumed.hypervolume == whole.hypervolume
        assert [p.number for p in resumed.points] == [p.number for p in whole.points]


KILLED = """
import sys, time
from test_dse_run import go, flags
flags.NEEDED_BYTES = 1
def slow(name, count):
    print(name, flush=True)
    time.sleep(0.02)
go("--out", "r", "--trials", "8", fail=slow)
"""


@pytest.mark.slow
def test_sigkill_loses_at_most_the_running_stage(here):
    whole, _ = go("--out", "whole", "--trials", "8")
    shutil.rmtree(".cache")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    begun = []
    for stop in (2, 7, 12):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, env=environment, text=True
        )
        for count, line in enumerate(process.stdout, start=1):
            begun.append(line)
            if count == stop:
                break
        time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        begun += process.communicate()[0].splitlines()
    calls = []
    resumed, _ = go("--out", "r", "--trials", "8", calls=calls)
    everything = 1 + 1 + 4 + 8 + len(whole.points)
    assert len(begun) + len(calls) <= everything + 3  # each kill repeats at most one stage
    assert [t.design for t in resumed.trials] == [t.design for t in whole.trials]


WEIGHTS = ("--faults", "weights")
BAD = [
    (["--bits", "4,9"], "bits must be integers in 2..8, not 9"),
    (["--rows", "0"], "rows must be an integer in 1..64, not 0"),
    (["--cols", "x"], "cols must be integers separated by commas, not 'x'"),
    (["--trials", "0"], "trials must be at least 1"),
    (["--trials", "many"], "trials must be an integer, not 'many'"),
    (["--faults", "2"], "faults must be auto or a rate per bit between 0 and 1"),
    (["--faults", "nan"], "faults must be auto or a rate"),
    (
        ["--faults", "wieghts"],
        "faults must be auto or a rate per bit between 0 and 1, e.g. 1e-4, or",
    ),
    (["--faults", "weights:"], "faults must be auto or a rate"),
    (["--faults", "weights:1.5"], "faults must be auto or a rate"),
    (["--fault-kind", "stuck"], "--fault-kind is for --faults weights"),
    (["--chips", "3"], "--chips is for --faults weights"),
    ([*WEIGHTS, "--fault-kind", "stock"], "unknown fault-kind 'stock'; did you mean stuck"),
    ([*WEIGHTS, "--chips", "0"], "chips must be at least 1"),
    ([*WEIGHTS, "--chip", "none.safetensors"], "chip must be chip files separated by commas"),
    ([*WEIGHTS, "--chip", __file__], f"{__file__} is no chip file, or truncated"),
    ([*WEIGHTS, "--chip", __file__, "--chips", "3"], "--chips is for drawn chips, not for those"),
    (["--chip", __file__], "--chip is for the method retrain and for --faults weights"),
    (["--method", "qat+faq"], "method qat+faq: faq chooses codes for chips with faulty weight"),
    ([*WEIGHTS, "--method", "faq"], "method qat+faq: faq is for stuck cells (--fault-kind stuck)"),
    ([*WEIGHTS, "--method", "retrain"], "method retrain needs the fault map of a chip"),
    (["--requant", "shfit"], "unknown requantization 'shfit'; did you mean shift"),
    (["--requant", "mult", "--method", "clip:0.1"], "--requant mult goes with the methods qat and"),
    (["--family", "xc8"], "unknown family 'xc8'; did you mean xc7 or xcup?"),
    (["--verify", "bets"], "unknown verify 'bets'; did you mean best?"),
    (["--weights", "none.safetensors"], "weights must be a .safetensors file, and there is no"),
    (["--modle", "vgg11"], "unrecognized arguments: --modle vgg11"),
    (["--model"], "argument --model: expected one argument"),
    (["--model", "vgg12"], "unknown model 'vgg12'; did you mean vgg16 or vgg11?"),
    (["--model", "nothing.py:build"], ""),
    (["--data", "digist"], "unknown data set 'digist'; did you mean digits"),
    (["--data", "no/such/folder"], "no such data folder: no/such/folder"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_is_one_line_exit_2_and_nothing_written(here, capsys, words, message):
    assert command.main([*words, "--out", "r"] if len(words) > 1 else words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m dse.run: error: {message}")
    assert error.count("\n") == 1 and "Traceback" not in error
    assert files(here) == []


def refused(*words, **options):
    with pytest.raises(InputError) as error:
        go(*words, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_study_of_another_space_is_refused_and_untouched(here):
    go("--out", "r", "--trials", "3")
    before = {name: Path("r", name).read_bytes() for name in ("run.json", "study.journal")}
    listing = files(here)
    assert "weight_bits is [4, 8] there and [2, 8] here" in refused("--out", "r", "--bits", "2,8")
    assert "rows is [4, 8] there and [4] here" in refused("--out", "r", "--rows", "4")
    assert "model is vgg11 there" in refused("--out", "r", "--model", "lenet5")
    assert "seed is 0 there and 1 here" in refused("--out", "r", "--seed", "1")
    assert "faults is auto there and 0.001" in refused("--out", "r", "--faults", "1e-3")
    assert "method is ['qat'] there" in refused("--out", "r", "--method", "ptq")
    assert "another design space" in refused("--out", "r", data="other digits")
    assert files(here) == listing
    for name, content in before.items():
        assert Path("r", name).read_bytes() == content


def test_folders_that_cannot_be_used_are_refused(here, monkeypatch):
    Path("file").write_text("mine")
    assert "file cannot be a folder" in refused("--out", "file")
    assert "is a file" in refused("--out", "file/below")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    assert "holds files but no study" in refused("--out", "mine")
    Path("broken").mkdir()
    Path("broken/study.json").write_text("{")
    assert "cannot be read" in refused("--out", "broken")
    monkeypatch.setattr(flags, "access", lambda path, mode: False)
    assert "no permission to write" in refused("--out", "new")
    assert not Path("new").exists()


def test_a_full_disk_is_told_before_anything_is_written(here, monkeypatch):
    usage = shutil.disk_usage(".")._replace(free=12_000_000)
    monkeypatch.setattr(flags, "NEEDED_BYTES", 500_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = refused("--out", "r")
    assert message == "not enough disk space for r: 500 MB are needed, 12 MB are free"
    assert files(here) == []


def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_later(here, capsys, monkeypatch):
    def full(name, count):
        if count == 8:
            raise OSError(errno.ENOSPC, "No space left on device")

    import dse.report
    import dse.stages

    monkeypatch.setattr(dse.stages, "open_stages", lambda *a: fake_stages(*a, fail=full))
    monkeypatch.setattr(dse.report, "write_report", lambda record, folder: folder / "x.html")
    assert command.main(["--out", "r", "--trials", "6"]) == 2
    error = capsys.readouterr().err
    assert "no space left on the disk" in error and error.count("\n") == 1
    assert not list(Path(".cache").rglob(".new-*"))
    monkeypatch.setattr(dse.stages, "open_stages", lambda *a: fake_stages(*a))
    assert command.main(["--out", "r", "--trials", "6"]) == 0


HOLDER = """
import fcntl
file = open("r/.lock", "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
input()
"""


def test_two_runs_do_not_share_a_folder(here):
    go("--out", "r", "--trials", "1")
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLDER,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "held\n"
    assert "another run is working in r" in refused("--out", "r", "--trials", "1")
    child.communicate("\n")
    with Path("r/.lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    go("--out", "r", "--trials", "1")


def test_default_folder_has_no_clock():
    assert default_out("vgg11", "digits", "4,8") == Path("runs/vgg11-digits-4-8")
    assert default_out("a/net.py:make", "../shared/data/cifar10", "8") == Path(
        "runs/net-make-cifar10-8"
    )


@pytest.mark.parametrize(
    "words",
    [
        "--model lenet5 --bits 2,8 --trials 9 --faults 1e-4 --seed 3",
        "--faults weights --method ptq,clip:0.1+randbet:0.02 --requant shift",
        "--faults weights:0.0123456789 --fault-kind stuck --chips 7 --method qat+faq",
        f"--faults weights --chip {__file__} --method retrain --rows 4",
        "--requant mult,shift",
    ],
)
def test_command_reproduces_the_settings(words):
    settings = parse(words.split())
    rebuilt = parse(settings.command().split()[3:])
    assert rebuilt == settings


@pytest.mark.parametrize("words", ["auto", "activations", "activations:auto"])
def test_faults_in_activations_are_the_default(words):
    assert parse(["--faults", words]) == parse([])
    assert parse(["--faults", "activations:1e-3"]) == parse(["--faults", "1e-3"])
    assert parse(["--faults", "weights:auto"]) == parse(["--faults", "weights"])


def test_help_names_every_variable_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in parse([]).flags():
        assert f"--{name.replace('_', '-')} " in text
    assert "exit code" in text
