# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quant.graph import trace
from quant.ops import ActivationOp, AddOp, AffineOp, FlattenOp, GemmOp, Op, PoolOp, run
from trilat.errors import InputError

SHAPE = (3, 12, 12)


def randomized(module: nn.Module) -> nn.Module:
    """Give batch norms statistics that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator))
            layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.2)
            if layer.affine:
                layer.weight.data.copy_(torch.randn(layer.num_features, generator=generator))
                layer.bias.data.copy_(torch.randn(layer.num_features, generator=generator))
    return module.eval()


def head(features: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(features, 5)]


class Functional(nn.Module):
    """The functional and method forms, sizes from the tensor, a shared ReLU, a reused name."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding="same", dilation=2)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8 * 9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(F.max_pool2d(self.a(x), 2))
        y = F.relu6(self.b(x))
        x = torch.add(x, y)
        x = F.avg_pool2d(x, kernel_size=3, stride=2, padding=1).contiguous()
        x = F.dropout(x, training=self.training)
        return self.fc(x.view(x.size(0), -1))


class Residual(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(6, 6, 3, stride, 1, bias=False)
        self.b1 = nn.BatchNorm2d(6)
        self.c2 = nn.Conv2d(6, 6, 3, 1, 1, bias=False)
        self.b2 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential(nn.Conv2d(6, 6, 1, stride), nn.BatchNorm2d(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.b2(self.c2(self.relu(self.b1(self.c1(x)))))
        out += self.down(x)
        return self.relu(out)


class GlobalMean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean([-1, -2])


class PreActivation(nn.Module):
    """A norm and a ReLU of a sum that is used again: neither can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(600, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.conv(torch.relu(self.norm(x)))
        return self.fc(torch.flatten(x.relu() + y, 1))


NETWORKS = {
    "plain": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), *head(200)
    ),
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(3, 12, (3, 1), padding=(1, 0), groups=3),
        nn.BatchNorm2d(12, affine=False),
        nn.Conv2d(12, 12, 3, dilation=(1, 2), groups=12),
        nn.AvgPool2d((2, 4), stride=(3, 2)),
        nn.Dropout2d(0.3),
        nn.Identity(),
        nn.AdaptiveAvgPool2d(1),
        *head(12),
    ),
    "linear norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(432, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 5)
    ),
    "norm first": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), *head(432)),
    "residual": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 1), Residual(1), Residual(2), GlobalMean(), nn.Linear(6, 5)
    ),
    "functional": Functional,
    "pre-activation": PreActivation,
    "convolution ends": lambda: nn.Sequential(nn.Conv2d(3, 5, 12), nn.Flatten()),
    "divisible adaptive": lambda: nn.Sequential(nn.AdaptiveAvgPool2d((4, None)), *head(144)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_traced_operations_compute_the_module(name: str) -> None:
    torch.manual_seed(0)
    module = randomized(NETWORKS[name]())
    images = torch.randn(3, *SHAPE)
    ops = trace(module, SHAPE)
    with torch.no_grad():
        values = run(ops, images)
        torch.testing.assert_close(values[ops[-1].name].flatten(1), module(images))
    for op in ops:
        assert not isinstance(op, AffineOp)
        assert tuple(values[op.name].shape[1:]) == op.shape


def summary(module: nn.Module) -> list[tuple[type[Op], str, str]]:
    return [(type(op), op.name, op.activation) for op in trace(randomized(module), SHAPE)]


def test_folds_norm_and_relu_into_the_layer_and_names_it_by_its_path() -> None:
    assert summary(NETWORKS["plain"]()) == [
        (GemmOp, "0", "relu6"),
        (FlattenOp, "3", "none"),
        (GemmOp, "4", "none"),
    ]


def test_relu_moves_in_front_of_max_pooling() -> None:
    assert summary(Functional())[:3] == [
        (GemmOp, "a", "relu"),
        (PoolOp, "max_pool2d", "none"),
        (GemmOp, "b", "relu6"),
    ]


def test_residual_sum_takes_the_relu() -> None:
    kinds = summary(NETWORKS["residual"]())
    assert (AddOp, "add", "relu") in kinds
    assert (AddOp, "add_1", "relu") in kinds
    assert not any(kind is ActivationOp for kind, _, _ in kinds)


def test_norm_and_relu_of_a_tensor_used_again_stay() -> None:
    assert summary(PreActivation()) == [
        (GemmOp, "stem", "none"),
        (GemmOp, "norm", "relu"),
        (GemmOp, "conv", "none"),
        (ActivationOp, "relu_1", "relu"),
        (AddOp, "add", "none"),
        (FlattenOp, "flatten", "none"),
        (GemmOp, "fc", "none"),
    ]


def test_norm_folding_is_exact_to_one_rounding() -> None:
    module = randomized(NETWORKS["plain"]())
    conv, norm = module[0], module[1]
    gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    op = trace(module, SHAPE)[0]
    assert isinstance(op, GemmOp)
    expected = (conv.weight.double() * gain[:, None, None, None]).float()
    torch.testing.assert_close(op.weight, expected, rtol=2e-7, atol=0)


def test_module_is_left_as_it_was() -> None:
    module = NETWORKS["plain"]().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trace(module, SHAPE)
    assert module.training
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


class Concatenate(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x], 1)


class Split(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = torch.chunk(x, 2, dim=2)
        return a + b


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0.5


class Shifted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class Broadcast(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.mean((2, 3), keepdim=True)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class ChangedInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.relu(x) + x


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x.flatten(0, 1))[0]


BAD = [
    (nn.Sequential(nn.Sequential(nn.Sigmoid()), *head(432)), "Sigmoid at '0.0'"),
    (nn.Sequential(nn.ConvTranspose2d(3, 3, 1), *head(432)), "ConvTranspose2d at '0'"),
    (nn.Sequential(Concatenate(), *head(864)), "cat at the forward of '0'"),
    (nn.Sequential(Split(), *head(216)), "chunk at the forward of '0'"),
    (nn.Sequential(Scaled(), *head(432)), "mul at the forward of '0'"),
    (nn.Sequential(Shifted(), *head(432)), "not a tensor at the forward of '0'"),
    (nn.Sequential(Broadcast(), *head(432)), "equal shapes"),
    (nn.Sequential(Recurrent(), *head(12)), "LSTM at '0.rnn'"),
    (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), *head(432)), "'reflect'"),
    (nn.Sequential(nn.Conv2d(3, 3, 2, padding="same"), *head(432)), "not symmetric"),
    (nn.Sequential(nn.MaxPool2d(5, ceil_mode=True), *head(27)), "ceil_mode=True"),
    (nn.Sequential(nn.MaxPool2d(2, dilation=2), *head(75)), "dilation=2"),
    (nn.Sequential(nn.AvgPool2d(2, padding=1, count_include_pad=False), *head(147)), "include_pad"),
    (nn.Sequential(nn.AvgPool2d(2, divisor_override=3), *head(108)), "divisor_override=3"),
    (nn.Sequential(nn.AdaptiveAvgPool2d(5), *head(75)), "sizes that divide"),
    (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), *head(432)), "running statistics"),
    (nn.Sequential(nn.Linear(12, 12), *head(432)), "not flat"),
    (nn.Sequential(*head(100)), "does not accept images of 3x12x12"),
    (nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1)), "must end with"),
    (nn.Sequential(*head(432), nn.ReLU()), "must end with"),
    (nn.Sequential(), "must end with"),
    (nn.Sequential(Branching(), *head(432)), "cannot be traced"),
    (nn.Sequential(ChangedInPlace(), *head(432)), "in place"),
    (nn.Sequential(*head(432), Pair()), "more than one tensor"),
]


@pytest.mark.parametrize(("module", "message"), BAD, ids=[message for _, message in BAD])
def test_unsupported_is_one_clear_line(module: nn.Module, message: str) -> None:
    with pytest.raises(InputError) as caught:
        trace(module, SHAPE)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert len(text) < 320
