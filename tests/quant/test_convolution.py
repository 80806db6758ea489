# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from quant.convolution import conv2d, fast_convolutions


@settings(deadline=None)  # the first convolution of a process takes seconds
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
)
def test_values_and_gradients_are_those_of_torch(
    size, kernel, padding, stride, dilation, groups, bias
):
    reach = [dilation * (k - 1) + 1 for k in kernel]
    if any(s + 2 * p < r for s, p, r in zip(size, padding, reach, strict=True)):
        return
    random = torch.Generator().manual_seed(1)

    def draw(*shape):
        value = torch.randn(*shape, generator=random, dtype=torch.float64)
        return value.requires_grad_()

    x, weight = draw(2, 4, *size), draw(6, 4 // groups, *kernel)
    offset = draw(6) if bias else None
    leaves = [leaf for leaf in (x, weight, offset) if leaf is not None]
    geometry = ((stride, stride), padding, (dilation, dilation), groups)
    want = functional.conv2d(x, weight, offset, *geometry)
    got = conv2d(x, weight, offset, *geometry)
    torch.testing.assert_close(got, want)
    error = torch.randn(want.shape, generator=random, dtype=torch.float64)
    expected = torch.autograd.grad(want, leaves, error)
    for mine, theirs in zip(torch.autograd.grad(got, leaves, error), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_module_trains_alike_and_is_left_as_it_was():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"),
    ).double()
    twin = copy.deepcopy(module)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with fast_convolutions(module):
        assert "forward" in vars(module[0])
        module(x).sum().backward()
    twin(x).sum().backward()
    for mine, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert not any("forward" in vars(layer) for layer in module)
    with pytest.raises(ValueError, match="inside"), fast_convolutions(module):
        raise ValueError("inside")
    assert not any("forward" in vars(layer) for layer in module)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [3, 12, 28])
def test_gradients_under_autocast_are_those_of_float32(channels, size):
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 6, 3, padding=1)
    x, error = torch.randn(33, channels, size, size), torch.randn(33, 6, size, size)
    gradients = []
    for enabled in (True, False):
        layer.zero_grad()
        with fast_convolutions(layer), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            result = layer(x)
        assert result.dtype == (torch.bfloat16 if enabled else torch.float32)
        result.backward(error.to(result.dtype))
        assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
        gradients.append(layer.weight.grad.flatten().clone())
    assert float(functional.cosine_similarity(*gradients, dim=0)) > 0.999
