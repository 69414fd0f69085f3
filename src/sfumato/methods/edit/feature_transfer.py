"""Feature transfer (Jambon 2023, "Improved 3D scene reconstruction with diffusion models", section 6.3, figure 6.20,
appendix B): everything in a picture moves, turns or grows with its features, in an edit.

Features of a picture are extracted, transformed, and injected while the edit is painted, by Plug-and-Play's layers and
steps. How well that goes depends on what the edit starts from. By the figure's letters: (b) ``random`` latents; (c)
``moved``, the picture's inverted latents, transformed like the features, which suits moves, to which a convolution is
blind, and not turns; (d) ``inverted``, the inversion of the transformed picture, a check of what could be had, as it
knows the answer; (e) ``corrupted``, the same of a transformed picture that has lost its details, for the features to
bring back. ``same``, the untransformed latents, is in the text: like (b) it spoils the picture.

Appendix B names three ways to extract, which are where the source is at each step: ``forward``, on the way to noise,
its latents still one step cleaner than what the network is told; ``reverse``, on the way back, at guidance 1;
``noise``, the picture with new noise in each step, which takes DDPM's steps. And three to inject: ``direct``;
``mixed``, a part of both; ``guided``, a loss that the latents go down, of L1 (Epstein et al. 2023) on features, the
inputs of self-attention and maps, each relative to the mean of what is wanted, so that one strength serves all layers.

Defaults: Plug-and-Play's. The text does not say what was put where nothing moves in, nor how pictures were corrupted.
Here features are the edit's own there, latents new noise (the rest moves by whole cells, which leaves it unit normal)
and pictures have their border's colours; corruption takes all that is finer than ``corruption``. Cross-attention is
injected on request, to the words that both prompts have. Weight and strength are ours.

Needs: the output of one ResNet, image->image queries and keys, with ``cross`` image->text probabilities; to invert, a
network call a step, of two rows where the transformed picture is inverted too; ``guided`` runs each of its steps
backwards.

Families: all; ``features`` are UNets' alone, others take features=0 and move self-attention in all layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.method import Phases, Requires, Run, Step
from sfumato.core.settings import Count, Part, Whole
from sfumato.core.steppers import DDIM
from sfumato.errors import SfumatoError
from sfumato.inversion.ddim import DDIMInversion
from sfumato.inversion.path import Advance, Inversion, Path, noise_of
from sfumato.methods.edit.blended_latents import noisy
from sfumato.methods.edit.feature_injection import Injecting


@dataclass(frozen=True)
class FeatureTransfer(Injecting, Inversion):
    """From a picture to the picture with everything in it moved: where source and edits are, and the injection."""

    latent: Literal["random", "same", "moved", "inverted", "corrupted"] = "moved"
    """What the edit starts from."""
    extract: Literal["forward", "reverse", "noise"] = "reverse"
    """Where the source is at each step."""
    corruption: Part = 0.1
    """Part of the picture's side below which it loses its details before it is inverted."""
    seed: Whole = 0
    """Of new noise."""
    steps: Count = 50

    def __call__(self, model: Backbone, image: Tensor, prompts: tuple[str, ...], advance: Advance) -> Path:
        self.check(model)
        if not 0 < self.corruption <= 1:
            raise SfumatoError(
                f"corruption is a part of the picture's side, above 0 and up to 1; got {self.corruption}"
            )
        levels = model.levels(self.steps, image.shape[-2:])
        again = self.latent in ("inverted", "corrupted")
        pictures = [image] * (self.extract != "noise") + [self._transformed(model, image)] * again
        tracks: list[tuple[Tensor, ...]] = []
        if pictures:
            both = DDIMInversion(steps=self.steps).track(model, torch.cat(pictures), prompts * len(pictures), advance)
            tracks = list(zip(*(x.chunk(len(pictures)) for x in both), strict=True))
        track = noisy(model, image, levels, self.seed) if self.extract == "noise" else tracks[0]
        first = tracks[-1][0] if again else self._first(track[0], noise_of(model, image, self.seed))
        seen = {"forward": track[1:], "reverse": (), "noise": track[:-1]}[self.extract]
        stepper = DDIM(1.0 if self.extract == "noise" else 0.0)
        return Transferred(track[0], levels, prompts, image, stepper, track, how=self, first=first, seen=seen)

    def _first(self, start: Tensor, noise: Tensor) -> Tensor:
        """What an edit starts from, of the picture's latents and new noise."""
        if self.latent == "random":
            return noise
        if self.latent == "same":
            return start
        inside = self.move.inside(start.shape[-2], start.shape[-1]).to(start.device)
        return torch.where(inside, self.move(start, "nearest"), noise)

    def _transformed(self, model: Backbone, image: Tensor) -> Tensor:
        """Latents of the picture once it is moved, and corrupted."""
        if self.move.still and self.latent == "inverted":
            return image
        picture = self.move(model.decode(image))
        if self.latent == "corrupted":
            h, w = picture.shape[-2:]
            small = [max(1, round(n / (self.corruption * min(h, w)))) for n in (h, w)]
            picture = F.interpolate(picture, small, mode="area")
            picture = F.interpolate(picture, (h, w), mode="bilinear", align_corners=False)
        return model.encode(picture)


@dataclass(frozen=True, eq=False, kw_only=True)
class Transferred(Path):
    """Where source and edits are, and the injection."""

    requires: ClassVar = Requires("FeatureTransfer", windows=False)

    how: Injecting
    first: Tensor
    """What the edits start from."""
    seen: tuple[Tensor, ...]
    """For each step where the source is; empty when it goes its own way, at guidance 1."""

    def start(self, run: Run) -> Phases:
        phases = self.how.phases(run)
        source, *targets = run.rows.streams
        base = run.images(source)

        def before(step: Step) -> None:
            x = step.x.clone()
            for t in targets if step.i == 0 else ():
                x[run.images(t)] = self.first.to(x)
            if self.seen:
                x[base] = self.seen[step.i].to(x)
            step.x = x

        def unguided(step: Step) -> None:
            x0, _ = run.model.schedule.x0_and_eps(step.parts["cond"][base], step.x[base], step.level)
            step.x0 = step.x0.clone()
            step.x0[base] = x0

        def after(step: Step) -> None:
            if step.i + 1 == run.steps:
                step.x_next = step.x_next.clone()
                step.x_next[base] = self.image.to(step.x_next)

        return replace(
            phases, before=before, denoised=None if self.seen else unguided, after=after if self.seen else None
        )
