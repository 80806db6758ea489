# SPDX-License-Identifier: Apache-2.0
"""Where the registers of the published schedule are in the emitted Verilog."""

from __future__ import annotations

from dataclasses import dataclass

from hdl.config import MULTIPLIER_BITS, AcceleratorConfig
from trilat.errors import InputError, unknown_name

# The module that all paths start from; it is the instance `core` of the top module.
CORE = "trilat_core"

# Registers of the array that hold operands and sums, by dataflow.
REGISTER_CLASSES = {
    "ws": (
        "pe_activation",
        "product",
        "psum",
        "weight_loading",
        "weight_active",
        "skew",
        "weight_skew",
        "deskew",
    ),
    "os": ("pe_activation", "pe_weight", "product", "accumulator", "skew", "weight_skew"),
}
# Words and parameters of the lanes; of those, the present set and the one of the next tile.
LIMIT_CLASSES = ("lo", "hi", "lo_is_bound", "hi_is_bound")
_PARAMETERS = ("bias", "shift", "multiplier", *LIMIT_CLASSES)
PARAMETER_CLASSES = (*_PARAMETERS, *(f"next_{name}" for name in _PARAMETERS))
LANE_CLASSES = {
    "ws": ("psum_buffer", "ring", *PARAMETER_CLASSES),
    "os": ("ring", *PARAMETER_CLASSES),
}
# Control bits: what a fault in one does is not predicted, but seen in the RTL alone.
CONTROL_CLASSES = {
    "ws": ("valid", "first", "last", "swap"),
    "os": ("valid", "first", "last"),
}

_PE_REGISTERS = {
    "pe_activation": "act",
    "pe_weight": "weight",
    "product": "multiplier.product",
    "psum": "psum",
    "accumulator": "accumulator.acc",
    "weight_loading": "weight_loading",
    "weight_active": "weight_active",
    "swap": "swap",
    "valid": "valid",
    "first": "first",
}
# Of them, those that columns which share a multiplier block have once: in their first column.
_SHARED = ("pe_activation", "swap", "valid", "first")


@dataclass(frozen=True, kw_only=True)
class RegisterSlice:
    """Bits of a Verilog variable below the module `CORE`.

    Attributes:
        path: hierarchical name, e.g. ``"col_3.pe_5.act"``.
        low: lowest bit of the register in that variable.
        bits: width of the register.
        word: index where the variable is a memory, else None.
    """

    path: str
    low: int
    bits: int
    word: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A slice, and how many rows and columns of its class there are in its column or row."""

    count: tuple[int, int]
    slice: RegisterSlice


def register_classes(config: AcceleratorConfig) -> tuple[str, ...]:
    """Return every class of which the configuration has a register, control bits included."""
    names = [
        *REGISTER_CLASSES[config.dataflow],
        *LANE_CLASSES[config.dataflow],
        *CONTROL_CLASSES[config.dataflow],
    ]
    absent = {"deskew"} if config.col_groups == 1 else set()
    if not config.multiplies:
        absent |= {"multiplier", "next_multiplier"}
    if not config.checks_output:
        absent |= {name for name in PARAMETER_CLASSES if name.endswith("is_bound")}
    return tuple(name for name in names if name not in absent)


def in_header(config: AcceleratorConfig, register_class: str) -> bool:
    """Return whether a class holds limits of all lanes (bounds per layer): one register, (0, 0)."""
    return config.layer_bounds and register_class.removeprefix("next_") in LIMIT_CLASSES


def register_places(config: AcceleratorConfig, register_class: str) -> list[tuple[int, int]]:
    """Return (row, col) of every register of a class, in ascending order.

    Raises:
        InputError: there is no such class.
    """
    _check_class(config, register_class)
    if register_class in ("psum_buffer", "ring"):
        depth = config.psum_depth if register_class == "psum_buffer" else 2 * config.max_m
        return [(word, col) for word in range(depth) for col in range(config.cols)]
    reach = range(config.rows + config.cols)
    return [
        (row, col) for row in reach for col in reach if _exists(config, register_class, row, col)
    ]


def register_slice(
    config: AcceleratorConfig, register_class: str, row: int, col: int
) -> RegisterSlice:
    """Return the place of a register.

    Args:
        config: the accelerator.
        register_class: one of `REGISTER_CLASSES`, `LANE_CLASSES` or `CONTROL_CLASSES` of the
            configuration's dataflow.
        row: row of the PE or of the skew line; stage of a deskew or weight skew line; word of
            ``psum_buffer`` and ``ring``; 0 for parameters.
        col: column of the PE, of the lane or of the deskew or weight skew line; stage of a skew
            line; 0 for limits of all lanes (`in_header`). Columns that share a multiplier block
            share an activation register: its column is their first. The control bits of a
            weight-stationary array travel beside it in one line (``valid``, ``first``, ``last``:
            row 0, the stage in `col`) or in the PEs of the first column of a group (``swap``); of
            an output-stationary one in those PEs, but for ``last``, which is one bit (0, 0).

    Raises:
        InputError: there is no such class, or no such register in this configuration.
    """
    _check_class(config, register_class)
    if not _exists(config, register_class, row, col):
        raise InputError(
            f"there is no {register_class} register at row {row}, column {col} "
            f"in an array of {config.rows} x {config.cols}"
        )
    return _place(config, register_class, row, col).slice


def _check_class(config: AcceleratorConfig, register_class: str) -> None:
    accepted = list(register_classes(config))
    if register_class not in (*accepted, "deskew") or (register_class == "deskew" and config.is_os):
        raise unknown_name(f"register class of an array with dataflow {config.dataflow}",
                           register_class, accepted)  # fmt: skip


def _exists(config: AcceleratorConfig, register_class: str, row: int, col: int) -> bool:
    count = _place(config, register_class, row, col).count
    return 0 <= row < count[0] and 0 <= col < count[1]


def _place(config: AcceleratorConfig, register_class: str, row: int, col: int) -> _Place:
    """Return where a register is; meaningless where `count` does not reach."""
    if register_class in LANE_CLASSES[config.dataflow]:
        return _lane_place(config, register_class, row, col)
    if register_class == "last" or (
        register_class in CONTROL_CLASSES["ws"] and not config.is_os and register_class != "swap"
    ):
        return _line_place(config, register_class, col)
    if register_class in _PE_REGISTERS:
        return _pe_place(config, register_class, row, col)
    rows, cols = config.rows, config.cols
    if register_class == "skew":
        count, bits = (rows, row + 1), config.act_bits
        low = col * bits
        if col == row:  # as the array takes it
            bits = config.operand_bits
        # With a single row its register is the module's output itself.
        name = f"row_{row}" if rows > 1 else "act"
        place = RegisterSlice(path=f"skew.{name}", low=low, bits=bits)
    elif register_class == "weight_skew":
        count, bits = (config.col_group(col) + 1, cols), config.weight_bits
        name = f"col_{col}" if cols > 1 else "weight"
        place = RegisterSlice(path=f"weight_skew.{name}", low=row * bits, bits=bits)
    else:
        stages = config.col_groups - 1 - config.col_group(col)
        count, bits = (stages, cols), config.psum_bits(rows - 1)
        place = RegisterSlice(path=f"deskew.col_{col}", low=row * bits, bits=bits)
    return _Place(count=count, slice=place)


def _pe_place(config: AcceleratorConfig, register_class: str, row: int, col: int) -> _Place:
    count = (config.rows, config.cols)
    bits = {
        "pe_activation": config.operand_bits,
        "product": config.product_bits,
        "psum": config.psum_bits(min(max(row, 0), config.rows - 1)),
        "accumulator": config.acc_bits,
        "swap": 1,
        "valid": 1,
        "first": 1,
    }.get(register_class, config.weight_bits)
    name, group = _PE_REGISTERS[register_class], col
    if config.dsp_pack > 1:
        group, lane = divmod(col, config.dsp_pack)
        if register_class == "accumulator":  # an instance for each column
            name = f"accumulator_{lane}.acc"
        elif register_class not in _SHARED:
            name = f"{name}_{lane}"
        elif lane:
            count = (config.rows, 0)
    place = RegisterSlice(path=f"col_{group}.pe_{row}.{name}", low=0, bits=bits)
    return _Place(count=count, slice=place)


def _lane_place(config: AcceleratorConfig, register_class: str, row: int, col: int) -> _Place:
    if register_class in ("psum_buffer", "ring"):
        name = "psums" if register_class == "psum_buffer" else "ring"
        depth = config.psum_depth if register_class == "psum_buffer" else 2 * config.max_m
        place = RegisterSlice(path=f"lane_{col}.{name}", low=0, bits=config.acc_bits, word=row)
        return _Place(count=(depth, config.cols), slice=place)
    name = register_class.removeprefix("next_")
    bits = {
        "bias": config.acc_bits,
        "shift": config.shift_bits,
        "multiplier": MULTIPLIER_BITS,
        "lo": config.act_bits,
        "hi": config.act_bits,
    }.get(name, 1)
    if not in_header(config, register_class):
        place = RegisterSlice(path=f"lane_{col}.{register_class}", low=0, bits=bits)
        return _Place(count=(1, config.cols), slice=place)
    # Of the next tile in the front; the present ones in the drain, codes with their sign.
    part = "drain" if name == register_class else "front"
    bits += part == "drain" and name in ("lo", "hi")
    place = RegisterSlice(path=f"{part}.{register_class}", low=0, bits=bits)
    return _Place(count=(1, 1), slice=place)


def _line_place(config: AcceleratorConfig, register_class: str, stage: int) -> _Place:
    if config.is_os:
        return _Place(count=(1, 1), slice=RegisterSlice(path="front.beat_last", low=0, bits=1))
    stages = config.rows + config.col_groups
    place = RegisterSlice(path=f"drain.{register_class}_line", low=stage, bits=1)
    return _Place(count=(1, stages), slice=place)


def register_path(config: AcceleratorConfig, register_class: str, row: int, col: int) -> str:
    """Return the hierarchical name of `register_slice` below `CORE`."""
    return register_slice(config, register_class, row, col).path
