"""Maps laid over pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from PIL.Image import Image as Picture
from torch import Tensor

from sfumato.errors import finite
from sfumato.media import pictures


def heatmap(picture: Picture, map: Float[Tensor, "h w"]) -> Picture:
    """The picture, dark where the map is weak beside its greatest value. ``SfumatoError`` where it is not finite."""
    finite(map, "a map")
    w, h = picture.size
    share = (map - map.min()) / (map.max() - map.min()).clamp_min(1e-8)
    light = F.interpolate(share[None, None].float(), (h, w), mode="bicubic").clamp(0, 1)[0, 0].numpy()[..., None]
    return Image.fromarray((np.asarray(picture) * (0.15 + 0.85 * light)).astype(np.uint8))


def sheet(picture: Picture, maps: Sequence[tuple[str, Float[Tensor, "h w"]]]) -> Picture:
    """The picture and one overlay a word, labelled."""
    return pictures.labelled([picture, *(heatmap(picture, map) for _, map in maps)], ["", *(word for word, _ in maps)])
