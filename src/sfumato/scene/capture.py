"""Captures: images of a scene, each with the camera that saw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.scene.cameras import Pinholes


@dataclass(frozen=True)
class Capture:
    """Images of one size and their cameras, undistorted, in a world whose y is up."""

    images: Float[Tensor, "n 3 h w"]
    """In [0, 1]."""
    cameras: Pinholes
    names: tuple[str, ...]
    """Of the files, or what they are called."""
    masks: Bool[Tensor, "n h w"] | None = None
    """Pixels that count; None for all."""

    def __post_init__(self) -> None:
        n, h, w = len(self.images), *self.images.shape[-2:]
        if len(self.cameras) != n or len(self.names) != n or self.cameras.size != (h, w):
            raise SfumatoError(
                f"a capture has a camera and a name an image, got {n} images of {h} x {w}, {len(self.cameras)} cameras "
                f"of {self.cameras.size}, {len(self.names)} names"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, some: Sequence[int] | Int[Tensor, " m"]) -> Capture:
        some = torch.as_tensor(some)
        masks = None if self.masks is None else self.masks[some]
        names = tuple(self.names[int(i)] for i in some)
        return replace(self, images=self.images[some], cameras=self.cameras[some], names=names, masks=masks)

    def split(self, every: int = 8) -> tuple[Capture, Capture]:
        """What is learned from, and what is held out: every so many-th, the first among them (as nerfstudio does)."""
        held = [i for i in range(len(self)) if i % every == 0]
        rest = [i for i in range(len(self)) if i % every]
        if not held or not rest:
            raise SfumatoError(
                f"a capture of {len(self)} images leaves none to learn from with one in {every} held out"
            )
        return self[rest], self[held]
