"""What a step costs, over a step of diffusers' example scripts on the same weights and batch, interleaved.

What is ours is ``learning.loop`` as ``sfumato learn`` runs it, theirs is in ``bench.ports.diffusers_scripts``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import numpy as np

from sfumato.bench.personalise.session import NAME, PersonalSession
from sfumato.bench.ports.diffusers_scripts import DreamBoothScript, LoRAScript, Script, TextualInversionScript
from sfumato.bench.report import Figure, Target
from sfumato.learning.lessons import Lesson
from sfumato.learning.loop import learn
from sfumato.learning.personal import Asked, Personalisation
from sfumato.methods.personalise.dream_booth import DreamBooth
from sfumato.methods.personalise.lora import LoRA
from sfumato.methods.personalise.textual_inversion import TextualInversion

STEPS, PAIRS = 3, 5
KIND = "cube"

MEANINGS = {
    "step_cost": "time of a step of textual inversion over that of diffusers' example, 4 pictures",
    "dreambooth_step_cost": "of DreamBooth over its example, a picture and one of the kind",
    "lora_step_cost": "of LoRA over its example, a picture",
    "network_share": "part of the example's step of textual inversion that the network forward and backward takes",
}
TARGETS = {
    "step_cost": Target(0.5, at_least=False),
    "dreambooth_step_cost": Target(0.8, at_least=False),
    "lora_step_cost": Target(0.8, at_least=False),
}


def inversion(session: PersonalSession) -> Mapping[str, Figure]:
    """Three steps each; and of the example's what nobody can leave out, the network's two passes alone."""
    model, method = session.model, TextualInversion(templates=("a {}",))
    other = _copied(model, "text_encoder")
    other.pipe.text_encoder.get_input_embeddings().weight.requires_grad_(True)
    row = other.pipe.tokenizer(KIND).input_ids[1]
    script = TextualInversionScript(other, session.subjects[0].pictures, f"a {KIND}", row, method.rate)
    ours, theirs = _ours(session, method), _theirs(script, method.batch)
    problem = _problem(session, method)
    taught = problem.teach(0, 0)
    text = problem.cond([taught]).text.detach().requires_grad_(True)

    def network() -> None:
        x, t = taught.drawn.x0, taught.at.t.float()
        for _ in range(STEPS):
            model.network(x, t, encoder_hidden_states=text, return_dict=False)[0].square().mean().backward(
                inputs=[text]
            )

    cost, share = _ratios(session, theirs, ours, network)
    return {"step_cost": cost, "network_share": share}


def dream_booth(session: PersonalSession) -> Mapping[str, Figure]:
    """With pictures of the kind, as its README runs it."""
    method, subject = DreamBooth(), session.subjects[0]
    parts = [(subject.pictures, f"a {method.rare} {KIND}"), (subject.held, f"a {KIND}")]
    other = _copied(session.model, "unet")
    other.network.requires_grad_(True)
    script = DreamBoothScript(other, parts, method.rate)
    (cost,) = _ratios(session, _theirs(script, method.batch), _ours(session, method))
    return {"dreambooth_step_cost": cost}


def lora(session: PersonalSession) -> Mapping[str, Figure]:
    """Without pictures of the kind, as its README runs it."""
    method = LoRA()
    other = _copied(session.model, "unet")
    script = LoRAScript(other, session.subjects[0].pictures, f"a {method.rare} {KIND}", method.rate)
    (cost,) = _ratios(session, _theirs(script, method.batch), _ours(session, method))
    return {"lora_step_cost": cost}


def _copied(model: Any, part: str) -> Any:
    """A model of which one network is its own, frozen; what a script makes of it is its affair."""
    return model.with_parts({part: deepcopy(getattr(model.pipe, part)).requires_grad_(False)})


def _problem(session: PersonalSession, method: Personalisation) -> Any:
    subject = session.subjects[0]
    prior = Lesson.of(session.model, subject.held, mirrored=False)
    return method.problem(Asked(session.model, Lesson.of(session.model, subject.pictures), NAME, KIND, prior))


def _ours(session: PersonalSession, method: Personalisation) -> Callable[[], object]:
    problem = _problem(session, method)
    optimiser = method.optimiser(problem.groups())
    return lambda: learn(problem, optimiser, steps=STEPS, clip=method.clip)


def _theirs(script: Script, batch: int) -> Callable[[], object]:
    def steps() -> None:
        for _ in range(STEPS):
            script.step(batch)

    return steps


def _ratios(session: PersonalSession, base: Callable[[], object], *others: Callable[[], object]) -> list[float]:
    """Medians over interleaved runs of the time of others over that of ``base``, after one of each to warm up.

    On a CPU seconds of it, which other programs do not take part in.
    """

    def seconds(work: Callable[[], object]) -> float:
        if session.device.type != "cpu":
            return session.seconds(work)
        began = time.process_time()
        work()
        return time.process_time() - began

    works = (base, *others)
    for work in works:
        work()
    took = np.median([[seconds(work) for work in works] for _ in range(PAIRS)], 0)
    return (took[1:] / took[0]).tolist()


MEASURES: tuple[tuple[tuple[str, ...], Callable[[PersonalSession], Mapping[str, Figure]]], ...] = (
    (("step_cost", "network_share"), inversion),
    (("dreambooth_step_cost",), dream_booth),
    (("lora_step_cost",), lora),
)
