"""Pictures that a model is taught: their latents, made once, and which of them a step sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.schedule import Level
from sfumato.errors import SfumatoError
from sfumato.learning.seeds import generator

ROUNDS, FLIPS, LEVELS = -1, -2, -3
"""What a generator is for, beside a step."""


class Drawn(NamedTuple):
    """What a step sees of a lesson, a row each."""

    x0: Float[Tensor, "b c h w"]
    which: tuple[int, ...]
    """Numbers of the pictures."""
    mask: Float[Tensor, "b h w"] | None
    """In cells of the latents, in [0, 1]."""
    ways: tuple[int, ...] = ()
    """Which of a picture's latents."""


@dataclass(frozen=True)
class Lesson:
    """Latents of pictures, as they are and mirrored."""

    latents: Float[Tensor, "n ways c h w"]
    masks: Float[Tensor, "n ways h w"] | None = None
    pictures: Float[Tensor, "n 3 H W"] | None = None
    """In [0, 1], for methods that show them in ways of their own."""
    things: Float[Tensor, "n things ways h w"] | None = None
    """Masks of each of several things, of which ``masks`` are the union."""

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: Backbone,
        pictures: Float[Tensor, "n 3 H W"],
        masks: Float[Tensor, "n H W"] | Float[Tensor, "n things H W"] | None = None,
        mirrored: bool = True,
        batch: int = 8,
    ) -> Lesson:
        """Of pictures in [0, 1] at a size that the model paints, and masks that are 1 where the thing is, or each is.

        Latents are the encoder's means. ``mirrored``: are they seen mirrored half of the time? Raises ``SfumatoError``
        for no picture, for one whose masks have nothing in them, and for a thing that no mask shows.
        """
        if not len(pictures):
            raise SfumatoError("there is no picture to learn from")
        model.check_images(pictures)
        ways = [pictures, pictures.flip(-1)] if mirrored else [pictures]
        latents = torch.stack([torch.cat([model.encode(some) for some in each.split(batch)]) for each in ways], 1)
        if masks is None:
            return cls(latents, None, pictures)
        if masks.ndim not in (3, 4) or (len(masks), *masks.shape[-2:]) != (len(pictures), *pictures.shape[-2:]):
            raise SfumatoError(f"{len(pictures)} pictures have a mask of their own size each, got {tuple(masks.shape)}")
        several = masks.float() if masks.ndim == 4 else masks.float()[:, None]
        small = F.adaptive_avg_pool2d(several, (latents.shape[-2], latents.shape[-1]))
        if empty := [i for i, mask in enumerate(small) if not float(mask.sum())]:
            raise SfumatoError(f"nothing is in the mask of picture {empty[0] + 1}; mark the thing in each")
        if empty := [i for i, mask in enumerate(small.unbind(1)) if not float(mask.sum())]:
            raise SfumatoError(f"thing {empty[0] + 1} is in no mask; mark each thing in one picture at least")
        both = torch.stack([small, small.flip(-1)] if mirrored else [small], 2).to(latents)
        return cls(latents, both.amax(1), pictures, both if masks.ndim == 4 else None)

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def apart(self) -> Float[Tensor, "n things ways h w"] | None:
        """Masks of each thing, also where it is one."""
        return self.masks[:, None] if self.things is None and self.masks is not None else self.things

    def draw(self, seed: int, step: int, batch: int) -> Drawn:
        """Each picture once before any comes again, in an order of each round, mirrored or not at random."""
        which, ways = [], []
        for place in range(step * batch, (step + 1) * batch):
            round_, at = divmod(place, len(self))
            which.append(int(torch.randperm(len(self), generator=generator(seed, ROUNDS, round_))[at]))
            ways.append(int(torch.randint(self.latents.shape[1], (), generator=generator(seed, FLIPS, place))))
        mask = None if self.masks is None else self.masks[which, ways]
        return Drawn(self.latents[which, ways], tuple(which), mask, tuple(ways))


def levels(model: Backbone, seed: int, step: int, batch: int) -> Level:
    """Training steps of the network, all alike; of flows any time (DDPM, Ho et al. 2020, algorithm 1)."""
    total, rng = model.schedule.train_steps, generator(seed, LEVELS, step)
    if model.schedule.prediction == "flow":
        return model.schedule.at(total * torch.rand(batch, generator=rng, dtype=torch.float64).clamp_min(1e-3))
    return model.schedule.at(torch.randint(total, (batch,), generator=rng))
