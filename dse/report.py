# SPDX-License-Identifier: Apache-2.0
"""The report of a run: report.html, pareto.csv and pareto.json, from its record alone.

`python -m dse.report runs/NAME` makes them again from run.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dse import charts, fault_charts, findings, knob_charts, text, voltage
from dse.records import OBJECTIVES, RunRecord, TrialRecord
from dse.tables import pareto_rows, print_summary, to_csv
from trilat import page
from trilat.errors import InputError, run_command
from trilat.files import write_json, write_text

__all__ = ["main", "print_summary", "render", "write_report"]

_TEMPLATE = Path(__file__).with_name("report.html")
_FIRST_PAIR = ("faulty_accuracy", "lut_equivalent")


def write_report(record: RunRecord, folder: Path) -> Path:
    """Write report.html and its tables into the run folder; return the report's path.

    Args:
        record: of the run, finished or not.
        folder: the run folder; made where it does not exist.
    """
    rows = pareto_rows(record)
    write_text(folder / "pareto.csv", to_csv(rows))
    write_json(folder / "pareto.json", rows)
    if held := voltage.rows(record):
        write_text(folder / "voltage.csv", to_csv(held))
    path = folder / "report.html"
    write_text(path, render(record))
    return path


def render(record: RunRecord) -> str:
    """Return the report as one self-contained HTML page."""
    filters: dict[str, Callable[..., Any]] = {
        "number": text.number,
        "number_or_count": lambda v: text.number(len(v) if isinstance(v, list | tuple) else v),
        "brief": text.brief,
        "half": text.half,
        "percent": text.percent,
        "share": text.share,
        "spread": text.spread,
        "ratio_spread": text.ratio_spread,
        "interval": text.interval,
        "duration": text.duration,
        "plain": text.plain,
        "fact": text.fact,
        "in_words": text.in_words,
        "rate_print": _rate_print,
        "capitalize_first": lambda s: s[:1].upper() + s[1:],
        "path_url": quote,
    }
    return page.render(_TEMPLATE, filters=filters, **_context(record))


def _rate_print(result: dict[str, Any]) -> str:
    # Interval, then range over repetitions (or chips), of accuracy under faults.
    bounds = text.interval((result.get("ci_low"), result.get("ci_high")))
    if not bounds:
        return ""
    return f"{bounds}\n{text.number(result.get('min'), 1)} .. {text.number(result.get('max'), 1)}"


def _context(record: RunRecord) -> dict[str, Any]:
    choice = findings.chosen(record)
    points = findings.points_by_number(record)
    rows = [(trial, points.get(trial.number)) for trial in findings.front(record)]
    blocks, outcome_figures = _outcomes(record, choice)
    exposed = [(t, {e.site: e for e in findings.exposures(t, p)}) for t, p in rows if p]
    exposure_rows = [(trial, by_site) for trial, by_site in exposed if by_site]
    sites = list(dict.fromkeys(site for _trial, by_site in exposure_rows for site in by_site))
    name, data = (str(source.get("name", "?")) for source in (record.model, record.data))
    return {
        "record": record,
        "title": f"{name} on {data}",
        "searched": findings.searched(record),
        "choice": choice,
        "choice_point": points.get(choice.number) if choice else None,
        "trade_offs": findings.trade_offs(record),
        "pairs": [
            (charts.pair_name(a, b), _pair_label(a, b))
            for a, b in sorted(charts.PAIRS, key=lambda pair: pair != _FIRST_PAIR)
        ],
        "first_pair": charts.pair_name(*_FIRST_PAIR),
        "repeated_over": findings.repeated_over(record),
        "in_weights": findings.in_weights(record),
        "curves": voltage.curves(record),
        "saved": voltage.sentence(record),
        "rows": rows,
        "bram": charts.bram_unit(record.trials),
        "scope": _sentence(next((t.cost["scope"] for t, _p in rows if t.cost.get("scope")), "")),
        "effects": findings.knob_effects(record),
        "knob_names": findings.KNOBS,
        "protection": findings.protection_sentence(record),
        "rate_text": findings.rate_words(record),
        "outcome_blocks": blocks,
        "outcome_points": list({b["number"]: b["label"] for b in blocks}.items()),
        "outcome_flips": sorted({block["flips"] for block in blocks}),
        "outcome_names": text.OUTCOMES,
        "exposure_sites": sites,
        "exposure_rows": exposure_rows,
        "site_names": text.SITES,
        "reference": ", ".join(
            f"{OBJECTIVES[key][1].lower() if key in OBJECTIVES else key} {text.brief(value)}"
            f" {OBJECTIVES[key][2] if key in OBJECTIVES else ''}".rstrip()
            for key, value in record.reference.items()
        )
        or "not recorded",
        "plateau": _plateau(record),
        "verified": [(t, p.verification) for t, p in rows if p and p.verification],
        "disagreements": _disagreements(rows),
        "agreement": record.model.get("agreement"),
        "agreement_gap": any(
            found.get("largest", 0) > 1
            if "largest" in found
            else "words" in found and found.get("equal") != found["words"]
            for found in record.model.get("agreement") or ()
        ),
        "model": {key: value for key, value in record.model.items() if key != "agreement"},
        "figures": {**_figures(record, choice), **outcome_figures},
    }


def _pair_label(first: str, second: str) -> str:
    x, y = charts.pair_axes(first, second)
    short = {
        "accuracy": "accuracy",
        "faulty_accuracy": "under faults",
        "lut_equivalent": "area",
        "time_us": "time",
    }
    label = f"{short[y]} / {short[x]}"
    return label[0].upper() + label[1:]


def _sentence(words: str) -> str:
    words = words.strip()
    words = words[:1].upper() + words[1:]
    return words if not words or words.endswith(".") else f"{words}."


def _figures(record: RunRecord, choice: TrialRecord | None) -> dict[str, charts.Figure]:
    if not record.trials:
        return {}
    figures = {
        charts.pair_name(a, b): charts.pair_figure(record, a, b, chosen=choice)
        for a, b in charts.PAIRS
    }
    figures["front-3d"] = charts.front_3d(record, chosen=choice)
    figures["bits-accuracy"] = knob_charts.by_bits(record, "accuracy")
    figures["bits-faulty"] = knob_charts.by_bits(record, "faulty_accuracy")
    figures["array-area"] = knob_charts.by_array(record, "lut_equivalent")
    figures["array-time"] = knob_charts.by_array(record, "time_us")
    optional = {
        "protection": knob_charts.protection_pairs(record),
        "trial-seconds": charts.trial_seconds(record),
        "rates": fault_charts.rate_figure(record),
        "exposure": fault_charts.exposure_figure(record),
        "voltage": voltage.voltage_figure(record),
    }
    figures.update({name: figure for name, figure in optional.items() if figure["data"]})
    if record.hypervolume:
        figures["hypervolume"] = charts.hypervolume(record)
    return figures


def _outcomes(
    record: RunRecord, choice: TrialRecord | None
) -> tuple[list[dict[str, Any]], dict[str, charts.Figure]]:
    # One block per reported point and number of flips, its campaigns side by side.
    blocks: list[dict[str, Any]] = []
    figures: dict[str, charts.Figure] = {}
    points = findings.points_by_number(record)
    for trial in findings.front(record):
        point = points.get(trial.number)
        found = [c for c in (point.campaigns if point else ()) if c.get("n") and c.get("outcomes")]
        for flips in sorted({c["multiplicity"] for c in found}):
            campaigns = []
            for i, campaign in enumerate(c for c in found if c["multiplicity"] == flips):
                names = {
                    key: f"outcomes-{trial.number}-{flips}-{i}-{key}" for key in ("layer", "bit")
                }
                for key, title in (("layer", "Layer"), ("bit", "Bit")):
                    if campaign.get(f"by_{key}"):
                        figures[names[key]] = fault_charts.outcomes_figure(
                            campaign[f"by_{key}"], key, title
                        )
                site = text.SITES.get(campaign["site"], campaign["site"])
                many = "single flip" if flips == 1 else f"{flips} flips at once"
                campaigns.append(
                    {
                        "title": f"{site}, {many}",
                        "sentence": findings.fault_sentence(campaign),
                        "data": campaign,
                        "by_layer": names["layer"],
                        "by_bit": names["bit"],
                    }
                )
            blocks.append(
                {
                    "number": trial.number,
                    "label": trial.design.label(),
                    "flips": flips,
                    "campaigns": campaigns,
                    "first": False,
                }
            )
    own = [block for block in blocks if choice and block["number"] == choice.number]
    for block in (own or blocks)[:1]:
        block["first"] = True
    return blocks, figures


def _plateau(record: RunRecord) -> str:
    values = record.hypervolume
    if len(values) < 2 or not values[-1] > 0:
        return ""
    last = max((i for i in range(1, len(values)) if values[i] > values[i - 1]), default=0)
    half = values[(len(values) - 1) // 2]
    return (
        f"It last grew at trial {last + 1} of {len(values)}; half of the trials had reached "
        f"{text.share(half / values[-1])} of its final value."
    )


def _disagreements(rows: list[tuple[TrialRecord, Any]]) -> list[str]:
    found = []
    for trial, point in rows:
        check, label = (point.verification if point else None) or {}, trial.design.label()
        for what, total, good in (
            ("outputs", "outputs_compared", "outputs_equal"),
            ("faults", "faults_replayed", "faults_predicted"),
        ):
            missing = (check.get(total) or 0) - (check.get(good) or 0)
            if missing:
                found.append(
                    f"{label}: {text.number(missing)} of {text.number(check[total])} {what} "
                    "disagree between the RTL and the software."
                )
        for what, there, here in (
            ("cycles", "cycles", "cycles_predicted"),
            ("violations", "violations", "violations_expected"),
        ):
            if check.get(there) != check.get(here):
                found.append(
                    f"{label}: the RTL counted {text.number(check.get(there))} {what}, the "
                    f"software {text.number(check.get(here))}."
                )
    return found


def read_record(folder: Path) -> RunRecord:
    """Return the record in a run folder's run.json. Raises InputError where there is none."""
    path = folder / "run.json"
    if not path.is_file():
        raise InputError(f"{folder} is not a run folder: it has no run.json")
    try:
        return RunRecord.from_json(json.loads(path.read_text("utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not the record of a run: {error!r}") from error


def main(argv: list[str] | None = None) -> int:
    """Make the report of a run folder again."""
    from rich.console import Console

    parser = argparse.ArgumentParser(
        prog="python -m dse.report",
        description="Make report.html, pareto.csv and pareto.json of a run from its run.json.",
    )
    parser.add_argument("folder", type=Path, help="run folder, e.g. runs/vgg11-digits-4-8")
    folder = parser.parse_args(argv).folder
    record = read_record(folder)
    print_summary(record, Console(), write_report(record, folder))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("python -m dse.report", main))
