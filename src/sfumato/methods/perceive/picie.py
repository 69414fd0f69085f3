"""PiCIE (Cho et al. 2021, arXiv 2103.17070): classes without labels, which colours do not change and crops move.

Each picture is seen twice, in other colours; of the first its crop, mirrored or not, is read, of the second the codes
are cropped. Before each epoch k-means clusters the codes of both views, each by itself; then a head learns to put each
cell near its own view's centroid (within) and near the one that the other view's code has (across).

Defaults: the authors' code: 27 clusters, codes of 128 numbers, Adam at 0.001, 10 epochs; brightness, contrast and
saturation changed by up to 0.3 and hue by 0.1, each eight times in ten, grey two in ten, blur of 0.1 to 2 pixels
every second time; crops of half the area or more; a cluster weighs as much as it is large (``balance``). ``over`` is
PiCIE+H: a second, finer clustering, weighted as the paper has it.

Unlike the authors', a head learns on frozen features where they train a whole network; views are drawn ``pairs`` times
a picture and read once, where they draw anew each epoch. Their code forgets the first view's colours in training and
never makes grey, by two slips; both are here as the paper says, and centroids are of length one in the loss, so that it
is the cosine distance of eq. 2. The clusters that are read are made once more at the end, of both views.

Needs: features of a frozen model, read twice a picture and pair.

Families: all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.core.settings import Count, LesserPart, Part, Settings, Several, SomePart, Weight, Whole
from sfumato.errors import SfumatoError
from sfumato.learning.clusters import begun, members, updated
from sfumato.learning.heads import Examples, Head, HeadMethod, HeadProblem, Projection, Standard, cells
from sfumato.learning.seeds import generator
from sfumato.ops.blur import blur
from sfumato.ops.warps import warp
from sfumato.reading.results import Segments

COLOURS, CROPS, STARTS = 420, 421, 422  # what colours, crops and clusters are drawn from
CHUNK = 32  # pictures whose codes exist at once


@dataclass(frozen=True)
class PiCIE(HeadMethod):
    """Learns classes of pixels without labels, of pictures in changed colours and cropped."""

    changes_pictures: ClassVar[bool] = True

    classes: Several = 27
    """Clusters."""
    over: Whole = 0
    """Of a second, finer clustering (PiCIE+H: 100; 0: none)."""
    dim: Count = 128
    """Numbers of a code."""
    nonlinear: bool = True
    """Two layers beside the linear one."""
    standard: bool = False
    """Bring features to mean 0 and variance 1 over the pictures first."""
    epochs: Count = 10
    """Each picture is seen so often."""
    batch: Count = 128
    """Pictures in a step."""
    pairs: Count = 1
    """Pairs of views of each picture, of which epochs take one after the other."""
    jitter: LesserPart = 0.3
    """By how much brightness, contrast and saturation change at most; hue by a third of it."""
    grey: Part = 0.2
    """How often colours go."""
    blur: Part = 0.5
    """How often a view is blurred."""
    scale: SomePart = 0.5
    """Least part of the area that a crop shows; 1: no crops."""
    flip: bool = True
    """Mirror half of the crops."""
    balance: float = 1.0
    """Clusters weigh as their share to this power: 0 all alike, -1 each as much as any other in all."""
    gathered: Count = 15360
    """Pictures whose cells are clustered at once; as many more at a time move the centroids, as mini-batches do."""
    per_picture: Count = 256
    """Cells of each picture that centroids are made of, drawn at random (0: all, as published)."""
    steps: Whole = 0
    """Of the run, in the place of epochs."""
    rate: Weight = 1e-3
    """Of Adam."""
    seed: Whole = 0
    """Of weights, colours, crops and clusters."""

    def __post_init__(self) -> None:
        Settings.__post_init__(self)
        if self.over == 1:
            raise SfumatoError("a finer clustering (over) has two clusters or more, or 0 for none; got 1")

    @property
    def kinds(self) -> tuple[int, ...]:
        """How many clusters each clustering has."""
        return (self.classes, self.over) if self.over else (self.classes,)

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the clusterings in the loss: the logarithm of the other's number, so that both weigh alike."""
        logs = [math.log(k) for k in self.kinds]
        return tuple(log / sum(logs) for log in logs[::-1])

    def length(self, examples: Examples) -> int:
        return self.steps or self.epochs * self.per_epoch(examples)

    def per_epoch(self, examples: Examples) -> int:
        """Steps of an epoch."""
        return math.ceil(len(examples) / self.batch)

    def views(self, picture: Float[Tensor, "3 h w"], number: int) -> Sequence[Float[Tensor, "3 h w"]]:
        """Of each pair the first view cropped, and the second one whole."""
        found = []
        for pair in range(self.pairs):
            one, other = (self._coloured(picture, number, pair, view) for view in range(2))
            found += [cropped(one[None], self.crops([number], pair))[0], other]
        return found

    def _coloured(self, picture: Float[Tensor, "3 h w"], number: int, pair: int, view: int) -> Tensor:
        rng = generator(self.seed, COLOURS, number, pair, view)
        factors = torch.where(torch.rand(4, generator=rng) < 0.8, 2 * torch.rand(4, generator=rng) - 1, 0.0)
        grey, blurred, sigma = torch.rand(3, generator=rng).tolist()
        brightness, contrast, saturation, hue = (self.jitter * factors).tolist()
        out = jittered(picture, brightness, contrast, saturation, hue / 3)
        out = jittered(out, 0, 0, -1, 0) if grey < self.grey else out
        return blur(out, 0.1 + 1.9 * sigma) if blurred < self.blur else out

    def crops(self, which: Sequence[int], pair: int) -> Float[Tensor, "b 4"]:
        """Of pictures left, top and side of what is shown, in parts of the picture's, and 1 where it is mirrored."""
        found = []
        for number in which:
            area, x, y, mirrored = torch.rand(4, generator=generator(self.seed, CROPS, number, pair)).tolist()
            side = math.sqrt(self.scale + (1 - self.scale) * area)
            found.append([x * (1 - side), y * (1 - side), side, float(self.flip and mirrored < 0.5)])
        return torch.tensor(found)

    def network(self, width: int) -> Clusterer:
        return Clusterer(width, self.dim, self.classes, self.nonlinear)

    def problem(self, examples: Examples, network: nn.Module) -> Clustering:
        return Clustering(self, examples, network)

    def answer(self, head: Head, maps: Sequence[Float[Tensor, "c h w"]], size: tuple[int, int]) -> Segments:
        (map,) = maps
        codes = F.normalize(head.network(cells(map[None]))[0], dim=-1)
        near = -torch.cdist(codes, head.network.clusters).square()
        return Segments(near.softmax(1).T.unflatten(1, map.shape[1:]), size)


class Clusterer(nn.Module):
    """Features -> codes; beside it the centroids that are read."""

    clusters: Tensor

    def __init__(self, width: int, dim: int, classes: int, nonlinear: bool) -> None:
        super().__init__()
        self.standard = Standard(width)
        self.head = Projection(width, dim, nonlinear)
        self.register_buffer("clusters", torch.zeros(classes, dim))

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b dim"]:
        return self.head(self.standard(x))


class Clustering(HeadProblem):
    """Epochs, each of which begins with clusters anew."""

    method: PiCIE
    network: Clusterer

    def __init__(self, method: PiCIE, examples: Examples, network: nn.Module) -> None:
        super().__init__(method, examples, network)
        if examples.features.shape[1] != 2 * method.pairs:
            raise SfumatoError(
                f"PiCIE learns from {2 * method.pairs} views of each picture, and of these features are of "
                f"{examples.features.shape[1]}; give pictures, not features alone"
            )
        if method.standard:
            self.network.standard.learn(examples)
        self.labels: list[Int[Tensor, "2 n cells"]] = []
        """Of each clustering, by view: the cluster of each cell."""
        self.centroids: list[Float[Tensor, "2 k d"]] = []

    def loss(self, step: int) -> Float[Tensor, ""]:
        method = self.method
        epoch, part = divmod(step, method.per_epoch(self.examples))
        if part == 0:
            self.cluster(epoch)
        order = self.examples.drawn(method.seed, epoch, len(self.examples))
        which = order[part * method.batch : (part + 1) * method.batch]
        codes = [self.codes(which, epoch, view).flatten(0, 1) for view in range(2)]
        total = torch.zeros((), device=codes[0].device)
        for share, labels, centroids in zip(method.shares, self.labels, self.centroids, strict=True):
            weights = [weighted(each, len(of), method.balance) for each, of in zip(labels, centroids, strict=True)]
            total = total + share * views_loss(codes, labels[:, which].flatten(1).long(), centroids, weights)
        return total

    def codes(self, which: Sequence[int], epoch: int, view: int) -> Float[Tensor, "b cells d"]:
        """Of a view as both are compared: the first was cropped before it was read, the second is now."""
        pair = epoch % self.method.pairs
        codes = self.network(cells(self.examples.maps(which, 2 * pair + view)))
        if view:
            maps = codes.transpose(1, 2).unflatten(2, self.examples.grid)
            codes = cells(cropped(maps, self.method.crops(which, pair)))
        return F.normalize(codes, dim=-1)

    @torch.no_grad()
    def cluster(self, epoch: int) -> None:
        """Centroids of each view, and which of them each cell is nearest to, for an epoch."""
        both = [self._clustered([(epoch, view)], epoch) for view in range(2)]
        self.centroids = [torch.stack(pair) for pair in zip(*both, strict=True)]
        found: list[list[list[Tensor]]] = [[[], []] for _ in self.centroids]
        for some in torch.arange(len(self.examples)).split(CHUNK):
            for view in range(2):
                codes = self.codes(some.tolist(), epoch, view)
                for labels, centroids in zip(found, self.centroids, strict=True):
                    labels[view].append(torch.cdist(codes, centroids[view]).argmin(-1))
        self.labels = [torch.stack([torch.cat(parts) for parts in labels]) for labels in found]

    def _clustered(self, views: Sequence[tuple[int, int]], salt: int) -> list[Float[Tensor, "k d"]]:
        """Centroids of each clustering, of all pictures in these views."""
        method, n = self.method, len(self.examples)
        rng = generator(method.seed, STARTS, salt, views[0][1])
        found, counts, points = [], [], []
        order = torch.randperm(n, generator=rng)
        for at in range(0, n, CHUNK):
            some = order[at : at + CHUNK].tolist()
            for epoch, view in views:
                codes = self.codes(some, epoch, view)
                if method.per_picture:
                    codes = codes[:, torch.randperm(codes.shape[1], generator=rng)[: method.per_picture]]
                points.append(codes.flatten(0, 1))
            if len(points) * CHUNK < method.gathered * len(views) and at + CHUNK < n:
                continue
            whole, points = torch.cat(points), []
            if not found:
                found = [begun(whole, k, method.seed + salt, tries=1) for k in method.kinds]
                counts = [torch.zeros(k, device=whole.device) for k in method.kinds]
                counts = [count + members(whole, of) for count, of in zip(counts, found, strict=True)]
            else:
                pairs = [updated(of, count, whole) for of, count in zip(found, counts, strict=True)]
                found, counts = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        return found

    @torch.no_grad()
    def finish(self) -> None:
        """The clusters that are read: of both views of all pictures."""
        (self.network.clusters[:], *_) = self._clustered([(0, 0), (0, 1)], -1)

    def state(self) -> Mapping[str, Mapping[str, Tensor]]:
        named = {f"labels{i}": value for i, value in enumerate(self.labels)}
        named |= {f"centroids{i}": value for i, value in enumerate(self.centroids)}
        return {"clusters": named} if named else {}

    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        kept = state.get("clusters", {})
        for name in ("labels", "centroids"):
            found = [kept[key].to(self.examples.device) for key in sorted(kept) if key.startswith(name)]
            setattr(self, name, found)


def jittered(
    picture: Float[Tensor, "3 h w"], brightness: float, contrast: float, saturation: float, hue: float
) -> Float[Tensor, "3 h w"]:
    """Brighter by a part, with more contrast and saturation by parts (-1: none), and hues turned by parts of a turn.

    Saturation and contrast are about Rec. 601's grey and its mean; hues turn in the plane of YIQ's two colours, from
    red to green.
    """
    grey = torch.tensor([0.299, 0.587, 0.114]).to(picture)
    out = (picture * (1 + brightness)).clamp(0, 1)
    mean = torch.einsum("c,chw->hw", grey, out).mean()
    out = torch.lerp(mean, out, 1 + contrast).clamp(0, 1) if contrast else out
    if saturation:
        out = torch.lerp(torch.einsum("c,chw->hw", grey, out), out, 1 + saturation).clamp(0, 1)
    if hue:
        yiq = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]).double()
        c, s = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
        turn = torch.tensor([[1, 0, 0], [0, c, s], [0, -s, c]]).double()
        out = torch.einsum("ij,jhw->ihw", (yiq.inverse() @ turn @ yiq).to(out), out).clamp(0, 1)
    return out


def cropped(maps: Float[Tensor, "b c h w"], crops: Float[Tensor, "b 4"]) -> Float[Tensor, "b c h w"]:
    """What crops (left, top, side, mirrored) show, at the maps' own size; bilinear."""
    h, w = maps.shape[-2:]
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    left, top, side, mirrored = crops[:, :, None, None].unbind(1)
    across = torch.where(mirrored > 0, 1 - x, x)
    return warp(maps, torch.stack([left + side * across, top + side * y], -1).to(maps))


def clustering_loss(
    codes: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    centroids: Float[Tensor, "k d"],
    weights: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of a softmax over minus the cosine distances to centroids (eq. 2); codes are of length one.

    Averaged, each cell by its cluster's weight.
    """
    return F.cross_entropy(codes @ F.normalize(centroids, dim=1).T, labels, weights)


def views_loss(
    codes: Sequence[Float[Tensor, "n d"]],
    labels: Int[Tensor, "2 n"],
    centroids: Float[Tensor, "2 k d"],
    weights: Sequence[Float[Tensor, " k"] | None] = (None, None),
) -> Float[Tensor, ""]:
    """Of two views within each and across (eqs. 6 to 8), each the mean of two, and the mean of both."""
    parts = [
        clustering_loss(codes[seen], labels[by], centroids[by], weights[by]) for seen in range(2) for by in range(2)
    ]
    return torch.stack(parts).mean()


def weighted(labels: Int[Tensor, "*of"], k: int, balance: float) -> Float[Tensor, " k"]:
    """What clusters weigh: their shares of all cells to a power; nothing where there is no cell."""
    share = torch.bincount(labels.flatten(), minlength=k).float() / labels.numel()
    return torch.where(share > 0, share.clamp_min(1e-12) ** balance, 0.0)
