"""Subjects of the bench: a thing of a kind that was held out, renders to learn it from, and others to compare with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.bench.session import Session
from sfumato.bench.units import Row, Units, timed
from sfumato.core.denoising import denoise
from sfumato.core.guidance import cfg
from sfumato.io.progress import progress
from sfumato.learning.concepts import Concept
from sfumato.learning.encoders import Pretrained
from sfumato.learning.personal import Personalisation
from sfumato.stilllife.kinds import KINDS
from sfumato.stilllife.render import render
from sfumato.stilllife.scene import COLOURS, GROUNDS, Camera, Scene, Thing
from sfumato.stilllife.similarity import features
from sfumato.tasks import encoder
from sfumato.tasks.learn import Photographs, learn

T = TypeVar("T")
HELD_OUT = tuple(name for name, kind in KINDS.items() if kind.held_out)
SEEN = 5
"""Renders that a thing is learned from, and as many others that it is compared with."""
NAME = "<it>"
ENCODER = f"an encoder of {encoder.STILL_LIFES} things of trained kinds, {encoder.KIND}, {encoder.STILL_LIFE!r}"
"""The unit that it is kept as, for all seeds."""
NEAR = {"teapot": "mug", "rocket": "cone", "cactus": "tree", "boat": "car"}
"""Of a kind that was held out, one that the model knows and a person would say it is somewhat like."""
LUMINANCE = (0.2126, 0.7152, 0.0722)


@dataclass(frozen=True)
class Subject:
    """One thing, seen from here and there on several grounds."""

    kind: str
    colour: str
    ground: str
    """Of none of the pictures that it is learned from."""
    pictures: Float[Tensor, "n 3 h w"]
    masks: Bool[Tensor, "n h w"]
    held: Float[Tensor, "n 3 h w"]
    """Others of it."""
    held_masks: Bool[Tensor, "n h w"]
    seed: int


class PersonalSession(Session):
    """What the measures share."""

    @cached_property
    def units(self) -> Units:
        return Units(None if self.out is None else self.out / "personal-units.jsonl")

    def judged(
        self,
        what: str,
        ways: Mapping[str, Callable[[T], tuple[Row, Float[Tensor, "3 h w"]]]],
        things: Mapping[str, T],
        sheet: str = "",
    ) -> dict[str, dict[str, Row]]:
        """Rows of each way with each of these things, of which each is a unit; what each way paints is a sheet."""
        found: dict[str, dict[str, Row]] = {name: {} for name in ways}
        with progress(f"bench: {what}", len(ways) * len(things)) as advance:
            for name, way in ways.items():
                shown = []
                for i, (called, thing) in enumerate(things.items()):
                    unit = self.unit(what, name, i)
                    found[name][called], image = self.units.get(unit, partial(way, thing))
                    shown.append(image)
                    advance()
                self.keep(f"{sheet or what}-{name}", torch.stack(shown), 1)
        return found

    def unit(self, what: str, name: str, i: int) -> str:
        """As what a way's i-th thing is kept, for all measures that ask of it."""
        return f"{what} {name} {i} {self.seed}"

    def learned(
        self, word: str, photographs: Photographs, method: Personalisation, **how: Any
    ) -> tuple[Concept, dict[str, float]]:
        """The concept, and what it took: ``seconds``, of which ``core_seconds`` of a core, and ``peak_mb``."""
        began = time.process_time()
        done, took = timed(lambda: learn(self.model, photographs, word, method, samples=0, **how), self.device)
        return done.concept, {**took, "core_seconds": time.process_time() - began}

    @cached_property
    def subjects(self) -> list[Subject]:
        """The four kinds in turn, n in all."""
        return [self._subject(i) for i in range(self.n)]

    @cached_property
    def among(self) -> dict[str, Float[Tensor, "kinds n d"]]:
        """Colour -> features of things of all kinds in it, some renders each; filled by ``own_kind``."""
        return {}

    def own_kind(self, images: Float[Tensor, "n 3 h w"], masks: Bool[Tensor, "n h w"], of: Subject) -> list[float]:
        """Is each most like its own kind, of renders of all kinds in the subject's colour? 1 or 0.

        By mean cosine, as ``alike``, of which colour has no part in this.
        """
        if of.colour not in self.among:
            rng = self.stream(53, COLOURS.index(of.colour))
            found = []
            for turn in (0, 90, 180, 270):
                away = Camera(turn + float(rng.uniform(0, 90)), float(rng.uniform(12, 28)), 3.0)
                ground = str(rng.choice(GROUNDS))
                scenes = [Scene((Thing(kind, of.colour),), ground=ground, camera=away) for kind in KINDS]
                seen = render(scenes, self.model.size)
                found.append(F.normalize(features(cut(seen.images, seen.thing == 0)), dim=1))
            self.among[of.colour] = torch.stack(found, 1)
        own = F.normalize(features(cut(images, masks)), dim=1)
        alike = torch.einsum("nd,kmd->nk", own, self.among[of.colour])
        return (alike.argmax(1) == list(KINDS).index(of.kind)).float().tolist()

    def _subject(self, i: int) -> Subject:
        rng = self.stream(51, i)
        thing = Thing(HELD_OUT[i % len(HELD_OUT)], str(rng.choice(COLOURS)))
        grounds = [str(g) for g in rng.permutation(GROUNDS)]
        scenes = []
        for k in range(2 * SEEN):
            away = Camera(float(rng.uniform(0, 360)), float(rng.uniform(12, 28)), float(rng.uniform(2.8, 3.3)))
            scenes.append(replace(Scene((thing,), ground=grounds[1 + k % (len(grounds) - 1)]), camera=away))
        seen = render(scenes, self.model.size)
        masks = seen.thing == 0
        seed = int(rng.integers(2**30))
        return Subject(thing.kind, thing.colour, grounds[0], seen.images[:SEEN], masks[:SEEN], seen.images[SEEN:],
                       masks[SEEN:], seed)  # fmt: skip

    @cached_property
    def encoder(self) -> Pretrained:
        """One that was taught things of the kinds that the model was trained on."""
        _ = self.encoder_seconds
        file = self.units.beside(ENCODER, ".encoder.safetensors")
        return self._taught if file is None else encoder.load(file, self.model)

    @cached_property
    def encoder_seconds(self) -> float:
        """Of a core, in which it was taught; after a stop those since then."""
        seconds = self.units.get(ENCODER, self._teach)[0]["core_seconds"]
        return float(seconds or 0.0)

    def _teach(self) -> tuple[Row, Float[Tensor, "3 h w"]]:
        began = time.process_time()
        things = encoder.still_lifes(encoder.STILL_LIFES, 0, self.model.size)
        keep = self.units.beside(ENCODER, ".run.safetensors")
        if keep is not None:
            keep.parent.mkdir(parents=True, exist_ok=True)
        self._taught = encoder.train(self.model, things, encoder.KIND, encoder.STILL_LIFE, keep=keep)
        took = time.process_time() - began
        if file := self.units.beside(ENCODER, ".encoder.safetensors"):
            self._taught.save(file)
        shown = replace(things, pixels=things.pixels[:4])
        pictures = [*shown.pixels, *encoder.painted(self.model, self._taught, shown)]
        return {"core_seconds": took}, torch.cat(pictures, -1)

    def alike(
        self, images: Float[Tensor, "n 3 h w"], masks: Bool[Tensor, "n h w"], of: Subject, grey: bool = False
    ) -> list[float]:
        """How alike each thing is to the subject's held out renders: mean cosine of the CLIP's image features.

        ``grey``: of its luminance alone, brought to one mean and spread.
        """
        theirs, own = (
            F.normalize(features(cut(*((greyed(pixels, where), where) if grey else (pixels, where)))), dim=1)
            for pixels, where in ((of.held, of.held_masks), (images, masks))
        )
        return (own @ theirs.T).mean(1).tolist()


def painted(model: Any, prompts: Sequence[str], seeds: Sequence[int]) -> Float[Tensor, "b 3 h w"]:
    """As all that is judged here is painted."""
    return denoise(model, list(prompts), seed=list(seeds), steps=30, guide=cfg(5.0)).images.cpu()


def greyed(images: Float[Tensor, "n 3 h w"], masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 3 h w"]:
    """Luminance, which inside of a mask has the mean 0.25 and the deviation 0.1, so that no colour is left of it."""
    out = []
    for image, mask in zip(images, masks, strict=True):
        light = torch.einsum("chw,c->hw", image, image.new_tensor(LUMINANCE))
        inside = light[mask] if bool(mask.any()) else light
        light = 0.25 + 0.1 * (light - inside.mean()) / inside.std(correction=0).clamp_min(1e-4)
        out.append(light.clamp(0, 1).expand(3, -1, -1))
    return torch.stack(out)


@torch.no_grad()
def cut(images: Float[Tensor, "n 3 h w"], masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 3 h w"]:
    """Things alone on grey, each in the square around it at the images' size; without a mask the whole image."""
    out = []
    for image, mask in zip(images, masks, strict=True):
        if not bool(mask.any()):
            out.append(image)
            continue
        y, x = mask.nonzero().T
        alone = torch.where(mask, image, torch.full_like(image, 0.5))
        side = int(max(y.max() - y.min(), x.max() - x.min())) + 5
        top, left = (int(c.min() + c.max() - side) // 2 for c in (y, x))
        wide = F.pad(alone, (side,) * 4, value=0.5)[:, top + side : top + 2 * side, left + side : left + 2 * side]
        out.append(F.interpolate(wide[None], image.shape[-2:], mode="bilinear", antialias=True)[0])
    return torch.stack(out)
