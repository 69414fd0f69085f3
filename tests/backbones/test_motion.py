"""AnimateDiff: clips of a tiny random UNet with motion modules, beside diffusers' own pipelines."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import diffusers
import families
import pytest
import torch
from alone import Alone

from sfumato.backbones.load import load
from sfumato.core.attention import Call
from sfumato.core.choice import choose
from sfumato.core.denoising import denoise, plan
from sfumato.core.method import Edit, Method, Need, Phases, Where
from sfumato.core.rows import Rows
from sfumato.core.views import Tiles
from sfumato.errors import SfumatoError
from sfumato.inversion import Direct, invert
from sfumato.methods.control import PerturbedAttention
from sfumato.methods.edit import MasaCtrl

PROMPT, OTHER = "a red cube on grass", "a blue duck"
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
VARIED: dict[str, Any] = {
    "adapter": {"use_motion_mid_block": False, "motion_layers_per_block": 2, "motion_num_attention_heads": (2, 4),
                "motion_transformer_layers_per_block": 2, "motion_max_seq_length": 5},
    "network": {"layers_per_block": 2, "attention_head_dim": (2, 4), "use_linear_projection": True},
}  # fmt: skip
PIPES: dict[str, Any] = {
    "ddim": lambda: families.animatediff(),
    "varied": lambda: families.animatediff(**VARIED, prediction_type="v_prediction"),
    "linear": lambda: families.animatediff(beta_schedule="linear", adapter={"motion_transformer_layers_per_block": 2}),
    "euler": lambda: families.animatediff(scheduler=diffusers.EulerDiscreteScheduler(**families.BETAS)),
    "dpm": lambda: families.animatediff(scheduler=diffusers.DPMSolverMultistepScheduler(**families.BETAS)),
    "pndm": lambda: families.animatediff(scheduler=diffusers.PNDMScheduler(**families.BETAS, skip_prk_steps=True)),
}
DAILY = ("varied", "euler")


def frames_of(clips: torch.Tensor) -> torch.Tensor:
    """(b, c, f, h, w), as diffusers has clips, as images."""
    return clips.transpose(1, 2).flatten(0, 1)


def clips_of(images: torch.Tensor, frames: int) -> torch.Tensor:
    return images.unflatten(0, (-1, frames)).transpose(1, 2)


@pytest.fixture(scope="module")
def model(models):
    return models("animatediff")


def painted(model, prompt: Any = PROMPT, frames: int = 4, **options: Any) -> torch.Tensor:
    settings: dict[str, Any] = {"steps": 2, "size": 32, "seed": 5, "guide": 3.0}
    out = denoise(model, prompt, frames=frames, **settings | options)
    return out.latents if not isinstance(out, dict) else {k: v.latents for k, v in out.items()}  # pyright: ignore


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in DAILY else pytest.mark.slow) for n in PIPES])
def test_clips_are_those_of_diffusers(name):
    pipe: Any = families.seeded(PIPES[name])
    families.randomised(pipe.unet)
    pipe.set_progress_bar_config(disable=True)
    model = load(pipe, device="cpu")
    frames, steps = 5, 8 if name == "pndm" else 4
    x = model.latents([3, 7], 32, 48, frames)
    options: dict[str, Any] = {"num_inference_steps": steps, "height": 32, "width": 48, "output_type": "latent"}
    wanted = pipe(
        [PROMPT, OTHER], num_frames=frames, latents=clips_of(x, frames), guidance_scale=4.0,
        negative_prompt=["the"] * 2, **options,
    ).frames  # fmt: skip
    from sfumato.core.guidance import cfg

    out = denoise(model, [PROMPT, OTHER], frames=frames, seed=[3, 7], size=(32, 48), steps=steps, guide=cfg(4.0, "the"))
    assert out.clips.shape == (2, frames, 3, 32, 48)
    torch.testing.assert_close(out.latents, frames_of(wanted), **CLOSE)
    alone = denoise(model, [PROMPT, OTHER], seed=[3, 7], size=(32, 48), steps=steps, guide=cfg(4.0, "the"))
    assert (alone.latents - out.latents[::frames]).abs().max() > 1e-2  # frames do see each other


def test_an_adapter_gives_stable_diffusion_time(tmp_path, models):
    """In hand, as a folder, and of a folder with a whole pipeline: the same network."""
    place = families.write("animatediff", tmp_path)
    whole = load(str(place), device="cpu")
    pipe: Any = families.pipeline(models("sd").pipe.config._name_or_path)
    adapter = diffusers.MotionAdapter.from_pretrained(place / "motion_adapter")
    made = load(pipe, motion=adapter)
    assert type(made) is type(whole) and made.pipe is not pipe and type(pipe.unet).__name__ == "UNet2DConditionModel"
    again = load(str(models("sd").name), motion=str(place / "motion_adapter"), device="cpu")
    both = load(str(models("sd").name), motion=str(place), device="cpu")
    clips = [painted(each) for each in (whole, made, again, both)]  # one seed made both folders
    assert all(torch.equal(clip, clips[0]) for clip in clips)
    for wrong, match in (
        (adapter.down_blocks, "given as motion is a ModuleList"),
        (families.motion_adapter(block_out_channels=(8, 8)), "none for .*size mismatch"),
        (families.motion_adapter(motion_layers_per_block=2), "none for .*layers per block"),
        (str(tmp_path / "none"), "there is no file or folder .*none"),
        (str(models("sd").name), "holds no motion_adapter|no motion_adapter"),
    ):
        with pytest.raises(SfumatoError, match=match):
            load(str(models("sd").name), motion=wrong, device="cpu")
    for name in ("sdxl", "pixart"):
        with pytest.raises(SfumatoError, match="motion adapters are of Stable Diffusion 1"):
            load(models(name).pipe, motion=adapter)
    with pytest.raises(SfumatoError, match="motion modules of its own"):
        load(whole.pipe, motion=adapter)


def test_what_a_motion_model_reads_more_is_refused():
    for config, match in (({"in_channels": 9}, "reads 9 channels"), ({"out_channels": 8}, "gives 8 channels")):
        pipe: Any = families.animatediff()
        pipe.unet = diffusers.UNetMotionModel.from_config({**pipe.unet.config, **config})
        with pytest.raises(SfumatoError, match=match):
            load(pipe)


@pytest.mark.parametrize("frames", [1, 3])
def test_each_site_is_seen_once_in_order_and_looking_changes_no_bit(model, frames):
    """Over time calls are folded to (rows, places, frames)."""
    x, cond = model.latents([0, 1], 32, 32, frames), replace(model.embed([PROMPT] * 2 * frames), frames=frames)
    seen: list[Any] = []

    def look(call: Call) -> None:
        seen.append(call.site)
        places = call.grid[0] * call.grid[1]
        q, probs = call.get("q", ("main", "cond"), "image"), call.block(("main", "cond"), call.site.pairs[0])
        if call.site.axis == "time":
            assert q.shape == (2 * places, call.site.heads, frames, call.site.dim)
            assert probs.shape == (2 * places, call.site.heads, frames, frames)
        else:
            assert q.shape == (2 * frames, call.site.heads, places, call.site.dim)

    plain = model.predict(x, 401.0, cond)
    rows = Rows(("main",), ("cond",), 2 * frames, frames=frames)
    with model.tap(dict.fromkeys(model.sites, look), rows, (4, 4)) as tap:
        tapped = model.predict(x, 401.0, cond)
        tap.check(model.network)
    assert torch.equal(tapped, plain) and seen == list(model.sites)
    modules = dict(model.network.named_modules())
    assert all(("motion_modules" in s.path) == (s.axis == "time") and s.path in modules for s in model.sites)
    assert sum(s.axis == "time" for s in model.sites) == 14


def test_layers_are_seen_once_in_order(model):
    frames = 3
    x, cond = model.latents([0, 1], 32, 32, frames), replace(model.embed([PROMPT] * 2 * frames), frames=frames)
    found = model.maps(x, 401.0, cond, model.layers, lambda seen: seen.value)
    assert list(found) != [] and set(found) == set(model.layers)
    for kind in ("residual", "hidden", "tokens", "text"):
        assert [s for s in found if s.kind == kind] == [s for s in model.layers if s.kind == kind]
    assert all(len(value) == 2 * frames for value in found.values())
    last = max((s for s in found if s.kind == "hidden"), key=lambda s: s.index)
    assert last.path == "up_blocks.1.motion_modules.1"


def test_who_names_image_to_image_means_space_unless_time_is_said(model):
    space, time = (choose(model, Where("image->image", axis=axis), (4, 4)) for axis in ("space", "time"))
    assert space == choose(model, "image->image", (4, 4)) and len(space) == 4 and len(time) == 14
    assert {s.axis for s in space} == {"space"} and {s.axis for s in time} == {"time"}
    assert not any("motion" in layer.path for layer in model.layers if layer.kind == "tokens")
    with pytest.raises(SfumatoError, match=r"'image->text' attention over time; .* offers image->image$"):
        choose(model, Where("image->text", axis="time"), (4, 4))


def test_a_model_of_images_has_no_time(models):
    with pytest.raises(SfumatoError, match=r"attention over time; .* offers none over time; load it with motion"):
        choose(models("sd"), Where("image->image", axis="time"), (4, 4))


def test_rows_over_time_are_a_clips_places(model):
    """What is written at one place of one clip changes all frames of that clip there, and nothing else."""
    frames, clip, place = 3, 1, 6
    x, cond = model.latents([0, 1], 32, 32, frames), replace(model.embed([PROMPT] * 2 * frames), frames=frames)
    site = next(s for s in model.sites if s.axis == "time" and s.path.endswith("attn2"))
    behind = next(s for s in model.layers if s.kind == "hidden" and s.path in site.path)
    rows, seen = Rows(("main",), ("cond",), 2 * frames, frames=frames), []

    def louder(by: float, call: Call) -> None:
        out = call.get("out", ("main", "cond")).clone()
        out[clip * 16 + place] += by
        call.set("out", ("main", "cond"), out)

    for by in (0.0, 1.0):
        with model.tap({site: partial(louder, by), behind: lambda found: seen.append(found.value)}, rows, (4, 4)):
            model.predict(x, 401.0, cond)
    changed = (seen[1] - seen[0]).abs().amax(1) > 1e-6
    assert changed.nonzero().tolist() == [[clip * frames + f, place // 4, place % 4] for f in range(frames)]


class _Apart(Method):
    """Frames of one stream do not see each other: their attention over time is to themselves."""

    def __init__(self, rows: Any):
        self.rows = rows

    def start(self, run: Any) -> Phases:
        def alone(call: Call) -> None:
            for name in run.rows.match(self.rows):
                call.set("out", name, call.get("v", name))

        self.need = Need(Where("image->image", rows="cond", axis="time"))
        where = Where("image->image", rows=self.rows, axis="time")
        return Phases(edits=(Edit(where, "out", alone),), needs=(self.need,), after=self.after)

    def after(self, step: Any) -> None:
        self.maps = step.maps[self.need]


def test_attention_over_time_is_written_and_read_by_rows(model):
    """With it written to nothing in one stream, another stream's is what it was."""
    prompts = {"main": PROMPT, "other": OTHER}
    plain, frames = painted(model, prompts), 4
    method = _Apart(("main", None))
    out = painted(model, prompts, methods=[method])
    torch.testing.assert_close(out["other"], plain["other"], **CLOSE)
    assert (out["main"] - plain["main"]).abs().max() > 1e-2
    assert len(method.maps) == 14
    for site, by_rows in method.maps.items():
        h, w = site.grid((4, 4))
        assert by_rows["main", "cond"].shape == (h * w, frames, frames)
    priced = plan(model, prompts, frames=frames, size=32, steps=2, guide=3.0, methods=[_Apart(("main", None))])
    assert {row["pair"] for row in priced.table()} == {"image->image over time"} and priced.bytes > 0


def test_methods_of_images_act_on_frames(model):
    """MasaCtrl's laws hold frame by frame, and a perturbed block is one of space."""
    prompts = {"source": PROMPT, "target": "a blue cube on grass"}
    plain, off = painted(model, prompts), painted(model, prompts, methods=[MasaCtrl(after=1.0, layer=0.0)])
    edited = painted(model, prompts, methods=[MasaCtrl(after=0.0, layer=0.0)])
    assert torch.equal(off["source"], plain["source"]) and torch.equal(off["target"], plain["target"])
    torch.testing.assert_close(edited["source"], plain["source"], **CLOSE)
    assert (edited["target"] - plain["target"]).abs().max() > 1e-3
    table = plan(model, PROMPT, frames=4, size=32, steps=2, methods=[PerturbedAttention()]).table()
    assert [row["sites"] for row in table] == [1]


def test_a_clip_of_a_batch_is_what_it_is_alone_and_a_longer_one_begins_alike(model):
    both = painted(model, [PROMPT, OTHER], frames=3, seed=[4, 9])
    for i, (prompt, seed) in enumerate(((PROMPT, 4), (OTHER, 9))):
        torch.testing.assert_close(both[3 * i : 3 * i + 3], painted(model, prompt, frames=3, seed=seed), **CLOSE)
    noise = model.latents([4], 32, 32, 6)
    assert torch.equal(noise[:1], model.latents([4], 32, 32)) and torch.equal(noise[:3], model.latents([4], 32, 32, 3))
    assert noise.flatten(1).corrcoef().triu(1).abs().max() < 0.5  # frames are independent: 64 numbers each


def test_noise_on_the_way_is_each_frames_own(model):
    from sfumato.core.steppers import Euler

    seen: list[Any] = []
    run = {"stepper": Euler(ancestral=True), "steps": 3, "seed": [4, 9], "callback": lambda step: seen.append(step)}
    both = painted(model, [PROMPT, OTHER], frames=3, **run)
    again = painted(model, OTHER, frames=3, **{**run, "seed": 9})
    torch.testing.assert_close(both[3:], again, **CLOSE)
    added = seen[0].x_next - seen[0].next.alpha * seen[0].x0
    assert (added[0] - added[1]).abs().max() > 0.1


def test_what_clips_cannot_be_is_refused_before_the_first_step(model, models):
    for frames, match in ((0, "at least 1 frame, got 0"), (9, "at most 8 frames, got 9"), (2.5, "whole number")):
        with pytest.raises(SfumatoError, match=match):
            painted(model, frames=frames)  # pyright: ignore
    with pytest.raises(SfumatoError, match=r"paints images, not clips of 4 frames; an AnimateDiff adapter"):
        painted(models("sd"))
    with pytest.raises(SfumatoError, match="a canvas of views is one image, not a clip of 4 frames"):
        painted(model, views=Tiles(), size=(32, 64))
    with pytest.raises(SfumatoError, match="edits one image a run, and a clip has 4; leave frames out"):
        painted(model, methods=[Alone()])
    path = invert(model, torch.rand(4, 3, 32, 32), [PROMPT] * 4, Direct(steps=2))
    with pytest.raises(SfumatoError, match="inversions take frames one by one"):
        denoise(model, PROMPT, start=path, frames=4)
    assert denoise(model, PROMPT, start=path.latents, frames=4, steps=2).latents.shape == (4, 4, 4, 4)
    with pytest.raises(SfumatoError, match="need 1 seeds, got 4"):
        painted(model, seed=[1, 2, 3, 4])
    x, cond = model.latents([0], 32, 32, 3), replace(model.embed([PROMPT] * 3), frames=2)
    with pytest.raises(SfumatoError, match="3 images are no clips of 2 frames"):
        model.predict(x, 401.0, cond)
    with pytest.raises(SfumatoError, match="the frames of a clip have one time"):
        model.predict(x, torch.tensor([401.0, 401.0, 301.0]), replace(cond, frames=3))


def test_controls_are_a_picture_a_frame_as_in_diffusers(model):
    from sfumato.backbones.controlnets import ControlNet

    frames, pipe = 3, model.pipe
    unet = families.unet()
    network = families.controlnet("sd", unet)
    parts = {k: v for k, v in pipe.components.items() if k not in ("image_encoder", "feature_extractor")}
    theirs: Any = diffusers.AnimateDiffControlNetPipeline(controlnet=network, **parts)
    theirs.set_progress_bar_config(disable=True)
    pictures = torch.rand(frames, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = model.latents([3], 32, 32, frames)
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "latent"}
    wanted = theirs(
        PROMPT, num_frames=frames, height=32, width=32, latents=clips_of(x, frames), conditioning_frames=list(pictures),
        controlnet_conditioning_scale=0.8, **options,
    ).frames  # fmt: skip
    control = ControlNet(network, pictures, 0.8)
    ours = denoise(model, PROMPT, frames=frames, size=32, steps=3, guide=4.0, seed=3, controls=[control])
    torch.testing.assert_close(ours.latents, frames_of(wanted), **CLOSE)
