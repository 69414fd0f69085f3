"""What a run looks like while it goes on, for who listens."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sfumato.core.method import Step
from sfumato.io.progress import show
from sfumato.media import pictures


def previewing(every: int, stream: str = "main") -> Callable[[Step], None] | None:
    """A ``callback`` that shows what a stream's prediction stands for, every so many steps; 0 is never."""

    def watch(step: Step) -> None:
        if (step.i + 1) % every == 0:
            with torch.no_grad():
                images = step.run.model.decode(step.x0[step.run.images(stream)]).cpu()
            show(pictures.grid([pictures.picture(x) for x in images]))

    return watch if every else None
