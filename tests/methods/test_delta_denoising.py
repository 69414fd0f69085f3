"""Delta denoising against closed forms, the published loop and its laws on every family."""

from __future__ import annotations

import families
import pytest
import torch

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG
from sfumato.distill import GuidedModel
from sfumato.errors import SfumatoError
from sfumato.inversion import invert
from sfumato.methods.distill.delta_score import delta_score
from sfumato.methods.edit.delta_denoising import DeltaDenoising
from sfumato.methods.edit.prompt_to_prompt import PromptToPrompt
from sfumato.prompts.layout import Mask

SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"
SCHEDULES = families.SCHEDULES


@pytest.fixture(params=families.SOME)
def model(request, models):
    return models(request.param)


@pytest.fixture(params=SCHEDULES)
def gaussians(request):
    """Two Gaussians of one width around images that differ."""
    means = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mixtures = {"one": Mixture(means[0], 0.5), "other": Mixture(means[1], 0.5)}
    return Exact(mixtures, SCHEDULES[request.param]), means[1] - means[0]


def picture(model, n=1, seed=0):
    side = model.multiple * 4
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def run(model, how, prompts=None, guide=4.0, n=1, **options):
    prompts = prompts or {"source": [SOURCE] * n, "target": [TARGET] * n}
    path = invert(model, picture(model, n), [SOURCE] * n, how)
    return path, denoise(model, prompts, start=path, guide=guide, **options)


def test_between_gaussians_the_gradient_and_the_edit_are_closed_forms(gaussians):
    """eps of N(m, s^2) at x is sigma / (alpha^2 s^2 + sigma^2) (x - alpha m): of the difference no noise is left, and
    the descent ends where the source lies to its mean as the edit lies to its own."""
    model, apart = gaussians
    level, generator = model.schedule.at(300), torch.Generator().manual_seed(1)
    source, x, noise = torch.randn(3, 2, 3, 4, 4, generator=generator).unbind()
    edit, own = (GuidedModel(model, (name,) * 2, CFG(1.0)) for name in ("other", "one"))
    found = delta_score(edit, own, x, source, level, noise)
    slope = level.alpha * level.sigma / (level.alpha**2 * 0.25 + level.sigma**2)
    torch.testing.assert_close(found, slope * (x - source - apart), atol=1e-5, rtol=1e-4)

    path = invert(model, torch.rand(2, 3, 4, 4), "one", DeltaDenoising(rate=0.2, steps=150))
    out = denoise(model, {"a": ["one"] * 2, "b": ["other"] * 2}, start=path, guide=1.0)
    torch.testing.assert_close(out["b"].latents, path.image + apart, atol=1e-3, rtol=1e-3)
    assert torch.equal(out["a"].latents, path.image)


def test_a_step_is_the_published_one(gaussians):
    """The authors' loss on 64 x 64 latents, differentiated, times 2000, with SGD at 0.1."""
    model, _ = gaussians
    big = Exact({k: Mixture(m.means.repeat(1, 1, 16, 16), m.std) for k, m in model.mixtures.items()}, model.schedule)
    images = torch.rand(1, 3, 64, 64)
    path = invert(big, images, "one", DeltaDenoising(seed=4, steps=3))
    out = denoise(big, {"source": "one", "target": "other"}, start=path, guide=1.0)
    source = path.image
    z = source.clone().requires_grad_()
    sgd, generator = torch.optim.SGD([z], lr=0.1), torch.Generator().manual_seed(5)
    for level in list(path.levels)[:3]:
        assert 50 <= level.t < 949
        noise = torch.randn(3, 64, 64, generator=generator)[None]
        eps = []
        for name, latents in (("one", source), ("other", z.detach())):
            x = level.alpha * latents + level.sigma * noise
            eps.append(big.mixtures[name].posterior(x, level)[1])
        loss = (z * (eps[1] - eps[0])).sum() / (z.shape[2] * z.shape[3])
        sgd.zero_grad()
        (2000 * loss).backward()
        sgd.step()
    torch.testing.assert_close(out["target"].latents, z.detach(), atol=1e-5, rtol=1e-4)


def test_the_loop_goes_down_the_gradient(model):
    how, guide = DeltaDenoising(rate=0.3, steps=2, seed=3), CFG(4.0)
    path, out = run(model, how, guide=guide, n=2)
    x, edit, source = path.image, *(GuidedModel(model, (prompt,) * 2, guide) for prompt in (TARGET, SOURCE))
    generators = [torch.Generator().manual_seed(4 + i) for i in range(2)]
    with torch.no_grad():
        for level in list(path.levels)[:2]:
            noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators])
            x = x - 0.3 * delta_score(edit, source, x, path.image, level, noise)
    torch.testing.assert_close(out["target"].latents, x, atol=1e-4, rtol=1e-4)
    assert (x - path.image).abs().max() > 1e-4


def test_outside_of_the_mask_nothing_changes(model):
    pixels = torch.zeros(8, 8, dtype=torch.bool)
    pixels[:, :4] = True
    path, masked = run(model, DeltaDenoising(mask=Mask(pixels), steps=1))
    _, free = run(model, DeltaDenoising(steps=1))
    half = path.image.shape[-1] // 2
    assert torch.equal(masked["target"].latents[..., half:], path.image[..., half:])
    assert torch.equal(masked["target"].latents[..., :half], free["target"].latents[..., :half])
    changed = masked["target"].differs(masked["source"])
    assert changed[..., :half].any() and not changed[..., half:].any()


def test_other_methods_take_part_in_the_descent(sd):
    _, plain = run(sd, DeltaDenoising(steps=2))
    path, out = run(sd, DeltaDenoising(steps=2), methods=[PromptToPrompt()])
    assert (out["target"].latents - plain["target"].latents).abs().max() > 1e-6
    assert torch.equal(out["source"].latents, path.image)


def test_what_it_cannot_do_is_said(sd):
    with pytest.raises(SfumatoError, match="needs two prompts"):
        run(sd, DeltaDenoising(steps=1), {"source": SOURCE})
    with pytest.raises(SfumatoError, match="levels are drawn between"):
        run(sd, DeltaDenoising(least=0.9, most=0.1))
