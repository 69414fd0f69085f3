"""The gradients of seven papers against their formulas on denoisers that are exact, and their runs on every family."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import families
import pytest
import torch

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.guidance import CFG, Composed
from sfumato.core.schedule import Level, add_noise
from sfumato.distill import DREAMFUSION, GuidedModel, Latents, between, constant, distil, weight
from sfumato.distill.loop import Now
from sfumato.errors import SfumatoError
from sfumato.learning.seeds import Draws
from sfumato.methods.distill import classifier_score_distillation as classifier
from sfumato.methods.distill import hifa as hifas
from sfumato.methods.distill import noise_free_score_distillation as noise_free
from sfumato.methods.distill import score_distillation_bridge as bridges
from sfumato.methods.distill import score_jacobian_chaining as chaining
from sfumato.methods.distill.classifier_score_distillation import (
    ClassifierScoreDistillation,
    classifier_score_distillation,
)
from sfumato.methods.distill.delta_score import DeltaScore, delta_score
from sfumato.methods.distill.hifa import HiFA, hifa
from sfumato.methods.distill.interval_score_matching import IntervalScoreMatching, interval_score_matching, way
from sfumato.methods.distill.noise_free_score_distillation import (
    NoiseFreeScoreDistillation,
    noise_free_score_distillation,
)
from sfumato.methods.distill.score_distillation import score_distillation
from sfumato.methods.distill.score_distillation_bridge import ScoreDistillationBridge, bridge
from sfumato.methods.distill.score_jacobian_chaining import ScoreJacobianChaining, score_jacobian_chaining

SCHEDULES = families.SCHEDULES
LEVELS = (120, 310, 780)
"""An image each: below and above the border of noise-free score distillation, and with ways of 1, 2 and 4 steps."""
SCALE = 4.0


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(kind, modes=1):
    means = drawn(4 * modes, 3, 2, 2, seed=0).split(modes)
    shares = ((1.0,), (0.3, 0.7))[modes - 1]
    stds = {"edit": 0.5, "source": 0.6, "": 1.2, "bad": 0.8}
    return Exact(
        {name: Mixture(m, std, shares) for (name, std), m in zip(stds.items(), means, strict=True)}, SCHEDULES[kind]
    )


@dataclass
class Asked:
    """A model, three images at a level each, source images, and noise."""

    model: Exact
    at: Level
    x: torch.Tensor
    images: torch.Tensor
    noise: torch.Tensor

    def prior(self, name="edit", scale=SCALE):
        return GuidedModel(self.model, (name,) * len(self.x), CFG(scale))

    def conds(self, **names):
        return self.prior().embedded(**names)

    def each(self):
        for i in range(len(self.x)):
            at = slice(i, i + 1)
            yield Asked(self.model, self.at.rows(at), self.x[at], self.images[at], self.noise[at])


def asked(kind="epsilon", modes=1, levels=LEVELS):
    x, images, noise = drawn(3, len(levels), 3, 2, 2).unbind()
    model = exact(kind, modes)
    return Asked(model, model.schedule.at(levels), x, images, noise)


# -- each gradient as it is called, and as it is written on paper, of one image


def eps(a, name, x):
    """E[noise | x] of a mixture of Gaussians: each one's own, weighted by how likely it is."""
    mixture, (alpha, sigma) = a.model.mixtures[name], a.at.like(x)
    variance = alpha**2 * mixture.std**2 + sigma**2
    away = [x - alpha * mean for mean in mixture.means]
    likely = [w * math.exp(-(d**2).sum() / 2 / variance) for w, d in zip(mixture.weights, away, strict=True)]
    return sum(w / sum(likely) * sigma / variance * d for w, d in zip(likely, away, strict=True))


def guided(a, x, name="edit"):
    return eps(a, "", x) + SCALE * (eps(a, name, x) - eps(a, "", x))


def at(a, x=None):
    """Alpha, sigma, and the noisy image."""
    alpha, sigma = a.at.like(a.x)
    return alpha, sigma, alpha * (a.x if x is None else x) + sigma * a.noise


def chained(a):
    """With sigma as it is beside an image of full strength."""
    alpha, sigma, _ = at(a)
    scaled = sigma / alpha
    z = a.x + scaled * a.noise
    denoised = z - scaled * guided(a, z * alpha)
    return -(denoised - a.x) / scaled


def without_noise(a):
    _, sigma, x = at(a)
    delta_c = eps(a, "edit", x) - eps(a, "", x)
    delta_d = eps(a, "", x) if float(a.at.t.flatten()[0]) < 200 else eps(a, "", x) - eps(a, "bad", x)
    return sigma**2 * (delta_d + SCALE * delta_c)


def classified(a):
    _, sigma, x = at(a)
    return sigma**2 * (SCALE * eps(a, "edit", x) + (0.3 - SCALE) * eps(a, "", x) - 0.3 * eps(a, "bad", x))


def bridged(a):
    x = at(a)[2]
    return SCALE * (eps(a, "edit", x) - eps(a, "bad", x))


def falling(a):
    _, sigma, x = at(a)
    return sigma**2 * (guided(a, x) - a.noise)


def falling_pixels(a):
    alpha, sigma, x = at(a)
    x0 = (x - sigma * guided(a, x)) / alpha
    return 0.1 * sigma**2 * alpha / sigma * ((a.x + 1) / 2 - (x0 + 1) / 2)


def interval(a):
    """80 steps of training below t, in steps of 200 from a clean image; x_t from x_s by one step more."""
    t, s, schedule = float(a.at.t.flatten()[0]), float(a.at.t.flatten()[0]) - 80, a.model.schedule
    x, here = a.x, 0
    while here < s:
        to = min(here + 200, s)
        x = ddim(a, x, schedule.at(here), schedule.at(to))
        here = to
    x_t = ddim(a, x, schedule.at(s), schedule.at(t))
    alpha, sigma = a.at.like(a.x)
    return sigma / alpha * (guided(a, x_t) - eps(replace(a, at=schedule.at(s)), "", x))


def ddim(a, x, level, to):
    seen = eps(replace(a, at=level), "", x)
    return to.alpha * (x - level.sigma * seen) / level.alpha + to.sigma * seen


def changed(a):
    return guided(a, at(a)[2]) - guided(a, at(a, a.images)[2], "source")


CASES = {
    "chaining": (lambda a: score_jacobian_chaining(a.prior(), a.x, a.at, a.noise), chained),
    "noise-free": (
        lambda a: noise_free_score_distillation(
            a.model, a.conds(cond="edit", uncond="", negative="bad"), a.x, a.at, a.noise, SCALE
        ),
        without_noise,
    ),
    "classifier": (
        lambda a: classifier_score_distillation(
            a.model, a.conds(cond="edit", uncond="", negative="bad"), a.x, a.at, a.noise, SCALE, 0.3
        ),
        classified,
    ),
    "bridge": (
        lambda a: bridge(a.model, a.conds(target="edit", source="bad"), a.x, a.at, a.noise, SCALE),
        bridged,
    ),
    "hifa": (lambda a: hifa(a.prior(), a.x, None, a.at, a.noise, 0.1).latents, falling),
    "hifa's pixels": (lambda a: hifa(a.prior(), a.x, None, a.at, a.noise, 0.1).pixels, falling_pixels),
    "interval": (lambda a: interval_score_matching(a.prior(), a.conds(uncond="")["uncond"], a.x, a.at), interval),
    "delta": (
        lambda a: delta_score(a.prior(), a.prior("source"), a.x, a.images, a.at, a.noise),
        changed,
    ),
}


@pytest.mark.parametrize("modes", [1, 2])
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("case", CASES)
def test_each_gradient_is_its_formula_image_by_image(case, kind, modes):
    called, written = CASES[case]
    a = asked(kind, modes)
    torch.testing.assert_close(called(a), torch.cat([written(one) for one in a.each()]))


@pytest.mark.parametrize("case", CASES)
def test_networks_that_predict_noise_v_and_data_give_the_same_gradient(case):
    called, _ = CASES[case]
    first, *others = (called(asked(kind)) for kind in ("epsilon", "v_prediction", "sample"))
    for other in others:
        torch.testing.assert_close(other, first)


@pytest.mark.parametrize("case", CASES)
def test_a_batch_of_levels_is_a_loop_over_images(case):
    called, _ = CASES[case]
    a = asked(modes=2)
    torch.testing.assert_close(called(a), torch.cat([called(one) for one in a.each()]))


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("case", [case for case in CASES if case != "interval"])
def test_on_a_gaussian_the_mean_gradient_has_no_noise_in_it(case, kind):
    """A Gaussian's network is linear, so opposite noises leave the gradient of none, whose noisy image is alpha x."""
    called, written = CASES[case]
    a = asked(kind)
    mean = (called(a) + called(replace(a, noise=-a.noise))) / 2
    quiet = replace(a, noise=torch.zeros_like(a.noise))
    torch.testing.assert_close(mean, torch.cat([written(one) for one in quiet.each()]))


# -- what they have in common, and what sets them apart


@pytest.mark.parametrize("kind", SCHEDULES)
def test_chained_scores_are_score_distillation_of_another_weight(kind):
    a = asked(kind, 2)
    clean, plain = (score_jacobian_chaining(a.prior(), a.x, a.at, a.noise, power) for power in (0, 1))
    torch.testing.assert_close(clean, score_distillation(a.prior(), a.x, a.at, a.noise, "noise-to-signal"))
    torch.testing.assert_close(plain, score_distillation(a.prior(), a.x, a.at, a.noise, "one"))


def test_of_a_single_point_the_chained_score_is_its_score():
    """(m - x) / sigma^2, whatever the noise."""
    a = asked()
    point = Exact({"edit": Mixture(drawn(1, 3, 2, 2), 0.0)}, SCHEDULES["epsilon"])
    a = replace(a, model=point)
    alpha_bar = a.at.alpha.view(-1, 1, 1, 1) ** 2
    score = (point.mixtures["edit"].means - a.x) / ((1 - alpha_bar) / alpha_bar)
    torch.testing.assert_close(score_jacobian_chaining(a.prior(scale=1.0), a.x, a.at, a.noise, 2), -score)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_classifier_score_distillation_is_the_part_of_guidance_alone(kind):
    a = asked(kind, 2)
    conds = a.conds(cond="edit", uncond="")
    alone = classifier_score_distillation(a.model, conds, a.x, a.at, a.noise)
    with_, without = (score_distillation(a.prior(scale=s), a.x, a.at, a.noise) for s in (5.0, 4.0))
    torch.testing.assert_close(alone, with_ - without)
    same = a.conds(cond="edit", uncond="edit")
    assert not classifier_score_distillation(a.model, same, a.x, a.at, a.noise, 7.5).any()


def test_noise_free_score_distillation_asks_the_negative_prompt_from_its_border_on():
    a = asked(levels=(199, 200))
    other = replace(a, model=Exact({**a.model.mixtures, "bad": Mixture(drawn(1, 3, 2, 2), 0.1)}, a.model.schedule))
    called, _ = CASES["noise-free"]
    low, high = called(a) != called(other)
    assert not low.any() and high.all()


@pytest.mark.parametrize("kind", SCHEDULES)
def test_delta_score_is_exactly_zero_where_nothing_is_to_change(kind):
    a = asked(kind, 2)
    same = delta_score(a.prior("source"), a.prior("source"), a.images, a.images, a.at, a.noise)
    assert not same.any()
    assert delta_score(a.prior("edit"), a.prior("source"), a.images, a.images, a.at, a.noise).abs().min() > 0
    assert delta_score(a.prior("source"), a.prior("source"), a.x, a.images, a.at, a.noise).abs().min() > 0


def test_delta_score_takes_a_scale_of_each_prior():
    a = asked()
    found = delta_score(a.prior(scale=3.0), a.prior("source", 2.0), a.x, a.images, a.at, a.noise)
    edit, source = a.prior(scale=3.0), a.prior("source", 2.0)
    torch.testing.assert_close(
        found, edit(add_noise(a.x, a.noise, a.at), a.at) - source(add_noise(a.images, a.noise, a.at), a.at)
    )


def test_the_term_of_pixels_is_that_of_latents_where_both_are_the_same():
    """These pixels are half of the latents; and given pixels are treated as decoded ones are."""
    a = asked(modes=2)
    given = hifa(a.prior(), a.x, a.model.decode(a.x), a.at, a.noise, 0.1)
    decoded = hifa(a.prior(), a.x, None, a.at, a.noise, 0.1)
    torch.testing.assert_close(given, decoded)
    assert given.pixels is not None
    torch.testing.assert_close(given.pixels, 0.05 * given.latents)
    assert hifa(a.prior(), a.x, None, a.at, a.noise, 0).pixels is None


@pytest.mark.parametrize(
    ("t", "times"),
    [(60, [0]), (80, [0]), (281, [0, 200, 201]), (480, [0, 200, 400]), (980, [0, 200, 400, 600, 800, 900])],
)
@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_the_way_to_an_interval_has_steps_of_200_and_a_shorter_one(t, times, kind):
    schedule = SCHEDULES[kind]
    assert [level.t for level in way(schedule, schedule.at(t), 0.08, 0.2, 5)] == pytest.approx(times)
    assert len(way(schedule, schedule.at(t), 0.08, 0.2, 2)) <= 3
    assert way(schedule, schedule.at(t), 0.08, 0.2, 5)[-1].t == pytest.approx(max(0, t - 80))


# -- methods in a run


class Counting(Exact):
    """Remembers what it was asked."""

    def __init__(self, mixtures, schedule):
        super().__init__(mixtures, schedule)
        self.rows: list[tuple[str, ...]] = []

    def predict(self, x, t, cond):
        self.rows.append(cond.prompts)
        return Exact(self.mixtures, self.schedule).predict(x, t, cond)


def counting(*names):
    means = drawn(len(names), 3, 2, 2, seed=0).split(1)
    return Counting({k: Mixture(m, 0.5) for k, m in zip(names, means, strict=True)}, SCHEDULES["epsilon"])


def now(model, step=0, steps=100, n=2, seed=0):
    return Now(model, drawn(n, 3, 2, 2), ("edit",) * n, step, steps, Draws(seed, step))


def test_a_bridge_is_score_distillation_until_it_is_switched():
    method = ScoreDistillationBridge(7.0, switch=0.8, source=", smooth", target=", sharp", times=DREAMFUSION)
    model = counting("edit", "", "edit, smooth", "edit, sharp")

    def again(step):
        asks = now(model, step)
        return asks.x, DREAMFUSION.draw(model.schedule, asks.progress, 2, asks.draws), asks.noise()

    for step in (0, 79):
        x, at, noise = again(step)
        prior = GuidedModel(model, ("edit",) * 2, CFG(7.0))
        assert torch.equal(method.gradient(now(model, step)), score_distillation(prior, x, at, noise))
    for step in (80, 99):
        x, at, noise = again(step)
        seen = [
            GuidedModel(model, (text,) * 2, CFG(1.0))(add_noise(x, noise, at), at)
            for text in ("edit, sharp", "edit, smooth")
        ]
        model.rows.clear()
        torch.testing.assert_close(method.gradient(now(model, step)), 7.0 * (seen[0] - seen[1]))
        assert sorted(model.rows[0]) == ["edit, sharp"] * 2 + ["edit, smooth"] * 2
    heavier = replace(method, bridging="variance").gradient(now(model, 80))
    x, at, _ = again(80)
    torch.testing.assert_close(heavier, weight("variance", at, x) * method.gradient(now(model, 80)))


def test_a_bridge_can_be_alone_or_left_out():
    model = counting("edit", "", "edit, bad")
    for switch, step, rows in ((0.0, 0, {"edit", "edit, bad"}), (1.0, 99, {"edit", ""})):
        ScoreDistillationBridge(switch=switch, source=", bad").gradient(now(model, step))
        assert set(model.rows.pop()) == rows


def test_a_negative_prompt_is_asked_while_it_weighs_something():
    model = counting("edit", "", "bad")
    method = replace(classifier.IF, negative="bad")
    for step, rows in ((0, {"edit", ""}), (1, {"edit", "", "bad"}), (99, {"edit", "", "bad"})):
        found = method.gradient(now(model, step))
        assert set(model.rows.pop()) == rows and not model.rows
        torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.ones(2, dtype=torch.float64))
    for progress, against in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.9, 1.0)):
        assert method.against(progress) == pytest.approx(against)


@pytest.mark.parametrize(
    ("method", "rows"),
    [
        (ScoreJacobianChaining(), 2),
        (NoiseFreeScoreDistillation(negative="bad"), 3),
        (ClassifierScoreDistillation(), 2),
        (ScoreDistillationBridge(), 2),
        (HiFA(), 2),
        (DeltaScore(source="source"), 4),
        (IntervalScoreMatching(times=between(0.06, 0.06)), 3),
        (IntervalScoreMatching(times=between(0.98, 0.98)), 8),
    ],
)
def test_a_step_costs_the_rows_that_are_said(method, rows):
    model = counting("edit", "", "bad", "source")
    method.gradient(now(model))
    assert sum(map(len, model.rows)) == 2 * rows
    assert len(model.rows) == 1 or isinstance(method, IntervalScoreMatching)


def test_hifas_level_is_not_drawn():
    model = counting("edit", "")
    times = [HiFA().times.draw(model.schedule, step / 100, 5, Draws(0, step)) for step in (0, 50)]
    assert all(len(at.t.unique()) == 1 for at in times)


SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"


def test_the_source_is_what_was_rendered_first_and_a_run_that_is_resumed_knows_it(tmp_path):
    model = exact("epsilon")
    start = drawn(2, 3, 2, 2).float()
    method = DeltaScore(source="source", guidance=1.0)
    sgd = partial(torch.optim.SGD, lr=0.3)

    def stop(step, images):
        if step == 3:
            raise KeyboardInterrupt

    whole, halves = Latents(start), Latents(start)
    distil(model, whole, "edit", method, 6, optimiser=sgd)
    keep = tmp_path / "run.safetensors"
    with suppress(KeyboardInterrupt):
        distil(model, halves, "edit", method, 6, optimiser=sgd, keep=keep, watch=stop)
    halves = Latents(torch.zeros_like(start))
    distil(model, halves, "edit", method, 6, optimiser=sgd, keep=keep)
    assert torch.equal(whole.latents, halves.latents)
    assert not torch.equal(whole.latents, start)


def test_an_edit_between_gaussians_ends_where_the_source_lies_to_its_mean():
    """Of one width: the gradient has no noise in it, and is zero where x - m = source - m of the source."""
    means = drawn(2, 3, 2, 2, seed=0).float().split(1)
    model = Exact({"edit": Mixture(means[0], 0.5), "source": Mixture(means[1], 0.5)}, SCHEDULES["epsilon"])
    start = drawn(1, 3, 2, 2).float()
    latents = Latents(start)
    distil(
        model,
        latents,
        "edit",
        DeltaScore(source="source", guidance=1.0),
        150,
        optimiser=partial(torch.optim.SGD, lr=0.2),
    )
    torch.testing.assert_close(latents.latents.detach(), start + means[0] - means[1], atol=1e-3, rtol=1e-3)


METHODS = {
    "chaining": ScoreJacobianChaining(),
    "noise-free": NoiseFreeScoreDistillation(),
    "classifier": replace(classifier.IF, negative="blurry"),
    "bridge": ScoreDistillationBridge(switch=0.5),
    "hifa": HiFA(),
    "interval": IntervalScoreMatching(times=DREAMFUSION, stride=0.5),
    "delta": DeltaScore(source="a duck on grass"),
}


@pytest.fixture(params=families.SOME)
def family(request, models):
    return models(request.param)


def test_delta_score_of_a_network_is_nothing_where_nothing_is_to_change(family):
    side = family.multiple * 4
    latents = Latents(torch.randn(2, family.channels, side // family.factor, side // family.factor))
    (record,) = distil(family, latents, SOURCE, DeltaScore(source=SOURCE), 1)
    assert record.strength < 1e-5


# -- what is published


def values(times, *progress):
    return [pytest.approx((times.low(p), times.high(p))) for p in progress]


def test_published_settings_are_what_was_published():
    sjc = ScoreJacobianChaining()
    assert (sjc.guidance, sjc.power, str(sjc.times)) == (100.0, 1, "0.01,0.969")
    assert ScoreJacobianChaining(guidance=101.0, times=between(0.01, 0.97)) == chaining.THREESTUDIO
    nfsd = NoiseFreeScoreDistillation()
    assert (nfsd.guidance, nfsd.border, nfsd.weighting, nfsd.times) == (7.5, 0.2, "variance", DREAMFUSION)
    assert (
        nfsd.negative.startswith("unrealistic, blurry, low quality, out of focus, ugly")
        and noise_free.BRIDGE.guidance == 40
    )
    plain = ClassifierScoreDistillation()
    assert (plain.guidance, plain.against, plain.negative, plain.normalised) == (1.0, constant(0.0), "", False)
    assert (plain.weighting, plain.times) == ("variance", DREAMFUSION)
    assert (classifier.IF.weighting, classifier.IF.normalised) == ("one", True)
    assert values(classifier.IF.times, 0.0, 0.4999, 0.5, 1.0) == [(0.02, 0.98), (0.02, 0.98), (0.02, 0.5), (0.02, 0.5)]
    assert [classifier.REFINE.against(p) for p in (0.0, 0.5, 1.0)] == [1.0, 0.75, 0.5]
    assert classifier.REFINE.times == between(0.02, 0.5)
    assert (
        classifier.IF.negative == classifier.REFINE.negative == "oversaturated color, ugly, tiling, low quality, noisy"
    )
    scenes = ScoreDistillationBridge()
    assert (scenes.guidance, scenes.switch, scenes.weighting, scenes.bridging) == (
        100.0,
        20000 / 25000,
        "variance",
        "one",
    )
    assert scenes.source.startswith(", oversaturated, smooth, pixelated") and scenes.target == ""
    assert values(scenes.times, 0.0, 0.19, 0.2, 1.0) == [(0.02, 0.98), (0.02, 0.98), (0.02, 0.5), (0.02, 0.5)]
    flat = bridges.FLAT
    assert (flat.guidance, flat.switch, flat.bridging, flat.times) == (40.0, 0.5, "variance", DREAMFUSION)
    both = HiFA()
    assert (both.guidance, both.image, both.weighting) == (100.0, 0.01, "variance")
    assert values(both.times, 0.0, 0.25, 1.0) == [(0.98, 0.98), (0.64, 0.64), (0.3, 0.3)]
    assert HiFA(guidance=101.0) == hifas.THREESTUDIO
    ism = IntervalScoreMatching()
    assert (ism.guidance, ism.stride, ism.most, ism.weighting) == (7.5, 0.2, 5, "noise-to-signal")
    assert values(ism.times, 0.0, 0.15, 0.3, 1.0) == [(0.02, 0.98), (0.02, 0.74), (0.02, 0.5), (0.02, 0.5)]
    assert [ism.interval(p) for p in (0.0, 0.15, 0.3, 1.0)] == pytest.approx([0.1, 0.09, 0.08, 0.08])
    dds = DeltaScore()
    assert (dds.guidance, dds.weighting) == (7.5, "one")
    drawn = dds.times.draw(SCHEDULES["epsilon"], 0.0, 20000, Draws(0, 0))
    assert set(drawn.t.tolist()) == set(range(50, 949))


# -- what cannot be


def test_what_they_cannot_do_is_said():
    a = asked()
    other = GuidedModel(a.model, ("source",) * 3, Composed((("bad", 1.0),)))
    with pytest.raises(SfumatoError, match="one set of conditions"):
        delta_score(a.prior(), other, a.x, a.images, a.at, a.noise)
    model = counting("edit", "")
    asks = now(model)
    asks.memory["source"] = torch.zeros(3, 3, 2, 2)
    with pytest.raises(SfumatoError, match="render the same views"):
        DeltaScore().gradient(asks)
