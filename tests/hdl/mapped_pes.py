# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from hdl.config import AcceleratorConfig
from hdl.families import Family
from hdl.gen import generate
from hdl.mapping import MappedModule, map_modules, split_modules


def map_pes(config: AcceleratorConfig, family: Family, cache: Path) -> dict[str, MappedModule]:
    """Map the PEs of a configuration alone, each netlist checked against its RTL."""
    texts = split_modules(generate(config))
    inside = ("trilat_multiplier", "trilat_accumulator")
    kinds = [name for name in texts if name.startswith("trilat_pe_") or name in inside]
    verilog = "\n".join(texts[name] for name in kinds)
    mapped = map_modules(verilog, family, cache=cache, jobs=1, advance=lambda done: None)
    # A PE is mapped as one with its multiplier.
    assert set(mapped) == {name for name in kinds if name.startswith("trilat_pe_")}
    return mapped
