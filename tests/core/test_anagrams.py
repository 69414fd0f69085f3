"""Views of pictures that read in more than one way, and prompts of views: laws and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rounding import assert_same_but_for_rounding
from torch import Tensor

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.anagrams import CylinderMirror, InnerCircle
from sfumato.core.denoising import denoise, plan
from sfumato.core.results import Trajectory
from sfumato.core.schedule import Schedule
from sfumato.core.views import Looks, Turned, Warped
from sfumato.errors import SfumatoError
from sfumato.methods.control import StructuredDiffusion
from sfumato.ops.correspondence import middles

FUSES = ["eps", "x0", "x_prev", "pixels"]
SIDES = ["canvas", "instance"]
GRIDS = [(16, 16), (15, 15), (12, 18), (17, 20)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inside(grid: tuple[int, int]) -> Tensor:
    """The disc in the middle."""
    y, x = (torch.arange(n) - (n - 1) / 2 for n in grid)
    return torch.hypot(y[:, None], x[None]) <= min(grid) / 2


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("degrees", [0, 30, 47.5, 135, 180, -90, 720])
def test_a_turned_disc_is_a_permutation_that_is_undone(grid, degrees):
    x, view = noise(2, 3, *grid), InnerCircle(degrees)
    shown = view.project(x)
    back, weight = view.unproject(shown, grid)
    assert torch.equal(back, x) and torch.equal(weight, torch.ones(grid))
    assert torch.equal(InnerCircle(-degrees).project(shown), x)
    assert torch.equal(shown.flatten(2).sort(-1).values, x.flatten(2).sort(-1).values)
    assert torch.equal(shown[..., ~inside(grid)], x[..., ~inside(grid)])
    assert torch.equal(view.noise(x), shown)
    assert torch.equal(shown, x) == (degrees % 360 == 0)


@pytest.mark.parametrize("side", [8, 15, 16, 64])
@pytest.mark.parametrize("quarters", range(-2, 4))
def test_by_quarters_it_is_turned_exactly(side, quarters):
    x, disc = noise(1, 2, side, side), inside((side, side))
    wanted = torch.where(disc, x.rot90(quarters, (-2, -1)), x)
    assert torch.equal(InnerCircle(90 * quarters).project(x), wanted)
    assert_same_but_for_rounding(InnerCircle(90 * quarters).in_pixels().project(x), wanted)


@pytest.mark.parametrize("degrees", [20, 45, 111, 200, -75])
def test_it_turns_by_the_angle_as_near_as_cells_allow_and_in_pixels_smoothly(degrees):
    """Of a slope, which is known everywhere; counter-clockwise."""
    n = 32
    y, x = torch.meshgrid(torch.arange(n) - (n - 1) / 2, torch.arange(n) - (n - 1) / 2, indexing="ij")
    angle = torch.tensor(degrees * torch.pi / 180)
    wanted = angle.cos() * x - angle.sin() * y  # what lies at the right is now at this angle above it
    disc = inside((n, n))
    shown = InnerCircle(degrees).project(x[None, None])[0, 0]
    assert (shown - wanted)[disc].abs().max() < 2 and (shown - wanted)[disc].square().mean() < 0.3
    smooth = InnerCircle(degrees).in_pixels()
    assert (smooth.project(x[None, None])[0, 0] - wanted)[
        inside((n - 4, n - 4)).nonzero().add(2).unbind(1)
    ].abs().max() < 1e-3
    back, weight = smooth.unproject(smooth.project(x[None, None]), (n, n))
    assert (back[0, 0] - x)[torch.hypot(y, x) < n / 2 - 3].abs().max() < 1e-3 and weight.min() == 1


def test_a_disc_has_a_radius_and_an_angle():
    x = noise(1, 1, 16, 16)
    small = InnerCircle(90, radius=0.5).project(x)
    changed = (small != x)[0, 0]
    assert changed[4:12, 4:12].any() and not changed[:4].any() and not changed[:, 12:].any()
    for wrong in ({"degrees": float("nan")}, {"degrees": 90, "radius": 0}, {"degrees": 90, "radius": 1.5}):
        with pytest.raises(SfumatoError, match="a disc is turned by degrees, of a radius up to 1"):
            InnerCircle(**wrong)


def test_a_mirror_shows_the_ground_around_its_foot():
    """Columns are directions, from its left over the viewer's side to its right; the lowest row is the nearest."""
    view, n = CylinderMirror(foot=0.25, spread=180), 65
    at = torch.linspace(-1, 1, n) * (n - 1) / n
    x, y = at.expand(1, 1, n, n), at[:, None].expand(1, 1, n, n)
    across, down = view.project(x)[0, 0], view.project(y)[0, 0]
    away = torch.hypot(across, down)
    middle = n // 2
    assert across[middle, middle].abs() < 1e-5 and down[middle, middle] > 0.5
    assert across[middle, 1] < -0.5 < 0.5 < across[middle, -2] and down[middle, 1].abs() < 0.1
    assert away[1, middle] > 0.95 and 0.24 < away[-1, middle] < 0.28
    ground = torch.cat([x, y], 1).mul(3).sin()
    back, weight = view.unproject(view.project(ground), (n, n))
    seen = weight.bool()
    away = torch.hypot(x, y)[0, 0]
    assert torch.equal(seen, (away >= 0.25) & (away <= 1) & (y[0, 0] >= 0))
    well = (away > 0.3) & (away < 0.95) & (y[0, 0] > 0.05)  # half a cell at the view's borders is not looked at
    assert (back - ground)[..., well].abs().max() < 0.02 and not back[..., ~seen].any()
    with pytest.raises(SfumatoError, match="a mirror's foot lies between 0 and 1"):
        CylinderMirror(foot=0)


def test_noise_that_is_looked_at_through_a_warp_stays_unit_where_what_is_mixed_does_not():
    x = noise(64, 4, 32, 32)
    at = middles((16, 16)).view(16, 16, 2) + torch.tensor([0.4 / 32, 0.3 / 32])
    view = Warped(at, at, torch.ones(32, 32))
    shown = view.noise(x)
    assert abs(shown.std() - 1) < 0.01 and abs(shown.mean()) < 0.02
    beside = (shown[..., 1:] * shown[..., :-1]).mean().abs(), (shown[..., 1:, :] * shown[..., :-1, :]).mean().abs()
    assert max(beside) < 0.02
    assert view.project(x).std() < 0.8
    assert abs(CylinderMirror().noise(x).std() - 1) < 0.02


# --- prompts of views


def exact(**means: Tensor) -> Exact:
    from diffusers import DDIMScheduler

    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    return Exact(
        {name: Mixture(mean[None], 0.4) for name, mean in means.items()}, Schedule.read(DDIMScheduler(**options))
    )


OPTIONS: dict[str, Any] = {"steps": 20, "guide": 1.0}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("fuse", FUSES)
def test_each_view_reads_its_own_prompt(fuse, side):
    """Of Gaussians the mean of both scores is the score of the Gaussian around the mean of their means."""
    x, y, flip = noise(3, 4, 6, seed=1), noise(3, 4, 6, seed=2), Turned(2, flipped=True)
    start = noise(2, 3, 4, 6)
    views = Looks((Turned(), flip), fuse, side, prompts=("x", "y"))
    seen = denoise(exact(x=x, y=y), ["x", "x"], views=views, start=start, **OPTIONS)
    wanted = denoise(exact(z=(x + y.flip(-2)) / 2), ["z", "z"], start=start, **OPTIONS)
    torch.testing.assert_close(seen.latents, wanted.latents, atol=2e-3, rtol=2e-3)
    other = denoise(exact(x=x, y=y), ["x", "x"], views=Looks((Turned(), flip), fuse, side), start=start, **OPTIONS)
    assert (other.latents - wanted.latents).abs().max() > 0.1


@pytest.mark.parametrize("side", SIDES)
def test_a_view_may_add_to_what_each_image_of_each_stream_says(side):
    means = {name: noise(3, 4, 6, seed=i) for i, name in enumerate(("a", "b", "c", "a back", "b back", "c back"))}
    views, start = Looks((Turned(), Turned(flipped=True)), "x0", side, prompts=("{}", "{} back")), noise(1, 3, 4, 6)
    prompts = {"one": ["a", "b"], "two": ["c", "a"]}
    seen = denoise(exact(**means), prompts, views=views, start=start.expand(2, -1, -1, -1), **OPTIONS)
    for stream, names in prompts.items():
        for i, name in enumerate(names):
            wanted = denoise(exact(z=(means[name] + means[f"{name} back"].flip(-1)) / 2), "z", start=start, **OPTIONS)
            torch.testing.assert_close(seen[stream].latents[i : i + 1], wanted.latents, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("side", SIDES)
def test_the_run_s_prompt_for_each_view_is_the_run_bit_for_bit(sd, side):
    options: dict[str, Any] = {"steps": 2, "guide": 3.0, "size": 64}
    prompts = {"a": ["a red cube", "a duck"], "b": ["a cube on grass", "a blue duck"]}
    kept = [Trajectory(("cond", "uncond")) for _ in range(2)]
    looks = (Turned(), Turned(1))
    plain = denoise(sd, prompts, views=Looks(looks, side=side), trajectory=kept[0], **options)
    same = denoise(sd, prompts, views=Looks(looks, side=side, prompts=("{}", "{}")), trajectory=kept[1], **options)
    assert all(torch.equal(plain[name].latents, same[name].latents) for name in prompts)
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in ("cond", "uncond"))
    one = denoise(sd, "a red cube", views=Looks((Turned(),), side=side, prompts=("a duck",)), **options)
    assert torch.equal(one.latents, denoise(sd, "a duck", **options).latents)


def test_what_cannot_be_is_said(sd):
    looks = (Turned(), Turned(2))
    with pytest.raises(SfumatoError, match="2 views have as many prompts or none, got 1"):
        Looks(looks, prompts=("a duck",))
    views = Looks(looks, prompts=("a red duck", "a cube"))
    for run in (denoise, plan):
        with pytest.raises(SfumatoError, match="works by an image's words, and each view has its own"):
            run(sd, "a red duck", steps=1, size=64, methods=[StructuredDiffusion()], views=views)
    plan(sd, "a red duck", steps=1, size=64, methods=[StructuredDiffusion()], views=Looks(looks))
