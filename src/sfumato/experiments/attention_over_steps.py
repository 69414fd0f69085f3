"""Where words look while an image is painted, step by step (Jambon 2023, section 6.3; Hertz et al. 2023, figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.denoising import denoise
from sfumato.core.results import Sample
from sfumato.core.watch import Attention
from sfumato.media import plots
from sfumato.prompts.words import spans


@dataclass(frozen=True)
class Course:
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


def attention_over_steps(
    model: Backbone, prompt: str, words: Sequence[str], steps: int = 50, guide: float = 7.5, seed: int = 0
) -> Course:
    """Paint a prompt and keep the mean map of each word at every step. ``SfumatoError`` for a word it does not have."""
    known = model.words(prompt)
    places = {word: spans(known, word) for word in words}
    attention = Attention()
    painted = denoise(model, prompt, methods=[attention], steps=steps, guide=guide, seed=seed)
    maps = {w: torch.stack([m[0][..., at].sum(-1) for m in attention.sums]) for w, at in places.items()}
    return Course(painted, maps)


def draw(course: Course, path: Path, about: str, columns: int = 8) -> None:
    """A row a word: some of its maps, and how alike they are to the last one."""
    words = list(course.maps)
    steps = len(course.maps[words[0]])
    chosen = sorted({round(i * (steps - 1) / (columns - 1)) for i in range(columns)})
    size = (1.1 * len(chosen) + 2.6, max(2.2, 1.25 * len(words)) + 2.1)
    looks = dict(zip(words, ({"color": c} for c in plots.colours(len(words))), strict=True))
    with plots.figure(path, size, "Attention over steps", about) as figure:
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(size[1] - 2.1, 1.8))[:, 0]
        grid = upper.add_gridspec(len(words), len(chosen) + 2)
        for row, word in enumerate(words):
            for column, i in enumerate(chosen):
                axes = upper.add_subplot(grid[row, column])
                axes.imshow(course.maps[word][i].numpy(), cmap="magma")
                axes.set_axis_off()
                axes.set_title(f"{i + 1}" if column else f"{word}, step {i + 1}", fontsize=7.5)
        plots.image(upper.add_subplot(grid[:, len(chosen) :]), course.painted.images[0])
        for axes, (what, title) in zip(
            lower.subplots(1, 2), (("likeness", "likeness to the last map"), ("spread", "spread, of 1")), strict=True
        ):
            for word, look in looks.items():
                axes.plot(range(1, steps + 1), getattr(course, what)(word).numpy(), **look)
            axes.set_xlabel("step")
            axes.set_title(title)
        plots.legend(lower, looks)


def numbers(course: Course) -> dict[str, dict[str, list[float]]]:
    """The curves, for a machine to read."""
    return {w: {k: getattr(course, k)(w).tolist() for k in ("likeness", "spread")} for w in course.maps}
