# SPDX-License-Identifier: Apache-2.0
"""The registers and parameter words of `hdl.register_map` as C header, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hdl.config import AcceleratorConfig
from hdl.register_map import (
    IDENTIFICATION,
    INTERFACE_VERSION,
    REGISTERS,
    Word,
    config_values,
    parameter_words,
)


def reset_value(config: AcceleratorConfig, word: Word) -> int:
    """Return what a register reads behind a reset."""
    fixed = {"id": IDENTIFICATION, "version": INTERFACE_VERSION}
    return (fixed | config_values(config)).get(word.name, 0)


def as_json(config: AcceleratorConfig) -> dict[str, Any]:
    """Return everything as JSON-able data."""
    layout = parameter_words(config)
    return {
        "config_hash": config.config_hash(),
        "registers": [
            _word_json(word) | {"writable": word.writable, "reset": reset_value(config, word)}
            for word in REGISTERS
        ],
        "parameters": {
            "words_per_tile": len(layout.header) + config.cols * len(layout.column),
            "header": [_word_json(word) for word in layout.header],
            "column": [_word_json(word) for word in layout.column],
        },
    }


def _word_json(word: Word) -> dict[str, Any]:
    fields = [
        {"name": f.name, "low": f.low, "bits": f.bits, "description": f.text} for f in word.fields
    ]
    return {
        "name": word.name,
        "offset": word.offset,
        "description": word.text,
        "fields": fields,
    }


def c_header(config: AcceleratorConfig) -> str:
    """Return a C header: offsets, masks and shifts; no code."""
    layout = parameter_words(config)
    lines = [
        "/* SPDX-License-Identifier: Apache-2.0 */",
        f"/* Registers and parameter words of trilat accelerator {config.config_hash()}. */",
        "#ifndef TRILAT_ACCELERATOR_H",
        "#define TRILAT_ACCELERATOR_H",
        "",
        "/* Registers: byte offsets, fields as mask and shift. */",
    ]
    for word in REGISTERS:
        lines += [f"/* {word.text} */", f"#define TRILAT_{word.name.upper()} 0x{word.offset:02X}u"]
        lines += _masks(f"TRILAT_{word.name.upper()}", word)
    lines += ["", "/* What the constant registers read. */"]
    for word in REGISTERS:
        value = reset_value(config, word)
        if value:
            lines.append(f"#define TRILAT_{word.name.upper()}_RESET 0x{value:08X}u")
    lines += [
        "",
        "/* Parameter words of an output tile: header words, then column words for each column. */",
        f"#define TRILAT_PARAM_HEADER_WORDS {len(layout.header)}u",
        f"#define TRILAT_PARAM_COLUMN_WORDS {len(layout.column)}u",
        f"#define TRILAT_PARAM_COLUMNS {config.cols}u",
    ]
    for group, words in (("HEADER", layout.header), ("COLUMN", layout.column)):
        for word in words:
            name = f"TRILAT_PARAM_{word.name.upper()}"
            lines += [f"/* {word.text} */", f"#define {name} {word.offset}u /* {group} */"]
            lines += _masks(name, word, always=True)
    return "\n".join([*lines, "", "#endif", ""])


def _masks(name: str, word: Word, *, always: bool = False) -> Iterator[str]:
    for field in word.fields:
        if field.bits < 32 or always:
            stem = f"{name}_{field.name.upper()}"
            yield f"#define {stem}_MASK 0x{field.mask:08X}u /* {field.text} */"
            yield f"#define {stem}_SHIFT {field.low}u"


def markdown(config: AcceleratorConfig) -> str:
    """Return the tables for people."""
    layout = parameter_words(config)
    lines = [
        f"# Registers and parameter words of trilat accelerator {config.config_hash()}",
        "",
        "## AXI4-Lite registers (`s_axil`)",
        "",
        "32-bit registers at byte offsets. Reads of every register and writes of writable ones",
        "answer OKAY; every other access answers SLVERR and does nothing. The lowest two bits of",
        "an address are ignored. A field takes a write if the strobe of its byte is set.",
        "",
        *register_table(config),
        "",
        "## Parameter words (`s_axis_param`)",
        "",
        f"An output tile has {len(layout.header)} header words, then {len(layout.column)} words",
        f"for each of {config.cols} columns, column 0 first. Bits without a field are 0.",
        "",
        *parameter_table(config),
    ]
    return "\n".join([*lines, ""])


def register_table(config: AcceleratorConfig) -> list[str]:
    """Return the lines of a Markdown table of the registers."""
    lines = ["| offset | register | bits | access | after reset | meaning |", "|---" * 6 + "|"]
    for word in REGISTERS:
        access = "write, reads 0" if word.writable else "read"
        for i, field in enumerate(word.fields):
            reset = (reset_value(config, word) & field.mask) >> field.low
            whole = field.bits == 32
            first = (f"0x{word.offset:02X}", f"`{word.name}`") if i == 0 else ("", "")
            bits = f"[{field.low + field.bits - 1}:{field.low}]"
            text = field.text if whole else f"`{field.name}`: {field.text}"
            lines.append(f"| {first[0]} | {first[1]} | {bits} | {access} | 0x{reset:X} | {text} |")
    return lines


def parameter_table(config: AcceleratorConfig) -> list[str]:
    """Return the lines of a Markdown table of the parameter words."""
    layout = parameter_words(config)
    lines = ["| word | name | bits | meaning |", "|---|---|---|---|"]
    base = len(layout.header)
    for group, words in (("header", layout.header), ("column", layout.column)):
        for word in words:
            step = len(layout.column)
            place = str(word.offset) if group == "header" else f"{base + word.offset} + {step}c"
            for i, field in enumerate(word.fields):
                first = (place, f"`{word.name}`") if i == 0 else ("", "")
                bits = f"[{field.low + field.bits - 1}:{field.low}]"
                lines.append(f"| {first[0]} | {first[1]} | {bits} | `{field.name}`: {field.text} |")
    return lines
