"""One picture that reads as one prompt as it stands, and as another seen in another way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.anagrams import CylinderMirror, InnerCircle
from sfumato.core.backbone import Backbone
from sfumato.core.brief import Shown
from sfumato.core.views import Fuse, Looks, Side, Turned, View
from sfumato.errors import SfumatoError, unknown
from sfumato.media import pictures
from sfumato.media.images import tensor
from sfumato.ops.correspondence import middles
from sfumato.ops.warps import Similarity, warp
from sfumato.tasks.generate import Generated, generate

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

WORDS = ("flip", "mirror", "turn", "circle", "cylinder")
_FRAMES = 20
_HELD = 8  # frames of a film's beginning


def view_of(word: str) -> View:
    """``flip`` (upside down), ``mirror``, ``turn[:DEGREES]`` by quarters, ``circle[:DEGREES]`` by any, ``cylinder``.

    Both are half a turn unless it is said. ``SfumatoError`` for another word or no such angle.
    """
    name, colon, angle = word.partition(":")
    if name not in WORDS or (colon and name not in ("turn", "circle")):
        raise unknown("view", word, (*WORDS, "turn:90", "circle:135"))
    try:
        degrees = float(angle) if colon else 180.0
    except ValueError:
        degrees = math.nan
    if not math.isfinite(degrees) or (name == "turn" and degrees % 90):
        kinds = "circle by any number of degrees, turn by quarters"
        raise SfumatoError(f"{kinds}, such as circle:135 or turn:90, got {word!r}")
    if name == "turn":
        return Turned(round(degrees / 90))
    return {
        "flip": Turned(2, flipped=True),
        "mirror": Turned(flipped=True),
        "circle": InnerCircle(degrees),
        "cylinder": CylinderMirror(),
    }[name]


def agreed(model: Backbone, view: View) -> tuple[Fuse, Side]:
    """What the two views agree on: the noise. A mirror does not show noise as it is: it is sampled by itself, and they
    agree on pixels."""
    if isinstance(view, CylinderMirror):
        return ("pixels" if model.factor > 1 else "x0"), "instance"
    return "eps", "canvas"


@dataclass(frozen=True)
class Illusion(Shown):
    """Pictures, and what each is when it is seen in the other way."""

    painted: Generated
    others: tuple[Picture, ...]
    view: View

    @property
    def pictures(self) -> list[Picture]:
        """Each as it stands, then each in the other way."""
        return [*self.painted.pictures, *self.others]

    def film(self, image: int) -> list[Picture]:
        """A picture on its way from the one to the other."""
        return film(tensor(self.painted.pictures[image]), self.view)


def illusion(
    model: Backbone,
    prompts: tuple[str, str],
    view: View,
    seeds: Sequence[int],
    *,
    fuse: Fuse | None = None,
    side: Side | None = None,
    **options: Any,
) -> Illusion:
    """An image a seed that reads as the first prompt, and in a view as the second; ``options`` are ``generate``'s.

    ``fuse`` and ``side``: as in ``core.views``, unless said as suits the model and the view. Raises ``SfumatoError``
    for what is refused before the first image is painted.
    """
    own = agreed(model, view)
    views = Looks((Turned(), view), fuse or own[0], side or own[1], prompts=prompts)
    painted = generate(model, prompts[0], seeds, views=views, **options)
    seen = view.in_pixels()
    others = [pictures.picture(seen.project(tensor(p)[None])[0]) for p in painted.pictures]
    return Illusion(painted, tuple(others), view)


def film(image: Float[Tensor, "3 h w"], view: View, frames: int = _FRAMES) -> list[Picture]:
    """From a picture to what a view shows of it: turned or tilted as one would with one's hands, or step by step."""
    way = _way(view)
    shown = [pictures.picture(way(image[None], i / (frames - 1))[0].clamp(0, 1)) for i in range(frames)]
    return [shown[0]] * _HELD + shown


def _way(view: View) -> Callable[[Tensor, float], Tensor]:
    match view:
        case Turned():
            return lambda x, part: _turned(view, x, part)
        case InnerCircle():
            return lambda x, part: replace(view, degrees=view.degrees * part, smooth=True).project(x)
        case CylinderMirror():
            return lambda x, part: _bent(view, x, part)
        case _:
            return lambda x, part: torch.lerp(x, view.in_pixels().project(x), part)


def _turned(view: Turned, x: Tensor, part: float) -> Tensor:
    """Turned by a part of the angle, the shorter way; a mirrored one is tilted over meanwhile."""
    quarters = (view.quarters + 1) % 4 - 1
    if not view.flipped:
        return Similarity(turn=90 * quarters * part)(x, padding="zeros") if 0 < part < 1 else _there(view, x, part)
    upright = quarters == 2  # over its lower side, and not also around
    side = -2 if upright else -1
    width = math.cos(math.pi * part)
    tilted = _squeezed(x if width > 0 else x.flip(side), abs(width), side)
    return tilted if upright or not quarters else Similarity(turn=90 * quarters * part)(tilted, padding="zeros")


def _there(view: View, x: Tensor, part: float) -> Tensor:
    return view.project(x) if part else x


def _squeezed(x: Tensor, to: float, side: int) -> Tensor:
    """One side shorter, in the middle, on black."""
    n = x.shape[side]
    wide = min(n, max(2, 2 * round(to * n / 2)))
    size = (wide, x.shape[-1]) if side == -2 else (x.shape[-2], wide)
    small = torch.nn.functional.interpolate(x, size, mode="bilinear", antialias=True)
    edges = ((n - wide) // 2, n - wide - (n - wide) // 2)
    return torch.nn.functional.pad(small, (0, 0, *edges) if side == -2 else (*edges, 0, 0))


def _bent(view: CylinderMirror, x: Tensor, part: float) -> Tensor:
    """Each place a part of its way to where the mirror shows it."""
    h, w = x.shape[-2:]
    still = middles((h, w)).view(h, w, 2).permute(2, 0, 1)[None]
    return warp(x, torch.lerp(still, view.project(still), part)[0].permute(1, 2, 0)[None])
