# SPDX-License-Identifier: Apache-2.0
"""Stopping early at fixed looks, with the chance of error spent over them.

A campaign that looks at its interval K times and stops at the first narrow enough one misses the
truth more often than one that looks once. Here look k has the error alpha_k, the alphas add up to
1 - confidence (Lan and DeMets, Biometrika 70, 1983, give the spending functions), and each look's
interval has the level 1 - alpha_k. By the union bound all K intervals hold at once with the wanted
confidence, so the one at the stop does, whatever made the campaign stop, for any population and
any allocation. The price against boundaries from the joint distribution of the looks is an
interval that is up to about a tenth wider.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from trilat.errors import InputError, unknown_name

SPENDINGS = ("pocock", "obrien-fleming")
MAX_LOOKS = 20


def spend(looks: int, confidence: float, spending: str = "pocock") -> list[float]:
    """Return the level 1 - alpha_k of the interval at each look; looks are equally far apart.

    Args:
        looks: K, 1..20.
        confidence: of all of them together, in (0, 1).
        spending: ``pocock``, about the same error at each look, or ``obrien-fleming``, next to
            none at the early ones, whose intervals are then wide.

    Raises:
        InputError: an argument is out of its range.
    """
    if not 1 <= looks <= MAX_LOOKS:
        raise InputError(f"looks must be in 1..{MAX_LOOKS}, not {looks}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, not {confidence:g}")
    if spending not in SPENDINGS:
        raise unknown_name("spending of alpha", spending, list(SPENDINGS))
    alpha, spent, levels = 1 - confidence, 0.0, []
    for look in range(1, looks + 1):
        now = _spent(look / looks, alpha, spending)
        levels.append(1 - (now - spent))
        spent = now
    return levels


def look_sizes(count: int, looks: int) -> list[int]:
    """Return how many experiments each look sees, the last one all `count`."""
    return sorted({max(1, round(count * look / looks)) for look in range(1, looks + 1)})


def _spent(time: float, alpha: float, spending: str) -> float:
    if spending == "pocock":
        return alpha * math.log(1 + (math.e - 1) * time)
    normal = NormalDist()
    return 2 - 2 * normal.cdf(normal.inv_cdf(1 - alpha / 2) / math.sqrt(time))
