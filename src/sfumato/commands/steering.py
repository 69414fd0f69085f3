"""ControlNets and the pictures they steer by, in a command line's words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from sfumato.errors import SfumatoError
from sfumato.io.terminal import note

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sfumato.commands.options import Loading
    from sfumato.core.backbone import Backbone
    from sfumato.media.images import Fit, Fitted

    Model = TypeVar("Model", bound=Backbone)


@dataclass(frozen=True)
class Steering:
    """What steers a picture, beyond its prompt."""

    controlnet: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PLACE[:WEIGHT]")] = ()
    """A ControlNet: a diffusers folder, an id of the hub, a file, or stilllife-depth [default: the model's own]."""
    control: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE")] = ()
    """The picture of edges, depth, a pose that it steers by, for each --controlnet in their order."""
    control_mode: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Which of its kinds of picture a union ControlNet is given, by its number."""

    def __post_init__(self) -> None:
        for place in self.controlnet:
            _weighed(place)
        if self.controlnet and len(self.controlnet) != len(self.control):
            raise SfumatoError(
                f"each --controlnet steers by a --control PICTURE of its own, got {len(self.controlnet)} and "
                f"{len(self.control)}"
            )
        if self.control_mode is not None and not self.control:
            raise SfumatoError("--control-mode is read with --controlnet alone; give that as well, or leave it out")

    def size(self, model: Backbone) -> tuple[int, int] | None:
        """Height and width of the first picture as the model sees it: of an image that is asked for in no size."""
        from sfumato.media import images

        if not self.control:
            return None
        height, width = images.read_image(self.control[0], model).shape[-2:]
        return height, width

    def cropped(self, height: int, width: int) -> list[Float[Tensor, "3 h w"]]:
        """The pictures at a size: of those of another shape the middle, which is noted."""
        from sfumato.media import images

        out = []
        for file in self.control:
            picture = images.open_picture(file)
            w, h = picture.size
            if abs(math.log(w * height / (h * width))) > 0.05:
                note(f"its middle is read of {file}, {w} x {h}, as the image is of another shape, {width} x {height}")
            out.append(images.cropped(picture, height, width))
        return out

    def beside(self, model: Backbone, source: Fitted, how: Fit) -> list[Float[Tensor, "3 h w"]]:
        """The pictures as the model sees the one that they belong to. ``SfumatoError`` for another shape."""
        from sfumato.media import images

        out = []
        for file in self.control:
            seen = images.fit(images.opened(file), model.size, model.multiple, how)
            if seen.pixels.shape != source.pixels.shape:
                (w, h), (a, b) = seen.original.size, source.original.size
                raise SfumatoError(
                    f"{file}: {w} x {h} pixels, of another shape than the image of {a} x {b}; crop them alike, or say "
                    "--fit crop"
                )
            out.append(seen.pixels)
        return out

    def steer(
        self, model: Model, loading: Loading, pictures: list[Float[Tensor, "3 h w"]], negative: str = ""
    ) -> Model:
        """The model with its ControlNets under every prompt. ``SfumatoError`` for those of another family."""
        steered = self.steered(model, loading, negative)
        return model if steered is None else steered(model, [picture[None] for picture in pictures])

    def steered(
        self, model: Model, loading: Loading, negative: str = ""
    ) -> Callable[[Model, Sequence[Float[Tensor, "b 3 h w"]]], Model] | None:
        """What gives the model its ControlNets with pictures of each, one for all images or one an image; None for
        none. ``SfumatoError`` for those of another family.
        """
        from sfumato.backbones import controlnets
        from sfumato.backbones.controlnets import ControlNet

        own = getattr(getattr(model, "pipe", None), "controlnet", None)
        if not self.control:
            if own is not None:
                note(f"{model.name} comes with a ControlNet, which steers by --control PICTURE and not without")
            return None
        found = [_weighed(place) for place in self.controlnet]
        nets = [controlnets.read(place, model, loading.variant, loading.offline) for place, _ in found]
        if not found:
            nets = list(getattr(own, "nets", [own]))
            if own is None or len(nets) != len(self.control):
                raise SfumatoError(
                    f"{model.name} comes with {0 if own is None else len(nets)} ControlNets, and --control gives "
                    f"{len(self.control)} pictures; give each a --controlnet"
                )
            found = [("", 1.0)] * len(nets)
        unions = [controlnets.kinds_of(net) is not None for net in nets]
        if self.control_mode is not None and not any(unions):
            raise SfumatoError("--control-mode is of union ControlNets, and none of these is one; leave it out")
        modes = [self.control_mode if union else None for union in unions]

        def steered(model: Model, pictures: Sequence[Float[Tensor, "b 3 h w"]]) -> Model:
            controls = [
                ControlNet(net, picture, weight, mode, ("", negative))
                for net, picture, (_, weight), mode in zip(nets, pictures, found, modes, strict=True)
            ]
            for control in controls:
                control.check(model)
            return model.given(lambda cond: replace(cond, controls=(*cond.controls, *controls)))

        return steered

    def settings(self) -> dict[str, Any]:
        """What differs from plain sampling."""
        every = {"controlnet": list(self.controlnet), "control": list(map(str, self.control))}
        return {k: v for k, v in {**every, "control_mode": self.control_mode}.items() if v not in ([], None)}


@dataclass(frozen=True)
class FilmSteering(Steering):
    """What steers a video's frames, beyond their prompt."""

    control: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="VIDEO")] = ()
    """The video of edges, depth, poses that it steers by, frame by frame, for each --controlnet in their order."""


def _weighed(text: str) -> tuple[str, float]:
    """Where a ControlNet is, and its weight behind the last ``:``, which is 1 unless it is said."""
    place, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not place or not math.isfinite(value):
        raise SfumatoError(f"--controlnet is PLACE or PLACE:WEIGHT, such as canny/:0.8, got {text!r}")
    return place, value
