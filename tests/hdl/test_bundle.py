# SPDX-License-Identifier: Apache-2.0
"""The folder beside the Verilog, and what other tools than Verilator say of the Verilog."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rtl_bench import Run, job_beats, read_rows

from hdl import bundle as bundle_module
from hdl import yosys
from hdl.bundle import ECP5_FILE, FILES, TOP, bundle, cycle_formulas
from hdl.config import AcceleratorConfig
from hdl.gen import generate, main
from hdl.register_map import REGISTERS, parameter_words
from hdl.tile import param_words, reference_output
from hdl.vectors import bench_jobs, tile_beats

SMALL = AcceleratorConfig(
    rows=3, cols=2, act_bits=3, weight_bits=4, psum_depth=5, max_k=9, protect="clip"
)
FLAGS = "--rows 3 --cols 2 --act-bits 3 --weight-bits 4 --psum-depth 5 --max-k 9 --protect clip"
CONFIGS = {
    "ws": SMALL,
    "os": AcceleratorConfig(dataflow="os", rows=2, cols=3, act_bits=4, max_k=9, protect="zero"),
    "1x1": AcceleratorConfig(rows=1, cols=1, act_bits=2, weight_bits=2, max_k=1, psum_depth=2),
    "packed": AcceleratorConfig(
        rows=2, cols=4, act_bits=4, weight_bits=4, max_k=9, psum_depth=4, mult="dsp", dsp_pack=2
    ),
    "os_packed": AcceleratorConfig(
        dataflow="os", rows=2, cols=4, max_k=9, protect="clip", mult="dsp", dsp_pack=2
    ),
    "wide": AcceleratorConfig(rows=5, cols=9, act_bits=8, weight_bits=2, psum_depth=16),
}
# Defects that the testbench must see, as text of the emitted Verilog before and after.
DEFECTS = {
    "rounding": ("fine_sticky | fine[1]", "fine_sticky | 1'h1"),
    "saturation": ("code <= high_5a ? hi_5a", "code <= ~high_5a ? hi_5a"),
    "tlast": ("m_axis_out_tlast <= ", "m_axis_out_tlast <= 1'h1 | "),
    "lost violation": ("total <= total + count", "total <= total + (count & 2'h2)"),
    "wrong register": ("4'h4: s_axil_rdata <= shape", "4'h4: s_axil_rdata <= limits"),
    "strobe ignored": ("& write_strobes", "& 1'h1"),
    "no error response": ("read_outside ? 2'h2 : 2'h0", "2'h0"),
    "withdrawn output": ("spare_valid <= ", "spare_valid <= 1'h0 & "),
    "counter": ("cycles_act_starved_event <= ", "cycles_act_starved_event <= 1'h0 & "),
}


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return bundle(SMALL)


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)


def run_bench(folder: Path, simulator: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "run.py", simulator], cwd=folder, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_bench_passes_and_fails_under_verilator(files: dict[str, str], tmp_path: Path) -> None:
    """Broken in its vectors, so that nothing is compiled twice; Icarus runs broken Verilog."""
    write(tmp_path / "a", files)
    code, output = run_bench(tmp_path / "a", "verilator")
    assert code == 0 and "3 passed, 0 failed" in output, output[-3000:]
    vectors = json.loads(files["vectors.json"])
    vectors["tiles"][3]["out"][-1] = f"{int(vectors['tiles'][3]['out'][-1], 16) ^ 1:02x}"
    (tmp_path / "a" / "vectors.json").write_text(json.dumps(vectors))
    code, output = run_bench(tmp_path / "a", "verilator")
    assert code == 1 and "1 passed, 2 failed" in output, output[-3000:]


needs_icarus = pytest.mark.skipif(
    shutil.which("iverilog") is None, reason="Icarus Verilog is not installed (apt-get: iverilog)"
)


@needs_icarus
@pytest.mark.slow
@pytest.mark.parametrize("name", ["os"])
def test_bench_passes_under_icarus(name: str, tmp_path: Path) -> None:
    write(tmp_path / "a", bundle(CONFIGS[name]))
    code, output = run_bench(tmp_path / "a", "icarus")
    assert code == 0 and "3 passed, 0 failed" in output, output[-3000:]


@needs_icarus
@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS)
def test_bench_sees_defects(defect: str, files: dict[str, str], tmp_path: Path) -> None:
    before, after = DEFECTS[defect]
    verilog = files[f"{TOP}.v"]
    assert before in verilog
    write(tmp_path / "a", files | {f"{TOP}.v": verilog.replace(before, after)})
    code, output = run_bench(tmp_path / "a", "icarus")
    assert code == 1 and re.search(r"\d passed, [1-3] failed", output), output[-3000:]


@needs_icarus
@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_icarus_reads_it_without_a_word(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.v").write_text(generate(CONFIGS[name]))
    command = ["iverilog", "-g2005", "-Wall", "-t", "null", "-s", TOP, str(tmp_path / "a.v")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_yosys_reads_it_without_a_warning(tmp_path: Path) -> None:
    for name, config in CONFIGS.items():
        (tmp_path / f"{name}.v").write_text(generate(config))
    script = []
    for name in CONFIGS:
        script += [f"read_verilog {name}.v", f"hierarchy -check -top {TOP}", "proc", "opt_clean"]
        script += ["memory -nomap", "check -assert", "design -reset"]
    assert "Warning" not in yosys.run(script, tmp_path, "read")


def test_the_folder_is_the_same_in_another_process(files: dict[str, str], tmp_path: Path) -> None:
    target = tmp_path / "new" / "out"
    command = [sys.executable, "-m", "hdl.gen", *FLAGS.split(), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == f"wrote folder {target}, configuration {SMALL.config_hash()}\n"
    assert {path.name: path.read_text() for path in target.iterdir()} == files
    assert files.keys() == FILES
    assert list(target.parent.iterdir()) == [target]
    for name, text in files.items():
        assert str(Path.home()) not in text and "/tmp" not in text, name


def test_modules_for_the_ecp5_fit_in(tmp_path: Path) -> None:
    script = []
    for name, config in CONFIGS.items():
        files = bundle(config)
        has_block = config.uses_dsp and config.dsp_pack == 1
        has_one = config.is_os or config.dsp_pack == 1
        assert has_one is (ECP5_FILE in files) is (ECP5_FILE in files["synth.ys"])
        assert has_one is (ECP5_FILE in files["README.md"])
        if has_one:
            (tmp_path / f"{name}.v").write_text(files[f"{TOP}.v"])
            (tmp_path / f"{name}_ecp5.v").write_text(files[ECP5_FILE])
            script += [f"read_verilog {name}.v", f"read_verilog -overwrite {name}_ecp5.v"]
            script += ["read_verilog -lib +/ecp5/cells_sim.v +/ecp5/cells_bb.v"]
            script += [f"hierarchy -check -top {TOP}", "proc", "check -assert"]
            cell = "MULT18X18D" if has_block else "CCU2C"
            script += [f"select -assert-min 1 t:{cell}", "design -reset"]
    assert "Warning" not in yosys.run(script, tmp_path, "read")


def test_the_folder_is_replaced_unless_it_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, arguments = tmp_path / "out", FLAGS.split()
    target.mkdir()
    assert main([*arguments, "-o", str(target)]) == 0
    (target / "build_icarus").mkdir()
    assert main([*arguments, "--clock-ns", "4", "-o", str(target)]) == 0
    assert {path.name for path in target.iterdir()} == FILES
    assert "-period 4.000 " in (target / f"{TOP}.xdc").read_text()
    assert "-period 4.000 " in (target / f"{TOP}.sdc").read_text()
    (target / "mine.txt").write_text("mine")
    capsys.readouterr()
    assert main([*arguments, "-o", str(target)]) == 2
    message = capsys.readouterr().err
    assert "holds other files (mine.txt)" in message and message.count("\n") == 1
    assert (target / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["file", "file/out"])
def test_a_file_in_the_way(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--rows", "1", "--cols", "1", "-o", str(tmp_path / place)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("python -m hdl.gen: error: ") and message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("value", ["0", "x", "nan", "1001"])
def test_bad_clock(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--clock-ns", value, "-o", str(tmp_path / "out")]) == 2
    assert "--clock-ns must be a number in 0.1..1000" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_leaves_nothing(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def refuse(path: Path, text: str, **_: object) -> None:
        written.append(path)
        if len(written) == 5:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(bundle_module.InputError, match="No space left"):
        bundle_module.write_folder(tmp_path / "out", files)
    assert len(written) == 5 and list(tmp_path.iterdir()) == []


def test_registers_are_the_same_in_all_their_files(files: dict[str, str], tmp_path: Path) -> None:
    header, table = files[f"{TOP}.h"], files["registers.md"]
    data = json.loads(files["registers.json"])
    assert [r["name"] for r in data["registers"]] == [word.name for word in REGISTERS]
    for register in data["registers"]:
        name, offset = register["name"].upper(), register["offset"]
        assert re.search(rf"^#define TRILAT_{name} 0x{offset:02X}u$", header, re.M)
        assert f"| 0x{offset:02X} | `{register['name']}` |" in table
        for field in register["fields"]:
            if field["bits"] < 32:
                mask = ((1 << field["bits"]) - 1) << field["low"]
                stem = f"TRILAT_{name}_{field['name'].upper()}"
                assert f"#define {stem}_MASK 0x{mask:08X}u " in header
                assert f"#define {stem}_SHIFT {field['low']}u\n" in header
    values = {r["name"]: r["reset"] for r in data["registers"]}
    assert f"{values['config_hash_high']:08x}{values['config_hash_low']:08x}" == (
        SMALL.config_hash()
    )
    assert values["shape"] == 3 | 2 << 8 | 3 << 16 | 4 << 24
    assert values["limits"] == 5 | 3 << 16
    (tmp_path / "a.c").write_text(header + header + "int x = TRILAT_STATUS_BUSY_MASK;\n")
    subprocess.run(
        ["g++", "-x", "c", "-Wall", "-Werror", "-fsyntax-only", tmp_path / "a.c"], check=True
    )


def test_no_two_fields_share_a_bit() -> None:
    layout = parameter_words(AcceleratorConfig())
    for word in (*REGISTERS, *layout.header, *layout.column):
        masks = [field.mask for field in word.fields]
        assert sum(masks) == np.bitwise_or.reduce(masks) < 1 << 32, word.name
    with pytest.raises(ValueError, match="has the fields m, k_tiles"):
        layout.header[0].encode(m=1)


def test_parameter_words_by_hand() -> None:
    job = bench_jobs(SMALL)[0]
    words = param_words(SMALL, job)
    assert len(words) == 2 + 2 * SMALL.cols
    assert words[0] == job.m | job.acts.shape[1] // 3 << 16
    assert words[1] & 7 == job.signed_in | job.raw << 1 | job.signed_out << 2
    assert (words[1] >> 8 & 7, words[1] >> 16 & 7) == (job.input_lo % 8, job.input_hi % 8)
    for c in range(2):
        assert words[2 + 2 * c] == int(job.bias[c]) % (1 << 32)
        assert words[3 + 2 * c] == (
            int(job.shift[c])
            + (int(job.lo[c]) % 8 << 8)
            + (int(job.hi[c]) % 8 << 16)
            + (int(job.lo_is_bound[c]) << 24)
            + (int(job.hi_is_bound[c]) << 25)
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_vectors_are_what_another_packing_gives(name: str) -> None:
    config = CONFIGS[name]
    jobs = bench_jobs(config)
    violated = [0, 0]
    for job in jobs:
        tile, reference = tile_beats(config, job), reference_output(config, job)
        for stream, beats in job_beats(config, job).items():
            assert [int(b, 16) for block in tile[stream] for b in block] == beats
        last = len(tile["out"]) - 1
        run = Run(beats=[(int(b, 16), int(i == last)) for i, b in enumerate(tile["out"])])
        np.testing.assert_array_equal(read_rows(config, [job], run)[0], reference.rows)
        violated[0] += reference.violations_in
        violated[1] += reference.violations_out
    assert any(job.raw for job in jobs) and len({job.m for job in jobs}) > 1 - config.is_os
    if config.protect != "none":
        assert min(violated) > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_formulas_give_their_values(name: str) -> None:
    config = CONFIGS[name]
    formulas = cycle_formulas(config)
    names = formulas["constants"] | {
        "M": config.max_m, "K": config.max_k_tiles, "B": 1, "max": max,
    }  # fmt: skip
    for key in ("period", "latency", "tile"):
        entry = formulas[key]
        assert eval(entry["formula"], {"__builtins__": {}}, names) == entry["value"], key


def test_sidecar(files: dict[str, str]) -> None:
    data = json.loads(files[f"{TOP}.json"])
    assert AcceleratorConfig.from_json(data["configuration"]) == SMALL
    assert data["config_hash"] == SMALL.config_hash()
    assert data["verilog"]["lines"] == files[f"{TOP}.v"].count("\n")
    ports = {port["name"]: (port["direction"], port["bits"]) for port in data["ports"]}
    assert ports["aclk"] == ("input", 1)
    assert ports["s_axis_act_tdata"] == ("input", 16)
    assert ports["m_axis_out_tdata"] == ("output", 8)
    assert ports["s_axil_awaddr"] == ("input", 12)
    assert ports["s_axil_rdata"] == ("output", 32)
    assert len(ports) == 2 + 16 + 19


def test_the_documentation_lists_every_register() -> None:
    text = (Path(bundle_module.__file__).parents[1] / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| 0x(\w+) \| `(\w+)` \| (.*) \|$", text, re.M)
    assert [(int(offset, 16), name) for offset, name, _ in rows] == [
        (word.offset, word.name) for word in REGISTERS
    ]
    for word, (_, _, meaning) in zip(REGISTERS, rows, strict=True):
        assert meaning.startswith(word.text)
        if word.fields[0].bits < 32:
            for field in word.fields:
                assert f"`{field.name}` [{field.low + field.bits - 1}:{field.low}]" in meaning
