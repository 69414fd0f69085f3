"""Plug-and-Play diffusion features (Tumanyan et al. 2023, arXiv 2211.12572): the source's layout under other words.

What a layer in the middle of the decoder says is where things are and what parts they have, and little of how they
look. So the target gets the source's features of that layer, and in the first half of the steps the queries and keys,
which are the maps, of self-attention from there on (section 4); its own words are left to say the rest.

Defaults: the paper's, which are the authors' code's: features in the first 40 of 50 steps, self-attention in the first
25, guidance 7.5. The layer is their fourth of the decoder's twelve, counted from 0: the second at a quarter of the
latents' side, which is what is looked for in other networks, at the nearest side that they have; self-attention is
theirs of the layers 4 to 11. As there, all conditions of the target get the features of the source under its own
prompt, at its latents of the same step: ``Direct`` holds it there. They invert with an empty prompt in 999 steps, and
say "ugly, blurry, black, low res, unrealistic" in place of the empty prompt, which is a matter of the guidance.

Needs: the output of one ResNet, and image->image queries and keys, which stay fused; no further network calls.

Families: UNets, which are Stable Diffusion 1, 2 and XL and DeepFloyd IF.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from sfumato.core.attention import Call
from sfumato.core.choice import nearest_side
from sfumato.core.features import Activation
from sfumato.core.method import Edit, Method, Phases, Requires, Run, Where
from sfumato.core.settings import Part, PartOfSteps
from sfumato.core.sites import Layer, Site
from sfumato.errors import SfumatoError


@dataclass(frozen=True)
class PlugAndPlay(Method):
    """The run's first stream is the source, all others keep its layout."""

    requires: ClassVar = Requires(source=True, groups=True)
    prompted: ClassVar = True

    features: PartOfSteps = 0.8
    """Part of the steps in which the layer's features are the source's."""
    attention: PartOfSteps = 0.5
    """Part of the steps in which self-attention is the source's."""
    res: Part = 0.25
    """Side of the layer, as a part of the latents' side: coarser keeps less of the source."""

    def start(self, run: Run) -> Phases:
        source, *targets = run.rows.streams
        layer, behind = decoder_layer(run, self.res)

        def features(target: str):
            def inject(feature: Activation) -> None:
                for c in run.rows.conditions:
                    feature.set((target, c), feature.get((source, "cond")))

            return inject

        def attention(target: str):
            def inject(call: Call) -> None:
                for c in run.rows.conditions:
                    for which in "qk":
                        call.set(which, (target, c), call.get(which, (source, "cond"), "image"), "image")

            return inject

        def edits(target: str) -> tuple[Edit, ...]:
            rows = (target, None)
            return (
                Edit(
                    Where("residual", steps=(0, self.features), rows=rows, sites=lambda at: at == layer),
                    "feature",
                    features(target),
                ),
                Edit(
                    Where("image->image", steps=(0, self.attention), rows=rows, sites=behind),
                    "qkv",
                    attention(target),
                    parts="qk",
                ),
            )

        return Phases(tuple(e for t in targets for e in edits(t)))


def decoder_layer(run: Run, res: float) -> tuple[Layer, Callable[[Site | Layer], bool]]:
    """The second ResNet of a UNet's decoder at the side nearest to ``res``, and which attention is from there on.

    Raises ``SfumatoError`` for a network that is no UNet.
    """
    found = [layer for layer in run.model.layers if layer.kind == "residual" and layer.stage == "up"]
    if not found:
        raise SfumatoError(f"{run.model.name} is no UNet: there is no decoder whose features could be injected")
    side = nearest_side(found, run.grid, res)
    there = [layer for layer in found if min(layer.grid(run.grid)) == side]
    layer = there[min(1, len(there) - 1)]
    return layer, lambda site: site.stage == "up" and _block(site) >= _block(layer)


def _block(site: Site | Layer) -> tuple[int, int]:
    """Which block of the decoder, and which ResNet or attention of it: "up_blocks.1.resnets.0" is (1, 0)."""
    _, block, _, number = site.path.split(".")[:4]
    return int(block), int(number)
