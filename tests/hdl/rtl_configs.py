# SPDX-License-Identifier: Apache-2.0
"""The accelerators that are simulated."""

from __future__ import annotations

from hdl.config import AcceleratorConfig

# Square, wide, tall, single; every width from 2 to 8; every kind and place of protection; K tiles
# shorter than the psum latency; 33-bit sums; both kinds of multiplier.
CONFIGS = {
    "5x3": AcceleratorConfig(rows=5, cols=3, max_k=40, psum_depth=9, protect="clip"),
    "1x1": AcceleratorConfig(rows=1, cols=1, act_bits=2, weight_bits=8, max_k=40, psum_depth=5),
    "8x8": AcceleratorConfig(rows=8, cols=8, weight_bits=4, psum_depth=16, protect="zero"),
    "1x8": AcceleratorConfig(
        rows=1, cols=8, act_bits=4, weight_bits=2, max_k=40, psum_depth=5,
        protect="zero", protect_place="output",
    ),
    "3x5": AcceleratorConfig(
        rows=3, cols=5, act_bits=4, weight_bits=5, max_k=60, psum_depth=7,
        protect="clip", protect_place="input",
    ),
    "2x2": AcceleratorConfig(rows=2, cols=2, max_k=65536, psum_depth=2, mult="lut"),
    "4x1": AcceleratorConfig(
        rows=4, cols=1, act_bits=7, weight_bits=3, max_k=65536, psum_depth=4, mult="dsp"
    ),
    # Two and three columns to a multiplier block, a single group of them among these.
    "4x6": AcceleratorConfig(
        rows=4, cols=6, max_k=60, psum_depth=6, protect="clip", mult="dsp", dsp_pack=2
    ),
    "1x3": AcceleratorConfig(
        rows=1, cols=3, act_bits=4, weight_bits=3, max_k=40, psum_depth=5, mult="dsp", dsp_pack=3
    ),
    "os 5x3": AcceleratorConfig(dataflow="os", rows=5, cols=3, max_k=40, protect="clip"),
    "os 1x1": AcceleratorConfig(
        dataflow="os", rows=1, cols=1, act_bits=2, weight_bits=8, max_k=65535
    ),
    "os 8x8": AcceleratorConfig(
        dataflow="os", rows=8, cols=8, act_bits=4, weight_bits=4, max_k=30, protect="zero"
    ),
    "os 1x8": AcceleratorConfig(
        dataflow="os", rows=1, cols=8, act_bits=8, weight_bits=2, max_k=40,
        protect="zero", protect_place="output",
    ),
    "os 18x1": AcceleratorConfig(
        dataflow="os", rows=18, cols=1, act_bits=3, weight_bits=5, max_k=40,
        protect="clip", protect_place="input",
    ),
    "os 3x6 p": AcceleratorConfig(
        dataflow="os", rows=3, cols=6, max_k=60, protect="clip", mult="dsp", dsp_pack=2
    ),
    "os 5x8 p": AcceleratorConfig(
        dataflow="os", rows=5, cols=8, act_bits=3, weight_bits=3, max_k=40, protect="zero",
        mult="dsp", dsp_pack=4,
    ),
    "os 1x3 p": AcceleratorConfig(
        dataflow="os", rows=1, cols=3, act_bits=4, weight_bits=3, max_k=40, mult="dsp",
        dsp_pack=3, act_sign="unsigned", bounds="layer",
    ),
    # Fixed signs, and bounds per layer.
    "3x4 u": AcceleratorConfig(
        rows=3, cols=4, act_bits=5, weight_bits=8, max_k=40, psum_depth=6, act_sign="unsigned",
        protect="clip", bounds="layer", mult="lut",
    ),
    "4x2 s": AcceleratorConfig(
        rows=4, cols=2, act_bits=6, weight_bits=4, max_k=40, psum_depth=5, act_sign="signed",
        protect="zero", bounds="layer", mult="lut",
    ),
    "2x4 s": AcceleratorConfig(
        rows=2, cols=4, max_k=40, psum_depth=5, act_sign="signed", mult="dsp", dsp_pack=2,
        bounds="layer",
    ),
    "1x1 u": AcceleratorConfig(
        rows=1, cols=1, act_bits=2, weight_bits=2, max_k=40, psum_depth=3, act_sign="unsigned",
        protect="zero", protect_place="output", bounds="layer",
    ),
    "os 3x2 u": AcceleratorConfig(
        dataflow="os", rows=3, cols=2, act_bits=4, weight_bits=6, max_k=40, act_sign="unsigned",
        protect="zero", bounds="layer", mult="lut",
    ),
    "os 2x3 s": AcceleratorConfig(
        dataflow="os", rows=2, cols=3, max_k=40, act_sign="signed", protect="clip", mult="dsp",
    ),
    # Sums that are multiplied: one block and two, at the border and far above it.
    "4x3 m": AcceleratorConfig(
        rows=4, cols=3, max_k=60, psum_depth=6, protect="clip", requant="mult"
    ),
    "2x3 m": AcceleratorConfig(
        rows=2, cols=3, max_k=65536, psum_depth=5, protect="zero", requant="mult", bounds="layer"
    ),
    "1x1 m": AcceleratorConfig(
        rows=1, cols=1, act_bits=2, weight_bits=2, max_k=2, psum_depth=3, requant="mult"
    ),
    "5x2 m": AcceleratorConfig(
        rows=5, cols=2, act_bits=4, weight_bits=4, max_k=125, psum_depth=7, requant="mult",
        protect="zero", protect_place="output",
    ),
    "os 3x4 m": AcceleratorConfig(
        dataflow="os", rows=3, cols=4, act_bits=4, weight_bits=6, max_k=200, requant="mult",
        protect="clip", act_sign="signed",
    ),
    "os 2x1 m": AcceleratorConfig(
        dataflow="os", rows=2, cols=1, max_k=40, requant="mult", bounds="layer", protect="clip"
    ),
}  # fmt: skip
PROBED = (CONFIGS["3x5"], CONFIGS["4x6"], CONFIGS["os 5x3"], CONFIGS["os 3x6 p"])
