"""DiffEdit: its laws on every family, its mask and its way back beside diffusers' pipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from families import SOME, ddim, randomised, stable_diffusion

from sfumato.backbones.load import family
from sfumato.core.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.inversion import invert
from sfumato.methods.edit.blended_latents import Masked
from sfumato.methods.edit.diff_edit import DIFFUSERS, DiffEdit
from sfumato.prompts.layout import Mask

SOURCE, TARGET = "a red cube on grass", "a blue duck on grass"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
HALF = Mask(torch.arange(48).expand(32, 48) > 23)


@pytest.fixture(params=SOME)
def model(request, models):
    return models(request.param)


def pixels(model, seed: int = 0) -> torch.Tensor:
    """Not square."""
    side = 4 * model.factor if model.factor > 1 else 16
    return torch.rand(3, 2 * side, 3 * side, generator=torch.Generator().manual_seed(seed))


def edit(model, path, source: Any = SOURCE, target: Any = TARGET, **options):
    out = denoise(model, {"source": source, "target": target}, start=path, **options)
    return out["source"].latents, out["target"].latents


def test_the_source_and_all_outside_of_the_mask_stay_as_they_are(model):
    path = invert(model, pixels(model), SOURCE, DiffEdit(maps=2, steps=4))
    found = path.how.difference(model, path.image, path.at, model.embed([SOURCE]), model.embed([TARGET]))[0]
    assert 0 < found.sum() < found.numel()
    source, target = edit(model, path)
    assert torch.equal(source, path.image)
    changed = (target != path.image).any(1)[0]
    assert not changed[~found].any() and changed[found].float().mean() > 0.9
    alone = denoise(model, TARGET, start=path).latents
    torch.testing.assert_close(alone, target, **CLOSE)


def test_an_empty_mask_is_no_edit_and_the_same_sentence_has_one(sd):
    path = invert(sd, pixels(sd), SOURCE, DiffEdit(maps=1, steps=3))
    assert torch.equal(edit(sd, path, target=SOURCE)[1], path.image)
    nowhere = torch.zeros(path.image.shape[-2:], dtype=torch.bool)
    empty = Masked(path.latents, path.levels, path.prompts, path.image, track=path.track, mask=nowhere)
    assert torch.equal(edit(sd, empty)[1], path.image)


def test_a_mask_of_ones_own_takes_its_place(model):
    path = invert(model, pixels(model), SOURCE, DiffEdit(HALF, steps=4))
    target = edit(model, path)[1]
    half = path.image.shape[-1] // 2
    assert torch.equal(target[..., :half], path.image[..., :half])
    assert ((target != path.image).any(1)[..., half:]).all()


@torch.no_grad()
def assert_no_cell_decides(model, how: DiffEdit, image, at, source: str, target: str) -> None:
    """A mask that covers a share of the image and that rounding, a hundredth of what is tried here, cannot change."""
    said, wanted = model.embed([source]), model.embed([target])
    found, less, more = (
        replace(how, threshold=how.threshold * part).difference(model, image, at, said, wanted)
        for part in (1.0, 0.999, 1.001)
    )
    assert 0.02 < found.float().mean() < 0.5 and torch.equal(less, found) and torch.equal(more, found)


def test_images_of_a_batch_are_edited_as_each_alone(sd):
    images = torch.stack([pixels(sd, 1), pixels(sd, 2)])
    said, wanted = [SOURCE, "a duck"], [TARGET, "a red sphere"]
    together = invert(sd, images, said, DiffEdit(maps=2, steps=4, seed=5))
    both = edit(sd, together, said, wanted)[1] - together.image
    for i in range(2):
        path = invert(sd, images[i], said[i], DiffEdit(maps=2, steps=4, seed=5 + i))
        assert_no_cell_decides(sd, path.how, path.image, path.at, said[i], wanted[i])
        one = edit(sd, path, said[i], wanted[i])[1] - path.image
        assert torch.equal(both[i : i + 1] == 0, one == 0)
        torch.testing.assert_close(both[i : i + 1], one, **CLOSE)
    several = edit(sd, path, [said[1]] * 3, [wanted[1], TARGET, said[1]])[1] - path.image  # three edits of an image
    assert torch.equal(several[0] == 0, one[0] == 0) and not several[2].any() and several[1].any()


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def pipe(request):
    """diffusers' pipeline on the weights of a tiny model."""
    torch.manual_seed(0)
    plain = stable_diffusion(prediction_type=request.param)
    randomised(*plain.components.values())
    inverse = diffusers.DDIMInverseScheduler.from_config(ddim(prediction_type=request.param).config)
    parts = {k: v for k, v in plain.components.items() if k != "image_encoder"}
    theirs = diffusers.StableDiffusionDiffEditPipeline(
        **parts, inverse_scheduler=inverse, requires_safety_checker=False
    )
    theirs.set_progress_bar_config(disable=True)
    return theirs


def test_the_mask_is_diffusers(pipe):
    """With the same noises, whatever the guidance: it multiplies all differences alike.

    (Theirs takes the empty prompt for the sentence and the sentence for the empty prompt, so that it multiplies by
    1 - s instead of s; for the same reason it stops with an error at a guidance of 1.)
    """
    model = family("tiny", pipe)
    image = model.encode(pixels(model)[None]).detach()
    for i, target in enumerate((TARGET, "the sphere", "a red cube on a sphere")):
        how = DiffEdit(maps=10 if i else 3, clamp=3.0 if i < 2 else 2.4, encode=0.5 if i else 0.8)
        at = model.schedule.levels(50).last(int(50 * how.encode))[0]
        with torch.no_grad():
            ours = how.difference(model, image, at, model.embed([SOURCE]), model.embed([target]))
        assert_no_cell_decides(model, how, image, at, SOURCE, target)
        options = {"num_maps_per_mask": how.maps, "mask_thresholding_ratio": how.clamp}
        for guidance in (2.5, 7.5):
            theirs = pipe.generate_mask(
                image=image, source_prompt=SOURCE, target_prompt=target, guidance_scale=guidance,
                mask_encode_strength=how.encode, **options,
                generator=[torch.Generator().manual_seed(s) for s in range(how.maps)],
            )  # fmt: skip
            assert np.array_equal(ours.numpy(), theirs.astype(bool))


def test_the_way_back_is_diffusers_but_for_the_background_that_is_there_a_level_late(pipe):
    """Where all may change the two agree; where nothing may, theirs ends a level before the image."""
    model = family("tiny", pipe)
    image = model.encode(pixels(model)[None]).detach()
    with torch.no_grad():
        path = DiffEdit(scale=DIFFUSERS.scale, steps=5)(model, image, (SOURCE,), lambda x: None)
    told = {"num_inference_steps": 5, "guidance_scale": 7.5, "output_type": "latent"}
    track = pipe.invert(prompt=SOURCE, image=image, inpaint_strength=0.8, **told).latents
    torch.testing.assert_close(track[0], torch.cat(path.track[:-1]), **CLOSE)

    def theirs(mask):
        return pipe(TARGET, mask[None].float(), track, inpaint_strength=0.8, **told).images

    def ours(mask):
        masked = Masked(path.latents, path.levels, path.prompts, image, track=path.track, mask=mask)
        return denoise(model, TARGET, start=masked).latents

    everywhere = torch.ones(image.shape[-2:], dtype=torch.bool)
    torch.testing.assert_close(ours(everywhere), theirs(everywhere), **CLOSE)
    assert torch.equal(ours(~everywhere), image)
    torch.testing.assert_close(theirs(~everywhere), path.track[-2], **CLOSE)
    assert (theirs(~everywhere) - image).abs().max() > 0.01


def test_what_it_cannot_do_is_said(sd):
    def refused(match, **options):
        with pytest.raises(SfumatoError, match=match):
            invert(sd, pixels(sd), SOURCE, DiffEdit(**options))

    refused("encode is a part of the steps, at least one; got 0.1 of 5", encode=0.1, steps=5)
    path = invert(sd, pixels(sd), SOURCE, DiffEdit(strength=0.0, steps=3))
    assert torch.equal(edit(sd, path)[1], path.image)
