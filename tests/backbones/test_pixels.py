"""Models that paint without words: parity with diffusers' pipelines; each method runs on them, or asks for words."""

from __future__ import annotations

import itertools
from dataclasses import replace

import diffusers
import families
import pytest
import torch
from laws import distilling, painting, reading, wordless
from laws.traces import unchanged
from laws.wordless import BY_WORDS, PAINTING

from sfumato.backbones.load import family
from sfumato.core.denoising import denoise
from sfumato.core.guidance import cfg
from sfumato.core.noise import drawing
from sfumato.core.sites import Layer
from sfumato.core.steppers import DDIM, DDPM
from sfumato.core.views import Ring
from sfumato.distill import Latents, distil
from sfumato.errors import SfumatoError
from sfumato.inversion import EDICT, Direct, EditFriendly, Inversion, NegativePrompt, NullText, invert, reconstruct
from sfumato.methods.edit import DiffEdit


def test_a_score_whose_variance_explodes_is_sampled_as_its_own_flow(models):
    """Euler's steps in noise that is added, from sigma to sigma, of the pipeline's own; down to none."""
    model = models("ncsnpp")
    scheduler, x = model.pipe.scheduler, model.latents([5, 6], 16, 16)
    sigmas = [*(0.01 * (50 / 0.01) ** torch.linspace(1, 1e-5, 4, dtype=torch.float64)).tolist(), 0.0]
    scheduler.set_timesteps(4)
    scheduler.set_sigmas(4)
    torch.testing.assert_close(scheduler.sigmas.double(), torch.tensor(sigmas[:-1]).double(), rtol=1e-5, atol=0)
    added = x.double() * (1 + sigmas[0] ** 2) ** 0.5
    for now, then in itertools.pairwise(sigmas):
        score = model.network(added.float(), torch.full((2,), now)).sample.double()
        added = added + (now - then) * now * score
    ours = denoise(model, ["", ""], seed=5, steps=4)
    torch.testing.assert_close(ours.latents.double(), added, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.images, ours.latents.clamp(0, 1))
    image = painting.picture(model, 3)[None]
    assert torch.equal(model.encode(image), image)
    assert float(model.levels(4, (16, 16))[0].t) == 1999


@pytest.mark.parametrize("name", families.WORDLESS)
def test_every_layer_gives_a_map_of_its_grid_and_width(models, name):
    model = models(name)
    side = model.size // model.factor
    seen = model.maps(model.latents([0], model.size, model.size), 7, model.embed([""]), model.layers, lambda a: a.value)
    assert len(seen) == len(model.layers) > 5
    for layer, value in seen.items():
        h, w = layer.grid((side, side))
        wanted = (1, h * w, layer.width) if layer.kind == "tokens" else (1, layer.width, h, w)
        assert value.shape == wanted, layer.path


@pytest.mark.parametrize("name", ("ddpm", "ldm"))
def test_it_samples_what_its_pipeline_does(models, name, monkeypatch):
    """DDPM's draws new noise in every step, latent diffusion's is DDIM's."""
    model, scheduler = models(name), models(name).pipe.scheduler
    assert type(scheduler).__name__ == {"ddpm": "DDPMScheduler", "ldm": "DDIMScheduler"}[name]
    draw = drawing([5 + 0x5F0, 6 + 0x5F0], model.latents([5], model.size, model.size).shape[1:])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: draw())
    side = model.size // model.factor
    x = model.latents([5, 6], model.size, model.size)
    assert x.shape == (2, 3, side, side)
    theirs = x
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps:
        theirs = scheduler.step(model.network(theirs, t).sample, t, theirs).prev_sample
    ours = denoise(model, ["", ""], seed=5, steps=4)
    torch.testing.assert_close(ours.latents, theirs, rtol=0, atol=2e-5)
    if name == "ldm":
        theirs = model.pipe.vqvae.decode(theirs / 0.5).sample
    torch.testing.assert_close(ours.images, (theirs / 2 + 0.5).clamp(0, 1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ("ddpm", "ldm"))
def test_images_are_encoded_as_they_were_in_training(models, name):
    model = models(name)
    image = painting.picture(model, 3, (model.size, model.size))[None]
    found = model.encode(image)
    wanted = image * 2 - 1 if name == "ddpm" else model.pipe.vqvae.encode(image * 2 - 1).latents * 0.5
    assert torch.equal(found, wanted)
    if name == "ddpm":
        torch.testing.assert_close(model.decode(found), image)


def test_a_learned_time_and_a_variance_are_known():
    torch.manual_seed(0)
    network = families.wordless(time_embedding_type="learned", num_train_timesteps=1000, out_channels=6)
    families.randomised(network)
    model = family("x", diffusers.DDPMPipeline(unet=network, scheduler=families.ddim()))
    x = torch.randn(2, 3, 16, 16)
    wanted = network(x, torch.tensor([7, 7])).sample[:, :3]
    assert torch.equal(model.predict(x, 7.0, model.embed(["", ""])), wanted)


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_ddpm_adds_as_much_noise_as_the_checkpoint_has_it(kind, monkeypatch):
    torch.manual_seed(0)
    network = families.wordless(out_channels=6)
    families.randomised(network)
    if kind == "learned":  # a variance, as it is
        network.register_forward_hook(lambda _, args, out: (torch.cat([out[0][:, :3], out[0][:, 3:].sigmoid()], 1),))
    scheduler = diffusers.DDPMScheduler(variance_type=kind, clip_sample=False)
    model = family("x", diffusers.DDPMPipeline(unet=network, scheduler=scheduler))
    ours = denoise(model, ["", ""], seed=5, steps=4, stepper=DDPM()).latents
    x, draw = model.latents([5, 6], 16, 16), drawing([5 + 0x5F0, 6 + 0x5F0], (3, 16, 16))
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: draw())
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps:
        said = network(x, t, return_dict=False)[0].detach()
        x = scheduler.step(said if "learned" in kind else said[:, :3], t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)
    plain = denoise(model, ["", ""], seed=5, steps=4, stepper=DDIM(1.0)).latents
    assert torch.equal(plain, ours) == (kind == "fixed_small")


def test_a_learned_variance_that_nobody_says_is_refused():
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    model = family("x", diffusers.DDPMPipeline(unet=families.wordless(), scheduler=scheduler))
    assert denoise(model, "", steps=1, stepper=DDIM()).latents.isfinite().all()  # which asks for none
    with pytest.raises(SfumatoError, match="variance_type 'learned_range', and the network of x says nothing of it"):
        denoise(model, "", steps=1, stepper=DDPM())
    with pytest.raises(SfumatoError, match="of whole images, not of windows"):
        denoise(model, "", steps=1, stepper=DDPM(), size=(16, 32), views=Ring(8))


def test_a_network_of_classes_is_refused():
    pipe = diffusers.DDPMPipeline(unet=families.wordless(num_class_embeds=3), scheduler=families.ddim())
    with pytest.raises(SfumatoError, match="one of several classes"):
        family("x", pipe)


def test_what_is_not_known_is_refused_when_it_is_loaded_and_when_it_is_put_in():
    with pytest.raises(SfumatoError, match="unknown scheduler 'EDMEulerScheduler'"):
        family("x", diffusers.DDPMPipeline(unet=families.wordless(), scheduler=diffusers.EDMEulerScheduler()))
    model = family("x", families.ddpm())
    model.pipe.unet = families.wordless(num_class_embeds=3)
    with pytest.raises(SfumatoError, match="one of several classes"):
        denoise(model, "", steps=1)


def test_it_reads_a_row_an_image_and_nothing_beside(models):
    model = models("ddpm")
    x, cond = model.latents([0, 1], 16, 16), model.embed(["", ""])
    with pytest.raises(SfumatoError, match="2 images need 2 rows of conditions, got 1"):
        model.predict(x, 7.0, cond[:1])
    for more in (replace(cond, image=x), replace(cond, controls=("edges",))):
        with pytest.raises(SfumatoError, match="no picture and no controls"):
            model.predict(x, 7.0, more)


def test_what_is_put_in_counts():
    model = family("x", families.ldm())
    assert (model.size, model.schedule.kind, model.schedule.train_steps) == (32, "DDIMScheduler", 1000)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    model.pipe.vqvae = diffusers.VQModel(block_out_channels=(4, 4, 4), norm_num_groups=2, **blocks)
    assert model.size == 64
    model.pipe.scheduler.register_to_config(num_train_timesteps=500)
    assert model.schedule.train_steps == 500
    model.pipe.scheduler = diffusers.DDPMScheduler()
    assert model.schedule.kind == "DDPMScheduler"


def test_predictions_are_float32_and_what_is_seen_is_finite():
    model = family("x", families.ddpm())
    model.network.to(torch.bfloat16)
    x = model.latents([0], 16, 16)
    assert model.predict(x, 7.0, model.embed([""])).dtype == torch.float32
    with pytest.raises(SfumatoError, match="latents that are to be seen"):
        model.decode(x * torch.nan)


def test_sides_are_those_of_its_levels_and_autoencoder(models):
    assert (models("ddpm").size, models("ddpm").multiple) == (16, 2)
    assert (models("ldm").size, models("ldm").multiple) == (32, 4)
    plain = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
    network = families.wordless(block_out_channels=(8, 8, 8), **plain)
    assert family("x", diffusers.DDPMPipeline(unet=network, scheduler=families.ddim())).multiple == 4


def test_its_only_prompt_is_the_empty_one(models):
    model = models("ddpm")
    with pytest.raises(SfumatoError, match="paints without words, so its only prompt is the empty one, not 'a cat'"):
        denoise(model, "a cat", steps=1)
    with pytest.raises(SfumatoError, match="not 'a dog'"):
        denoise(model, "", guide=cfg(3.0, "a dog"), steps=1)
    assert model.words("") == []


def test_a_number_for_its_guidance_costs_nothing(models):
    model, seen = models("ddpm"), []
    hook = model.network.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    with_default = denoise(model, "", steps=2).latents
    hook.remove()
    assert seen == [1, 1]
    torch.testing.assert_close(denoise(model, "", steps=2, guide=cfg(7.5)).latents, with_default)


@pytest.mark.parametrize("word", [*PAINTING, *sorted(BY_WORDS)])
def test_a_method_that_paints_runs_or_says_that_it_needs_words(models, word):
    model, row = models("ddpm"), painting.ROWS[word]
    if word in BY_WORDS:
        with pytest.raises(SfumatoError, match=r"works by words, and \S+ddpm paints without; take a model that reads"):
            painting.painted(model, row, said=wordless.EMPTY)
        return
    on, apart = wordless.settings(model, row), {}
    if not isinstance(on, Inversion):
        apart["start"] = model.latents(range(len(row.streams) * (1 + row.set)), 16, 16)
    with unchanged(model):
        out = painting.painted(model, row, on, said=wordless.EMPTY, **apart)
    without = painting.painted(model, row, on, said=wordless.EMPTY, plain=True, path=out.path, **apart)
    for stream, x in out.edits.items():
        assert x.isfinite().all()
        assert "acts" in row.but or stream == "appearance" or (x - without.latents[stream]).abs().max() > 1e-5, stream


@pytest.mark.parametrize("word", [word for word, row in reading.ROWS.items() if row.families])
def test_a_method_that_reads_runs_or_says_that_it_needs_words(models, word):
    model, row = models("ddpm"), reading.ROWS[word]
    way = row.ways[0]
    if word in wordless.READING_WORDS:
        with pytest.raises(SfumatoError, match="works by words, and"):
            row.ask(way, model)
        return
    with unchanged(model):
        found = row.ask(way, model)
    assert all(v.isfinite().all() for v in vars(found).values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("word", distilling.ROWS)
def test_a_method_that_distils_runs_or_says_that_it_needs_words(models, word):
    model, method = models("ddpm"), distilling.ROWS[word].ways[0]
    if method.requires.words:
        with pytest.raises(SfumatoError, match=f"{type(method).__name__} works by words"):
            distil(model, Latents(model.latents([1], 16, 16)), [""], method, 2)
        return
    before = model.latents([1], 16, 16)
    canvas = Latents(before.clone())
    distil(model, canvas, [""], method, 2)
    (after,) = canvas.parameters()
    assert after.isfinite().all() and (after - before).abs().max() > 0


@pytest.mark.parametrize("how", [Direct(steps=3), EditFriendly(steps=3), EDICT(steps=3)], ids=repr)
@pytest.mark.parametrize("name", families.WORDLESS)
def test_an_image_is_found_again(models, name, how):
    model = models(name)
    path = invert(model, painting.picture(model, 1, (model.size, model.size)), "", how)
    torch.testing.assert_close(reconstruct(model, path), path.image, rtol=0, atol=1e-4)


@pytest.mark.parametrize("how", [NullText(), NegativePrompt(), DiffEdit()], ids=lambda how: type(how).__name__)
def test_what_replaces_or_compares_prompts_is_refused(models, how):
    model = models("ddpm")
    with pytest.raises(SfumatoError, match=f"{type(how).__name__}.* works by words"):
        invert(model, painting.picture(model, 1), "", how)


def test_a_wide_canvas_is_painted_in_windows(models):
    model = models("ddpm")
    wide = denoise(model, "", size=(16, 32), views=Ring(8), steps=2).latents
    assert wide.shape == (1, 3, 16, 32) and wide.isfinite().all()


def test_its_features_are_of_all_kinds_but_text(models):
    kinds = {layer.kind for layer in models("ldm").layers if isinstance(layer, Layer)}
    assert kinds == {"tokens", "residual", "hidden"}
