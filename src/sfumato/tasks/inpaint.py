"""A picture and the part of it that an inpainting checkpoint paints anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.errors import SfumatoError
from sfumato.media import images
from sfumato.media.images import Fitted
from sfumato.prompts.layout import Mask

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


@dataclass(frozen=True)
class Inpainting:
    """A picture as the model sees it, and which of its pixels are painted anew."""

    fitted: Fitted
    mask: Bool[Tensor, "h w"]

    @classmethod
    def read(cls, picture: Path, mask: Path, model: Backbone) -> Inpainting:
        """From two picture files; the mask is of the picture's shape. Raises ``SfumatoError`` as they do."""
        return cls.of(images.fit(images.opened(picture), model.size, model.multiple), Mask.read(mask))

    @classmethod
    def of(cls, fitted: Fitted, mask: Mask) -> Inpainting:
        """Of a picture and a mask of its shape. ``SfumatoError`` for another."""
        seen = mask.of(fitted.original.height, fitted.original.width).within(fitted.part)
        return cls(fitted, seen.at((fitted.pixels.shape[-2], fitted.pixels.shape[-1])))

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.mask.shape
        return height, width

    def given(self, model: Any) -> Backbone:
        """The model with the picture and the mask under every prompt. ``SfumatoError`` for one that reads none."""
        if not hasattr(model, "with_mask"):
            raise SfumatoError(f"{model.name} reads no picture and no mask; an inpainting checkpoint does")
        return model.given(lambda cond: model.with_mask(cond, self.fitted.pixels[None], self.mask[None]))

    def cells(self, model: Backbone) -> Bool[Tensor, "h w"]:
        """Those of the latents that the mask touches."""
        return torch.nn.functional.max_pool2d(self.mask[None].float(), model.factor)[0] > 0

    def restore(self, painted: Picture, model: Backbone) -> Picture:
        """What was painted at the picture's own size, with its own pixels outside of the mask."""
        return self.fitted.restore(painted, self.cells(model))


def inpaints(model: Any) -> bool:
    """Is it an inpainting checkpoint, which reads a picture and a mask?"""
    return getattr(model, "masks", False)
