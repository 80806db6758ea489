# SPDX-License-Identifier: Apache-2.0
"""For which delay modules are mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hdl import mapping
from hdl.config import AcceleratorConfig
from hdl.families import FAMILIES, Family
from hdl.gen import generate


@pytest.mark.parametrize(
    ("delay", "target"),
    [(0, 2800), (2749, 2800), (3249, 3000), (3251, 3500), (4289, 4500), (9000, 9000)],
)
def test_a_longer_path_gives_others_time(delay: int, target: int) -> None:
    assert FAMILIES["xc7"].with_path(delay).target == target


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"xc7"}))
def test_other_families_have_no_target(name: str) -> None:
    assert FAMILIES[name].with_path(9000) == FAMILIES[name]
    assert not any("abc9.D" in line for line in FAMILIES[name].script("top", True))


@pytest.mark.parametrize(("bits", "pack"), [(2, 1), (8, 1), (8, 2)])
def test_modules_are_mapped_for_the_delay_of_the_pes(
    bits: int, pack: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PEs first, for the family's own target; then the rest for theirs, if that is longer.

    Not where it leads through a multiplier block.
    """
    mult = "lut" if pack == 1 else "dsp"
    config = AcceleratorConfig(
        rows=1, cols=pack, act_bits=bits, weight_bits=bits, mult=mult, dsp_pack=pack, protect="clip"
    )
    kinds = ("trilat_pe_", "trilat_multiplier", "trilat_activation_skew")
    texts = mapping.split_modules(generate(config))
    verilog = "\n".join(text for name, text in texts.items() if name.startswith(kinds))
    mapped_for = {}
    map_group = mapping.map_group

    def record(group: list[str], *others: Any) -> dict[str, Any]:
        target = next(other.target for other in others if isinstance(other, Family))
        mapped_for.update(dict.fromkeys(group, target))
        return map_group(group, *others)

    monkeypatch.setattr(mapping, "map_group", record)
    family = FAMILIES["xc7"]
    found = mapping.map_modules(verilog, family, cache=tmp_path, jobs=1, advance=lambda done: None)
    (pe,) = (name for name in found if name.startswith("trilat_pe_"))
    ended = found[pe].chained
    assert ended is not None
    # Behind the end of a shift register, as most PEs are; the delays themselves: see test_synth.
    slowest = max(found[pe].timing.delay, ended.delay)
    assert (slowest > 3500) is (bits == 8)
    assert ended.delay > found[pe].timing.delay or pack > 1
    assert list(mapped_for) == [pe, "trilat_activation_skew"]
    assert mapped_for[pe] == family.target
    visible = slowest if pack == 1 else 0
    assert mapped_for["trilat_activation_skew"] == max(2800, 500 * round(visible / 500))
