"""Panoramas: the seams of their windows, how alike windows of one are and those of two, and what they take.

Of each method strips of 1024 x 128 pixels for prompts that leave the scene open, two of each prompt; beside them
windows that know nothing of each other. A coherent strip may be a dull one: its windows' Frechet distance to single
paintings, those of the independent windows, is told with it.

A seam goes from top to bottom, the edge of a thing does not. The model puts a thing in the middle of a window, so that
its edges come to lie a quarter from the borders, where at a stride of a quarter other windows begin: by the mean over
rows single paintings, which have no seams, have 1.3 there. By the geometric mean, that of a typical row, they have
1.13, told beside (``pano_seam_single``), and rendered strips 0.99. MultiDiffusion's own stride is an eighth
(``pano_seam_eighth``); what is compared has a quarter, as SyncDiffusion and Merge-attend-diffuse.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sfumato.bench.report import Figure, Target
from sfumato.bench.session import Session
from sfumato.core.denoising import denoise
from sfumato.core.method import Method
from sfumato.core.results import Sample
from sfumato.core.views import Ring, Tiles, Views
from sfumato.methods.sets import MergeAttendDiffuse, SpotDiffusion, SyncDiffusion
from sfumato.metrics.clip import clip_features, frechet
from sfumato.stilllife import weights

STEPS, GUIDANCE = 10, 5.0
WIDE, RING, SHORT = 8, 4, 2
"""Widths in windows: of strips, of rings, of what is timed."""
FLAT = 0.5 / 255
"""The least difference that a picture file holds."""
PROMPTS = ("a red cube", "a blue duck", "a green sphere", "a yellow cone")

MEANINGS = {
    "pano_seam": "MultiDiffusion: gradient across the windows' borders over that inside, of a typical row",
    "pano_seam_eighth": "the same, at the published stride of an eighth of a window",
    "pano_seam_feather": "the same as the first, with weights that fall off towards a window's borders",
    "pano_seam_single": "single paintings at the same columns, where there is no border",
    "pano_coherence": "SyncDiffusion: CLIP distance between a strip's windows, over MultiDiffusion's",
    "pano_coherence_mad": "Merge-attend-diffuse: the same",
    "pano_frechet": "SyncDiffusion: Frechet distance of windows to single paintings, over MultiDiffusion's",
    "pano_frechet_mad": "Merge-attend-diffuse: the same",
    "pano_diversity": "SyncDiffusion: CLIP distance between two strips of a prompt, over MultiDiffusion's",
    "ring_seam": "gradient across the wrap over that at the same place inside, when the ring is rolled by half",
    "ring_seam_open": "the same, decoded as a strip",
    "pano_vs_diffusers_time": "MultiDiffusion over diffusers' panorama pipeline, same windows; median",
    "sync_over_multi_time": "SyncDiffusion (the authors' fifth of the steps) over MultiDiffusion, same windows; median",
    "detached_over_multi_time": "the same, without the way back through the network, in all steps",
}
TARGETS = {
    "pano_seam": Target(1.1, at_least=False),
    "pano_coherence": Target(1.0, at_least=False),
    "pano_coherence_mad": Target(1.0, at_least=False),
    "pano_frechet": Target(1.1, at_least=False),
    "pano_frechet_mad": Target(1.1, at_least=False),
    "ring_seam": Target(1.05, at_least=False),
    "pano_vs_diffusers_time": Target(0.7, at_least=False),
    "sync_over_multi_time": Target(1.6, at_least=False),
}

WAYS: dict[str, tuple[Views, tuple[Method, ...]]] = {
    "independent windows": (Tiles(1.0), ()),
    "multi-diffusion": (Tiles(0.25), ()),
    "multi-diffusion, a stride of an eighth": (Tiles(0.125), ()),
    "multi-diffusion, feathered": (Tiles(0.25, feather=True), ()),
    "sync-diffusion": (Tiles(0.25), (SyncDiffusion(until=0.2),)),
    "sync-diffusion, detached": (Tiles(0.25), (SyncDiffusion(network=False),)),
    "merge-attend-diffuse": (Tiles(0.25), (MergeAttendDiffuse(),)),
    "spot-diffusion": (Tiles(), (SpotDiffusion(),)),
}
"""Views and methods by what they are called here."""


def across(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b w"]:
    """Difference of each column to the one before, of a typical row: the geometric mean over rows.

    So what crosses all of them counts, and an edge in some does little.
    """
    return (images - images.roll(1, -1)).abs().mean(1).clamp_min(FLAT).log().mean(1).exp()


def seam(images: Float[Tensor, "b 3 h w"], columns: Sequence[int], cell: int) -> Float[Tensor, " b"]:
    """What is across the left borders of these columns, over that across all other cells' borders."""
    return over_others(across(images), columns, cell)


def over_others(found: Float[Tensor, "b w"], columns: Sequence[int], cell: int) -> Float[Tensor, " b"]:
    others = [c for c in range(cell, found.shape[-1], cell) if c not in columns]
    return found[:, list(columns)].mean(1) / found[:, others].mean(1)


def apart(features: Float[Tensor, "n d"], others: Float[Tensor, "m d"] | None = None) -> float:
    """Mean cosine distance between features, of two sets or of the pairs of one."""
    a = F.normalize(features.float(), dim=1)
    if others is not None:
        return float(1 - (a @ F.normalize(others.float(), dim=1).T).mean())
    return float((1 - a @ a.T).sum() / (len(a) * (len(a) - 1)))


def worst(images: Float[Tensor, "b 3 h w"], views: Views, side: int, cell: int) -> Float[np.ndarray, " b"]:
    """The seams of the windows of one step: of those that move, of that step's whose are worst."""
    size = (images.shape[-2], images.shape[-1])
    each = [seam(images, borders(views.at(i), size, side, cell), cell) for i in range(STEPS)]
    return max(each, key=lambda found: float(found.mean())).numpy()


def borders(views: Views, size: tuple[int, int], side: int, cell: int) -> list[int]:
    """Columns of pixels at which a window begins or ends, inside of the canvas."""
    grid, window = (size[0] // cell, size[1] // cell), (side // cell, side // cell)
    lefts = [left for _, left in views.places(*grid, window)]  # pyright: ignore[reportAttributeAccessIssue]
    ends = {n * cell for left in lefts for n in (left, left + window[1])}
    return sorted(n for n in ends if 0 < n < size[1])


def strips(session: Session) -> Mapping[str, Figure]:
    """Every method's strips, from the same noise."""
    model, found = session.model, dict[str, dict[str, Figure]]()
    side, first = model.size, int(session.stream(19, 0).integers(2**30))
    size = (side, WIDE * side)
    alone: Tensor | None = None
    single = np.array([])
    for name, (given, methods) in WAYS.items():
        views, images, began = given, [], time.perf_counter()
        for method in methods:
            views = method.seeing(views)
        for i in range(session.n):
            prompt = PROMPTS[i // 2 % len(PROMPTS)]
            options: dict[str, Any] = {"steps": STEPS, "guide": GUIDANCE, "size": size, "seed": first + i}
            images.append(denoise(model, prompt, views=given, methods=methods, **options).images)
        painted, taken = torch.cat(images), time.perf_counter() - began
        session.keep(name.replace(" ", "-").replace(",", ""), painted, 1)
        windows = torch.stack(painted.split(side, -1), 1)
        features = clip_features(windows.flatten(0, 1), session.clip).cpu().unflatten(0, (-1, WIDE))  # pyright: ignore
        if alone is None:
            alone, at = (
                features.flatten(0, 1),
                borders(WAYS["multi-diffusion"][0], (side, 2 * side), side, model.factor),
            )
            each = torch.stack([across(one).mean(0) for one in windows])  # as many columns as of a strip
            single = over_others(each, [c for c in at if c < side], model.factor).numpy()
        pairs = [apart(features[i], features[i + 1]) for i in range(0, session.n - 1, 2)]
        found[name] = {
            "seam": worst(painted, views, side, model.factor),
            "coherence": np.array([apart(one) for one in features]),
            "diversity": float(np.mean(pairs)),
            "frechet": frechet(features.flatten(0, 1), alone),
        }
        session.methods[name] = {"seconds": taken / session.n} | {
            key: float(np.mean(v)) for key, v in found[name].items()
        }  # pyright: ignore

    def over(name: str, key: str) -> float:
        return float(np.mean(found[name][key]) / np.mean(found["multi-diffusion"][key]))

    return {
        "pano_seam": found["multi-diffusion"]["seam"],
        "pano_seam_eighth": found["multi-diffusion, a stride of an eighth"]["seam"],
        "pano_seam_feather": found["multi-diffusion, feathered"]["seam"],
        "pano_seam_single": single,
        "pano_coherence": over("sync-diffusion", "coherence"),
        "pano_coherence_mad": over("merge-attend-diffuse", "coherence"),
        "pano_frechet": over("sync-diffusion", "frechet"),
        "pano_frechet_mad": over("merge-attend-diffuse", "frechet"),
        "pano_diversity": over("sync-diffusion", "diversity"),
    }


def step_across(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Mean difference across the wrap."""
    return (images[..., 0] - images[..., -1]).abs().mean((1, 2))


def rings(session: Session) -> Mapping[str, Figure]:
    model, first = session.model, int(session.stream(19, 1).integers(2**30))
    closed, opened, inside = [], [], []
    for i in range(session.n):
        sample = denoise(
            model,
            PROMPTS[i % len(PROMPTS)],
            steps=STEPS,
            guide=GUIDANCE,
            size=(model.size, RING * model.size),
            views=Ring(0.25),
            seed=first + i,
        )
        closed.append(sample.images)
        opened.append(Sample(model, sample.latents, sample.prompts).images)
        half = sample.latents.shape[-1] // 2
        rolled = Sample(model, sample.latents.roll(half, -1), sample.prompts).images
        inside.append(rolled.roll(-half * model.factor, -1))
    wrap = [step_across(torch.cat(some)) for some in (closed, opened, inside)]
    session.keep("rings", torch.cat(closed), 1)
    return {
        "ring_seam": (wrap[0] / wrap[2]).numpy(),
        "ring_seam_open": (wrap[1] / wrap[2]).numpy(),
    }


def against_diffusers(session: Session) -> Mapping[str, Figure]:
    """The same network, noise, windows and steps; theirs goes window by window, as it does unless told otherwise."""
    model = session.model
    pipe = weights.assemble("StableDiffusionPanoramaPipeline", weights.load()).to(session.device)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet = model.network
    size, cells = (model.size, SHORT * model.size), model.size // model.factor
    places = Tiles().places(cells, SHORT * cells, (cells, cells))
    pipe.get_views = lambda *_, **options: [(top, top + cells, left, left + cells) for top, left in places]
    noise = model.latents([0], *size)
    options = {"num_inference_steps": 3, "guidance_scale": GUIDANCE, "output_type": "latent", "latents": noise}

    def ours() -> object:
        return denoise(model, PROMPTS[0], steps=3, guide=GUIDANCE, start=noise, views=Tiles())

    def theirs() -> object:
        return pipe(PROMPTS[0], height=size[0], width=size[1], **options)

    return {"pano_vs_diffusers_time": session.ratio(ours, theirs)}


def times(session: Session) -> Mapping[str, Figure]:
    model = session.model
    size = (model.size, SHORT * model.size)

    def painting(*methods: Method) -> Callable[[], object]:
        options: dict[str, Any] = {"steps": 5, "guide": GUIDANCE, "size": size, "views": Tiles(0.25)}
        return lambda: denoise(model, PROMPTS[0], methods=methods, **options)

    return {
        "sync_over_multi_time": session.ratio(painting(SyncDiffusion(until=0.2)), painting()),
        "detached_over_multi_time": session.ratio(painting(SyncDiffusion(network=False)), painting()),
    }


MEASURES: tuple[tuple[tuple[str, ...], Callable[[Any], Mapping[str, Figure]]], ...] = (
    (
        (
            "pano_seam",
            "pano_seam_eighth",
            "pano_seam_feather",
            "pano_seam_single",
            "pano_coherence",
            "pano_coherence_mad",
            "pano_frechet",
            "pano_frechet_mad",
            "pano_diversity",
        ),
        strips,
    ),
    (("ring_seam", "ring_seam_open"), rings),
    (("pano_vs_diffusers_time",), against_diffusers),
    (("sync_over_multi_time", "detached_over_multi_time"), times),
)
