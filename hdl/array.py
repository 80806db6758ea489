# SPDX-License-Identifier: Apache-2.0
"""The systolic array: a column of PEs, and the triangular delays around the columns."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib.wiring import In, Out

from hdl.config import AcceleratorConfig
from hdl.module import Part, place
from hdl.multiplier import lane_names, multiplier
from hdl.pe import ProcessingElement
from hdl.protection import check_code, extend


class Column(Part):
    """`rows` PEs, one below the other. Outputs are registers of the PEs.

    With `dsp_pack` columns to a multiplier block it is that many of them, running in step.

    Members (element 0, the top row, in the lowest bits of a vector):
        act_in, act: activations from the column to the left, to the one to the right.
        load_in, load: row r takes a weight from above; travels right.
        swap_in, swap: into the top PE, and from it to the next column.
        weight_in: weight for the top PE, the leftmost column's lowest.
        psum: of the bottom PE, the leftmost column's lowest.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        widths = sorted({config.psum_bits(row) for row in range(config.rows)})
        shared = multiplier(config)
        self.pes = {w: ProcessingElement(config, psum_bits=w, multiplier=shared) for w in widths}
        super().__init__(
            "trilat_column",
            {
                "act_in": In(config.rows * config.operand_bits),
                "load_in": In(config.rows),
                "swap_in": In(1),
                "weight_in": In(config.dsp_pack * config.weight_bits),
                "act": Out(config.rows * config.operand_bits),
                "load": Out(config.rows),
                "swap": Out(1),
                "psum": Out(config.dsp_pack * config.psum_bits(config.rows - 1)),
            },
            has_reset=False,
            parts=tuple(self.pes.values()),
        )

    def elaborate(self, platform: object) -> Module:
        """Chain the PEs."""
        m = self.new_module()
        above: dict[str, Value] = {"swap": self.swap_in}
        names = {
            name: lane_names(self.config, name)
            for name in ("weight_in", "weight_loading", "psum_in", "psum")
        }
        for lane, name in enumerate(names["weight_loading"]):
            above[name] = self.weight_in.word_select(lane, self.config.weight_bits)
        acts, loads = [], []
        bits = self.config.operand_bits
        for row in range(self.config.rows):
            pe = self.pes[self.config.psum_bits(row)]
            taken = dict(
                zip(names["weight_in"], (above[n] for n in names["weight_loading"]), strict=True)
            )
            if not pe.is_top:
                # A row's sum is at most one bit wider than the one above.
                width = self.config.psum_bits(row)
                for psum_in, name in zip(names["psum_in"], names["psum"], strict=True):
                    psum = above[name]
                    taken[psum_in] = psum if len(psum) == width else Cat(psum, psum[-1])
            out = place(
                self,
                m,
                f"pe_{row}",
                pe,
                act_in=self.act_in[row * bits : (row + 1) * bits],
                load_in=self.load_in[row],
                swap_in=above["swap"],
                **taken,
            )
            if row == 0:
                m.d.comb += self.swap.eq(out["swap"])
            acts.append(out["act"])
            loads.append(out["load"])
            above = dict(out)
        m.d.comb += [
            self.act.eq(Cat(acts)),
            self.load.eq(Cat(loads)),
            self.psum.eq(Cat(above[name] for name in names["psum"])),
        ]
        return m


def _delay_line(m: Module, value: Value, stages: int, name: str) -> Value:
    """Return `value` delayed by `stages` cycles in one register vector, stage 0 lowest."""
    if stages == 0:
        return value
    width = len(value)
    line = Signal(stages * width, name=name)
    m.d.data += line.eq(Cat(value, line[: (stages - 1) * width]))
    return line[(stages - 1) * width :]


def _signed_line(m: Module, code: Value, row: int, is_signed: Value) -> Value:
    """Return `code` delayed by row + 1 cycles, with its sign above it."""
    bits = len(code)
    line = Signal((row + 1) * bits + 1, name=f"row_{row}")
    taken = Cat(code, line[: row * bits])
    m.d.data += line.eq(Cat(taken, is_signed & taken[-1]))
    return line[row * bits :]


class ActivationSkew(Part):
    """The input check, and a delay of r + 1 cycles for row r.

    The register vector ``row_<r>`` holds its stages 0..r, stage 0 in the lowest bits. Where each
    tile chooses the sign convention, the last stage has the code's sign above it: in the array an
    activation is in two's complement whatever the tile, and no PE has to look at the convention.

    Members:
        acts: an activation beat as it is on the stream.
        act: delayed activations, `operand_bits` each; all of them registers.
        signed_in: whether the codes of `acts` are two's complement, where not fixed.
        bound_lo, bound_hi: of the tile (only with an input check).
        violated: which codes of stage 0 were replaced (only with an input check).
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        bits = config.act_bits
        check = {
            "bound_lo": In(bits),
            "bound_hi": In(bits),
            "violated": Out(config.rows),
        }
        super().__init__(
            "trilat_activation_skew",
            {
                "acts": In(config.rows * bits),
                "signed_in": In(1) if config.signs_travel else None,
                "act": Out(config.rows * config.operand_bits),
                **(check if config.checks_input else {}),
            },
            has_reset=False,
        )

    def elaborate(self, platform: object) -> Module:
        """Build checks and delays."""
        m = self.new_module()
        bits = self.config.act_bits
        rows, violations = [], []
        signs = self._signs(m) if self.config.signs_travel else []
        if self.config.checks_input:
            fixed = Const(self.config.act_sign == "signed", 1)
            signed = self.signed_in if self.config.signs_travel else fixed
            lo = extend(m, self.bound_lo, signed, "lowest")
            hi = extend(m, self.bound_hi, signed, "highest")
        for row in range(self.config.rows):
            code: Value = self.acts[row * bits : (row + 1) * bits]
            if self.config.checks_input:
                code, violated = check_code(
                    m,
                    extend(m, code, signed, f"code_{row}"),
                    lo,
                    hi,
                    squash=self.config.protect == "zero",
                    name=f"checked_{row}",
                )
                violations.append(violated)
            if self.config.signs_travel:
                rows.append(_signed_line(m, code, row, signs[row]))
            else:
                rows.append(_delay_line(m, code, row + 1, f"row_{row}"))
        m.d.comb += self.act.eq(Cat(rows))
        if self.config.checks_input:
            m.d.data += self.violated.eq(Cat(violations))
        return m

    def _signs(self, m: Module) -> list[Value]:
        """Return for every row the sign convention of what its last stage takes in."""
        if self.config.rows == 1:
            return [self.signed_in]
        line = Signal(self.config.rows - 1, name="sign_line")
        m.d.data += line.eq(Cat(self.signed_in, line[:-1]))
        return [self.signed_in, *line]


class WeightSkew(Part):
    """A delay of g + 1 cycles for the weights of group g, column c in the vector ``col_<c>``."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        width = config.cols * config.weight_bits
        super().__init__(
            "trilat_weight_skew", {"weights": In(width), "weight": Out(width)}, has_reset=False
        )

    def elaborate(self, platform: object) -> Module:
        """Build the delays."""
        m = self.new_module()
        bits = self.config.weight_bits
        cols = [
            _delay_line(
                m, self.weights[c * bits : (c + 1) * bits], self.config.col_group(c) + 1, f"col_{c}"
            )
            for c in range(self.config.cols)
        ]
        m.d.comb += self.weight.eq(Cat(cols))
        return m


class Deskew(Part):
    """A delay of G - 1 - g cycles for the sums of group g of G, column c in ``col_<c>``.

    The last group has no delay: its outputs are the psum registers of the array itself.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        width = config.cols * config.psum_bits(config.rows - 1)
        super().__init__("trilat_deskew", {"psums": In(width), "psum": Out(width)}, has_reset=False)

    def elaborate(self, platform: object) -> Module:
        """Build the delays."""
        m = self.new_module()
        config = self.config
        bits = len(self.psums) // config.cols
        cols = [
            _delay_line(
                m,
                self.psums[c * bits : (c + 1) * bits],
                config.col_groups - 1 - config.col_group(c),
                f"col_{c}",
            )
            for c in range(config.cols)
        ]
        m.d.comb += self.psum.eq(Cat(cols))
        return m
