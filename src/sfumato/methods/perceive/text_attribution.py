"""Text attribution (DAAM, Tang et al. 2022, arXiv 2210.04885; of another text: OVAM, Marcos-Manchon et al. 2024, arXiv
2403.20105): where in an image each word is attended to.

The cross-attention of every layer, at every step, says how much each pixel attends to each word. Brought to one size
and averaged it is a map of the word. Words need not be those that the network read the image with: their keys are taken
from a second row of the batch, which reads the other text, and the queries from the first.

DAAM adds up the steps in which the image was painted; here an image is given, noised to ``steps`` and read, ten of them
unless said otherwise. As there, maps are brought to the latents' size by bicubic interpolation and cut at zero; here
after the mean over a layer's heads, there before. The middle of a UNet is left out, as there, unless ``stage`` asks for
it. A word of several tokens is their mean. Where words compete, there a map is divided by the sum over the words asked
for, here by that over all words of the sentence.

Needs: image->text maps, of the words' tokens alone, added up as they are made; one call of the network a step, of two
rows with another text. Nothing is kept but the maps.

Families: all. In joint attention the part that goes from pixels to the text is made one, and the keys of another text
are those of a pass in which the image is read with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.conditions import Cond
from sfumato.core.method import Requires
from sfumato.core.settings import Part, Settings, TrainStep, Whole
from sfumato.core.sites import Site
from sfumato.errors import SfumatoError
from sfumato.prompts.words import spans
from sfumato.reading.reader import Noise, Reader, attended, chosen, extract
from sfumato.reading.results import Segments

STEPS = tuple(range(1, 1000, 110))
"""Ten levels of noise, evenly from none to all."""


@dataclass(frozen=True)
class TextAttribution(Settings):
    """Segments by words: where a word's map is above a part of its own maximum, and above the other words'."""

    requires: ClassVar = Requires(words=True)

    words: tuple[str, ...] = ()
    """Words or phrases of the sentence."""
    prompt: str | None = None
    """The sentence that has the words [default: the words themselves, with "and" between them]."""
    read_with: str | None = None
    """What the network is told of the image, where that is another text than the sentence."""
    threshold: Part = 0.4
    """What is below this part of a word's maximum is background."""
    compete: bool = False
    """Divide the maps by the sum over all words of the sentence."""
    steps: tuple[TrainStep, ...] = STEPS
    """Levels of noise that the image is read at, over which maps are averaged."""
    least: Part = 0.0
    """Only maps of at least this part of the latents' side; 0 takes all."""
    stage: str | None = None
    """Only maps of this stage, in UNets down, mid or up; all: of each; none: of all but mid, as published."""
    seed: Whole = 0
    """Of the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.steps:
            raise SfumatoError("attribution reads an image at one level of noise at least; steps are empty")

    def __call__(self, reader: Reader) -> Segments:
        """The background first, then the words."""
        maps = self.maps(reader)
        maps = maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)
        scores = torch.cat([torch.full_like(maps[:1], self.threshold), maps])
        return Segments(scores, reader.size, ("background", *self.words))

    def maps(self, reader: Reader) -> Float[Tensor, "k h w"]:
        """A map for each word, at the latents' size."""
        if not self.words:
            raise SfumatoError("attribution needs words: which things to look for")
        self.requires.check_model(reader.model, "TextAttribution")
        prompt = " and ".join(self.words) if self.prompt is None else self.prompt
        sites = read_at(reader, self.stage, self.least)
        return attribute(
            reader, prompt, self.words, self.steps, sites, self.read_with, compete=self.compete, seed=self.seed
        )

    def heat_maps(self, reader: Reader) -> Float[Tensor, "k H W"]:
        """``maps`` at the image's own size, on the CPU."""
        maps = self.maps(reader)[None].float()
        return F.interpolate(maps, reader.size, mode="bilinear", align_corners=False)[0].cpu()


def read_at(reader: Reader, stage: str | None = None, least: float = 0.0) -> tuple[Site, ...]:
    """Where maps are taken, as ``TextAttribution`` says."""
    found = chosen(reader, "image->text", None if stage == "all" else stage, least, "attribution")
    outer = tuple(site for site in found if stage is not None or site.stage != "mid")
    return outer or found


def attribute(
    reader: Reader,
    prompt: str,
    words: Sequence[str],
    steps: Sequence[float] = STEPS,
    sites: Sequence[Site] | None = None,
    read_with: str | None = None,
    compete: bool = False,
    seed: int = 0,
) -> Float[Tensor, "k h w"]:
    """Where each of a sentence's ``words`` is attended to, at the latents' size, averaged over steps, sites and heads.

    ``read_with``: what the network is told of the image, unless that is the sentence itself. ``compete`` divides by the
    sum over all words of the sentence, each the mean of its tokens. Raises ``SfumatoError`` for a word that the
    sentence has not.
    """
    model = reader.model
    sites = read_at(reader) if sites is None else sites
    placed = model.words(prompt)
    tokens = [spans(placed, word) for word in words]
    if compete:
        tokens += [list(range(at.start, at.stop)) for _, at in placed]
    with torch.no_grad():
        cond = model.embed([prompt])
    rows = 1
    if read_with is not None and read_with != prompt:
        with torch.no_grad():
            cond, rows = Cond.cat([model.embed([read_with]), cond]), 2

    def of_words(call: Call) -> Float[Tensor, "rows words h w"]:
        if rows == 2:
            (name,) = call.rows.names
            own = call.get("q", name)
            call.set("q", name, own[:1].expand_as(own))
            maps = attended(call, "image->text")
            call.set("q", name, own)
        else:
            maps = attended(call, "image->text")
        picked = torch.stack([maps[..., at].mean(-1) for at in tokens], 1).unflatten(2, call.grid)
        return F.interpolate(picked, reader.grid, mode="bicubic", align_corners=False).clamp_min(0)

    latents = reader.latents.expand(rows, -1, -1, -1)
    total = torch.zeros(len(tokens), *reader.grid, device=latents.device)
    for t in steps:
        with torch.no_grad():
            found = extract(model, latents, cond, Noise(t, seed=seed), sites, of_words, batch=rows)
        total += torch.stack([maps[-1] for maps in found.values()]).mean(0)
    maps = total / len(steps)
    if compete:
        maps = maps[: len(words)] / maps[len(words) :].sum(0).clamp_min(1e-12)
    return maps
