"""What Attend-and-Excite, layout guidance and BoxDiff share: latents that go down a loss on attention before a step.

The loss is of one more prediction, of the conditional rows alone (``look``), and the step that follows is the usual one
from where the latents then are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.choice import choose, nearest_side
from sfumato.core.gradients import gradients
from sfumato.core.method import Maps, Run, Step, span
from sfumato.errors import SfumatoError


def descend(
    step: Step,
    loss: Callable[[Tensor], Float[Tensor, " b"]],
    scale: float | Tensor,
    iterations: int = 1,
    enough: float = 0.0,
) -> Float[Tensor, " b"]:
    """Move ``step.x`` by ``scale`` times the gradient, up to ``iterations`` times; returns the losses last seen.

    ``loss`` is one number an image, of latents like ``step.x``. Images whose loss is ``enough`` stay where they are.
    """
    losses = step.x.new_full((len(step.x),), torch.inf)
    for _ in range(iterations):
        with torch.enable_grad():
            x = step.x.detach().requires_grad_()
            losses = loss(x)
            going = losses.detach() > enough
            if not going.any():
                break
            (gradient,) = gradients(step.run.model, losses[going].sum(), (x,))
        step.x = torch.where(going.view(-1, 1, 1, 1), x.detach() - scale * gradient, x.detach())
    return losses.detach()


def thresholds(run: Run, at: Sequence[float], to: Sequence[float], most: int) -> dict[int, float]:
    """What shall be reached at which step. ``SfumatoError`` where parts of the steps and thresholds are no pairs."""
    if len(at) != len(to) or most < 0:
        raise SfumatoError(f"each refinement has a step and a threshold, got {len(at)} and {len(to)}")
    return {span((0, part), run.steps)[1]: value for part, value in zip(at, to, strict=True)}


def refine(
    step: Step, loss: Callable[[Tensor], Float[Tensor, " b"]], scale: float, most: int, enough: float, beyond: bool
) -> None:
    """Go down until each image's loss is ``enough``, at most ``most`` times (Attend-and-Excite, algorithm 1, 5 to 8).

    ``beyond``: images that got there go one update further, as in the authors' code.
    """
    before = step.x
    losses = descend(step, loss, scale, most, enough)
    more = (step.x != before).flatten(1).any(1) & (losses <= enough)
    if beyond and more.any():
        descend(step, lambda x: torch.where(more, loss(x), -torch.inf), scale)


def text_at(run: Run, part: float) -> int:
    """The resolution of image->text attention that is nearest to a part of the latents' shorter side."""
    return nearest_side(choose(run.model, "image->text", run.grid), run.grid, part)


def text_span(run: Run, prompt: str, normalize_eot: bool = False) -> tuple[int, int]:
    """The tokens that maps are sharpened over: all but the start and the very last one, or the words' alone."""
    words = run.model.words(prompt)
    return words[0][1].start, words[-1][1].stop if normalize_eot else run.model.text_tokens - 1


def word_maps(maps: Maps, run: Run) -> Float[Tensor, "b h w tokens"]:
    """Maps of the conditional rows, averaged over their sites, which have one grid; images as in ``step.x``.

    In joint attention, where pixels attend to pixels as well, each pixel's part that goes to the text is made one.
    """
    site = next(iter(maps))
    whole = torch.stack([torch.cat([at[s, "cond"] for s in run.rows.streams]) for at in maps.values()]).mean(0)
    if len(site.key) > 1:
        whole = whole / whole.sum(-1, keepdim=True).clamp_min(1e-12)
    return whole.unflatten(1, site.grid(run.grid))


def sharpened(
    maps: Float[Tensor, "*shape tokens"], first: int, last: int, factor: float = 100.0
) -> Float[Tensor, "*shape tokens"]:
    """Attend-and-Excite's: the softmax of ``factor`` times a pixel's map over tokens ``first`` to ``last`` - 1.

    The others, which are the start token and the last one, get zero.
    """
    inside = (factor * maps[..., first:last]).softmax(-1)
    return F.pad(inside, (first, maps.shape[-1] - last))
