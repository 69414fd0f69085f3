"""What an inversion gives, how it is asked for, and how it is followed back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.brief import Brief
from sfumato.core.conditions import Cond
from sfumato.core.guidance import CFG, Guide, Scales
from sfumato.core.method import EMPTY, Phases, Requires, Run, Start, Step
from sfumato.core.rows import single
from sfumato.core.schedule import Level, Levels
from sfumato.core.settings import Settings
from sfumato.core.steppers import DDIM, Stepper
from sfumato.core.views import Views
from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from typing_extensions import Self

Advance = Callable[[Tensor], None]
"""Called with the latents that a step led to."""


@dataclass(frozen=True, eq=False, repr=False)
class Path(Brief, Start):
    """Where to start, and what holds the first stream to its image on the way."""

    latents: Float[Tensor, "b c h w"]
    """At the first level."""
    levels: Levels
    prompts: tuple[str, ...]
    image: Float[Tensor, "b c h w"]
    """The image's latents."""
    stepper: Stepper = field(default_factory=DDIM)
    track: Sequence[Float[Tensor, "b c h w"]] = ()
    """The image at every level, the first to the last; empty when it is not known."""
    pinned: bool = False
    """Put the first stream back on the track after each step."""
    negative: Cond | None = None
    """What takes the place of the empty prompt, in all steps."""
    uncond: Sequence[Float[Tensor, "b n d"]] = ()
    """For each step the text that takes the place of the empty prompt's."""
    noises: Sequence[Float[Tensor, "b c h w"]] = ()
    """For each step the unit noise of a stochastic stepper."""
    ending: Float[Tensor, "b c h w"] | None = None
    """Added to every stream after the last step."""
    undoes: bool = True

    @property
    def replaces(self) -> bool:
        """Does something take the place of the empty prompt?"""
        return self.negative is not None or bool(self.uncond)

    @property
    def in_groups(self) -> bool:
        return type(self) is Path  # further ones do more

    @property
    def settled(self) -> bool:
        return type(self) is Path and self.pinned and not self.replaces

    def start(self, run: Run) -> Phases:
        first = run.images(run.rows.streams[0])
        streams = len(run.rows.streams)
        if self.replaces and "uncond" not in run.rows.conditions:
            raise SfumatoError(f"this path replaces the empty prompt, so it takes a guidance with one; {EMPTY}")
        if self.replaces and getattr(run.guide, "negative", ""):
            raise SfumatoError(
                "this path replaces the empty prompt, so there is no place for a negative one; leave it out, or invert "
                "in another way (Direct)"
            )

        def cond(step: Step, now: Cond) -> Cond:
            for stream in run.rows.streams:
                at = run.rows[stream, "uncond"]
                here = now[at]
                if self.negative is not None:
                    here = replace(self.negative.repeat(run.rows.views)[: run.rows.each], image=here.image)
                if self.uncond:
                    here = replace(here, text=run.rows.spread(self.uncond[step.i].to(now.text)))
                now = Cond.cat([now[: at.start], here, now[at.stop :]])
            return now

        def after(step: Step) -> None:
            if self.pinned:
                step.x_next = step.x_next.clone()
                step.x_next[first] = self.track[step.i + 1].to(step.x_next)
            if self.ending is not None and step.i + 1 == run.steps:
                step.x_next = step.x_next + self.ending.to(step.x_next).repeat(streams, 1, 1, 1)

        return Phases(
            cond=cond if self.replaces else None,
            noise=(lambda step: self.noises[step.i].to(step.x).repeat(streams, 1, 1, 1)) if self.noises else None,
            after=after if self.pinned or self.ending is not None else None,
        )


class Inversion(Settings):
    """A way to invert, with its published defaults."""

    steps: int
    requires: ClassVar[Requires] = Requires()
    has_source: ClassVar[bool] = True
    """Is a run's first stream the image itself, which is found again? If not, a run may be of the edit alone."""
    edit_guidance: ClassVar[float] = 7.5
    """The published guidance of an edit."""

    def alone(self) -> Views | None:
        """The views of its runs, unless they are given others; None: images are seen as they are."""
        return None

    def source_guidance(self, scale: float) -> float:
        """The guidance with which the first stream finds its image, when edits are painted at ``scale``."""
        return scale

    def guide(self, model: Backbone, scale: float | None = None) -> Guide | Scales:
        """The guidance of a run of the streams ``source`` and ``target`` that follows the path; else ``paints``."""
        published = 1.0 if model.distilled == 1 else self.edit_guidance
        paints = published if scale is None else scale
        own = self.source_guidance(paints)
        return paints if own == paints else {"source": own, "target": paints}

    def against(self, negative: str) -> Self:
        """With a negative prompt in the place of the empty one, where it is guided on the way to noise.

        Raises ``SfumatoError`` where something else takes that place.
        """
        takes = is_dataclass(self) and any(f.name == "negative" for f in fields(self))
        return replace(self, negative=negative) if takes else self  # pyright: ignore

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        """``image``: latents. ``advance`` is called once for each prediction of the whole batch, with the
        latents that it led to."""
        raise NotImplementedError


class Replacing(Inversion):
    """One that replaces the empty prompt, so that its path is followed under ``CFG``, whatever the network reads."""

    def guide(self, model: Backbone, scale: float | None = None) -> Guide:
        scales = super().guide(model, scale)
        return scales if isinstance(scales, Guide) else CFG(scales)

    def against(self, negative: str) -> Self:
        if negative:
            raise SfumatoError(
                f"{type(self).__name__} replaces the empty prompt, so there is no place for a negative one; leave it "
                "out, or invert in another way (direct)"
            )
        return self


def predict(
    model: Backbone, x: Tensor, label: Tensor, at: Level, conds: dict[str, Cond], guide: Guide
) -> tuple[Tensor, Tensor]:
    """(x0, eps) of a guided prediction for latents at a level, the network told ``label``."""
    batch = x.repeat(len(conds), 1, 1, 1)
    predicted = model.predict(batch, label, Cond.cat(list(conds.values())))
    prediction = guide.combine(dict(zip(conds, predicted.split(len(x)), strict=True)), single(len(x)))
    return model.schedule.x0_and_eps(prediction, x, at)


def noise_of(model: Backbone, image: Tensor, seed: int) -> Tensor:
    """Unit noise for each image of a batch, image i from seed + i."""
    height, width = (n * model.factor for n in image.shape[-2:])
    return model.latents([seed + i for i in range(len(image))], height, width)
