"""Collaboration of a set: Stein's kernel against closed forms, and its laws from sets of one and two on."""

from __future__ import annotations

import math
from dataclasses import replace

import families
import pytest
import torch

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.guidance import CFG
from sfumato.core.schedule import add_noise
from sfumato.distill import GuidedModel, Latents, constant, distil, weight
from sfumato.distill.loop import Now
from sfumato.distill.stein import Stein, bandwidth_of, kernel
from sfumato.errors import SfumatoError
from sfumato.learning import seeds
from sfumato.learning.annealing import Times
from sfumato.methods.distill.collaborative_score_distillation import (
    EDITING,
    CollaborativeScoreDistillation,
    collaborative_score_distillation,
)
from sfumato.methods.distill.score_distillation import ScoreDistillation, score_distillation

SCHEDULES = families.SCHEDULES
WIDTH = 0.5
STEADY = Times(constant(0.5))


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=SCHEDULES)
def model(request):
    return exact(request.param)


def exact(kind="epsilon"):
    means = drawn(3, 3, 2, 2, seed=0)
    one, two = Mixture(means[:1], WIDTH), Mixture(means[1:], WIDTH, (0.5, 0.5))
    return Exact({"one": one, "two": two, "": Mixture(means.mean(0, keepdim=True), 2.0)}, SCHEDULES[kind])


def prior(model, n, prompt="one", guide=None):
    return GuidedModel(model, (prompt,) * n, guide or CFG(4.0))


def distances(x):
    return torch.pdist(x.flatten(1))


# -- the kernel


@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_kernel_and_its_gradient_are_closed_forms(n):
    """k = exp(-gamma d^2), the sum of its gradients by x_i is -2 gamma sum_j k_ij (x_i - x_j)."""
    x = drawn(n, 3, 2, 2)
    found, flat = kernel(x), x.flatten(1)
    apart = flat[:, None] - flat
    width = math.log(n) / float(distances(x).median()) ** 2
    values = (-width * apart.square().sum(-1)).exp()
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(found.gradient.flatten(1), -2 * width * (values[..., None] * apart).sum(1))


def test_the_gradient_of_features_is_autograds_of_each_image_alone():
    """Against the definition: the derivative of sum_j k(x_i, x_j) by x_i, all x_j and the bandwidth held."""
    x, mix = drawn(4, 3, 2, 2), drawn(12, 5, seed=2)

    def features(images):
        return torch.tanh(images.flatten(1) @ mix)

    width = bandwidth_of(features(x))
    found = kernel(x, features=features)
    for i in range(4):
        own = x[i : i + 1].clone().requires_grad_()
        k = (-width * (features(own) - features(x)).square().sum(1)).exp()
        torch.testing.assert_close(found.values[i], k.detach())
        torch.testing.assert_close(found.gradient[i : i + 1], torch.autograd.grad(k.sum(), own)[0])
    assert not found.gradient.requires_grad


def test_bandwidths_are_of_different_images_so_that_two_have_one():
    x = drawn(2, 3, 2, 2).flatten(1)
    square = float((x[0] - x[1]).square().sum())
    assert bandwidth_of(x) == pytest.approx(math.log(2) / square)
    assert bandwidth_of(x, "code") == pytest.approx(math.log(3) / square)
    assert bandwidth_of(x[[0, 0, 1, 0]]) == pytest.approx(math.log(4) / square)
    assert bandwidth_of(x[[0, 0]]) == 0


def test_a_kernel_is_of_two_or_more():
    with pytest.raises(SfumatoError, match="a kernel compares two images or more, got 1"):
        kernel(drawn(1, 3, 2, 2))


def test_distances_are_taken_in_float32():
    x = (drawn(3, 3, 2, 2) + 100).bfloat16()
    torch.testing.assert_close(kernel(x).values, kernel(x.float()).values)
    assert kernel(x).values.dtype == torch.float32 and kernel(x).gradient.dtype == torch.bfloat16


# -- the set


@pytest.mark.parametrize("division", ["kernel", "number"])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_with_no_score_every_image_moves_away_from_every_other(n, division):
    """Descent along the kernel's gradient alone."""
    x = drawn(n, 3, 2, 2)
    moved = x.clone()
    for _ in range(5):
        before = distances(moved)
        moved = moved - 0.05 * Stein(division=division)(torch.zeros_like(moved), moved)
        assert (distances(moved) > before).all()


def test_the_repulsion_of_two_is_along_their_line_and_scales():
    x = drawn(2, 3, 2, 2)
    once, twice = (Stein(repulsion=r)(torch.zeros_like(x), x) for r in (1.0, 2.0))
    torch.testing.assert_close(twice, 2 * once)
    torch.testing.assert_close(once[0], -once[1])
    line = (x[0] - x[1]).flatten()
    assert torch.cosine_similarity(-once[0].flatten(), line, dim=0) == pytest.approx(1)


def test_one_image_keeps_its_gradient_and_so_does_each_that_goes_alone():
    one, three = drawn(1, 3, 2, 2), drawn(3, 3, 2, 2)
    for stein in (Stein(), Stein(division="number"), Stein(repulsion=5.0), Stein("code")):
        assert Stein.__call__(stein, one, one + 1) is one
    assert Stein("off")(three, three + 1) is three


@pytest.mark.parametrize("bandwidth", ["text", "code"])
@pytest.mark.parametrize("division", ["kernel", "number"])
def test_a_set_is_the_published_sum_written_plainly(bandwidth, division):
    x, scores = drawn(4, 3, 2, 2), drawn(4, 3, 2, 2, seed=2)
    values, width = kernel(x, bandwidth).values, bandwidth_of(x.flatten(1), bandwidth)
    for i, found in enumerate(Stein(bandwidth, 3.0, division)(scores, x)):
        expected = torch.zeros_like(x[0])
        for j in range(4):
            expected += values[i, j] * scores[j] - 3.0 * 2 * width * values[i, j] * (x[i] - x[j])
        torch.testing.assert_close(found, expected / (values[i].sum() if division == "kernel" else 4))


def test_the_step_does_not_shrink_as_a_set_grows_unless_it_is_divided_by_the_number():
    """Where all images have one gradient, all follow it; divided by N they follow (1 + (N - 1) / N) / N of it, as the
    kernel of images that are equally far apart is 1 / N."""
    for n in (2, 4, 16):
        x, same = torch.eye(n, dtype=torch.float64).view(n, 1, 1, n), drawn(1, 1, 1, n).expand(n, -1, -1, -1)
        torch.testing.assert_close(Stein(repulsion=0)(same, x), same)
        part = (1 + (n - 1) / n) / n
        torch.testing.assert_close(Stein(repulsion=0, division="number")(same, x), part * same)


def test_images_that_differ_by_rounding_alone_move_as_one():
    """Their kernel is 1, and no gradient of a kernel without a width drives them apart."""
    x, scores = drawn(1, 3, 2, 2).repeat(3, 1, 1, 1), drawn(3, 3, 2, 2, seed=2)
    for near in (x, x + 1e-9 * drawn(3, 3, 2, 2, seed=3)):
        moved = Stein()(scores, near)
        torch.testing.assert_close(moved, scores.mean(0, keepdim=True).expand_as(moved))


# -- the gradient


def test_a_set_of_one_is_score_distillation_bit_for_bit(model):
    x, noise, at = drawn(1, 3, 2, 2), drawn(1, 3, 2, 2, seed=2), model.schedule.at(400)
    asked = prior(model, 1)
    ours = collaborative_score_distillation(asked, x, at, noise)
    assert torch.equal(ours, score_distillation(asked, x, at, noise))


def test_a_run_of_one_is_that_of_score_distillation_bit_for_bit():
    model, ends = exact(), []
    for how in (CollaborativeScoreDistillation(), ScoreDistillation(guidance=20.0)):
        generator = Latents(drawn(1, 3, 2, 2))
        distil(model, generator, "two", how, 10)
        ends.append(generator.latents.detach())
    assert torch.equal(*ends)


def test_sets_of_two_and_more_are_finite(model):
    for n in (2, 3, 5):
        x, noise, at = drawn(n, 3, 2, 2), drawn(n, 3, 2, 2, seed=2), model.schedule.at(400)
        for features in (None, lambda images: images.flatten(1)[:, :5]):
            found = collaborative_score_distillation(prior(model, n), x, at, noise, features=features)
            assert found.isfinite().all() and found.any()


def test_the_order_of_the_set_does_not_matter(model):
    x, noise, at = drawn(5, 3, 2, 2), drawn(5, 3, 2, 2, seed=2), model.schedule.at(400)
    order, asked = torch.tensor([3, 0, 4, 1, 2]), prior(model, 5, "two")
    for features in (None, lambda images: images.tanh()):
        one = collaborative_score_distillation(asked, x, at, noise, features=features)
        other = collaborative_score_distillation(asked, x[order], at, noise[order], features=features)
        torch.testing.assert_close(other, one[order])


def test_identical_images_with_one_noise_behave_as_one_image(model):
    one, noise = drawn(1, 3, 2, 2), drawn(1, 3, 2, 2, seed=2)
    x, same = one.expand(4, -1, -1, -1), noise.expand(4, -1, -1, -1)
    alone = score_distillation(prior(model, 1), one, model.schedule.at(400), noise)
    for division in ("kernel", "number"):
        at, stein = model.schedule.at(400), Stein(division=division)
        found = collaborative_score_distillation(prior(model, 4), x, at, same, stein=stein)
        torch.testing.assert_close(found, alone.expand_as(found))


def test_of_a_set_that_is_its_source_the_delta_is_the_repulsion_alone(model):
    x, noise, at = drawn(3, 3, 2, 2), drawn(3, 3, 2, 2, seed=2), model.schedule.at(400)
    asked = prior(model, 3)
    found = collaborative_score_distillation(
        asked, x, at, noise, asked(add_noise(x, noise, at), at), Stein(repulsion=2.0)
    )
    noisy = add_noise(x, noise, at)
    expected = weight("variance", at, x) * Stein(repulsion=2.0)(torch.zeros_like(x), noisy)
    torch.testing.assert_close(found, expected)


# -- the method


def now(model, n=3, memory=None, prompt="one", x=None):
    x = drawn(n, 3, 2, 2) if x is None else x
    return Now(model, x, (prompt,) * n, 0, 4, seeds.Draws(5, 0), {} if memory is None else memory)


def luck():
    """What three images draw in that step: a number for the level, and noise."""
    rngs = [seeds.generator(5 + i, 0) for i in range(3)]
    u = [float(torch.rand((), generator=rng, dtype=torch.float64)) for rng in rngs]
    return u, torch.stack([torch.randn(3, 2, 2, generator=rng) for rng in rngs]).double()


def test_the_default_is_the_published_step_with_one_level_for_the_set(model):
    how = CollaborativeScoreDistillation(times=Times.read("0.2,0.8"))
    given, x, (u, *_), noise = how.gradient(now(model)), drawn(3, 3, 2, 2), *luck()
    t = (0.2 + 0.6 * u) * 1000 if model.schedule.prediction == "flow" else 200 + math.floor(u * 601)
    at = model.schedule.at(t)
    torch.testing.assert_close(given, collaborative_score_distillation(prior(model, 3, guide=CFG(20.0)), x, at, noise))


def test_shared_noise_is_one_for_all():
    """Of equal images, so that what differs is the noise."""
    model, x = exact(), drawn(1, 3, 2, 2).expand(3, -1, -1, -1)
    how = CollaborativeScoreDistillation(times=STEADY)
    for shared in (True, False):
        found = replace(how, shared_noise=shared).gradient(now(model, x=x))
        assert torch.allclose(found[0], found[1]) == shared


def test_the_source_is_the_runs_beginning_and_of_one_prompt_its_first_step_is_the_repulsion_alone():
    model, memory = exact(), {}
    how = CollaborativeScoreDistillation(4.0, times=STEADY, baseline="source", described="one", repulsion=0.0)
    first = how.gradient(now(model, memory=memory))
    torch.testing.assert_close(first, torch.zeros_like(first), atol=1e-12, rtol=0)
    assert torch.equal(memory["source"], drawn(3, 3, 2, 2))
    later = how.gradient(now(model, memory=memory, x=drawn(3, 3, 2, 2, seed=7)))
    assert later.abs().max() > 1e-3
    with pytest.raises(SfumatoError, match="the source was 3 images, and 2 are rendered"):
        how.gradient(now(model, n=2, memory=memory))


def test_pixels_are_compared_without_noise():
    model, x = exact(), drawn(3, 3, 2, 2)
    how = CollaborativeScoreDistillation(times=STEADY, distance="pixels")
    noise, at = luck()[1], model.schedule.at(500)
    expected = collaborative_score_distillation(
        prior(model, 3, guide=CFG(20.0)), x, at, noise, features=lambda images: images / 2 + 0.5
    )
    torch.testing.assert_close(how.gradient(now(model)), expected)


def test_images_that_begin_alike_stay_together_and_each_alone_goes_its_own_way():
    """To one of four images that are as likely."""
    means, spreads = drawn(4, 3, 8, 8, seed=0), {}
    model = Exact({"any": Mixture(means, 0.2, (0.25,) * 4)}, SCHEDULES["epsilon"])
    for bandwidth in ("off", "text"):
        generator = Latents(0.1 * drawn(8, 3, 8, 8))
        how = CollaborativeScoreDistillation(1.0, bandwidth=bandwidth)
        distil(model, generator, "any", how, 100, optimiser=lambda p: torch.optim.SGD(p, lr=0.1))
        spreads[bandwidth] = float(distances(generator.latents.detach()).mean())
    assert spreads["text"] < 0.5 * spreads["off"]


def test_the_codes_settings_are_named():
    assert (EDITING.guidance, EDITING.bandwidth, EDITING.baseline) == (7.5, "code", "source")
    assert str(EDITING.times) == "0.02,0.5"
