# SPDX-License-Identifier: Apache-2.0
"""The accepting side: parameter words, weight blocks and activation beats, and when."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib.wiring import In, Out

from hdl.config import AcceleratorConfig
from hdl.module import Part, bits_of, flags
from hdl.register_map import Field, parameter_words
from hdl.schedule import PSUM_LATENCY


def layer_limits(config: AcceleratorConfig) -> list[Field]:
    """Return the fields of the header's limits that the lanes use; none with bounds per channel."""
    if not config.layer_bounds:
        return []
    fields = next(word for word in parameter_words(config).header if word.name == "limits").fields
    return [f for f in fields if config.checks_output or not f.name.endswith("_is_bound")]


class Front(Part):
    """Accept the three input streams. Every output is a register.

    Parameter words go to the next header here and to the lanes; the stream rests until all of
    them have been taken. A weight beat moves into the array while no complete block waits there,
    or in the cycle in which that block is swapped in. Beat 0 of a K tile is accepted when a
    complete block waits, beat 0 of an output tile when its header is the present one too.

    A free psum buffer needs no flag: the lanes' parameters are taken only when the output tile
    before the last has been drained, so a complete parameter set implies it.

    An output-stationary array takes a weight beat and an activation beat in the same cycle. Its
    next tile begins only when it cannot end before the rows of the one before have made room.

    Members:
        s_axis_*: the streams; the activation codes themselves go to the skew.
        params_taken: pulse: the lanes have taken the column parameters.
        param_word, write_*: for the lanes, one bit for each; a write for each word of a column.
        params_complete: pulse behind the last word.
        next_m, next_raw, next_signed: header of the output side, stable until taken; with
            bounds per layer also next_lo, next_hi and their flags (with an output check).
        weights: the weight beat that moves, element c for column c.
        load: row r takes a weight, one cycle behind the move (ws).
        tile_signed: the sign convention of the tile whose beats are accepted, where not fixed.
        bound_lo, bound_hi: of that tile (with an input check).
        beat_*: of the beat in skew stage 0: valid, first and last (K tile of the output tile);
            ws: swap (the first of a K tile), end (last of its K tile); os: rows, M.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        bits = config.act_bits
        bounds = {"bound_lo": Out(bits), "bound_hi": Out(bits)}
        self.words = parameter_words(config)
        super().__init__(
            "trilat_front",
            {
                "s_axis_param_tdata": In(32),
                "s_axis_param_tvalid": In(1),
                "s_axis_param_tready": Out(1),
                "s_axis_weight_tdata": In(config.cols * config.weight_bits),
                "s_axis_weight_tvalid": In(1),
                "s_axis_weight_tready": Out(1),
                "s_axis_act_tvalid": In(1),
                "s_axis_act_tready": Out(1),
                "params_taken": In(1),
                "param_word": Out(32),
                **{f"write_{word.name}": Out(config.cols) for word in self.words.column},
                "params_complete": Out(1),
                "next_m": Out(range(config.max_m + 1)),
                "next_raw": Out(1),
                "next_signed": Out(1),
                **{f"next_{field.name}": Out(field.bits) for field in layer_limits(config)},
                "weights": Out(config.cols * config.weight_bits),
                **({} if config.is_os else {"load": Out(config.rows)}),
                "tile_signed": Out(1) if config.signs_travel else None,
                **(bounds if config.checks_input else {}),
                "beat_valid": Out(1),
                "beat_first": Out(1),
                "beat_last": Out(1),
                **(
                    {"beat_rows": Out(range(config.max_m + 1))}
                    if config.is_os
                    else {"beat_swap": Out(1), "beat_end": Out(1)}
                ),
            },
            has_reset=True,
        )

    def elaborate(self, platform: object) -> Module:
        """Build the parts, joined by `take_header` and, ws, by `swap` and `block_ready`."""
        m = self.new_module()
        self._take_header = Signal(name="take_header")
        self._header_waits = Signal(name="header_waits")
        self._parameters(m)
        if self.config.is_os:
            self._pairs(m)
        else:
            self._swap = Signal(name="swap")
            self._block_ready = Signal(name="block_ready")
            self._weights(m)
            self._activations(m)
        return m

    def _parameters(self, m: Module) -> None:
        config, word = self.config, self.s_axis_param_tdata
        size, form, *_ = self.words.header
        ready = self.s_axis_param_tready
        # One bit for each header word and each lane, which takes two words, or three.
        in_front = len(self.words.header)
        turn = Signal(in_front + config.cols, init=1)
        header_turn, lane_turn = turn[:in_front], turn[in_front:]
        accept, complete, lanes_wait = flags("accept_word", "complete", "lanes_wait")
        in_header = Signal()
        word_turns, last_word = self._word_turns(m, accept, in_header)
        self._next_header = {
            "k_tiles": Signal(range(config.max_k_tiles + 1), name="next_k_tiles"),
        }
        if config.signs_travel:
            self._next_header["signed"] = Signal(name="next_signed_in")
        if config.checks_input:
            self._next_header |= {
                "bound_lo": Signal(config.act_bits, name="next_bound_lo"),
                "bound_hi": Signal(config.act_bits, name="next_bound_hi"),
            }
        header_waits_next, lanes_wait_next = flags("header_waits_next", "lanes_wait_next")
        m.d.comb += [
            accept.eq(self.s_axis_param_tvalid & ready),
            complete.eq(accept & turn[-1] & last_word),
            header_waits_next.eq(complete | (self._header_waits & ~self._take_header)),
            lanes_wait_next.eq(complete | (lanes_wait & ~self.params_taken)),
        ]
        m.d.sync += [
            self._header_waits.eq(header_waits_next),
            lanes_wait.eq(lanes_wait_next),
            ready.eq(~header_waits_next & ~lanes_wait_next),
            self.params_complete.eq(complete),
            *(
                getattr(self, f"write_{word.name}").eq(Mux(accept & its_turn, lane_turn, 0))
                for word, its_turn in zip(self.words.column, word_turns, strict=True)
            ),
        ]
        m.d.data += self.param_word.eq(word)
        m.d.comb += in_header.eq(header_turn.any())
        with m.If(accept & (in_header | last_word)):
            m.d.sync += turn.eq(turn.rotate_left(1))
        with m.If(accept & turn[0]):
            m.d.data += [
                self.next_m.eq(bits_of(word, size.field("m"))),
                self._next_header["k_tiles"].eq(bits_of(word, size.field("k_tiles"))),
            ]
        with m.If(accept & turn[1]):
            if config.signs_travel:
                m.d.data += self._next_header["signed"].eq(bits_of(word, form.field("signed_in")))
            m.d.data += [
                self.next_raw.eq(bits_of(word, form.field("raw"))),
                self.next_signed.eq(bits_of(word, form.field("signed_out"))),
            ]
            if config.checks_input:
                m.d.data += [
                    self._next_header["bound_lo"].eq(bits_of(word, form.field("input_lo"))),
                    self._next_header["bound_hi"].eq(bits_of(word, form.field("input_hi"))),
                ]
        if config.layer_bounds:
            with m.If(accept & turn[2]):
                m.d.data += [
                    getattr(self, f"next_{field.name}").eq(bits_of(word, field))
                    for field in layer_limits(config)
                ]

    def _word_turns(self, m: Module, accept: Value, in_header: Value) -> tuple[list[Value], Value]:
        """Return which of a lane's words is the next one, and whether it is the last."""
        if len(self.words.column) == 2:
            second_word = Signal(name="second_word")
            with m.If(accept):
                m.d.sync += second_word.eq(~in_header & ~second_word)
            return [~second_word, second_word], second_word
        word_turn = Signal(len(self.words.column), init=1, name="word_turn")
        with m.If(accept & ~in_header):
            m.d.sync += word_turn.eq(word_turn.rotate_left(1))
        return list(word_turn), word_turn[-1]

    def _weight_buffer(self, m: Module, move: Value) -> tuple[Value, Value]:
        """Hold up to two weight beats, so that a registered ready lets one move in every cycle.

        Returns:
            Whether a beat is in `weights`, in this cycle and in the next one.
        """
        data, valid = self.s_axis_weight_tdata, self.s_axis_weight_tvalid
        ready = self.s_axis_weight_tready
        spare = Signal(len(data), name="spare_weights")
        head_valid, head_valid_next, spare_valid, spare_valid_next = flags(
            "head_valid", "head_valid_next", "spare_valid", "spare_valid_next"
        )
        accept = Signal(name="accept_weights")
        m.d.comb += [
            accept.eq(valid & ready),
            spare_valid_next.eq(head_valid & ~move & (spare_valid | accept)),
            head_valid_next.eq((head_valid & ~move) | spare_valid | accept),
        ]
        m.d.sync += [
            spare_valid.eq(spare_valid_next),
            ready.eq(~spare_valid_next),
            head_valid.eq(head_valid_next),
        ]
        with m.If(~head_valid | move):
            m.d.data += self.weights.eq(Mux(spare_valid, spare, data))
        with m.If(~spare_valid):
            m.d.data += spare.eq(data)
        return head_valid, head_valid_next

    def _weights(self, m: Module) -> None:
        config = self.config
        move, done = flags("move_weights", "block_done")
        head_valid, _ = self._weight_buffer(m, move)
        # Rows that the next beat of the block reaches, the top one first.
        reach = Signal(config.rows, init=1)
        block_waits = Signal()
        m.d.comb += [
            move.eq(head_valid & (~block_waits | self._swap)),
            done.eq(move & reach[-1]),
            self._block_ready.eq(done | (block_waits & ~self._swap)),
        ]
        m.d.sync += [
            block_waits.eq(self._block_ready),
            self.load.eq(Mux(move, reach, 0)),
        ]
        with m.If(move):
            m.d.sync += reach.eq(Cat(1, reach[:-1]))
        with m.If(done):
            m.d.sync += reach.eq(1)

    def _take_signs(self, m: Module) -> None:
        """Take the sign convention and the bounds of a tile's activations."""
        config = self.config
        with m.If(self._take_header):
            if config.signs_travel:
                m.d.data += self.tile_signed.eq(self._next_header["signed"])
            if config.checks_input:
                m.d.data += [
                    self.bound_lo.eq(self._next_header["bound_lo"]),
                    self.bound_hi.eq(self._next_header["bound_hi"]),
                ]

    def _activations(self, m: Module) -> None:
        ready = self.s_axis_act_tready
        rows = Signal.like(self.next_m, name="rows")
        rows_left = Signal.like(self.next_m, name="rows_left")
        k_left = Signal.like(self._next_header["k_tiles"], name="k_tiles_left")
        is_open = Signal(name="tile_open")
        starting = Signal(init=1, name="k_tile_starts")
        first = Signal(name="first_k_tile")
        accept, last_row, last_k, end_k, end_tile = flags(
            "accept_act", "last_row", "last_k_tile", "end_k_tile", "end_tile"
        )
        m.d.comb += [
            accept.eq(self.s_axis_act_tvalid & ready),
            last_row.eq(rows_left == 1),
            last_k.eq(k_left == 1),
            end_k.eq(accept & last_row),
            end_tile.eq(end_k & last_k),
            self._swap.eq(accept & starting),
            self._take_header.eq(self._header_waits & (~is_open | end_tile)),
        ]
        open_next, starting_next = flags("tile_open_next", "k_tile_starts_next")
        m.d.comb += [
            open_next.eq(self._take_header | (is_open & ~end_tile)),
            starting_next.eq(Mux(accept, last_row, starting)),
        ]
        m.d.sync += [is_open.eq(open_next), starting.eq(starting_next)]
        # A row's sum can be read again PSUM_LATENCY cycles later: fewer rows must wait.
        resting = Signal(name="resting")
        rest = Signal(PSUM_LATENCY - 2, name="rest")
        longer = [end_k & (rows < PSUM_LATENCY - 1 - i) for i in range(len(rest))]
        m.d.comb += resting.eq((end_k & (rows < PSUM_LATENCY)) | rest[0])
        m.d.sync += rest.eq(Cat(longer) | rest[1:])
        may_go_on = Signal()
        m.d.comb += may_go_on.eq(~starting_next | (self._block_ready & ~resting))
        m.d.sync += ready.eq(open_next & may_go_on)

        with m.If(accept):
            m.d.data += rows_left.eq(rows_left - 1)
        with m.If(end_k):
            m.d.data += [rows_left.eq(rows), k_left.eq(k_left - 1), first.eq(0)]
        self._take_signs(m)
        with m.If(self._take_header):
            m.d.data += [
                rows.eq(self.next_m),
                rows_left.eq(self.next_m),
                k_left.eq(self._next_header["k_tiles"]),
                first.eq(1),
            ]
        m.d.sync += [self.beat_valid.eq(accept), self.beat_swap.eq(self._swap)]
        m.d.data += [
            self.beat_first.eq(first),
            self.beat_last.eq(last_k),
            self.beat_end.eq(last_row),
        ]

    def _pairs(self, m: Module) -> None:
        """Accept the weights and the activations of one k together (output-stationary)."""
        ready = self.s_axis_act_tready
        rows = Signal.like(self.next_m, name="rows")
        k_left = Signal.like(self._next_header["k_tiles"], name="k_left")
        next_k = self._next_header["k_tiles"]
        is_open = Signal(name="tile_open")
        starting = Signal(init=1, name="tile_starts")
        accept, last_k, end_tile = flags("accept_pair", "last_k", "end_tile")
        _, weights_next = self._weight_buffer(m, accept)
        m.d.comb += [
            accept.eq(self.s_axis_act_tvalid & ready),
            last_k.eq(k_left == 1),
            end_tile.eq(accept & last_k),
            self._take_header.eq(self._header_waits & (~is_open | end_tile)),
        ]
        # A column gives one row a cycle, so a tile ends at least M cycles behind the one before:
        # it begins when the rest of those is less than its K.
        rest = Signal.like(rows)
        with m.If(rest.any()):
            m.d.sync += rest.eq(rest - 1)
        with m.If(end_tile):
            m.d.sync += rest.eq(rows - 1)
        room, open_next, starting_next = flags("room", "tile_open_next", "tile_starts_next")
        k_covers_rows, left_covers_rest = flags("k_covers_rows", "left_covers_rest")
        m.d.comb += [
            k_covers_rows.eq(next_k >= rows),
            left_covers_rest.eq(k_left >= rest),
            room.eq(Mux(end_tile, k_covers_rows, Mux(is_open, left_covers_rest, next_k >= rest))),
            open_next.eq(self._take_header | (is_open & ~end_tile)),
            starting_next.eq(Mux(accept, last_k, starting)),
        ]
        m.d.sync += [
            is_open.eq(open_next),
            starting.eq(starting_next),
            ready.eq(open_next & weights_next & (~starting_next | room)),
        ]
        with m.If(accept):
            m.d.data += k_left.eq(k_left - 1)
        self._take_signs(m)
        with m.If(self._take_header):
            m.d.data += [rows.eq(self.next_m), k_left.eq(next_k)]
        m.d.sync += self.beat_valid.eq(accept)
        m.d.data += [
            self.beat_first.eq(starting),
            self.beat_last.eq(last_k),
            self.beat_rows.eq(rows),
        ]
