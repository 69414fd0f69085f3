"""Paint images from words, as many together as the methods and the memory allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sfumato.core import denoising
from sfumato.core.backbone import Backbone, check_model
from sfumato.core.brief import Shown
from sfumato.core.guidance import Guide, Scales
from sfumato.core.method import Method
from sfumato.core.plan import Plan
from sfumato.core.steppers import Stepper
from sfumato.core.views import Views
from sfumato.core.watch import Attention
from sfumato.errors import kind
from sfumato.io.progress import Listener, heard, progress, worth
from sfumato.media import overlays, pictures
from sfumato.tasks.previews import previewing

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

BATCH = 8


@dataclass(frozen=True)
class Generated(Shown):
    """Images of a prompt."""

    pictures: tuple[Picture, ...]
    attention: tuple[Picture, ...]
    """Where each word looks in each of them, where that was asked for."""
    plan: Plan
    """Of the images of one run."""
    films: tuple[tuple[Picture, ...], ...] = ()
    """Of clips their frames; the pictures show them side by side."""


class Keeper(Protocol):
    """Where images are kept as they come, so that a run that was stopped goes on behind them."""

    def found(self, seed: int) -> Picture | None:
        """The image of a seed, if it is there."""
        ...

    def keep(self, seed: int, picture: Picture) -> None: ...


def generate(
    model: Backbone,
    prompt: str,
    seeds: Sequence[int],
    *,
    methods: Sequence[Method] = (),
    guide: Guide | Scales = 5.0,
    steps: int = 30,
    size: int | tuple[int, int] | None = None,
    views: Views | None = None,
    frames: int = 1,
    stepper: Stepper | None = None,
    memory: int | None = None,
    attention: bool = False,
    together: int | None = None,
    preview_every: int = 0,
    keeper: Keeper | None = None,
    after: Callable[[Picture], Picture] | None = None,
    on_progress: Listener | None = None,
) -> Generated:
    """An image a seed, or a clip of so many ``frames``, at most so many ``together`` (8 unless said).

    ``preview_every`` counts steps; of windows (``views``) there is no preview. What ``keeper`` has is not painted; it
    keeps single images as they come. ``after``: what becomes of each image that was painted.

    The rest is ``denoise``'s, which raises ``SfumatoError`` for what it refuses before the first image is painted.
    """
    check_model(model)
    denoising.check_methods(methods)
    kind("seeds are one an image, such as range(4)", seeds, Sequence)
    watch = Attention() if attention else None
    every_method = [method.prepare(model, {"main": (prompt,)}) for method in methods]
    every_method += [] if watch is None else [watch]
    options = {"methods": every_method, "guide": guide, "steps": steps, "size": size, "views": views}
    options |= {"stepper": stepper, "frames": frames}
    together = max(1, (together or BATCH) // max(1, frames))
    together = min(len(seeds), together) if all(method.requires.batch for method in methods) else 1
    if memory is not None and denoising.plan(model, [prompt] * together, **options).bytes > memory:
        together = 1
    planned = denoising.plan(model, [prompt] * together, memory=memory, **options)
    painted = [None if keeper is None else keeper.found(seed) for seed in seeds]
    missing = [i for i, picture in enumerate(painted) if picture is None]
    looked: list[Picture] = []
    films: list[tuple[Picture, ...]] = []
    more = {"memory": memory, "callback": previewing(0 if views else preview_every)}
    with heard(on_progress), progress("images", len(seeds)) as advance:
        if len(missing) < len(seeds):
            advance(len(seeds) - len(missing))
        for first in range(0, len(missing), together):
            places = missing[first : first + together]
            some = [seeds[i] for i in places]
            with worth(len(some)):
                out = denoising.denoise(model, [prompt] * len(some), seed=some, **more, **options)
            images = [pictures.picture(image) for image in out.images]
            if watch is not None:
                looked += [overlays.sheet(p, watch.maps(model.words(prompt), i)) for i, p in enumerate(images)]
            if frames > 1:
                films += [tuple(images[i : i + frames]) for i in range(0, len(images), frames)]
                images = [pictures.grid(film) for film in films[-len(some) :]]
            images = images if after is None else list(map(after, images))
            for i, picture in zip(places, images, strict=True):
                painted[i] = picture
                if keeper is not None:
                    keeper.keep(seeds[i], picture)
            advance(len(some))
    return Generated(tuple(filter(None, painted)), tuple(looked), planned, tuple(films))
