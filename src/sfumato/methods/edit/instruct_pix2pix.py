"""InstructPix2Pix (Brooks et al. 2023, arXiv 2211.09800): a network that was trained to do what an instruction says.

It reads the image's latents behind the noisy ones, and the instruction as its prompt; painting starts from pure noise.
Two guidances pull it: the run's own to the instruction, ``image_scale`` to the image (eq. 3: three predictions, of
neither, of the image alone and of both). The prompt says what to do ("make the cube blue"), not what there should be.

Defaults: the authors' code (100 steps, 7.5 and 1.5). As there, the image's latents are the mean of the encoder's
distribution and not scaled.

Needs: a network of its own (``load("stilllife-instruct")``, ``instruct-pix2pix``), and its guidance, of three rows an
image.

Families: Stable Diffusion 1, 2 and XL, whose UNet reads twice the latents' channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.backbones import autoencoders
from sfumato.backbones.latent import Latent
from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.guidance import Guide, ImageTextCFG
from sfumato.core.method import Phases, Run, Step
from sfumato.core.settings import Count, Whole
from sfumato.errors import SfumatoError
from sfumato.inversion.path import Advance, Inversion, Path, noise_of
from sfumato.methods.edit.blended_latents import holding, noisy


@dataclass(frozen=True)
class InstructPix2Pix(Inversion):
    """Edits by instruction."""

    image_scale: float = 1.5
    """Guidance to the image: more keeps more of it."""
    seed: Whole = 0
    """Of the noise; image i of a batch has seed + i."""
    steps: Count = 100
    """DDIM steps."""

    has_source: ClassVar = False

    def guide(self, model: Backbone, scale: float | None = None) -> Guide:
        """Both guidances, for a run from the path, which has the image."""
        return Instruction(None, self.edit_guidance if scale is None else scale, self.image_scale)  # pyright: ignore

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        if not isinstance(model, Latent) or model.reads != 2 * model.channels:
            raise SfumatoError(
                f"{model.name} does not read an image beside its latents, as InstructPix2Pix does; load "
                "stilllife-instruct, instruct-pix2pix, or another UNet trained on instructions"
            )
        levels = model.levels(self.steps, image.shape[-2:])
        start, track = noise_of(model, image, self.seed), noisy(model, image, levels, self.seed)
        return Instructed(start, levels, prompts, image, track=track, seen=autoencoders.plain(model.vae, image))


class Instruction(ImageTextCFG):
    """The two guidances, for a path that has the image."""

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        empty = model.embed_negative([self.negative] * len(prompts))
        return {"uncond": empty, "image": empty, "cond": model.embed(prompts)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Instructed(Path):
    """Shows the network its image. Of several streams the first is the image itself, noised."""

    seen: Tensor
    """The image's latents as the network reads them."""

    def start(self, run: Run) -> Phases:
        if not {"uncond", "image", "cond"} <= {*run.rows.conditions}:
            raise SfumatoError("InstructPix2Pix has guidances of its own; give guide=InstructPix2Pix(...).guide(model)")

        def cond(step: Step, now: Cond) -> Cond:
            images = len(run.prompts[run.rows.streams[0]])
            seen = step.split(self.seen.to(step.x).expand(images, -1, -1, -1))
            return replace(now, image=torch.cat([seen * (c != "uncond") for _, c in run.rows.names]))

        return replace(holding(self, run, {}), cond=cond)
