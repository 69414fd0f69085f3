"""Diffusion 3D features (Diff3F, Dutt et al. 2024, arXiv 2311.17024): surfaces without textures described by what a 2D
denoiser sees in views of them.

A shape is rendered from all around and each view painted by a model that is steered by its depth, which gives it
a texture, and with it meaning. A network's features of the views go back to the surface: a vertex has the mean of what
views that see it have where it lies. What corresponds on two shapes has like features, and parts are their clusters.

Defaults: the authors' code for Stable Diffusion 1.5: 10 azimuths and 10 elevations, all around both, 512 pixels, a
field of view of 90 degrees; depth from the farthest to the nearest, 30 steps at guidance 7; up block 1's output; means
over a ball of 0.01 of the shape's diameter; vertices that no view sees take the nearest one's. Features of a vertex in
a view have length one. The authors add those of DINO and a second ControlNet, on normals; neither is here.

Unlike the authors' code, features are not taken while a view is painted: it is read after that, as DIFT reads images
(Tang et al. 2023), so that views need not be painted at all (``look``), nor a ControlNet be there. Features are sampled
at the vertices that a view sees, by its depth, not dropped from its pixels on all that is near; sums are in float32,
there in float16. All views are painted from one noise; the authors' have one each, as their generator is not used.
``smooth`` is no part of the paper's method: ZoomOut (Melzi et al. 2019), where the paper compares with functional maps.

Neither are ``sided`` and ``places``, which are for what the mean of all views cannot tell: left from right. To the left
of a body the front lies to the one side and the back to the other; to its right it is the other way round, and the
means are the same. ``sided`` puts beside the mean how features change from views of the one side of a vertex to
views of the other, which changes its sign in a mirror. ``places``: matches by features turn one shape onto the other,
by a rotation, which is never a mirror image (Kabsch 1976); then where vertices lie counts as well.

Needs: a part of a network call for each view and noise, and a painting of each view where ``look`` is "painted".

Families: all. Transformers have no blocks; there it is what the attention reads after the same part of the depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.backbones.controlnets import ControlNet
from sfumato.core.backbone import Backbone
from sfumato.core.brief import Brief
from sfumato.core.denoising import denoise
from sfumato.core.settings import Between, Count, LesserPart, Part, Positive, Settings, TrainStep, Weight, Whole
from sfumato.errors import SfumatoError, finite, whole
from sfumato.io.progress import progress
from sfumato.media.meshes import Mesh
from sfumato.methods.perceive.dift import DIFT
from sfumato.ops import surfaces
from sfumato.ops.functional_maps import zoomed_out
from sfumato.ops.memory import chunks
from sfumato.ops.raster import Cameras, Seen, around, rasterise, visible
from sfumato.ops.regions import k_means
from sfumato.ops.warps import warp
from sfumato.reading.reader import Noise, extract, feature

Look = Literal["painted", "shaded", "normals", "depth", "flat"]
LOOKS: tuple[Look, ...] = ("painted", "shaded", "normals", "depth", "flat")
AROUND = tuple(36.0 * i for i in range(10))
"""Ten angles around a circle."""
BATCH = 8
"""Views that are rendered, painted and read at once."""
_FINE = 512
"""Pixels a side up to which views are rendered at twice their size."""


@dataclass(frozen=True)
class Diff3F(Settings):
    """Describes the vertices of a shape by a network's features of its views."""

    azimuths: tuple[float, ...] = AROUND
    """Of the views, in degrees: 0 from +z, 90 from +x."""
    elevations: tuple[float, ...] = AROUND
    """Above the shape's middle, each at all azimuths; beyond 90 degrees a camera stands on its head."""
    fov: Annotated[float, Between(0, 180, below=True)] = 90.0
    """Of the cameras, in degrees; 0 for orthographic ones."""
    distance: Positive = 1.3
    """Of the cameras from the middle, in radii of the shape."""
    size: Annotated[int, Between(8, 4096)] | None = 512
    """Side of the views in pixels [none: the model's own]."""
    look: Look = "painted"
    """``shaded``: grey, lit from the camera; ``normals`` and ``depth`` as colours; ``flat``: the outline alone."""
    background: Part = 1.0
    """Behind the shape, from black to white."""
    prompt: str = ""
    """What is painted, and what the network is told of the views, such as "a cow"."""
    steps: Count = 30
    """Of painting."""
    guide: float = 7.0
    """Of painting."""
    depth: Literal["linear", "disparity"] = "linear"
    """What the ControlNet is shown: from 0 at the farthest to 1 at the nearest, or the nearest over each depth."""
    t: TrainStep = 261
    """The step, of a thousand, at which views are read (of flows, sigma)."""
    blocks: tuple[Whole, ...] = (1,)
    """Up blocks, from 0; of several the features, each of length one, side by side."""
    layers: tuple[str, ...] = ()
    """Hidden layers by their paths in place of blocks, such as "down_blocks.1.attentions.1"."""
    ensemble: Count = 1
    """Noises that are averaged over."""
    ball: LesserPart = 0.01
    """A vertex has the mean of all within this part of the shape's diameter."""
    standard: bool = False
    """Bring each channel to mean 0 and variance 1 over both shapes before they are compared."""
    sided: bool = False
    """Compare as well how features change from views of a vertex's left to views of its right."""
    places: Weight = 0.0
    """How much it counts, beside features of length one, where vertices lie once the shapes are turned alike; for
    shapes in one pose."""
    smooth: Whole = 0
    """Smooth matches by functional maps of at most so many functions; 0 leaves them."""
    seed: Whole = 0
    """Of the noises, the same for all views."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.azimuths or not self.elevations:
            raise SfumatoError("a shape is seen from one azimuth and one elevation at least")
        _ = self.cameras, self.reading

    @property
    def cameras(self) -> Cameras:
        """Elevations run fastest."""
        pairs = [(a, e) for a in self.azimuths for e in self.elevations]
        return around([a for a, _ in pairs], [e for _, e in pairs], self.distance, self.fov or None)

    @property
    def reading(self) -> DIFT:
        """What reads a view."""
        return DIFT(self.t, self.blocks, self.layers, ensemble=self.ensemble, prompt=self.prompt, seed=self.seed)

    def __call__(self, model: Backbone, shape: Mesh, steered: Any = None) -> VertexFeatures:
        """The features of a shape's vertices. ``steered``: a ControlNet on depth, which painting needs."""
        shape, cameras, size = shape.unit(), self.cameras, self.side(model)
        sums, counts = None, torch.zeros(len(shape.vertices))
        with progress("reading views", len(cameras)) as advance:
            for start in range(0, len(cameras), BATCH):
                some = cameras[slice(start, start + BATCH)]
                seen = rasterise(shape.vertices, shape.faces, some, size * _rays(size))
                at, found = visible(seen, some, shape.vertices)
                maps = self.maps(model, self.views(model, shape, some, seen, steered))
                weights = found.float()[..., None]
                if self.sided:
                    weights = torch.cat([weights, weights * sides(shape, some)[..., None]], -1)
                part = lifted(maps, at, weights)
                if self.sided:  # of the weights themselves as well, to be taken off
                    part = torch.cat([part, weights[..., 1:].sum(0)], 1)
                sums = part if sums is None else sums + part
                counts += found.sum(0)
                advance(len(some))
        assert sums is not None
        finite(sums, f"the features of {model.name}", model.remedy)
        values, changes = self.spread(shape, sums, counts), None
        if self.sided:
            values, changes, side = values.split([(values.shape[1] - 1) // 2] * 2 + [1], 1)
            changes = changes - side * values
        return VertexFeatures(shape, values, counts > 0, changes, self.standard, self.places, self.smooth)

    def side(self, model: Backbone) -> int:
        """Of the views: what the model can take that is nearest to ``size``."""
        return max(1, round((self.size or model.size) / model.multiple)) * model.multiple

    @torch.no_grad()
    def views(
        self, model: Backbone, shape: Mesh, cameras: Cameras, seen: Seen | None = None, steered: Any = None
    ) -> Float[Tensor, "n 3 h w"]:
        """A shape of the unit ball as the network will read it."""
        size = self.side(model)
        if seen is None:
            seen = rasterise(shape.vertices, shape.faces, cameras, size * _rays(size))
        if self.look != "painted":
            return F.avg_pool2d(shown(shape, cameras, seen, self.look, self.background), _rays(size))
        if steered is None:
            raise SfumatoError(
                "views are painted by a ControlNet on depth, and none is given; give one, or take another look: "
                f"{', '.join(LOOKS[1:])}"
            )
        pictures = F.avg_pool2d(nearness(seen, self.depth), _rays(size))
        control = ControlNet(steered, pictures.to(model.device))
        return denoise(
            model,
            [self.prompt] * len(cameras),
            guide=self.guide,
            steps=self.steps,
            seed=[self.seed] * len(cameras),
            size=size,
            controls=[control],
        ).images.cpu()

    @torch.no_grad()
    def maps(self, model: Backbone, views: Float[Tensor, "n 3 h w"]) -> list[Float[Tensor, "n c gh gw"]]:
        """What each layer has of views."""
        layers = self.reading.layers_of(model)
        noise = Noise(self.t, "gaussian", self.seed, self.ensemble)
        latents = model.encode(views.to(model.device))
        found = extract(model, latents, model.embed([self.prompt]), noise, layers, feature)
        return [found[layer].float().cpu() for layer in layers]

    def spread(self, shape: Mesh, sums: Float[Tensor, "v c"], counts: Float[Tensor, " v"]) -> Float[Tensor, "v c"]:
        """Means over balls of all that was seen in them; what has seen nothing takes the nearest's that has."""
        if not (counts > 0).any():
            raise SfumatoError("no view sees any vertex; take more views, or larger ones")
        if self.ball:
            radius = self.ball * surfaces.diameter(shape.vertices)
            near = surfaces.near(shape.vertices, radius)
            sums, counts = (torch.from_numpy(near @ x.numpy()) for x in (sums, counts))
        there = counts > 0
        values = sums / counts.clamp_min(1)[:, None]
        if not there.all():
            closest = surfaces.nearest(shape.vertices[~there], shape.vertices[there])
            values[~there] = values[there][closest]
        return values


@dataclass(frozen=True)
class VertexFeatures(Brief):
    """A shape whose vertices are described."""

    shape: Mesh
    """In the unit ball."""
    values: Float[Tensor, "v c"]
    seen: Bool[Tensor, " v"]
    """By a view."""
    changes: Float[Tensor, "v c"] | None = None
    """How values change from views of a vertex's left to views of its right."""
    standard: bool = False
    """Compared with channels of mean 0 and variance 1 over both shapes."""
    places: float = 0.0
    """How much places count once the shapes are turned alike."""
    smooth: int = 0
    """Functions that matches are smoothed by."""

    def match(self, other: VertexFeatures) -> Int[Tensor, " v"]:
        """For each vertex the one of another shape whose features have the largest cosine with its own."""
        return self.found(other)[0]

    def found(self, other: VertexFeatures) -> tuple[Int[Tensor, " v"], Float[Tensor, " v"]]:
        """``match``, and the cosines of what was matched."""
        if self.values.shape[1] != other.values.shape[1]:
            raise SfumatoError(
                f"features of {self.values.shape[1]} and {other.values.shape[1]} channels are of different networks"
            )
        a, b = self._compared(other)
        index = _best(a, b)
        if self.places:
            index = self._placed(other, a, b, self.turn(other, index))
            index = self._placed(other, a, b, self.turn(other, index))  # which now knows left from right
        if self.smooth:
            shapes = [(one.shape.vertices, one.shape.faces) for one in (self, other)]
            index = zoomed_out(index, shapes[0], shapes[1], self.smooth)
        return index, (a * b[index]).sum(1)

    def turn(self, other: VertexFeatures, index: Int[Tensor, " v"]) -> Float[Tensor, "3 3"]:
        """The rotation that brings what was matched of another shape nearest to this one."""
        return surfaces.rotation(self.shape.vertices, other.shape.vertices[index])

    def _compared(self, other: VertexFeatures) -> tuple[Float[Tensor, "v c"], Float[Tensor, "w c"]]:
        """What both are described by, each vertex's of length one."""
        a, b = (one.values if one.changes is None else torch.cat([one.values, one.changes], 1) for one in (self, other))
        if self.standard:
            both = torch.cat([a, b])
            mean, scale = both.mean(0), both.std(0).clamp_min(1e-6)
            a, b = (a - mean) / scale, (b - mean) / scale
        return F.normalize(a, dim=1), F.normalize(b, dim=1)

    def _placed(
        self, other: VertexFeatures, a: Float[Tensor, "v c"], b: Float[Tensor, "w c"], turn: Float[Tensor, "3 3"]
    ) -> Int[Tensor, " v"]:
        """The nearest in features and, by ``places``, in the other's places turned: largest a.b - |x - y|^2 / 2."""
        x, y = self.places * self.shape.vertices, self.places * (other.shape.vertices @ turn.T)
        one, far = torch.ones_like(x[:, :1]), y.square().sum(1, keepdim=True)
        return _best(torch.cat([a, x, one], 1), torch.cat([b, y, -far / 2], 1))

    def segment(self, parts: int) -> Int[Tensor, " v"]:
        """Clusters of vertices with like features, from 0."""
        whole("parts of a shape", parts, 2, len(self.values))
        values = F.normalize(self.values, dim=1)
        return k_means(values.double().numpy(), parts, tries=3)


def _best(a: Float[Tensor, "v c"], b: Float[Tensor, "w c"]) -> Int[Tensor, " v"]:
    return torch.cat([(part @ b.T).argmax(1) for part in chunks(a, len(b))])


def _rays(size: int) -> int:
    """A pixel's side: edges of small renders are smooth."""
    return 2 if size <= _FINE else 1


def lifted(
    maps: list[Float[Tensor, "n _ _ _"]], at: Float[Tensor, "n v 2"], weights: Float[Tensor, "n v k"]
) -> Float[Tensor, "v c"]:
    """Maps of views sampled where vertices are seen, of length one each, side by side and added up over the views.

    By each of ``k`` weights, one after the other; the first is 0 where a vertex is not seen.
    """
    columns = []
    for layer in maps:
        out = torch.zeros(weights.shape[2], at.shape[1], layer.shape[1])
        for view, places, weight in zip(layer, at, weights, strict=True):  # a view at a time: all would be large
            which = weight[:, 0].nonzero()[:, 0]
            if len(which):
                values = warp(view[None].float(), places[None, None, which])[0, :, 0].T
                out.index_add_(1, which, weight[which].T[..., None] * F.normalize(values, dim=1))
        columns.append(out)
    return torch.cat(tuple(torch.cat(columns, 2)), 1)


def sides(shape: Mesh, cameras: Cameras) -> Float[Tensor, "n v"]:
    """How far to its right a camera stands of a vertex that looks along its normal: across that and the vertical.

    Normals are turned to the camera, so that it does not matter which way a mesh's faces look.
    """
    normal = surfaces.vertex_normals(shape.vertices, shape.faces)
    poses = cameras.poses.to(normal)
    if cameras.pinhole:
        to = F.normalize(poses[:, None, :3, 3] - shape.vertices, dim=-1)
    else:
        to = poses[:, None, :3, 2].expand(-1, len(normal), -1)
    across = torch.stack([normal[:, 2], torch.zeros_like(normal[:, 0]), -normal[:, 0]], 1)  # the vertical x normal
    return (to * across).sum(-1) * (to * normal).sum(-1).sign()


def shown(shape: Mesh, cameras: Cameras, seen: Seen, look: Look, background: float = 1.0) -> Float[Tensor, "n 3 h w"]:
    """Plain renders: a smooth surface lit from where the camera is, or its normals, its depth, its outline."""
    if look == "depth":
        return nearness(seen, "linear")
    smooth = surfaces.vertex_normals(shape.vertices, shape.faces)
    normal = F.normalize(seen.of(smooth, shape.faces), dim=-1)
    local = torch.einsum("nji,nhwj->nihw", cameras.poses[:, :3, :3].to(normal), normal)
    local = torch.where(local[:, 2:] < 0, -local, local)  # a face seen from behind
    if look == "normals":
        image = local / 2 + 0.5
    elif look == "shaded":
        image = (0.25 + 0.65 * local[:, 2:]).expand(-1, 3, -1, -1)
    else:
        image = torch.full_like(local, 0.5)
    return torch.where(seen.there[:, None], image, background).clamp(0, 1)


def nearness(seen: Seen, kind: Literal["linear", "disparity"]) -> Float[Tensor, "n 3 h w"]:
    """Depth as a picture, each view by itself: 0 where there is nothing, 1 at the nearest."""
    depth, there = seen.depth, seen.there
    near = torch.where(there, depth, torch.inf).amin((1, 2), keepdim=True)
    if kind == "disparity":
        image = near / depth
    else:
        far = torch.where(there, depth, -torch.inf).amax((1, 2), keepdim=True)
        image = (far - depth) / (far - near).clamp_min(1e-6)
    return torch.where(there, image, 0)[:, None].expand(-1, 3, -1, -1)
