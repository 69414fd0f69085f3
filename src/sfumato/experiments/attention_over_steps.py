"""Where words look while an image is painted, step by step (Jambon 2023, section 6.3; Hertz et al. 2023, figure 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.denoising import denoise
from sfumato.core.results import Sample
from sfumato.core.settings import Between
from sfumato.core.watch import Attention
from sfumato.experiments.experiment import Experiment, Findings, Seed
from sfumato.media import plots
from sfumato.prompts.words import spans


@dataclass(frozen=True)
class Course(Findings):
    """Maps of each word at each step, and how they settle."""

    painted: Sample
    maps: Mapping[str, Float[Tensor, "steps h w"]]

    def likeness(self, word: str) -> Float[Tensor, " steps"]:
        """Cosine of each step's map, less its mean, with the last one's: 1 where a word looks where it will."""
        maps = self.maps[word].flatten(1)
        away = maps - maps.mean(1, keepdim=True)
        return torch.cosine_similarity(away, away[-1:], dim=1)

    def spread(self, word: str) -> Float[Tensor, " steps"]:
        """Entropy of each map over that of a flat one: 1 where a word looks everywhere alike."""
        maps = self.maps[word].flatten(1)
        share = maps / maps.sum(1, keepdim=True).clamp_min(1e-12)
        return -(share * share.clamp_min(1e-12).log()).sum(1) / torch.tensor(float(maps.shape[1])).log()

    def numbers(self) -> dict[str, Any]:
        return {"words": {w: {k: getattr(self, k)(w).tolist() for k in ("likeness", "spread")} for w in self.maps}}

    def draw(self, path: Path, about: str = "", columns: int = 8) -> None:
        """A row a word: some of its maps, and how alike they are to the last one."""
        words = list(self.maps)
        steps = len(self.maps[words[0]])
        chosen = sorted({round(i * (steps - 1) / (columns - 1)) for i in range(columns)})
        size = (1.1 * len(chosen) + 2.6, max(2.2, 1.25 * len(words)) + 2.1)
        looks = dict(zip(words, ({"color": c} for c in plots.colours(len(words))), strict=True))
        with plots.figure(path, size, "Attention over steps", about) as figure:
            upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(size[1] - 2.1, 1.8))[:, 0]
            grid = upper.add_gridspec(len(words), len(chosen) + 2)
            for row, word in enumerate(words):
                for column, i in enumerate(chosen):
                    axes = upper.add_subplot(grid[row, column])
                    axes.imshow(self.maps[word][i].numpy(), cmap="magma")
                    axes.set_axis_off()
                    axes.set_title(f"{i + 1}" if column else f"{word}, step {i + 1}", fontsize=7.5)
            plots.image(upper.add_subplot(grid[:, len(chosen) :]), self.painted.images[0])
            for axes, (what, title) in zip(
                lower.subplots(1, 2),
                (("likeness", "likeness to the last map"), ("spread", "spread, of 1")),
                strict=True,
            ):
                for word, look in looks.items():
                    axes.plot(range(1, steps + 1), getattr(self, what)(word).numpy(), **look)
                axes.set_xlabel("step")
                axes.set_title(title)
            plots.legend(lower, looks)


@dataclass(frozen=True)
class AttentionOverSteps(Experiment):
    """Where words look while an image is painted, step by step, and how soon their maps settle.

    Example: sfumato experiment attention "a red cube on grass" --words red,cube,grass
    """

    prompt: str
    """What to paint."""
    words: tuple[str, ...] = ()
    """Words of it [default: all]."""
    steps: Annotated[int, Between(2, 1000)] = 50
    """DDIM steps."""
    guidance: float = 7.5
    """Scale of classifier-free guidance."""
    seed: Seed = 0
    """The same seed gives the same result."""

    def settings(self, model: Backbone) -> dict[str, Any]:
        return {"prompt": self.prompt}

    def run(self, model: Backbone) -> Course:
        """Paint the prompt and keep the mean map of each word at every step. ``SfumatoError`` for one it has not."""
        known = model.words(self.prompt)
        words = self.words or dict.fromkeys(w.strip(",.;:!?") for w, _ in known)
        places = {word: spans(known, word) for word in words}
        kept = Attention()
        painted = denoise(model, self.prompt, methods=[kept], steps=self.steps, guide=self.guidance, seed=self.seed)
        return Course(painted, {w: torch.stack([m[0][..., at].sum(-1) for m in kept.sums]) for w, at in places.items()})
