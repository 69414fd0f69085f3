"""From an image back to noise, in a way that finds the image again: each inversion gives a ``Path`` to start from.

All of them work on a batch of images at once. ``denoise(model, prompts, start=path)`` follows the path's levels and
stepper; the run's first stream is the image itself, the others are edits of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones import Backbone, Cond
from sfumato.denoising import Step
from sfumato.errors import SfumatoError
from sfumato.guidance import CFG, Guide
from sfumato.plan import Method, Phases, Run
from sfumato.rows import single
from sfumato.schedule import Level, Levels, add_noise
from sfumato.steppers import DDIM, Stepper, posterior_std

Advance = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Path(Method):
    """Where to start, and what holds the first stream to its image on the way."""

    latents: Float[Tensor, "b c h w"]
    """At the first level."""
    levels: Levels
    prompts: tuple[str, ...]
    image: Float[Tensor, "b c h w"]
    """The image's latents."""
    stepper: Stepper = field(default_factory=DDIM)
    track: tuple[Float[Tensor, "b c h w"], ...] = ()
    """The image at every level, the first to the last; empty when it is not known."""
    pinned: bool = False
    """Put the first stream back on the track after each step."""
    uncond: tuple[Float[Tensor, "b n d"], ...] = ()
    """For each step the text that takes the place of the empty prompt's."""
    noises: tuple[Float[Tensor, "b c h w"], ...] = ()
    """For each step the unit noise of a stochastic stepper."""

    def start(self, run: Run) -> Phases:
        first = run.images(run.rows.streams[0])
        streams = len(run.rows.streams)
        if self.uncond and "uncond" not in run.rows.conditions:
            raise SfumatoError(
                "this path replaces the empty prompt, so it takes a guidance with one; give a scale above 1"
            )

        def cond(step: Step, now: Cond) -> Cond:
            text = now.text.clone()
            for stream in run.rows.streams:
                text[run.rows[stream, "uncond"]] = self.uncond[step.i].to(text)
            return replace(now, text=text)

        def after(step: Step) -> None:
            step.x_next = step.x_next.clone()
            step.x_next[first] = self.track[step.i + 1].to(step.x_next)

        return Phases(
            cond=cond if self.uncond else None,
            noise=(lambda step: self.noises[step.i].repeat(streams, 1, 1, 1)) if self.noises else None,
            after=after if self.pinned else None,
        )


class Inversion:
    """A way to invert, with its published defaults."""

    steps: int

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        """``image``: latents. ``advance`` is called once for each prediction of the whole batch."""
        raise NotImplementedError


def invert(
    model: Backbone,
    images: Float[Tensor, "b 3 H W"] | Float[Tensor, "3 H W"],
    prompt: str | Sequence[str] = "",
    how: Inversion | None = None,
) -> Path:
    """The path back from images in [0, 1], each described by its prompt. The default is ``Direct()``.

    Raises ``SfumatoError`` when sides are not multiples of what the model works in, or prompts and images do not match.
    """
    from sfumato.terminal import progress

    images = images[None] if images.ndim == 3 else images
    prompts = (prompt,) * len(images) if isinstance(prompt, str) else tuple(prompt)
    if len(prompts) != len(images):
        raise SfumatoError(f"{len(images)} images need a prompt each, got {len(prompts)}")
    model.check_size(*images.shape[-2:])
    how = how or Direct()
    with torch.no_grad():
        image = model.encode(images.to(model.device))
        with progress("inverting", how.steps) as advance:
            return how(model, image, prompts, advance)


def predict(
    model: Backbone, x: Tensor, label: float, at: Level, conds: dict[str, Cond], guide: Guide
) -> tuple[Tensor, Tensor]:
    """(x0, eps) of a guided prediction for latents at a level, the network told ``label``."""
    batch = x.repeat(len(conds), 1, 1, 1)
    told = model.predict(batch, label, Cond.cat(list(conds.values())))
    prediction = guide.combine(dict(zip(conds, told.split(len(x)), strict=True)), single(len(x)))
    return model.schedule.x0_and_eps(prediction, x, at)


@dataclass(frozen=True)
class Noise(Inversion):
    """One level of noise (SDEdit, Meng et al. 2022): the image is kept only as far as the noise lets it through."""

    strength: float = 0.8
    """Part of the steps that are run; diffusers' default."""
    seed: int = 0
    steps: int = 50

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        if not 0 <= self.strength <= 1:
            raise SfumatoError(f"strength lies between 0 and 1, got {self.strength}")
        levels = model.schedule.levels(self.steps).last(int(self.steps * self.strength + 1e-9))
        height, width = (n * model.factor for n in image.shape[-2:])
        noise = model.latents([self.seed + i for i in range(len(image))], height, width)
        start = add_noise(image, noise, levels[0]) if len(levels) else image
        return Path(start, levels, prompts, image)


@dataclass(frozen=True)
class DDIMInversion(Inversion):
    """DDIM run backwards (Song et al. 2021, eq. 14; Dhariwal and Nichol 2021, appendix F).

    The network is told the level that a step leads to while the latents are still one step cleaner; ``refine`` repeats
    each step with the latents it led to, towards the exact inverse (fixed-point iteration, Pan et al. 2023).
    """

    scale: float = 1.0
    refine: int = 0
    steps: int = 50

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        track = self.track(model, image, prompts, advance)
        return Path(track[0], model.schedule.levels(self.steps), prompts, image, track=track)

    def track(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> tuple[Tensor, ...]:
        """The image at every level, the noisiest first."""
        levels = model.schedule.levels(self.steps)
        guide = CFG(self.scale)
        conds = guide.embed(model, prompts)
        track = [image]
        for i in reversed(range(self.steps)):
            at, to = levels[i + 1], levels[i]
            x0, eps = predict(model, track[-1], to.t, at, conds, guide)
            x = add_noise(x0, eps, to)
            for _ in range(self.refine):  # x0 and eps such that the step from x leads back
                _, eps = predict(model, x, to.t, to, conds, guide)
                x = add_noise((track[-1] - at.sigma * eps) / at.alpha, eps, to)
            track.append(x)
            advance()
        return tuple(reversed(track))


@dataclass(frozen=True)
class Direct(Inversion):
    """Direct inversion (Ju et al. 2024): after each step the source is put back on its DDIM track.

    The authors add the difference between track and step to the source; what results is the track itself, so here it is
    simply put there, and costs no prediction.
    """

    refine: int = 0
    steps: int = 50

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        return replace(DDIMInversion(1.0, self.refine, self.steps)(model, image, prompts, advance), pinned=True)


@dataclass(frozen=True)
class NegativePrompt(Inversion):
    """Negative-prompt inversion (Miyake et al. 2023): the source's prompt takes the place of the empty one."""

    steps: int = 50

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        path = DDIMInversion(1.0, 0, self.steps)(model, image, prompts, advance)
        return replace(path, uncond=(model.embed(prompts).text,) * self.steps)


@dataclass(frozen=True)
class NullText(Inversion):
    """Null-text inversion (Mokady et al. 2023): at each step the empty prompt's text is fitted so that the guided step
    follows the DDIM track.

    Defaults of the authors' code: at most 10 steps of a new Adam a level, rate 1e-2 (1 - i/100), end at 1e-5 + 2e-5 i.
    Images of a batch are fitted together and stop on their own, with the result of fitting each alone.
    """

    scale: float = 7.5
    inner: int = 10
    rate: float = 1e-2
    tolerance: float = 1e-5
    steps: int = 50

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        levels = model.schedule.levels(self.steps)
        track = DDIMInversion(1.0, 0, self.steps).track(model, image, prompts, lambda: None)
        cond, empty = model.embed(prompts), model.embed([""] * len(image))
        text, x, found = empty.text.clone(), track[0], []
        for i in range(self.steps):
            at, to = levels[i], levels[i + 1]
            said = model.predict(x, at.t, cond)
            text = self._fit(model, x, track[i + 1], at, to, said, replace(empty, text=text), i)
            found.append(text)
            x = self._step(model, x, at, to, said, model.predict(x, at.t, replace(empty, text=text)))
            advance()
        return Path(track[0], levels, prompts, image, track=track, uncond=tuple(found))

    def _step(self, model: Backbone, x: Tensor, at: Level, to: Level, said: Tensor, empty: Tensor) -> Tensor:
        x0, eps = model.schedule.x0_and_eps(empty + self.scale * (said - empty), x, at)
        return add_noise(x0, eps, to)

    def _fit(
        self, model: Backbone, x: Tensor, goal: Tensor, at: Level, to: Level, said: Tensor, empty: Cond, i: int
    ) -> Tensor:
        """eq. 3 of the paper: the text for which the step from ``x`` leads to ``goal``."""
        text = empty.text.clone().requires_grad_()
        rate, enough = self.rate * (1 - i / 100), self.tolerance + i * 2e-5
        adam = torch.optim.Adam([text], lr=rate)
        going = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for _ in range(self.inner):
            with torch.enable_grad():
                told = model.predict(x, at.t, replace(empty, text=text))
                error = (self._step(model, x, at, to, said, told) - goal).square().mean((1, 2, 3))
                (text.grad,) = torch.autograd.grad(error.sum(), text)
            before = text.detach().clone()
            adam.step()
            with torch.no_grad():
                text[~going] = before[~going]
            going &= error.detach() >= enough  # the authors look after the step
            if not going.any():
                break
        return text.detach()


@dataclass(frozen=True)
class EditFriendly(Inversion):
    """Edit-friendly DDPM inversion (Huberman-Spiegelglas et al. 2024): noise of its own for every level, and the unit
    noises with which DDPM walks from one to the next.

    Published: 100 steps, the first 36 skipped, source scale 3.5 and 15 for the edit. Following the path with the
    source's prompt and scale gives the image back exactly: unlike the authors' code, the last step's noise is kept too.
    """

    scale: float = 3.5
    skip: float = 0.36
    """Part of the steps that an edit leaves out."""
    seed: int = 0
    steps: int = 100

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        levels = model.schedule.levels(self.steps).last(self.steps - int(self.skip * self.steps + 1e-9))
        guide = CFG(self.scale)
        conds = guide.embed(model, prompts)
        generator = torch.Generator().manual_seed(self.seed)
        noisy = [
            add_noise(image, torch.randn(image.shape, generator=generator).to(image), level) for level in levels.levels
        ]
        noisy[-1] = image
        x, noises = noisy[0], []
        for i in range(len(levels)):
            at, to = levels[i], levels[i + 1]
            x0, eps = predict(model, x, at.t, at, conds, guide)
            std = posterior_std(at, to)
            mean = to.alpha * x0 + max(0.0, to.sigma**2 - std**2) ** 0.5 * eps
            noises.append((noisy[i + 1] - mean) / std if std else torch.zeros_like(x))
            x = mean + std * noises[-1]  # not noisy[i + 1]: errors must not add up
            advance()
        return Path(noisy[0], levels, prompts, image, DDIM(1.0), track=(noisy[0],), noises=tuple(noises))


def reconstruct(model: Backbone, path: Path, guide: Guide | float = 1.0) -> Tensor:
    """The latents that following a path with its own prompts leads to."""
    from sfumato.denoising import denoise

    return denoise(model, path.prompts, start=path, guide=guide).latents
