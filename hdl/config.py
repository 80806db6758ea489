# SPDX-License-Identifier: Apache-2.0
"""AcceleratorConfig: on what a network is computed.

One of the two data types that all rooms share (the other is `quant.network.IntegerNetwork`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from trilat.errors import InputError
from trilat.files import content_hash

PROTECTIONS = ("none", "clip", "zero")
PLACES = ("both", "input", "output")
DATAFLOWS = ("ws", "os")
MULTIPLIERS = ("auto", "dsp", "lut")
ACT_SIGNS = ("runtime", "unsigned", "signed")
BOUNDS = ("channel", "layer")
REQUANTS = ("shift", "mult")
Span = tuple[int, int]  # least and greatest value
# Products of fewer bits than this are made in lookup tables by `auto`: such multipliers are small
# (`python -m bench.hardware` prints arrays of either kind), and most tools leave them there anyway.
DSP_PRODUCT_BITS = 12
# Width of the wider operand of a 7-series multiplier block, into which packed weights must fit.
DSP_BITS = 25
# Width of an output channel's multiplier (`requant` mult), without a sign. A scale rounded to so
# many digits moves a code of 8 bits by less than 1/256.
MULTIPLIER_BITS = 16


def signed_width(lo: int, hi: int) -> int:
    """Return the bits of the narrowest two's complement word that holds both lo and hi."""
    return max((-lo - 1).bit_length() if lo < 0 else 0, hi.bit_length() if hi > 0 else 0) + 1


def product_span(one: Span, other: Span) -> Span:
    """Return the least and the greatest product of two values of these spans."""
    products = [a * b for a in one for b in other]
    return min(products), max(products)


@dataclass(frozen=True, kw_only=True)
class AcceleratorConfig:
    """A systolic array and its lanes. All widths follow from these fields.

    Attributes:
        dataflow: ``ws``, weight-stationary (the array holds weights, `rows` lie along K), or
            ``os``, output-stationary (it holds sums, `rows` lie along M, K is time).
        rows: PEs along K (input channels x kernel), or along M (output pixels); 1..64.
        cols: PEs along N (output channels), 1..64.
        act_bits: activation word, 2..8; unsigned or two's complement, see `act_sign`.
        weight_bits: weight word, two's complement, 2..8.
        max_k: longest reduction (K of a GEMM) the accumulators must hold exactly.
        psum_depth: words of one of the two psum banks of a column: the largest M of a tile. An
            output-stationary array has no psum buffer and does not look at it.
        protect: activation-protection unit: ``none``, ``clip`` (to the violated bound) or
            ``zero`` (squash), after Taheri et al., ISQED 2024.
        protect_place: where it checks: activation ``input``, requantized ``output`` or ``both``.
        mult: multipliers: ``dsp``, a product that the tools put into a multiplier block; ``lut``,
            recoded in lookup tables; ``auto``, blocks for products of 12 bits or more.
        dsp_pack: neighbouring columns whose products one multiplier block makes at a time; they
            then run in step, and a flip in their common activation register meets all of them.
        act_sign: sign convention of the activations: ``runtime``, chosen per output tile;
            ``unsigned`` or ``signed`` alone saves the sign's way through the array and a bit of
            the multipliers, and refuses all else.
        bounds: limits at which outputs saturate, protection bounds among them: a pair per output
            ``channel``, kept in its lane, or per ``layer``, one pair for all lanes of a tile.
        requant: how a sum becomes a code: ``shift``, divided by a power of two, or ``mult``,
            times an integer of 16 bits per output channel before that, for scales of any value.
    """

    dataflow: str = "ws"
    rows: int = 16
    cols: int = 16
    act_bits: int = 8
    weight_bits: int = 8
    max_k: int = 4608
    psum_depth: int = 256
    protect: str = "none"
    protect_place: str = "both"
    mult: str = "auto"
    dsp_pack: int = 1
    act_sign: str = "runtime"
    bounds: str = "channel"
    requant: str = "shift"

    def __post_init__(self) -> None:
        """Raise InputError for the first field out of range."""
        limits = {
            "rows": (1, 64),
            "cols": (1, 64),
            "act_bits": (2, 8),
            "weight_bits": (2, 8),
            "max_k": (1, 65536),
            "psum_depth": (2, 65535),
            "dsp_pack": (1, 4),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise InputError(f"{name} must be an integer in {low}..{high}, not {value!r}")
        for name, accepted in (
            ("dataflow", DATAFLOWS),
            ("protect", PROTECTIONS),
            ("protect_place", PLACES),
            ("mult", MULTIPLIERS),
            ("act_sign", ACT_SIGNS),
            ("bounds", BOUNDS),
            ("requant", REQUANTS),
        ):
            if getattr(self, name) not in accepted:
                raise InputError(
                    f"{name} must be one of {', '.join(accepted)}, not {getattr(self, name)!r}"
                )
        if self.max_k_tiles > 65535:
            steps = "max_k" if self.is_os else "max_k / rows"
            raise InputError(f"{steps} must be at most 65535, not {self.max_k_tiles}")
        if self.acc_bits > 32:
            raise InputError(
                f"max_k {self.max_k} needs {self.acc_bits}-bit accumulators, more than 32: lower it"
            )

        if self.dsp_pack > 1:
            self._check_pack()

    def _check_pack(self) -> None:
        if not self.uses_dsp:
            raise InputError(f"dsp_pack {self.dsp_pack} needs products in multiplier blocks: "
                             "mult dsp")  # fmt: skip
        if self.cols % self.dsp_pack:
            raise InputError(f"cols {self.cols} must be a multiple of dsp_pack {self.dsp_pack}")
        width = (self.dsp_pack - 1) * self.product_bits + self.weight_bits + 1
        if width > DSP_BITS:
            raise InputError(
                f"dsp_pack {self.dsp_pack} needs an operand of {width} bits, more than {DSP_BITS}"
            )

    @property
    def col_groups(self) -> int:
        """Groups of columns that run in step; each is one column further to the right."""
        return self.cols // self.dsp_pack

    def col_group(self, col: int) -> int:
        """Group of a column, and so its distance from the left in cycles."""
        return col // self.dsp_pack

    @property
    def is_os(self) -> bool:
        """Whether the array is output-stationary."""
        return self.dataflow == "os"

    @property
    def k_step(self) -> int:
        """Reduction indices in one K tile: a row each (ws), or one, a beat of its own (os)."""
        return 1 if self.is_os else self.rows

    @property
    def max_m(self) -> int:
        """Largest M of an output tile: what the psum buffer holds (ws), or the rows (os)."""
        return self.rows if self.is_os else self.psum_depth

    @property
    def checks_input(self) -> bool:
        """Whether a protection unit checks the activation stream."""
        return self.protect != "none" and self.protect_place in ("input", "both")

    @property
    def checks_output(self) -> bool:
        """Whether a protection unit checks the requantized outputs."""
        return self.protect != "none" and self.protect_place in ("output", "both")

    @property
    def uses_dsp(self) -> bool:
        """Whether products are left to multiplier blocks."""
        return self.mult == "dsp" or (
            self.mult == "auto" and self._code_product_bits >= DSP_PRODUCT_BITS
        )

    @property
    def act_signs(self) -> tuple[bool, ...]:
        """The sign conventions that a tile's activations may have; true: two's complement."""
        return {"runtime": (False, True), "unsigned": (False,), "signed": (True,)}[self.act_sign]

    @property
    def signs_travel(self) -> bool:
        """Whether the sign convention of a tile travels through the array with its codes."""
        return len(self.act_signs) > 1

    @property
    def operand_bits(self) -> int:
        """Width of an activation in the array.

        That of its code; where each tile chooses the sign convention, one more: two's complement.
        """
        return self.act_bits + self.signs_travel

    @property
    def layer_bounds(self) -> bool:
        """Whether all lanes saturate at the same limits."""
        return self.bounds == "layer"

    @property
    def act_span(self) -> Span:
        """Least and greatest activation code, of any sign convention that a tile may have."""
        lo = -(1 << (self.act_bits - 1)) if True in self.act_signs else 0
        return lo, (1 << (self.act_bits - (False not in self.act_signs))) - 1

    @property
    def operand_span(self) -> Span:
        """Least and greatest activation that a register of the array can hold.

        With a sign of its own, a fault there makes of a code what is none of either convention.
        """
        return (-(1 << self.act_bits), self.act_span[1]) if self.signs_travel else self.act_span

    @property
    def weight_span(self) -> Span:
        """Least and greatest weight code; only a fault writes the least."""
        return -(1 << (self.weight_bits - 1)), (1 << (self.weight_bits - 1)) - 1

    @property
    def product_bits(self) -> int:
        """Width of a PE's product register: holds every activation code times every weight code.

        Where activations have a sign of their own, there is one product more that a fault can
        make, and it needs one bit more: 2**(act_bits + weight_bits - 1), of the least operands.
        The register of a multiplier block has that bit, lest it be missing where Yosys puts the
        sum into the block, which adds the whole product. In lookup tables, or between products
        that share a block, it would cost area: there this one product wraps.
        """
        bits = self._code_product_bits
        return bits + 1 if self.signs_travel and self.uses_dsp and self.dsp_pack == 1 else bits

    def psum_bits(self, row: int) -> int:
        """Width of a ws array's psum register in row `row`.

        It holds row + 1 extreme products, those that only a fault in an operand makes included.
        """
        lo, hi = self._product_range()
        return signed_width(lo * (row + 1), hi * (row + 1))

    @property
    def max_k_tiles(self) -> int:
        """K tiles of the longest reduction."""
        return -(-self.max_k // self.k_step)

    @property
    def acc_bits(self) -> int:
        """Width of the sums of a whole reduction and of the bias.

        A psum-buffer word (ws) or a PE's accumulator (os) holds `max_k_tiles` full K tiles of any
        codes exactly, and is no narrower than what is added to it.
        """
        lo, hi = product_span(self.act_span, self.weight_span)
        count = self.max_k_tiles * self.k_step
        added = self.product_bits if self.is_os else self.psum_bits(self.rows - 1)
        return max(signed_width(lo * count, hi * count), added)

    @property
    def sum_bits(self) -> int:
        """Width of accumulator plus bias, the requantizer's input and a raw logit."""
        return self.acc_bits + 1

    @property
    def multiplies(self) -> bool:
        """Whether sums are multiplied before they are shifted."""
        return self.requant == "mult"

    @property
    def shift_bits(self) -> int:
        """Width of a shift amount.

        0..31 on its own; 0..63 behind a multiplier of 16 bits, which most often has a one at its
        top: for the same ratios the shift is up to 16 more.
        """
        return 6 if self.multiplies else 5

    @property
    def raw_beats(self) -> int:
        """Output beats of one row of raw logits, `act_bits` of each element a beat, low first."""
        return -(-self.sum_bits // self.act_bits)

    @property
    def _code_product_bits(self) -> int:
        return signed_width(*product_span(self.act_span, self.weight_span))

    def _product_range(self) -> Span:
        """Return the least and the greatest product that its register can get from any operands."""
        lo, hi = product_span(self.operand_span, self.weight_span)
        if signed_width(lo, hi) > self.product_bits:  # the greatest wraps
            return -hi, hi - 1
        return lo, hi

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-able data."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> AcceleratorConfig:
        """Read `to_json`'s data; raises InputError for unknown or bad fields."""
        unknown = set(data) - {f.name for f in fields(AcceleratorConfig)}
        if unknown:
            raise InputError(f"unknown accelerator fields: {', '.join(sorted(unknown))}")
        return AcceleratorConfig(**data)

    def config_hash(self) -> str:
        """Return 16 hex digits that name this configuration."""
        return content_hash(self.to_json())
