# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench import (
    mitigation_chips,
    mitigation_methods,
    mitigation_quantizers,
    mitigation_sparsity,
    mitigations,
)
from bench.mitigation_cells import (
    Bench,
    Effort,
    MissingError,
    chips_of,
    codes_and_labels,
    over_chips,
)
from quant import engine
from quant.export import to_network
from quant.weight_memory import weight_codes
from trilat.progress import NoProgress

EFFORT = Effort(chips=2, images=60, epochs=1, widths=(8,), grey="digits", colour=None)


def made(cell, robust=None, clean=98.0) -> dict:
    """Return figures as `measure` gives them, with the RErr of each rate."""
    rates = []
    for k, rate in enumerate(cell.rates):
        mean = 90.0 if robust is None else 100 - robust[k]
        spread = {"mean": mean, "ci_low": mean - 1, "ci_high": mean + 1}
        rates.append({"rate": rate, "plain": spread, "robust": spread})
    costs = {"training_epochs": 1, "training_seconds": 2.0}
    return {"clean": clean, "rates": rates, "sparsity": {"a": 40.0, "b": 60.0}, **costs}


def some_bench(folder) -> Bench:
    return Bench(effort=EFFORT, folder=folder, sources=folder, progress=NoProgress())


def test_cells_resume_and_missing_ones_are_named(tmp_path, capsys, monkeypatch) -> None:
    calls = []

    def measured(cell, bench):
        calls.append(cell)
        return made(cell)

    monkeypatch.setattr(mitigation_quantizers, "measure", measured)
    flags = ["--quick", "--tables", "T1", "--cells", str(tmp_path / "cells")]
    assert mitigations.main([*flags, "--minutes", "0"]) == 0
    assert not calls
    out = capsys.readouterr().out
    assert "missing, not computed yet (the same command goes on): T1 per-layer (Normal)," in out
    page = tmp_path / "all.html"
    tables = tmp_path / "all.md"
    files = ["--json", str(tmp_path / "all.json"), "--html", str(page), "--markdown", str(tables)]
    assert mitigations.main([*flags, *files]) == 0
    assert len(calls) == 6 and "missing" not in capsys.readouterr().out
    written = json.loads((tmp_path / "all.json").read_text())
    assert len(written["cells"]) == 6 and not written["missing"]
    text = page.read_text()
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', text)[1])
    assert len(figures["section-1"]["data"]) == 6 and len(figures) == 1
    assert "rounding alone rescues 4 bits" in text and "not met" in text
    rows = [line for line in tables.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 6 and len({row.count("|") for row in rows}) == 1
    assert rows[2].startswith("| per-layer (Normal) | 8 | 2.00 | 10.0 / 10.0 (9.00..11.0) |")
    assert mitigations.main(flags) == 0
    assert len(calls) == 6  # nothing is computed twice


def test_cells_without_their_data_or_for_a_gpu_say_so(tmp_path, capsys) -> None:
    (tmp_path / "cifar10").mkdir()
    flags = ["--tables", "T2", "--cells", str(tmp_path / "cells"), "--data", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "path", lambda self, cell: _path(self, cell, tmp_path))
        assert mitigations.main(flags) == 0
    out = capsys.readouterr().out
    assert f"missing, no data: there is no {tmp_path / 'mnist'}: T2 qat, lenet5 on mnist" in out
    assert "missing, takes long without a GPU (--heavy): T2 qat, vgg11 on cifar10" in out


def _path(bench, cell, folder):
    if cell.data == "cifar10":
        return folder / "none.json"
    return bench.folder / bench.data(cell.data).fingerprint


@pytest.mark.parametrize("name", ["T1", "T2", "T3", "T6"])  # others: test_mitigation_maps.py
def test_tables_and_figures_with_and_without_their_cells(name) -> None:
    module = mitigations.TABLES[name]
    for part in mitigations._parts(module.cells(Effort())):
        empty = module.table(part, {})
        assert empty.row_count == len(part) and "-" in list(empty.columns[-2].cells)
        assert not module.figure(part, {})["data"]
        found = {cell: made(cell) for cell in part}
        full = module.table(part, found)
        assert full.row_count == len(part)
        assert "10.0 / 10.0 (9.00..11.0)" in [c for col in full.columns for c in col.cells]
        assert len(module.figure(part, found)["data"]) in (len(part), 2 * len(part[0].rates))
    assert [one.met for one in module.findings(module.cells(Effort()), {})].count(None) > 0


def test_findings_follow_the_figures() -> None:
    t1 = mitigation_quantizers.cells(EFFORT)
    good = {"unsigned+clip:0.1": (50, 60, 90, 90), "rquant+clip:0.1": (3, 4, 5, 50)}
    found = {cell: made(cell, good[cell.method]) for cell in t1 if cell.bits == 4}
    (one,) = mitigation_quantizers.findings(t1, found)
    assert one.met and one.found == "truncation 90.00 %, rounding 5.00 %"
    bad = {cell: made(cell, (3, 4, 25, 50)) for cell in found}
    assert mitigation_quantizers.findings(t1, bad)[0].met is False

    t2 = [cell for cell in mitigation_methods.cells(EFFORT) if cell.model == "lenet5"]
    found = {cell: made(cell, (30, 50, 60, 70, 80)) for cell in t2 if cell.method == "qat"}
    found |= {cell: made(cell, (6, 9, 9, 9, 0.9)) for cell in t2 if cell.method == "clip:0.1"}
    low, high, survival = mitigation_methods.findings(t2, found)
    assert low.met and low.found == "points above clean: qat +28.00, clip:0.1 +4.00"
    assert high.met is False and high.found == "points above clean: qat +48.00, clip:0.1 +7.00"
    assert survival.met and "0.90 % (lenet5, clip:0.1, 8 bits)" in survival.found

    # The fifth of the rates on colour images is 1 %.
    t2 = [cell for cell in mitigation_methods.cells(Effort()) if cell.model != "norm-cnn"]
    colour = [cell for cell in t2 if (cell.model, cell.bits) == ("vgg11:0.25", 8)]
    errors = {"qat": (1, 1, 1, 1, 30, 1, 1, 1), "clip:0.05": (1, 1, 1, 1, 6, 1, 1, 1)}
    found = {c: made(c, errors[c.method]) for c in colour if c.method in errors}
    _, given, low, _, _ = mitigation_methods.findings(t2, found)
    assert given.expected.startswith("vgg11: ") and given.met is None
    assert low.expected.startswith("vgg11:0.25: ")
    assert low.met and low.found == "points above clean: qat +28.00, clip:0.05 +4.00"

    t3 = mitigation_chips.cells(EFFORT)
    fixed = next(cell for cell in t3 if cell.on_chip == "fixed")
    figures = made(fixed, (2, 9, 8, 4)) | {"others": made(fixed, (50, 60, 70, 80))}
    (one,) = mitigation_chips.findings(t3, {fixed: figures})
    assert one.met and "another chip at 5 %: 80.00 %" in one.found
    figures |= made(fixed, (2, 3, 3.5, 4))
    assert mitigation_chips.findings(t3, {fixed: figures})[0].met is False

    t6 = mitigation_sparsity.cells(EFFORT)
    found = {cell: made(cell, (2, 2, 2)) for cell in t6}
    found[t6[1]] = made(t6[1], (2, 5, 12))
    (one,) = mitigation_sparsity.findings(t6, found)
    assert one.met and one.found.count("10.00") == 2 and one.found.count("sparse:0.01, 5 %") == 2


def test_a_stored_network_is_the_one_that_was_trained(tmp_path) -> None:
    bench = some_bench(tmp_path)
    first = bench.network("lenet5", "digits", "ptq", 4, 1)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = bench.network("lenet5", "digits", "ptq", 4, 1)
    assert again.network.content_hash() == first.network.content_hash()
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    spec = bench.float_network("lenet5", "digits")
    model = again.model(spec)
    network = to_network(model, name="x", input_shape=spec.input_shape, metadata={})
    np.testing.assert_array_equal(weight_codes(network), weight_codes(first.network))
    cell = replace(mitigation_methods.cells(EFFORT)[0], images=20)
    codes, _ = codes_and_labels(cell, bench, first.network)
    assert torch.equal(engine.logits(network, codes), engine.logits(first.network, codes))


@pytest.mark.parametrize("faq", [False, True])
def test_a_group_is_measured_as_its_chips_are(tmp_path, faq) -> None:
    bench = some_bench(tmp_path)
    cell = next(
        c for c in mitigation_chips.cells(EFFORT) if c.method == "qat" and c.kind == "stuck"
    )
    trained = bench.network("lenet5", "digits", "ptq", 8, 1)
    spec = bench.float_network("lenet5", "digits")
    codes, labels = codes_and_labels(cell, bench, trained.network)
    measured = mitigation_chips._Measured(
        network=trained.network,
        model=trained.model(spec),
        codes=codes,
        truth=torch.from_numpy(labels),
    )
    chips = chips_of(cell, len(weight_codes(trained.network)))
    rows = [
        row
        for rate in cell.rates
        for chip in chips
        for row in measured.on([chip.at(rate)], rate, faq=faq)
    ]
    wanted = over_chips(cell, bench, trained, faq=faq, unrounded=trained.unrounded)
    assert mitigation_chips._rates(rows, cell.rates, cell.seed) == wanted


def test_retrained_weights_serve_their_chips(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(mitigation_chips, "RETRAINING_IMAGES", 640)
    monkeypatch.setattr(mitigation_chips, "FIXED_IMAGES", 640)
    bench = some_bench(tmp_path)
    wanted = [c for c in mitigation_chips.cells(EFFORT) if c.on_chip not in ("", "faq")]
    for cell in (wanted[1], wanted[-2], wanted[-1]):
        small = replace(cell, rates=(0.01, 0.1), epochs=1, method="ptq")
        found = mitigation_chips.measure(small, bench)
        assert [row["rate"] for row in found["rates"]] == [0.01, 0.1]
        assert ("others" in found) == (cell.on_chip == "fixed")
        assert found["rates"][0]["robust"]["mean"] > 50
        assert found["rates"][0]["robust"]["mean"] <= found["rates"][0]["plain"]["mean"]


def test_missing_data(tmp_path) -> None:
    with pytest.raises(MissingError, match="no data: there is no "):
        some_bench(tmp_path).data("mnist")


@pytest.mark.parametrize(
    "flags, message",
    [(["--tables", "T9"], "unknown table 'T9'"), (["--chips", "0"], "--chips must be at least 1")],
)
def test_bad_flags(flags, message, capsys) -> None:
    assert mitigations.main(flags) == 2
    assert message in capsys.readouterr().err
