# SPDX-License-Identifier: Apache-2.0
"""The results of `bench.mitigations` as one self-contained HTML page, or as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.mitigation_tables import Finding
from faultinj.report import NOT_MODELLED
from trilat import page
from trilat.figures import Figure
from trilat.files import write_text

_TEMPLATE = Path(__file__).with_name("mitigations.html")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table with its plot, None where no cell is there."""

    table: Table
    figure: Figure | None


def write_report(
    path: Path,
    sections: Sequence[Section],
    findings: Sequence[Finding],
    missing: Mapping[str, Sequence[str]],
    settings: Mapping[str, Any],
) -> None:
    """Write the page.

    Args:
        path: of the page.
        sections: in order.
        findings: what was expected, and found.
        missing: names of cells by the reason why they are missing.
        settings: of the run, for the reader.
    """
    tables: list[dict[str, Any]] = []
    figures: dict[str, Figure] = {}
    for number, section in enumerate(sections):
        name = f"section-{number + 1}"
        table = _table(section.table)
        first = not any(one["title"][:2] == table["title"][:2] for one in tables)
        tables.append({**table, "name": name, "first": first})
        if section.figure is not None:
            figures[name] = _on_page(section.figure)
    text = page.render(
        _TEMPLATE,
        figures=figures,
        sections=tables,
        findings=findings,
        missing=missing,
        settings={name: _setting(value) for name, value in settings.items()},
        not_modelled=NOT_MODELLED,
    )
    write_text(path, text)


def _on_page(figure: Figure) -> Figure:
    # The section's heading is the title; a line per cell is too much for a legend above.
    layout = {key: value for key, value in figure["layout"].items() if key != "title"}
    legend = {"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"}
    height = max(460, 120 + 22 * len(figure["data"]))
    return {**figure, "layout": {**layout, "legend": legend, "height": height}}


def _setting(value: Any) -> str:
    if value is None:
        return "by table"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def write_markdown(
    path: Path,
    sections: Sequence[Section],
    findings: Sequence[Finding],
    missing: Mapping[str, Sequence[str]],
) -> None:
    """Write the tables, without the plots; arguments as in `write_report`."""
    lines = ["<!-- Written by python -m bench.mitigations --markdown: do not edit. -->", ""]
    lines += ["## Expected and found", ""]
    for one in findings:
        lines.append(f"- **{one.verdict}**: {one.expected}. {one.found}".rstrip())
    for section in sections:
        table = _table(section.table)
        lines += ["", f"## {table['title']}", "", f"{table['caption']}.", ""]
        lines += [_row(table["headings"]), _row(["---"] * len(table["headings"]))]
        lines += [_row(row) for row in table["rows"]]
    lines += ["", "## Missing cells", ""]
    lines += [f"- {reason}: {'; '.join(names)}" for reason, names in missing.items()]
    lines += [] if missing else ["None."]
    write_text(path, "\n".join(lines) + "\n")


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.strip().replace("|", "\\|") for text in texts) + " |"


def _table(table: Table) -> dict[str, Any]:
    """Return what a table holds, for the template."""
    return {
        "title": str(table.title),
        "caption": str(table.caption or ""),
        "headings": [str(column.header) for column in table.columns],
        "rows": list(zip(*(map(str, column.cells) for column in table.columns), strict=True)),
    }
