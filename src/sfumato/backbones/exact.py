"""The denoiser that is exactly right: for data from a mixture of Gaussians the best network is a formula.

It has no attention and no weights to learn. Samplers, guidance and inversions are checked against it in closed form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.schedule import Level, Schedule
from sfumato.errors import unknown


@dataclass(frozen=True)
class Mixture:
    """Gaussians of variance ``std`` squared in every direction around ``means``, with ``weights`` that sum to one."""

    means: Float[Tensor, "k c h w"]
    std: float
    weights: tuple[float, ...] = (1.0,)

    def posterior(
        self, x: Float[Tensor, "b c h w"], level: Level
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """E[x0 | x] and E[eps | x]: each component's own, weighted by how likely it made x."""
        x = x[:, None]  # beside the components
        alpha, sigma = level.like(x)
        variance = alpha**2 * self.std**2 + sigma**2
        means = self.means.to(x)
        away = x - alpha * means
        likely = torch.tensor(self.weights).log().to(x) - (away.square() / (2 * variance)).flatten(2).sum(-1)
        share = likely.softmax(1).view(*likely.shape, 1, 1, 1)
        x0 = means + alpha * self.std**2 / variance * away
        return (share * x0).sum(1), (share * sigma / variance * away).sum(1)


class Exact(Backbone):
    """A prompt is the name of a mixture; latents are the image, in [-1, 1]."""

    factor = multiple = 1
    sites = ()
    text_tokens = 1

    def __init__(self, mixtures: Mapping[str, Mixture], schedule: Schedule):
        self.name = "exact"
        self.mixtures = dict(mixtures)
        self.schedule = schedule
        self.channels, self.size = next(iter(self.mixtures.values())).means.shape[1:3]
        self.network = nn.Module()
        self.network.register_parameter("device", nn.Parameter(torch.zeros(()), requires_grad=False))

    def embed(self, prompts: Sequence[str]) -> Cond:
        for prompt in prompts:
            if prompt not in self.mixtures:
                raise unknown("mixture", prompt, self.mixtures)
        return Cond(torch.zeros(len(prompts), 1, 1), tuple(prompts))

    def predict(self, x: Float[Tensor, "b c h w"], t: float | Float[Tensor, "*b"], cond: Cond) -> Tensor:
        level = self.schedule.at(t)
        x0, eps = torch.empty_like(x), torch.empty_like(x)
        for prompt in set(cond.prompts):
            at = [i for i, p in enumerate(cond.prompts) if p == prompt]
            x0[at], eps[at] = self.mixtures[prompt].posterior(x[at], level.rows(at) if level.t.ndim else level)
        return self.schedule.prediction_of(x0, eps, level)

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        return images * 2 - 1

    def check_images(self, images: Tensor) -> None:
        """Of any channels and values: what a mixture is of."""
        self.check_size(*images.shape[-2:])

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        return latents / 2 + 0.5

    def words(self, prompt: str) -> list[tuple[str, slice]]:
        return [(prompt, slice(0, 1))]
