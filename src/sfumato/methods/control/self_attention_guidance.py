"""Self-attention guidance (Hong et al. 2023, arXiv 2210.00939): away from images blurred where attention is strong.

At each step what self-attention looks at most, in the middle block, is blurred in the predicted image; it is noised
again with the predicted noise, and the network asked once more. The guided noise gains s (eps - eps'), eps' from there
(eq. 16; under classifier-free guidance all of it is of the empty prompt's rows, eq. 25).

Defaults: the authors' code for Stable Diffusion, which is diffusers' pipeline: scale 0.75, places whose attention from
all others adds up to more than 1, a Gaussian of sigma 1 in 64 cells that ends at 4 sigma. ``IMAGENET``: their code for
pixels. As x' = alpha x0' + sigma eps, that guidance is x0 - s (what the network makes of x' - x0'), which is how it is
done here: it holds for networks that predict v or a velocity as well. Diffusers subtracts their raw predictions, which
are of two different points, and differs for those. Where image and text attend together, the image's maps are
normalised first, so that 1 is the mean everywhere.

What is subtracted is what the network sharpens again. Of the exact denoiser of a Gaussian of variance v it is
sigma^2 / (alpha^2 v + sigma^2) of what the blur took: s of that detail is lost in early steps, in late ones nothing.

Needs: image->image maps of the middle block, of the empty prompt's rows where there is one; a network call more a step,
of those rows alone.

Families: all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.method import Method, Need, Phases, Requires, Run, Step, Where, span
from sfumato.core.schedule import add_noise
from sfumato.core.settings import Part, PartOfSteps, Positive, Weight
from sfumato.methods.control.perturbations import within
from sfumato.ops.blur import blur


@dataclass(frozen=True)
class SelfAttentionGuidance(Method):
    """Guides away from the predicted image with its salient parts blurred."""

    requires: ClassVar = Requires(windows=False)

    scale: float = 0.75
    """s, from 0 to 1 in the paper."""
    threshold: Weight = 1.0
    """psi: where the attention that a place gets from all others is more than this, it is blurred; 1 is the mean."""
    sigma: Positive = 1 / 64
    """Of the blur, as a part of the image's shorter side; one cell at least."""
    reach: Positive = 4.0
    """How far the blur's kernel goes, in sigmas."""
    layers: tuple[str, ...] = ("mid",)
    """Whose maps: mid (the middle block), or parts of sites' paths; of several the mean."""
    since: Part = 0.0
    """From this part of the steps on."""
    until: PartOfSteps = 1.0
    """Up to this part of the steps."""

    def start(self, run: Run) -> Phases:
        if not self.scale:
            return Phases()
        which = "uncond" if "uncond" in run.rows.conditions else "cond"
        during = (float(self.since), float(self.until))
        first, end = span(during, run.steps)
        need = Need(Where("image->image", steps=during, rows=which, sites=within(run.model, self.layers)))
        names = run.rows.match(which)
        batch = slice(run.rows[names[0]].start, run.rows[names[-1]].stop)

        def denoised(step: Step) -> None:
            if not first <= step.i < end:
                return
            schedule = run.model.schedule
            x0, eps = schedule.x0_and_eps(step.parts[which], step.x, step.level)
            seen = [
                F.interpolate(salience(torch.cat([m[n] for n in names])).view(-1, 1, *site.grid(run.grid)), run.grid)
                for site, m in step.maps[need].items()
            ]
            mask = torch.stack(seen).mean(0) > self.threshold  # eq. 14
            worse = torch.where(mask, self.blurred(x0), x0)  # eq. 15
            x = add_noise(worse, eps, step.level)
            predicted = run.model.predict(x, step.level.t, step.cond[batch])
            step.x0 = step.x0 - self.scale * (schedule.x0_and_eps(predicted, x, step.level)[0] - worse)  # eq. 16

        rows = len(names) / len(run.rows.names)
        return Phases(needs=(need,), denoised=denoised, calls=rows * (end - first) / run.steps)

    def blurred(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        sigma = max(1.0, self.sigma * min(images.shape[-2:]))
        return blur(images, sigma, round(self.reach * sigma), "reflect")


IMAGENET = SelfAttentionGuidance(0.5, sigma=9 / 256, reach=15 / 9)
"""The authors' for an unconditional network of 256 x 256 pixels; their maps are of its decoder's third attention, as
coarse as the middle block's: ``layers=("up_blocks.0.attentions.2",)`` where a network has it."""


def salience(map: Float[Tensor, "b queries keys"]) -> Float[Tensor, "b keys"]:
    """How much attention each place gets from all; 1 on average."""
    return (map / map.sum(-1, keepdim=True)).sum(1)
