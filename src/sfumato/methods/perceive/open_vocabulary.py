"""Open vocabulary (PACL, Mukhoti et al. 2023, arXiv 2212.04994; Tian et al. 2023, arXiv 2308.12469, section 3.5): names
for segments, by compatibility of patches and texts, or by a vote of words' attribution maps.

PACL says how well a text fits an image by the patches that fit it: cosines with all patches, a softmax over these, and
the cosine of the patches' weighted mean with the text. The functions take what encoders gave, of one width; ``pacl``
learns a head that brings patches there.

DiffSeg's addition names each segment by the word whose attribution map, brought to unit length over the image, is
largest on average inside of it; segments of one name become one. Maps come from ``text_attribution.attribute``.

Needs: no network.

Families: all that ``text_attribution`` has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.reading.results import Segments


def similarity(patches: Float[Tensor, "*b n d"], texts: Float[Tensor, "k d"]) -> Float[Tensor, "*b k n"]:
    """Cosine of each text with each patch (eq. 5.14); of all texts at a patch the largest names it."""
    if patches.shape[-1] != texts.shape[-1]:
        raise SfumatoError(f"patches of width {patches.shape[-1]} and texts of width {texts.shape[-1]} do not compare")
    return F.normalize(texts.float(), dim=-1) @ F.normalize(patches.float(), dim=-1).mT


def compatibility(
    patches: Float[Tensor, "*b n d"], texts: Float[Tensor, "k d"], sharpness: float = 1.0
) -> Float[Tensor, "*b k"]:
    """How well each text fits the image that the patches are of, from -1 to 1 (eqs. 5.14 to 5.17).

    ``sharpness``: what cosines are multiplied by before the softmax; published as 1, which weighs no patch more than
    e^2 times another.
    """
    weights = (sharpness * similarity(patches, texts)).softmax(-1)
    return F.cosine_similarity(weights @ patches.float(), texts.float(), dim=-1)


def label(segments: Segments, maps: Float[Tensor, "w h w2"], names: Sequence[str]) -> Segments:
    """Segments with names: each is what most of its pixels' votes are for, and those of one name are one.

    ``maps``: one for each name, at least 0, at any resolution. Scores are at the image's size, each name's the largest
    of its segments', so that every pixel stays in its segment.
    """
    if len(maps) != len(names) or not len(names):
        raise SfumatoError(f"each name has a map; got {len(names)} names and {len(maps)} maps")
    fitted = F.interpolate(maps[None].float(), segments.size, mode="bilinear", align_corners=False)[0]
    unit = F.normalize(fitted.flatten(1), dim=1)
    labels = segments.labels.flatten().to(unit.device)
    inside = F.one_hot(labels, len(segments.scores)).to(unit)
    best, whole = (unit @ inside).argmax(0), segments.whole.to(unit)
    found = [i for i in range(len(names)) if i in set(best[labels].tolist())]
    scores = torch.stack([whole[best == i].amax(0) for i in found])
    return Segments(scores, segments.size, tuple(names[i] for i in found))
