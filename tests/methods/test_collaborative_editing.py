"""Pictures that are edited together: delta denoising of one, the published step of a set, by words or instruction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import families
import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.backbones.exact import Exact, Mixture
from sfumato.backbones.load import family
from sfumato.core.denoising import denoise
from sfumato.core.guidance import CFG, ImageTextCFG
from sfumato.core.rows import single
from sfumato.core.schedule import add_noise
from sfumato.errors import SfumatoError
from sfumato.inversion import invert
from sfumato.methods.edit.collaborative_editing import CollaborativeEditing
from sfumato.methods.edit.delta_denoising import DeltaDenoising
from sfumato.prompts.layout import Mask
from sfumato.stilllife import networks

SOURCE, TARGET = "a red cube on grass", "a blue cube on grass"
SCHEDULES = families.SCHEDULES


def picture(model, n=1, seed=0):
    side = 4 if model.factor == 1 else 64
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def run(model, how, said=(SOURCE, TARGET), n=3, pixels=None, scale=None):
    source, target = said
    pixels = picture(model, n) if pixels is None else pixels
    path = invert(model, pixels, [source] * n, how)
    out = denoise(model, {"source": [source] * n, "target": [target] * n}, start=path, guide=how.guide(model, scale))
    return path, out


@pytest.fixture(params=families.FAMILIES)
def model(request, models):
    return models(request.param)


@pytest.fixture(scope="module")
def instruct():
    torch.manual_seed(0)
    parts: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "scheduler": families.ddim()}
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(
        vae=families.vae(), text_encoder=families.clip_text(), tokenizer=networks.tokenizer(),
        unet=families.unet(in_channels=8), requires_safety_checker=False, **parts,
    )  # fmt: skip
    families.randomised(*pipe.components.values())
    return family("tiny", pipe)


@pytest.fixture(params=SCHEDULES)
def gaussians(request):
    means = torch.randn(3, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mixtures = {"one": Mixture(means[0], 0.5), "other": Mixture(means[1], 0.5), "": Mixture(means[2], 1.0)}
    return Exact(mixtures, SCHEDULES[request.param])


def noises(n, shape, seed):
    generators = [torch.Generator().manual_seed(seed + 1 + i) for i in range(n)]
    while True:
        yield torch.stack([torch.randn(shape, generator=g) for g in generators])


def plainly(path, how, n, eps):
    """The published loop (eq. of section 3.2, the kernel's gradient by x_i), with sums over pairs written out."""
    source, x, drawn = path.image, path.image.clone(), noises(n, path.image.shape[1:], how.seed)
    for i, level in enumerate(list(path.levels)[:-1]):
        noise = next(drawn)
        noisy = add_noise(x, noise, level)
        score = eps("target", noisy, level) - eps("source", add_noise(source, noise, level), level)
        flat = noisy.flatten(1)
        squared = (flat[:, None] - flat).square().sum(-1)
        width = torch.log(torch.tensor(float(n))) / squared[tuple(torch.triu_indices(n, n, 1))].median()
        k = (-width * squared).exp()
        step = torch.zeros_like(x)
        for a in range(n):
            for b in range(n):
                step[a] += (k[a, b] * score[b] - 2 * width * k[a, b] * (noisy[a] - noisy[b])) / k[a].sum()
        x = x - how.rate * how.decay ** (i // how.every) * level.sigma**2 * step
    return x


def test_the_defaults_are_the_published_ones():
    how = CollaborativeEditing()
    assert (how.rate, how.decay, how.every, how.steps, how.least, how.most) == (2.0, 0.9, 20, 200, 0.2, 0.5)
    assert (how.edit_guidance, how.image_scale, how.weighting) == (7.5, 5.0, "variance")


def test_a_set_goes_down_the_published_way_between_gaussians(gaussians):
    how = CollaborativeEditing(rate=0.5, every=2, steps=5, seed=3)
    path, out = run(gaussians, how, ("one", "other"), scale=1.0)

    def eps(stream, x, level):
        mixture = gaussians.mixtures[{"source": "one", "target": "other"}[stream]]
        return mixture.posterior(x, level)[1]

    torch.testing.assert_close(out["target"].latents, plainly(path, how, 3, eps), atol=1e-5, rtol=1e-4)
    assert torch.equal(out["source"].latents, path.image)


def test_one_picture_is_delta_denoising(sd):
    """Of w = 1 and a steady rate, at the same levels."""
    how = replace(CollaborativeEditing(rate=0.3, decay=1.0, weighting="one", steps=3), least=0.05, most=0.95)
    _, ours = run(sd, how, n=1)
    _, theirs = run(sd, DeltaDenoising(rate=0.3, steps=3), n=1, scale=7.5)
    assert torch.equal(ours["target"].latents, theirs["target"].latents)
    _, three = run(sd, replace(how, bandwidth="off"), n=3)
    _, others = run(sd, DeltaDenoising(rate=0.3, steps=3), n=3, scale=7.5)
    assert torch.equal(three["target"].latents, others["target"].latents)


def test_with_instruct_pix2pix_the_source_is_read_with_an_empty_prompt_under_both_guidances(instruct):
    how = CollaborativeEditing(rate=0.5, image_scale=3.0, steps=2)
    path, out = run(instruct, how, ("whatever it shows", "make the cube blue"))
    seen = path.image / instruct.vae.config.scaling_factor

    def eps(stream, x, level):
        words = {"source": "", "target": "make the cube blue"}[stream]
        rows = []
        for i in range(len(x)):
            guide = ImageTextCFG(seen[i : i + 1], 7.5, 3.0)
            conds = guide.embed(instruct, [words])
            with torch.no_grad():
                parts = {k: instruct.predict(x[i : i + 1], level.t, cond) for k, cond in conds.items()}
            rows.append(instruct.schedule.x0_and_eps(guide.combine(parts, single(1)), x[i : i + 1], level)[1])
        return torch.cat(rows)

    torch.testing.assert_close(out["target"].latents, plainly(path, how, 3, eps), atol=1e-4, rtol=1e-3)
    _, named = run(instruct, how, ("another", "make the cube blue"))
    assert torch.equal(named["target"].latents, out["target"].latents)


def test_with_instruct_pix2pix_no_instruction_is_no_edit(instruct):
    path, out = run(instruct, CollaborativeEditing(steps=2, repulsion=0.0), (SOURCE, ""))
    torch.testing.assert_close(out["target"].latents, path.image, atol=1e-5, rtol=1e-5)


def test_a_set_is_edited_on_every_family(model):
    path, out = run(model, CollaborativeEditing(rate=0.1, steps=1), n=2)
    assert out["target"].latents.isfinite().all()
    assert torch.equal(out["source"].latents, path.image)
    assert (out["target"].latents - path.image).flatten(1).any(1).all()


def test_the_pictures_of_a_set_matter_to_each_other(gaussians):
    how, said, pixels = CollaborativeEditing(rate=0.3, steps=1), ("one", "other"), picture(gaussians, 3)
    _, together = run(gaussians, how, said, pixels=pixels)
    _, alone = run(gaussians, replace(how, bandwidth="off"), said, pixels=pixels)
    assert (together["target"].latents - alone["target"].latents).abs().max() > 1e-3


def test_outside_of_the_mask_nothing_changes(sd):
    pixels = torch.zeros(8, 8, dtype=torch.bool)
    pixels[:, :4] = True
    path, out = run(sd, CollaborativeEditing(mask=Mask(pixels), steps=1), n=2)
    half = path.image.shape[-1] // 2
    assert torch.equal(out["target"].latents[..., half:], path.image[..., half:])
    assert not torch.equal(out["target"].latents[..., :half], path.image[..., :half])


def test_what_it_cannot_do_is_said(sd, instruct):
    with pytest.raises(SfumatoError, match="levels are drawn between"):
        run(sd, CollaborativeEditing(least=0.9, most=0.1))
    path = invert(sd, picture(sd), SOURCE, CollaborativeEditing(steps=1))
    with pytest.raises(SfumatoError, match="needs two prompts"):
        denoise(sd, {"source": SOURCE}, start=path, guide=CFG(4.0))
    path = invert(instruct, picture(instruct), SOURCE, CollaborativeEditing(steps=1))
    with pytest.raises(SfumatoError, match="guidances of its own"):
        denoise(instruct, {"source": SOURCE, "target": TARGET}, start=path, guide=CFG(4.0))


# -- the command


def files(place, **sizes):
    for name, (width, height) in sizes.items():
        pixels = np.random.default_rng(len(name)).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{name}.png")


WORDS = ("--from", "a red cube", "--to", "a blue cube", "--steps", 2)


def refused(result, *words):
    code, _, err = result
    assert code == 2
    for word in words:
        assert word in err.splitlines()[-1], err


def test_pictures_of_one_command_are_written_each_as_its_own_file(run, here, tmp_path):
    files(tmp_path, one=(128, 128), third=(160, 160), second=(128, 128))
    also = ["--also", tmp_path / "second.png", tmp_path / "third.png"]
    code, out, err = run("edit", tmp_path / "one.png", *also, *WORDS, "--out", tmp_path / "out", "--json", "csd-edit")
    assert code == 0, err
    found = json.loads(out)
    places = [found[key] for key in ("image", "image 1", "image 2")]
    assert [Path(place).name for place in places] == ["one-edited.png", "second-edited.png", "third-edited.png"]
    assert [Image.open(place).size for place in places] == [(128, 128), (128, 128), (160, 160)]
    assert Image.open(found["beside"]).size == (2 * 130 - 2, 3 * 130 - 2)
    for name, place in zip(("one", "second", "third"), places, strict=True):
        assert (np.asarray(Image.open(place)) != np.asarray(Image.open(tmp_path / f"{name}.png"))).any()


def test_of_other_methods_a_set_is_edited_as_each_picture_alone(run, here, tmp_path):
    """The noise of a picture is of its place in the set."""
    files(tmp_path, one=(128, 128), second=(128, 128))
    results = []
    for name, also in (("set", ["--also", tmp_path / "second.png"]), ("alone", [])):
        options = [*also, *WORDS, "--compare", "dds", "--out", tmp_path / name, "--json"]
        code, out, err = run("edit", tmp_path / "one.png", *options)
        assert code == 0, err
        results.append(np.asarray(Image.open(json.loads(out)["image dds"]), float))
    assert np.abs(results[0] - results[1]).max() <= 1
    assert {p.name for p in (tmp_path / "set").glob("[!.]*")} == {
        "one-dds-edited.png", "second-dds-edited.png", "one-dds-plan.json", "one-compare.png"
    }  # fmt: skip


def test_what_a_set_cannot_be_is_said(run, here, tmp_path):
    files(tmp_path, one=(128, 128), wide=(256, 128))
    edit = ["edit", tmp_path / "one.png", "--also", tmp_path / "wide.png", *WORDS, "--out", tmp_path / "out"]
    refused(run(*edit, "csd-edit"), "seen at one size", "one 128 x 128, wide 256 x 128", "--fit crop")
    (tmp_path / "more").mkdir()
    files(tmp_path / "more", one=(128, 128))
    twice = ["edit", tmp_path / "one.png", "--also", tmp_path / "more" / "one.png", *WORDS, "--out", tmp_path / "out"]
    refused(run(*twice, "csd-edit"), "two of the pictures are called one")
    refused(run(*edit, "--appearance", tmp_path / "one.png", "csd-edit"), "--appearance is of one picture alone")
    refused(run(*edit, "--show-attention", "csd-edit"), "--show-attention is of one picture alone")
    code, _, err = run(*edit, "--fit", "crop", "csd-edit")
    assert code == 0, err
