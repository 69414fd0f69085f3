"""A new thing in a few steps from what an encoder gives: its time and likeness beside textual inversion's.

The encoder is taught things of the kinds that the model was trained on, once, and kept beside the bench's other units:
a run that was stopped goes on. None of them is of a kind that is learned here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sfumato.bench.personalise import subject
from sfumato.bench.personalise.session import NAME, PersonalSession, Subject
from sfumato.bench.report import Figure, Target
from sfumato.bench.units import Row
from sfumato.learning.concepts import Concept
from sfumato.learning.lessons import Lesson

METHOD, BESIDE = "encoder-tuning", "textual-inversion"

MEANINGS = {
    "encoder_seconds": "seconds of a core in which encoder-tuning learns a new thing, pictures and encoder included",
    "encoder_time": "these over those of textual inversion",
    "encoder_subject": "likeness of what is painted to the thing, over that by textual inversion",
    "encoder_subject_alone": "the same by the word that the encoder gives, without a step",
    "encoder_pretraining_seconds": "seconds of a core in which the encoder was taught, once, rendering included",
}
TARGETS = {
    "encoder_time": Target(0.05, at_least=False),
    "encoder_subject": Target(0.9),
}


def compared(session: PersonalSession) -> Mapping[str, Figure]:
    """The same things, the same pictures."""
    subjects = list(enumerate(session.subjects))
    tuned, beside = ([subject.learned(session, word, i) for i, _ in subjects] for word in (METHOD, BESIDE))
    alone = [session.units.get(f"encoder alone {i} {session.seed}", lambda s=s: _alone(session, s))[0]
             for i, s in subjects]  # fmt: skip

    def of(rows: Sequence[Row], key: str) -> np.ndarray:
        return np.array([row[key] for row in rows], float)

    likeness, seconds = of(beside, "subject").mean(), of(tuned, "core_seconds")
    return {
        "encoder_seconds": seconds,
        "encoder_time": float(seconds.mean() / of(beside, "core_seconds").mean()),
        "encoder_subject": float(of(tuned, "subject").mean() / likeness),
        "encoder_subject_alone": float(of(alone, "subject").mean() / likeness),
        "encoder_pretraining_seconds": session.encoder_seconds,
    }


def _alone(session: PersonalSession, of: Subject) -> tuple[Row, Float[Tensor, "3 h w"]]:
    encoder, model = session.encoder, session.model
    word = encoder.word(model, Lesson.of(model, of.pictures, mirrored=False))
    knows = Concept(NAME, word, encoder.offsets).on(model)
    return subject.painted(session, knows, of, NAME)


MEASURES: tuple[tuple[tuple[str, ...], Callable[[PersonalSession], Mapping[str, Figure]]], ...] = (
    (tuple(MEANINGS), compared),
)
