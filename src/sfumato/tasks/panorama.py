"""Paint panoramas from words: canvases wider than a model's images, open at their ends or closed to a ring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.core import denoising
from sfumato.core.backbone import Backbone
from sfumato.core.guidance import Guide, Scales
from sfumato.core.method import Method
from sfumato.core.sphere import Sphere
from sfumato.core.steppers import Stepper
from sfumato.core.views import Ring, Tiles
from sfumato.errors import SfumatoError
from sfumato.io.progress import Listener
from sfumato.tasks import generate as images
from sfumato.tasks.generate import Generated, Keeper


@dataclass(frozen=True)
class Cost:
    """What a panorama takes."""

    windows: int
    """In which the network sees it."""
    height: int
    width: int
    """Of a window in pixels."""
    rows: int
    """That the network reads in a step: each window under each of the guidance's conditions."""
    steps: int
    further: float
    """Predictions of methods a step, in such rows."""

    @property
    def times(self) -> float:
        """How many images of a window's size take as long, by the network alone."""
        return self.windows * (1 + self.further)

    def __str__(self) -> str:
        more = f", and {self.further:g} times as many for its methods" if self.further else ""
        return (
            f"{self.windows} windows of {self.width} x {self.height} pixels: {self.rows} rows in each of {self.steps} "
            f"steps{more}, as much as {self.times:.3g} single images"
        )


def canvas(
    model: Backbone,
    size: tuple[int, int],
    ring: bool = False,
    stride: int | None = None,
    sphere: bool = False,
    feather: bool = False,
) -> dict[str, Any]:
    """Size and views of a panorama of this height and width, for ``denoise`` and its kin.

    ``stride`` in cells of the latents, from window to window; methods that do not say have an eighth of a window. With
    ``feather`` windows count less towards their borders.
    Raises ``SfumatoError`` for a panorama that is smaller than what the model sees, and a stride that is none.
    """
    model.check_size(*size)
    cells = model.size // model.factor
    if min(size) < model.size:
        raise SfumatoError(
            f"a panorama is at least as large as what {model.name} sees, {model.size} x {model.size} pixels, got "
            f"{size[1]} x {size[0]}"
        )
    if stride is not None and not 1 <= stride <= cells:
        raise SfumatoError(f"a stride lies between 1 and the window's side, {cells} cells, got {stride}")
    if sphere and (ring or feather or stride is not None):
        raise SfumatoError(
            "a sphere is closed as it is, its windows 45 degrees apart and softer outwards; leave ring, stride and "
            "feather out"
        )
    return {"size": size, "views": Sphere() if sphere else (Ring if ring else Tiles)(stride, feather=feather)}


def cost(model: Backbone, prompt: str, seen: dict[str, Any], steps: int = 30, **options: Any) -> Cost:
    """What one panorama takes; ``seen`` is what ``canvas`` gives. Nothing is run."""
    planned = denoising.plan(model, prompt, steps=steps, **seen, **options)
    rows, (height, width) = planned.run.rows, planned.run.grid
    count = len(rows) // len(rows.conditions)
    factor = model.factor
    return Cost(count, height * factor, width * factor, len(rows), planned.run.steps, sum(planned.calls.values()))


def panorama(
    model: Backbone,
    prompt: str,
    seeds: Sequence[int],
    size: tuple[int, int],
    *,
    ring: bool = False,
    stride: int | None = None,
    sphere: bool = False,
    feather: bool = False,
    methods: Sequence[Method] = (),
    guide: Guide | Scales = 5.0,
    steps: int = 30,
    stepper: Stepper | None = None,
    memory: int | None = None,
    keeper: Keeper | None = None,
    on_progress: Listener | None = None,
) -> Generated:
    """A panorama a seed, of this height and width; one after the other. A ``ring`` is closed from noise to pixels, a
    ``sphere`` is all that lies around, twice as wide as it is high; ``feather`` softens windows towards their borders.

    Raises ``SfumatoError`` as ``canvas`` and ``denoise`` do, before the first is painted.
    """
    seen = canvas(model, size, ring, stride, sphere, feather)
    options: dict[str, Any] = {"guide": guide, "steps": steps, "stepper": stepper, "memory": memory, "keeper": keeper}
    return images.generate(
        model, prompt, seeds, methods=methods, together=1, on_progress=on_progress, **options, **seen
    )
