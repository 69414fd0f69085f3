"""Merge-attend-diffuse (MAD, Quattrini et al. 2024, arXiv 2408.15660): windows of a panorama attend as one image.

In self-attention the windows' queries, keys and values are laid on the canvas, as the latents are, each token the mean
of all windows that show it; all tokens of the canvas attend to each other, and each window goes on with its part of the
answer (section 3.2). So what is painted at one end is known at the other. Queries to the text are merged in the same
way.

Defaults: the authors' code, the first half of the steps (25 of 50), all layers, a stride of a quarter of the window (16
of 64). There queries to the text are merged in all steps, here as long as the rest.

A layer takes part where all windows begin with one of its tokens: at a stride of 4 cells those with tokens of 1, 2 and
4 cells. In joint attention, where tokens have places of their own in each window, a merged one would have none.

Needs: image->image queries, keys and values, fused, of canvas by canvas tokens in place of window by window;
image->text queries. No further network calls.

Families: networks that attend to the picture and to the text apart (Stable Diffusion, SDXL, PixArt).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import FUSED, Call
from sfumato.core.choice import choose
from sfumato.core.method import Edit, Method, Phases, Run, Where, span
from sfumato.core.sites import Site
from sfumato.core.views import Looks, Tiles, Views, Windows
from sfumato.errors import SfumatoError


@dataclass(frozen=True)
class MergeAttendDiffuse(Method):
    """Windows of a canvas attend to all of it."""

    until: float = 0.5
    """Up to this part of the steps."""
    words: bool = True
    """Are queries to the text those of the canvas as well?"""

    def seeing(self, views: Views) -> Views:
        if not isinstance(views, Windows) or views.side == "instance":
            raise SfumatoError("MergeAttendDiffuse merges the windows of one canvas; views are tiles or a ring of it")
        if isinstance(views, Tiles) and views.stride is None:
            return replace(views, stride=0.25)
        return views

    def start(self, run: Run) -> Phases:
        seen, canvas, count = run.views, run.canvas, run.rows.views
        if count == 1 or not isinstance(seen, Windows) or canvas is None or not span((0, self.until), run.steps)[1]:
            return Phases()

        def at(site: Site, step: int) -> Looks | None:
            """The windows on a site's tokens."""
            views = seen.at(step)
            return views.on_tokens(canvas, run.grid, site.scale) if isinstance(views, Windows) else None

        def merged(call: Call, parts: Float[Tensor, "rows heads n d"]) -> tuple[Looks, Float[Tensor, "b hd H W"]]:
            views = at(call.site, call.step)
            assert views is not None
            on_grid = parts.transpose(2, 3).flatten(1, 2).unflatten(-1, call.grid)
            height, width = (n // call.site.scale for n in canvas)
            like = on_grid.new_empty(len(parts) // count, on_grid.shape[1], height, width)
            return views, views.merge(on_grid, like)

        def shown(views: Looks, whole: Float[Tensor, "b hd H W"], call: Call) -> Float[Tensor, "rows heads n d"]:
            parts = views.split(whole, call.grid).flatten(2)
            return parts.unflatten(1, (call.site.heads, -1)).transpose(2, 3)

        def attend(call: Call) -> None:
            views, whole = merged(call, torch.cat([call.all(which) for which in "qkv"], -1))
            tokens = whole.flatten(2).unflatten(1, (call.site.heads, -1)).transpose(2, 3)
            q, k, v = tokens.chunk(3, -1)
            out = FUSED(q, k, v, **call.options)
            call.answer(shown(views, out.transpose(2, 3).flatten(1, 2).unflatten(-1, whole.shape[-2:]), call))

        def ask(call: Call) -> None:
            q = shown(*merged(call, call.all("q")), call)
            for name in call.rows.names:
                call.set("q", name, q[call.rows[name]])

        def apart(site: Any) -> bool:
            whole = len(site.query) == len(site.key) == 1 and not (site.masked and site.key == site.query)
            return whole and all(at(site, step) is not None for step in range(run.steps))

        steps = (0.0, float(self.until))
        own = [s for s in choose(run.model, "image->image", run.grid, who="MergeAttendDiffuse") if apart(s)]
        if not own:
            raise SfumatoError(
                f"no self-attention of {run.model.name} has tokens that lie as these windows do: windows begin with a "
                "token where the stride is a multiple of its side, and picture and text have to attend apart"
            )
        edits = (Edit(Where("image->image", steps=steps, sites=apart), "out", attend),)
        if self.words and any(apart(s) for s in run.model.sites if s.key == ("text",)):
            edits += (Edit(Where("image->text", steps=steps, sites=apart), "qkv", ask, parts="q"),)
        return Phases(edits)
