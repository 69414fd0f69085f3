"""Proximal guidance (Han et al. 2024, "ProxEdit", arXiv 2306.05414): guidance only where it says much.

What guidance would add, c - u, is shrunk by a threshold: small differences, which are the inversion's artifacts, go.
With ``NegativePrompt`` it is ProxNPI: ``denoise(model, prompts, start=path, guide=guide, methods=[PromptToPrompt(),
InversionGuidance(path, guide)])``. Costs no prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.guidance import CFG, Parts, rescaled
from sfumato.core.method import Method, Phases, Requires, Run, Step
from sfumato.core.rows import Rows
from sfumato.core.settings import Part, Time, Weight, Whole
from sfumato.errors import SfumatoError, unknown
from sfumato.inversion import Path

Prox = Literal["l0", "l1", "twice"]


@dataclass(frozen=True)
class ProximalCFG(CFG):
    """u + s prox(c - u), which any ``scale`` has (1 is not off).

    The threshold is a quantile of |c - u|, so epsilon, v and flow models agree: their differences differ by a factor.
    It is taken of each image by itself; the authors' code takes one of the whole batch, of which the source's half is
    zero under ``NegativePrompt``.
    """

    prox: Prox = "l0"
    """``l0``, hard: what exceeds the threshold is kept as it is. ``l1``, soft: it is brought nearer to 0 by the
    threshold. The authors' code calls the soft one l0, and as l1 has one that takes the threshold off twice: ``twice``,
    which turns negative values below the threshold into positive ones."""
    quantile: Part = 0.7
    """Part of the values that are dropped; 0 for none, which is CFG."""
    threshold: Weight | None = None
    """A fixed one in place of the quantile."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prox not in get_args(Prox):
            raise unknown("prox", self.prox, get_args(Prox))

    def embed(self, model: Backbone, prompts: Sequence[str]) -> dict[str, Cond]:
        uncond = model.embed_negative([self.negative] * len(prompts))
        return {"uncond": uncond, "cond": model.embed(prompts)}

    def combine(self, parts: Parts, rows: Rows) -> Float[Tensor, "b *shape"]:
        u, c = parts["uncond"], parts["cond"]
        return rescaled(u + self._scales(rows, c) * self.shrunk(c - u), c, self.rescale)

    def shrunk(self, d: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """prox(d), an image at a time."""
        least = self._threshold(d)
        if self.prox == "l0":
            return torch.where(d.abs() > least, d, torch.zeros_like(d))
        soft = d - torch.minimum(torch.maximum(d, -least), least)
        if self.prox == "l1":
            return soft
        once = torch.where(soft > 0, soft - least, soft)
        return torch.where(once < 0, once + least, once)

    def _threshold(self, d: Float[Tensor, "b *shape"]) -> Tensor:
        if self.threshold is not None:
            return torch.as_tensor(self.threshold).to(d)
        if not self.quantile:
            return torch.zeros(()).to(d)
        return d.abs().flatten(1).quantile(self.quantile, 1).view(-1, *[1] * (d.ndim - 1))


@dataclass(frozen=True, eq=False)
class InversionGuidance(Method):
    """Late in the run, latents are drawn to the source's track where proximal guidance adds nothing.

    The place where it does is widened by ``dilate`` cells. In the authors' code it is where the difference, once
    shrunk, still exceeds the threshold.
    """

    requires: ClassVar = Requires(uncond=True, windows=False)

    path: Path
    guide: ProximalCFG
    rate: Weight = 0.1
    below: Time = 400
    """Noisier levels than that of this training step (of 1000) are left alone."""
    dilate: Whole = 1

    def start(self, run: Run) -> Phases:
        if len(self.path.track) != run.steps + 1:
            raise SfumatoError("inversion guidance needs the image at every level; take negative-prompt")
        streams, below = len(run.rows.streams), self.below * run.model.schedule.train_steps / 1000

        def guided(step: Step) -> Tensor:
            """Which images have other words than their negative prompt's: of the same ones the difference is rounding,
            of which a quantile would keep its part as well."""
            without, edited = (
                [p for name in run.rows.match(condition) for p in step.cond[run.rows[name]].prompts]
                for condition in ("uncond", "cond")
            )
            return torch.tensor([a != b for a, b in zip(without, edited, strict=True)])

        def after(step: Step) -> None:
            if step.level.t >= below:
                return
            kept = (self.guide.shrunk(step.parts["cond"] - step.parts["uncond"]) != 0).float()
            kept = kept * guided(step).to(kept)[:, None, None, None]
            kept = F.max_pool2d(kept, 2 * self.dilate + 1, 1, self.dilate)
            track = self.path.track[step.i + 1].to(step.x_next).repeat(streams, 1, 1, 1)
            step.x_next = step.x_next - self.rate * (1 - kept) * (step.x_next - track)

        return Phases(after=after)
