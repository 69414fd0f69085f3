"""What can be distilled into: anything with parameters that renders images. Here the flat ones; scenes are another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.distill.prior import Images
from sfumato.errors import SfumatoError
from sfumato.learning.optimisers import Optimisers
from sfumato.learning.seeds import Draws
from sfumato.ops.warps import Similarity

Space = Literal["pixel", "latent"]


class Rendering(NamedTuple):
    """What a generator shows, an image for each viewpoint; a loss may be of any of it."""

    images: Images
    """Pixels in [0, 1], (b, 3, H, W), or latents, (b, c, h, w)."""
    alpha: Float[Tensor, "b 1 H W"] | None = None
    """Opacity in [0, 1]."""
    depth: Float[Tensor, "b 1 H W"] | None = None
    """Along the ray."""
    normals: Float[Tensor, "b 3 H W"] | None = None
    """Of unit length."""
    extra: Mapping[str, Tensor] = MappingProxyType({})
    """Whatever else the generator's own losses read."""


class ViewpointBatch(Protocol):
    """Where the images of a step are seen from."""

    @property
    def matrices(self) -> Float[Tensor, "b 4 4"] | None:
        """Camera to world, for methods that tell their own network; None where no camera sees the images."""
        ...

    def prompts(self, asked: tuple[str, ...]) -> Sequence[str]:
        """What is asked of each image, as its viewpoint wants it (", side view")."""
        ...


class Viewpoints(Protocol):
    """Where a run may look from."""

    def draw(self, draws: Draws) -> ViewpointBatch:
        """Those of a step."""
        ...


class Generator(nn.Module):
    """Parameters that render images; a subclass has a ``space`` and ``render``."""

    space: Space = "pixel"
    """Are the images pixels or latents?"""
    rates: Mapping[str, float] = MappingProxyType({})
    """Learning rates of parameters, or of all below a module, by name; others have the optimiser's own."""

    def render(self, viewpoints: Any = None) -> Rendering:
        """An image for each of the drawn viewpoints, with gradients to the parameters; of all that it has, for None."""
        raise NotImplementedError

    def after_backward(self, step: int, optimisers: Optimisers) -> None:
        """Gradients are there: split or drop what is badly placed. Its parameters' names begin with ``generator.``."""

    def after_step(self, step: int, optimisers: Optimisers) -> None:
        """Parameters have moved: bring them back to where they may be."""


class View(NamedTuple):
    """How a flat image is looked at: turned by so many degrees, so many times as large."""

    angle: float = 0.0
    zoom: float = 1.0


STRAIGHT = View()


class FlatViews(tuple[View, ...]):
    """A view an image, which no camera saw and whose prompt is the image's own."""

    matrices = None

    def prompts(self, asked: tuple[str, ...]) -> tuple[str, ...]:
        return asked


@dataclass(frozen=True)
class RandomViews:
    """Flat images turned and scaled at random (Jambon 2023, section 5.3: 30 degrees to each side, 0.6 to 1.2 times)."""

    n: int = 1
    """Images."""
    angle: float = 30.0
    zoom: tuple[float, float] = (0.6, 1.2)

    def draw(self, draws: Draws) -> FlatViews:
        """A view an image."""
        u = draws.each(self.n, lambda rng: torch.rand(2, generator=rng, dtype=torch.float64)).tolist()
        low, high = self.zoom
        return FlatViews(View((2 * a - 1) * self.angle, low + z * (high - low)) for a, z in u)


def seen(images: Images, views: Sequence[View] | None) -> Images:
    """Flat images as their views show them."""
    if views is None or all(view == STRAIGHT for view in views):
        return images
    return torch.cat(
        [
            Similarity(turn=view.angle, scale=view.zoom)(one, padding="reflection")
            for one, view in zip(images.split(1), views, strict=True)
        ]
    )


class Pixels(Generator):
    """Images whose pixels are the parameters, kept in [0, 1] by clipping after each step."""

    def __init__(self, images: Float[Tensor, "n 3 h w"]):
        super().__init__()
        self.images = nn.Parameter(images.clone())

    def render(self, viewpoints: Sequence[View] | None = None) -> Rendering:
        return Rendering(seen(self.images, viewpoints))

    @torch.no_grad()
    def after_step(self, step: int, optimisers: Optimisers) -> None:
        self.images.clamp_(0, 1)


class Latents(Generator):
    """Images whose latents are the parameters."""

    space: Space = "latent"

    def __init__(self, latents: Float[Tensor, "n c h w"]):
        super().__init__()
        self.latents = nn.Parameter(latents.clone())

    def render(self, viewpoints: Sequence[View] | None = None) -> Rendering:
        return Rendering(seen(self.latents, viewpoints))


class Coordinates(Generator):
    """A small network an image, from a place in it to its colour: Fourier features (Tancik et al. 2020), two layers.

    Pixels leave it through a sigmoid, latents as they are. ``size``: height and width of what it renders. Image i is of
    seed + i.
    """

    def __init__(
        self,
        n: int,
        channels: int,
        size: tuple[int, int],
        space: Space = "pixel",
        seed: int = 0,
        width: int = 64,
        frequencies: int = 32,
        scale: float = 4.0,
    ):
        super().__init__()
        if n < 1 or min(size) < 1:
            raise SfumatoError(f"a coordinate network renders one image or more of a size, got {n} of {size}")
        self.space, self.size = space, size
        rngs = [torch.Generator().manual_seed(seed + i) for i in range(n)]

        def drawn(*shape: int) -> Tensor:
            return torch.stack([torch.randn(shape, generator=rng) for rng in rngs])

        self.register_buffer("waves", drawn(2, frequencies) * scale)
        shapes = ((2 * frequencies, width), (width, width), (width, channels))
        self.first, self.second, self.last = (nn.Parameter(drawn(*shape) / math.sqrt(shape[0])) for shape in shapes)
        self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(n, 1, k)) for k in (width, width, channels)])

    def render(self, viewpoints: Sequence[View] | None = None) -> Rendering:
        h, w = self.size
        y = (torch.arange(h, device=self.first.device) + 0.5) / h * 2 - 1
        x = (torch.arange(w, device=self.first.device) + 0.5) / w * 2 - 1
        places = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).view(-1, 2)
        phase = math.pi * places @ self.waves  # pyright: ignore[reportOperatorIssue]
        at = torch.cat([phase.sin(), phase.cos()], -1)
        for layer, shift in zip((self.first, self.second), self.shifts, strict=False):
            at = F.relu(at @ layer + shift)
        out = (at @ self.last + self.shifts[2]).transpose(1, 2).reshape(len(self.first), -1, h, w)
        return Rendering(seen(out.sigmoid() if self.space == "pixel" else out, viewpoints))
