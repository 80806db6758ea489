# SPDX-License-Identifier: Apache-2.0
"""One faulty inference by brute force: whole integer forwards in NumPy, one fault list at a time.

Nothing of `faultinj` computes here, and no shortcut is taken: every layer is summed from its codes
in int64, and output tiles with register faults run cycle by cycle (`clocked_array`). Faults are
read from their dataclasses.
"""

from __future__ import annotations

import numpy as np
from clocked_array import clocked

from faultinj.faults import MemoryFault, RegisterFault, WeightFault
from hdl.config import AcceleratorConfig
from hdl.tile import TileJob
from quant.network import Add, AvgPool, Flatten, Gemm, IntegerNetwork, MaxPool


def bits_changed(word: int, fault, width: int, signed: bool) -> int:
    text = list(format(int(word) & ((1 << width) - 1), f"0{width}b")[::-1])
    for bit in set(fault.bits):
        text[bit] = {"flip": "10"[int(text[bit])], "stuck0": "0", "stuck1": "1"}[fault.kind]
    value = int("".join(text[::-1]), 2)
    return value - (1 << width) if signed and value >> (width - 1) else value


def half_even(number: np.ndarray, divisor: int) -> np.ndarray:
    floor = number // divisor
    twice = 2 * (number - floor * divisor)
    return floor + ((twice > divisor) | ((twice == divisor) & (floor % 2 == 1)))


def windows(image: np.ndarray, kernel, stride, padding, dilation, fill: int) -> np.ndarray:
    """(C, H', W', kh, kw) of an image (C, H, W)."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = kernel, stride, padding, dilation
    padded = np.pad(image, ((0, 0), (ph, ph), (pw, pw)), constant_values=fill)
    spans = ((kh - 1) * dh + 1, (kw - 1) * dw + 1)
    view = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(1, 2))
    return view[:, ::sh, ::sw, ::dh, ::dw]


def run(network: IntegerNetwork, config: AcceleratorConfig, protection, image, faults):
    """(logits int64, {tensor: codes}) of one image (C, H, W) under faults."""
    values = {"input": image.astype(np.int64)}

    def store(name: str) -> None:
        fmt = network.format_of(name)
        for fault in faults:
            if isinstance(fault, MemoryFault) and fault.tensor == name:
                flat = values[name].reshape(-1)
                flat[fault.element] = bits_changed(flat[fault.element], fault, fmt.bits, fmt.signed)

    store("input")
    rows_sent = 0  # by the array since its reset ahead of the inference
    for node in network.nodes:
        source = values[node.inputs[0]]
        fmts = [network.format_of(name) for name in node.inputs]
        if isinstance(node, Gemm):
            out = gemm(network, config, protection, node, source, faults, rows_sent)
            blocks = node.groups * -(-(len(node.bias) // node.groups) // config.cols)
            rows_sent += blocks * out.shape[1] * out.shape[2]
        elif isinstance(node, MaxPool):
            lowest = np.iinfo(np.int64).min
            out = windows(source, node.kernel, node.stride, node.padding, (1, 1), lowest)
            out = out.max(axis=(3, 4))
        elif isinstance(node, AvgPool):
            total = windows(source, node.kernel, node.stride, node.padding, (1, 1), 0)
            exponent = fmts[0].exponent - node.output.exponent
            number = total.sum(axis=(3, 4)) << max(exponent, 0)
            divisor = node.kernel[0] * node.kernel[1] << max(-exponent, 0)
            out = np.clip(half_even(number, divisor), node.lo, node.hi)
        elif isinstance(node, Flatten):
            out = source.reshape(-1, 1, 1)
        else:
            assert isinstance(node, Add) or len(node.inputs) == 1
            finest = min(f.exponent for f in fmts)
            total = sum(
                values[n] << (f.exponent - finest) for n, f in zip(node.inputs, fmts, strict=True)
            )
            up = finest - node.output.exponent
            total = total << max(up, 0)
            out = np.clip(half_even(total, 1 << max(-up, 0)), node.lo, node.hi)
        values[node.name] = out.copy()
        if isinstance(node, Gemm) and node.output is not None:
            store(node.name)
    return values[network.nodes[-1].name].reshape(-1), values


def gemm(network, config, protection, node, source, faults, rows_sent):
    fmt = network.format_of(node.inputs[0])
    weight = node.weight.astype(np.int64)
    for fault in faults:
        if isinstance(fault, WeightFault) and fault.layer == node.name:
            flat = weight.reshape(-1)
            flat[fault.element] = bits_changed(
                flat[fault.element], fault, network.weight_bits, True
            )
    lo_in, hi_in = fmt.lo, fmt.hi
    if protection.checks_input:
        bound = protection.bounds.tensors[node.inputs[0]]
        lo_in, hi_in = max(min(bound.lo, 0), lo_in), min(max(bound.hi, 0), hi_in)
    seen = np.clip(source, lo_in, hi_in)
    if protection.kind == "zero":
        seen = np.where((source < lo_in) | (source > hi_in), 0, source)
    taps = windows(seen, weight.shape[2:], node.stride, node.padding, node.dilation, 0)
    out_channels, per_in = weight.shape[:2]
    per_out = out_channels // node.groups
    _, rows, cols = taps.shape[:3]
    lo, hi = np.full(out_channels, node.lo), np.full(out_channels, node.hi)
    lo_bound, hi_bound = np.zeros((2, out_channels), dtype=bool)
    shift = np.zeros(out_channels, np.int64)
    factor = np.ones(out_channels, np.int64) if node.multiplier is None else node.multiplier
    if node.output is not None:
        shift = network.shift(node)
        if protection.checks_output:
            bound = protection.bounds.tensors[node.name]
            low, high = bound.channel_lo, bound.channel_hi
            if protection.granularity == "layer":
                low, high = np.full_like(low, bound.lo), np.full_like(high, bound.hi)
            lo_bound, hi_bound = low > lo, high < hi
            lo, hi = np.maximum(lo, low), np.minimum(hi, high)
    out = np.zeros((out_channels, rows * cols), np.int64)
    number = rows_of_layer = 0
    mine = [f for f in faults if isinstance(f, RegisterFault) and f.layer in (node.name, None)]
    for group in range(node.groups):
        part = taps[group * per_in : (group + 1) * per_in]
        acts = part.transpose(1, 2, 3, 4, 0).reshape(rows * cols, -1)
        channels = slice(group * per_out, (group + 1) * per_out)
        matrix = weight[channels].transpose(2, 3, 1, 0).reshape(-1, per_out)
        total = acts @ matrix + node.bias[channels]
        if node.output is None:
            out[channels] = total.T
        else:
            code = np.stack(
                [
                    half_even(total[:, n] * f, 1 << int(s))
                    for n, (f, s) in enumerate(zip(factor[channels], shift[channels], strict=True))
                ]
            )
            low, high = code < lo[channels, None], code > hi[channels, None]
            out[channels] = np.clip(code, lo[channels, None], hi[channels, None])
            if protection.kind == "zero":
                bad = (low & lo_bound[channels, None]) | (high & hi_bound[channels, None])
                out[channels] = np.where(bad, 0, out[channels])
        if not mine:
            continue
        depth = -(-acts.shape[1] // config.k_step) * config.k_step
        padded = np.pad(acts, ((0, 0), (0, depth - acts.shape[1])))
        for n0 in range(0, per_out, config.cols):
            for m0 in range(0, rows * cols, config.max_m):
                here = [f for f in mine if f.tile in (number, None)]
                m1, n1 = min(m0 + config.max_m, rows * cols), min(n0 + config.cols, per_out)
                before = rows_of_layer
                number, rows_of_layer = number + 1, rows_of_layer + m1 - m0
                if not here:
                    continue
                place = slice(group * per_out + n0, group * per_out + n1)

                def wide(values, place=place, count=n1 - n0):
                    full = np.zeros(config.cols, dtype=values.dtype)
                    full[:count] = values[place]
                    return full

                tile_weights = np.zeros((depth, config.cols), np.int64)
                tile_weights[: acts.shape[1], : n1 - n0] = matrix[:, n0:n1]
                job = TileJob(
                    acts=padded[m0:m1], weights=tile_weights, bias=wide(node.bias),
                    shift=wide(shift), lo=wide(lo), hi=wide(hi), lo_is_bound=wide(lo_bound),
                    hi_is_bound=wide(hi_bound), signed_in=fmt.signed,
                    signed_out=node.output is None or node.output.signed,
                    raw=node.output is None, input_lo=lo_in, input_hi=hi_in,
                    multiplier=wide(factor),
                )  # fmt: skip
                # A fault of one tile, or of one layer, has its reset ahead of just that.
                runs = {0 if f.tile is not None else before + rows_sent * (f.layer is None)
                        for f in here if f.register == "ring"}  # fmt: skip
                assert len(runs) <= 1, "words of the ring are counted from one reset"
                tile, _ = clocked(config, job, job.acts, here, *runs)
                out[place, m0:m1] = tile[:, : n1 - n0].T
    return out.reshape(out_channels, rows, cols)
