"""Parts of a scene by a word or a click: what is read of its views, lifted into it, seen from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sfumato.core.attention import Call
from sfumato.core.backbone import Backbone
from sfumato.core.brief import Brief
from sfumato.distill import Images
from sfumato.distill.generators import Generator
from sfumato.errors import SfumatoError
from sfumato.io.progress import Listener, heard, progress
from sfumato.learning.loop import learn
from sfumato.methods.perceive.dift import DIFT
from sfumato.methods.perceive.graph_cut import GraphCut
from sfumato.methods.perceive.text_attribution import TextAttribution
from sfumato.prompts.words import spans
from sfumato.reading.reader import Noise, Reader, chosen, read
from sfumato.scene.cameras import Pinholes, orbit
from sfumato.scene.capture import Capture
from sfumato.scene.features import FeatureField, Kind, Lift
from sfumato.scene.reconstruct import adam
from sfumato.tasks import recipes

Maps = Float[Tensor, "n k h w"]
LIFT_STEPS, LIFT_RATE = 300, 0.05
SMOOTH = 1.5
"""Pixels of the Gaussian that rendered maps are blurred by (seed 000, section 6.2)."""
FINE = 64
"""Cells a side of lifted votes, which have the outlines of pictures and not of maps."""


def word_reader(model: str, words: Sequence[str], prompt: str = "") -> tuple[TextAttribution, int | None]:
    """Text attribution as it suits a model, and the side at which it reads."""
    method, side = recipes.suited("text-attribution", model, None)
    return replace(method, words=tuple(words), prompt=prompt or None), side


def cutter(model: str) -> GraphCut:
    """The graph cut as it suits a model."""
    return recipes.suited("graph-cut", model, None)[0]


def word_maps(model: Backbone, images: Images, method: TextAttribution, side: int | None = None) -> Maps:
    """Where each picture's words look."""
    return _each(model, images, side, lambda reader: method.maps(reader))


def votes(
    model: Backbone,
    images: Images,
    method: TextAttribution,
    side: int | None = None,
    cut: GraphCut | None = None,
) -> Maps:
    """What each picture by itself takes its pixels for: 1 for it and 0 for the others, the background first, then the
    words, at the pictures' size. A ``cut`` moves the borders to the picture's edges before."""
    k = len(method.words) + 1

    def cast(reader: Reader) -> Tensor:
        found = method(reader)
        found = found if cut is None else cut.refine(replace(found, scores=found.whole.cpu()), reader.pixels)
        return F.one_hot(found.labels, k).permute(2, 0, 1)

    return _each(model, images, side, cast)


def latents(model: Backbone, images: Images, side: int | None = None) -> Maps:
    """The autoencoder's, of each picture."""
    return _each(model, images, side, lambda reader: reader.latents[0])


def deep(model: Backbone, images: Images, method: DIFT, side: int | None = None) -> Maps:
    """A network's features, of each picture."""
    return _each(model, images, side, method.features)


def head_maps(
    model: Backbone,
    images: Images,
    prompt: str,
    word: str,
    *,
    steps: Sequence[float] = (1, 101, 201),
    stage: str | None = "up",
    least: float = 0.0,
    side: int | None = None,
) -> tuple[Maps, tuple[str, ...]]:
    """Where a word of a prompt looks, by each head of each layer on its own, averaged over levels of noise; and which
    layer and head each map is of. All are brought to the latents' size."""
    at, names = spans(model.words(prompt), word), list[str]()

    def heads(call: Call) -> Float[Tensor, "rows heads h w"]:
        (name,) = call.rows.names
        probs = call.block(name, "image->text")[..., at].mean(-1)
        return probs.unflatten(-1, call.grid)

    def of(reader: Any) -> Tensor:
        sites = chosen(reader, "image->text", stage, least, "attention in a scene")
        total: dict[Any, Tensor] = {}
        for t in steps:
            for site, found in reader.extract(sites, heads, Noise(t), prompt).items():
                total[site] = total.get(site, 0) + found / len(steps)
        names[:] = [f"{site.path}, head {i}" for site in sites for i in range(len(total[site]))]
        grid = reader.grid
        return torch.cat([F.interpolate(total[s][None], grid, mode="bilinear", align_corners=False)[0] for s in sites])

    return _each(model, images, side, of), tuple(names)


def _each(model: Backbone, images: Images, side: int | None, of: Any) -> Maps:
    found = []
    with progress("reading views", len(images)) as advance, torch.no_grad():
        for image in images:
            with read(model, image.clamp(0, 1), side) as reader:
                found.append(of(reader).float().cpu())
            advance()
    return torch.stack(found)


def lift(
    scene: Generator,
    cameras: Pinholes,
    maps: Maps,
    kind: Kind = "dual",
    *,
    steps: int = LIFT_STEPS,
    resolution: int = 32,
    degree: int = 0,
    between: bool = True,
    rays: int = 2048,
    seed: int = 0,
    keep: Path | None = None,
    about: str = "",
) -> FeatureField:
    """Maps of a scene's views, as features that it has; its density is left as it is."""
    features = FeatureField(scene, maps.shape[1], kind, resolution=resolution, degree=degree, seed=seed)
    features = features.to(next(scene.parameters()).device)
    problem = Lift(features, cameras, maps, seed, rays, between)
    made = f"{kind} of {tuple(maps.shape)}, {resolution} cells, degree {degree}, {steps} steps, seed {seed} {about}"
    learn(problem, adam(problem.groups(), LIFT_RATE), steps=steps, keep=keep, every=100, about=made)  # pyright: ignore
    return features


@dataclass(frozen=True)
class SceneParts(Brief):
    """Where in views the words' things are."""

    words: tuple[str, ...]
    scores: Float[Tensor, "n k h w"]
    """Each word's share of the votes."""
    masks: Bool[Tensor, "n k h w"]
    features: FeatureField
    """The votes as the scene has them, the background's first."""


def segment_scene(
    model: Backbone,
    capture: Capture,
    scene: Generator,
    method: TextAttribution,
    cameras: Pinholes | None = None,
    *,
    side: int | None = None,
    cut: GraphCut | None = None,
    smooth: float = 0.0,
    steps: int = LIFT_STEPS,
    seed: int = 0,
    keep: Path | None = None,
    on_progress: Listener | None = None,
) -> SceneParts:
    """The things of ``method.words`` as cameras see them, the capture's own unless others are given.

    Each view votes, and the scene has at each place the share of votes for each word and for the background: a pixel
    is what has most. ``cut``: of the borders in the views that vote. Maps themselves would not do: their greatest
    values differ from view to view, and what is lifted is smoother than each of them, so that no part of the greatest
    is a thing's outline.
    """
    with heard(on_progress):
        cast = votes(model, capture.images, method, side, cut)
        about = f"votes of {method!r} {cut!r}"
        features = lift(scene, capture.cameras, cast, steps=steps, resolution=FINE, seed=seed, keep=keep, about=about)
    scores, masks = parted(features, capture.cameras if cameras is None else cameras, smooth)
    return SceneParts(method.words, scores, masks, features)


def parted(
    features: FeatureField, cameras: Pinholes, smooth: float = 0.0
) -> tuple[Float[Tensor, "n k h w"], Bool[Tensor, "n k h w"]]:
    """Of lifted votes each word's share as cameras see it, and where it has most."""
    shares = features.view(cameras, smooth)
    most = F.one_hot(shares.argmax(1), shares.shape[1]).permute(0, 3, 1, 2) > 0
    return shares[:, 1:], most[:, 1:]


def thing_masks(
    model: Backbone, capture: Capture, scene: Generator, word: str, name: str = "", prompt: str = "", *, seed: int = 0,
    grown: int = 2, steps: int = LIFT_STEPS,
) -> Bool[Tensor, "n h w"]:  # fmt: skip
    """Where a capture's views show a word's thing, grown by some pixels: where an edit of the thing alone may change
    them. Raises ``SfumatoError`` where it is nowhere."""
    method, side = word_reader(name, (word,), prompt)
    options: dict[str, Any] = {"side": side, "cut": cutter(name), "steps": steps, "seed": seed}
    found = segment_scene(model, capture, scene, method, **options).masks[:, 0]
    if not found.any():
        raise SfumatoError(f"{word!r} is found nowhere in the views; take another word, or leave --only out")
    return F.max_pool2d(found[:, None].float(), 2 * grown + 1, 1, grown)[:, 0] > 0


def clicked(
    features: FeatureField, view: Pinholes, point: tuple[float, float], cameras: Pinholes, threshold: float = 0.7
) -> tuple[Bool[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """What is like the place of a point, (x, y) in a view's pixels, as cameras see it: masks and cosines.

    Features are compared without their mean over the views that were read. Raises ``SfumatoError`` for a point outside.
    """
    h, w = view.size
    x, y = point
    if len(view) != 1 or not (0 <= x < w and 0 <= y < h):
        raise SfumatoError(f"the point {x:g}, {y:g} lies outside of the view of {w} x {h} pixels")
    middle = features.middle[:, None, None]  # type: ignore[index]
    own = (features.view(view) - middle)[0, :, int(y), int(x)]
    cosine = F.cosine_similarity(features.view(cameras) - middle, own[None, :, None, None], dim=1)
    return cosine > threshold, cosine


WIDEST = 120.0
"""Degrees; where no camera stands over more than that, a capture is not of all sides."""


def turntable(capture: Capture, n: int) -> Pinholes:
    """Cameras all around what a capture looks at; of one that has not all sides, its own, in their order."""
    away = capture.cameras.eyes - capture.middle
    around = torch.atan2(away[:, 0], away[:, 2]).rad2deg().sort().values
    gaps = torch.cat([around, around[:1] + 360]).diff()
    if float(gaps.max()) > WIDEST:
        return capture.cameras
    far = away.norm(dim=-1)
    h = capture.cameras.size[0]
    fov = 2 * torch.atan(h / 2 / capture.cameras.focal[:, 1]).rad2deg()
    return orbit(
        n, capture.cameras.size, elevation=float((away[:, 1] / far).clamp(-1, 1).asin().rad2deg().mean()),
        distance=float(far.mean()), fov=float(fov.mean()), target=capture.middle.tolist(),
    )  # fmt: skip
