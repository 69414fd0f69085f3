"""What a family of networks must offer.

One adapter file a family. Networks are loaded through diffusers and never written again here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.noise import Independent, Noises
from sfumato.core.rows import Rows, single
from sfumato.core.schedule import Levels, Schedule
from sfumato.core.sites import Grid, Layer, Site, token_layers
from sfumato.core.taps import Enough, Handler, Tap, tapped
from sfumato.errors import SfumatoError, integer, shown, unsound
from sfumato.media.images import check_range

if TYPE_CHECKING:
    from typing_extensions import Self


from sfumato.core.conditions import Cond


def dtype_of(network: Any) -> torch.dtype:
    """In which a network computes: its first weights' type, or what they are cast to where they are stored in another.

    diffusers' own way to ask for it visits every module, in each step. Raises ``SfumatoError`` for weights in which
    nothing computes, and for a casting that leaves layers out which then meet what they cannot read.
    """
    found = None
    for path, module in network.named_modules():
        if casts := _casting(module):
            return _cast_to(network, casts)
        own = next((p.dtype for p in module._parameters.values() if p is not None and p.is_floating_point()), None)
        found = found or own
        if own and isinstance(module, _LAYERS) and not any(part in path for part in _UNCAST):
            break
    if found is None or found.itemsize == 1:
        raise SfumatoError(
            f"{type(network).__name__} computes nothing in {found}; keep weights in float8 by "
            "enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)"
        )
    return found


_LAYERS = (torch.nn.Linear, torch.nn.Conv2d)
_UNCAST = ("pos_embed", "patch_embed", "norm")
"""Parts of the names of what diffusers' layerwise casting leaves as it is."""


def _casting(module: Any) -> torch.dtype | None:
    """What diffusers' layerwise casting computes in, where a layer has it."""
    hooks = getattr(module, "_diffusers_hook", None)
    hook = None if hooks is None else hooks.get_hook("layerwise_casting")
    return None if hook is None else hook.compute_dtype


def _cast_to(network: Any, dtype: torch.dtype) -> torch.dtype:
    for path, module in network.named_modules():
        plain = isinstance(module, _LAYERS) and not _casting(module)
        if plain and module.weight.is_floating_point() and module.weight.dtype != dtype:
            raise SfumatoError(
                f"{path} of the {type(network).__name__} is in {module.weight.dtype}, while other layers compute in "
                f"{dtype}; load the model with dtype={str(dtype).removeprefix('torch.')}, then enable its casting"
            )
    return dtype


def times(t: float | Float[Tensor, "*b"], x: Float[Tensor, "b *shape"]) -> Float[Tensor, " b"]:
    """A time for each row, as networks read it."""
    return torch.as_tensor(t, dtype=torch.float32).to(x.device).expand(len(x))


Similarity = Callable[[Float[Tensor, "b 3 h w"], Sequence[str]], Float[Tensor, " b"]]


class Backbone(ABC):
    """A pretrained denoiser with what belongs to it: text encoder, autoencoder, schedule."""

    name: str
    schedule: Schedule
    channels: int
    """Of the latents."""
    factor: int
    """Pixels a side of a latent's cell."""
    multiple: int
    """Sides of images are multiples of so many pixels."""
    size: int
    """Side in pixels of the images it was trained on."""
    network: Any
    """The torch module, whose attention can be tapped."""
    sites: tuple[Site, ...]
    """All its attention calls, in the order in which they run."""

    text_tokens: int
    """Length of the text that it reads."""

    noises: Noises = Independent()
    """How what is drawn for the images of a batch goes together; see ``with_noises``."""
    frames: int = 1
    """Of a clip, the most that it attends over together; 1: it paints images."""
    shorter: str = "take fewer"
    """What to do about more."""
    similarity: Similarity | None = None
    """Of images in [0, 1] and texts, a number a pair, differentiable: by a CLIP that belongs to the model."""
    seen_features: Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b d"]] | None = None
    """Of images in [0, 1], what that CLIP makes of them, differentiable."""

    @property
    def distilled(self) -> float | None:
        """The guidance that it was distilled to run at: 1 is none of it, and None that it was not."""
        return 1.0 if self.schedule.distilled else None

    def guided(self, scale: float | None) -> Any:
        """The guidance that it is used with at a scale (its usual one), where that is of its own kind; None: CFG's."""
        return None

    @property
    def device(self) -> torch.device:
        """Where its inputs go: where the network computes, wherever accelerate lets its weights wait."""
        return self.waits_for or next(self.network.parameters()).device

    @property
    def waits_for(self) -> torch.device | None:
        """The device that accelerate brings the weights to when they are needed; None where they are there."""
        for module in self.network.modules():
            hook = getattr(module, "_hf_hook", None)
            for each in (hook, *getattr(hook, "hooks", ())):  # one, or several as one
                if place := getattr(each, "execution_device", None):
                    return torch.device(place)
            if any(True for _ in module.parameters(recurse=False)):
                return None
        return None

    def given(self, change: Callable[[Cond], Cond]) -> Self:
        """This model with something changed in all that it reads: the same networks, another ``embed``.

        Such as a depth map under every prompt: ``model.given(lambda cond: model.with_depth(cond, depth))``.
        """
        other, embed, negatives = copy(self), self.embed, self.embed_negative
        other.embed = lambda prompts: change(embed(prompts))
        other.embed_negative = lambda prompts: change(negatives(prompts))
        return other

    def with_noises(self, noises: Noises) -> Self:
        """This model, whose runs and inversions draw their noise for the images of a batch as one set's."""
        other = copy(self)
        other.noises = noises
        return other

    @property
    def dtype(self) -> torch.dtype:
        """In which the network computes."""
        return dtype_of(self.network)

    @property
    def networks(self) -> tuple[Any, ...]:
        """All that computes what it paints."""
        return (self.network,)

    def remedy(self) -> str:
        """What to do where its numbers are not finite."""
        if wrong := next(filter(None, map(unsound, self.networks)), None):
            return wrong
        if self.dtype == torch.float16:
            return "float16 ends at 65504: load it with dtype float32 or bfloat16"
        return "take a lower guidance, or weaker settings of what takes part"

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Its features that methods may read and write."""
        return token_layers(self.sites, self.network)

    def __repr__(self) -> str:
        side = self.size // self.factor
        latents = f"latents of {self.channels} x {side} x {side}"
        return f"<{self.name}: images of {self.size} x {self.size}, {latents}, {len(self.sites)} attention calls>"

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Cond:
        """What the network reads of these prompts, a row each."""

    def embed_negative(self, prompts: Sequence[str]) -> Cond:
        """What it reads of what images should not be; some pipelines do not treat that as they treat prompts."""
        return self.embed(prompts)

    @abstractmethod
    def predict(self, x: Float[Tensor, "b c h w"], t: float | Float[Tensor, "*b"], cond: Cond) -> Tensor:
        """The network's own prediction (see ``schedule.prediction``), float32, without what it says of variance."""

    def with_variance(self, x: Float[Tensor, "b c h w"], t: float | Float[Tensor, "*b"], cond: Cond) -> Tensor:
        """``predict``, and as further channels what the network says of variance, where it does."""
        return self.predict(x, t, cond)

    @abstractmethod
    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1] as latents of unit variance: the mean of the encoder's distribution."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Latents as images in [0, 1]."""

    @abstractmethod
    def words(self, prompt: str) -> list[tuple[str, slice]]:
        """The words of a prompt and which tokens of the text each became."""

    def check_change(self, source: str, target: str) -> None:  # noqa: B027 - who reads all of it refuses nothing
        """Raise ``SfumatoError`` where two prompts differ only in what is cut off."""

    def latents(self, seeds: Sequence[int], height: int, width: int, frames: int = 1) -> Float[Tensor, "b c h w"]:
        """Unit normal noise, as ``noises`` has it of images or clips, drawn on the CPU so that all devices start alike.

        Height and width in pixels. Raises ``SfumatoError`` unless both are multiples of ``multiple``.
        """
        self.check_size(height, width)
        shape = (self.channels, height // self.factor, width // self.factor)
        return self.noises.clips(seeds, shape, frames)().to(self.device)

    def levels(self, steps: int, grid: Sequence[int]) -> Levels:
        """The levels of a run on latents of this height and width: some flows shift theirs with the size."""
        return self.schedule.levels(steps, grid[0] * grid[1] // 4)

    def check_frames(self, frames: int, longer: bool = False) -> None:
        """Raise ``SfumatoError`` unless clips of so many frames can be painted.

        ``longer``: something takes part that lets it attend over some of them at a time.
        """
        frames = integer("a number of frames", frames)
        if frames < 1:
            raise SfumatoError(f"a clip has at least 1 frame, got {frames}")
        if frames > 1 and self.frames == 1:
            raise SfumatoError(
                f"{self.name} paints images, not clips of {frames} frames; an AnimateDiff adapter (motion, --motion) "
                "lets Stable Diffusion 1 paint them"
            )
        if frames > self.frames and not longer:
            raise SfumatoError(f"{self.name} attends over at most {self.frames} frames, got {frames}; {self.shorter}")

    def check_size(self, height: int, width: int) -> None:
        """Raise ``SfumatoError`` unless images of this size in pixels can be painted."""
        if height % self.multiple or width % self.multiple or min(height, width) <= 0:
            raise SfumatoError(
                f"sides are multiples of {self.multiple} pixels for {self.name}, got {height} x {width}; "
                "read_image(path, model) fits a picture"
            )

    @property
    def colours(self) -> int:
        """Channels of its images."""
        return 3

    def check_images(self, images: Tensor) -> None:
        """Raise ``SfumatoError`` unless these are images in [0, 1] of a size that it paints."""
        if images.ndim != 4 or images.shape[1] != self.colours:
            raise SfumatoError(f"images are (b, {self.colours}, H, W), got {tuple(images.shape)}")
        check_range(images)
        self.check_size(*images.shape[-2:])

    @contextmanager
    def tap(self, handlers: Mapping[Any, Handler], rows: Rows | None = None, grid: Grid = (0, 0)) -> Iterator[Tap]:
        """Tap sites while the block runs: each handler sees its site's ``Call`` in every prediction."""
        with tapped(self.network, Tap(handlers, rows=rows, grid=grid)) as tap:
            yield tap

    def maps(
        self,
        x: Float[Tensor, "b c h w"],
        t: float | Float[Tensor, "*b"],
        cond: Cond,
        sites: Sequence[Any],
        reduce: Callable[[Any], Tensor],
    ) -> dict[Any, Tensor]:
        """What ``reduce`` makes of each site's ``Call`` and each layer's ``Activation`` in one prediction.

        It stops after the last of them. Gradients flow to ``x`` and ``cond`` where they are on.
        """
        found: dict[Any, Tensor] = {}
        handlers: dict[Any, Handler] = {site: lambda seen: found.__setitem__(seen.site, reduce(seen)) for site in sites}
        rows = replace(single(len(x)), frames=cond.frames)
        with self.tap(handlers, rows, (x.shape[-2], x.shape[-1])) as tap:
            tap.stop = True
            with suppress(Enough):
                self.predict(x, t, cond)
            tap.check(self.network)
        return found


def check_model(model: Any) -> None:
    """Refuse what is no model, such as its name."""
    if isinstance(model, type) or not hasattr(model, "factor"):
        name = f'"{model}"' if isinstance(model, str | os.PathLike) else '"stilllife"'
        raise SfumatoError(f"a model is what load gives, such as load({name}), got {shown(model)}")
