"""Reading an image: once encoded, noised as is said, in every family; results at the image's own size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from families import FAMILIES, side
from PIL import Image

from sfumato.backbones.exact import Exact, Mixture
from sfumato.core.attention import Call
from sfumato.core.rows import single
from sfumato.core.schedule import Schedule
from sfumato.core.sites import Site
from sfumato.errors import SfumatoError
from sfumato.ops import memory
from sfumato.reading.reader import Noise, extract, feature, pixels, read, up_block


@pytest.fixture(params=FAMILIES)
def model(request, models):
    return models(request.param)


def image(h: int, w: int, seed: int = 0):
    return torch.rand(3, h, w, generator=torch.Generator().manual_seed(seed))


def test_every_layer_gives_a_map_of_its_grid_and_width(model):
    reader = read(model, image(side(model), side(model)), side(model))
    layers = [layer for layer in model.layers if layer.kind != "text"]
    for layer, value in reader.features(layers, Noise(100)).items():
        assert value.shape == (layer.width, *layer.grid(reader.grid)), layer
        assert value.isfinite().all()
    if texts := [layer for layer in model.layers if layer.kind == "text"]:
        with pytest.raises(SfumatoError, match="is no map of the image"):
            reader.features(texts)


@pytest.mark.parametrize("name", ["sd", "sdxl", "deepfloyd"])
def test_what_flows_on_is_what_the_modules_give(models, name):
    """The last hidden layer of each up block is that block's output, its upsampling included."""
    model, seen = models(name), {}
    s = side(model)
    reader = read(model, image(s, s), s)
    hooks = [
        block.register_forward_hook(lambda m, a, out, i=i: seen.__setitem__(i, out))
        for i, block in enumerate(model.network.up_blocks)
    ]
    with torch.no_grad():
        model.predict(Noise(100).of(model, reader.latents), 100, model.embed([""]))
    for hook in hooks:
        hook.remove()
    for i, whole in seen.items():
        layer = up_block(model, i)
        assert torch.equal(reader.features([layer], Noise(100))[layer], whole[0])
    with pytest.raises(SfumatoError, match=f"has the up blocks 0, 1, not {len(seen)}"):
        up_block(model, len(seen))


def test_the_network_stops_when_all_has_been_seen(models):
    model, ran = models("sd"), []
    hook = model.network.conv_out.register_forward_hook(lambda *_: ran.append(1))
    reader = read(model, image(64, 64), 64)
    reader.features([up_block(model, 0)])
    assert not ran
    with torch.no_grad():
        model.predict(reader.latents, 1, model.embed([""]))
    hook.remove()
    assert ran


def test_what_was_read_is_kept_until_the_reader_is_closed(models):
    model, calls = models("sd"), []
    hook = model.network.conv_in.register_forward_hook(lambda *_: calls.append(1))
    encoded = model.vae.encoder.register_forward_hook(lambda *_: calls.append(2))
    with read(model, image(64, 64), 64) as reader:
        first = reader.features()
        again = reader.features()
        assert calls == [2, 1]
        assert all(torch.equal(first[k], again[k]) for k in first)
        reader.features(noise=Noise(5))
        assert calls == [2, 1, 1]
    hook.remove()
    encoded.remove()
    with pytest.raises(SfumatoError, match="closed; read the image again"):
        reader.features()


def test_an_ensemble_is_the_mean_over_its_noises(models):
    model = models("sd2")
    reader, layer = read(model, image(64, 64), 64), up_block(model, 0)
    whole = reader.features([layer], Noise(300, ensemble=3))[layer]
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    level = model.schedule.at(300)
    x = level.alpha * reader.latents + level.sigma * noise
    with torch.no_grad():
        parts = model.maps(x, 300, model.embed([""]).repeat(3), [layer], feature)[layer]
    torch.testing.assert_close(whole, parts.mean(0))


def test_batches_of_images_share_their_noise_and_give_what_each_gives_alone(model):
    s = side(model)
    images = torch.stack([image(s, s, i) for i in range(3)])
    layer = [layer for layer in model.layers if layer.kind != "text"][-1]
    with torch.no_grad():
        latents = model.encode(images)
        whole = extract(model, latents, model.embed([""]), Noise(200, ensemble=2), [layer], feature, batch=4)[layer]
    for i in range(3):
        alone = read(model, images[i], s).features([layer], Noise(200, ensemble=2))[layer]
        torch.testing.assert_close(whole[i], alone, rtol=1e-4, atol=1e-5)


def test_noise_is_what_it_says():
    model = type("M", (), {"schedule": type("S", (), {"thousandths": staticmethod(lambda t: _Level(0.6, 0.8))})})()
    latents = torch.ones(1, 4, 8, 8)
    assert torch.equal(Noise(300, "none").of(model, latents), latents)
    uniform = (Noise(300, "uniform").of(model, latents) - 0.6) / 0.8
    assert uniform.min() >= 0 and uniform.max() <= 1 and abs(uniform.mean() - 0.5) < 0.1
    gaussian = (Noise(300).of(model, latents) - 0.6) / 0.8
    assert gaussian.min() < -1 and abs(gaussian.std() - 1) < 0.2
    assert torch.equal(gaussian, (Noise(300).of(model, latents) - 0.6) / 0.8)
    for wrong in ({"kind": "pink"}, {"ensemble": 0}, {"kind": "none", "ensemble": 2}):
        with pytest.raises(SfumatoError):
            Noise(1, **wrong)


class _Level:
    def __init__(self, alpha, sigma):
        self.alpha, self.sigma = alpha, sigma


def test_a_step_is_a_thousandth_of_the_training():
    """So that 261, say, is as noisy in a model of 300 steps as in one of 1000."""
    levels = {steps: Noise(261).level(exact(steps)) for steps in (300, 1000)}
    assert float(levels[1000].t) == 261 and float(levels[300].t) == 78
    assert abs(levels[300].sigma - levels[1000].sigma) < 0.01


def exact(steps: int) -> Exact:
    scheduler = DDPMScheduler(num_train_timesteps=steps, beta_schedule="squaredcos_cap_v2", clip_sample=False)
    return Exact({"": Mixture(torch.zeros(1, 1, 2, 2), 0.5)}, Schedule.read(scheduler))


@pytest.mark.parametrize("masked", [False, True])
def test_the_mean_over_heads_is_the_same_one_head_at_a_time(monkeypatch, masked):

    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
    mask = torch.randn(2, 4, 9, 9) if masked else None
    site = Site("x", 0, "up", ("image",), ("image",), 1, 4, 8)

    def call():
        return Call(site, single(2), (3, 3), 0, {"q": q, "k": k, "v": k}, attn_mask=mask)

    name = ("main", "cond")
    whole = call().mean(name, "image->image")
    torch.testing.assert_close(whole, call().probs(name).mean(1))
    monkeypatch.setattr(memory, "BUDGET", 0)
    torch.testing.assert_close(call().mean(name, "image->image"), whole)


def test_images_come_in_many_forms(tmp_path):
    picture = Image.fromarray((np.random.default_rng(0).random((10, 12, 3)) * 255).astype(np.uint8))
    picture.save(tmp_path / "a.png")
    whole = np.asarray(picture)
    expected = torch.from_numpy(whole.copy()).permute(2, 0, 1) / 255
    for form in (picture, tmp_path / "a.png", str(tmp_path / "a.png"), whole, whole / 255.0, expected, expected[None]):
        torch.testing.assert_close(pixels(form), expected)
    grey = pixels(whole[..., 0])
    assert grey.shape == (3, 10, 12) and torch.equal(grey[0], grey[2])
    for wrong, why in (
        (torch.rand(10, 12, 3), "as a tensor is"),
        (np.zeros((3, 10, 12)), "as numpy is"),
        (expected * 255, "lies in"),
        (expected * torch.nan, "lies in"),
        (tmp_path / "b.png", "no file"),
    ):
        with pytest.raises(SfumatoError, match=why):
            pixels(wrong)


def test_points_and_sizes_are_checked(models):
    model = models("sd")
    reader = read(model, image(70, 140), 64)
    assert reader.size == (70, 140) and reader.seen == (64, 128) and reader.grid == (8, 16)
    torch.testing.assert_close(reader.inside(np.array([[70, 35]])), torch.tensor([[0.5, 0.5]]))
    for point in ((141, 3), (-1, 3), (5, 71), (float("nan"), 2)):
        with pytest.raises(SfumatoError, match="outside of the image of 140 x 70"):
            reader.inside([point])
    with pytest.raises(SfumatoError, match="smaller than a patch"):
        read(model, image(7, 20))
    with pytest.raises(SfumatoError, match="too long to be read whole"):
        read(model, image(8, 100))


def test_what_is_not_finite_in_an_image_is_said_with_where_it_was_read(sd, monkeypatch):
    predict = sd.predict
    monkeypatch.setattr(sd, "predict", lambda x, t, cond: predict(x * torch.inf, t, cond))
    with pytest.raises(SfumatoError, match=r"what .*sd has at up_blocks\.\S+ of an image became not finite; take"):
        read(sd, image(64, 64), 64).features()
