# SPDX-License-Identifier: Apache-2.0
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dse.store import Store, default_root


@pytest.fixture
def store(tmp_path):
    return Store(root=tmp_path / "cache")


def test_a_result_is_computed_once_and_comes_back_equal(store):
    calls = []

    def compute(folder):
        calls.append(folder)
        (folder / "deep").mkdir()
        (folder / "deep" / "weights.bin").write_bytes(b"\x00\x01")
        return {"accuracy": 97.5, "shape": (1, 2)}

    first = store.run("float", {"seed": 0, "shape": (1, 2)}, compute)
    second = store.run("float", {"seed": 0, "shape": (1, 2)}, compute)
    assert len(calls) == 1
    assert (first.cached, second.cached) == (False, True)
    assert first.value == second.value == {"accuracy": 97.5, "shape": [1, 2]}
    assert (second.folder / "deep" / "weights.bin").read_bytes() == b"\x00\x01"
    assert second.seconds == first.seconds
    assert second.cost().seconds == 0 and second.cost().cached


def test_every_input_and_the_stage_are_part_of_the_key(store):
    base = {"seed": 0, "bits": [4, 8]}
    keys = {
        store.key("float", base),
        store.key("network", base),
        store.key("float", {**base, "seed": 1}),
        store.key("float", {**base, "bits": [8, 4]}),
        store.key("float", {**base, "extra": None}),
    }
    assert len(keys) == 5
    assert store.key("float", {"bits": [4, 8], "seed": 0}) == store.key("float", base)


def test_nothing_is_written_when_a_stage_fails(store):
    def fail(folder):
        (folder / "half").write_text("written")
        raise RuntimeError("training diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        store.run("float", {}, fail)
    assert store.find("float", {}) is None
    assert list((store.root / "float").iterdir()) == []


@pytest.mark.parametrize("damage", ["cut entry", "empty entry", "short file", "lost file"])
def test_a_damaged_entry_is_computed_again(store, damage):
    def compute(folder):
        (folder / "data").write_text("whole")
        return 7

    entry = store.run("faulty", {"p": 0.1}, compute).folder
    if damage == "cut entry":
        text = (entry / "entry.json").read_text()
        (entry / "entry.json").write_text(text[: len(text) // 2])
    elif damage == "empty entry":
        (entry / "entry.json").write_text("")
    elif damage == "short file":
        (entry / "data").write_text("wh")
    else:
        (entry / "data").unlink()
    assert store.find("faulty", {"p": 0.1}) is None
    again = store.run("faulty", {"p": 0.1}, compute)
    assert not again.cached
    assert (again.folder / "data").read_text() == "whole"
    assert store.run("faulty", {"p": 0.1}, compute).cached


def test_two_processes_may_compute_the_same_result(store):
    def compute(folder):
        # Another process finishes the same stage in the meantime.
        store.run("synthesis", {"x": 1}, lambda inner: 5)
        return 5

    result = store.run("synthesis", {"x": 1}, compute)
    assert result.value == 5
    assert store.find("synthesis", {"x": 1}).value == 5


def test_values_that_json_cannot_hold_are_refused(store):
    with pytest.raises(ValueError):
        store.run("float", {}, lambda folder: float("nan"))
    assert store.find("float", {}) is None


KILLED = """
import sys, time
from pathlib import Path
from dse.store import Store
def compute(folder):
    (folder / "weights").write_bytes(b"x" * 1000)
    print("writing", flush=True)
    time.sleep(60)
Store(root=Path(sys.argv[1])).run("float", {"seed": 0}, compute)
"""


def test_a_killed_stage_leaves_no_entry(store):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store.root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert store.find("float", {"seed": 0}) is None
    assert store.run("float", {"seed": 0}, lambda folder: 1).value == 1


def test_root_comes_from_the_environment_or_lies_here(monkeypatch, tmp_path):
    monkeypatch.setenv("TRILAT_CACHE", str(tmp_path / "elsewhere"))
    assert default_root() == tmp_path / "elsewhere"
    monkeypatch.delenv("TRILAT_CACHE")
    monkeypatch.chdir(tmp_path)
    assert default_root() == Path.cwd() / ".cache" / "trilat"
