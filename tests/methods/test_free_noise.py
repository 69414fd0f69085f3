"""FreeNoise: its noise, its weights and its windows beside diffusers'."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
from diffusers.models.attention import FreeNoiseTransformerBlock

from sfumato.backbones.load import load
from sfumato.backbones.motion import windows
from sfumato.core.attention import Call
from sfumato.core.denoising import denoise
from sfumato.core.method import Edit, Method, Phases, Where
from sfumato.errors import SfumatoError
from sfumato.methods.sets import FreeInit, FreeNoise
from sfumato.methods.sets.free_init import clips
from sfumato.methods.sets.free_noise import weights

PROMPT = "a red cube on grass"


@pytest.mark.parametrize("frames", [4, 5, 16])
@pytest.mark.parametrize("kind", ["pyramid", "flat"])
def test_weights_are_diffusers(frames, kind):
    assert weights(frames, kind).tolist() == FreeNoiseTransformerBlock._get_frame_weights(None, frames, kind)  # pyright: ignore


def test_windows_cover_the_clip_and_the_last_one_ends_with_it():
    assert windows(12, 4, 2)[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert windows(13, 4, 3).tolist()[-1] == [9, 10, 11, 12] and windows(14, 4, 3)[:, 0].tolist() == [0, 3, 6, 9, 10]
    assert {f for w in windows(23, 7, 5).tolist() for f in w} == set(range(23))
    assert windows(4, 4, 1).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(("frames", "context", "stride"), [(12, 4, 2), (14, 6, 4), (40, 16, 4), (7, 5, 5)], ids=str)
def test_noise_is_shuffled_as_diffusers_shuffles_it(frames, context, stride):
    pipe: Any = families.animatediff()
    pipe.enable_free_noise(context, stride)
    wanted = pipe._prepare_latents_free_noise(1, 4, frames, 16, 16, torch.float32, "cpu", _drawn(3))
    generator = _drawn(3)
    own = torch.randn(wanted.shape, generator=generator)
    order = FreeNoise(context, stride).order(frames, generator)
    assert torch.equal(own[:, :, order], wanted) and order[:context] == list(range(context))
    assert max(order) < context and order != [i % context for i in range(frames)]


def _drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_repeated_and_own_noise():
    assert FreeNoise(4, 2, noise="repeat").order(10) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert FreeNoise(4, 2, noise="own").order(10) == list(range(10))
    assert FreeNoise(4, 2).order(12) == FreeNoise(4, 2).order(12) != FreeNoise(4, 2, seed=1).order(12)
    assert FreeNoise(4, 2).order(8) == FreeNoise(4, 2).order(12)[:8]


@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [("pyramid", "ddim"), pytest.param("pyramid", "euler", marks=pytest.mark.slow),
     pytest.param("flat", "ddim", marks=pytest.mark.slow)],
)  # fmt: skip
def test_long_clips_are_those_of_diffusers(kind, scheduler):
    """More frames than the adapter attends over; whole strides, where their last window is a window like the others."""
    import diffusers

    options = {} if scheduler == "ddim" else {"scheduler": diffusers.EulerDiscreteScheduler(**families.BETAS)}
    pipe: Any = families.seeded(lambda: families.animatediff(**options))
    pipe.set_progress_bar_config(disable=True)
    model, frames, method = load(pipe, device="cpu"), 12, FreeNoise(6, 3, weights=kind)
    x = model.latents([3], 32, 32, frames)
    out = denoise(model, PROMPT, frames=frames, steps=3, guide=4.0, seed=3, size=32, methods=[method]).latents
    pipe.enable_free_noise(method.context, method.stride, kind)
    wanted = pipe(
        PROMPT, num_frames=frames, latents=clips(x[method.order(frames)], frames), num_inference_steps=3,
        guidance_scale=4.0, height=32, width=32, output_type="latent",
    ).frames  # fmt: skip
    torch.testing.assert_close(out, wanted.transpose(1, 2).flatten(0, 1), atol=1e-4, rtol=1e-4)


def test_windows_are_averaged_by_weights_where_the_last_is_no_whole_stride(models):
    """The formula once more in float64, a window at a time (eq. 9)."""
    from sfumato.backbones.motion import _in_windows

    block = models("animatediff").network.down_blocks[0].motion_modules[0].transformer_blocks[0].double()
    try:
        x = torch.randn(5, 9, 8, generator=_drawn(0), dtype=torch.float64)
        out = _in_windows(block, windows(9, 4, 3), weights(4), x)
        total, count = torch.zeros_like(x), torch.zeros(9, dtype=torch.float64)
        for first in (0, 3, 5):
            h = x[:, first : first + 4]
            for norm, attend in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
                h = attend(block.pos_embed(norm(h))) + h
            for i, w in enumerate((1, 2, 2, 1)):
                total[:, first + i] += w * h[:, i]
                count[first + i] += w
        h = total / count[:, None]
        torch.testing.assert_close(out, block.ff(block.norm3(h)) + h, atol=1e-12, rtol=1e-12)
    finally:
        block.float()


def test_one_window_is_plain_attention_and_nothing_is_left(models):
    """To rounding: the average of one by its weight."""
    model = models("animatediff")
    options: dict[str, Any] = {"frames": 6, "steps": 2, "guide": 3.0, "size": 32}
    plain = denoise(model, PROMPT, **options).latents
    cond = model.embed([PROMPT] * 6)
    from dataclasses import replace

    from sfumato.backbones.motion import STRIDE, WEIGHTS

    one = {WEIGHTS: weights(6).expand(6, -1), STRIDE: torch.full((6,), 6)}
    x = model.latents([0], 32, 32, 6)
    both = [model.predict(x, 401.0, replace(cond, frames=6, extra=extra)) for extra in ({}, one)]
    torch.testing.assert_close(both[0], both[1], atol=1e-5, rtol=1e-5)
    denoise(model, PROMPT, methods=[FreeNoise(4, 2)], **options)
    assert not any("forward" in vars(m) for m in model.network.modules())
    assert torch.equal(denoise(model, PROMPT, **options).latents, plain)


class _Look(Method):
    """Reads queries over time, and writes them back."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def start(self, run: Any) -> Phases:
        def look(call: Call) -> None:
            q = call.get("q", ("main", "cond"))
            self.seen.append((call.site, q.shape))
            call.set("q", ("main", "cond"), q)

        return Phases(edits=(Edit(Where("image->image", axis="time", rows="cond"), "qkv", look, parts="q"),))


def test_taps_see_the_windows_as_further_places(models):
    model, look = models("animatediff"), _Look()
    options: dict[str, Any] = {"frames": 10, "steps": 1, "guide": 3.0, "size": 32}
    plain = denoise(model, PROMPT, methods=[FreeNoise(4, 3)], **options).latents
    assert torch.equal(denoise(model, PROMPT, methods=[FreeNoise(4, 3), look], **options).latents, plain)
    for site, shape in look.seen:
        h, w = site.grid((4, 4))
        assert shape == (h * w * 3, site.heads, 4, site.dim)


def test_it_begins_once_under_free_init(models):
    model, seen = models("animatediff"), []
    options: dict[str, Any] = {"frames": 6, "steps": 1, "guide": 3.0, "size": 32}
    methods = [FreeNoise(4, 2), FreeInit(2)]
    denoise(model, PROMPT, methods=methods, **options, callback=lambda step: seen.append(step.x))
    x, order = model.latents([0], 32, 32, 6), FreeNoise(4, 2).order(6)
    assert torch.equal(seen[0], x[order])
    gap = [(seen[1][i] - seen[1][order[i]]).abs().max() for i in (4, 5)]
    assert min(gap) > 0.1  # the second begins with noise of its own in each frame


def test_what_it_cannot_be_is_refused(models):
    def run(method: Any, model: Any = None, frames: int = 12) -> None:
        denoise(model or models("animatediff"), PROMPT, frames=frames, steps=2, size=32, methods=[method])

    with pytest.raises(SfumatoError, match="frames of a window lies between 1 and 8, got 16"):
        run(FreeNoise())
    with pytest.raises(SfumatoError, match="frames between windows lies between 1 and 4, got 5"):
        run(FreeNoise(4, 5))
    with pytest.raises(SfumatoError, match="FreeNoise works on clips"):
        run(FreeNoise(4), models("sd"), 1)
    with pytest.raises(SfumatoError, match="paints images, not clips of 12 frames"):
        run(FreeNoise(4), models("sd"))
