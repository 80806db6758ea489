# SPDX-License-Identifier: Apache-2.0
"""Supply voltage, bit error rate and access energy of SRAM, from published points.

The points are those of the RandBET talk (Stutz et al., MLSys 2021; 32 arrays of 512 x 64 cells,
14 nm): relative supply V / Vmin, bit error rate, and an energy per access of (V / Vmin)**2. Between
them log10 of the rate is linear in V. Above 0.958 there is nothing to interpolate to, the rate at
Vmin being 0: up to 1 the rate of 0.958 stands as an upper bound.

It is the energy of SRAM accesses alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from quant.fault_map import check_rate
from trilat.errors import InputError

VOLTAGES = tuple(k / 24 for k in range(18, 24))
RATES = (0.2056, 0.05573, 0.01115, 0.00129, 6.86646e-5, 1.90735e-6)


def rate_at(voltage: float) -> float:
    """Return the bit error rate at a relative supply voltage; an upper bound in (23/24, 1).

    Args:
        voltage: V / Vmin, 0.75..1.

    Raises:
        InputError: a voltage outside the published range.
    """
    if not VOLTAGES[0] <= voltage <= 1:
        raise InputError(f"V/Vmin must be in {VOLTAGES[0]:g}..1, not {voltage:g}")
    if voltage == 1:
        return 0.0
    return float(10 ** np.interp(voltage, VOLTAGES, np.log10(RATES)))


def voltage_at(rate: float) -> float:
    """Return the lowest published or interpolated V / Vmin whose bit error rate is at most `rate`.

    1 for rates below the lowest published one, 0.75 for those above the highest.

    Raises:
        InputError: a rate outside [0, 1].
    """
    check_rate(rate)
    if rate < RATES[-1]:
        return 1.0
    exponents = np.log10(RATES)[::-1]
    return float(np.interp(math.log10(rate), exponents, VOLTAGES[::-1]))


def energy_at(rate: float) -> float:
    """Return the energy per access at the voltage of a rate, relative to that at Vmin."""
    return voltage_at(rate) ** 2


def rate_held(
    rates: Sequence[float], accuracies: Sequence[float], golden: float, wanted: float
) -> float | None:
    """Return the highest bit error rate at which a network holds an accuracy.

    Linear in the logarithm of the rate, and so in V, between the measured rates. Accuracy need not
    fall with the rate: a network retrained for a chip's faults may be better with them.

    Args:
        rates: measured, ascending, above 0.
        accuracies: at these rates.
        golden: without faults.
        wanted: what is to be held, in the same unit.

    Returns:
        0 where it is held without faults alone, the highest rate where it is held at that one,
        None where it is not even reached without faults.
    """
    lost = max((k + 1 for k, accuracy in enumerate(accuracies) if accuracy >= wanted), default=0)
    if lost == 0:
        return 0.0 if golden >= wanted else None
    if lost == len(rates):
        return rates[-1]
    above, below = accuracies[lost - 1], accuracies[lost]
    share = (above - wanted) / (above - below)
    low, high = math.log10(rates[lost - 1]), math.log10(rates[lost])
    return float(10 ** (low + share * (high - low)))
