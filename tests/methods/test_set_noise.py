"""Noise of sets: unit normal, uncorrelated within an image, and between images correlated as each kind says.

Each statistic is held to five of its own standard deviations: of a true one in 1.7 million draws one falls outside.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.noise import Independent
from sfumato.errors import SfumatoError
from sfumato.methods.sets.noise import (
    Advected,
    Cropped,
    IntegralWarp,
    Mixed,
    Numbered,
    OnSurface,
    Progressive,
    Shared,
    Translated,
)
from sfumato.ops.motion import Motion

SHAPE = (24, 24, 24)  # many channels are many samples
SEEDS = [7, 8, 9, 10]
Z = 5.0


def close(found: Tensor, wanted: float, deviation: float, n: int) -> None:
    """A mean of ``n`` values of this deviation."""
    assert abs(float(found) - wanted) < Z * deviation / math.sqrt(n), (float(found), wanted, deviation / math.sqrt(n))


def correlated(a: Tensor, b: Tensor, wanted: float) -> None:
    close((a * b).mean(), wanted, math.sqrt(1 + wanted**2), a.numel())


def white(x: Tensor) -> None:
    """Of one image: mean 0, variance 1, and neighbours, right, down and across, have nothing to do with each other."""
    close(x.mean(), 0, 1, x.numel())
    close((x * x).mean(), 1, math.sqrt(2), x.numel())
    close((x**4).mean(), 3, math.sqrt(96), x.numel())
    for down, right in ((0, 1), (1, 0), (1, 1), (0, 2)):
        h, w = x.shape[-2] - down, x.shape[-1] - right
        correlated(x[..., :h, :w], x[..., down:, right:], 0)


def swung() -> Motion:
    """Frames that grow and turn, in which the middle hides some of what is around it."""
    n, side = len(SEEDS), 96
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side - 0.5] * 2, indexing="ij")
    at = torch.stack([x, y], -1)
    turn = torch.tensor([[math.cos(0.1), -math.sin(0.1)], [math.sin(0.1), math.cos(0.1)]]) * 1.07
    way, back = at @ turn.T - at, at @ torch.linalg.inv(turn).T - at
    gone, new = (x > 0.2) & (y > 0.1), (x < -0.3) & (y < 0)
    return Motion(*(v.expand(n - 1, *v.shape) for v in (way, back, gone, new)))


def moved(right: float, down: float) -> Motion:
    return Motion.even(right / SHAPE[-1], down / SHAPE[-2], len(SEEDS), (96, 96))


def surface() -> OnSurface:
    """Points of a sheet in four views, of which a third is not seen in each."""
    g = torch.Generator().manual_seed(3)
    at = torch.rand(1, 20_000, 2, generator=g) * 1.4 - 0.2 + torch.linspace(0, 0.2, 4)[:, None, None]
    return OnSurface(at, torch.rand(4, 20_000, generator=g) < 2 / 3)


KINDS = {
    "independent": Independent(),
    "shared": Shared(),
    "mixed": Mixed(0.7),
    "progressive": Progressive(2.0),
    "cropped": Cropped(((0, 0), (5, -3), (30, 7), (-100, 50))),
    "translated": Translated(2.6 / 24, -1.2 / 24),
    "advected by whole cells": Advected(moved(2, -1), 0.9),
    "advected by parts of cells": Advected(moved(0.4, 1.7), 0.9),
    "advected, growing and turning": Advected(swung(), 1.0),
    "warped by parts of cells": IntegralWarp(moved(0.4, 1.7)),
    "warped, growing and turning": IntegralWarp(swung()),
    "warped with few grains": IntegralWarp(swung(), fine=1),
    "on a surface": surface(),
}
STOCHASTIC = pytest.mark.parametrize("kind", KINDS)


@STOCHASTIC
def test_each_image_of_a_set_has_white_noise(kind):
    for x in KINDS[kind].draw(SEEDS, SHAPE):
        white(x)


@STOCHASTIC
def test_a_set_draws_again_and_again_what_is_new(kind):
    draw = KINDS[kind].drawing(SEEDS, SHAPE)
    first, second = draw(), draw()
    for a, b in zip(first, second, strict=True):
        correlated(a, b, 0)
        white(b)


@STOCHASTIC
def test_the_same_seeds_draw_the_same_and_parts_of_a_set_are_the_set_s(kind):
    noises = KINDS[kind]
    whole = noises.draw(SEEDS, SHAPE)
    assert torch.equal(whole, noises.draw(SEEDS, SHAPE))
    assert not torch.equal(whole[0], noises.draw([s + 1 for s in SEEDS], SHAPE)[0])
    assert torch.equal(whole[:2], noises.draw(SEEDS[:2], SHAPE))
    assert torch.equal(whole[2:], noises.after(1).after(1).draw(SEEDS[2:], SHAPE))


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("mixed", "on a surface")])
def test_the_first_image_s_noise_is_its_own_seed_s(kind):
    assert torch.equal(KINDS[kind].draw(SEEDS, SHAPE)[0], Independent().draw(SEEDS[:1], SHAPE)[0])


@pytest.mark.parametrize(
    ("noises", "wanted"),
    [
        (Independent(), lambda i, j: 0),
        (Shared(), lambda i, j: 1),
        (Mixed(0.7), lambda i, j: 0.49 / 1.49),
        (Progressive(2.0), lambda i, j: 0.8 ** ((j - i) / 2)),
    ],
)
def test_images_correlate_as_their_kind_says(noises, wanted):
    x = noises.draw(SEEDS, SHAPE)
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            correlated(x[i], x[j], wanted(i, j))


def test_crops_show_the_same_noise_where_they_overlap():
    x = Cropped(((0, 0), (5, -3), (30, 7))).draw([1, 2, 3], SHAPE)
    assert torch.equal(x[0, :, 5:, :-3], x[1, :, :-5, 3:])
    correlated(x[0, :, :5], x[1, :, :5], 0)
    correlated(x[0], x[2], 0)
    far = Cropped(((0, 0), (24, 0), (0, 24), (24, 24), (-24, 0))).draw([1, 2, 3, 4, 5], SHAPE)
    for i in range(5):
        for j in range(i):
            correlated(far[i], far[j], 0)
    assert torch.equal(x, Cropped(((0, 0), (5, -3), (30, 7), (9, 9))).draw([1, 2, 3, 4], SHAPE)[:3])


def test_translated_noise_moves_with_the_image_by_whole_cells():
    x = Translated(2.6 / 24, -1.2 / 24).draw(SEEDS, SHAPE)
    for i, (right, down) in enumerate(((0, 0), (3, -1), (5, -2), (8, -4))):
        assert torch.equal(x[i, :, : 24 + down, right:], x[0, :, -down:, : 24 - right])


@pytest.mark.parametrize("keep", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("right", "down"), [(0, 0), (3, -2), (0.5, 0), (1.25, -0.5)])
def test_advected_noise_correlates_along_the_way_by_what_it_keeps_and_by_how_cells_overlap(keep, right, down):
    x = Advected(moved(right, down), keep).draw(SEEDS[:2], SHAPE)
    whole_x, whole_y = math.floor(right), math.floor(down)
    part_x, part_y = right - whole_x, down - whole_y
    for i, share in ((0, 1 - part_x), (1, part_x)):
        for j, other in ((0, 1 - part_y), (1, part_y)):
            shifted = torch.roll(x[0], (whole_y + j, whole_x + i), (-2, -1))
            inside = (slice(None), slice(4, -4), slice(4, -4))
            correlated(shifted[inside], x[1][inside], keep * share * other)


def test_a_carried_noise_forgets_nothing_between_cells_and_an_advected_one_does():
    """Half a cell at a time: after two steps the grains are one cell further, all of them."""
    motion, inside = moved(0.5, 0), (slice(None), slice(None), slice(3, -3))
    carried, advected = (n.draw(SEEDS[:3], SHAPE) for n in (IntegralWarp(motion), Advected(motion, 1.0)))
    assert torch.allclose(torch.roll(carried[0], 1, -1)[inside], carried[2][inside], atol=1e-5)
    correlated(torch.roll(advected[0], 1, -1)[inside], advected[2][inside], 0.5)


@pytest.mark.parametrize("kind", [Advected, IntegralWarp])
def test_what_a_frame_shows_for_the_first_time_has_fresh_noise(kind):
    motion = moved(0, 0)
    new = motion.new.clone()
    new[0, 32:64] = True
    new[0, 64:].view(8, 4, -1)[:, :2] = True  # half of each cell
    keep = {"keep": 1.0} if kind is Advected else {}
    a, b = kind(Motion(motion.forward, motion.backward, motion.gone, new), **keep).draw(SEEDS[:2], SHAPE)
    assert torch.allclose(a[:, :8], b[:, :8], atol=1e-5)
    correlated(a[:, 8:16], b[:, 8:16], 0)
    correlated(a[:, 16:], b[:, 16:], 0.5 if kind is IntegralWarp else math.sqrt(0.5))


def test_views_of_a_surface_read_the_same_noise_there_and_elsewhere_their_own():
    y, x = torch.meshgrid(*[(torch.arange(96) + 0.5) / 96] * 2, indexing="ij")
    points = torch.stack([x, y], -1).view(1, -1, 2)
    points = points[:, points[0, :, 0] < 0.5]
    moved = torch.cat([points, points + torch.tensor([2 / 24, 0.0])])
    a, b = OnSurface(moved, torch.ones(moved.shape[:2], dtype=torch.bool)).draw([1, 2], SHAPE)
    assert torch.allclose(a[..., :12], b[..., 2:14], atol=1e-5)
    correlated(a[..., 14:], b[..., 14:], 0)
    assert torch.equal(a[..., 12:], Independent().draw([1], SHAPE)[0, ..., 12:])


@STOCHASTIC
def test_some_images_of_a_set_have_the_noise_that_they_have_in_it(kind):
    whole = KINDS[kind].draw(SEEDS, SHAPE)
    assert torch.equal(Numbered(KINDS[kind], (0, 2, 3)).draw(SEEDS[:3], SHAPE), whole[[0, 2, 3]])
    with pytest.raises(SfumatoError, match="2 images of a set are numbered, and noise is drawn for 1"):
        Numbered(KINDS[kind], (0, 2)).draw(SEEDS[:1], SHAPE)


def test_blended_noise_shrinks_and_is_seen():
    a, b = Independent().draw([1, 2], SHAPE)
    with pytest.raises(AssertionError, match=r"0\.5"):
        white(0.5 * a + 0.5 * b)


def test_noise_read_by_nearest_cells_or_between_them_is_seen():
    (x,) = Independent().draw([1], SHAPE)
    at = F.affine_grid(torch.tensor([[[0.8, 0.1, 0.0], [-0.1, 0.8, 0.0]]]), [1, *SHAPE], align_corners=False)
    for mode in ("nearest", "bilinear"):
        with pytest.raises(AssertionError):
            white(F.grid_sample(x[None], at, mode, "reflection", align_corners=False)[0])
    half = (x + torch.roll(x, 1, -1)) / math.sqrt(2)  # its variance put right
    close((half * half).mean(), 1, math.sqrt(3), x.numel())
    with pytest.raises(AssertionError):
        white(half)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: IntegralWarp(moved(1, 0)).draw([*SEEDS, 11], SHAPE),
            "of 4 frames, and noise is drawn up to frame 5",
        ),
        (
            lambda: IntegralWarp(moved(1, 0)).draw(SEEDS, (4, 24, 48)),
            "of 96 x 96, and these of 24 x 48 differ",
        ),
        (lambda: Cropped(((0, 0),)).draw([1, 2], SHAPE), "2 images are cropped at places each, got 1"),
        (lambda: Cropped(((0, 0.5),)), r"each \(a whole number, a whole number\)"),  # pyright: ignore
        (
            lambda: Motion(*[torch.zeros(3, 8, 8, 2)] * 2, *[torch.zeros(3, 8, 9) > 0] * 2),
            r"both ways .* got \(3, 8",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said(make, words):
    with pytest.raises(SfumatoError, match=words):
        make()
