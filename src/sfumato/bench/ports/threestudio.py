"""One step of score distillation as the public guidance code takes it, to be timed against; slips are marked.

Facts of threestudio's ``stable_diffusion_guidance`` and ``stable_diffusion_sdi_guidance``: what is asked of which
network, how often, under which scale, and what is decoded. One image, latents, guidance u + s (c - u).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.conditions import Cond

Latents = Float[Tensor, "1 c h w"]


class Guidance:
    """``model`` is one of our UNets; its networks are called directly."""

    def __init__(self, model: Any, prompt: str, scale: float):
        self.model, self.scale = model, scale
        self.texts = Cond.cat([model.embed([prompt]), model.embed([""])]).text
        self.alphas = model.pipe.scheduler.alphas_cumprod

    def noise(self, x: Latents, t: int, scale: float) -> Latents:
        both = self.model.network(torch.cat([x] * 2), torch.tensor([t] * 2), encoder_hidden_states=self.texts).sample
        prompted, empty = both.chunk(2)
        return empty + scale * (prompted - empty)


class PublicSDS(Guidance):
    def loss(self, latents: Latents, t: int) -> Tensor:
        """Decodes its estimate of the clean image in each step, whether it is used or not."""
        with torch.no_grad():
            alpha = self.alphas[t]
            noise = torch.randn_like(latents)
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
            predicted = self.noise(noisy, t, self.scale)
            clean = (noisy - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
            self.model.decode(clean)
        gradient = torch.nan_to_num((1 - alpha) * (predicted - noise))
        target = (latents - gradient).detach()
        return 0.5 * F.mse_loss(latents, target, reduction="sum") / len(latents)


class PublicSDI(Guidance):
    inversions = 10  # over all of the training's levels
    inverse_scale = -7.5
    eta = 0.3

    def loss(self, latents: Latents, t: int) -> Tensor:
        """Inverts on a grid of tenths of the training's levels, from a step before its first to past t."""
        with torch.no_grad():
            whole = len(self.alphas)
            stride = whole // self.inversions
            past = min(t + int(torch.randint(0, stride, (1,))), whole - 1)
            at = [i * stride + 1 for i in range(-1, self.inversions) if i * stride + 1 < t]
            x = latents
            for now, to in zip(at, [*at[1:], past], strict=True):
                predicted = self.noise(x, max(now, 0), self.inverse_scale)
                a, b = (self.alphas[max(0, min(i, whole - 1))] for i in (now, to))
                clean = (x - (1 - a).sqrt() * predicted) / a.sqrt()
                deviation = ((1 - a) / (1 - b) * (1 - b / a)).clamp_min(0).sqrt()
                x = b.sqrt() * clean + (1 - b).sqrt() * predicted + self.eta * deviation * torch.randn_like(x)
            alpha = self.alphas[t]
            predicted = self.noise(x, t, self.scale)
            target = (x - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
        return 0.5 * F.mse_loss(latents, target.detach(), reduction="mean") / len(latents)
