# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dse.background import Background
from hdl.config import AcceleratorConfig

# A child whose synthesis takes 0.2 s and tells its order; 13 columns fail, 14 take for ever.
CHILD = """
import itertools, subprocess, time
from dse.background import serve
order = itertools.count()
def synthesize(config):
    if config.cols == 13:
        raise ValueError("no such cell")
    if config.cols == 14:
        subprocess.run(["sleep", "1000"])
    time.sleep(0.2)
    return {"lut": config.rows, "order": next(order)}
serve({"synthesis": synthesize, "name": lambda config: config.cols})
"""
COMMAND = [sys.executable, "-c", CHILD]


def test_costs_come_back_and_what_is_waited_for_goes_first():
    with Background(COMMAND) as background:
        for rows in range(1, 6):
            background.submit("synthesis", AcceleratorConfig(rows=rows))
        last = background.result("synthesis", AcceleratorConfig(rows=5))
        assert last["lut"] == 5 and last["order"] <= 1
        assert background.result("synthesis", AcceleratorConfig(rows=4))["order"] <= 3
        assert (
            background.result("synthesis", AcceleratorConfig(rows=5)) == last
        )  # not synthesised again


def test_a_failure_is_raised_where_it_is_waited_for():
    with Background(COMMAND) as background:
        with pytest.raises(RuntimeError, match="ValueError: no such cell"):
            background.result("synthesis", AcceleratorConfig(cols=13))
        assert background.result("synthesis", AcceleratorConfig(cols=2))["lut"] == 16


def test_several_children_share_the_tasks():
    with Background(COMMAND, children=3) as background:
        for rows in range(1, 7):
            background.submit("synthesis", AcceleratorConfig(rows=rows))
        orders = [
            background.result("synthesis", AcceleratorConfig(rows=rows))["order"]
            for rows in range(1, 7)
        ]
        assert orders.count(0) >= 2  # each child counts its own
        assert background.result("name", AcceleratorConfig(rows=1, cols=5)) == 5


def test_a_dead_child_is_told():
    background = Background([sys.executable, "-c", "pass"])
    with pytest.raises(RuntimeError, match="ended"):
        background.result("synthesis", AcceleratorConfig())
    background.close()


def sleepers():
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes() == b"sleep\x001000\x00":
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc")
def test_nothing_is_left_running_when_the_parent_is_killed():
    parent = f"""
from dse.background import Background
from hdl.config import AcceleratorConfig
background = Background({COMMAND!r})
background.submit("synthesis", AcceleratorConfig(cols=14))
print("started", flush=True)
import time; time.sleep(1000.5)
"""
    before = set(sleepers())
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    deadline = time.monotonic() + 20
    while not set(sleepers()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(sleepers()) - before
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    while set(sleepers()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(sleepers()) - before
