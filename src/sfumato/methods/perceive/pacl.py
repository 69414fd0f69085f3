"""PACL: patch aligned contrastive learning (Mukhoti et al. 2023, arXiv 2212.04994): segments by any words, from images
with captions alone.

A small head on a frozen encoder's patches learns to bring them where a frozen text encoder has the texts. A text fits
an image by the patches that fit it: cosines with all of them, a softmax over the patches, the cosine of their weighted
mean with the text (eqs. 5.14 to 5.17: ``open_vocabulary.compatibility``). Images of a batch should fit their own
captions better than others' (InfoNCE, eq. 5.18, both ways as CLIP's). At reading time each patch is named by the most
alike of any words: ``Head.with_words``.

Patches are a CLIP's as published (``ClipPatches``), with its projected texts, or the features of any other method:
then texts are where the model's own text encoder ends them, which is what CLIP pools. There is no official code; the
head is that of the public re-implementations, a linear layer beside two with a GELU, and the batch, far below the
published thousands, is ours. As captions come twice in small sets, pairs of the same words are no negatives here.

Needs: features of each image, read once; then the head alone runs.

Families: all that read prompts; with a CLIP's patches any.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.backbone import Backbone
from sfumato.core.method import Requires
from sfumato.errors import SfumatoError
from sfumato.learning.heads import Examples, FeatureSource, Head, HeadMethod, HeadProblem, Standard, cells
from sfumato.methods.perceive.open_vocabulary import compatibility, similarity
from sfumato.reading.results import Segments

_WORDLESS = "a head of PACL names patches by any words, and there is none; give some: --names cube,grass"


@dataclass(frozen=True)
class PACL(HeadMethod):
    """Learns to tell which patches a text is about, from images with captions."""

    wants = ("captions", "texts")
    takes_words = True

    temperature: float = 0.07
    """What fits are divided by in the loss, and cosines where patches are named; CLIP's first."""
    sharpness: float = 1.0
    """What cosines are multiplied by before the softmax over the patches."""
    templates: tuple[str, ...] = ("{}",)
    """Sentences that words are read in, such as "a photo of a {}"; a word is the mean of them."""
    standard: bool = False
    """Bring features to mean 0 and deviation 1 first."""
    batch: int = 64
    """Images a step."""
    steps: int = 500
    rate: float = 5e-4
    decay: float = 0.01
    """Weight decay, of AdamW."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0 or self.batch < 2:
            raise SfumatoError("a contrast has a temperature above 0 and two images a batch, or more")
        if not self.templates or any("{}" not in template for template in self.templates):
            raise SfumatoError(f"a template has a place for the word, as 'a photo of a {{}}', got {self.templates}")

    def known(self, model: Backbone, source: FeatureSource, known: dict[str, Any]) -> dict[str, Any]:
        captions = known.get("captions") or ()
        return {**known, "texts": read_texts(model, source, captions).cpu()} if captions else known

    def sizes(self, examples: Examples) -> dict[str, int]:
        assert examples.texts is not None
        return {"width": examples.width, "texts": examples.texts.shape[1], "words": 0}

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
        patches = network(cells(examples.maps(which)))
        fits = compatibility(patches, examples.texts[which].to(patches), self.sharpness)
        return contrast(fits, [examples.captions[i] for i in which], self.temperature)

    def check(self, examples: Examples) -> None:
        super().check(examples)
        if len(set(examples.captions)) < 2:
            raise SfumatoError("PACL learns which of two captions an image has, and all of these have the same")

    def naming(self, head: Head, model: Backbone, words: Sequence[str]) -> Head:
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


def contrast(fits: Float[Tensor, "b b"], captions: Sequence[str], temperature: float) -> Float[Tensor, ""]:
    """InfoNCE, of images among the captions and of captions among the images (the mean of both).

    ``fits``: of image i (rows) and caption j (columns), in [-1, 1]. Pairs whose captions are the same words are no
    negatives of each other.
    """
    same = torch.tensor([[a == b for b in captions] for a in captions], device=fits.device)
    same.fill_diagonal_(False)
    logits = (fits / temperature).masked_fill(same, -torch.inf)
    own = torch.arange(len(fits), device=fits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


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
