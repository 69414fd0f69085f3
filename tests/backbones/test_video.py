"""Stable Video Diffusion: clips of a tiny random model, beside diffusers' own pipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import families
import pytest
import torch
from PIL import Image

from sfumato.backbones.load import load
from sfumato.backbones.video import shrunk
from sfumato.core.attention import Call
from sfumato.core.choice import choose
from sfumato.core.denoising import denoise
from sfumato.core.guidance import FrameCFG
from sfumato.core.method import Where
from sfumato.core.rows import Rows
from sfumato.errors import SfumatoError
from sfumato.methods.control import AttendAndExcite
from sfumato.methods.sets import FreeInit, FreeNoise

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
PIPES: dict[str, Any] = {
    "published": families.stable_video,
    "varied": lambda: families.stable_video(
        network={"transformer_layers_per_block": 2, "num_attention_heads": (4, 2)},
        autoencoder={"layers_per_block": 2, "scaling_factor": 0.18215},
        scheduler=diffusers.EulerDiscreteScheduler(**families.BETAS, prediction_type="v_prediction"),
    ),
}


def a_picture(height: int = 32, width: int = 48, seed: int = 0) -> torch.Tensor:
    pixels = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed))
    return pixels / 255


def as_pil(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())


@pytest.fixture(scope="module")
def made():
    pipe: Any = families.seeded(families.stable_video)
    families.randomised(pipe.unet, pipe.vae, pipe.image_encoder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def model(made):
    return load(made, device="cpu")


@pytest.mark.parametrize("name", PIPES)
def test_clips_are_those_of_diffusers(name):
    """Two pictures, frames a second, motion and noise beside the defaults; latents and what is seen of them."""
    pipe: Any = families.seeded(PIPES[name])
    families.randomised(pipe.unet, pipe.vae, pipe.image_encoder)
    pipe.set_progress_bar_config(disable=True)
    model, frames = load(pipe, device="cpu"), 3
    pictures = torch.stack([a_picture(seed=1), a_picture(seed=2)])
    noise = torch.Generator().manual_seed(11)
    drawn = [torch.randn((3, 32, 48), generator=torch.Generator().manual_seed(11 + i)) for i in range(2)]
    x = model.latents([3, 7], 32, 48, frames)
    from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as theirs

    options: dict[str, Any] = {"height": 32, "width": 48, "num_frames": frames, "num_inference_steps": 3}
    options |= {"min_guidance_scale": 1.5, "max_guidance_scale": 4.0, "fps": 9, "motion_bucket_id": 80}
    options |= {"noise_aug_strength": 0.3, "latents": x.unflatten(0, (2, frames)), "generator": noise}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "randn_tensor", lambda shape, **_: torch.stack(drawn))
        both = [pipe([as_pil(p) for p in pictures], output_type=kind, **options).frames for kind in ("latent", "pt")]
    shown = model.of(pictures, fps=9, motion=80, noise=0.3, seed=11)
    guide = FrameCFG(1.5, last=4.0)
    out = denoise(shown, ["", ""], frames=frames, steps=3, seed=[3, 7], size=(32, 48), guide=guide)
    torch.testing.assert_close(out.latents, both[0].flatten(0, 1), **CLOSE)
    torch.testing.assert_close(out.clips, both[1], **CLOSE)


def test_the_published_numbers_are_the_defaults(made, model):
    """Guidance from 1 to 3, 7 frames a second, 127, 0.02; a number is the last frame's guidance."""
    picture, frames = a_picture(), 3
    torch.manual_seed(0)
    drawn = torch.randn((3, 32, 48), generator=torch.Generator().manual_seed(0))[None]
    from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as theirs

    x = model.latents([0], 32, 48, frames)
    options: dict[str, Any] = {"height": 32, "width": 48, "num_frames": frames, "num_inference_steps": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "randn_tensor", lambda shape, **_: drawn)
        wanted = made(as_pil(picture), output_type="latent", latents=x[None], **options).frames
    run: dict[str, Any] = {"frames": frames, "steps": 3, "size": (32, 48)}
    out = denoise(model.of(picture), "", **run).latents
    torch.testing.assert_close(out, wanted.flatten(0, 1), **CLOSE)
    stronger = denoise(model.of(picture), "", guide=6.0, **run).latents
    assert torch.equal(stronger, denoise(model.of(picture), "", guide=FrameCFG(1.0, last=6.0), **run).latents)
    assert (stronger - out).abs().max() > 1e-2


@pytest.mark.parametrize("size", [(64, 48), (300, 500), (224, 224)], ids=str)
def test_pictures_are_shrunk_as_its_encoder_was_given_them(size):
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shrunk(x, (224, 224)), _resize_with_antialiasing(x, (224, 224)), atol=1e-5, rtol=1e-5)


def test_each_site_is_seen_once_in_order_and_looking_changes_no_bit(model):
    frames, seen = 3, []
    shown = model.of(a_picture(32, 32))
    x, cond = model.latents([0, 1], 32, 32, frames), replace(shown.embed([""] * 2 * frames), frames=frames)

    def look(call: Call) -> None:
        seen.append(call.site)
        places, q = call.grid[0] * call.grid[1], call.get("q", ("main", "cond"))
        over = (2 * places, frames) if call.site.axis == "time" else (2 * frames, places)
        maps = call.block(("main", "cond"), "image->image")
        assert (q.shape[0], q.shape[2]) == over and maps.shape[2:] == over[1:] * 2

    plain = model.predict(x, 1.0, cond)
    rows = Rows(("main",), ("cond",), 2 * frames, frames=frames)
    with model.tap(dict.fromkeys(model.sites, look), rows, (4, 4)) as tap:
        tapped = model.predict(x, 1.0, cond)
        tap.check(model.network)
    assert torch.equal(tapped, plain) and seen == list(model.sites)
    time = choose(model, Where("image->image", axis="time"), (4, 4))
    space = choose(model, "image->image", (4, 4))
    assert len(time) == len(space) == len(model.sites) // 2 and not {*time} & {*space}
    found = model.maps(x, 1.0, cond, model.layers, lambda layer: layer.value)
    assert set(found) == set(model.layers)


def test_a_folder_loads_and_a_clip_of_a_batch_is_what_it_is_alone(tmp_path):
    model = load(str(families.write("stable-video", tmp_path)), device="cpu")
    assert type(model).__name__ == "Video" and model.frames == 5 and model.text_tokens == 0
    pictures = torch.stack([a_picture(seed=1), a_picture(seed=2)])
    run: dict[str, Any] = {"frames": 3, "steps": 2, "size": (32, 48)}
    both = denoise(model.of(pictures, seed=4), ["", ""], seed=[3, 7], **run)
    alone = denoise(model.of(pictures[1], seed=5), "", seed=7, **run)
    torch.testing.assert_close(both.latents[3:], alone.latents, **CLOSE)
    torch.testing.assert_close(both.clips[1:], alone.clips, **CLOSE)
    again = denoise(model.of(pictures[1], seed=5), "", seed=7, methods=[FreeInit(2)], **run)
    assert again.latents.isfinite().all()


def test_what_it_cannot_be_is_refused(model):
    run: dict[str, Any] = {"steps": 2, "size": (32, 48)}
    shown = model.of(a_picture())
    with pytest.raises(SfumatoError, match=r"goes on from a picture; give it one: denoise\(model.of\(picture\)"):
        denoise(model, "", frames=3, **run)
    with pytest.raises(SfumatoError, match=r"at most 5 frames, got 6; take fewer$"):
        denoise(shown, "", frames=6, **run)
    with pytest.raises(SfumatoError, match="FreeNoise is for AnimateDiff's motion modules"):
        denoise(shown, "", frames=6, methods=[FreeNoise(4)], **run)
    with pytest.raises(SfumatoError, match="works by words"):
        denoise(shown, "", frames=3, methods=[AttendAndExcite()], **run)
    with pytest.raises(SfumatoError, match="2 pictures are of as many clips, not of 3 images"):
        denoise(model.of(torch.stack([a_picture()] * 2)), "", frames=3, **run)
    with pytest.raises(SfumatoError, match="its only prompt is the empty one, not 'a duck'"):
        denoise(shown, "a duck", frames=3, **run)
    with pytest.raises(SfumatoError, match="at least 1 frame a second"):
        model.of(a_picture(), fps=0)


def test_what_reads_more_is_refused(made):
    from copy import copy

    for part, kind, match in (
        ("image_encoder", lambda: None, "image encoder is a NoneType"),
        ("vae", families.vae, "vae is a AutoencoderKL, not one of AutoencoderKLTemporalDecoder"),
    ):
        pipe = copy(made)
        setattr(pipe, part, kind())
        with pytest.raises(SfumatoError, match=match):
            load(pipe)
    sd = families.stable_diffusion()
    sd.vae = made.vae
    with pytest.raises(SfumatoError, match="vae is a AutoencoderKLTemporalDecoder, not one of AutoencoderKL, "):
        load(sd)
