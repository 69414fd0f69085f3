"""The table of the methods that read images: how each is asked, of what, and what its answer is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import families
import solids
import torch
from torch import Tensor

from sfumato.learning.heads import Examples, HeadMethod, train
from sfumato.media.meshes import Mesh
from sfumato.methods.perceive.clip_patches import ClipPatches
from sfumato.methods.perceive.diff3f import Diff3F
from sfumato.methods.perceive.diff_seg import DiffSeg
from sfumato.methods.perceive.diffews import DiffewS
from sfumato.methods.perceive.dift import DIFT
from sfumato.methods.perceive.few_shot import FeatureMatching, FewShot
from sfumato.methods.perceive.fourier_domain_adaptation import fourier_domain_adaptation
from sfumato.methods.perceive.graph_cut import GraphCut
from sfumato.methods.perceive.label_efficient import LabelEfficient
from sfumato.methods.perceive.landmark_regression import LandmarkRegression
from sfumato.methods.perceive.normalised_cut import NormalisedCut
from sfumato.methods.perceive.open_vocabulary import label
from sfumato.methods.perceive.optimal_transport import OptimalTransport
from sfumato.methods.perceive.pacl import PACL
from sfumato.methods.perceive.picie import PiCIE
from sfumato.methods.perceive.prompt_embeddings import PromptEmbeddings
from sfumato.methods.perceive.propagation import Propagation
from sfumato.methods.perceive.stego import STEGO
from sfumato.methods.perceive.text_attribution import TextAttribution
from sfumato.methods.perceive.unsupervised_keypoints import UnsupervisedKeypoints
from sfumato.reading.reader import Reader, read
from sfumato.reading.results import Segments

ALL = tuple(families.FAMILIES)
UNETS = ("sd", "sd2", "sdxl")
POINTS = torch.tensor([[10.5, 20.0], [40.0, 3.5], [0.0, 48.0]])
PROMPT, OTHER = "a red cube on grass", "the blue duck and a cube"


def picture(h: int = 48, w: int = 56, seed: int = 0) -> Tensor:
    """Noise with a bright square, which lies elsewhere in each."""
    image = 0.3 * torch.rand(3, h, w, generator=torch.Generator().manual_seed(seed))
    image[:, 8 + 4 * seed : 32 + 4 * seed, 8:36] += 0.7
    return image


def square(seed: int = 0) -> Tensor:
    mask = torch.zeros(48, 56)
    mask[8 + 4 * seed : 32 + 4 * seed, 8:36] = 1
    return mask


def reader(model: Any, seed: int = 0, upright: bool = False) -> Reader:
    """A picture as the network sees it, lying or upright."""
    size = (56, 48) if upright else (48, 56)
    return read(model, picture(*size, seed=seed), families.side(model))


def segments(k: int = 3) -> Segments:
    return Segments(torch.rand(k, 12, 14, generator=torch.Generator().manual_seed(0)), (48, 56))


def of_one(method: Any, model: Any) -> Any:
    return method(reader(model))


def of_two(method: Any, model: Any) -> Any:
    return method(reader(model), reader(model, 1, upright=True), POINTS)


def of_shots(method: Any, model: Any) -> Any:
    return method(reader(model, 2), [reader(model, 0), reader(model, 1)], [square(0), square(1)])


def of_labels(method: LabelEfficient, model: Any) -> Any:
    found = method.fit(model, [picture(seed=0), picture(seed=1)], [square(0).long(), square(1).long()], ("a", "b"),
                       families.side(model))  # fmt: skip
    return found.segments(reader(model))


def taught(method: HeadMethod, model: Any, **known: Any) -> Any:
    """A head that was taught a step on two pictures."""
    source, side = method.source or DIFT(ensemble=1), families.side(model)
    examples = Examples.of(method, model, source, [picture(seed=0), picture(seed=1)], side=side, **known)
    return train(method, examples, model=model, source=source, side=side, steps=1)


def of_head(method: HeadMethod, model: Any) -> Any:
    """Asked about a third."""
    return taught(method, model)(reader(model, 2))


def of_captions(method: PACL, model: Any) -> Any:
    return taught(method, model, captions=(PROMPT, OTHER)).with_words(model, ("red cube", "grass"))(reader(model))


def of_places(method: LandmarkRegression, model: Any) -> Any:
    points = torch.tensor([[[0.2, 0.3], [0.6, 0.5]], [[0.2, 0.4], [0.6, 0.6]]])
    return taught(method, model, points=points, names=("left", "right"))(reader(model))


def of_examples(method: DiffewS, model: Any) -> Any:
    head = taught(method, model, labels=torch.stack([square(0), square(1)]).long())
    return head.with_support([reader(model, 0), reader(model, 1)], [square(0), square(1)])(reader(model, 2))


def described(method: ClipPatches, model: Any) -> Any:
    seen_by = SimpleNamespace(device=torch.device("cpu"), factor=8, multiple=8, size=64)
    return method.features(read(cast("Any", seen_by), picture()))


def of_pictures(method: UnsupervisedKeypoints, model: Any) -> Any:
    images = [picture(64, 64, seed) for seed in range(3)]
    side = families.side(model)
    return method.fit(model, images, side=side).locate(read(model, images[0], side))


def of_a_shape(method: Diff3F, model: Any) -> Any:
    some = {"azimuths": method.azimuths[:3], "elevations": method.elevations[:2]}  # each view is like the others
    return replace(method, size=families.side(model), **some)(model, Mesh(*solids.sphere(1)))


def refined(method: GraphCut, model: Any) -> Any:
    return method.refine(segments(), picture())


def named(method: Any, model: Any) -> Any:
    return method(segments(), torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(1)), ("sky", "sea"))


def adapted(method: Any, model: Any) -> Any:
    return method(picture()[None], picture(seed=1)[None], 0.1)


@dataclass(frozen=True)
class Row:
    """A method in the table."""

    word: str
    ask: Callable[[Any, Any], Any]
    """With these settings, of this model's images."""
    ways: tuple[Any, ...]
    families: tuple[str, ...] = ALL
    """None: it needs no network."""
    names: tuple[str, ...] = ()
    shares: bool = False
    """Do scores of a cell sum to one?"""
    whole: bool = False
    """Does every segment have a pixel?"""
    most: float = math.inf
    """Of a score."""
    highest: float | None = None
    """What the highest score of each segment but the first is, which is the threshold everywhere."""


METHODS = (
    Row("clip-patches", described, (ClipPatches(side=32), ClipPatches(side=48)), ()),
    Row("diff-seg", of_one, (DiffSeg(), DiffSeg(threshold=1e-5, refine=True, spread="bilinear")), whole=True),
    Row(
        "diff3f", of_a_shape,
        (Diff3F((0, 140), (20,), look="shaded"), Diff3F((0,), (20, 200), look="normals", ensemble=2, fov=0)),
    ),
    Row(
        "diffews", of_examples, (DiffewS(batch=1, shots=1, rank=1),), (*UNETS, "deepfloyd"),
        names=("background", "thing"), most=1 + 1e-5,
    ),
    Row(
        "dift", of_two, (DIFT(ensemble=2, cycle=0.1), DIFT(ensemble=1, blocks=(0, 1), refine="image")),
    ),
    Row(
        "few-shot", of_shots, names=("background", "thing"), most=1 + 1e-5,
        ways=(FewShot(), FewShot(fuse=False, balance=True, noise="gaussian", t=50), FewShot(mask="multiply"),
              FeatureMatching(ensemble=1)),
    ),
    Row("graph-cut", refined, (GraphCut(), GraphCut(neighbours=8)), ()),
    Row(
        "label-efficient", of_labels, names=("a", "b"),
        ways=(LabelEfficient(members=2, batch=32, epochs=1, sure=1, pixels=60, t=(50,), standard=True),),
    ),
    Row("landmark-regression", of_places, (LandmarkRegression(virtual=3),)),
    Row(
        "normalised-cut", of_one, whole=True,
        ways=(NormalisedCut(side=20), NormalisedCut(clusters=3, side=20), NormalisedCut(tau=1.5, which=0, side=20)),
    ),
    Row("optimal-transport", of_two, (OptimalTransport(ensemble=2, cycle=0.1),)),
    Row(
        "pacl", of_captions, (PACL(batch=2), PACL(batch=2, standard=True, sharpness=10.0)),
        names=("red cube", "grass"), shares=True,
    ),
    Row(
        "prompt-embeddings", of_two, (PromptEmbeddings(steps=1, restarts=1, bank=2, found=4, rate=0.05),),
        families=UNETS,
    ),
    Row("picie", of_head, (PiCIE(classes=3, dim=4, batch=2),), shares=True),
    Row(
        "propagation", of_one, names=("background", "thing"), shares=True,
        ways=(Propagation((24, 24)), Propagation(box=(0, 0, 24, 24)), Propagation(box=(1, 1, 1.5, 1.5))),
    ),
    Row("stego", of_head, (STEGO(classes=3, dim=4, batch=2, points=3, standard=True),), shares=True),
    Row(
        "text-attribution", of_one, names=("background", "red cube", "grass"), highest=1.0,
        ways=(TextAttribution(("red cube", "grass"), PROMPT, steps=(1, 600)),
              TextAttribution(("red cube", "grass"), PROMPT, steps=(1, 600), read_with=OTHER, compete=True)),
    ),
    Row(
        "unsupervised-keypoints", of_pictures, families=UNETS,
        ways=(UnsupervisedKeypoints(keypoints=3, tokens=6, steps=1, rate=0.05, images=2, grid=10, candidates=4,
                                    augmentations=2),),
    ),
    Row("open-vocabulary", named, (label,), ()),
    Row("fourier-domain-adaptation", adapted, (fourier_domain_adaptation,), ()),
)  # fmt: skip
ROWS = {row.word: row for row in METHODS}
