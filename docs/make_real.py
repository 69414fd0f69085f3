"""The pictures of docs/real-models.md: methods on a real denoiser that does not ship with the package.

python docs/make_real.py [NAME ...]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import shown
import torch
from torch import Tensor

from sfumato.backbones.load import load
from sfumato.bench.ports import faces
from sfumato.bench.real import real
from sfumato.core.denoising import denoise
from sfumato.core.views import Ring
from sfumato.distill import canvases, distil
from sfumato.inversion import EDICT, DDIMInversion, invert, reconstruct
from sfumato.media import pictures
from sfumato.methods.control import SelfAttentionGuidance
from sfumato.methods.distill.score_distillation import ScoreDistillation
from sfumato.methods.distill.score_distillation_via_inversion import CACHED
from sfumato.methods.edit import BlendedLatents, MasaCtrl, SDEdit
from sfumato.methods.perceive.diff_seg import DiffSeg
from sfumato.methods.perceive.dift import DIFT
from sfumato.prompts.layout import Mask
from sfumato.reading.reader import read
from sfumato.tasks import recipes

IMAGES = Path(__file__).parent / "images" / "real"
SEEDS = [1000, 1001, 1002, 1003]
STEPS = 30


@cache
def model() -> Any:
    return load(faces.pipeline(real("ddpm64")))


def sampled(seeds: list[int] = SEEDS, **options: Any) -> Tensor:
    return denoise(model(), [""] * len(seeds), seed=seeds, steps=STEPS, **options).images


@cache
def plain() -> Tensor:
    return sampled()


def samples() -> Any:
    """Eight faces, 30 steps of DDIM."""
    return pictures.sheet(sampled([1000 + i for i in range(8)]), 8)


def inversion() -> Any:
    """Faces, and what DDIM inversion, with one refinement of each step, and EDICT find again."""
    rows = [plain()]
    for how in (DDIMInversion(steps=STEPS), DDIMInversion(refine=1, steps=STEPS), EDICT(steps=STEPS)):
        rows.append(model().decode(reconstruct(model(), invert(model(), plain(), "", how))))
    return pictures.sheet(torch.cat(rows), 4)


def masactrl() -> Any:
    """A source, other faces, and these with the source's keys and values from a fifth of the steps on."""
    source, *others = model().latents(SEEDS, 64, 64).split(1)
    out = denoise(
        model(),
        dict.fromkeys(["source", "a", "b", "c"], ""),
        start=torch.cat([source, *others]),
        methods=[MasaCtrl(after=0.2, layer=0.0)],
        steps=STEPS,
    )
    taken = torch.cat([sample.images for sample in out.values()])
    return pictures.sheet(torch.cat([plain(), taken]), 4)


def segments() -> Any:
    """Faces, and their segments by self-attention alone."""
    from sfumato.media.labels import overlay

    shown = [pictures.picture(x).resize((192, 192)) for x in plain()]
    found = [DiffSeg(threshold=0.4)(read(model(), p, 64)) for p in shown]
    return pictures.grid([*shown, *(overlay(p, s.labels) for p, s in zip(shown, found, strict=True))], 4)


def matches() -> Any:
    """Points of the first face, and where DIFT finds them in the others."""
    from sfumato.media.labels import points

    at = torch.tensor(POINTS)
    first = read(model(), plain()[0])
    shown = [points(pictures.picture(plain()[0]), at)]
    for x in plain()[1:]:
        found = DIFT(t=200, blocks=(1, 2), ensemble=4)(first, read(model(), x), at)
        shown.append(points(pictures.picture(x), found.target))
    return pictures.grid(shown, 4)


POINTS = [[20.5, 28.0], [45.0, 28.0], [32.0, 45.0], [32.0, 8.0], [8.0, 50.0]]


def guidance() -> Any:
    """Without self-attention guidance, with it as published, and in the later half of the steps."""
    late = recipes.find("self-attention-guidance", "ddpm64").method
    return pictures.sheet(torch.cat([plain(), *(sampled(methods=[m]) for m in (SelfAttentionGuidance(), late))]), 4)


def sdedit() -> Any:
    """A drawing of blocks, and what becomes of it from ever more noise."""
    drawing = torch.nn.functional.avg_pool2d(plain(), 8)
    blocks = torch.nn.functional.interpolate(drawing, (64, 64), mode="nearest")
    rows = [blocks]
    for strength in (0.4, 0.6):
        path = invert(model(), blocks, "", SDEdit(strength, steps=STEPS))
        rows.append(denoise(model(), {"target": [""] * 4}, start=path)["target"].images)
    return pictures.sheet(torch.cat(rows), 4)


def blended() -> Any:
    """Faces, and their lower halves painted anew."""
    mask = Mask((torch.arange(64) >= 32)[:, None].expand(64, 64))
    path = invert(model(), plain(), "", BlendedLatents(mask, steps=STEPS))
    out = denoise(model(), {"source": [""] * 4, "target": [""] * 4}, start=path)["target"].images
    return pictures.sheet(torch.cat([plain(), out]), 4)


def canvas() -> Any:
    """A ring of 64 x 288 pixels in windows of 64, a new one every 48."""
    wide = denoise(model(), "", seed=7, size=(64, 288), views=Ring(48), steps=STEPS).images
    return pictures.sheet(wide, 1)


def distilled() -> Any:
    """Score distillation in 100 steps of Adam, and via inversion, of cached noise, in 30 of plain descent."""
    rows = []
    for space, method, rule, steps in (
        ("pixel", ScoreDistillation(), "adam", 100),
        ("latent", CACHED, "sgd", 30),
    ):
        canvas = canvases.canvas(model(), space, 4, SEEDS[0])
        distil(model(), canvas, "", method, steps, optimiser=canvases.optimiser(rule, space, None), seed=1)
        rows.append(canvases.shown(model(), canvas))
    return pictures.sheet(torch.cat(rows), 4)


DRAWN: dict[str, Callable[[], Any]] = {
    f.__name__: f
    for f in (
        samples, inversion, masactrl, segments, matches, guidance, sdedit, blended, canvas, distilled,
    )
}  # fmt: skip

if __name__ == "__main__":
    for name in sys.argv[1:] or DRAWN:
        print(shown.write(DRAWN[name](), IMAGES / f"{name}.webp"), flush=True)
