"""Custom Diffusion (Kumari et al. 2022, arXiv 2212.04488): how the network reads the text learns, and a new word.

Of the network the keys and values of cross-attention alone learn, as they are where it takes up what is asked for, and
the vector of a rare token that stands before the word of the kind (section 3.2). Pictures are shown smaller on grey
("far away") and larger ("close up") at random, with these words, and the error counts where the picture is; beside each
the model sees one of the kind. Several concepts are merged in closed form (``learning.merging``).

Defaults: diffusers' example as its README runs it on one device, 500 steps of two pictures at a rate of 1e-5, times the
batch, times two for the pictures of the kind, of which there are 200. Different from both: the mean is over channels as
well as cells inside of the mask, of which theirs forgets the four, so that pictures count four times what the kind does
(``prior_weight=0.25`` has that); only the new vector learns and decays; of each picture so many sizes and places are
drawn and encoded before the run, not one a step; pictures of the kind are the model's own.

Needs: a forward and a backward pass for a picture of each in one batch, and a backward pass through the text encoder.

Families: Stable Diffusion 1, 2, XL.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.settings import Count, Weight, Whole
from sfumato.errors import SfumatoError
from sfumato.learning import tuning
from sfumato.learning.concepts import Concept
from sfumato.learning.lessons import Lesson
from sfumato.learning.personal import Asked
from sfumato.learning.seeds import generator
from sfumato.learning.teaching import Taught
from sfumato.learning.tuning import Retuning, Tuning

READS = ("attn2.to_k.weight", "attn2.to_v.weight")
"""What of the network learns."""
SMALLER, FAR = 0.66, 0.6
"""How often a picture is shown smaller, and below which part of its size that is said."""
WORDS = {"far": ("a far away ", "very small "), "": ("",), "near": ("zoomed in ", "close up ")}


@dataclass(frozen=True)
class CustomDiffusion(Retuning):
    """Learns the keys and values of cross-attention and a word."""

    steps: Count = 500
    rate: Weight = 4e-5
    batch: Count = 2
    class_pictures: Whole = 200
    identifier: str = "ktn"
    """A rare word, with whose vector the new one begins."""
    templates: tuple[str, ...] = ("photo of a {}",)
    sizes: Whole = 40
    """In how many sizes and places each picture is shown; 0: as it is."""

    def check(self, asked: Asked) -> None:
        super().check(asked)
        if self.sizes and asked.lesson.pictures is None:
            raise SfumatoError("CustomDiffusion shows pictures in sizes of its own, and there are latents alone")

    def problem(self, asked: Asked) -> Sized:
        model, vectors = tuning.named(asked, self.identifier)
        behind = model.vectors(asked.kind)
        rows = {key: nn.Parameter(all_of[: -len(behind[key])].clone()) for key, all_of in vectors.items()}
        own, moved = tuning.copies(model, ["unet"], lambda name: name.endswith(READS))
        prefixes: list[list[str]] = []
        if self.sizes:
            lesson, prefixes = sized(asked, self.sizes)
            asked = replace(asked, lesson=lesson)
        parts = tuning.lessons(asked, self.templates, self.batch, self.prior_weight)
        return Sized(
            own, parts, asked.seed, moved=moved, word=asked.word, rows=rows, behind=behind,
            snr_gamma=self.snr_gamma, prefixes=prefixes,
        )  # fmt: skip

    def concept(self, asked: Asked, problem: Any) -> Concept:
        changes = tuning.differences(asked.model, problem.moved)
        return Concept(asked.word, problem.vectors(), changes, {"kind": asked.kind, "identifier": self.identifier})


@dataclass(eq=False)
class Sized(Tuning):
    """Captions begin with how large the picture is shown."""

    prefixes: list[list[str]] = field(default_factory=list)
    """Of each picture and each way that it is shown in."""

    def teach(self, part: int, step: int) -> Taught:
        taught = super().teach(part, step)
        if part or not self.prefixes:
            return taught
        shown = zip(taught.drawn.which, taught.drawn.ways, taught.captions, strict=True)
        return taught._replace(captions=tuple(self.prefixes[i][way] + caption for i, way, caption in shown))


def sized(asked: Asked, sizes: int) -> tuple[Lesson, list[list[str]]]:
    """A lesson of its pictures in so many sizes each, and the words for each."""
    assert asked.lesson.pictures is not None
    latents, masks, prefixes = [], [], []
    for i, image in enumerate(asked.lesson.pictures):
        ways = [shown(image, generator(asked.seed, i, way), asked.model.factor) for way in range(sizes)]
        found = Lesson.of(asked.model, torch.stack([way[0] for way in ways]), mirrored=False)
        latents.append(found.latents[:, 0])
        masks.append(torch.stack([way[1] for way in ways]).to(found.latents))
        prefixes.append([way[2] for way in ways])
    return Lesson(torch.stack(latents), torch.stack(masks)), prefixes


def shown(
    image: Float[Tensor, "3 H W"], rng: torch.Generator, factor: int
) -> tuple[Float[Tensor, "3 H W"], Float[Tensor, "h w"], str]:
    """A picture mirrored or not, smaller on grey or larger than it is; in which cells it is; and the words for it.

    A cell at its border sees grey, and is left out unless no other is there.
    """

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=rng))

    height, width = image.shape[-2:]
    image = image.flip(-1) if draw(0, 1) < 0.5 else image
    scale = draw(1 / 3, 1) if draw(0, 1) < SMALLER else draw(1.2, 1.4)
    sides = round(scale * height), round(scale * width)
    image = F.interpolate(image[None], sides, mode="bilinear", antialias=True)[0].clamp(0, 1)
    choice = WORDS["far" if scale < FAR else "near" if scale > 1 else ""]
    prefix = choice[int(torch.randint(len(choice), (), generator=rng))]
    top, left = (round(draw(0, abs(side - whole))) for side, whole in zip(sides, (height, width), strict=True))
    mask = torch.zeros(height // factor, width // factor)
    if scale > 1:
        return image[:, top : top + height, left : left + width], mask + 1, prefix
    out = torch.full((3, height, width), 0.5).to(image)
    out[:, top : top + sides[0], left : left + sides[1]] = image
    mask[_inside(top, sides[0], factor), _inside(left, sides[1], factor)] = 1
    return out, mask, prefix


def _inside(first: int, length: int, factor: int) -> slice:
    """Cells that lie inside of a stretch of pixels, without those at its ends where there are others."""
    low, high = -(-first // factor), (first + length) // factor
    if high - low > 2:
        return slice(low + 1, high - 1)
    return slice(low, high) if high > low else slice(first // factor, first // factor + 1)
