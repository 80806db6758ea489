# SPDX-License-Identifier: Apache-2.0
"""The published schedule: which tile runs when, and which beat each register holds in a cycle.

Closed forms only; tests compare them with the emitted Verilog in simulation. The table they
implement is in docs/architecture.md, "Registers and time of the array".

An output-stationary array fits the same forms as one whose K tiles are a single index of K, take
one beat and follow each other in every cycle (`AcceleratorConfig.k_step` is 1); what is its own
is that a tile ends no sooner than the rows of the tile before have left its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from hdl.config import AcceleratorConfig
from hdl.register_map import parameter_words

# Cycles from the read of a psum-buffer word to the next read that sees its new sum.
PSUM_LATENCY = 4
# Of the requantizer, without the stages that multiply: cycles from the issue of a row until its
# code is on `m_axis_out`, and stages up to the last one that needs a tile's parameters.
_REQUANTIZE_LATENCY, _LIMITS_STAGE = 9, 6


@dataclass(frozen=True, kw_only=True)
class GemmShape:
    """Size of one layer's work for one image: `groups` times (M x K) by (K x N).

    `raw` is set for the last layer, whose sums leave as they are, in several beats a row.
    """

    m: int
    k: int
    n: int
    groups: int = 1
    raw: bool = False


@dataclass(frozen=True, kw_only=True)
class OutputTile:
    """Place of an output tile in its layer: rows m0..m1 and columns n0..n1 of group `group`."""

    group: int
    n0: int
    n1: int
    m0: int
    m1: int
    k_tiles: int


def output_tiles(config: AcceleratorConfig, gemm: GemmShape) -> Iterator[OutputTile]:
    """Yield the output tiles of a layer in the order in which they are sent."""
    k_tiles = -(-gemm.k // config.k_step)
    for group in range(gemm.groups):
        for n0 in range(0, gemm.n, config.cols):
            for m0 in range(0, gemm.m, config.max_m):
                yield OutputTile(
                    group=group,
                    n0=n0,
                    n1=min(n0 + config.cols, gemm.n),
                    m0=m0,
                    m1=min(m0 + config.max_m, gemm.m),
                    k_tiles=k_tiles,
                )


def act_register_cycle(
    config: AcceleratorConfig, m: int, row: int, col: int, k: int, beat: int
) -> int:
    """Return the cycle in which the activation register of PE(row, col) holds beat (k, beat).

    Output-stationary: beat `k`, and `beat` is 0.
    """
    return k * k_tile_period(config, m) + beat + row + config.col_group(col) + 2


def k_tile_period(config: AcceleratorConfig, m: int) -> int:
    """Return the cycles between the first beats of two K tiles of `m` beats, without stalls.

    Weight-stationary: a tile takes its beats, a weight block a beat per row, and a sum is read
    again no sooner than `PSUM_LATENCY` cycles later. Output-stationary: 1.
    """
    if config.is_os:
        return 1
    return max(m, config.rows, PSUM_LATENCY)


def collector_levels(config: AcceleratorConfig) -> int:
    """Return the registers between an accumulator and the lane (output-stationary).

    A level of the column's multiplexer takes one of four sums.
    """
    return -(-(config.rows - 1).bit_length() // 2)


def output_latency(config: AcceleratorConfig) -> int:
    """Return the cycles from a beat of the last K tile to its output beat, without stalls.

    Output-stationary: to that of row 0.
    """
    return _issue_latency(config) + requantize_latency(config)


def multiply_stages(config: AcceleratorConfig) -> int:
    """Return the stages of the requantizer that multiply."""
    return 2 if config.multiplies else 0


def requantize_latency(config: AcceleratorConfig) -> int:
    """Return the cycles from the issue of a row until its code is on `m_axis_out`."""
    return _REQUANTIZE_LATENCY + multiply_stages(config)


def tile_cycles(config: AcceleratorConfig, *, m: int, k_tiles: int, raw: bool = False) -> int:
    """Return the cycles of one output tile alone.

    Counted from the cycle that accepts its first activation beat to the one that takes its last
    output beat, both included; no stream ever waits.
    """
    beats = m * (config.raw_beats if raw else 1)
    return (k_tiles - 1) * k_tile_period(config, m) + output_latency(config) + beats


def layer_cycles(config: AcceleratorConfig, gemm: GemmShape) -> int:
    """Return `network_cycles` of one layer."""
    return network_cycles(config, [gemm])


def network_cycles(config: AcceleratorConfig, gemms: Sequence[GemmShape]) -> int:
    """Return the cycles of all output tiles of `gemms`, sent one behind the other.

    Counted as in `tile_cycles`, from the first activation beat of the first layer to the last
    output beat of the last. The streams never starve: parameter words, weights and activations
    wait at the accelerator from its reset on, and the receiver is always ready. So a layer does
    not wait for the host's work on the layer before.

    Takes time per distinct tile, not per tile.
    """
    start = state = _start(config)
    for gemm in gemms:
        k_tiles = -(-gemm.k // config.k_step)
        full, rest = divmod(gemm.m, config.max_m)

        def column_block(
            state: _State,
            gemm: GemmShape = gemm,
            k_tiles: int = k_tiles,
            splits: int = full,
            rest: int = rest,
        ) -> _State:
            state = _repeat(
                lambda s: _after_tile(config, s, config.max_m, k_tiles, gemm.raw),
                state,
                splits,
            )
            return _after_tile(config, state, rest, k_tiles, gemm.raw) if rest else state

        state = _repeat(column_block, state, gemm.groups * -(-gemm.n // config.cols))
    return state.drained + requantize_latency(config) - start.accept + 1


def stream_bytes(config: AcceleratorConfig, gemm: GemmShape) -> dict[str, int]:
    """Return the bytes that a layer moves on each stream, padding of beats and tiles included."""
    k_tiles = -(-gemm.k // config.k_step)
    blocks = gemm.groups * -(-gemm.n // config.cols)
    tiles = blocks * -(-gemm.m // config.max_m)
    rows = blocks * gemm.m
    out_beat = -(-config.cols * config.act_bits // 8)
    return {
        "s_axis_param": tiles * param_word_count(config) * 4,
        "s_axis_weight": tiles
        * k_tiles
        * config.k_step
        * -(-config.cols * config.weight_bits // 8),
        "s_axis_act": (tiles if config.is_os else rows)
        * k_tiles
        * -(-config.rows * config.act_bits // 8),
        "m_axis_out": rows * (config.raw_beats if gemm.raw else 1) * out_beat,
    }


@dataclass(frozen=True, kw_only=True)
class _State:
    """When the accelerator is ready for the next output tile; cycles of one clock.

    Attributes:
        accept: earliest first activation beat of the next tile.
        ends: earliest last activation beat of the next tile (output-stationary).
        params: acceptance of the last parameter word of the next tile.
        drained: issue of the last row of the tile before to the requantizer.
    """

    accept: int
    ends: int
    params: int
    drained: int

    def moved(self, cycles: int) -> _State:
        return _State(**{name: value + cycles for name, value in asdict(self).items()})


def _issue_latency(config: AcceleratorConfig) -> int:
    """Cycles from a beat's acceptance until its row can be issued to the requantizer.

    Output-stationary: from the last beat's until row 0 can.
    """
    if config.is_os:
        return config.col_groups + 4 + collector_levels(config)
    return config.rows + config.col_groups + 4


def param_word_count(config: AcceleratorConfig) -> int:
    """Return the words of an output tile on `s_axis_param`."""
    layout = parameter_words(config)
    return len(layout.header) + config.cols * len(layout.column)


def _start(config: AcceleratorConfig) -> _State:
    """Return the state after reset; cycle 0 accepts the first parameter word and weight beat."""
    words = param_word_count(config)
    never = -(1 << 20)
    return _State(
        accept=max(0 if config.is_os else config.rows, words) + 1,
        ends=never,
        params=words - 1,
        drained=never,
    )


def _after_tile(
    config: AcceleratorConfig, state: _State, m: int, k_tiles: int, raw: bool
) -> _State:
    period = k_tile_period(config, m)
    accept = max(state.accept, state.ends - k_tiles + 1)
    last_k_tile = accept + (k_tiles - 1) * period
    issue = max(last_k_tile + _issue_latency(config), state.drained + 1)
    # Words of the tile after this one follow when all parameters of this one have been taken:
    # two cycles behind its last word, or when the tile before leaves the requantizer.
    taken = max(state.params + 2, state.drained + _LIMITS_STAGE + multiply_stages(config))
    params = taken + 1 + param_word_count(config)
    return _State(
        accept=max(accept + k_tiles * period, params + 2),
        ends=last_k_tile + (m if config.is_os else 0),
        params=params,
        drained=issue + m * (config.raw_beats if raw else 1) - 1,
    )


def _repeat(step: Callable[[_State], _State], state: _State, count: int) -> _State:
    """Apply `step` `count` times; once states recur, but for the time, jump to the end."""
    seen: dict[_State, tuple[int, int]] = {}
    done = 0
    while done < count:
        shape = state.moved(-state.accept)
        if shape in seen:
            before, accept = seen[shape]
            rounds = (count - done) // (done - before)
            state = state.moved(rounds * (state.accept - accept))
            done += rounds * (done - before)
            seen = {}
            if done == count:
                break
        seen[shape] = (done, state.accept)
        state = step(state)
        done += 1
    return state
