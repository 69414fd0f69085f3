"""DiffewS (Zhu et al. 2024, arXiv 2410.02369): few-shot segmentation by a network that paints the mask in one step.

Images of a thing, the support, go through the network with their masks: beside the latents of each image it reads
those of its mask, by a first layer of its own, the network's weights twice and halved. Keys and values of every
self-attention of that pass lie beside those of the pass of another image, the query (KV fusion), which is read clean,
without noise, in one step. All weights learn to answer with the latents of the query's mask, a picture in black and
white: as v at beta 1, where v is the data's negative, so that the loss is |network + mask|^2. The mask is where the
decoded mean over colours is above a quarter of the greatest value. Several shots are more keys: which is first says
nothing.

Defaults: the authors' code's. Different from it: latents of images and masks are the encoder's means, not draws; a
batch shares its number of shots; weights learn in float32; what is decoded is made larger without rounding to bytes.
``rank`` teaches attention by low-rank changes in the place of all weights, for a small file; the first layer for masks
learns as ever.

Needs: labels of pictures; two passes and the ways back a step; then a pass for each shot and one for an image.

Families: UNets with self-attention that read latents alone, which are Stable Diffusion 1, 2 and XL, DeepFloyd IF, DDPM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sfumato.core.attention import Call
from sfumato.core.backbone import Backbone
from sfumato.core.choice import choose
from sfumato.core.rows import single
from sfumato.core.settings import Between, Count, TrainStep, Weight, Whole
from sfumato.core.sites import Site
from sfumato.errors import SfumatoError
from sfumato.learning import tuning
from sfumato.learning.adapters import Weights
from sfumato.learning.heads import Examples, Head, HeadMethod, HeadProblem, Latents
from sfumato.learning.seeds import generator
from sfumato.learning.widening import widened
from sfumato.methods.perceive.few_shot import check_support, fused
from sfumato.reading.reader import Reader
from sfumato.reading.results import Segments

Bank = Mapping[Site, Float[Tensor, "2 b heads tokens dim"]]
"""Keys and values that a support leaves behind at each self-attention."""
BESIDE = "beside"
"""The first layer for images with masks, among the names of weights."""


@dataclass(frozen=True)
class DiffewS(HeadMethod):
    """Learns to segment what other images show with a mask, from pictures with labels."""

    wants = ("labels",)
    source = Latents()
    takes_support = True

    rank: Whole = 0
    """Of low-rank changes of attention in the place of all weights; 0: all weights."""
    shots: Count = 2
    """Images of a support at most; each step draws how many."""
    without: tuple[str, ...] = ("0", "background", "backdrop", "ground")
    """Classes that no episode is of, by name, or by number where they have no names."""
    least: Annotated[float, Between(0, 1, above=True, below=True)] = 0.01
    """A picture shows a class that fills this part of it, or more."""
    t: TrainStep = 1
    """What the network is given as time."""
    threshold: Annotated[float, Between(0, 1, above=True, below=True)] = 0.25
    """The mask is where the mean over colours is above this part of the greatest value."""
    batch: Count = 4
    """Episodes a step."""
    steps: Count = 20_000
    rate: Weight = 1e-5
    """Of AdamW at first; it falls to zero in a straight line."""
    decay: Weight = 0.01
    """Of weights."""
    clip: Weight | None = 1.0
    seed: Whole = 0

    def begun(self, sizes: Mapping[str, int], model: Backbone | str) -> Fused:
        if isinstance(model, str):
            raise SfumatoError("DiffewS teaches a model's own network, and there is none; give the model")
        conv = getattr(getattr(getattr(model, "pipe", None), "unet", None), "conv_in", None)
        if conv is None or conv.in_channels != model.channels or model.frames > 1:
            raise SfumatoError(f"DiffewS teaches UNets that read an image's latents alone, which {model.name} does not")
        choose(model, "image->image", (1, 1), "DiffewS")
        tuning.check(model, "DiffewS")
        if self.rank:
            own, moved = tuning.low_rank(model, ["unet"], self.rank, self.seed)
        else:
            own, moved = tuning.copies(model, ["unet"])
        first = own.network.conv_in = FirstLayer(own.network.conv_in, widened(conv, model.channels, repeated=True))
        beside = {f"{BESIDE}.{name}": parameter for name, parameter in first.beside.named_parameters()}
        return Fused({**moved["unet"], **beside}, self.t, own, model)

    def restored(self, sizes: Mapping[str, int], tensors: Mapping[str, Tensor]) -> Fused:
        named = {name.replace("/", "."): nn.Parameter(value, requires_grad=False) for name, value in tensors.items()}
        if f"{BESIDE}.weight" not in named:
            raise RuntimeError(f"there is no {BESIDE}.weight in it")
        return Fused(named, self.t)

    def check(self, examples: Examples) -> None:
        super().check(examples)
        assert examples.labels is not None
        if not self.seen(examples.labels, examples.names):
            raise SfumatoError(
                "an episode takes two pictures of a class, and no class is in two of them; give more pictures, or "
                "leave fewer classes out (--without)"
            )

    def seen(self, labels: Int[Tensor, "n H W"], names: Sequence[str]) -> dict[int, list[int]]:
        """The pictures that show each class, of classes that two or more do."""
        found: dict[int, list[int]] = {}
        for i, one in enumerate(labels):
            values, counts = one[one >= 0].unique(return_counts=True)
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                name = names[value] if value < len(names) else str(value)
                if name not in self.without and count >= self.least * one.numel():
                    found.setdefault(value, []).append(i)
        return {value: shown for value, shown in sorted(found.items()) if len(shown) > 1}

    def problem(self, examples: Examples, network: Any) -> Episodes:
        return Episodes(self, examples, network)

    def optimiser(self, groups: list[Any]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=self.rate, weight_decay=self.decay)

    def paced(self, rate: float, step: int, fraction: float) -> float:
        return rate * (1 - fraction)

    def supported(self, head: Head, support: Sequence[Reader], masks: Sequence[Float[Tensor, "h w"]]) -> Head:
        check_support(support, masks)
        model = support[0].model
        network: Fused = head.network
        if network.of is not model:
            network = self.begun(head.sizes, model)
            try:
                network.load_state_dict(head.network.state_dict())
            except RuntimeError as e:
                reason = " ".join(str(e).split())[:200]
                raise SfumatoError(f"this head of DiffewS is of another network than {model.name}'s ({reason})") from e
        banks = []
        with torch.no_grad():
            for other, mask in zip(support, masks, strict=True):
                (latents,) = head.features(other)
                banks.append(network.shown(latents[None], network.painted(mask.float(), latents.shape[-2:])))
        bank = {site: torch.cat([each[site] for each in banks], 3) for site in banks[0]}
        return replace(head, network=network.with_bank(bank))

    def answer(self, head: Head, maps: Sequence[Float[Tensor, "c h w"]], size: tuple[int, int]) -> Segments:
        """The background, whose score is the threshold, and the thing."""
        network: Fused = head.network
        if not network.bank:
            raise SfumatoError("a head of DiffewS looks for what examples show; give some: --labelled FOLDER")
        image = network.model.decode(network(maps[0][None], network.bank))[0]
        return Segments(binarised(image, self.threshold), size, ("background", "thing"))


class FirstLayer(nn.Module):
    """A network's first layer, and another for images with masks, which it is while ``mask`` is there."""

    mask: Tensor | None = None

    def __init__(self, alone: Any, beside: nn.Conv2d) -> None:
        super().__init__()
        self.alone, self.beside = alone, beside

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        if self.mask is None:
            return self.alone(x)
        both = torch.cat([x, self.mask.to(x)], 1)
        return self.beside(both.to(self.beside.weight.dtype)).to(x.dtype)


class Fused(Weights):
    """What of a UNet learns, by its names; and the copy of the model that has it, where one was made."""

    def __init__(self, named: Mapping[str, nn.Parameter], t: int, model: Any = None, of: Any = None) -> None:
        """``of``: the model whose copy ``model`` is."""
        super().__init__(named)
        self.model, self.of, self.t = model, of, t
        self.bank: Bank = {}

    def with_bank(self, bank: Bank) -> Fused:
        """The same weights with what a support left behind."""
        other = copy(self)
        other.bank = bank
        return other

    def _called(self, x: Tensor) -> tuple[Tensor, float, Any]:
        model = self.model
        return x.to(model.device), model.schedule.thousandths(self.t).t, model.embed([""]).repeat(len(x))

    def shown(self, latents: Float[Tensor, "b c h w"], masks: Float[Tensor, "b c h w"]) -> dict[Site, Tensor]:
        """What images with masks, both as latents, leave behind at each self-attention: (2, b, heads, tokens, dim)."""
        sites = choose(self.model, "image->image", (1, 1), "DiffewS")

        def reduce(call: Call) -> Tensor:
            return torch.stack([call.get(which, call.rows.names[0], "image") for which in "kv"])

        first = self.model.network.conv_in
        first.mask = masks
        try:
            return self.model.maps(*self._called(latents), sites, reduce)
        finally:
            first.mask = None

    def forward(self, latents: Float[Tensor, "b c h w"], bank: Bank) -> Float[Tensor, "b c h w"]:
        """Latents of the masks of images, by what supports left behind: one for all, or one each."""

        def handler(call: Call) -> None:
            call.give(call.rows.names[0], fused(call, *bank[call.site]))

        rows, grid = single(len(latents)), (latents.shape[-2], latents.shape[-1])
        with self.model.tap(dict.fromkeys(bank, handler), rows, grid) as tap:
            found = self.model.predict(*self._called(latents))
            tap.check(self.model.network)
        return -found

    @torch.no_grad()
    def painted(self, mask: Float[Tensor, "H W"], grid: Sequence[int]) -> Float[Tensor, "1 c h w"]:
        """Latents of a mask as a picture in black and white."""
        size = [side * self.model.factor for side in grid]
        picture = F.interpolate(mask[None, None], size, mode="nearest-exact").expand(1, self.model.colours, -1, -1)
        return self.model.encode(picture.to(self.model.device))


class Episodes(HeadProblem):
    """Random classes; of each a query and a support that show it."""

    doing = "learning to segment by examples"
    network: Fused

    def __init__(self, method: DiffewS, examples: Examples, network: Fused) -> None:
        super().__init__(method, examples, network)
        assert examples.labels is not None
        self.seen = method.seen(examples.labels, examples.names)
        self._masks: dict[tuple[int, int], Tensor] = {}

    def drawn(self, step: int) -> list[tuple[int, list[int]]]:
        """The class of each episode of a step, and its pictures: the query, and the support behind it."""
        rng = generator(self.method.seed, step)

        def below(n: int) -> int:
            return int(torch.randint(n, (), generator=rng))

        shots, classes, found = 1 + below(self.method.shots), list(self.seen), []
        for _ in range(self.method.batch):
            kind = classes[below(len(classes))]
            order = [self.seen[kind][i] for i in torch.randperm(len(self.seen[kind]), generator=rng).tolist()]
            others = order[1:] * shots  # the same again where there are too few
            found.append((kind, [order[0], *others[:shots]]))
        return found

    def mask(self, kind: int, picture: int) -> Float[Tensor, "1 c h w"]:
        """Latents of where a class is in a picture, made once."""
        if (kind, picture) not in self._masks:
            assert self.examples.labels is not None
            inside = (self.examples.labels[picture] == kind).float()
            self._masks[kind, picture] = self.network.painted(inside, self.examples.grid)
        return self._masks[kind, picture]

    def loss(self, step: int) -> Float[Tensor, ""]:
        drawn = self.drawn(step)
        masks = torch.stack([torch.cat([self.mask(kind, i) for i in pictures]) for kind, pictures in drawn])
        latents = torch.stack([self.examples.maps(pictures) for _, pictures in drawn])
        shown = self.network.shown(latents[:, 1:].flatten(0, 1), masks[:, 1:].flatten(0, 1))
        bank = {site: beside(kv, len(drawn)) for site, kv in shown.items()}
        return F.mse_loss(self.network(latents[:, 0], bank), masks[:, 0])


def beside(kv: Float[Tensor, "2 bk heads tokens dim"], b: int) -> Float[Tensor, "2 b heads ktokens dim"]:
    """Of several images for each of b, one image after the other, keys and values side by side."""
    return kv.unflatten(1, (b, -1)).transpose(2, 3).flatten(3, 4)


def binarised(image: Float[Tensor, "c h w"], threshold: float) -> Float[Tensor, "2 h w"]:
    """The threshold, and the mean over colours as a part of the greatest value: the thing is where that is higher."""
    image = image.float().clamp(0, 1)
    part = image.mean(0) / image.max().clamp_min(1e-6)
    return torch.stack([torch.full_like(part, threshold), part])
