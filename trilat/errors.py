# SPDX-License-Identifier: Apache-2.0
"""The one exception for bad user input, and how a command turns it into exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input from the user: flags, model, data set, device, fault list or checkpoint.

    The message is one line that says what was wrong and what is accepted. Commands print it
    and exit with code 2; it is never used for a defect of trilat itself.
    """


def unknown_name(kind: str, name: str, accepted: list[str]) -> InputError:
    """Return the error for a name that is not in a list, with its close matches.

    Args:
        kind: what was named, e.g. ``"model"``.
        name: what the user gave.
        accepted: every accepted name.
    """
    close = get_close_matches(name, accepted, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return InputError(f"unknown {kind} {name!r}{hint} (accepted: {', '.join(accepted)})")


def run_command(name: str, action: Callable[[], int]) -> int:
    """Run a command body; print an `InputError` as one line on stderr and return 2.

    Args:
        name: how the user started it, e.g. ``"python -m hdl.gen"``.
        action: the body; returns its exit code.
    """
    try:
        return action()
    except InputError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
