"""Given attention (Hertz et al. 2022, arXiv 2208.01626; Jambon 2023, section 6.3): words look where maps from elsewhere
say.

Prompt-to-Prompt puts the cross-attention of one painting into another. Here it is given: read in photographs, rendered
of a scene into which it was lifted, or drawn. It decides which word a place listens to and nothing else; a place whose
outline is known by other means, a ControlNet's depth, is told what stands there.

Maps are probabilities of each head, or with ``spread`` shapes alone, such as masks: then each head keeps how much it
attends to a word in all, and where is the shape's. Nothing is normalised again, and the words that are not named keep
theirs, as in Prompt-to-Prompt. Where it acts in all steps the text found sampling to diverge; how long it should act
is not in it, and half of the steps is this project's choice.

Needs: image->text probabilities in conditional rows, at the sites that are given a map, in the first steps.

Families: all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.choice import choose
from sfumato.core.method import Edit, Method, Phases, Requires, Run, Where
from sfumato.core.settings import PartOfSteps, Weight
from sfumato.core.sites import Grid, Site
from sfumato.errors import SfumatoError
from sfumato.media.images import read_image
from sfumato.prompts.words import spans

Given = Mapping[str, Float[Tensor, "n heads h w"]]
"""A word's maps by the paths of sites; of all that are not named, at the empty one. One of all images or one each, one
of all heads or one each."""


@dataclass(frozen=True, eq=False)
class GivenAttention(Method):
    """Puts maps in the place of where words look."""

    requires: ClassVar = Requires(words=True, windows=False, groups=True)

    maps: Mapping[str, Given]
    """Of words of the prompt; on a command line a grey picture each, to be had with ``spread``."""
    until: PartOfSteps = 0.5
    """Part of the steps in which it acts."""
    strength: Weight = 1.0
    """Share of what is given; the rest is the network's own."""
    spread: bool = False
    """Are maps shapes alone? Then each head's own attention to a word is spread over the picture as its map is; if not,
    they are probabilities."""

    def start(self, run: Run) -> Phases:
        for word, given in self.maps.items():
            for path, x in given.items():
                if x.ndim != 4 or len(x) not in (1, run.rows.of_stream) or not x.isfinite().all():
                    raise SfumatoError(
                        f"maps of {word!r} at {path or 'all sites'} are finite, for one image or {run.rows.of_stream}, "
                        f"a map a head; got {tuple(x.shape)}"
                    )
        tokens = {
            stream: [[spans(run.model.words(prompt), word) for word in self.maps] for prompt in prompts]
            for stream, prompts in run.prompts.items()
        }
        if not (self.strength and self.until and self.maps):
            return Phases()

        def do(call: Call) -> None:
            maps = [resized(given, call.site, call.grid) for given in self.maps.values()]
            for name in call.rows.match("cond"):
                probs = call.block(name, "image->text").clone()
                for row, image in enumerate(call.rows.numbers):
                    for some, given in zip(tokens[name[0]][image], maps, strict=True):
                        if given is None:
                            continue
                        own = probs[row][..., some]
                        new = given[image % len(given)][..., None].to(own)
                        if self.spread:
                            new = new / new.sum(1, keepdim=True).clamp_min(1e-12) * own.sum(1, keepdim=True)
                        probs[row, ..., some] = (1 - self.strength) * own + self.strength * new
                call.set_block(name, "image->text", probs)

        def chosen(site: Any) -> bool:
            return any(_of(maps, site) is not None for maps in self.maps.values())

        where = Where("image->text", steps=(0, self.until), rows="cond", sites=chosen)
        for site in choose(run.model, where, run.grid, "given attention"):
            for word, maps in self.maps.items():
                found = _of(maps, site)
                if found is not None and found.shape[1] not in (1, site.heads):
                    raise SfumatoError(
                        f"{site.path} has {site.heads} heads, and maps of {found.shape[1]} are given of {word!r}"
                    )
        return Phases((Edit(where, "probs", do),))


def _of(given: Given, site: Site) -> Tensor | None:
    return given.get(site.path, given.get(""))


def resized(given: Given, site: Site, grid: Grid) -> Float[Tensor, "n heads queries"] | None:
    """What is given for a site, at its grid; None where nothing is."""
    found = _of(given, site)
    if found is None:
        return None
    small = F.interpolate(found.float(), grid, mode="bilinear", antialias=True, align_corners=False)
    return small.clamp(0, 1).flatten(2)


def drawn(path: str | Path) -> Given:
    """A picture's brightness, for all sites and heads. ``SfumatoError`` for a file that is no picture."""
    return {"": read_image(path).mean(0)[None, None]}
