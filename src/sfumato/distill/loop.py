"""The run of a distillation: render, ask the model, bring its gradient to the parameters; resumable, bit for bit.

Randomness is drawn anew in every step from the seed and the step's number, so an interrupted run goes on as if nothing
had happened: parameters, the optimiser's moments and a method's memory are all that is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.backbone import Backbone
from sfumato.distill.annealing import Ramp
from sfumato.distill.generators import Generator
from sfumato.distill.gradients import Reduction, apply_gradient, clipped
from sfumato.distill.prior import Images
from sfumato.errors import SfumatoError
from sfumato.io.files import atomic
from sfumato.io.terminal import progress

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
class Now:
    """One step as a method sees it: the model, the images as latents, and what it may draw and remember."""

    model: Backbone
    x: Images
    """What was rendered, as the model's latents, without gradients."""
    prompts: tuple[str, ...]
    """One an image, as its view wants it."""
    step: int
    steps: int
    rng: torch.Generator
    """Of this step, on the CPU."""
    memory: dict[str, Tensor] = field(default_factory=dict)
    """What a method keeps from step to step; it is part of a checkpoint. Tensors are replaced, not written to."""
    learner: Any = None
    """What ``Distillation.started`` gave."""
    pixels: Images | None = None
    """What was rendered, in [0, 1], where the generator renders pixels."""
    cameras: Float[Tensor, "b d"] | None = None
    """Where each image was seen from, for methods that tell their own network."""
    asked: tuple[str, ...] = ()
    """One an image, whatever the view; as ``prompts`` unless given."""

    def __post_init__(self) -> None:
        self.asked = self.asked or self.prompts

    @property
    def progress(self) -> float:
        """Part of the run that is over, in [0, 1)."""
        return self.step / self.steps

    def noise(self) -> Images:
        """Unit normal noise of the images' shape."""
        return torch.randn(self.x.shape, generator=self.rng).to(self.x)


class Gradient(NamedTuple):
    """Against what to move: the latents, and for some methods the images in pixels as well."""

    latents: Images
    pixels: Images | None = None


class Distillation:
    """A way to distil, with its published defaults: a frozen dataclass of settings.

    ``gradient`` is all that most have; it runs without autograd. What a method learns beside the images it makes in
    ``started``, and takes away from the model afterwards.
    """

    @contextmanager
    def started(self, model: Backbone, seed: int) -> Iterator[Any]:
        """Around a run: yields a ``Learner``, or None."""
        yield None

    def gradient(self, now: Now) -> Gradient | Images:
        """To descend, weighted, an image each: it is not divided by their number."""
        raise NotImplementedError


class Regulariser(Protocol):
    def __call__(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]: ...


class Record(NamedTuple):
    """What a step was like."""

    step: int
    strength: float
    """Root mean square of the gradient by the latents."""


@torch.enable_grad()
def distil(
    model: Backbone,
    generator: Generator,
    prompts: str | Sequence[str],
    method: Distillation,
    steps: int,
    *,
    optimiser: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = ADAM,
    views: Callable[[torch.Generator], Any] | None = None,
    said: Callable[[tuple[str, ...], Any], Sequence[str]] | None = None,
    cameras: Callable[[Any], Float[Tensor, "b d"]] | None = None,
    regularisers: Sequence[Regulariser] = (),
    clip: Ramp | None = None,
    reduction: Reduction = "sum",
    seed: int = 0,
    keep: Path | None = None,
    every: int = 100,
    watch: Callable[[int, Images], None] | None = None,
) -> list[Record]:
    """Move the generator's parameters until the model finds its images right.

    ``prompts``: one for all images, or one each. ``views``: what to render in a step, drawn with its random generator;
    None renders all. ``said``: prompts as views want them (", side view"); ``cameras``: numbers that tell a method
    where views were taken from. ``clip``: largest value of a gradient. ``regularisers``: losses on pixels, added.

    ``keep``: a checkpoint, written each ``every`` steps and when the run is cut off, from which the same call goes on.
    ``watch`` sees each step's number and images before they are moved.

    Raises ``SfumatoError``, naming step and method, for images of a wrong shape or range, for values that are not
    finite, for parameters that no gradient reaches, and for a checkpoint of other settings.
    """
    learnable = [p for p in generator.parameters() if p.requires_grad]
    name = type(method).__name__
    if steps < 1:
        raise SfumatoError(f"a run has one step or more, got {steps}")
    if not learnable:
        raise SfumatoError(f"{name} has nothing to move: this generator has no parameters that require gradients")
    optimising = optimiser(learnable)
    asked = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    about = f"{method!r} of {asked} in {steps} steps, seed {seed}, model {model.name}, {optimising!r}, clip {clip}, "
    about += f"views {views!r}, regularisers {list(regularisers)!r}, reduction {reduction}"
    about = re.sub(r" at 0x[0-9a-f]+", "", about)  # of functions, another in each process
    records: list[Record] = []
    with method.started(model, seed) as learner, progress(f"distilling, {name}", steps) as advance:
        state = _State(generator, optimising, learner, about)
        first = state.load(keep) if keep is not None else 0
        advance(first)
        done, whole = first, True
        try:
            for step in range(first, steps):
                rng = rng_of(seed, step)
                shown = None if views is None else views(rng)
                images = generator.render(shown)
                _check(images, len(asked), generator, model, name, step)
                said_now = asked * (len(images) if len(asked) == 1 else 1)
                if watch is not None:
                    watch(step, images.detach())
                pixels = images if generator.space == "pixel" else None
                latents = model.encode(images) if generator.space == "pixel" else images
                with torch.no_grad():
                    now = Now(model, latents.detach(), said_now, step, steps, rng, dict(state.memory), learner)
                    now.prompts = tuple(said(said_now, shown)) if said is not None else said_now
                    now.pixels = None if pixels is None else pixels.detach()
                    now.cameras = cameras(shown) if cameras is not None else None
                    given = method.gradient(now)
                given = given if isinstance(given, Gradient) else Gradient(given)
                limit = None if clip is None else clip(now.progress)
                loss = apply_gradient(latents, _finite(given.latents, limit, name, step), reduction)
                if pixels is None and (regularisers or given.pixels is not None):
                    pixels = model.decode(images)
                if given.pixels is not None and pixels is not None:
                    loss = loss + apply_gradient(pixels, _finite(given.pixels, limit, name, step), reduction)
                for regulariser in regularisers:
                    loss = loss + regulariser(pixels)  # pyright: ignore[reportArgumentType]
                optimising.zero_grad(set_to_none=True)
                loss.backward(inputs=learnable)  # the frozen weights that it passes get none
                if all(p.grad is None for p in learnable):
                    raise SfumatoError(f"step {step} of {name}: no gradient reaches the parameters of this generator")
                if not all(p.grad.isfinite().all() for p in learnable if p.grad is not None):
                    raise SfumatoError(
                        f"step {step} of {name}: a gradient of the parameters is not finite; look at what renders the "
                        "images, and at the regularisers"
                    )
                whole = False
                optimising.step()
                getattr(generator, "project", lambda: None)()
                if learner is not None:
                    learner.step()
                state.memory, done, whole = now.memory, step + 1, True
                records.append(Record(step, float(given.latents.square().mean().sqrt())))
                advance()
                if keep is not None and done % every == 0:
                    state.save(keep, done)
        finally:
            if keep is not None and done > first and whole:  # what was cut off while it moved is kept nowhere
                state.save(keep, done)
    return records


def rng_of(seed: int, step: int) -> torch.Generator:
    """What a step of a run draws from."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))


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


def _finite(gradient: Images, most: float | None, name: str, step: int) -> Images:
    if not gradient.isfinite().all():
        raise SfumatoError(f"step {step} of {name}: its gradient is not finite; take other levels or a lower guidance")
    return gradient if most is None else clipped(gradient, most)


@dataclass
class _State:
    """All that a run is, as one file of tensors."""

    generator: Generator
    optimiser: torch.optim.Optimizer
    learner: Any
    about: str
    memory: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path, step: int) -> None:
        from safetensors.torch import save_file

        moments = self.optimiser.state_dict()["state"]
        tensors = {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        tensors |= {f"memory.{k}": v for k, v in self.memory.items()}
        tensors |= {f"learner.{k}": v for k, v in (self.learner.state() if self.learner is not None else {}).items()}
        for i, values in moments.items():
            tensors |= {f"optimiser.{i}.{k}": torch.as_tensor(v) for k, v in values.items() if v is not None}
        with atomic(path) as part:
            about = {"run": self.about, "step": str(step)}
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, part, about)

    def load(self, path: Path) -> int:
        """The step to go on with: 0 where there is no checkpoint yet."""
        from safetensors import SafetensorError, safe_open

        if not path.exists():
            return 0
        try:
            with safe_open(path, "pt") as file:  # pyright: ignore[reportPrivateImportUsage]
                about = file.metadata() or {}
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as e:
            raise SfumatoError(f"cannot read the checkpoint {path}: {e}; remove it to start anew") from None
        if about.get("run") != self.about:
            raise SfumatoError(
                f"{path} is of another run, {about.get('run', 'none')!r}; take another place or remove it"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        try:
            self.generator.load_state_dict(part("generator."))
        except RuntimeError:
            raise SfumatoError(f"{path} is of another generator; take another place or remove it") from None
        self.memory.update({k: v.to(next(self.generator.parameters()).device) for k, v in part("memory.").items()})
        if self.learner is not None:
            self.learner.restore(part("learner."))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimiser.").items():
            i, name = key.split(".", 1)
            moments.setdefault(int(i), {})[name] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
        return int(about["step"])
