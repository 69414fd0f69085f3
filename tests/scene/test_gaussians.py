"""Gaussians as a generator: what they show, how they grow, and runs that go on bit for bit."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace

import families
import numpy as np
import pytest
import torch

from sfumato.backbones.exact import Exact, Mixture
from sfumato.distill import Generator, distil
from sfumato.errors import SfumatoError
from sfumato.learning.loop import Problem, learn
from sfumato.learning.optimisers import Optimisers, grouped
from sfumato.learning.seeds import generator
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.scene import gaussians_fit
from sfumato.scene.backgrounds import Harmonic, Horizon, Outdoors, Plain
from sfumato.scene.cameras import orbit
from sfumato.scene.capture import Capture
from sfumato.scene.gaussians import DREAM, KERBL, PARTS, Gaussians, Growth, Rates, Recipe, ball, extent_of, near
from sfumato.scene.gaussians_fit import ADAM, Fitting, fit, photometric, quick, ssim, start
from sfumato.scene.store import load_scene, save_scene
from sfumato.scene.sweep import Swept

WHITE = Plain((1.0, 1.0, 1.0))


def cloud(g=30, seed=0, **options):
    rng = torch.Generator().manual_seed(seed)
    means, colours = torch.randn(g, 3, generator=rng) * 0.4, torch.rand(g, 3, generator=rng)
    out = Gaussians(means, colours, scales=torch.full((g, 3), 0.15), opacity=0.6, **options)
    with torch.no_grad():
        out.quaternions += 0.3 * torch.randn(g, 4, generator=rng)
        out.rest += 0.2 * torch.randn(out.rest.shape, generator=rng)
    return out


def moving(gaussians):
    """Its optimisers after one step, so that there are moments."""
    named = {f"generator.{k}": p for k, p in gaussians.named_parameters() if p.requires_grad}
    optimisers = Optimisers(named, ADAM(grouped(named, {f"generator.{k}": v for k, v in gaussians.rates.items()})))
    gaussians.render(orbit(2, (12, 12))).images.square().sum().backward()
    optimisers.step()
    optimisers.zero_grad()
    gaussians._seen.clear()
    return optimisers


# -- what is shown


def test_what_is_behind_shows_where_nothing_is_and_pixels_stay_in_range():
    shown = cloud(background=WHITE).render(orbit(3, (20, 24)))
    empty = shown.alpha == 0
    assert shown.images.shape == (3, 3, 20, 24) and shown.alpha.shape == shown.depth.shape == (3, 1, 20, 24)
    assert bool(empty.any()) and bool((shown.images[empty.expand_as(shown.images)] == 1).all())
    assert bool((shown.images >= 0).all()) and bool((shown.images <= 1).all())


def test_a_colour_above_one_is_shown_as_one_and_pulled_as_it_is():
    one = Gaussians(torch.zeros(1, 3), torch.full((1, 3), 3.0), scales=torch.full((1, 3), 0.5), opacity=0.9)
    images = one.render(orbit(1, (8, 8))).images
    assert float(images.detach().max()) == 1
    images.sum().backward()
    assert float(one.base.grad.min()) > 0


def test_depth_is_along_the_ray():
    """A thin plate across the view at the origin: along the ray through a pixel it lies farther away than on the axis.

    Gaussians give the depth of their means, so it is made of many small ones.
    """
    side = torch.linspace(-1, 1, 41)
    x, y = torch.meshgrid(side, side, indexing="ij")
    means = torch.stack([x.flatten(), y.flatten(), torch.zeros(41 * 41)], 1)
    plate = Gaussians(means, torch.ones(len(means), 3), scales=torch.tensor([[0.04, 0.04, 1e-3]]).expand(len(means), 3),
                      opacity=0.95)  # fmt: skip
    camera = orbit(1, (16, 16), elevation=0.0, distance=3.0, fov=30.0)
    shown = plate.render(camera)
    rays = camera.rays()
    wanted = -rays.origins[..., 2] / rays.directions[..., 2]
    assert float(shown.alpha.min()) > 0.99
    torch.testing.assert_close(shown.depth[:, 0], wanted, atol=1e-4, rtol=0)


def test_normals_are_shortest_axes_towards_the_camera():
    plate = Gaussians(torch.zeros(1, 3), torch.ones(1, 3), scales=torch.tensor([[0.5, 0.5, 0.01]]), opacity=0.9)
    front, back = plate.view(orbit(2, (9, 9), elevation=10.0), normals=True).normals[:, :, 4, 4]
    torch.testing.assert_close(torch.stack([front, back]), torch.tensor([[0.0, 0, 1], [0, 0, -1]]))


def test_colours_of_harmonics_change_with_the_side_and_only_by_the_bands_that_are_shown():
    some = cloud(degree=3)
    views = orbit(2, (16, 16))
    plain = some.render(views).images
    some.bands.fill_(3)
    full = some.render(views).images
    some.rest.data.zero_()
    assert float((plain - full).abs().max()) > 0.05 and torch.equal(some.render(views).images, plain)


def test_harmonics_are_read_by_the_direction_from_the_eye():
    """One of Y_1's three: with coefficient r of -y Y, from above a colour is brighter by r sqrt(3/4 pi) sin(60)."""
    one = Gaussians(torch.zeros(1, 3), torch.full((1, 3), 0.5), scales=torch.full((1, 3), 1.0), opacity=0.9, degree=1)
    one.rest.data[0, 0] = 0.3
    one.bands.fill_(1)
    from sfumato.scene.splatting import project

    camera = orbit(1, (8, 8), elevation=60.0)
    colour = one.values(project(one.splats(), camera), camera.eyes)
    wanted = 0.5 + 0.3 * math.sqrt(3 / (4 * math.pi)) * math.sin(math.radians(60))
    torch.testing.assert_close(colour, torch.full((1, 3), wanted))


def test_what_is_left_out_for_a_step_is_not_seen_and_the_rest_is_denser():
    some = cloud(12)
    views = orbit(2, (12, 12))
    kept = (torch.arange(12) % 2).float() * 1.25
    some.kept = kept
    shown = some.render(views).images
    some.kept = None
    with torch.no_grad():
        some.opacities.copy_(torch.logit(some.opacities.sigmoid() * kept))
    torch.testing.assert_close(some.render(views).images, shown)


def test_latents_are_shown_as_they_are():
    values = torch.tensor([[3.0, -2.0, 0.5, 1.0]])
    one = Gaussians(torch.zeros(1, 3), values, scales=torch.full((1, 3), 5.0), opacity=0.999, latent=True)
    shown = one.render(orbit(1, (8, 8)))
    assert one.space == "latent"
    assert float(shown.alpha.detach().min()) > 0.9
    torch.testing.assert_close(shown.images, shown.alpha * values[:, :, None, None])


def test_views_are_the_renderings_and_leave_nothing_behind():
    some = cloud()
    views = orbit(3, (12, 10))
    shown, seen = some.render(views), some.view(views)
    torch.testing.assert_close(shown.images, seen.images)
    torch.testing.assert_close(shown.depth, seen.depth)
    assert len(some._seen) == 1 and not seen.images.requires_grad


def test_a_ball_is_even_and_drawn_by_its_seed():
    one, other = ball(4000, 0.5, seed=3), ball(4000, 0.5, seed=4)
    radius = one.means.norm(dim=1)
    assert float(radius.max()) <= 0.5 and abs(float((radius / 0.5).pow(3).mean()) - 0.5) < 0.02
    assert torch.equal(one.means, ball(4000, 0.5, seed=3).means) and not torch.equal(one.means, other.means)


def test_recipes_are_the_published_ones():
    assert Rates() == Rates(1.6e-4, 1.6e-6, 30_000, 5e-3, 1e-3, 0.05, 2.5e-3, 1.25e-4)
    assert Growth() == Growth(500, 15_000, 100, 2e-4, 0.01, 1.6, 0.005, 0.1, 3000, None) and Recipe() == KERBL
    assert (DREAM.rates.means, DREAM.rates.last, DREAM.rates.steps, DREAM.rates.base) == (1e-3, 2e-5, 300, 1e-2)
    assert (DREAM.growth.every, DREAM.growth.threshold, DREAM.growth.reset) == (50, 0.01, 700)
    rates = Rates(steps=100)
    assert rates.of_means(0, 2.0) == pytest.approx(3.2e-4) and rates.of_means(50, 1.0) == pytest.approx(1.6e-5)
    assert rates.of_means(100, 1.0) == rates.of_means(5000, 1.0) == pytest.approx(1.6e-6)


def test_sizes_go_by_the_three_nearest():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [9, 9, 9]])
    assert float(near(points)[0]) == pytest.approx(math.sqrt((1 + 4 + 9) / 3))
    assert near(torch.zeros(4, 3)).tolist() == pytest.approx([math.sqrt(1e-7)] * 4)


# -- how they grow


def grown(growth, **options):
    """Ten Gaussians, of which 0 to 2 are to be cloned, 3 and 4 to be split; and what they were before."""
    some = cloud(10, recipe=Recipe(growth=growth), **options)
    with torch.no_grad():
        some.scales[:3] = math.log(0.005)
    optimisers = moving(some)
    before = {k: p.detach().clone() for k, p in some._parts().items()}
    moments = optimisers.moments()
    some.pulled[:5], some.views[:] = 4e-4 * 3, 3
    some.pulled[5:] = 1e-4 * 3
    some.after_step(growth.every - 1, optimisers)
    return some, optimisers, before, moments


def test_the_small_are_cloned_and_the_large_split():
    growth = Growth(start=0, every=10)
    some, optimisers, before, moments = grown(growth)
    assert len(some) == 10 + 3 + 2
    stay = [i for i in range(10) if i not in (3, 4)]
    for name, p in some._parts().items():
        assert torch.equal(p[:8], before[name][stay]) and torch.equal(p[8:11], before[name][:3])
        if name not in ("means", "scales"):
            assert torch.equal(p[11:], before[name][[3, 4, 3, 4]])
    torch.testing.assert_close(some.scales[11:], before["scales"][[3, 4, 3, 4]] - math.log(1.6))
    assert not torch.equal(some.means[11:13], some.means[13:])
    assert not some.pulled.any() and len(some.pulled) == len(some.views) == 15
    after = optimisers.moments()
    for key, moment in moments.items():
        if key.endswith(".step") or not moment.ndim or "background" in key:
            assert torch.equal(after[key], moment)
        else:
            assert torch.equal(after[key][:8], moment[stay]) and not after[key][8:].any(), "what is new has no momentum"
    assert moments["generator.means.exp_avg"].any() and optimisers.named["generator.means"] is some.means


def test_halves_are_drawn_from_the_gaussian_itself():
    """Of one that is long in x and turned by 60 degrees about z: their covariance is its own."""
    turn, size = math.radians(60), torch.tensor([2.0, 0.5, 0.1])
    one = Gaussians(torch.zeros(4000, 3), torch.ones(4000, 3), scales=size.expand(4000, 3))
    one.quaternions.data[:] = torch.tensor([math.cos(turn / 2), 0, 0, math.sin(turn / 2)])
    one.pulled += 1
    one.views += 1
    one.grow(Growth(large=10.0), 0, Optimisers({}, torch.optim.SGD([torch.zeros(1)], 1.0)))
    axes = torch.tensor([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1.0]])
    found = axes.T @ one.means.detach().T.cov() @ axes
    torch.testing.assert_close(found.diagonal().sqrt(), size, rtol=0.05, atol=0)
    assert float((found - torch.diag(found.diagonal())).abs().max()) < 0.06


def test_the_faint_go_and_after_a_reset_the_large_too():
    some = cloud(10, recipe=Recipe(growth=Growth(start=0, every=10, reset=15, large=0.3)))
    with torch.no_grad():
        some.opacities[:2], some.scales[2, 1] = math.log(0.004 / 0.996), math.log(0.4)
    optimisers = moving(some)
    with torch.no_grad():
        some.opacities[:2] = math.log(0.004 / 0.996)
    some.after_step(9, optimisers)
    assert len(some) == 8
    some.after_step(14, optimisers)
    assert float(some.opacities.detach().sigmoid().max()) <= 0.01 + 1e-6
    assert not optimisers.moments()["generator.opacities.exp_avg"].any()
    some.after_step(19, optimisers)
    assert len(some) == 7
    some.opacities.data.fill_(-20.0)
    with pytest.raises(SfumatoError, match="nothing is left"):
        some.after_step(29, optimisers)


def test_no_more_than_most_and_those_with_the_largest_gradients():
    some = cloud(10, recipe=Recipe(growth=Growth(start=0, every=10, most=12)))
    optimisers = moving(some)
    base = some.base.detach().clone()
    some.pulled[:], some.views[:] = torch.arange(10.0) + 1, 1
    some.after_step(9, optimisers)
    assert len(some) == 12 and torch.equal(some.base[8:], base[[8, 9, 8, 9]])


def test_what_pulls_is_the_mean_gradient_in_the_image_over_views_that_see_it():
    """Against finite differences of a shift of the image: halves of the image are its unit, both views count alone."""
    some = Gaussians(torch.tensor([[0.1, 0.05, 0.0]]), torch.ones(1, 3), scales=torch.full((1, 3), 0.3), opacity=0.8)
    optimisers = moving(some.double())
    views = orbit(2, (20, 30), elevation=0.0).to(torch.float64)
    target = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0)).double()

    def far(cameras):
        return (some.render(cameras).images - target).square().mean((1, 2, 3))

    far(views).mean().backward()
    some.after_backward(0, optimisers)
    wanted = 0.0
    for i in range(2):
        slope = []
        for way in torch.eye(2, dtype=torch.float64) * 1e-5:
            ends = [replace(views, centre=views.centre + s * way) for s in (1, -1)]
            with torch.no_grad():
                slope.append(float(far(ends[0])[i] - far(ends[1])[i]) / 2e-5)
        wanted += math.hypot(slope[0] * 15, slope[1] * 10)
    assert float(some.views[0]) == 2 and float(some.pulled[0]) == pytest.approx(wanted, rel=1e-4)
    assert not some._seen


def test_means_slow_down_and_the_rest_does_not():
    some = cloud(5, extent=2.0, recipe=Recipe(Rates(steps=100), None))
    optimisers = moving(some)
    some.after_backward(50, optimisers)
    rates = [group["lr"] for each in optimisers._all for group in each.param_groups]
    assert pytest.approx(2 * 1.6e-5) in rates and 0.05 in rates and 5e-3 in rates


# -- runs


def views_of(truth, n=6, size=(20, 20)):
    cameras = orbit(n, size)
    return Capture(truth.view(cameras).images, cameras, tuple(f"{i}" for i in range(n)))


SHORT = Recipe(
    Rates(steps=30, means=1e-3), Growth(start=2, every=4, stop=20, threshold=1e-5, reset=10), widen=5, drop=0.4
)


class Stopped(Exception):
    pass


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    """Cut off right after it grew, between, and after opacities were reset; a new one begins with the same start."""
    capture = views_of(cloud(12, background=WHITE))

    def fresh():
        return start(capture, 20, degree=1, background=Harmonic(), recipe=SHORT, seed=5)

    whole = fresh()
    fit(whole, capture, 16, coarse=6, seed=2)
    assert len(whole) != 20 and int(whole.bands) == 1
    for stop in (4, 7, 11):
        keep = tmp_path / f"{stop}.safetensors"

        def cut(run, stop=stop):
            if run.step == stop:
                raise Stopped

        with pytest.raises(Stopped):
            fit(fresh(), capture, 16, coarse=6, seed=2, keep=keep, on_progress=cut)
        again = fresh()
        fit(again, capture, 16, coarse=6, seed=2, keep=keep)
        for (name, a), (_, b) in zip(whole.state_dict().items(), again.state_dict().items(), strict=True):
            assert torch.equal(a, b), (stop, name)


def test_a_problem_that_renders_them_may_be_any(tmp_path):
    """Through the names that a distillation has."""

    class Dark(Problem):
        name = doing = "dark"

        def __init__(self):
            self.some = cloud(8, recipe=SHORT)
            self.modules = {"generator": self.some}
            self.rates = {f"generator.{k}": v for k, v in self.some.rates.items()}

        def loss(self, step):
            return self.some.render(orbit(2, (10, 10))).images.sum()

        def after_backward(self, step, optimisers):
            self.some.after_backward(step, optimisers)

        def after_step(self, step, optimisers):
            self.some.after_step(step, optimisers)

    problem = Dark()
    learn(problem, ADAM(problem.groups()), steps=9)
    assert len(problem.some) > 8


class Small:
    """Views of a step, as a distillation draws them."""

    words = ", seen from somewhere"

    def draw(self, draws):
        self.cameras = orbit(2, (8, 8), first=float(torch.rand((), generator=draws[0])) * 360)
        self.matrices = self.cameras.poses
        return self

    def prompts(self, asked):
        return asked

    def __repr__(self):
        return "Small()"


def test_a_distillation_moves_them_and_goes_on_bit_for_bit(tmp_path):
    """Latents towards what an exact denoiser knows, inside a generator that wraps them; they grow on the way."""
    schedule = families.SCHEDULES["epsilon"]
    model = Exact(
        {"one": Mixture(torch.full((1, 3, 8, 8), 1.5), 0.3), "": Mixture(torch.zeros(1, 3, 8, 8), 2.0)}, schedule
    )
    recipe = Recipe(Rates(steps=20, means=1e-2, base=0.1), Growth(start=0, every=3, threshold=1e-6, stop=9, reset=50))

    class Wrapped(Generator):
        space = "latent"

        def __init__(self):
            super().__init__()
            self.inside = ball(30, 0.6, channels=3, latent=True, recipe=recipe, background=Plain((0.0,) * 3, True))
            self.rates = {f"inside.{k}": v for k, v in self.inside.rates.items()}

        def render(self, viewpoints=None):
            return self.inside.render(viewpoints)

        def after_backward(self, step, optimisers):
            self.inside.after_backward(step, optimisers)

        def after_step(self, step, optimisers):
            self.inside.after_step(step, optimisers)

    def run(keep=None, watch=None):
        made = Wrapped()
        with suppress(Stopped):
            distil(model, made, "one", ScoreDistillation(guidance=1.0), 12, viewpoints=Small(), keep=keep, watch=watch,
                   every=1)  # fmt: skip
        return made

    def cut(step, images):
        if step == 7:
            raise Stopped

    before = Wrapped().inside.view(orbit(2, (8, 8))).images.mean()
    whole = run()
    assert len(whole.inside) > 30 and float(whole.inside.view(orbit(2, (8, 8))).images.mean()) > float(before) + 0.1
    keep = tmp_path / "run.safetensors"
    run(keep, cut)
    again = run(keep)
    for (name, a), (_, b) in zip(whole.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_the_loss_is_the_authors():
    """SSIM against its definition at one pixel by the window's own sums; identical images lose nothing."""
    rng = torch.Generator().manual_seed(0)
    a, b = torch.rand(1, 1, 15, 17, generator=rng).double(), torch.rand(1, 1, 15, 17, generator=rng).double()
    x = np.arange(11) - 5
    window = np.exp(-(x**2) / 4.5)
    window = np.outer(window, window) / window.sum() ** 2
    total = 0.0
    one, two = (np.pad(t[0, 0].numpy(), 5) for t in (a, b))
    for i in range(15):
        for j in range(17):
            p, q = one[i : i + 11, j : j + 11], two[i : i + 11, j : j + 11]
            m, n = (window * p).sum(), (window * q).sum()
            v, w = (window * p * p).sum() - m * m, (window * q * q).sum() - n * n
            c = (window * p * q).sum() - m * n
            total += (2 * m * n + 1e-4) * (2 * c + 9e-4) / ((m * m + n * n + 1e-4) * (v + w + 9e-4))
    assert float(ssim(a, b)) == pytest.approx(total / (15 * 17), abs=1e-12)
    wanted = 0.8 * float((a - b).abs().mean()) + 0.2 * (1 - total / (15 * 17))
    assert float(photometric(a, b)) == pytest.approx(wanted, abs=1e-12)
    assert float(photometric(a, a)) == pytest.approx(0, abs=1e-12)
    mask = torch.zeros(1, 15, 17, dtype=torch.bool)
    mask[:, :, :6] = True
    changed = torch.where(mask[:, None], b, torch.rand(b.shape, generator=rng).double())
    assert float(photometric(changed, a, mask)) == pytest.approx(float(photometric(b, a, mask)), abs=1e-12)


def checks(n=8, size=(48, 48)):
    """A ball with a pattern, seen sharply: many small Gaussians on a sphere of radius 0.7."""
    rng = torch.Generator().manual_seed(0)
    way = torch.nn.functional.normalize(torch.randn(4000, 3, generator=rng), dim=1)
    colours = 0.5 + 0.5 * torch.sin(way * 5 + torch.tensor([0.0, 1, 2]))
    thing = Gaussians(0.7 * way, colours, scales=torch.full((4000, 3), 0.025), opacity=0.95, background=WHITE)
    return thing, views_of(thing, n, size)


def test_points_are_drawn_where_cameras_agree():
    """On the front of the ball, seen by 16 cameras: in its surface to within a step or two of the sweep's."""
    _, capture = checks(16)
    some = start(capture, 300)
    place = capture.cameras.seen(some.means.detach())
    near = ((place[..., :2] - 24).abs() < 6).all(-1) & (place[..., 2] > 0) & (place[..., 2] < 3)
    radius = some.means.detach().norm(dim=1)[near.any(0)]
    assert len(radius) > 10 and float((radius - 0.7).abs().median()) < 0.08


def test_points_of_many_views_are_of_some_of_them_evenly(monkeypatch):
    _, capture = checks(6, (16, 16))
    monkeypatch.setattr(gaussians_fit, "VIEWS", 3)
    swept = []

    def seen(capture):
        swept.append(capture.names)
        return Swept(torch.full((3, 8, 8), 2.0), torch.zeros(3, 8, 8, dtype=torch.bool), torch.ones(3))

    monkeypatch.setattr(gaussians_fit, "sweep", seen)
    some = start(capture, 40)
    away = (some.means.detach()[:, None] - capture.cameras.eyes[[0, 2, 5]]).norm(dim=-1)
    assert swept == [("0", "2", "5")] and float((away - 2).abs().amin(1).max()) < 1e-5


def test_nothing_before_the_near_plane_is_seen_or_moved(tmp_path):
    """One of two lies before it for the one camera, and not for the other; a file keeps where the plane is."""
    means = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.5]])
    scales = torch.full((2, 3), 0.2)

    def pair(m, **more):
        colours = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])[:m]
        return Gaussians(means[:m], colours, scales=scales[:m], opacity=0.8, background=WHITE, **more)

    both, one = pair(2, near_plane=1.0), pair(1)
    front, behind = orbit(2, (16, 16), elevation=0.0, distance=2.0)[[0]], orbit(2, (16, 16), elevation=0.0)[[1]]
    assert torch.equal(both.view(front).images, one.view(front).images)
    assert not torch.equal(both.view(behind).images, one.view(behind).images)
    assert not torch.equal(pair(2).view(front).images, one.view(front).images)
    both.render(front).images.square().sum().backward()
    for name in ("means", "scales", "opacities", "base"):
        gradient = getattr(both, name).grad
        assert gradient[0].any() and not gradient[1].any(), name
    again, _ = load_scene(save_scene(tmp_path / "some.safetensors", both))
    assert again.near_plane == 1.0 and torch.equal(again.view(front).images, both.view(front).images)
    with pytest.raises(SfumatoError, match="seen from 0 on"):
        pair(1, near_plane=0.0)


def test_outdoors_is_a_soft_sky_and_a_horizon_at_once(tmp_path):
    rng = torch.Generator().manual_seed(0)
    outdoors = Outdoors(latent=True, rows=7)
    for parameter in outdoors.parameters():
        parameter.data.normal_(generator=rng)
    sky, horizon = Harmonic(latent=True), Horizon(latent=True, rows=7)
    sky.value.data, sky.turning.data, horizon.table.data = outdoors.value, outdoors.turning, outdoors.table
    ways = torch.nn.functional.normalize(torch.randn(50, 3, generator=rng), dim=1)
    torch.testing.assert_close(outdoors(ways), sky(ways) + horizon(ways))
    assert not torch.allclose(outdoors(ways), sky(ways)) and not torch.allclose(outdoors(ways), horizon(ways))
    seen = cloud(3, background=outdoors)
    again, _ = load_scene(save_scene(tmp_path / "some.safetensors", seen))
    assert torch.equal(again.view(orbit(2, (8, 8))).images, seen.view(orbit(2, (8, 8))).images)


def test_a_scene_begins_behind_its_captures_near_plane():
    """0.3 of the nearest camera's distance to the middle; of sparse points, a bit before the nearest that is seen."""
    _, capture = checks(4, (16, 16))
    assert start(capture, 8).near_plane == pytest.approx(0.3 * 3.0, rel=1e-5)
    known = replace(capture, points=torch.rand(20, 3) - 0.5, colours=torch.rand(20, 3))
    some = start(known, 30)
    assert some.near_plane == pytest.approx(0.8 * known.span[0]) and isinstance(some.background, Outdoors)


def test_distances_of_a_sweep_are_a_part_of_the_loss(monkeypatch):
    """By hand: means of what is sure, in units of the nearest's inverse; views that were not swept have none."""
    thing, capture = checks(4, (16, 16))
    monkeypatch.setattr(gaussians_fit, "VIEWS", 2)
    away = torch.full((2, 8, 8), 4.0)
    away[1] = 5.0
    sure = torch.zeros(2, 8, 8, dtype=torch.bool)
    sure[:, :, 2:4] = True
    close = torch.tensor([1.2, 1.6])
    monkeypatch.setattr(gaussians_fit, "sweep", lambda capture: Swept(away, sure, close))
    order = torch.randperm(4, generator=generator(0, 0)).tolist()
    for step, view in enumerate(order):
        loss = {}
        for depth in (0.0, 0.5):
            thing.recipe = Recipe(growth=None, depth=depth)
            loss[depth] = float(Fitting(thing, capture).loss(step))
        seen = thing.view(capture.cameras[[view]])
        inverse = (seen.alpha / seen.depth.clamp_min(0.01)).view(8, 2, 8, 2).mean((1, 3))
        row = {0: 0, 3: 1}.get(view)
        wanted = 0.0
        if row is not None:
            wanted = 0.5 * float((inverse[:, 2:4] - 1 / away[row, :, 2:4]).abs().sum() / 64 * close[row])
        assert loss[0.5] - loss[0.0] == pytest.approx(wanted, abs=1e-6), view


def test_a_start_keeps_known_points_and_fills_up():
    _, capture = checks(4, (16, 16))
    known = replace(capture, points=torch.rand(5, 3), colours=torch.rand(5, 3))
    some = start(known, 12)
    assert len(some) == 12 and torch.equal(some.means[:5], known.points)
    torch.testing.assert_close(some.base[:5] * 0.28209479 + 0.5, known.colours)
    assert len(start(known, 3)) == 3
    assert some.extent == pytest.approx(extent_of(capture.cameras))
    with pytest.raises(SfumatoError, match="one Gaussian or more"):
        start(capture, 0)


@pytest.mark.slow
def test_a_capture_is_learned():
    """A patterned ball from 12 views, four others held out."""
    _, capture = checks(16)
    train, held = capture.split(4)
    some = start(train, 600, recipe=quick(200, True, 1500), background=Plain((1.0, 1.0, 1.0)))
    before = (some.view(held.cameras).images - held.images).square().mean()
    fit(some, train, 200, coarse=60)
    after = (some.view(held.cameras).images - held.images).square().mean()
    assert -10 * math.log10(after) > 22 and float(after) < 0.25 * float(before)


def test_latents_do_not_fit_pixels():
    _, capture = checks(3, (16, 16))
    with pytest.raises(SfumatoError, match="latent=False"):
        fit(ball(10, latent=True, channels=4), capture, 1)


def test_state_loads_into_another_number():
    some, other = cloud(7, degree=2), cloud(3, degree=2)
    other.load_state_dict(some.state_dict())
    assert len(other) == 7 and all(torch.equal(getattr(some, k), getattr(other, k)) for k in PARTS)
