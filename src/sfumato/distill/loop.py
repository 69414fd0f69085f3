"""The run of a distillation: render, ask the model, bring its gradient to the parameters; resumable, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone, check_model
from sfumato.core.brief import Brief
from sfumato.core.guidance import Guide
from sfumato.core.method import Requires
from sfumato.core.settings import Settings
from sfumato.distill.generators import Generator, Rendering, Viewpoints
from sfumato.distill.gradients import Reduction, apply_gradient, clipped
from sfumato.distill.prior import Images
from sfumato.errors import SfumatoError, finite, integer, kind
from sfumato.learning.annealing import Ramp
from sfumato.learning.loop import Problem, Run, learn
from sfumato.learning.optimisers import Optimisers
from sfumato.learning.seeds import Draws

ADAM = partial(torch.optim.Adam, lr=0.01, betas=(0.9, 0.99), eps=1e-15)
"""threestudio's optimiser."""
EDGE = 1e-3  # pixels may lie so far outside of [0, 1]


class Learner(Protocol):
    """What a method trains beside the images, such as a low-rank copy of the model."""

    def step(self) -> None:
        """Take the step that ``gradient`` prepared; the run calls it where the images take theirs."""
        ...

    def state(self) -> dict[str, Tensor]: ...

    def restore(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass
class Now(Brief):
    """One step as a method sees it: the model, the images as latents, and what it may draw and remember."""

    model: Backbone
    x: Images
    """What was rendered, as the model's latents, without gradients; as pixels in a step that does not read them."""
    prompts: tuple[str, ...]
    """One an image, as its viewpoint wants it."""
    step: int
    steps: int
    draws: Draws
    """Of this step."""
    memory: dict[str, Tensor] = field(default_factory=dict)
    """What a method keeps from step to step; it is part of a checkpoint. Tensors are replaced, not written to."""
    learner: Any = None
    """What ``Distillation.started`` gave."""
    pixels: Images | None = None
    """What was rendered, in [0, 1], where the generator renders pixels."""
    cameras: Float[Tensor, "b 4 4"] | None = None
    """Where each image was seen from, camera to world, for methods that tell their own network."""
    asked: tuple[str, ...] = ()
    """One an image, whatever the viewpoint; as ``prompts`` unless given."""
    seen: Callable[[Guide, tuple[str, ...]], Guide] | None = None
    """How the viewpoints of these images guide by more than a prompt; ``guided`` of what drew them, if it has that."""

    def __post_init__(self) -> None:
        self.asked = self.asked or self.prompts

    @property
    def progress(self) -> float:
        """Part of the run that is over, in [0, 1)."""
        return self.step / self.steps

    def noise(self) -> Images:
        """Unit normal noise of the images' shape."""
        shape = self.x.shape[1:]
        return self.draws.each(len(self.x), lambda rng: torch.randn(shape, generator=rng)).to(self.x)


class Gradient(NamedTuple):
    """Against what to move: the latents, and for some methods the images in pixels as well."""

    latents: Images | None
    pixels: Images | None = None


class Distillation(Settings):
    """A way to distil, with its published defaults: a frozen dataclass of settings.

    ``gradient`` is all that most have; it runs without autograd. What a method learns beside the images it makes in
    ``started``, and takes away from the model afterwards.
    """

    requires: ClassVar[Requires] = Requires()

    @contextmanager
    def started(self, model: Backbone, seed: int) -> Iterator[Any]:
        """Around a run: yields a ``Learner``, or None."""
        yield None

    def reads(self, step: int) -> bool:
        """Are latents of pixels made in this step? Where the gradient is by pixels alone, that is spared."""
        return True

    def gradient(self, now: Now) -> Gradient | Images:
        """To descend, weighted, an image each: it is not divided by their number."""
        raise NotImplementedError


class Regulariser(Protocol):
    """A loss on what was rendered, its images in pixels whatever the generator's space."""

    def __call__(self, rendering: Rendering) -> Float[Tensor, ""]: ...


class Record(NamedTuple):
    """What a step was like."""

    step: int
    strength: float
    """Root mean square of the gradient by the latents, or by pixels where there is no other."""


def distil(
    model: Backbone,
    generator: Generator,
    prompts: str | Sequence[str],
    method: Distillation,
    steps: int,
    *,
    optimiser: Callable[[Any], torch.optim.Optimizer] = ADAM,
    viewpoints: Viewpoints | None = None,
    regularisers: Sequence[Regulariser] = (),
    clip: Ramp | None = None,
    reduction: Reduction = "sum",
    seed: int = 0,
    keep: Path | None = None,
    every: int = 100,
    watch: Callable[[int, Images], None] | None = None,
) -> list[Record]:
    """Move the generator's parameters until the model finds its images right.

    ``prompts``: one for all images, or one each. ``optimiser``: of the parameters, or of groups where the generator has
    ``rates``. ``viewpoints``: where images are seen from, drawn in each step; None renders all that there are.
    ``seed``: image i draws what seed + i draws alone.
    ``clip``: largest value of a gradient. ``regularisers``: losses on renderings, added.

    ``keep``: a checkpoint, written each ``every`` steps and when the run is cut off, from which the same call goes on.
    ``watch`` sees each step's number and images before they are moved.

    Raises ``SfumatoError``, naming step and method, for images of a wrong shape or range, for values that are not
    finite, for parameters that no gradient reaches, and for a checkpoint of other settings.
    """
    check_model(model)
    kind("a method is one as it is set, such as ScoreDistillation()", method, Distillation)
    kind("prompts are a text, or one an image", prompts, (str, Sequence))
    asked = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if integer("a number of steps", steps) < 1:
        raise SfumatoError(f"a run has one step or more, got {steps}")
    method.requires.check_model(model, type(method).__name__)
    problem = _Distilling(
        model, generator, asked, method, steps, viewpoints, tuple(regularisers), clip, reduction, seed, watch
    )
    optimising = optimiser(problem.groups())
    about = f"{method!r} of {asked} in {steps} steps, seed {seed}, model {model.name}, {optimising!r}, clip {clip}, "
    about += f"views {viewpoints!r}, regularisers {list(regularisers)!r}, reduction {reduction}"
    about = re.sub(r" at 0x[0-9a-f]+", "", about)  # of functions, another in each process
    with method.started(model, seed) as problem.learner:
        learn(problem, optimising, steps=steps, keep=keep, about=about, every=every, on_progress=problem.shown)
    return problem.records


@dataclass(eq=False)
class _Distilling(Problem):
    """What ``distil`` is told, as the run's problem."""

    model: Backbone
    generator: Generator
    asked: tuple[str, ...]
    method: Distillation
    steps: int
    viewpoints: Viewpoints | None
    regularisers: tuple[Regulariser, ...]
    clip: Ramp | None
    reduction: Reduction
    seed: int
    watch: Callable[[int, Images], None] | None
    learner: Learner | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = type(self.method).__name__
        self.doing = "distilling"
        self.modules = {"generator": self.generator}
        self.rates = {f"generator.{k}": rate for k, rate in self.generator.rates.items()}

    def loss(self, step: int) -> Tensor:
        model, pixel = self.model, self.generator.space == "pixel"
        draws = Draws(self.seed, step)
        batch = None if self.viewpoints is None else self.viewpoints.draw(draws)
        shown = self.generator.render(batch)
        images = shown.images
        _check(images, len(self.asked), self.generator, model, self.name, step)
        asked = self.asked * (len(images) if len(self.asked) == 1 else 1)
        if self.watch is not None:
            self.watch(step, images.detach())
        latents = model.encode(images) if pixel and self.method.reads(step) else images
        with torch.no_grad():
            prompts = asked if batch is None else tuple(batch.prompts(asked))
            now = Now(model, latents.detach(), prompts, step, self.steps, draws, dict(self.memory), self.learner)
            now.pixels = images.detach() if pixel else None
            now.asked, now.cameras = asked, None if batch is None else batch.matrices
            now.seen = getattr(batch, "guided", None)
            given = self.method.gradient(now)
        given = given if isinstance(given, Gradient) else Gradient(given)
        strongest = given.pixels if given.latents is None else given.latents
        if strongest is None:
            raise SfumatoError(f"step {step} of {self.name} gives no gradient, by latents or by pixels")
        self.now, self.strength = now, float(strongest.square().mean().sqrt())
        loss = images.new_zeros(())
        if given.latents is not None:
            loss = apply_gradient(latents, self._limited(given.latents, step), self.reduction)
        if self.regularisers or given.pixels is not None:
            pixels = images if pixel else model.decode(images)
            if given.pixels is not None:
                loss = loss + apply_gradient(pixels, self._limited(given.pixels, step), self.reduction)
            for regulariser in self.regularisers:
                loss = loss + regulariser(shown._replace(images=pixels))
        return loss

    def _limited(self, gradient: Images, step: int) -> Images:
        remedy = "take other levels or a lower guidance"
        finite(gradient, f"step {step} of {self.name}: its gradient", lambda: f"{remedy}; {self.model.remedy()}")
        return gradient if self.clip is None else clipped(gradient, self.clip(step / self.steps))

    def after_backward(self, step: int, optimisers: Optimisers) -> None:
        self.generator.after_backward(step, optimisers)

    def after_step(self, step: int, optimisers: Optimisers) -> None:
        self.generator.after_step(step, optimisers)
        if self.learner is not None:
            self.learner.step()
        self.memory = self.now.memory
        self.records.append(Record(step, self.strength))

    def shown(self, run: Run) -> None:
        """How strong the gradient is, beside the bar."""
        run.say(f"{self.doing} (gradient {self.strength:.3g})")

    def state(self) -> dict[str, Mapping[str, Tensor]]:
        return {"memory": self.memory, "learner": {} if self.learner is None else self.learner.state()}

    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        device = next(self.generator.parameters()).device
        self.memory = {k: v.to(device) for k, v in state.get("memory", {}).items()}
        if self.learner is not None:
            self.learner.restore(state.get("learner", {}))


def _check(images: Any, n: int, generator: Generator, model: Backbone, name: str, step: int) -> None:
    where = f"step {step} of {name}: the generator"
    channels = 3 if generator.space == "pixel" else model.channels
    wrong = not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != channels
    if wrong or not len(images) or n not in (1, len(images)):
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        rows = "b" if n == 1 else n
        raise SfumatoError(f"{where} renders {generator.space}s of shape ({rows}, {channels}, h, w), got {got}")
    if generator.space == "pixel":
        model.check_size(images.shape[-2], images.shape[-1])
    values = images.detach()
    if not values.isfinite().all():
        raise SfumatoError(f"{where} rendered values that are not finite; a smaller rate or clip may help")
    if generator.space == "pixel" and (float(values.min()) < -EDGE or float(values.max()) > 1 + EDGE):
        raise SfumatoError(
            f"{where} renders pixels in [0, 1], got {float(values.min()):.3g} to {float(values.max()):.3g}"
        )
