"""Lenses against OpenCV's formulas written out, their inverse, and how far they reach."""

from __future__ import annotations

import numpy as np
import posed
import pytest
import torch

from sfumato.scene.lenses import Lens

BENT = Lens((44, 68), (61.0, 55.0), (37.5, 22.25), (0.11, -0.07), (0.006, -0.009))
FULL = Lens((44, 68), (61.0, 55.0), (37.5, 22.25), (0.31, -0.07, 0.02, 0.25, 0.03, -0.01), (0.006, -0.009))
FISHEYE = Lens((44, 68), (61.0, 55.0), (37.5, 22.25), (0.08, -0.03, 0.01, -0.004), fisheye=True)
LENSES = {"bent": BENT, "full": FULL, "fisheye": FISHEYE}


def named(lens: Lens) -> dict:
    """As the tests' own formulas take it."""
    terms = {f"k{i + 1}": k for i, k in enumerate(lens.radial)}
    kind = {"camera_model": "OPENCV_FISHEYE"} if lens.fisheye else {}
    return {**terms, **kind, "p1": lens.tangential[0], "p2": lens.tangential[1]}


@pytest.mark.parametrize("kind", LENSES)
def test_what_is_bent_lies_where_the_formulas_have_it(kind):
    flat = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
    flat[0] = 0
    bent = LENSES[kind].bent(flat).numpy()
    x, y = posed.bend(flat[:, 0].numpy(), flat[:, 1].numpy(), named(LENSES[kind]))
    np.testing.assert_allclose(bent, np.stack([x, y], 1), atol=1e-14)


@pytest.mark.parametrize("kind", LENSES)
def test_there_and_back(kind):
    flat = 1.2 * torch.rand(200, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.6
    flat[0] = 0
    lens = LENSES[kind]
    torch.testing.assert_close(lens.unbent(lens.bent(flat)), flat, atol=1e-10, rtol=0)


def test_a_fisheye_of_no_terms_has_its_angle():
    lens = Lens((4, 4), (1.0, 1.0), (2.0, 2.0), fisheye=True)
    assert not lens.straight
    torch.testing.assert_close(lens.bent(torch.tensor([[1.0, 0.0]]).double())[0, 0].item(), np.pi / 4)


def test_a_lens_ends_where_it_turns_back():
    """r (1 - 0.5 r^2) is greatest at r = sqrt(2 / 3); what would lie beyond is nowhere."""
    lens = Lens((40, 60), (20.0, 20.0), (30.0, 20.0), (-0.5,))
    assert lens.reach == pytest.approx((2 / 3) ** 0.5, abs=1e-3)
    back = lens.unbent(torch.tensor([[0.3, 0.0], [0.6, 0.0]]).double())
    assert back[0].isfinite().all() and back[1].isnan().all()
    there = lens.places()[1]
    y, x = torch.meshgrid(torch.arange(40) + 0.5 - 20, torch.arange(60) + 0.5 - 30, indexing="ij")
    assert there.equal(torch.hypot(x, y) / 20 <= lens.reach)
    assert Lens((4, 4), (1.0, 1.0), (2.0, 2.0), (0.2,)).reach == float("inf")


def test_straight_images_are_the_lens_images_at_their_places():
    """Ramps: the image at the place where the lens has a pixel is that place itself."""
    h, w = BENT.size
    y, x = torch.meshgrid(torch.arange(h).double() + 0.5, torch.arange(w).double() + 0.5, indexing="ij")
    out, there = BENT.straightened(torch.stack([x, y])[None])
    at, inside = BENT.places()
    deep = inside & (at > 2).all(-1) & (at[..., 0] < w - 2) & (at[..., 1] < h - 2)
    assert there.equal(inside) and 0.5 < deep.double().mean() < there.double().mean() < 1
    torch.testing.assert_close(out[0].permute(1, 2, 0)[deep], at[deep], atol=1e-9, rtol=0)
    near = BENT.straightened(torch.stack([x, y])[None], nearest=True)[0][0].permute(1, 2, 0)
    assert float((near - at)[there].abs().max()) <= 0.5 + 1e-9


def test_a_pinhole_changes_nothing():
    lens = Lens((9, 14), (20.0, 25.0), (6.0, 5.0))
    images = torch.rand(2, 3, 9, 14, generator=torch.Generator().manual_seed(0))
    out, there = lens.straightened(images)
    assert lens.straight and bool(there.all())
    torch.testing.assert_close(out, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", LENSES)
def test_fewer_pixels_bend_the_same(kind):
    small, lens = LENSES[kind].resized(88, 34), LENSES[kind]
    at, _ = lens.places()
    flat = (torch.tensor([3.5, 7.5]).double() - torch.tensor(small.centre)) / torch.tensor(small.focal)
    here = small.places()[0][7, 3]
    torch.testing.assert_close(here, small.bent(flat) * torch.tensor(small.focal) + torch.tensor(small.centre))
    wide = (small.bent(flat) * torch.tensor(lens.focal) + torch.tensor(lens.centre)) * torch.tensor([0.5, 2.0])
    torch.testing.assert_close(here, wide.double())
    assert at.shape == (44, 68, 2)
