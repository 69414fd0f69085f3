"""What a step costs, over a step of diffusers' example script on the same weights and batch, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from typing import Any

import torch

from sfumato.bench.personalise.session import NAME, PersonalSession
from sfumato.bench.ports.diffusers_scripts import TextualInversionScript
from sfumato.bench.report import Figure, Target
from sfumato.learning.lessons import Lesson
from sfumato.learning.loop import learn
from sfumato.learning.personal import Asked
from sfumato.methods.personalise.textual_inversion import TextualInversion

STEPS = 3

MEANINGS = {"step_cost": "time of a step of textual inversion over that of diffusers' example, batch 4"}
TARGETS = {"step_cost": Target(0.5, at_least=False)}


def inversion(session: PersonalSession) -> Mapping[str, Figure]:
    """Three steps each."""
    model, subject = session.model, session.subjects[0]
    method = TextualInversion(templates=("a {}",))
    asked = Asked(model, Lesson.of(model, subject.pictures), NAME, "cube")

    problem = method.problem(asked)
    optimiser = method.optimiser(problem.groups())

    def ours() -> None:
        learn(problem, optimiser, steps=STEPS)

    other: Any = copy(model)
    other.pipe = copy(other.pipe)
    other.pipe.text_encoder = deepcopy(other.pipe.text_encoder).requires_grad_(False)
    other.pipe.text_encoder.get_input_embeddings().weight.requires_grad_(True)
    row = other.pipe.tokenizer("cube").input_ids[1]
    script = TextualInversionScript(other, subject.pictures, "a cube", row, method.rate)

    def theirs() -> None:
        with torch.enable_grad():
            for _ in range(STEPS):
                script.step(method.batch)

    return {"step_cost": session.ratio(ours, theirs)}


MEASURES: tuple[tuple[tuple[str, ...], Callable[[PersonalSession], Mapping[str, Figure]]], ...] = (
    (tuple(MEANINGS), inversion),
)
