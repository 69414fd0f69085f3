"""A mesh as cameras see it: a ``Generator`` whose colours images or a model's gradients move; its shape stays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sfumato.distill.generators import Generator, Rendering
from sfumato.learning.loop import Problem, learn
from sfumato.learning.optimisers import Optimisers
from sfumato.media.meshes import Mesh, Texture
from sfumato.ops import raster
from sfumato.scene.cameras import Pinholes, as_raster, orbit


class MeshScene(Generator):
    """Triangles with a colour for each vertex, or a texture, before one colour.

    What a pixel sees is found without gradients, by ``ops.raster`` in images ``finer`` times as large, whose means are
    what is shown. Colours get gradients, and only they: positions would get none from outlines, which is what moves a
    shape, so a field is what to change where the shape is wrong.
    """

    def __init__(
        self,
        mesh: Mesh,
        colours: Float[Tensor, "v 3"] | Texture,
        background: tuple[float, float, float] = (1.0, 1.0, 1.0),
        finer: int = 2,
    ):
        super().__init__()
        self.mesh, self.finer = mesh, finer
        textured = isinstance(colours, Texture)
        self.colours = nn.Parameter((colours.image if isinstance(colours, Texture) else colours).clone())
        self.places: Tensor
        self.register_buffer("places", colours.places.clone() if isinstance(colours, Texture) else torch.zeros(0, 2))
        self.background: Tensor
        self.register_buffer("background", torch.tensor(background))
        self.textured = textured

    @property
    def worn(self) -> Float[Tensor, "v 3"] | Texture:
        """Its colours as ``write_mesh`` takes them."""
        colours = self.colours.detach().cpu()
        return Texture(self.places.cpu(), colours) if self.textured else colours

    def render(self, viewpoints: Any = None) -> Rendering:
        """What ``viewpoints.cameras`` see (or cameras themselves); None: four around it."""
        cameras = getattr(viewpoints, "cameras", viewpoints)
        cameras = orbit(4, (64, 64), **around(self.mesh)) if cameras is None else cameras
        h, w = cameras.size
        fine = cameras.resized(h * self.finer, w * self.finer)
        device = self.colours.device
        seen = raster.rasterise(
            self.mesh.vertices.to(device), self.mesh.faces.to(device), as_raster(fine), fine.size[0]
        )
        faces, there = self.mesh.faces.to(device), seen.there[:, None].to(self.colours)
        if self.textured:
            at = seen.of(self.places, faces) * 2 - 1
            at = torch.stack([at[..., 0], -at[..., 1]], -1)  # places go up, rows go down
            every = self.colours[None].expand(len(at), -1, -1, -1)
            colours = F.grid_sample(every, at, padding_mode="border", align_corners=False)
        else:
            colours = seen.of(self.colours, faces).permute(0, 3, 1, 2)
        alpha = self._mean(there)
        behind = self.background[:, None, None]
        images = self._mean(colours * there) + (1 - alpha) * behind
        rays = fine.rays().directions.to(device)
        axis = torch.einsum("nhwi,ni->nhw", rays, -fine.poses[:, :3, 2].to(device))[:, None]
        depth = torch.where(seen.there[:, None], seen.depth[:, None] / axis, 0)
        depth = self._mean(depth) / alpha.clamp_min(1e-6)
        normals = F.normalize(self._mean(seen.normal.permute(0, 3, 1, 2)), dim=1)
        return Rendering(images, alpha, depth, normals)

    def _mean(self, x: Float[Tensor, "n c a b"]) -> Float[Tensor, "n c h w"]:
        return F.avg_pool2d(x, self.finer) if self.finer > 1 else x

    @torch.no_grad()
    def view(self, cameras: Pinholes) -> Rendering:
        """The same without gradients, a view at a time."""
        each = [self.render(cameras[i : i + 1]) for i in range(len(cameras))]
        images, alpha, depth, normals = (torch.cat([getattr(r, of) for r in each]) for of in Rendering._fields[:4])
        return Rendering(images, alpha, depth, normals)

    @torch.no_grad()
    def after_step(self, step: int, optimisers: Optimisers) -> None:
        self.colours.clamp_(0, 1)


def around(mesh: Mesh) -> dict[str, Any]:
    """Where ``orbit`` stands to see all of a mesh."""
    used = mesh.vertices[mesh.faces.flatten().unique()]
    low, high = used.amin(0), used.amax(0)
    return {"target": ((low + high) / 2).tolist(), "distance": 3.2 * float((high - low).norm()) / 2}


def refined(
    scene: MeshScene, images: Float[Tensor, "n 3 h w"], cameras: Pinholes, steps: int = 60, rate: float = 0.02,
    at_once: int = 4, smooth: float = 1.0, keep: Path | None = None,
) -> MeshScene:  # fmt: skip
    """Colours that show what ``images`` do from ``cameras``: by least squares, where a pixel is full of the mesh.

    Images are taken in turn, ``at_once`` a step. ``smooth``: weight of how much the change of a vertex's colour differs
    from its neighbours', so that vertices between the pixels go with them; of textures, whose pixels may lie closer
    than the images', there is no such term: change the vertices' colours and bake the change into the texture.
    """
    problem = _Colours(scene, images, cameras, at_once, smooth)
    learn(problem, torch.optim.Adam(problem.groups(), lr=rate, betas=(0.9, 0.99)), steps=steps, keep=keep)
    return scene


class _Colours(Problem):
    name = "the colours of a mesh"
    doing = "colouring"
    rates: Mapping[str, float] = {}

    def __init__(self, scene: MeshScene, images: Tensor, cameras: Pinholes, at_once: int, smooth: float):
        self.scene, self.images, self.cameras = scene, images, cameras
        self.before, self.smooth = scene.colours.detach().clone(), 0.0 if scene.textured else smooth
        self.edges = torch.cat([scene.mesh.faces[:, [0, 1]], scene.mesh.faces[:, [1, 2]], scene.mesh.faces[:, [2, 0]]])
        self.modules = {"mesh": scene}
        self.at_once = min(at_once, len(images))

    def loss(self, step: int) -> Tensor:
        some = (torch.arange(self.at_once) * len(self.images) // self.at_once + step) % len(self.images)
        shown = self.scene.render(self.cameras[some])
        assert shown.alpha is not None
        full = (shown.alpha > 0.999).to(shown.images)
        true = self.images[some].to(shown.images)
        loss = (full * (shown.images - true).square()).sum() / full.sum().clamp_min(1)
        if self.smooth:
            one, two = (self.scene.colours - self.before)[self.edges.to(self.before.device)].unbind(1)
            loss = loss + self.smooth * (one - two).square().sum(1).mean()
        return loss

    def after_step(self, step: int, optimisers: Optimisers) -> None:
        self.scene.after_step(step, optimisers)
