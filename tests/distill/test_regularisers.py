"""Losses on colours against plain formulas, and that they do what they are named for."""

from __future__ import annotations

import colorsys
import math

import pytest
import torch

from sfumato.distill.generators import Rendering
from sfumato.distill.regularisers import Histogram, Hue, Saturation, colour
from sfumato.errors import SfumatoError

ALL = (Saturation, Hue, Histogram)


def drawn(*shape, seed=0, low=0.2, high=0.8):
    u = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return low + (high - low) * u


def saturated(images, by):
    """Colours so many times as far from grey."""
    grey = images.mean(-3, keepdim=True)
    return grey + by * (images - grey)


def rotated(images, degrees):
    """Hues turned around the axis of greys (Rodrigues)."""
    k = torch.full((3,), 3**-0.5, dtype=torch.float64)
    cross = torch.tensor([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]], dtype=torch.float64)
    a = math.radians(degrees)
    turn = torch.eye(3, dtype=torch.float64) + math.sin(a) * cross + (1 - math.cos(a)) * cross @ cross
    return torch.einsum("ij,...jhw->...ihw", turn, images)


def descent(loss, images):
    x = images.clone().requires_grad_()
    loss(Rendering(x)).backward()
    return -x.grad


@pytest.mark.parametrize("rgb", [(1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1)])
def test_the_plane_of_colours_has_the_hues_at_their_angles_and_pure_ones_at_one(rgb):
    u, v = colour(torch.tensor(rgb, dtype=torch.float64).view(1, 3, 1, 1)).flatten().tolist()
    assert math.hypot(u, v) == pytest.approx(1)
    assert math.atan2(v, u) % math.tau == pytest.approx(colorsys.rgb_to_hsv(*rgb)[0] * math.tau)


@pytest.mark.parametrize("kind", ALL)
def test_at_the_reference_there_is_no_loss_and_no_gradient(kind):
    like = drawn(3, 5, 7)
    images = like.repeat(2, 1, 1, 1).requires_grad_()
    loss = kind(like, 3.0)(Rendering(images))
    loss.backward()
    assert loss.shape == () and loss.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(images.grad, torch.zeros_like(images), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ALL)
def test_losses_are_sums_over_images_and_grow_with_their_weight(kind):
    like, images = saturated(drawn(3, 4, 4), 0.5), drawn(3, 3, 6, 5, seed=1)
    each = [kind(like)(Rendering(one)).item() for one in images.split(1)]
    assert min(each) > 0
    assert kind(like, 2.5)(Rendering(images)).item() == pytest.approx(2.5 * sum(each))


@pytest.mark.parametrize("kind", ALL)
def test_the_gradient_is_the_right_one(kind):
    like = saturated(drawn(3, 3, 3), 0.5)
    assert torch.autograd.gradcheck(lambda x: kind(like, 1.7)(Rendering(x)), drawn(2, 3, 3, 4, seed=2).requires_grad_())


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_grey_images_have_a_finite_gradient(kind, level):
    images = torch.full((1, 3, 4, 4), level, requires_grad=True)
    kind(drawn(3, 4, 4).float())(Rendering(images)).backward()
    assert images.grad.isfinite().all()


def test_one_step_down_the_saturation_is_the_nearest_image_with_the_references():
    like, images = drawn(3, 6, 6), saturated(drawn(2, 3, 4, 4, seed=1), 1.5)

    def amount(image):
        r, g, b = image
        return (r**2 + g**2 + b**2 - r * g - g * b - b * r).mean().sqrt().item()  # of (1, 0, 0): 1

    for before, after in zip(images, images + descent(Saturation(like), images), strict=True):
        assert amount(before) > amount(like)
        torch.testing.assert_close(after, saturated(before, amount(like) / amount(before)))
    assert (
        Saturation(like)(Rendering(saturated(like, 0.9)[None])).item() == 0
    )  # less than the reference's costs nothing


def test_hue_is_that_of_the_mean_colour_whatever_its_saturation():
    like = torch.tensor([0.6, 0.3, 0.2], dtype=torch.float64).view(3, 1, 1) + 0.05 * drawn(3, 4, 4)
    loss = Hue(like)
    for by in (0.0, 0.3, 2.0):
        assert loss(Rendering(saturated(like, by)[None])).item() == pytest.approx(0, abs=1e-12)
    radius = colour(like[None]).mean((2, 3)).norm().item()
    for degrees in (20, 60, 90, 150, 180):
        off = radius * (math.sin(math.radians(degrees)) if degrees < 90 else 1)
        found = loss(Rendering(rotated(like, degrees)[None])).item()
        assert found == pytest.approx(16 * off**2 / 3)
        assert loss(Rendering(rotated(like, -degrees)[None])).item() == pytest.approx(found)


def test_one_step_down_the_hue_is_a_shift_to_the_mean_hue():
    like = drawn(3, 4, 4) + torch.tensor([0.2, 0.0, -0.2], dtype=torch.float64).view(3, 1, 1)
    images = rotated(like, 40)[None]
    step = descent(Hue(like), images)
    torch.testing.assert_close(step, step[..., :1, :1].expand_as(step))
    torch.testing.assert_close(step.sum(1), torch.zeros(1, 4, 4, dtype=torch.float64))  # brightness stays
    moved, wanted = (colour(x).mean((2, 3))[0] for x in (images + step, like[None]))
    torch.testing.assert_close(moved, math.cos(math.radians(40)) * wanted)


def test_one_step_down_the_histogram_is_histogram_matching():
    like, images = drawn(3, 5, 5), drawn(2, 3, 5, 5, seed=1)
    moved = images + descent(Histogram(like), images)
    for image, before in zip(moved, images, strict=True):
        for c in range(3):
            order = before[c].flatten().argsort()
            torch.testing.assert_close(image[c].flatten()[order], like[c].flatten().sort().values)


def test_a_larger_reference_has_the_same_histogram():
    def even(side, seed):
        """Values evenly from 0 to 1, in some order."""
        order = torch.randperm(side**2, generator=torch.Generator().manual_seed(seed))
        return ((order + 0.5) / side**2).double().view(1, side, side).expand(3, -1, -1)

    assert Histogram(even(8, 0))(Rendering(even(4, 1)[None])).item() == pytest.approx(0, abs=1e-12)
    assert Histogram(even(8, 0))(Rendering(even(4, 1)[None] / 2)).item() > 0.1


def test_a_run_with_another_reference_is_another_run():
    assert repr(Hue(drawn(3, 4, 4))) != repr(Hue(drawn(3, 4, 4, seed=1)))
    assert repr(Hue(drawn(3, 4, 4))) == repr(Hue(drawn(3, 4, 4)))


def test_bad_references_are_said():
    with pytest.raises(SfumatoError, match=r"shape \(3, h, w\), got \(1, 3, 4, 4\)"):
        Histogram(drawn(1, 3, 4, 4))
    with pytest.raises(SfumatoError, match="grey in the mean has no hue"):
        Hue(torch.full((3, 4, 4), 0.5))(Rendering(torch.rand(1, 3, 4, 4)))
