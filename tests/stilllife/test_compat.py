"""A folder of our networks, untrained, runs unmodified in the pipelines of diffusers that methods are measured against.

Where a pipeline without its own guidance is plain Stable Diffusion, it must paint the same image from the same noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DiffusionPipeline, MotionAdapter
from torch import Tensor, nn

from sfumato.stilllife import networks, weights

PROMPT = "a red cube to the left of a blue sphere on grass at sunset"
OTHER = "a green duck on snow at night, watercolour"
SIDE = networks.SIZE // networks.FACTOR
GUIDANCE = 5.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    text_encoder = weights.text_encoder(networks.clip().eval())
    pipe = networks.pipeline(networks.vae().eval(), text_encoder, networks.unet().eval(), networks.tokenizer())
    place = tmp_path_factory.mktemp("diffusers")
    pipe.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def plain(folder: Path) -> DiffusionPipeline:
    return load(folder, "StableDiffusionPipeline")


@pytest.fixture(scope="module")
def painted(plain: DiffusionPipeline) -> Tensor:
    """The latents that plain Stable Diffusion makes of ``PROMPT`` from ``noise()``."""
    return latents(plain)


def load(folder: Path, kind: str, **parts: Any) -> Any:
    pipe = getattr(diffusers, kind).from_pretrained(folder, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (1, 4, SIDE, SIDE)), generator=torch.Generator().manual_seed(seed))


def picture(seed: int = 1) -> Tensor:
    """A picture of smooth colours, (1, 3, 128, 128) in [0, 1]."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (networks.SIZE,) * 2, mode="bilinear")


def call(pipe: Any, prompt: str = PROMPT, **options: Any) -> Any:
    """What the pipeline's result holds, from two steps."""
    result = pipe(prompt, **{"num_inference_steps": 2, "guidance_scale": GUIDANCE, "latents": noise()} | options)
    return result[0]


def latents(pipe: Any, prompt: str = PROMPT, **options: Any) -> Tensor:
    out = call(pipe, prompt, output_type="latent", **options)
    assert out.isfinite().all()
    return out


def images(pipe: Any, prompt: str = PROMPT, width: int = networks.SIZE, **options: Any) -> np.ndarray:
    out = np.asarray(call(pipe, prompt, output_type="np", **options))
    assert out.shape[-3:] == (networks.SIZE, width, 3)
    assert np.isfinite(out).all() and out.min() >= 0 and out.max() <= 1 and out.std() > 0
    return out


def same(a: Tensor, b: Tensor) -> bool:
    """Equal but for the order of sums, which attention's implementations differ in; otherwise plainly different."""
    gap = (a - b).abs().max().item()
    assert gap < 1e-4 or gap > 1e-3, gap
    return gap < 1e-4


def test_stable_diffusion(plain, painted):
    assert images(plain).shape[0] == 1
    assert torch.equal(latents(plain), painted)
    assert not same(latents(plain, OTHER), painted)
    assert not same(latents(plain, latents=noise(seed=1)), painted)
    a, b = (latents(plain, latents=None, generator=torch.Generator().manual_seed(s)) for s in (3, 3))
    assert torch.equal(a, b)


def test_the_folder_says_which_pipeline_it_is(folder):
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert type(pipe) is diffusers.StableDiffusionPipeline and type(pipe.scheduler) is diffusers.DDIMScheduler
    assert pipe.scheduler.config["prediction_type"] == "epsilon" and pipe.vae.config["scaling_factor"] == 0.18215


def test_attend_and_excite(folder, painted):
    pipe = load(folder, "StableDiffusionAttendAndExcitePipeline")
    indices = pipe.get_indices(PROMPT)
    words = [i for i, token in indices.items() if token.removesuffix("</w>") in ("cube", "sphere")]
    assert len(words) == 2 and len(indices) == len(PROMPT.split()) + 2  # a word is a token, as the method supposes
    idle = {"token_indices": words, "max_iter_to_alter": 0, "thresholds": {}}
    assert same(latents(pipe, **idle), painted)
    assert images(pipe, token_indices=words, thresholds={}).shape[0] == 1
    assert not same(latents(pipe, **idle | {"max_iter_to_alter": 1, "attn_res": (8, 8)}), painted)


def test_self_attention_guidance(folder, painted):
    pipe = load(folder, "StableDiffusionSAGPipeline")
    assert same(latents(pipe, sag_scale=0.0), painted)
    assert not same(latents(pipe, sag_scale=1.0), painted)
    assert images(pipe).shape[0] == 1


def test_perturbed_attention_guidance(folder, painted):
    pipe = load(folder, "StableDiffusionPAGPipeline")
    assert same(latents(pipe, pag_scale=0.0), painted)
    assert not same(latents(pipe, pag_scale=3.0), painted)
    assert images(pipe).shape[0] == 1


def test_panorama(folder, painted):
    pipe = load(folder, "StableDiffusionPanoramaPipeline")
    square = {"height": networks.SIZE, "width": networks.SIZE}
    assert same(latents(pipe, **square), painted)  # one window holds it all
    width = 576
    assert len(pipe.get_views(networks.SIZE, width)) > 1
    wide = {"height": networks.SIZE, "latents": noise(1, 4, SIDE, width // networks.FACTOR), "guidance_scale": 1.0}
    assert images(lambda *a, **k: pipe(*a, width=width, **k), width=width, **wide).shape[0] == 1


def test_text2video_zero(folder, painted):
    # this one does not know that a folder may come without a safety checker
    pipe = load(folder, "TextToVideoZeroPipeline", safety_checker=None, feature_extractor=None)
    clip = {"video_length": 3, "t0": 0, "t1": 1, "generator": torch.Generator().manual_seed(0)}
    frames = latents(pipe, **clip)
    assert same(frames[:1], painted)  # the first frame attends to itself
    assert not same(frames[1], frames[0])
    assert images(pipe, **clip).shape[0] == 3


def test_animatediff(folder, plain, painted):
    torch.manual_seed(1)
    adapter = MotionAdapter(plain.unet.config.block_out_channels, motion_norm_num_groups=16).eval()
    pipe = load(folder, "AnimateDiffPipeline", motion_adapter=adapter)
    assert isinstance(pipe.unet, diffusers.UNetMotionModel)
    clip = {"num_frames": 2, "latents": torch.stack([noise(), noise(seed=1)], 2)}
    frames = latents(pipe, **clip)
    assert not same(frames[:, :, 0], painted)
    assert images(pipe, **clip).shape[:2] == (1, 2)
    for name, layer in pipe.unet.named_modules():
        if "motion_modules" in name and name.endswith(".proj_out"):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    assert same(latents(pipe, **clip)[:, :, 0], painted)  # without motion, frames are images of their own


def test_diffedit(folder):
    pipe = load(folder, "StableDiffusionDiffEditPipeline", inverse_scheduler=None)
    pipe.inverse_scheduler = DDIMInverseScheduler.from_config(pipe.scheduler.config)
    steps = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    mask = pipe.generate_mask(picture(), OTHER, source_prompt=PROMPT, num_maps_per_mask=2, **steps)
    assert mask.shape == (1, SIDE, SIDE) and set(np.unique(mask)) == {0, 1}
    inverted = pipe.invert(PROMPT, picture(), inpaint_strength=1.0, **steps).latents
    assert inverted.shape == (1, 2, 4, SIDE, SIDE) and inverted.isfinite().all()
    edit = {"image_latents": inverted, "inpaint_strength": 1.0, "latents": None}
    edited = latents(pipe, OTHER, mask_image=mask, **edit)
    inside = torch.from_numpy(mask).bool()[:, None].expand_as(edited)
    assert torch.equal(edited[~inside], inverted[:, -1][~inside])
    assert not same(edited[inside], inverted[:, -1][inside])
    assert images(pipe, OTHER, mask_image=mask, **edit).shape[0] == 1


def test_image_to_image(folder):
    pipe = load(folder, "StableDiffusionImg2ImgPipeline")

    def run(image: Tensor, **options: Any) -> Any:
        seeded = torch.Generator().manual_seed(0)
        return pipe(image=image, strength=0.5, num_inference_steps=2, generator=seeded, **options).images

    first = run(picture(), prompt=PROMPT, output_type="latent")
    assert first.shape == (1, 4, SIDE, SIDE) and first.isfinite().all()
    assert not same(run(picture(2), prompt=PROMPT, output_type="latent"), first)
    assert not same(run(picture(), prompt=OTHER, output_type="latent"), first)
    image = run(picture(), prompt=PROMPT, output_type="np")
    assert image.shape == (1, networks.SIZE, networks.SIZE, 3) and np.isfinite(image).all()


def test_instruct_pix2pix(folder, plain, painted):
    unet = networks.widen(plain.unet)
    pipe = load(folder, "StableDiffusionInstructPix2PixPipeline", unet=unet)
    assert same(latents(pipe, image=picture(), image_guidance_scale=1.5), painted)  # the image's channels start at zero
    nn.init.normal_(unet.conv_in.weight, std=0.1)
    one, other = (latents(pipe, image=picture(seed), image_guidance_scale=1.5) for seed in (1, 2))
    assert not same(one, other)
    assert images(pipe, image=picture()).shape[0] == 1


def test_depth_controlnet(folder, plain, painted):
    torch.manual_seed(2)
    control = networks.controlnet(plain.unet).eval()
    pipe = load(folder, "StableDiffusionControlNetPipeline", controlnet=control)
    near, far = torch.full((1, 64, 64), 2.0), torch.full((1, 64, 64), torch.inf)
    assert same(latents(pipe, image=networks.depth_image(near)), painted)  # its outputs start at zero
    nn.init.normal_(control.controlnet_cond_embedding.conv_out.weight)
    for layer in control.controlnet_down_blocks:
        nn.init.normal_(layer.weight, std=0.1)
    one, other = (latents(pipe, image=networks.depth_image(depth)) for depth in (near, far))
    assert not same(one, other)
    assert images(pipe, image=networks.depth_image(near)).shape[0] == 1
