"""Principal components of features, jointly over views and steps (Jambon 2023, figures 6.17 to 6.19).

The source sees that objects and parts take the same colours in several views when one PCA serves all of them, and
concludes that features are consistent across views. That is measured here as well: how much of the variance of each
view alone the joint components hold, beside what its own components hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.choice import choose
from sfumato.errors import SfumatoError
from sfumato.media import plots
from sfumato.reading.reader import Noise, Reader, feature

What = Literal["residual", "hidden", "tokens", "queries", "keys"]


@dataclass(frozen=True)
class Components:
    """The first components of one PCA, and how much they hold."""

    maps: Float[Tensor, "steps views k h w"]
    joint: float
    """Share of the variance that the joint components hold, of each view and step by itself, on average."""
    own: float
    """The same of as many components of each view and step's own."""


def principal(
    values: Float[Tensor, "n d"], components: int = 3
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d k"], Float[Tensor, " d"]]:
    """Mean, first directions and all variances, by the covariance's eigenvectors; each points to its largest entry."""
    mean = values.mean(0)
    centred = (values - mean).double()
    variances, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(values) - 1))
    first = vectors.flip(1)[:, :components]
    first = first * first.gather(0, first.abs().argmax(0, keepdim=True)).sign()
    return mean, first.to(values), variances.flip(0).clamp_min(0).to(values)


def held(values: Float[Tensor, "n d"], directions: Float[Tensor, "d k"]) -> float:
    """Share of the variance of ``values`` along ``directions``."""
    centred = values - values.mean(0)
    return float((centred @ directions).square().sum() / centred.square().sum().clamp_min(1e-12))


def components(maps: Float[Tensor, "steps views d h w"], k: int = 3) -> Components:
    """One PCA of all steps and views."""
    flat = maps.movedim(2, -1)
    mean, directions, _ = principal(flat.flatten(0, -2), k)
    single = [view.flatten(0, 1) for step in flat for view in step]
    own = [held(v, principal(v, k)[1]) for v in single]
    shown = ((flat - mean) @ directions).movedim(-1, 2)
    joint = [held(v, directions) for v in single]
    return Components(shown, sum(joint) / len(joint), sum(own) / len(own))


def read_features(
    readers: Sequence[Reader],
    what: What = "hidden",
    layers: Sequence[int] = (),
    times: Sequence[float] = (1, 261, 521),
    seed: int = 0,
) -> dict[str, Float[Tensor, "steps views c h w"]]:
    """Maps of layers for each step and image, by their names, such as ``hidden 19``.

    ``layers``: numbers among the layers of that kind, unless said six spread over them. Raises ``SfumatoError`` for a
    number that is none, a kind that the model does not have, and images of different shapes.
    """
    model, grids = readers[0].model, {r.grid for r in readers}
    if len(grids) > 1:
        raise SfumatoError("a joint PCA needs images of one shape; crop them alike first")
    if what in ("queries", "keys"):
        found, reduce = choose(model, "image->image", readers[0].grid, who="joint PCA"), _projected(what[0])
    else:
        found, reduce = choose(model, what, readers[0].grid, who="joint PCA"), feature
    wanted = list(layers) or sorted({round(i * (len(found) - 1) / 5) for i in range(6)})
    if any(not 0 <= i < len(found) for i in wanted):
        raise SfumatoError(f"{model.name} has layers {what} 0 to {len(found) - 1}, got {', '.join(map(str, wanted))}")
    chosen = {f"{what} {i}": found[i] for i in wanted}
    read = [[r.extract(list(chosen.values()), reduce, Noise(t, seed=seed)) for r in readers] for t in times]
    return {
        name: torch.stack([torch.stack([view[layer].cpu() for view in step]) for step in read])
        for name, layer in chosen.items()
    }


def joint_pca(maps: Mapping[str, Float[Tensor, "steps views c h w"]], k: int = 3) -> dict[str, Components]:
    """Of each layer a PCA of all steps and views; of several layers also one of all, at the finest grid."""
    out = {name: components(m, k) for name, m in maps.items()}
    return out | ({"all": components(_together(list(maps.values())), k)} if len(maps) > 1 else {})


def _projected(which: str) -> Any:
    """Queries or keys of an attention as maps, its heads one after the other."""

    def reduce(call: Call) -> Float[Tensor, "rows c h w"]:
        value = call.get(which, ("main", "cond"), "image").float()
        return value.transpose(2, 3).flatten(1, 2).unflatten(2, call.grid)

    return reduce


def _together(maps: Sequence[Float[Tensor, "s v d h w"]]) -> Float[Tensor, "s v e h w"]:
    """Layers side by side, each of unit variance."""
    size = max((m.shape[-2:] for m in maps), key=lambda s: s[0] * s[1])
    scaled = [F.interpolate(m.flatten(0, 1), size, mode="bilinear") for m in maps]
    return torch.cat([m / m.std().clamp_min(1e-8) for m in scaled], 1).unflatten(0, maps[0].shape[:2])


def colours(maps: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n 3 h w"]:
    """Three components as red, green and blue, from their 1st to their 99th hundredth over all maps."""
    flat = maps.movedim(-3, 0).flatten(1)
    low, high = (torch.quantile(flat[:, :: max(1, flat.shape[1] // 10**6)], q, dim=1) for q in (0.01, 0.99))
    low, high = (v.view(3, 1, 1) for v in (low, high))
    return ((maps - low) / (high - low).clamp_min(1e-8)).clamp(0, 1)


def draw(
    readers: Sequence[Reader], found: Mapping[str, Components], times: Sequence[float], path: Path, about: str
) -> None:
    """A row a layer, a column a step and view."""
    steps, views = len(times), len(readers)
    size = (1.15 * steps * views + 1.4, 1.25 * (len(found) + 1) + 0.6)
    with plots.figure(path, size, "One PCA for all steps and views", about) as figure:
        axes = figure.subplots(len(found) + 1, steps * views, squeeze=False)
        for column in range(steps * views):
            plots.image(axes[0, column], readers[column % views].shown.cpu(), f"t = {times[column // views]:g}")
        for row, (name, each) in enumerate(found.items(), 1):
            shown = colours(each.maps).flatten(0, 1)
            for column in range(steps * views):
                plots.image(axes[row, column], shown[column])
            axes[row, 0].set_title(f"{name}: {each.joint:.0%} of {each.own:.0%}", loc="left", fontsize=7)
