"""Describe shapes: match the vertices of one with another's, or part one, and show what was found in colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.brief import Brief
from sfumato.errors import SfumatoError
from sfumato.io.progress import Listener, heard
from sfumato.media import pictures
from sfumato.media.labels import palette
from sfumato.media.meshes import Mesh
from sfumato.methods.perceive.diff3f import Diff3F, VertexFeatures
from sfumato.ops.raster import around, rasterise
from sfumato.ops.surfaces import vertex_normals

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SIDES = (30.0, 120.0, 210.0, 300.0)
"""Azimuths of the views on a sheet."""
DETAIL = 2


@dataclass(frozen=True)
class MatchedShapes(Brief):
    """What of the first shape was found on the second."""

    first: VertexFeatures
    second: VertexFeatures
    index: Int[Tensor, " v"]
    """For each of the first's vertices the second's."""
    scores: Float[Tensor, " v"]
    """How alike they are, from -1 to 1."""

    @property
    def colours(self) -> tuple[Float[Tensor, "v 3"], Float[Tensor, "w 3"]]:
        """Of both: a place of the second has a colour, and what was matched with it has the same."""
        second = by_place(self.second.shape)
        return second[self.index], second


def match_shapes(
    model: Backbone,
    first: Mesh,
    second: Mesh,
    method: Diff3F,
    *,
    steered: Any = None,
    on_progress: Listener | None = None,
) -> MatchedShapes:
    """Where each vertex of the first shape lies on the second. ``steered``: a ControlNet on depth, for painting."""
    _check(method)
    with heard(on_progress):
        one, two = (method(model, shape, steered) for shape in (first, second))
    return MatchedShapes(one, two, *one.found(two))


def part_shape(
    model: Backbone,
    shape: Mesh,
    method: Diff3F,
    parts: int,
    *,
    steered: Any = None,
    on_progress: Listener | None = None,
) -> tuple[VertexFeatures, Int[Tensor, " v"]]:
    """A shape's features, and which of its parts each vertex belongs to, from 0."""
    _check(method)
    with heard(on_progress):
        found = method(model, shape, steered)
    return found, found.segment(parts)


def by_place(shape: Mesh) -> Float[Tensor, "v 3"]:
    """A colour for every place in the shape's box: red to the right, green up, blue to the front."""
    used = shape.vertices[shape.faces.flatten().unique()]
    low, high = used.amin(0), used.amax(0)
    return (0.1 + 0.8 * (shape.vertices - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)


def by_part(labels: Int[Tensor, " v"]) -> Float[Tensor, "v 3"]:
    """A colour for each part."""
    return torch.from_numpy(palette(int(labels.max()) + 1))[labels].float() / 255


def sheet(rows: Sequence[tuple[Mesh, Float[Tensor, "v 3"]]], size: int = 256) -> Picture:
    """Coloured shapes from four sides, a row each."""
    cameras = around(SIDES, [15.0] * len(SIDES), 3.2, 40)
    images = []
    for shape, colours in rows:
        shape = shape.unit()
        seen = rasterise(shape.vertices, shape.faces, cameras, size * DETAIL)
        normal = seen.of(vertex_normals(shape.vertices, shape.faces), shape.faces)
        facing = torch.einsum("nj,nhwj->nhw", cameras.poses[:, :3, 2].to(normal), normal).abs()[..., None]
        lit = seen.of(colours, shape.faces) * (0.45 + 0.55 * facing)
        image = torch.where(seen.there[..., None], lit, 1.0).movedim(-1, 1)
        images.append(torch.nn.functional.avg_pool2d(image, DETAIL))
    return pictures.sheet(torch.cat(images), len(SIDES))


def _check(method: Any) -> None:
    if not isinstance(method, Diff3F):
        raise SfumatoError(f"shapes are read by diff3f, not by {type(method).__name__}, which reads pictures")
