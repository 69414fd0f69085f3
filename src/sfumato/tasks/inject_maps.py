"""Paint a new view of a scene from its depth, with where words look rendered of the scene and put into the painting.

Seed 000, section 6.3 (figure 6.15): attention maps of each head and layer are read of a capture's views, lifted into
the scene, rendered from a camera, and take the place of the network's own while that view is painted by a ControlNet on
the scene's depth. Without them it knows shapes alone, and not which of them is what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.backbones.controlnets import ControlNet
from sfumato.core.attention import Call
from sfumato.core.backbone import Backbone
from sfumato.core.choice import choose
from sfumato.core.denoising import denoise
from sfumato.core.method import Edit, Method, Phases, Requires, Run, Where
from sfumato.core.sites import Grid, Site
from sfumato.core.steppers import DDIM
from sfumato.distill import Images
from sfumato.distill.generators import Generator
from sfumato.errors import SfumatoError
from sfumato.prompts.words import spans
from sfumato.scene.cameras import Pinholes
from sfumato.scene.capture import Capture
from sfumato.scene.features import FeatureField
from sfumato.tasks.segment_scene import LIFT_STEPS, SMOOTH, head_maps, lift

Given = Mapping[str, Float[Tensor, "n heads h w"]]
"""A word's maps by the paths of sites; of all that are not named, at the empty one. One of all images or one each, one
of all heads or one each."""
TIMES = (1, 201, 401, 601)
"""Levels of noise at which maps are read, and averaged: of seed 000's 0 to 700."""


@dataclass(frozen=True, eq=False)
class GivenAttention(Method):
    """Cross-attention to words is what it is given, in the first steps and in conditional rows; the other words keep
    theirs, and nothing is normalised again, as in Prompt-to-Prompt. Sites that are given nothing keep all of theirs."""

    requires: ClassVar = Requires(words=True, windows=False, groups=True)

    maps: Mapping[str, Given]
    """Of words of the prompt."""
    until: float = 0.5
    """Part of the steps in which it acts: seed 000 found it to diverge where it acts too long."""
    strength: float = 1.0
    """Share of what is given; the rest is the network's own."""
    spread: bool = False
    """Are maps shapes alone? Then each head's own attention to a word is spread over the picture as its map is; if not,
    they are probabilities."""

    def start(self, run: Run) -> Phases:
        for word, given in self.maps.items():
            for path, x in given.items():
                if x.ndim != 4 or len(x) not in (1, run.rows.of_stream) or not x.isfinite().all():
                    raise SfumatoError(
                        f"maps of {word!r} at {path or 'all sites'} are finite, for one image or {run.rows.of_stream}, "
                        f"a map a head; got {tuple(x.shape)}"
                    )
        tokens = {
            stream: [[spans(run.model.words(prompt), word) for word in self.maps] for prompt in prompts]
            for stream, prompts in run.prompts.items()
        }
        if not (self.strength and self.until and self.maps):
            return Phases()

        def do(call: Call) -> None:
            maps = [resized(given, call.site, call.grid) for given in self.maps.values()]
            for name in call.rows.match("cond"):
                probs = call.block(name, "image->text").clone()
                for row, image in enumerate(call.rows.numbers):
                    for some, given in zip(tokens[name[0]][image], maps, strict=True):
                        if given is None:
                            continue
                        own = probs[row][..., some]
                        new = given[image % len(given)][..., None].to(own)
                        if self.spread:
                            new = new / new.sum(1, keepdim=True).clamp_min(1e-12) * own.sum(1, keepdim=True)
                        probs[row, ..., some] = (1 - self.strength) * own + self.strength * new
                call.set_block(name, "image->text", probs)

        def chosen(site: Any) -> bool:
            return any(_of(maps, site) is not None for maps in self.maps.values())

        where = Where("image->text", steps=(0, self.until), rows="cond", sites=chosen)
        for site in choose(run.model, where, run.grid, "given attention"):
            for word, maps in self.maps.items():
                found = _of(maps, site)
                if found is not None and found.shape[1] not in (1, site.heads):
                    raise SfumatoError(
                        f"{site.path} has {site.heads} heads, and maps of {found.shape[1]} are given of {word!r}"
                    )
        return Phases((Edit(where, "probs", do),))


def _of(given: Given, site: Site) -> Tensor | None:
    return given.get(site.path, given.get(""))


def resized(given: Given, site: Site, grid: Grid) -> Float[Tensor, "n heads queries"] | None:
    """What is given for a site, at its grid; None where nothing is."""
    found = _of(given, site)
    if found is None:
        return None
    small = F.interpolate(found.float(), grid, mode="bilinear", antialias=True, align_corners=False)
    return small.clamp(0, 1).flatten(2)


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
