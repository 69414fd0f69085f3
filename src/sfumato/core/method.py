"""What methods are made of: what they read and write of a run, and the step that they take part in.

A method's ``start`` gives its ``Phases`` for one run: functions for the moments of a step, the attention it edits and
the maps it needs. ``core.plan`` checks and prices them; ``core.denoising`` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call, fine
from sfumato.core.brief import Brief
from sfumato.core.features import Activation
from sfumato.core.groups import Reads
from sfumato.core.rows import Name, Pattern, Rows
from sfumato.core.schedule import part_of
from sfumato.core.settings import Settings
from sfumato.core.sites import Axis, Grid
from sfumato.core.views import Views
from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from sfumato.core.backbone import Backbone
    from sfumato.core.conditions import Cond
    from sfumato.core.guidance import Guide
    from sfumato.core.schedule import Level, Levels
    from sfumato.core.steppers import Stepper

Field = Literal["feature", "qkv", "sources", "logits", "probs", "out"]
FIELDS: tuple[Field, ...] = ("feature", "qkv", "sources", "logits", "probs", "out")
Moment = int | float | None  # a step's number, a fraction of the steps, the end
Span = tuple[Moment, Moment]
EMPTY = "give a scale above 1, or cfg(scale) (--negative) to a network that reads its guidance"
"""How a guidance has an empty prompt."""
Maps = dict[Any, dict[Name, Float[Tensor, "each queries keys"]]]


@dataclass(frozen=True)
class Where:
    """What of a run is meant: attention of a pair, or features of a kind; at which sites, in which steps and rows."""

    pair: str
    """``image->text`` and the like; of features, their kind."""
    res: int | float | str | None = None
    """Shorter side of the token grid: a number, a fraction of the latents' side, ``coarsest`` or ``finest``."""
    steps: Span = (0, None)
    rows: Pattern = None
    sites: Callable[[Any], bool] | None = None
    """Which sites (layers, of a feature)."""
    axis: Axis = "space"
    """Attention within each image, or over the frames of a clip."""


@dataclass(frozen=True, eq=False)
class Need:
    """What a method reads after each step: attention's maps, averaged over heads where they are made; or features."""

    where: Where
    tokens: tuple[int, ...] | None = None
    """Only these keys."""
    reduce: Callable[[Any, Name], Any] | None = None
    """What is kept of a site's ``Call`` (a layer's ``Activation``) and a group of rows, in place of its mean map."""
    passes: bool = False
    """Is it read by edits of the same prediction alone, and of no use behind it?"""


@dataclass(frozen=True, eq=False)
class Edit:
    """A function that writes one field of attention calls, or a ``feature``."""

    where: Where
    field: Field
    do: Callable[[Any], None]
    """Gets each site's ``Call``, or each layer's ``Activation``."""
    parts: str = "qkv"
    """Of ``qkv``, which of the three it writes."""
    reads: Reads | None = None
    """Whom of its stream each image reads, where any reads others."""


@dataclass(frozen=True)
class Energy:
    """A scalar to go down: energies are summed over methods and differentiated once with respect to ``step.x``."""

    loss: Callable[[Step], Float[Tensor, ""]]
    """Of ``step.x0``, ``step.x`` or ``step.maps``."""
    through_network: bool = True
    """If not, ``step.x0`` is (x - sigma eps) / alpha with eps held."""
    repeats: int = 1
    """How often a step with it is run, with new noise back to its level in between; of several energies the most."""
    steps: Span = (0, None)
    """Outside of them it costs nothing."""


@dataclass
class Phases:
    """What a method does in one run. Each function gets the ``Step`` and may change what is named."""

    edits: tuple[Edit, ...] = ()
    needs: tuple[Need, ...] = ()
    looks: tuple[Need, ...] = ()
    """What it asks ``look`` for: checked and priced like the needs, but not read in the step's own prediction."""
    descends: bool = True
    """Are gradients taken through what it looks at?"""
    cond: Callable[[Step, Cond], Cond] | None = None
    """May replace the conditions of all rows."""
    before: Callable[[Step], None] | None = None
    """May replace ``step.x``; ``step.cond`` is what the step's prediction will read."""
    energy: Energy | None = None
    denoised: Callable[[Step], None] | None = None
    """May replace ``step.x0``; the noise follows."""
    noise: Callable[[Step], Tensor | None] | None = None
    """May give the unit noise of a stochastic step."""
    after: Callable[[Step], None] | None = None
    """May replace ``step.x_next``."""
    again: Callable[[int, Tensor, Tensor, Callable[[], Tensor]], Tensor | None] | None = None
    """After the last step of pass i, which started from one thing the first time, ended with another and draws unit
    noise: what one more pass starts from; None: it was the last."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """What it hands on from step to step, which a run that was stopped begins with where it goes on."""
    calls: float = 0
    """Further network calls a step, on average, in rows of the main one."""

    @property
    def moments(self) -> bool:
        """Is it asked in any step, beside its edits and needs?"""
        own = (self.cond, self.before, self.energy, self.denoised, self.noise, self.after, self.again)
        return any(moment is not None for moment in own)


@dataclass(frozen=True)
class Run:
    """What is known before the first step."""

    model: Backbone
    prompts: Mapping[str, tuple[str, ...]]
    """Stream -> its prompts, one an image."""
    rows: Rows
    steps: int
    grid: Grid
    """Height and width of the latents that the network sees."""
    guide: Guide | None = None
    """How the conditions' predictions become one, for methods that predict more."""
    levels: Levels | None = None
    views: Views | None = None
    """How the network sees a canvas, if it does, and of which height and width."""
    canvas: Grid | None = None
    group: int | None = None
    """How many images of a stream go through the network at once; None: all."""
    apart: bool = False
    """Do the views of an image read prompts of their own?"""

    def images(self, stream: str) -> slice:
        """Where a stream lies among the images, such as ``step.x``."""
        return self.rows.images(stream)

    def predict(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, ""], cond: Cond) -> Float[Tensor, "b c h w"]:
        """The network's prediction for images under all conditions, without what methods edit."""
        if self.group is None:
            return self.model.predict(x.repeat(len(self.rows.conditions), *[1] * (x.ndim - 1)), t, cond)
        out = x.new_empty(len(self.rows), *x.shape[1:])
        for first in range(0, self.rows.of_stream, self.group):
            images = range(first, min(first + self.group, self.rows.of_stream))
            some = self.some(images, cond)
            predicted = self.model.predict(x[self.rows.places(images) % len(x)].to(self.model.device), t, some)
            out[self.rows.places(images)] = predicted.to(out)
        return out

    def some(self, images: Sequence[int], cond: Cond) -> Cond:
        """What these images of each stream read, of what all do, or of what one image of each does."""
        each = len(cond) // len(self.rows.names)
        if each == self.rows.of_stream:
            return cond.of(self.rows.places(images).tolist(), images)
        return cond.of([n for n in range(len(cond)) for _ in images], images)


@dataclass
class Step(Brief):
    """One step as methods see it. Images lie stream by stream; ``run.images(name)`` says where."""

    i: int
    level: Level
    next: Level
    x: Float[Tensor, "b c h w"]
    run: Run
    cond: Cond
    """What all rows read."""
    x0: Tensor = field(default_factory=lambda: torch.empty(0))
    eps: Tensor = field(default_factory=lambda: torch.empty(0))
    x_next: Tensor = field(default_factory=lambda: torch.empty(0))
    parts: dict[str, Tensor] = field(default_factory=dict)
    """Predictions by condition, before guidance."""
    variance: Tensor | None = None
    """What the network says of the noise that this step adds, where the stepper asks."""
    maps: dict[Need, Maps] = field(default_factory=dict)
    passed: int = 0
    """Passes through all steps that were before this one (``Phases.again``)."""
    split: Callable[[Tensor], Tensor] = lambda x: x
    """From images to what the network sees of them: windows, where a run has ``Views``."""
    merge: Callable[[Tensor], Tensor] = lambda x: x
    """From what it sees back to images, as the mean of windows."""
    draw: Callable[[], Tensor] = lambda: torch.empty(0)
    """Unit noise as stochastic steps draw it: for each image of its own seed, the same in all streams."""
    offset: Tensor | None = None
    """What the network sees beside what it is shown of ``x``: windows that were moved each by itself."""


@dataclass(frozen=True)
class Requires:
    """What a method asks of a run beside its sites; refused in one place, before the first step."""

    who: str = ""
    """What it is called, where its class has another name."""
    source: bool = False
    """A stream that is edited, and at least one that is the edit."""
    words: bool = False
    """A model that reads prompts."""
    uncond: bool = False
    """A guidance with an empty (or negative) prompt."""
    windows: bool = True
    """Does it work on a canvas that the network sees in windows?"""
    batch: bool = True
    """Does it work on several images of a stream?"""
    clip: bool = False
    """Several frames of a clip, by a model that attends over time."""
    set: bool = False
    """Are a stream's images one set, in which each has a part in what others become?"""
    groups: bool = False
    """Is it known to work where some images of a run go through the network at a time? Then its edits take what
    belongs to each image by ``Rows.own``, and what it hands on from step to step lies in ``Phases.state``."""

    def check_model(self, model: Backbone, name: str) -> None:
        """Raise ``SfumatoError`` for a model that is none for the method of this name."""
        if self.words and not model.text_tokens:
            raise SfumatoError(
                f"{self.who or name} works by words, and {model.name} paints without; take a model that reads prompts"
            )

    def check(self, run: Run, name: str) -> None:
        """Raise ``SfumatoError`` for a run that is none for the method of this name."""
        who = self.who or name
        if self.source and len(run.rows.streams) < 2:
            how = "sfumato edit --from --to, or two streams of denoise"
            raise SfumatoError(f"{who} needs two prompts, of a picture and of its edit: {how}")
        if self.uncond and "uncond" not in run.rows.conditions:
            raise SfumatoError(f"{who} takes a guidance with an empty prompt; {EMPTY}")
        if not self.windows and not run.rows.whole:
            how = "this canvas is seen in windows" if run.rows.grids is None else "these are seen as tiles of grids"
            raise SfumatoError(f"{who} sees whole images, and {how}; leave the views out")
        if self.words and run.apart and run.rows.views > 1:
            raise SfumatoError(
                f"{who} works by an image's words, and each view has its own; sample each by itself, or leave it out"
            )
        if self.clip and run.rows.frames < 2:
            raise SfumatoError(f"{who} works on clips; give it 16 frames, say, and a model with motion")
        if not self.batch and run.rows.frames > 1:
            raise SfumatoError(f"{who} edits one image a run, and a clip has {run.rows.frames}; leave frames out")
        if not self.batch and run.rows.of_stream > 1:
            raise SfumatoError(f"{who} edits one image a run; give several targets as further streams")


class Method(Settings):
    """A paper's parameters with the paper's defaults. Subclasses are frozen dataclasses."""

    requires: ClassVar[Requires] = Requires()
    lengthens: ClassVar[bool] = False
    """Does it let clips have more frames than the model attends over at once?"""
    prompted: ClassVar[bool] = False
    """Does it read the first stream under its prompt alone?"""
    late: ClassVar[bool] = False
    """Does it see to the views after all others, whatever those make of them?"""

    @property
    def in_groups(self) -> bool:
        """May some images of a run go through the network at a time?"""
        return self.requires.groups

    def prepare(self, model: Backbone, prompts: Mapping[str, tuple[str, ...]]) -> Method:
        """This method with what takes long to find out for the prompts (by stream), such as a chat's answer.

        It comes before ``start``, which runs whenever a run is planned. What is prepared already gives itself.
        """
        return self

    def start(self, run: Run) -> Phases:
        """What it does in this run. It changes nothing, and says the same each time."""
        raise NotImplementedError

    def own_model(self, model: Backbone) -> Backbone:
        """The model of a run as this method has it: with weights of its own, say."""
        return model

    def around(self, base: Guide) -> Guide:
        """The run's guidance with what this method adds to it: rows of its own, say. Twice is as good as once."""
        return base

    def seeing(self, views: Views) -> Views:
        """The views of a run on a canvas as this method has them: others, or others in each step."""
        return views

    def alone(self) -> Views | None:
        """The views of a run that was given none; None: images are seen as they are."""
        return None


class Start(Method):
    """A method that says where its run begins, at which levels and how it steps; such as an inversion's ``Path``."""

    latents: Float[Tensor, "b c h w"]
    """At the first level."""
    levels: Levels
    stepper: Stepper
    undoes: bool = True
    """Are its steps those of an inversion, undone?"""

    @property
    def settled(self) -> bool:
        """Is the first stream somewhere after each step, whatever the network says of it?"""
        return False


def span(steps: Span, of: int) -> tuple[int, int]:
    """First step and one past the last, from numbers or fractions (0.8 of 50 steps is 40, rounded down)."""

    def number(moment: Moment, default: int) -> int:
        if moment is None:
            return default
        if isinstance(moment, float):
            if not 0 <= moment <= 1:
                raise SfumatoError(f"a fraction of the steps lies between 0 and 1, got {moment}")
            return part_of(of, moment)
        return min(moment, of)

    return number(steps[0], 0), number(steps[1], of)


def captured(
    call: Call | Activation, need: Need, rows: Sequence[Name]
) -> dict[Name, Float[Tensor, "each queries keys"]]:
    """A need's maps at one call, averaged over heads, of the chosen keys; or its feature; or what it makes of them."""
    if need.reduce is not None:
        return {name: need.reduce(call, name) for name in rows}
    if isinstance(call, Activation):
        return {name: fine(call.get(name)) for name in rows}
    out = {}
    for name in rows:
        mean = call.mean(name, need.where.pair)
        out[name] = mean if need.tokens is None else mean[..., list(need.tokens)]
    return out


def joined(turns: Sequence[tuple[Sequence[int], dict[Need, Maps]]]) -> dict[Need, Maps]:
    """Of maps and features of some images at a time those of all, in their order."""
    order = torch.tensor([image for images, _ in turns for image in images]).argsort()
    out: dict[Need, Maps] = {}
    for need, sites in turns[0][1].items():
        for site, names in sites.items():
            parts = {name: [found[need][site][name] for _, found in turns] for name in names}
            whole = {name: torch.cat(some)[order.to(some[0].device)] for name, some in parts.items()}
            out.setdefault(need, {})[site] = whole
    return out
