# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.synthesis`: the composed cost against flat synthesis of the whole.

trilat maps each kind of module once and multiplies. Here the same Verilog goes through Yosys a
second time as one flat netlist, with every optimization across module borders. Flat results are
kept in `synthesis.parquet` beside this file, with the Verilog they belong to and a hash of all
that decides them; a sample is run again each time and must come out the same. `--record` runs
what is missing, or was recorded of Verilog that the generator no longer emits; it can be stopped
and started again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from hdl import yosys
from hdl.config import AcceleratorConfig
from hdl.cost import compose, count_cells
from hdl.delay_lines import thin
from hdl.families import FAMILIES
from hdl.gen import generate
from hdl.mapping import (
    below,
    groups,
    instances,
    map_group,
    map_modules,
    split_modules,
    whole_pes,
)
from hdl.netlist_check import MismatchError
from hdl.registers import CORE
from hdl.timing import analyse
from trilat.errors import InputError, run_command
from trilat.files import content_hash, replacing, write_json

FILE = Path(__file__).with_name("synthesis.parquet")
FAMILY = FAMILIES["xc7"]
# rows, cols, act_bits, weight_bits, then what differs from `_COMMON`.
_COMMON = {"max_k": 256, "psum_depth": 64}
_LUT, _DSP, _OS = {"mult": "lut"}, {"mult": "dsp"}, {"dataflow": "os"}
_CORPUS: tuple[tuple[int, int, int, int, dict[str, Any]], ...] = (
    (1, 1, 2, 2, {}),
    (1, 1, 8, 8, {}),
    (1, 4, 4, 4, {}),
    (4, 1, 4, 4, {}),
    (2, 2, 3, 5, {}),
    (2, 2, 4, 4, {}),
    (2, 3, 4, 4, {"protect": "clip"}),
    (3, 2, 4, 4, {"protect": "zero"}),
    (3, 3, 2, 2, {}),
    (3, 3, 5, 3, {}),
    (3, 3, 8, 8, _LUT),
    (3, 3, 8, 8, {"protect": "clip"}),
    (3, 5, 2, 4, {}),
    (5, 3, 4, 2, {}),
    (4, 4, 2, 8, _LUT),
    (4, 4, 4, 4, _DSP),
    (4, 4, 4, 4, {"protect": "clip", "protect_place": "input"}),
    (4, 4, 4, 4, {"psum_depth": 16}),
    (4, 4, 4, 4, {"psum_depth": 300}),
    (4, 4, 8, 8, {}),
    (2, 4, 4, 4, _DSP | {"dsp_pack": 2}),
    (4, 4, 3, 2, _DSP | {"dsp_pack": 2}),
    (4, 4, 8, 8, _DSP | {"dsp_pack": 2, "protect": "clip"}),
    (6, 2, 7, 4, {}),
    (2, 6, 4, 7, {}),
    (6, 6, 2, 2, {}),
    (6, 6, 4, 4, {}),
    (8, 8, 8, 8, _LUT),
    (1, 1, 4, 4, _OS),
    (2, 2, 4, 4, _OS),
    (3, 5, 2, 4, _OS),
    (5, 3, 6, 3, _OS | _LUT),
    (3, 3, 8, 8, _OS | {"protect": "clip"}),
    (4, 4, 4, 4, _OS | {"protect": "zero", "protect_place": "output"}),
    (4, 4, 8, 8, _OS | _LUT),
    (6, 6, 2, 2, _OS),
    (6, 6, 8, 8, _OS),
    (4, 4, 8, 8, _OS | _DSP | {"dsp_pack": 2}),
    (3, 6, 4, 4, _OS | _DSP | {"dsp_pack": 3, "protect": "clip"}),
)
# Largest error of LUTs and of flip-flops that is allowed in any design, in percent.
BAR = 2.0
# Designs whose flat time is set against that of the composed one: those of the first are stored and
# never run again (they take minutes), the second is run flat in the same run.
_LARGE = tuple(AcceleratorConfig(rows=size, cols=size, mult="lut") for size in (16, 32))
_SMALL = AcceleratorConfig(rows=6, cols=6, mult="lut")
_COUNTS = ("lut", "ff", "dsp", "bram36", "carry")


@dataclass(frozen=True, kw_only=True)
class Flat:
    """A design mapped as one netlist.

    Attributes:
        config: as JSON-able data.
        verilog: of the core and all below it.
        key: hash of the Verilog and of everything else that decides the result.
        lut, ff, dsp, bram36, carry, delay_ns: as in `hdl.synth.Cost`.
        seconds: processor time of Yosys (mapping, without timing).
        yosys: its version.
    """

    config: dict[str, Any]
    verilog: str
    key: str
    lut: int
    ff: int
    dsp: int
    bram36: float
    carry: int
    delay_ns: float
    seconds: float
    yosys: str


def corpus() -> list[AcceleratorConfig]:
    """Return the configurations that are compared."""
    return [
        AcceleratorConfig(rows=r, cols=c, act_bits=a, weight_bits=w, **{**_COMMON, **more})
        for r, c, a, w, more in _CORPUS
    ]


def core_verilog(config: AcceleratorConfig) -> str:
    """Return the Verilog of the core and of the modules below it, comments removed."""
    texts = split_modules(generate(config))
    return "\n".join(texts[name] for name in sorted(below([CORE], instances(texts))))


def flat_key(verilog: str) -> str:
    """Return the hash of what decides a flat result."""
    return content_hash(
        [verilog, FAMILY.flat_script(CORE), FAMILY.timing_models(set()), yosys.version()]
    )


def map_flat(config: AcceleratorConfig, verilog: str) -> Flat:
    """Map a design as one netlist and time it.

    Raises:
        yosys.YosysError: Yosys failed.
    """
    with yosys.work_folder(Path(tempfile.gettempdir()) / "trilat-bench") as folder:
        (folder / "core.v").write_text(verilog, encoding="utf-8")
        FAMILY.prepare(folder)
        start = os.times()
        script = ["read_verilog core.v", *FAMILY.flat_script(CORE), f"select {CORE}"]
        yosys.run([*script, "write_json -selected flat.json"], folder, "flat")
        end = os.times()
        text = (folder / "flat.json").read_text(encoding="utf-8")
        netlist = json.loads(text)["modules"][CORE]
        cells = Counter(cell["type"] for cell in netlist["cells"].values())
        del cells["$scopeinfo"]
        counts = count_cells(cells, FAMILY)
        timing = analyse(
            {CORE: netlist},
            whole=[CORE],
            models=FAMILY.timing_models(set(cells)),
            silent=(),
            opaque=dict.fromkeys((*FAMILY.dsp, *FAMILY.bram), ()),
            launch=FAMILY.launch,
            capture=FAMILY.capture,
            folder=folder,
        )[CORE]
    spent = end.children_user + end.children_system - start.children_user - start.children_system
    return Flat(
        config=config.to_json(),
        verilog=verilog,
        key=flat_key(verilog),
        delay_ns=timing.delay / 1000,
        seconds=round(spent, 1),
        yosys=yosys.version(),
        **{name: counts[name] for name in _COUNTS},
    )


def load(file: Path = FILE) -> list[Flat]:
    """Return the stored results; none if there is no file."""
    if not file.exists():
        return []
    return [Flat(**row) for row in pq.read_table(file).to_pylist()]


def store(results: Sequence[Flat], file: Path = FILE) -> None:
    """Write results atomically."""
    rows = [asdict(result) for result in results]
    with replacing(file) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")


def record(file: Path, jobs: int, large: bool, console: Console) -> None:
    """Map flat what is missing or was recorded of other Verilog; keep each result at once.

    Args:
        file: of the results, old ones included: they stay until all new ones are there.
        jobs: designs at a time.
        large: whether the large arrays are among them; else what is stored of those stays.
        console: where to report.
    """
    configs = [*corpus(), *(_LARGE if large else [])]
    verilog = [core_verilog(config) for config in configs]
    keys = [flat_key(text) for text in verilog]
    results = {result.key: result for result in load(file)}
    # What is stored may lack fields that configurations have got since.
    for key, config in zip(keys, configs, strict=True):
        if key in results:
            results[key] = replace(results[key], config=config.to_json())
    kept = set(keys)
    if not large:
        kept |= {key for key, result in results.items() if _is_large(result)}
    todo = [i for i, key in enumerate(keys) if key not in results]
    console.print(f"{len(todo)} of {len(configs)} designs are to be mapped, {jobs} at a time")
    start = time.monotonic()
    if todo:
        yosys.compile_once()
    # Processes, as the processor time of a design is that of a worker's own children.
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        # The largest first, lest one of them keeps a single processor busy in the end.
        todo.sort(key=lambda i: -len(verilog[i]) * configs[i].rows * configs[i].cols)
        futures = [pool.submit(map_flat, configs[i], verilog[i]) for i in todo]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                result = future.result()
                results[result.key] = result
                store(list(results.values()), file)
                left = (time.monotonic() - start) / number * (len(todo) - number)
                console.print(
                    f"{number}/{len(todo)} {label(AcceleratorConfig.from_json(result.config))}: "
                    f"{result.lut} LUT, {result.seconds:.0f} s of processor; "
                    f"about {left / 60:.0f} min left"
                )
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    order = {key: i for i, key in enumerate(keys)}
    final = [result for key, result in results.items() if key in kept]
    store(sorted(final, key=lambda result: order.get(result.key, len(order))), file)


def _is_large(result: Flat) -> bool:
    return any(result.config == config.to_json() for config in _LARGE)


def label(config: AcceleratorConfig) -> str:
    """Return a short name of a configuration of the corpus."""
    text = f"{config.dataflow} {config.rows}x{config.cols} W{config.weight_bits}A{config.act_bits}"
    if config.mult != "auto":
        text += f" {config.mult}"
    if config.dsp_pack > 1:
        text += f" pack {config.dsp_pack}"
    if config.psum_depth != _COMMON["psum_depth"] and not config.is_os:
        text += f" depth {config.psum_depth}"
    if config.protect != "none":
        text += f" {config.protect} {config.protect_place}"
    return text


def compare(flat: Flat, cache: Path, jobs: int) -> dict[str, Any]:
    """Return both results of one design, and the composed one's errors in percent."""
    start = time.monotonic()
    mapped = map_modules(flat.verilog, FAMILY, cache=cache, jobs=jobs, advance=lambda _: None)
    cost = compose(mapped, FAMILY, top=CORE, seconds=time.monotonic() - start)
    row: dict[str, Any] = {"design": label(AcceleratorConfig.from_json(flat.config))}
    for name in (*_COUNTS, "delay_ns"):
        row[f"{name}_flat"], row[name] = getattr(flat, name), getattr(cost, name)
    for name in ("lut", "ff", "delay_ns"):
        row[f"{name}_error"] = 100 * (row[name] / row[f"{name}_flat"] - 1)
    return row


def check_sample(results: Sequence[Flat], count: int, seed: int) -> list[str]:
    """Map a sample again; return a line for each stored result that is not reproduced."""
    chosen = random.Random(seed).sample(list(results), min(count, len(results)))
    wrong = []
    for stored in chosen:
        config = AcceleratorConfig.from_json(stored.config)
        again = map_flat(config, stored.verilog)
        for name in ("key", *_COUNTS, "delay_ns"):
            if getattr(again, name) != getattr(stored, name):
                was, now = getattr(stored, name), getattr(again, name)
                wrong.append(f"{label(config)}: stored {name} {was}, now {now}")
    return wrong


def speed(stored: Sequence[Flat], jobs: int) -> dict[str, Any]:
    """Time the composed cost of int8 arrays against flat synthesis, in seconds of processor.

    Args:
        stored: flat results of large arrays.
        jobs: Yosys processes at a time.

    Returns:
        By name: wall-clock, processor, and processor of Yosys for mapping alone, of each array with
        a cold cache and of new sizes after it; the ratios to flat synthesis, which is mapping
        alone: its netlist is neither timed nor checked in that time.
    """

    def composed(config: AcceleratorConfig, cache: Path) -> dict[str, float]:
        start, before = time.monotonic(), os.times()
        mapped = map_modules(
            core_verilog(config), FAMILY, cache=cache, jobs=jobs, advance=lambda _: None
        )
        compose(mapped, FAMILY, top=CORE, seconds=0)
        after = os.times()
        spent = sum(after[:4]) - sum(before[:4])
        return {"seconds": round(time.monotonic() - start, 1), "processor": round(spent, 1)}

    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        result["cold 6x6"] = composed(_SMALL, Path(folder))
    flat = map_flat(_SMALL, core_verilog(_SMALL)).seconds
    result["flat 6x6, same run"] = {"processor": flat}
    result["cold 6x6"]["mapping"] = _mapping_seconds(_SMALL)
    result["ratio at 6x6, same run"] = _ratios(flat, result["cold 6x6"])
    for config in _LARGE:
        size = f"{config.rows}x{config.cols}"
        with tempfile.TemporaryDirectory() as folder:
            result[f"cold {size}"] = composed(config, Path(folder))
            result[f"cold {size}"]["mapping"] = _mapping_seconds(config)
            for rows, cols in ((config.rows - 1, config.cols), (config.rows, config.cols - 4)):
                other = replace(config, rows=rows, cols=cols)
                result[f"then {rows}x{cols}"] = composed(other, Path(folder))
        for record in stored:
            if record.config == config.to_json():
                name = f"flat {size}, stored, of the machine that recorded it"
                result[name] = {"processor": record.seconds}
                ratios = _ratios(record.seconds, result[f"cold {size}"])
                result[f"ratio at {size}, flat time stored"] = ratios
    return result


def _ratios(flat: float, composed: dict[str, float]) -> dict[str, float]:
    return {
        "mapping alone": round(flat / composed["mapping"], 1),
        "with timing and netlist checks": round(flat / composed["processor"], 1),
    }


def _mapping_seconds(config: AcceleratorConfig) -> float:
    """Return the processor time of Yosys for mapping an array's kinds of module, one by one."""
    whole, inside = whole_pes(split_modules(core_verilog(config)))
    texts = {name: thin(text)[0] for name, text in whole.items()}
    before = os.times()
    for group in groups(whole):
        with tempfile.TemporaryDirectory() as folder:
            map_group(group, texts, inside, FAMILY, Path(folder))
    after = os.times()
    spent = after.children_user + after.children_system
    return round(spent - before.children_user - before.children_system, 1)


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return both results of every design."""
    result = Table(title=f"composed against flat, {FAMILY.name}, {CORE}", title_justify="left")
    for number, name in enumerate(
        (
            "design",
            "LUT flat",
            "composed",
            "error",
            "FF flat",
            "composed",
            "error",
            "DSP",
            "BRAM",
            "delay flat ns",
            "composed",
            "error",
        )
    ):
        result.add_column(name, justify="right" if number else "left")
    for row in rows:
        same = "{0}" if row["dsp"] == row["dsp_flat"] else "{1} -> {0}"
        result.add_row(
            row["design"],
            *(str(row["lut_flat"]), str(row["lut"]), f"{row['lut_error']:+.2f} %"),
            *(str(row["ff_flat"]), str(row["ff"]), f"{row['ff_error']:+.2f} %"),
            same.format(row["dsp"], row["dsp_flat"]),
            f"{row['bram36']:g}",
            *(f"{row['delay_ns_flat']:.3f}", f"{row['delay_ns']:.3f}"),
            f"{row['delay_ns_error']:+.2f} %",
        )
    return result


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean, median and largest absolute error in percent, and the total's error."""
    found = {}
    for name in ("lut", "ff", "delay_ns"):
        errors = np.abs([row[f"{name}_error"] for row in rows])
        total = sum(row[name] for row in rows) / sum(row[f"{name}_flat"] for row in rows)
        found[name] = {
            "mean": float(errors.mean()),
            "median": float(np.median(errors)),
            "largest": float(errors.max()),
            "of the total": 100 * abs(total - 1),
        }
    return found


def main_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.synthesis",
        description="The composed cost against flat synthesis of the whole.",
    )
    default = Path(os.environ.get("TRILAT_CACHE", Path.home() / ".cache" / "trilat")) / "hdl"
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument(
        "--quick", action="store_true", help="four designs, no timing of large ones"
    )
    parser.add_argument("--record", action="store_true", help="map flat what is missing, and end")
    parser.add_argument(
        "--large",
        action="store_true",
        help="with --record: the flat 16x16 and 32x32 too (15 minutes or more)",
    )
    parser.add_argument(
        "--file", type=Path, default=FILE, help="flat results (default: those beside this module)"
    )
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="flat results to repeat")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of that sample")
    parser.add_argument("--cache", type=Path, default=default, metavar="DIR")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 1 when a stored result is not reproduced."""
    arguments = main_parser().parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)

    def action() -> int:
        if arguments.jobs < 1:
            raise InputError(f"--jobs must be at least 1, not {arguments.jobs}")
        try:
            if arguments.record:
                record(arguments.file, arguments.jobs, arguments.large, console)
                return 0
            return _report(arguments, console)
        except (yosys.YosysError, MismatchError) as error:
            print(f"python -m bench.synthesis: {error}", file=sys.stderr)
            return 1

    return run_command("python -m bench.synthesis", action)


def _report(arguments: argparse.Namespace, console: Console) -> int:
    stored = load(arguments.file)
    large = [result for result in stored if _is_large(result)]
    results = [result for result in stored if not _is_large(result)]
    if not results:
        raise InputError(f"{arguments.file} is missing: run python -m bench.synthesis --record")
    # Of the quick run, two of either dataflow where there are.
    of_os = [result for result in results if result.config["dataflow"] == "os"]
    chosen = [*results[:2], *of_os[:2]] if arguments.quick else results
    rows = [compare(flat, arguments.cache, arguments.jobs) for flat in chosen]
    console.print(table(rows))
    figures = summary(rows)
    for name, errors in figures.items():
        text = ", ".join(f"{kind} {value:.2f} %" for kind, value in errors.items())
        worst = max(rows, key=lambda row: abs(row[f"{name}_error"]))
        console.print(f"error of {name}: {text} ({worst['design']})")
    met = all(figures[name]["largest"] <= BAR for name in ("lut", "ff"))
    console.print(
        f"at most {BAR:g} % of LUT and FF in each of {len(rows)} designs: "
        f"{'met' if met else 'NOT met'}"
    )
    current = {flat_key(core_verilog(config)) for config in corpus()}
    same = sum(result.key in current for result in results)
    console.print(f"{same} of {len(results)} stored designs are what the generator emits now")
    times = {} if arguments.quick else speed(large, arguments.jobs)
    for name, value in times.items():
        console.print(
            f"{name}: " + ", ".join(f"{part} {number:g}" for part, number in value.items())
        )
    emitted = {flat_key(core_verilog(config)) for config in _LARGE}
    if times and not {result.key for result in large} <= emitted:
        console.print("a stored flat time is of Verilog that the generator no longer emits")
    wrong = check_sample(chosen, arguments.sample, arguments.seed)
    for line in wrong:
        console.print(f"not reproduced: {line}")
    if arguments.json is not None:
        found = {"designs": rows, "errors": figures, "bar_percent": BAR, "bar_met": met}
        write_json(
            arguments.json, {**found, "speed": times, "wrong": wrong, "yosys": yosys.version()}
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
