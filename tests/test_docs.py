# SPDX-License-Identifier: Apache-2.0
"""Every command in the documentation is one that its parser accepts."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from dse.settings import parser as dse_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def shown(text: str) -> list[str]:
    """Return the lines of code blocks, continued ones joined, and what stands in backticks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [*lines, *re.findall(r"`([^`]+)`", prose)]


def commands() -> list[tuple[str, str]]:
    """Return (module, arguments) of every `python -m` of ours, each once."""
    rooms = "hdl|quant|faultinj|sim|dse|bench"
    found: dict[tuple[str, str], None] = {}
    for page in PAGES:
        for line in shown(page.read_text("utf-8")):
            for module, words in re.findall(rf"python -m ((?:{rooms})\.\w+)([^;|&]*)", line):
                found[module, words.split("#")[0].strip()] = None
    return sorted(found)


class Asked(Exception):
    """The parser that a command was about to use."""


def parser_of(module: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def caught(self, args=None, namespace=None):
        raise Asked(self)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", caught)
        with pytest.raises(Asked) as asked:
            importlib.import_module(module).main([])
    return asked.value.args[0]


@pytest.mark.parametrize(("module", "words"), commands())
def test_commands_of_the_documentation(module: str, words: str, monkeypatch, capsys) -> None:
    parser = parser_of(module, monkeypatch)
    # A command named in a sentence may leave out what it needs; a wrong flag is still one.
    for action in parser._actions:
        action.required = False
    try:
        parser.parse_args(shlex.split(words))
    except SystemExit:
        pytest.fail(capsys.readouterr().err)


def test_a_flag_that_is_not_there_is_noticed(monkeypatch, capsys) -> None:
    assert len(commands()) > 30
    with pytest.raises(SystemExit):
        parser_of("hdl.gen", monkeypatch).parse_args(["--rowz", "4"])


def test_variables_of_make_dse_are_flags_of_dse_run() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    names = re.search(r"^VARIABLES := ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert names is not None
    variables = set(names[1].replace("\\\n", " ").split())
    flags = {flag for action in dse_parser()._actions for flag in action.option_strings}
    for name in variables:
        assert f"--{name.lower().replace('_', '-')}" in flags, name
    for page in PAGES:
        for line in shown(page.read_text("utf-8")):
            if line.startswith("make dse"):
                assert set(re.findall(r"\b([A-Z_]+)=", line.split("#")[0])) <= variables, line
