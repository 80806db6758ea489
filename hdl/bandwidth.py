# SPDX-License-Identifier: Apache-2.0
"""What the streams carry, and what a given memory bandwidth makes of the cycles.

`hdl.schedule` counts cycles with streams that never starve. Its bytes
of each stream are the least that a memory must move: a layer can take no less than its bytes
divided by what the memory gives. That bound is of whole layers; it does not model bursts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hdl.config import AcceleratorConfig
from hdl.schedule import GemmShape, layer_cycles, stream_bytes


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """Cycles of some layers, and the streams that take part.

    Attributes:
        cycles: with streams that never starve, layer by layer.
        capped_cycles: with at most the given bytes in each cycle, over all streams.
        stream_bytes: stream -> bytes.
    """

    cycles: int
    capped_cycles: int
    stream_bytes: dict[str, int]

    @property
    def slowdown(self) -> float:
        """Capped cycles over cycles: 1 when the memory is fast enough."""
        return self.capped_cycles / self.cycles

    def gigabytes_per_second(self, clock_mhz: float) -> dict[str, float]:
        """Return the mean rate of each stream, were it never to starve."""
        seconds = self.cycles / (clock_mhz * 1e6)
        return {name: count / seconds / 1e9 for name, count in self.stream_bytes.items()}


def feed(
    config: AcceleratorConfig,
    gemms: Sequence[GemmShape],
    *,
    bandwidth: float | None = None,
    clock_mhz: float = 100.0,
) -> Feeding:
    """Return cycles and bytes of layers run one after the other.

    Args:
        config: of the accelerator.
        gemms: the layers.
        bandwidth: GB/s (1e9 bytes) for all streams together; None for as much as they take.
        clock_mhz: of the accelerator; only the bandwidth per cycle depends on it.
    """
    totals: dict[str, int] = {}
    cycles = capped = 0
    for gemm in gemms:
        carried = stream_bytes(config, gemm)
        free = layer_cycles(config, gemm)
        cycles += free
        capped += max(free, _cycles_of_memory(carried, bandwidth, clock_mhz))
        for name, count in carried.items():
            totals[name] = totals.get(name, 0) + count
    return Feeding(cycles=cycles, capped_cycles=capped, stream_bytes=totals)


def _cycles_of_memory(carried: Mapping[str, int], bandwidth: float | None, clock_mhz: float) -> int:
    if bandwidth is None:
        return 0
    bytes_per_cycle = bandwidth * 1e3 / clock_mhz
    return int(-(-sum(carried.values()) // bytes_per_cycle))


def full_tiles(config: AcceleratorConfig) -> GemmShape:
    """Return the layer that the array runs best on: whole tiles of the longest M and K it takes.

    What its streams need is what a memory must give to keep the array busy at all.
    """
    k = config.max_k_tiles * config.k_step
    return GemmShape(m=config.max_m, k=k, n=4 * config.cols)
