# SPDX-License-Identifier: Apache-2.0
"""The design space: which knobs the search may turn, and the designs it looks at first."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, fields

import numpy as np

from dse.records import Design
from hdl.config import DATAFLOWS, PROTECTIONS, REQUANTS, AcceleratorConfig
from quant.method_names import METHODS, parse_method
from trilat.errors import InputError, unknown_name

# Designs before the sampler takes over: the corners, then random ones; all known from the start.
STARTUP = 10


@dataclass(frozen=True, kw_only=True)
class Space:
    """Every combination of the values of eight knobs. Field names are those of `Design`.

    Attributes:
        method: full names of `quant.method_names`.
        weight_bits, act_bits: widths 2..8, ascending.
        protect: protection units, of `hdl.config.PROTECTIONS`.
        rows, cols: array sizes 1..64, ascending.
        dataflow: of `hdl.config.DATAFLOWS`.
        requant: of `hdl.config.REQUANTS`.
    """

    method: tuple[str, ...]
    weight_bits: tuple[int, ...]
    act_bits: tuple[int, ...]
    protect: tuple[str, ...]
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    dataflow: tuple[str, ...] = ("ws",)
    requant: tuple[str, ...] = ("shift",)

    def knobs(self) -> dict[str, tuple[str, ...] | tuple[int, ...]]:
        """Return the values of each knob by name.

        Requantization is one where it is not left at shifts: studies older than it go on.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.requant == ("shift",):
            del values["requant"]
        return values

    def designs(self) -> tuple[Design, ...]:
        """Return every design, in a fixed order."""
        return tuple(
            Design(
                method=m,
                weight_bits=w,
                act_bits=a,
                protect=p,
                rows=r,
                cols=c,
                dataflow=d,
                requant=q,
            )
            for m, w, a, p, r, c, d, q in itertools.product(
                self.method,
                self.weight_bits,
                self.act_bits,
                self.protect,
                self.rows,
                self.cols,
                self.dataflow,
                self.requant,
            )
        )

    def widest(self) -> Design:
        """Return the design whose fault rate is calibrated: widest words, first protection."""
        return Design(
            method=self.method[0],
            weight_bits=self.weight_bits[-1],
            act_bits=self.act_bits[-1],
            protect="none" if "none" in self.protect else self.protect[0],
            rows=self.rows[-1],
            cols=self.cols[-1],
            dataflow=self.dataflow[0],
            requant=self.requant[0],
        )

    def startup(self, seed: int) -> tuple[Design, ...]:
        """Return all designs, the corners first and then the others in a random order.

        The search takes the first `STARTUP` of them as they are; the rest is its fallback.

        Args:
            seed: of the random order.
        """
        wide = self.widest()
        protected = next((p for p in self.protect if p != "none"), self.protect[0])
        narrow_w, narrow_a = self.weight_bits[0], self.act_bits[0]
        wide_w, wide_a = wide.weight_bits, wide.act_bits
        small, large = (self.rows[0], self.cols[0]), (self.rows[-1], self.cols[-1])
        corners = [
            wide,
            self._corner(narrow_w, narrow_a, wide.protect, small),  # cheapest
            self._corner(wide_w, wide_a, protected, large),
            self._corner(narrow_w, narrow_a, wide.protect, large),  # fastest
            self._corner(narrow_w, wide_a, protected, large),
            self._corner(wide_w, narrow_a, protected, small),
        ]
        everything = self.designs()
        order = np.random.default_rng([seed, len(everything)]).permutation(len(everything))
        return tuple(dict.fromkeys([*corners, *(everything[i] for i in order)]))

    def _corner(self, weight: int, act: int, protect: str, size: tuple[int, int]) -> Design:
        return Design(
            method=self.method[0],
            weight_bits=weight,
            act_bits=act,
            protect=protect,
            rows=size[0],
            cols=size[1],
            dataflow=self.dataflow[0],
            requant=self.requant[0],
        )


def parse_space(
    *,
    bits: str,
    rows: str,
    cols: str,
    protect: str,
    method: str,
    dataflow: str = "ws",
    requant: str = "shift",
) -> Space:
    """Return the space that comma-separated lists describe; duplicates count once.

    Raises:
        InputError: an empty list, a width outside 2..8, a size outside 1..64, an unknown name.
    """
    widths = _integers("bits", bits)
    for width in widths:
        if not 2 <= width <= 8:
            raise InputError(f"bits must be integers in 2..8, not {width}")
    row_values, col_values = _integers("rows", rows), _integers("cols", cols)
    for value in row_values:
        AcceleratorConfig(rows=value)
    for value in col_values:
        AcceleratorConfig(cols=value)
    return Space(
        method=_methods(method),
        weight_bits=widths,
        act_bits=widths,
        protect=_names("protection", protect, PROTECTIONS),
        rows=row_values,
        cols=col_values,
        dataflow=_names("dataflow", dataflow, DATAFLOWS),
        requant=_names("requantization", requant, REQUANTS),
    )


def _integers(name: str, text: str) -> tuple[int, ...]:
    values = set()
    for word in text.split(","):
        try:
            values.add(int(word.strip()))
        except ValueError:
            raise InputError(f"{name} must be integers separated by commas, not {text!r}") from None
    return tuple(sorted(values))


def _methods(text: str) -> tuple[str, ...]:
    """Return the full names of methods, in the order of `METHODS`."""
    names = {parse_method(word.strip()).name for word in text.split(",")}
    return tuple(sorted(names, key=lambda n: (METHODS.index(re.split("[:+]", n)[0]), n)))


def _names(kind: str, text: str, accepted: tuple[str, ...]) -> tuple[str, ...]:
    names = [word.strip() for word in text.split(",")]
    for name in names:
        if name not in accepted:
            raise unknown_name(kind, name, list(accepted))
    return tuple(name for name in accepted if name in names)
