"""Published loops as they were published, to be measured against: nothing is batched, kept or cut short."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.rows import single
from sfumato.core.sites import Site
from sfumato.learning import texts
from sfumato.methods.perceive.prompt_embeddings import PromptEmbeddings
from sfumato.reading.reader import Reader

NAME = ("main", "cond")


def published_fit(
    method: PromptEmbeddings, reader: Reader, point: Float[Tensor, "2"], restart: int, steps: int
) -> Float[Tensor, "tokens d"]:
    """One point and one text (Hedlin et al. 2023): a crop is cut and encoded in each step, and all maps are made.

    Crops, noise and the text it starts from are those that ``method.fit`` draws for this restart.
    """
    model, (h, w) = reader.model, reader.seen
    sites = texts.readers(model, reader.grid, method.parts, "the published loop")
    text = texts.drawn(model, method.restarts, seed=method.seed)[restart : restart + 1].requires_grad_()
    adam = torch.optim.Adam([text], lr=method.rate)
    level, generator = model.schedule.at(method.t), torch.Generator().manual_seed(method.seed + 1)
    height, width = method.sides(reader.seen)
    _, starts = method.crops(reader)
    for _ in range(steps):
        noise, luck = method.luck(torch.Size((model.channels, *reader.grid)), generator)
        within, side = torch.tensor([w, h]), torch.tensor([width, height])
        left, top = starts[method.choose(point[None], luck[restart : restart + 1], within, side)][0].tolist()
        crop = reader.shown[None, :, top : top + height, left : left + width]
        with torch.no_grad():
            latents = model.encode(F.interpolate(crop, (h, w), mode="bilinear", align_corners=False).to(model.device))
        x = level.alpha * latents + level.sigma * noise[restart].to(latents)
        maps: dict[Site, Tensor] = {}

        def seen(call: Call, maps: dict[Site, Tensor] = maps) -> None:
            call.set_probs(NAME, call.probs(NAME))  # as with attention that is not fused, which theirs is not
            maps[call.site] = call.probs(NAME)

        with model.tap(dict.fromkeys(model.sites, seen), single(1), reader.grid):
            model.predict(x, method.t, replace(model.embed([""]), text=text))
        goal = _goal(method, point, (left, top), (width, height), (h, w))
        loss = _loss(method, [maps[s] for s in sites], [s.grid(reader.grid) for s in sites], goal)
        (text.grad,) = torch.autograd.grad(loss, text)
        adam.step()
    return text.detach()[0]


def _goal(method: PromptEmbeddings, point: Tensor, corner: Any, crop: Any, size: tuple[int, int]) -> Tensor:
    """The Gaussian at the point, in the crop."""
    h, w = size
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    middle = [(point[0] - corner[0]) / crop[0] * w, (point[1] - corner[1]) / crop[1] * h]
    away = ((x - middle[0]) / w).square() + ((y - middle[1]) / h).square()
    return (-away / (2 * method.sigma**2)).exp()


def _loss(method: PromptEmbeddings, maps: list[Tensor], grids: list[Any], goal: Tensor) -> Tensor:
    """Of maps made as large as the image."""
    large, size = [], (goal.shape[0], goal.shape[1])
    for map, grid in zip(maps, grids, strict=True):
        heads = map[:, map.shape[1] // 2 if method.heads == "last half" else 0 :, :, method.token]
        large.append(F.interpolate(heads.mean(1).view(1, 1, *grid), size, mode="bilinear", align_corners=False))
    if method.layers == "mean":
        return (torch.stack(large).mean(0) - goal.to(large[0])).square().mean()
    return torch.stack([(one - goal.to(one)).square().mean() for one in large]).mean()
