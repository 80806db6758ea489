# SPDX-License-Identifier: Apache-2.0
"""Device fit, stream bandwidth and the energy model, by hand-made costs and by counting."""

import json
from dataclasses import replace

import pytest

from hdl.bandwidth import feed, full_tiles
from hdl.config import AcceleratorConfig
from hdl.cost import Cost, ModuleCost
from hdl.devices import DEVICES, Device, device_named, fit, largest_array, require_family
from hdl.energy import UNIT_PJ, array_register_bits, energy
from hdl.families import FAMILIES
from hdl.schedule import GemmShape, layer_cycles
from hdl.synth import main
from trilat.errors import InputError

CONFIG = AcceleratorConfig(rows=4, cols=2, act_bits=4, weight_bits=3, max_k=64, psum_depth=16)


def module(name, count, lut, ff=0, dsp=0, bram36=0.0):
    return ModuleCost(
        name=name,
        count=count,
        lut=lut,
        lut_memory=0,
        ff=ff,
        dsp=dsp,
        bram36=bram36,
        carry=0,
        delay_ns=1.0,
        critical_path="",
        vectors=1,
        cells={},
    )


def made_cost(config):
    """Return a cost that grows as an array's does: PEs, columns, lanes, edges and a constant."""
    modules = (
        module("trilat_pe_p8", config.rows * config.cols, 100, ff=60, dsp=1),
        module("trilat_os_column", config.col_groups, 200 * config.dsp_pack),
        module("trilat_lane", config.cols, 300, bram36=1.5),
        module("trilat_front", 1, 50 + 7 * config.rows, ff=200),
    )
    total = {k: sum(getattr(m, k) * m.count for m in modules) for k in ("lut", "ff", "dsp")}
    return Cost(
        family="xc7",
        device="",
        **total,
        lut_memory=0,
        bram36=1.5 * config.cols,
        bram_unit="BRAM36",
        carry=0,
        lut_equivalent=0.0,
        lut_per_dsp=1,
        lut_per_bram=1,
        delay_ns=1.0,
        critical_path="",
        modules=modules,
        changes=(),
        scope="",
        tools={},
        seconds=0.0,
    )


def made_device(**capacity):
    limits = {"lut": 10**9, "ff": 10**9, "dsp": 10**9, "bram36": 10**9, **capacity}
    return Device(name="made", family="xc7", source="", **limits)


@pytest.mark.parametrize("capacity", [{"lut": 20_000}, {"dsp": 220}, {"bram36": 9}, {"ff": 5_000}])
@pytest.mark.parametrize(
    ("start", "pack"), [((1, 1), 1), ((16, 16), 1), ((40, 64), 1), ((1, 2), 2), ((40, 32), 2)]
)
def test_the_largest_array_is_that_of_an_exhaustive_search(capacity, start, pack):
    device = made_device(**capacity)
    config = AcceleratorConfig(rows=start[0], cols=start[1], dsp_pack=pack)
    sizes = [(r, c) for r in range(1, 65) for c in range(pack, 65, pack)]
    fitting = [
        size
        for size in sizes
        if fit(made_cost(replace(config, rows=size[0], cols=size[1])), device).fits
    ]
    most = max(r * c for r, c in fitting)
    found = largest_array(config, device, made_cost)
    assert found.config.rows * found.config.cols == most
    assert fit(found.cost, device).fits
    assert found.tried <= 6


def test_the_largest_array_has_whole_groups_of_columns():
    config = AcceleratorConfig(rows=4, cols=4, dsp_pack=2)
    found = largest_array(config, made_device(lut=20_000), made_cost)
    assert found.config.dsp_pack == 2 and found.config.cols % 2 == 0
    assert found.config.rows * found.config.cols > 16


def test_no_array_fits_a_part_without_memory():
    assert largest_array(CONFIG, made_device(bram36=1), made_cost) is None


def test_shares_and_the_tightest_resource():
    taken = fit(made_cost(CONFIG), made_device(lut=10_000, dsp=8, bram36=30))
    assert taken.shares["dsp"] == 1.0
    assert taken.shares["bram36"] == 0.1
    assert taken.fits
    assert taken.tightest == "dsp"
    assert not fit(made_cost(CONFIG), made_device(dsp=7)).fits
    # A part without multipliers fits designs without, and no others.
    assert not fit(made_cost(CONFIG), made_device(dsp=0)).fits


def test_the_table_names_known_families_and_a_source_for_each_part():
    assert {device.family for device in DEVICES.values()} == set(FAMILIES)
    assert all(device.source for device in DEVICES.values())
    # Spot checks against the data sheets' tables.
    assert (DEVICES["xc7z020"].lut, DEVICES["xc7z020"].dsp, DEVICES["xc7z020"].bram36) == (
        53200,
        220,
        140,
    )
    assert (DEVICES["ice40up5k"].lut, DEVICES["ice40up5k"].bram36) == (5280, 30)
    with pytest.raises(InputError, match="did you mean xc7z020"):
        device_named("xc7z02")
    with pytest.raises(InputError, match="of family ecp5"):
        require_family(DEVICES["lfe5u-85"], "xc7")


def test_bandwidth_caps_the_cycles():
    gemm = GemmShape(m=16, k=64, n=8)
    free = feed(CONFIG, [gemm], bandwidth=None)
    assert free.cycles == free.capped_cycles == layer_cycles(CONFIG, gemm)
    total = sum(free.stream_bytes.values())
    # One byte a cycle is 0.1 GB/s at 100 MHz.
    slow = feed(CONFIG, [gemm], bandwidth=0.1, clock_mhz=100)
    assert slow.capped_cycles == total
    assert slow.slowdown == total / slow.cycles > 1
    rates = free.gigabytes_per_second(100)
    assert sum(rates.values()) == pytest.approx(total / free.cycles * 0.1)
    enough = feed(CONFIG, [gemm], bandwidth=sum(rates.values()) * 1.001, clock_mhz=100)
    assert enough.capped_cycles == enough.cycles
    assert full_tiles(CONFIG).m == CONFIG.max_m


def test_energy_counts_what_is_done():
    gemm = GemmShape(m=16, k=64, n=8)
    result = energy(CONFIG, [gemm])
    macs = 16 * 64 * 8
    bits = CONFIG.psum_bits(3)
    assert result.mac == pytest.approx(macs * (0.2 * 12 / 64 + 0.1 * bits / 32) / UNIT_PJ)
    cycles = layer_cycles(CONFIG, gemm)
    assert result.register == pytest.approx(
        cycles * array_register_bits(CONFIG) * 0.1 / 32 / UNIT_PJ
    )
    parts = result.mac + result.register + result.buffer + result.stream
    assert result.total == pytest.approx(parts)
    quiet = energy(CONFIG, [gemm], activity=0.5)
    assert quiet.mac == result.mac / 2
    assert (quiet.buffer, quiet.stream) == (result.buffer, result.stream)
    # Narrower words cost less of everything.
    wide = energy(replace(CONFIG, act_bits=8, weight_bits=8), [gemm])
    assert wide.mac > result.mac
    assert wide.stream > result.stream
    with pytest.raises(InputError, match="activity"):
        energy(CONFIG, [gemm], activity=3)


def test_register_bits_of_one_pe_by_hand():
    one = AcceleratorConfig(rows=1, cols=1, act_bits=4, weight_bits=3, max_k=4, psum_depth=16)
    # Activation, two weights, product and sum, and a stage of each skew.
    assert array_register_bits(one) == 5 + 2 * 3 + 2 * one.product_bits + 5 + 3
    # Two columns in step have one activation register, and no deskew.
    two = replace(one, cols=2, mult="dsp", dsp_pack=2)
    assert array_register_bits(two) == 5 + 2 * (2 * 3 + 2 * one.product_bits) + 5 + 2 * 3
    # Where sums stay, a weight, a product and a sum of each column.
    kept = replace(two, dataflow="os", cols=4)
    of_a_group = 5 + 2 * (3 + kept.product_bits + kept.acc_bits)
    assert array_register_bits(kept) == 2 * of_a_group + 5 + 2 * 3 + 2 * 2 * 3


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--device", "xc7z02"], "did you mean xc7z020"),
        (["--device", "lfe5u-85", "--family", "xc7"], "of family ecp5"),
        (["--bandwidth", "0"], "--bandwidth must be positive"),
        (["--clock", "-1"], "--clock must be positive"),
        (["--pnr", "--family", "xc7"], "no place and route for family"),
        (["--pnr", "--family", "ecp5", "--seeds", "0"], "--seeds must be 1 to 1000"),
        (["--pnr", "--family", "ecp5", "--target", "0"], "the target clock must be 1 to 2000 MHz"),
        (["--vivado", "DIR", "--part", "nonsense"], "not a Vivado part"),
    ],
)
def test_bad_flags_exit_with_2_and_write_nothing(flags, what, tmp_path, capsys):
    flags = [str(tmp_path / "out") if flag == "DIR" else flag for flag in flags]
    assert main([*flags, "--cache", str(tmp_path / "cache"), "--json", str(tmp_path / "j")]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_prints_fit_and_streams(tmp_path, capsys, monkeypatch):
    asked = []

    def made(config, **settings):
        asked.append(settings["family"])
        return made_cost(config)

    monkeypatch.setattr("hdl.synth.synthesize", made)
    file = tmp_path / "cost.json"
    assert main(["--device", "xc7z020", "--bandwidth", "0.1", "--json", str(file)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    # 256 multipliers of 220.
    assert "does not fit" in printed
    assert "116.4 % DSP" in printed
    assert "largest array with these settings" in printed
    assert "0.1 GB/s cannot feed it" in printed
    data = json.loads(file.read_text())
    assert data["device"]["name"] == "xc7z020"
    assert set(asked) == {"xc7"}
