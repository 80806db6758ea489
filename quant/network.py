# SPDX-License-Identifier: Apache-2.0
"""IntegerNetwork: what an accelerator computes, in integers alone.

One of the two data types that all rooms share (the other is `hdl.config.AcceleratorConfig`).
Everything here is exact: a tensor is integer *codes* with one scale, a value is ``code * scale``.
Scales are powers of two, or of any value where the network's layers have multipliers. Docs:
docs/architecture.md, section "Number format".
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trilat.errors import InputError
from trilat.files import content_hash, replacing

# 2 is a network with multipliers, which earlier versions of trilat do not know.
FORMAT_VERSIONS = (1, 2)
MAX_MULTIPLIER = (1 << 16) - 1


@dataclass(frozen=True, kw_only=True)
class TensorFormat:
    """How the codes of one tensor are stored: value = code * mantissa * 2**exponent.

    Attributes:
        bits: width of a stored word, 2..8.
        signed: two's complement if true, else unsigned (after a ReLU).
        exponent: of the scale.
        mantissa: of the scale, a float32; 1 makes it a power of two.
    """

    bits: int
    signed: bool
    exponent: int
    mantissa: float = 1.0

    @property
    def scale(self) -> float:
        """Value of code 1."""
        return self.mantissa * 2.0**self.exponent

    @property
    def lo(self) -> int:
        """Lowest code of the word."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def hi(self) -> int:
        """Highest code of the word."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operation. `name` is its path in the source model and names its output tensor.

    Attributes:
        inputs: names of the producing nodes, or ``"input"`` for the image.
        output: format of the output codes; None for the raw logits of the last layer.
        lo, hi: codes at which the output saturates (a ReLU has lo = 0, a ReLU6 a lower hi).
    """

    name: str
    inputs: tuple[str, ...]
    output: TensorFormat | None
    lo: int
    hi: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Gemm(Node):
    """Convolution or linear layer: the work of the systolic array.

    ``acc = sum(a * w) + bias``; ``code = clip(round_half_even(acc / 2**shift), lo, hi)`` with
    ``shift[n] = output.exponent - input.exponent - weight_exponent[n]``, 0..31 per output channel.
    With multipliers ``acc * multiplier`` takes the place of ``acc``, and shift is 0..63.

    Attributes:
        op: ``"conv"`` or ``"linear"``.
        weight: int8 codes, shape (out, in / groups, kh, kw); kh = kw = 1 for linear. Range
            symmetric: -(2**(weight_bits-1) - 1) .. 2**(weight_bits-1) - 1.
        bias: int64 codes at the accumulator's scale, shape (out,).
        weight_exponent: int64, shape (out,); all equal where `output` is None (raw logits).
        multiplier: int64, shape (out,), 1..65535, or None. Unused for raw logits.
        weight_mantissa: float64, shape (out,), or None for ones: value of a weight = code *
            mantissa * 2**weight_exponent. The multiplier is the integer nearest to input mantissa
            * weight mantissa / output mantissa, which software in floats divides by.
        stride, padding, dilation: (vertical, horizontal); padding is with code 0.
        groups: as in torch; each group is a GEMM of its own on the array.
    """

    op: str
    weight: np.ndarray
    bias: np.ndarray
    weight_exponent: np.ndarray
    multiplier: np.ndarray | None = None
    weight_mantissa: np.ndarray | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    # By identity: the inherited comparison would call layers with other weights equal.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def weight_scale(self) -> np.ndarray:
        """Values of weight code 1, float64 (out,)."""
        mantissa = 1.0 if self.weight_mantissa is None else self.weight_mantissa
        return mantissa * np.exp2(self.weight_exponent.astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class Add(Node):
    """Residual sum of two tensors: exact alignment to the finer scale, then requantization."""


@dataclass(frozen=True, kw_only=True)
class MaxPool(Node):
    """Maximum over windows of codes; padding never wins. The format is that of the input."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class AvgPool(Node):
    """``clip(round_half_even(sum * 2**(e_in - e_out) / (kh * kw)), lo, hi)``; padding is 0."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Requantize(Node):
    """A change of format alone, e.g. a ReLU that follows no layer it could be folded into."""


@dataclass(frozen=True, kw_only=True)
class Flatten(Node):
    """(N, C, H, W) to (N, C*H*W, 1, 1) in torch's order."""


NODE_TYPES: dict[str, type[Node]] = {
    t.__name__: t for t in (Gemm, Add, MaxPool, AvgPool, Requantize, Flatten)
}
_ARRAYS = {"weight": np.int8, "bias": np.int64, "weight_exponent": np.int64}
_OPTIONAL_ARRAYS = {"multiplier": np.int64, "weight_mantissa": np.float64}


def _arrays(node: Gemm) -> dict[str, np.ndarray]:
    """Return a layer's arrays by name, those that it has."""
    found = {name: getattr(node, name) for name in (*_ARRAYS, *_OPTIONAL_ARRAYS)}
    return {name: array for name, array in found.items() if array is not None}


def _format_json(fmt: TensorFormat) -> dict[str, Any]:
    # As before there were mantissas, so that such networks keep their hash.
    return {k: v for k, v in asdict(fmt).items() if (k, v) != ("mantissa", 1.0)}


@dataclass(frozen=True, kw_only=True)
class IntegerNetwork:
    """A quantized network as the accelerator computes it.

    Attributes:
        name: of the model, e.g. ``"vgg11"``.
        weight_bits, act_bits: 2..8; one width for all layers, image included.
        input: format of the image codes: ``clip(round_half_even(x / scale), lo, hi)`` of the
            normalized image x.
        input_shape: (C, H, W).
        num_classes: number of logits.
        nodes: in topological order; the last one gives the logits.
        metadata: JSON-able record of where it comes from: normalization (mean, std), data set,
            method, seed, accuracies, library versions.
    """

    name: str
    weight_bits: int
    act_bits: int
    input: TensorFormat
    input_shape: tuple[int, int, int]
    num_classes: int
    nodes: tuple[Node, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what the other rooms rely on; raise ValueError at the first broken promise."""
        known = {"input"}
        for node in self.nodes:
            missing = [i for i in node.inputs if i not in known]
            if missing:
                raise ValueError(f"{node.name}: inputs {missing} are not computed before it")
            if node.name in known:
                raise ValueError(f"two nodes are named {node.name!r}")
            known.add(node.name)
            if isinstance(node, Gemm):
                self._check_gemm(node)
            elif node.output is not None:
                formats = [node.output, *map(self.format_of, node.inputs)]
                if len({fmt.mantissa for fmt in formats}) > 1:
                    raise ValueError(f"{node.name}: the host shifts alone, all its tensors need "
                                     "one mantissa")  # fmt: skip

    def _check_gemm(self, node: Gemm) -> None:
        for name, array in _arrays(node).items():
            dtype = np.dtype((_ARRAYS | _OPTIONAL_ARRAYS)[name])
            if array.dtype != dtype:
                raise ValueError(f"{node.name}: {name} must be {dtype.name}")
        if node.multiplier is not None:
            low, high = node.multiplier.min(), node.multiplier.max()
            if low < 1 or high > MAX_MULTIPLIER:
                raise ValueError(
                    f"{node.name}: multipliers must be 1..{MAX_MULTIPLIER}, not {low}..{high}"
                )
        limit = (1 << (self.weight_bits - 1)) - 1
        if np.abs(node.weight.astype(np.int16)).max(initial=0) > limit:
            raise ValueError(f"{node.name}: a weight code is outside -{limit}..{limit}")
        if node.output is None:
            if len(np.unique(node.weight_scale)) > 1:
                raise ValueError(f"{node.name}: raw logits need one weight exponent")
        else:
            shift, most = self.shift(node), 31 if node.multiplier is None else 63
            if shift.min() < 0 or shift.max() > most:
                raise ValueError(
                    f"{node.name}: requantization shifts must be 0..{most}, "
                    f"not {shift.min()}..{shift.max()}"
                )

    def node(self, name: str) -> Node:
        """Return the node called `name`; KeyError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def format_of(self, name: str) -> TensorFormat:
        """Return the format of a tensor: ``"input"`` or a node with quantized output."""
        if name == "input":
            return self.input
        output = self.node(name).output
        if output is None:
            raise ValueError(f"{name} gives raw logits, which have no stored format")
        return output

    def shift(self, node: Gemm) -> np.ndarray:
        """Return the requantization shifts of a Gemm with quantized output, int64 (out,)."""
        assert node.output is not None
        return node.output.exponent - self.format_of(node.inputs[0]).exponent - node.weight_exponent

    @property
    def multiplies(self) -> bool:
        """Whether its layers have multipliers."""
        return any(node.multiplier is not None for node in self.gemms())

    def gemms(self) -> tuple[Gemm, ...]:
        """Return the layers that run on the array, in order."""
        return tuple(n for n in self.nodes if isinstance(n, Gemm))

    def content_hash(self) -> str:
        """Return 16 hex digits over all that is computed (not over `metadata`)."""
        header = self._header()
        header.pop("metadata")
        arrays = b"".join(a.tobytes() for n in self.gemms() for a in _arrays(n).values())
        return content_hash(json.dumps(header, sort_keys=True).encode() + arrays)

    def _header(self) -> dict[str, Any]:
        nodes = []
        for node in self.nodes:
            arrays = _ARRAYS | _OPTIONAL_ARRAYS
            entry = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in arrays}
            entry["output"] = _format_json(node.output) if node.output else None
            nodes.append({"type": type(node).__name__, **entry})
        return {
            "version": FORMAT_VERSIONS[self.multiplies],
            "name": self.name,
            "weight_bits": self.weight_bits,
            "act_bits": self.act_bits,
            "input": _format_json(self.input),
            "input_shape": list(self.input_shape),
            "num_classes": self.num_classes,
            "nodes": nodes,
            "metadata": self.metadata,
        }

    def save(self, path: Path) -> None:
        """Write one safetensors file; the header carries everything but the arrays as JSON."""
        arrays = {
            f"{n.name}.{name}": np.ascontiguousarray(array)
            for n in self.gemms()
            for name, array in _arrays(n).items()
        }
        with replacing(Path(path)) as temporary:
            header = json.dumps(self._header(), sort_keys=True)
            save_file(arrays, temporary, metadata={"trilat.network": header})

    @staticmethod
    def load(path: Path) -> IntegerNetwork:
        """Read what `save` wrote. Raises InputError if the file is not an IntegerNetwork."""
        path = Path(path)
        try:
            with safe_open(path, framework="np") as file:
                text = (file.metadata() or {}).get("trilat.network")
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise InputError(f"no such network file: {path}") from None
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a safetensors file: {error}") from None
        if text is None:
            raise InputError(f"{path} holds no IntegerNetwork (float weights go to --weights)")
        header = json.loads(text)
        if header.pop("version") not in FORMAT_VERSIONS:
            raise InputError(f"{path} was written by another version of trilat; export it again")
        try:
            nodes = []
            for entry in header.pop("nodes"):
                kind = NODE_TYPES[entry.pop("type")]
                if entry["output"] is not None:
                    entry["output"] = TensorFormat(**entry["output"])
                entry = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
                if kind is Gemm:
                    stem = entry["name"]
                    entry |= {a: arrays[f"{stem}.{a}"] for a in _ARRAYS}
                    entry |= {a: arrays.get(f"{stem}.{a}") for a in _OPTIONAL_ARRAYS}
                nodes.append(kind(**entry))
            header["input"] = TensorFormat(**header["input"])
            header["input_shape"] = tuple(header["input_shape"])
            return IntegerNetwork(nodes=tuple(nodes), **header)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is a damaged IntegerNetwork: {error}") from None
