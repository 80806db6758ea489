# SPDX-License-Identifier: Apache-2.0
"""T6: activation sparsity against faulty accuracy, with and without sharpness-aware training.

After FlatENN (Malhotra and Gupta, arXiv:2301.00675), of which abstracts were read: networks with
sparse activations are more vulnerable to faulty weights, and sharpness-aware quantization helps.
Sparsity comes from an L1 penalty on activations behind ReLUs, which is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from bench.mitigation_cells import Bench, Cell, Effort, Found, codes_and_labels, over_chips
from bench.mitigation_methods import EPOCHS
from bench.mitigation_tables import Finding, at_rate, errors, percent
from quant.sharpness import activation_sparsity
from trilat.figures import SERIES, SYMBOLS, Figure, bars

RATES = (0.01, 0.02, 0.05)
PENALTIES = (0.0, 0.01, 0.05, 0.2)
SAQ = "saq:0.3"


def cells(effort: Effort) -> list[Cell]:
    """Return the rows: every L1 weight without and with sharpness-aware training."""
    rows = []
    for base in ("qat", SAQ):
        for penalty in PENALTIES:
            sparse = f"sparse:{penalty:g}"
            rows.append(base if not penalty else sparse if base == "qat" else f"{base}+{sparse}")
    return [
        Cell(
            table="T6",
            row=method,
            model="lenet5",
            data=effort.grey,
            method=method,
            bits=8,
            rates=RATES,
            epochs=effort.epochs or EPOCHS,
            chips=effort.chips,
            images=effort.images,
            seed=effort.seed,
        )
        for method in rows
    ]


def measure(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Train and measure a cell; JSON-able: `bench.mitigation_cells.over_chips`, and sparsity."""
    trained = bench.network(cell.model, cell.data, cell.method, cell.bits, cell.epochs)
    codes, _ = codes_and_labels(cell, bench, trained.network)
    sparsity = {
        name: 100 * share for name, share in activation_sparsity(trained.network, codes).items()
    }
    return {**over_chips(cell, bench, trained), "sparsity": sparsity}


def table(cells: list[Cell], found: Found) -> Table:
    """Return sparsity per layer beside errors per rate."""
    result = Table(
        title=f"T6: sparse activations, error in % on {cells[0].data}, {cells[0].model}, "
        f"{cells[0].bits} bits",
        caption="zeros among the activations of each layer and their mean over layers, in %; plain "
        f"error / RErr (wrong clean or faulty), mean over {cells[0].chips} chips of bit flips, "
        "95 % interval of RErr",
    )
    result.add_column("method")
    headings = ("zeros by layer", "mean", "clean", *(percent(rate) for rate in cells[0].rates))
    for heading in headings:
        result.add_column(heading, justify="right")
    for cell in cells:
        one = found.get(cell)
        zeros = ["-", "-"]
        if one is not None:
            shares = list(one["sparsity"].values())
            zeros = [" ".join(f"{share:.0f}" for share in shares), f"{mean_sparsity(one):.1f}"]
        result.add_row(cell.row, *zeros, *errors(cell, one))
    return result


def mean_sparsity(one: Mapping[str, Any]) -> float:
    """Return the mean over layers of the share of zeros, in percent."""
    shares = one["sparsity"].values()
    return float(sum(shares) / len(shares))


def figure(cells: list[Cell], found: Found) -> Figure:
    """Return faulty accuracy against sparsity: a line per rate, without and with SAQ."""
    data = []
    for number, base in enumerate(("qat", SAQ)):
        mine = [cell for cell in cells if cell in found and (SAQ in cell.method) == (base == SAQ)]
        mine.sort(key=lambda cell: mean_sparsity(found[cell]))
        for k, rate in enumerate(RATES if mine else ()):
            spreads = [found[cell]["rates"][k]["plain"] for cell in mine]
            means = [s["mean"] for s in spreads]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"{'SAQ' if base == SAQ else 'without SAQ'}, {percent(rate)}",
                    "x": [mean_sparsity(found[cell]) for cell in mine],
                    "y": means,
                    "error_y": bars(
                        means, [s["ci_low"] for s in spreads], [s["ci_high"] for s in spreads]
                    ),
                    "marker": {"symbol": SYMBOLS[number]},
                    "line": {"color": SERIES[k], "dash": "dash" if base == SAQ else "solid"},
                }
            )
    layout = {
        "title": {"text": "T6: sparse activations"},
        "xaxis": {"title": {"text": "zeros among activations, mean over layers (%)"}},
        "yaxis": {"title": {"text": "accuracy under faults (%)"}},
    }
    return {"data": data, "layout": layout}


def findings(cells: list[Cell], found: Found) -> list[Finding]:
    """Return whether sparse networks lose more to faults, and what SAQ gains."""
    expected = (
        "sparse activations make a network more vulnerable (FlatENN: up to 17.32 points in its "
        "first version, 11.13 later), and SAQ gains (up to 36.71, later 19.50, on sparse ones)"
    )
    plain = [cell for cell in cells if SAQ not in cell.method]
    sharp = {cell.method: cell for cell in cells if SAQ in cell.method}
    if any(cell not in found for cell in cells):
        return [Finding(expected=expected, found="", met=None)]
    dense, *sparse = plain
    lost, lost_at, gained, gained_at = -100.0, "", -100.0, ""
    for rate in dense.rates:
        for cell in sparse:
            mine = at_rate(found[cell], rate)["plain"]["mean"]
            other = sharp[f"{SAQ}+{cell.method}"]
            loss = at_rate(found[dense], rate)["plain"]["mean"] - mine
            gain = at_rate(found[other], rate)["plain"]["mean"] - mine
            if loss > lost:
                lost, lost_at = loss, f"{cell.row}, {percent(rate)}"
            if gain > gained:
                gained, gained_at = gain, f"{other.row}, {percent(rate)}"
    text = (
        f"sparse below dense by up to {lost:.2f} points ({lost_at}); SAQ above none by up to "
        f"{gained:.2f} ({gained_at})"
    )
    return [Finding(expected=expected, found=text, met=lost > 0 and gained > 0)]
