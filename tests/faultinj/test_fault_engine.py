# SPDX-License-Identifier: Apache-2.0
"""The fault engine against brute force, with every shortcut on and off, and as an instrument."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from brute_force import run as brute_run
from fault_lists import NETWORKS, codes_of, design, random_experiments

from faultinj.engine import EngineOptions, run_faults
from faultinj.faults import MemoryFault, RegisterFault, WeightFault, from_json, to_json
from faultinj.golden import Design, golden_run
from quant import engine
from quant.network import Gemm
from trilat.errors import InputError

FIELDS = ("golden_top1", "faulty_top1", "logit_change", "violations", "bounded")


def assert_same(one, other, index=slice(None)):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name)[index], getattr(other, name), name)


@pytest.mark.parametrize("make", list(NETWORKS))
@pytest.mark.parametrize(
    "kind,array",
    [
        ("none", {}),
        ("clip", {"dataflow": "os", "pack": 2}),
        ("zero", {"requant": "mult"}),
        ("zero", {"dataflow": "os", "bounds": "layer"}),
    ],
)
def test_equal_to_brute_force(make, kind, array):
    network, config, codes, protection = design(make, kind, **array)
    experiments = random_experiments(network, config, len(codes), 30, seed=len(make))
    done = run_faults(network, config, codes, experiments, protection=protection)
    for number, experiment in enumerate(experiments):
        image = codes[experiment[0].image].numpy()
        golden, _ = brute_run(network, config, protection, image, ())
        faulty, _ = brute_run(network, config, protection, image, experiment)
        assert done.logit_change[number] == np.abs(faulty - golden).max(), experiment
        assert done.faulty_top1[number] == int(np.argmax(faulty)), experiment
        assert done.golden_top1[number] == int(np.argmax(golden)), experiment
    assert 0 < np.count_nonzero(done.logit_change) < len(experiments)


@pytest.mark.parametrize("dataflow", ["ws", "os"])
def test_least_products_of_tiles_side_by_side(dataflow):
    """Blocks of columns make what no product of codes is, in all tiles of a layer at once."""
    network, config, codes, protection = design("plain", "none", dataflow=dataflow, pack=2)
    weight = "pe_weight" if dataflow == "os" else "weight_active"
    widest = max(network.gemms(), key=lambda node: len(node.bias) // node.groups)
    assert len(widest.bias) > config.cols
    experiment = tuple(
        RegisterFault(
            layer=widest.name, image=0, tile=None, register=register, row=0, col=col, cycle=None,
            bits=bits, kind=kind,
        )
        for register, col, top in (("pe_activation", 0, 8), (weight, 0, 7), (weight, 2, 7))
        for kind, bits in (("stuck1", (top,)), ("stuck0", tuple(range(top))))
    )  # fmt: skip
    done = run_faults(network, config, codes, [experiment], protection=protection)
    golden, _ = brute_run(network, config, protection, codes[0].numpy(), ())
    faulty, _ = brute_run(network, config, protection, codes[0].numpy(), experiment)
    assert done.logit_change[0] == np.abs(faulty - golden).max() > 0
    assert done.faulty_top1[0] == int(np.argmax(faulty))


OFF = {
    "restart": EngineOptions(restart=False),
    "window": EngineOptions(window=False),
    "drop": EngineOptions(drop=False),
    "int8": EngineOptions(int8=False),
    "all": EngineOptions(restart=False, window=False, drop=False, int8=False),
}


@pytest.mark.parametrize("make", list(NETWORKS))
@pytest.mark.parametrize("kind", ["none", "clip", "zero"])
def test_every_shortcut_can_be_off(make, kind):
    network, config, codes, protection = design(make, kind)
    experiments = random_experiments(network, config, len(codes), 50, seed=5)
    done = run_faults(network, config, codes, experiments, protection=protection)
    for options in OFF.values():
        again = run_faults(
            network, config, codes, experiments, protection=protection, options=options
        )
        assert_same(again, done)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_and_the_golden_run(bits):
    for make in NETWORKS:
        network, config, codes, protection = design(make, "clip", bits=bits)
        want = engine.forward(network, codes)
        for int8 in (True, False):
            golden = golden_run(Design(network, int8=int8), codes, batch=3)
            for name, table in golden.tables.items():
                assert torch.equal(table.maps().permute(0, 3, 1, 2), want[name]), name
            assert torch.equal(golden.logits, want[network.nodes[-1].name])
        experiments = random_experiments(network, config, len(codes), 24, seed=bits)
        done = run_faults(network, config, codes, experiments, protection=protection)
        slow = run_faults(
            network, config, codes, experiments, protection=protection, options=OFF["all"]
        )
        assert_same(slow, done)


@pytest.mark.parametrize("make", list(NETWORKS))
def test_the_top1_bound_is_right(make):
    network, config, codes, _ = design(make, "none")
    experiments = random_experiments(network, config, len(codes), 200, seed=2)
    done = run_faults(network, config, codes, experiments)
    proven = run_faults(network, config, codes, experiments, options=EngineOptions(top1_bound=True))
    some = proven.bounded
    assert 0 < some.sum() < len(experiments), make
    assert not done.bounded.any()
    assert (done.faulty_top1[some] == done.golden_top1[some]).all()
    np.testing.assert_array_equal(proven.faulty_top1, done.faulty_top1)
    np.testing.assert_array_equal(proven.logit_change[~some], done.logit_change[~some])
    with pytest.raises(InputError, match="needs a design without protection"):
        run_faults(
            network, config, codes, experiments, protection=design(make, "clip")[3],
            options=EngineOptions(top1_bound=True),
        )  # fmt: skip


def test_order_memory_and_replay_change_nothing():
    network, config, codes, protection = design("residual", "zero")
    experiments = random_experiments(network, config, len(codes), 60, seed=3)
    done = run_faults(network, config, codes, experiments, protection=protection)
    order = np.random.default_rng(0).permutation(len(experiments))
    shuffled = run_faults(
        network, config, codes, [experiments[i] for i in order], protection=protection
    )
    assert_same(done, shuffled, order)
    small = Design(network, protection).bytes_per_image * 4
    assert_same(
        run_faults(network, config, codes, experiments, protection=protection, memory_bytes=small),
        done,
    )
    with pytest.raises(InputError, match="one image's golden tensors take"):
        run_faults(network, config, codes, experiments, protection=protection, memory_bytes=100)
    for number in range(0, 60, 15):
        one = run_faults(network, config, codes, [experiments[number]], protection=protection)
        assert one.logit_change[0] == done.logit_change[number]


def test_nothing_is_changed():
    network, config, codes, protection = design("residual", "clip")
    kept = codes.clone(), network.content_hash()
    prepared = Design(network, protection, cols=config.cols)
    golden = golden_run(prepared, codes)
    tables = {name: table.rows.clone() for name, table in golden.tables.items()}
    experiments = random_experiments(network, config, len(codes), 100, seed=1)
    run_faults(network, config, codes, experiments, protection=protection)
    assert torch.equal(codes, kept[0]) and network.content_hash() == kept[1]
    again = golden_run(prepared, codes)
    for name, rows in tables.items():
        assert torch.equal(golden.tables[name].rows, rows)
        assert torch.equal(again.tables[name].rows, rows)


def test_a_permanent_fault_meets_every_tile_of_every_layer():
    network, config, codes, protection = design("plain", "none")
    for register in ("product", "psum", "pe_activation", "weight_active"):
        everywhere = RegisterFault(
            layer=None, image=1, tile=None, register=register, row=1, col=1, bits=(6,),
            cycle=None, kind="stuck1",
        )  # fmt: skip
        assert from_json(to_json(everywhere)) == everywhere
        prepared = Design(network, protection, cols=config.cols)
        each = []
        for node in network.gemms():
            rows, cols = prepared.shapes[node.name][1:]
            blocks = -(-(len(node.bias) // node.groups) // config.cols) * node.groups
            for tile in range(blocks * -(-rows * cols // config.max_m)):
                fields = {**everywhere.__dict__, "layer": node.name, "tile": tile}
                each.append(RegisterFault(**fields))
        one, all_of_them = (
            run_faults(network, config, codes, [faults]) for faults in ((everywhere,), each)
        )
        assert one.logit_change[0] > 0
        assert_same(one, all_of_them)


@pytest.mark.parametrize(
    "fault,message",
    [
        (MemoryFault(tensor="conv9", image=0, element=0, bits=(0,)), "no tensor 'conv9'"),
        (MemoryFault(tensor="fc2", image=0, element=0, bits=(0,)), "raw logits"),
        (MemoryFault(tensor="conv1", image=0, element=9999, bits=(0,)), "codes 0..383"),
        (MemoryFault(tensor="conv1", image=0, element=0, bits=(8,)), "bits 0..7, not 8"),
        (WeightFault(layer="conv1", image=0, element=54, bits=(0,)), "weights 0..53"),
        (WeightFault(layer="conv1", image=0, element=0, bits=(8,)), "bits 0..7"),
        (WeightFault(layer="pool1", image=0, element=0, bits=(0,)), "no layer of the array"),
    ],
)
def test_bad_faults_are_named(fault, message):
    network, config, codes, _ = design("plain", "none")
    with pytest.raises(InputError, match=message):
        run_faults(network, config, codes, [(fault,)])


def test_bad_experiments_are_named():
    network, config, codes, _ = design("plain", "none")
    one = MemoryFault(tensor="conv1", image=0, element=0, bits=(0,))
    with pytest.raises(InputError, match="at least one fault"):
        run_faults(network, config, codes, [()])
    with pytest.raises(InputError, match="must be in one image"):
        run_faults(network, config, codes, [(one, MemoryFault(**{**one.__dict__, "image": 1}))])
    assert isinstance(network.gemms()[0], Gemm) and len(codes_of(network, 2)) == 2
    for change in ({"tile": None}, {"layer": None}, {"cycle": None}, {"kind": "stuck1"}):
        with pytest.raises(InputError):
            RegisterFault(**{
                "layer": "l", "image": 0, "tile": 0, "register": "ring", "row": 0, "col": 0,
                "bits": (0,), "cycle": 3, **change,
            })  # fmt: skip
