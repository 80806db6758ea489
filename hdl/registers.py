# SPDX-License-Identifier: Apache-2.0
"""Where the registers of the published schedule are in the emitted Verilog."""

from __future__ import annotations

from dataclasses import dataclass

from hdl.config import AcceleratorConfig
from trilat.errors import InputError, unknown_name

# The module that all paths start from; it is the instance `core` of the top module.
CORE = "trilat_core"

# By dataflow.
REGISTER_CLASSES = {
    "ws": (
        "pe_activation",
        "product",
        "psum",
        "weight_loading",
        "weight_active",
        "skew",
        "deskew",
    ),
    "os": ("pe_activation", "pe_weight", "product", "accumulator", "skew", "weight_skew"),
}

_PE_REGISTERS = {
    "pe_activation": "act",
    "pe_weight": "weight",
    "product": "product",
    "psum": "psum",
    "accumulator": "acc",
    "weight_loading": "weight_loading",
    "weight_active": "weight_active",
}


@dataclass(frozen=True, kw_only=True)
class RegisterSlice:
    """Bits of a Verilog variable below the module `CORE`.

    Attributes:
        path: hierarchical name, e.g. ``"col_3.pe_5.act"``.
        low: lowest bit of the register in that variable.
        bits: width of the register.
    """

    path: str
    low: int
    bits: int


def register_slice(
    config: AcceleratorConfig, register_class: str, row: int, col: int
) -> RegisterSlice:
    """Return the place of a register.

    Args:
        config: the accelerator.
        register_class: one of `REGISTER_CLASSES` of the configuration's dataflow.
        row: row of the PE or of the skew line; stage of a deskew or weight skew line.
        col: column of the PE or of the deskew or weight skew line; stage of a skew line. Columns
            that share a multiplier block share an activation register: its column is their first.

    Raises:
        InputError: there is no such class, or no such register in this configuration.
    """
    rows, cols = config.rows, config.cols
    if register_class not in REGISTER_CLASSES[config.dataflow]:
        accepted = list(REGISTER_CLASSES[config.dataflow])
        raise unknown_name(f"register class of an array with dataflow {config.dataflow}",
                           register_class, accepted)  # fmt: skip
    if register_class in _PE_REGISTERS:
        count = (rows, cols)
        bits = {
            "pe_activation": config.act_bits,
            "product": config.product_bits,
            "psum": config.psum_bits(min(max(row, 0), rows - 1)),
            "accumulator": config.acc_bits,
        }.get(register_class, config.weight_bits)
        name, group = _PE_REGISTERS[register_class], col
        if name == "product" and not config.uses_dsp:
            name = "multiplier.product"
        if config.dsp_pack > 1:
            group, lane = divmod(col, config.dsp_pack)
            if register_class != "pe_activation":
                name = f"{name}_{lane}"
            elif lane:
                count = (rows, 0)
        place = RegisterSlice(path=f"col_{group}.pe_{row}.{name}", low=0, bits=bits)
    elif register_class == "skew":
        count, bits = (rows, row + 1), config.act_bits
        # With a single row its register is the module's output itself.
        name = f"row_{row}" if rows > 1 else "act"
        place = RegisterSlice(path=f"skew.{name}", low=col * bits, bits=bits)
    elif register_class == "weight_skew":
        count, bits = (col + 1, cols), config.weight_bits
        name = f"col_{col}" if cols > 1 else "weight"
        place = RegisterSlice(path=f"weight_skew.{name}", low=row * bits, bits=bits)
    else:
        stages = config.col_groups - 1 - config.col_group(col)
        count, bits = (stages, cols), config.psum_bits(rows - 1)
        place = RegisterSlice(path=f"deskew.col_{col}", low=row * bits, bits=bits)
    if not (0 <= row < count[0] and 0 <= col < count[1]):
        raise InputError(
            f"there is no {register_class} register at row {row}, column {col} "
            f"in an array of {rows} x {cols}"
        )
    return place


def register_path(config: AcceleratorConfig, register_class: str, row: int, col: int) -> str:
    """Return the hierarchical name of `register_slice` below `CORE`."""
    return register_slice(config, register_class, row, col).path
