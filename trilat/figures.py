# SPDX-License-Identifier: Apache-2.0
"""What the charts of all rooms share: colours, intervals as error bars, logarithmic axes.

A figure is a Plotly figure in plain JSON. It says what is drawn; fonts, grid and background are
the page's (`trilat/page.js` adds them), so that a chart follows the light or dark scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Figure = dict[str, Any]  # with "data" and "layout"

# Okabe and Ito's, told apart with any colour vision, on light and dark ground. Every colour comes
# with a marker shape, a dash or a label.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, GREY = "#56B4E9", "#CC79A7", "#8A929B"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, GREY)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x")

# Ticks at 1, 2 and 5 of every decade, written in full.
LOG_AXIS = {"type": "log", "dtick": "D2", "tickformat": ","}


def bars(
    values: Sequence[float], lows: Sequence[float], highs: Sequence[float], **style: Any
) -> dict[str, Any]:
    """Return intervals as Plotly error bars.

    Args:
        values, lows, highs: (N,) each; a bound on the wrong side of its value draws nothing.
        style: more of Plotly's ``error_x`` or ``error_y``, e.g. ``color``.
    """
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - v) for v, high in zip(values, highs, strict=True)],
        "arrayminus": [max(0.0, v - low) for v, low in zip(values, lows, strict=True)],
        "thickness": 1.5,
        "width": 3,
        **style,
    }
