# SPDX-License-Identifier: Apache-2.0
"""12,000 random experiments over all sites and kinds: the fault engine against brute force.

`pytest -m nightly -s tests/faultinj/test_engine_agreement.py` prints the counts.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from brute_force import run as brute_run
from fault_lists import NETWORKS, design, random_experiments

from faultinj.engine import run_faults
from faultinj.faults import MemoryFault, WeightFault

# (protection, array) of each network; 18 x 668 = 12,024 experiments.
DESIGNS = [
    ("none", {"dataflow": "ws", "rows": 3, "cols": 4}),
    ("clip", {"dataflow": "os", "rows": 4, "cols": 3}),
    ("zero", {"dataflow": "ws", "rows": 5, "cols": 2}),
    ("clip", {"dataflow": "ws", "rows": 4, "cols": 3, "requant": "mult"}),
    ("zero", {"dataflow": "os", "rows": 3, "cols": 4, "bounds": "layer"}),
    ("clip", {"dataflow": "os", "rows": 4, "cols": 4, "pack": 2}),
]
COUNT = 668
SPARE = 3


def site_of(fault) -> str:
    if isinstance(fault, MemoryFault):
        return "stored activation"
    return "stored weight" if isinstance(fault, WeightFault) else fault.register


@pytest.mark.nightly
@pytest.mark.parametrize("make", list(NETWORKS))
@pytest.mark.parametrize("kind,array", DESIGNS)
def test_agreement(make, kind, array):
    network, config, codes, protection = design(make, kind, **array, seed=array["rows"])
    # What corrupts nothing makes up at most half; more of it is drawn, compared and not counted.
    experiments = random_experiments(network, config, len(codes), SPARE * COUNT, seed=array["rows"])
    done = run_faults(network, config, codes, experiments, protection=protection)
    golden = [brute_run(network, config, protection, image.numpy(), ()) for image in codes]
    counted, silent, sites = 0, 0, Counter()
    for number, experiment in enumerate(experiments):
        clean, values = golden[experiment[0].image]
        image = codes[experiment[0].image].numpy()
        faulty, wrong = brute_run(network, config, protection, image, experiment)
        assert done.logit_change[number] == np.abs(faulty - clean).max(), experiment
        assert done.faulty_top1[number] == int(np.argmax(faulty)), experiment
        corrupting = any(not np.array_equal(values[name], wrong[name]) for name in values)
        if not corrupting and silent >= COUNT // 2:
            continue
        counted, silent = counted + 1, silent + (not corrupting)
        for fault in experiment:
            sites[f"{site_of(fault)} {fault.kind}", corrupting] += 1
        if counted == COUNT:
            break
    assert counted == COUNT and 2 * (counted - silent) >= counted
    print(f"\n{make} {kind} {array}: {counted} experiments agree, "
          f"{counted - silent} of them corrupt an output word")  # fmt: skip
    for name in sorted({name for name, _ in sites}):
        print(f"  {name:28} {sites[name, True]:5} corrupting {sites[name, False]:5} silent")
