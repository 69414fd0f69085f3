"""Text2Video-Zero against diffusers' pipeline, and what its motion and its smoothing do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers.pipelines.deprecated.text_to_video_synthesis import pipeline_text_to_video_zero as theirs
from families import pipeline, write
from rounding import assert_same_but_for_rounding

from sfumato.core.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.methods.sets import SharedAttention, Text2VideoZero
from sfumato.methods.sets.text2video_zero import shifted
from sfumato.prompts.layout import Mask

PROMPT = "a red cube on grass"
FRAMES = 3


def paint(model, method, frames=FRAMES, steps=8, **options):
    settings = {"seed": list(range(3, 3 + frames)), "size": 64, "guide": 3.0, "steps": steps}
    methods = [method] if method else []
    return denoise(model, [PROMPT] * frames, methods=methods, **settings | options).latents


@pytest.mark.filterwarnings("ignore::UserWarning")  # of theirs, on grids and corners
@pytest.mark.parametrize("cells", [8, 64])
def test_moves_are_those_of_diffusers(cells):
    """Of latents of 64 x 64 cells their 12 pixels are one and a half: 1, 3 and 4 cells for the first three."""
    x = torch.randn(1, 4, cells, cells, generator=torch.Generator().manual_seed(0))
    run = SimpleNamespace(grid=(cells, cells))
    for right, down in ((12, 12), (40, -24), (-12, 0)):
        for k in range(1, 8):
            moved = theirs.create_motion_field_and_warp_latents(right, down, [k], x.clone())
            mine = shifted(x[0], *Text2VideoZero(right / 512, down / 512)._cells(k, run))
            assert torch.equal(mine, moved[0]), (right, down, k)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_frames_are_those_of_diffusers_pipeline(tmp_path, models):
    """But for the noise back, which is the schedule's here, and each frame's own."""
    parts = pipeline(write("sd", tmp_path)).components
    parts.pop("image_encoder")
    pipe = theirs.TextToVideoZeroPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    model = models("sd")
    start = model.latents([3, 4, 5], 64, 64)
    alphas = pipe.scheduler.alphas_cumprod

    def forward(x_t0, t0, t1, generator):
        ratio = alphas[t1] / alphas[t0]
        return ratio.sqrt() * x_t0 + (1 - ratio).sqrt() * start[1:]

    pipe.forward_loop = forward
    wanted = pipe(
        PROMPT, video_length=FRAMES, height=64, width=64, num_inference_steps=10, guidance_scale=3.0, latents=start[:1],
        t0=5, t1=7, motion_field_strength_x=70, motion_field_strength_y=-130, output_type="latent", return_dict=False,
    )[0]  # fmt: skip
    ours = paint(model, Text2VideoZero(70 / 512, -130 / 512, begin=0.2, settled=0.4), steps=10)
    assert_same_but_for_rounding(ours, wanted)


def test_the_first_frame_is_what_it_is_alone(models):
    """On a network of joint attention as well."""
    for model in (models("sd"), models("flux")):
        method, size = Text2VideoZero(0.25, 0.13, begin=0.25, settled=0.5), model.multiple * 4
        plain, moved = (paint(model, how, size=size, steps=4) for how in (None, method))
        assert_same_but_for_rounding(moved[:1], plain[:1])
        assert (moved[1] - plain[1]).abs().max() > 1e-3
        one, alone = (paint(model, how, 1, size=size, steps=4) for how in (None, method))
        assert torch.equal(one, alone)


def test_without_a_way_and_without_noise_frames_are_one_picture(sd):
    """Where the copies settle is where they begin: nothing is drawn, and nothing moves."""
    still = paint(sd, Text2VideoZero(0.0, 0.0, begin=0.5, settled=0.5))
    assert_same_but_for_rounding(still, still[:1].expand_as(still))


def test_the_background_is_that_of_the_first_frame_moved(sd):
    """Smoothed wholly, with a thing in one corner: what neither covers is the first frame's, by cells."""
    corner = Mask(torch.arange(8)[:, None] + torch.arange(8) < 2)
    how = {"right": 0.25, "down": 0.0, "begin": 0.25, "settled": 0.5}
    out = paint(sd, Text2VideoZero(**how, foreground=corner, smooth=1.0))
    for k in (1, 2):
        moved, thing = shifted(out[0], 0, 2 * k), corner.at((8, 8))
        free = ~(thing | shifted(thing[None], 0, 2 * k)[0])
        assert torch.equal(out[k][:, free], moved[:, free])
        assert (out[k] - moved)[:, thing].abs().max() > 1e-3
    half = paint(sd, Text2VideoZero(**how, foreground=corner, smooth=0.0))
    assert torch.equal(half, paint(sd, Text2VideoZero(**how)))


def test_what_it_cannot_do_is_said(sd):
    for method, match in (
        (Text2VideoZero(begin=0.5, settled=0.25), "frames begin before their copies settle"),
        (Text2VideoZero(settled=1.0), "and both before the end; got 0.04 and 1 of 8 steps"),
    ):
        with pytest.raises(SfumatoError, match=match):
            paint(sd, method)
    with pytest.raises(SfumatoError, match="both write sources of image->image"):
        denoise(sd, [PROMPT] * 2, methods=[Text2VideoZero(), SharedAttention()], steps=20, size=64)
