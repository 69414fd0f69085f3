"""Diffusion features (DIFT, Tang et al. 2023, arXiv 2306.03881): what corresponds has like features in a denoiser.

Noise is added to an image, a pretrained network reads it at one step, and the output of one of its decoder's blocks is
taken as a feature map, averaged over several noises. A point of one image corresponds to the place of another whose
feature has the largest cosine with its own (eq. 1), features being made larger bilinearly to the images' pixels.

Defaults: the paper's for Stable Diffusion 2.1 and semantic correspondence: t 261, up block 1, 8 noises. The benchmark
there told the network "a photo of a {category}", which is a weak label; the demo nothing, which is the default here.
``HPATCHES`` (geometric) and ``DAVIS`` (video labels) are the authors' other settings. Their ADM (t 101, output block 4)
is a network of another kind, which is not loaded here. Several layers and ``standard`` are not theirs.

Unlike the authors' code, an image is encoded once and as the encoder's mean, not as eight samples; the network stops
after the block; and no features are made larger, which all pixels are compared with as if they were (``refine="local"``
compares those around the best cell alone, and finds another place for one point in seven). ``seed`` gives both images
the same noises.

Needs: the output of one or several up blocks; a part of a network call for each noise.

Families: all. Transformers have no blocks; there it is what the attention reads after the same part of the depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.settings import Count, Positive, Settings, TrainStep, Weight, Whole
from sfumato.core.sites import Layer
from sfumato.errors import SfumatoError, unknown
from sfumato.ops.correspondence import (
    Refine,
    cosines,
    flow,
    matches,
    returned,
    sampled,
    soft_argmax,
    spread,
    transferred,
)
from sfumato.reading.reader import Noise, Reader, up_block
from sfumato.reading.results import Matches, Segments


@dataclass(frozen=True)
class DIFT(Settings):
    """Matches points by the cosine of features."""

    t: TrainStep = 261
    """The step, of a thousand, at which the images are read (of flows, sigma); late steps of much noise see meaning."""
    blocks: tuple[Whole, ...] = (1,)
    """Up blocks, from 0; of several the features, each of length one, side by side at the finest's resolution."""
    layers: tuple[str, ...] = ()
    """Hidden layers by their paths in place of blocks, such as "down_blocks.1.attentions.1"."""
    standard: bool = False
    """Bring each channel to mean 0 and variance 1 over the two images first, so that none outweighs the others."""
    ensemble: Count = 8
    """Noises that are averaged over."""
    prompt: str = ""
    """What the network is told of both images, such as "a photo of a duck"."""
    seed: Whole = 0
    """Of the noises."""
    refine: Refine = "image"
    """``image``: the best of all pixels, as published; ``local``: of those near the best cell; ``none``: its middle."""
    temperature: Positive | None = None
    """Mean place under a softmax of cosines over this, instead of the best one."""
    topk: Whole = 0
    """Of so many cells alone (0: of all)."""
    cycle: Weight | None = None
    """How far from its point a match may be matched back to be sure, in parts of the image's longer side."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blocks:
            raise SfumatoError("features are of one block or several (blocks), such as 1")

    def features(self, reader: Reader) -> Float[Tensor, "c h w"]:
        """What an image is described by."""
        return joined(self.maps(reader))

    def maps(self, reader: Reader) -> list[Float[Tensor, "_ _ _"]]:
        """The layers' activations, averaged over the noises."""
        noise = Noise(self.t, "gaussian", self.seed, self.ensemble)
        return list(reader.features(self.layers_of(reader.model), noise, self.prompt).values())

    def layers_of(self, model: Backbone) -> list[Layer]:
        """Which of a model are read. ``SfumatoError`` for what it does not have."""
        if self.layers:
            layers = [layer for layer in model.layers if layer.kind == "hidden" and layer.path in self.layers]
            if len(layers) < len(set(self.layers)):
                known = [layer.path for layer in model.layers if layer.kind == "hidden"]
                missing = next(path for path in self.layers if path not in known)
                raise unknown(f"hidden layer of {model.name}", missing, known or ["none at all"])
            return layers
        return list(dict.fromkeys(up_block(model, block) for block in self.blocks))

    def both(self, source: Reader, target: Reader) -> tuple[Float[Tensor, "c h w"], Float[Tensor, "c hb wb"]]:
        """What is compared, of two images."""
        a, b = self.maps(source), self.maps(target)
        if self.standard:
            pairs = [standardised(*pair) for pair in zip(a, b, strict=True)]
            a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        return joined(a), joined(b)

    def __call__(self, source: Reader, target: Reader, points: Float[Tensor, "n 2"]) -> Matches:
        at = source.inside(points)
        a, b = self.both(source, target)
        return self.matches(source, target, at.to(a.device), a, b)

    def matches(
        self, source: Reader, target: Reader, at: Float[Tensor, "n 2"], a: Float[Tensor, "c h w"], b: Tensor
    ) -> Matches:
        """Of places of the source, by two feature maps."""
        found, scores = self.find(a, at, b, target.size)
        sure = torch.ones(len(at), dtype=torch.bool)
        if self.cycle is not None:
            sure = returned(self.find(b, found, a, source.size)[0], at, source.size, self.cycle)
        sides = [torch.tensor([w, h], dtype=torch.float32) for h, w in (source.size, target.size)]
        return Matches(at.cpu() * sides[0], found.float().cpu() * sides[1], scores.float().cpu(), sure.cpu())

    def find(
        self, a: Float[Tensor, "c h w"], at: Float[Tensor, "n 2"], b: Float[Tensor, "c hb wb"], size: tuple[int, int]
    ) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
        """Where places of map ``a`` lie in map ``b``, of an image of this size, and how alike they are."""
        queries = sampled(a, at)
        if self.temperature is None:
            return matches(queries, b, size, self.refine)
        found = cosines(queries, b)
        return soft_argmax(found, self.temperature, self.topk), found.flatten(1).amax(1)

    def masks(self, source: Reader, target: Reader, masks: Float[Tensor, "k h w"]) -> Segments:
        """The masks of things in the source image carried to the target; segment 0 is what lies in none."""
        if masks.ndim != 3 or tuple(masks.shape[1:]) != source.size:
            raise SfumatoError(
                f"masks are (k, {source.size[0]}, {source.size[1]}), as the image is; got {tuple(masks.shape)}"
            )
        a, b = self.both(source, target)
        all_masks = torch.cat([(1 - masks.float().sum(0, keepdim=True)).clamp_min(0), masks.float()])
        return Segments(spread(all_masks.to(a), b, a, self.temperature or 0.2, self.topk or 15).cpu(), target.size)

    def edit(
        self, source: Reader, edited: Float[Tensor, "3 h w"], target: Reader, mask: Float[Tensor, "h w"]
    ) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "h w"]]:
        """The source's edit inside a mask carried to the target's pixels, and where it came to lie.

        Each of the target's cells takes the pixels of the most alike cell of the source.
        """
        a, b = self.both(source, target)
        if edited.shape != source.pixels.shape:
            raise SfumatoError(f"the edited image is {tuple(edited.shape)}, its source {tuple(source.pixels.shape)}")
        where, _ = flow(b, a, self.temperature, self.topk)
        return transferred(edited, mask, target.pixels, where.cpu())


HPATCHES = DIFT(t=0, blocks=(2,))
"""For the same thing seen from elsewhere."""
DAVIS = DIFT(t=51, blocks=(2,), temperature=0.2, topk=15)
"""For labels carried through a video, here from one image to one."""

# PCK at 0.1 of the box, images seen at twice their size (side 256), 20 pairs: 0.27 of named keypoints, 0.16 of points
# anywhere; up block 2 alone 0.13 and 0.11. On 30 and 20 pairs pixels' colours find 0.10 and 0.02, random places of the
# thing 0.05. About 0.7 of the matches lie on the thing; mapping its true box onto the other's would find 0.31.


def joined(maps: list[Float[Tensor, "_ _ _"]]) -> Float[Tensor, "c h w"]:
    """Feature maps side by side at the finest's resolution, each feature of length one; one map stays as it is."""
    if len(maps) == 1:
        return maps[0]
    size = max((map.shape[1:] for map in maps), key=lambda grid: grid[0])
    larger = [F.interpolate(map[None], tuple(size), mode="bilinear", align_corners=False)[0] for map in maps]
    return torch.cat([F.normalize(map, dim=0) for map in larger])


def standardised(
    a: Float[Tensor, "c h w"], b: Float[Tensor, "c hb wb"]
) -> tuple[Float[Tensor, "c h w"], Float[Tensor, "c hb wb"]]:
    """Two maps with each channel's mean over both 0 and its variance 1."""
    cells = torch.cat([a.flatten(1), b.flatten(1)], 1)
    mean, scale = cells.mean(1)[:, None, None], cells.std(1)[:, None, None].clamp_min(1e-6)
    return (a - mean) / scale, (b - mean) / scale
