# SPDX-License-Identifier: Apache-2.0
"""What `python -m hdl.prove` proves: each property with its wrapper, and the defect it refutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hdl.axil import PerformanceCounters
from hdl.config import AcceleratorConfig
from hdl.lane import raw_zeros
from hdl.register_map import IDENTIFICATION, INTERFACE_VERSION, REGISTERS


@dataclass(frozen=True, kw_only=True)
class Property:
    """Something that is proven.

    Attributes:
        claim: in words.
        wrapper: of hdl/formal, its module is ``prove_<wrapper>``.
        config: what the Verilog is generated from.
        defines: macros of the wrapper, by the configuration.
        probes: module -> its registers and nets that the wrapper looks at.
        induction: cycles k of the inductive step; 0: the proof is bounded.
        depth: cycles from the start.
        defect: (module, regular expression, replacement): what the property must refute.
        quick: decided within seconds.
    """

    claim: str
    wrapper: str
    config: AcceleratorConfig
    defines: Callable[[AcceleratorConfig], dict[str, object]]
    probes: dict[str, tuple[str, ...]]
    induction: int
    depth: int
    defect: tuple[str, str, str]
    quick: bool = True


_SMALL = AcceleratorConfig(rows=2, cols=2, act_bits=2, weight_bits=2, max_k=4, psum_depth=2)
_CLIP = AcceleratorConfig(
    rows=2, cols=2, act_bits=8, weight_bits=2, max_k=4, psum_depth=2, protect="clip"
)
_ZERO = AcceleratorConfig(
    rows=2, cols=2, act_bits=8, weight_bits=2, max_k=4, psum_depth=2, protect="zero"
)
_ONE = AcceleratorConfig(rows=1, cols=1, act_bits=2, weight_bits=2, max_k=2, psum_depth=2)
_TWO = AcceleratorConfig(rows=2, cols=2, act_bits=2, weight_bits=2, max_k=2, psum_depth=2)
_PACKED = replace(_TWO, mult="dsp", dsp_pack=2)


def _lane_config(protect: str, act_bits: int) -> AcceleratorConfig:
    return AcceleratorConfig(
        rows=1, cols=1, act_bits=act_bits, weight_bits=2, max_k=4, psum_depth=2, protect=protect
    )


def _sizes(config: AcceleratorConfig) -> dict[str, object]:
    depth = config.psum_depth
    return {
        "ROWS": config.rows,
        "COLS": config.cols,
        "ACT": config.act_bits,
        "WEIGHT": config.weight_bits,
        "WEIGHTS": config.cols * config.weight_bits,
        "CODE": config.cols * config.act_bits,
        "PSUM": config.psum_bits(config.rows - 1),
        "ACC": config.acc_bits,
        "ROW": max((depth - 1).bit_length(), 1),
        "ROW_COUNT": depth.bit_length(),
        "RING": (2 * depth - 1).bit_length(),
        "RAW_ZEROS": raw_zeros(config),
        "AMOUNT": max(5, ((config.raw_beats - 1) * config.act_bits).bit_length()),
        "RAW_BEATS": config.raw_beats,
        "DEPTH": config.max_m,
        "K_TILES": config.max_k_tiles,
        "LATEST": 8 + config.rows + config.cols + 13 + 2 * config.raw_beats + 4,
        "PATIENCE": 16,
        "COUNTER": f"trilat_violation_counter_{config.cols}",
        "WIDTH": config.cols,
        "COUNT": config.cols.bit_length(),
        **({"CHECKED": 1} if config.checks_output else {}),
        **({"OS": 1} if config.is_os else {}),
        **({"SQUASH": 1} if config.protect == "zero" else {}),
    }


def _registers(config: AcceleratorConfig) -> dict[str, object]:
    """Return the number of every register by its name in capitals, and what is constant."""
    return {
        **{word.name.upper(): word.offset // 4 for word in REGISTERS},
        "REGISTERS": len(REGISTERS),
        "INDEX": (len(REGISTERS) - 1).bit_length(),
        "IDENTIFICATION": IDENTIFICATION,
        "INTERFACE": INTERFACE_VERSION,
    }


_LANE_PROBES = ("ring_word", "bias", "shift", "lo", "hi")
_FLAG_PROBES = ("lo_is_bound", "hi_is_bound")


def requantizer(config: AcceleratorConfig, defect: tuple[str, str, str]) -> Property:
    """Return the property of a configuration's lanes, from the ring's word to the code."""
    flags = _FLAG_PROBES if config.checks_output else ()
    return Property(
        claim=f"requantizer equals its specification for all inputs, protection {config.protect}, "
        f"{config.act_bits} bits",
        wrapper="requantizer",
        config=config,
        defines=_sizes,
        probes={"trilat_lane": _LANE_PROBES + flags},
        induction=10,
        depth=9,
        defect=defect,
    )


def _matrix_product(config: AcceleratorConfig) -> Property:
    defect = ("trilat_activation_skew", r"\bsigned_in & acts\[1\]", "acts[1]")
    if config.dsp_pack > 1:
        # What a product borrows from the one above it in the block.
        defect = ("trilat_multiplier", r" \+ packed_products\[3\]", "")
    return Property(
        claim=f"{config.dataflow}: 2x2 array of 2-bit operands equals the matrix product"
        + (f", {config.dsp_pack} products a block" if config.dsp_pack > 1 else ""),
        wrapper="matrix_product",
        config=config,
        defines=_sizes,
        probes={},
        induction=0,
        depth=38,
        defect=defect,
        quick=False,
    )


def _flow(config: AcceleratorConfig) -> Property:
    return Property(
        claim=f"{config.dataflow}, 1x1 core: as many output beats as promised, no deadlock, "
        "no pauses",
        wrapper="flow",
        config=config,
        defines=lambda config: {**_sizes(config), "FREE": 1},
        probes={},
        induction=0,
        depth=40,
        defect=("trilat_drain", r"have_rows & \(~\(advance & tile_done\)\)", "have_rows"),
        quick=False,
    )


PROPERTIES = {
    "output_buffer": Property(
        claim="output buffer: nothing lost, doubled or reordered; an offered beat stays",
        wrapper="output_buffer",
        config=_SMALL,
        defines=_sizes,
        probes={"trilat_output_buffer": ("spare", "spare_last", "spare_valid")},
        induction=3,
        depth=8,
        defect=("trilat_output_buffer", r"if \(move\) begin", "if (1'b1) begin"),
    ),
    "weight_buffer": Property(
        claim="weight buffer: nothing lost, doubled or reordered; no block overwritten",
        wrapper="weight_buffer",
        config=_SMALL,
        defines=_sizes,
        probes={
            "trilat_front": (
                *("move_weights", "head_valid", "spare_valid", "spare_weights", "block_waits"),
                *("reach", "k_tile_starts"),
            )
        },
        induction=3,
        depth=10,
        defect=("trilat_front", r"if \(~spare_valid\)", "if (head_valid)"),
    ),
    "parameters": Property(
        claim="parameter words: each in its place, none before the last ones are taken",
        wrapper="parameters",
        config=_SMALL,
        defines=_sizes,
        probes={
            "trilat_front": ("take_header", "header_waits", "lanes_wait", "turn", "second_word")
        },
        induction=3,
        depth=12,
        defect=("trilat_front", r"& \(~lanes_wait_next\)", ""),
    ),
    "ring": Property(
        claim="ring of finished rows: nothing lost, doubled or reordered while it has room",
        wrapper="ring",
        config=replace(_SMALL, psum_depth=3),
        defines=_sizes,
        probes={"trilat_drain": ("available", "issue", "drained")},
        induction=3,
        depth=12,
        defect=("trilat_drain", r"drained & \(ring_read == 3'h5\)", "1'h0"),
    ),
    "input_check_clip": Property(
        claim="input check, clip: inside the bounds, unchanged if inside, counted if not",
        wrapper="input_check",
        config=_CLIP,
        defines=_sizes,
        probes={},
        induction=5,
        depth=6,
        defect=(
            "trilat_activation_skew",
            r"checked_1_high \? bound_hi",
            "checked_1_high ? bound_lo",
        ),
    ),
    "input_check_zero": Property(
        claim="input check, zero: 0 if outside, unchanged if inside, counted if outside",
        wrapper="input_check",
        config=_ZERO,
        defines=_sizes,
        probes={},
        induction=5,
        depth=6,
        defect=("trilat_activation_skew", r"highest_sign = signed_in", "highest_sign = 1'b0"),
    ),
    "violation_counter": Property(
        claim="violation counter adds every violation of an enabled cycle, from any count",
        wrapper="violation_counter",
        config=_CLIP,
        defines=_sizes,
        probes={"trilat_violation_counter_2": ("count",)},
        induction=3,
        depth=6,
        defect=("trilat_violation_counter_2", r"total \+ count", "total + |count"),
    ),
    "axil": Property(
        claim="register bus: one answer an access, as its address says; an offered answer stays",
        wrapper="axil",
        config=_SMALL,
        defines=_registers,
        probes={
            "trilat_axil": (
                *("aw_held", "w_held", "ar_held", "write_index", "read_index"),
                *("write_outside", "read_outside", "write_data", "write_strobes"),
            )
        },
        induction=3,
        depth=8,
        defect=("trilat_axil", r"read = ar_held & \(~r_waits\)", "read = ar_held"),
    ),
    "counters": Property(
        claim="performance counters add what each cycle was, from any count",
        wrapper="counters",
        config=_SMALL,
        defines=_registers,
        probes={
            "trilat_counters": (
                "in_flight",
                *(f"{name}_event" for name in PerformanceCounters.COUNTERS),
            )
        },
        induction=3,
        depth=6,
        defect=("trilat_counters", r"busy & s_axis_act_tready", "s_axis_act_tready"),
    ),
    "requantizer": requantizer(
        _lane_config("none", 2), ("trilat_lane", r"\(fine_sticky \| fine\[1\]\)", "1'b1")
    ),
    "requantizer_clip": requantizer(
        _lane_config("clip", 3), ("trilat_lane", "high & hi_is_bound", "high & lo_is_bound")
    ),
    "requantizer_zero": requantizer(
        _lane_config("zero", 3), ("trilat_lane", "lowest_sign = signed_5", "lowest_sign = 1'b0")
    ),
    "lane_hold": Property(
        claim="requantizer: every stage keeps its value while the receiver stalls",
        wrapper="lane_hold",
        config=_lane_config("clip", 3),
        defines=_sizes,
        probes={
            "trilat_lane": (
                *("ring_read__data", "ring_word", "total", "amount", "coarse", "coarse_sticky"),
                *("fine_amount", "fine", "fine_sticky", "rounded"),
                *("low_5a", "high_5a", "value_5a", "lo_5a", "hi_5a", "violation"),
            )
        },
        induction=3,
        depth=4,
        defect=(
            "trilat_lane",
            r"if \(advance\) begin\n      ring_word",
            "if (1'b1) begin\n      ring_word",
        ),
    ),
    "matrix_product": _matrix_product(_TWO),
    "matrix_product_os": _matrix_product(replace(_TWO, dataflow="os")),
    "matrix_product_packed": _matrix_product(_PACKED),
    "matrix_product_os_packed": _matrix_product(replace(_PACKED, dataflow="os")),
    "flow": _flow(_ONE),
    "flow_os": _flow(replace(_ONE, dataflow="os")),
}
