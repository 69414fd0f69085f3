"""Losses against what score distillation does to colours: too saturated, of another hue, with other histograms.

Jambon 2023, section 5.4, tried one of each kind, found none to stop colours from drifting, and gives no formulas: these
are ours. Each is half the squared distance to the nearest image that has the reference's looks, a sum over pixels and
images: the gradient is the difference to that image, whatever the size and the number. They are smooth at grey.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.distill.generators import Rendering
from sfumato.errors import SfumatoError

Pixels = Float[Tensor, "b 3 h w"]
_GREY = 1e-6  # a colour that is nearer to grey has no hue


@dataclass(frozen=True, eq=False, repr=False)
class Likeness:
    """How far images are from the looks of a reference, which may be of another size."""

    reference: Float[Tensor, "3 h w"]
    """In [0, 1]."""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.reference.ndim != 3 or len(self.reference) != 3:
            raise SfumatoError(f"a reference is an image of shape (3, h, w), got {tuple(self.reference.shape)}")

    def __repr__(self) -> str:
        known = zlib.crc32(self.reference.detach().float().cpu().contiguous().numpy().tobytes())
        return f"{type(self).__name__}({tuple(self.reference.shape)} {known:08x}, {self.weight:g})"

    def __call__(self, rendering: Rendering) -> Float[Tensor, ""]:
        """The loss of images in [0, 1], times the weight: a sum over the images."""
        return self.weight * self.distance(rendering.images)

    def distance(self, pixels: Pixels) -> Float[Tensor, ""]:
        raise NotImplementedError


class Saturation(Likeness):
    """How far images are from being no more saturated than the reference: all their colours go towards grey alike.

    An image's saturation is here the root mean square of its pixels' distance from grey, which is 1 for a pure red or
    yellow and 0 for every grey, dark ones too.
    """

    def distance(self, pixels: Pixels) -> Float[Tensor, ""]:
        most, found = (colour(x).square().sum(1).mean((1, 2)) for x in (self.reference[None].to(pixels), pixels))
        excess = (found - most).relu() / (found.clamp_min(_GREY**2).sqrt() + most.sqrt())  # of the roots
        return pixels.shape[-2] * pixels.shape[-1] / 3 * excess.square().sum()


class Hue(Likeness):
    """How far images are from having the mean hue of the reference, all their colours shifted alike.

    It is the mean colour that has it, at any saturation; grey is of every hue.

    Raises ``SfumatoError`` for a reference that is grey in the mean.
    """

    def distance(self, pixels: Pixels) -> Float[Tensor, ""]:
        wanted = colour(self.reference[None].to(pixels)).mean((2, 3))
        if float(wanted.norm()) < _GREY:
            raise SfumatoError("a reference that is grey in the mean has no hue that images could keep")
        found = colour(pixels).mean((2, 3))
        along = (found @ F.normalize(wanted).T).relu().squeeze(1)
        off = found.square().sum(1) - along.square()
        return pixels.shape[-2] * pixels.shape[-1] / 3 * off.sum()


class Histogram(Likeness):
    """How far images are from being matched to the reference's histograms, a channel at a time, by their sorted values.

    Divided by the pixels it is half the squared Wasserstein distance of each channel's histograms.
    """

    def distance(self, pixels: Pixels) -> Float[Tensor, ""]:
        values = pixels.flatten(2)
        ranked = self.reference.to(pixels).flatten(1).sort(stable=True).values[None]
        wanted = F.interpolate(ranked, values.shape[-1], mode="linear")
        return (values.sort(stable=True).values - wanted).square().sum() / 2


def colour(pixels: Pixels) -> Float[Tensor, "b 2 h w"]:
    """Where a pixel is in the plane of colours: grey is 0, red is (1, 0), hues go round, saturation is the distance.

    A change of brightness apart, distances are sqrt(3 / 2) times those of red, green and blue.
    """
    red, green, blue = pixels.unbind(1)
    return torch.stack([red - (green + blue) / 2, 3**0.5 / 2 * (green - blue)], 1)
