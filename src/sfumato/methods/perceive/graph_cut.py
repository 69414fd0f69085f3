"""Graph cut (Boykov and Jolly 2001; Boykov, Veksler and Zabih 2001): segments whose borders lie where the image has
edges.

A labelling costs what each pixel pays for its label, and what neighbours pay for having different ones, which is less
where their colours differ: E = sum_i psi_i(y_i) + sum_ij lambda exp(-|I_i - I_j|^2 / (2 sigma^2)) [y_i != y_j].
Agreement is what is cheap. Two labels (Ising) are the least cut of one graph, which is exact; more (Potts) are found by
alpha-expansion: each label in turn may take from all others what pays, by one cut, until none does. The energy never
rises, and ends within twice the least.

What a pixel pays is -log of the segments' scores made a distribution, -log of a Gaussian of each segment's colours (its
normalisation included, without which the widest segment takes all), of features, or a weighted sum of these. Colours'
and features' Gaussians are those of the segments as they come.

Needs: no network, unless features are given. The cut is made at ``side`` pixels at most, as seconds grow faster than
pixels, and its labels brought to the image's size: about 15 ms a cut of 128 x 128, as many cuts as labels in two to
four rounds.

Families: any; the network is not asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.core.settings import Count, Positive, Settings, Weight
from sfumato.errors import SfumatoError
from sfumato.reading.reader import resized
from sfumato.reading.results import Segments

_MOST = 2**31 - 1  # scipy's flows are of 32 bits


@dataclass(frozen=True)
class GraphCut(Settings):
    """Moves the borders of segments to the image's edges, and takes back what is scattered."""

    smooth: Weight = 1.0
    """Lambda: what a border costs for each pair of like neighbours; 0 leaves each pixel alone."""
    sigma: Positive = 0.1
    """How far colours in [0, 1] may lie apart before a border between them is cheap."""
    scores: Weight = 1.0
    """Weight of what the segments' scores say."""
    colours: Weight = 0.0
    """Weight of what the segments' colours say (eq. 5.6)."""
    features: Weight = 0.0
    """Weight of what the segments' features say, where they are given."""
    neighbours: Literal[4, 8] = 4
    """Of each pixel; 8 with the diagonal ones, which count by the inverse of their distance."""
    side: Count = 128
    """The cut is made with the image's shorter side at most this long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores + self.colours + self.features == 0:
            raise SfumatoError("a cut weighs scores, colours or features, and the weights of all three are 0")

    def refine(
        self, segments: Segments, image: Float[Tensor, "3 H W"], features: Float[Tensor, "c h w"] | None = None
    ) -> Segments:
        """These segments with better borders, under the same numbers: scores are 1 where a segment is, else 0."""
        if tuple(image.shape[-2:]) != segments.size:
            raise SfumatoError(
                f"segments of an image of {segments.size[1]} x {segments.size[0]} pixels do not fit one of "
                f"{image.shape[-1]} x {image.shape[-2]}"
            )
        if self.features and features is None:
            raise SfumatoError("the cut is to weigh features (features=...), and none are given")
        scale = min(1.0, self.side / min(segments.size))
        size = (max(1, round(segments.size[0] * scale)), max(1, round(segments.size[1] * scale)))
        small = image if size == segments.size else resized(image[None], size)[0].clamp(0, 1)
        scores = F.interpolate(segments.scores[None].float(), size, mode="bilinear", align_corners=False)[0]
        costs = self.scores * of_scores(scores)
        labels = scores.argmax(0)
        if self.colours:
            costs = costs + self.colours * gaussian(small, labels, len(scores))
        if self.features and features is not None:
            fitted = F.interpolate(features[None].float(), size, mode="bilinear", align_corners=False)[0]
            costs = costs + self.features * gaussian(fitted, labels, len(scores))
        found = potts(costs, *borders(small, self.smooth, self.sigma, self.neighbours))
        one_hot = F.one_hot(found, len(scores)).permute(2, 0, 1).to(scores)
        return replace(segments, scores=one_hot)


def of_scores(scores: Float[Tensor, "k h w"]) -> Float[Tensor, "k h w"]:
    """What each label costs by its share of a pixel's scores. Raises ``SfumatoError`` for scores below zero."""
    if scores.amin() < 0:
        raise SfumatoError("scores below zero are no shares; give a graph cut segments whose scores are at least 0")
    return -(scores / scores.sum(0).clamp_min(1e-12)).clamp_min(1e-6).log()


def gaussian(values: Float[Tensor, "c h w"], labels: Int[Tensor, "h w"], k: int) -> Float[Tensor, "k h w"]:
    """-log of each label's Gaussian at each pixel, its channels apart, averaged over the channels (eq. 5.6).

    A label without pixels costs what the dearest does.
    """
    inside = F.one_hot(labels, k).permute(2, 0, 1).to(values)
    count = inside.sum((1, 2)).clamp_min(1)[:, None]
    mean = torch.einsum("khw,chw->kc", inside, values) / count
    square = torch.einsum("khw,chw->kc", inside, values.square()) / count
    spread = values.flatten(1).std(1, correction=0)
    variance = (square - mean.square()).clamp_min(1e-6).maximum((0.05 * spread).square())[..., None, None]
    costs = ((values - mean[..., None, None]).square() / variance + variance.log()).mean(1) / 2
    empty = inside.sum((1, 2)) == 0
    return torch.where(empty[:, None, None], costs.amax(), costs)


Pairs = tuple[Int[Tensor, "m 2"], Float[Tensor, " m"]]


def borders(image: Float[Tensor, "c h w"], smooth: float, sigma: float, neighbours: Literal[4, 8] = 4) -> Pairs:
    """Pairs of neighbours, as numbers of pixels row by row, and what a border between them costs (eq. 5.11)."""
    h, w = image.shape[-2:]
    number = torch.arange(h * w).view(h, w)
    ways = [(number[:, :-1], number[:, 1:], 1.0), (number[:-1], number[1:], 1.0)]
    if neighbours == 8:
        ways += [(number[:-1, :-1], number[1:, 1:], 2**0.5), (number[:-1, 1:], number[1:, :-1], 2**0.5)]
    pairs = torch.cat([torch.stack([a.flatten(), b.flatten()], 1) for a, b, _ in ways])
    apart = torch.cat([torch.full((a.numel(),), d) for a, _, d in ways])
    flat = image.flatten(1).cpu()
    far = (flat[:, pairs[:, 0]] - flat[:, pairs[:, 1]]).square().sum(0)
    return pairs, smooth * (-far / (2 * sigma**2)).exp() / apart


def energy(costs: Float[Tensor, "k h w"], pairs: Tensor, weights: Tensor, labels: Int[Tensor, "h w"]) -> float:
    """What a labelling costs."""
    own = costs.gather(0, labels[None]).double().sum()
    flat = labels.flatten()
    return float(own + (weights.double() * (flat[pairs[:, 0]] != flat[pairs[:, 1]])).sum())


def ising(costs: Float[Tensor, "2 h w"], pairs: Tensor, weights: Tensor) -> Int[Tensor, "h w"]:
    """The cheapest of all labellings with two labels: the least cut of one graph."""
    found = least_cut(costs.flatten(1), pairs, weights, weights)
    return found.view(costs.shape[1:]).long()


def potts(costs: Float[Tensor, "k h w"], pairs: Tensor, weights: Tensor, rounds: int = 10) -> Int[Tensor, "h w"]:
    """A labelling that no label can better by taking pixels, at most twice as dear as the cheapest.

    It begins with each pixel's own cheapest label; ``rounds`` are the most, of all labels in turn.
    """
    costs = costs.cpu()
    if len(costs) == 2:
        return ising(costs, pairs, weights)
    labels = costs.argmin(0)
    least = energy(costs, pairs, weights, labels)
    since = 0  # expansions that bettered nothing
    for turn in range(rounds * len(costs)):
        if since == len(costs):
            break
        found = expanded(costs, pairs, weights, labels, turn % len(costs))
        now = energy(costs, pairs, weights, found)
        better = now < least - 1e-9
        labels, least, since = (found, now, 0) if better else (labels, least, since + 1)
    return labels


def expanded(
    costs: Float[Tensor, "k h w"], pairs: Tensor, weights: Tensor, labels: Int[Tensor, "h w"], to: int
) -> Int[Tensor, "h w"]:
    """The cheapest labelling in which each pixel keeps its label or takes ``to`` (Boykov et al. 2001).

    Of a pair with labels a, b the four outcomes cost w [a != b], w [a != to], w [to != b] and 0. That is a part of
    each pixel's own and w ([a != to] + [to != b] - [a != b]) for a pair of which only the second takes ``to``.
    """
    flat = labels.flatten()
    a, b = flat[pairs[:, 0]], flat[pairs[:, 1]]
    keep, second, first = (weights * (x != y) for x, y in ((a, b), (a, torch.tensor(to)), (torch.tensor(to), b)))
    own = torch.stack([costs.flatten(1).gather(0, flat[None])[0], costs[to].flatten()]).double()
    own[1].index_add_(0, pairs[:, 0], (first - keep).double())
    own[1].index_add_(0, pairs[:, 1], -first.double())
    takes = least_cut(own, pairs, torch.zeros_like(weights), second + first - keep)
    return torch.where(takes.view(labels.shape), to, labels)


def least_cut(
    costs: Float[Tensor, "2 n"], pairs: Int[Tensor, "m 2"], first: Float[Tensor, " m"], second: Float[Tensor, " m"]
) -> Bool[Tensor, " n"]:
    """Which nodes take 1 in the cheapest choice of 0 and 1: ``costs`` of each, of a pair that differs by who has the 1.

    A maximal flow with capacities in whole numbers (scipy's Dinic), as fine as 32 bits allow. What both choices of a
    node cost is taken off first.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    n = costs.shape[1]
    own = (costs.double() - costs.double().amin(0)).cpu().numpy()
    pair, ends = np.concatenate([first.cpu().numpy(), second.cpu().numpy()]), pairs.cpu().numpy()
    scale = min(1e6, 0.25 * _MOST / max(own.sum(), pair.max(initial=0), 1e-12))
    source, sink, nodes = n, n + 1, np.arange(n)
    # the source's side takes 1: it cuts node -> sink, which costs what 1 does; a pair's edge leaves the one with the 1
    tails = np.concatenate([nodes, np.full(n, source), ends[:, 0], ends[:, 1]])
    heads = np.concatenate([np.full(n, sink), nodes, ends[:, 1], ends[:, 0]])
    capacity = np.rint(scale * np.concatenate([own[1], own[0], pair])).astype(np.int32)
    graph = csr_array((capacity, (tails, heads)), shape=(n + 2, n + 2))
    left = graph - maximum_flow(graph, source, sink, method="dinic").flow
    left.eliminate_zeros()
    reached = breadth_first_order(left, source, return_predecessors=False)
    out = torch.zeros(n + 2, dtype=torch.bool)
    out[torch.from_numpy(reached).long()] = True
    return out[:n]
