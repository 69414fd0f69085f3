"""Where edits start: inversions by their words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sfumato.inversion import Inversion

How = Literal["direct", "null-text", "negative-prompt", "ddim", "edit-friendly", "edict", "rf", "residual"]

HOMES: dict[How, str] = {
    "direct": "inversion.ddim:Direct",
    "null-text": "inversion.null_text:NullText",
    "negative-prompt": "inversion.ddim:NegativePrompt",
    "ddim": "inversion.ddim:DDIMInversion",
    "edit-friendly": "inversion.noise_space:EditFriendly",
    "edict": "inversion.edict:EDICT",
    "rf": "inversion.flows:RFInversion",
    "residual": "inversion.flows:Residual",
}
"""Module and name of each, for who reads of it and does not run it."""


def inversion_of(how: How, steps: int | None = None, guidance: float = 7.5, seed: int = 0) -> Inversion:
    """An inversion by its word, of so many steps (50 if not said), that finds the image at this guidance.

    ``rf`` and ``residual`` serve flows only, and refuse other models when they are run.
    """
    from sfumato import inversion

    steps = 50 if steps is None else steps
    match how:
        case "direct":
            return inversion.Direct(steps=steps)
        case "null-text":
            return inversion.NullText(guidance, steps=steps)
        case "negative-prompt":
            return inversion.NegativePrompt(steps)
        case "ddim":
            return inversion.DDIMInversion(steps=steps)
        case "edit-friendly":
            return inversion.EditFriendly(steps=steps, seed=seed)
        case "edict":
            return inversion.EDICT(scale=guidance, steps=steps)
        case "rf":
            return inversion.RFInversion(seed=seed, steps=steps)
        case "residual":
            return inversion.Residual(steps=steps)


def start_of(
    how: How | None, steps: int | None = None, guidance: float | None = None, seed: int = 0, appearance: bool = False
) -> Inversion:
    """Where methods without a start of their own begin: ``how``, or else what suits them.

    Direct inversion for edits; where an ``appearance`` is taken, the published one, which is gone without guidance.
    """
    if not appearance:
        return inversion_of(how or "direct", steps, 7.5 if guidance is None else guidance, seed)
    if how is not None:
        return inversion_of(how, steps, 1.0, seed)
    from sfumato.methods.edit.appearance import START

    return replace(START, steps=START.steps if steps is None else steps, seed=seed)
