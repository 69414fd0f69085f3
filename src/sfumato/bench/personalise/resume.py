"""Is a run of k steps and k more one of 2k, bit for bit?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sfumato.bench.personalise.session import NAME, PersonalSession
from sfumato.bench.report import Comparison, Figure, Target
from sfumato.io.progress import progress
from sfumato.learning.concepts import Concept
from sfumato.learning.encoding import Pretraining, pretrain
from sfumato.learning.lessons import Lesson
from sfumato.learning.loop import Run
from sfumato.learning.personal import Asked, Personalisation, teach
from sfumato.methods import index
from sfumato.tasks import recipes

STEPS = 2
"""In each half."""

MEANINGS = {"resume": "part of all methods of which 2 steps and 2 more are 4 in one piece, bit for bit"}
TARGETS = {"resume": Target(1.0)}


def resumed(session: PersonalSession) -> Mapping[str, Figure]:
    """Every method on two pictures of the first thing, stopped in the middle as by Ctrl-C."""
    subject, words = session.subjects[0], index.words(index.LEARNING)
    lesson = Lesson.of(session.model, subject.pictures[:2], subject.masks[:2].float(), mirrored=False)
    prior = Lesson.of(session.model, subject.held[:2], mirrored=False)
    cameras = torch.tensor([[0.0, 15.0], [90.0, 25.0]])
    encoder = pretrain(session.model, prior, "cube", Pretraining(batch=1, hidden=8), steps=1)
    captions = (("a cube {} a duck",),) * len(lesson)
    asked = Asked(
        session.model, lesson, NAME, "cube", prior, session.seed, cameras=cameras, encoder=encoder, captions=captions
    )
    found = {}
    with progress("bench: runs that go on", len(words)) as advance, TemporaryDirectory() as place:
        for word in words:
            method: Any = recipes.learning(word, "stilllife")[0]
            found[word] = goes_on(replace(method, batch=min(method.batch, 2)), asked, Path(place) / word)
            advance()
    session.compared["resume"] = Comparison(("resume",), {w: {"run": {"resume": float(v)}} for w, v in found.items()})
    return {"resume": sum(found.values()) / len(found)}


def goes_on(method: Personalisation, asked: Asked, keep: Path) -> bool:
    """Of a method: is what it learned when it went on from the file ``keep`` the same, and more than half of it?"""

    def stop(run: Run) -> None:
        if run.step == STEPS:
            raise KeyboardInterrupt

    whole = teach(method, asked, steps=2 * STEPS)
    with suppress(KeyboardInterrupt):
        teach(method, asked, steps=2 * STEPS, keep=keep, on_progress=stop)
    again = teach(method, asked, steps=2 * STEPS, keep=keep)
    return _same(whole, again) and not _same(whole, teach(method, asked, steps=STEPS))


def _same(a: Concept, b: Concept) -> bool:
    one, other = ({**c.rows, **c.changes, **c.mapper} for c in (a, b))
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


MEASURES: tuple[tuple[tuple[str, ...], Callable[[PersonalSession], Mapping[str, Figure]]], ...] = (
    (tuple(MEANINGS), resumed),
)
