"""The editing methods as options of commands, and what they become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from sfumato.guidance import Guide
    from sfumato.inversion import Inversion

How = Literal["direct", "null-text", "negative-prompt", "ddim", "edit-friendly", "edict", "rf", "residual"]


@dataclass(frozen=True)
class PromptToPromptOptions:
    """Prompt-to-Prompt (Hertz et al. 2023): keep the layout, change the words."""

    cross: float = 0.8
    """Part of the steps in which cross-attention is the source's."""
    self: float = 0.4
    """Part of the steps in which self-attention is the source's."""
    blend: tuple[str, str] | None = None
    """A word of the source and one of the target: only where they are may the picture change."""
    threshold: float = 0.3
    """How strong their attention must be there, of its maximum; 0.6 keeps more background on the built-in model."""
    reweight: dict[str, float] | None = None
    """Words of the target and factors for their attention."""
    invert: How = "direct"
    """The inversion."""


@dataclass(frozen=True)
class SDEditOptions:
    """SDEdit (Meng et al. 2022): add noise, and paint the new sentence from there."""

    strength: float = 0.8
    """Part of the steps that are run: more changes more."""


EditMethod = (
    Annotated[PromptToPromptOptions, tyro.conf.subcommand("prompt-to-prompt")]
    | Annotated[SDEditOptions, tyro.conf.subcommand("sdedit")]
)


def prepared(
    method: PromptToPromptOptions | SDEditOptions, steps: int, guidance: float, seed: int
) -> tuple[Inversion, Guide, list[Any]]:
    """The inversion, the guidance and the methods that the options stand for."""
    from sfumato.guidance import CFG
    from sfumato.inversion import Noise
    from sfumato.methods.edit import LocalBlend, PromptToPrompt

    if isinstance(method, SDEditOptions):
        return Noise(method.strength, seed, steps), CFG(guidance), []
    how, own = inversion_of(method.invert, steps, guidance, seed)
    blend = LocalBlend(*method.blend, threshold=method.threshold) if method.blend else None
    edit = PromptToPrompt(method.cross, method.self, reweight=method.reweight or {}, blend=blend)
    return how, CFG({"source": own, "target": guidance}), [edit]


def inversion_of(how: How, steps: int, guidance: float, seed: int) -> tuple[Inversion, float]:
    """An inversion by its word, and the guidance with which its path finds the image again.

    ``rf`` and ``residual`` serve flows only, and refuse other models when they are run.
    """
    from sfumato import inversion

    match how:
        case "direct":
            return inversion.Direct(steps=steps), guidance
        case "null-text":
            return inversion.NullText(guidance, steps=steps), guidance
        case "negative-prompt":
            return inversion.NegativePrompt(steps), guidance
        case "ddim":
            return inversion.DDIMInversion(steps=steps), 1.0
        case "edit-friendly":
            found = inversion.EditFriendly(steps=steps, seed=seed)
            return found, found.scale
        case "edict":
            return inversion.EDICT(scale=guidance, steps=steps), guidance
        case "rf":
            return inversion.RFInversion(seed=seed, steps=steps), 1.0
        case "residual":
            return inversion.Residual(steps=steps), 1.0
