"""``sfumato bench perceive``: what is read of fresh renders, against all that is known of their every pixel.

Segments without and with words, from a few labels and from a shot; points of one thing found in another; keypoints
without labels. Beside each method stands what needs no network: pixels, chance, the mean. Papers differ in protocol, so
both of each kind are reported: matched per image and pooled, per point and per image, by box and by image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, is_dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.backbones.clips import opened
from sfumato.bench import landmarks as annotated
from sfumato.bench import truth
from sfumato.bench.ports.prompt_embeddings import published_fit
from sfumato.bench.report import Comparison, Figure, Report, Target, gather
from sfumato.bench.session import Session
from sfumato.bench.units import Row, Units, columns, timed
from sfumato.core.backbone import Backbone
from sfumato.io.device import choose
from sfumato.io.progress import progress
from sfumato.learning.clusters import begun
from sfumato.learning.heads import Examples, Head, Standard, cells, train
from sfumato.media import pictures
from sfumato.media.images import tensor
from sfumato.media.labels import lines, overlay
from sfumato.media.labels import points as dots
from sfumato.methods import heads
from sfumato.methods.perceive import (
    clip_patches,
    diff_seg,
    dift,
    few_shot,
    graph_cut,
    label_efficient,
    open_vocabulary,
    prompt_embeddings,
    text_attribution,
    unsupervised_keypoints,
)
from sfumato.methods.perceive.unsupervised_keypoints import regressed, regressor
from sfumato.metrics.matching import Found, pck
from sfumato.metrics.segmentation import miou_of_images, miou_per_image, miou_per_set, named_iou
from sfumato.ops.regions import k_means
from sfumato.reading.reader import Reader, read
from sfumato.reading.results import Matches, Segments
from sfumato.stilllife.captions import plain
from sfumato.stilllife.kinds import TRAINED
from sfumato.stilllife.render import Rendering, keypoints, kinds_of, words_of
from sfumato.stilllife.scene import GROUNDS
from sfumato.tasks.recipes import find
from sfumato.tasks.segment import Segmenter

SIDE = 256  # at which the network sees the renders of 128 pixels: 32 x 32 cells
SHOTS = (1, 5)
LABELLED = (5, 20, 50)
CLASSES = ("cube", "duck", "mug", "tree")
"""Kinds that are learned from labels, beside backdrop and ground."""
PARTS_OF = "duck"
KEYPOINT_KIND, RIDGE, SIZE = "robot", 0.03, 128
LEARNED = 100
"""Images that keypoints are learned and their regressor is fitted on."""
FEW_PAIRS = 10
"""Embeddings are optimised for so many pairs at most: they take seconds a point."""

FIRST = f"pck_10 by point, first {FEW_PAIRS}"

MEANINGS = {
    "diffseg_miou": "segments of things, ground and backdrop: DiffSeg and graph cut, mean over images",
    "diffseg_over_baselines": "the same less the better of k-means on pixels and on features",
    "text_miou": "where words look: IoU of each thing with its name's segment",
    "box_miou": "a thing from its box, by propagation of self-attention",
    "click_miou": "and from a click",
    "label_efficient_miou": "classes of pixels learned from 20 labelled images",
    "label_efficient_cut_miou": "and with a graph cut behind it",
    "label_efficient_over_baselines": "less the better of the same on pixels and on a random network",
    "stego_miou": "classes of pixels learned without labels by STEGO, clusters matched once for all images",
    "picie_miou": "and by PiCIE",
    "pacl_miou": "kinds and grounds by any words, learned of captions alone by PACL, on the better kind of patches",
    "pacl_over_untrained": "less the better of words without training: looked for in segments, in a CLIP's patches",
    "few_shot_miou": "a thing in an image, from one other image and its mask",
    "few_shot_over_matching": "less the same by matching features",
    "diffews_miou": "the same by DiffewS, which was taught by scenes of every other kind",
    "diffews_5_miou": "and from five images",
    "diffews_over_matching": "from one, less the same by matching features",
    "diffews_unseen_miou": "from one, of the kinds that it was not taught",
    "pck_10": "points of a thing found in another of its kind within 0.1 of its box, the best method",
    "pck_10_over_baselines": "the worst method less the best of chance, colours and the same place, on the same pairs",
    "keypoint_error": "annotated keypoints regressed from learned ones: error over that of the mean position",
    "cluster_seconds": "DiffSeg's clustering of 64 x 64 maps with 256 anchors",
    "embedding_speed": "points a second over those of the published loop, equal result",
} | annotated.MEANINGS
TARGETS = {
    "diffseg_miou": Target(0.6),
    "diffseg_over_baselines": Target(0.0),
    "text_miou": Target(0.5),
    "label_efficient_miou": Target(0.8),
    "label_efficient_over_baselines": Target(0.0),
    "pacl_over_untrained": Target(0.0),
    "few_shot_over_matching": Target(0.0),
    "diffews_over_matching": Target(0.0),
    "pck_10": Target(0.6),
    "pck_10_over_baselines": Target(0.0),
    "keypoint_error": Target(0.5, at_least=False),
    "cluster_seconds": Target(1.5, at_least=False),
    "embedding_speed": Target(5.0),
} | annotated.TARGETS


@dataclass
class PerceiveSession(Session):
    @cached_property
    def units(self) -> Units:
        return Units(None if self.out is None else self.out / "perceive-units.jsonl")

    def labels(self, unit: str, segment: Callable[[], Segments]) -> tuple[Row, Int[Tensor, "h w"]]:
        """Segments of a unit, kept as a picture whose greys are the labels."""

        def measure() -> tuple[Row, Float[Tensor, "3 h w"]]:
            found, cost = timed(segment, self.device)
            return dict(cost), (found.labels.cpu().float() / 255).expand(3, -1, -1)

        row, shown = self.units.get(f"{self.seed} {unit}", measure)
        return row, (shown[0] * 255).round().long()

    def matches(self, unit: str, match: Callable[[], Matches], pair: truth.Pair) -> tuple[Row, Matches]:
        """Points of a pair found again, kept in the unit's row, and as a picture of them."""

        def measure() -> tuple[Row, Float[Tensor, "3 h w"]]:
            found, cost = timed(match, self.device)
            at = {f"{axis}{i}": float(v) for i, p in enumerate(found.target) for axis, v in zip("xy", p, strict=True)}
            both = [pictures.picture(image) for image in pair.images]
            return {**cost, **at}, tensor(lines(both[0], both[1], pair.points[0], found.target, height=192))

        row, _ = self.units.get(f"{self.seed} {unit}", measure)
        at = [[row[f"x{i}"], row[f"y{i}"]] for i in range(pair.points.shape[1])]
        cost = {key: row[key] for key in ("seconds", "peak_mb")}
        none = torch.zeros(len(at))
        return cost, Matches(pair.points[0], torch.tensor(at), none, none.bool())

    def once(self, unit: str, learned: Callable[[], tuple[Any, dict[str, float]]]) -> Row:
        """What learning took, as it was when it was done."""
        row, _ = self.units.get(
            f"{self.seed} {unit}",
            lambda: ({f"learning_{k}": v for k, v in learned()[1].items()}, torch.zeros(3, 1, 1)),
        )
        return row


@dataclass(frozen=True)
class Tried:
    """A method as it is measured."""

    method: Any
    cut: bool = False
    side: int | None = SIDE

    @classmethod
    def suited(cls, word: str, cut: bool = False) -> Tried:
        """As it suits the built-in model."""
        return cls(find(word).method, cut, find(word).side)

    def __str__(self) -> str:
        """All that changes a result."""
        about = repr(self.method) if is_dataclass(self.method) else self.method.__name__
        return f"{about} {self.side} {CUT if self.cut else ''}"

    def segments(self, model: Backbone, image: Float[Tensor, "3 h w"]) -> Segments:
        return Segmenter(model, self.method, (CUT,) if self.cut else (), side=self.side)(image)


def run(n: int, seed: int, device: str = "auto", out: Path | None = None) -> Report:
    """Measure everything. With ``out``, what was measured is kept there, and not measured again."""
    session = PerceiveSession(n, seed, choose(device), out)
    report = Report("perceive", n, seed, str(session.device), MEANINGS, TARGETS)
    return gather(report, MEASURES, session, out)


def _compared(
    session: PerceiveSession,
    what: str,
    rows: Mapping[str, Mapping[str, Row]],
    keys: Sequence[str],
    more: Mapping[str, Row],
) -> None:
    """Note every method's means, and what is of its whole set."""
    for name, units in rows.items():
        noted = {
            key: float(np.mean(columns(units, key))) for key in (*keys, "seconds", "peak_mb") if columns(units, key)
        }
        session.methods[f"{what}: {name}"] = noted | {k: v for k, v in more.get(name, {}).items() if v is not None}
    session.compared[what] = Comparison((*keys, "seconds", "peak_mb"), rows)


# --- segments without words ---------------------------------------------------------------------


def by_pixels(reader: Reader) -> Segments:
    """K-means of colour and place: as many clusters as the median image has regions."""
    h, w = reader.size
    y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    return _clustered(torch.cat([reader.pixels.cpu(), 0.5 * torch.stack([x, y])]), reader.size)


def by_features(reader: Reader) -> Segments:
    """K-means of the features that DIFT matches by, of length one."""
    map = find("dift").method.features(reader).cpu()
    return _clustered(F.normalize(map, dim=0), reader.size)


def _clustered(map: Float[Tensor, "c h w"], size: tuple[int, int], k: int = 3) -> Segments:
    labels = k_means(map.flatten(1).T.double().numpy(), k, tries=3).view(map.shape[1:])
    return Segments(F.one_hot(labels, k).permute(2, 0, 1).float(), size)


CUT = find("graph-cut").method
SMOOTHER = graph_cut.GraphCut(smooth=5)
SEGMENTERS = {
    "DiffSeg": Tried.suited("diff-seg"),
    "DiffSeg + graph cut": Tried.suited("diff-seg", cut=True),
    "DiffSeg, published": Tried(diff_seg.DiffSeg()),
    "normalised cut": Tried.suited("normalised-cut"),
    "normalised cut + graph cut": Tried.suited("normalised-cut", cut=True),
    "k-means on pixels": Tried(by_pixels),
    "k-means on features": Tried(by_features),
}


def segments(session: PerceiveSession) -> Mapping[str, Figure]:
    """Things one by one, ground and backdrop."""
    shown = truth.renders(session.stream(1), session.n)
    wanted = [truth.regions(shown, i) for i in range(session.n)]
    rows: dict[str, dict[str, Row]] = {name: {} for name in SEGMENTERS}
    found: dict[str, list[Tensor]] = {name: [] for name in SEGMENTERS}
    with progress("bench: segments", session.n * len(SEGMENTERS)) as advance:
        for i, image in enumerate(shown.images):
            for name, tried in SEGMENTERS.items():
                cost, labels = session.labels(
                    f"segments {i} {tried}", lambda t=tried, x=image: t.segments(session.model, x)
                )
                rows[name][f"image {i}"] = {"miou": miou_of_images([labels], [wanted[i]]), **cost}
                found[name].append(labels)
                advance()
    classes = max(int(t.max()) for t in wanted) + 1
    pooled: dict[str, Row] = {}
    for name, labels in found.items():
        mean, right = miou_per_image(labels, wanted, classes)
        pooled[name] = {"pooled_miou": mean, "pixels_right": right}
        _keep(session, f"segments-{name}", shown.images, labels)
    _compared(session, "segments", rows, ("miou",), pooled)
    ours = np.array(columns(rows["DiffSeg + graph cut"], "miou"))
    base = max(np.mean(columns(rows[name], "miou")) for name in ("k-means on pixels", "k-means on features"))
    return {"diffseg_miou": ours, "diffseg_over_baselines": float(ours.mean() - base)}


def _keep(
    session: PerceiveSession, name: str, images: Float[Tensor, "n 3 h w"], labels: Sequence[Int[Tensor, "h w"]]
) -> None:
    """A sheet of the first images with their labels."""
    tinted = [tensor(overlay(pictures.picture(x), at)) for x, at in zip(images[:32], labels[:32], strict=True)]
    session.keep(name.replace(" ", "-").replace(",", ""), torch.stack(tinted))


# --- segments by words ---------------------------------------------------------------------------


def words(session: PerceiveSession) -> Mapping[str, Figure]:
    """One or two things of different kinds, looked for by their kinds' names."""
    rng = session.stream(2)
    scenes = []
    while len(scenes) < session.n:
        one = truth.renders(rng, 1, count=1 + len(scenes) % 2)
        if len({t.kind for t in one.scenes[0].things}) == len(one.scenes[0].things):
            scenes.append(one)
    published, suited = text_attribution.TextAttribution(), find("text-attribution").method
    asked = {
        "text attribution": (suited, False),
        "text attribution + graph cut": (suited, True),
        "text attribution, published": (published, False),
        "the whole image": (None, False),
    }
    rows: dict[str, dict[str, Row]] = {name: {} for name in asked}
    found: dict[str, list[Tensor]] = {name: [] for name in asked}
    with progress("bench: words", len(scenes) * len(asked)) as advance:
        for i, one in enumerate(scenes):
            names = tuple(t.kind for t in one.scenes[0].things)
            for name, (method, cut) in asked.items():
                cost, labels = {}, torch.ones(one.thing.shape[1:], dtype=torch.long)
                if method is not None:
                    tried = Tried(replace(method, words=names, prompt=plain(one.scenes[0])), cut)
                    cost, labels = session.labels(
                        f"words {i} {tried}", lambda t=tried, x=one.images[0]: t.segments(session.model, x)
                    )
                ious = [_iou(labels == k + 1, one.thing[0] == k) for k in range(len(names))]
                rows[name][f"image {i}"] = {"miou": float(np.mean(ious)), **cost}
                found[name].append(labels)
                advance()
    _compared(session, "words", rows, ("miou",), {})
    _keep(session, "words", torch.cat([one.images for one in scenes]), found["text attribution"])
    return {"text_miou": np.array(columns(rows["text attribution"], "miou"))}


def _iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp_min(1))


def clicks(session: PerceiveSession) -> Mapping[str, Figure]:
    """A thing from its box, and from a click in its middle, beside the box itself."""
    shown = truth.renders(session.stream(7), session.n)
    rows: dict[str, dict[str, Row]] = {name: {} for name in ("box", "click", "the box itself")}
    with progress("bench: clicks", 2 * session.n) as advance:
        for i, image in enumerate(shown.images):
            mask = shown.thing[i] == 0
            y, x = mask.nonzero().T
            left, top, right, bottom = (float(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1))
            nearest = (y - y.float().mean()).square() + (x - x.float().mean()).square()
            middle = nearest.argmin()
            filled = torch.zeros_like(mask)
            filled[int(top) : int(bottom), int(left) : int(right)] = True
            rows["the box itself"][f"image {i}"] = {"miou": _iou(filled, mask)}
            for name, where in (
                ("box", {"box": (left, top, right, bottom)}),
                ("click", {"click": (float(x[middle]) + 0.5, float(y[middle]) + 0.5)}),
            ):
                tried = Tried(replace(find("propagation").method, **where))
                cost, labels = session.labels(
                    f"clicks {i} {tried}", lambda t=tried, x=image: t.segments(session.model, x)
                )
                rows[name][f"image {i}"] = {"miou": _iou(labels == 1, mask), **cost}
                advance()
    _compared(session, "clicks", rows, ("miou",), {})
    return {f"{name}_miou": np.array(columns(rows[name], "miou")) for name in ("box", "click")}


# --- classes of pixels from a few labelled images ------------------------------------------------


def untrained(model: Backbone) -> Backbone:
    """The same architecture with random weights, as torch draws them."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    network: Any = UNet2DConditionModel.from_config(cast("Any", model).network.config)
    other: Any = copy(model)
    other.pipe = copy(other.pipe)
    other.pipe.unet = network.to(model.device).eval()
    other.name = f"{model.name}, untrained"
    return other


def learned_from_labels(session: PerceiveSession) -> Mapping[str, Figure]:
    """Backdrop, ground and four kinds, learned from 5, 20 and 50 images; and the parts of one kind, from 20."""
    suited, model = find("label-efficient").method, session.model
    asked: dict[str, Asked] = {f"label-efficient, {n}": (suited, model, n, None) for n in LABELLED}
    asked["label-efficient, 20 + graph cut"] = (suited, model, 20, SMOOTHER)
    asked |= {f"on pixels, {n}": (replace(suited, of="pixels"), model, n, None) for n in LABELLED}
    asked["on a random network, 20"] = (suited, untrained(model), 20, None)
    pooled = _classes(session, "labelled", CLASSES, lambda shown, i: kinds_of(shown, i, CLASSES), asked)
    few = {name: asked[name] for name in ("label-efficient, 20", "on pixels, 20")}
    _classes(session, f"parts of a {PARTS_OF}", (PARTS_OF,), truth.parts, few)
    ours, cut = (pooled[f"label-efficient, 20{more}"] for more in ("", " + graph cut"))
    base = max(pooled[name] for name in ("on pixels, 20", "on a random network, 20"))
    return {
        "label_efficient_miou": ours,
        "label_efficient_cut_miou": cut,
        "label_efficient_over_baselines": ours - base,
    }


Asked = tuple[label_efficient.LabelEfficient, Backbone, int, graph_cut.GraphCut | None]


def _classes(
    session: PerceiveSession,
    what: str,
    kinds: tuple[str, ...],
    label: Callable[[Rendering, int], Int[Tensor, "h w"]],
    asked: Mapping[str, Asked],
) -> dict[str, float]:
    """Mean IoU over the classes of every method, pixels of all images counted together."""
    draw = {"kinds": kinds, "count": 1}
    many = truth.renders(session.stream(3), max(LABELLED), **draw)
    tests = truth.renders(session.stream(4), session.n, **draw)
    wanted, taught = ([label(shown, i) for i in range(len(shown.images))] for shown in (tests, many))
    rows: dict[str, dict[str, Row]] = {name: {} for name in asked}
    pooled: dict[str, Row] = {}
    with progress(f"bench: {what}", len(asked) * session.n) as advance:
        for name, (method, model, n, cut) in asked.items():

            @cache
            def learned(method: Any = method, model: Any = model, n: int = n) -> Any:
                return timed(lambda: method.fit(model, list(many.images[:n]), taught[:n], side=SIDE), session.device)

            def segment(image: Tensor, model: Any = model, learned: Any = learned, cut: Any = cut) -> Segments:
                return Segmenter(model, learned()[0].segments, () if cut is None else (cut,), side=SIDE)(image)

            found, unit = [], f"{what} {n} {model.name} {method!r} {SIDE} {kinds}"
            for i, image in enumerate(tests.images):
                about = f"{unit} {i} {cut or ''}"
                if f"{session.seed} {about}" not in session.units.rows:
                    learned()  # not in the time of an image
                cost, labels = session.labels(about, lambda x=image: segment(x))
                rows[name][f"image {i}"] = {"miou": miou_named([labels], [wanted[i]]), **cost}
                found.append(labels)
                advance()
            pooled[name] = {"pooled_miou": miou_named(found, wanted), **session.once(f"{unit} learning", learned)}
            _keep(session, f"{what}-{name}", tests.images, found)
    _compared(session, what, rows, ("miou",), pooled)
    return {name: cast("float", row["pooled_miou"]) for name, row in pooled.items()}


def miou_named(found: Sequence[Int[Tensor, "h w"]], wanted: Sequence[Int[Tensor, "h w"]]) -> float:
    """Mean over the classes that are there, pixels of all images counted together."""
    classes = 1 + max(int(labels.max()) for labels in (*found, *wanted))
    return float(np.nanmean(named_iou(found, wanted, classes)))


# --- classes of pixels without labels -------------------------------------------------------------

UNLABELLED = 64
"""Images that heads are learned on."""
CLASS_NAMES = ("backdrop", "ground", *CLASSES)


def learned_without_labels(session: PerceiveSession) -> Mapping[str, Figure]:
    """Backdrop, ground and four kinds by heads on frozen features, in both protocols; beside them what labels teach."""
    draw = {"kinds": CLASSES, "count": 1}
    many = truth.renders(session.stream(12), UNLABELLED, **draw)
    tests = truth.renders(session.stream(4), session.n, **draw)
    wanted, taught = ([kinds_of(shown, i, CLASSES) for i in range(len(shown.images))] for shown in (tests, many))
    source, known = heads_source(), {"labels": torch.stack(taught), "names": CLASS_NAMES}
    found: dict[str, list[Tensor]] = {}
    rows: dict[str, dict[str, Row]] = {}
    pooled: dict[str, Row] = {}

    @cache
    def plain_features() -> Examples:
        return Examples.of(unlabelled("stego"), session.model, source, list(many.images), side=SIDE, **known)

    def read_by(name: str, head: Callable[[], tuple[Any, dict[str, float]]], unit: str) -> None:
        rows[name], found[name] = {}, []
        for i, image in enumerate(tests.images):
            if f"{session.seed} {unit} {i}" not in session.units.rows:
                head()  # not in the time of an image

            def segment(image: Tensor = image) -> Segments:
                with read(session.model, image, SIDE) as reader:
                    return head()[0](reader)

            cost, labels = session.labels(f"{unit} {i}", segment)
            rows[name][f"image {i}"] = {"miou": miou_of_images([labels], [wanted[i]]), **cost}
            found[name].append(labels)
        whole, right = miou_per_set(found[name], wanted, len(CLASS_NAMES))
        pooled[name] = {
            "miou matched once": whole, "pixels right": right,
            "miou matched per image": miou_per_image(found[name], wanted, len(CLASS_NAMES))[0],
            **session.once(f"{unit} learning", head),
        }  # fmt: skip
        _keep(session, f"heads-{name}", tests.images, found[name])

    with progress("bench: heads", 4) as advance:
        for name, method in (("STEGO", unlabelled("stego")), ("PiCIE", unlabelled("picie"))):

            @cache
            def learned(method: Any = method) -> tuple[Any, dict[str, float]]:
                def work() -> Head:
                    examples = None if method.changes_pictures else plain_features()
                    if examples is None:
                        examples = Examples.of(method, session.model, source, list(many.images), side=SIDE, **known)
                    return train(method, examples, model=session.model, source=source, side=SIDE)

                return timed(work, session.device)

            unit = f"heads {UNLABELLED} {method!r} {source!r} {SIDE} {CLASSES}"
            read_by(name, learned, unit)
            advance()
            if name == "STEGO":
                by_labels = replace(method, probe="labels")
                read_by(
                    "STEGO, linear classifier",
                    lambda of=learned, how=by_labels: (replace(of()[0], method=how), of()[1]),
                    f"{unit} by labels",
                )
                advance()

        @cache
        def clustered() -> tuple[Any, dict[str, float]]:
            return timed(lambda: FeatureClusters.of(plain_features(), source, len(CLASS_NAMES)), session.device)

        read_by("k-means on features", clustered, f"heads {UNLABELLED} k-means {source!r} {SIDE} {CLASSES}")
        advance()
    _compared(session, "heads", rows, ("miou",), pooled)
    return {f"{name.lower()}_miou": cast("float", pooled[name]["miou matched once"]) for name in ("STEGO", "PiCIE")}


def unlabelled(word: str) -> Any:
    """A method as it suits the built-in model, with as many clusters as there are classes."""
    return replace(find(word).method, classes=len(CLASS_NAMES))


def heads_source() -> dift.DIFT:
    """What heads learn of: the features that suit the built-in model, by one noise."""
    return replace(find("dift").method, ensemble=1)


@dataclass(frozen=True)
class FeatureClusters:
    """K-means over all images of standardised features, without a head: which of them a cell is most like."""

    source: Any
    standard: Standard
    centroids: Float[Tensor, "k c"]

    @classmethod
    def of(cls, examples: Examples, source: Any, k: int) -> FeatureClusters:
        standard = Standard(examples.width).to(examples.device)
        standard.learn(examples)
        every = 7  # a seventh of the cells, at places that differ from row to row
        some = [standard(cells(examples.maps([i]))[0][i % every :: every]) for i in range(len(examples))]
        return cls(source, standard, begun(F.normalize(torch.cat(some), dim=1), k, 0, tries=2))

    def __call__(self, reader: Reader) -> Segments:
        map = self.source.features(reader)
        codes = F.normalize(self.standard(cells(map[None])[0]), dim=1)
        near = -torch.cdist(codes, self.centroids)
        return Segments(near.softmax(1).T.unflatten(1, map.shape[1:]), reader.size)


# --- any words, learned of captions ---------------------------------------------------------------

CAPTIONED = 120
"""Images with captions that a head is learned on."""
WORDS = (*CLASSES, *GROUNDS)
"""What a pixel may be; the backdrop has no word, and does not count."""
UNTRAINED = "segments named by where words look"


def learned_from_captions(session: PerceiveSession) -> Mapping[str, Figure]:
    """Kinds and grounds by their words: PACL on two kinds of patches, and what gives words without training."""
    many = truth.renders(session.stream(15), CAPTIONED, kinds=CLASSES)
    tests = truth.renders(session.stream(16), session.n, kinds=CLASSES)
    wanted = [words_of(tests, i, WORDS) for i in range(session.n)]
    captions, method = tuple(map(plain, many.scenes)), find("pacl").method
    rows: dict[str, dict[str, Row]] = {}
    pooled: dict[str, Row] = {}

    def read_by(name: str, unit: str, segment: Callable[[Reader], Segments], learned: Any = None) -> None:
        found, rows[name] = [], {}
        for i, image in enumerate(tests.images):
            about = f"captions {unit} {SIDE} {WORDS} {i}"
            if learned is not None and f"{session.seed} {about}" not in session.units.rows:
                learned()  # not in the time of an image

            def one(image: Tensor = image) -> Segments:
                with read(session.model, image, SIDE) as reader:
                    return segment(reader)

            cost, labels = session.labels(about, one)
            rows[name][f"image {i}"] = {"miou": miou_named([labels], [wanted[i]]), **cost}
            found.append(labels)
        each = named_iou(found, wanted, len(WORDS))
        pooled[name] = {
            "pooled_miou": float(np.nanmean(each)),
            "of things": float(np.nanmean(each[: len(CLASSES)])),
            "of grounds": float(np.nanmean(each[len(CLASSES) :])),
        }
        if learned is not None:
            pooled[name] |= session.once(f"captions {unit} learning", learned)
        _keep(session, f"captions-{name}", tests.images, found)

    sources = {"PACL on features": heads_source(), "PACL on a CLIP's patches": clip_patches.ClipPatches()}
    with progress("bench: captions", len(sources) + 2) as advance:
        for name, source in sources.items():

            @cache
            def learned(source: Any = source) -> tuple[Any, dict[str, float]]:
                def work() -> Head:
                    known = {"captions": captions}
                    examples = Examples.of(method, session.model, source, list(many.images), side=SIDE, **known)
                    head = train(method, examples, model=session.model, source=source, side=SIDE)
                    return head.with_words(session.model, WORDS)

                return timed(work, session.device)

            read_by(name, f"{CAPTIONED} {method!r} {source!r}", lambda reader, of=learned: of()[0](reader), learned)
            advance()
        suited = replace(find("text-attribution").method, words=WORDS)
        segmenting = find("diff-seg").method

        def untrained(reader: Reader) -> Segments:
            return in_words(open_vocabulary.label(segmenting(reader), suited.heat_maps(reader), WORDS), WORDS)

        read_by(UNTRAINED, f"{segmenting!r} {suited!r}", untrained)
        advance()
        read_by("a CLIP's patches as they are", "projected", by_projection)
        advance()
    _compared(session, "captions", rows, ("miou",), pooled)
    values = {name: cast("float", row["pooled_miou"]) for name, row in pooled.items()}
    ours = max(values[name] for name in sources)
    base = max(value for name, value in values.items() if name not in sources)
    return {"pacl_miou": ours, "pacl_over_untrained": ours - base}


def by_projection(reader: Reader) -> Segments:
    """The CLIP's own projection, which only the whole image's token was trained through, on each patch."""
    source = clip_patches.ClipPatches()
    map = source.features(reader)
    network = opened(source.clip, str(reader.model.device)).network
    with torch.no_grad():
        patches = network.visual_projection(network.vision_model.post_layernorm(cells(map[None])[0]))
    found = open_vocabulary.similarity(patches, source.texts(reader.model, WORDS))
    return Segments(found.unflatten(1, map.shape[1:]), reader.size, WORDS)


def in_words(found: Segments, words: Sequence[str]) -> Segments:
    """Segments by their names' places among ``words``; those that are not there score less than any."""
    least = found.scores.min() - 1
    of = {name: score for name, score in zip(found.names, found.scores, strict=True)}
    none = least.expand_as(found.scores[0])
    return Segments(torch.stack([of.get(word, none) for word in words]), found.size, tuple(words))


# --- a thing from one image and its mask ---------------------------------------------------------

MATCHING = few_shot.FeatureMatching(0.49, t=0, layers=("up_blocks.3.attentions.0",), ensemble=1)
COARSER = few_shot.FeatureMatching(0.46, t=0, layers=("up_blocks.2.attentions.2",), ensemble=1)
"""At their best thresholds; the better one with a single shot."""


TAUGHT = 160
"""Scenes that a network is taught to answer supports by: of two things in three of four, so that these say which."""
TAUGHT_KINDS = TRAINED[::2]
"""The kinds in them; things of the others are measured as well."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A head that reads by a support, as the methods that need no training are called."""

    about: str
    head: Callable[[], tuple[Head, dict[str, float]]]

    def __repr__(self) -> str:
        return self.about

    def __call__(self, reader: Reader, support: Sequence[Reader], masks: Sequence[Float[Tensor, "h w"]]) -> Segments:
        return self.head()[0].with_support(support, masks)(reader)


def by_episodes(session: PerceiveSession) -> Shown:
    """DiffewS as it suits the built-in model, taught once; a run that was stopped goes on."""
    row = find("diffews")
    method: Any = row.method
    about = f"{method!r} {row.side} {TAUGHT} {TAUGHT_KINDS}"
    names = ("backdrop", "ground", *TAUGHT_KINDS)

    def work() -> Head:
        file, so_far = (session.units.beside(f"{session.seed} {about}", e) for e in (".head", ".safetensors"))
        if file is not None and file.exists():
            return heads.load(file, session.device)
        rng = session.stream(17)
        scenes = [truth.renders(rng, 1, kinds=TAUGHT_KINDS, count=1 + (i % 4 > 0)) for i in range(TAUGHT)]
        images = [shown.images[0] for shown in scenes]
        labels = torch.stack([kinds_of(shown, 0, TAUGHT_KINDS) for shown in scenes])
        known = {"labels": labels, "names": names}
        examples = Examples.of(method, session.model, method.source, images, side=row.side, **known)
        head = train(method, examples, model=session.model, source=method.source, side=row.side, keep=so_far)
        if file is not None and so_far is not None:
            head.save(file)
            so_far.unlink(missing_ok=True)
        return head

    return Shown(about, cache(lambda: timed(work, session.device)))


def shots(session: PerceiveSession) -> Mapping[str, Figure]:
    """One thing alone; the support shows others of its kind."""
    taught = by_episodes(session)
    methods = {
        "DiffewS": taught,
        "few-shot": find("few-shot").method,
        "few-shot, published": few_shot.FewShot(),
        "feature matching": MATCHING,
        "feature matching, coarser": COARSER,
        "feature matching, as DIFT": few_shot.FeatureMatching(),
    }
    rows: dict[str, dict[str, Row]] = {f"{name}, {k}": {} for name in methods for k in SHOTS}
    found: dict[str, list[Tensor]] = {"few-shot": [], "DiffewS": []}
    images: list[Tensor] = []
    kinds: list[str] = []
    with progress("bench: shots", session.n * len(rows)) as advance:
        for i in range(session.n):
            rng = session.stream(5, i)
            kind = str(rng.choice(TRAINED))
            seen = truth.renders(rng, 1 + max(SHOTS), kinds=(kind,), count=1)
            masks = (seen.thing == 0).float()
            images.append(seen.images[0])
            kinds.append(kind)
            for name, method in methods.items():
                for k in SHOTS:

                    def segment(method: Any = method, k: int = k, seen: Any = seen, masks: Any = masks) -> Segments:
                        readers = [read(session.model, x, SIDE) for x in seen.images[: k + 1]]
                        return method(readers[0], readers[1:], list(masks[1 : k + 1]))

                    unit = f"shots {i} {k} {method!r} {SIDE}"
                    if method is taught and f"{session.seed} {unit}" not in session.units.rows:
                        taught.head()  # not in the time of an image
                    cost, labels = session.labels(unit, segment)
                    rows[f"{name}, {k}"][f"image {i}"] = {"miou": _iou(labels == 1, masks[0] > 0), **cost}
                    if k == 1 and name in found:
                        found[name].append(labels)
                    advance()
    ious = {name: np.array(columns(units, "miou")) for name, units in rows.items()}
    learned = np.array([kind in TAUGHT_KINDS for kind in kinds])
    more: dict[str, Row] = {}
    for name, each in ious.items():
        parts = {"miou of kinds taught": each[learned], "miou of other kinds": each[~learned]}
        more[name] = {key: float(part.mean()) for key, part in parts.items() if len(part)}
    more["DiffewS, 1"] |= session.once(f"shots learning {taught!r}", taught.head)
    _compared(session, "shots", rows, ("miou",), more)
    for name, labels in found.items():
        _keep(session, "shots" if name == "few-shot" else f"shots-{name}", torch.stack(images), labels)
    matched = max((ious[f"{name}, 1"] for name in methods if name.startswith("feature")), key=np.mean)
    unseen = {"diffews_unseen_miou": ious["DiffewS, 1"][~learned]} if not learned.all() else {}
    return unseen | {
        "few_shot_miou": ious["few-shot, 1"],
        "few_shot_over_matching": ious["few-shot, 1"] - matched,
        "diffews_miou": ious["DiffewS, 1"],
        "diffews_5_miou": ious[f"DiffewS, {max(SHOTS)}"],
        "diffews_over_matching": ious["DiffewS, 1"] - matched,
    }


# --- points of one thing in another --------------------------------------------------------------


def by_colour(source: Reader, target: Reader, points: Float[Tensor, "n 2"]) -> Matches:
    """The pixel of the most alike colour and place."""
    h, w = target.size
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")

    def described(reader: Reader) -> Float[Tensor, "n 5"]:
        return torch.cat([reader.pixels.cpu(), 0.5 * torch.stack([x, y])]).flatten(1).T

    at = points.long()
    asked = described(source).view(h, w, 5)[at[:, 1], at[:, 0]]
    best = torch.cdist(asked, described(target)).argmin(1)
    found = torch.stack([best % w, best // w], 1) + 0.5
    return Matches(points, found, torch.zeros(len(points)), torch.ones(len(points), dtype=torch.bool))


def by_chance(source: Reader, target: Reader, points: Float[Tensor, "n 2"]) -> Matches:
    """Anywhere in the image."""
    dice = torch.Generator().manual_seed(int(points.sum() * 1000))
    found = torch.rand(points.shape, generator=dice) * torch.tensor([target.size[1], target.size[0]])
    return Matches(points, found, torch.zeros(len(points)), torch.ones(len(points), dtype=torch.bool))


def by_place(source: Reader, target: Reader, points: Float[Tensor, "n 2"]) -> Matches:
    """Where it is in the other image."""
    found = points * torch.tensor([target.size[1], target.size[0]]) / torch.tensor([source.size[1], source.size[0]])
    return Matches(points, found, torch.zeros(len(points)), torch.ones(len(points), dtype=torch.bool))


MATCHERS = {
    "DIFT": Tried.suited("dift"),
    "DIFT, published": Tried(dift.DIFT()),
    "optimal transport": Tried.suited("optimal-transport"),
    "optimised embeddings": Tried.suited("prompt-embeddings"),
    "colours": Tried(by_colour),
    "the same place": Tried(by_place),
    "chance": Tried(by_chance),
}
SLOW = ("optimised embeddings",)
BASE = ("colours", "the same place", "chance")


def matches(session: PerceiveSession) -> Mapping[str, Figure]:
    """Keypoints of single things of one kind, that differ in all else; and points anywhere on them."""
    _found(session, "points", truth.pairs(session.stream(6), session.n))
    whole, few = _found(session, "keypoints of pairs", truth.pairs(session.stream(11), session.n, named=True))
    ours = {name: value for name, value in whole.items() if name not in BASE and "published" not in name}
    over = [min(ours.values()) - max(whole[name] for name in BASE)]
    over += [few[name] - max(few[base] for base in BASE) for name in SLOW]
    return {"pck_10": max(ours.values()), "pck_10_over_baselines": min(over)}


def _found(
    session: PerceiveSession, what: str, asked: Sequence[truth.Pair]
) -> tuple[dict[str, float], dict[str, float]]:
    """PCK by point of the methods that were tried on all pairs, and of all methods on the first of them."""
    rows: dict[str, dict[str, Row]] = {name: {} for name in MATCHERS}
    found: dict[str, list[Found]] = {name: [] for name in MATCHERS}
    with progress(f"bench: {what}", len(asked) * len(MATCHERS)) as advance:
        for name, tried in MATCHERS.items():
            for i, pair in enumerate(asked[:FEW_PAIRS] if name in SLOW else asked):

                def match(pair: truth.Pair = pair, tried: Tried = tried) -> Matches:
                    with (
                        read(session.model, pair.images[0], tried.side) as one,
                        read(session.model, pair.images[1], tried.side) as other,
                    ):
                        return tried.method(one, other, pair.points[0])

                cost, at = session.matches(f"{what} {i} {tried}", match, pair)
                each = Found(at.target, pair.points[1], pair.box, float(max(pair.images.shape[-2:])))
                rows[name][f"pair {i}"] = {"pck_10": pck([each]), "pck_05": pck([each], 0.05), **cost}
                found[name].append(each)
                advance()
    pooled: dict[str, Row] = {}
    for name, pairs in found.items():
        pooled[name] = {
            "pck_10 by point": pck(pairs),
            "pck_10 by point, of the image": pck(pairs, by="image"),
            "pck_10 of the image": pck(pairs, by="image", each="image"),
            FIRST: pck(pairs[:FEW_PAIRS]),
        }
    _compared(session, what, rows, ("pck_10", "pck_05"), pooled)
    by_point, first = ({n: cast("float", row[key]) for n, row in pooled.items()} for key in ("pck_10 by point", FIRST))
    return {name: value for name, value in by_point.items() if name not in SLOW}, first


# --- keypoints without labels ---------------------------------------------------------------------


def landmarks(session: PerceiveSession) -> Mapping[str, Figure]:
    """Robots from the front: learned and regressed on some, found on others, beside the mean position."""
    draw = {"kinds": (KEYPOINT_KIND,), "count": 1, "view": "front"}
    learned_on = truth.renders(session.stream(8), LEARNED, **draw)
    tests = truth.renders(session.stream(9), session.n, **draw)
    method = find("unsupervised-keypoints").method
    taught, seen = _annotated(learned_on)
    wanted, visible = _annotated(tests)
    sizes = [_height(tests, i) for i in range(session.n)]
    rows: dict[str, dict[str, Row]] = {"regressed": {}, "mean position": {}}
    sheet: list[Tensor] = []

    def learn() -> tuple[Any, dict[str, float]]:
        name = f"perceive-keypoints-{session.units.of}-{session.seed}-{LEARNED}.safetensors"
        resume = None if session.out is None else session.out / name
        return timed(lambda: method.fit(session.model, list(learned_on.images), resume), session.device)

    @cache
    def found() -> tuple[Any, Tensor, dict[str, float]]:
        points, cost = learn()
        at = torch.stack([_located(session, points, image) for image in learned_on.images])
        return points, regressor(at / SIZE, taught / SIZE, seen, RIDGE), cost

    mean = torch.stack([taught[seen[:, j], j].mean(0) for j in range(taught.shape[1])])
    with progress("bench: keypoints", session.n) as advance:
        for i, image in enumerate(tests.images):

            def measure(i: int = i, image: Tensor = image) -> tuple[Row, Tensor]:
                points, weights, _ = found()
                at, cost = timed(lambda: _located(session, points, image), session.device)
                predicted = regressed(at[None] / SIZE, weights)[0] * SIZE
                row: Row = {**cost, "error": _error(predicted, wanted[i], visible[i], sizes[i])}
                shown = dots(pictures.picture(image), torch.cat([predicted, wanted[i][visible[i]]]), 256)
                return row, tensor(shown)

            unit = f"{session.seed} keypoints {i} {method!r} {KEYPOINT_KIND} {LEARNED} {RIDGE}"
            row, shown = session.units.get(unit, measure)
            sheet.append(shown)
            rows["regressed"][f"image {i}"] = row
            rows["mean position"][f"image {i}"] = {"error": _error(mean, wanted[i], visible[i], sizes[i])}
            advance()
    session.keep("keypoints", torch.stack(sheet[:12]), 4)
    cost = session.once(f"keypoints learning {method!r} {KEYPOINT_KIND} {LEARNED}", lambda: (None, found()[2]))
    _compared(session, "keypoints", rows, ("error",), {"regressed": cost})
    ours, base = (float(np.mean(columns(rows[name], "error"))) for name in ("regressed", "mean position"))
    return {"keypoint_error": ours / base}


def _located(session: PerceiveSession, points: unsupervised_keypoints.Keypoints, image: Tensor) -> Float[Tensor, "k 2"]:
    with read(session.model, image) as reader:
        return points.locate(reader).cpu()


def _annotated(shown: Rendering) -> tuple[Float[Tensor, "n m 2"], Bool[Tensor, "n m"]]:
    """The kind's keypoints in each image, and which of them it shows."""
    named = [keypoints(scene, shown, i)[0] for i, scene in enumerate(shown.scenes)]
    at = torch.tensor([[p[:2] for p in points.values()] for points in named])
    return at, torch.tensor([[p[2] for p in points.values()] for points in named])


def _height(shown: Rendering, image: int) -> float:
    """Of the thing, in pixels."""
    y = (shown.thing[image] == 0).nonzero()[:, 0]
    return float(y.max() - y.min() + 1)


def _error(found: Float[Tensor, "m 2"], truth: Float[Tensor, "m 2"], visible: Bool[Tensor, " m"], size: float) -> float:
    """Mean distance of what is visible, in parts of the thing's height."""
    return float((found - truth)[visible].norm(dim=1).mean() / size)


# --- speed ----------------------------------------------------------------------------------------


def clustering(session: PerceiveSession) -> Mapping[str, Figure]:
    """DiffSeg's clustering at the size of Stable Diffusion's maps: smooth maps, a spot around each cell."""
    grid = (64, 64)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    at = torch.stack([y.flatten(), x.flatten()], 1)
    maps = (-torch.cdist(at, at).square() / 200).softmax(1).to(session.device)
    anchors = diff_seg.anchored(grid, 16).to(session.device)
    spent = [timed(lambda: diff_seg.cluster(maps, anchors, 0.9), session.device)[1] for _ in range(3)]
    session.methods["clustering of 64 x 64"] = {"peak_mb": max(s["peak_mb"] for s in spent)}
    return {"cluster_seconds": float(np.median([s["seconds"] for s in spent]))}


def fitting(session: PerceiveSession) -> Mapping[str, Figure]:
    """A step of one text: the published loop's over that of all points and restarts in batches."""
    (pair,) = truth.pairs(session.stream(10), 1, points=4)
    method, steps = replace(prompt_embeddings.PUBLISHED, steps=3), 3
    alone, batched = [], []
    for _ in range(3):
        with read(session.model, pair.images[0]) as reader:
            alone.append(
                timed(lambda r=reader: published_fit(method, r, pair.points[0][0], 0, steps), session.device)[1]
            )
        with read(session.model, pair.images[0]) as reader:
            method.crops(reader)  # encoded once, whatever the number of steps
            batched.append(timed(lambda r=reader: method.fit(r, pair.points[0]), session.device)[1])
    texts = method.restarts * len(pair.points[0])
    one, many = (float(np.median([s["seconds"] for s in spent])) / steps for spent in (alone, batched))
    session.methods["a step of one text"] = {"published loop": one, "batched": many / texts}
    return {"embedding_speed": one / (many / texts)}


MEASURES: tuple[tuple[tuple[str, ...], Callable[[PerceiveSession], Mapping[str, Figure]]], ...] = (
    (("diffseg_miou", "diffseg_over_baselines"), segments),
    (("text_miou",), words),
    (("box_miou", "click_miou"), clicks),
    (("label_efficient_miou", "label_efficient_cut_miou", "label_efficient_over_baselines"), learned_from_labels),
    (("stego_miou", "picie_miou"), learned_without_labels),
    (("pacl_miou", "pacl_over_untrained"), learned_from_captions),
    ((*(key for key in MEANINGS if key.startswith(("few_shot", "diffews"))),), shots),
    (("pck_10", "pck_10_over_baselines"), matches),
    (("keypoint_error",), landmarks),
    annotated.MEASURE,
    (("cluster_seconds",), clustering),
    (("embedding_speed",), fitting),
)
