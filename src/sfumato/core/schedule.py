"""Noise levels and the algebra of predictions: x = alpha x0 + sigma eps, read from a checkpoint's scheduler config.

Two functions, alpha and sigma, are the one currency (after Karras et al. 2022, Table 1). Variance-preserving schedules
have alpha^2 + sigma^2 = 1; flows have alpha + sigma = 1. The levels themselves come from diffusers' own schedulers, so
betas, zero-terminal SNR, spacing, offset and shift are the checkpoint's; none of their ``step`` functions is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError, unknown

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample", "flow")


class Level(NamedTuple):
    """A noise level, or one an image: the time that the network is given, and the two coefficients, in float64."""

    t: Float[Tensor, "*b"]
    alpha: Float[Tensor, "*b"]
    sigma: Float[Tensor, "*b"]

    @classmethod
    def of(cls, t: float, alpha: float, sigma: float) -> Level:
        """From numbers."""
        return cls(*torch.tensor((t, alpha, sigma), dtype=torch.float64))

    def rows(self, at: Any) -> Level:
        """Some of several."""
        return Level(self.t[at], self.alpha[at], self.sigma[at])

    def like(self, x: Float[Tensor, "b *shape"]) -> tuple[Tensor, Tensor]:
        """alpha and sigma, to multiply images with. ``SfumatoError`` for another number of levels than of images."""
        return beside(self.alpha, x), beside(self.sigma, x)


@dataclass(frozen=True, eq=False)
class Levels:
    """The levels of one run, from noise to data: step i goes from level i to level i + 1.

    The last one is only reached: its ``t`` is given to no network.
    """

    all: Level
    """One more than there are steps."""

    def __len__(self) -> int:
        """How many steps there are."""
        return len(self.all.t) - 1

    def __getitem__(self, i: int) -> Level:
        return self.all.rows(i)

    def __iter__(self) -> Iterator[Level]:
        """Over all levels, the last too."""
        return map(self.all.rows, range(len(self) + 1))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Levels) and all(map(torch.equal, self.all, other.all))

    def last(self, steps: int | float) -> Levels:
        """Only the last ``steps`` steps, a number or a part: what SDEdit and inversions that stop early run."""
        steps = part_of(len(self), steps) if isinstance(steps, float) else steps
        if not 0 <= steps <= len(self):
            raise SfumatoError(f"there are {len(self)} steps, so the last {steps} cannot be taken")
        return Levels(self.all.rows(slice(len(self) - steps, None)))

    def without(self, part: float) -> Levels:
        """Without this part of the steps, the first."""
        return self.last(len(self) - part_of(len(self), part))


@dataclass(frozen=True)
class Schedule:
    """How a checkpoint was noised, and what it predicts."""

    config: Mapping[str, Any]
    prediction: Prediction

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Schedule:
        """From a diffusers scheduler's config. ``SfumatoError`` for a kind of prediction that is not known."""
        plain = {k: v for k, v in config.items() if not k.startswith("_")}
        flow = "beta_start" not in plain  # only flows have none; a scheduler in memory does not tell its class
        kind = "flow" if flow else plain.get("prediction_type", "epsilon")
        if kind not in PREDICTIONS:
            raise unknown("prediction type", kind, PREDICTIONS)
        return cls(plain, cast("Prediction", kind))

    @cached_property
    def _alphas(self) -> Float[Tensor, " T"]:
        """alpha^2 at every training step, float64."""
        return self._scheduler().alphas_cumprod.double()

    @property
    def train_steps(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    def _scheduler(self) -> Any:
        from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

        kind: Any = FlowMatchEulerDiscreteScheduler if self.prediction == "flow" else DDIMScheduler
        return kind.from_config({k: v for k, v in self.config.items() if k in inspect.signature(kind).parameters})

    def at(self, t: float | Sequence[float] | Float[Tensor, "*b"]) -> Level:
        """The levels of training steps (for flows, real numbers: sigma is t over the training steps)."""
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        if self.prediction == "flow":
            if not bool(((t >= 0) & (t <= self.train_steps)).all()):
                raise SfumatoError(f"t lies from 0 to {self.train_steps} in this model, got {t.tolist()}")
            sigma = t / self.train_steps
            return Level(t, 1 - sigma, sigma)
        if not bool(((t >= 0) & (t < self.train_steps) & (t == t.floor())).all()):
            raise SfumatoError(f"t is a whole number from 0 to {self.train_steps - 1}, got {t.tolist()}")
        square = self._alphas[t.long()]
        return Level(t, square.sqrt(), (1 - square).sqrt())

    def nearest(self, t: float | Float[Tensor, "*b"]) -> Level:
        """The levels nearest to these times: flows have any, other models whole steps."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return self.at(t if self.prediction == "flow" else t.round())

    def thousandths(self, t: float) -> Level:
        """The level after so many thousandths of the training steps: what papers' numbers mean, of models of 1000."""
        return self.at(t) if self.train_steps == 1000 else self.nearest(t * self.train_steps / 1000)

    def levels(self, steps: int, tokens: int = 4096) -> Levels:
        """The levels of a run of ``steps``, as the checkpoint's scheduler spaces them.

        ``tokens`` (of the image) matters to flows whose shift depends on the resolution.
        """
        if not 1 <= steps <= self.train_steps:
            raise SfumatoError(f"this model has between 1 and {self.train_steps} steps, got {steps}")
        scheduler = self._scheduler()
        if self.prediction == "flow":
            return self._flow_levels(scheduler, steps, tokens)
        scheduler.set_timesteps(steps)
        final = float(scheduler.final_alpha_cumprod)
        # a scheduler with an offset may run one past the end of training
        times = self.at(scheduler.timesteps.clamp_max(self.train_steps - 1))
        return joined(times, Level.of(-1, final**0.5, (1 - final) ** 0.5))

    def _flow_levels(self, scheduler: Any, steps: int, tokens: int) -> Levels:
        config = scheduler.config
        if config.use_dynamic_shifting:  # as Flux: the shift grows with the number of tokens
            slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
            mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
            scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=mu)
        else:
            scheduler.set_timesteps(steps)
        sigmas = scheduler.sigmas.double()
        times = torch.cat([scheduler.timesteps.double(), torch.zeros(1, dtype=torch.float64)])
        return Levels(Level(times, 1 - sigmas, sigmas))

    def x0_and_eps(
        self, prediction: Float[Tensor, "b *shape"], x: Float[Tensor, "b *shape"], level: Level
    ) -> tuple[Float[Tensor, "b *shape"], Float[Tensor, "b *shape"]]:
        """What the network's output says of data and noise at a level."""
        alpha, sigma = level.like(x)
        if self.prediction == "epsilon":
            if (alpha == 0).any():
                raise SfumatoError("a network that predicts the noise knows nothing of the image where alpha is zero")
            return (x - sigma * prediction) / alpha, prediction
        if self.prediction == "v_prediction":
            return alpha * x - sigma * prediction, sigma * x + alpha * prediction
        if self.prediction == "flow":
            return x - sigma * prediction, x + alpha * prediction
        if (sigma == 0).any():
            raise SfumatoError("where sigma is zero there is no noise to tell")
        return prediction, (x - alpha * prediction) / sigma

    def prediction_of(
        self, x0: Float[Tensor, "b *shape"], eps: Float[Tensor, "b *shape"], level: Level
    ) -> Float[Tensor, "b *shape"]:
        """What the network should say of this data and noise: the inverse of ``x0_and_eps``."""
        alpha, sigma = level.like(x0)
        if self.prediction == "epsilon":
            return eps
        if self.prediction == "v_prediction":
            return alpha * eps - sigma * x0
        return eps - x0 if self.prediction == "flow" else x0

    def predicting(self, prediction: Prediction) -> Schedule:
        """The same levels for a network that predicts something else."""
        return replace(self, prediction=prediction)


def beside(values: Float[Tensor, "*b"], x: Float[Tensor, "b *shape"]) -> Tensor:
    """A number an image, to multiply images with; of one for all it stays a number."""
    if not values.ndim:
        return values
    if len(values) not in (1, len(x)):
        raise SfumatoError(f"{len(x)} images need a level each or one for all, got {len(values)}")
    return values.to(x).view(-1, *[1] * (x.ndim - 1))


def add_noise(x0: Float[Tensor, "b *shape"], eps: Float[Tensor, "b *shape"], level: Level) -> Float[Tensor, "b *shape"]:
    """x at ``level``: alpha x0 + sigma eps."""
    alpha, sigma = level.like(x0)
    return alpha * x0 + sigma * eps


def without_noise(
    x: Float[Tensor, "b *shape"], eps: Float[Tensor, "b *shape"], level: Level
) -> Float[Tensor, "b *shape"]:
    """The image that a noisy one is without this noise: (x - sigma eps) / alpha."""
    alpha, sigma = level.like(x)
    return (x - sigma * eps) / alpha


def noise_in(x: Float[Tensor, "b *shape"], x0: Float[Tensor, "b *shape"], level: Level) -> Float[Tensor, "b *shape"]:
    """The noise that brought clean images to noisy ones: (x - alpha x0) / sigma."""
    alpha, sigma = level.like(x)
    return (x - alpha * x0) / sigma


def noised(x: Float[Tensor, "b *shape"], at: Level, to: Level, noise: Tensor) -> Float[Tensor, "b *shape"]:
    """x at a noisier level, with new noise: the forward process from ``at`` to ``to``."""
    ratio = to.alpha / at.alpha
    return ratio * x + (to.sigma**2 - (ratio * at.sigma) ** 2).clamp_min(0).sqrt() * noise


def score(eps: Float[Tensor, "b *shape"], level: Level) -> Float[Tensor, "b *shape"]:
    """The gradient of log p(x) that a noise prediction stands for: -eps / sigma."""
    return -eps / level.like(eps)[1]


def joined(*levels: Level) -> Levels:
    """A run through all of these, one after the other."""
    return Levels(Level(*(torch.cat([v.view(-1) for v in each]) for each in zip(*levels, strict=True))))


def part_of(steps: int, part: float) -> int:
    """So many steps are this part of them, rounded down (0.8 of 50 is 40)."""
    return int(part * steps + 1e-9)
