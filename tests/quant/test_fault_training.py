# SPDX-License-Identifier: Apache-2.0
"""Training steps against what they say they do, on small networks."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import spec
from torch import Tensor, nn

from faultinj.random_maps import random_map
from quant import engine
from quant.brevitas_model import BrevitasModel
from quant.chip_training import chip_step, group_accuracy, introduced, model_faults
from quant.data import DataSet, load_data, to_input
from quant.export import to_network, unrounded_weights
from quant.faq import fault_aware_codes
from quant.fault_map import KINDS, FaultMap, MemoryGeometry
from quant.fine_tuning import BATCH, clip_weights, cross_entropy, fine_tune, plain_step, sparse_loss
from quant.map_groups import group_chips, merge_maps, similarity
from quant.models import ModelSpec
from quant.ops import GemmOp
from quant.quantize import quantize
from quant.randbet import bit_error_step, random_flips
from quant.sharpness import activation_sparsity, sharpness, sharpness_step
from quant.weight_memory import WeightMapping, logits_of, weight_codes
from trilat.errors import InputError

HUGE = 1e9  # no loss is above it


@functools.cache
def digits() -> DataSet:
    return load_data("digits", seed=0)


@functools.cache
def trained() -> ModelSpec:
    """A small network that knows the digits."""
    from quant.training import train_float

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    found = ModelSpec(name="small", module=module, input_shape=(1, 8, 8), identity="small")
    train_float(found, digits(), seed=0, epochs=6)
    return found


def batch(count: int = 64) -> tuple[Tensor, Tensor]:
    data = digits()
    images = to_input(data.train.images[:count], (1, 8, 8), data.mean, data.std)
    return images, torch.from_numpy(data.train.labels[:count])


def model(bits: int = 8, name: str | None = None, requant: str = "shift") -> BrevitasModel:
    source = trained() if name is None else spec(name)
    return quantize(
        source, digits(), weight_bits=bits, act_bits=8, requant=requant, method="ptq", seed=0
    ).module.train()


def weights_of(found: BrevitasModel) -> int:
    return sum(op.weight.numel() for op in found.ops if isinstance(op, GemmOp))


def chip(found: BrevitasModel, rate: float, number: int = 0, kind: str = "stuck") -> FaultMap:
    geometry = MemoryGeometry(words=weights_of(found), bits=8)
    return random_map(geometry, rate=rate, kind=kind, seed=0, chip=number)


def gradients(found: BrevitasModel) -> list[Tensor]:
    return [p.grad.clone() for p in found.parameters()]


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.3, 1.0])
def test_random_flips_are_independent_and_as_many_as_the_rate_says(bits: int, rate: float) -> None:
    count = 40_000
    faults = random_flips(np.random.default_rng(3), weights=count, bits=bits, rate=rate)
    assert (np.diff(faults.index) > 0).all()
    codes = np.zeros(count, dtype=np.int8)
    words = faults.read(codes)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    assert words.min() >= low and words.max() <= high
    for bit in range(bits):
        flips = int((words.astype(int) >> bit & 1).sum())
        assert abs(flips - count * rate) <= 5 * math.sqrt(count * rate * (1 - rate)) + 1e-9
    # Neighbouring bits of a word do not know of each other.
    both = int(((words & 1) & (words.astype(int) >> 1 & 1)).sum())
    assert abs(both - count * rate**2) <= 5 * math.sqrt(count) * rate + 3


@pytest.mark.parametrize("requant", ["shift", "mult"])
def test_corrupted_codes_are_the_network_s_and_the_gradient_passes(requant: str) -> None:
    """With scales that are no powers of two, too, where a weight over its scale is no integer."""
    found = model(8, requant=requant)
    network = to_network(found, name="m", input_shape=(1, 8, 8), metadata={})
    found.train()
    images, labels = batch()
    clean: list[np.ndarray] = []
    read: dict[str, np.ndarray] = {}

    def corrupt(name: str, codes: np.ndarray) -> None:
        clean.append(codes.copy())
        codes ^= np.int8(0x41)
        read[name] = codes

    with found.corrupted(corrupt):
        cross_entropy(found, images, labels).backward()
    assert np.array_equal(np.concatenate(clean), weight_codes(network))
    mine = gradients(found)
    # The same of a model whose weights are those codes.
    with torch.no_grad():
        for op in found.ops:
            if isinstance(op, GemmOp):
                codes = torch.from_numpy(read[op.name].astype(np.float32))
                weight = found.layer(op.name).weight
                weight.copy_(codes.view_as(weight) * found.weight_scale(op))
    found.zero_grad()
    with found.disturbed(lambda name, values: found.layer(name).weight):
        cross_entropy(found, images, labels).backward()
    for one, other in zip(mine, gradients(found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_training_meets_the_words_that_the_engine_reads(bits: int) -> None:
    """The faulty forward pass in training equals the integer engine on the faulty memory."""
    found = model(bits, "mobile")
    data = digits()
    shape = (3, 17, 18)
    network = to_network(found, name="m", input_shape=shape, metadata={})
    found.train()
    images = to_input(data.train.images[:8], shape, data.mean, data.std)
    codes = engine.image_codes(network, images)
    for kind, faq in (("flip", False), ("stuck", False), ("stuck", True)):
        faults = model_faults(found, chip(found, 0.05, kind=kind), WeightMapping())
        written = weight_codes(network)
        if faq:
            written = fault_aware_codes(written, faults, unrounded=unrounded_weights(found))
        exact = logits_of(network, codes, faults.read(written))
        seen = []

        def loss(m: BrevitasModel, x: Tensor, y: Tensor, seen: list = seen) -> Tensor:
            seen.append(m(x))
            return F.cross_entropy(seen[0], y)

        step = chip_step(lambda number, faults=faults: faults, faq=faq, loss=loss)
        step(found, images, torch.from_numpy(data.train.labels[:8]))
        last = network.gemms()[-1]
        exponent = network.format_of(last.inputs[0]).exponent + int(last.weight_exponent[0])
        assert torch.equal((seen[0].double() * 2.0**-exponent).to(torch.int32), exact)


def test_a_bit_error_step_averages_clean_and_faulty_gradients() -> None:
    images, labels = batch()
    found = model()
    plain_step()(found, images, labels)
    clean = gradients(found)
    found.zero_grad()
    step = bit_error_step(rate=0.01, bits=8, seed=1, threshold=HUGE)
    value = step(found, images, labels)
    both = gradients(found)
    assert value == pytest.approx(float(cross_entropy(found, images, labels).detach()), rel=1e-6)
    faulty = [2 * b - c for b, c in zip(both, clean, strict=True)]
    assert all(float(f.abs().max()) <= 0.05 + 1e-5 for f in faulty)  # clamped
    assert any(not torch.allclose(f, c, atol=1e-4) for f, c in zip(faulty, clean, strict=True))
    # Fresh flips in every step.
    found.zero_grad()
    step(found, images, labels)
    assert any(not torch.equal(a, b) for a, b in zip(both, gradients(found), strict=True))
    # The seed decides.
    found.zero_grad()
    bit_error_step(rate=0.01, bits=8, seed=1, threshold=HUGE)(found, images, labels)
    assert all(torch.equal(a, b) for a, b in zip(both, gradients(found), strict=True))


@pytest.mark.parametrize("share", [0.5, 1.05])
def test_bit_errors_start_once_the_loss_is_low(share: float) -> None:
    """Above the threshold, of the clean loss or of the mean of both, a step is a plain one."""
    images, labels = batch()
    found = model()
    plain_step()(found, images, labels)
    clean = gradients(found)
    found.zero_grad()
    loss = float(cross_entropy(found, images, labels).detach())
    step = bit_error_step(rate=0.2, bits=8, seed=1, threshold=share * loss)
    assert step(found, images, labels) == pytest.approx(loss, rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(clean, gradients(found), strict=True))


def test_a_sharpness_step_takes_the_gradient_at_the_worst_point_nearby() -> None:
    images, labels = batch()
    found, rho = model(), 0.3
    plain_step()(found, images, labels)
    weight_gradients = {
        op.name: found.layer(op.name).weight.grad.clone()
        for op in found.ops
        if isinstance(op, GemmOp)
    }
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in weight_gradients.values()))
    found.zero_grad()
    with found.disturbed(lambda name, w: w + rho / norm * weight_gradients[name]):
        cross_entropy(found, images, labels).backward()
    expected = gradients(found)
    found.zero_grad()
    sharpness_step(rho=rho)(found, images, labels)
    for mine, theirs in zip(gradients(found), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_sharpness_grows_and_leaves_the_model_alone() -> None:
    images, labels = batch()
    found = model().eval()
    before = {k: v.clone() for k, v in found.state_dict().items()}
    losses = sharpness(found, images, labels, [0.0, 0.05, 0.2, 0.5])
    assert losses == sorted(losses) and losses[0] < losses[-1]
    found.train()
    assert losses[0] == pytest.approx(
        float(cross_entropy(found, images, labels).detach()), rel=1e-6
    )
    found.eval()
    after = found.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.grad is None for p in found.parameters())


def test_the_sparse_loss_adds_the_mean_of_every_rectified_tensor() -> None:
    images, labels = batch(8)
    found = model(name="lenet")
    data = digits()
    images = to_input(data.train.images[:8], (1, 28, 28), data.mean, data.std)
    with torch.no_grad():
        tensors = dict(found.outputs(images))
        expected = sum(
            float(tensors[op.name].mean()) for op in found.ops if op.activation != "none"
        )
        found_loss = float(sparse_loss(0.5)(found, images, labels))
        plain = float(cross_entropy(found, images, labels).detach())
    assert found_loss == pytest.approx(plain + 0.5 * expected, rel=1e-5)


def test_sparsity_counts_zeros_by_hand() -> None:
    network = quantize(trained(), digits(), weight_bits=8, act_bits=8, method="ptq", seed=0).network
    codes = engine.image_codes(network, batch(100)[0])
    values = engine.forward(network, codes)
    found = activation_sparsity(network, codes)
    assert list(found) == ["0", "4", "9"]
    for name, share in found.items():
        assert share == pytest.approx(float((values[name] == 0).double().mean()))


def test_clipping_projects_every_weight_and_no_bias() -> None:
    found = model()
    biases = [found.layer(op.name).bias.detach().clone() for op in found.ops if hasattr(op, "kind")
              and isinstance(op, GemmOp)]  # fmt: skip
    clip_weights(found, 0.0625)
    for op, bias in zip([o for o in found.ops if isinstance(o, GemmOp)], biases, strict=True):
        assert float(found.layer(op.name).weight.detach().abs().max()) <= 0.0625
        assert torch.equal(found.layer(op.name).bias.detach(), bias)


def test_fine_tuning_stops_when_it_is_told() -> None:
    finished: list[int] = []

    def after(step: int) -> bool:
        finished.append(step)
        return step == steps + 1

    steps = -(-len(digits().train) // BATCH)
    losses = fine_tune(model(), digits(), (1, 8, 8), epochs=5, seed=0, after_step=after)
    assert finished == list(range(1, steps + 2)) and len(losses) == 2


def stuck_map(values: dict[int, int], cells: int = 16) -> FaultMap:
    """Return a map of cells stuck at values."""
    places = sorted(values)
    return FaultMap(
        geometry=MemoryGeometry(words=cells // 8, bits=8),
        cells=np.array(places, dtype=np.int64),
        kinds=np.array([KINDS.index(f"stuck{values[c]}") for c in places], dtype=np.uint8),
        thresholds=np.full(len(places), 0.1),
        rate=0.1,
    )


def test_merging_is_the_union_with_a_stated_policy() -> None:
    maps = [
        stuck_map({0: 0, 3: 1, 5: 0, 8: 0, 9: 0}),
        stuck_map({3: 1, 5: 1, 8: 1, 9: 1}),
        stuck_map({5: 1, 7: 0}),
    ]
    merged = merge_maps(maps, "majority")
    kinds = [KINDS[k] for k in merged.kinds]
    # 5: two of three at 1. 8 and 9: even, so the cell's parity decides.
    assert dict(zip(merged.cells.tolist(), kinds, strict=True)) == {
        0: "stuck0", 3: "stuck1", 5: "stuck1", 7: "stuck0", 8: "stuck0", 9: "stuck1",
    }  # fmt: skip
    assert merge_maps(maps, "ignore").cells.tolist() == [0, 3, 7]
    assert merge_maps(maps[:1]) is maps[0]


def test_the_merged_rate_is_that_of_the_union() -> None:
    geometry = MemoryGeometry(words=50_000, bits=8)
    maps = [random_map(geometry, rate=6e-3, kind="stuck", seed=0, chip=c) for c in range(5)]
    share = len(merge_maps(maps)) / geometry.cells
    assert share == pytest.approx(1 - (1 - 6e-3) ** 5, rel=0.02)  # 2.96 %


def test_maps_that_cannot_be_merged() -> None:
    one = stuck_map({0: 0})
    flips = random_map(MemoryGeometry(words=2, bits=8), rate=1.0, kind="flip", seed=0)
    for maps, policy, message in (
        ([], "majority", "at least one fault map"),
        ([one, one], "vote", "unknown merge policy 'vote'"),
        ([one, stuck_map({0: 0}, 24)], "majority", "different memories"),
        ([one, flips], "majority", "only maps of stuck cells"),
    ):
        with pytest.raises(InputError, match=message):
            merge_maps(maps, policy)


def test_similar_chips_are_grouped() -> None:
    a, b = {0: 0, 1: 1, 2: 0}, {8: 0, 9: 1, 10: 0}
    maps = [stuck_map(a), stuck_map(b), stuck_map(a | {5: 0}), stuck_map(b | {6: 1})]
    assert similarity(maps[0], maps[2]) == 3 / 4 and similarity(maps[0], maps[1]) == 0
    assert similarity(stuck_map({1: 0}), stuck_map({1: 1})) == 0
    assert similarity(stuck_map({}), stuck_map({})) == 1
    assert group_chips(maps, 2) == ((0, 2), (1, 3))
    assert group_chips(maps, 3) == ((0, 2, 1), (3,))
    assert group_chips(maps, 1) == ((0,), (1,), (2,), (3,))
    with pytest.raises(InputError, match="at least 1 chip, not 0"):
        group_chips(maps, 0)


def test_faults_come_in_part_by_part() -> None:
    found = model()
    whole = chip(found, 0.05)
    faults_at = introduced(found, whole, WeightMapping(), steps=20, seed=0)
    seen = [faults_at(step) for step in range(25)]
    stages = [faults for faults in seen if faults is not None]
    assert len(stages) == 10 and seen[0] is not None and all(s is None for s in seen[19:])
    sizes = [int(np.bitwise_count((~s.keep).view(np.uint8)).sum()) for s in stages]
    assert sizes == [pytest.approx(len(whole) * k / 10, abs=1) for k in range(1, 11)]
    last = model_faults(found, whole, WeightMapping())
    assert np.array_equal(stages[-1].index, last.index)
    at_once = introduced(found, whole, WeightMapping(), steps=0, seed=0)
    assert len(at_once(0).index) == len(last.index) and at_once(1) is None


def test_a_group_has_one_set_of_codes() -> None:
    result = quantize(trained(), digits(), weight_bits=8, act_bits=8, method="ptq", seed=0)
    found, network = result.module, result.network
    images, labels = batch(200)
    codes = engine.image_codes(network, images)
    maps = [chip(found, 0.01, number) for number in range(3)]
    group = group_accuracy(found, network, codes, labels, maps, mapping=WeightMapping())
    assert group.worst == min(group.chips) and group.mean == pytest.approx(np.mean(group.chips))
    merged = model_faults(found, merge_maps(maps), WeightMapping())
    written = fault_aware_codes(weight_codes(network), merged, unrounded=unrounded_weights(found))
    read = model_faults(found, maps[1], WeightMapping()).read(written)
    right = engine.top1(logits_of(network, codes, read)) == labels
    assert group.chips[1] == pytest.approx(100 * float(right.double().mean()))


@pytest.mark.parametrize("kind", ["stuck1", "flip"])
def test_without_faq_a_chip_reads_what_training_computes_with(kind: str) -> None:
    result = quantize(trained(), digits(), weight_bits=8, act_bits=8, method="ptq", seed=0)
    found, network = result.module, result.network
    images, labels = batch(200)
    codes = engine.image_codes(network, images)
    maps = [chip(found, 0.02, number, kind) for number in range(2 if kind == "stuck1" else 1)]
    group = group_accuracy(found, network, codes, labels, maps, mapping=WeightMapping(), faq=False)
    faulty = model_faults(found, merge_maps(maps), WeightMapping()).read(weight_codes(network))
    right = engine.top1(logits_of(network, codes, faulty)) == labels
    assert group.chips == (pytest.approx(100 * float(right.double().mean())),) * len(maps)


def accuracy_at(result, rate: float, kind: str = "flip") -> float:
    """Return the mean accuracy over a few chips on the test images, in percent."""
    data, network = digits(), result.network
    images = to_input(data.test.images, network.input_shape, data.mean, data.std)
    codes = engine.image_codes(network, images)
    labels = torch.from_numpy(data.test.labels)
    found = []
    for number in range(6):
        faults = model_faults(
            result.module, chip(result.module, rate, number, kind), WeightMapping()
        )
        scores = logits_of(network, codes, faults.read(weight_codes(network)))
        found.append(100 * float((engine.top1(scores) == labels).double().mean()))
    return float(np.mean(found))


def tuned(method: str, epochs: int):
    return quantize(
        trained(), digits(), weight_bits=8, act_bits=8, method=method, seed=0, epochs=epochs
    )


@pytest.mark.nightly
@pytest.mark.parametrize("method", ["clip:0.2", "clip:0.2+saq:0.3", "clip:0.2+sparse"])
def test_clipping_and_what_it_combines_with(method: str) -> None:
    assert accuracy_at(tuned(method, 6), 0.02) > accuracy_at(tuned("qat", 6), 0.02) + 10


@pytest.mark.slow
def test_random_bit_errors_and_clipping_keep_more_accuracy() -> None:
    plain, robust = tuned("qat", 2), tuned("clip:0.2+randbet:0.05", 3)
    assert robust.history["val_accuracy"] > 90
    assert accuracy_at(robust, 0.02) > accuracy_at(plain, 0.02) + 10
    weights = [p for name, p in robust.module.named_parameters() if name.endswith("weight")]
    assert max(float(p.detach().abs().max()) for p in weights) <= 0.2 + 1e-6
    assert robust.network.metadata["method"] == "clip:0.2+randbet:0.05"


@pytest.mark.parametrize("method", ["randbet:0.05", "saq+sparse"])
def test_the_seed_decides_every_weight(method: str) -> None:
    first, second = (tuned(method, 1).network.content_hash() for _ in range(2))
    assert first == second


@pytest.mark.slow
def test_retraining_recovers_a_group_of_chips() -> None:
    start = quantize(trained(), digits(), weight_bits=4, act_bits=8, method="ptq", seed=0)
    maps = [chip(start.module, 0.1, number) for number in range(2)]
    data = digits()
    codes = engine.image_codes(
        start.network, to_input(data.val.images, (1, 8, 8), data.mean, data.std)
    )
    before = group_accuracy(
        start.module, start.network, codes, torch.from_numpy(data.val.labels), maps,
        mapping=WeightMapping(), faq=False,
    )  # fmt: skip
    result = quantize(
        trained(), data, weight_bits=4, act_bits=8, method="retrain", seed=0, epochs=3, chips=maps
    )
    record = result.history["chips"]
    assert record["mean"] > before.mean + 20 and record["worst"] == min(record["accuracy"])
    assert len(record["accuracy"]) == 2
