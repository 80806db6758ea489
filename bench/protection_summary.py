# SPDX-License-Identifier: Apache-2.0
"""What `bench.protection` prints: the summary beside the claims, then the details."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from bench.protection_cells import SITES, VARIANTS, Case, Variant
from bench.protection_ladder import best_step, spread_of
from faultinj.summary import OUTCOMES

Steps = list[dict[str, Any]]
NONE = VARIANTS[0]
# Largest gains claimed, in percent; and LUTs. Taheri et al., ISQED 2024, as a third party's
# summary has it; the text itself was not at hand.
CLAIMED = {"lenet5": 34.0, "alexnet": 52.0}
CLAIMED_LUT = 10.0
CLAIMS = (
    "claimed (third-party summary of Taheri et al., ISQED 2024; unit and fault model not stated "
    "there): under 10 % more LUTs; reliability up to +34 (LeNet-5/MNIST) and +52 "
    "(AlexNet/CIFAR-10)"
)
WORD_NAMES = {"code": "words as wide as the codes", "byte": "8-bit words"}


@dataclass(kw_only=True)
class Measured:
    """All results that a run has: by network, protection, and width.

    Attributes:
        cells: figures of `bench.protection_cells.measure`.
        ladders: by network and word, steps of each protection.
        psums: by network, figures of each protection and number of flips.
        luts: by width and protection.
        missing: what there is not, in words.
        choosing, seed: of `best_step`.
    """

    choosing: int
    seed: int
    cells: dict[tuple[Case, Variant], dict[str, Any]] = field(default_factory=dict)
    ladders: dict[tuple[Case, str], dict[Variant, Steps]] = field(default_factory=dict)
    psums: dict[Case, dict[tuple[Variant, int], dict[str, Any]]] = field(default_factory=dict)
    luts: dict[tuple[int, Variant], int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def lut_more(self, bits: int, variant: Variant) -> float | None:
        """Return the LUTs that a protection adds to an array of a width, in percent."""
        plain, mine = self.luts.get((bits, NONE)), self.luts.get((bits, variant))
        return 100 * (mine / plain - 1) if plain and mine else None

    def best(self, case: Case, word: str) -> dict[str, Any] | None:
        """Return `best_step` of a network, or None where it has no ladder."""
        steps = self.ladders.get((case, word), {})
        others = {variant: one for variant, one in steps.items() if variant != NONE}
        if NONE not in steps or not others:
            return None
        return best_step(steps[NONE], others, self.choosing, self.seed)


def summary(measured: Measured, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return one JSON-able row per network of which anything is known.

    Each has the case; accuracy and its interval without faults and protection; per word of
    `WORD_NAMES` the rate and the protection of the largest gain; and of that protection for words
    as wide as the codes: false alarms, LUTs, and per site critical rates, detected and blind share.
    """
    rows = []
    for case in cases:
        plain = measured.cells.get((case, NONE))
        best = {word: measured.best(case, word) for word in WORD_NAMES}
        if plain is None and not any(best.values()):
            continue
        chosen = Variant(**best["code"]["variant"]) if best["code"] else Variant(kind="clip")
        mine = measured.cells.get((case, chosen))
        rows.append(
            {
                "case": asdict(case),
                "accuracy": plain and plain["accuracy"],
                "accuracy_interval": plain and plain["accuracy_interval"],
                **best,
                "protection": asdict(chosen),
                "false_alarms": mine and mine["false_alarms"],
                "lut_more": measured.lut_more(case.bits, chosen),
                "sites": {site: _site(plain, mine, site) for site in SITES},
            }
        )
    return rows


def _site(plain: dict[str, Any] | None, mine: dict[str, Any] | None, site: str) -> dict[str, Any]:
    without = plain and plain["sites"][site]["outcomes"]["sdc_critical"]
    if mine is None:
        return {"unprotected": without, "protected": None}
    found = mine["sites"][site]
    harmful = [found["outcomes"][name] for name in OUTCOMES if name != "masked"]
    return {
        "unprotected": without,
        "protected": found["outcomes"]["sdc_critical"],
        "paired": found.get("paired"),
        "detected": [sum(row["detected"] for row in harmful), sum(row["count"] for row in harmful)],
        "blind": found["blind"],
    }


HEADINGS = (
    "network", "bits", "clean", "flips / bit", "unprotected", "best, at both", "protected", "gain",
    "codes in 8-bit words: before > after, gain", "critical single flips", "detected", "blind",
    "alarms", "LUT",
)  # fmt: skip


def summary_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the summary as one table."""
    table = Table(
        title="Protection, in % (95 % interval). Under faults: each bit of stored activations "
        "flips at the rate at which protection gains most; gain in points, paired by fault map",
        title_justify="left",
    )
    for heading in HEADINGS:
        left = heading in ("network", "best, at both")
        table.add_column(heading, justify="left" if left else "right")
    last = None
    for row in rows:
        network = row["case"]["model"], row["case"]["method"]
        if last not in (None, network):
            table.add_section()
        last = network
        table.add_row(*summary_cells(row))
    return table


def summary_cells(row: dict[str, Any]) -> list[str]:
    """Return a row of the summary as texts, in the order of its headings."""
    case, best, byte = Case(**row["case"]), row["code"], row["byte"]
    site, alarms = row["sites"][SITES[0]], row["false_alarms"]
    detected, more = site.get("detected"), row["lut_more"]
    return [
        f"{case.model} {case.method}",
        str(case.bits),
        "-" if row["accuracy"] is None else f"{row['accuracy']:.1f}",
        "-" if best is None else f"{best['rate']:g}",
        _with_interval(best and best["unprotected"]),
        Variant(**row["protection"]).label().replace(" at both, per", ","),
        _with_interval(best and best["protected"]),
        _with_interval(best and best["gain"], sign="+"),
        "-"
        if byte is None
        else f"at {byte['rate']:g} {byte['unprotected']['mean']:.1f} > "
        f"{byte['protected']['mean']:.1f}, {_with_interval(byte['gain'], sign='+')}",
        f"{_percent(site['unprotected'])} > {_percent(site['protected'])}",
        "-" if not detected or not detected[1] else f"{100 * detected[0] / detected[1]:.0f}",
        "-" if "blind" not in site else f"{100 * site['blind']['rate']:.0f}",
        "-" if alarms is None else f"{100 * alarms['images'] / alarms['of']:.1f}",
        "-" if more is None else f"{more:+.1f}",
    ]


def _percent(row: dict[str, Any] | None) -> str:
    return "-" if row is None else f"{100 * row['rate']:.2f}"


def _with_interval(found: dict[str, Any] | None, sign: str = "") -> str:
    if found is None:
        return "-"
    return (
        f"{found['mean']:{sign}.1f} ({found['ci_low']:{sign}.1f} .. {found['ci_high']:{sign}.1f})"
    )


def verdicts(rows: Sequence[dict[str, Any]], measured: Measured) -> list[str]:
    """Return, per model, the largest gain of each kind of word beside the claimed one, and LUTs."""
    lines = []
    for model in dict.fromkeys(row["case"]["model"] for row in rows):
        mine = [row for row in rows if row["case"]["model"] == model]
        for word, name in WORD_NAMES.items():
            known = [row for row in mine if row[word] is not None]
            if not known:
                continue
            row = max(known, key=lambda one: float(one[word]["gain"]["mean"]))
            best, claimed = row[word], CLAIMED[model]
            gain = best["gain"]
            verdict = "reached" if gain["ci_low"] >= claimed else "not reached"
            if gain["ci_low"] < claimed <= gain["ci_high"]:
                verdict = "within the interval"
            lines.append(
                f"measured, {model}, {name}: accuracy under flips up to "
                f"{_with_interval(gain, sign='+')} points ({Case(**row['case']).label()}, "
                f"{Variant(**best['variant']).label()}, {best['rate']:g} flips per bit: "
                f"{best['unprotected']['mean']:.1f} > {best['protected']['mean']:.1f} %); claimed "
                f"{claimed:+g}: {verdict}"
            )
        lines += blind_lines(measured, model)
    if line := lut_line(measured):
        lines.append(line)
    return lines


def blind_lines(measured: Measured, model: str) -> list[str]:
    """Return why gains are what they are: what a check of stored activations sees of flips."""
    parts = []
    for variant in (Variant(kind="clip"), Variant(kind="clip", granularity="channel")):
        found = [
            cell["sites"][SITES[0]]
            for (case, one), cell in measured.cells.items()
            if case.model == model and one == variant
        ]
        if found:
            blind = [100 * site["blind"]["rate"] for site in found]
            seen = [
                100 * sum(row["detected"] for row in site["outcomes"].values()) / site["n"]
                for site in found
            ]
            parts.append(
                f"bounds per {variant.granularity}: blind to {min(blind):.0f} .. {max(blind):.0f}, "
                f"detected {min(seen):.0f} .. {max(seen):.0f}"
            )
    text = f"measured, {model}, of 100 single flips in codes' own bits, clip at both places with "
    return [text + "; ".join(parts)] if parts else []


def lut_line(measured: Measured) -> str | None:
    """Return the LUTs that each unit adds, from narrowest to widest, beside the claim."""
    parts = []
    for variant in VARIANTS[1:]:
        more = [measured.lut_more(bits, variant) for bits in range(2, 9)]
        found = [one for one in more if one is not None]
        if found:
            parts.append(f"{variant.label()} {min(found):+.1f} .. {max(found):+.1f}")
    if not parts:
        return None
    return f"measured, LUTs in %: {'; '.join(parts)}; claimed: under {CLAIMED_LUT:g}"


def details(measured: Measured, cases: Sequence[Case]) -> Iterator[Table]:
    """Yield the tables of every network: no faults and cost, ladders, sites, psum registers."""
    for case in cases:
        rows = [(v, measured.cells[case, v]) for v in VARIANTS if (case, v) in measured.cells]
        if rows:
            yield _clean_table(measured, case, rows)
        for word in WORD_NAMES:
            if steps := measured.ladders.get((case, word)):
                yield _ladder_table(measured, case, word, steps)
        if rows:
            for site in SITES:
                yield _site_table(case, site, rows)
        if found := measured.psums.get(case):
            yield _psum_table(case, found)


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right")
    return table


def _clean_table(
    measured: Measured, case: Case, rows: Sequence[tuple[Variant, dict[str, Any]]]
) -> Table:
    rates = [one["rate"] for one in rows[0][1]["rates"]]
    columns = [f"{rate:g} / bit" for rate in rates]
    table = _table(
        f"{case.label()}: accuracy in % (95 % interval), every stored activation bit flipping",
        ("protection", "no faults", *columns, "false alarms", "LUT", "more"),
    )
    for variant, row in rows:
        alarms, more = row["false_alarms"], measured.lut_more(case.bits, variant)
        table.add_row(
            variant.label(),
            f"{row['accuracy']:.1f}",
            *(f"{o['mean']:.1f} ({o['ci_low']:.1f} .. {o['ci_high']:.1f})" for o in row["rates"]),
            f"{alarms['images']} of {alarms['of']} images",
            str(measured.luts.get((case.bits, variant), "not computed")),
            "" if more is None or variant == NONE else f"{more:+.1f} %",
        )
    return table


def _ladder_table(measured: Measured, case: Case, word: str, steps: dict[Variant, Steps]) -> Table:
    rates = [f"{step['rate']:g} / bit" for step in next(iter(steps.values()))]
    table = _table(
        f"{case.label()}, {WORD_NAMES[word]}: accuracy in % (95 % interval) at rising rates",
        ("protection", *rates),
    )
    for variant, mine in steps.items():
        found = spread_of(mine, measured.choosing, measured.seed)
        table.add_row(variant.label(), *map(_with_interval, found))
    return table


def _site_table(case: Case, site: str, rows: Sequence[tuple[Variant, dict[str, Any]]]) -> Table:
    n = rows[0][1]["sites"][site]["n"]
    table = _table(
        f"{case.label()}: {n} single flips in {site}; counts are detected + not detected",
        ("protection", *(o.removeprefix("sdc_") for o in OUTCOMES), "P(critical) %",
         "against none, points", "McNemar p", "accuracy %", "blind %"),
    )  # fmt: skip
    for variant, row in rows:
        found = row["sites"][site]
        critical, paired = found["outcomes"]["sdc_critical"], found.get("paired")
        low, high = found["accuracy_interval"]
        table.add_row(
            variant.label(),
            *(_split(found["outcomes"][outcome]) for outcome in OUTCOMES),
            f"{100 * critical['rate']:.2f} ({100 * critical['ci_low']:.2f} .. "
            f"{100 * critical['ci_high']:.2f})",
            _difference(paired),
            "" if paired is None else f"{paired['p_value']:.2g}",
            f"{found['accuracy_faulty']:.1f} ({low:.1f} .. {high:.1f})",
            f"{100 * found['blind']['rate']:.0f}",
        )
    return table


def _psum_table(case: Case, found: dict[tuple[Variant, int], dict[str, Any]]) -> Table:
    table = _table(
        f"{case.label()}: simultaneous flips in psum registers, per inference",
        ("protection", "flips", "accuracy %", "P(critical) %", "against none, points"),
    )
    for flips, variant in sorted((f, VARIANTS.index(v)) for v, f in found):
        row = found[VARIANTS[variant], flips]
        low, high = row["accuracy_interval"]
        critical = row["critical"]
        table.add_row(
            VARIANTS[variant].label(),
            str(flips),
            f"{row['accuracy_faulty']:.1f} ({low:.1f} .. {high:.1f})",
            f"{100 * critical['rate']:.1f} ({100 * critical['ci_low']:.1f} .. "
            f"{100 * critical['ci_high']:.1f})",
            _difference(row.get("paired")),
        )
    return table


def _difference(paired: dict[str, Any] | None) -> str:
    if paired is None:
        return ""
    return (
        f"{100 * paired['difference']:+.2f} ({100 * paired['ci_low']:+.2f} .. "
        f"{100 * paired['ci_high']:+.2f})"
    )


def _split(row: dict[str, Any]) -> str:
    return f"{row['detected']} + {row['count'] - row['detected']}"
