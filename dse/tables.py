# SPDX-License-Identifier: Apache-2.0
"""The front as flat rows for pareto.csv and pareto.json, and as a table in the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse import voltage
from dse.findings import chosen, front, points_by_number
from dse.records import PointRecord, RunRecord, TrialRecord
from dse.text import DASH, brief, number

if TYPE_CHECKING:
    from rich.console import Console


def pareto_rows(record: RunRecord) -> list[dict[str, Any]]:
    """Return one flat row per point of the front; units are in the names, unmeasured is None.

    Intervals are 95 %: Wilson for accuracies, bootstrap over repetitions (chips) under faults.
    """
    points = points_by_number(record)
    best = chosen(record)
    kind = record.rate.get("kind")
    return [_row(trial, points.get(trial.number), trial == best, kind) for trial in front(record)]


def _row(
    trial: TrialRecord, point: PointRecord | None, is_chosen: bool, kind: str | None
) -> dict[str, Any]:
    design, cost = trial.design, trial.cost
    test_interval = point.test_interval if point else (None, None)
    verification = (point.verification if point else None) or {}
    return {
        "trial": trial.number,
        "design": design.label(),
        "chosen": is_chosen,
        "method": design.method,
        "weight_bits": design.weight_bits,
        "act_bits": design.act_bits,
        "protect": design.protect,
        "rows": design.rows,
        "cols": design.cols,
        "dataflow": design.dataflow,
        "requant": design.requant,
        "accuracy_val_percent": trial.objectives["accuracy"],
        "accuracy_val_ci95_low_percent": trial.accuracy_interval[0],
        "accuracy_val_ci95_high_percent": trial.accuracy_interval[1],
        **_faulty("val", trial.faulty),
        "accuracy_test_percent": point.test_accuracy if point else None,
        "accuracy_test_ci95_low_percent": test_interval[0],
        "accuracy_test_ci95_high_percent": test_interval[1],
        **_faulty("test", (point.test_faulty if point else None) or {}),
        "fault_rate_per_stored_bit": trial.faulty.get("rate"),
        "fault_repetitions": trial.faulty.get("repetitions"),
        **_on_chips(trial.faulty, kind),
        "area_lut_equivalent": trial.objectives["lut_equivalent"],
        "lut": cost.get("lut"),
        "ff": cost.get("ff"),
        "dsp": cost.get("dsp"),
        "bram": cost.get("bram36"),
        "bram_unit": cost.get("bram_unit"),
        "logic_delay_ns": cost.get("delay_ns"),
        "cycles_per_inference": trial.cycles,
        "time_per_inference_us": trial.objectives["time_us"],
        "rtl_outputs_compared": verification.get("outputs_compared"),
        "rtl_outputs_equal": verification.get("outputs_equal"),
        "rtl_faults_replayed": verification.get("faults_replayed"),
        "rtl_faults_predicted": verification.get("faults_predicted"),
        "folder": point.folder if point else None,
        "config_hash": trial.config_hash,
        "network_hash": trial.network_hash,
    }


def _faulty(split: str, result: dict[str, Any]) -> dict[str, Any]:
    names = {
        "mean": "mean",
        "ci95_low": "ci_low",
        "ci95_high": "ci_high",
        "min": "min",
        "max": "max",
    }
    return {
        f"accuracy_under_faults_{split}_{column}_percent": result.get(field)
        for column, field in names.items()
    }


def _on_chips(faulty: dict[str, Any], kind: str | None) -> dict[str, Any]:
    """Return what is known of weight memories beside the accuracy; nothing for other faults."""
    if faulty.get("site") != "weights":
        return {}
    robust = faulty["robust"]
    return {
        "fault_site": "weights",
        "fault_kind": kind,
        "fault_chips": faulty["chips"],
        "fault_aware_codes": faulty["conversion"],
        "stored_weight_bits": faulty["bits"],
        "bits_read_wrong_share": faulty["flipped_bits"],
        "accuracy_robust_val_mean_percent": robust["mean"],
        "accuracy_robust_val_ci95_low_percent": robust["ci_low"],
        "accuracy_robust_val_ci95_high_percent": robust["ci_high"],
        "sram_voltage_over_vmin": faulty["voltage"],
        "sram_energy_saved_per_access_percent": 100 * faulty["energy_saved"],
    }


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows of equal keys as CSV with a heading; nothing for no rows, None as empty."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def print_summary(record: RunRecord, console: Console, report: Path | None = None) -> None:
    """Print the front as a table, the chosen point marked, and where the report lies.

    Args:
        record: the run.
        console: to print to.
        report: path of report.html, printed below the table.
    """
    from rich.box import SIMPLE
    from rich.table import Table

    trials = front(record)
    if trials:
        points, best = points_by_number(record), chosen(record)
        table = Table(title=f"Pareto front of {record.name}", title_justify="left", box=SIMPLE)
        table.add_column("Design", overflow="fold")
        for heading in ("Accuracy %", "Faulty %", "Test %", "LUT-eq", "µs"):
            table.add_column(heading, justify="right", no_wrap=True)
        for trial in trials:
            point = points.get(trial.number)
            faulty = (trial.faulty.get("ci_low"), trial.faulty.get("ci_high"))
            table.add_row(
                trial.design.label() + (" *" if trial == best else ""),
                _estimate(trial.objectives["accuracy"], trial.accuracy_interval),
                _estimate(trial.objectives["faulty_accuracy"], faulty),
                _estimate(point.test_accuracy, point.test_interval) if point else DASH,
                number(trial.objectives["lut_equivalent"]),
                brief(trial.objectives["time_us"]),
                style="bold" if trial == best else None,
            )
        console.print(table)
        console.print("* chosen; ± the wider half of the 95 % interval; faulty: under faults")
        for trial in trials:
            point = points.get(trial.number)
            if point and point.verification:
                console.print(f"RTL of {trial.design.label()}: {_agreement(point.verification)}")
        if saved := voltage.sentence(record):
            console.print(saved)
    else:
        console.print("No trial has finished: the front is empty.")
    if report is not None:
        console.print(f"report: {report}", markup=False, soft_wrap=True)


def _estimate(value: float, bounds: Sequence[Any]) -> str:
    if any(not isinstance(bound, int | float) for bound in bounds):
        return number(value, 1)
    return f"{number(value, 1)} ±{number(max(value - bounds[0], bounds[1] - value), 1)}"


def _agreement(found: dict[str, Any]) -> str:
    return (
        f"{number(found.get('outputs_equal'))} of {number(found.get('outputs_compared'))} outputs "
        f"equal, {number(found.get('faults_predicted'))} of {number(found.get('faults_replayed'))} "
        "faults predicted exactly"
    )
