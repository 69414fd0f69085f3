"""SyncDiffusion (Lee et al. 2023, arXiv 2306.05178): windows of a panorama that look like one of them.

Where windows agree only in their overlaps, a panorama may pass from one scene into another. Before each step every
window goes down the perceptual distance between the image that its prediction stands for and the anchor window's
(section 4, algorithm 1), each off the canvas by itself; then they are denoised and averaged as ever.

Defaults: the paper's, weight 20, 0.95 of it after each step, a stride of a quarter of the window (16 of 64), all steps,
the window in the middle as anchor. The authors' script guides the first 10 of 50 steps (``--until 0.2``); the defaults
of its options (0.1, 0.99, stride 8, 40 steps) are another thing. The distance there is LPIPS of decoded images, whose
weights do not ship. Here it has LPIPS' form, with equal weights, on what the model's own decoder makes of x0 first,
which costs a tenth of decoding; any ``distance`` of two sets of images may take its place. All windows but the anchor
are one batch; there its own gradient is worked out to be thrown away, and it is decoded for each of the others.

With ``network=False`` x0 is what the step itself predicts, with the noise held (as Pix2Video has it): no further
prediction and no way back through the network. Its slope by x is that of the best denoiser of unit normal latents,
alpha / (alpha^2 + sigma^2), in place of 1 / alpha, which at high noise is a hundred times the network's own.

Needs: a further prediction of all windows and the way back through it in each step that is guided, and what the
distance takes; with ``network=False`` that alone.

Families: all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones import autoencoders
from sfumato.core.backbone import Backbone
from sfumato.core.gradients import gradients
from sfumato.core.look import foresee
from sfumato.core.method import Method, Phases, Run, Step, span
from sfumato.core.settings import Part, PartOfSteps, Weight, Whole
from sfumato.core.views import Tiles, Views
from sfumato.errors import SfumatoError
from sfumato.metrics.perceptual import apart, coloured

Distance = Callable[[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]], Float[Tensor, " b"]]
"""Of two images in [0, 1] each, differentiable by the first."""


@dataclass(frozen=True)
class SyncDiffusion(Method):
    """Windows of a canvas go towards the looks of one of them."""

    weight: Weight = 20.0
    """How much of the gradient is taken from a window's latents in the first step."""
    decay: Part = 0.95
    """What is left of the weight after each step."""
    until: PartOfSteps = 1.0
    """Up to this part of the steps."""
    anchor: Whole | None = None
    """Which window the others go towards, counted from the left; the one in the middle unless said."""
    network: bool = True
    """Differentiate through the network; if not, by x0 with the noise held."""
    by: Literal["decoder", "latents", "clip"] = "decoder"
    """The distance is of the decoder's first features (of a model without, of its latents), of latents at several
    scales, or of what the model's own CLIP sees, which has to be decoded."""
    distance: Distance | None = field(default=None, metadata={"command": False})
    """In its place: a function of images in [0, 1] and the anchor's, such as LPIPS."""

    def seeing(self, views: Views) -> Views:
        if views.side == "instance":
            raise SfumatoError("SyncDiffusion moves the windows of one canvas, and these views sample each its own")
        if isinstance(views, Tiles) and views.stride is None:
            return replace(views, stride=0.25)
        return views

    def start(self, run: Run) -> Phases:
        count, (_, end) = run.rows.views, span((0, float(self.until)), run.steps)
        anchor = count // 2 if self.anchor is None else self.anchor
        if not 0 <= anchor < count:
            raise SfumatoError(f"the canvas has windows 0 to {count - 1}, and the anchor is one of them, got {anchor}")
        if count == 1 or not self.weight or not end:
            return Phases()
        distance = perceptual(self.distance or self.by, run.model)
        others = tuple(i for i in range(count) if i != anchor)

        def gradient(shown: Tensor, x0: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Tensor:
            """Of each window's distance to the anchor, by what is shown of it; ``x0`` is of some windows."""
            windows = shown.detach().unflatten(0, (-1, count))
            with torch.no_grad():
                towards = x0(windows[:, anchor], (anchor,))
            with torch.enable_grad():
                moving = windows[:, others].flatten(0, 1).requires_grad_()
                (found,) = gradients(run.model, distance(x0(moving, others), towards).sum(), (moving,))  # eq. 8
            out = torch.zeros_like(windows)
            out[:, others] = found.unflatten(0, (-1, len(others)))
            return out.flatten(0, 1)

        def before(step: Step) -> None:
            if step.i >= end:
                return
            slope = gradient(step.split(step.x), lambda some, which: foresee(step, some, which))
            moved = -self.weight * self.decay**step.i * slope
            mean = step.merge(moved)  # the canvas is what windows are on average
            step.x = step.x + mean
            off = moved - step.split(mean)
            step.offset = off if step.offset is None else step.offset + off

        def denoised(step: Step) -> None:
            _, alpha, sigma = step.level
            if step.i >= end or alpha == 0:  # where nothing of x is of the image, x0 does not depend on it
                return
            slope = alpha / (alpha**2 + sigma**2) * gradient(step.split(step.x0), lambda some, _: some)
            mean = step.merge(-self.weight * self.decay**step.i * slope)
            step.x = step.x + mean
            step.x0 = step.x0 + mean / alpha  # the noise is held

        part = end / run.steps
        return Phases(before=before, calls=part) if self.network else Phases(denoised=denoised)


def perceptual(by: str | Distance, model: Backbone) -> Distance:
    """A distance of x0 by its word, or by a function of images: of some windows of each image to one of it, which is
    looked at once. ``SfumatoError`` for a CLIP where there is none.
    """
    if by == "clip":
        see = model.seen_features
        if see is None:
            raise SfumatoError(
                f"{model.name} comes without a CLIP; take the distance by decoder, or give one of your own"
            )
        by = lambda a, b: 1 - torch.cosine_similarity(see(a), see(b))  # noqa: E731
    if callable(by):
        return lambda a, b: by(model.decode(a), spread(torch.no_grad()(model.decode)(b), a))
    vae = getattr(model, "vae", None)

    def decoding(a: Tensor, b: Tensor) -> Tensor:
        if by == "latents":
            return coloured(a, spread(b, a))
        with torch.no_grad():
            other = autoencoders.features(vae, b)
        one = autoencoders.features(vae, a)
        if one is None or other is None:
            return coloured(a, spread(b, a))
        return apart(one, [spread(x, a) for x in other])

    return decoding


def spread(x: Float[Tensor, "b *shape"], of: Float[Tensor, "bv *more"]) -> Float[Tensor, "bv *shape"]:
    """What an image has, for each of its windows."""
    return x.repeat_interleave(len(of) // len(x), 0)


AUTHORS = SyncDiffusion(until=0.2)
"""The authors' script: the first 10 of 50 steps."""
DETACHED = SyncDiffusion(network=False)
"""No further prediction and no way back through the network."""
