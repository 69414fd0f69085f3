"""Where a run is, kept in a file after each step, so that one that was stopped goes on there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfumato.io.files import atomic

State = Sequence[dict[str, Tensor]]
"""Of each method, what it hands on."""


@dataclass
class Mark:
    """A run's latents and what its methods hand on, behind the last step that was taken."""

    file: Path
    key: str
    """Of the run: what was kept of another is not read."""
    drawn: int = 0
    """How often noise was drawn since the run began."""

    def opened(self, x: Tensor, states: State, draw: Callable[[], Tensor]) -> tuple[int, Tensor]:
        """The next step and the latents before it, states filled and noise drawn up to there; the first one's where
        nothing is kept."""
        with suppress(FileNotFoundError, SafetensorError), safe_open(self.file, "pt") as kept:
            about = kept.metadata() or {}
            if about.get("key") == self.key:
                for name in kept.keys():  # noqa: SIM118 - a file's, not a dict's
                    method, _, what = name.partition(" ")
                    if method != "x":
                        states[int(method)][what] = kept.get_tensor(name).to(x.device)
                for _ in range(int(about["drawn"])):
                    draw()
                self.drawn = int(about["drawn"])
                return int(about["step"]), kept.get_tensor("x").to(x)
        return 0, x

    def write(self, step: int, x: Tensor, states: State) -> None:
        """Keep what the step before ``step`` led to."""
        tensors = {"x": x} | {f"{n} {what}": value for n, state in enumerate(states) for what, value in state.items()}
        about = {"key": self.key, "step": str(step), "drawn": str(self.drawn)}
        with atomic(self.file) as place:
            save_file(
                {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, place, about
            )

    def drop(self) -> None:
        """The run is over."""
        self.file.unlink(missing_ok=True)

    def counting(self, draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """``draw``, which is counted."""

        def drawn() -> Tensor:
            self.drawn += 1
            return draw()

        return drawn
