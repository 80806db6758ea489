# SPDX-License-Identifier: Apache-2.0
"""What a search writes down: one frozen record per trial, and one for the whole run.

The report reads these and nothing else, so a report can be made again from `run.json` alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from hdl.config import AcceleratorConfig

# name -> (direction, label, unit); the order is that of Optuna's objectives.
OBJECTIVES: dict[str, tuple[str, str, str]] = {
    "accuracy": ("maximize", "Accuracy", "%"),
    "faulty_accuracy": ("maximize", "Accuracy under faults", "%"),
    "lut_equivalent": ("minimize", "Area", "LUT-eq"),
    "time_us": ("minimize", "Time per inference", "µs"),
}


@dataclass(frozen=True, kw_only=True)
class Design:
    """One point of the design space: how the network is quantized and on what it runs."""

    method: str
    weight_bits: int
    act_bits: int
    protect: str
    rows: int
    cols: int
    dataflow: str = "ws"
    requant: str = "shift"

    def label(self) -> str:
        """Return a short name, e.g. ``W4A8 clip 16x8``.

        The method is named where it is not QAT, the dataflow where it is not weight-stationary,
        requantization where it is not by shifts.
        """
        method = "" if self.method == "qat" else f" {self.method}"
        dataflow = "" if self.dataflow == "ws" else f" {self.dataflow}"
        widths = f"W{self.weight_bits}A{self.act_bits}"
        requant = "" if self.requant == "shift" else f" {self.requant}"
        return f"{widths}{requant}{method} {self.protect} {self.rows}x{self.cols}{dataflow}"

    def config(self, max_k: int) -> AcceleratorConfig:
        """Return the accelerator of this design for networks with reductions up to `max_k`."""
        return AcceleratorConfig(
            dataflow=self.dataflow,
            rows=self.rows,
            cols=self.cols,
            act_bits=self.act_bits,
            weight_bits=self.weight_bits,
            max_k=max_k,
            protect=self.protect,
            requant=self.requant,
        )


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What one stage of a trial took: seconds, or 0 and `cached` where it was reused."""

    stage: str
    seconds: float
    cached: bool


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One finished trial. Accuracies in percent, on the validation split.

    Attributes:
        number: of the Optuna trial.
        design: what was evaluated.
        objectives: one value per name in `OBJECTIVES`.
        accuracy_interval: Wilson 95 % interval of the fault-free accuracy.
        faulty: a `faultinj.campaign.RateResult` as JSON (mean, std, min, max, ci_low, ...), or over
            chips `dse.weight_faults.as_faulty`, with the same names and ``"site": "weights"``.
        cost: a `hdl.synth.Cost` as JSON.
        cycles: array cycles per inference at batch 1, streams never starved.
        stages: cost per stage, in order.
        pareto: whether it is on the front of the finished trials.
        config_hash, network_hash: what was built.
    """

    number: int
    design: Design
    objectives: dict[str, float]
    accuracy_interval: tuple[float, float]
    faulty: dict[str, Any]
    cost: dict[str, Any]
    cycles: int
    stages: tuple[StageCost, ...]
    config_hash: str
    network_hash: str
    pareto: bool = False

    @staticmethod
    def from_json(data: dict[str, Any]) -> TrialRecord:
        """Read the data of `dataclasses.asdict`, once through JSON."""
        return TrialRecord(
            **{
                **data,
                "design": Design(**data["design"]),
                "accuracy_interval": tuple(data["accuracy_interval"]),
                "stages": tuple(StageCost(**stage) for stage in data["stages"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class PointRecord:
    """What is measured for a reported (Pareto) point only.

    Attributes:
        number: of its trial.
        test_accuracy: percent, computed once.
        test_interval: Wilson 95 % interval, percent.
        test_faulty: `RateResult` as JSON on the test split, or None where not computed.
        rate_curve: `RateResult`s as JSON on the validation split by rate, the search's among them;
            empty where not computed.
        campaigns: `CampaignResult`s as JSON: single and multiple flips, stored activations and PE
            activation registers, each with outcomes, by layer and by bit.
        verification: `sim.verify.VerifyResult` as JSON, or None where not asked for.
        folder: of its artefacts, relative to the run folder.
        rebuild: the commands that rebuild it.
    """

    number: int
    test_accuracy: float
    test_interval: tuple[float, float]
    test_faulty: dict[str, Any] | None
    rate_curve: tuple[dict[str, Any], ...]
    campaigns: tuple[dict[str, Any], ...]
    verification: dict[str, Any] | None
    folder: str
    rebuild: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A whole search.

    Attributes:
        name: of the run folder.
        command: what reproduces it.
        settings: every flag, by name.
        data: name, sizes of the splits, classes, fingerprint.
        model: name, input shape, float accuracies (percent), weights' origin, and `agreement`: per
            network {weight_bits, act_bits, method, layers, images, words, equal}, the stored words
            in which Brevitas, ONNX and the integer engine were compared; with multipliers, each
            layer on the engine's inputs, {..., brevitas_off, onnx_off, largest} for equal.
        rate: fault rate per stored activation bit and how it was chosen; with ``"site": "weights"``
            the share of faulty cells, and the chips.
        versions: of trilat and of every tool that decides a figure.
        trials: all finished ones, by number.
        points: the reported ones.
        hypervolume: after each trial, normalized by `reference` to the box the trials span.
        reference: nadir point of the hypervolume per objective.
        stages: per stage: runs, reuses, seconds.
        seconds: wall-clock of the search so far.
        notes: what is not modelled, said in every report.
        voltage: with faults in weights, for each method's most reliable trial, the chosen one and
            the widest unprotected one `faulty` from rate to rate: ``{"number": trial, "results":
            [...]}``, by number.
    """

    name: str
    command: str
    settings: dict[str, Any]
    data: dict[str, Any]
    model: dict[str, Any]
    rate: dict[str, Any]
    versions: dict[str, str]
    trials: tuple[TrialRecord, ...]
    points: tuple[PointRecord, ...]
    hypervolume: tuple[float, ...]
    reference: dict[str, float]
    stages: dict[str, dict[str, float]]
    seconds: float
    notes: tuple[str, ...] = field(default_factory=tuple)
    voltage: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> RunRecord:
        """Read `to_json`'s data."""
        data = dict(data)
        data["trials"] = tuple(TrialRecord.from_json(trial) for trial in data["trials"])
        data["points"] = tuple(
            PointRecord(
                **{
                    **p,
                    "test_interval": tuple(p["test_interval"]),
                    "rate_curve": tuple(p.get("rate_curve", ())),
                    "campaigns": tuple(p["campaigns"]),
                    "rebuild": tuple(p["rebuild"]),
                }
            )
            for p in data["points"]
        )
        data["hypervolume"] = tuple(data["hypervolume"])
        data["notes"] = tuple(data["notes"])
        data["voltage"] = tuple(data.get("voltage", ()))
        return RunRecord(**data)
