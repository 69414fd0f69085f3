"""How smooth a guided run is (Jambon 2023, figs. 5.6-5.8): ``trajectory`` with the source's finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from sfumato.core.backbone import Backbone
from sfumato.core.settings import Between
from sfumato.experiments.common import Subjects, listed, percent
from sfumato.experiments.experiment import Experiment, Findings, Seed
from sfumato.experiments.trajectory import Course, follow


@dataclass(frozen=True)
class Smoothness(Experiment):
    """How smooth guided sampling is: the figures of ``trajectory``, of one prompt, beside the source's finding.

    Example: sfumato experiment smoothness --prompt "a red cube on grass" --steps 50
    """

    prompt: str = ""
    """Paint this, in the words of the built-in model [default: one thing on some ground, drawn]."""
    seed: Seed = 0
    """The same seed gives the same result."""
    steps: Annotated[int, Between(2, 1000)] = 100
    """DDIM steps."""
    guidances: tuple[float, ...] = (1.0, 3.0, 7.5, 15.0, 30.0)
    """Scales of classifier-free guidance, u + s (c - u)."""

    source = (
        "Jambon 2023, figures 5.6 to 5.8: the guidance term is noisy from step to step even at a low scale and more so "
        "the higher it is, latents stray over larger ranges, and at a high scale pixels collapse to 0 and 1."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._prompt()

    def _prompt(self) -> str:
        of = Subjects.of(self.prompt, 1, self.seed) if self.prompt else Subjects.drawn(1, self.seed)
        return of.prompts[0]

    def path(self, folder: Path, word: str) -> Path:
        return folder / word / "similarity.png"

    def settings(self, model: Backbone) -> dict[str, Any]:
        settings = {"seed": self.seed, "steps": self.steps, "guidances": self.guidances}
        return {"model": model.name, **settings, "prompts": [self._prompt()]}

    @property
    def works(self) -> int:
        return 2

    def run(self, model: Backbone) -> Smooth:
        prompt = self._prompt()
        course = follow(model, prompt, sorted(self.guidances), steps=self.steps, seed=self.seed)
        return Smooth(replace(course, words={"prompt": prompt, "model": model.name}))


@dataclass(frozen=True)
class Smooth(Findings):
    """A course, and what it says of smoothness. The first of its figures stands for the three."""

    course: Course

    def numbers(self) -> list[dict[str, Any]]:
        return self.course.rows()

    def draw(self, path: Path, about: str = "") -> None:
        self.course.draw(path, about)

    def ours(self) -> str:
        rows = self.course.rows()

        def along(values: list[float], form: Callable[[float], str]) -> str:
            grows = values == sorted(values) and values[0] < values[-1]
            falls = values == sorted(values, reverse=True) and values[0] > values[-1]
            way = "grows" if grows else "falls" if falls else "goes up and down"
            return f"{way} ({listed([form(v) for v in values])})"

        guidance = [row["similarity"]["guidance"] for row in rows]
        noise = [row["similarity"]["unconditional"] for row in rows]
        noisier = sum(g < n for g, n in zip(guidance, noise, strict=True))
        scales = listed([f"{s:g}" for s in self.course.scales])
        likeness = along(guidance, "{:.3f}".format)
        wide = along([row["range"] for row in rows], "{:.2f}".format)
        border = along([row["border"] for row in rows], lambda v: percent(v, 1))
        return (
            f"Over guidance {scales}, the likeness of successive guidance terms {likeness}, below that of the "
            f"unconditional noise at {noisier} of {len(rows)} scales; the range of the latents' paths {wide}; the part "
            f"of pixel values at 0 or 1 {border}."
        )
