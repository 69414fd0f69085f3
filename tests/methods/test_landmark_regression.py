"""Landmark regression: soft maxima and errors worked by hand, the published layers written again."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sfumato.methods.perceive.landmark_regression import Regressor, missed, soft_argmax


def test_a_soft_maximum_worked_by_hand():
    """Four cells in a row, middles at -0.75, -0.25, 0.25, 0.75; of logits 0, 0, 0, log 3 the last has half of it."""
    logits = torch.tensor([[0.0, 0.0, 0.0, math.log(3)]])
    assert soft_argmax(logits).tolist() == pytest.approx([0.25, 0.0])  # (-0.75 - 0.25 + 0.25 + 3 * 0.75) / 6
    sure = torch.full((2, 3, 4), -1e4)
    sure[0, 2, 1], sure[1, 0, 3] = 0, 0
    torch.testing.assert_close(soft_argmax(sure), torch.tensor([[-0.25, 2 / 3], [0.75, -2 / 3]]))


def test_the_layers_are_the_published_ones():
    """A convolution of 1 x 1 without bias, a softmax of 50 times that, and a linear layer a landmark."""
    net = Regressor(width=3, landmarks=2, virtual=4)
    features = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    unit = features / features.norm(dim=1, keepdim=True)
    maps = F.conv2d(unit, net.filters.flatten(0, 1)[:, :, None, None]).view(2, 2, 4, 5, 6)
    x, y = (torch.arange(6) + 0.5) / 3 - 1, (torch.arange(5) + 0.5) / 2.5 - 1
    p = (50 * maps).flatten(3).softmax(3).view_as(maps)
    virtual = torch.stack([(p.sum(3) * x).sum(3), (p.sum(4) * y).sum(3)], -1)
    torch.testing.assert_close(net.virtual(features), virtual)
    for j in range(2):
        told = virtual[:, j].flatten(1) @ net.weights[j].flatten(0, 1)
        torch.testing.assert_close(net(features)[:, j], (told + 1) / 2)
    torch.testing.assert_close(net(10 * features), net(features))
    assert 0.2 < net.weights.abs().max() <= 8**-0.5


def test_what_is_not_visible_is_not_learned_from():
    found = torch.tensor([[[0.5, 0.5], [0.0, 0.0]], [[1.0, 0.5], [0.0, 0.0]]])
    truth = torch.tensor([[[0.5, 1.0], [9.0, 9.0]], [[0.0, 0.5], [9.0, 9.0]]])
    visible = torch.tensor([[True, False], [True, False]])
    assert float(missed(found, truth, visible)) == pytest.approx((1 + 4) / 2)  # from -1 to 1, twice as far
    assert float(missed(found, truth, ~visible & False)) == 0.0
