"""The core of score distillation: closed forms on exact denoisers, loops beside batches, runs cut off."""

from __future__ import annotations

import json
import math
from functools import partial

import families
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.guidance import CFG, PerpNeg
from sfumato.core.schedule import add_noise, noise_in, without_noise
from sfumato.distill import (
    ADAM,
    DREAMFUSION,
    Coordinates,
    Distillation,
    FlatViews,
    Generator,
    Gradient,
    GuidedModel,
    Latents,
    Now,
    Pixels,
    Ramp,
    RandomViews,
    Rendering,
    Times,
    View,
    apply_gradient,
    between,
    clipped,
    constant,
    distil,
    linear,
    noises,
    piecewise,
    square_root,
    weight,
)
from sfumato.distill.generators import seen
from sfumato.errors import SfumatoError
from sfumato.learning.annealing import steps_of
from sfumato.learning.seeds import Draws
from sfumato.methods.distill.score_distillation import ScoreDistillation, score_distillation

PROMPT = "a red cube on grass"
SCHEDULES = families.SCHEDULES
EPSILON, FLOW = SCHEDULES["epsilon"], SCHEDULES["flow"]
WEIGHTS = {
    "one": lambda a, s: 1.0,
    "variance": lambda a, s: s**2,
    "deviation": lambda a, s: s,
    "noise-to-signal": lambda a, s: s / a,
    "product": lambda a, s: s * a,
    "one-minus-alpha": lambda a, s: 1 - a,
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed))


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def schedule(request):
    return request.param


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return families.made(tmp_path_factory.mktemp("families"))


@pytest.fixture(params=families.SOME)
def model(request, made):
    return made(request.param)


def exact(schedule=EPSILON, side=4, channels=3):
    """A Gaussian "one", a mixture "other", and what an empty prompt means."""
    means = drawn(4, channels, side, side, seed=9) / 2
    return Exact(
        {
            "one": Mixture(means[:1], 0.5),
            "other": Mixture(means[1:3], 0.3, (0.3, 0.7)),
            "": Mixture(means[3:], 0.8),
        },
        schedule,
    )


# levels


def test_levels_are_an_image_each_and_noising_is_undone(schedule):
    at = schedule.at([10, 500, 900])
    x, e = drawn(2, 3, 2, 4, 4).unbind()
    z = add_noise(x, e, at)
    for i, t in enumerate((10, 500, 900)):
        level = schedule.at(t)
        torch.testing.assert_close(z[i], level.alpha * x[i] + level.sigma * e[i])
    torch.testing.assert_close(without_noise(z, e, at), x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(noise_in(z, x, at), e, atol=1e-4, rtol=1e-4)
    assert at.rows(slice(1, None)).t.tolist() == [500, 900] and at.rows(1) == schedule.at(500)
    assert at.t.tolist() == [10, 500, 900] and schedule.at(500).t.shape == ()


def test_levels_that_a_model_has_not_are_said():
    for t in (-1, 1000, 999.5):
        with pytest.raises(SfumatoError, match=f"t lies from 0 to 999 in this model, got {t}"):
            EPSILON.at(t)
    for t in (-5, 1000.1):
        with pytest.raises(SfumatoError, match=f"t lies from 0 to 1000 in this model, got {t}"):
            FLOW.at(t)
    with pytest.raises(SfumatoError, match="3 images need a level each or one for all, got 2"):
        add_noise(torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 2), EPSILON.at([1, 2]))


# the prior


def test_networks_that_predict_other_things_see_the_same_noise():
    x = drawn(3, 3, 4, 4)
    said = {}
    for kind in ("epsilon", "v_prediction", "sample"):
        at = SCHEDULES[kind].at([50, 500, 900])
        prior = GuidedModel(exact(SCHEDULES[kind]), ("one", "other", "other"), CFG(4.0))
        said[kind] = prior(x, at)
    torch.testing.assert_close(said["v_prediction"], said["epsilon"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(said["sample"], said["epsilon"], atol=1e-4, rtol=1e-4)


def test_of_a_gaussian_the_noise_is_a_closed_form_and_flows_are_no_exception(schedule):
    """sigma (z - alpha m) / (alpha^2 s^2 + sigma^2)."""
    net, x, at = exact(schedule), drawn(2, 3, 4, 4), schedule.at([200, 800])
    found = GuidedModel(net, ("one", "one"), CFG(1.0))(x, at)
    for i, (_, a, s) in enumerate(zip(*at, strict=True)):
        wanted = s * (x[i] - a * net.mixtures["one"].means[0]) / (a**2 * 0.25 + s**2)
        torch.testing.assert_close(found[i], wanted, atol=1e-5, rtol=1e-4)


def test_guidance_is_u_and_s_times_the_difference(schedule):
    net, x, at = exact(schedule), drawn(2, 3, 4, 4), schedule.at([200, 800])
    prior = GuidedModel(net, ("one", "other"), CFG(7.5, "one"))
    parts = noises(net, x, at, {"u": net.embed(["one"] * 2), "c": net.embed(["one", "other"])})
    torch.testing.assert_close(prior(x, at), parts["u"] + 7.5 * (parts["c"] - parts["u"]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(GuidedModel(net, ("one", "other"), CFG(1.0))(x, at), parts["c"])


@pytest.mark.parametrize("guide", [CFG(5.0), PerpNeg((("a duck", -1.5), ("the sphere", -0.5)), 5.0)])
def test_a_batch_of_levels_is_a_loop_over_its_images(model, guide):
    side, said = families.side(model), (PROMPT, "a duck", "the blue sphere")
    x = model.latents([0, 1, 2], side, side)
    at = model.schedule.at([100, 400, 800])
    with torch.no_grad():
        batch = GuidedModel(model, said, guide)(x, at)
        loop = [GuidedModel(model, said[i : i + 1], guide)(x[i : i + 1], at.rows(slice(i, i + 1))) for i in range(3)]
    torch.testing.assert_close(batch, torch.cat(loop), atol=1e-4, rtol=1e-3)


# weights


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_are_their_formulas(kind, schedule):
    at, like = schedule.at([20, 500, 980]), torch.zeros(3, 1, 2, 2)
    found = weight(kind, at, like)
    assert found.shape == (3, 1, 1, 1)
    wanted = [WEIGHTS[kind](a, s) for _, a, s in zip(*at, strict=True)]
    torch.testing.assert_close(found.flatten(), torch.tensor(wanted).float(), atol=1e-6, rtol=1e-5)


def test_the_variance_is_not_one_minus_alpha_and_alpha_is_not_squared():
    """A public code calls 1 - alpha what is published as sigma^2 = 1 - alpha^2."""
    products = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    for t in (20, 500, 980):
        at, like = EPSILON.at(t), torch.zeros(1, dtype=torch.float64)
        assert weight("variance", at, like).item() == pytest.approx(1 - products[t].item(), rel=1e-4)
        assert weight("one-minus-alpha", at, like).item() == pytest.approx(1 - products[t].item() ** 0.5, rel=1e-3)
    at = EPSILON.at(20)
    assert weight("variance", at, torch.zeros(1)).item() > 1.9 * weight("one-minus-alpha", at, torch.zeros(1)).item()
    assert ScoreDistillation().weighting == "variance"


def test_unknown_weights_and_clipping():
    with pytest.raises(SfumatoError, match="unknown weighting 'sigma'; known: one, variance"):
        weight("sigma", EPSILON.at(1), torch.zeros(1))  # type: ignore[arg-type]
    torch.testing.assert_close(clipped(torch.tensor([-3.0, 0.5, 2.0]), 1.0), torch.tensor([-1.0, 0.5, 1.0]))


# score distillation


@pytest.mark.parametrize("kind", WEIGHTS)
def test_score_distillation_is_exact_for_given_noise(schedule, kind):
    """w (sigma (z - alpha m) / (alpha^2 s^2 + sigma^2) - e) with z = alpha x + sigma e."""
    net, at = exact(schedule), schedule.at([100, 600])
    x, e = drawn(2, 2, 3, 4, 4).unbind()
    found = score_distillation(GuidedModel(net, ("one",) * 2, CFG(1.0)), x, at, e, kind)
    for i, (_, a, s) in enumerate(zip(*at, strict=True)):
        z = a * x[i] + s * e[i]
        eps = s * (z - a * net.mixtures["one"].means[0]) / (a**2 * 0.25 + s**2)
        torch.testing.assert_close(found[i], WEIGHTS[kind](a, s) * (eps - e[i]), atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("t", [100, 500, 900])
def test_the_mean_over_noise_is_the_gaussians_gradient(schedule, t):
    """w sigma alpha (x - m) / (alpha^2 s^2 + sigma^2): towards the mode. 4 standard errors of 4000 draws."""
    net, n = exact(schedule, side=2), 4000
    at, x = schedule.at(t), drawn(1, 3, 2, 2, seed=3)
    found = score_distillation(GuidedModel(net, ("one",) * n, CFG(1.0)), x.expand(n, -1, -1, -1), at, drawn(n, 3, 2, 2))
    _, a, s = schedule.at(t)
    wanted = s**2 * s * a * (x[0] - net.mixtures["one"].means[0]) / (a**2 * 0.25 + s**2)
    error = found.std(0) / n**0.5
    assert ((found.mean(0) - wanted).abs() <= 4 * error + 1e-6).all()
    assert (wanted.abs() > 8 * error).any()


def test_the_mean_over_noise_of_a_mixture_is_its_integral(schedule):
    """One pixel, so that the expectation over the noise is a quadrature (Gauss and Hermite's)."""
    centres, shares, std, n = torch.tensor([-0.8, 0.9]), (0.3, 0.7), 0.2, 20000
    net = Exact({"p": Mixture(centres.view(2, 1, 1, 1), std, shares)}, schedule)
    _, alpha, sigma = map(float, schedule.at(400))
    nodes, masses = np.polynomial.hermite_e.hermegauss(120)
    z = alpha * 0.25 + sigma * nodes
    variance = (alpha * std) ** 2 + sigma**2
    away = z[:, None] - alpha * centres.numpy()
    likely = np.array(shares) * np.exp(-(away**2) / (2 * variance))
    eps = (likely / likely.sum(1, keepdims=True) * sigma * away / variance).sum(1)
    wanted = sigma**2 * float((masses * eps).sum() / masses.sum())
    at, x = schedule.at(400), torch.full((n, 1, 1, 1), 0.25)
    found = score_distillation(GuidedModel(net, ("p",) * n, CFG(1.0)), x, at, drawn(n, 1, 1, 1))
    assert abs(wanted) > 0.01
    assert float(found.mean()) == pytest.approx(wanted, abs=4 * float(found.std()) / n**0.5)


# bringing a gradient to parameters


class Rendered(nn.Module):
    """Images that are linear in parameters: A theta."""

    def __init__(self, n=2):
        super().__init__()
        self.theta = nn.Parameter(drawn(6, seed=1))
        self.a = drawn(n, 3, 2, 2, 6, seed=2)

    def forward(self):
        return self.a @ self.theta


@pytest.mark.parametrize(("reduction", "part"), [("sum", 1), ("batch", 2), ("mean", 24)])
@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_gradients_reach_parameters_through_the_jacobian(reduction, part, scale):
    """J^T g over 1, the images or all values; under a scaled loss it is unscaled afterwards, as GradScaler does."""
    scene, g = Rendered(), drawn(2, 3, 2, 2, seed=4)
    loss = apply_gradient(scene(), g, reduction)
    (scale * loss).backward()
    wanted = torch.einsum("bchwp,bchw->p", scene.a, g) / part
    torch.testing.assert_close(scene.theta.grad / scale, wanted)
    assert loss.item() == pytest.approx(float((g / part).square().sum()) / 2, rel=1e-5)


def test_gradients_are_independent_of_the_images_and_add_to_other_losses():
    scene, g = Rendered(), drawn(2, 3, 2, 2, seed=4)
    (apply_gradient(scene() * 0 + scene(), g) + 3 * scene.theta.sum()).backward()
    torch.testing.assert_close(scene.theta.grad, torch.einsum("bchwp,bchw->p", scene.a, g) + 3)


def test_gradients_accumulate_over_two_halves():
    whole, halves, g = Rendered(4), Rendered(4), drawn(4, 3, 2, 2, seed=4)
    apply_gradient(whole(), g, "batch").backward()
    for at in (slice(0, 2), slice(2, 4)):
        (apply_gradient(halves()[at], g[at], "batch") / 2).backward()
    torch.testing.assert_close(halves.theta.grad, whole.theta.grad)


def test_gradients_under_autocast_are_those_of_the_images_in_their_own_type():
    scene, g = Rendered(), drawn(2, 3, 2, 2, seed=4)
    with torch.autocast("cpu", torch.bfloat16):
        images = scene()
        assert images.dtype == torch.bfloat16
        loss = apply_gradient(images, g)
    loss.backward()
    assert loss.dtype == torch.float32 and scene.theta.grad.dtype == torch.float32
    wanted = torch.einsum("bchwp,bchw->p", scene.a, g)
    torch.testing.assert_close(scene.theta.grad, wanted, atol=0.05, rtol=0.02)


def test_a_scaled_gradient_too_small_for_halves_is_brought_whole():
    """GradScaler's reason: 1e-8 is zero in half precision, 65536 times that is not."""
    images = torch.zeros(1, 1, 2, 2, dtype=torch.float16, requires_grad=True)
    (65536 * apply_gradient(images, torch.full((1, 1, 2, 2), 1e-8))).backward()
    torch.testing.assert_close(images.grad.float() / 65536, torch.full((1, 1, 2, 2), 1e-8), atol=0, rtol=1e-3)


def test_what_cannot_be_applied_is_said():
    images = torch.zeros(2, 3, 4, 4, requires_grad=True)
    with pytest.raises(SfumatoError, match=r"images \(2, 3, 4, 4\) has their shape, got \(1, 3, 4, 4\)"):
        apply_gradient(images, torch.zeros(1, 3, 4, 4))
    with pytest.raises(SfumatoError, match="no gradient path"):
        apply_gradient(images.detach(), torch.zeros(2, 3, 4, 4))
    with pytest.raises(SfumatoError, match="unknown reduction 'total'; known: sum, batch, mean"):
        apply_gradient(images, torch.zeros(2, 3, 4, 4), "total")  # type: ignore[arg-type]


# ramps and times


def test_ramps_go_through_their_points():
    assert [constant(0.3)(p) for p in (0, 0.5, 1)] == [0.3] * 3
    assert [linear(1, 0.2)(p) for p in (0, 0.25, 1)] == pytest.approx([1, 0.8, 0.2])
    assert [square_root(0.98, 0.3)(p) for p in (0, 0.25, 1)] == pytest.approx([0.98, 0.64, 0.3])
    bent = piecewise((0.2, 1.0), (0.4, 3.0), (0.9, 0.0))
    assert [bent(p) for p in (0, 0.2, 0.3, 0.4, 0.65, 0.9, 1)] == pytest.approx([1, 1, 2, 3, 1.5, 0, 0])
    stairs = piecewise((0, 0.98), (0.2, 0.5), shape="steps")
    assert [stairs(p) for p in (0, 0.19999, 0.2, 1)] == [0.98, 0.98, 0.5, 0.5]


@pytest.mark.parametrize(
    "ramp",
    [
        constant(7.5), constant(-2), linear(0.98, 0.2), square_root(0.98, 0.3), piecewise((0, 0.98), (0.2, 0.5)),
        piecewise((0, 0.98), (0.2, 0.5), shape="steps"), piecewise((0.1, 1), (0.5, 2)), linear(1 / 3, 1e-9),
    ],
    ids=str,
)  # fmt: skip
def test_ramps_and_times_are_read_as_they_are_written(ramp):
    assert Ramp.read(str(ramp)) == ramp
    if all(0 <= v <= 1 for _, v in ramp.points):
        for times in (Times(ramp), Times(constant(0.0), ramp)):
            assert Times.read(str(times)) == times


@pytest.mark.parametrize("text", ["", "a", "1>", "0>1>2", "0=1;x", "1:cubic", "0.5=1;0.2=0", "nan", "1:sqrt:2"])
def test_words_that_are_no_ramp_are_said(text):
    with pytest.raises(SfumatoError):
        Ramp.read(text)


def test_levels_outside_of_the_training_are_said():
    for text in ("1.2", "-0.1,0.5", "0.1,0.2,0.3"):
        with pytest.raises(SfumatoError):
            Times.read(text)
    with pytest.raises(SfumatoError, match=r"drawn upwards, got 0\.6 to 0\.5 at 50% of the run"):
        Times(constant(0.6), linear(0.9, 0.1)).draw(EPSILON, 0.5, 1, Draws(0, 0))


@pytest.mark.parametrize(("low", "high"), [(0.02, 0.98), (0, 1), (0.3, 0.3), (0.9, 1)])
def test_drawn_levels_are_whole_and_uniform_with_both_ends(low, high):
    first, last = round(1000 * low), min(round(1000 * high), 999)
    n = 40 * (last - first + 1)
    t = between(low, high).draw(EPSILON, 0.0, n, Draws(0, 0)).t.long()
    counts = torch.bincount(t - first, minlength=last - first + 1)
    assert t.min() == first and t.max() == last and len(counts) == last - first + 1
    assert counts.max() <= 40 + 6 * 40**0.5  # none is drawn more than the others


def test_levels_of_flows_are_reals_above_zero_and_may_be_shared():
    t = DREAMFUSION.draw(FLOW, 0.0, 500, Draws(0, 0)).t
    assert 20 <= t.min() < 40 and 960 < t.max() <= 980 and (t != t.round()).any()
    assert float(steps_of(FLOW, 0.0, 1.0, torch.zeros(1))) > 0
    assert len(DREAMFUSION.draw(EPSILON, 0.0, 5, Draws(0, 0), shared=True).t.unique()) == 1
    assert len(DREAMFUSION.draw(EPSILON, 0.0, 5, Draws(0, 0)).t.unique()) == 5
    falling = Times(linear(0.98, 0.25))
    assert [falling.draw(EPSILON, p, 1, Draws(0, 0)).t for p in (0, 0.5, 1)] == [980, 615, 250]


# generators


def test_views_are_inside_their_ranges_and_the_same_for_the_same_seed():
    views = RandomViews(400).draw(Draws(3, 0))
    angles, zooms = (torch.tensor(v) for v in zip(*views, strict=True))
    assert -30 <= angles.min() < -27 and 27 < angles.max() <= 30 and abs(angles.mean()) < 3
    assert 0.6 <= zooms.min() < 0.62 and 1.18 < zooms.max() <= 1.2
    assert views == RandomViews(400).draw(Draws(3, 0)) and views != RandomViews(400).draw(Draws(4, 0))
    narrow = RandomViews(9, angle=0.0, zoom=(1.0, 1.0)).draw(Draws(0, 0))
    x = drawn(9, 3, 4, 4)
    assert torch.equal(seen(x, narrow), x) and torch.equal(seen(x, None), x)


def test_each_image_is_seen_by_its_own_view():
    x, views = drawn(3, 3, 8, 8), [View(), View(90.0), View(180.0)]
    shown = seen(x, views)
    torch.testing.assert_close(shown[0], x[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shown[1], x[1].rot90(1, (-2, -1)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shown[2], x[2].rot90(2, (-2, -1)), atol=1e-5, rtol=1e-4)


def test_pixels_are_kept_where_images_may_be():
    pixels = Pixels(torch.full((1, 3, 2, 2), 0.5))
    with torch.no_grad():
        pixels.images += torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1)
    pixels.after_step(0, None)
    assert pixels.images[0, :, 0, 0].tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("space", ["pixel", "latent"])
def test_coordinate_networks_are_one_an_image_and_the_same_for_the_same_seed(space):
    net = Coordinates(2, 3, (5, 7), space, seed=1)
    images = net.render().images
    assert images.shape == (2, 3, 5, 7) and torch.equal(
        images, Coordinates(2, 3, (5, 7), space, seed=1).render().images
    )
    other = Coordinates(2, 3, (5, 7), space, seed=2).render().images
    torch.testing.assert_close(other[0], images[1])  # image i is of seed + i
    assert (other[1] - images[0]).abs().max() > 1e-3 and (images[1] - images[0]).abs().max() > 1e-3
    assert space == "latent" or (images.min() > 0 and images.max() < 1)
    images[0].sum().backward()
    for p in net.parameters():
        assert p.grad[0].abs().max() > 0 and not p.grad[1].any()
    with pytest.raises(SfumatoError, match="one image or more"):
        Coordinates(0, 3, (5, 7))


# the run


SPACES = {
    "pixels": lambda: Pixels(torch.rand(2, 3, 4, 4, generator=rng(1))),
    "latents": lambda: Latents(drawn(2, 3, 4, 4, seed=1)),
    "coordinates": lambda: Coordinates(2, 3, (4, 4), width=8, frequencies=4),
}
OPTIMISERS = {"adam": ADAM, "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9)}
METHOD = ScoreDistillation(guidance=3.0)


class Remembering(ScoreDistillation):
    """Score distillation of the running mean of its own gradients, and one that may be cut off."""

    def gradient(self, now):
        now.memory["mean"] = now.memory.get("mean", torch.zeros_like(now.x)) * 0.9 + super().gradient(now)
        return now.memory["mean"]


def values(generator):
    return torch.cat([p.detach().flatten() for p in generator.parameters()])


def test_a_run_is_the_plain_loop():
    """Latents under SGD: x - rate w (eps - e), the noise and the levels of a step drawn from its own generator."""
    net, x = exact(), drawn(2, 3, 4, 4)
    generator = Latents(x)
    records = distil(net, generator, ("one", "other"), METHOD, 3, optimiser=partial(torch.optim.SGD, lr=0.1), seed=7)
    for i in range(3):
        draws = Draws(7, i)
        at = METHOD.times.draw(net.schedule, i / 3, 2, draws)
        e = torch.stack([torch.randn(x.shape[1:], generator=draws[image]) for image in range(2)])
        g = score_distillation(GuidedModel(net, ("one", "other"), CFG(3.0)), x, at, e)
        assert records[i].strength == pytest.approx(float(g.square().mean().sqrt()), rel=1e-4)
        x = x - 0.1 * g
    torch.testing.assert_close(generator.latents.detach(), x, atol=1e-5, rtol=1e-4)
    again = Latents(drawn(2, 3, 4, 4))
    distil(net, again, ("one", "other"), METHOD, 3, optimiser=partial(torch.optim.SGD, lr=0.1), seed=8)
    assert not torch.allclose(again.latents, generator.latents)


def test_pixels_are_moved_through_the_encoder():
    """Of the exact model latents are 2 x - 1, so that pixels get twice the gradient."""
    net, start = exact(), torch.full((1, 3, 4, 4), 0.5)
    pixels, latents = Pixels(start), Latents(2 * start - 1)
    for generator in (pixels, latents):
        distil(net, generator, "one", METHOD, 1, optimiser=partial(torch.optim.SGD, lr=0.01))
    torch.testing.assert_close(pixels.images - start, 2 * (latents.latents - (2 * start - 1)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("why", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_was_cut_off_goes_on_bit_for_bit(space, optimiser, why, tmp_path):
    net, method, keep = exact(), Remembering(guidance=3.0), tmp_path / "run.safetensors"

    def cut(i, images):
        if i == 4:
            raise why("cut off")

    def run(**more):
        generator = SPACES[space]()
        views = RandomViews(2)
        records = distil(net, generator, "other", method, 7, optimiser=OPTIMISERS[optimiser], viewpoints=views, **more)
        return values(generator), records

    with pytest.raises(why):
        run(keep=keep, watch=cut)
    whole, records = run()
    found, later = run(keep=keep)
    assert torch.equal(found, whole)
    assert later == records[4:]
    assert torch.equal(run(keep=keep)[0], whole)  # which is over, and only read again


def test_a_checkpoint_is_kept_as_often_as_asked_and_never_of_half_a_step(tmp_path):
    keep, generator = tmp_path / "run.safetensors", Latents(drawn(1, 3, 4, 4))

    class Breaking(torch.optim.SGD):
        calls = 0

        def step(self, *args):
            super().step(*args)
            type(self).calls += 1
            if type(self).calls == 5:
                raise RuntimeError("in the middle")

    def run(**more):
        distil(exact(), generator, "one", METHOD, 8, optimiser=partial(Breaking, lr=0.1), keep=keep, every=2, **more)

    with pytest.raises(RuntimeError, match="in the middle"):
        run()
    from safetensors import safe_open

    with safe_open(keep, "pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == 4
    generator = Latents(drawn(1, 3, 4, 4))
    run()
    whole = Latents(drawn(1, 3, 4, 4))
    distil(exact(), whole, "one", METHOD, 8, optimiser=partial(torch.optim.SGD, lr=0.1))
    assert torch.equal(generator.latents, whole.latents)


def test_a_method_that_fails_leaves_its_memory_as_it_was(tmp_path):
    keep = tmp_path / "run.safetensors"

    class Failing(Remembering):
        fail = True

        def __repr__(self):
            return "Failing()"

        def gradient(self, now):
            found = super().gradient(now)
            return found * math.nan if self.fail and now.step == 3 else found

    def run(**more):
        generator = Latents(drawn(1, 3, 4, 4))
        distil(exact(), generator, "one", Failing(guidance=3.0), 5, **more)
        return generator.latents

    with pytest.raises(SfumatoError, match="step 3 of Failing: its gradient became not finite"):
        run(keep=keep)
    Failing.fail = False
    assert torch.equal(run(keep=keep), run())


def test_a_loss_without_a_finite_gradient_moves_nothing_and_the_checkpoint_is_of_the_step_before(tmp_path):
    keep, seen = tmp_path / "run.safetensors", []
    generator = Latents(drawn(1, 3, 4, 4))

    def root(rendering):  # of nothing: finite itself, and its slope is not
        return (rendering.images * 0).sum().sqrt() if len(seen) == 3 else rendering.images.sum()

    with pytest.raises(SfumatoError, match="step 2 of ScoreDistillation: a gradient of the parameters is not finite"):
        distil(
            exact(), generator, "one", ScoreDistillation(guidance=3.0), 5,
            regularisers=[root], keep=keep, watch=lambda step, x: seen.append(x.clone()),
        )  # fmt: skip
    assert torch.equal(generator.latents, seen[2])
    assert torch.equal(load_file(keep)["live.generator.latents"], seen[2])


class Wrong(Generator):
    """Right until step 2, then not."""

    def __init__(self, then, space="latent"):
        super().__init__()
        self.space, self.then, self.calls = space, then, 0
        self.x = nn.Parameter(torch.full((2, 3, 4, 4), 0.5))

    def render(self, viewpoints=None):
        self.calls += 1
        return Rendering(self.then(self.x) if self.calls == 3 else self.x)


@pytest.mark.parametrize(
    ("then", "space", "said"),
    [
        (lambda x: x[:, :2], "latent", r"renders latents of shape \(b, 3, h, w\), got \(2, 2, 4, 4\)"),
        (lambda x: x[0], "latent", r"renders latents of shape \(b, 3, h, w\), got \(3, 4, 4\)"),
        (lambda x: x[:0], "latent", r"got \(0, 3, 4, 4\)"),
        (lambda x: x.tolist(), "latent", "got list"),
        (lambda x: x / 0, "latent", "rendered values that are not finite"),
        (lambda x: x * math.nan, "pixel", "rendered values that are not finite"),
        (lambda x: x + 1, "pixel", r"renders pixels in \[0, 1\], got 1\.\d+ to 1\.\d+"),
        (lambda x: x * 2 - 3, "pixel", r"renders pixels in \[0, 1\], got -2"),
        (lambda x: x.detach(), "latent", "no gradient path"),
        (lambda x: torch.zeros(2, 3, 4, 4, requires_grad=True) * 1, "latent", "no gradient reaches the parameters"),
    ],
)
def test_bad_generators_are_said_and_the_state_before_is_kept(then, space, said, tmp_path):
    keep, net = tmp_path / "run.safetensors", exact()
    sgd = partial(torch.optim.SGD, lr=0.01)
    with pytest.raises(SfumatoError, match=said) as raised:
        distil(net, Wrong(then, space), "one", METHOD, 4, optimiser=sgd, keep=keep)
    assert "path" in said or "step 2 of ScoreDistillation" in str(raised.value)
    fine = Wrong(lambda x: x, space)
    distil(net, fine, "one", METHOD, 4, optimiser=sgd, keep=keep)
    whole = Wrong(lambda x: x, space)
    distil(net, whole, "one", METHOD, 4, optimiser=sgd)
    assert torch.equal(fine.x, whole.x)


def test_images_and_prompts_are_as_many():
    generator = Latents(drawn(2, 3, 4, 4))
    with pytest.raises(SfumatoError, match=r"step 0 of ScoreDistillation: .* shape \(3, 3, h, w\), got \(2, 3, 4, 4\)"):
        distil(exact(), generator, ("one",) * 3, METHOD, 1)


def test_bad_runs_are_said():
    with pytest.raises(SfumatoError, match="one step or more, got 0"):
        distil(exact(), Latents(drawn(1, 3, 4, 4)), "one", METHOD, 0)
    still = Latents(drawn(1, 3, 4, 4))
    still.requires_grad_(False)
    with pytest.raises(SfumatoError, match="no parameters that require gradients"):
        distil(exact(), still, "one", METHOD, 1)


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    keep = tmp_path / "run.safetensors"

    def run(method=METHOD, steps=2, shape=(1, 3, 4, 4), **more):
        distil(exact(), Latents(drawn(*shape)), "one", method, steps, keep=keep, **more)

    run()
    for other in (
        {"method": ScoreDistillation(guidance=4.0)}, {"steps": 3}, {"seed": 1}, {"clip": constant(1.0)},
        {"viewpoints": RandomViews()}, {"reduction": "mean"}, {"optimiser": OPTIMISERS["sgd"]},
    ):  # fmt: skip
        with pytest.raises(SfumatoError, match="is of another run"):
            run(**other)
    for shape in ((2, 3, 4, 4), (1, 3, 8, 8)):
        with pytest.raises(SfumatoError, match="is of another network or generator"):
            run(shape=shape)
    keep.write_bytes(keep.read_bytes()[:50])
    with pytest.raises(SfumatoError, match=r"cannot go on: cannot read .*; remove it to start anew"):
        run()


def test_functions_among_the_settings_do_not_make_another_run_in_another_process(tmp_path):
    from safetensors import safe_open

    keep, generator = tmp_path / "run.safetensors", Latents(drawn(1, 3, 4, 4))
    losses = [lambda rendering: rendering.images.sum()]
    distil(exact(), generator, "one", METHOD, 1, keep=keep, regularisers=losses)
    with safe_open(keep, "pt") as file:
        about = file.metadata()["run"]
    assert "<function" in about and "0x" not in about  # where in memory they are


def test_a_method_sees_prompts_as_their_views_want_them_and_cameras():
    found = []

    class Looking(Distillation):
        def gradient(self, now: Now):
            found.append(now)
            return torch.zeros_like(now.x)

    class Turned(FlatViews):
        @property
        def matrices(self):
            return torch.stack([torch.eye(4) * (1 + view.angle) for view in self])

        def prompts(self, asked):
            return [f"{p}, turned" if v.angle else p for p, v in zip(asked, self, strict=True)]

    class Two:
        def draw(self, draws):
            return Turned([View(), View(30.0)])

    generator = Pixels(torch.rand(2, 3, 4, 4, generator=rng()))
    distil(exact(), generator, "one", Looking(), 4, viewpoints=Two())
    now = found[1]
    assert now.prompts == ("one", "one, turned") and now.asked == ("one", "one")
    assert now.cameras[:, 0, 0].tolist() == [1.0, 31.0] and now.cameras.shape == (2, 4, 4) and now.progress == 0.25
    torch.testing.assert_close(now.x, 2 * now.pixels - 1)
    assert not now.x.requires_grad and not now.pixels.requires_grad


def test_gradients_of_pixels_losses_clips_and_reductions_add_up():
    class Both(Distillation):
        def gradient(self, now: Now):
            return Gradient(torch.full_like(now.x, 3.0), torch.full_like(now.x, -0.25))

    def moved(**more):
        generator = Pixels(torch.full((2, 3, 4, 4), 0.5))
        distil(exact(), generator, "one", Both(), 1, optimiser=partial(torch.optim.SGD, lr=0.01), **more)
        step = (0.5 - generator.images.detach()) / 0.01
        torch.testing.assert_close(step, step[:1, :1, :1, :1].expand_as(step))
        return step.flatten()[0].item()

    assert moved() == pytest.approx(2 * 3 - 0.25, rel=1e-4)  # pixels are half as far apart as latents
    assert moved(clip=constant(2.0)) == pytest.approx(2 * 2 - 0.25, rel=1e-4)
    assert moved(reduction="batch") == pytest.approx((2 * 3 - 0.25) / 2, rel=1e-4)
    assert moved(reduction="mean") == pytest.approx((2 * 3 - 0.25) / 96, rel=1e-3)
    assert moved(regularisers=[lambda seen: 7 * seen.images.sum()]) == pytest.approx(2 * 3 - 0.25 + 7, rel=1e-4)


def test_losses_on_pixels_reach_latents_through_the_decoder():
    generator = Latents(torch.zeros(1, 3, 4, 4))

    class Nothing(Distillation):
        def gradient(self, now: Now):
            return torch.zeros_like(now.x)

    sgd = partial(torch.optim.SGD, lr=1.0)
    distil(exact(), generator, "one", Nothing(), 1, optimiser=sgd, regularisers=[lambda seen: seen.images.sum()])
    torch.testing.assert_close(generator.latents.detach(), torch.full((1, 3, 4, 4), -0.5))


@pytest.mark.parametrize("space", ["pixel", "latent"])
def test_every_family_is_distilled_in_both_spaces(model, space):
    """The frozen weights get no gradients, and the images move."""
    side = families.side(model)
    if space == "pixel":
        generator = Pixels(torch.rand(2, 3, side, side, generator=rng()))
    else:
        generator = Latents(model.latents([0, 1], side, side))
    before = values(generator)
    records = distil(model, generator, PROMPT, ScoreDistillation(), 2)
    after = values(generator)
    assert len(records) == 2 and after.isfinite().all() and (after - before).abs().max() > 1e-3
    parts = [model.network, *([model.vae] if hasattr(model, "vae") else [])]
    assert all(p.grad is None for part in parts for p in part.parameters())


class Splats(Generator):
    """Two layers with an opacity, of which a further one comes after step 1."""

    space = "latent"
    rates = {"layers": 0.5}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.layers = nn.Parameter(drawn(2, 3, 4, 4, seed=3))
        self.opacity = nn.Parameter(torch.zeros(1, 1, 4, 4))

    def render(self, viewpoints=None):
        alpha = self.opacity.sigmoid()
        return Rendering(alpha * self.layers.sum(0, keepdim=True), alpha=alpha)

    def after_backward(self, step, optimisers):
        assert optimisers.named["generator.layers"] is self.layers and self.layers.grad is not None

    def after_step(self, step, optimisers):
        if step == 1:
            self.layers = nn.Parameter(torch.cat([self.layers.data, self.layers.data[:1] / 2]))
            optimisers.replace("generator.layers", self.layers, lambda m: torch.cat([m, m[:1]]))

    def _load_from_state_dict(self, state, prefix, *args):
        if state["layers"].shape != self.layers.shape:
            self.layers = nn.Parameter(torch.empty_like(state["layers"]))
        super()._load_from_state_dict(state, prefix, *args)


class Nothing(Distillation):
    def gradient(self, now: Now):
        return torch.zeros_like(now.x)


def test_generators_have_rates_of_their_own_and_losses_are_of_all_that_they_render():
    generator, before = Splats(), Splats()
    sgd = partial(torch.optim.SGD, lr=0.1)
    losses = [lambda seen: seen.alpha.sum() + 3 * seen.images.sum()]  # the model's decoder halves
    distil(exact(), generator, "one", Nothing(), 1, optimiser=sgd, regularisers=losses)
    torch.testing.assert_close(generator.layers, before.layers - 0.5 * 3 * 0.5 / 2)
    slope = 0.25 * (1 + 3 / 2 * before.layers.sum((0, 1)))
    torch.testing.assert_close(generator.opacity, (-0.1 * slope)[None, None])


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_a_generator_that_grows_goes_on_bit_for_bit(cut, tmp_path):
    keep = tmp_path / "run.safetensors"

    def fails(step, images):
        if step == cut:
            raise RuntimeError("cut off")

    def run(**more):
        distil(exact(), generator := Splats(), "one", Remembering(guidance=3.0), 6, **more)
        return generator

    with pytest.raises(RuntimeError, match="cut off"):
        run(keep=keep, watch=fails)
    again, whole = run(keep=keep), run()
    assert torch.equal(values(again), values(whole)) and len(again.layers) == 3
