# SPDX-License-Identifier: Apache-2.0
"""A multiplier in the carry logic of the ECP5: a tree of adders.

A bit of its carry logic (CCU2C, two of them) has a table of four inputs in front, of which two
decide the carry by themselves: enough for (a & b) + (c & d). So an adder multiplies two rows and
adds them, with no table before it, and the sums of pairs are added up in turn. A product of two
4-bit codes has two adders between its registers, one of 8-bit codes has three.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hdl.config import Span, product_span, signed_width

_MULTIPLIER = """\
// The product in the carry logic of the ECP5: its rows in pairs, then their sums.
module trilat_multiplier (
  input  wire aclk,
  input  wire [{act_top}:0] {act},
  input  wire [{weight_top}:0] weight,
  output reg  [{product_top}:0] product = {product_bits}'h0
);
{adders}
  always @(posedge aclk)
    product <= {product};
endmodule
"""

# (c & d) + (a & b), or (c & d) - (a & b) as (c & d) + ~(a & b) + 1. Where the summands differ the
# carry is passed on; where not, it is the second one, which A and B alone decide.
_ADDER = """\
  // Bits {high} to {low}: {comment}.
  wire [{top}:0] a_{n} = {a};
  wire [{top}:0] b_{n} = {b};
  wire [{top}:0] c_{n} = {c};
  wire [{top}:0] d_{n} = {d};
  wire [{top}:0] sum_{n};
  wire [{pairs}:0] carry_{n};
  assign carry_{n}[0] = 1'b{carry};
  genvar i_{n};
  generate
    for (i_{n} = 0; i_{n} < {pairs}; i_{n} = i_{n} + 1) begin : pair_{n}
      CCU2C #(
        .INIT0(16'h{init}), .INIT1(16'h{init}), .INJECT1_0("NO"), .INJECT1_1("NO")
      ) add (
        .CIN(carry_{n}[i_{n}]), .COUT(carry_{n}[i_{n}+1]),
        .A0(a_{n}[2*i_{n}]), .B0(b_{n}[2*i_{n}]), .C0(c_{n}[2*i_{n}]), .D0(d_{n}[2*i_{n}]),
        .S0(sum_{n}[2*i_{n}]),
        .A1(a_{n}[2*i_{n}+1]), .B1(b_{n}[2*i_{n}+1]), .C1(c_{n}[2*i_{n}+1]), .D1(d_{n}[2*i_{n}+1]),
        .S1(sum_{n}[2*i_{n}+1])
      );
    end
  endgenerate"""

# A bit of a named vector, or a constant.
_Net = tuple[str, int] | str


@dataclass(frozen=True, kw_only=True)
class _Summand:
    """A part of a product.

    Attributes:
        name: for a comment.
        low: weight of its lowest bit, as a power of two.
        bits: nets, lowest first; the highest is the sign.
        gates: nets that the bits are ANDed with.
        span: least and greatest value.
        is_negative: it is to be subtracted; `span` is that of what is added then.
    """

    name: str
    low: int
    bits: tuple[_Net, ...]
    gates: tuple[_Net, ...]
    span: Span
    is_negative: bool = False

    def part(self, low: int, count: int) -> tuple[list[_Net], list[_Net]]:
        """Return `count` bits from weight 2**low on, and their gates; the sign is repeated."""
        places = [min(i - self.low, len(self.bits) - 1) for i in range(low, low + count)]
        return [self.bits[i] for i in places], [self.gates[i] for i in places]


def table_multiplier(bits: dict[str, int], act: str) -> str:
    """Return Verilog of a multiplier without a multiplier block.

    Args:
        bits: port -> width: `act`, ``weight`` and ``product``, which has the exact product's
            lowest bits.
        act: ``act``, a port in two's complement, or ``unsigned_act``.
    """
    adders: list[str] = []
    summands = _rows(bits, act)
    while len(summands) > 1:
        rest = summands[len(summands) & ~1 :]
        pairs = zip(summands[::2], summands[1::2], strict=False)
        summands = [_add(low, high, bits["product"], adders) for low, high in pairs] + rest
    values, gates = summands[0].part(0, bits["product"])
    return _MULTIPLIER.format(
        act=act,
        act_top=bits[act] - 1,
        weight_top=bits["weight"] - 1,
        product_top=bits["product"] - 1,
        product_bits=bits["product"],
        adders="\n".join(adders),
        product=f"{_vector(values)} &\n      {_vector(gates)}",
    )


def _rows(bits: dict[str, int], act: str) -> list[_Summand]:
    """Return one operand times each bit of the other one, which is the narrower if there is one."""
    digits, other = sorted(("weight", act), key=lambda name: bits[name])
    is_signed = {"weight": True, act: act != "unsigned_act"}
    n, rows = bits[other], bits[digits]
    nets: list[_Net] = [(other, i) for i in range(n)]
    span = (-(1 << n - 1), (1 << n - 1) - 1)
    if not is_signed[other]:
        nets.append("1'b0")
        span = (0, (1 << n) - 1)
    result = []
    for row in range(rows):
        is_negative = is_signed[digits] and row == rows - 1
        digit = (-1 << row, 0) if is_negative else (0, 1 << row)
        result.append(
            _Summand(
                name=f"{other} * {digits}[{row}]",
                low=row,
                bits=tuple(nets),
                gates=((digits, row),) * len(nets),
                span=product_span(digit, span),
                is_negative=is_negative,
            )
        )
    return result


def _add(low: _Summand, high: _Summand, width: int, adders: list[str]) -> _Summand:
    """Return the sum of two summands, `low` the one that begins lower, and append its adder.

    Args:
        low, high: see above; only `high` may be negative.
        width: of the whole product, whose higher bits are left out.
        adders: Verilog of those before.
    """
    span = low.span[0] + high.span[0], low.span[1] + high.span[1]
    count = min(signed_width(*span), width) - high.low
    pairs, number = -(-count // 2), len(adders)
    summands = (*high.part(high.low, 2 * pairs), *low.part(high.low, 2 * pairs))
    adders.append(
        _ADDER.format(
            comment=f"{low.name} {'-' if high.is_negative else '+'} {high.name}",
            low=high.low,
            high=high.low + count - 1,
            n=number,
            top=2 * pairs - 1,
            pairs=pairs,
            **{pin: _vector(nets) for pin, nets in zip("abcd", summands, strict=True)},
            carry=int(high.is_negative),
            init="8777" if high.is_negative else "7888",
        )
    )
    below = high.low - low.low
    return _Summand(
        name=f"sum {number}",
        low=low.low,
        bits=(*low.bits[:below], *((f"sum_{number}", i) for i in range(count))),
        gates=(*low.gates[:below], *["1'b1"] * count),
        span=span,
    )


def _vector(nets: list[_Net]) -> str:
    """Return the concatenation of nets, the last one the highest."""
    parts = []
    rest = nets[::-1]
    while rest:
        first = rest[0]
        times = _common(rest, [first] * len(rest))
        text = first if isinstance(first, str) else f"{first[0]}[{first[1]}]"
        if times > 1:
            text = f"{{{times}{{{text}}}}}"
        elif not isinstance(first, str):
            name, high = first
            times = _common(rest, [(name, index) for index in range(high, -1, -1)])
            if times > 1:
                text = f"{name}[{high}:{high - times + 1}]"
        parts.append(text)
        rest = rest[times:]
    return parts[0] if len(parts) == 1 else f"{{{', '.join(parts)}}}"


def _common(left: Sequence[_Net], right: Sequence[_Net]) -> int:
    """Return how many nets are the same on both sides before two differ."""
    pairs = zip(left, right, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
