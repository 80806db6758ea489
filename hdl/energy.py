# SPDX-License-Identifier: Apache-2.0
"""Energy of an inference by a documented model: to compare designs, not to predict watts.

No open source gives the energy of an FPGA's LUTs, wires or multipliers per operation, so the
coefficients are of a 45 nm ASIC and results are relative: the unit is the energy of one 8 x 8 bit
multiplication, and only ratios between designs mean anything. Sources:

- multiplication and addition, memory: M. Horowitz, "Computing's energy problem (and what we can do
  about it)", ISSCC 2014, figure 1.1.9, 45 nm and 0.9 V: multiplication of 8 bits 0.2 pJ, of 32
  bits 3.1 pJ (so per bit x bit); addition of 32 bits 0.1 pJ (so per bit); 64 bits of an SRAM of
  8 KB 10 pJ, 32 KB 20 pJ (so with the root of its size), 1 MB 100 pJ.
- register: no source; a bit that is clocked is counted as a bit of an adder.
- stream: a bit is counted as one of that 1 MB SRAM, the chip's weight and activation memory.

Not counted: wires, clock tree, leakage, control, the host's layers. The model of a lowered supply
voltage of memories is another matter and never added to this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hdl.bandwidth import feed
from hdl.config import AcceleratorConfig
from hdl.schedule import GemmShape
from trilat.errors import InputError

# One multiplication of 8 x 8 bits, pJ: the unit.
UNIT_PJ = 0.2
_MULTIPLY_PER_BIT2 = 0.2 / 64
_ADD_PER_BIT = 0.1 / 32
_REGISTER_PER_BIT = _ADD_PER_BIT
_SRAM_PER_BIT, _SRAM_BYTES = 10 / 64, 8192
_STREAM_PER_BIT = 100 / 64


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy of an inference in units of an 8 x 8 bit multiplication.

    Attributes:
        mac: multiplications and additions with operands of the layer.
        register: the array's registers, which are clocked in every cycle.
        buffer: psum buffer and output ring.
        stream: what the four streams carry.
        total: the sum.
        scope: what the figures are, for reports.
    """

    mac: float
    register: float
    buffer: float
    stream: float
    total: float
    scope: str


def energy(
    config: AcceleratorConfig, gemms: Sequence[GemmShape], *, activity: float = 1.0
) -> Energy:
    """Return the modelled energy of the layers of one inference.

    Args:
        config: of the accelerator.
        gemms: its layers.
        activity: toggles of operands and sums relative to random data, which the coefficients are
            of; scales `mac` and `register`. Measure it in simulation.

    Raises:
        InputError: an activity that is not in 0..2.
    """
    if not 0 <= activity <= 2:
        raise InputError(f"activity must be 0 to 2, 1 being random data, not {activity:g}")
    macs = sum(gemm.m * gemm.k * gemm.n * gemm.groups for gemm in gemms)
    sum_bits = config.acc_bits if config.is_os else config.psum_bits(config.rows - 1)
    multiply = _MULTIPLY_PER_BIT2 * config.act_bits * config.weight_bits
    mac = macs * (multiply + _ADD_PER_BIT * sum_bits)
    fed = feed(config, gemms)
    register = fed.cycles * array_register_bits(config) * _REGISTER_PER_BIT
    parts = {
        "mac": mac * activity,
        "register": register * activity,
        "buffer": sum(_buffer(config, gemm) for gemm in gemms),
        "stream": 8 * sum(fed.stream_bytes.values()) * _STREAM_PER_BIT,
    }
    units = {name: value / UNIT_PJ for name, value in parts.items()}
    scope = (
        "A model for comparing designs, in units of one 8 x 8 bit multiplication (45 nm ASIC, "
        "Horowitz, ISSCC 2014; registers assumed); no FPGA was measured. "
        f"Activity {activity:g} relative to random data."
    )
    return Energy(**units, total=sum(units.values()), scope=scope)


def array_register_bits(config: AcceleratorConfig) -> int:
    """Return the data register bits of all PEs and of the skews around them."""
    rows, cols = config.rows, config.cols
    # Columns that share a multiplier block share an activation register and run in step.
    groups, pack = config.col_groups, config.dsp_pack
    weights = config.weight_bits * (1 if config.is_os else 2)
    bits = rows * groups * config.operand_bits
    for row in range(rows):
        sums = config.acc_bits if config.is_os else config.psum_bits(row)
        bits += cols * (weights + config.product_bits + sums)
    bits += config.act_bits * rows * (rows + 1) // 2 + rows * config.signs_travel
    bits += config.weight_bits * pack * groups * (groups + 1) // 2
    if not config.is_os:
        bits += config.psum_bits(rows - 1) * pack * groups * (groups - 1) // 2
    return bits


def _buffer(config: AcceleratorConfig, gemm: GemmShape) -> float:
    """Return pJ of the lanes' memories: a sum is read and written once a K tile, then drained."""

    def access(words: int) -> float:
        size = max(words * config.acc_bits / 8, 1)
        return float(config.acc_bits * _SRAM_PER_BIT * (size / _SRAM_BYTES) ** 0.5)

    sums = gemm.groups * -(-gemm.n // config.cols) * config.cols * gemm.m
    reads = sums * (config.raw_beats if gemm.raw else 1)
    ring = (sums + reads) * access(2 * config.max_m)
    if config.is_os:
        return ring
    k_tiles = -(-gemm.k // config.k_step)
    return ring + 2 * sums * k_tiles * access(config.psum_depth)
