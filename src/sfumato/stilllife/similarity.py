"""How well images fit texts, by the CLIP that ships."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.metrics.clip import image_features, text_features
from sfumato.stilllife import weights


def similarity(images: Float[Tensor, "b 3 h w"], texts: Sequence[str]) -> Float[Tensor, " b"]:
    """Cosine similarity in [-1, 1] of each image (in [0, 1]) and its text, differentiable by the images."""
    clip, tokenizer = _clip(images.device, weights.folder())
    return F.cosine_similarity(image_features(images, clip), text_features(texts, clip, tokenizer))


def features(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """What the CLIP makes of images in [0, 1], differentiable by them."""
    return image_features(images, _clip(images.device, weights.folder())[0])


@cache
def _clip(device: torch.device, folder: Path) -> tuple[Any, Any]:
    """The CLIP that lies there and its tokenizer: a method that learns asks in each step."""
    return weights.module("clip").to(device).requires_grad_(False).eval(), weights.tokenizer()
