"""SDI's noises against closed forms, its order in the steps of the inversion, and the run that is DDIM."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import get_args

import families
import pytest
import torch

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG, PerpNeg
from sfumato.core.schedule import Schedule, add_noise
from sfumato.distill import GuidedModel, Latents, between, constant, distil
from sfumato.distill.kappa import fixed_point, inverted, noise_in, regressed, residual
from sfumato.distill.loop import Now
from sfumato.errors import SfumatoError
from sfumato.learning import seeds
from sfumato.learning.annealing import Times
from sfumato.methods.distill.score_distillation import score_distillation
from sfumato.methods.distill.score_distillation_via_inversion import (
    CACHED,
    NOTEBOOK,
    THREESTUDIO,
    Kappa,
    ScoreDistillationViaInversion,
    score_distillation_via_inversion,
)

SCHEDULES = {
    **families.SCHEDULES,
    "zero-snr": Schedule.read(
        {
            **families.TRAINED,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        }
    ),
}
KAPPAS: tuple[Kappa, ...] = get_args(Kappa)
WIDTH = 0.5
PLAIN = partial(torch.optim.SGD, lr=1.0)


def exact(kind="epsilon"):
    """A Gaussian, a mixture of two, two further ones to be far from, and what all prompts have in common."""
    means = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixtures = {
        "one": Mixture(means[:1], WIDTH),
        "two": Mixture(means[1:3], WIDTH, (0.3, 0.7)),
        "side": Mixture(means[3:4], WIDTH),
        "back": Mixture(means[4:], WIDTH),
        "": Mixture(means.mean(0, keepdim=True), 2.0),
    }
    return Exact(mixtures, SCHEDULES[kind])


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prior(model, *prompts, guide=None):
    return GuidedModel(model, prompts, guide or CFG(1.0))


@pytest.fixture(params=SCHEDULES)
def model(request):
    return exact(request.param)


# -- the noise


def test_the_error_of_any_noise_is_a_closed_form_on_a_gaussian_and_nothing_at_the_fixed_point(model):
    """eps(alpha x + sigma k) = sigma / v (alpha (x - m) + sigma k), v = alpha^2 s^2 + sigma^2: the fixed point is
    sigma (x - m) / (alpha s^2), and k errs by alpha^2 s^2 / v of its distance from there."""
    x, kappa, mean = drawn(2, 3, 2, 2), drawn(2, 3, 2, 2, seed=2), model.mixtures["one"].means
    at = model.schedule.at([300, 700])
    alpha, sigma = at.like(x)
    root = sigma * (x - mean) / (alpha * WIDTH**2)
    variance = alpha**2 * WIDTH**2 + sigma**2
    expected = sigma / alpha * (alpha**2 * WIDTH**2 / variance) * (root - kappa)
    torch.testing.assert_close(residual(prior(model, "one", "one"), x, kappa, at), expected)
    none = residual(prior(model, "one", "one"), x, root, at)
    torch.testing.assert_close(none, torch.zeros_like(none), atol=1e-10, rtol=0)


def test_rounds_of_the_fixed_point_are_the_geometric_series_of_a_gaussian(model):
    """Each round keeps sigma^2 / v of the distance from the fixed point, so they come closer, slowly at high levels."""
    x, start, mean = drawn(2, 3, 2, 2), drawn(2, 3, 2, 2, seed=2), model.mixtures["one"].means
    at = model.schedule.at([200, 600])
    alpha, sigma = at.like(x)
    root, keeps = sigma * (x - mean) / (alpha * WIDTH**2), sigma**2 / (alpha**2 * WIDTH**2 + sigma**2)
    found = fixed_point(prior(model, "one", "one"), x, at, start, rounds=4)
    torch.testing.assert_close(found, root + keeps**4 * (start - root))


def test_gradient_steps_are_the_geometric_series_of_a_gaussian(model):
    """With r = a (root - k), a = alpha^2 s^2 / v, a step along a r keeps 1 - rate a^2 of the distance."""
    x, start, mean = drawn(2, 3, 2, 2), drawn(2, 3, 2, 2, seed=2), model.mixtures["one"].means
    at = model.schedule.at([200, 600])
    alpha, sigma = at.like(x)
    root, a = sigma * (x - mean) / (alpha * WIDTH**2), alpha**2 * WIDTH**2 / (alpha**2 * WIDTH**2 + sigma**2)
    with torch.no_grad():
        found = regressed(prior(model, "one", "one"), x, at, start, rounds=3, rate=0.4)
    torch.testing.assert_close(found, root + (1 - 0.4 * a**2) ** 3 * (start - root))
    assert not found.requires_grad


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_inversion_comes_to_the_flow_of_a_gaussian_like_one_over_the_steps(kind):
    """The exact trajectory keeps (x - alpha m) / sqrt(v), and Euler's error halves as the steps double."""
    model = exact(kind)
    x, mean, t = drawn(2, 3, 2, 2), model.mixtures["one"].means, 640
    at, clean = model.schedule.at(t), model.schedule.at(0)

    def width(level):
        return (level.alpha**2 * WIDTH**2 + level.sigma**2) ** 0.5

    noisy = at.alpha * mean + width(at) / width(clean) * (x - clean.alpha * mean)
    expected = noise_in(noisy, x, at)
    errors = [float((inverted(prior(model, "one", "one"), x, at, n) - expected).norm()) for n in (20, 40, 80, 160, 320)]
    ratios = [a / b for a, b in pairwise(errors)]
    assert all(1.6 < r < 2.4 for r in ratios), ratios
    assert ratios[-1] == pytest.approx(2, abs=0.1)


def test_inversion_comes_to_one_limit_on_a_mixture_like_one_over_the_steps():
    model = exact("flow")
    x, at = drawn(1, 3, 2, 2), model.schedule.at(500.0)
    found = [inverted(prior(model, "two"), x, at, n) for n in (32, 64, 128, 256)]
    apart = [float((b - a).norm()) for a, b in pairwise(found)]
    assert [a / b for a, b in pairwise(apart)] == pytest.approx([2, 2], abs=0.15)


def test_the_error_of_eq_4_4_falls_with_the_inversions_steps_to_that_of_the_exact_trajectory():
    """The trajectory from x is not the one step to x that eq. 4.4 asks for: what remains is its distance from it."""
    model = exact("epsilon")
    x, at = drawn(1, 3, 2, 2), model.schedule.at(500)
    asked = prior(model, "one")
    errors = [float(residual(asked, x, inverted(asked, x, at, n), at).norm()) for n in (2, 5, 10, 50, 500)]
    mean, clean = model.mixtures["one"].means, model.schedule.at(0)
    grown = [(v.alpha**2 * WIDTH**2 + v.sigma**2) ** 0.5 for v in (at, clean)]
    exactly = at.alpha * mean + grown[0] / grown[1] * (x - clean.alpha * mean)
    limit = float(residual(asked, x, noise_in(exactly, x, at), at).norm())
    assert [abs(e - limit) for e in errors] == sorted((abs(e - limit) for e in errors), reverse=True)
    assert errors[-1] == pytest.approx(limit, rel=0.01)
    drawn_error = float(residual(asked, x, drawn(1, 3, 2, 2, seed=3), at).norm())
    assert limit < drawn_error


@pytest.mark.parametrize("guide", [CFG(-7.5), CFG(1.0), PerpNeg((("side", -1.0), ("back", -0.5)), 7.5)])
def test_a_batch_is_inverted_as_each_image_alone_with_levels_and_steps_of_their_own(model, guide):
    x, kappa = drawn(3, 3, 2, 2), drawn(3, 3, 2, 2, seed=2)
    prompts, times, counts = ("one", "two", "one"), [150, 600, 900], [1, 5, 9]
    at = model.schedule.at(times)
    asked = prior(model, *prompts, guide=guide)
    alone = [prior(model, prompt, guide=guide) for prompt in prompts]
    levels = [model.schedule.at(t) for t in times]
    parts = list(zip(alone, x.split(1), levels, counts, kappa.split(1), strict=True))
    torch.testing.assert_close(
        inverted(asked, x, at, counts), torch.cat([inverted(p, a, b, n) for p, a, b, n, _ in parts])
    )
    torch.testing.assert_close(
        residual(asked, x, kappa, at), torch.cat([residual(p, a, k, b) for p, a, b, _, k in parts])
    )
    torch.testing.assert_close(
        fixed_point(asked, x, at, kappa, 2), torch.cat([fixed_point(p, a, b, k, 2) for p, a, b, _, k in parts])
    )
    torch.testing.assert_close(
        regressed(asked, x, at, kappa, 2), torch.cat([regressed(p, a, b, k, 2) for p, a, b, _, k in parts])
    )


def test_the_network_is_told_levels_of_the_training_upwards_from_its_cleanest():
    model = exact("epsilon")
    told = []
    predict = model.predict
    model.predict = lambda x, t, cond: told.append(t.unique().item()) or predict(x, t, cond)
    inverted(prior(model, "one"), drawn(1, 3, 2, 2), model.schedule.at(999), 10)
    assert told == [round(99.9 * i) for i in range(10)]


def test_inversions_need_steps():
    model = exact()
    with pytest.raises(SfumatoError, match=r"2 images are inverted in one step or more each, got \[3, 0\]"):
        inverted(prior(model, "one", "one"), drawn(2, 3, 2, 2), model.schedule.at(500), [3, 0])


# -- the gradient


@pytest.mark.parametrize("weighting", ["one", "variance", "deviation", "noise-to-signal"])
def test_of_random_noise_the_gradient_is_that_of_score_distillation(model, weighting):
    x, noise, at = drawn(2, 3, 2, 2), drawn(2, 3, 2, 2, seed=2), model.schedule.at([200, 900])
    asked = prior(model, "one", "two", guide=CFG(7.5))
    ours = score_distillation_via_inversion(asked, x, at, noise, weighting)
    torch.testing.assert_close(ours, score_distillation(asked, x, at, noise, weighting))


def now(model, step=0, steps=4, n=2, memory=None):
    x = drawn(n, 3, 2, 2)
    return Now(model, x, ("one",) * n, step, steps, seeds.Draws(5, step), {} if memory is None else memory)


def test_the_default_is_the_published_step_written_plainly(model):
    """Algorithm 3: t falls, tau is drawn, kappa is inverted at -7.5 in int(10 t) steps, noise is added once."""
    how, step, steps = ScoreDistillationViaInversion(), 2, 4
    given = how.gradient(now(model, step, steps))
    flow, x = model.schedule.prediction == "flow", drawn(2, 3, 2, 2)
    rngs = [seeds.generator(5 + i, step) for i in range(2)]
    t = 0.6 * 1000
    # the first number is the level's, which is not drawn here
    further = t + torch.stack([torch.rand(2, generator=rng, dtype=torch.float64)[1] for rng in rngs]) * 1000 / 30
    up_to = model.schedule.at(further if flow else further.round())
    kappa = inverted(prior(model, "one", "one", guide=CFG(-7.5)), x, up_to, 6)
    at = model.schedule.at(t)
    alpha, sigma = at.like(x)
    kappa = kappa + 0.3 * sigma * torch.stack([torch.randn(x.shape[1:], generator=rng) for rng in rngs]).to(x)
    eps = prior(model, "one", "one", guide=CFG(7.5))(add_noise(x, kappa, at), at)
    torch.testing.assert_close(given, sigma / alpha * (eps - kappa))


def test_the_first_step_is_at_the_models_last_level_in_ten_steps_of_inversion(model):
    told = []
    predict = model.predict
    model.predict = lambda x, t, cond: told.append(t.unique().item()) or predict(x, t, cond)
    given = ScoreDistillationViaInversion().gradient(now(model))
    assert len(told) == 11 and told[0] == 0 and told[-1] == (1000 if model.schedule.prediction == "flow" else 999)
    assert given.isfinite().all()


@pytest.mark.parametrize("kappa", KAPPAS)
def test_every_noise_runs_and_draws_the_same_again(model, kappa):
    how = ScoreDistillationViaInversion(kappa=kappa, times=between(0.3, 0.7))
    first, again = how.gradient(now(model)), how.gradient(now(model))
    assert first.isfinite().all() and first.any()
    assert torch.equal(first, again)


def test_fixed_noise_is_that_of_the_first_step_and_resampled_noise_is_not():
    model = exact()
    steady = Times(constant(0.5))
    for how, alike in (
        (ScoreDistillationViaInversion(kappa="fixed", times=steady), True),
        (ScoreDistillationViaInversion(kappa="resampled", times=steady), False),
    ):
        memory = {}
        first, second = (how.gradient(now(model, step, memory=memory)) for step in (0, 1))
        assert torch.equal(first, second) == alike


def test_entropy_is_added_to_noise_that_is_inferred_and_to_no_other():
    model = exact()
    for kappa in KAPPAS:
        with_it, without = (
            ScoreDistillationViaInversion(kappa=kappa, entropy=e, times=Times(constant(0.5))).gradient(now(model))
            for e in (0.3, 0.0)
        )
        assert torch.equal(with_it, without) == (kappa in ("resampled", "fixed", "cached"))


def test_presets_are_the_published_values():
    assert ScoreDistillationViaInversion().times == Times.read("1>0.2")
    assert replace(THREESTUDIO, times=Times.read("1>0.2"), tau=1 / 30) == ScoreDistillationViaInversion()
    assert str(THREESTUDIO.times) == "0.98>0.25" and THREESTUDIO.tau == 0.1
    assert replace(NOTEBOOK, refresh=1) == CACHED and 1000 / NOTEBOOK.refresh == 40


# -- the run that is DDIM


def cached_and_ddim(model, prompts, x, guide, steps, how=CACHED, repeat=1):
    generator = Latents(x)
    how = replace(how, guidance=guide)
    distil(model, generator, prompts, how, steps * repeat, optimiser=PLAIN, seed=3)
    noise = torch.stack([torch.randn(x.shape[1:], generator=seeds.generator(3 + i, 0)) for i in range(len(x))])
    return generator.latents.detach(), denoise(model, prompts, start=noise, guide=guide, steps=steps).latents


def same(ours, theirs):
    return float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


@pytest.mark.parametrize("guide", [1.0, 7.5])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_of_cached_noise_a_run_is_ddim_from_the_same_noise(model, guide, steps):
    """Wherever the images begin: the first step makes all of them noise."""
    ours, theirs = cached_and_ddim(model, ["one", "two"], drawn(2, 3, 2, 2).float(), guide, steps)
    assert same(ours, theirs)


@pytest.mark.parametrize("kind", ["sd", "sd2-zero-snr", "sd3"])
def test_of_cached_noise_a_run_is_ddim_on_networks(models, kind):
    model = models(kind)
    x = torch.zeros(2, model.channels, 8, 8)
    ours, theirs = cached_and_ddim(model, ["a red cube", "a blue duck"], x, 7.5, 10)
    assert same(ours, theirs)


def test_the_images_before_a_step_are_what_the_sampler_saw_in_its_own_before():
    """x0(t_k): the model's view of the noisy latents of DDIM's step k."""
    model, seen, theirs = exact(), [], []
    x = drawn(1, 3, 2, 2).float()
    distil(model, Latents(x), "two", CACHED, 8, optimiser=PLAIN, watch=lambda k, images: seen.append(images.clone()))
    noise = torch.randn(x.shape, generator=seeds.generator(0, 0))
    denoise(model, "two", start=noise, steps=8, callback=lambda step: theirs.append(step.x0))
    assert same(torch.cat(seen[1:]), torch.cat(theirs[:-1]))


def test_targets_that_are_kept_for_some_steps_lead_where_ddim_leads():
    """At a rate of 1 the further steps of each target do nothing, so the notebook's form is DDIM of fewer steps."""
    how = replace(CACHED, refresh=3)
    ours, theirs = cached_and_ddim(exact(), ["one", "two"], drawn(2, 3, 2, 2).float(), 4.0, 10, how, repeat=3)
    assert same(ours, theirs)


def test_a_cached_run_goes_on_from_its_checkpoint_bit_for_bit(tmp_path):
    model, runs = exact(), []
    for stop in (None, 5):
        generator, keep = Latents(drawn(2, 3, 2, 2)), tmp_path / f"{stop}.safetensors"

        def watch(step, _, stop=stop):
            if step == stop:
                raise KeyboardInterrupt

        how = replace(CACHED, refresh=2)
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                distil(model, generator, "two", how, 12, keep=keep, watch=watch)
            generator = Latents(drawn(2, 3, 2, 2))
        distil(model, generator, "two", how, 12, keep=keep)
        runs.append(generator.latents.detach())
    assert torch.equal(*runs)


def test_noise_that_is_kept_is_of_images_that_are_all_there():
    memory = {}
    CACHED.gradient(now(exact(), n=2, memory=memory))
    with pytest.raises(SfumatoError, match="noise is kept for 2 images and 1 are rendered"):
        CACHED.gradient(now(exact(), step=1, n=1, memory=memory))


# -- guidance


def test_every_published_form_of_guidance_is_one_of_ours(model):
    """u + s' (c - u): of c + s (c - u) with s' = s + 1, of u + s (c - u) with s, of c + s (u - c) with 1 - s."""
    x, at, s = drawn(2, 3, 2, 2), model.schedule.at([300, 800]), 6.5
    c, u = prior(model, "one", "two")(x, at), prior(model, "", "")(x, at)
    for written, ours in ((c + s * (c - u), s + 1), (u + s * (c - u), s), (c + s * (u - c), 1 - s)):
        torch.testing.assert_close(prior(model, "one", "two", guide=CFG(ours))(x, at), written)


def test_perp_neg_of_a_batch_is_that_of_each_image(model):
    """Against the formula written out for one image: a negative's part along the positive is left out."""
    x, at, scale = drawn(3, 3, 2, 2), model.schedule.at([100, 500, 900]), 7.5
    terms = (("side", -1.5), ("back", -0.7))
    asked = prior(model, "one", "two", "one", guide=PerpNeg(terms, scale))
    together = asked(x, at)
    for i, prompt in enumerate(asked.prompts):
        one, level = x[i : i + 1], at.rows(slice(i, i + 1))
        u = prior(model, "")(one, level)
        d = prior(model, prompt)(one, level) - u
        total = d.clone()
        for text, w in terms:
            n = prior(model, text)(one, level) - u
            total += w * (n - (n * d).sum() / d.square().sum() * d)
        torch.testing.assert_close(together[i : i + 1], u + scale * total)
