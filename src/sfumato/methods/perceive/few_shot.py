"""Few-shot segmentation (DiffewS, Zhu et al. 2024, arXiv 2410.02369): by fused attention, without its training.

A network reads images of a thing with its mask, the support, and keeps keys and values of every self-attention; when it
reads another image, the query, these lie beside its own (KV fusion), so that its cells attend to the support's. The
paper then trains the network to paint the query's mask (``diffews``). Here nothing is trained: a cell is of the thing
by how much of the attention that it gives to the support goes to cells inside the mask, over all heads and sites.

There are no published defaults for this reading; the paper's network is kept where it says something: clean latents
(``noise="none"``), every self-attention, shots side by side among the keys. Of its ways to give the support's mask,
``attention`` splits the support's keys, ``multiply`` blots out the latents outside the mask too; the concatenation, its
best, and the addition of the mask's latents mean something only to a network trained with them, and are left out.
The threshold and the balance are ours.

Needs: queries, keys and values of self-attention; a network call for each support image, once, and one for the query.

Families: all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import FUSED, Call
from sfumato.core.brief import Brief
from sfumato.core.choice import choose
from sfumato.core.method import Where
from sfumato.core.settings import Count, Part, Settings, TrainStep, Whole
from sfumato.core.sites import Grid, Site
from sfumato.errors import SfumatoError
from sfumato.methods.perceive.dift import DIFT
from sfumato.ops.correspondence import cosines
from sfumato.ops.memory import chunks
from sfumato.reading.reader import Noise, Reader, extract
from sfumato.reading.results import Segments


@dataclass(frozen=True)
class Supported(Settings):
    """What segments the thing that masks show in other images."""

    threshold: Part = 0.5
    """The thing is where its score is above this; scores lie between 0 and 1."""

    def __call__(self, reader: Reader, support: Sequence[Reader], masks: Sequence[Float[Tensor, "h w"]]) -> Segments:
        """0 the background, 1 the thing. ``masks``: of the support images, 1 inside."""
        check_support(support, masks)
        if any(other.model is not reader.model for other in support):
            raise SfumatoError("the support is read by the same model as the image")
        score = self.score(reader, support, [mask.float() for mask in masks]).cpu()
        return Segments(
            torch.stack([torch.full_like(score, self.threshold), score]), reader.size, ("background", "thing")
        )

    def score(
        self, reader: Reader, support: Sequence[Reader], masks: Sequence[Float[Tensor, "h w"]]
    ) -> Float[Tensor, "h w"]:
        raise NotImplementedError


def check_support(support: Sequence[Reader], masks: Sequence[Float[Tensor, "h w"]]) -> None:
    """Raise ``SfumatoError`` unless each image has a mask of its size, and one shows something."""
    if not support or len(support) != len(masks):
        raise SfumatoError(f"each support image has a mask; got {len(support)} images and {len(masks)} masks")
    for other, mask in zip(support, masks, strict=True):
        if tuple(mask.shape) != other.size:
            raise SfumatoError(f"a mask of {tuple(mask.shape)} for a support image of {other.size}")
    if not any((mask > 0.5).any() for mask in masks):
        raise SfumatoError("the support's masks are empty, so nothing says what to look for")


@dataclass(frozen=True)
class FewShot(Supported):
    """Segments by the attention that an image gives to others."""

    t: TrainStep = 1
    """What the network is told (of flows, sigma in thousandths)."""
    noise: Literal["none", "gaussian"] = "none"
    """What the latents get: the paper's are clean."""
    mask: Literal["attention", "multiply"] = "attention"
    """``multiply``: the support's latents are 0 outside the mask as well."""
    layers: tuple[str, ...] = ()
    """Parts of the paths of the self-attention that is read [default: all]."""
    fuse: bool = True
    """Read the image with the support's keys and values beside its own, at all sites; if not, only compare it."""
    balance: bool = True
    """Compare the attention that a cell inside gets on average with that of one outside, instead of their sums."""
    prompt: str = ""
    """What the network is told of all images."""
    seed: Whole = 0
    """Of the noise."""

    def score(
        self, reader: Reader, support: Sequence[Reader], masks: Sequence[Float[Tensor, "h w"]]
    ) -> Float[Tensor, "h w"]:
        where = (lambda site: any(part in site.path for part in self.layers)) if self.layers else None
        asked = choose(reader.model, Where("image->image", sites=where), reader.grid, "few-shot")
        sites = choose(reader.model, "image->image", reader.grid) if self.fuse else asked
        sites = [site for site in sites if site.index <= max(site.index for site in asked)]
        shots = [self.shown(other, mask, sites) for other, mask in zip(support, masks, strict=True)]
        shown = {site: Support.of([shot[site] for shot in shots]) for site in sites}

        def reduce(call: Call) -> Tensor:
            return given_inside(call, shown[call.site], self.fuse, self.balance)

        found = reader.extract(sites, reduce, Noise(self.t, self.noise, self.seed), self.prompt)
        grid = max((site.grid(reader.grid) for site in asked), key=math.prod)
        maps = [found[site].view(1, 1, *site.grid(reader.grid)) for site in asked]
        return torch.cat([F.interpolate(map, grid, mode="bilinear") for map in maps]).mean(0)[0]

    def shown(self, support: Reader, mask: Float[Tensor, "h w"], sites: Sequence[Site]) -> dict[Site, Support]:
        """What one support image leaves behind at each site."""

        def reduce(call: Call) -> Tensor:
            name = call.rows.names[0]
            return torch.stack([call.get(which, name, "image") for which in "kv"], 1)

        def small(grid: Grid) -> Float[Tensor, "h w"]:
            return F.interpolate(mask[None, None], grid, mode="area")[0, 0].to(support.model.device)

        latents = support.latents
        if self.mask == "multiply":
            latents = latents * small((latents.shape[2], latents.shape[3]))
        model, noise = support.model, Noise(self.t, self.noise, self.seed)
        with torch.no_grad():
            found = extract(model, latents, model.embed([self.prompt]), noise, sites, reduce)
        cells = {site: small(site.grid(support.grid)).flatten() for site in sites}
        return {site: Support(found[site][0, 0], found[site][0, 1], cells[site]) for site in sites}


@dataclass(frozen=True)
class FeatureMatching(Supported):
    """For comparison: a cell is of the thing if the most alike of the support's cells is inside the mask."""

    t: TrainStep = 261
    """As of ``DIFT``, with what follows."""
    blocks: tuple[Whole, ...] = (1,)
    layers: tuple[str, ...] = ()
    ensemble: Count = 8
    prompt: str = ""
    seed: Whole = 0

    def score(
        self, reader: Reader, support: Sequence[Reader], masks: Sequence[Float[Tensor, "h w"]]
    ) -> Float[Tensor, "h w"]:
        dift = DIFT(self.t, self.blocks, self.layers, ensemble=self.ensemble, prompt=self.prompt, seed=self.seed)
        seen = [dift.features(other) for other in support]
        inside = torch.cat(
            [
                F.interpolate(mask[None, None], map.shape[1:], mode="area").flatten().to(map)
                for map, mask in zip(seen, masks, strict=True)
            ]
        )
        inside = inside >= min(0.5, float(inside.max()))
        if inside.all():
            raise SfumatoError("the support's masks hold all of its cells, so there is nothing to tell the thing from")
        bank = torch.cat([map.flatten(1) for map in seen], 1)[..., None]
        map = dift.features(reader)
        alike = cosines(map.flatten(1).T, bank)[..., 0]
        best = [alike.masked_fill(without, -1).amax(1) for without in (~inside, inside)]
        return ((best[0] - best[1]) / 2 + 0.5).unflatten(0, map.shape[1:])


@dataclass(frozen=True)
class Support(Brief):
    """What support images leave behind at one site."""

    keys: Float[Tensor, "heads tokens dim"]
    values: Float[Tensor, "heads tokens dim"]
    inside: Float[Tensor, " tokens"]
    """How much of each token's cell the mask covers."""

    @classmethod
    def of(cls, shots: Sequence[Support]) -> Support:
        """Several side by side."""
        return cls(
            torch.cat([shot.keys for shot in shots], 1),
            torch.cat([shot.values for shot in shots], 1),
            torch.cat([shot.inside for shot in shots]),
        )


def given_inside(call: Call, support: Support, fuse: bool, balance: bool) -> Float[Tensor, "rows queries"]:
    """Of the attention that each of the image's tokens gives to the support, which part goes inside the mask.

    A head after the other. With ``fuse`` the image's own output is that of its keys and values and the support's.
    """
    name = call.rows.names[0]
    q = call.get("q", name, "image")
    if fuse:
        call.set("out", name, fused(call, support.keys, support.values), "image")
    inside = share(q.float(), support.keys.float(), support.inside.float())
    if not balance:
        return inside
    part = support.inside.float().mean().clamp(1e-6, 1 - 1e-6)
    dense, thin = inside / part, (1 - inside) / (1 - part)
    return dense / (dense + thin)


def fused(
    call: Call, keys: Float[Tensor, "*rows heads tokens dim"], values: Float[Tensor, "*rows heads tokens dim"]
) -> Float[Tensor, "rows heads queries dim"]:
    """What the image's tokens get of their own keys and values and these, beside each other (KV fusion)."""
    name = call.rows.names[0]
    pairs = [(call.get("k", name), keys), (call.get("v", name), values)]
    k, v = (torch.cat([own, more.to(own).expand(len(own), -1, -1, -1)], 2) for own, more in pairs)
    return FUSED(call.get("q", name, "image"), k, v, **call.options)


def share(
    q: Float[Tensor, "rows heads queries dim"], k: Float[Tensor, "heads keys dim"], inside: Float[Tensor, " keys"]
) -> Float[Tensor, "rows queries"]:
    """Softmax of queries over keys times what is inside, the mean over heads."""
    rows, heads, _, dim = q.shape
    out = torch.zeros(rows, q.shape[2], device=q.device)
    for head in range(heads):
        parts = [
            (some @ k[head].T * dim**-0.5).softmax(-1) @ inside for some in chunks(q[:, head], rows * k.shape[1], 1)
        ]
        out += torch.cat(parts, 1) / heads
    return out
