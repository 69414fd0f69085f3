"""What SpaText paints by: spatio-textual maps, and how a network learns to read them (arXiv 2211.14305)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sfumato.backbones.clips import Opened, opened
from sfumato.backbones.kinds import MAPS
from sfumato.core.backbone import Backbone
from sfumato.core.conditions import Cond
from sfumato.core.schedule import Level, add_noise
from sfumato.core.settings import Count, LesserPart, Part, Weight, Whole
from sfumato.errors import SfumatoError, finite
from sfumato.io.progress import progress
from sfumato.io.terminal import note
from sfumato.learning import tuning
from sfumato.learning.adapters import Weights
from sfumato.learning.heads import Examples, Head, HeadMethod, HeadProblem
from sfumato.learning.lessons import levels
from sfumato.learning.seeds import generator
from sfumato.learning.teaching import filled
from sfumato.learning.widening import widened
from sfumato.methods.perceive.clip_patches import ClipPatches
from sfumato.prompts.layout import Layout, Mask, Region
from sfumato.reading.reader import resized

_FIRST = "conv_in.weight"
_REGIONS, _DROPS = 1, 2  # what a generator is for, beside a step


# The map


def spatio_textual(masks: Float[Tensor, "n h w"], embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "d h w"]:
    """Each region's embedding where it lies, elsewhere zeros; where regions overlap, that of the smaller one."""
    out = embeddings.new_zeros(embeddings.shape[1], *masks.shape[1:])
    for i in masks.flatten(1).sum(1).argsort(descending=True, stable=True):
        out[:, masks[i] > 0] = embeddings[i][:, None]
    return out


def lengthened(embeddings: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Directions alone, of length sqrt(d): each channel of a map is as large as one of the latents."""
    return F.normalize(embeddings.float(), dim=-1) * embeddings.shape[-1] ** 0.5


def masked_crop(pixels: Float[Tensor, "3 h w"], mask: Bool[Tensor, "h w"]) -> Float[Tensor, "3 s s"]:
    """The tightest square around a segment, black outside of it; also where the square reaches beyond the picture."""
    rows, columns = (mask.any(dim).nonzero().flatten() for dim in (1, 0))
    (top, bottom), (left, right) = ((int(at[0]), int(at[-1]) + 1) for at in (rows, columns))
    height, width = bottom - top, right - left
    side = max(height, width)
    above, before = (side - height) // 2, (side - width) // 2
    inside = (pixels * mask)[:, top:bottom, left:right]
    return F.pad(inside, (before, side - width - before, above, side - height - above))


@torch.no_grad()
def embedded(clip: Opened, crops: Sequence[Float[Tensor, "3 s s"]], batch: int = 32) -> Float[Tensor, "n d"]:
    """What a CLIP makes of them, projected to where its texts are."""
    side = clip.network.config.vision_config.image_size
    pixels = torch.cat([resized(crop[None], (side, side)).clamp(0, 1) for crop in crops]).to(clip.mean)
    found = [clip.network.vision_model(pixel_values=(some - clip.mean) / clip.std) for some in pixels.split(batch)]
    embeddings = torch.cat([clip.network.visual_projection(each.pooler_output) for each in found]).float().cpu()
    finite(embeddings, "what the CLIP has of a segment", "take another CLIP")
    return embeddings


def prior_of(
    weight: Float[Tensor, "e d"], bias: Float[Tensor, " e"], texts: Float[Tensor, "n d"]
) -> Float[Tensor, "n e"]:
    """What images of texts would be, by a linear prior; of length sqrt(e)."""
    return lengthened(F.linear(F.normalize(texts.to(weight), dim=1), weight, bias))


def linear_prior(
    texts: Float[Tensor, "n d"], images: Float[Tensor, "n e"], ridge: float = 1e-2
) -> tuple[Float[Tensor, "e d"], Float[Tensor, " e"]]:
    """Weight and bias of the linear map from texts to images with the least squared error, in closed form.

    ``ridge``: what the squared weights count, in parts of the mean variance of texts.
    """
    x, y = texts.double(), images.double()
    dx, dy = x - x.mean(0), y - y.mean(0)
    gram = dx.T @ dx
    gram += ridge * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, dx.T @ dy).T
    return weight.float(), (y.mean(0) - weight @ x.mean(0)).float()


# The network that reads it


def reading_maps(model: Any, width: int) -> tuple[Any, dict[str, nn.Parameter]]:
    """A model with float32 copies of its UNet's weights, which reads maps so wide, at first in vain; and these.

    Raises ``SfumatoError`` for a model without such a network, or with adapters in it.
    """
    tuning.check(model, "SpaText")
    first = getattr(getattr(model.pipe, "unet", None), "conv_in", None)
    if not isinstance(first, nn.Conv2d):
        raise SfumatoError(
            f"SpaText widens the first layer of a UNet, and {model.name} has none that is a plain convolution; take "
            "Stable Diffusion, without LoRAs"
        )
    own, moved = tuning.copies(model, ["unet"])
    network = own.pipe.unet
    network.conv_in = widened(network.conv_in, width)
    network.register_to_config(**{"in_channels": network.conv_in.in_channels, MAPS: width})
    first = {f"conv_in.{name}": weight for name, weight in network.conv_in.named_parameters()}
    return own, moved["unet"] | first


class Learned(nn.Module):
    """What each weight of a UNet gained, and the prior from texts to what images of them would be."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.prior = nn.Linear(width, width).requires_grad_(False)
        self.changes = nn.ParameterDict()

    @torch.no_grad()
    def gain(self, network: Any, moved: Mapping[str, Tensor], kept: float = 1.0) -> None:
        """Keep what these weights have beyond a network's own, or part of it; and all that is of the map."""
        before = dict(getattr(network, "_orig_mod", network).named_parameters())
        for name, weight in moved.items():
            old, change = before[name].detach().float(), weight.detach().float().clone()
            known = change[:, : old.shape[1]] if name == _FIRST else change  # what is new there began at zero
            known.sub_(old).mul_(kept)
            self.changes[name.replace(".", "/")] = nn.Parameter(change, requires_grad=False)

    def on(self, model: Any) -> Any:
        """A model that reads maps as it was learned. Raises ``SfumatoError`` for one of other weights."""
        own, weights = reading_maps(model, self.prior.out_features)
        changes = {name.replace("/", "."): change for name, change in self.changes.items()}
        if unlike := [n for n, c in changes.items() if n not in weights or weights[n].shape != c.shape]:
            raise SfumatoError(
                f"what SpaText learned changes {unlike[0]!r} {tuple(changes[unlike[0]].shape)}, which {model.name} "
                "does not have; take the model that it learned of, or train anew"
            )
        with torch.no_grad():
            for name, change in changes.items():
                weights[name] += change.to(weights[name])
        for weight in own.pipe.unet.requires_grad_(False).parameters():
            weight.data = weight.data.to(model.dtype)
        return own


# Learning


@dataclass(frozen=True, eq=False)
class Segmented(Examples):
    """Latents of pictures, their segments by number, and as ``texts`` the embedding of each."""

    model: Any = None
    phrased: Float[Tensor, "n k e"] | None = None
    """What the prior makes of each segment's words; not a number where nobody knows them."""
    prior: tuple[Tensor, Tensor] = field(default_factory=lambda: (torch.zeros(0, 0), torch.zeros(0)))


class Seen(NamedTuple):
    """A step's batch."""

    which: tuple[int, ...]
    maps: Float[Tensor, "b d h w"]
    captions: tuple[str, ...]
    at: Level
    noise: Float[Tensor, "b c h w"]


@dataclass(frozen=True)
class SpaTextHead(HeadMethod):
    """Learns to paint segments as the CLIP embeddings of what is in them say."""

    wants = ("labels",)
    reads: ClassVar[str] = "clip-patches"
    """What describes segments."""
    apart: ClassVar[bool] = True
    """Is each thing a segment of its own, also of two of a kind?"""

    most: Count = 3
    """K: so many segments at most, at least one."""
    least: Part = 0.05
    """Part of the picture that a segment covers."""
    drop: Part = 0.1
    """How often the caption is left out, and how often the map, each by itself."""
    boxes: Part = 0.0
    """How often the box around a segment stands for it, for layouts of boxes; not published."""
    worded: Part = 0.0
    """How often what the prior makes of its words stands for a segment, as where it paints; not published."""
    kept: Part = 1.0
    """Part of what the network's own weights gained that is kept; less is nearer to how it painted before (WiSE-FT,
    Wortsman et al. 2022, arXiv 2109.01903)."""
    templates: tuple[str, ...] = ("{}",)
    """Texts in which the prior sees what segments are, with {} for that."""
    batch: Count = 8
    """Pictures of a step."""
    steps: Count = 20_000
    rate: Weight = 1e-5
    """Of AdamW."""
    first_rate: Weight | None = None
    """Of the first layer; none: the same."""
    since: LesserPart = 0.0
    """Levels below this part of all times are not learned from; where things are is settled above."""
    warmup: Whole = 20
    """Steps in which the rate rises."""
    falls: Part = 0.0
    """Last part of the run in which the rate falls to zero."""
    clip: Weight | None = 1.0
    seed: Whole = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        filled(self.templates, "")

    def examples(
        self, model: Backbone, source: Any, pictures: Float[Tensor, "n 3 h w"], phrases: Sequence[Sequence[str]] = (),
        **known: Any,
    ) -> Segmented:  # fmt: skip
        """Pictures at the model's size, read once. ``labels``: of pixels, from 0 on; ``phrases``: of each picture,
        what its labels are; else ``names``, the same in all.

        Raises ``SfumatoError`` for pictures without labels, and where segments are described by no CLIP.
        """
        if not isinstance(source, ClipPatches):
            raise SfumatoError(
                f"SpaText's segments are described by a CLIP, not by {type(source).__name__}; take clip-patches"
            )
        labels, captions, names = (known.get(key) for key in ("labels", "captions", "names"))
        if labels is None or not bool((labels >= 0).any()):
            raise SfumatoError("SpaTextHead learns from pictures with labels, and these have none; give labels of each")
        clip = opened(source.clip, str(model.device))
        phrased = [*phrases] or [names or ()] * len(pictures)
        maps, numbers = [], torch.full_like(labels, -1)
        segments: list[tuple[int, int, str, Tensor]] = []
        with progress("reading segments", len(pictures)) as advance:
            for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
                with torch.no_grad():
                    maps.append(model.encode(picture[None].to(model.device)))
                parts = {k: float((label == k).float().mean()) for k in label.unique().tolist() if k >= 0}
                kept = [k for k, part in parts.items() if part >= self.least]
                images = embedded(clip, [masked_crop(picture, label == k) for k in kept]) if kept else ()
                for place, (k, image) in enumerate(zip(kept, images, strict=True)):
                    numbers[i][label == k] = place
                    segments.append((i, place, phrased[i][int(k)] if k < len(phrased[i]) else "", image))
                advance()
        if not segments:
            raise SfumatoError(f"no segment covers {self.least:.0%} of its picture; take larger ones, or a lower least")
        pairs = [(words, image) for _, _, words, image in segments if words]
        prior = self.prior(model, source, pairs, pictures, captions or (), clip)
        each = list(dict.fromkeys(words for words, _ in pairs))
        meant = dict(zip(each, prior_of(*prior, source.texts(model, each)) if each else (), strict=True))
        shape = len(maps), 1 + max(place for _, place, _, _ in segments), len(segments[0][3])
        texts, imagined = torch.zeros(shape), torch.full(shape, torch.nan)
        for i, place, words, image in segments:
            texts[i, place] = lengthened(image)
            imagined[i, place] = meant[words] if words else torch.nan
        given = {"captions": tuple(captions or ()), "texts": texts, "labels": numbers, "names": tuple(each)}
        return Segmented.given(maps, model.device, **given, model=model, prior=prior, phrased=imagined)  # pyright: ignore[reportReturnType]

    def prior(
        self, model: Backbone, source: ClipPatches, pairs: Sequence[tuple[str, Tensor]], pictures: Tensor,
        captions: Sequence[str], clip: Opened,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """From texts to images, of segments and what they are; else of pictures and captions; else the same."""
        if pairs:
            phrased = [template.replace("{}", words) for words, _ in pairs for template in self.templates]
            images = torch.stack([image for _, image in pairs]).repeat_interleave(len(self.templates), 0)
        elif captions:
            phrased, images = list(captions), embedded(clip, list(pictures))
        else:
            note("segments have no names and pictures no captions: regions read texts as the CLIP has them")
            width = clip.network.config.projection_dim
            return torch.eye(width), torch.zeros(width)
        each = list(dict.fromkeys(phrased))
        read = dict(zip(each, F.normalize(source.texts(model, each).cpu(), dim=1), strict=True))
        return linear_prior(torch.stack([read[text] for text in phrased]), F.normalize(images, dim=1))

    def sizes(self, examples: Examples) -> dict[str, int]:
        assert examples.texts is not None
        return {"width": examples.texts.shape[-1]}

    def network(self, width: int) -> nn.Module:
        return Learned(width)

    def restored(self, sizes: Mapping[str, int], tensors: Mapping[str, Tensor]) -> nn.Module:
        network: Any = self.begun(sizes, "")
        names = [key.partition(".")[2] for key in tensors if key.startswith("changes.")]
        network.changes.update({name: nn.Parameter(tensors[f"changes.{name}"], requires_grad=False) for name in names})
        network.load_state_dict(tensors)
        return network

    def problem(self, examples: Any, network: Any) -> HeadProblem:
        return Reading(self, examples, network)

    def optimiser(self, groups: list[Any]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=self.rate, fused=True)

    @torch.no_grad()
    def errors(self, head: Head, model: Backbone, source: Any, pictures: Tensor, **known: Any) -> dict[str, float]:
        """Mean squared error of the prediction on other pictures, each once, with maps of their segments and without.

        ``known`` as of ``examples``; captions are all read.
        """
        examples = self.examples(model, source, pictures, **known)
        batch = max(b for b in range(1, self.batch + 1) if len(examples) % b == 0)
        problem = Reading(replace(self, drop=0.0, batch=batch), examples, Learned(**head.sizes))
        own: Any = head.network
        reads = own.on(model)
        steps = [problem.seen(step) for step in range(len(examples) // batch)]
        blind = [seen._replace(maps=torch.zeros_like(seen.maps)) for seen in steps]
        both = {"error": steps, "error_without_map": blind}
        return {
            key: float(torch.stack([problem.error(reads, seen) for seen in some]).mean()) for key, some in both.items()
        }

    def answer(self, head: Head, maps: Sequence[Tensor], size: tuple[int, int]) -> Any:
        raise SfumatoError(
            "this head paints: sfumato generate PROMPT spatext --head FILE --box WORDS LEFT,TOP,RIGHT,BOTTOM"
        )

    def masks(
        self, labels: Int[Tensor, "h w"], grid: tuple[int, int], rng: torch.Generator
    ) -> tuple[list[int], Float[Tensor, "k h w"]]:
        """Some segments of a picture, 1 to K of them, and where they are in cells of the latents."""
        there = [k for k in labels.unique().tolist() if k >= 0]
        count = int(torch.randint(1, min(self.most, len(there)) + 1, (), generator=rng)) if there else 0
        chosen = [there[i] for i in torch.randperm(len(there), generator=rng)[:count].tolist()]
        regions = [Region("", mask=Mask(labels.cpu() == k)) for k in chosen]
        boxed = (torch.rand(count, generator=rng) < self.boxes).tolist()
        regions = [Region("", Layout((r,)).boxes()[0]) if b else r for r, b in zip(regions, boxed, strict=True)]
        return chosen, Layout(tuple(regions)).masks(grid) if regions else torch.zeros(0, *grid)

    def paced(self, rate: float, step: int, fraction: float) -> float:
        rises = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return rate * rises * (min(1.0, (1 - fraction) / self.falls) if self.falls else 1.0)


class Reading(HeadProblem):
    """A network that was made to read maps descends its own training loss on latents, captions and maps of pictures."""

    doing = "learning to read maps"
    method: SpaTextHead
    examples: Any

    def __init__(self, method: SpaTextHead, examples: Segmented, network: Any) -> None:
        super().__init__(method, examples, network)
        self.model, self.moved = reading_maps(examples.model, network.prior.out_features)
        for parameter, value in zip(network.prior.parameters(), examples.prior, strict=True):
            parameter.data.copy_(value)
        self.modules = {"head": network, "unet": Weights(self.moved)}
        self.rates = {} if method.first_rate is None else {"unet.conv_in/weight": method.first_rate}

    def seen(self, step: int) -> Seen:
        """What a step sees; a function of the seed and the step alone."""
        own, examples = self.method, self.examples
        which = examples.drawn(own.seed, step, own.batch)
        rng = generator(own.seed, step, _REGIONS)
        maps = []
        for i in which:
            chosen, masks = own.masks(examples.labels[i], examples.grid, rng)
            seen, meant = examples.texts[i, chosen].cpu(), examples.phrased[i, chosen].cpu()
            use = (torch.rand(len(chosen), 1, generator=rng) < own.worded) & meant.isfinite()
            maps.append(spatio_textual(masks, torch.where(use, meant, seen)))
        rng = generator(own.seed, step, _DROPS)
        blind, silent = (torch.rand(2, len(which), generator=rng) < own.drop).tolist()
        held = torch.stack(maps) * ~torch.tensor(blind)[:, None, None, None]
        phrased = tuple(
            "" if none or not examples.captions else examples.captions[i] for i, none in zip(which, silent, strict=True)
        )
        shape = (len(which), examples.width, *examples.grid)
        noise = torch.randn(shape, generator=rng).to(examples.device)
        at = levels(self.model, own.seed, step, len(which))
        if own.since:
            later = own.since * self.model.schedule.train_steps + (1 - own.since) * at.t
            at = self.model.schedule.at(later if self.model.schedule.prediction == "flow" else later.long())
        return Seen(tuple(which), held.to(examples.device), phrased, at, noise)

    def loss(self, step: int) -> Float[Tensor, ""]:
        return self.error(self.model, self.seen(step))

    def error(self, model: Any, seen: Seen) -> Float[Tensor, ""]:
        """Mean squared error of what a model that reads maps predicts."""
        x0, cond = self.examples.maps(seen.which), model.embed(seen.captions)
        predicted = model.predict(add_noise(x0, seen.noise, seen.at), seen.at.t, with_map(cond, seen.maps))
        return F.mse_loss(predicted, model.schedule.prediction_of(x0, seen.noise, seen.at))

    def finish(self) -> None:
        self.network.gain(self.examples.model.network, self.moved, self.method.kept)


def with_map(cond: Cond, maps: Float[Tensor, "b d h w"]) -> Cond:
    """Conditions with maps, a row each, behind what else is read as an image."""
    return replace(cond, image=maps if cond.image is None else torch.cat([cond.image, maps.to(cond.image)], 1))
