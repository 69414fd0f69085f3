"""What the methods share that paint one image's thing in the looks of another's: streams, masks and statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.choice import FEWEST
from sfumato.core.method import Need, Run, Step, Where, span
from sfumato.core.sites import Grid
from sfumato.errors import SfumatoError
from sfumato.inversion import EditFriendly, Inversion, Path, invert
from sfumato.inversion.together import together
from sfumato.prompts.layout import Mask
from sfumato.prompts.words import spans

Said = str | Sequence[str]

APPEARANCE = "appearance"
"""The stream whose looks are taken. The first stream is the structure; all others become it in these looks."""

START = EditFriendly(scale=1.0, skip=0.32)
"""The published inversion of both images, at the guidance that they are followed with."""


def roles(run: Run, who: str) -> tuple[str, list[str]]:
    """The structure's stream and those that are painted. ``SfumatoError`` for a run that is no transfer."""
    structure, *rest = run.rows.streams
    painted = [s for s in rest if s != APPEARANCE]
    if APPEARANCE not in rest or not painted:
        raise SfumatoError(
            f'{who} needs three prompts: {{"source": ..., "target": ..., "{APPEARANCE}": ...}}, the last for the image '
            f"whose looks the target takes; this run has {', '.join(run.rows.streams)}"
        )
    return structure, painted


def transfer(
    model: Backbone, picture: Tensor, looks: Tensor, prompts: tuple[Said, Said], how: Inversion = START
) -> tuple[Path, dict[str, Said]]:
    """Where a run starts that paints a picture (or several) in another's looks, and its prompts.

    ``prompts``: what the picture shows and what the looks' shows. Images are in [0, 1] and of one size.
    """
    source, other = (invert(model, image, text, how) for image, text in zip((picture, looks), prompts, strict=True))
    path = together({("source", "target"): source, APPEARANCE: other})
    return path, {"source": prompts[0], "target": prompts[0], APPEARANCE: prompts[1]}


def in_decoder(run: Run, pair: str) -> Callable[[Any], bool]:
    """Is a site or layer of this pair in the part that draws: a UNet's way up, the later half of a transformer?"""
    found = [s for s in (*run.model.sites, *run.model.layers) if pair in s.pairs and s.axis == "space"]
    if any(s.stage == "up" for s in found):
        return lambda site: site.stage == "up"
    later = {s.path for s in found[len(found) // 2 :]}
    return lambda site: site.path in later


def grids(run: Run, pair: str) -> list[int]:
    """Shorter sides of the decoder's token grids, the finest first."""
    drawn = in_decoder(run, pair)
    drawing = [s for s in (*run.model.sites, *run.model.layers) if pair in s.pairs and drawn(s)]
    found = [s for s in drawing if s.axis == "space"]
    return sorted({min(s.grid(run.grid)) for s in found}, reverse=True)


class Things:
    """Where the thing is, in the structure and in the appearance: masks as given, or found by a word.

    The authors cluster self-attention and name the clusters by the word's cross-attention. Here the word's map is
    carried along self-attention once and cut halfway between its least and its greatest value; on renders with known
    masks that finds more of the thing (IoU 0.88, the clusters 0.75; 8 images, on which the cut was chosen).
    """

    def __init__(self, run: Run, words: Mapping[str, str | None], masks: Mapping[str, Mask | None], until: int):
        self.run, self.given, self.until = run, masks, until
        self.tokens: dict[str, list[list[int]]] = {}
        self.pairs: dict[str, tuple[Need, Need]] = {}
        self.heat: dict[str, Tensor] = {}
        for stream, word in words.items():
            if masks[stream] is not None and run.rows.each > 1:
                raise SfumatoError("a mask is of one image; give several images a word for the thing instead")
            if word is not None and masks[stream] is None:
                self.tokens[stream] = [spans(run.model.words(p), word) for p in run.prompts[stream]]
                self.pairs[stream] = _word_and_self(run, stream, until)

    @property
    def needs(self) -> tuple[Need, ...]:
        return tuple(need for pair in self.pairs.values() for need in pair)

    def note(self, step: Step) -> None:
        """Add the maps of a step, one of the first ``until``."""
        for stream, (cross, own) in self.pairs.items() if step.i < self.until else ():
            words = torch.stack([maps[stream, "cond"] for maps in step.maps[cross].values()]).mean(0)
            along = torch.stack([maps[stream, "cond"] for maps in step.maps[own].values()]).mean(0)
            heard = torch.stack([m[:, at].sum(-1) for m, at in zip(words, self.tokens[stream], strict=True)])
            grid = next(iter(step.maps[own])).grid(self.run.grid)
            heat = (along @ heard[..., None]).view(-1, 1, *grid)
            self.heat[stream] = self.heat.get(stream, 0) + heat

    def at(self, stream: str, grid: Grid) -> Bool[Tensor, "each 1 h w"] | None:
        """The thing's cells on a grid; nothing where neither a word nor a mask says which."""
        if (mask := self.given[stream]) is not None:
            return mask.at(grid)[None, None].to(self.run.model.device)
        if stream not in self.heat:
            return None
        heat = F.interpolate(self.heat[stream], grid, mode="bilinear", align_corners=False)
        least, most = heat.amin((2, 3), keepdim=True), heat.amax((2, 3), keepdim=True)
        return heat >= (least + most) / 2


def _word_and_self(run: Run, stream: str, until: int) -> tuple[Need, Need]:
    """Both kinds of maps of the decoder, where both are on one grid: the finest up to half of the latents' side.

    So it is in the authors' code, 32 of 64 cells; of small latents it is up to 16 cells.
    """
    sides = [n for n in grids(run, "image->image") if n in grids(run, "image->text")]
    most = max(min(run.grid) / 2, FEWEST)
    side = next((n for n in sides if n <= most), sides[-1])

    def need(pair: str) -> Need:
        return Need(Where(pair, side, (0, until), (stream, "cond"), in_decoder(run, pair)))

    return need("image->text"), need("image->image")


def matched(
    run: Run, things: Things, structure: str, painted: Sequence[str], between: tuple[int, int]
) -> Callable[[Step], None]:
    """What is done after each step: between two steps the painted latents get the appearance's statistics."""

    def after(step: Step) -> None:
        things.note(step)
        if between[0] <= step.i < between[1]:
            x = step.x_next.clone()
            inside, of = (things.at(s, run.grid) for s in (structure, APPEARANCE))
            for target in painted:
                at = run.images(target)
                x[at] = adain(x[at], x[run.images(APPEARANCE)], inside, of)
            step.x_next = x

    return after


def adain(
    content: Float[Tensor, "b c h w"],
    style: Float[Tensor, "b c h w"],
    inside: Bool[Tensor, "b 1 h w"] | None = None,
    of: Bool[Tensor, "b 1 h w"] | None = None,
) -> Float[Tensor, "b c h w"]:
    """``content`` with each channel's mean and deviation those of ``style`` (AdaIN, Huang and Belongie 2017, eq. 8).

    ``inside`` says which of the content's cells are meant, and changed; ``of`` which of the style's are measured.
    """
    mean, deviation = _moments(content, inside)
    wanted, spread = _moments(style, of)
    out = (content - mean) / deviation * spread + wanted
    return out if inside is None else torch.where(inside, out, content)


def _moments(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    weight = torch.ones_like(x[:, :1]) if mask is None else mask.to(x)
    n = weight.sum((2, 3), keepdim=True)
    mean = (x * weight).sum((2, 3), keepdim=True) / n
    variance = ((x - mean).square() * weight).sum((2, 3), keepdim=True) / (n - 1).clamp_min(1)
    return mean, (variance + 1e-5).sqrt()


def of_structure(i: int, steps: int, every: int, until: float) -> bool:
    """Is this one of the early steps that go back to the structure's own attention?"""
    return every > 0 and i % every == 0 and i < span((0, float(until)), steps)[1]
