# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.utilization import main
from hdl.config import AcceleratorConfig
from hdl.schedule import tile_cycles


def test_figures_of_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    size = ["--rows", "4", "--cols", "4", "--batch", "4"]
    assert main(["--model", "lenet5", *size, "--json", str(path)]) == 0
    assert "os 4x4 W8A8, batch 4 and batch 1" in capsys.readouterr().out
    arrays = json.loads(path.read_text())["arrays"]
    # A linear layer at batch 4 is one output tile per four neurons; by hand for the last one.
    for dataflow, k_tiles, weight_beats in (("ws", 21, 84), ("os", 84, 84)):
        last = arrays[dataflow][-2]
        assert (last["m"], last["k"], last["n"]) == (1, 84, 10)
        config = AcceleratorConfig(dataflow=dataflow, rows=4, cols=4, max_k=400)
        cycles = last["batch"]["cycles"]
        assert cycles >= 2 * k_tiles + tile_cycles(config, m=4, k_tiles=k_tiles, raw=True)
        assert last["batch"]["utilization"] == pytest.approx(4 * 84 * 10 / (16 * cycles))
        rates = last["batch"]["gb_per_s"]
        assert rates["s_axis_weight"] == pytest.approx(3 * weight_beats * 4 / (5 * cycles))
        assert rates["s_axis_act"] == pytest.approx(3 * 84 * 4 / (5 * cycles))
        assert rates["s_axis_param"] == pytest.approx(3 * 10 * 4 / (5 * cycles))


def test_bad_batch_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batch", "0"]) == 2
    assert capsys.readouterr().err == (
        "python -m bench.utilization: error: --batch must be at least 1 and --delay-ns above 0, "
        "not 0 and 5.0\n"
    )
