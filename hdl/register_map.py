# SPDX-License-Identifier: Apache-2.0
"""What software sees: the AXI4-Lite registers and the words of ``s_axis_param``, described once.

The decoding in the RTL (`hdl.axil`, `hdl.front`, `hdl.lane`), the sender (`hdl.tile`) and the C
header, Markdown and JSON beside the Verilog (`hdl.register_files`) are all made from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from hdl.config import MULTIPLIER_BITS, AcceleratorConfig

# "TRIL" in ASCII.
IDENTIFICATION = 0x5452494C
# Changes with the meaning of a register or a parameter word: 16 bits major, 16 bits minor.
INTERFACE_VERSION = 0x0001_0000
# The register space is 2**ADDRESS_BITS bytes: one page, the least that most interconnects map.
ADDRESS_BITS = 12


@dataclass(frozen=True, kw_only=True)
class Field:
    """Bits of a 32-bit word.

    Attributes:
        name: C identifier, lower case.
        low: lowest bit.
        bits: width.
        text: what it means.
    """

    name: str
    low: int
    bits: int
    text: str

    @property
    def mask(self) -> int:
        """Ones where the field is in its word."""
        return ((1 << self.bits) - 1) << self.low


@dataclass(frozen=True, kw_only=True)
class Word:
    """A register, or a parameter word.

    Attributes:
        name: C identifier, lower case.
        text: what it is for.
        fields: from the lowest bits up; bits of no field read 0 and are written 0.
        offset: byte address of a register; number of a parameter word in its group.
        writable: a register that takes writes; it reads 0.
    """

    name: str
    text: str
    fields: tuple[Field, ...]
    offset: int
    writable: bool = False

    def field(self, name: str) -> Field:
        """Return the field of a name."""
        return next(field for field in self.fields if field.name == name)

    def encode(self, **values: int) -> int:
        """Return the word that holds the low bits of each value, one value for every field."""
        fields = {field.name: field for field in self.fields}
        if fields.keys() != values.keys():
            raise ValueError(f"{self.name} has the fields {', '.join(fields)}")
        return sum((value << fields[n].low) & fields[n].mask for n, value in values.items())


def _word(
    name: str, text: str, offset: int, *fields: tuple[str, int, int, str], writable: bool = False
) -> Word:
    """Return a word; a field is (name, low, bits, text)."""
    return Word(
        name=name,
        text=text,
        fields=tuple(Field(name=n, low=low, bits=bits, text=t) for n, low, bits, t in fields),
        offset=offset,
        writable=writable,
    )


def _value(name: str, text: str, offset: int) -> Word:
    """Return a register that is one number."""
    return _word(name, text, offset, ("value", 0, 32, text))


REGISTERS = (
    _value("id", f'identification, 0x{IDENTIFICATION:08X} ("TRIL")', 0x00),
    _word(
        "version",
        "version of this interface",
        0x04,
        ("minor", 0, 16, "rises with additions"),
        ("major", 16, 16, "rises with changes that break older software"),
    ),
    _value("config_hash_high", "bits 63..32 of the hash of the configuration", 0x08),
    _value("config_hash_low", "bits 31..0 of the hash of the configuration", 0x0C),
    _word(
        "shape",
        "size of the array",
        0x10,
        ("rows", 0, 8, "PEs along K"),
        ("cols", 8, 8, "PEs along N"),
        ("act_bits", 16, 8, "width of an activation code"),
        ("weight_bits", 24, 7, "width of a weight code"),
        ("output_stationary", 31, 1, "rows lie along M, K is time"),
    ),
    _word(
        "limits",
        "largest output tile",
        0x14,
        ("max_m", 0, 16, "largest M"),
        ("max_k_tiles", 16, 16, "most K tiles"),
    ),
    _word(
        "control",
        "commands; reads 0",
        0x18,
        ("clear_counters", 0, 1, "write 1: set all counters to zero"),
        writable=True,
    ),
    _word(
        "status",
        "what the accelerator is doing",
        0x1C,
        ("busy", 0, 1, "an output tile has all its parameters and has not left completely"),
        ("params_waiting", 1, 1, "complete parameters wait for their turn: s_axis_param rests"),
        ("out_waiting", 2, 1, "an output beat waits for the receiver"),
    ),
    _value("cycles_busy", "cycles in which `busy` was set", 0x20),
    _value("cycles_param_starved", "busy cycles, s_axis_param ready without a word", 0x24),
    _value("cycles_weight_starved", "busy cycles, s_axis_weight ready without a beat", 0x28),
    _value("cycles_act_starved", "busy cycles, s_axis_act ready without a beat", 0x2C),
    _value("cycles_out_blocked", "busy cycles, m_axis_out valid without a ready receiver", 0x30),
    _value("tiles_done", "output tiles whose last beat was taken", 0x34),
    _value("violations_in", "activation codes outside the bounds; 0 without an input check", 0x38),
    _value("violations_out", "outputs beyond a bound; 0 without an output check", 0x3C),
)


@dataclass(frozen=True, kw_only=True)
class ParameterWords:
    """Words of an output tile on ``s_axis_param``: the header, then `column` for each column."""

    header: tuple[Word, ...]
    column: tuple[Word, ...]


# Requantization parameters that the lanes take together; the others of a column are its limits.
SCALE_FIELDS = ("bias", "shift", "multiplier")


def parameter_words(config: AcceleratorConfig) -> ParameterWords:
    """Return the parameter words of a configuration; codes are `act_bits` wide."""
    bits = config.act_bits
    signed_in = ("signed_in", 0, 1, "activation codes are two's complement")
    limits = (
        ("lo", 8, bits, "lowest output code"),
        ("hi", 16, bits, "highest output code"),
        ("lo_is_bound", 24, 1, "lo is a protection bound"),
        ("hi_is_bound", 25, 1, "hi is a protection bound"),
    )
    header = [
        _word(
            "size",
            "size of the tile",
            0,
            ("m", 0, 16, "M: output rows"),
            ("k_tiles", 16, 16, "K tiles; of an output-stationary array K itself"),
        ),
        _word(
            "format",
            "signs, raw output, bounds of the input check (used where the input is checked)",
            1,
            *([signed_in] if config.signs_travel else []),
            ("raw", 1, 1, "sums leave as they are"),
            ("signed_out", 2, 1, "output codes are two's complement"),
            ("input_lo", 8, bits, "lowest activation code"),
            ("input_hi", 16, bits, "highest activation code"),
        ),
    ]
    column = [
        _word(
            "bias",
            "added to the sum of the column",
            0,
            ("bias", 0, 32, f"two's complement; the low {config.acc_bits} bits are used"),
        ),
    ]
    scale = [("shift", 0, config.shift_bits, "right shift with round half to even")]
    if config.multiplies:
        scale.append(("multiplier", 16, MULTIPLIER_BITS, "of the sum, before the shift"))
    if config.layer_bounds:
        header.append(_word("limits", "saturation of the tile", 2, *limits))
    if config.multiplies or config.layer_bounds:
        column.append(_word("scale", "requantization of the column", 1, *scale))
    if not config.layer_bounds:
        own = limits if config.multiplies else (*scale, *limits)
        text = "saturation" if config.multiplies else "requantization"
        column.append(_word("limits", f"{text} of the column", len(column), *own))
    return ParameterWords(header=tuple(header), column=tuple(column))


def config_values(config: AcceleratorConfig) -> dict[str, int]:
    """Return the value of every register that only the configuration decides."""
    registers = {word.name: word for word in REGISTERS}
    digits = config.config_hash()
    return {
        "config_hash_high": int(digits[:8], 16),
        "config_hash_low": int(digits[8:], 16),
        "shape": registers["shape"].encode(
            rows=config.rows,
            cols=config.cols,
            act_bits=config.act_bits,
            weight_bits=config.weight_bits,
            output_stationary=config.is_os,
        ),
        "limits": registers["limits"].encode(max_m=config.max_m, max_k_tiles=config.max_k_tiles),
    }
