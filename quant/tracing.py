# SPDX-License-Identifier: Apache-2.0
"""Reads a module with torch.fx, one operation per node, nothing folded yet (see `quant.graph`)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from quant.ops import (
    SUPPORTED,
    ActivationOp,
    AddOp,
    AffineOp,
    FlattenOp,
    GemmOp,
    Op,
    Pair,
    PoolOp,
)
from trilat.errors import InputError

_MODULES = (
    nn.Conv2d,
    nn.Linear,
    nn.ReLU,
    nn.ReLU6,
    nn.BatchNorm2d,
    nn.BatchNorm1d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)
# What a function or tensor method computes; in-place forms are the same after `x = f_(x)`.
_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu6: "relu6",
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    F.max_pool2d: "max_pool2d",
    torch.max_pool2d: "max_pool2d",
    F.avg_pool2d: "avg_pool2d",
    F.adaptive_avg_pool2d: "adaptive_avg_pool2d",
    torch.flatten: "reshape",
    torch.reshape: "reshape",
    torch.squeeze: "reshape",
    torch.mean: "mean",
    F.dropout: "identity",
    F.dropout2d: "identity",
}
_METHODS = {
    "relu": "relu",
    "relu_": "relu",
    "add": "add",
    "add_": "add",
    "flatten": "reshape",
    "view": "reshape",
    "reshape": "reshape",
    "squeeze": "reshape",
    "mean": "mean",
    "contiguous": "identity",
}
_BATCH = 2
_WINDOW = ("input", "kernel_size", "stride", "padding")


def traced_ops(module: nn.Module, input_shape: tuple[int, int, int]) -> list[Op]:
    """Return one operation per traced node of a module in evaluation mode.

    Args:
        module: the float module, in evaluation mode.
        input_shape: (C, H, W) of one image.

    Raises:
        InputError: it cannot be traced, does not accept such images, or has unsupported layers.
    """
    graph_module = _symbolic(module)
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            _check_module_type(node, graph_module.get_submodule(str(node.target)))
    shapes = _Shapes(graph_module)
    try:
        with torch.no_grad():
            shapes.run(torch.zeros(_BATCH, *input_shape))
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        images = "x".join(map(str, input_shape))
        where = f" at {_place(shapes.running)}" if shapes.running is not None else ""
        raise InputError(
            f"the model does not accept images of {images}: {_one_line(error)}{where}"
        ) from None
    return _Reader(graph_module).read()


class _Shapes(fx.Interpreter):
    """Runs the graph and notes the shape of every tensor in its node."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False
        self.running: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.running = n
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        elif isinstance(result, tuple | list) and any(isinstance(r, Tensor) for r in result):
            n.meta["several"] = True
        return result


def _symbolic(module: nn.Module) -> fx.GraphModule:
    try:
        graph_module = fx.symbolic_trace(module)
    except Exception as error:  # a user's forward may raise anything
        raise InputError(
            f"the model cannot be traced: {_one_line(error)} "
            "(its forward must not branch on values of tensors)"
        ) from None
    graph_module.graph.eliminate_dead_code()
    return graph_module


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _path(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack.values()))[0] if stack else ""


def _place(node: fx.Node) -> str:
    path = _path(node)
    if node.op == "call_module":
        return f"'{path}'"
    return f"the forward of '{path}'" if path else "the model's forward"


def _unsupported(node: fx.Node, what: str) -> InputError:
    return InputError(f"unsupported layer {what} at {_place(node)} (supported: {SUPPORTED})")


def _setting(node: fx.Node, layer: str, setting: str, accepted: str) -> InputError:
    return InputError(
        f"unsupported setting of {layer} at {_place(node)}: {setting} (accepted: {accepted})"
    )


def _check_module_type(node: fx.Node, module: nn.Module) -> None:
    if not isinstance(module, _MODULES):
        raise _unsupported(node, type(module).__name__)


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape of a node's tensor, or None where its result is no single tensor."""
    return node.meta.get("shape")


def _pair(value: Any) -> Pair:
    if isinstance(value, int):
        return (value, value)
    first, second = (*value, *value)[:2]
    return (int(first), int(second))


class _Reader:
    """Walks the nodes in order; `values` maps each to the operation that gives its tensor."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self.graph_module = graph_module
        self.values: dict[fx.Node, str] = {}
        self.ops: list[Op] = []
        self.calls: dict[str, int] = {}

    def read(self) -> list[Op]:
        inputs = 0
        for node in self.graph_module.graph.nodes:
            if node.op == "placeholder":
                inputs += 1
                if inputs > 1:
                    raise InputError("the model takes several inputs; one image is accepted")
                self.values[node] = "input"
            elif node.op == "get_attr":
                if node.users:
                    raise _unsupported(node, f"use of the tensor {node.target}")
            elif node.op == "output":
                self._check_output(node)
            elif node.op == "call_module":
                self._module(node, self.graph_module.get_submodule(str(node.target)))
            else:
                self._function(node)
        return self.ops

    def _check_output(self, node: fx.Node) -> None:
        result = node.args[0]
        if not isinstance(result, fx.Node) or result not in self.values:
            raise InputError("the model returns more than one tensor; logits alone are accepted")
        last = self.ops[-1].name if self.ops else "input"
        if self.values[result] != last:
            raise InputError(f"the model's output is not its last layer ('{last}')")

    def _name(self, node: fx.Node) -> str:
        """Return the module's path, or the function's traced name; a number where used again."""
        name = _path(node) if node.op == "call_module" else node.name
        count = self.calls.get(name, 0)
        self.calls[name] = count + 1
        return f"{name}_{count}" if count else name

    def _chw(self, node: fx.Node) -> tuple[int, int, int]:
        shape = _shape(node)
        if shape is None or len(shape) not in (2, 4) or shape[0] != _BATCH:
            raise _unsupported(node, f"with an output of shape {shape}")
        return (shape[1], 1, 1) if len(shape) == 2 else (shape[1], shape[2], shape[3])

    def _source(self, node: fx.Node, argument: Any = None) -> str:
        source = node.args[0] if argument is None and node.args else argument
        if source is None:
            source = node.kwargs.get("input", node.kwargs.get("x"))
        if not isinstance(source, fx.Node) or source not in self.values:
            raise _unsupported(node, f"{_called(node)} of something that is not a tensor")
        return self.values[source]

    def _add(self, node: fx.Node, make: Callable[..., Op], **fields: Any) -> None:
        fields = {"inputs": (self._source(node),), "shape": self._chw(node), **fields}
        op = make(name=self._name(node), **fields)
        self.ops.append(op)
        self.values[node] = op.name

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            self._convolution(node, module)
        elif isinstance(module, nn.Linear):
            if len(_shape(node) or ()) != 2:
                raise _setting(node, "Linear", "input that is not flat", "(N, features)")
            weight = module.weight.detach()[:, :, None, None].clone()
            self._add(node, GemmOp, kind="linear", weight=weight, bias=_bias(module))
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            self._batch_norm(node, module)
        elif isinstance(module, nn.ReLU | nn.ReLU6):
            kind = "relu6" if isinstance(module, nn.ReLU6) else "relu"
            self._add(node, ActivationOp, activation=kind)
        elif isinstance(module, nn.MaxPool2d):
            self._max_pool(node, vars(module))
        elif isinstance(module, nn.AvgPool2d):
            self._avg_pool(node, vars(module))
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            self._adaptive(node, module.output_size)
        elif isinstance(module, nn.Flatten):
            self._reshape(node)
        else:  # Dropout and Identity
            self.values[node] = self._source(node)

    def _function(self, node: fx.Node) -> None:
        if _shape(node) is None and "several" not in node.meta:
            return  # sizes of tensors and arithmetic on them, which a `view` needs
        if node.op == "call_method":
            kind = _METHODS.get(str(node.target))
        else:
            kind = _FUNCTIONS.get(node.target)
        if kind in ("relu", "relu6"):
            self._add(node, ActivationOp, activation=kind)
        elif kind == "add":
            self._sum(node)
        elif kind == "max_pool2d":
            self._max_pool(node, _arguments(node, (*_WINDOW, "dilation", "ceil_mode")))
        elif kind == "avg_pool2d":
            names = (*_WINDOW, "ceil_mode", "count_include_pad", "divisor_override")
            self._avg_pool(node, _arguments(node, names))
        elif kind == "adaptive_avg_pool2d":
            self._adaptive(node, _arguments(node, ("input", "output_size"))["output_size"])
        elif kind == "mean":
            self._mean(node)
        elif kind == "reshape":
            self._reshape(node)
        elif kind == "identity":
            self.values[node] = self._source(node)
        else:
            raise _unsupported(node, _called(node))

    def _convolution(self, node: fx.Node, module: nn.Conv2d) -> None:
        if module.padding_mode != "zeros":
            raise _setting(node, "Conv2d", f"padding_mode={module.padding_mode!r}", "'zeros'")
        padding = module.padding
        if isinstance(padding, str):
            kernel = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
            if padding == "same" and any(k % 2 for k in kernel):
                raise _setting(node, "Conv2d", "padding='same' that is not symmetric", "a number")
            padding = tuple(k // 2 for k in kernel) if padding == "same" else (0, 0)
        self._add(
            node,
            GemmOp,
            kind="conv",
            weight=module.weight.detach().clone(),
            bias=_bias(module),
            stride=_pair(module.stride),
            padding=_pair(padding),
            dilation=_pair(module.dilation),
            groups=module.groups,
        )

    def _batch_norm(self, node: fx.Node, module: nn.BatchNorm2d | nn.BatchNorm1d) -> None:
        if module.running_mean is None or module.running_var is None:
            kind = type(module).__name__
            raise _setting(node, kind, "track_running_stats=False", "running statistics")
        scale = (module.running_var.double() + module.eps).rsqrt()
        if module.affine:
            scale = scale * module.weight.detach().double()
        shift = -module.running_mean.double() * scale
        if module.affine:
            shift = shift + module.bias.detach().double()
        self._add(node, AffineOp, scale=scale, shift=shift)

    def _max_pool(self, node: fx.Node, settings: dict[str, Any]) -> None:
        for name, plain in (("ceil_mode", False), ("return_indices", False)):
            if settings.get(name, plain) != plain:
                raise _setting(node, "MaxPool2d", f"{name}={settings[name]}", str(plain))
        if _pair(settings.get("dilation", 1)) != (1, 1):
            raise _setting(node, "MaxPool2d", f"dilation={settings['dilation']}", "1")
        self._pool(node, "max", settings)

    def _avg_pool(self, node: fx.Node, settings: dict[str, Any]) -> None:
        if settings.get("ceil_mode", False):
            raise _setting(node, "AvgPool2d", "ceil_mode=True", "False")
        if settings.get("divisor_override") is not None:
            value = settings["divisor_override"]
            raise _setting(node, "AvgPool2d", f"divisor_override={value}", "None")
        padded = _pair(settings.get("padding", 0)) != (0, 0)
        if padded and not settings.get("count_include_pad", True):
            raise _setting(node, "AvgPool2d", "count_include_pad=False with padding", "True")
        self._pool(node, "avg", settings)

    def _pool(self, node: fx.Node, kind: str, settings: dict[str, Any]) -> None:
        kernel = _pair(settings["kernel_size"])
        stride = settings.get("stride")
        self._add(
            node,
            PoolOp,
            kind=kind,
            kernel=kernel,
            stride=_pair(stride) if stride not in (None, (), []) else kernel,
            padding=_pair(settings.get("padding", 0)),
        )

    def _input_size(self, node: fx.Node) -> Pair:
        self._source(node)
        source = node.args[0] if node.args else node.kwargs.get("input")
        shape = _shape(source) if isinstance(source, fx.Node) else None
        if shape is None or len(shape) != 4:
            raise _unsupported(node, f"{_called(node)} of a tensor that is not an image")
        return (shape[2], shape[3])

    def _adaptive(self, node: fx.Node, output_size: Any) -> None:
        size = self._input_size(node)
        wanted = (output_size,) * 2 if isinstance(output_size, int | None) else tuple(output_size)
        target = [s if w is None else int(w) for s, w in zip(size, wanted, strict=True)]
        if any(s % t for s, t in zip(size, target, strict=True)):
            raise _setting(
                node, "AdaptiveAvgPool2d", f"{size} to {tuple(target)}", "sizes that divide"
            )
        kernel = (size[0] // target[0], size[1] // target[1])
        if kernel == (1, 1):
            self.values[node] = self._source(node)
        else:
            self._add(node, PoolOp, kind="avg", kernel=kernel, stride=kernel)

    def _mean(self, node: fx.Node) -> None:
        size = self._input_size(node)
        dims = _arguments(node, ("input", "dim", "keepdim")).get("dim")
        axes = sorted(d % 4 for d in ((dims,) if isinstance(dims, int) else tuple(dims or ())))
        if axes != [2, 3]:
            raise _setting(node, "mean", f"dim={dims}", "both spatial dimensions, (2, 3)")
        self._add(node, PoolOp, kind="avg", kernel=size, stride=size)

    def _sum(self, node: fx.Node) -> None:
        settings = _arguments(node, ("input", "other"))
        if settings.get("alpha", 1) != 1:
            raise _setting(node, "add", f"alpha={settings['alpha']}", "1")
        operands = [settings.get("input"), settings.get("other")]
        names = tuple(self._source(node, operand) for operand in operands)
        shapes = [_shape(operand) for operand in operands if isinstance(operand, fx.Node)]
        if shapes[0] != shapes[1]:
            raise _setting(node, "add", f"shapes {shapes[0]} and {shapes[1]}", "equal shapes")
        self._add(node, AddOp, inputs=names)

    def _reshape(self, node: fx.Node) -> None:
        source = node.args[0] if node.args else node.kwargs.get("input")
        name = self._source(node)
        before, after = _shape(source) if isinstance(source, fx.Node) else None, _shape(node)
        assert before is not None and after is not None
        features = 1
        for extent in before[1:]:
            features *= extent
        if after == before or (after[:2] == before[:2] == (_BATCH, features)):
            self.values[node] = name  # nothing but 1x1 pixels comes or goes
        elif after == (_BATCH, features):
            self._add(node, FlattenOp)
        else:
            raise _setting(
                node, _called(node), f"{before[1:]} to {after[1:]}", "(C, H, W) to (C*H*W,)"
            )


def _called(node: fx.Node) -> str:
    if node.op == "call_module":
        return "the module"
    target = node.target
    return str(getattr(target, "__name__", target))


def _bias(module: nn.Conv2d | nn.Linear) -> Tensor:
    if module.bias is None:
        return torch.zeros(module.weight.shape[0])
    return module.bias.detach().clone()


def _arguments(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """Return a call's arguments by name, positional ones named in order."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}
