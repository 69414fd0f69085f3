"""How a picture is painted beyond its prompt, in a command line's words: steppers, canvases, further prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sfumato.commands.options import check_sides
from sfumato.errors import SfumatoError
from sfumato.io.terminal import note

if TYPE_CHECKING:
    from sfumato.core.backbone import Backbone
    from sfumato.core.guidance import Guide
    from sfumato.core.steppers import Stepper
    from sfumato.core.views import Views

Terms = tyro.conf.UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True)
class Stepping:
    """How a picture is painted, whatever its size, beyond its prompt."""

    stepper: Literal[
        "auto", "ddim", "ddpm", "euler", "euler-ancestral", "heun", "dpm2", "dpm2-ancestral", "lms", "plms", "deis",
        "unipc", "dpm-solver", "dpm-solver-sde", "lcm",
    ] = "auto"  # fmt: skip
    """From noise level to noise level; auto is the one of the model's scheduler. ddpm, lcm, the ancestral ones and sde
    draw new noise in each step, heun and dpm2 ask the network twice."""
    further: Annotated[Terms, tyro.conf.arg(name="and", metavar="TEXT[=WEIGHT]")] = ()
    """Also this (composable diffusion); of weight 1 it counts as much as the prompt."""
    without: Annotated[Terms, tyro.conf.arg(name="not", metavar="TEXT[=WEIGHT]")] = ()
    """But not this."""
    perp_neg: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Of what --not says take away only what is perpendicular to the prompt (Perp-Neg)."""

    def __post_init__(self) -> None:
        if self.perp_neg and (self.further or not self.without):
            raise SfumatoError("--perp-neg takes what --not says, and no --and")
        for text in self.further + self.without:
            _term(text)

    @property
    def plain(self) -> bool:
        """Is there no further prompt?"""
        return not (self.further or self.without)

    def guide(self, model: Backbone, scale: float, negative: str) -> Guide:
        """Guidance of a prompt at a scale, and of the further ones."""
        from sfumato.core.guidance import Composed, PerpNeg, against

        terms = [*map(_term, self.further), *((text, -weight) for text, weight in map(_term, self.without))]
        if self.perp_neg:
            return PerpNeg(tuple(terms), scale, negative)
        scaled = tuple((text, weight * scale) for text, weight in terms)
        return Composed(scaled, scale, negative) if terms else against(model, scale, negative)

    def made(self, model: Backbone) -> Stepper:
        """The stepper."""
        from sfumato.core import solvers, steppers
        from sfumato.core.suited import differs, suited

        if self.stepper == "auto":
            if different := differs(model.schedule):
                note(f"the model comes with {model.schedule.kind}: {different}")
            return suited(model.schedule)
        return {
            "ddim": steppers.DDIM(),
            "ddpm": steppers.DDPM(),
            "euler": steppers.Euler(),
            "euler-ancestral": steppers.Euler(ancestral=True),
            "heun": solvers.Heun(),
            "dpm2": solvers.Midpoint(),
            "dpm2-ancestral": solvers.Midpoint(ancestral=True),
            "lms": solvers.LMS(),
            "plms": solvers.PLMS(),
            "deis": solvers.DEIS(),
            "unipc": solvers.UniPC(),
            "dpm-solver": solvers.DPMSolver(),
            "dpm-solver-sde": solvers.DPMSolver(tau=1.0),
            "lcm": steppers.LCM(),
        }[self.stepper]

    def settings(self) -> dict[str, Any]:
        """What differs from plain sampling."""
        names = {"further": "and", "without": "not"}
        return {names.get(f.name, f.name): v for f in fields(self) if (v := getattr(self, f.name)) != f.default}


@dataclass(frozen=True)
class Sampling(Stepping):
    """How a picture is painted, beyond its prompt: whole, or as a canvas that is seen in windows."""

    canvas: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="WIDTH HEIGHT")] = None
    """A panorama of so many pixels, which the model sees in windows of its own size (MultiDiffusion)."""
    views: Literal["tiles", "ring", "sphere"] = "tiles"
    """Windows of the canvas; the right border of a ring goes on at its left, a sphere's canvas is all that lies around,
    360 by 180 degrees."""
    stride: Annotated[int | None, tyro.conf.arg(metavar="CELLS")] = None
    """From window to window, in cells of the latents [default: an eighth of a window]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.canvas is None and (self.views, self.stride) != ("tiles", None):
            raise SfumatoError("--views and --stride are of a panorama; give its pixels: --canvas 512 128")
        if self.views == "sphere" and self.stride is not None:
            raise SfumatoError("--stride is of windows on a plane; a sphere's lie 45 degrees apart; leave it out")
        if self.canvas is not None:
            check_sides(self.canvas, "--canvas")

    def options(self, size: tuple[int, int]) -> dict[str, Any]:
        """Size and views of ``denoise`` and ``plan``; what is no canvas is an image of this height and width."""
        if self.canvas is None:
            return {"size": size}
        from sfumato.core.sphere import Sphere
        from sfumato.core.views import Ring, Tiles

        views: Views = Sphere() if self.views == "sphere" else (Ring if self.views == "ring" else Tiles)(self.stride)
        return {"size": self.canvas[::-1], "views": views}


def suited(model: Backbone, steps: int | None, guidance: float | None) -> tuple[int, float]:
    """Steps and guidance as they were asked for, or what the model was distilled for, which is noted; else 30 and 5."""
    few = model.schedule.distilled or model.distilled == 1
    found = 4 if few else 30, 5.0 if model.distilled is None else model.distilled
    if model.distilled is not None and None in (steps, guidance):
        note(f"{model.name} was distilled: unless said otherwise {found[0]} steps at guidance {found[1]:g}")
    return found[0] if steps is None else steps, found[1] if guidance is None else guidance


def _term(text: str) -> tuple[str, float]:
    """A prompt, and its weight behind the last ``=``, which is 1 unless it is said."""
    prompt, equals, weight = text.rpartition("=")
    try:
        prompt, value = (prompt, float(weight)) if equals else (text, 1.0)
    except ValueError:
        raise SfumatoError(f"a weight behind = is a number, got {text!r}") from None
    if not prompt.strip() or not math.isfinite(value) or value <= 0:
        raise SfumatoError(f"a prompt and its weight above 0 are meant, such as 'a duck=0.5', got {text!r}")
    return prompt, value
