"""Label-efficient segmentation (Baranchuk et al. 2021, arXiv 2112.03126): a denoiser's activations, read by small MLPs.

Activations of several decoder blocks at several steps, made larger to the image, are a long feature of each pixel. An
ensemble of small perceptrons learns classes from the pixels of a few labelled images; each votes for a pixel's class,
and where their distributions disagree (Jensen-Shannon divergence) the result is in doubt.

Defaults: the authors' code after its update of 2022: steps 50, 150, 250, output blocks 5, 6, 7, 8, 12 of their 18, here
those after the same part of the decoder; one noise shared by all images, new ones too; ten perceptrons of hidden widths
128 and 32 (256 and 128 from 30 classes on), Adam at 0.001, batches of 64, an end after 50 batches no better than the
best, counted after four epochs. Classes of fewer than 20 pixels in an image are not learned from.

Unlike the authors' code, which holds the features of all pixels (210 GB for 50 images), activations are kept at their
own resolution in half precision, and features made of a batch's pixels alone; the ten learn side by side; and for a
new image the first layer comes before the interpolation, which it commutes with. Ties of votes go to the class of the
larger mean probability.

Needs: hidden layers of the decoder, one network call a step and image, which stops at the last of them.

Families: all. Transformers have no decoder; there it is what the attention reads after the same part of the depth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.core.settings import Between, Count, Settings, Several, TrainStep, Weight, Whole
from sfumato.core.sites import Layer
from sfumato.errors import SfumatoError, finite, nowhere
from sfumato.io.files import from_json, save_tensors, shared
from sfumato.learning import checkpoint
from sfumato.methods.perceive.dift import joined
from sfumato.ops.correspondence import middles, sampled
from sfumato.reading.reader import Image, Noise, Reader, feature, read
from sfumato.reading.results import Segments

if TYPE_CHECKING:
    from sfumato.core.backbone import Backbone

BLOCKS = 18
"""Output blocks of the authors' network, by which theirs are numbered."""
_AT_ONCE = 2**13  # pixels whose features exist at once


@dataclass(frozen=True)
class LabelEfficient(Settings):
    """Learns classes of pixels from a few labelled images."""

    t: tuple[TrainStep, ...] = (50, 150, 250)
    """The steps, of a thousand, at which images are read (of flows, sigma)."""
    blocks: tuple[Annotated[int, Between(0, BLOCKS - 1)], ...] = (5, 6, 7, 8, 12)
    """Output blocks, numbered as the authors' 18."""
    of: Literal["features", "pixels"] = "features"
    """``pixels``: of colour and place alone, to compare with."""
    members: Count = 10
    """Perceptrons."""
    hidden: tuple[Count, ...] = ()
    """Their two hidden widths [default: 128 and 32; from 30 classes on 256 and 128]."""
    batch: Several = 64
    """Pixels in a batch, of each."""
    rate: Weight = 1e-3
    """Learning rate."""
    patience: Whole = 50
    """They stop after so many batches that were no better than the best one."""
    sure: Whole = 4
    """Epochs before that is counted."""
    epochs: Count = 100
    """At most."""
    pixels: Whole = 0
    """Pixels of each image that are learned from, drawn at random (0: all)."""
    least: Whole = 20
    """Classes of fewer pixels in an image are not learned from it."""
    standard: bool = False
    """Bring features to mean 0 and variance 1 first."""
    seed: Whole = 0
    """Of the shared noise, the perceptrons and the batches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.t or not self.blocks:
            raise SfumatoError("features are of one step t or several and of one block or several; one has none")
        if len(self.hidden) not in (0, 2):
            raise SfumatoError(f"perceptrons have two hidden widths, got {self.hidden}")

    def maps(self, reader: Reader) -> list[Float[Tensor, "_ _ _"]]:
        """An image's activations, each at its own resolution: what features are made of."""
        if self.of == "pixels":
            h, w = reader.size
            y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
            return [torch.cat([2 * reader.pixels.cpu() - 1, torch.stack([x, y])])]
        layers = decoder(reader.model, self.blocks)
        out: list[Tensor] = []
        for t in self.t:
            found = reader.extract(layers, feature, Noise(t, "gaussian", self.seed))
            out += [found[layer] for layer in layers]
        return out

    def features(self, reader: Reader) -> Float[Tensor, "c h w"]:
        """What an image is described by: the maps side by side, for heads that learn of other features alike."""
        return joined(self.maps(reader))

    def fit(
        self,
        model: Backbone,
        images: Sequence[Image],
        labels: Sequence[Int[Tensor, "h w"]],
        names: Sequence[str] = (),
        side: int | None = None,
    ) -> Classifier:
        """Learn from labelled images; a negative label is not learned from. ``side``: as of a ``Reader``."""
        if not images or len(images) != len(labels):
            raise SfumatoError(f"each image has its labels; got {len(images)} images and {len(labels)} labels")
        dice = torch.Generator().manual_seed(self.seed)
        store, where, what = Activations(), [], []
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            with read(model, image, side) as reader:
                if tuple(label.shape) != reader.size:
                    raise SfumatoError(
                        f"labels of {tuple(label.shape)} for an image of {reader.size}; they lie pixel on pixel"
                    )
                store.add(self.maps(reader))
            at, classes = pixels_of(label, self.least, self.pixels, dice)
            where.append(torch.cat([torch.full((len(at), 1), float(number)), at], 1))
            what.append(classes)
        at, truth = torch.cat(where), torch.cat(what)
        if not len(truth):
            raise SfumatoError(f"no class has {self.least} pixels in any of the images, so there is nothing to learn")
        classes = max(int(truth.max()) + 1, len(names))
        hidden = self.hidden or ((128, 32) if classes < 30 else (256, 128))
        mean, scale = store.moments() if self.standard else (torch.zeros(store.width), torch.ones(store.width))
        net = Ensemble.made(self.members, (store.width, *hidden, classes), dice)

        def features(some: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
            return (store.gather(at[some, 0].long(), at[some, 1:]) - mean) / scale

        net = net.trained(features, truth, self, dice).folded(mean, scale)
        return Classifier(self, net, tuple(names), model.name, side)


def decoder(model: Backbone, blocks: Sequence[int]) -> list[Layer]:
    """A network's output blocks after the same part of the decoder as the authors' of these numbers.

    An output block ends with the change of resolution, where there is one.
    """
    ups = [layer for layer in model.layers if layer.kind == "hidden" and layer.stage == "up"]
    if ups:
        ends = [a for a, b in zip(ups, [*ups[1:], None], strict=True) if b is None or "upsamplers" not in b.path]
        places = [round(block / (BLOCKS - 1) * (len(ends) - 1)) for block in blocks]
    else:
        ends = [layer for layer in model.layers if layer.kind == "tokens"]
        if not ends:
            raise SfumatoError(f"{model.name} has neither a decoder's layers nor an attention's tokens to read")
        places = [round((block + 1) / BLOCKS * (len(ends) - 1)) for block in blocks]
    return [ends[place] for place in sorted(set(places))]


def pixels_of(
    labels: Int[Tensor, "h w"], least: int, most: int, dice: torch.Generator
) -> tuple[Float[Tensor, "n 2"], Int[Tensor, " n"]]:
    """Places and classes of the pixels of an image that are learned from."""
    h, w = labels.shape
    flat = labels.flatten().long().cpu()
    counted = flat >= 0
    counts = torch.bincount(flat[counted], minlength=1)
    counted &= counts[flat.clamp_min(0)] >= least
    which = counted.nonzero()[:, 0]
    if 0 < most < len(which):
        which = which[torch.randperm(len(which), generator=dice)[:most]]
    return torch.stack([(which % w + 0.5) / w, (which // w + 0.5) / h], 1), flat[which]


class Activations:
    """Maps of many images at their own resolutions, of which the features of single pixels are made."""

    def __init__(self) -> None:
        self._cells: list[list[Tensor]] = []
        self._grids: list[list[tuple[int, int]]] = []

    def add(self, maps: Sequence[Float[Tensor, "_ _ _"]]) -> None:
        """Those of the next image."""
        if not self._cells:
            self._cells, self._grids = [[] for _ in maps], [[] for _ in maps]
        for cells, grids, map in zip(self._cells, self._grids, maps, strict=True):
            cells.append(map.flatten(1).T.clamp(-65504, 65504).half().cpu())
            grids.append((map.shape[1], map.shape[2]))
        self._joined: list[tuple[Tensor, Tensor, Tensor]] | None = None

    @property
    def width(self) -> int:
        """Of a pixel's feature."""
        return sum(cells[0].shape[1] for cells in self._cells)

    @property
    def bytes(self) -> int:
        """Held."""
        return sum(part.numel() * 2 for cells in self._cells for part in cells)

    def moments(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Mean and standard deviation of each channel over all cells."""
        all_cells = [torch.cat(cells).float() for cells in self._cells]
        return torch.cat([c.mean(0) for c in all_cells]), torch.cat([c.std(0) + 1e-6 for c in all_cells])

    def gather(self, image: Int[Tensor, " n"], at: Float[Tensor, "n 2"]) -> Float[Tensor, "n d"]:
        """The features of places in images: bilinear, beyond the outermost cells' middles as these are."""
        if self._joined is None:
            self._joined = []
            for cells, grids in zip(self._cells, self._grids, strict=True):
                sides = torch.tensor(grids)
                starts = torch.cat([torch.zeros(1, dtype=torch.long), sides.prod(1).cumsum(0)[:-1]])
                self._joined.append((torch.cat(cells), sides, starts))
            self._cells = [list(whole.split(sides.prod(1).tolist())) for whole, sides, _ in self._joined]
        out = []
        for cells, sides, starts in self._joined:
            h, w = sides[image].T
            x = (at[:, 0] * w - 0.5).clamp_min(0).minimum(w - 1)
            y = (at[:, 1] * h - 0.5).clamp_min(0).minimum(h - 1)
            left, top = x.long(), y.long()
            right, low = (left + 1).minimum(w - 1), (top + 1).minimum(h - 1)
            dx, dy = (x - left)[:, None], (y - top)[:, None]
            start = starts[image]
            corner = [cells[start + row * w + column].float() for row in (top, low) for column in (left, right)]
            upper, lower = torch.lerp(corner[0], corner[1], dx), torch.lerp(corner[2], corner[3], dx)
            out.append(torch.lerp(upper, lower, dy))
        return torch.cat(out, 1)


@dataclass(eq=False)
class Ensemble:
    """Perceptrons of three layers side by side: every tensor has the members first."""

    tensors: dict[str, Tensor]
    """weight and bias of layers 0 to 2, and of the normalisations 0 and 1 ``gain``, ``shift``, ``mean``, ``var``."""

    @classmethod
    def made(cls, members: int, widths: Sequence[int], dice: torch.Generator) -> Ensemble:
        """Weights of N(0, 0.02)."""
        out = {}
        for n, (a, b) in enumerate(pairwise(widths)):
            out[f"weight{n}"] = 0.02 * torch.randn(members, a, b, generator=dice)
            out[f"bias{n}"] = torch.zeros(members, 1, b)
            if n < len(widths) - 2:
                for name, fill in (("gain", 1.0), ("shift", 0.0), ("mean", 0.0), ("var", 1.0)):
                    out[f"{name}{n}"] = torch.full((members, 1, b), fill)
        return cls(out)

    def rest(self, first: Float[Tensor, "m n h"], training: bool = False) -> Float[Tensor, "m n classes"]:
        """Logits from what the first layer gives."""
        p, x = self.tensors, first
        for n in range(2):
            x = x.relu()
            flat = x.transpose(0, 1).flatten(1)
            stats = [p[f"{name}{n}"].flatten() for name in ("mean", "var", "gain", "shift")]
            x = F.batch_norm(flat, *stats, training=training).view(-1, len(x), x.shape[2]).transpose(0, 1)
            x = torch.baddbmm(p[f"bias{n + 1}"], x, p[f"weight{n + 1}"])
        return x

    def __call__(self, x: Float[Tensor, "m n d"], training: bool = False) -> Float[Tensor, "m n classes"]:
        """Logits of features, which may differ from member to member."""
        return self.rest(torch.baddbmm(self.tensors["bias0"], x, self.tensors["weight0"]), training)

    def trained(
        self,
        features: Callable[[Int[Tensor, " b"]], Float[Tensor, "b d"]],
        truth: Int[Tensor, " n"],
        how: LabelEfficient,
        dice: torch.Generator,
    ) -> Ensemble:
        """After learning: each member has its own batches, and stops by itself."""
        learned = {k: v.requires_grad_() for k, v in self.tensors.items() if not k.startswith(("mean", "var"))}
        members = len(self.tensors["bias0"])
        optimizer = torch.optim.Adam(learned.values(), lr=how.rate)
        best, waited = torch.full((members,), torch.inf), torch.zeros(members)
        done = torch.zeros(members, dtype=torch.bool)
        kept = {k: v.detach().clone() for k, v in self.tensors.items()}
        batch = min(how.batch, len(truth))
        for epoch in range(how.epochs):
            orders = torch.stack([torch.randperm(len(truth), generator=dice) for _ in range(members)])
            for some in orders.split(batch, 1):
                if some.shape[1] < batch:
                    continue
                x = features(some.flatten()).view(members, batch, -1)
                logits = self(x, training=True)
                losses = (
                    F.cross_entropy(logits.flatten(0, 1), truth[some.flatten()], reduction="none")
                    .view(members, batch)
                    .mean(1)
                )
                optimizer.zero_grad()
                finite(
                    losses, f"epoch {epoch + 1} of {type(how).__name__}: the loss of a perceptron", "take a lower rate"
                )
                losses.sum().backward()
                optimizer.step()
                if epoch < how.sure:
                    continue
                found = losses.detach()
                better = found < best
                best, waited = best.minimum(found), torch.where(better, 0, waited + 1)
                stops = (waited > how.patience) & ~done
                for k, v in self.tensors.items():
                    kept[k][stops] = v.detach()[stops]
                done |= stops
                if done.all():
                    return Ensemble(kept)
        for k, v in self.tensors.items():
            kept[k][~done] = v.detach()[~done]
        return Ensemble(kept)

    def folded(self, mean: Float[Tensor, " d"], scale: Float[Tensor, " d"]) -> Ensemble:
        """The same of features that were not brought to mean 0 and variance 1."""
        weight = self.tensors["weight0"] / scale[:, None]
        return Ensemble(self.tensors | {"weight0": weight, "bias0": self.tensors["bias0"] - mean @ weight[:, None]})

    def of_maps(
        self, maps: Sequence[Float[Tensor, "_ _ _"]], size: tuple[int, int]
    ) -> Float[Tensor, "members classes H W"]:
        """Probabilities of all pixels; the first layer comes before the interpolation."""
        weights = self.tensors["weight0"].split([len(map) for map in maps], 1)
        by_grid: dict[tuple[int, int], Tensor] = {}
        for map, weight in zip(maps, weights, strict=True):
            grid = (map.shape[1], map.shape[2])
            part = torch.einsum("chw,mck->mkhw", map.cpu().float(), weight).flatten(0, 1)
            by_grid[grid] = by_grid[grid] + part if grid in by_grid else part
        out = []
        for at in middles(size).split(_AT_ONCE):
            first = (
                torch.stack([sampled(map, at) for map in by_grid.values()]).sum(0).unflatten(1, (len(weights[0]), -1))
            )
            out.append(self.rest(first.transpose(0, 1) + self.tensors["bias0"]).softmax(2))
        return torch.cat(out, 1).transpose(1, 2).unflatten(2, size)


@dataclass(eq=False)
class Classifier:
    """What was learned, for images read by the same model."""

    method: LabelEfficient
    net: Ensemble
    names: tuple[str, ...]
    model: str
    side: int | None
    """Of what the network saw when it was learned: read images with the same."""

    def probabilities(self, reader: Reader) -> Float[Tensor, "members classes h w"]:
        """What each perceptron says of each pixel."""
        maps, wanted = self.method.maps(reader), self.net.tensors["weight0"].shape[1]
        if sum(len(map) for map in maps) != wanted:
            raise SfumatoError(
                f"this was learned of {self.model}'s features, {wanted} numbers a pixel, and {reader.model.name} has "
                f"{sum(len(map) for map in maps)}; learn again for it"
            )
        with torch.no_grad():
            return self.net.of_maps(maps, reader.size)

    def segments(self, reader: Reader) -> Segments:
        """Shares of the votes, and a little of the mean probability."""
        return Segments(voted(self.probabilities(reader)), reader.size, self.names)

    def uncertainty(self, reader: Reader) -> Float[Tensor, "h w"]:
        """How much the perceptrons disagree about each pixel."""
        return divergence(self.probabilities(reader))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        about = {"method": asdict(self.method), "names": self.names, "model": self.model, "side": self.side}
        save_tensors(path, self.net.tensors, {"sfumato": json.dumps(shared(about))})

    @classmethod
    def load(cls, path: str | Path) -> Classifier:
        """From such a file. Raises ``SfumatoError`` for another."""
        if not Path(path).exists():
            raise nowhere(path)
        try:
            tensors, header = checkpoint.read(path)
            about = from_json(header["sfumato"], dict)
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about["method"].items()}
            return cls(
                LabelEfficient(**fields), Ensemble(tensors), tuple(about["names"]), about["model"], about["side"]
            )
        except (SfumatoError, KeyError, TypeError, ValueError) as e:
            raise SfumatoError(f"{path} is not a classifier that label-efficient has saved") from e


def voted(probabilities: Float[Tensor, "members classes h w"]) -> Float[Tensor, "classes h w"]:
    """Each class's share of the votes; of as many votes, more to the one of the larger mean probability."""
    members, classes = probabilities.shape[:2]
    votes = F.one_hot(probabilities.argmax(1), classes).sum(0).permute(2, 0, 1)
    return (votes + probabilities.mean(0) / 2) / (members + 0.5)


def divergence(probabilities: Float[Tensor, "members classes *at"]) -> Float[Tensor, "*at"]:
    """Jensen-Shannon: the entropy of the mean less the mean of the entropies, in nats."""

    def entropy(p: Float[Tensor, "... classes *at"], dim: int) -> Tensor:
        return -torch.xlogy(p, p).sum(dim)

    return entropy(probabilities.mean(0), 0) - entropy(probabilities, 1).mean(0)


def doubtful(divergence: Float[Tensor, "h w"], part: float = 0.1) -> Bool[Tensor, "h w"]:
    """The pixels of this part of an image that are most in doubt; the authors rank images by their mean there."""
    most = divergence.flatten().topk(max(1, round(part * divergence.numel()))).indices
    return torch.zeros(divergence.numel(), dtype=torch.bool).index_fill(0, most.cpu(), True).view_as(divergence)
