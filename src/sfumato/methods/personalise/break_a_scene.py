"""Break-A-Scene (Avrahami et al. 2023, arXiv 2305.16311): several things of one picture, a word each, told apart.

Each thing has a mask and a word. A step shows the picture under "a photo of <a> and <b>" with a random set of its
things (union sampling): the error counts in the union of their masks alone (eq. 1), and where each word is attended to
is to be its thing's mask (eq. 3). At first the words' vectors learn, then all weights of the network and of the text
encoders with them, at a lower rate; pictures of something else keep what the model knew.

Defaults: the authors' code, 400 steps of vectors at 5e-4 and 400 of all at 2e-6, of one picture and one of 100 of
"a photo at the beach" each, clipped to a norm of 1, attention times 0.01. A word's attention is averaged over heads and
all layers of the network at a quarter of the latents' side and divided by its maximum; the error's mean is over all
cells, as theirs (``inside`` for those of the masks alone), so that small things count less.

Different from it: only the new vectors learn of the vocabulary, in both phases; the moments of the optimiser are theirs
throughout; pictures of something else are left out of the first phase, where no gradient comes of them; masks are
areas, not the nearest pixel; several pictures may be learned from, each of which shows some of the things. Their
attention loss reads other rows without pictures of something else; here these are a choice. ``rank`` learns low-rank
changes of attention in the place of all weights, in less memory.

Needs: a forward and a backward pass for a picture of each in one batch; in the second phase a float32 copy of network
and text encoders, and two moments of each weight. A mask of each thing.

Families: Stable Diffusion 1, 2, XL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.attention import Call
from sfumato.core.choice import nearest
from sfumato.core.rows import single
from sfumato.core.settings import Between, Count, Weight, Whole
from sfumato.errors import SfumatoError
from sfumato.learning import tuning
from sfumato.learning.concepts import Concept, padded
from sfumato.learning.lessons import Drawn
from sfumato.learning.personal import Asked, Personalisation
from sfumato.learning.seeds import generator
from sfumato.learning.teaching import Part, Taught, filled
from sfumato.learning.tuning import Tuning
from sfumato.methods.personalise.textual_inversion import MOST

CHOSEN = -31
"""What a generator is for, beside a step."""


@dataclass(frozen=True)
class BreakAScene(Personalisation):
    """Learns a word for each thing of a picture."""

    wants_masks: ClassVar[bool] = True
    tells_apart: ClassVar[bool] = True
    steps: Count = 800
    """Of both phases."""
    rate: Weight = 2e-6
    """Of AdamW in the second phase."""
    first: Annotated[float, Between(0, 1)] = 0.5
    """Part of the run in which vectors alone learn; 1: weights never do."""
    first_rate: Weight = 5e-4
    """Their rate in it."""
    batch: Count = 1
    """Pictures of a step, and as many of something else."""
    attention: Weight = 0.01
    """What a word's attention beside its mask counts."""
    side: Annotated[float, Between(0, 1)] = 0.25
    """Where that is read, as a part of the latents' side; of small latents at 16 cells, as far as there are so many."""
    inside: bool = False
    """Is the error's mean over the masks' cells alone, so that small things count as much as large ones?"""
    prior_weight: Weight = 1.0
    """What pictures of something else count; 0 for none."""
    class_pictures: Whole = 100
    """How many are painted of it, where they count."""
    beside: str = "photo at the beach"
    """What they are of."""
    text: bool = True
    """Do the text encoders learn as well?"""
    rank: Whole = 0
    """Of low-rank changes of attention, which learn in the place of all weights; 0: all weights."""
    vectors: Annotated[int, Between(1, MOST)] = 1
    """How many each word is read as."""
    templates: tuple[str, ...] = ("a photo of {}",)
    """Captions, with {} for the words of a step with "and" between them."""
    snr_gamma: Weight | None = None
    """Min-SNR: how much an error counts at most; none: all levels the same."""
    clip: Weight | None = 1.0
    """The greatest norm of all gradients."""

    @property
    def wants_prior(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.prior_weight > 0

    def at_large(self, kind: str) -> str:
        return self.beside

    def check(self, asked: Asked) -> None:
        super().check(asked)
        tuning.check(asked.model, type(self).__name__, self.text)
        things = asked.lesson.apart
        if things is not None and things.shape[1] != len(asked.kinds):
            raise SfumatoError(
                f"each thing has a word, and there are {len(asked.kinds)} words ({', '.join(asked.kinds)}) of "
                f"{things.shape[1]} things with masks"
            )

    def rate_at(self, rate: float, step: int, used: float) -> float:
        return super().rate_at(rate if used < self.first else self.rate, step, used)

    def problem(self, asked: Asked) -> Apart:
        words = {
            word: {key: padded(rows, self.vectors) for key, rows in asked.model.vectors(kind).items()}
            for word, kind in asked.kinds.items()
        }
        own, moved = asked.model.with_words(words), {}
        if self.first < 1:
            parts = tuning.parts_of(own, self.text)
            own, moved = (
                tuning.low_rank(own, parts, self.rank, asked.seed)
                if self.rank
                else tuning.copies(own, parts, lambda name: not name.endswith("token_embedding.weight"))
            )
        lessons = [Part(asked.lesson, filled(self.templates, "{}"), self.batch)]
        if self.prior_weight and asked.prior is not None:
            lessons.append(Part(asked.prior, (f"a {self.beside}",), self.batch, self.prior_weight))
        return Apart(own, lessons, asked.seed, moved=moved, snr_gamma=self.snr_gamma, method=self, things=words)

    def concept(self, asked: Asked, problem: Any) -> Concept:
        changes = tuning.halves(problem.moved) if self.rank else tuning.differences(asked.model, problem.moved)
        rows = {word: {key: row.detach().clone() for key, row in of.items()} for word, of in problem.own.items()}
        return Concept(asked.word, rows.pop(asked.word), changes, others=rows)


@dataclass(eq=False)
class Apart(Tuning):
    """The words of several things are to make the network see these, and to be attended to where they are."""

    method: BreakAScene = field(default_factory=BreakAScene)
    things: Mapping[str, Mapping[str, Float[Tensor, "k d"]]] = field(default_factory=dict)
    """What each word begins as."""
    name: str = "the words"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.own = {
            word: nn.ParameterDict({key: nn.Parameter(row.clone()) for key, row in of.items()})
            for word, of in self.things.items()
        }
        self.modules |= {f"word{i}": of for i, of in enumerate(self.own.values())}
        self.rates = {f"word{i}": self.method.first_rate for i in range(len(self.own))}
        self.every, grid = self.parts, self.parts[0].lesson.latents.shape[-2:]
        self.grid = grid[0], grid[1]
        self.sites: tuple[Any, ...] = ()
        self.seen: list[Float[Tensor, "b cells n"]] = []
        if self.method.attention:
            self.sites = nearest(self.model, "image->text", self.grid, self.method.side, "BreakAScene")

    @property
    def second(self) -> bool:
        """Do weights learn?"""
        return self.fraction >= self.method.first

    def words(self, attached: bool = False) -> dict[str, dict[str, Float[Tensor, "k d"]]]:
        return {
            word: {key: row if attached else row.detach() for key, row in of.items()} for word, of in self.own.items()
        }

    def chosen(self, step: int, drawn: Drawn) -> list[list[int]]:
        """Of each picture of a step a set of the things that it shows: of any size, and of that any set, as likely."""
        rng, masks = generator(self.seed, step, CHOSEN), self.every[0].lesson.apart
        assert masks is not None
        found = []
        for which in drawn.which:
            there = masks[which].flatten(1).amax(1).nonzero().flatten().tolist()
            count = int(torch.randint(1, len(there) + 1, (), generator=rng))
            found.append([there[i] for i in torch.randperm(len(there), generator=rng)[:count].tolist()])
        return found

    def masks(self, step: int, drawn: Drawn) -> list[Float[Tensor, "things h w"]]:
        """Of the things that are chosen."""
        masks = self.every[0].lesson.apart
        assert masks is not None
        seen = zip(self.chosen(step, drawn), drawn.which, drawn.ways, strict=True)
        return [masks[which, some, way] for some, which, way in seen]

    def teach(self, part: int, step: int) -> Taught:
        taught = super().teach(part, step)
        if part:
            return taught
        names, chosen = list(self.own), self.chosen(step, taught.drawn)
        union = torch.stack([masks.amax(0) for masks in self.masks(step, taught.drawn)])
        captions = (
            caption.replace("{}", " and ".join(names[i] for i in some))
            for caption, some in zip(taught.captions, chosen, strict=True)
        )
        return taught._replace(drawn=taught.drawn._replace(mask=union), captions=tuple(captions))

    def weights(self, taught: Taught) -> Float[Tensor, " b"] | None:
        own, mask = super().weights(taught), taught.drawn.mask
        if mask is None or self.method.inside:
            return own
        part = mask.mean((1, 2))  # of a mean over the mask to one over the picture
        return part if own is None else part * own.to(part)

    def loss(self, step: int) -> Float[Tensor, ""]:
        self.parts, self.seen = self.every if self.second else self.every[:1], []
        if not self.sites:
            return super().loss(step)
        rows = single(sum(part.batch for part in self.parts))
        with self.model.tap(dict.fromkeys(self.sites, self._see), rows, self.grid) as tap:
            found = super().loss(step)
            tap.check(self.model.network)
        return found

    def _see(self, call: Call) -> None:
        (name,) = call.rows.names
        self.seen.append(call.mean(name, "image->text")[: self.every[0].batch])

    def beside(self, taught: Sequence[Taught], predicted: Tensor) -> Tensor | float:
        if not self.seen:
            return 0.0
        (step, drawn, captions, *_), maps, names = taught[0], torch.stack(self.seen).mean(0), list(self.own)
        grid, total = self.sites[0].grid(self.grid), maps.new_zeros(())
        rows = zip(maps, captions, self.chosen(step, drawn), self.masks(step, drawn), strict=True)
        for own, caption, chosen, masks in rows:
            small = F.adaptive_avg_pool2d(masks[None], grid)[0]
            for thing, mask in zip(chosen, small, strict=True):
                tokens = self.model.own.places(self.model, caption, names[thing])
                if len(tokens) < self.method.vectors:
                    raise SfumatoError(f"{names[thing]!r} is cut off in {caption!r}; learn fewer things or vectors")
                total = total + attention_loss(own[:, tokens].mean(-1).view(grid), mask)
        return self.method.attention * total / len(captions)

    def backward(self, loss: Float[Tensor, ""], parameters: Sequence[nn.Parameter]) -> None:
        own = {id(row) for of in self.own.values() for row in of.values()}
        super().backward(loss, [p for p in parameters if self.second or id(p) in own])


def attention_loss(attention: Float[Tensor, "h w"], mask: Float[Tensor, "h w"]) -> Float[Tensor, ""]:
    """Mean square of what a word's attention, over its maximum, differs from its thing's mask by (eq. 3)."""
    return (attention / attention.amax().clamp_min(1e-12) - mask.to(attention)).square().mean()


WORDS_ALONE = BreakAScene(first=1.0, steps=400, prior_weight=0.0)
"""The first phase alone."""
LOW_RANK = BreakAScene(rank=4, rate=1e-4)
"""With low-rank changes of attention, at the rate of LoRA."""
