"""Patches of a CLIP (Radford et al. 2021, arXiv 2103.00020): what its image encoder makes of each, and where it has
texts, for heads that learn on them in the place of a denoiser's features.

Patches are the last layer's, before the projection that only the whole image's token was trained through. At a larger
``side`` than the encoder's own there are more of them, and its positions are interpolated, bicubic.

Needs: the CLIP; one pass of its image encoder, none of the denoiser.

Families: all; the model itself is not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones.clips import SHIPPED, opened
from sfumato.core.backbone import Backbone
from sfumato.core.settings import Settings, Whole
from sfumato.errors import finite
from sfumato.metrics.clip import text_features
from sfumato.reading.reader import Reader, resized


@dataclass(frozen=True)
class ClipPatches(Settings):
    """Describes an image by the patches of a CLIP."""

    clip: str = SHIPPED
    """A folder with a CLIP as transformers saves it, or ``stilllife``, the small one that ships."""
    side: Whole = 0
    """Shorter side at which the CLIP sees images, in pixels; 0 is its own."""

    def features(self, reader: Reader) -> Float[Tensor, "c h w"]:
        """Of an image, at its own aspect, in whole patches."""
        clip = opened(self.clip, str(reader.model.device))
        config: Any = clip.network.config.vision_config
        patch, scale = config.patch_size, (self.side or config.image_size) / min(reader.size)
        h, w = (max(patch, round(n * scale / patch) * patch) for n in reader.size)
        pixels = reader.pixels[None] if (h, w) == reader.size else resized(reader.pixels[None], (h, w)).clamp(0, 1)
        shown = (pixels.to(reader.model.device) - clip.mean) / clip.std
        with torch.no_grad():
            found = clip.network.vision_model(pixel_values=shown, interpolate_pos_encoding=True).last_hidden_state
        finite(found, f"what the CLIP {self.clip} has of an image", "take another CLIP")
        return found[0, 1:].T.unflatten(1, (h // patch, w // patch)).float()

    def texts(self, model: Backbone, sentences: Sequence[str]) -> Float[Tensor, "k e"]:
        """Where the CLIP has these sentences: projected, not of length one."""
        clip = opened(self.clip, str(model.device))
        with torch.no_grad():
            return text_features(sentences, clip.network, clip.tokenizer).float()
