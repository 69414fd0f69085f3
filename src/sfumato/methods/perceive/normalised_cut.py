"""Normalised cut (DiffCut, Couairon et al. 2024, arXiv 2406.02842; Shi and Malik 2000): a graph of features is cut in
two until no cut is cheap.

The output of the encoder's last self-attention tells for each cell what is there. Cells are as near as the cosine of
their features, brought to [0, 1] and raised to a power; the second eigenvector of that graph's Laplacian is cut at the
best of a hundred values, and each part again, as long as the cut costs less than ``tau``. At the end each pixel goes to
the segment whose mean feature is most like its own, on a finer grid.

Defaults: the paper and its code (Gaussian noise at t = 50, power 10, tau 0.5, 128 cells a side at the end), which read
SSD-1B at 1024 pixels, where that self-attention has 32 x 32 cells. There the module's output is read, here what its
heads give, before its last linear map; there the segments' means are compared as they are, here by the cosine; their
refinement by PAMR is left to ``graph_cut``. Tau is on both sides' cuts together, 0 to 2.

Needs: one self-attention's output, the network's call stops there (on UNets half of it); eigenvectors of cells x cells.

Families: all. In transformers, which have no encoder, it is the self-attention at half of the depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.settings import Between, Count, Part, Positive, Settings, Several, Time, Whole
from sfumato.core.sites import Site
from sfumato.errors import SfumatoError
from sfumato.ops.regions import spectral
from sfumato.reading.reader import Noise, Reader, chosen
from sfumato.reading.results import Segments


@dataclass(frozen=True)
class NormalisedCut(Settings):
    """Segments by recursive cuts of the graph of what the cells' features have in common."""

    tau: Annotated[float, Between(0, 2, above=True)] = 0.5
    """A cut that costs more is not made; more makes more segments."""
    power: Positive = 10.0
    """Of the affinities: more makes only what is very alike belong together."""
    values: Several = 100
    """At which a cut is tried."""
    clusters: Count | None = None
    """So many segments instead, by spectral clustering, where their number is known."""
    t: Time = 50
    """The step whose noise the image gets, of a thousand."""
    seed: Whole = 0
    """Of the noise."""
    side: Count = 128
    """Shorter side of the grid on which pixels are given to segments."""
    stage: str | None = None
    """Which stage's self-attentions are meant, in UNets down, mid or up [default: the encoder's]."""
    least: Part = 0.0
    """Only those of at least this part of the latents' side."""
    which: int = -1
    """Which one of them is read: the last, or counted from 0."""

    def __call__(self, reader: Reader) -> Segments:
        site = self._site(chosen(reader, "image->image", self.stage, self.least, "normalised cut"))
        features = F.normalize(reader.extract([site], heads, Noise(self.t, seed=self.seed))[site], dim=0)
        flat = features.flatten(1).T
        graph = affinity(flat, self.power)
        if self.clusters is None:
            labels = recursive_cut(graph, self.tau, self.values)
        else:
            labels = spectral(graph, min(self.clusters, len(graph)), self.seed)
        inside = F.one_hot(labels.to(flat.device).unique(return_inverse=True)[1]).to(flat)
        means = F.normalize(inside.T @ flat, dim=1)
        scale = self.side / min(features.shape[1:])
        size = [max(n, round(n * scale)) for n in features.shape[1:]]
        fine = F.normalize(F.interpolate(features[None], size, mode="bilinear", align_corners=False)[0], dim=0)
        alike = torch.einsum("kc,chw->khw", means, fine).clamp_min(0)
        return Segments(alike**self.power, reader.size).used

    def _site(self, sites: Sequence[Site]) -> Site:
        """Of the encoder unless a stage is given; of what has none, of the first half."""
        if self.stage is None:
            sites = [site for site in sites if site.stage == "down"] or sites[: (len(sites) + 1) // 2]
        if not -len(sites) <= self.which < len(sites):
            raise SfumatoError(f"there are {len(sites)} self-attentions to choose from, and no number {self.which}")
        return sites[self.which]


def heads(call: Call) -> Float[Tensor, "rows c h w"]:
    """What an attention's heads give to the image, side by side."""
    (name,) = call.rows.names
    return call.get("out", name, "image").float().transpose(2, 3).flatten(1, 2).unflatten(2, call.grid)


def affinity(features: Float[Tensor, "n c"], power: float) -> Float[Tensor, "n n"]:
    """How near each is to each, from 0 to 1, of features of unit length; all alike is 1 everywhere."""
    cosine = features @ features.T
    low, high = cosine.amin(), cosine.amax()
    if high - low < 1e-5:
        return torch.ones_like(cosine)
    return ((cosine - low) / (high - low)) ** power


def recursive_cut(graph: Float[Tensor, "n n"], tau: float, values: int = 100) -> Int[Tensor, " n"]:
    """Labels of the parts that no cut cheaper than ``tau`` parts any further."""
    graph = (graph + graph.T).double().cpu() / 2
    labels = torch.zeros(len(graph), dtype=torch.long)
    waiting, count = [torch.arange(len(graph))], 0
    while waiting:
        nodes = waiting.pop()
        inside, cost = bisected(graph[nodes][:, nodes], values) if len(nodes) > 1 else (None, tau)
        if inside is not None and cost < tau:
            waiting += [nodes[inside], nodes[~inside]]
        else:
            labels[nodes] = count
            count += 1
    return labels


def bisected(graph: Float[Tensor, "n n"], values: int = 100) -> tuple[Tensor, float]:
    """The best cut in two along the second eigenvector, and what it costs (Shi and Malik 2000, eq. 2)."""
    from scipy.linalg import eigh

    degrees = graph.sum(1).clamp_min(1e-12)
    root = degrees.rsqrt()
    laplacian = torch.eye(len(graph)).to(graph) - root[:, None] * graph * root
    second = torch.from_numpy(eigh(laplacian.numpy(), subset_by_index=(1, 1))[1][:, 0]) * root
    second = second * second[second.abs().argmax()].sign()  # an eigenvector's sign is arbitrary
    levels = 0.99 * torch.linspace(float(second.min()), float(second.max()), values).to(second)
    inside = (second > levels[:, None]).to(graph)
    total, own = degrees.sum(), inside @ degrees
    cut = own - ((inside @ graph) * inside).sum(1)
    costs = torch.where((own > 0) & (own < total), cut / own + cut / (total - own), torch.inf)
    best = int(costs.argmin())
    return inside[best].bool(), float(costs[best])
