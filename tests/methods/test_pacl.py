"""PACL: its loss worked by hand, its head against torch's own layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sfumato.methods.perceive.open_vocabulary import compatibility, similarity
from sfumato.methods.perceive.pacl import PatchEmbedder, contrast


def test_a_text_fits_an_image_by_the_patches_that_fit_it():
    """Two patches, one along the text and twice as long, one across: weights e and 1, a mean along (2 e, 1)."""
    patches, texts = torch.tensor([[[4.0, 0], [0, 2]], [[1, 0], [1, 0]]]), torch.tensor([[3.0, 0], [1, 1]])
    fits = compatibility(patches, texts)
    e = math.e
    even = (2 + 1) / math.hypot(2, 1) / math.sqrt(2)  # of equal weights, with a text between them
    expected = [[2 * e / math.hypot(2 * e, 1), even], [1.0, math.sqrt(0.5)]]
    torch.testing.assert_close(fits, torch.tensor(expected))
    sharp = compatibility(patches, texts, sharpness=3.0)[0, 0]
    assert float(sharp) == pytest.approx(2 * e**3 / math.hypot(2 * e**3, 1))
    half = 0.5**0.5
    expected = [[[1, 0], [half, half]], [[1, 1], [half, half]]]
    torch.testing.assert_close(similarity(patches, texts), torch.tensor(expected))


def test_the_contrast_of_two_pairs_worked_by_hand():
    """Rows: log(1 + e^-4) and log(1 + e^-1); columns: log(1 + e^-3) and log(1 + e^-2)."""
    fits = torch.tensor([[0.5, 0.1], [0.2, 0.3]])  # over the temperature 5, 1; 2, 3
    each = [math.log1p(math.exp(-d)) for d in (4, 1, 3, 2)]
    assert float(contrast(fits, ["a", "b"], 0.1)) == pytest.approx(sum(each) / 4)


def test_pairs_of_the_same_words_are_no_negatives():
    """Of three pairs, the first two alike: each is held against the third alone, and that one against both."""
    fits = torch.tensor([[2.0, 9, 0], [9, 1, 0], [0, 0, 1]])
    a, b, c = math.log1p(math.exp(-2)), math.log1p(math.exp(-1)), math.log(math.e + 2) - 1
    assert float(contrast(fits, ["x", "x", "y"], 1.0)) == pytest.approx((a + b + c) / 3)
    assert float(contrast(fits[:2, :2], ["x", "x"], 1.0)) == 0.0


def test_the_head_is_a_linear_layer_beside_two():
    """By hand: x = -1 of mean 1 and deviation 2 is -1; 3 x is -3; beside it 2 GELU(-x) = 2 GELU(1), less 1."""
    head = PatchEmbedder(1, 1)
    head.load_state_dict({
        "before.mean": torch.ones(1), "before.scale": torch.full((1,), 2.0), "words": torch.zeros(0, 1),
        "linear.weight": torch.full((1, 1), 3.0), "linear.bias": torch.zeros(1), "beside.0.weight": -torch.ones(1, 1),
        "beside.0.bias": torch.zeros(1), "beside.2.weight": torch.full((1, 1), 2.0), "beside.2.bias": -torch.ones(1),
    })  # fmt: skip
    gelu = 0.5 * (1 + math.erf(0.5**0.5))
    assert head(torch.tensor([[-1.0]])).item() == pytest.approx(-3 + 2 * gelu - 1)
