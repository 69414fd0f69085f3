"""What commands that edit share: inversions by their words, and an edit as it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sfumato.core.backbone import Backbone
    from sfumato.core.guidance import Guide, Scales
    from sfumato.inversion import Inversion
    from sfumato.tasks.chain import Chain

How = Literal["direct", "null-text", "negative-prompt", "ddim", "edit-friendly", "edict", "rf", "residual"]


def inversion_of(how: How, steps: int | None, guidance: float, seed: int) -> Inversion:
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


@dataclass(frozen=True)
class Asked:
    """An edit: where it starts, what takes part in it, and under which guidance."""

    start: Inversion
    methods: list[Any]
    guide: Guide | Scales
    prompts: dict[str, str]
    """Of its streams."""
    source: str
    """What the picture shows."""

    @classmethod
    def of(
        cls,
        chain: Chain,
        model: Backbone,
        prompts: dict[str, str],
        how: How | None,
        steps: int | None,
        guidance: float | None,
        seed: int,
    ) -> Asked:
        """From what a command line says. Without an inversion among the methods it is ``how``, or else direct."""
        from sfumato.methods.edit.appearance import START as APPEARING

        chain = chain.given(seed=seed).stepped(steps)
        methods = chain.methods
        if "appearance" in prompts:  # looks go over in the published inversion, without guidance
            start = APPEARING if how is None else inversion_of(how, steps, 1.0, seed)
            return cls(start, methods, 1.0, prompts, prompts["source"])
        start = chain.starter(inversion_of(how or "direct", steps, 7.5 if guidance is None else guidance, seed))
        streams = prompts if start.has_source or methods else {"target": prompts["target"]}
        return cls(start, methods, start.guide(model, guidance), streams, prompts["source"])
