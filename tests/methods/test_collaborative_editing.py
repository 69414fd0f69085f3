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
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.inversion import invert
from sfumato.methods.edit.collaborative_editing import WIDE, CollaborativeEditing, Drawn
from sfumato.methods.edit.delta_denoising import DeltaDenoising
from sfumato.methods.edit.masactrl import MasaCtrl
from sfumato.prompts.layout import Mask
from sfumato.stilllife import networks
from sfumato.tasks.edit import PictureEdit

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


@pytest.fixture(params=families.SOME)
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
    assert (WIDE.windows, WIDE.stride, how.windows) == (16, 0.25, 0)


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


# -- windows of pictures that are larger than the model's


def wide(model, n=2, width=10, seed=0):
    return torch.rand(n, 3, 4, width, generator=torch.Generator().manual_seed(seed))


def by_windows(path, how, lefts, eps):
    """The published loop of wide pictures: windows are the set, each with noise of its own, laid down as their mean."""
    source, x, n = path.image, path.image.clone(), len(path.image)
    generators = [torch.Generator().manual_seed(how.seed + 1 + i) for i in range(n)]
    for i, level in enumerate(list(path.levels)[:-1]):
        count = len(lefts[i])
        drawn = [torch.stack([torch.randn(3, 4, 4, generator=g) for g in generators]) for _ in range(count)]
        noise = torch.stack(drawn, 1).flatten(0, 1)
        cut = [torch.stack([of[..., left : left + 4] for left in lefts[i]], 1).flatten(0, 1) for of in (source, x)]
        before, noisy = (add_noise(of, noise, level) for of in cut)
        score, flat = eps("target", noisy, level) - eps("source", before, level), noisy.flatten(1)
        squared = (flat[:, None] - flat).square().sum(-1)
        width = np.log(len(flat)) / squared[tuple(torch.triu_indices(len(flat), len(flat), 1))].median()
        k = (-width * squared).exp()
        shared = torch.einsum("ab,bchw->achw", k, score)
        shared -= 2 * width * torch.einsum("ab,abchw->achw", k, noisy[:, None] - noisy)
        step = how.rate * how.decay ** (i // how.every) * level.sigma**2 * shared / k.sum(1).view(-1, 1, 1, 1)
        total, times = torch.zeros_like(x), torch.zeros(x.shape[-1])
        for image in range(n):
            for j, left in enumerate(lefts[i]):
                total[image, ..., left : left + 4] += step[image * count + j]
                times[left : left + 4] += 1 / n
        x = x - total / times.clamp_min(1)
    return x


@pytest.mark.parametrize("number", [2, 99])
def test_windows_of_wide_pictures_go_down_the_published_way(gaussians, number):
    """Between Gaussians; some windows in each step, and all of them."""
    how = CollaborativeEditing(rate=0.5, every=2, steps=5, seed=3, windows=number, stride=0.5)
    path, out = run(gaussians, how, ("one", "other"), n=2, pixels=wide(gaussians), scale=1.0)

    def eps(stream, x, level):
        mixture = gaussians.mixtures[{"source": "one", "target": "other"}[stream]]
        return mixture.posterior(x, level)[1]

    views = how.alone()
    assert isinstance(views, Drawn)
    lefts = [[left for _, left in views.at(i).places(4, 10, (4, 4))] for i in range(5)]
    assert sorted({left for some in lefts for left in some}) == [0, 2, 4, 6]
    wanted = by_windows(path, how, lefts, eps)
    torch.testing.assert_close(out["target"].latents, wanted, atol=1e-5, rtol=1e-4)
    assert torch.equal(out["source"].latents, path.image)


def test_a_picture_as_large_as_one_window_is_edited_as_it_is(sd, gaussians, instruct):
    """Or smaller: bit for bit."""
    for model, said in ((gaussians, ("one", "other")), (sd, (SOURCE, TARGET)), (instruct, (SOURCE, TARGET))):
        how = CollaborativeEditing(rate=0.3, steps=2)
        _, plain = run(model, how, said, n=2)
        _, seen = run(model, replace(how, windows=4), said, n=2)
        assert torch.equal(plain["target"].latents, seen["target"].latents)


@pytest.mark.parametrize("width", [4, 5, 9, 17])
@pytest.mark.parametrize("number", [1, 3, 7])
def test_all_windows_have_had_a_turn_before_one_comes_again(width, number):
    views = Drawn(Tiles(0.25), number, seed=2)
    every = Tiles(0.25).places(4, width, (4, 4))
    assert max(left for _, left in every) == width - 4  # to the border
    turn = -(-len(every) // number)
    for first in (0, turn, 5 * turn):
        steps = [views.at(first + i).places(4, width, (4, 4)) for i in range(turn)]
        assert {place for step in steps for place in step} == set(every)
        assert all(len(set(step)) == len(step) == min(number, len(every)) for step in steps)


def test_no_strip_stays_as_it_was(gaussians):
    """Of a width that no stride ends at, to the last column; outside of the mask nothing changes."""
    pixels = wide(gaussians, 1, 11)
    how = CollaborativeEditing(rate=0.3, steps=4, windows=1, stride=0.5, decay=1.0, repulsion=0.0)
    path, out = run(gaussians, replace(how, steps=5), ("one", "other"), n=1, pixels=pixels)
    assert ((out["target"].latents - path.image).abs().amax((0, 1, 2)) > 1e-3).all()
    inside = (torch.arange(11) < 5).expand(4, 11)
    path, out = run(gaussians, replace(how, mask=Mask(inside), steps=5), ("one", "other"), n=1, pixels=pixels)
    changed = (out["target"].latents - path.image).abs().amax((0, 1, 2)) > 1e-3
    assert changed.tolist() == [True] * 5 + [False] * 6


def test_windows_that_were_given_are_a_set_as_well(gaussians):
    how = CollaborativeEditing(rate=0.3, steps=3)
    path = invert(gaussians, wide(gaussians), ["one"] * 2, how)
    prompts = {"source": ["one"] * 2, "target": ["other"] * 2}
    options: dict[str, Any] = {"start": path, "guide": 1.0, "views": Tiles(2)}
    given = denoise(gaussians, prompts, **options)["target"].latents
    _, drawn = run(gaussians, replace(how, windows=9, stride=0.5), ("one", "other"), 2, wide(gaussians), 1.0)
    torch.testing.assert_close(given, drawn["target"].latents, atol=1e-6, rtol=1e-5)


def test_instruct_pix2pix_sees_each_window_s_own_part(instruct):
    """At a stride of a whole window and without a set's share, windows are pictures of their own."""
    how = CollaborativeEditing(rate=0.5, bandwidth="off", steps=2, windows=2, stride=1.0)
    side = instruct.size
    pixels = torch.rand(1, 3, side, 2 * side, generator=torch.Generator().manual_seed(1))
    path, out = run(instruct, how, (SOURCE, "make the cube blue"), n=1, pixels=pixels)
    seen = path.image / instruct.vae.config.scaling_factor
    cells, generator = side // instruct.factor, torch.Generator().manual_seed(1)
    x, views = path.image.clone(), how.alone()
    assert isinstance(views, Drawn)
    for i, level in enumerate(list(path.levels)[:-1]):
        noise = [torch.randn(path.image.shape[1], cells, cells, generator=generator)[None] for _ in range(2)]
        was = x.clone()
        for (_, left), drawn in zip(views.at(i).places(cells, 2 * cells, (cells, cells)), noise, strict=True):
            here = slice(left, left + cells)
            guide, found = ImageTextCFG(seen[..., here], 7.5, 5.0), []
            for words, clean in (("make the cube blue", was), ("", path.image)):
                noisy = add_noise(clean[..., here], drawn, level)
                conds = guide.embed(instruct, [words])
                with torch.no_grad():
                    parts = {k: instruct.predict(noisy, level.t, cond) for k, cond in conds.items()}
                found.append(instruct.schedule.x0_and_eps(guide.combine(parts, single(1)), noisy, level)[1])
            x[..., here] -= how.rate * level.sigma**2 * (found[0] - found[1])
    torch.testing.assert_close(out["target"].latents, x, atol=1e-4, rtol=1e-3)


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


def test_a_wide_picture_is_edited_by_windows(run, here, tmp_path):
    files(tmp_path, one=(160, 128))
    edit, found = ["edit", tmp_path / "one.png", *WORDS, "--json"], []
    for options in (["--windows", 2], []):
        code, out, err = run(*edit, "--out", tmp_path / f"out{len(options)}", "csd-edit", *options)
        assert code == 0, err
        found.append(np.asarray(Image.open(json.loads(out)["image"])))
    assert found[0].shape == (128, 160, 3) and (found[0] != found[1]).any()


def test_the_plan_of_an_edit_is_of_its_windows(sd):
    """Before there is a path to follow."""
    fitted: Any = [type("Fitted", (), {"pixels": torch.zeros(3, sd.size, 3 * sd.size)})()]
    for windows, rows in ((0, 1), (2, 2), (99, 9)):
        asked = PictureEdit(SOURCE, TARGET, CollaborativeEditing(windows=windows), methods=[MasaCtrl()])
        assert asked.plan(sd, fitted, 2).run.rows.views == rows


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
    code, out, err = run(*twice, "csd-edit")
    assert code == 0 and "one.2-edited.png" in out and "is called one.2" in err, err
    refused(run(*edit, "--appearance", tmp_path / "one.png", "csd-edit"), "--appearance is of one picture alone")
    refused(run(*edit, "--show-attention", "csd-edit"), "--show-attention is of one picture alone")
    code, _, err = run(*edit, "--fit", "crop", "csd-edit")
    assert code == 0, err
