"""Unsupervised keypoints (Hedlin et al. 2023, arXiv 2312.00065): tokens that light up the same place of every image.

Many random tokens are read together, in the place of a prompt; each cell's cross-attention is shared out among them.
For an image, those that are already most like a single spot are taken, furthest apart, and optimised: their maps should
be Gaussians at their own maxima (localisation), and should move as the image does when it is turned, zoomed and shifted
(equivariance). The tokens that are taken most often over all images are the keypoints.

Numbers are the authors', for Stable Diffusion 1.5 and 512 pixels. Maps are large without being interpolated: queries
are recomputed from hidden states on a larger grid. Interpolation and the projection to queries are both linear, so
here the queries themselves are interpolated, which is the same. Differences from the authors' code: in the end tokens
are counted over each image once, there over 100 draws of them; images are encoded once; the first of the
``augmentations`` is the image itself.

No map of all tokens and heads exists at once: probabilities are made for some heads at a time, and again for the
gradient. With the authors' numbers that is 0.54 GB at most beside the network, where all at once they are 2 GB.

Needs: image->text maps; for each of ``steps`` as many forward and backward passes as ``images``, twice; then a pass for
each image, and ``augmentations`` for each image that is asked for its keypoints.

Families: UNets of Stable Diffusion 1, 2 and XL; others have no cross-attention of their own in an upward half.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as remade

from sfumato.core.backbone import Backbone
from sfumato.core.brief import Brief
from sfumato.core.gradients import gradients
from sfumato.core.method import Requires
from sfumato.core.settings import Count, Part, Positive, Settings, Time, Weight, Whole
from sfumato.core.sites import Grid
from sfumato.errors import SfumatoError, finite, first_line
from sfumato.io.files import from_json, save_tensors
from sfumato.learning import checkpoint, seeds
from sfumato.learning.loop import Problem, learn
from sfumato.learning.texts import conditions, drawn, frozen, readers
from sfumato.ops.memory import chunks
from sfumato.ops.warps import affine, inverse
from sfumato.reading.reader import Image, Reader, read

Reads = list[tuple[Float[Tensor, "rows heads d h w"], Float[Tensor, "rows heads tokens d"]]]
"""Queries and keys of each site."""


@dataclass(frozen=True)
class UnsupervisedKeypoints(Settings):
    """Learns keypoints of images that show things of one kind."""

    requires: ClassVar = Requires(words=True)

    keypoints: Count = 10
    """How many."""
    tokens: Count = 500
    """How many random tokens they are found among."""
    steps: Count = 500
    """Of the optimisation (the authors take 10000 for people and 500 for faces)."""
    rate: Positive = 5e-3
    """Of Adam."""
    images: Count = 4
    """In a step."""
    parts: tuple[Part, ...] = (0.25, 0.25, 0.25, 0.5)
    """Where maps are read, in parts of the latents' side: a site of the upward half for each, in order."""
    grid: Count = 128
    """Shorter side of the maps."""
    sigma: Positive = 2 / 128
    """Of the Gaussians, in parts of the shorter side."""
    candidates: Count = 25
    """Tokens whose maps are most like one spot, of which those furthest apart are optimised."""
    localisation: Weight = 100.0
    """Weight of the distance from a Gaussian."""
    equivariance: Weight = 1000.0
    """Weight of the distance from the transformed image's maps."""
    degrees: Weight = 15.0
    """Images are turned by up to so much."""
    zoom: tuple[Positive, Positive] = (0.8, 1.0)
    """Which part of their side is shown, from and to."""
    shift: Part = 0.25
    """They are shifted by up to this part of half their sides."""
    t: Time = 0
    """Training step of the Gaussian noise."""
    augmentations: Count = 10
    """Views of an image that its maps are averaged over when keypoints are located."""
    seed: Whole = 0
    """Of tokens, transformations and noise."""
    batch: Count = 2
    """Images that run at once, each with its transformed view."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.keypoints <= self.candidates <= self.tokens:
            raise SfumatoError(
                f"of {self.tokens} tokens {self.candidates} are candidates for {self.keypoints} keypoints; "
                "each must be at most the one before"
            )
        if self.zoom[0] > self.zoom[1]:
            raise SfumatoError(f"zoom is the least and the greatest part of the side shown, got {self.zoom}")

    def fit(
        self,
        model: Backbone,
        images: Sequence[Image],
        resume: str | Path | None = None,
        every: int = 50,
        side: int | None = None,
    ) -> Keypoints:
        """Learn keypoints of images, all of one shape.

        ``resume`` names a file that holds the state after ``every`` so many steps and when it is interrupted; where it
        is there, it is gone on from, with the result of never having stopped. ``side``: see ``Reader``.
        """
        self.requires.check_model(model, "UnsupervisedKeypoints")
        shown = self._shown(model, images, side)
        readers(model, _cells(model, shown), self.parts, "unsupervised keypoints")
        with torch.no_grad():
            latents = torch.cat([model.encode(image[None].to(model.device)) for image in shown])
        about = json.dumps({**asdict(self), "steps": 0, "model": model.name}).encode() + latents.cpu().numpy().tobytes()
        problem = _Learning(self, model, shown, latents)
        adam = torch.optim.Adam(problem.groups(), self.rate)
        keep = None if resume is None else Path(resume)
        taken = torch.zeros(self.tokens, dtype=torch.long)
        with frozen(model.network):
            learn(problem, adam, steps=self.steps, keep=keep, about=sha256(about).hexdigest(), every=every)
            texts = problem.texts.detach()
            for i in range(len(shown)):
                maps = self.maps(model, texts, latents[i : i + 1], seeds.generator(self.seed, -1, i))[0]
                taken[self.chosen(maps, maps)] += 1
        order = taken.sort(descending=True, stable=True).indices[: self.keypoints]
        return Keypoints(texts[0].cpu(), tuple(order.tolist()), self)

    def gradient(
        self, model: Backbone, texts: Tensor, shown: Tensor, latents: Tensor, step: int
    ) -> Float[Tensor, "1 tokens d"]:
        """Of a step's images. What is drawn depends on the seed and the step's number only."""
        rng = seeds.generator(self.seed, step)
        picked = torch.randperm(len(shown), generator=rng).repeat(self.images)[: self.images]
        moves = [self.transformation(rng, shown.shape[-2:]) for _ in picked]
        noise = torch.randn(2, self.images, *latents.shape[1:], generator=rng)
        total = torch.zeros_like(texts)
        for at in range(0, self.images, self.batch):
            some = slice(at, at + self.batch)
            views = torch.cat([affine(shown[i : i + 1], m) for i, m in zip(picked[some], moves[some], strict=True)])
            with torch.no_grad():
                x = torch.cat([latents[picked[some]], model.encode(views.to(model.device))])
            asked = texts.clone().requires_grad_()
            with torch.enable_grad():
                reads = self.reads(model, asked, x, noise[:, some].flatten(0, 1))
                pairs = [[(q[j :: len(views)], k[j :: len(views)]) for q, k in reads] for j in range(len(views))]
                losses = [self.loss(pair, move.to(x)) for pair, move in zip(pairs, moves[some], strict=True)]
                total += gradients(model, torch.stack(losses).sum() / self.images, (asked,))[0]
        return total

    def loss(self, reads: Reads, theta: Float[Tensor, "2 3"]) -> Float[Tensor, ""]:
        """Of an image and its transformed view, the two rows of ``reads``."""
        with torch.no_grad():
            both = shared_out(reads, self._size(reads))
            chosen = self.chosen(*both)
        still, moved = shared_out(reads, self._size(reads), chosen)
        goal = spots(still.detach(), self.sigma)
        back = affine(moved[None], inverse(theta))[0]
        return self.localisation * F.mse_loss(still, goal) + self.equivariance * F.mse_loss(back, still)

    def chosen(self, maps: Float[Tensor, "tokens h w"], moved: Float[Tensor, "tokens h w"]) -> Int[Tensor, " k"]:
        """The tokens of an image: of those most like one spot, those furthest apart in the transformed view."""
        like = unlikeness(maps, self.sigma).argsort(stable=True)[: self.candidates]
        return like[furthest(peaks(moved[like]), self.keypoints)]

    def transformation(self, rng: torch.Generator, size: Sequence[int]) -> Float[Tensor, "2 3"]:
        """Where a turned, zoomed and shifted view is taken from, in coordinates from -1 to 1."""
        turn, zoom, x, y = torch.rand(4, generator=rng).tolist()
        angle = math.radians(self.degrees * (2 * turn - 1))
        scale = self.zoom[0] + zoom * (self.zoom[1] - self.zoom[0])
        c, s, (h, w) = scale * math.cos(angle), scale * math.sin(angle), size
        shift = [self.shift * (2 * v - 1) for v in (x, y)]
        return torch.tensor([[c, s * h / w, shift[0]], [-s * w / h, c, shift[1]]])

    def reads(self, model: Backbone, texts: Tensor, latents: Tensor, noise: Tensor) -> Reads:
        """Queries and keys of these latents with noise; the network ends at the last site."""
        level, grid = model.schedule.thousandths(self.t), (latents.shape[-2], latents.shape[-1])
        sites = readers(model, grid, self.parts, "unsupervised keypoints")
        cond = conditions(model, texts.expand(len(latents), -1, -1))

        def both(call: Any) -> Tensor:
            (name,) = call.rows.names
            scale = call.get("q", name).shape[-1] ** -0.5
            return torch.cat([call.get("q", name).float() * scale, call.get("k", name).float()], 2)

        found = model.maps(level.alpha * latents + level.sigma * noise.to(latents), level.t, cond, sites, both)
        cells = {site: math.prod(site.grid(grid)) for site in sites}
        return [
            (v[:, :, : cells[s]].transpose(2, 3).unflatten(3, s.grid(grid)), v[:, :, cells[s] :])
            for s, v in found.items()
        ]

    @torch.no_grad()
    def maps(
        self, model: Backbone, texts: Tensor, latents: Tensor, rng: torch.Generator, chosen: Tensor | None = None
    ) -> Float[Tensor, "rows tokens h w"]:
        """Of all tokens, or of some."""
        reads = self.reads(model, texts, latents, torch.randn(latents.shape, generator=rng))
        return shared_out(reads, self._size(reads), chosen)

    def _size(self, reads: Reads) -> Grid:
        h, w = max((q.shape[-2:] for q, _ in reads), key=lambda size: size[0])
        return round(self.grid * h / min(h, w)), round(self.grid * w / min(h, w))

    def _shown(self, model: Backbone, images: Sequence[Image], side: int | None) -> Float[Tensor, "n 3 h w"]:
        opened = [read(model, image, side) for image in images]
        shapes = {reader.seen for reader in opened}
        if not opened or len(shapes) > 1:
            sizes = ", ".join(f"{w} x {h}" for h, w in sorted(shapes)) or "none"
            raise SfumatoError(f"keypoints are learned of images of one shape, got {sizes}; crop them alike")
        return torch.stack([reader.shown for reader in opened])


@dataclass(frozen=True)
class Keypoints(Brief):
    """Tokens that have been learned: which place of an image each lights up."""

    texts: Float[Tensor, "tokens d"]
    """All tokens, which share each cell's attention."""
    chosen: tuple[int, ...]
    """The keypoints among them."""
    method: UnsupervisedKeypoints

    def maps(self, reader: Reader) -> Float[Tensor, "k h w"]:
        """Of each keypoint, averaged over views of the image, at the size that the network sees."""
        method, model, rng = self.method, reader.model, seeds.generator(self.method.seed, -2)
        views = [method.transformation(rng, reader.seen) for _ in range(method.augmentations - 1)]
        total, seen = torch.zeros(1), torch.zeros(1)
        chosen, texts = torch.tensor(self.chosen), self.texts[None].to(model.device)
        moves = [torch.eye(2, 3), *views]
        for at in range(0, len(moves), 2 * method.batch):
            some = moves[at : at + 2 * method.batch]
            with torch.no_grad():
                latents = model.encode(torch.cat([affine(reader.shown[None], m) for m in some]).to(model.device))
            for maps, move in zip(method.maps(model, texts, latents, rng, chosen).cpu(), some, strict=True):
                total = total + affine(maps[None], inverse(move))[0]
                seen = seen + affine(torch.ones_like(maps[None, :1]), inverse(move))[0]
        finite(total, "where keypoints light up", model.remedy)
        return F.interpolate((total / seen.clamp_min(1e-6))[None], reader.seen, mode="bilinear")[0]

    def locate(self, reader: Reader) -> Float[Tensor, "k 2"]:
        """Each keypoint as (x, y) in the image's pixels, centres at halves."""
        return peaks(self.maps(reader)) * torch.tensor([reader.size[1], reader.size[0]])

    def save(self, path: str | Path) -> None:
        """Write them as safetensors."""
        about = {"chosen": json.dumps(self.chosen), "method": json.dumps(asdict(self.method))}
        save_tensors(path, {"texts": self.texts}, about)

    @classmethod
    def load(cls, path: str | Path) -> Keypoints:
        """Read what ``save`` has written. Raises ``SfumatoError`` for any other file."""
        tensors, about = checkpoint.read(path)
        if "texts" not in tensors or not {"chosen", "method"} <= set(about):
            raise SfumatoError(f"{path} holds no keypoints; sfumato keypoints learns some and keeps them")
        try:
            named: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in from_json(about["method"], dict).items()
            }
            return cls(tensors["texts"], tuple(from_json(about["chosen"], list)), UnsupervisedKeypoints(**named))
        except (ValueError, TypeError, LookupError) as e:
            raise SfumatoError(f"the keypoints {path} are damaged ({first_line(e)}); learn them anew") from e


class _Learning(Problem):
    """The tokens, as the run's problem."""

    name, doing = "unsupervised keypoints", "learning keypoints"

    def __init__(self, method: UnsupervisedKeypoints, model: Backbone, shown: Tensor, latents: Tensor) -> None:
        self.method, self.given = method, (shown, latents)
        self.model, self.texts = model, nn.Parameter(drawn(model, 1, method.tokens, method.seed))
        self.modules = {"texts": nn.ParameterDict({"value": self.texts})}

    def loss(self, step: int) -> Tensor:
        """It has the gradient that was found, some images at a time."""
        gradient = self.method.gradient(self.model, self.texts.detach(), *self.given, step)
        return (self.texts * gradient).sum()


def _cells(model: Backbone, shown: Tensor) -> Grid:
    return shown.shape[-2] // model.factor, shown.shape[-1] // model.factor


def shared_out(reads: Reads, size: Grid, chosen: Int[Tensor, " k"] | None = None) -> Float[Tensor, "rows k h w"]:
    """How each place's attention is shared out among the tokens, averaged over heads and sites.

    Queries are interpolated to ``size``. Some heads at a time, whose probabilities are made again for a gradient.
    """

    def some(q: Tensor, k: Tensor) -> Float[Tensor, "k places"]:
        large = F.interpolate(q, size, mode="bicubic", align_corners=False).flatten(2)
        logits = large.transpose(1, 2) @ k.transpose(1, 2)
        if chosen is None:
            return logits.softmax(-1).sum(0).T
        return (logits[..., chosen] - logits.logsumexp(-1, keepdim=True)).exp().sum(0).T

    rows = []
    for row in range(len(reads[0][0])):
        total: Any = 0
        for q, k in reads:
            each = math.prod(size) * k.shape[2]
            for part in zip(chunks(q[row], each), chunks(k[row], each), strict=True):
                made = remade(some, *part, use_reentrant=False) if q.requires_grad else some(*part)
                total = total + made / (q.shape[1] * len(reads))
        rows.append(total.unflatten(1, size))
    return torch.stack(rows)


def peaks(maps: Float[Tensor, "k h w"]) -> Float[Tensor, "k 2"]:
    """Where maps are greatest, as (x, y) in parts of the sides."""
    w, at = maps.shape[2], maps.flatten(1).argmax(1)
    return torch.stack([(at % w + 0.5) / w, (at // w + 0.5) / maps.shape[1]], -1)


def spots(maps: Float[Tensor, "k h w"], sigma: float) -> Float[Tensor, "k h w"]:
    """Gaussians of height 1 where maps are greatest; ``sigma`` in parts of the shorter side."""
    h, w = maps.shape[1:]
    at, short = peaks(maps) * torch.tensor([w, h]).to(maps), min(h, w)
    x, y = (torch.arange(n).to(maps) + 0.5 for n in (w, h))
    across = (-0.5 * ((x - at[:, :1]) / (sigma * short)).square()).exp()
    down = (-0.5 * ((y - at[:, 1:]) / (sigma * short)).square()).exp()
    return down[:, :, None] * across[:, None, :]


def unlikeness(maps: Float[Tensor, "k h w"], sigma: float) -> Float[Tensor, " k"]:
    """The Kullback-Leibler divergence of each map, softmaxed over places, from the Gaussian at its own maximum."""
    goal = spots(maps, sigma).flatten(1) + 1e-5
    goal = goal / goal.sum(1, keepdim=True)
    return (goal * (goal.log() - maps.flatten(1).log_softmax(1))).sum(1)


def furthest(points: Float[Tensor, "n 2"], k: int) -> Int[Tensor, " k"]:
    """``k`` of the points: the two furthest apart, then always the one furthest from those taken."""
    apart = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    taken = [int(apart.argmax()) // len(points), int(apart.argmax()) % len(points)]
    if k == 1 or taken[0] == taken[1]:  # all in one place
        return torch.arange(k).to(points.device)
    away = apart[taken].amin(0)
    while len(taken) < k:
        away[taken] = -1
        taken.append(int(away.argmax()))
        away = torch.minimum(away, apart[taken[-1]])
    return torch.tensor(taken).to(points.device)


def regressor(
    found: Float[Tensor, "n k 2"],
    truth: Float[Tensor, "n m 2"],
    visible: Bool[Tensor, "n m"] | None = None,
    ridge: float = 0.0,
) -> Float[Tensor, "2k 2m"]:
    """Weights that tell annotated keypoints from found ones, both in parts of the sides: linear, without a bias.

    Each annotated keypoint is fitted on the images that show it; where they are few, with ``ridge`` on the weights.
    """
    x, y = (points.double().flatten(1) - 0.5 for points in (found, truth))
    shown = torch.ones(truth.shape[:2], dtype=torch.bool) if visible is None else visible
    columns = []
    for j in range(y.shape[1]):
        a, b = x[shown[:, j // 2]], y[shown[:, j // 2], j]
        columns.append(torch.linalg.pinv(a.T @ a + ridge * torch.eye(x.shape[1]).double()) @ (a.T @ b))
    return torch.stack(columns, 1).float()


def regressed(found: Float[Tensor, "n k 2"], weights: Float[Tensor, "2k 2m"]) -> Float[Tensor, "n m 2"]:
    """Annotated keypoints as a regressor tells them."""
    return ((found.flatten(1) - 0.5) @ weights + 0.5).unflatten(1, (-1, 2))
