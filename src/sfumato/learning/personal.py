"""A way to teach a frozen model something of a few pictures: settings, a run, and the concept that comes of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.method import Requires
from sfumato.core.settings import Settings
from sfumato.errors import SfumatoError
from sfumato.learning.concepts import Concept, checked
from sfumato.learning.encoders import Pretrained
from sfumato.learning.lessons import Lesson
from sfumato.learning.loop import Run, learn
from sfumato.learning.teaching import Teaching


@dataclass(frozen=True, eq=False)
class Asked:
    """What is to be learned, from what."""

    model: Any
    lesson: Lesson
    word: str
    """By which prompts will name it, such as ``<duck>``."""
    kind: str = "object"
    """What sort of thing it is, in words that the model knows."""
    prior: Lesson | None = None
    """Pictures of the kind at large, for methods that keep what the model knew of it."""
    seed: int = 0
    cameras: Float[Tensor, "n m"] | None = None
    """From where each picture was seen: azimuth and elevation in degrees, or other numbers of a camera."""
    encoder: Pretrained | None = None
    """One that was taught the domain that the thing is of, for methods that begin with what it gives."""
    about: str = ""
    """What the pictures are, such as a digest of them: a run goes on with these alone."""
    captions: tuple[tuple[str, ...], ...] = ()
    """What is said of each picture, in one way or several, with {} or the word for what is learned."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Further words of things in the pictures, and what sort each is, for methods that learn several at once."""

    @property
    def captioned(self) -> tuple[tuple[str, ...], ...]:
        """Captions with the word in its place."""
        return tuple(tuple(caption.replace("{}", self.word) for caption in each) for each in self.captions)

    @property
    def kinds(self) -> dict[str, str]:
        """Of all words that are learned, in the order of the lesson's things."""
        return {self.word: self.kind, **self.others}


class Personalisation(Settings):
    """A frozen dataclass of settings with published defaults."""

    requires: ClassVar[Requires] = Requires()
    wants_prior: ClassVar[bool] = False
    """Does it learn from pictures of the kind as well?"""
    wants_masks: ClassVar[bool] = False
    tells_apart: ClassVar[bool] = False
    """Does it learn several things at once, a word each?"""
    wants_cameras: ClassVar[bool] = False
    """Does it learn from where pictures were seen?"""
    wants_captions: ClassVar[bool] = False
    """Does it learn from what is said of each picture?"""
    usual_kind: ClassVar[str] = "object"
    """What it begins with, where nobody says what is learned."""
    mirrors: ClassVar[bool] = True
    """Does it see pictures mirrored as well, where neither cameras nor captions say what is left?"""
    wants_encoder: ClassVar[bool] = False
    """Does it begin with the word that an encoder gives?"""
    teaches_words: ClassVar[bool] = True
    """Does it learn vectors of a word? Others leave that to the kind's words and a name before them."""
    steps: int
    rate: float
    """Of AdamW."""
    decay: float = 0.01
    """Its weight decay."""
    warmup: int = 0
    """Steps in which the rate rises from zero; then it stays."""
    clip: float | None = None
    """The greatest norm of all gradients."""

    def problem(self, asked: Asked) -> Teaching:
        """What is learned, and from what."""
        raise NotImplementedError

    def concept(self, asked: Asked, problem: Any) -> Concept:
        """What was learned, of a problem that ``problem`` made; without what it came from."""
        raise NotImplementedError

    def at_large(self, kind: str) -> str:
        """What pictures beside the thing's are of, where it learns from such."""
        return kind

    def optimiser(self, groups: list[Any]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=self.rate, weight_decay=self.decay, fused=True)

    def rate_at(self, rate: float, step: int, used: float) -> float:
        """What a group's rate is at a step; ``used``: part of the run."""
        return rate * min(1.0, step / self.warmup) if self.warmup else rate

    def check(self, asked: Asked) -> None:
        """Raise ``SfumatoError`` for what it cannot learn from."""
        name = type(self).__name__
        if self.teaches_words and not getattr(asked.model, "learns", False):
            raise SfumatoError(
                f"{name} teaches a word, which Stable Diffusion 1, 2, XL and the built-in model learn; "
                f"{asked.model.name} does not"
            )
        self.requires.check_model(asked.model, name)
        for word in asked.kinds:
            checked(word)
        if asked.others and not self.tells_apart:
            raise SfumatoError(
                f"{name} learns one word, and there are {len(asked.kinds)}: {', '.join(asked.kinds)}; "
                "take break-a-scene"
            )
        if self.wants_masks and asked.lesson.masks is None:
            raise SfumatoError(f"{name} learns from pictures with masks; mark the thing in each (--masks)")
        if self.wants_cameras:
            _check_cameras(asked, name)
        if self.wants_captions:
            _check_captions(asked, name)
        if self.wants_encoder and asked.encoder is None:
            raise SfumatoError(f"{name} begins with what an encoder gives; sfumato train-encoder makes one (encoder)")
        if self.wants_prior and asked.prior is None:
            raise SfumatoError(f"{name} learns from pictures of {asked.kind!r} at large as well; give a prior")


def _check_cameras(asked: Asked, name: str) -> None:
    if asked.cameras is None:
        raise SfumatoError(f"{name} learns from where each picture was seen; give its azimuth and elevation (cameras)")
    if asked.cameras.ndim != 2 or len(asked.cameras) != len(asked.lesson) or not asked.cameras.shape[1]:
        raise SfumatoError(f"{len(asked.lesson)} pictures have a camera each, got {tuple(asked.cameras.shape)}")
    if not asked.cameras.isfinite().all():
        raise SfumatoError("a camera is not finite; give numbers, such as azimuth and elevation in degrees")
    if asked.lesson.latents.shape[1] > 1:
        raise SfumatoError(f"{name} learns views, and a mirrored picture is seen from elsewhere; leave mirroring out")


def _check_captions(asked: Asked, name: str) -> None:
    if not asked.captions:
        raise SfumatoError(
            f"{name} learns from what is said of each picture; give captions, as 'a cat {{}} a table', with {{}} for "
            f"{asked.word}"
        )
    if len(asked.captions) != len(asked.lesson) or not all(asked.captions):
        raise SfumatoError(f"{len(asked.lesson)} pictures have captions each, got those of {len(asked.captions)}")
    for caption in (caption for each in asked.captions for caption in each):
        if "{}" not in caption and asked.word not in caption:
            raise SfumatoError(f"a caption has {{}} or {asked.word} for what is learned, got {caption!r}")
    if asked.lesson.latents.shape[1] > 1:
        raise SfumatoError(
            f"{name} learns what captions say, and of a mirrored picture they may be false; leave mirroring out"
        )


def teach(
    method: Personalisation,
    asked: Asked,
    *,
    steps: int | None = None,
    keep: Path | None = None,
    every: int | None = None,
    seconds: float | None = 60.0,
    on_progress: Callable[[Run], None] | None = None,
) -> Concept:
    """Run it for its ``steps``, or so many; from ``keep``, a checkpoint, the same call goes on, bit for bit.

    Raises ``SfumatoError`` for a model that it does not teach, for what is not finite, and for a checkpoint of other
    settings, pictures or another model.
    """
    method.check(asked)
    count = method.steps if steps is None else steps
    if count < 1:
        raise SfumatoError(f"a run has one step or more, got {count}")
    problem = method.problem(asked)
    settings = re.sub(r" at 0x[0-9a-f]+", "", repr(method))
    words = ", ".join(f"{word} ({kind})" for word, kind in asked.kinds.items())
    about = f"{settings} of {words}, {count} steps, seed {asked.seed}, model {asked.model.name}"
    learn(
        problem, method.optimiser(problem.groups()), steps=count, keep=keep, about=f"{about}, {asked.about}",
        rate=method.rate_at, every=every, seconds=seconds, clip=method.clip, on_progress=on_progress,
    )  # fmt: skip
    found = method.concept(asked, problem)
    made: dict[str, Any] = {"method": settings, "steps": count, "seed": asked.seed, "model": asked.model.name}
    made["kind"] = asked.kind
    if asked.others:
        made["kinds"] = asked.kinds
    return replace(found, about={**made, **found.about})
