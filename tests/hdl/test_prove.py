# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hdl.properties import PROPERTIES
from hdl.prove import decide, expose, main, prepare

QUICK = [name for name, item in PROPERTIES.items() if item.quick]


@pytest.fixture(scope="module")
def smt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prove")
    prepare([(name, seeded) for name in QUICK for seeded in (False, True)], folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_property_holds_and_refutes_its_defect(
    name: str, smt: Path, verified: Callable[[str, int], None]
) -> None:
    assert decide(name, False, smt).proven
    assert not decide(name, True, smt).proven
    verified("properties proven, each refuting its defect", 1)


@pytest.mark.nightly
def test_all_properties(verified: Callable[[str, int], None]) -> None:
    assert main([]) == 0
    verified("properties proven, each refuting its defect", len(PROPERTIES))


def test_unknown_property(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["requantiser"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("python -m hdl.prove: error: unknown property 'requantiser'; did")
    assert message.count("\n") == 1


def test_probes_have_their_widths() -> None:
    ports = "  output reg [1:0] x = 2'h0\n"
    module = f"module a (\n{ports});\n  wire [3:0] p, q;\n  wire r = x;\nendmodule\n"
    text = expose(module, ["q", "r", "x"])
    assert "output wire [3:0] probe_q," in text
    assert "output wire  probe_r," in text
    assert "output wire [1:0] probe_x," in text
    assert "assign probe_q = q;" in text
    with pytest.raises(ValueError, match="no register or net s"):
        expose(module, ["s"])
