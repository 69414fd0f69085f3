"""Laws of spatial-temporal attention on the families with cross-attention; its discs, crops, mixture and learning."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch

from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.rows import single
from sfumato.errors import SfumatoError
from sfumato.methods.control.spatial_temporal import SpatialTemporal, crop, disc
from sfumato.prompts.layout import Layout, Region

PROMPT, OTHER = "a red cube and a blue duck", "the blue duck on a red cube"
LAYOUT = Layout((Region("red cube", (0.0, 0.1, 0.5, 0.9)), Region("blue duck", (0.5, 0.2, 1.0, 0.8))))
JOINT = ("sd3", "flux")


@pytest.fixture(params=[f for f in families.FAMILIES if f not in JOINT])
def model(request, models):
    return models(request.param)


@pytest.fixture
def unet(sd):
    return sd


def run(model, *methods, prompts: Any = PROMPT, **options: Any):
    side = 64 if model.factor > 1 else 16
    return denoise(model, prompts, methods=methods, steps=2, size=side, guide=3.0, **options)


def red(images, texts):
    """How red images are, for "a photo of red cube"; how little, for others."""
    share = images[:, 0].mean((1, 2))
    return share if "red" in texts[0] else 1 - share


def test_with_an_amplitude_of_zero_it_is_plain_sampling(model):
    nothing = SpatialTemporal(LAYOUT, epochs=0, amplitude=0.0)
    torch.testing.assert_close(run(model, nothing).latents, run(model).latents, atol=1e-5, rtol=1e-5)


def test_the_whole_prompt_as_a_things_sentence_is_plain_sampling(model):
    one = Layout((Region("cube", (0, 0, 1, 1)),))
    method = SpatialTemporal(one, epochs=0, caption=PROMPT)
    torch.testing.assert_close(run(model, method).latents, run(model).latents, atol=2e-4, rtol=2e-4)


def test_outputs_are_mixed_as_published(unet):
    """x = g + sum of 8 / n c (g_thing - g) in discs, g and g_thing the attention to the prompt and to sentences."""
    calls, method = [], SpatialTemporal(LAYOUT, epochs=0, coefficient=0.7)
    site = next(s for s in unet.sites if "image->text" in s.pairs)
    sentences = {}

    def keys(call):
        sentences["kv"] = call.get("k", ("main", "cond")).clone(), call.get("v", ("main", "cond")).clone()

    with unet.tap({site: keys}, single(2), (8, 8)):
        x = torch.zeros(2, unet.channels, 8, 8)
        unet.predict(x, 500.0, unet.embed(["a photo of red cube", "a photo of blue duck"]))
    k, v = sentences["kv"]
    set_out = Call.set

    def watch(call, which, name, value, segment=None):
        if which == "out" and call.site == site:
            g = call.get("out", name)
            q, wanted = call.get("q", name)[0], g[0]
            for n, middle in enumerate([(0.25, 0.5), (0.75, 0.5)]):
                own = (q @ k[n].transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v[n]
                inside = torch.zeros(8, 8)
                for i in range(8):
                    for j in range(8):
                        inside[i, j] = (i / 8 - middle[1]) ** 2 + (j / 8 - middle[0]) ** 2 < 0.04
                wanted = wanted + 8 / 2 * 0.7 * inside.view(-1, 1) * (own - g[0])
            torch.testing.assert_close(value[0], wanted, atol=1e-5, rtol=1e-4)
            calls.append(name)
        set_out(call, which, name, value, segment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Call, "set", watch)
        run(unet, method)
    assert calls == [("main", "cond")] * 2


def test_learning_goes_down_the_loss_through_all_steps(unet):
    """The crop at the left becomes redder, that at the right less red; every step's coefficients have a part in it."""
    seen, steps = [], []

    def similarity(images, texts):
        value = red(images, texts)
        seen.append(float(value.detach()))
        return value

    options: dict[str, Any] = {"similarity": similarity, "rate": 0.5}
    run(unet, SpatialTemporal(LAYOUT, epochs=3, **options))
    losses = [2 - a - b for a, b in zip(seen[::2], seen[1::2], strict=True)]
    assert len(losses) == 3 and min(losses[1:]) < losses[0] - 1e-5
    adam = torch.optim.Adam

    class Watched(adam):
        def step(self, *args, **kwargs):
            steps.append(self.param_groups[0]["params"][0].grad.clone())
            return super().step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Watched)
        run(unet, SpatialTemporal(LAYOUT, epochs=1, **options))
    (gradient,) = steps
    assert gradient.shape == (2, 2, 1, 1) and (gradient != 0).all()


def test_learned_coefficients_take_effect_and_the_gradient_is_the_samplers(unet):
    """The gradient by one coefficient is the difference quotient of the whole run's loss."""
    grads = []
    adam = torch.optim.Adam

    class Watched(adam):
        def step(self, *args, **kwargs):
            grads.append(self.param_groups[0]["params"][0].grad.sum())
            return super().step(*args, **kwargs)

    def loss(coefficient):
        out = run(unet, SpatialTemporal(LAYOUT, epochs=0, coefficient=coefficient))
        crops = [crop(out.images, m, 0.2) for m in ((0.25, 0.5), (0.75, 0.5))]
        texts = ["a photo of red cube", "a photo of blue duck"]
        return float(sum(5 * (1 - red(c, [t])) for c, t in zip(crops, texts, strict=True)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Watched)
        run(unet, SpatialTemporal(LAYOUT, epochs=1, similarity=red))
    quotient = (loss(0.55) - loss(0.45)) / 0.1
    assert float(grads[0]) == pytest.approx(quotient, rel=0.05, abs=1e-5)
    learned = run(unet, SpatialTemporal(LAYOUT, epochs=2, rate=0.5, similarity=red)).latents
    assert (learned - run(unet, SpatialTemporal(LAYOUT, epochs=0)).latents).abs().max() > 1e-4


def test_discs_and_crops():
    inside = disc((0.5, 0.25), 0.2, (8, 16))
    assert inside.shape == (8, 16) and inside[2, 8] == 1 and inside[2, 12] == 0 and inside[4, 8] == 0
    images = torch.rand(2, 3, 100, 50)
    assert torch.equal(crop(images, (0.5, 0.1), 0.2), images[..., :30, 15:35])


def test_what_it_cannot_do_is_said(unet, models):
    def refused(match, method, model=unet):
        with pytest.raises(SfumatoError, match=match):
            run(model, method)

    refused("needs a layout", SpatialTemporal())
    refused("has no 'teapot'; its words are", SpatialTemporal(Layout((Region("teapot", (0, 0, 1, 1)),)), epochs=0))
    refused("comes without a CLIP; set epochs to 0", SpatialTemporal(LAYOUT))
    for name in JOINT:
        model = models(name)
        refused("whose tokens see the image", SpatialTemporal(LAYOUT, epochs=0), model)
