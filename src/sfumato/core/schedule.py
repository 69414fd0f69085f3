"""Noise levels and the algebra of predictions: x = alpha x0 + sigma eps, read from a checkpoint's scheduler config.

Two functions, alpha and sigma, are the one currency (after Karras et al. 2022, Table 1). Variance-preserving schedules
have alpha^2 + sigma^2 = 1; flows have alpha + sigma = 1. The levels themselves come from diffusers' own schedulers, so
betas, zero-terminal SNR, spacing, offset and shift are the checkpoint's; none of their ``step`` functions is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
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
    """One noise level: what the network is told, and the two coefficients."""

    t: float
    alpha: float
    sigma: float


@dataclass(frozen=True)
class Levels:
    """The levels of one run, from noise to data: step i goes from level i to level i + 1.

    The last one is only reached: its ``t`` is told to no network.
    """

    levels: tuple[Level, ...]

    def __len__(self) -> int:
        """How many steps there are."""
        return len(self.levels) - 1

    def __getitem__(self, i: int) -> Level:
        return self.levels[i]

    def last(self, steps: int) -> Levels:
        """Only the last ``steps`` steps: what SDEdit and inversions that stop early run."""
        if not 0 <= steps <= len(self):
            raise SfumatoError(f"there are {len(self)} steps, so the last {steps} cannot be taken")
        return Levels(self.levels[len(self) - steps :])


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

    def at(self, t: float) -> Level:
        """The level of training step ``t`` (for flows, a real number: sigma is t over the training steps)."""
        if self.prediction == "flow":
            sigma = t / self.train_steps
            return Level(t, 1 - sigma, sigma)
        if not 0 <= t < self.train_steps or t != int(t):
            raise SfumatoError(f"t is a whole number from 0 to {self.train_steps - 1}, got {t}")
        square = float(self._alphas[int(t)])
        return Level(t, square**0.5, (1 - square) ** 0.5)

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
        times = [min(t, self.train_steps - 1) for t in scheduler.timesteps.tolist()]
        return Levels((*map(self.at, times), Level(-1, final**0.5, (1 - final) ** 0.5)))

    def _flow_levels(self, scheduler: Any, steps: int, tokens: int) -> Levels:
        config = scheduler.config
        if config.use_dynamic_shifting:  # as Flux: the shift grows with the number of tokens
            slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
            mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
            scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=mu)
        else:
            scheduler.set_timesteps(steps)
        sigmas = scheduler.sigmas.double().tolist()
        times = [*scheduler.timesteps.tolist(), 0.0]
        return Levels(tuple(Level(t, 1 - s, s) for t, s in zip(times, sigmas, strict=True)))

    def x0_and_eps(
        self, prediction: Float[Tensor, "b *shape"], x: Float[Tensor, "b *shape"], level: Level
    ) -> tuple[Float[Tensor, "b *shape"], Float[Tensor, "b *shape"]]:
        """What the network's output says of data and noise at a level."""
        _, alpha, sigma = level
        if self.prediction == "epsilon":
            if alpha == 0:
                raise SfumatoError("a network that predicts the noise knows nothing of the image where alpha is zero")
            return (x - sigma * prediction) / alpha, prediction
        if self.prediction == "v_prediction":
            return alpha * x - sigma * prediction, sigma * x + alpha * prediction
        if self.prediction == "flow":
            return x - sigma * prediction, x + alpha * prediction
        if sigma == 0:
            raise SfumatoError("where sigma is zero there is no noise to tell")
        return prediction, (x - alpha * prediction) / sigma

    def prediction_of(
        self, x0: Float[Tensor, "b *shape"], eps: Float[Tensor, "b *shape"], level: Level
    ) -> Float[Tensor, "b *shape"]:
        """What the network should say of this data and noise: the inverse of ``x0_and_eps``."""
        _, alpha, sigma = level
        if self.prediction == "epsilon":
            return eps
        if self.prediction == "v_prediction":
            return alpha * eps - sigma * x0
        return eps - x0 if self.prediction == "flow" else x0

    def predicting(self, prediction: Prediction) -> Schedule:
        """The same levels for a network that predicts something else."""
        return replace(self, prediction=prediction)


def add_noise(x0: Float[Tensor, "b *shape"], eps: Float[Tensor, "b *shape"], level: Level) -> Float[Tensor, "b *shape"]:
    """x at ``level``: alpha x0 + sigma eps."""
    return level.alpha * x0 + level.sigma * eps


def noised(x: Float[Tensor, "b *shape"], at: Level, to: Level, noise: Tensor) -> Float[Tensor, "b *shape"]:
    """x at a noisier level, with new noise: the forward process from ``at`` to ``to``."""
    ratio = to.alpha / at.alpha
    return ratio * x + max(0.0, to.sigma**2 - (ratio * at.sigma) ** 2) ** 0.5 * noise


def score(eps: Float[Tensor, "b *shape"], level: Level) -> Float[Tensor, "b *shape"]:
    """The gradient of log p(x) that a noise prediction stands for: -eps / sigma."""
    return -eps / level.sigma
