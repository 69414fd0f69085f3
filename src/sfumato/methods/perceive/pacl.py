"""PACL: patch aligned contrastive learning (Mukhoti et al. 2023, arXiv 2212.04994): segments by any words, from images
with captions alone.

A small head on a frozen encoder's patches learns to bring them where a frozen text encoder has the texts. A text fits
an image by the patches that fit it: cosines with all of them, a softmax over the patches, the cosine of their weighted
mean with the text (eqs. 5.14 to 5.17: ``open_vocabulary.compatibility``). Images of a batch should fit their own
captions better than others' (InfoNCE, eq. 5.18). At reading time each patch is named by the most alike of any words.

Needs: hidden layers of the denoiser, or a CLIP's patches; one pass an image, once; then only the head runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.learning.seeds import generator


class PatchEmbedder(nn.Module):
    """Patches to where texts are: a linear layer, and beside it two with a GELU in between."""

    def __init__(self, width: int, texts: int, seed: int = 0) -> None:
        super().__init__()
        self.linear, self.inner, self.outer = nn.Linear(width, texts), nn.Linear(width, texts), nn.Linear(texts, texts)
        rng = generator(seed)
        for layer in (self.linear, self.inner, self.outer):
            bound = layer.in_features**-0.5  # as torch draws linear layers
            for parameter in (layer.weight, layer.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=rng)

    def forward(self, patches: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        return self.linear(patches) + self.outer(F.gelu(self.inner(patches)))


def contrast(fits: Float[Tensor, "b b"], captions: Sequence[str], temperature: float) -> Float[Tensor, ""]:
    """InfoNCE, of images among the captions and of captions among the images, as CLIP's (mean of both).

    ``fits``: of image i (rows) and caption j (columns), in [-1, 1]. Pairs whose captions are the same words are no
    negatives of each other.
    """
    same = torch.tensor([[a == b for b in captions] for a in captions], device=fits.device)
    same.fill_diagonal_(False)
    logits = (fits / temperature).masked_fill(same, -torch.inf)
    own = torch.arange(len(fits), device=fits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
