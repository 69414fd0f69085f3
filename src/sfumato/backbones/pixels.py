"""Models that paint without words: a UNet2DModel on pixels (DDPM and its kind), or on the latents of a VQ autoencoder.

The diffusers pipelines of DDPM, DDIM, PNDM, unconditional latent diffusion, and score models whose variance explodes
(NCSN++). Their only prompt is the empty one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones import autoencoders, kinds
from sfumato.backbones.changes import OfPipe
from sfumato.backbones.parts import of_parts
from sfumato.backbones.unet import OfUNet
from sfumato.core.backbone import Backbone, times
from sfumato.core.conditions import Cond
from sfumato.core.modes import unmoded
from sfumato.core.schedule import Schedule
from sfumato.errors import SfumatoError, finite


class Pixels(OfUNet, OfPipe, Backbone):
    """Images are their own latents, in [-1, 1], unless the pipeline has an autoencoder (``vqvae``).

    Of a score model whose variance explodes images are in [0, 1] (Song et al. 2021, arXiv 2011.13456), and what its
    network says, the score, is given as the noise.
    """

    text_tokens = 0

    kind = "Pixels"

    def __init__(self, name: str, pipe: Any):
        self.name, self.pipe = name, pipe
        _ = self.schedule, self.size  # what is not known is refused here

    @of_parts("pipe.unet")
    def network(self) -> Any:
        kinds.check(self)
        return self.pipe.unet

    @property
    def vae(self) -> Any:
        """The autoencoder, where there is one."""
        return getattr(self.pipe, "vqvae", None)

    @of_parts("pipe.scheduler", "pipe.scheduler.config")
    def schedule(self) -> Schedule:
        return Schedule.read(self.pipe.scheduler)

    @property
    def channels(self) -> int:
        return self.network.config.in_channels

    @property
    def factor(self) -> int:
        return 1 if self.vae is None else autoencoders.factor(self.vae, self.name)

    @property
    def multiple(self) -> int:
        return self.factor * 2 ** (len(self.network.config.block_out_channels) - 1)

    @of_parts("network", "vae")
    def size(self) -> int:
        sides = self.network.config.sample_size
        if sides is None:
            raise SfumatoError(f"the UNet2DModel of {self.name} does not say its sample_size, the side of its images")
        return kinds.side(self.name, sides) * self.factor

    @property
    def colours(self) -> int:
        return self.channels if self.vae is None else 3

    def embed(self, prompts: Sequence[str]) -> Cond:
        if prompt := next(filter(None, prompts), None):
            raise SfumatoError(f"{self.name} paints without words, so its only prompt is the empty one, not {prompt!r}")
        return Cond(torch.zeros(len(prompts), 0, 1, device=self.device), tuple(prompts))

    @unmoded()
    def predict(self, x: Float[Tensor, "b c h w"], t: float | Float[Tensor, "*b"], cond: Cond) -> Tensor:
        return self.with_variance(x, t, cond)[:, : self.channels]

    def with_variance(self, x: Float[Tensor, "b c h w"], t: float | Float[Tensor, "*b"], cond: Cond) -> Tensor:
        if len(cond) != len(x):
            raise SfumatoError(f"{len(x)} images need {len(x)} rows of conditions, got {len(cond)}")
        if cond.image is not None or cond.controls:
            raise SfumatoError(f"{self.name} reads nothing beside its image: no picture and no controls")
        time, scale = times(t, x), 1.0
        if self.schedule.exploding:
            alpha, sigma = self.schedule.at(t).like(x)
            ratio = sigma / alpha
            x, time, scale = x / alpha, times(ratio.flatten(), x), -ratio
        if self.network.config.time_embedding_type == "learned":
            time = time.long()
        return scale * self.network(x.to(self.dtype), time, return_dict=False)[0].float()

    @unmoded()
    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        images = images.to(self.device)
        if self.vae is not None:
            return autoencoders.encode(self.vae, images)
        return images if self.schedule.exploding else images * 2 - 1

    @unmoded()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        if self.vae is not None:
            return autoencoders.decode(self.vae, latents)
        finite(latents, "latents that are to be seen")
        return (latents if self.schedule.exploding else latents / 2 + 0.5).clamp(0, 1)

    def words(self, prompt: str) -> list[tuple[str, slice]]:
        return []
