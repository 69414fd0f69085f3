"""What is known of the frames of a video beside words: pictures to steer by, a part that may change, where they move.

Nothing of it is held for all frames but the motion, 0.3 MiB a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.errors import SfumatoError
from sfumato.media import images
from sfumato.media.images import Fit, Fitted
from sfumato.ops import flow
from sfumato.ops.motion import Motion
from sfumato.prompts.layout import Mask
from sfumato.tasks.inpaint import Inpainting

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SIDE = 128
"""Shorter side at which flow is found."""
PAIRS = 8
"""Of which it is found at once."""


@dataclass
class Aligned:
    """Frames of another video by the numbers of this one's, read one after the other as they are asked for."""

    opened: Callable[[], Iterator[Picture]]
    """Its frames from the first on."""
    mark: str = ""
    """What it is and holds, in a word."""
    _frames: Iterator[Picture] | None = field(default=None, repr=False)
    _at: int = 0
    _first: Picture | None = field(default=None, repr=False)

    def __call__(self, numbers: Sequence[int]) -> list[Picture]:
        """``SfumatoError`` for one that it does not have."""
        return [self._read(n) for n in numbers]

    def _read(self, n: int) -> Picture:
        if n == 0 and self._first is not None:  # an anchor is asked for with every part
            return self._first
        if self._frames is None or n < self._at:
            self._frames, self._at = self.opened(), 0
        found = next(islice(self._frames, n - self._at, None), None)
        if found is None:
            raise SfumatoError(
                f"{self.mark or 'the video to steer by'} has no frame {n}, which the video has; they are of the same "
                "frames"
            )
        self._at = n + 1
        self._first = found if n == 0 else self._first
        return found


@dataclass(frozen=True, eq=False)
class Reads:
    """What the network reads of frames; by itself nothing."""

    controls: tuple[Aligned, ...] = ()
    """Videos of the same frames to steer by."""
    steer: Callable[[Backbone, Sequence[Float[Tensor, "n 3 h w"]]], Backbone] | None = None
    """The model with pictures of each of them under every prompt."""
    mask: Mask | None = None
    """What an inpainting checkpoint paints anew, in every frame."""
    fit: Fit = "whole"

    @property
    def marks(self) -> Any:
        """What a result depends on."""
        return [[one.mark for one in self.controls], self.mask]

    def given(self, model: Backbone, numbers: Sequence[int], frames: Sequence[Fitted]) -> Backbone:
        """The model that reads what belongs to these frames. ``SfumatoError`` for pictures of another shape."""
        if self.steer is not None:
            model = self.steer(model, [self._seen(model, one(numbers), frames) for one in self.controls])
        if self.mask is None:
            return model
        parts = [Inpainting.of(frame, self.mask) for frame in frames]
        seen, holes = torch.stack([f.pixels for f in frames]), torch.stack([p.mask for p in parts])
        inpainting: Any = model
        return model.given(lambda cond: inpainting.with_mask(cond, seen, holes))

    def inside(self, model: Backbone, frames: Sequence[Fitted]) -> Bool[Tensor, "h w"] | None:
        """Cells of the latents outside of which frames keep their pixels; None: they may change everywhere."""
        return None if self.mask is None else Inpainting.of(frames[0], self.mask).cells(model)

    def _seen(self, model: Backbone, shown: Sequence[Picture], frames: Sequence[Fitted]) -> Float[Tensor, "n 3 h w"]:
        seen = [images.fit(picture, model.size, model.multiple, self.fit).pixels for picture in shown]
        for picture, pixels, frame in zip(shown, seen, frames, strict=True):
            if pixels.shape != frame.pixels.shape:
                (w, h), (a, b) = picture.size, frame.original.size
                raise SfumatoError(
                    f"frames to steer by are {w} x {h} pixels, of another shape than the video's of {a} x {b}; crop "
                    "them alike, or say --fit crop"
                )
        return torch.stack(seen)


def motion_of(frames: Iterable[Float[Tensor, "3 h w"]]) -> Motion:
    """Where what frames show goes, found by their looks, some of them at a time."""
    parts: list[Motion] = []
    taken, last = iter(frames), list[Tensor]()
    while some := list(islice(taken, PAIRS)):
        small = [*last, *map(_small, some)]
        last = small[-1:]
        if len(small) > 1:
            parts.append(flow.found(torch.stack(small)))
    if not parts:
        if not last:
            raise SfumatoError("a motion is of frames, and there are none")
        return Motion.even(0.0, 0.0, 1, (last[0].shape[-2], last[0].shape[-1]))
    return Motion(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Motion)))


def _small(frame: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    h, w = frame.shape[-2:]
    part = min(1.0, SIDE / min(h, w))
    return F.interpolate(frame[None], (round(h * part), round(w * part)), mode="area")[0]
