"""Paint a new view of a scene from its depth, with where words look rendered of the scene and put into the painting.

Seed 000, section 6.3 (figure 6.15): attention maps of each head and layer are read of a capture's views, lifted into
the scene, rendered from a camera, and take the place of the network's own while that view is painted by a ControlNet on
the scene's depth. Without them it knows shapes alone, and not which of them is what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones.controlnets import ControlNet
from sfumato.core.backbone import Backbone
from sfumato.core.denoising import denoise
from sfumato.core.method import Method
from sfumato.core.steppers import DDIM
from sfumato.distill import Images
from sfumato.distill.generators import Generator
from sfumato.errors import SfumatoError
from sfumato.methods.control.given_attention import Given
from sfumato.scene.cameras import Pinholes
from sfumato.scene.capture import Capture
from sfumato.scene.features import FeatureField
from sfumato.tasks.segment_scene import LIFT_STEPS, SMOOTH, head_maps, lift

TIMES = (1, 201, 401, 601)
"""Levels of noise at which maps are read, and averaged: of seed 000's 0 to 700."""


def soft(maps: Float[Tensor, "n k h w"], sharpness: float = 10.0) -> Float[Tensor, "n k h w"]:
    """Maps with a soft threshold: normalize(sigmoid(s (normalize(A) - 0.5))), each from 0 to 1 (Epstein et al. 2023,
    arXiv 2306.00986, with their s; seed 000, B.1)."""

    def normalize(x: Tensor) -> Tensor:
        low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return (x - low) / (high - low).clamp_min(1e-12)

    return normalize(torch.sigmoid(sharpness * (normalize(maps) - 0.5)))


@dataclass(frozen=True, eq=False)
class SceneAttention:
    """Where words look by each head of each layer, as a scene has it."""

    words: tuple[str, ...]
    names: tuple[str, ...]
    """Of a word's maps, as ``head_maps`` has them."""
    features: FeatureField
    """The words' maps one behind the other."""

    def view(self, cameras: Pinholes, smooth: float = SMOOTH) -> dict[str, Given]:
        """What ``GivenAttention`` is given for images from these cameras."""
        paths = [name.rpartition(", head ")[0] for name in self.names]
        parts = self.features.view(cameras, smooth).cpu().split(len(paths), 1)
        return {
            word: {path: part[:, [i for i, p in enumerate(paths) if p == path]] for path in dict.fromkeys(paths)}
            for word, part in zip(self.words, parts, strict=True)
        }


def lift_attention(
    model: Backbone,
    capture: Capture,
    scene: Generator,
    prompt: str,
    words: Sequence[str],
    *,
    times: Sequence[float] = TIMES,
    stage: str | None = "up",
    steps: int = LIFT_STEPS,
    seed: int = 0,
    keep: Path | None = None,
) -> SceneAttention:
    """Where words of a prompt look in a capture's views, by each head, lifted into the scene."""
    found = [head_maps(model, capture.images, prompt, word, steps=times, stage=stage) for word in words]
    maps, about = torch.cat([maps for maps, _ in found], 1), f"{prompt!r} {words} {times} {stage}"
    return SceneAttention(
        tuple(words), found[0][1], lift(scene, capture.cameras, maps, steps=steps, seed=seed, keep=keep, about=about)
    )


@torch.no_grad()
def nearness(scene: Generator, cameras: Pinholes) -> Float[Tensor, "n 3 h w"]:
    """A scene's depth along the axis as depth ControlNets read it: disparity, 1 at the nearest pixel of a view, 0 where
    rays go through."""
    shows: Any = scene
    seen = shows.view(cameras)
    if seen.depth is None or seen.alpha is None:
        raise SfumatoError(f"{type(scene).__name__} shows no depth, which views are painted by")
    depth, alpha = seen.depth[:, 0].cpu(), seen.alpha[:, 0].cpu()
    there = (alpha > 0.5) & (depth > 1e-6)
    disparity = torch.where(there, cameras.slant() / depth.clamp_min(1e-6), 0.0)
    near = disparity.amax((1, 2), keepdim=True).clamp_min(1e-12)
    return (disparity / near)[:, None].repeat(1, 3, 1, 1)


def paint_views(
    model: Backbone,
    scene: Generator,
    cameras: Pinholes,
    prompt: str,
    network: Any,
    methods: Sequence[Method] = (),
    *,
    guide: float = 5.0,
    steps: int = 30,
    eta: float = 0.0,
    seed: int = 0,
) -> Images:
    """Views painted on a scene's depth. ``network``: a ControlNet on depth; ``eta``: of DDIM's noise, which seed 000
    found to help what is injected (figure 6.16)."""
    depth = ControlNet(network, nearness(scene, cameras).to(model.device))
    painted = denoise(
        model, [prompt] * len(cameras), methods=methods, guide=guide, steps=steps, size=cameras.size, seed=seed,
        stepper=DDIM(eta), controls=[depth],
    )  # fmt: skip
    return painted.images.cpu()
