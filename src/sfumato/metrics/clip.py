"""Measures by a CLIP: how well images fit their captions, and how far one set of images is from another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.metrics.sound import of_finite

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

MEAN = STD = 0.5  # as Still Life's image processor


@of_finite
def image_features(images: Float[Tensor, "b 3 h w"], model: CLIPModel) -> Float[Tensor, "b d"]:
    """Projected features, not normalised, of images in [0, 1]; images are resized to what the model reads."""
    config: Any = model.config.vision_config
    side = config.image_size
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return model.visual_projection(model.vision_model(pixel_values=(images - MEAN) / STD).pooler_output)


def text_features(captions: Sequence[str], model: CLIPModel, tokenizer: CLIPTokenizer) -> Float[Tensor, "b d"]:
    """Projected features, not normalised; what goes beyond the model's tokens is cut off."""
    tokens = tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt")
    ids, mask = (tokens[k].to(model.device) for k in ("input_ids", "attention_mask"))
    return model.text_projection(model.text_model(input_ids=ids, attention_mask=mask).pooler_output)


@of_finite
@torch.no_grad()
def clip_features(images: Float[Tensor, "b 3 h w"], model: CLIPModel, batch: int = 64) -> Float[Tensor, "b d"]:
    """``image_features`` in batches and without gradient, for ``frechet``; on the model's device."""
    return torch.cat([image_features(part.to(model.device), model).float() for part in images.split(batch)])


@of_finite
@torch.no_grad()
def clip_score(
    images: Float[Tensor, "b 3 h w"],
    captions: Sequence[str],
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
) -> Float[Tensor, " b"]:
    """Cosine similarity in [-1, 1] of each image (in [0, 1]) and its caption.

    ``tokenizer`` is the model's. Raises ``SfumatoError`` when images and captions do not pair.
    """
    if len(images) != len(captions):
        raise SfumatoError(f"every image needs its caption: {len(images)} images, {len(captions)} captions")
    return F.cosine_similarity(clip_features(images, model), text_features(captions, model, tokenizer).float())


@of_finite
def frechet(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Frechet distance (squared 2-Wasserstein) between Gaussians fitted to two sets of features.

    |mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) with unbiased covariances, by eigenvalues of symmetric matrices
    in double precision, so that singular covariances (fewer images than features) are no trouble. The estimate is
    biased upwards for few images; compare only sets of equal size. ``SfumatoError`` for fewer than two images.
    """
    if min(len(a), len(b)) < 2:
        raise SfumatoError(f"a Frechet distance needs two images or more on each side, got {len(a)} and {len(b)}")
    x, y = (np.asarray(v.detach().cpu(), np.float64) for v in (a, b))
    cov_x, cov_y = (np.cov(v, rowvar=False).reshape(v.shape[1], v.shape[1]) for v in (x, y))
    values, vectors = np.linalg.eigh(cov_x)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_y @ root).clip(min=0)).sum()
    mean = np.square(x.mean(0) - y.mean(0)).sum()
    return float(max(mean + np.trace(cov_x) + np.trace(cov_y) - 2 * cross, 0.0))
