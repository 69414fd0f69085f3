"""STEGO (Hamilton et al. 2022, arXiv 2203.08414): classes without labels, distilled of how alike frozen features are.

A small head gives each cell a code. Where the features of two cells are more alike than a shift, their codes are drawn
together, else apart (eq. 4): in pairs of an image with itself, with one of its nearest neighbours, and with others at
random. Clusters of the codes, learned beside the head by minibatch k-means of cosines, are the classes.

Defaults: the authors' code, for COCO-Stuff with DINO ViT-S: head of a linear layer and two with a ReLU between, 70
numbers, a tenth of the channels dropped, Adam at 0.0005 (probes at 0.005), 16 images of 11 x 11 places in a step, 7
neighbours, 5 random pairs; weights 0.67, 0.25, 0.63 and shifts 0.08, 0.02, 0.66 of the three. In the paper's eq. 3 the
mean over the second image's cells is taken off (``centre="spatial"``); their code, whose shifts these are, puts the
mean over all pairs back, which is the default. Shifts suit the features: look at their cosines before taking others'.

Unlike the authors' code, features are sampled before the head, not codes behind it: the same at cells' middles, and
as many times cheaper as there are more cells than places. Negatives are places of the step's other images. Images are
whole, not five crops. Read with ``+ graph-cut``, which stands where they have a dense CRF.

Needs: features of a frozen model, read once; a step sees 242 places an image.

Families: all, and features of any other model (``Given``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.core.settings import Count, LesserPart, Positive, Several, Weight, Whole
from sfumato.errors import SfumatoError
from sfumato.learning.clusters import begun
from sfumato.learning.heads import (
    Examples,
    Head,
    HeadMethod,
    HeadProblem,
    Projection,
    Standard,
    cells,
    dropping,
)
from sfumato.learning.seeds import generator
from sfumato.ops.warps import warp
from sfumato.reading.results import Segments

Centre = Literal["restored", "spatial", "none"]
PLACES, PAIRS, SETTLED = 410, 411, 412  # what places, pairs and the last clusters are drawn from
_LARGEST = 512  # side to which codes are made larger before they are classified


@dataclass(frozen=True)
class STEGO(HeadMethod):
    """Learns classes of pixels without labels, of how alike frozen features are."""

    classes: Several = 27
    """Clusters."""
    dim: Count = 70
    """Numbers of a code."""
    nonlinear: bool = True
    """Two layers beside the linear one."""
    dropout: LesserPart = 0.1
    """Part of the features' channels that is dropped."""
    standard: bool = False
    """Bring features to mean 0 and variance 1 over the pictures first."""
    batch: Several = 16
    """Pictures in a step."""
    points: Count = 11
    """Of each, so many times so many places."""
    neighbours: Count = 7
    """A picture's nearest ones, by the mean of its features, of which one is its pair."""
    negatives: Count = 5
    """Random pairs of each picture."""
    weights: tuple[Weight, Weight, Weight] = (0.67, 0.25, 0.63)
    """Of a picture with itself, with its neighbour, and with others."""
    shifts: tuple[float, float, float] = (0.08, 0.02, 0.66)
    """How alike features of the three must be for their codes to be drawn together."""
    centre: Centre = "restored"
    """What is taken off how alike features are: its mean over the other image's cells and the mean of all put back,
    the first alone, or nothing."""
    clamp: bool = True
    """Push no codes further apart than at right angles."""
    probe: Literal["clusters", "labels"] = "clusters"
    """What is read: clusters, or the linear classifier that learns beside them where there are labels."""
    settled: bool = False
    """Make the clusters once more in the end, by k-means of codes: those that are learned may lose all their cells."""
    sharpness: Positive = 2.0
    """Of the softmax over clusters' cosines."""
    mirrors: bool = True
    """Average an image's codes with those of its mirror image."""
    steps: Count = 5000
    """Of the run."""
    rate: Weight = 5e-4
    """Of Adam."""
    probe_rate: Weight = 5e-3
    """Of the clusters and the classifier."""
    seed: Whole = 0
    """Of weights, places, pairs and dropout."""

    def check(self, examples: Examples) -> None:
        super().check(examples)
        if len(examples) < 2:
            raise SfumatoError("STEGO learns of pairs of pictures; give two or more, better hundreds")
        if self.probe == "labels" and examples.labels is None:
            raise SfumatoError("a classifier learns from labels, and these pictures have none; read clusters")

    def sizes(self, examples: Examples) -> dict[str, int]:
        known = 0 if examples.labels is None else max(int(examples.labels.max()) + 1, len(examples.names))
        return {**super().sizes(examples), "labels": known}

    def network(self, width: int, labels: int) -> Coder:
        return Coder(width, self.dim, self.classes, labels, self.nonlinear)

    def problem(self, examples: Examples, network: nn.Module) -> Distilling:
        return Distilling(self, examples, network)

    def answer(self, head: Head, maps: Sequence[Float[Tensor, "c h w"]], size: tuple[int, int]) -> Segments:
        found = []
        for mirrored, map in enumerate(maps):
            code = head.network(cells(map[None]))[0].T.unflatten(1, map.shape[1:])
            found.append(code.flip(-1) if mirrored else code)
        shrink = max(1.0, max(size) / _LARGEST)
        large = (max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink)))
        code = F.interpolate(torch.stack(found).mean(0)[None], large, mode="bilinear", align_corners=False)
        x, network = cells(code), head.network
        if self.probe == "labels":
            return Segments(network.labels(x)[0].softmax(1).T.unflatten(1, large), size, head.names)
        scores = (self.sharpness * cosines(x, network.clusters[None])).softmax(2)[0]
        return Segments(scores.T.unflatten(1, large), size)


class Coder(nn.Module):
    """Features -> codes; beside it the clusters, and where there are labels a linear classifier of codes."""

    def __init__(self, width: int, dim: int, classes: int, labels: int, nonlinear: bool) -> None:
        super().__init__()
        self.standard = Standard(width)
        self.head = Projection(width, dim, nonlinear)
        self.clusters = nn.Parameter(torch.randn(classes, dim))
        self.labels = nn.Linear(dim, labels) if labels else None

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b dim"]:
        return self.head(self.standard(x))


class Distilling(HeadProblem):
    """Pictures in pairs."""

    network: Coder
    method: STEGO

    def __init__(self, method: STEGO, examples: Examples, network: nn.Module) -> None:
        super().__init__(method, examples, network)
        if method.standard:
            self.network.standard.learn(examples)
        parts = ["head.clusters", *(["head.labels"] if self.network.labels is not None else [])]
        self.rates = dict.fromkeys(parts, method.probe_rate)
        means = [self.network.standard(examples.maps([i])[0].flatten(1).T).mean(0) for i in range(len(examples))]
        self.near = nearest(torch.stack(means), method.neighbours).cpu()
        """The neighbours of each picture."""

    def loss(self, step: int) -> Float[Tensor, ""]:
        method, examples, network = self.method, self.examples, self.network
        rng = generator(method.seed, PAIRS, step)
        first = examples.drawn(method.seed, step, min(method.batch, max(2, len(examples))))
        choice = torch.randint(self.near.shape[1], (len(first),), generator=rng)
        places = torch.rand(2, len(first), method.points**2, 2, generator=generator(method.seed, PLACES, step))
        drop = dropping(method.dropout, method.seed, step)
        features, codes = [], []
        for which, at in zip((first, self.near[first, choice]), places, strict=True):
            x = network.standard(placed(examples.maps(which), at.to(examples.device)))
            codes.append(network.head(x, drop))
            features.append(drop(x))
        others = [moved(len(first), rng) for _ in range(method.negatives)]
        pairs = [
            [(features[0], features[0], codes[0], codes[0])],
            [(features[0], features[1], codes[0], codes[1])],
            [(features[0], features[0][other], codes[0], codes[0][other]) for other in others],
        ]
        total = torch.zeros((), device=codes[0].device)
        for weight, shift, some in zip(method.weights, method.shifts, pairs, strict=True):
            losses = [correlation_loss(*pair, shift, method.centre, method.clamp) for pair in some]
            total = total + weight * torch.stack(losses).mean()
        return total + self._probes(codes[0].detach(), first, places[0])

    @torch.no_grad()
    def finish(self) -> None:
        if not self.method.settled:
            return
        examples, network = self.examples, self.network
        rng = generator(self.method.seed, SETTLED)
        codes = []
        for i in range(len(examples)):
            x = cells(examples.maps([i]))[0]
            some = torch.randperm(len(x), generator=rng)[: self.method.points**2]
            codes.append(F.normalize(network(x[some.to(x.device)]), dim=1))
        network.clusters.copy_(begun(torch.cat(codes), len(network.clusters), self.method.seed))

    def _probes(self, codes: Float[Tensor, "b n dim"], which: list[int], at: Float[Tensor, "b n 2"]) -> Tensor:
        """What the clusters and the classifier descend; the codes do not move for them."""
        total, labels = cluster_loss(codes, self.network.clusters), self.examples.labels
        if self.network.labels is None or labels is None:
            return total
        truth = labels_at(labels[which], at).to(codes.device)
        return total + F.cross_entropy(self.network.labels(codes).flatten(0, 1), truth.flatten(), ignore_index=-1)


def placed(maps: Float[Tensor, "b c h w"], at: Float[Tensor, "b n 2"]) -> Float[Tensor, "b n c"]:
    """Maps at places of each, bilinear."""
    return warp(maps, at[:, None])[:, :, 0].transpose(1, 2)


def labels_at(labels: Int[Tensor, "b h w"], at: Float[Tensor, "b n 2"]) -> Int[Tensor, "b n"]:
    """Labels of the pixels in which places lie, -1 for every negative one."""
    h, w = labels.shape[1:]
    x, y = (at[..., 0] * w).long().clamp(0, w - 1), (at[..., 1] * h).long().clamp(0, h - 1)
    return labels.flatten(1).gather(1, y * w + x).long().clamp_min(-1)


def cosines(a: Float[Tensor, "#b n d"], b: Float[Tensor, "#b m d"]) -> Float[Tensor, "b n m"]:
    """How alike each of one is to each of the other (eq. 1)."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(1, 2)


def centred(alike: Float[Tensor, "b n m"], how: Centre) -> Float[Tensor, "b n m"]:
    """How alike features are, less the mean over the other image (eq. 3), and with the mean of all put back."""
    if how == "none":
        return alike
    spatial = alike - alike.mean(2, keepdim=True)
    return spatial if how == "spatial" else spatial + alike.mean()


def correlation_loss(
    features: Float[Tensor, "b n c"],
    others: Float[Tensor, "b m c"],
    codes: Float[Tensor, "b n d"],
    other_codes: Float[Tensor, "b m d"],
    shift: float,
    centre: Centre = "restored",
    clamp: bool = True,
) -> Float[Tensor, ""]:
    """``-mean((F - shift) * max(S, 0))`` (eq. 4): F of features, which get no gradient, S of codes; the paper sums."""
    with torch.no_grad():
        wanted = centred(cosines(features, others), centre) - shift
    found = cosines(codes, other_codes)
    return -(wanted * (found.clamp_min(0) if clamp else found)).mean()


def cluster_loss(codes: Float[Tensor, "*b d"], clusters: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
    """Minibatch k-means of cosines: less the cosine of each code to its nearest cluster, on average."""
    return -(F.normalize(codes, dim=-1) @ F.normalize(clusters, dim=-1).T).amax(-1).mean()


def nearest(means: Float[Tensor, "n c"], k: int) -> Int[Tensor, "n k"]:
    """The k nearest of each by cosine but itself, or as many as there are, nearest first."""
    alike = cosines(means[None], means[None])[0].fill_diagonal_(-torch.inf)
    return alike.topk(min(k, len(means) - 1)).indices


def moved(n: int, rng: torch.Generator) -> Int[Tensor, " n"]:
    """Another one for each of n."""
    order = torch.randperm(n, generator=rng)
    return torch.where(order == torch.arange(n), order + 1, order) % n
