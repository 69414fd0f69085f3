"""Layers that read more."""

import pytest
import torch
from torch import nn

from sfumato.errors import SfumatoError
from sfumato.learning.widening import widened


@pytest.fixture
def conv():
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, 3, padding=1, stride=2)


def test_what_is_new_is_not_read_at_first(conv):
    x, more = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8, 8)
    wide = widened(conv, 3)
    assert torch.allclose(wide(torch.cat([x, more], 1)), conv(x), atol=1e-6)
    assert wide.weight.shape == (6, 7, 3, 3)


def test_the_same_in_each_place_is_read_as_before_and_each_counts_the_same(conv):
    x, more = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    wide = widened(conv, 8, repeated=True)
    assert torch.allclose(wide(torch.cat([x, x, x], 1)), conv(x), atol=1e-6)
    assert torch.allclose(wide(torch.cat([x, more, x], 1)), conv((2 * x + more) / 3), atol=1e-5)


def test_it_learns_in_float32_and_the_layer_stays_as_it_is(conv):
    before = conv.half().weight.clone()
    wide = widened(conv, 4, repeated=True)
    wide.weight.data.add_(1)
    assert wide.weight.dtype == torch.float32 and wide.weight.requires_grad
    assert torch.equal(conv.weight, before)


def test_other_layers_and_odd_repetitions_are_refused(conv):
    with pytest.raises(SfumatoError, match="a plain convolution can read more channels, not a Linear"):
        widened(nn.Linear(2, 2), 2)
    with pytest.raises(SfumatoError, match="repeated, a multiple of 4; got 3"):
        widened(conv, 3, repeated=True)
