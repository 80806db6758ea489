# SPDX-License-Identifier: Apache-2.0
"""Reports as HTML pages that open without network: styles, scripts and figures are inside.

A room's template extends ``page.html``, which names the blocks, and fills them::

    {% extends "page.html" %}
    {% from "page_parts.html" import chart %}
    {% block title %}Fault campaign{% endblock %}
    {% block main %}{{ chart("layer") }}{% endblock %}

A chart is a place on the page with the name of a figure; ``page.js`` draws it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trilat.figures import Figure

_HERE = Path(__file__).parent


def render(
    template: Path,
    *,
    figures: Mapping[str, Figure],
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **context: Any,
) -> str:
    """Return a page.

    Args:
        template: file of a template that extends ``page.html``; files beside it can be included.
        figures: by the names that the template's charts have.
        filters: of the template. ``json_text`` is always there: data for a script element.
        context: the template's variables.
    """
    # Imported here: a command that writes no page need not wait for them.
    import jinja2
    import plotly.offline
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _HERE]),
        autoescape=True,
        trim_blocks=True,
    )
    environment.filters |= {"json_text": lambda value: Markup(_json_text(value)), **(filters or {})}
    plotly_js = Markup(plotly.offline.get_plotlyjs())
    return environment.get_template(template.name).render(
        figures=figures, plotly_js=plotly_js, **context
    )


def _json_text(value: Any) -> str:
    # Inside <script>, a "<" could end the element or open a comment; escaped, the JSON is the same.
    return json.dumps(value, allow_nan=False, sort_keys=True).replace("<", "\\u003c")
