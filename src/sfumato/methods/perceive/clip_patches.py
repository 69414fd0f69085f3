"""Patches of a CLIP (Radford et al. 2021, arXiv 2103.00020): what its image encoder makes of each, and where it has
texts, for heads that learn on them in the place of a denoiser's features.

Patches are the last layer's, before the projection that only the whole image's token was trained through. At a larger
``side`` than the encoder's own there are more of them, and its positions are interpolated, bicubic.

Needs: the CLIP; one pass of its image encoder, none of the denoiser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.settings import Settings
from sfumato.errors import SfumatoError, finite
from sfumato.metrics.clip import MEAN, STD, text_features
from sfumato.reading.reader import Reader, resized
from sfumato.stilllife import weights

SHIPPED = "stilllife"


@dataclass(frozen=True)
class ClipPatches(Settings):
    """Describes an image by the patches of a CLIP."""

    clip: str = SHIPPED
    """A folder with a CLIP as transformers saves it, or ``stilllife``, the small one that ships."""
    side: int = 0
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


class Opened(NamedTuple):
    """A CLIP, ready to read."""

    network: Any
    tokenizer: Any
    mean: Float[Tensor, "3 1 1"]
    std: Float[Tensor, "3 1 1"]


@lru_cache(maxsize=2)
def opened(name: str, device: str) -> Opened:
    """A CLIP by its name or folder. Raises ``SfumatoError`` where there is none."""
    with torch.random.fork_rng(devices=[]):  # a network that is made draws weights before it has its own
        network, tokenizer, mean, std = _parts(name)
    sides = [torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std)]
    return Opened(network.eval().requires_grad_(False).to(device), tokenizer, *sides)


def _parts(name: str) -> tuple[Any, Any, list[float], list[float]]:
    if name == SHIPPED:
        return weights.module("clip"), weights.tokenizer(), [MEAN] * 3, [STD] * 3
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    place = Path(name).expanduser()
    if not (place / "config.json").is_file():
        raise SfumatoError(f"there is no CLIP in {name}; give a folder as transformers saves one, or {SHIPPED}")
    try:
        network = CLIPModel.from_pretrained(place, local_files_only=True, use_safetensors=True)
        tokenizer = CLIPTokenizer.from_pretrained(place, local_files_only=True)
        processor: Any = CLIPImageProcessor.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as e:
        raise SfumatoError(f"{name} does not load as a CLIP: {next(iter(str(e).splitlines()), type(e))}") from e
    return network, tokenizer, processor.image_mean, processor.image_std
