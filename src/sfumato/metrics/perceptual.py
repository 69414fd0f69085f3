"""How unlike two images look, without weights that were learned for it: differentiable, for methods and measures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.metrics.sound import of_finite


@of_finite
def apart(a: Sequence[Float[Tensor, "b d h w"]], b: Sequence[Float[Tensor, "b d h w"]]) -> Float[Tensor, " b"]:
    """Of features at several levels: 1 - cosine at each place, a mean over places, then over levels.

    Half of LPIPS' form (Zhang et al. 2018, eq. 1) with all its weights the same. Between 0 and 2.
    """
    levels = [(1 - F.cosine_similarity(x, y, dim=1)).mean((1, 2)) for x, y in zip(a, b, strict=True)]
    return torch.stack(levels).mean(0)


@of_finite
def scales(images: Float[Tensor, "b c h w"], coarsest: int = 4) -> list[Float[Tensor, "b c h w"]]:
    """Images as they are and at half, a quarter, ... of their size, while sides have ``coarsest`` pixels or more."""
    out = [images]
    while min(out[-1].shape[-2:]) >= 2 * coarsest:
        out.append(F.avg_pool2d(out[-1], 2))
    return out


@of_finite
def coloured(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """The squared difference of colours at each place, summed over colours, a mean over places and ``scales``."""
    pairs = zip(scales(a), scales(b), strict=True)
    return torch.stack([(x - y).square().sum(1).mean((1, 2)) for x, y in pairs]).mean(0)
