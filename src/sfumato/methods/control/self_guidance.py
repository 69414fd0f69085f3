"""Self-guidance (Epstein et al. 2023, arXiv 2306.00986): things are moved and resized by what the network sees of them.

A word's cross-attention tells where its thing is, how big, of what shape, and with an activation of the network what it
looks like. Energies ask for other places and sizes, or for the source's shapes and looks, and the noise prediction
gains v sigma times their gradient (eq. 5). What no energy names is free to change.

Targets are absolute (``to``, ``size``), or relative to the run's first stream, whose maps of the same step are the
original's: ``denoise(model, {"source": p, "target": p}, ...)``, from noise, or with ``start=path`` from a picture.

v and the first 3/16 of the steps are those of the authors' notebook; the weights lie in the ranges that public ports of
it note as the paper's (position 1 to 3, size and shape 0.5 to 2, appearance 0.03 to 0.3), which also guides every
second step after that. The notebook leaves sigma out, compares shapes with a hard mask, and has a hard one for the
look; here thresholds are soft throughout, as in the paper, and the maps of a word's tokens are averaged.

Needs: image->text maps, for looks one feature, and a backward pass through the network in the guided steps.

Families: all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.method import Energy, Method, Need, Phases, Requires, Run, Span, Step, Where, span
from sfumato.core.settings import Part, PartOfSteps, Positive, SomePart, Weight
from sfumato.core.sites import Site
from sfumato.errors import SfumatoError
from sfumato.ops.regions import carried, centroid, extent, soft
from sfumato.prompts.words import spans


@dataclass(frozen=True)
class Seen:
    """What one image shows of the words that matter."""

    maps: list[dict[str, Float[Tensor, "h w"]]]
    """Each site's."""
    looks: dict[str, Float[Tensor, " c"]]


@dataclass(frozen=True)
class SelfGuidance(Method):
    """Goes down energies of where words' things are, how big, of what shape and look."""

    requires: ClassVar = Requires(words=True, windows=False)

    words: tuple[str, ...] = ()
    """Words or phrases of the prompt whose things are moved or resized."""
    move: tuple[float, float] | None = None
    """How far to the right and how far down, in parts of the image's sides, from where the source has them."""
    to: tuple[Part, Part] | None = None
    """Where their middle should be, from the left and from the top, in parts of the image's sides."""
    grow: Positive | None = None
    """How many times as big as in the source, in area."""
    size: SomePart | None = None
    """Which part of the image they should take."""
    keep_shape: tuple[str, ...] = ()
    """Words whose things keep the source's place and shape; those of a moved or resized thing go along with it."""
    keep_appearance: tuple[str, ...] = ()
    """Words whose things keep the source's look."""
    scale: float = 1000.0
    """v, the weight of all energies; 0 is plain sampling."""
    position_weight: Weight = 2.0
    """Of where the words' middles are."""
    size_weight: Weight = 1.0
    """Of how big the words' things are."""
    shape_weight: Weight = 1.0
    """Of the kept shapes."""
    appearance_weight: Weight = 0.1
    """Of the kept looks."""
    early: PartOfSteps = 3 / 16
    """Part of the steps in which each one is guided."""
    until: PartOfSteps = 25 / 32
    """From there to this part of the steps every second one is."""
    res: Part | None = None
    """Only maps of this part of the latents' side, such as 0.25; all when none is given."""
    stage: str | None = None
    """Only maps of this stage, in UNets down, mid or up; all when none is given."""
    sharpness: Positive = 10.0
    """s of the soft threshold."""

    def start(self, run: Run) -> Phases:
        first, *others = run.rows.streams
        self._check(bool(others))
        if not self.scale:
            return Phases()
        where = None if self.stage is None else lambda site: site.stage == self.stage
        need = Need(Where("image->text", self.res, (0, self.until), "cond", where))
        look = _feature(run, need.where.steps) if self.keep_appearance else None
        named = dict.fromkeys((*self.words, *self.keep_shape, *self.keep_appearance))
        prompts = {s: [run.model.words(prompt) for prompt in run.prompts[s]] for s in run.rows.streams}
        tokens = {s: [{w: spans(words, w) for w in named} for words in prompts[s]] for s in run.rows.streams}
        throughout = span((0, self.early), run.steps)[1]

        def seen(step: Step, stream: str, i: int) -> Seen:
            name, at = (stream, "cond"), tokens[stream][i]
            maps = [
                {w: _of_text(m[name][i], site)[:, t].mean(-1).view(site.grid(run.grid)) for w, t in at.items()}
                for site, m in step.maps[need].items()
            ]
            if look is None:
                return Seen(maps, {})
            ((layer, features),) = step.maps[look].items()
            image = _as_image(features[name][i], layer.grid(run.grid))
            return Seen(
                maps, {w: appearance([m[w] for m in maps], image, self.sharpness) for w in self.keep_appearance}
            )

        def energy(step: Step) -> Tensor:
            total = 0 * step.x.sum()
            if step.i >= throughout and (step.i - throughout) % 2 == 0:
                return total
            for i in range(run.rows.each):
                was = seen(step, first, i) if others else None
                for stream in others or [first]:
                    total = total + self._energy(seen(step, stream, i), was)
            return self.scale * total

        return Phases(needs=(need,) if look is None else (need, look), energy=Energy(energy, steps=need.where.steps))

    def _check(self, source: bool) -> None:
        """Raise ``SfumatoError`` for options that cannot be meant together."""
        given = {k: getattr(self, k) for k in ("move", "grow", "keep_shape", "keep_appearance")}
        relative = [name for name, value in given.items() if value]
        changes = bool(self.move or self.to or self.grow or self.size)
        if relative and not source:
            raise SfumatoError(
                f"{relative[0]} is relative to a source: edit a picture, or give streams, the first as it was; "
                "without a source there are to and size"
            )
        if (self.move and self.to) or (self.grow and self.size):
            raise SfumatoError("a place is given by move or by to, a size by grow or by size, not by both")
        if changes != bool(self.words) or not (changes or relative):
            raise SfumatoError("self-guidance needs words and one of move, to, grow and size, or something to keep")

    def _energy(self, now: Seen, was: Seen | None) -> Tensor:
        """Of one image: each property's distance, a mean over sites, times its weight (eqs. 6 to 10)."""
        zero = next(iter(now.maps[0].values())).new_zeros(())
        total = zero
        for at, maps in enumerate(now.maps):
            old = {} if was is None else {w: m.detach() for w, m in was.maps[at].items()}
            for word in self.words:
                place, area = self._goal(old.get(word))
                if place is not None:
                    away = centroid(maps[word]) - torch.as_tensor(place).to(maps[word])
                    total = total + self.position_weight * away.abs().mean()
                if area is not None:
                    total = total + self.size_weight * (extent(maps[word], self.sharpness) - area).abs()
            for word in self.keep_shape:
                shape = soft(old[word], self.sharpness)
                if word in self.words:
                    shape = self._carried(shape, old[word])
                total = total + self.shape_weight * (soft(maps[word], self.sharpness) - shape).abs().mean()
        total = total / len(now.maps)
        for word, look in now.looks.items():
            assert was is not None
            total = total + self.appearance_weight * (look - was.looks[word].detach()).abs().mean()
        return total

    def _goal(self, old: Tensor | None) -> tuple[Tensor | tuple[float, float] | None, Tensor | float | None]:
        """Where a changed word's middle should be and how big it should be, at a site where the source has ``old``."""
        place = self.to if self.move is None or old is None else centroid(old) + torch.tensor(self.move).to(old)
        area = self.size if self.grow is None or old is None else self.grow * extent(old, self.sharpness)
        return place, area

    def _carried(self, shape: Tensor, old: Tensor) -> Tensor:
        """The source's shape where it should go, as big as it should be."""
        place, area = self._goal(old)
        middle = centroid(old)
        to = middle if place is None else torch.as_tensor(place).to(middle)
        factor = 1.0 if area is None else float((area / extent(old, self.sharpness).clamp_min(1e-4)) ** 0.5)
        return carried(shape, middle, to, factor)


def _feature(run: Run, steps: Span) -> Need:
    """The activation that tells looks: of what ResNets add, or of what attentions read, the last but one."""
    kinds = {layer.kind for layer in run.model.layers}
    kind = "residual" if "residual" in kinds else "tokens"
    layers = sorted((layer for layer in run.model.layers if layer.kind == kind), key=lambda layer: layer.index)
    chosen = layers[-2:][0]
    return Need(Where(kind, steps=steps, rows="cond", sites=lambda layer: layer == chosen))


def _of_text(map: Float[Tensor, "n text"], site: Site) -> Float[Tensor, "n text"]:
    """In joint attention each pixel's part that goes to the text is made one."""
    return map / map.sum(-1, keepdim=True) if len(site.key) > 1 else map


def _as_image(feature: Tensor, grid: tuple[int, int]) -> Float[Tensor, "c h w"]:
    return feature if feature.ndim == 3 else feature.T.unflatten(1, grid)


def appearance(
    maps: Sequence[Float[Tensor, "h w"]], feature: Float[Tensor, "c a b"], sharpness: float = 10.0
) -> Float[Tensor, " c"]:
    """Mean of a feature where a word's maps are, which themselves are held."""
    size = (feature.shape[-2], feature.shape[-1])
    fitted = [F.interpolate(m.detach()[None, None], size, mode="bilinear", antialias=True)[0, 0] for m in maps]
    mask = soft(torch.stack(fitted).mean(0), sharpness).to(feature)
    return (mask * feature).sum((1, 2)) / (mask.sum() + 1e-4)
