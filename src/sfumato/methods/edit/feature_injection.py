"""Features of a source, moved, injected while something is painted: directly, mixed in, or by a loss.

What ``FeatureTransfer`` is made of; its docstring says where all of this comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.backbone import Backbone
from sfumato.core.features import Activation
from sfumato.core.method import Edit, Energy, Method, Need, Phases, Run, Step, Where
from sfumato.core.settings import Part, PartOfSteps, Positive, Weight
from sfumato.core.sites import Grid
from sfumato.errors import SfumatoError
from sfumato.methods.edit.plug_and_play import decoder_layer
from sfumato.ops.warps import Similarity
from sfumato.prompts.alignment import refinement


@dataclass(frozen=True)
class Injecting:
    """What is injected, how, and where to."""

    right: float = 0.25
    """How far everything moves, as a part of the width."""
    down: float = 0.0
    """As a part of the height."""
    turn: float = 0.0
    """Degrees, counter-clockwise, about the middle; 20 in the figure."""
    scale: Positive = 1.0
    """Above 1 is larger."""
    features: PartOfSteps = 0.8
    """Part of the steps in which a layer's features are injected."""
    attention: PartOfSteps = 0.5
    """Part of the steps in which self-attention is injected, from that layer on."""
    cross: PartOfSteps = 0.0
    """Part of the steps in which attention to the words that both prompts have is injected."""
    inject: Literal["direct", "mixed", "guided"] = "direct"
    """Replace what the edit has, mix the two, or let the latents go down their distance."""
    weight: Part = 0.5
    """Of the source in a mixture."""
    strength: Weight = 100.0
    """Of the loss when guided."""
    res: Part = 0.25
    """Side of the layer, as a part of the latents' side."""

    @property
    def move(self) -> Similarity:
        return Similarity(self.right, self.down, self.turn, self.scale)

    def check(self, model: Backbone) -> None:
        """Raise ``SfumatoError`` for what is no transformation, no mixture, or not in the model."""
        if not (abs(self.right) < 1 and abs(self.down) < 1):
            raise SfumatoError(f"a move by a whole side or more leaves nothing, got {self.right} and {self.down}")
        if self.features and not _unet(model):
            raise SfumatoError(f"{model.name} is no UNet and has no features of ResNets; set features to 0")

    def phases(self, run: Run) -> Phases:
        """The injection from the run's first stream into all others."""
        self.check(run.model)
        source, *targets = run.rows.streams
        if not targets:
            raise SfumatoError("moved features need two prompts, of a picture and of its edit")
        layer, behind = decoder_layer(run, self.res) if _unet(run.model) else (None, None)
        words = {t: _Words(run, source, t) for t in targets} if self.cross else {}
        into = _Guided if self.inject == "guided" else _Written
        return into(self, run, words).phases({"residual": lambda at: at == layer, "image->image": behind})


@dataclass(frozen=True)
class Injection(Injecting, Method):
    """The injection alone: for a source that is itself painted, or that any inversion starts.

    The run's first stream is the source; the others start where the run says.
    """

    def start(self, run: Run) -> Phases:
        return self.phases(run)


def _unet(model: Backbone) -> bool:
    return any(layer.kind == "residual" for layer in model.layers)


Chosen = dict[str, Callable[[Any], bool] | None]


@dataclass(frozen=True)
class _Written:
    """Direct and mixed: what is moved is written where it belongs, and elsewhere the edit keeps its own."""

    how: Injecting
    run: Run
    words: dict[str, _Words]

    def phases(self, where: Chosen) -> Phases:
        edits, how = [], self.how
        for t in self.run.rows.streams[1:]:
            if how.features:
                do = self._features(t)
                edits.append(
                    Edit(
                        Where("residual", steps=(0, how.features), rows=(t, None), sites=where["residual"]),
                        "feature",
                        do,
                    )
                )
            if how.attention:
                do, at = self._attention(t), where["image->image"]
                edits.append(
                    Edit(
                        Where("image->image", steps=(0, how.attention), rows=(t, None), sites=at), "qkv", do, parts="qk"
                    )
                )
            if how.cross:
                edits.append(
                    Edit(Where("image->text", steps=(0, how.cross), rows=(t, "cond")), "probs", self._cross(t))
                )
        return Phases(tuple(edits))

    def _into(self, own: Float[Tensor, "b c h w"], new: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        mixed = torch.lerp(own, new, self.how.weight) if self.how.inject == "mixed" else new
        inside = self.how.move.inside(own.shape[-2], own.shape[-1]).to(own.device)
        return torch.where(inside, mixed, own)

    def _features(self, target: str):
        base = (self.run.rows.streams[0], "cond")

        def inject(feature: Activation) -> None:
            new = self.how.move(feature.get(base))
            for c in self.run.rows.conditions:
                feature.set((target, c), self._into(feature.get((target, c)), new))

        return inject

    def _attention(self, target: str):
        base = (self.run.rows.streams[0], "cond")

        def inject(call: Call) -> None:
            for which in "qk":
                new = self.how.move(_spread(call.get(which, base, "image"), call.grid))
                for c in self.run.rows.conditions:
                    own = call.get(which, (target, c), "image")
                    call.set(which, (target, c), _gathered(self._into(_spread(own, call.grid), new), own), "image")

        return inject

    def _cross(self, target: str):
        base, name = (self.run.rows.streams[0], "cond"), (target, "cond")

        def inject(call: Call) -> None:
            own = call.block(name, "image->text")
            new = self.words[target](call.block(base, "image->text"), own)
            mixed = self._into(_spread(own, call.grid), self.how.move(_spread(new, call.grid)))
            call.set_block(name, "image->text", _gathered(mixed, own))

        return inject


@dataclass(frozen=True)
class _Guided:
    """A loss on the features that the latents go down: L1, relative to the mean of what is wanted."""

    how: Injecting
    run: Run
    words: dict[str, _Words]

    def phases(self, where: Chosen) -> Phases:
        how = self.how
        needs = (
            Need(Where("residual", steps=(0, how.features), rows="cond", sites=where["residual"])),
            Need(Where("tokens", steps=(0, how.attention), rows="cond", sites=where["image->image"])),
            Need(Where("image->text", steps=(0, how.cross), rows="cond")),
        )
        parts = (how.features, how.attention, how.cross)
        wanted = tuple(need for need, part in zip(needs, parts, strict=True) if part)

        def energy(step: Step) -> Tensor:
            terms = [self._loss(found, at) for need in wanted for at, found in step.maps.get(need, {}).items()]
            return how.strength * torch.stack([step.x.new_zeros(()), *terms]).sum()

        return Phases(needs=wanted, energy=Energy(energy, steps=(0, max(parts))))

    def _loss(self, found: dict[tuple[str, str], Tensor], at: Any) -> Tensor:
        """Summed over the images."""
        source, *targets = self.run.rows.streams
        grid, total = at.grid(self.run.grid), torch.zeros(())
        inside = self.how.move.inside(*grid).to(found[source, "cond"].device)
        for t in targets if inside.any() else ():
            own, base = found[t, "cond"], found[source, "cond"].detach()
            if "image->text" in at.pairs and self.words:
                base = self.words[t](base[:, None], own.detach()[:, None])[:, 0]
            if own.ndim == 3:  # tokens, or maps
                own, base = _spread(own[:, None], grid), _spread(base[:, None], grid)
            wanted = self.how.move(base)[..., inside]
            away = (own[..., inside] - wanted).abs().flatten(1).mean(1)
            total = total.to(away) + (away / wanted.abs().flatten(1).mean(1).clamp_min(1e-12)).sum()
        return total


class _Words:
    """Maps of the source's words as maps of a target's; words that only the target has keep its own."""

    def __init__(self, run: Run, source: str, target: str):
        matrices, known = [], []
        for a, b in zip(run.prompts[source], run.prompts[target], strict=True):
            matrix, both = refinement(run.model.words(a), run.model.words(b), run.model.text_tokens)
            matrices.append(matrix)
            known.append(both)
        self.matrix = run.rows.spread(torch.stack(matrices))[:, None]
        self.known = run.rows.spread(torch.stack(known))[:, None, None]

    def __call__(
        self, maps: Float[Tensor, "each heads n source"], own: Float[Tensor, "each heads n target"]
    ) -> Float[Tensor, "each heads n target"]:
        return torch.where(self.known.to(own.device), maps @ self.matrix.to(maps), own)


def _spread(x: Float[Tensor, "b heads n d"], grid: Grid) -> Float[Tensor, "b heads*d h w"]:
    return x.transpose(-1, -2).reshape(len(x), -1, *grid)


def _gathered(x: Float[Tensor, "b heads*d h w"], like: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b heads n d"]:
    return x.reshape(like.transpose(-1, -2).shape).transpose(-1, -2)
