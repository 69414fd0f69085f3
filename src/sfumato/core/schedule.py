"""Noise levels and the algebra of predictions: x = alpha x0 + sigma eps, read from a checkpoint's scheduler.

Two functions, alpha and sigma, are the one currency (after Karras et al. 2022, Table 1). Variance-preserving schedules
have alpha^2 + sigma^2 = 1; flows have alpha + sigma = 1. The levels themselves come from the scheduler's own class in
diffusers, so betas, zero-terminal SNR, spacing, offset, shift and rearranged sigmas are the checkpoint's; none of their
``step`` functions is used. What a step does to the image that it believes in, ``limited`` does.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.brief import Brief
from sfumato.core.modes import unmoded
from sfumato.errors import SfumatoError, integer, unknown

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample", "flow")

KNOWN = (
    *("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"),
    *("LCMScheduler", "TCDScheduler"),
    *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"),
    "ScoreSdeVeScheduler",
)
"""diffusers' schedulers whose configs are understood."""
_TWICE = (
    *("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
    "FlowMatchHeunDiscreteScheduler",
)
"""Those that ask the network twice a step, and list what they visit."""
_LIMITS = ("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler", "LCMScheduler")
"""Those that can do both."""
_CLIPS = (*_LIMITS, "HeunDiscreteScheduler")
_THRESHOLDS = (
    *_LIMITS,
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler"),
    *("UniPCMultistepScheduler", "SASolverScheduler"),
)
_SAYS_NOTHING = {"tensor_format": "pt", "predict_epsilon": True}  # of old configs


class Level(NamedTuple):
    """A noise level, or one an image: the time that the network is given, and the two coefficients, in float64."""

    t: Float[Tensor, "*b"]
    alpha: Float[Tensor, "*b"]
    sigma: Float[Tensor, "*b"]

    @classmethod
    def of(cls, t: float, alpha: float, sigma: float) -> Level:
        """From numbers."""
        return cls(*torch.tensor((t, alpha, sigma), dtype=torch.float64, device="cpu"))

    def rows(self, at: Any) -> Level:
        """Some of several."""
        return Level(self.t[at], self.alpha[at], self.sigma[at])

    def like(self, x: Float[Tensor, "b *shape"]) -> tuple[Tensor, Tensor]:
        """alpha and sigma, to multiply images with. ``SfumatoError`` for another number of levels than of images."""
        return beside(self.alpha, x), beside(self.sigma, x)


@dataclass(frozen=True, eq=False)
class Levels(Brief):
    """The levels of one run, from noise to data: step i goes from level i to level i + 1.

    The last one is only reached: its ``t`` is given to no network.
    """

    all: Level
    """One more than there are steps."""
    spread: float = 1.0
    """Deviation of the noise that a run starts from: schedulers of k-diffusion's kind begin with sigma alone."""

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

    kind: str
    """diffusers' class of its scheduler, one of ``KNOWN``."""
    config: Mapping[str, Any]
    prediction: Prediction

    @classmethod
    def read(cls, scheduler: Any) -> Schedule:
        """From a diffusers scheduler, or a config that names its class; a class of one's own that leaves it to a known
        one to space levels counts as that.

        Raises ``SfumatoError`` for a class, a kind of prediction or an option that is not known, and for options that
        exclude each other.
        """
        given = isinstance(scheduler, Mapping)
        kind = scheduler.get("_class_name") if given else _kind(type(scheduler))
        if kind is None:
            raise SfumatoError("a scheduler's config does not say of which class it is; give the scheduler")
        if kind not in KNOWN:
            raise unknown("scheduler", kind, KNOWN)
        config = scheduler if given else scheduler.config
        plain = _completed(kind, {k: v for k, v in config.items() if not k.startswith("_")})
        flow = kind.startswith("FlowMatch") or plain.get("prediction_type") == "flow_prediction"
        if not kind.startswith("FlowMatch") and flow != plain.get("use_flow_sigmas", False):
            raise SfumatoError(
                f"{kind} has prediction_type {plain['prediction_type']!r} with use_flow_sigmas "
                f"{plain.get('use_flow_sigmas', False)}; a flow has 'flow_prediction' and True"
            )
        prediction = "flow" if flow else plain.get("prediction_type", "epsilon")
        if prediction not in PREDICTIONS:
            raise unknown("prediction type", prediction, PREDICTIONS)
        schedule = cls(kind, plain, cast("Prediction", prediction))
        schedule._check()
        return schedule

    def _check(self) -> None:
        """Refuse what diffusers refuses when it makes the scheduler."""
        if self.exploding:
            return
        try:
            scheduler = self._scheduler()
        except (ValueError, NotImplementedError, ImportError) as error:
            raise SfumatoError(f"{self.kind} cannot be made of its config: {' '.join(str(error).split())}") from error
        if self.prediction != "flow" and len(scheduler.alphas_cumprod) != self.train_steps:
            raise SfumatoError(
                f"trained_betas are {len(scheduler.alphas_cumprod)} and num_train_timesteps is {self.train_steps}"
            )

    @cached_property
    def _squares(self) -> Float[Tensor, " T"]:
        """alpha^2 at every training step, float64."""
        if self.exploding:  # Song et al. 2021, arXiv 2011.13456, appendix C: sigmas are a geometric sequence
            low, high = self.config["sigma_min"], self.config["sigma_max"]
            return 1 / (1 + (low * (high / low) ** torch.linspace(0, 1, self.train_steps, dtype=torch.float64)) ** 2)
        return self._scheduler().alphas_cumprod.double()

    @property
    def train_steps(self) -> int:
        return int(self.config["num_train_timesteps"])

    @property
    def exploding(self) -> bool:
        """Does its network read x / alpha, images to which noise is added, and sigma / alpha as the time?"""
        return self.kind == "ScoreSdeVeScheduler"

    @property
    def learns_variance(self) -> bool:
        """Does the network say how much noise a step of DDPM adds?"""
        return self.config.get("variance_type") in ("learned", "learned_range")

    @property
    def _continuous(self) -> bool:
        """Is the network told a quarter of log(sigma / alpha), and not a training step?"""
        return self.config.get("timestep_type") == "continuous" and self.prediction == "v_prediction"

    @property
    def distilled(self) -> bool:
        """Is it such as few-step models ship with: LCM's and TCD's, Turbo's, a flow that is sampled with new noise?"""
        turbo = self.kind in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
        turbo = turbo and self.prediction == "epsilon" and self.config["timestep_spacing"] == "trailing"
        consistent = self.kind in ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler")
        return turbo or consistent or bool(self.config.get("stochastic_sampling"))

    def _scheduler(self) -> Any:
        kind = "DDIMScheduler" if self.kind == "PNDMScheduler" else self.kind  # whose levels are those, each once
        return _made(kind, self.config)

    def at(self, t: float | Sequence[float] | Float[Tensor, "*b"]) -> Level:
        """The levels of training steps. Between two whole ones sigma / alpha is linear, as it is in diffusers' Euler.

        For flows sigma is t over the training steps.
        """
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        if self.prediction == "flow":
            if not bool(((t >= 0) & (t <= self.train_steps)).all()):
                raise SfumatoError(f"t lies from 0 to {self.train_steps} in this model, got {t.tolist()}")
            sigma = t / self.train_steps
            return Level(t, 1 - sigma, sigma)
        if self._continuous:
            return _level(t, (4 * t).exp())
        last = self.train_steps - 1
        if not bool(((t >= 0) & (t <= last)).all()):
            raise SfumatoError(f"t lies from 0 to {last} in this model, got {t.tolist()}")
        low, part = t.long(), t - t.floor()
        square = self._squares[low]
        if part.any():
            below, above = ((1 / each - 1).sqrt() for each in (square, self._squares[(low + 1).clamp_max(last)]))
            ratio = torch.where(part > 0, below + part * (above - below), below)
            square = torch.where(part > 0, 1 / (1 + ratio**2), square)
        return Level(t, square.sqrt(), (1 - square).sqrt())

    def at_ratio(self, ratio: Float[Tensor, ""]) -> Level:
        """The level of this sigma / alpha: between training steps its time is linear in the logarithm."""
        if self.prediction == "flow":
            sigma = ratio / (1 + ratio)
            return Level(sigma * self.train_steps, 1 - sigma, sigma)
        if self._continuous:
            return _level(ratio.log() / 4, ratio)
        logs, log = (1 / self._squares - 1).log() / 2, ratio.log()
        low = (torch.searchsorted(logs, log) - 1).clamp(0, self.train_steps - 2)
        return _level(low + ((log - logs[low]) / (logs[low + 1] - logs[low])).clamp(0, 1), ratio)

    def nearest(self, t: float | Float[Tensor, "*b"]) -> Level:
        """The levels nearest to these times: flows have any, other models whole steps."""
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        return self.at(t if self.prediction == "flow" else t.round())

    def thousandths(self, t: float) -> Level:
        """The level after so many thousandths of the training steps: what papers' numbers mean, of models of 1000."""
        return self.at(t) if self.train_steps == 1000 else self.nearest(t * self.train_steps / 1000)

    @unmoded()
    def levels(self, steps: int, tokens: int = 4096, sigmas: Sequence[float] | None = None) -> Levels:
        """The levels of a run of ``steps``, as the checkpoint's scheduler spaces them.

        ``tokens`` (of the image) matters to flows whose shift depends on the resolution; ``sigmas`` are what a
        pipeline gives a flow's scheduler to shift. Raises ``SfumatoError`` for more steps than there are levels.
        """
        steps = integer("a number of steps", steps)
        most = min(self.train_steps, self.config.get("original_inference_steps") or self.train_steps)
        if not 1 <= steps <= most:
            raise SfumatoError(f"this model has between 1 and {most} steps, got {steps}")
        found = self._levels(steps, tokens, sigmas)
        if not _falls(found, steps):
            others = (*range(steps - 1, 0, -1), *range(steps + 1, most + 1))
            other = next((n for n in others if _falls(self._levels(n, tokens, None), n)), None)
            raise SfumatoError(
                f"{self.kind}, by its config, is at a level twice or at none with {steps} steps"
                + (f"; take {other}" if other else "")
            )
        return found

    def _levels(self, steps: int, tokens: int, sigmas: Sequence[float] | None) -> Levels:
        if self.exploding:
            part = torch.linspace(1, self.config["sampling_eps"], steps, dtype=torch.float64)
            return joined(self.at(part * (self.train_steps - 1)), Level.of(-1, 1.0, 0.0))
        scheduler, options = self._scheduler(), {}
        if self.config.get("use_dynamic_shifting"):  # as Flux: the shift grows with the number of tokens
            options["mu"] = self._shift(tokens)
        if sigmas is not None and self.kind.startswith("FlowMatch"):
            options["sigmas"] = list(sigmas)
        else:
            options["num_inference_steps"] = steps
        scheduler.set_timesteps(**options)
        times = scheduler.timesteps.double()
        times = times[::2] if self.kind in _TWICE else times
        if not hasattr(scheduler, "sigmas"):
            # a scheduler with an offset may run one past the end of training
            found = self.at(times.clamp_max(self.train_steps - 1))
            final = self._final(scheduler)
            return joined(found, Level.of(-1, final**0.5, (1 - final) ** 0.5))
        ratios, times = scheduler.sigmas.double(), torch.cat([times, times.new_zeros(1)])
        ratios = torch.cat([ratios[:-1:2][:steps], ratios[-1:]]) if self.kind in _TWICE else ratios[: len(times)]
        if self.prediction == "flow":
            return Levels(Level(times, 1 - ratios, ratios))
        scaled = isinstance(getattr(type(scheduler), "init_noise_sigma", None), property)
        levels = _level(times, ratios)
        if not scaled:
            return Levels(levels)
        levels.alpha[-1], levels.sigma[-1] = 1.0, ratios[-1]  # what it ends with is data and noise, and not scaled down
        return Levels(levels, float(scheduler.init_noise_sigma) / float((ratios[0] ** 2 + 1).sqrt()))

    def _shift(self, tokens: int) -> float:
        """mu of a flow's shift, linear in the number of tokens."""
        base, most = self.config.get("base_shift", 0.5), self.config.get("max_shift", 1.15)
        first, last = self.config.get("base_image_seq_len", 256), self.config.get("max_image_seq_len", 4096)
        return base + (most - base) / (last - first) * (tokens - first)

    def _final(self, scheduler: Any) -> float:
        """alpha^2 where a run ends."""
        if self.kind == "TCDScheduler":
            return float(scheduler.alphas_cumprod[0])
        return 1.0 if self.kind == "LCMScheduler" else float(getattr(scheduler, "final_alpha_cumprod", 1.0))

    def limited(
        self,
        x: Float[Tensor, "b *shape"],
        x0: Float[Tensor, "b *shape"],
        eps: Float[Tensor, "b *shape"],
        level: Level,
    ) -> tuple[Float[Tensor, "b *shape"], Float[Tensor, "b *shape"]]:
        """Data and noise of a step as the scheduler's own step limits them: clipped, or thresholded (Saharia et al.
        2022, section 2.3), where its config says so.

        The noise follows the limited data, but for DDIM's, which keeps what the network said.
        """
        config = self.config
        if config.get("thresholding") and self.kind in _THRESHOLDS:
            most = x0.flatten(1).abs().quantile(config["dynamic_thresholding_ratio"], dim=1)
            most = most.clamp(1, config["sample_max_value"]).view(-1, *[1] * (x0.ndim - 1))
            limited = x0.clamp(-most, most) / most
        elif config.get("clip_sample") and self.kind in _CLIPS:
            limited = x0.clamp(-config["clip_sample_range"], config["clip_sample_range"])
        else:
            return x0, eps
        return limited, eps if self.kind.startswith("DDIM") else noise_in(x, limited, level)

    def x0_and_eps(
        self, prediction: Float[Tensor, "b *shape"], x: Float[Tensor, "b *shape"], level: Level
    ) -> tuple[Float[Tensor, "b *shape"], Float[Tensor, "b *shape"]]:
        """What the network's output says of data and noise at a level."""
        alpha, sigma = level.like(x)
        if self.prediction == "epsilon":
            if (alpha == 0).any():
                raise SfumatoError(
                    "a network that predicts the noise knows nothing of the image where alpha is zero, and there the "
                    f"levels of {self.kind} begin; load(scheduler=...) with one without rescale_betas_zero_snr, or, "
                    "where the network was trained so, of prediction_type v_prediction"
                )
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


def _kind(own: Any) -> str:
    """The known class that spaces a scheduler's levels, or else its own."""
    spacing = (c for c in own.__mro__ if c.__name__ in KNOWN and c.set_timesteps is own.set_timesteps)
    return next(spacing, own).__name__


def _made(kind: str, config: Mapping[str, Any]) -> Any:
    """A scheduler with what it reads of a config."""
    import diffusers

    made: Any = getattr(diffusers, kind)
    return made(**{k: v for k, v in config.items() if k in _options(made)})


@cache
def _options(kind: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind).parameters


def _completed(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the defaults of its scheduler, whose options it has; others' it does not read either.

    Raises ``SfumatoError`` for an option that no known scheduler has, or that is none for a run from noise to images.
    """
    import diffusers

    own = _options(getattr(diffusers, kind))
    every = {option for each in KNOWN for option in _options(getattr(diffusers, each))}
    for key, value in config.items():
        if key not in every and value is not None and _SAYS_NOTHING.get(key) != value:
            raise SfumatoError(f"{kind} has the option {key} ({value!r}), which no known scheduler has")
    full = {k: config.get(k, p.default) for k, p in own.items()}
    if full.get("invert_sigmas"):
        raise SfumatoError(f"{kind} has invert_sigmas, so its flow runs from data to noise, which is not known")
    if full.get("scale_factors"):
        raise SfumatoError(f"{kind} has scale_factors, so its images grow from step to step, which is not known")
    return full


def _level(t: Float[Tensor, "*b"], ratio: Float[Tensor, "*b"]) -> Level:
    """Variance-preserving levels where sigma / alpha is this."""
    square = 1 / (1 + ratio**2)
    return Level(t, square.sqrt(), (1 - square).sqrt())


def _falls(levels: Levels, steps: int) -> bool:
    """Are there so many steps, each beginning at less noise than the one before?"""
    ratio = levels.all.sigma / levels.all.alpha
    return len(levels) == steps and not ratio.isnan().any() and bool((ratio[1:-1] < ratio[:-2]).all())


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
