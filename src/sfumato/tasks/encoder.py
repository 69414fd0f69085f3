"""Teach an encoder the things of one domain: pictures of a folder, or still lifes that are rendered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones.video import DEVIATION, MEAN
from sfumato.errors import SfumatoError
from sfumato.io.files import read_text
from sfumato.io.progress import Listener, heard, progress
from sfumato.learning.encoders import Pretrained, Sees
from sfumato.learning.encoding import WORD, Pretraining, pretrain
from sfumato.learning.lessons import Lesson
from sfumato.learning.loop import Run
from sfumato.stilllife import similarity
from sfumato.stilllife.kinds import TRAINED
from sfumato.stilllife.render import render
from sfumato.stilllife.scene import Camera, Scene, sample_scene
from sfumato.tasks import kept
from sfumato.tasks.learn import painted as painting
from sfumato.tasks.learn import read

STILL_LIFE = Pretraining(
    steps=120, rate=2e-4, offset_rate=1e-4, batch=4, penalty=1e-5, vectors=2, since=0.2, t=100,
    templates=("a {}",),
)  # fmt: skip
"""What suits the built-in model. As published, an offset of the distance between two words would count more than all
that is painted wrong."""
KIND = "cube"
"""Of the built-in model's things, from whose vectors words are; photographs it was never told of."""
STILL_LIFES = 640
"""Renders that are learned from, where no pictures are given."""
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Domain:
    """What an encoder is taught."""

    pixels: Float[Tensor, "n 3 h w"]
    captions: tuple[str, ...] = ()
    """One of each picture, with {} for its thing; none: templates."""
    names: tuple[str, ...] = ()
    """What each thing is, in words that the model knows; none: not said."""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def digest(self) -> str:
        """A word for what it holds."""
        return kept.digest([self.pixels, list(self.captions), list(self.names)])

    def split(self, last: int) -> tuple[Domain, Domain]:
        """All but so many, and these. Raises ``SfumatoError`` where none would be left to learn from."""
        at = len(self) - last
        if at < 1:
            raise SfumatoError(f"of {len(self)} pictures {last} are kept to be painted; give more, or --samples 0")
        learned = Domain(self.pixels[:at], self.captions[:at], self.names[:at])
        return learned, Domain(self.pixels[at:], self.captions[at:], self.names[at:])


def settings(model: str, **given: Any) -> Pretraining:
    """What suits a model, or else as published; what is given and not None counts."""
    return replace(
        STILL_LIFE if model == "stilllife" else Pretraining(), **{k: v for k, v in given.items() if v is not None}
    )


def still_lifes(n: int, seed: int, size: int) -> Domain:
    """Renders of one thing each, of kinds that the built-in model was trained on, by day, from all around."""
    rng = np.random.default_rng((seed, 71))
    scenes: list[Scene] = []
    for _ in range(n):
        drawn = sample_scene(rng, count=1, kinds=TRAINED, style="photo")
        around = Camera(float(rng.uniform(0, 360)), float(rng.uniform(12, 28)), float(rng.uniform(2.8, 3.3)))
        scenes.append(replace(drawn, camera=around, light="day"))
    images = []
    with progress("rendering still lifes", n) as advance:
        for first in range(0, n, 8):
            images.append(render(scenes[first : first + 8], size).images)
            advance(len(images[-1]))
    names = tuple(f"{scene.things[0].colour} {scene.things[0].kind}" for scene in scenes)
    return Domain(torch.cat(images), tuple(f"a {{}} on {scene.ground}" for scene in scenes), names)


def captions(files: Sequence[Path]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of pictures, from text files of the same names, with {} for the thing; none where there are none. And what stands
    in the braces, where all have something there: "a {red cube} on grass".

    Raises ``SfumatoError`` where some pictures have one and some do not, and for one without braces.
    """
    texts = [file.with_suffix(".txt") for file in files]
    if not any(text.is_file() for text in texts):
        return (), ()
    if missing := [file.name for file, text in zip(files, texts, strict=True) if not text.is_file()]:
        raise SfumatoError(
            f"{missing[0]} has no caption, and others have; write all of them, or none, with {{}} for the thing"
        )
    found = [" ".join(read_text(text).split()) for text in texts]
    braces = [_BRACES.search(each) for each in found]
    if bare := [(text, each) for text, each, match in zip(texts, found, braces, strict=True) if match is None]:
        text, each = bare[0]
        raise SfumatoError(f"{text}: a caption has {{}} for the thing, or what it is in braces, got {each!r}")
    names = [match[1].strip() if match else "" for match in braces]
    return tuple(_BRACES.sub("{}", each) for each in found), tuple(names) if all(names) else ()


def of_files(files: Sequence[Path], model: Any, most: int | None = None) -> Domain:
    """Pictures as the model sees them, of more than ``most`` as many, evenly from all; and their captions."""
    found = read(files, model, most or len(files))
    return Domain(found.pixels, *captions(found.files))


def painted(model: Any, encoder: Pretrained, domain: Domain, seed: int = 0) -> Float[Tensor, "n 3 h w"]:
    """What the model paints by the words that an encoder gives pictures, without any tuning."""
    changed = model.with_changes(encoder.offsets)
    words = [encoder.word(model, Lesson.of(model, picture[None], mirrored=False)) for picture in domain.pixels]
    paintings = [painting(changed.with_words({WORD: word}), [f"a {WORD}"], 1, seed) for word in words]
    return torch.cat(paintings)


def tower(model: Any) -> Sees | None:
    """What a CLIP makes of pictures, where a model has one: its image encoder, or the one that ships with the built-in
    model."""
    if model.name == "stilllife":
        return torch.no_grad()(similarity.features)
    encoder = getattr(model.pipe, "image_encoder", None)
    if encoder is None:
        return None

    @torch.no_grad()
    def sees(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c"]:
        side = encoder.config.image_size
        small = F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        mean, deviation = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, DEVIATION))
        weight = next(encoder.parameters())
        return encoder(((small - mean) / deviation).to(weight)).image_embeds.float()

    return sees


def load(path: Path, model: Any) -> Pretrained:
    """An encoder's file, for a model. Raises ``SfumatoError`` for one of another kind of model."""
    found = Pretrained.load(path, tower(model))
    found.check(model)
    return found


def train(
    model: Any,
    domain: Domain,
    kind: str,
    settings: Pretraining,
    *,
    steps: int | None = None,
    seed: int = 0,
    keep: Path | None = None,
    on_progress: Listener | None = None,
) -> Pretrained:
    """Teach an encoder; ``keep``: a checkpoint from which the same call goes on after a stop, bit for bit.

    ``kind``: the domain's own word, which the model knows. Raises ``SfumatoError`` for what ``pretrain`` refuses.
    """
    with heard(on_progress):
        lesson = Lesson.of(model, domain.pixels)
        return pretrain(
            model, lesson, kind, settings, captions=domain.captions, names=domain.names, sees=tower(model),
            steps=steps, seed=seed, keep=keep, about=domain.digest, on_progress=_shown if on_progress else None,
        )  # fmt: skip


def _shown(run: Run) -> None:
    run.say(f"learning (loss {float(run.loss):.3g})")
