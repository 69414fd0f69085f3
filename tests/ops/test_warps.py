"""Warps against what they must be where that is known: whole cells, right angles, borders, the way back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rounding import assert_same_but_for_rounding
from torch import Tensor

from sfumato.ops.correspondence import middles
from sfumato.ops.warps import Padding, Similarity, affine, inverse, warp


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_a_shift_by_whole_cells_is_a_roll_inside_and_a_border_outside(mode):
    x = noise(2, 3, 8, 16)
    at = middles((8, 16)).view(1, 8, 16, 2) + torch.tensor([2 / 16, 1 / 8])
    inside = (slice(None), slice(None), slice(0, 7), slice(0, 14))
    beyond: dict[Padding, Tensor] = {
        "border": x[..., 1:, -1:],
        "zeros": torch.zeros(2, 3, 7, 1),
        "reflection": x[..., 1:, -2:].flip(-1),
    }
    for padding, wanted in beyond.items():
        found = warp(x, at, mode, padding)
        assert_same_but_for_rounding(found[inside], x.roll((-1, -2), (-2, -1))[inside])
        assert_same_but_for_rounding(found[..., :7, 14:], wanted.expand(2, 3, 7, 2))


def test_images_may_be_warped_each_in_its_own_way_and_to_another_size():
    x = noise(2, 1, 4, 4)
    at = torch.stack([torch.full((1, 3, 2), 0.125), torch.full((1, 3, 2), 0.5)])
    found = warp(x, at)
    torch.testing.assert_close(found[0], x[0, :, :1, :1].expand(1, 1, 3))
    torch.testing.assert_close(found[1], x[1, :, 1:3, 1:3].mean().expand(1, 1, 3))


def test_an_affine_warp_counts_from_the_middle_in_halves_of_the_sides_and_goes_back():
    image = noise(1, 3, 8, 8)
    torch.testing.assert_close(affine(image, torch.eye(2, 3)), image, atol=1e-5, rtol=1e-5)
    right = torch.tensor([[1.0, 0, 0.25], [0, 1, 0]])  # a quarter of half the side, one cell of eight
    moved = affine(image, right)
    torch.testing.assert_close(moved[..., :7], image[..., 1:], atol=1e-5, rtol=1e-5)
    assert moved[..., 7].abs().max() < 1e-5  # zeros come in
    back = affine(moved, inverse(right))
    torch.testing.assert_close(back[..., 1:], image[..., 1:], atol=1e-5, rtol=1e-5)


def test_turns_and_zooms_are_about_the_middle():
    def turned(x, **how):
        return Similarity(**how)(x, padding="reflection")

    x = noise(1, 3, 16, 16)
    torch.testing.assert_close(turned(x), x)
    torch.testing.assert_close(turned(x, turn=90), torch.rot90(x, 1, (2, 3)), atol=1e-5, rtol=0)
    wide = torch.rand(1, 2, 8, 20)
    torch.testing.assert_close(turned(wide, turn=180), wide.flip(2, 3), atol=1e-5, rtol=0)
    large = turned(F.pad(torch.ones(1, 1, 4, 4), (2, 2, 2, 2)), scale=2.0)
    assert (large[0, 0, 1:-1, 1:-1] == 1).all() and float(large[0, 0, 0, 0]) == 0.75**2
    assert Similarity().whole(16, 16).all() and Similarity(turn=45).whole(16, 16).float().mean() < 0.9
    rimmed = Similarity(turn=360).whole(16, 16, rim=2)
    assert not rimmed[:2].any() and rimmed[2:14, 2:14].all()


def test_a_turn_of_360_degrees_and_no_move_are_no_transformation():
    x = noise(2, 3, 5, 7)
    for still in (Similarity(), Similarity(turn=360.0), Similarity(turn=-720.0)):
        assert still.still and torch.equal(still(x), x) and still.inside(5, 7).all()
    assert not Similarity(turn=180.0).still


def test_moves_by_whole_cells_and_turns_by_right_angles_are_exact():
    x = noise(1, 2, 8, 8)
    move = Similarity(right=0.25, down=-0.125)
    for mode in ("bilinear", "nearest"):
        moved = move(x, mode)
        assert_same_but_for_rounding(moved[..., :7, 2:], x[..., 1:, :6])
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[:7, 2:] = True
    assert torch.equal(move.inside(8, 8), inside)
    assert_same_but_for_rounding(Similarity(turn=90.0)(x), torch.rot90(x, 1, (2, 3)))  # counter-clockwise
    assert_same_but_for_rounding(Similarity(turn=180.0)(x), x.flip(2, 3))
    assert Similarity(turn=90.0).inside(8, 8).all()


def test_a_transformation_is_the_same_at_every_size():
    """A disc off the middle of a wide picture: its middle goes where the formula says, its area grows by scale^2."""
    move = Similarity(right=0.1, down=0.05, turn=30.0, scale=1.4)
    for h, w in ((60, 90), (120, 180)):
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        disc = (((x - w / 2 - h / 6) ** 2 + (y - h / 2) ** 2) < (h / 10) ** 2).float()
        moved = move(disc[None, None])[0, 0]
        away = 1.4 * h / 6 * torch.tensor([3**0.5 / 2, -0.5])  # y is down
        middle = torch.stack([(moved * at).sum() / moved.sum() for at in (x, y)])
        wanted = torch.tensor([w / 2 + 0.1 * w, h / 2 + 0.05 * h]) + away
        torch.testing.assert_close(middle, wanted, atol=0.02 * h, rtol=0)
        assert float(moved.sum() / disc.sum()) == pytest.approx(1.96, rel=0.05)


def test_latents_stay_unit_normal_where_they_come_from_the_picture():
    x = noise(1, 4, 64, 64)
    assert float(Similarity(turn=20.0)(x, "nearest").std()) == pytest.approx(1, abs=0.03)
    assert float(Similarity(turn=20.0)(x).std()) < 0.8
