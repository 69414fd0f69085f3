"""Spatial-temporal attention (Wu et al. 2023, arXiv 2304.03869): each thing's own sentence, in its place, by step.

Around the middle of each thing's box the cross-attention to "a photo of" that thing is mixed into that to the whole
prompt, with a coefficient for each thing and step (eqs. 4 and 5). The coefficients are learned for the image that is
painted: it is sampled, a CLIP compares crops around the boxes' middles with the things' sentences, and Adam follows the
gradient through all steps of the sampler (eq. 7). What is left to the text to place comes from ``layout``; the authors
have a network predict it.

Defaults are the authors' code: discs of radius 0.2 of the image, coefficients from 0.5, counted 8 / things times, 20
epochs of Adam at 0.05 with a loss of 5 (1 - similarity) a thing, CLIP ViT-B/32. They sample with PLMS; here the
learning samples with DDIM, whatever the run's own stepper is, and steps are computed twice instead of remembered.
``epochs=0`` keeps the coefficients as they begin.

Needs: image->text outputs at all sites, still fused, with another attention for each thing; for the learning,
``epochs`` times all steps forward, forward again and back, and the decoder; in memory one step's activations and the
latents of all.

Families: those whose text does not see the image: all but Stable Diffusion 3 and Flux.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sfumato.core.attention import Call
from sfumato.core.backbone import Similarity
from sfumato.core.choice import choose
from sfumato.core.method import Edit, Method, Phases, Requires, Run, Step, Where
from sfumato.core.rows import Name
from sfumato.core.settings import Part, Weight, Whole
from sfumato.core.sites import Site
from sfumato.core.steppers import DDIM
from sfumato.errors import SfumatoError, finite
from sfumato.io.progress import progress
from sfumato.methods.control.placed import placed
from sfumato.prompts.layout import Layout


@dataclass(frozen=True)
class SpatialTemporal(Method):
    """Mixes attention to things' own sentences in around where they should be."""

    requires: ClassVar = Requires(words=True, windows=False)

    layout: Layout | None = None
    """Phrases of the prompt and their boxes."""
    epochs: Whole = 20
    """How often the image is sampled to learn the coefficients."""
    rate: Weight = 0.05
    """Of Adam."""
    coefficient: Weight = 0.5
    """Where the coefficients begin; 0 without epochs is plain sampling."""
    amplitude: Weight = 8.0
    """What coefficients are counted times, shared among the things."""
    radius: Part = 0.2
    """Of the discs, and half the side of the crops, in parts of the image's sides."""
    weight: Weight = 5.0
    """Of the loss."""
    caption: str = "a photo of {}"
    """A thing's own sentence."""
    similarity: Similarity | None = field(default=None, metadata={"command": False})
    """Of images in [0, 1] and texts, a number a pair, differentiable. None: by the model's own CLIP, if it has one."""

    def start(self, run: Run) -> Phases:
        layout = placed(self.layout, run, "spatial-temporal attention")
        sites = choose(run.model, "image->text", run.grid, who="SpatialTemporal")
        if any("text" in site.query for site in sites):
            raise SfumatoError(
                f"spatial-temporal attention reads sentences beside the prompt, whose tokens see the image in "
                f"{run.model.name}; take region prompts there"
            )
        first, *others = run.rows.streams
        targets = others or [first]
        for stream in targets:
            for i in range(run.rows.each):
                layout.tokens(run, stream, i)
        if not self.coefficient and not self.epochs:
            return Phases()
        similarity = _similarity(self.similarity, run) if self.epochs else None
        phrases = [phrase.removeprefix("the ") for phrase in layout.phrases]
        texts = [self.caption.format(phrase) for phrase in phrases]
        middles = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in layout.boxes()]
        read: dict[Site, Tensor] = {}
        masks: list[Tensor] = []
        coefficients = torch.full((len(texts), run.steps, len(targets), run.rows.each), float(self.coefficient))
        coefficients = coefficients.to(run.model.device)

        def add(call: Call) -> None:
            """out + sum over things of their disc's 8 / n c (attention to their own sentence - out)."""
            discs = [disc(middle, self.radius, call.grid) for middle in middles]
            for t, stream in enumerate(targets):
                name = (stream, "cond")
                q, out = call.get("q", name), call.get("out", name)
                total = out
                for n, inside in enumerate(discs):
                    k, v = (_reading(call, which, name, read[call.site][i, n]) for i, which in enumerate("kv"))
                    mask = masks[0][n] if masks else None
                    own = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
                    share = self.amplitude / len(texts) * coefficients[n, call.step, t].to(out)
                    total = total + share.view(-1, 1, 1, 1) * inside.to(out).view(-1, 1) * (own - out)
                call.set("out", name, total)

        def before(step: Step) -> None:
            nonlocal coefficients
            if step.i:
                return
            keys, mask = _sentences(step, texts, sites, targets[0])
            read.update(keys)
            masks.extend(mask)
            if similarity is None:
                return
            coefficients.requires_grad_()
            adam = torch.optim.Adam([coefficients], self.rate)
            with torch.enable_grad(), progress("learning", self.epochs) as advance:
                for _ in range(self.epochs):
                    images = run.model.decode(_sampled(step, sites, add))
                    images = torch.cat([images[run.images(s)] for s in targets])
                    crops = [crop(images, middle, self.radius) for middle in middles]
                    seen = [similarity(c, [text] * len(c)) for c, text in zip(crops, texts, strict=True)]
                    adam.zero_grad()
                    (self.weight * (1 - torch.stack(seen))).sum().backward()
                    adam.step()
                    finite(coefficients, "the coefficients of things, learned through a run,", run.model.remedy)
                    advance()
            coefficients = coefficients.detach()

        # forward, forward again and back, which is two more; and the sentences once
        calls = 4 * self.epochs + len(texts) / (len(run.rows) * run.steps)
        return Phases((Edit(Where("image->text", rows="cond"), "out", add),), before=before, calls=calls)


def _similarity(given: Similarity | None, run: Run) -> Similarity:
    found = given or run.model.similarity
    if found is None:
        raise SfumatoError(f"{run.model.name} comes without a CLIP; set epochs to 0, or give a similarity")
    return found


def _sentences(
    step: Step, texts: Sequence[str], sites: Sequence[Site], stream: str
) -> tuple[dict[Site, Float[Tensor, "2 things heads text dim"]], list[Tensor]]:
    """Each site's keys and values of the sentences, in one prediction; and where the text has one, its mask."""
    run, n = step.run, len(texts)
    one, texts_cond = step.cond[run.rows[stream, "cond"]][:1].repeat(n), run.model.embed(texts)
    cond = replace(
        one,
        text=texts_cond.text,
        prompts=texts_cond.prompts,
        weights=texts_cond.weights,
        extra={**one.extra, **texts_cond.extra},
        controls=(),
    )

    def read(call: Call) -> Tensor:
        return torch.stack([call.get(which, ("main", "cond"), "text") for which in "kv"])

    keys = run.model.maps(step.x[:1].repeat(n, 1, 1, 1), step.level.t, cond, sites, read)
    return keys, [m.bool()[:, None, None] for m in (texts_cond.extra.get("mask"),) if m is not None]


def _reading(call: Call, which: str, name: Name, text: Float[Tensor, "heads text dim"]) -> Tensor:
    """A group's keys or values with another text in the place of its own."""
    own = call.get(which, name).clone()
    own[..., call.segment("k", "text"), :] = text.to(own)
    return own


def _sampled(step: Step, sites: Sequence[Site], add: Callable[[Call], None]) -> Float[Tensor, "b c h w"]:
    """The whole run's latents by DDIM; gradients flow through all steps, each of which is computed again for them."""
    run = step.run
    assert run.guide is not None and run.levels is not None
    guide, levels, n = run.guide, run.levels, len(run.rows.conditions)
    move = DDIM().start(run.model.schedule, len(levels))

    def once(x: Tensor, i: int) -> Tensor:
        with run.model.tap(dict.fromkeys(sites, add), run.rows, run.grid) as tap:
            tap.step = i
            predicted = run.model.predict(x.repeat(n, 1, 1, 1), levels[i].t, step.cond)
        parts = dict(zip(run.rows.conditions, predicted.split(len(x)), strict=True))
        x0, eps = run.model.schedule.x0_and_eps(guide.combine(parts, run.rows), x, levels[i])
        return move(x, x0, eps, levels[i], levels[i + 1], lambda: torch.zeros_like(x))

    x = step.x
    for i in range(run.steps):
        x: Tensor = checkpoint(once, x, i, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
    return x


def disc(middle: tuple[float, float], radius: float, grid: tuple[int, int]) -> Float[Tensor, "h w"]:
    """1 where a cell's first corner is nearer than ``radius`` to a middle (x, y): the authors' discs."""
    y, x = (torch.arange(n) / n for n in grid)
    return ((y[:, None] - middle[1]) ** 2 + (x - middle[0]) ** 2 < radius**2).float()


def crop(images: Float[Tensor, "b 3 h w"], middle: tuple[float, float], radius: float) -> Float[Tensor, "b 3 a c"]:
    """The square around a middle, as far as it is inside."""
    sides = images.shape[-1], images.shape[-2]
    x, y = (slice(int(n * max(m - radius, 0)), int(n * min(m + radius, 1))) for n, m in zip(sides, middle, strict=True))
    return images[..., y, x]
