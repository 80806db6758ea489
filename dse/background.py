# SPDX-License-Identifier: Apache-2.0
"""Hardware work beside training: child processes that synthesise and build simulators.

Yosys needs one core and no memory to speak of, training the rest; so the designs that the search
is known to try first are synthesised from the start, at low priority. Results do not depend on
it: whoever asks for a cost gets what `hdl.synth` computes, sooner.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from hdl.config import AcceleratorConfig

Task = Callable[[AcceleratorConfig], Any]


class Background:
    """Does tasks in children, first come, first served; `result` waits for one, ahead of the rest.

    Args:
        command: a child; reads one task as JSON a line, answers with one line each, and says when
            it is ready with a first line.
        children: how many of them. All but the first start when the first one is ready: what it
            prepares (compiling Yosys) is then there for all.
    """

    def __init__(self, command: list[str], children: int = 1) -> None:
        """Start the first child."""
        self._command = command
        self._changed = threading.Condition()
        self._waiting: OrderedDict[tuple[str, str], AcceleratorConfig] = OrderedDict()
        self._futures: dict[tuple[str, str], Future[Any]] = {}
        self._processes: list[subprocess.Popen[str]] = []
        self._ready = threading.Event()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, args=(number,), daemon=True)
            for number in range(children)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, task: str, config: AcceleratorConfig) -> None:
        """Put a task at the end of the queue, unless it is already known."""
        key = task, config.config_hash()
        with self._changed:
            if key not in self._futures:
                self._futures[key] = Future()
                self._waiting[key] = config
                self._changed.notify()

    def result(self, task: str, config: AcceleratorConfig) -> Any:
        """Return what a task gave; it is next in the queue if it has not begun.

        Raises:
            RuntimeError: the task failed; the message is the child's.
        """
        self.submit(task, config)
        key = task, config.config_hash()
        with self._changed:
            if key in self._waiting:
                self._waiting.move_to_end(key, last=False)
        return self._futures[key].result()

    def known(self, task: str, config: AcceleratorConfig) -> bool:
        """Return whether a task was submitted."""
        return (task, config.config_hash()) in self._futures

    def close(self) -> None:
        """End the children and all that they started."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            processes = list(self._processes)
        self._ready.set()
        for process in processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it is dead already
                process.stdin.close()  # the child ends its group
        for process in processes:
            process.wait()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Background:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _start(self) -> subprocess.Popen[str] | None:
        """Start a child in a process group of its own: Ctrl-C is for the parent alone.

        Not in a session of its own: Linux shares the cores evenly between sessions, whatever
        their priorities, and the child must yield to training.
        """
        with self._changed:
            if self._closed:
                return None
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,
            )
            self._processes.append(process)
            return process

    def _serve(self, number: int) -> None:
        if number:
            self._ready.wait()
        process = self._start()
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        self._ready.set()
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                key, config = self._waiting.popitem(last=False)
            try:
                request = {"task": key[0], "config": config.to_json()}
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline() or "{}")
            except (OSError, ValueError) as error:
                answer = {"error": f"the background process ended: {error}"}
            if "value" in answer:
                self._futures[key].set_result(answer["value"])
            else:
                text = answer.get("error", "the background process ended")
                self._futures[key].set_exception(RuntimeError(text))


def serve(tasks: Mapping[str, Task]) -> None:
    """Answer tasks from standard input until it ends, then end the whole process group.

    Standard input also ends when the parent is killed, so nothing is left running.
    """
    requests: list[str] = []
    arrived = threading.Condition()

    def read() -> None:
        for line in sys.stdin:
            with arrived:
                requests.append(line)
                arrived.notify()
        os.killpg(0, signal.SIGKILL)

    print("ready", flush=True)
    threading.Thread(target=read, daemon=True).start()
    while True:
        with arrived:
            while not requests:
                arrived.wait()
            request = json.loads(requests.pop(0))
        try:
            value = tasks[request["task"]](AcceleratorConfig(**request["config"]))
            answer = {"value": value}
        except Exception as error:  # reported to the parent, which raises it where it is waited for
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def command(*, family: str, modules: Path, simulators: Path) -> list[str]:
    """Return a child's command line for `Background`: tasks synthesis and simulator.

    A synthesis gives the `cost`, `hdl.synth.Cost` as JSON, and the `verilog` it is of; a
    simulator gives its path.

    Args:
        family: of synthesis.
        modules: cache of `hdl.synth`.
        simulators: cache of `sim.build`.
    """
    return [sys.executable, "-m", "dse.background", family, str(modules), str(simulators)]


def main(family: str, modules: Path, simulators: Path) -> None:
    """Run a child."""
    from hdl import yosys
    from hdl.cost import synthesize
    from hdl.gen import generate
    from sim.build import build_injector

    def synthesis(config: AcceleratorConfig) -> dict[str, Any]:
        cost = asdict(synthesize(config, family=family, cache=modules))
        return {"cost": cost, "verilog": generate(config)}

    def simulator(config: AcceleratorConfig) -> str:
        return str(build_injector(config, simulators))

    os.nice(12)  # and not less: where others load the machine, a lower priority never gets a core
    yosys.compile_once()
    serve({"synthesis": synthesis, "simulator": simulator})


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
