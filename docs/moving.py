"""The moving pictures of these pages: sets of images that the built-in model paints, as films of docs/images/moving.

python docs/moving.py [NAME ...]

Nothing is picked: seeds are what the pages' own commands say, or 7, or the first ones.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import make_pictures
import shown
import torch
from PIL import Image
from PIL.Image import Image as Picture
from torch import Tensor

from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.grids import Grids
from sfumato.core.method import Method
from sfumato.inversion import DDIMInversion, Direct, invert
from sfumato.media import pictures
from sfumato.methods.edit import PlugAndPlay, PromptToPrompt
from sfumato.methods.sets import (
    ConsiStory,
    FateZero,
    Pix2Video,
    SharedAttention,
    StyleAligned,
    Text2VideoZero,
    TokenFlow,
)
from sfumato.stilllife import moves
from sfumato.stilllife.scene import Camera, Scene, Thing
from sfumato.tasks.illusion import illusion, view_of
from sfumato.tasks.panorama import panorama
from sfumato.tasks.views import paint_views

DOCS = Path(__file__).parent
SEED, STEPS, GUIDANCE = 7, 20, 4.0
FRAMES = 8
WIDE = 224
"""Pixels of a strip that are seen at once."""


@dataclass(frozen=True)
class Film:
    frames: Sequence[Picture]
    times: int | Sequence[int] = 120


@cache
def model() -> Any:
    return load("stilllife")


def along(strip: Picture, step: int = 8, around: bool = False) -> Film:
    """A window that moves over a strip, and around where that closes."""
    twice = Image.new("RGB", (strip.width * 2, strip.height))
    for i in range(2):
        twice.paste(strip, (i * strip.width, 0))
    places = range(0, strip.width if around else strip.width - WIDE + 1, step)
    frames = [twice.crop((x, 0, x + WIDE, strip.height)) for x in places]
    return Film(frames, 100 if around else [800, *[80] * (len(frames) - 2), 800])


def beside(*sets: Tensor) -> Film:
    """Clips side by side."""
    return Film([pictures.sheet(torch.stack(each), len(sets)) for each in zip(*sets, strict=True)])


# clips: a red cube that moves on grass, to become blue


@cache
def clip(colour: str = "red") -> Tensor:
    cube = Thing("cube", colour, "plain", "medium", x=-0.5, yaw=20.0)
    scene = Scene((cube,), ground="grass", camera=Camera(), seed=3)
    moved = replace(scene, things=(replace(cube, x=0.5, yaw=50.0),))
    return moves.film(moves.between(scene, moved, FRAMES)).frames


SOURCE, TARGET = ["a red cube on grass"] * FRAMES, ["a blue cube on grass"] * FRAMES


@cache
def found() -> Any:
    return invert(model(), clip(), SOURCE, Direct(steps=STEPS))


def edited(*methods: Method, **options: Any) -> Tensor:
    prompts = {"source": SOURCE, "target": TARGET}
    return denoise(model(), prompts, start=found(), methods=methods, guide=GUIDANCE, **options)["target"].images


@cache
def by_frames() -> Tensor:
    return edited(PlugAndPlay(res=0.5))


def from_target(*methods: Method) -> Tensor:
    """By the target's words alone: the source is where the noise comes from."""
    path = invert(model(), clip(), SOURCE, DDIMInversion(steps=STEPS))
    return denoise(model(), TARGET, start=path, methods=methods, guide=GUIDANCE).images


def text2video_zero() -> Film:
    method = Text2VideoZero(right=-0.05, down=0)
    return beside(
        *(
            denoise(model(), [prompt] * FRAMES, methods=[method], guide=5.0, steps=STEPS, seed=SEED).images
            for prompt in ("a red cube on grass", "a yellow duck on sand")
        )
    )


# sets: by themselves above, with a method below, from one seed after the other


def together(method: Method, prompts: Sequence[str], sets: int = 4) -> Film:
    frames = []
    for i in range(sets):
        seeds = [SEED + len(prompts) * i + k for k in range(len(prompts))]
        rows = [
            denoise(model(), list(prompts), methods=methods, guide=GUIDANCE, steps=STEPS, seed=seeds).images
            for methods in ([], [method])
        ]
        frames.append(pictures.sheet(torch.cat(rows), len(prompts)))
    return Film(frames, 2000)


# strips


def of_page(word: str) -> Film:
    """What a page's own command paints."""
    with tempfile.TemporaryDirectory() as folder:
        return along(Image.open(make_pictures.picture(DOCS / "methods" / f"{word}.md", Path(folder))).convert("RGB"))


def painted(prompt: str, ring: bool) -> Picture:
    options = {"steps": STEPS, "stride": 8, "ring": ring}
    return panorama(model(), prompt, [SEED], (128, 512), **options).pictures[0]


def anagram(view: str, *prompts: str) -> Film:
    """From what a picture is to what it is in another view, and back to the beginning."""
    made = illusion(model(), (prompts[0], prompts[1]), view_of(view), [SEED], guide=7.5)
    frames = made.film(0)[8:]  # it holds its beginning; here that lasts longer
    return Film(frames, [1500, *[60] * (len(frames) - 2), 1500])


def turned() -> Film:
    """Views of one thing, one after the other."""
    (views,) = paint_views(model(), "a red robot", ["front", "right", "back", "left"], [2], steps=STEPS).views
    return Film(views, 1000)


MADE: dict[str, Callable[[], Film]] = {
    "panorama": lambda: along(painted("a red cube on grass", ring=False)),
    "ring": lambda: along(painted("a red cube on grass", ring=True), 16, around=True),
    **{
        word: partial(of_page, word)
        for word in ("sync-diffusion", "merge-attend-diffuse", "spot-diffusion", "sync-tweedies")
    },
    "video": lambda: beside(clip(), edited(PromptToPrompt()), clip("blue")),
    "token-flow": lambda: beside(clip(), by_frames(), edited(PlugAndPlay(res=0.5), TokenFlow(every=4))),
    "fate-zero": lambda: beside(clip(), edited(FateZero(finest=1.0)), clip("blue")),
    "pix2video": lambda: beside(clip(), from_target(), from_target(Pix2Video(weight=6.0))),
    "grids": lambda: beside(clip(), by_frames(), edited(PlugAndPlay(res=0.5), views=Grids(2, 2, seed=0))),
    "text2video-zero": text2video_zero,
    "shared-attention": lambda: together(
        SharedAttention("first", own=True), ("a red cube on grass", "a duck", "a mug", "a sphere")
    ),
    "style-aligned": lambda: together(StyleAligned(), ("a pencil sketch of a red cube on grass", "a duck", "a mug")),
    "consi-story": lambda: together(
        ConsiStory("duck", res=0.5), ("a duck on grass", "a duck on sand", "a duck at night")
    ),
    "illusion": partial(anagram, "turn", "a green robot on sand", "a green house on sand"),
    "views": turned,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or MADE:
        film = MADE[name]()
        file = shown.write(film.frames, DOCS / "images" / "moving" / f"{name}.webp", film.times)
        print(f"{file}: {len(film.frames)} frames, {file.stat().st_size / 1000:.0f} kB", flush=True)
