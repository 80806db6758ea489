# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quant.fault_map import KINDS, FaultMap, MemoryGeometry
from quant.weight_memory import WeightMapping, faults_of_weights, split_layers
from trilat.errors import InputError


def some_map(geometry: MemoryGeometry, share: float, seed: int = 0) -> FaultMap:
    """Return a map of all kinds, drawn cell by cell."""
    rng = np.random.default_rng(seed)
    cells = np.array([c for c in range(geometry.cells) if rng.random() < share], dtype=np.int64)
    return FaultMap(
        geometry=geometry,
        cells=cells,
        kinds=rng.integers(0, 3, len(cells)).astype(np.uint8),
        thresholds=rng.random(len(cells)) * 0.5,
        rate=0.5,
        origin={"seed": seed},
    )


def read_bit_by_bit(
    fault_map: FaultMap, codes: list[int], bits: int, mapping: WeightMapping
) -> list[int]:
    """Write every weight to its cells and read it back, one bit at a time, in plain Python."""
    geometry = fault_map.geometry
    faulty = dict(zip(fault_map.cells.tolist(), fault_map.kinds.tolist(), strict=True))
    per_word = geometry.bits // mapping.pitch
    result = []
    for number, code in enumerate(codes):
        slot = mapping.offset + number
        if mapping.tiled:
            slot %= geometry.words * per_word
        first = slot // per_word * geometry.bits + slot % per_word * mapping.pitch
        word = ""
        for bit in range(bits):
            value = (code % (1 << bits)) // (1 << bit) % 2
            kind = faulty.get(first + bit)
            if kind is not None:
                value = {"flip": 1 - value, "stuck0": 0, "stuck1": 1}[KINDS[kind]]
            word = str(value) + word
        unsigned = int(word, 2)
        result.append(unsigned - (1 << bits) if word[0] == "1" else unsigned)
    return result


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize(
    "geometry, mapping, weights",
    [
        (MemoryGeometry(words=1, bits=8), WeightMapping(), 1),
        (MemoryGeometry(words=37, bits=8), WeightMapping(), 37),
        (MemoryGeometry(words=40, bits=8, words_per_row=4), WeightMapping(offset=3), 37),
        (MemoryGeometry(words=7, bits=8), WeightMapping(tiled=True), 50),
        (MemoryGeometry(words=7, bits=8), WeightMapping(tiled=True, offset=12), 50),
        (MemoryGeometry(words=70, bits=8), WeightMapping(tiled=True, offset=60), 30),
        (MemoryGeometry(words=9, bits=37), WeightMapping(), 33),
        (MemoryGeometry(words=3, bits=64), WeightMapping(tiled=True, offset=5, pitch=10), 31),
    ],
)
def test_reading_agrees_with_a_walk_over_all_bits(
    geometry: MemoryGeometry, mapping: WeightMapping, weights: int, bits: int
) -> None:
    rng = np.random.default_rng(bits)
    codes = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), weights).astype(np.int8)
    for share in (0.0, 0.1, 0.6, 1.0):
        fault_map = some_map(geometry, share, seed=int(10 * share))
        faults = faults_of_weights(fault_map, weights=weights, bits=bits, mapping=mapping)
        assert (np.diff(faults.index) > 0).all()
        expected = read_bit_by_bit(fault_map, codes.tolist(), bits, mapping)
        assert faults.read(codes).tolist() == expected
        parts = [faults.part(a, b) for a, b in ((0, weights // 3), (weights // 3, weights))]
        joined = [
            part.read(codes[a : a + part.weights])
            for a, part in zip((0, weights // 3), parts, strict=True)
        ]
        assert np.concatenate(joined).tolist() == expected


def test_weights_below_eight_bits_meet_the_same_cells() -> None:
    """At one pitch, the faults of a narrow code are those of a wide one's lower bits."""
    fault_map = some_map(MemoryGeometry(words=64, bits=8), 0.3)
    wide, narrow = (
        faults_of_weights(fault_map, weights=64, bits=bits, mapping=WeightMapping())
        for bits in (8, 4)
    )
    low = {int(i): int(m) & 7 for i, m in zip(wide.index, wide.invert, strict=True)}
    for index, mask in zip(narrow.index, narrow.invert, strict=True):
        assert int(mask) & 7 == low[int(index)]


@pytest.mark.parametrize("interleaved", [False, True])
def test_cells_have_places_of_their_own(interleaved: bool) -> None:
    geometry = MemoryGeometry(words=12, bits=5, words_per_row=3, interleaved=interleaved)
    row, column = geometry.row_and_column(np.arange(geometry.cells))
    assert len(set(zip(row.tolist(), column.tolist(), strict=True))) == geometry.cells
    assert (row.max(), column.max()) == (3, geometry.columns - 1) == (3, 14)
    # Word 4, bit 2: row 1, second word of it.
    place = geometry.row_and_column(np.array([4 * 5 + 2]))
    assert (int(place[0][0]), int(place[1][0])) == ((1, 2 * 3 + 1) if interleaved else (1, 5 + 2))


def test_a_chip_file_holds_everything(tmp_path: Path) -> None:
    geometry = MemoryGeometry(words=30, bits=8, words_per_row=5, interleaved=False)
    fault_map = some_map(geometry, 0.2)
    fault_map.save(tmp_path / "chip.safetensors")
    loaded = FaultMap.load(tmp_path / "chip.safetensors")
    assert loaded.geometry == geometry
    assert (loaded.rate, loaded.origin) == (0.5, {"seed": 0})
    for name in ("cells", "kinds", "thresholds"):
        assert np.array_equal(getattr(loaded, name), getattr(fault_map, name))


def test_a_lower_rate_has_a_subset_of_the_faults() -> None:
    fault_map = some_map(MemoryGeometry(words=30, bits=8), 0.5)
    lower = fault_map.at(0.2)
    assert set(lower.cells) == set(fault_map.cells[fault_map.thresholds <= 0.2])
    assert (lower.rate, len(fault_map.at(0.0)), len(fault_map.at(0.5))) == (0.2, 0, len(fault_map))
    with pytest.raises(InputError, match=r"complete up to a rate of 0\.2, 0\.3 was asked for"):
        lower.at(0.3)
    with pytest.raises(InputError, match=r"probability in 0\.\.1, not 1\.5"):
        lower.at(1.5)


def test_bad_chip_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "chip.safetensors"
    with pytest.raises(InputError, match="no such chip file"):
        FaultMap.load(path)
    some_map(MemoryGeometry(words=30, bits=8), 0.5).save(path)
    whole = path.read_bytes()
    arrays = load_file(path)
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="no chip file, or truncated"):
            FaultMap.load(path)
    save_file(arrays, path)
    with pytest.raises(InputError, match="without a fault map"):
        FaultMap.load(path)
    good = {
        "version": 1,
        "geometry": {"words": 30, "bits": 8, "words_per_row": 1, "interleaved": True},
        "rate": 0.5,
        "origin": {},
    }
    shuffled = arrays | {"cells": arrays["cells"][::-1].copy()}
    for header, tensors, message in (
        (good | {"version": 2}, arrays, "version 2; version 1 is read"),
        ({}, arrays, "unreadable header"),
        (good | {"geometry": {}}, arrays, "damaged"),
        (good | {"geometry": {"words": 3, "bits": 8}}, arrays, "outside its 24 cells"),
        (good | {"rate": 0.01}, arrays, "thresholds must be in 0..0.01"),
        (good | {"rate": -1.0}, arrays, "probability"),
        (good, {"cells": arrays["cells"]}, "damaged"),
        (good, shuffled, "ascending"),
        (good, arrays | {"kinds": arrays["kinds"] + np.uint8(3)}, r"kinds must be 0\.\.2"),
        (good, arrays | {"kinds": arrays["kinds"].astype(np.int64)}, "kinds must be uint8"),
    ):
        save_file(tensors, path, metadata={"trilat.chip": json.dumps(header)})
        with pytest.raises(InputError, match=message):
            FaultMap.load(path)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"words": 0, "bits": 8}, "words must be an integer above 0, not 0"),
        ({"words": 8, "bits": 2.5}, "bits must be an integer above 0"),
        ({"words": 8, "bits": 8, "words_per_row": 3}, "words_per_row must divide the 8 words"),
        ({"words": 1 << 40, "bits": 8}, "too large"),
    ],
)
def test_sizes_that_are_no_memory(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MemoryGeometry(**values)


@pytest.mark.parametrize(
    "geometry, mapping, message",
    [
        ((30, 8), {}, "has 30 slots of 8 bits and cannot hold 31 weights from slot 0"),
        ((40, 8), {"offset": 10}, "cannot hold 31 weights from slot 10"),
        ((40, 4), {}, "do not fit words of 4 bits"),
        ((40, 8), {"pitch": 4}, "weights of 8 bits in slots of 4"),
    ],
)
def test_a_memory_that_cannot_hold_the_weights(
    geometry: tuple[int, int], mapping: dict, message: str
) -> None:
    words, bits = geometry
    fault_map = some_map(MemoryGeometry(words=words, bits=bits), 0.1)
    with pytest.raises(InputError, match=message):
        faults_of_weights(fault_map, weights=31, bits=8, mapping=WeightMapping(**mapping))


@pytest.mark.parametrize("values", [{"offset": -1}, {"pitch": 1}, {"pitch": 65}])
def test_mappings_that_are_none(values: dict) -> None:
    with pytest.raises(InputError, match="must be"):
        WeightMapping(**values)


def test_layers_are_views_of_the_whole() -> None:
    values = np.arange(10, dtype=np.int8)
    first, second = split_layers(values, [(2, 3), (4,)])
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]] and second.tolist() == [6, 7, 8, 9]
    values[0] = 7
    assert first[0, 0] == 7
