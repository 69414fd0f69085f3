"""How an encoder is taught a domain, and tuned to a thing (Gal et al. 2023, arXiv 2302.12228)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.conditions import Cond
from sfumato.core.schedule import Level
from sfumato.core.settings import Between, Count, LesserPart, Settings, Time, Weight
from sfumato.errors import SfumatoError
from sfumato.learning import encoders
from sfumato.learning.encoders import Encoder, Pretrained, Rows, Sees, Straight
from sfumato.learning.lessons import Lesson
from sfumato.learning.loop import Run, learn
from sfumato.learning.seeds import generator
from sfumato.learning.teaching import Part, Taught, Teaching, filled

WORD = "<encoded>"
"""By which captions name what an encoder gives."""
BEGIN = -21
"""What a generator is for."""
RIDGES = tuple(10 ** (i / 2) for i in range(-6, 3))
"""Of which one holds names' weights small, in parts of the features' mean square length: pictures are fewer than
features."""


@dataclass(eq=False)
class Encoding(Teaching):
    """The words that an encoder gives are to make the network see the pictures."""

    encoder: Encoder = field(default_factory=lambda: Encoder(1, {}))
    features: Float[Tensor, "n c"] = field(default_factory=lambda: torch.zeros(0, 1))
    """Of each picture."""
    first: Rows = field(default_factory=dict)
    scale: float = 0.1
    penalty: float = 0.01
    """What the squared length of an offset counts: of what the encoder gives, not of the word."""
    together: bool = False
    """Do all pictures show one thing, whose word is the mean of theirs?"""
    each: Sequence[str] = ()
    """A caption of each picture; none: any for any."""
    since: float = 0.0
    """Levels below this part of all times are not seen."""
    weights_of: Mapping[str, nn.Module] = field(default_factory=dict)
    """What else learns."""
    word: str = WORD
    name: str = "the encoder"

    def __post_init__(self) -> None:
        self.modules = {"encoder": self.encoder, **self.weights_of}
        self.model = self.model.with_words({self.word: self.first})
        self.given: Rows = {}

    def levels(self, part: int, step: int) -> Level:
        at = super().levels(part, step)
        if not self.since:
            return at
        later = self.since * self.model.schedule.train_steps + (1 - self.since) * at.t
        return self.model.schedule.at(later if self.model.schedule.prediction == "flow" else later.long())

    def teach(self, part: int, step: int) -> Taught:
        taught = super().teach(part, step)
        if not self.each:
            return taught
        return taught._replace(captions=tuple(self.each[i] for i in taught.drawn.which))

    def offsets(self, which: Sequence[int]) -> Rows:
        """What the encoder gives for some pictures."""
        if self.together:
            return {key: own.mean(0) for key, own in self.encoder(self.features).items()}
        return self.encoder(self.features[list(which)])

    def rows(self, offsets: Rows) -> dict[str, Float[Tensor, "*n k d"]]:
        """The word with these offsets."""
        return {key: self.first[key] + self.scale * own for key, own in offsets.items()}

    def cond(self, taught: Sequence[Taught]) -> Cond:
        self.given = self.offsets([i for each in taught for i in each.drawn.which])
        captions = [caption for each in taught for caption in each.captions]
        return self.model.read(captions, {self.word: self.rows(self.given)})

    def beside(self, taught: Sequence[Taught], predicted: Tensor) -> Tensor | float:
        squares = [own.square().sum((-2, -1)).mean() for own in self.given.values()]
        return self.penalty * torch.stack(squares).sum()


@dataclass(frozen=True)
class Pretraining(Settings):
    """How an encoder is taught a domain; by default as published, for Stable Diffusion."""

    steps: Count = 100_000
    rate: Weight = 1.6e-5
    """Of AdamW."""
    offset_rate: Weight | None = None
    """Of the offsets of weights; none: the same."""
    batch: Annotated[int, Between(1, 4096)] = 16
    """Pictures of a step."""
    penalty: Weight = 0.01
    """What the squared length of an offset counts."""
    scale: float = 0.1
    """What an offset counts in the word."""
    vectors: Annotated[int, Between(1, 70)] = 1
    """How many a word is read as."""
    hidden: Annotated[int, Between(1, 65536)] = 128
    """Width of the encoder."""
    t: Time = 261
    """At which level of noise the network sees a picture, in thousandths."""
    since: LesserPart = 0.0
    """Levels below this part of all times are not learned from."""
    decay: Weight = 0.01
    """Weight decay."""
    templates: tuple[str, ...] = ("a photo of a {}",)
    """Captions of pictures that have none of their own, with {} for the word."""


def pretrain(
    model: Any,
    lesson: Lesson,
    kind: str,
    settings: Pretraining | None = None,
    *,
    captions: Sequence[str] = (),
    names: Sequence[str] = (),
    sees: Sees | None = None,
    steps: int | None = None,
    seed: int = 0,
    keep: Path | None = None,
    about: str = "",
    on_progress: Callable[[Run], None] | None = None,
) -> Pretrained:
    """Teach an encoder the pictures of a domain, whose own word is ``kind``; the model stays as it is.

    ``captions``: one of each picture, with {} for its thing; ``names``: what that is, in words that the model knows,
    such as "red cube", whose vectors the encoder first learns to give (``learn_names``). ``sees``: a CLIP, of whose
    features it is to see too. From ``keep``, a checkpoint, the same call goes on, bit for bit; ``about``: what the
    pictures are. Raises ``SfumatoError`` for a model that learns no words, for captions and names that do not pair, and
    for what is not finite.
    """
    settings = settings or Pretraining()
    encoders.check(model, "an encoder")
    count = settings.steps if steps is None else steps
    if count < 1:
        raise SfumatoError(f"a run has one step or more, got {count}")
    for what, some in (("caption", captions), ("name", names)):
        if some and len(some) != len(lesson):
            raise SfumatoError(f"{len(lesson)} pictures have a {what} each, got {len(some)}")
    layers = encoders.seen_layers(model)
    features = encoders.described(model, lesson, layers, settings.t, sees)
    clip = 0 if sees is None or lesson.pictures is None else sees(lesson.pictures[:1].to(model.device)).shape[1]
    begin = encoders.first(model, kind, settings.vectors)
    widths = {key: rows.shape[-1] for key, rows in begin.items()}
    encoder = Encoder(features.shape[1], widths, settings.vectors, settings.hidden)
    encoder = encoder.begin(features.cpu(), generator(seed, BEGIN)).to(model.device)
    if names:
        wanted = {each: encoders.first(model, each, settings.vectors) for each in dict.fromkeys(names)}
        learn_names(encoder, features, begin, [wanted[each] for each in names], settings.scale)
    own, weights = encoders.offset(model, encoders.none(model))
    problem = Encoding(
        own, [Part(lesson, filled(settings.templates, WORD), settings.batch)], seed, encoder=encoder, features=features,
        first=begin, scale=settings.scale, penalty=settings.penalty, each=filled(captions, WORD) if captions else (),
        since=settings.since, weights_of={"offsets": weights},
    )  # fmt: skip
    if settings.offset_rate is not None:
        problem.rates = {"offsets": settings.offset_rate}
    given = f"clip {clip}, {len(names)} names, {about}"
    run = f"{settings} of {kind}, {count} steps, seed {seed}, model {model.name}, {given}"
    optimiser = torch.optim.AdamW(problem.groups(), lr=settings.rate, weight_decay=settings.decay, fused=True)
    learn(problem, optimiser, steps=count, keep=keep, about=run, seconds=60.0, on_progress=on_progress)
    made = {"settings": repr(settings), "steps": count, "seed": seed, "model": model.name, "pictures": len(lesson)}
    offsets = {name: value.detach().clone() for name, value in weights.named.items()}
    found = deepcopy(encoder).eval().requires_grad_(False)
    return Pretrained(found, offsets, kind, layers, settings.t, settings.scale, clip, made, sees)


@torch.no_grad()
def learn_names(
    encoder: Encoder, features: Float[Tensor, "n c"], begin: Rows, wanted: Sequence[Rows], scale: float
) -> None:
    """Have an encoder give pictures these vectors, of words: ridge regression on its features, without the network.

    Of ``RIDGES`` the one by which each picture's vectors are found best from all others (leave one out, in closed form:
    Hastie et al. 2009, eq. 7.64). What an encoder learns afterwards is added.
    """
    seen = encoder.seen(features).double()
    u, s, v = torch.linalg.svd(seen, full_matrices=False)
    square, n = s.square(), len(seen)
    mean = (square.sum() / n).clamp_min(1e-12)
    rows = {key: torch.stack([each[key].detach() - first for each in wanted]).flatten(1).double() / scale
            for key, first in begin.items()}  # fmt: skip

    def kept(ridge: float) -> Float[Tensor, " r"]:
        """What is kept of each direction."""
        return square / (square + ridge * mean)

    def missed(ridge: float) -> float:
        """Mean square of what is found of each picture without it, less what is wanted, over that of the latter."""
        share = 1 - 1 / n - u.square() @ kept(ridge)
        far = []
        for own in rows.values():
            apart = own - own.mean(0)
            left = (apart - u @ (kept(ridge)[:, None] * (u.T @ apart))) / share[:, None].clamp_min(1e-6)
            far.append(left.square().mean() / apart.square().mean().clamp_min(1e-12))
        return float(torch.stack(far).sum())

    ridge = min(RIDGES, key=missed)
    back = v.T * (s / (square + ridge * mean)) @ u.T
    for key, own in rows.items():
        weight = (back @ (own - own.mean(0))).T
        encoder.straight[key] = Straight(weight.contiguous().to(features), own.mean(0).to(features))
