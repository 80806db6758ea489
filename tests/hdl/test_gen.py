# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hdl
from hdl.config import AcceleratorConfig
from hdl.gen import generate, main
from hdl.registers import REGISTER_CLASSES, register_slice
from trilat import verilator
from trilat.errors import InputError

WAIVERS = Path(hdl.__file__).parent / "lint.vlt"

CONFIGS = [
    AcceleratorConfig(),
    AcceleratorConfig(protect="clip"),
    AcceleratorConfig(rows=1, cols=1, act_bits=2, weight_bits=2, max_k=1, psum_depth=2),
    AcceleratorConfig(rows=1, cols=8, act_bits=3, weight_bits=5, protect="zero", max_k=40),
    AcceleratorConfig(rows=5, cols=3, act_bits=7, max_k=65536, psum_depth=9, protect="clip"),
    AcceleratorConfig(rows=3, cols=5, act_bits=4, weight_bits=2, protect="zero"),
    AcceleratorConfig(rows=8, cols=8, act_bits=5, protect="clip", protect_place="input"),
    AcceleratorConfig(rows=8, cols=4, act_bits=6, protect="zero", protect_place="output"),
    AcceleratorConfig(rows=2, cols=64, act_bits=2, weight_bits=8, psum_depth=65535),
    AcceleratorConfig(rows=64, cols=2, max_k=65536),
    AcceleratorConfig(dataflow="os", protect="clip"),
    AcceleratorConfig(dataflow="os", rows=1, cols=1, act_bits=2, weight_bits=2, max_k=1),
    AcceleratorConfig(dataflow="os", rows=33, cols=2, act_bits=3, protect="zero"),
]


def modules(verilog: str) -> dict[str, str]:
    return dict(re.findall(r"^module (\w+) \((.*?)^endmodule", verilog, re.M | re.S))


@pytest.fixture(scope="module")
def default() -> str:
    return generate(AcceleratorConfig())


def test_one_module_for_each_psum_width(default: str) -> None:
    config = AcceleratorConfig()
    widths = {config.psum_bits(row) for row in range(16)}
    kinds = {name for name in modules(default) if name.startswith("trilat_pe")}
    assert kinds == {f"trilat_pe_p{width}" for width in widths}
    column = modules(default)["trilat_column"]
    assert re.findall(r"trilat_pe_p(\d+) pe_(\d+) \(", column) == [
        (str(config.psum_bits(row)), str(row)) for row in range(16)
    ]
    top = modules(default)["trilat_core"]
    for name in ("trilat_column col", "trilat_lane lane"):
        assert re.findall(rf"{name}_(\d+) \(", top) == [str(c) for c in range(16)]


def test_registers_of_a_pe_have_no_enable_and_no_reset(default: str) -> None:
    pe, multiplier = (modules(default)[name] for name in ("trilat_pe_p18", "trilat_multiplier"))
    blocks = re.findall(r"always @\(posedge aclk\) begin\n(.*?)\n  end", pe, re.S)
    free = next(block for block in blocks if "act <= act_in" in block)
    assert "if" not in free
    assert {"act", "psum"} <= set(re.findall(r"(\w+) <=", free))
    assert "if" not in multiplier and re.findall(r"(\w+) <=", multiplier) == ["product"]
    assert "aresetn" not in pe


def test_size_and_neighbourhood(default: str) -> None:
    assert default.count("\n") < 1500
    assert default.startswith("// SPDX-License-Identifier: Apache-2.0\n")
    assert AcceleratorConfig().config_hash() in default
    assert "`default_nettype none" in default and default.endswith("`resetall\n")
    assert "/" not in re.sub(r"//.*|docs/architecture.md", "", default), "a path or a comment block"
    assert "src" not in default and "$auto" not in default


def test_same_bytes_in_another_process(default: str) -> None:
    command = [sys.executable, "-m", "hdl.gen"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == default


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_lint_is_silent(config: AcceleratorConfig, tmp_path: Path) -> None:
    design = tmp_path / "accelerator.v"
    design.write_text(generate(config))
    assert verilator.lint(design, WAIVERS) == []


def test_every_waiver_is_explained() -> None:
    lines = WAIVERS.read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith("lint_off"):
            assert before.startswith("//"), f"no reason for {line}"


def test_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "small.v"
    assert main(["--rows", "2", "--cols", "2", "-o", str(target)]) == 0
    config = AcceleratorConfig(rows=2, cols=2)
    text = target.read_text()
    assert text == generate(config)
    said = capsys.readouterr()
    assert said.out == ""
    lines = text.count("\n")
    assert said.err == f"wrote {target}: {lines} lines, configuration {config.config_hash()}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "0"], "rows must be an integer in 1..64, not 0"),
        (["--cols", "65"], "cols must be an integer in 1..64, not 65"),
        (["--act-bits", "1"], "act_bits must be an integer in 2..8, not 1"),
        (["--weight-bits", "9"], "weight_bits must be an integer in 2..8, not 9"),
        (["--rows", "abc"], "rows must be an integer in 1..64, not 'abc'"),
        (["--psum-depth", "1.5"], "psum_depth must be an integer in 2..65535, not '1.5'"),
        (["--dataflow", "is"], "dataflow must be one of ws, os, not 'is'"),
        (["--dataflow", "os", "--max-k", "65536"], "max_k must be at most 65535, not 65536"),
        (["--protect", "clamp"], "protect must be one of none, clip, zero, not 'clamp'"),
        (["--protect-place", "x"], "protect_place must be one of both, input, output, not 'x'"),
    ],
)
def test_bad_values(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.v"
    assert main([*arguments, "-o", str(target)]) == 2
    said = capsys.readouterr()
    assert said.err == f"python -m hdl.gen: error: {message}\n"
    assert said.out == "" and list(tmp_path.iterdir()) == []


def test_unknown_flag_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--row-count", "3"])
    assert stop.value.code == 2
    assert "--row-count" in capsys.readouterr().err


def test_unwritable_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--rows", "1", "--cols", "1", "-o", str(tmp_path / "file" / "x.v")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"python -m hdl.gen: error: cannot write {tmp_path}/file/x.v: ")
    assert message.count("\n") == 1


def test_register_places_exist(default: str) -> None:
    config = AcceleratorConfig()
    text = modules(default)
    for register_class in REGISTER_CLASSES["ws"]:
        for row, col in ((0, 0), (3, 2), (14, 1), (15, 15)):
            if register_class == "deskew" and row >= 15 - col:
                continue
            if register_class == "skew" and col > row:
                continue
            if register_class == "weight_skew" and row > col:
                continue
            place = register_slice(config, register_class, row, col)
            instance, *_, register = place.path.split(".")
            if register_class == "product":
                module = text["trilat_multiplier"]
            elif instance.startswith("col_"):
                module = text[f"trilat_pe_p{config.psum_bits(row)}"]
            else:
                module = text[
                    {
                        "skew": "trilat_activation_skew",
                        "weight_skew": "trilat_weight_skew",
                        "deskew": "trilat_deskew",
                    }[instance]
                ]
            # A port has its own line; registers of one width share a declaration.
            port, shared = (
                rf"reg +\[(\d+):0\] {register}\b",
                rf"^  reg \[(\d+):0\] [^;]*\b{register}\b",
            )
            width = re.search(port, module) or re.search(shared, module, re.M)
            assert width is not None
            assert place.low + place.bits <= int(width[1]) + 1
            if instance.startswith("col_"):
                assert place.bits == int(width[1]) + 1


def test_output_stationary_modules() -> None:
    """One PE module, one column module; their registers where the schedule says."""
    config = AcceleratorConfig(dataflow="os", rows=16, cols=16)
    verilog = generate(config)
    assert verilog.count("\n") < 1500
    text = modules(verilog)
    assert "trilat_deskew" not in text
    assert [name for name in text if name.startswith("trilat_pe")] == ["trilat_pe_os"]
    assert re.findall(r"trilat_pe_os pe_(\d+) \(", text["trilat_os_column"]) == [
        str(row) for row in range(16)
    ]
    assert "aresetn" not in text["trilat_pe_os"] + text["trilat_os_column"]
    for register_class in REGISTER_CLASSES["os"]:
        place = register_slice(config, register_class, 0, 0)
        *_, instance, register = place.path.split(".")
        module = {
            "skew": "trilat_activation_skew",
            "weight_skew": "trilat_weight_skew",
            "multiplier": "trilat_multiplier",
            "accumulator": "trilat_accumulator",
        }
        width = re.search(
            rf"reg\s+\[(\d+):0\] {register}\b", text[module.get(instance, "trilat_pe_os")]
        )
        assert width is not None and place.low + place.bits <= int(width[1]) + 1
    for missing in ("psum", "deskew", "weight_active"):
        with pytest.raises(InputError, match="unknown register class of an array with dataflow os"):
            register_slice(config, missing, 0, 0)


@pytest.mark.parametrize(
    ("register_class", "row", "col"),
    [("skew", 2, 3), ("deskew", 13, 2), ("psum", 16, 0), ("product", 0, -1), ("act", 0, 0)],
)
def test_no_such_register(register_class: str, row: int, col: int) -> None:
    with pytest.raises(InputError):
        register_slice(AcceleratorConfig(), register_class, row, col)
