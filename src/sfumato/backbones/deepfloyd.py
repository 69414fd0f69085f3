"""DeepFloyd IF: a UNet in pixel space that reads T5 text, and says its variance beside the noise.

Stage I paints 64 x 64 pixels. The later stages read an enlarged image as further channels (``Cond.image``), and how
noisy it was made (``Cond.extra["noise_level"]``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones import kinds
from sfumato.backbones.latent import Latent
from sfumato.backbones.parts import of_parts
from sfumato.backbones.text import Text, t5_text
from sfumato.backbones.unet import OfUNet
from sfumato.core.conditions import Cond
from sfumato.core.noise import drawing
from sfumato.core.schedule import Schedule
from sfumato.errors import SfumatoError, finite


class DeepFloyd(OfUNet, Latent):
    """Images are their own latents, in [-1, 1]."""

    kind = "DeepFloyd"
    channels, factor = 3, 1  # pyright: ignore[reportAssignmentType]

    @of_parts("pipe", "pipe.tokenizer")
    def text(self) -> Text:
        return t5_text(self.name, self.pipe, 77)  # as it was trained, whatever T5 could read

    @of_parts("pipe.unet")
    def network(self) -> Any:
        kinds.check(self)
        return self.pipe.unet

    @property
    def multiple(self) -> int:
        return 2 ** (len(self.network.config.block_out_channels) - 1)

    @of_parts("network")
    def size(self) -> int:
        return self.cells

    def _encode(self, prompts: list[str], skip: int | None) -> dict[str, Tensor]:
        text, _ = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=self.device, clean_caption=True
        )
        return {"text": text}

    def _predict(self, x: Tensor, inside: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self.network(
            inside.to(self.dtype),
            time,
            encoder_hidden_states=cond.text.to(self.dtype),
            class_labels=cond.extra.get("noise_level"),
            return_dict=False,
        )[0]

    def enlarging(self, cond: Cond, image: Float[Tensor, "b 3 h w"], level: int = 250, seed: int = 0) -> Cond:
        """Conditions for a super-resolution stage: images in [0, 1], one or as many as ``cond``.

        They are enlarged and noised to step ``level`` (diffusers' default), which the network is told;
        image i by noise from seed + i.
        """
        if not hasattr(self.pipe, "image_noising_scheduler"):
            raise SfumatoError(
                f"{self.name} is a first stage, which paints from text alone; load a second one (if-ii-l)"
            )
        side = (self.size, self.size)
        big = torch.nn.functional.interpolate(image.to(self.device) * 2 - 1, side, mode="bilinear", align_corners=True)
        noise = drawing([seed + i for i in range(len(big))], big.shape[1:])().to(big)
        at = Schedule.read(self.pipe.image_noising_scheduler).at(level)
        levels = torch.full((len(cond),), level, device=self.device)
        noised = (at.alpha * big + at.sigma * noise).expand(len(cond), -1, -1, -1)
        return replace(cond, image=noised, extra={**cond.extra, "noise_level": levels})

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        return images.to(self.device) * 2 - 1

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        finite(latents, "latents that are to be seen")
        return (latents / 2 + 0.5).clamp(0, 1)
