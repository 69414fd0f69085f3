"""Views that are painted and fitted, on a denoiser that is known."""

from __future__ import annotations

from dataclasses import replace

import families
import pytest
import torch

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.guidance import CFG
from sfumato.core.schedule import add_noise
from sfumato.distill import Now, Pixels, Times, constant, distil
from sfumato.distill.prior import GuidedModel
from sfumato.errors import SfumatoError
from sfumato.learning.seeds import Draws
from sfumato.methods.distill.score_iterative_reconstruction import (
    ScoreIterativeReconstruction,
    climbed,
    likeness,
    sampled,
)

QUIET = ScoreIterativeReconstruction(guidance=1.0, begin=0.0, inversion=False, distance="squared")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def known(spread):
    means = drawn(2, 3, 4, 4, seed=9) / 2
    return Exact(
        {"one": Mixture(means[:1], spread), "": Mixture(means[1:], spread)}, families.SCHEDULES["epsilon"]
    ), means


def now(model, x, step=0, steps=8, memory=None):
    return Now(model, x, ("one",) * len(x), step, steps, Draws(3, step), memory if memory is not None else {})


def test_sampling_ends_at_the_only_image_that_there_is():
    model, means = known(1e-4)
    prior = GuidedModel(model, ("one",) * 2, CFG(1.0))
    for t in (999, 600):
        found = sampled(prior, add_noise(drawn(2, 3, 4, 4), drawn(2, 3, 4, 4, seed=2), model.schedule.at(t)),
                        model.schedule.at(t), 5)  # fmt: skip
        torch.testing.assert_close(found, means[:1].expand(2, -1, -1, -1), atol=1e-2, rtol=0)


def test_what_is_climbed_comes_down_again():
    model, _ = known(0.7)
    prior = GuidedModel(model, ("one",), CFG(1.0))
    at, low = model.schedule.at(600), model.schedule.at(300)
    noisy = add_noise(drawn(1, 3, 4, 4), drawn(1, 3, 4, 4, seed=2), low)
    high = climbed(prior, noisy, low, at, 60)
    back = climbed(prior, high, at, low, 60)
    assert (high - noisy).abs().max() > 0.1
    torch.testing.assert_close(back, noisy, atol=0.03, rtol=0)


def test_pictures_are_painted_once_and_fitted_until_they_are_old():
    model, means = known(1e-4)
    method, memory, x = replace(QUIET, refresh=3), {}, drawn(2, 3, 4, 4, seed=5)
    for step in range(3):
        found = method.gradient(now(model, x, step, memory=memory))
        torch.testing.assert_close(found, x - means[:1], atol=1e-2, rtol=0)
    memory["target"] = torch.zeros_like(x)
    assert torch.equal(method.gradient(now(model, x, 2, memory=memory)), x)  # as it is remembered
    assert (method.gradient(now(model, x, 3, memory=memory)) - x).abs().max() > 0.1  # painted anew
    sign = replace(method, distance="absolute").gradient(now(model, x, 3, memory=memory))
    assert set(sign.unique().tolist()) <= {-1.0, 0.0, 1.0}
    with pytest.raises(SfumatoError, match="hold the same views"):
        method.gradient(now(model, x[:1], 4, memory=memory))


def test_the_beginning_does_not_look_at_what_is_rendered():
    model, _ = known(0.5)
    method = replace(QUIET, begin=0.5, refresh=1, times=Times(constant(0.3)))
    pictures = [x - method.gradient(now(model, x)) for x in (drawn(1, 3, 4, 4), 5 + drawn(1, 3, 4, 4))]
    torch.testing.assert_close(*pictures, atol=1e-4, rtol=0)
    later = [x - method.gradient(now(model, x, 6)) for x in (drawn(1, 3, 4, 4), 5 + drawn(1, 3, 4, 4))]
    assert (later[0] - later[1]).abs().max() > 0.5


def test_views_can_start_from_one_noise():
    model, _ = known(0.5)
    x = drawn(1, 3, 4, 4).expand(3, -1, -1, -1)
    method = replace(QUIET, begin=1.0)
    apart, alike = (x - replace(method, one_noise=one).gradient(now(model, x)) for one in (False, True))
    assert (apart[0] - apart[1]).abs().max() > 0.1
    torch.testing.assert_close(alike[0], alike[1])


def test_pictures_that_lie_apart_are_painted_anew_out_of_the_one_that_shows_the_prompt_best():
    """A prompt that means either of two images, the first of them mostly what there is without it."""
    one, other = drawn(1, 3, 4, 4, seed=1), drawn(1, 3, 4, 4, seed=2)
    both = torch.cat([one, other])
    model = Exact({"one": Mixture(both, 0.01, (0.5, 0.5)), "": Mixture(both, 0.01, (0.97, 0.03))},
                  families.SCHEDULES["epsilon"])  # fmt: skip
    x = torch.zeros(5, 3, 4, 4)
    method = replace(QUIET, begin=1.0)

    def which(**settings):
        painted = x - replace(method, **settings).gradient(now(model, x))
        return painted, [int((p - one).norm() > (p - other).norm()) for p in painted.split(1)]

    plain, either = which()
    assert 0 < sum(either) < 3  # most are the first
    assert which(anchor=0.3)[1] == [1] * 5
    assert torch.equal(which(anchor=0.3, apart=10.0)[0], plain)  # they agree, as far as that goes
    assert 0 < sum(which(anchor=0.999)[1]) < 5  # from where nothing is left of the picture
    memory: dict = {}
    later = replace(method, anchor=0.3, begin=0.1, refresh=1, times=Times(constant(0.999)))
    later.gradient(now(model, x, memory=memory))
    shown = one.expand(5, -1, -1, -1)  # a scene that is all the first
    kept, loose = (shown - later.gradient(now(model, shown, 4, memory=m)) for m in (memory, {}))
    assert (kept - shown).abs().max() < 0.1 < 1 < (loose - shown).abs().max()
    alone = x[:1] - replace(method, anchor=0.3).gradient(now(model, x[:1]))
    assert torch.equal(alone, x[:1] - method.gradient(now(model, x[:1])))


def test_likeness_is_a_ratio_of_likelihoods():
    """Against its closed form for one Gaussian each: of the noises that were drawn, squares differ as x0's do."""
    one, other = drawn(1, 3, 4, 4, seed=1), drawn(1, 3, 4, 4, seed=2)
    model = Exact({"one": Mixture(one, 1e-4), "": Mixture(other, 1e-4)}, families.SCHEDULES["epsilon"])
    found = likeness(model, torch.cat([one, other, (one + other) / 2]), ("one",) * 3, "", Draws(0, 0))
    # the noise found is (alpha x0 + sigma noise - alpha mean) / sigma, off by alpha / sigma (x0 - mean)
    away = float((one - other).square().mean())
    ratio = sum(float(at.alpha**2 / at.sigma**2) for at in map(model.schedule.at, (300, 500, 700))) / 3
    torch.testing.assert_close(found, torch.tensor([ratio * away, -ratio * away, 0.0]), rtol=1e-3, atol=1e-2)


def test_a_run_in_pixels_encodes_nothing_between_two_paintings(tmp_path_factory, monkeypatch):
    model = families.made(tmp_path_factory.mktemp("families"))("sd")
    side, asked = families.side(model), []
    real = model.encode
    monkeypatch.setitem(vars(model), "encode", lambda images: asked.append(len(images)) or real(images))
    start = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    moved = Pixels(start)
    method = replace(QUIET, refresh=3, per_unit=2)
    distil(model, moved, "a red cube on grass", method, 6, optimiser=lambda p: torch.optim.SGD(p, lr=0.1))
    assert asked == [1, 1]
    assert (moved.images.detach() - start).abs().max() > 1e-3
