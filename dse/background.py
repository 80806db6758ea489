# SPDX-License-Identifier: Apache-2.0
"""Synthesis beside training: a child process that fills hdl.synth's cache while networks train.

Yosys needs one core and no memory to speak of, training the rest; so the designs that the search
is known to try first are synthesised from the start, at low priority. Results do not depend on
it: whoever asks for a cost gets what `hdl.synth` computes, sooner.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from hdl.config import AcceleratorConfig

Synthesize = Callable[[AcceleratorConfig], dict[str, Any]]


class Background:
    """Synthesises configurations one after the other; `cost` waits for one, ahead of the rest.

    Args:
        command: the child; reads one configuration as JSON a line, answers with one line each.
    """

    def __init__(self, command: list[str]) -> None:
        """Start the child in a process group of its own: Ctrl-C is for the parent alone.

        Not in a session of its own: Linux shares the cores evenly between sessions, whatever
        their priorities, and the child must yield to training.
        """
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, AcceleratorConfig] = OrderedDict()
        self._futures: dict[str, Future[dict[str, Any]]] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def submit(self, config: AcceleratorConfig) -> None:
        """Put a configuration at the end of the queue, unless it is already known."""
        with self._changed:
            if config.config_hash() not in self._futures:
                self._futures[config.config_hash()] = Future()
                self._waiting[config.config_hash()] = config
                self._changed.notify()

    def cost(self, config: AcceleratorConfig) -> dict[str, Any]:
        """Return the cost of a configuration, next in the queue if it has not begun.

        Raises:
            RuntimeError: synthesis failed; the message is the child's.
        """
        self.submit(config)
        with self._changed:
            if config.config_hash() in self._waiting:
                self._waiting.move_to_end(config.config_hash(), last=False)
        return self._futures[config.config_hash()].result()

    def close(self) -> None:
        """End the child and all that it started."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._process.stdin:
            self._process.stdin.close()  # the child ends its group
        self._process.wait()
        self._thread.join()

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

    def _serve(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                key, config = self._waiting.popitem(last=False)
            try:
                self._process.stdin.write(json.dumps(config.to_json()) + "\n")
                self._process.stdin.flush()
                answer = json.loads(self._process.stdout.readline() or "{}")
            except (OSError, ValueError) as error:
                answer = {"error": f"the synthesis process ended: {error}"}
            if "cost" in answer:
                self._futures[key].set_result(answer["cost"])
            else:
                text = answer.get("error", "the synthesis process ended")
                self._futures[key].set_exception(RuntimeError(text))


def serve(synthesize: Synthesize) -> None:
    """Answer configurations from standard input until it ends, then end the whole group.

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

    threading.Thread(target=read, daemon=True).start()
    while True:
        with arrived:
            while not requests:
                arrived.wait()
            line = requests.pop(0)
        try:
            answer: dict[str, Any] = {"cost": synthesize(AcceleratorConfig(**json.loads(line)))}
        except Exception as error:  # reported to the parent, which raises it where it is waited for
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def command(*, family: str, cache: Path, jobs: int) -> list[str]:
    """Return the child's command line for `Background`."""
    return [sys.executable, "-m", "dse.background", family, str(cache), str(jobs)]


if __name__ == "__main__":
    from hdl import yosys
    from hdl.synth import synthesize

    _family, _cache, _jobs = sys.argv[1:]
    os.nice(15)
    yosys.compile_once()
    serve(
        lambda config: asdict(
            synthesize(config, family=_family, cache=Path(_cache), jobs=int(_jobs))
        )
    )
