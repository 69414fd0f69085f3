"""PACL (patch aligned contrastive learning, Mukhoti et al. 2023, arXiv 2212.04994): segments by any words, learned of
images with captions alone.

A small head on a frozen encoder's patches learns to bring them where a frozen text encoder has the texts. A text fits
an image by the patches that fit it: cosines with all of them, a softmax over the patches, the cosine of their weighted
mean with the text (eqs. 5.14 to 5.17: ``open_vocabulary.compatibility``). Images of a batch should fit their own
captions better than others' (InfoNCE, eq. 5.18, both ways as CLIP's). At reading time each patch is named by the most
alike of any words: ``Head.with_words``.

Patches are a CLIP's as published (``ClipPatches``), with its projected texts, or the features of any other method:
then texts are where the model's own text encoder ends them, which is what CLIP pools. There is no official code; the
head is that of the public re-implementations, a linear layer beside two with a GELU, and the batch, far below the
published thousands, is ours. As captions and nouns come twice in small batches, a text that is true of another image
too is no negative of that here. ``nouns`` are GroupViT's (Xu et al. 2022, arXiv 2202.11094): of a whole sentence the
ground, which fills most patches, may explain all, and things nothing.

Needs: features of each image, read once; then the head alone runs.

Families: all that read prompts; with a CLIP's patches any.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sfumato.core.backbone import Backbone
from sfumato.core.method import Requires
from sfumato.core.settings import Count, Part, Positive, Several, Weight, Whole
from sfumato.errors import SfumatoError
from sfumato.learning.heads import Examples, FeatureSource, Head, HeadMethod, HeadProblem, Standard, cells
from sfumato.learning.seeds import generator
from sfumato.learning.teaching import filled
from sfumato.methods.perceive.open_vocabulary import compatibility, similarity
from sfumato.prompts.grammar import noun_phrases
from sfumato.reading.results import Segments

_WORDLESS = "a head of PACL names patches by any words, and there is none; give some: --names cube,grass"


@dataclass(frozen=True)
class PACL(HeadMethod):
    """Learns to tell which patches a text is about, from images with captions."""

    wants = ("captions", "texts")
    takes_words = True

    temperature: Positive = 0.07
    """What fits are divided by in the loss, and cosines where patches are named; CLIP's first."""
    sharpness: Positive = 1.0
    """What cosines are multiplied by before the softmax over the patches."""
    templates: tuple[str, ...] = ("{}",)
    """Sentences that words are read in, such as "a photo of a {}"; a word is the mean of them."""
    nouns: Part = 0.0
    """How often an image's text is one of its caption's nouns, in a template, in the place of the caption."""
    standard: bool = False
    """Bring features to mean 0 and deviation 1 first."""
    batch: Several = 64
    """Images a step."""
    cells: Whole = 0
    """So many patches of each, drawn anew in each step (0: all)."""
    steps: Count = 500
    rate: Weight = 5e-4
    decay: Weight = 0.01
    """Weight decay, of AdamW."""
    seed: Whole = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        filled(self.templates, "")

    def known(self, model: Backbone, source: FeatureSource, known: dict[str, Any]) -> dict[str, Any]:
        known = {**known, "names": ()}
        if not known.get("captions"):
            return known
        each = [texts_of(caption) for caption in known["captions"]]
        sentences = list(dict.fromkeys(self.sentence(text, i > 0) for texts in each for i, text in enumerate(texts)))
        read = dict(zip(sentences, read_texts(model, source, sentences).cpu(), strict=True))
        most = max(map(len, each))
        rows = [[read[self.sentence(text, i > 0)] for i, text in enumerate(texts)] for texts in each]
        return {**known, "texts": torch.stack([torch.stack(row + row[:1] * (most - len(row))) for row in rows])}

    def sentence(self, text: str, noun: bool) -> str:
        """A text as it is read: of a noun, in the first template."""
        return self.templates[0].replace("{}", text) if noun else text

    def sizes(self, examples: Examples) -> dict[str, int]:
        assert examples.texts is not None
        return {"width": examples.width, "texts": examples.texts.shape[-1], "words": 0}

    def network(self, width: int, texts: int, words: int) -> nn.Module:
        return PatchEmbedder(width, texts, words)

    def problem(self, examples: Examples, network: Any) -> HeadProblem:
        if self.standard:
            network.before.learn(examples)
        return super().problem(examples, network)

    def optimiser(self, groups: list[Any]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=self.rate, weight_decay=self.decay)

    def loss(self, network: Any, examples: Examples, step: int) -> Float[Tensor, ""]:
        assert examples.texts is not None
        which = examples.drawn(self.seed, step, min(self.batch, len(examples)))
        captions, rng = [texts_of(examples.captions[i]) for i in which], generator(self.seed, step)
        noun, any_ = torch.rand(2, len(which), generator=rng).tolist()
        taken = [
            1 + int(u * (len(c) - 1)) if v < self.nouns and len(c) > 1 else 0
            for c, v, u in zip(captions, noun, any_, strict=True)
        ]
        texts = [caption[at] for caption, at in zip(captions, taken, strict=True)]
        true = torch.tensor([[text in caption for text in texts] for caption in captions])
        maps = cells(examples.maps(which))
        if 0 < self.cells < maps.shape[1]:
            maps = maps[:, torch.randperm(maps.shape[1], generator=rng)[: self.cells].to(maps.device)]
        patches = network(maps)
        fits = compatibility(patches, examples.texts[which, taken].to(patches), self.sharpness)
        return contrast(fits, true.to(fits.device), self.temperature)

    def check(self, examples: Examples) -> None:
        super().check(examples)
        if len(set(examples.captions)) < 2:
            raise SfumatoError("PACL learns which of two captions an image has, and all of these have the same")

    def naming(self, head: Head, model: Backbone, words: Sequence[str]) -> Head:
        if not words and len(head.network.words):
            return head
        if not words or not all(word.strip() for word in words):
            raise SfumatoError(_WORDLESS)
        read = [read_texts(model, head.source, [t.replace("{}", w) for w in words]) for t in self.templates]
        network = deepcopy(head.network)
        network.words = torch.stack([F.normalize(texts, dim=1) for texts in read]).mean(0).to(network.words)
        return replace(head, network=network, names=tuple(words), sizes={**head.sizes, "words": len(words)})

    def answer(self, head: Head, maps: Sequence[Float[Tensor, "c h w"]], size: tuple[int, int]) -> Segments:
        """Probabilities of the words at each patch: a softmax of cosines over the temperature, as CLIP's."""
        network: Any = head.network
        if not len(network.words):
            raise SfumatoError(_WORDLESS)
        like = [similarity(network(cells(map[None]))[0], network.words).unflatten(1, map.shape[1:]) for map in maps]
        mean = torch.stack([map.flip(-1) if i else map for i, map in enumerate(like)]).mean(0)
        return Segments((mean / self.temperature).softmax(0), size, head.names)


class PatchEmbedder(nn.Module):
    """Patches to where texts are: a linear layer, and beside it two with a GELU in between."""

    words: Tensor
    """Where the words are that patches are named by."""

    def __init__(self, width: int, texts: int, words: int = 0) -> None:
        super().__init__()
        self.before = Standard(width)
        self.linear = nn.Linear(width, texts)
        self.beside = nn.Sequential(nn.Linear(width, texts), nn.GELU(), nn.Linear(texts, texts))
        self.register_buffer("words", torch.zeros(words, texts))

    def forward(self, patches: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        patches = self.before(patches)
        return self.linear(patches) + self.beside(patches)


def contrast(fits: Float[Tensor, "b b"], true: Bool[Tensor, "b b"], temperature: float) -> Float[Tensor, ""]:
    """InfoNCE, of images among the texts and of texts among the images (the mean of both).

    ``fits``: of image i (rows) and text j (columns), in [-1, 1]; ``true``: does text j say what is in image i? Such a
    pair is no negative; image i and text i belong together.
    """
    own = torch.arange(len(fits), device=fits.device)
    others = true & (own != own[:, None])
    logits = (fits / temperature).masked_fill(others, -torch.inf)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


@lru_cache(maxsize=100_000)
def texts_of(caption: str) -> tuple[str, ...]:
    """What is true of an image with this caption: the caption, and each of its nouns."""
    return (caption, *dict.fromkeys(phrase.head for phrase in noun_phrases(caption)))


def read_texts(model: Backbone, source: Any, sentences: Sequence[str]) -> Float[Tensor, "k e"]:
    """Where the text encoder beside the features has sentences: the source's own, or else the model's.

    Of the model it is the state of the token that ends a text. Raises ``SfumatoError`` for a model that reads none.
    """
    if hasattr(source, "texts"):
        return source.texts(model, sentences)
    Requires(words=True).check_model(model, "PACL")
    with torch.no_grad():
        text = model.embed(sentences).text.float()
    ends = [max((at.stop for _, at in model.words(sentence)), default=1) for sentence in sentences]
    return text[torch.arange(len(text)), torch.tensor(ends).clamp_max(text.shape[1] - 1)]
