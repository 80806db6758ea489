# SPDX-License-Identifier: Apache-2.0
"""Campaigns against full forwards, one fault at a time, without restart, batch or early exit."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from integer_networks import multiplied, plain_network, random_codes, residual_network

from faultinj.campaign import OUTCOMES, inject, run_campaign
from faultinj.faults import MemoryFault, RegisterFault
from faultinj.lowering import lower, raise_output, tensor_shapes
from faultinj.protection import Bounds, Protection, profile_bounds, run_node
from faultinj.sampling import FaultModel, Plan, draw, fault_at, population_of
from faultinj.storage import stored_activations
from faultinj.tile_faults import predict
from hdl.config import AcceleratorConfig
from hdl.registers import register_slice
from hdl.tile import reference_output
from quant import engine
from quant.network import Gemm
from trilat.errors import InputError

NETWORKS = {
    "plain": plain_network,
    "residual": residual_network,
    "multiplied": lambda **sizes: multiplied(residual_network(**sizes)),
}


def codes_of(network, count, seed=0):
    values = torch.from_numpy(random_codes(network, count, seed))
    return values.to(engine.code_dtype(network.input))


def design(
    make, kind, *, dataflow="ws", rows=3, cols=4, bits=8, granularity="channel", seed=1, images=5
):
    network = NETWORKS[make](seed=seed, weight_bits=bits, act_bits=bits)
    # Bounds from fewer images than are run: the golden run has violations too.
    bounds = profile_bounds(network, codes_of(network, 2, seed=9))
    protection = Protection(kind=kind, granularity=granularity, bounds=bounds)
    config = AcceleratorConfig(
        dataflow=dataflow,
        rows=rows,
        cols=cols,
        act_bits=bits,
        weight_bits=bits,
        max_k=128,
        psum_depth=10,
        protect=kind,
        bounds=granularity,
        requant="mult" if network.multiplies else "shift",
    )
    codes = codes_of(network, images)
    labels = engine.top1(engine.logits(network, codes)).numpy()
    return network, config, codes, labels, protection


def sample(population, *, images, multiplicity, count, seed):
    model = FaultModel(site=population.site, multiplicity=multiplicity)
    plan = Plan(faults=count, seed=seed)
    return draw(population, images=images, model=model, plan=plan).experiments


def flip(codes: torch.Tensor, fmt, element: int, bits) -> None:
    place = np.unravel_index(element, tuple(codes.shape[1:]))
    word = int(codes[(0, *place)]) & ((1 << fmt.bits) - 1)
    for bit in bits:
        word ^= 1 << bit
    codes[(0, *place)] = word - (1 << fmt.bits) if fmt.signed and word >> (fmt.bits - 1) else word


def full_forward(network, config, image, faults, protection, cols):
    """Logits and violations of one image: whole tensors, tiles for layers with register faults."""
    values = {"input": image.clone()}
    violations = torch.zeros(1, dtype=torch.int64)

    def store(name):
        for fault in faults:
            if isinstance(fault, MemoryFault) and fault.tensor == name:
                flip(values[name], network.format_of(name), fault.element, fault.bits)

    store("input")
    for node in network.nodes:
        inputs = [values[name] for name in node.inputs]
        mine = [f for f in faults if isinstance(f, RegisterFault) and f.layer in (node.name, None)]
        if mine:
            rows = []
            for index, (tile, job) in enumerate(
                lower(network, config, node, inputs[0], protection)
            ):
                here = [f for f in mine if f.tile in (index, None)]
                out = predict(config, job, here) if here else reference_output(config, job)
                violations += out.violations_in + out.violations_out
                rows.append((tile, out.rows))
            values[node.name] = raise_output(network, config, node, rows)
        else:
            values[node.name] = run_node(
                network, node, inputs, protection, violations, cols=cols
            ).clone()
        store(node.name)
    return values[network.nodes[-1].name][0], int(violations)


def check_records(network, config, codes, labels, protection, experiments, records):
    memory = all(isinstance(f, MemoryFault) for e in experiments for f in e)
    cols = 1 << 30 if memory else config.cols
    for experiment, record in zip(experiments, records, strict=True):
        image = codes[record.image : record.image + 1]
        golden, before = full_forward(network, config, image, (), protection, cols)
        faulty, after = full_forward(network, config, image, experiment, protection, cols)
        same_top = int(engine.top1(golden[None])) == int(engine.top1(faulty[None]))
        expected = "masked" if torch.equal(golden, faulty) else OUTCOMES[2 - same_top]
        assert record.outcome == expected, experiment
        assert record.logit_change == int((faulty.long() - golden.long()).abs().max())
        assert record.violations == after - before, experiment
        assert record.detected == (after > before)
        assert record.golden_top1 == int(engine.top1(golden[None]))
        assert record.faulty_top1 == int(engine.top1(faulty[None]))
        assert record.label == labels[record.image]
        assert record.faults == tuple(experiment)


@pytest.mark.parametrize("make", list(NETWORKS))
@pytest.mark.parametrize("kind", ["none", "clip", "zero"])
@pytest.mark.parametrize("site", ["activations", "pe_activation"])
@pytest.mark.parametrize("multiplicity", [1, 3])
def test_equal_to_full_forwards(make, kind, site, multiplicity):
    network, config, codes, labels, protection = design(make, kind)
    population = population_of(network, config, site)
    experiments = sample(
        population, images=len(codes), multiplicity=multiplicity, count=24, seed=multiplicity
    )
    records = inject(network, config, codes, labels, experiments, protection=protection)
    check_records(network, config, codes, labels, protection, experiments, records)


@pytest.mark.parametrize("bits", [2, 5])
@pytest.mark.parametrize(
    "dataflow,rows,cols", [("ws", 1, 1), ("ws", 16, 16), ("ws", 1, 5), ("os", 1, 1), ("os", 5, 4)]
)
def test_other_widths_and_arrays(bits, dataflow, rows, cols):
    network, config, codes, labels, protection = design(
        "residual", "clip", dataflow=dataflow, rows=rows, cols=cols, bits=bits
    )
    for site in ("activations", "pe_activation"):
        population = population_of(network, config, site)
        experiments = sample(population, images=len(codes), multiplicity=2, count=10, seed=0)
        records = inject(network, config, codes, labels, experiments, protection=protection)
        check_records(network, config, codes, labels, protection, experiments, records)


@pytest.mark.parametrize("make", ["plain", "multiplied"])
@pytest.mark.parametrize("dataflow", ["ws", "os"])
@pytest.mark.parametrize("kind", ["clip", "zero"])
def test_columns_past_n_count_violations_where_limits_are_the_layers(make, dataflow, kind):
    """Their lanes have the layer's bounds too, and the checker does not know that nobody reads."""
    network, config, codes, labels, protection = design(
        make, kind, dataflow=dataflow, cols=7, granularity="layer"
    )
    tight = {name: replace(b, hi=b.hi // 2) for name, b in protection.bounds.tensors.items()}
    protection = replace(protection, bounds=Bounds(tensors=tight))
    experiments = []
    shapes = tensor_shapes(network)
    for node in network.gemms()[:-1]:
        blocks, used = divmod(len(node.bias) // node.groups, config.cols)
        edge = blocks * -(-int(np.prod(shapes[node.name][1:])) // config.max_m)
        for col, register in itertools.product(range(used, config.cols), ("product", "bias", "lo")):
            row, col = (int(register == "product"), 0 if register == "lo" else col)
            for bit in range(register_slice(config, register, row, col).bits):
                fault = RegisterFault(
                    layer=node.name, image=len(experiments) % 5, tile=edge, register=register,
                    row=row, col=col, bits=(bit,), cycle=None, kind="stuck1",
                )  # fmt: skip
                experiments.append((fault,))
    rng = np.random.default_rng(0)
    experiments = [experiments[i] for i in rng.permutation(len(experiments))[:40]]
    records = inject(network, config, codes, labels, experiments, protection=protection)
    check_records(network, config, codes, labels, protection, experiments, records)
    # Seen by the checker, and by no one else.
    assert any(record.outcome == "masked" and record.detected for record in records)


def test_many_faults_on_one_operand_and_both_sites_at_once():
    network, config, codes, labels, protection = design("residual", "clip")
    node = network.gemms()[0]

    def register(col, bit, cycle, tile=1, row=2):
        return RegisterFault(
            layer=node.name, image=1, tile=tile, register="pe_activation", row=row, col=col,
            bits=(bit,), cycle=cycle,
        )  # fmt: skip

    experiments = [
        # The same operand, hit again in later columns; the last two cancel from column 2 on.
        (register(0, 7, 4), register(1, 6, 5), register(2, 6, 6)),
        (register(0, 7, 4), register(0, 7, 5), register(0, 7, 4, tile=2), register(3, 0, 9)),
        (register(1, 5, 5), MemoryFault(tensor="input", image=1, element=7, bits=(7, 6))),
        (register(1, 5, 5), MemoryFault(tensor=node.name, image=1, element=3, bits=(7,))),
        (MemoryFault(tensor="input", image=1, element=7, bits=(7,)),
         MemoryFault(tensor="block.down", image=1, element=2, bits=(7,))),
        # Back to the golden codes behind the first layer, then a fault further on.
        (MemoryFault(tensor="input", image=1, element=7, bits=(0,)),
         MemoryFault(tensor="depthwise", image=1, element=4, bits=(7,))),
    ]  # fmt: skip
    records = inject(network, config, codes, labels, experiments, protection=protection)
    check_records(network, config, codes, labels, protection, experiments, records)
    assert len({r.outcome for r in records}) > 1


def test_stuck_bits_in_memory():
    network, config, codes, labels, _ = design("plain", "none")
    experiments = {"flip": [], "stuck0": [], "stuck1": []}
    held = []
    for element in range(20):
        for bit in (0, 7):
            held.append(int(codes[0].flatten()[element]) >> bit & 1)
            for kind, several in experiments.items():
                several.append(
                    (MemoryFault(tensor="input", image=0, element=element, bits=(bit,), kind=kind),)
                )
    outcomes = {
        kind: [r.outcome for r in inject(network, config, codes, labels, several)]
        for kind, several in experiments.items()
    }
    assert len(set(outcomes["flip"])) > 1 and len(set(held)) == 2
    for value, flipped, zero, one in zip(held, *outcomes.values(), strict=True):
        assert zero == (flipped if value else "masked")
        assert one == ("masked" if value else flipped)


def test_records_do_not_depend_on_order_and_replay():
    network, config, codes, labels, protection = design("residual", "zero")
    experiments = []
    for site in ("activations", "pe_activation"):
        population = population_of(network, config, site)
        experiments += sample(population, images=len(codes), multiplicity=1, count=70, seed=5)
    records = inject(network, config, codes, labels, experiments, protection=protection)
    order = np.random.default_rng(0).permutation(len(experiments))
    shuffled = inject(
        network, config, codes, labels, [experiments[i] for i in order], protection=protection
    )
    assert [records[i] for i in order] == shuffled
    for record in records[65:75]:
        (again,) = inject(network, config, codes, labels, [record.faults], protection=protection)
        assert again == record


def test_nothing_is_changed_by_a_campaign():
    network, config, codes, labels, protection = design("residual", "clip")
    before = codes.clone(), labels.copy(), network.content_hash()
    golden = engine.forward(network, codes)
    kept = {name: value.clone() for name, value in golden.items()}
    for site in ("activations", "pe_activation"):
        run_campaign(
            network, config, codes, labels, model=FaultModel(site=site, multiplicity=2),
            plan=Plan(faults=60), protection=protection,
        )  # fmt: skip
    assert torch.equal(codes, before[0])
    assert np.array_equal(labels, before[1])
    assert network.content_hash() == before[2]
    again = engine.forward(network, codes)
    for name, value in kept.items():
        assert torch.equal(again[name], value), name


@pytest.mark.parametrize("site", ["activations", "pe_activation"])
def test_every_flip_has_one_number(site):
    network = plain_network(seed=0, weight_bits=2, act_bits=2, shape=(1, 4, 4))
    config = AcceleratorConfig(rows=2, cols=3, act_bits=2, weight_bits=2, max_k=64, psum_depth=5)
    population = population_of(network, config, site)
    faults = [fault_at(population, 0, number) for number in range(population.size)]
    assert len(set(faults)) == population.size
    if site == "activations":
        counts = Counter(f.tensor for f in faults)
        storage = stored_activations(network)
        sizes = dict(zip(storage.names, np.diff(storage.starts) * 2, strict=True))
        assert counts == sizes
        assert sizes == {"input": 32, "conv1": 192, "conv2": 64, "fc1": 24}
    else:
        image = codes_of(network, 1)
        values = engine.forward(network, image)
        held = Counter()
        for node in network.gemms():
            for index, (_, job) in enumerate(
                lower(network, config, node, values[node.inputs[0]], Protection())
            ):
                held[node.name, index] = job.m * job.acts.shape[1] // config.rows
        per_tile = Counter((f.layer, f.tile) for f in faults)
        assert set(per_tile) == set(held)
        for key, beats in held.items():
            # At least as many cycles as beats: all operands can be hit.
            assert per_tile[key] % (2 * 3 * config.operand_bits) == 0
            assert per_tile[key] // (2 * 3 * config.operand_bits) >= beats


def test_designs_are_compared_on_the_same_faults():
    one, two = design("plain", "none"), design("plain", "clip", seed=8)
    lists = []
    for network, config, codes, _, _ in (one, two):
        population = population_of(network, config, "pe_activation")
        lists.append(sample(population, images=len(codes), multiplicity=2, count=30, seed=4))
    assert lists[0] == lists[1]
    population = population_of(one[0], one[1], "pe_activation")
    assert lists[0] != sample(population, images=5, multiplicity=2, count=30, seed=5)


def test_bad_experiments():
    network, config, codes, labels, _ = design("plain", "none")
    assert isinstance(network.gemms()[0], Gemm)
    fault = RegisterFault(
        layer="conv1", image=0, tile=0, register="psum", row=3, col=0, bits=(0,), cycle=4
    )
    with pytest.raises(InputError, match="no psum register at row 3, column 0"):
        inject(network, config, codes, labels, [(fault,)])
    with pytest.raises(InputError, match=r"images are 0\.\.4; a fault names 5"):
        inject(
            network, config, codes, labels,
            [(MemoryFault(tensor="input", image=5, element=0, bits=(0,)),)],
        )  # fmt: skip
