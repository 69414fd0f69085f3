"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): a new word is learned, and nothing else.

Vectors that the text encoder reads for a placeholder are optimised by the model's own loss on three to five pictures
under neutral captions (eq. 2); the word can then stand in any prompt. Its variants are options: several vectors, one
more after so many steps (``--progressive``), in another order each time (``--shuffle``), held to where they began
(``--regularise``), beside a word for what is each picture's own (``--per-image``), others for each part of all times
(``--resolutions``, arXiv 2211.17115), begun as noise and pulled back to the vocabulary's spread (``--pull``, as
diffusers' pivotal tuning does).

Defaults: diffusers' example as its README runs it, 3000 steps of 4 pictures at a rate of 5e-4 times 4, weight decay
0.01. Different from it: the vectors are parameters of their own in float32, so that no other word moves or decays;
pictures are encoded once and latents are the encoder's means; each picture is seen once before any comes again.

Different from the authors' code: a word begins as the rows of its kind's tokens, without the first position's vector
added; a picture's word begins at the vocabulary's spread, not uniform in [0, 1), and is learned for any number of
pictures; it is not kept. Vectors that progressive learning did not come to are not kept either. What is regularised
there is the mean of all products of two vectors' differences, cross terms too, that is the squared length of their
mean: differences that cancel cost nothing, so that ``--penalty norm`` offers the mean of squared lengths.

Needs: a forward and a backward pass through the network and the text encoder for each picture of a step.

Families: Stable Diffusion 1, 2, XL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.core.conditions import Cond
from sfumato.core.settings import Between, Count, Weight, Whole
from sfumato.learning.concepts import Concept, bins, padded
from sfumato.learning.personal import Asked, Personalisation
from sfumato.learning.seeds import generator
from sfumato.learning.teaching import Part, Taught, Teaching, filled
from sfumato.methods.personalise.templates import OBJECT, STYLE

Shuffle = Literal["off", "all", "trailing", "leading", "between", "dynamic"]
MOST = 70
"""Vectors that a prompt of 77 tokens has a place for, beside a few words."""
BEGIN, ORDER, PICTURES = -11, -12, -13
"""What a generator is for, beside a step."""


@dataclass(frozen=True)
class TextualInversion(Personalisation):
    """Learns the vectors of a word."""

    steps: Count = 3000
    """How often the vectors move."""
    batch: Count = 4
    """Pictures of a step."""
    rate: Weight = 2e-3
    """Of AdamW."""
    warmup: Whole = 0
    """Steps in which the rate rises from zero; then it stays."""
    decay: Weight = 0.01
    """Weight decay, of the word's vectors alone."""
    vectors: Annotated[int, Between(1, MOST)] = 1
    """How many the word is read as."""
    begin: Literal["kind", "noise"] = "kind"
    """What vectors are at first: those of the kind's tokens, or normal noise of the vocabulary's spread."""
    style: bool = False
    """Captions of a style in the place of an object's."""
    templates: tuple[str, ...] = ()
    """Other captions than the published ones, with {} for the word."""
    progressive: Whole = 0
    """Steps after which the word is read as one vector more, from one on; 0: as all at once."""
    shuffle: Shuffle = "off"
    """Which vectors change places in each caption: all, those behind the first, before the last, between both, or as
    many of these as their number allows."""
    regularise: Weight = 0.0
    """What the vectors' differences from their begin count."""
    penalty: Literal["cross", "norm"] = "cross"
    """Of differences: the published mean over all pairs of vectors, or the mean of their squared lengths."""
    per_image: Annotated[float, Between(0, 1)] = 0.0
    """How often a caption has the word of its picture behind it, as "a photo of a {} with {}"."""
    resolutions: Count = 1
    """Parts of all times, each with vectors of its own."""
    pull: Weight = 0.0
    """After each step vectors are scaled by this power of the vocabulary's spread over theirs."""

    def problem(self, asked: Asked) -> Word:
        captions = filled(self.templates or (STYLE if self.style else OBJECT), asked.word)
        first = self.first(asked)
        pictures = drawn(asked, (len(asked.lesson), self.vectors), PICTURES) if self.per_image else {}
        parts = [Part(asked.lesson, captions, self.batch)]
        return Word(asked.model, parts, asked.seed, method=self, word=asked.word, first=first, pictures=pictures)

    def first(self, asked: Asked) -> dict[str, Float[Tensor, "times k d"]]:
        """What the word begins as: its kind's rows, the last as often as it takes; or noise."""
        if self.begin == "noise":
            return drawn(asked, (self.resolutions, self.vectors), BEGIN)
        found = begun(asked, self.vectors)
        return {key: rows.repeat(self.resolutions, 1, 1) for key, rows in found.items()}

    def count(self, step: int) -> int:
        """How many vectors the word is read as."""
        return min(self.vectors, 1 + step // self.progressive) if self.progressive else self.vectors

    def concept(self, asked: Asked, problem: Any) -> Concept:
        kept = {key: rows.detach()[:, : problem.reached].clone() for key, rows in problem.rows.items()}
        timed = self.resolutions > 1
        return Concept(asked.word, {key: rows[:, None] if timed else rows[0] for key, rows in kept.items()})


def begun(asked: Asked, vectors: int) -> dict[str, Float[Tensor, "k d"]]:
    """Rows that a word begins with: those of its kind, the last as often as it takes."""
    return {key: padded(rows, vectors) for key, rows in asked.model.vectors(asked.kind).items()}


def drawn(asked: Asked, of: tuple[int, ...], purpose: int) -> dict[str, Float[Tensor, "*of d"]]:
    """Normal noise of the spread of each encoder's vocabulary."""
    rng, spread = generator(asked.seed, purpose), asked.model.spread()
    widths = {key: rows.shape[-1] for key, rows in asked.model.vectors(asked.kind).items()}
    device = asked.model.device
    return {key: (torch.randn(*of, width, generator=rng) * spread[key]).to(device) for key, width in widths.items()}


def order(n: int, shuffle: Shuffle, rng: torch.Generator) -> Int[Tensor, " n"]:
    """In which order n vectors stand; those that do not change places stay where they are."""
    if shuffle == "dynamic":
        shuffle = "between" if n >= 4 else "trailing" if n == 3 else "all"
    fixed = {"off": (n, 0), "all": (0, 0), "trailing": (1, 0), "leading": (0, 1), "between": (1, 1)}[shuffle]
    low, high = fixed[0], n - fixed[1]
    places = torch.arange(n)
    if high - low > 1:
        places[low:high] = low + torch.randperm(high - low, generator=rng)
    return places


@dataclass(eq=False)
class Word(Teaching):
    """The rows of a word are to make the network see the pictures."""

    method: TextualInversion = field(default_factory=TextualInversion)
    word: str = ""
    first: Mapping[str, Float[Tensor, "times k d"]] = field(default_factory=dict)
    pictures: Mapping[str, Float[Tensor, "n k d"]] = field(default_factory=dict)
    """What each picture's own word begins as."""
    name: str = "the word"

    def __post_init__(self) -> None:
        self.rows = nn.ParameterDict({key: nn.Parameter(rows.clone()) for key, rows in self.first.items()})
        self.own = nn.ParameterDict({key: nn.Parameter(rows.clone()) for key, rows in self.pictures.items()})
        self.modules = {"rows": self.rows, **({"pictures": self.own} if self.pictures else {})}
        self.spread = self.model.spread() if self.method.pull else {}
        self.beside_word = f"{self.word}#"
        self.reached = self.method.count(0)
        self._readers: dict[int, Any] = {}

    def reader(self, n: int) -> Any:
        """The model that reads the word, and a picture's, as n vectors."""
        if n not in self._readers:
            words = {self.word: {key: rows[0, :n] for key, rows in self.first.items()}}
            if self.pictures:
                words[self.beside_word] = {key: rows[0, :n] for key, rows in self.pictures.items()}
            self._readers[n] = self.model.with_words(words)
        return self._readers[n]

    def teach(self, part: int, step: int) -> Taught:
        taught = super().teach(part, step)
        if not self.pictures:
            return taught
        chance = torch.rand(len(taught.captions), generator=generator(self.seed, step, part, PICTURES))
        pairs = zip(taught.captions, (chance < self.method.per_image).tolist(), strict=True)
        return taught._replace(captions=tuple(f"{c} with {self.beside_word}" if own else c for c, own in pairs))

    def cond(self, taught: Sequence[Taught]) -> Cond:
        captions = [caption for each in taught for caption in each.captions]
        self.reached = n = self.method.count(taught[0].step)
        rng = generator(self.seed, taught[0].step, ORDER)
        orders = torch.stack([order(n, self.method.shuffle, rng) for _ in captions])
        times = torch.cat([each.at.t.expand(len(each.captions)) for each in taught])
        which = bins(times, self.model.schedule.train_steps, self.method.resolutions).tolist()
        seen = [number for each in taught for number in each.drawn.which]
        numbers = [i if self.beside_word in caption else 0 for i, caption in zip(seen, captions, strict=True)]
        rows = list(zip(captions, which, map(tuple, orders.tolist()), numbers, strict=True))
        each = list(dict.fromkeys(rows))  # what several pictures have in common is read once
        own = [(time, places) for _, time, places, _ in each]
        words = {self.word: {key: torch.stack([of[t, list(at)] for t, at in own]) for key, of in self.rows.items()}}
        if self.pictures:
            words[self.beside_word] = {key: of[[row[-1] for row in each], :n] for key, of in self.own.items()}
        read = self.reader(n).read([caption for caption, *_ in each], words)
        return Cond.cat([read[(at := each.index(row)) : at + 1] for row in rows])

    def beside(self, taught: Sequence[Taught], predicted: Tensor) -> Tensor | float:
        if not self.method.regularise:
            return 0.0
        moved = [rows - self.first[key] for key, rows in self.rows.items()]
        if self.method.penalty == "cross":
            moved = [(each @ each.mT).mean() for each in moved]  # (e - e0)(e - e0)^T of the authors' code, its mean
        else:
            moved = [each.square().sum(-1).mean() for each in moved]
        return self.method.regularise * torch.stack(moved).sum()

    @torch.no_grad()
    def after_step(self, step: int, optimisers: Any) -> None:
        for key, spread in self.spread.items():
            self.rows[key].mul_((spread / self.rows[key].std()) ** self.method.pull)

    def state(self) -> Mapping[str, Mapping[str, Tensor]]:
        return {"word": {"reached": torch.tensor(self.reached)}}

    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.reached = int(state["word"]["reached"])


PAPER = TextualInversion(steps=5000, batch=8, rate=0.04)
"""With latent diffusion's own text encoder: a rate of 0.005 times two GPUs of 4 pictures (section 4)."""
LDM = TextualInversion(steps=6100, rate=0.02)
"""The authors' configuration for latent diffusion: 0.005 times 4."""
STABLE_DIFFUSION = TextualInversion(steps=6100, batch=2, rate=0.01)
"""The authors' configuration for Stable Diffusion 1: 0.005 times 2."""
DIFFUSERS = TextualInversion(steps=5000, batch=16, rate=1e-4)
"""What diffusers' example does without options."""
PROGRESSIVE = TextualInversion(vectors=3, progressive=2000, steps=6000)
"""The authors' code: one vector more after 2000 steps."""
PER_IMAGE = TextualInversion(per_image=0.25)
"""The authors' code: the picture's word stands in a quarter of all captions."""
MULTIRESOLUTION = TextualInversion(resolutions=10)
"""Ten resolutions, by their authors' command."""
PIVOTAL = TextualInversion(vectors=2, begin="noise", pull=0.1)
"""How diffusers' pivotal tuning begins and holds its words; it tunes the network as well."""
