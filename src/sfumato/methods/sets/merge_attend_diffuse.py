"""Merge-attend-diffuse (MAD, Quattrini et al. 2024, arXiv 2408.15660): windows of a panorama attend as one image.

In self-attention the windows' queries, keys and values are laid on the canvas, as the latents are, each token the mean
of all windows that show it; all tokens of the canvas attend to each other, and each window goes on with its part of the
answer (section 3.2). So what is painted at one end is known at the other. Queries to the text are merged in the same
way.

Defaults: the authors' code, the first half of the steps (25 of 50), all layers, a stride of a quarter of the window (16
of 64). There queries to the text are merged in all steps, here as long as the rest.

A layer takes part where all windows begin with one of its tokens: at a stride of 4 cells those with tokens of 1, 2 and
4 cells. In joint attention (here, not in the paper) the text's tokens are in all windows: their mean attends with the
canvas, and each window goes on with what they get. Where tokens are turned by their places (Flux), each window's are
turned on to those that they have on the canvas; as all else of such a network is a token's own, merged windows are the
network at the canvas' size, to rounding, and what remains of windows are the steps behind ``until``.

Needs: image->image queries, keys and values, fused, of canvas by canvas tokens in place of window by window;
image->text queries where they are other ones. No further network calls.

Families: all; Flux on strips alone, since places that are turned have a first and a last on a ring.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import FUSED, Call
from sfumato.core.choice import choose
from sfumato.core.method import Edit, Method, Phases, Run, Where, span
from sfumato.core.settings import PartOfSteps
from sfumato.core.sites import Site
from sfumato.core.views import Looks, Tiles, Views, Window, Windows
from sfumato.errors import SfumatoError
from sfumato.ops.rotary import turned


@dataclass(frozen=True)
class MergeAttendDiffuse(Method):
    """Windows of a canvas attend to all of it."""

    until: PartOfSteps = 0.5
    """Up to this part of the steps."""
    words: bool = True
    """Are queries to the text those of the canvas as well? In joint attention they are the picture's own."""

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

        def merged(call: Call, *which: str) -> tuple[Looks, list[Float[Tensor, "b heads N d"]]]:
            """Tokens of the canvas, each the mean of all windows that show it; of the text, that all show, likewise."""
            views = at(call.site, call.step)
            assert views is not None
            images = [call.all(n)[..., call.segment("q" if n == "q" else "k", "image"), :] for n in which]
            if call.site.rotary:
                images = [x if n == "v" else moved(views, call, x) for n, x in zip(which, images, strict=True)]
            on_grid = torch.cat(images, -1).transpose(2, 3).flatten(1, 2).unflatten(-1, call.grid)
            height, width = (n // call.site.scale for n in canvas)
            like = on_grid.new_empty(len(on_grid) // count, on_grid.shape[1], height, width)
            whole = views.merge(on_grid, like).flatten(2).unflatten(1, (call.site.heads, -1)).transpose(2, 3)
            return views, [joined(call, n, x) for n, x in zip(which, whole.chunk(len(which), -1), strict=True)]

        def moved(views: Looks, call: Call, x: Float[Tensor, "rows heads n d"]) -> Tensor:
            """Tokens turned on from their places in a window to those on the canvas."""
            places = []
            for view in views.views:
                assert isinstance(view, Window)
                down = view.rows - torch.arange(call.grid[0])[:, None]
                right = view.columns - torch.arange(call.grid[1])
                still = torch.zeros(call.grid)
                places.append(torch.stack([*[still] * (len(call.site.rotary) - 2), still + down, still + right], -1))
            by = torch.stack(places).flatten(1, 2)[:, None].to(x.device)
            return turned(x.unflatten(0, (-1, count)), by, call.site.rotary).flatten(0, 1)

        def joined(call: Call, which: str, image: Float[Tensor, "b heads N d"]) -> Float[Tensor, "b heads M d"]:
            side = "q" if which == "q" else "k"
            parts = [
                image
                if s == "image"
                else call.all(which)[..., call.segment(side, s), :].unflatten(0, (-1, count)).mean(1)
                for s in (call.site.query if side == "q" else call.site.key)
            ]
            return torch.cat(parts, -2)

        def shown(views: Looks, whole: Float[Tensor, "b heads M d"], call: Call) -> Float[Tensor, "rows heads n d"]:
            """What each window gets of it: its part of the image, and all of the text."""
            size = [n // call.site.scale for n in canvas]
            first, text = call.site.query[0] == "image", whole.shape[-2] - size[0] * size[1]
            words, image = (whole[..., size[0] * size[1] :, :], whole[..., : size[0] * size[1], :])
            if not first:
                words, image = whole[..., :text, :], whole[..., text:, :]
            parts = views.split(image.transpose(2, 3).flatten(1, 2).unflatten(-1, size), call.grid).flatten(2)
            own = parts.unflatten(1, (call.site.heads, -1)).transpose(2, 3)
            if not text:
                return own
            words = words.repeat_interleave(count, 0)
            return torch.cat([own, words] if first else [words, own], -2)

        def attend(call: Call) -> None:
            views, (q, k, v) = merged(call, "q", "k", "v")
            mask = call.mask
            if mask is not None:  # of what words count, the same in all windows
                text = mask.unflatten(0, (-1, count))[:, 0][..., call.segment("k", "text")]
                image = k.shape[-2] - text.shape[-1]
                around = (0, image) if call.site.key[0] == "text" else (image, 0)
                mask = F.pad(text, around, value=float(mask.dtype == torch.bool))
            out = shown(views, FUSED(q, k, v, attn_mask=mask, **call.options), call)
            for name in call.rows.names:
                call.give(name, out[call.rows[name]])

        def ask(call: Call) -> None:
            views, (whole,) = merged(call, "q")
            q = shown(views, whole, call)
            for name in call.rows.names:
                call.set("q", name, q[call.rows[name]])

        def apart(site: Any) -> bool:
            seen = "image" in site.query and not (site.masked and "image" in site.key)
            return seen and all(at(site, step) is not None for step in range(run.steps))

        steps = (0.0, float(self.until))
        own = [s for s in choose(run.model, "image->image", run.grid, who="MergeAttendDiffuse") if apart(s)]
        if not own:
            raise SfumatoError(
                f"no self-attention of {run.model.name} has tokens that lie as these windows do: windows begin with a "
                "token where the stride is a multiple of its side"
            )
        if seen.around and any(s.rotary for s in own):
            raise SfumatoError(
                f"tokens of {run.model.name} know their places by turning, and on a ring the first is as near to the "
                "last as to the next; MergeAttendDiffuse paints a strip of it (tiles)"
            )
        edits = (Edit(Where("image->image", steps=steps, sites=apart), "out", attend),)

        def asks(site: Any) -> bool:
            return site.query == ("image",) and site.key == ("text",) and apart(site)

        if self.words and any(map(asks, run.model.sites)):
            edits += (Edit(Where("image->text", steps=steps, sites=asks), "qkv", ask, parts="q"),)
        return Phases(edits)
