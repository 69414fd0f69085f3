"""Distillation in two dimensions: an image takes the place of a scene, so that a gradient is seen for what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.core.backbone import Backbone
from sfumato.distill.generators import Coordinates, Generator, Latents, Pixels
from sfumato.distill.loop import ADAM
from sfumato.errors import SfumatoError

Space = Literal["latent", "pixel", "coordinates"]
"""What is moved: the model's latents, pixels, or a small network from a place to a colour."""
Optimiser = Literal["adam", "sgd"]
FAINT = 0.1
"""Of unit noise, or of pixels around grey: what a short run leaves of its start would be taken for detail."""
RATES: dict[tuple[Space, Optimiser], float] = {
    ("latent", "adam"): 0.05,
    ("pixel", "adam"): 0.02,
    ("coordinates", "adam"): 0.005,
    ("latent", "sgd"): 1.0,
    ("pixel", "sgd"): 0.1,
    ("coordinates", "sgd"): 0.01,
}


def canvas(
    model: Backbone,
    space: Space,
    n: int,
    seed: int,
    size: tuple[int, int] | None = None,
    image: Float[Tensor, "3 h w"] | None = None,
) -> Generator:
    """n images to be distilled into: of faint noise (image i has seed + i), or all of them ``image``.

    ``size``: height and width in pixels, the model's own if not given. A coordinate network starts from no image.
    """
    height, width = (model.size, model.size) if size is None else size
    model.check_size(height, width)
    if space == "coordinates":
        if image is not None:
            raise SfumatoError("a coordinate network cannot start from an image; take --space pixel or latent")
        return Coordinates(n, 3, (height, width), seed=seed).to(model.device)
    if space == "pixel":
        if image is not None:
            return Pixels(image.expand(n, -1, -1, -1).to(model.device))
        drawn = [torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed + i)) for i in range(n)]
        return Pixels((0.5 + FAINT * (torch.stack(drawn) - 0.5)).to(model.device))
    if image is not None:
        with torch.no_grad():
            return Latents(model.encode(image[None].to(model.device)).expand(n, -1, -1, -1))
    return Latents(FAINT * model.latents([seed + i for i in range(n)], height, width))


def optimiser(
    kind: Optimiser, space: Space, rate: float | None
) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """By its word, at a rate or at one that suits the space."""
    lr = RATES[space, kind] if rate is None else rate
    return partial(ADAM, lr=lr) if kind == "adam" else partial(torch.optim.SGD, lr=lr)


@torch.no_grad()
def shown(model: Backbone, generator: Generator) -> Float[Tensor, "n 3 H W"]:
    """The images as they are now, in [0, 1]."""
    images = generator.render().images
    return (model.decode(images) if generator.space == "latent" else images).clamp(0, 1).cpu()
