"""A scene follows views that change while it does: the loop of scene edits by a data set that is updated.

Instruct-NeRF2NeRF (Haque et al. 2023, arXiv 2303.12789) renders one of a capture's views every few steps, edits it, and
puts it in the place of the photograph, so that scene and views come to agree; CSD-Edit (Kim et al. 2023, section B.4)
renews several at once. Nothing here knows what edits a view. Without any edit it is the fit of a scene to its views.

A field follows rays that are drawn from all views, by L1; Gaussians follow whole views, one in each step, as they are
fitted (``gaussians_fit``). ``Looks`` adds the other half of Instruct-NeRF2NeRF's loss, how unlike patches look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.distill.generators import Generator
from sfumato.distill.prior import Images
from sfumato.errors import SfumatoError, finite
from sfumato.learning.loop import Problem
from sfumato.learning.optimisers import Optimisers
from sfumato.learning.seeds import generator
from sfumato.scene.cameras import Pinholes
from sfumato.scene.capture import Capture
from sfumato.scene.gaussians import Gaussians
from sfumato.scene.gaussians_fit import Fitting

Edit = Callable[[int, tuple[int, ...], Images], Images]
"""New pictures of some views, of (step, their numbers, how the scene looks from there now)."""
RAYS = 2048


@dataclass(frozen=True)
class Turns:
    """When which views are renewed: some at a time, all once before any comes again."""

    views: int = 1
    """At a time."""
    every: int = 10
    """Steps between two turns."""
    rounds: int = 0
    """How often each view has its turn; 0 is as long as the run lasts."""

    def __post_init__(self) -> None:
        if self.views < 1 or self.every < 1 or self.rounds < 0:
            raise SfumatoError(
                f"views are renewed one or more at a time, every step or more, got {self.views}, {self.every}"
            )

    def at(self, step: int, of: int, seed: int) -> tuple[int, ...]:
        """Of so many views those whose turn it is in this step; their order is drawn anew in each round."""
        turn, between = divmod(step, self.every)
        some = min(self.views, of)
        round, part = divmod(turn, -(-of // some))
        if between or (self.rounds and round >= self.rounds):
            return ()
        order = torch.randperm(of, generator=generator(seed, round, 1)).tolist()
        return tuple(sorted(order[part * some : (part + 1) * some]))


@dataclass(frozen=True)
class Looks:
    """How unlike a patch of a view looks to networks, beside how far its colours are; one patch in each step."""

    unlike: Callable[[Images, Images], Float[Tensor, " b"]]
    """Of what the scene shows and what it should, differentiable by the first."""
    weight: float = 1.0
    side: int = 32
    """Of a patch, in pixels; the authors'."""


@dataclass(eq=False)
class Updating(Problem):
    """A scene that is moved to a capture's views, some of which are edited on the way.

    Views are part of a checkpoint: those of the last whole step, so that a run that was cut off in an edit has it anew.
    """

    scene: Generator
    cameras: Pinholes
    views: Float[Tensor, "n 3 h w"]
    """What the scene is moved to; edits take the place of what is here."""
    edit: Edit | None = None
    turns: Turns = Turns()
    seed: int = 0
    rays: int = RAYS
    """Of a step, drawn from all views; Gaussians are compared with a whole view."""
    looks: Looks | None = None
    """A loss of patches, if they are to be compared as well."""
    masks: Bool[Tensor, "n h w"] | None = None
    """Where views may change; elsewhere they stay what they were at first."""
    counted: Bool[Tensor, "n h w"] | None = None
    """Pixels of the views that are known; None for all."""
    losses: Sequence[Callable[[Generator], Float[Tensor, ""]]] = ()
    """Of the scene itself, such as its smoothness."""
    watch: Callable[[int, Images], None] | None = None
    """Sees each step's number and views after it."""
    edited: int = 0
    """Views that were renewed so far, one as often as it was."""
    _next: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        n, h, w = len(self.views), *self.views.shape[-2:]
        if len(self.cameras) != n or self.cameras.size != (h, w):
            raise SfumatoError(f"{n} views of {h} x {w} have a camera each, got {len(self.cameras)}")
        for masks in (self.masks, self.counted):
            if masks is not None and masks.shape != (n, h, w):
                raise SfumatoError(f"there is a mask a view, {(n, h, w)}, got {tuple(masks.shape)}")
        self.name, self.doing = "the scene", "fitting the scene" if self.edit is None else "editing the scene"
        self.modules = {"scene": self.scene}
        self.rates = {f"scene.{k}": rate for k, rate in self.scene.rates.items()}
        self.first = self.views
        pixels = torch.ones(n, h, w, dtype=torch.bool) if self.counted is None else self.counted.cpu()
        self.places = pixels.flatten().nonzero()[:, 0]
        if not len(self.places):
            raise SfumatoError("no pixel of the views is known; look at their masks")

    def loss(self, step: int) -> Float[Tensor, ""]:
        self._next = self._renewed(step)
        loss = self._by_views(step) if isinstance(self.scene, Gaussians) else self._by_rays(step)
        if self.looks is not None:
            loss = loss + self._by_patch(self.looks, step)
        return loss + sum((own(self.scene) for own in self.losses), loss.new_zeros(()))

    def _by_rays(self, step: int) -> Float[Tensor, ""]:
        assert self._next is not None
        self.scene.at_step(self.fraction)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        rng = generator(self.seed, step)
        device = next(self.scene.parameters()).device
        h, w = self.cameras.size
        at = self.places[torch.randint(len(self.places), (self.rays,), generator=rng)]
        camera, pixel = at // (h * w), at % (h * w)
        place = torch.stack([pixel % w + 0.5, pixel // w + 0.5], -1).to(device)
        rays = self.cameras.to(device).through(camera.to(device), place)
        seen = self.scene.trace(rays, rng).values  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        wanted = self._next[camera, :, pixel // w, pixel % w].to(seen)
        return (seen - wanted).abs().mean()

    def _by_views(self, step: int) -> Float[Tensor, ""]:
        assert self._next is not None and isinstance(self.scene, Gaussians)
        names = tuple(str(i) for i in range(len(self.views)))
        fitting = Fitting(self.scene, Capture(self._next, self.cameras, names, self.counted), seed=self.seed)
        fitting.fraction = self.fraction
        return fitting.loss(step)

    def _by_patch(self, looks: Looks, step: int) -> Float[Tensor, ""]:
        assert self._next is not None
        rng, (h, w) = generator(self.seed, step, 4), self.cameras.size
        high, wide = min(looks.side, h), min(looks.side, w)
        i, y, x = (int(torch.randint(n, (), generator=rng)) for n in (len(self.views), h - high + 1, w - wide + 1))
        one = self.cameras[[i]].to(next(self.scene.parameters()))
        rows, columns = slice(y, y + high), slice(x, x + wide)
        if isinstance(self.scene, Gaussians):  # how wide they are seen depends on the whole image's borders
            seen = self.scene.render(one).images[..., rows, columns]
        else:
            corner = one.centre.new_tensor([x, y])
            seen = self.scene.render(replace(one, centre=one.centre - corner, size=(high, wide))).images
        wanted = self._next[[i], :, rows, columns].to(seen)
        if self.counted is not None:
            seen = torch.where(self.counted[[i], None, rows, columns].to(seen.device), seen, wanted)
        return looks.weight * looks.unlike(seen, wanted).mean()

    @torch.no_grad()
    def _renewed(self, step: int) -> Tensor:
        at = () if self.edit is None else self.turns.at(step, len(self.views), self.seed)
        if not at:
            return self.views
        seen = self.scene.view(self.cameras[list(at)]).images.clamp(0, 1)  # pyright: ignore
        new = self.edit(step, at, seen).to(self.views)  # pyright: ignore[reportOptionalCall]
        if new.shape != (len(at), *self.views.shape[1:]):
            raise SfumatoError(
                f"step {step}: an edit keeps the size of its views, {tuple(self.views.shape[1:])}, got {len(new)} "
                f"of {tuple(new.shape[1:])}"
            )
        finite(new, f"step {step}: what became of the views {at}", "take a lower guidance")
        new = new.clamp(0, 1)
        if self.masks is not None:
            new = torch.where(self.masks[list(at), None].to(new.device), new, self.first[list(at)])
        self.edited += len(at)
        return self.views.index_copy(0, torch.tensor(at, device=self.views.device), new)

    def after_backward(self, step: int, optimisers: Optimisers) -> None:
        self.scene.after_backward(step, optimisers)

    def after_step(self, step: int, optimisers: Optimisers) -> None:
        assert self._next is not None
        self.views = self._next
        self.scene.after_step(step, optimisers)
        if self.watch is not None:
            self.watch(step, self.views)

    def state(self) -> dict[str, Mapping[str, Tensor]]:
        return {"views": {"images": self.views, "edited": torch.tensor(self.edited)}}

    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.views = state["views"]["images"].to(self.views)
        self.edited = int(state["views"]["edited"])
