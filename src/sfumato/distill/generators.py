"""What can be distilled into: anything with parameters that renders images. Here the flat ones; scenes are another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.distill.prior import Images
from sfumato.errors import SfumatoError
from sfumato.ops.warps import Similarity

Space = Literal["pixel", "latent"]


class Generator(Protocol):
    """Parameters that render images; a torch module is one as soon as it has a ``space`` and ``render``."""

    @property
    def space(self) -> Space:
        """Are the images pixels in [0, 1], (b, 3, H, W), or latents, (b, c, h, w)?"""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...

    def render(self, views: Any) -> Images:
        """An image for each view, with gradients to the parameters. What a view is, the generator says."""
        ...


class View(NamedTuple):
    """How a flat image is looked at: turned by so many degrees, so many times as large."""

    angle: float = 0.0
    zoom: float = 1.0


STRAIGHT = View()


@dataclass(frozen=True)
class RandomViews:
    """Random rotations and scalings (Jambon 2023, section 5.3: 30 degrees to each side, 0.6 to 1.2 times)."""

    n: int = 1
    """Images."""
    angle: float = 30.0
    zoom: tuple[float, float] = (0.6, 1.2)

    def __call__(self, rng: torch.Generator) -> list[View]:
        """A view an image."""
        u = torch.rand(self.n, 2, generator=rng, dtype=torch.float64).tolist()
        low, high = self.zoom
        return [View((2 * a - 1) * self.angle, low + z * (high - low)) for a, z in u]


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


class Pixels(nn.Module):
    """Images whose pixels are the parameters, kept in [0, 1] by clipping after each step."""

    space: Space = "pixel"

    def __init__(self, images: Float[Tensor, "n 3 h w"]):
        super().__init__()
        self.images = nn.Parameter(images.clone())

    def render(self, views: Sequence[View] | None = None) -> Images:
        return seen(self.images, views)

    @torch.no_grad()
    def project(self) -> None:
        """Back to where images may be."""
        self.images.clamp_(0, 1)


class Latents(nn.Module):
    """Images whose latents are the parameters."""

    space: Space = "latent"

    def __init__(self, latents: Float[Tensor, "n c h w"]):
        super().__init__()
        self.latents = nn.Parameter(latents.clone())

    def render(self, views: Sequence[View] | None = None) -> Images:
        return seen(self.latents, views)


class Coordinates(nn.Module):
    """A small network an image, from a place in it to its colour: Fourier features (Tancik et al. 2020), two layers.

    Pixels leave it through a sigmoid, latents as they are. ``size``: height and width of what it renders.
    """

    space: Space

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
        rng = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(n, *shape, generator=rng) / math.sqrt(shape[0]))

        self.register_buffer("waves", torch.randn(2, frequencies, generator=rng) * scale)
        self.first, self.second, self.last = drawn(2 * frequencies, width), drawn(width, width), drawn(width, channels)
        self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(n, 1, k)) for k in (width, width, channels)])

    def render(self, views: Sequence[View] | None = None) -> Images:
        h, w = self.size
        y = (torch.arange(h, device=self.first.device) + 0.5) / h * 2 - 1
        x = (torch.arange(w, device=self.first.device) + 0.5) / w * 2 - 1
        places = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).view(-1, 2)
        phase = math.pi * places @ self.waves  # pyright: ignore[reportOperatorIssue]
        at = torch.cat([phase.sin(), phase.cos()], -1).expand(len(self.first), -1, -1)
        for layer, shift in zip((self.first, self.second), self.shifts, strict=False):
            at = F.relu(at @ layer + shift)
        out = (at @ self.last + self.shifts[2]).transpose(1, 2).reshape(len(self.first), -1, h, w)
        return seen(out.sigmoid() if self.space == "pixel" else out, views)
