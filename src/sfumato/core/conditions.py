"""What a network reads beside noisy latents and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.brief import Brief
from sfumato.errors import SfumatoError


class Control(Protocol):
    """Something that adds to a network's inputs in each call, such as a ControlNet; ``model`` is the backbone."""

    def __call__(self, model: Any, x: Tensor, t: Tensor, cond: Cond) -> Mapping[str, Any]: ...


class Texts(NamedTuple):
    """What each layer that reads the text reads in its place, in the order of the network's ``text`` layers."""

    keys: Float[Tensor, "b layers n d"]
    values: Float[Tensor, "b layers n d"] | None = None
    """What values are made of; None: the same."""


class Layered(Protocol):
    """Texts of conditions that depend on where and when they are read (P+, NeTI); ``t``: a time a row."""

    def __call__(self, cond: Cond, t: Float[Tensor, " b"]) -> Texts: ...


@dataclass(frozen=True)
class Cond(Brief):
    """What a network reads beside x and t, a row for each image."""

    text: Float[Tensor, "b n d"]
    """In float32, as all that may be learned or averaged; the network reads it in its own precision."""
    prompts: tuple[str, ...]
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Further inputs under the network's own names, each with b rows."""
    image: Float[Tensor, "b c h w"] | None = None
    """Channels that are put behind x."""
    controls: tuple[Control, ...] = ()
    """Called in each prediction with the whole batch."""
    weights: Float[Tensor, "b n"] | None = None
    """What each token of the text counts where images attend to it; None: all the same."""
    frames: int = 1
    """How many rows one after the other are the frames of a clip."""
    views: int = 1
    """How many rows one after the other are views of one image."""
    layered: Layered | None = None
    """What layers read in the place of ``text``, where that is not the same everywhere; asked in each prediction."""
    numbers: tuple[int, ...] | None = None
    """Which images of a stream these rows are of, where not all go through the network at once."""

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, at: slice) -> Cond:
        image = None if self.image is None else self.image[at]
        extra = {k: v[at] for k, v in self.extra.items()}
        weights = None if self.weights is None else self.weights[at]
        return replace(self, text=self.text[at], prompts=self.prompts[at], extra=extra, image=image, weights=weights)

    def of(self, at: Sequence[int], numbers: Sequence[int]) -> Cond:
        """Some rows, which are of these images of each stream."""
        some = list(at)
        return replace(
            self,
            text=self.text[some],
            prompts=tuple(self.prompts[n] for n in some),
            extra={k: v[some] for k, v in self.extra.items()},
            image=None if self.image is None else self.image[some],
            weights=None if self.weights is None else self.weights[some],
            numbers=tuple(numbers),
        )

    def repeat(self, n: int) -> Cond:
        """Each row ``n`` times in a row."""
        image = None if self.image is None else self.image.repeat_interleave(n, 0)
        extra = {k: v.repeat_interleave(n, 0) for k, v in self.extra.items()}
        prompts = tuple(p for p in self.prompts for _ in range(n))
        text = self.text.repeat_interleave(n, 0)
        weights = None if self.weights is None else self.weights.repeat_interleave(n, 0)
        return replace(self, text=text, prompts=prompts, extra=extra, image=image, weights=weights)

    def spread(self, images: Float[Tensor, "n *shape"]) -> Float[Tensor, "b *shape"]:
        """One image for all rows, or one an image of each stream and condition. ``SfumatoError`` for other numbers."""
        if self.numbers is not None and len(images) > 1:
            images = images[list(self.numbers)]
        if len(images) > 1:
            images = images.repeat_interleave(self.views, 0)
        times, rest = divmod(len(self), len(images))
        if rest:
            raise SfumatoError(f"{len(self)} rows of conditions take as many images or one for all, got {len(images)}")
        return images.repeat(times, *[1] * (images.ndim - 1))

    @staticmethod
    def cat(conds: Sequence[Cond]) -> Cond:
        """Rows of several one after the other; the controls are the first one's."""
        first = conds[0]
        images = [c.image for c in conds if c.image is not None]
        if images and len(images) != len(conds):
            raise SfumatoError("some of these conditions have an image and some do not; give all of them one")
        layered = {id(c.layered): c.layered for c in conds if c.layered is not None}
        if len(layered) > 1:
            raise SfumatoError("these conditions have texts a layer of two kinds; let one model know all their words")
        weights = [c.text.new_ones(c.text.shape[:2]) if c.weights is None else c.weights for c in conds]
        return replace(
            first,
            text=torch.cat([c.text for c in conds]),
            prompts=tuple(p for c in conds for p in c.prompts),
            extra={k: torch.cat([c.extra[k] for c in conds]) for k in first.extra},
            image=torch.cat(images) if images else None,
            layered=next(iter(layered.values()), None),
            weights=None if all(c.weights is None for c in conds) else torch.cat(weights),
        )
