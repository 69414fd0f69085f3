"""How what the network says of each view becomes one: which variable views agree on, and where it is sampled.

In the terms of Kim et al. 2024 (SyncTweedies, arXiv 2403.14370, section 3): on the instance's side fusing eps, x0 and
x_prev are their cases 1 to 3, on the canvas' side their cases 4 to 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.grids import Grids
from sfumato.core.method import Step
from sfumato.core.results import encoded_around
from sfumato.core.rows import Rows
from sfumato.core.schedule import Level, noise_in, part_of, without_noise
from sfumato.core.sites import Grid
from sfumato.core.steppers import Move, Noise
from sfumato.core.views import Views
from sfumato.errors import SfumatoError


class Canvas:
    """The canvas of a run, what the network sees of it, and how that is put together.

    On the canvas' side a step's ``x`` is the canvas. On the instance's it is all views, each an image of its own.
    """

    def __init__(self, model: Backbone, views: Views, grid: Grid):
        self.model, self.given, self.grid = model, views, grid
        self.views = views.at(0)
        """Those of the step that is run."""
        self.window = views.window(grid, model.size // model.factor)
        self.count = self.views.count(*grid, self.window)
        self.apart = views.side == "instance"
        if not 0 <= views.until <= 1:
            raise SfumatoError(f"the part of the steps in which views agree lies between 0 and 1, got {views.until}")
        if views.until < 1 and not self.apart:
            raise SfumatoError('views that go on by themselves have latents of their own: side="instance"')
        unseen = int((self.views.coverage(*grid, self.window) <= 0).sum())
        if unseen and not (self.apart or views.partial):
            raise SfumatoError(
                f"{unseen} cells of a canvas of {grid[0]} x {grid[1]} lie in no view, so nothing would be painted "
                'there; add views that show them, or sample each view by itself (side="instance")'
            )

    def turn(self, i: int) -> None:
        """To the views of a step."""
        self.views = self.given.at(i)

    def rows(self, rows: Rows) -> Rows:
        """With a row a view of each image."""
        return replace(rows, of_stream=rows.of_stream * self.count) if self.apart else replace(rows, views=self.count)

    def split(self, canvas: Float[Tensor, "b c H W"]) -> Float[Tensor, "bv c h w"]:
        """What its views show."""
        return self.views.split(canvas, self.window)

    def merge(self, parts: Float[Tensor, "bv c h w"]) -> Float[Tensor, "b c H W"]:
        """The canvas that they are views of."""
        return self.views.merge(parts, parts.new_empty(len(parts) // self.count, parts.shape[1], *self.grid))

    def entered(self, canvas: Float[Tensor, "b c H W"]) -> Tensor:
        """What a run starts from: noise, or a noisy image."""
        return self.views.split_noise(canvas, self.window) if self.apart else canvas

    def prompts(self, prompts: Sequence[str]) -> tuple[str, ...] | None:
        """What the network reads of each view of these images; None where it is what the image's prompt says."""
        each = [self.views.prompts_of(prompt, self.grid, self.window) for prompt in prompts]
        if all(own == (prompt,) * self.count for own, prompt in zip(each, prompts, strict=True)):
            return None
        return tuple(own for some in each for own in some)

    def drawing(self, noise: Noise) -> Noise:
        """Noise of a canvas as that of its steps: one for all views, as far as they show the same."""
        return lambda: self.entered(noise())

    def left(self, x: Tensor) -> Float[Tensor, "b c H W"]:
        """The canvas that a run ends with."""
        if not self.apart:
            return x
        return self._encoded(self._pixels(x)) if self.given.fuse == "pixels" and self.count > 1 else self.merge(x)

    def _encoded(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """The canvas' latents, without a seam where it goes around."""
        return encoded_around(self.model, images) if self.views.around else self.model.encode(images)

    def fuse(self, move: Move, step: Step, shown: Tensor, x0: Tensor, eps: Tensor) -> Move:
        """Fill in the step's ``x0`` and ``eps`` from those of what was shown; gives what then moves the step."""
        step.x0, step.eps = x0, eps
        if step.i >= part_of(step.run.steps, self.given.until):  # each goes on by itself
            return move
        if self.count == 1 and shown is step.x:  # there is nothing to agree with
            return move
        match self.views.fuse:
            case "eps":
                step.eps = self._agreed(eps)
                step.x0 = without_noise(step.x, step.eps, step.level)
            case "x0" | "pixels":
                step.x0 = self._agreed_x0(x0)
                step.eps = noise_in(step.x, step.x0, step.level)
            case "x_prev" if self.apart:
                return lambda *args: self.split(self.merge(move(*args)))
            case "x_prev":
                step.x0 = self.merge(x0)
                step.eps = noise_in(step.x, step.x0, step.level)
                return self._moving_apart(move, shown, step, x0, eps)
        return move

    def _moving_apart(self, move: Move, shown: Tensor, step: Step, x0: Tensor, eps: Tensor) -> Move:
        """Moves each view, then merges; what methods change on the canvas until then is changed in each view alike."""
        was = step.x0, step.eps

        def changed(part: Tensor, first: Tensor, now: Tensor) -> Tensor:
            return part if now is first else part.detach() + self.split(now - first.detach())

        def moved(x: Tensor, now_x0: Tensor, now_eps: Tensor, level: Level, to: Level, noise: Noise) -> Tensor:
            parts = changed(x0, was[0], now_x0), changed(eps, was[1], now_eps)
            return self.merge(
                move(shown.detach(), *parts, level, to, lambda: self.views.split_noise(noise(), self.window))
            )

        return moved

    def _agreed(self, parts: Tensor) -> Tensor:
        """The mean of all views: as a canvas, or as each view shows it."""
        merged = self.merge(parts)
        return self.split(merged) if self.apart else merged

    def _agreed_x0(self, x0: Tensor) -> Tensor:
        if self.views.fuse != "pixels":
            return self._agreed(x0)
        merged, cell = self._pixels(x0), self.model.factor
        if not self.apart:
            return self._encoded(merged)
        return self.model.encode(self.views.split(merged, (self.window[0] * cell, self.window[1] * cell), cell))

    def _pixels(self, x0: Tensor) -> Float[Tensor, "b 3 H W"]:
        """The canvas of what is seen in latents."""
        images, cell = self.model.decode(x0), self.model.factor
        height, width = (n * cell for n in self.grid)
        return self.views.merge(images, images.new_empty(len(images) // self.count, 3, height, width), cell)


class Together(Canvas):
    """The images of a run, each of them a canvas, of which the network sees several as one."""

    apart = False

    def __init__(self, model: Backbone, views: Grids, grid: Grid, images: int):
        self.model, self.grid, self.images = model, grid, images
        self.given = self.views = views
        self.window = (grid[0] * views.rows, grid[1] * views.columns)
        self.count, self.step = views.grids(images), 0
        model.check_size(*(n * model.factor for n in self.window))

    def turn(self, i: int) -> None:
        self.step = i

    def rows(self, rows: Rows) -> Rows:
        return replace(rows, grids=self.count)

    def prompts(self, prompts: Sequence[str]) -> tuple[str, ...]:
        streams = [set(prompts[i : i + self.images]) for i in range(0, len(prompts), self.images)]
        if more := next((sorted(some) for some in streams if len(some) > 1), None):
            raise SfumatoError(f"images that are seen as one read one prompt, got {more[0]!r} and {more[1]!r}")
        return tuple(prompt for some in streams for prompt in some for _ in range(self.count))

    def split(self, canvas: Float[Tensor, "si c h w"]) -> Float[Tensor, "sg c H W"]:
        return self.views.gather(canvas, self.images, self.step)

    def merge(self, parts: Float[Tensor, "sg c H W"]) -> Float[Tensor, "si c h w"]:
        return self.views.scatter(parts, self.images, self.step)

    def entered(self, canvas: Float[Tensor, "si c h w"]) -> Tensor:
        return canvas

    def left(self, x: Tensor) -> Tensor:
        return x

    def fuse(self, move: Move, step: Step, shown: Tensor, x0: Tensor, eps: Tensor) -> Move:
        step.x0, step.eps = self.merge(x0), self.merge(eps)
        return move


def seeing(model: Backbone, views: Views, grid: Grid, images: int) -> Canvas:
    """How a run of so many images a stream is seen."""
    return Together(model, views, grid, images) if isinstance(views, Grids) else Canvas(model, views, grid)
