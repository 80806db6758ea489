# SPDX-License-Identifier: Apache-2.0
"""The results of `bench.mitigations` as one self-contained HTML page, or as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.mitigation_tables import Finding
from dse.charts import Figure
from faultinj.report import NOT_MODELLED
from trilat.files import write_text

_HERE = Path(__file__).parent


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
    import jinja2
    import plotly.offline
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True
    )
    figures = [section.figure for section in sections]
    text = environment.get_template("mitigations.html").render(
        sections=[_table(section.table) for section in sections],
        drawn=[figure is not None for figure in figures],
        findings=findings,
        missing=missing,
        settings=settings,
        not_modelled=NOT_MODELLED,
        # Inside <script>, a "<" could end the element; escaped, the JSON is the same.
        figures=Markup(json.dumps(figures, allow_nan=False).replace("<", "\\u003c")),
        plotly=Markup(plotly.offline.get_plotlyjs()),
    )
    write_text(path, text)


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
