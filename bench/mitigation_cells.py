# SPDX-License-Identifier: Apache-2.0
"""What the tables of `bench.mitigations` share: cells, chips, accuracy over chips, stored networks.

A table is a module with five functions, which `bench.mitigations` lists:

- ``cells(effort) -> list[Cell]``: its rows in order, computed or not;
- ``measure(cell, bench) -> dict``: the JSON-able figures of one; raises `MissingError`;
- ``table(cells, found) -> rich.table.Table``: with a dash for what is not there;
- ``figure(cells, found) -> Figure``: a Plotly figure in plain JSON (``data``, ``layout``), asked
  for where at least one cell is there;
- ``findings(cells, found) -> list[Finding]``, or none: what the papers lead one to expect, and what
  is found (`bench.mitigation_tables`).

`cells` are those of the table, `found` has the figures of those that are there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from faultinj.chip_campaign import ChipResult, accuracy_over_chips
from faultinj.random_maps import random_map
from quant import engine
from quant.brevitas_model import BrevitasModel
from quant.brevitas_model import build_model as brevitas_model
from quant.calibration import Formats
from quant.data import DataSet, Split, load_data, to_input
from quant.export import unrounded_weights
from quant.faq import load_unrounded, save_unrounded
from quant.fault_map import FaultMap, MemoryGeometry
from quant.graph import trace
from quant.models import ModelSpec, build_model, load_weights, weights_normalization
from quant.network import IntegerNetwork
from quant.ops import GemmOp
from quant.quantize import quantize
from quant.training import train_float
from quant.weight_memory import weight_codes
from trilat.files import content_hash, replacing, write_json
from trilat.progress import Progress

# The network whose float weights are given, in a folder beside that of the data.
GIVEN = "vgg11"
CHECKPOINT = Path("checkpoints") / "vgg11_cifar10.safetensors"
_VERSION = 2  # one more whenever a cell's figures change for the same settings

Found = Mapping["Cell", Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes:
        chips: per cell.
        images: of the test split, at most.
        epochs: of each training; None for what each table says.
        seed: of training and chips.
        widths: of weights in bits, where a table has several; 8 among them.
        grey: the set of grey images; ``"digits"`` needs no file and serves for a trial.
        colour: the set of colour images; None leaves out the cells on it.
    """

    chips: int = 20
    images: int = 2000
    epochs: int | None = None
    seed: int = 0
    widths: tuple[int, ...] = (8, 4, 2)
    grey: str = "mnist"
    colour: str | None = "cifar10"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of a table: all that its figures depend on, and whether they take a GPU.

    Attributes:
        table: e.g. ``"T2"``.
        row: how the table calls it.
        model: a name of `quant.models`, or ``"norm-cnn"`` (`quant.rquant.NormCnn`).
        data: name of the set.
        method: how the network is trained, e.g. a name of `quant.method_names`.
        bits: of a weight; activations have 8 where they are quantized.
        rates: of faulty cells.
        kind: of faults, of `faultinj.random_maps.MAP_KINDS`.
        on_chip: what is done once a chip's map is known; empty where it stays unknown.
        group: chips that share one set of weights.
        extra: names and values of what else the figures depend on.
        epochs: of training; None for trilat's own.
        chips, images, seed: as in `Effort`.
        heavy: takes long on a CPU; such a cell is computed only if asked for.
    """

    table: str
    row: str
    model: str
    data: str
    method: str
    bits: int
    rates: tuple[float, ...]
    kind: str = "flip"
    on_chip: str = ""
    group: int = 1
    extra: tuple[tuple[str, Any], ...] = ()
    epochs: int | None
    chips: int
    images: int
    seed: int
    heavy: bool = False

    def name(self) -> str:
        """Return how a missing cell is called."""
        return (
            f"{self.table} {self.row}, {self.model} on {self.data}, {self.bits} bits, {self.kind}"
        )

    def settings(self) -> dict[str, Any]:
        """Return what the figures depend on, JSON-able."""
        return {name: value for name, value in asdict(self).items() if name != "heavy"}


class MissingError(Exception):
    """A cell that cannot be measured here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained and quantized network.

    Attributes:
        network: what the accelerator computes.
        unrounded: its weights before rounding in units of their scales, float32 (weights,).
        bias_bits: width of its biases.
        seconds: processor time of its training, the float network's not counted.
        epochs: of that training.
    """

    network: IntegerNetwork
    unrounded: np.ndarray
    bias_bits: int
    seconds: float
    epochs: int

    def model(self, spec: ModelSpec) -> BrevitasModel:
        """Return the Brevitas model of the same integers, to go on with its training.

        Weights are those before rounding; biases have been rounded.

        Args:
            spec: the float network that it was made from, whatever its weights.
        """
        network, start, ops = self.network, 0, []
        tensors = {"input": network.input}
        tensors |= {node.name: node.output for node in network.nodes if node.output is not None}
        formats = Formats(
            weight_bits=network.weight_bits,
            act_bits=network.act_bits,
            bias_bits=self.bias_bits,
            tensors=tensors,
            weights={node.name: node.weight_exponent for node in network.gemms()},
        )
        layers = {node.name: node for node in network.gemms()}
        for op in trace(spec.module, spec.input_shape):
            if isinstance(op, GemmOp):
                stop = start + op.weight.numel()
                codes = self.unrounded[start:stop].reshape(op.weight.shape)
                scale = formats.weight_scale(op).reshape(-1, 1, 1, 1)
                bias = layers[op.name].bias * formats.bias_scale(op)
                op = replace(
                    op,
                    weight=torch.from_numpy((codes * scale).astype(np.float32)),
                    bias=torch.from_numpy(bias.astype(np.float32)),
                )
                start = stop
            ops.append(op)
        return brevitas_model(ops, formats).eval()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a run keeps its results and takes its data.

    Attributes:
        effort: how much is measured.
        folder: of cells and networks.
        sources: folder with one folder per data set.
        progress: where to report.
    """

    effort: Effort
    folder: Path
    sources: Path
    progress: Progress
    _sets: dict[str, DataSet] = field(default_factory=dict)

    def data(self, name: str) -> DataSet:
        """Return a data set; raise MissingError where its folder is not there."""
        if name not in self._sets:
            folder = self.sources / name
            if name != "digits" and not folder.is_dir():
                raise MissingError(f"no data: there is no {folder}")
            spec = name if name == "digits" else str(folder)
            self._sets[name] = load_data(spec, seed=self.effort.seed, progress=self.progress)
        return self._sets[name]

    def data_of(self, model: str, name: str) -> DataSet:
        """Return a data set as a network takes it: with the normalization of given weights.

        Raises:
            MissingError: the data set or the weights are not there.
        """
        data = self.data(name)
        normalization = weights_normalization(self._given()) if model == GIVEN else None
        return data if normalization is None else data.with_normalization(*normalization)

    def _given(self) -> Path:
        path = self.sources.parent / CHECKPOINT
        if not path.is_file():
            raise MissingError(f"no weights: there is no {path}")
        return path

    def path(self, cell: Cell) -> Path:
        """Return the file of a cell's figures; raise MissingError without its data."""
        depends = [cell.settings(), self.data(cell.data).fingerprint]
        return self.folder / f"{_hashed(depends)}.json"

    def float_network(self, model: str, data_name: str) -> ModelSpec:
        """Return a float network: the given one, or one that trilat's default trains, once.

        Raises:
            MissingError: the data set or the given weights are not there.
        """
        data, seed = self.data(data_name), self.effort.seed
        spec = build_model(model, num_classes=data.num_classes, data_shape=data.shape, seed=seed)
        if model == GIVEN:
            load_weights(spec.module, self._given())
            return spec
        depends = ["float", model, data.fingerprint, seed]
        path = self.folder / "networks" / f"{_hashed(depends)}.safetensors"
        if not path.is_file():
            train_float(spec, data, seed=seed, progress=self.progress)
            tensors = {name: t.contiguous() for name, t in spec.module.state_dict().items()}
            with replacing(path) as temporary:
                save_file(tensors, temporary)
        load_weights(spec.module, path)
        return spec

    def network(
        self, model: str, data_name: str, method: str, bits: int, epochs: int | None
    ) -> Trained:
        """Return a network trained by a method of `quant.method_names`; it is trained once.

        Args:
            model, data_name: which.
            method: one that needs no chip.
            bits: of a weight; activations have 8.
            epochs: of the method's training.
        """
        data, seed = self.data_of(model, data_name), self.effort.seed
        depends = ["quantized", model, data.fingerprint, method, bits, epochs, seed]
        base = self.folder / "networks" / _hashed(depends)
        network_path, unrounded_path, record_path = (
            base.with_suffix(suffix) for suffix in (".safetensors", ".unrounded", ".json")
        )
        if not record_path.is_file():  # it is written last
            spec = self.float_network(model, data_name)
            start = time.process_time()
            result = quantize(
                spec,
                data,
                weight_bits=bits,
                act_bits=8,
                method=method,
                seed=seed,
                epochs=epochs,
                progress=self.progress,
            )
            seconds = time.process_time() - start
            result.network.save(network_path)
            save_unrounded(unrounded_path, result.network, unrounded_weights(result.module))
            record = {
                "seconds": seconds,
                "epochs": result.history.get("epochs", 0),
                "bias_bits": result.module.formats.bias_bits,
                "depends": depends,
            }
            write_json(record_path, record)
        network = IntegerNetwork.load(network_path)
        record = json.loads(record_path.read_text(encoding="utf-8"))
        return Trained(
            network=network,
            unrounded=load_unrounded(unrounded_path, network),
            bias_bits=record["bias_bits"],
            seconds=record["seconds"],
            epochs=record["epochs"],
        )


def _hashed(depends: Sequence[Any]) -> str:
    return content_hash([_VERSION, *depends, *_versions()])


@cache
def _versions() -> tuple[str, ...]:
    # Once: a version is looked up in the whole metadata of its package.
    return version("torch"), version("numpy")


def chips_of(cell: Cell, weights: int) -> list[FaultMap]:
    """Return a cell's chips, each with a word of 8 cells per weight.

    The same for all methods and widths: u is drawn once per cell, whatever the kind and rates.
    """
    geometry = MemoryGeometry(words=weights, bits=8)
    return [
        random_map(geometry, rate=max(cell.rates), kind=cell.kind, seed=cell.seed, chip=chip)
        for chip in range(cell.chips)
    ]


def first(split: Split, count: int) -> Split:
    """Return the first images of a split."""
    return Split(images=split.images[:count], labels=split.labels[:count])


def codes_and_labels(
    cell: Cell, bench: Bench, network: IntegerNetwork
) -> tuple[Tensor, np.ndarray]:
    """Return image codes and labels of a cell's test images."""
    data = bench.data_of(cell.model, cell.data)
    split = first(data.test, cell.images)
    images = to_input(split.images, network.input_shape, data.mean, data.std)
    return engine.image_codes(network, images), split.labels


def over_chips(cell: Cell, bench: Bench, trained: Trained, **arguments: Any) -> dict[str, Any]:
    """Return clean accuracy, and plain and robust accuracy over the cell's chips per rate.

    Args:
        cell, bench: what is measured, and where its data are.
        trained: the network.
        arguments: more of `faultinj.chip_campaign.accuracy_over_chips`.
    """
    network = trained.network
    codes, labels = codes_and_labels(cell, bench, network)
    results = accuracy_over_chips(
        network,
        codes,
        labels,
        chips_of(cell, len(weight_codes(network))),
        rates=cell.rates,
        seed=cell.seed,
        progress=bench.progress,
        **arguments,
    )
    return as_rates(results)


def as_rates(results: Sequence[ChipResult]) -> dict[str, Any]:
    """Return results per rate in the form that all tables read: percent, JSON-able."""
    rows = [{"rate": r.rate, "plain": asdict(r.plain), "robust": asdict(r.robust)} for r in results]
    return {"clean": results[0].clean, "rates": rows}
