# SPDX-License-Identifier: Apache-2.0
"""The engine keeps its tensors on one device: held against a stand-in, as CUDA may be absent.

Where there is CUDA, `test_cuda_gives_the_same` runs on it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_stand_in import pretended
from fault_lists import design, random_experiments

from faultinj.engine import EngineOptions, run_faults
from faultinj.rate import accuracy_under_rate

FIELDS = ("golden_top1", "faulty_top1", "logit_change", "violations", "bounded")


def test_the_stand_in_refuses_what_cuda_refuses():
    with pretended() as device:
        there, here = torch.ones(3, device=device), torch.ones(3)
        assert there.device == device and (there + 1).device == device
        assert here.device.type == "cpu" and there.cpu().device.type == "cpu"
        with pytest.raises(TypeError, match="can't convert cuda"):
            there.numpy()
        for mixed in (lambda: there + here, lambda: torch.stack([there, here])):
            with pytest.raises(RuntimeError, match="on the same device"):
                mixed()
        here.to(device)[0] = 5
        there.cpu()[0] = 5
        assert here.sum() == 3 and there.sum() == 3
        there[torch.tensor([1])] = 7
        assert there.cpu().tolist() == [1, 7, 1]


def check(device, make, kind, array):
    network, config, codes, protection = design(make, kind, **array)
    experiments = random_experiments(network, config, len(codes), 16, seed=4)
    for options in (EngineOptions(), EngineOptions(restart=False, window=False, drop=False),
                    EngineOptions(top1_bound=True)):  # fmt: skip
        if options.top1_bound and kind != "none":
            continue
        run = {"protection": protection, "options": options}
        want = run_faults(network, config, codes, experiments, **run)
        got = run_faults(network, config, codes.to(device), experiments, **run)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name), name)
    labels = np.zeros(len(codes), dtype=np.int64)
    values = [
        accuracy_under_rate(network, one, labels, rate=0.01, protection=protection, repetitions=2)
        for one in (codes, codes.to(device))
    ]
    assert (values[0].min, values[0].max) == (values[1].min, values[1].max)


# (network, protection, array): everything once.
DESIGNS = [
    ("plain", "none", {}),
    ("residual", "clip", {"dataflow": "os", "bounds": "layer"}),
    ("depthwise", "zero", {"requant": "mult"}),
]


@pytest.mark.parametrize("make,kind,array", DESIGNS)
def test_no_tensor_strays(make, kind, array):
    with pretended() as device:
        check(device, make, kind, array)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("make,kind,array", DESIGNS)
def test_cuda_gives_the_same(make, kind, array):
    check(torch.device("cuda"), make, kind, array)
