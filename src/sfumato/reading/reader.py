"""An image as a frozen network sees it: encoded once, noised as is said, and asked for features and attention.

What recognition methods share. They differ in the noise (none, Gaussian or uniform; at which step; how many of it), in
what they ask for, and in what they make of it: ``sfumato.methods.perceive``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call, fine
from sfumato.core.backbone import check_model
from sfumato.core.brief import Brief
from sfumato.core.choice import choose
from sfumato.core.method import Where
from sfumato.core.settings import Count, Settings, Time, Whole
from sfumato.core.sites import Layer, Site
from sfumato.errors import SfumatoError, finite, integer
from sfumato.media.images import AnyImage as Image
from sfumato.media.images import pixels
from sfumato.media.pictures import picture, png

if TYPE_CHECKING:
    from typing_extensions import Self

    from sfumato.core.backbone import Backbone
    from sfumato.core.conditions import Cond
    from sfumato.core.schedule import Level

BATCH = 8
"""Rows of a prediction, unless said otherwise."""


@dataclass(frozen=True)
class Noise(Settings):
    """What an image becomes before the network reads it."""

    t: Time = 261
    """What the network is told: a training step, in thousandths of all (of flows, sigma)."""
    kind: Literal["none", "gaussian", "uniform"] = "gaussian"
    """``none``: the latents as they are, whatever ``t`` says; ``uniform``: of [0, 1), where Gaussian noise belongs, as
    some authors' code has it."""
    seed: Whole = 0
    """The same seed gives all images of a size the same noise."""
    ensemble: Count = 1
    """How many noises, over which what is read is averaged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "none" and self.ensemble > 1:
            raise SfumatoError(f"without noise an ensemble is of one, got {self.ensemble}")

    def level(self, model: Backbone) -> Level:
        """Of this noise, in a model."""
        return model.schedule.thousandths(self.t)

    def of(self, model: Backbone, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "be c h w"]:
        """Latents with noise: the ensemble of the first image, that of the second, ..."""
        level = self.level(model)
        if self.kind == "none":
            return latents
        draw = torch.randn if self.kind == "gaussian" else torch.rand
        generator = torch.Generator().manual_seed(self.seed)
        noise = draw((self.ensemble, *latents.shape[1:]), generator=generator).to(latents)
        return level.alpha * latents.repeat_interleave(self.ensemble, 0) + level.sigma * noise.repeat(
            len(latents), 1, 1, 1
        )


def extract(
    model: Backbone,
    latents: Float[Tensor, "b c h w"],
    cond: Cond,
    noise: Noise,
    what: Sequence[Any],
    reduce: Callable[[Any], Float[Tensor, "rows ..."]],
    batch: int = BATCH,
) -> dict[Any, Float[Tensor, "b ..."]]:
    """What ``reduce`` makes of each site's ``Call`` and layer's ``Activation``, averaged over the noise's ensemble.

    ``cond`` has a row an image, or one for all. ``reduce`` gives a row for each row of the network, of which at most
    ``batch`` run at once. The network stops after the last of ``what``. Gradients flow where they are on. Raises
    ``SfumatoError`` where one is not finite.
    """
    x, t = noise.of(model, latents), noise.level(model).t
    each = len(x) // len(latents)
    rows = cond.repeat(len(x) if len(cond) == 1 else each)
    parts = [model.maps(x[at : at + batch], t, rows[at : at + batch], what, reduce) for at in range(0, len(x), batch)]
    whole = {site: torch.cat([part[site] for part in parts]) for site in what}
    for site, value in whole.items():
        finite(value, f"what {model.name} has at {site.path} of an image", model.remedy)
    return {site: fine(value).unflatten(0, (-1, each)).mean(1) for site, value in whole.items()}


def feature(seen: Any) -> Float[Tensor, "rows c h w"]:
    """A layer's activation as a map, of tokens too."""
    value = seen.value.float()
    return value if value.ndim == 4 else value.transpose(1, 2).unflatten(2, seen.grid)


def attended(call: Call, pair: str) -> Float[Tensor, "rows queries keys"]:
    """Attention from one segment to another, averaged over heads; each query's is made one where it was shared."""
    (name,) = call.rows.names
    map = call.mean(name, pair)
    return map / map.sum(-1, keepdim=True).clamp_min(1e-12) if len(call.site.key) > 1 else map


def chosen(reader: Reader, pair: str, stage: str | None, least: float, who: str) -> tuple[Site, ...]:
    """The sites of a pair, of one stage or all, whose side is at least this part of the latents'."""
    where = None if stage is None and not least else lambda s: stage in (None, s.stage) and s.scale * least <= 1
    return choose(reader.model, Where(pair, sites=where), reader.grid, who)


def up_block(model: Backbone, number: int) -> Layer:
    """What the authors of papers call up block ``number``: of a UNet, its output, resampled.

    Transformers have no such blocks: there it is what the attention reads after the same part of the depth, which is
    normalised and modulated (DiTF, arXiv 2505.18584). Raises ``SfumatoError`` that says what there is.
    """
    ups = [layer for layer in model.layers if layer.kind == "hidden" and layer.stage == "up"]
    blocks = {int(layer.path.split(".")[1]): layer for layer in ups}  # the last of each
    if blocks:
        if number not in blocks:
            raise SfumatoError(f"{model.name} has the up blocks {', '.join(map(str, blocks))}, not {number}")
        return blocks[number]
    tokens = [layer for layer in model.layers if layer.kind == "tokens"]
    if not tokens or not 0 <= number < 4:
        raise SfumatoError(f"{model.name} has {len(tokens)} layers of tokens, of which the blocks 0 to 3 are quarters")
    return tokens[round((number + 1) / 4 * (len(tokens) - 1))]


@dataclass(eq=False, repr=False)
class Reader(Brief):
    """One image that is asked many things: what was encoded and read once is kept until ``close``.

    Points are (x, y) in the image's own pixels, their centres at halves. Results are of the image's own size.
    """

    model: Backbone
    pixels: Float[Tensor, "3 H W"]
    """The image in [0, 1], at its own size."""
    side: int | None = None
    """Shorter side of what the network sees, in pixels [default: the model's own]."""
    _kept: dict[Any, Tensor] = field(default_factory=dict, repr=False)
    _open: bool = field(default=True, repr=False)

    def _repr_png_(self) -> bytes:
        """The image, which a notebook shows."""
        return png(picture(self.pixels.cpu()))

    def __post_init__(self) -> None:
        h, w = self.size
        if min(h, w) < self.model.factor:
            raise SfumatoError(
                f"an image of {w} x {h} pixels is smaller than a patch of {self.model.name}, "
                f"{self.model.factor} x {self.model.factor}; give a larger one"
            )
        shorter, multiple = self.side or self.model.size, self.model.multiple
        scale = shorter / min(h, w)
        fitted = [max(multiple, round(n * scale / multiple) * multiple) for n in (h, w)]
        self.seen = (fitted[0], fitted[1])
        """Height and width of what the network sees."""
        if max(self.seen) > 8 * shorter:
            raise SfumatoError(f"an image of {w} x {h} pixels is too long to be read whole; crop it first")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all that was read."""
        self._kept.clear()
        self._open = False
        self.__dict__.pop("latents", None)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the latents."""
        return self.seen[0] // self.model.factor, self.seen[1] // self.model.factor

    @cached_property
    def shown(self) -> Float[Tensor, "3 h w"]:
        """What the network sees."""
        if self.seen == self.size:
            return self.pixels
        return resized(self.pixels[None], self.seen)[0].clamp(0, 1)

    @cached_property
    def latents(self) -> Float[Tensor, "1 c h w"]:
        """The image encoded: the mean of the encoder's distribution."""
        if not self._open:
            raise SfumatoError("this reader has been closed; read the image again")
        with torch.no_grad():
            return self.model.encode(self.shown[None].to(self.model.device))

    def extract(
        self,
        what: Sequence[Site | Layer],
        reduce: Callable[[Any], Float[Tensor, "rows ..."]],
        noise: Noise,
        prompt: str = "",
    ) -> dict[Any, Tensor]:
        """See ``sfumato.reading.extract``; one image, so without the first dimension. Nothing is kept."""
        with torch.no_grad():
            found = extract(self.model, self.latents, self.model.embed([prompt]), noise, what, reduce)
        return {site: value[0] for site, value in found.items()}

    def features(
        self, layers: Sequence[Layer] | None = None, noise: Noise = Noise(), prompt: str = ""
    ) -> dict[Layer, Float[Tensor, "c h w"]]:
        """Maps of layers (unless said up block 1), read once. ``SfumatoError`` for what is of the text."""
        layers = [up_block(self.model, 1)] if layers is None else layers
        if of_text := [layer.path for layer in layers if layer.kind == "text"]:
            raise SfumatoError(f"{of_text[0]} reads the text here, which is no map of the image; see Reader.extract")
        new = [layer for layer in layers if (layer, noise, prompt) not in self._kept]
        if new:
            found = self.extract(new, feature, noise, prompt)
            self._kept |= {(layer, noise, prompt): value for layer, value in found.items()}
        return {layer: self._kept[layer, noise, prompt] for layer in layers}

    def kept(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """What was made of this image under a key: made once, let go of by ``close``."""
        if not self._open:
            raise SfumatoError("this reader has been closed; read the image again")
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def inside(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Points in parts of the image's sides. Raises ``SfumatoError`` for one that lies outside."""
        points = torch.as_tensor(np.asarray(points), dtype=torch.float32).reshape(-1, 2)
        h, w = self.size
        share = points / torch.tensor([w, h])
        outside = ((share < 0) | (share > 1) | share.isnan()).any(1)
        if outside.any():
            x, y = points[outside][0].tolist()
            raise SfumatoError(f"the point {x:g}, {y:g} lies outside of the image of {w} x {h} pixels")
        return share


def read(model: Backbone, image: Image, side: int | None = None) -> Reader:
    """A ``Reader`` of an image: a file, a picture, a tensor or an array, as ``pixels`` takes them."""
    check_model(model)
    return Reader(model, pixels(image), None if side is None else integer("a side in pixels", side))


def check_set(method: Any, such: str) -> None:
    """Refuse what reads nothing, such as a method's word or its class."""
    if isinstance(method, type) or not callable(method):
        raise SfumatoError(f"a method is one as it is set, such as {such}(), got {method!r}")


def resized(maps: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c H W"]:
    """Images made larger or smaller without aliasing."""
    return F.interpolate(maps, size, mode="bicubic", antialias=True, align_corners=False)
