"""Views: coverage, the laws of splitting and merging, of all kinds of views; parity with diffusers' panorama."""

from __future__ import annotations

import math

import pytest
import torch
from rounding import assert_same_but_for_rounding
from torch import Tensor, nn

from sfumato.backbones.load import load
from sfumato.core.denoising import denoise, plan
from sfumato.core.steppers import DDIM
from sfumato.core.views import Looks, Ring, Tiles, Turned, View, Warped
from sfumato.errors import SfumatoError
from sfumato.methods.control import AttendAndExcite
from sfumato.ops.correspondence import middles
from sfumato.ops.warps import Similarity
from sfumato.stilllife import weights

PROMPT = "a red cube on grass"


@pytest.fixture
def model(here):
    return load("stilllife", device="cpu")


@pytest.mark.parametrize("views", [Tiles(), Tiles(3), Tiles(16), Ring(), Ring(5)], ids=repr)
@pytest.mark.parametrize("canvas", [(16, 16), (16, 37), (21, 50)])
def test_every_cell_is_covered_and_what_is_split_is_merged(views, canvas):
    assert views.coverage(*canvas, (16, 16)).min() >= 1
    x = torch.randn(2, 4, *canvas)
    parts = views.split(x, (16, 16))
    assert parts.shape == (2 * views.count(*canvas, (16, 16)), 4, 16, 16)
    torch.testing.assert_close(views.merge(parts, x), x)


def test_overlaps_are_means():
    x = torch.zeros(1, 1, 4, 6)
    parts = torch.stack([torch.full((1, 4, 4), v) for v in (1.0, 3.0)])
    out = Tiles(2).merge(parts, x)
    assert out[0, 0, 0].tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("views", [Tiles(3, feather=True), Ring(5, feather=True)], ids=["strip", "ring"])
def test_feathered_windows_count_by_a_gaussian_and_cover_all(views):
    """Written down once more; what all windows say alike stays, in halves too."""
    x = torch.randn(2, 4, 21, 50)
    parts = views.split(x, (16, 16))
    torch.testing.assert_close(views.merge(parts, x), x, atol=1e-4, rtol=1e-4)
    along = torch.tensor([math.exp(-(((i + 0.5) / 16 - 0.5) ** 2) / 0.02) for i in range(16)])
    total, weight, apart = torch.zeros(21, 50), torch.zeros(21, 50), torch.randn(len(parts) // 2, 1, 16, 16)
    for part, (top, left) in zip(apart, views.places(21, 50, (16, 16)), strict=True):
        for i in range(16):
            for j in range(16):
                at = (top + i, (left + j) % 50)
                total[at] += part[0, i, j] * along[i] * along[j]
                weight[at] += along[i] * along[j]
    found = views.merge(apart, torch.zeros(1, 1, 21, 50))[0, 0]
    torch.testing.assert_close(found, total / weight, atol=1e-3, rtol=1e-3)
    assert (found - type(views)(views.stride).merge(apart, torch.zeros(1, 1, 21, 50))).abs().max() > 0.5


def test_a_feathered_window_comes_in_without_a_step():
    """Two windows that say 0 and 1: evenly weighted the canvas jumps by a half where one begins and where one ends."""
    parts = torch.stack([torch.full((1, 16, 16), v) for v in (0.0, 1.0)])
    even, soft = (Tiles(8, feather=f).merge(parts, torch.zeros(1, 1, 16, 24))[0, 0, 0].diff() for f in (False, True))
    assert even[[7, 15]].tolist() == [0.5, 0.5] and soft[[7, 15]].abs().max() < 0.01 and soft.sum() > 0.99


@pytest.mark.parametrize("fuse", ["eps", "x0", "x_prev"])
def test_one_window_is_plain_sampling(model, fuse):
    plain = denoise(model, PROMPT, steps=3).latents
    torch.testing.assert_close(
        denoise(model, PROMPT, steps=3, views=Tiles(fuse=fuse)).latents, plain, atol=1e-5, rtol=1e-5
    )


def test_for_a_linear_step_it_does_not_matter_which_variable_is_fused(model):
    def run(fuse, stepper):
        options = {"steps": 3, "size": (128, 200), "stepper": stepper}
        return denoise(model, PROMPT, views=Tiles(4, fuse=fuse), **options).latents

    for stepper in (DDIM(), DDIM(1.0)):
        eps = run("eps", stepper)
        assert eps.shape == (1, 4, 16, 25)
        for fuse in ("x0", "x_prev"):
            torch.testing.assert_close(run(fuse, stepper), eps, atol=1e-3, rtol=1e-3)


def test_a_ring_has_no_beginning(model):
    noise = torch.randn(1, 4, 16, 32, generator=torch.Generator().manual_seed(0))
    out = denoise(model, PROMPT, steps=3, start=noise, views=Ring(4)).latents
    moved = denoise(model, PROMPT, steps=3, start=noise.roll(8, -1), views=Ring(4)).latents
    torch.testing.assert_close(moved, out.roll(8, -1), atol=1e-4, rtol=1e-4)
    tiles = denoise(model, PROMPT, steps=3, start=noise, views=Tiles(4)).latents
    assert (tiles - out).abs().max() > 1e-3


def test_it_is_diffusers_panorama(here, monkeypatch):
    pipe = weights.assemble("StableDiffusionPanoramaPipeline", weights.load())
    pipe.set_progress_bar_config(disable=True)
    model = load("stilllife", device="cpu")
    model.size = 512  # theirs has windows of 64 cells, whatever the model
    noise = torch.randn(1, 4, 64, 72, generator=torch.Generator().manual_seed(0))
    wanted = pipe(
        PROMPT, height=512, width=576, latents=noise, num_inference_steps=2, guidance_scale=5.0, output_type="latent"
    ).images
    out = denoise(model, PROMPT, steps=2, guide=5.0, start=noise, views=Tiles(8))
    torch.testing.assert_close(out.latents, wanted, atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_said(model):
    with pytest.raises(SfumatoError, match="between 1 and the window's side, 16 cells, got 20"):
        denoise(model, PROMPT, steps=1, size=(128, 256), views=Tiles(20))
    with pytest.raises(SfumatoError, match="at least as wide as the window, 16 cells, got 8"):
        Ring().places(16, 8, (16, 16))


# --- other views than windows


class Permuted(View):
    """The cells of a canvas in another order."""

    def __init__(self, order: Tensor):
        self.order = order

    def project(self, canvas):
        return canvas.flatten(2)[..., self.order].view_as(canvas)

    def unproject(self, part, canvas):
        return part.flatten(2)[..., self.order.argsort()].view_as(part), torch.ones(canvas)


class Learned(nn.Module, View):
    """Cells of the view are mixed of those of the canvas by weights that can be learned."""

    def __init__(self, cells: int):
        super().__init__()
        self.mix = nn.Parameter(torch.rand(cells, cells, generator=torch.Generator().manual_seed(0)))

    def project(self, canvas):
        return (canvas.flatten(2) @ self.mix.T / self.mix.sum(1)).view_as(canvas)

    def unproject(self, part, canvas):
        return (part.flatten(2) @ self.mix).view_as(part), self.mix.sum(0).view(canvas)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("quarters", range(-1, 4))
@pytest.mark.parametrize("flipped", [False, True])
def test_what_is_turned_is_turned_back(quarters, flipped):
    x, view = noise(2, 3, 4, 6), Turned(quarters, flipped)
    shown = view.project(x)
    assert torch.equal(shown, torch.rot90(x.flip(-1) if flipped else x, quarters, (-2, -1)))
    back, weight = view.unproject(shown, (4, 6))
    assert torch.equal(back, x) and torch.equal(weight, torch.ones(4, 6))
    assert (shown is x) == (not flipped and not quarters % 4)


def test_views_of_one_canvas_are_their_mean():
    x = noise(2, 3, 6, 6)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(2))
    views = Looks((Turned(), Turned(flipped=True), Turned(3), Permuted(order)))
    window = views.window((6, 6), 64)
    parts = views.split(x, window)
    assert window == (6, 6) and parts.shape == (8, 3, 6, 6)
    assert_same_but_for_rounding(views.merge(parts, x), x)
    apart = noise(8, 3, 6, 6).unflatten(0, (2, 4)).unbind(1)
    back = [apart[0], apart[1].flip(-1), apart[2].rot90(-3, (-2, -1)), torch.zeros(2, 3, 36)]
    back[3][..., order] = apart[3].flatten(2)
    wanted = (back[0] + back[1] + back[2] + back[3].view(2, 3, 6, 6)) / 4
    assert_same_but_for_rounding(views.merge(torch.stack(apart, 1).flatten(0, 1), x), wanted)


def test_warps_are_weighted_and_go_back_to_their_places():
    """Two views, moved by whole cells to the left and to the right: where both show a cell, their weighted mean."""
    at, cells = middles((4, 8)).view(4, 8, 2), torch.arange(8)
    left = Warped(at + torch.tensor([2 / 8, 0]), at - torch.tensor([2 / 8, 0]), ((cells >= 2) * 3.0).expand(4, 8))
    right = Warped(at - torch.tensor([2 / 8, 0]), at + torch.tensor([2 / 8, 0]), ((cells < 6) * 1.0).expand(4, 8))
    views, x = Looks((left, right)), noise(1, 2, 4, 8)
    assert_same_but_for_rounding(left.project(x)[..., :6], x[..., 2:])
    assert views.coverage(4, 8, (4, 8))[0].tolist() == [1, 1, 4, 4, 4, 4, 3, 3]
    assert_same_but_for_rounding(views.merge(views.split(x, (4, 8)), x), x)
    parts = torch.cat([torch.full((1, 2, 4, 8), v) for v in (4.0, 8.0)])
    assert_same_but_for_rounding(views.merge(parts, x)[0, 0, 0], torch.tensor([8.0, 8, 5, 5, 5, 5, 4, 4]))
    with pytest.raises(SfumatoError, match="this warp is of a canvas of 4 x 8 cells, and the canvas has 4 x 9"):
        views.merge(parts, noise(1, 2, 4, 9))


def test_a_smooth_canvas_seen_at_a_slant_is_nearly_itself():
    turn, back = Similarity(turn=20.0), Similarity(turn=-20.0)
    at = middles((32, 32)).view(32, 32, 2).permute(2, 0, 1)[None]
    there, home = (move(at)[0].permute(1, 2, 0) for move in (turn, back))
    view = Warped(there, home, back.whole(32, 32, rim=4).float())
    x = (3 * at[:, :1]).sin() + at[:, 1:]
    seen = view.weight.bool()
    found, weight = view.unproject(view.project(x), (32, 32))
    assert (found - x)[..., seen].abs().max() < 0.02 and not found[..., ~seen].any() and 0.4 < weight.mean() < 1


def test_a_projection_can_be_learned_through_what_it_merges():
    view = Learned(6)
    views, x = Looks((view, Turned())), noise(1, 2, 2, 3)
    merged = views.merge(views.split(x, (2, 3)), x)
    mix = view.mix.detach()
    shown = x.flatten(2) @ mix.T / mix.sum(1)
    wanted = (shown @ mix + x.flatten(2)) / (mix.sum(0) + 1)
    assert_same_but_for_rounding(merged.detach(), wanted.view_as(x))
    merged.square().sum().backward()
    assert view.mix.grad is not None and view.mix.grad.abs().min() > 0


def test_cells_that_no_view_shows_are_refused_or_left_empty(model):
    at = middles((16, 16)).view(16, 16, 2)
    half = Warped(at, at, (torch.arange(16) < 12).float().expand(16, 16))
    merged = Looks((half,)).merge(noise(1, 4, 16, 16), noise(1, 4, 16, 16))
    assert merged.isfinite().all() and not merged[..., 12:].any()
    with pytest.raises(SfumatoError, match=r"64 cells of a canvas of 16 x 16 lie in no view.*side=.instance."):
        denoise(model, PROMPT, steps=1, views=Looks((half,)))
    with pytest.raises(SfumatoError, match=r"views show parts of one size, got 16 x 24, 24 x 16 of a canvas"):
        denoise(model, PROMPT, steps=1, size=(128, 192), views=Looks((Turned(), Turned(1))))


def test_a_plan_is_of_the_windows(model):
    attend = AttendAndExcite(words=("cube",))
    plan(model, PROMPT, steps=2, size=(128, 256), methods=[attend])
    for run in (denoise, plan):
        with pytest.raises(SfumatoError, match="sees whole images, and this canvas is seen in windows"):
            run(model, PROMPT, steps=2, size=(128, 256), methods=[attend], views=Tiles(8))
