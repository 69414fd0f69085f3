"""LEDITS++: its laws on every family, and beside diffusers' pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.pipelines.ledits_pp import pipeline_leditspp_stable_diffusion as theirs
from families import SOME, clip_text, ddim, randomised, unet, vae

from sfumato.backbones.load import family
from sfumato.core.denoising import denoise
from sfumato.errors import SfumatoError
from sfumato.inversion import Path, invert
from sfumato.methods.edit import ledits
from sfumato.methods.edit.ledits import Ledits
from sfumato.stilllife import networks

SOURCE, TARGET = "a red cube on grass", "a blue duck"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
SHORT = Ledits(remove=("grass",), steps=3, skip=0.4)


@pytest.fixture(params=SOME)
def model(request, models):
    return models(request.param)


def pixels(model, seed: int = 0) -> torch.Tensor:
    """Not square."""
    side = 4 * model.factor if model.factor > 1 else 8
    return torch.rand(3, 2 * side, 3 * side, generator=torch.Generator().manual_seed(seed))


def edited(model, how: Ledits, path: Path | None = None, target: Any = TARGET):
    path = path or invert(model, pixels(model), SOURCE, how)
    return denoise(model, target, start=replace(path, how=how), guide=how.guide(model)).latents


def test_concepts_change_the_image_and_leave_the_source_as_it_is(model):
    path = invert(model, pixels(model), SOURCE, SHORT)
    out = denoise(model, {"source": SOURCE, "target": TARGET}, start=path, guide=SHORT.guide(model))
    assert torch.equal(out["source"].latents, path.image)
    target = out["target"].latents
    torch.testing.assert_close(edited(model, SHORT, path), target, **CLOSE)
    assert (target - path.image).abs().max() > 1e-3
    without = edited(model, replace(SHORT, remove=()), path)
    assert (without - target).abs().max() > 1e-4


def test_switched_off_it_finds_the_image(model):
    path = invert(model, pixels(model), SOURCE, replace(SHORT, source_scale=0.0))
    late = edited(model, replace(SHORT, warmup=3, source_scale=0.0), path)
    torch.testing.assert_close(late, path.image, **CLOSE)
    told = invert(model, pixels(model), SOURCE, SHORT)  # with the source's words as well
    for off in (replace(SHORT, scale=0.0), replace(SHORT, cooldown=0)):
        torch.testing.assert_close(edited(model, off, told), told.image, **CLOSE)
    torch.testing.assert_close(edited(model, replace(SHORT, remove=()), told, target=""), told.image, **CLOSE)


class Counting:
    """A tokenizer that does not count padding: the pipeline takes a prompt's length for the number of its words, and
    today's tokenizers count all 77, so that it reads the end token's and the padding's attention as well."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __call__(self, *args: Any, **options: Any) -> Any:
        out = self.tokenizer(*args, **options)
        if "length" in out:
            out["length"] = out.attention_mask.sum(-1)
        return out


class Whole(diffusers.DDIMScheduler):
    """The pipeline asks for the noise of a step by a float, at which DDIM's scheduler stops."""

    def add_noise(self, original_samples, noise, timesteps):
        return super().add_noise(original_samples, noise, timesteps.long())


@pytest.fixture(scope="module")
def pipe():
    """diffusers' pipeline on a tiny network that has maps at a quarter of the latents' side, as its masks want."""
    torch.manual_seed(0)
    network = unet(
        down_block_types=("CrossAttnDownBlock2D",) * 3, up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
    )  # fmt: skip
    parts: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    made = diffusers.LEditsPPPipelineStableDiffusion(
        vae=vae(), text_encoder=clip_text(), tokenizer=networks.tokenizer(), unet=network,
        scheduler=Whole.from_config(ddim().config), requires_safety_checker=False, **parts,
    )  # fmt: skip
    randomised(*made.components.values())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def tiny(pipe):
    return family("tiny", pipe)


IMAGE = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def same_noise(monkeypatch) -> Iterator[None]:
    """diffusers draws from the cleanest level on; here it gets what ours drew from the noisiest on."""

    def given(shape, **_: Any) -> torch.Tensor:
        return drawn.pop()

    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, 4, 8, 12, generator=generator) for _ in range(6)] * 2  # for two inversions
    monkeypatch.setattr(theirs, "randn_tensor", given)
    yield


def diffusers_edit(pipe, source: str, **options: Any) -> torch.Tensor:
    """Six steps after one that is left out."""
    try:
        pipe.invert(IMAGE[None], source_prompt=source, num_inversion_steps=6, skip=0.25)
        return pipe(output_type="latent", **options).images
    finally:
        pipe.unet.set_attn_processor(AttnProcessor2_0())


@pytest.mark.parametrize(
    ("masks", "counted", "flags"),
    [
        ("both", True, {"use_intersect_mask": True}),
        ("both", False, {"use_intersect_mask": True}),
        ("attention", True, {"use_intersect_mask": False, "use_cross_attn_mask": True}),
        ("noise", True, {"use_intersect_mask": False}),
    ],
)
def test_without_words_of_the_source_it_is_diffusers(pipe, tiny, same_noise, masks, flags, counted, monkeypatch):
    """Exactly, once its tokenizer counts words; and as it is, if ours also reads the tokens behind them."""
    if counted:
        monkeypatch.setattr(pipe, "tokenizer", Counting(pipe.tokenizer))
    else:
        monkeypatch.setattr(ledits, "_tokens", lambda model, phrase: slice(1, 76))
    wanted = diffusers_edit(
        pipe, "", editing_prompt=[TARGET, "sphere on grass", "teapotty grass"], edit_guidance_scale=[5.0, 5.0, 8.0],
        edit_threshold=[0.9, 0.6, 0.9], reverse_editing_direction=[False, False, True], edit_warmup_steps=2,
        edit_cooldown_steps=5, **flags,
    )  # fmt: skip
    how = Ledits(
        also=("sphere on grass",), remove=("teapotty grass",), scales={"teapotty grass": 8.0},
        thresholds={"sphere on grass": 0.6}, masks=masks, warmup=2, cooldown=5, source_scale=0.0, steps=6,
        skip=0.25,
    )  # fmt: skip
    path = invert(tiny, IMAGE, SOURCE, how)
    ours = denoise(tiny, TARGET, start=path, guide=how.guide(tiny)).latents
    torch.testing.assert_close(ours, wanted, **CLOSE)
    assert (ours - path.image).abs().max() > 0.1


def test_with_words_of_the_source_diffusers_changes_what_no_one_asked_it_to(pipe, tiny, same_noise):
    """Its noises belong to a guided prediction, its way back starts from the empty prompt's. And it takes the empty
    prompt for the source's words, so that the guidance of its inversion is 1 - s instead of s."""
    how = Ledits(steps=6, skip=0.25, scale=0.0)
    path = invert(tiny, IMAGE, SOURCE, how)
    torch.testing.assert_close(denoise(tiny, TARGET, start=path, guide=how.guide(tiny)).latents, path.image, **CLOSE)
    turned = invert(tiny, IMAGE, SOURCE, replace(how, source_scale=1 - 3.5))
    lost = replace(turned, how=replace(how, source_scale=0.0))
    wanted = denoise(tiny, TARGET, start=lost, guide=lost.how.guide(tiny)).latents
    torch.testing.assert_close(diffusers_edit(pipe, SOURCE), wanted, **CLOSE)
    assert (wanted - path.image).abs().max() > 0.1


def test_with_words_of_the_source_it_is_diffusers_once_these_take_the_right_place(pipe, tiny, same_noise, monkeypatch):
    """Its prompts are unpacked the right way round, and ours starts its way back from the empty prompt's prediction."""
    monkeypatch.setattr(pipe, "tokenizer", Counting(pipe.tokenizer))
    encode = pipe.encode_prompt

    def in_order(**options: Any) -> tuple[Any, ...]:
        first, second, *rest = encode(**options)
        return (second, first, *rest) if options["editing_prompt"] == SOURCE else (first, second, *rest)

    monkeypatch.setattr(pipe, "encode_prompt", in_order)
    how = Ledits(steps=6, skip=0.25)
    path = invert(tiny, IMAGE, SOURCE, how)
    lost = replace(path, how=replace(how, source_scale=0.0))
    ours = denoise(tiny, TARGET, start=lost, guide=lost.how.guide(tiny)).latents
    wanted = diffusers_edit(
        pipe, SOURCE, editing_prompt=[TARGET], edit_guidance_scale=[5.0], edit_threshold=[0.9], use_intersect_mask=True
    )
    torch.testing.assert_close(ours, wanted, **CLOSE)


def test_adding_and_removing_the_same_is_nothing(tiny):
    path = invert(tiny, IMAGE, SOURCE, how := Ledits(steps=3))
    both = replace(how, also=("grass",), remove=("grass",))
    torch.testing.assert_close(edited(tiny, both, path), edited(tiny, how, path), **CLOSE)


def test_images_of_a_batch_are_edited_as_with_a_prompt_each(tiny):
    how = Ledits(remove=("grass",), steps=3, threshold=0.5)
    images = torch.stack([IMAGE, IMAGE])
    path = invert(tiny, images, SOURCE, how)
    first = denoise(tiny, [TARGET, "a sphere"], start=path, guide=how.guide(tiny)).latents
    other = denoise(tiny, ["a sphere", TARGET], start=path, guide=how.guide(tiny)).latents
    flipped = replace(
        path, latents=path.latents.flip(0), noises=tuple(z.flip(0) for z in path.noises), ending=path.ending.flip(0)
    )
    back = denoise(tiny, [TARGET, "a sphere"], start=flipped, guide=how.guide(tiny)).latents
    torch.testing.assert_close(back, other.flip(0), **CLOSE)
    assert (first - other).abs().max() > 1e-3


def test_what_it_cannot_do_is_said(tiny):
    def refused(match, how, target: Any = TARGET, **options):
        with pytest.raises(SfumatoError, match=match):
            denoise(tiny, target, start=invert(tiny, IMAGE, SOURCE, how), **options)

    how = Ledits(steps=2)
    refused("a guidance of its own; give guide=Ledits", how)
    refused("the same Ledits", how, guide=Ledits(remove=("grass",)).guide(tiny))
    refused(
        "'duck' is none of the further phrases to add or remove: grass", Ledits(remove=("grass",), scales={"duck": 2})
    )
    with pytest.raises(SfumatoError, match="a scale of its own, here 5"):
        how.guide(tiny, 7.5)
    refused("the noises are of 1 images", how, [TARGET] * 2, guide=how.guide(tiny))
