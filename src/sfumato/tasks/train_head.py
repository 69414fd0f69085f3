"""Train a head on a frozen model's features of pictures, and say how well it does on others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.brief import Brief
from sfumato.errors import SfumatoError
from sfumato.io.files import from_json, read_text
from sfumato.io.progress import Listener, heard, progress
from sfumato.learning import checkpoint
from sfumato.learning.heads import Examples, Given, Head, HeadMethod, train
from sfumato.media.images import fit, open_picture
from sfumato.media.labels import read_labels
from sfumato.methods.perceive.dift import joined
from sfumato.metrics.matching import normalised_error
from sfumato.metrics.segmentation import miou_per_image, miou_per_set, named_iou
from sfumato.reading.reader import read
from sfumato.reading.results import Segments
from sfumato.stilllife.captions import plain
from sfumato.stilllife.kinds import TRAINED
from sfumato.stilllife.render import kinds_of, render, things_of, words_of
from sfumato.stilllife.scene import GROUNDS, sample_scene
from sfumato.tasks import kept
from sfumato.tasks.batch import LABELS, pictures_in

STILL_LIFE = "stilllife:"
WORDS = (*TRAINED, *GROUNDS)
"""What a pixel of a scene may be, in words of captions."""
_AT_ONCE = 16  # scenes that are rendered together


@dataclass(frozen=True, eq=False)
class Pictures(Brief):
    """What a head learns from, or is measured on."""

    pixels: Float[Tensor, "n 3 h w"]
    labels: Int[Tensor, "n h w"] | None = None
    """Negative where nobody knows."""
    captions: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Of the classes."""
    stems: tuple[str, ...] = ()
    """What the pictures are called."""
    points: Float[Tensor, "n k 2"] | None = None
    """Landmarks in parts of the sides, not a number where a picture has none of that name."""
    landmarks: tuple[str, ...] = ()
    """Their names."""
    phrases: tuple[tuple[str, ...], ...] = ()
    """Of each picture what its labels are, where these are not classes."""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def known(self) -> dict[str, Any]:
        """What ``Examples`` take beside features."""
        known = {"labels": self.labels, "captions": self.captions, "names": self.names}
        return known | ({"phrases": self.phrases} if self.phrases else {})

    def known_to(self, method: HeadMethod) -> dict[str, Any]:
        """The same, of landmarks for a method that learns those."""
        return {"points": self.points, "names": self.landmarks} if "points" in method.wants else self.known

    @property
    def digest(self) -> str:
        """A word for what they show, and what is known of it."""
        known = [self.pixels, self.labels, self.captions, self.names, self.points, self.landmarks]
        return kept.digest([*known, self.phrases] if self.phrases else known)


def pictures(
    data: str | Path,
    model: Backbone,
    names: Sequence[str] = (),
    seed: int = 0,
    worded: bool = False,
    apart: bool = False,
) -> Pictures:
    """Centre squares of a folder's pictures at the model's size, or as many Still Life scenes: ``stilllife:200``.

    Beside NAME.png lie, where they are known, its labels NAME-labels.png, its caption NAME.txt, and its landmarks
    NAME-points.json, such as ``{"nose": [x, y]}`` in its pixels, centres at halves. ``worded``: labels
    of scenes are what words of captions name, grounds and kinds, and of a backdrop nothing; ``apart``: each thing of a
    scene is a segment of its own. Raises ``SfumatoError`` for a place that is not there or holds no picture, and for
    labels of another shape.
    """
    if str(data).startswith(STILL_LIFE):
        return still_lifes(str(data).removeprefix(STILL_LIFE), model.size, seed, worded, apart)
    place = Path(data).expanduser()
    if not place.is_dir():
        raise SfumatoError(f"there is no folder {place}; give one of pictures, or scenes such as {STILL_LIFE}200")
    files = pictures_in(place)
    pixels, labels, captions, points = [], [], [], []
    with progress("reading pictures", len(files)) as advance:
        for file in files:
            fitted = fit(open_picture(file), model.size, model.multiple, "crop")
            pixels.append(fitted.pixels)
            labels.append(_labels(file, fitted.original.size, fitted.box, model.size))
            beside = file.with_suffix(".txt")
            captions.append(read_text(beside).strip() if beside.is_file() else "")
            points.append(_points(file, fitted.box))
            advance()
    known = None if not any((each >= 0).any() for each in labels) else torch.stack(labels)
    sentences = tuple(captions) if all(captions) else ()
    landmarks = tuple(dict.fromkeys(name for each in points for name in each))
    none = (float("nan"), float("nan"))
    at = torch.tensor([[each.get(name, none) for name in landmarks] for each in points]) if landmarks else None
    stems = tuple(file.stem for file in files)
    return Pictures(torch.stack(pixels), known, sentences, tuple(names), stems, at, landmarks)


def _points(file: Path, box: tuple[int, int, int, int]) -> dict[str, tuple[float, float]]:
    """Landmarks of a picture that lie in what is cropped, in parts of its sides."""
    beside = file.with_name(f"{file.stem}-points.json")
    if not beside.is_file():
        return {}
    left, top, right, bottom = box
    try:
        named = from_json(beside.read_bytes(), dict)
        at = {str(k): ((v[0] - left) / (right - left), (v[1] - top) / (bottom - top)) for k, v in named.items() if v}
    except (OSError, ValueError, TypeError, LookupError) as e:
        raise SfumatoError(f'{beside} is no landmarks as {{"nose": [x, y]}} in the picture\'s pixels ({e!r})') from e
    return {name: place for name, place in at.items() if all(0 <= v <= 1 for v in place)}


def _labels(file: Path, size: tuple[int, int], box: tuple[int, int, int, int], side: int) -> Int[Tensor, "h w"]:
    beside = file.with_name(f"{file.stem}{LABELS}.png")
    if not beside.is_file():
        return torch.full((side, side), -1)
    left, top, right, bottom = box
    own = read_labels(beside, (size[1], size[0]))[top:bottom, left:right]
    return F.interpolate(own[None, None].float(), (side, side), mode="nearest-exact")[0, 0].long()


def still_lifes(how_many: str, size: int, seed: int = 0, worded: bool = False, apart: bool = False) -> Pictures:
    """Scenes with the truth of each pixel: the backdrop, the ground, and kinds of things; and a sentence of each.

    ``worded``: kinds of grounds in the place of backdrop and ground (``words_of``). ``apart``: the ground and each
    thing by itself, and phrases of what they are (``things_of``).
    """
    if not how_many.isdigit() or not 1 <= int(how_many) <= 100_000:
        raise SfumatoError(f"scenes are a number of them, such as {STILL_LIFE}200, got {how_many!r}")
    rng, n = np.random.default_rng(seed), int(how_many)
    pixels, labels, captions, phrases = [], [], [], []
    with progress("rendering scenes", n) as advance:
        for at in range(0, n, _AT_ONCE):
            scenes = [sample_scene(rng) for _ in range(min(_AT_ONCE, n - at))]
            shown = render(scenes, size)
            pixels.append(shown.images)
            for i in range(len(scenes)):
                if apart:
                    own, words = things_of(shown, i)
                    phrases.append(words)
                else:
                    own = words_of(shown, i, WORDS) if worded else kinds_of(shown, i, TRAINED)
                labels.append(own)
            captions += [plain(scene) for scene in scenes]
            advance(len(scenes))
    stems = tuple(f"scene-{i}" for i in range(n))
    names = WORDS if worded else ("backdrop", "ground", *TRAINED)
    all_ = torch.cat(pixels), torch.stack(labels), tuple(captions), () if apart else names, stems
    return Pictures(*all_, phrases=tuple(phrases))


def given(place: Path) -> Callable[[str], Float[Tensor, "c h w"]]:
    """Features by pictures' names: tensors NAME of one safetensors file, or NAME-features.safetensors of a folder.

    The latter are what ``sfumato features`` writes; layers and steps lie side by side. Raises ``SfumatoError`` for a
    place that is not there, and, when asked, for a picture that has none.
    """
    if place.is_dir():

        def found(stem: str) -> Tensor:
            file = place / f"{stem}-features.safetensors"
            if not file.is_file():
                raise SfumatoError(f"{place} has no {file.name}; each picture has its features there")
            maps = [map for layer in checkpoint.read(file)[0].values() for map in layer.float()]
            return joined(maps)

        return found
    if not place.is_file():
        raise SfumatoError(f"there are no features {place}; give a safetensors file, or what sfumato features wrote")
    tensors, _ = checkpoint.read(place)

    def one(stem: str) -> Tensor:
        if stem not in tensors or tensors[stem].ndim != 3:
            raise SfumatoError(f"{place} has no tensor {stem!r} (c, h, w); it has {', '.join(list(tensors)[:5])}")
        return tensors[stem].float()

    return one


def train_head(
    model: Backbone,
    seen: Pictures,
    method: HeadMethod,
    source: Any,
    *,
    side: int | None = None,
    features: Callable[[str], Float[Tensor, "c h w"]] | None = None,
    steps: int | None = None,
    keep: Path | None = None,
    on_progress: Listener | None = None,
) -> Head:
    """Teach a head; ``keep``: a checkpoint from which the same call goes on after a stop.

    ``source``: what reads features, such as ``DIFT``; ``features``: those of one's own by names, in its place. Raises
    ``SfumatoError`` for what the method cannot learn from.
    """
    with heard(on_progress):
        own = getattr(method, "examples", None)  # of methods that read pictures in a way of their own
        if features is not None:
            if own is not None or method.changes_pictures or method.source is not None:
                what = "in changed colours" if method.changes_pictures else "itself"
                raise SfumatoError(
                    f"{type(method).__name__} reads pictures {what}, of which features that are given know nothing; "
                    "leave them out"
                )
            known = method.known(model, Given(), seen.known_to(method))
            examples = Examples.given([features(stem)[None] for stem in seen.stems], model.device, **known)
            return train(method, examples, steps=steps, keep=keep)
        if own is not None:
            examples = own(model, source, seen.pixels, **seen.known)
        else:
            examples = Examples.of(method, model, source, list(seen.pixels), side=side, **seen.known_to(method))
        return train(method, examples, model=model, source=source, side=side, steps=steps, keep=keep)


def errors(
    head: Head, model: Backbone, seen: Pictures, features: Callable[[str], Float[Tensor, "c h w"]] | None = None
) -> dict[str, float]:
    """Mean distance of landmarks from the truth in parts of the pictures' side, of images' means and of all points.

    Raises ``SfumatoError`` where no picture has a landmark of the head's.
    """
    truth = torch.full((len(seen), len(head.names), 2), torch.nan)
    for k, name in enumerate(head.names):
        if seen.points is not None and name in seen.landmarks:
            truth[:, k] = seen.points[:, seen.landmarks.index(name)]
    visible, side = truth.isfinite().all(-1), seen.pixels.shape[-1]
    if not visible.any():
        raise SfumatoError(f"none of these pictures has a landmark of the head's, {', '.join(head.names)}")
    found = torch.stack([_answer(head, model, *each, features) for each in zip(seen.pixels, seen.stems, strict=True)])
    given = found, side * truth.nan_to_num(), torch.full((len(seen),), float(side)), visible
    return {f"error_per_{each}": normalised_error(*given, each=each) for each in ("image", "point")}


def _answer(head: Head, model: Backbone, picture: Tensor, stem: str, features: Callable[[str], Tensor] | None) -> Any:
    if features is not None:
        return head.of([features(stem)], (picture.shape[1], picture.shape[2]))
    with read(model, picture, head.side) as reader:
        return head(reader)


def segments(
    head: Head, model: Backbone, seen: Pictures, features: Callable[[str], Float[Tensor, "c h w"]] | None = None
) -> list[Segments]:
    """What a head makes of pictures. ``SfumatoError`` for one that gives no segments."""
    found = []
    with progress("segmenting", len(seen)) as advance:
        for picture, stem in zip(seen.pixels, seen.stems, strict=True):
            one = _answer(head, model, picture, stem, features)
            if not isinstance(one, Segments):
                raise SfumatoError(f"a head of {type(head.method).__name__} gives no segments")
            found.append(one)
            advance()
    return found


SHOTS = (1, 5)


def measured_by_shots(head: Head, model: Backbone, seen: Pictures) -> tuple[dict[str, float], dict[int, Segments]]:
    """Mean IoU over classes of what a head finds by one other picture and by five, pixels of a class's pictures counted
    together (the protocol of PASCAL-5i and COCO-20i); and by their numbers what it makes of pictures by one.

    Each picture's support are those behind it that show the class. Raises ``SfumatoError`` without labels, and where no
    class is in two pictures.
    """
    if seen.labels is None or not (classes := head.method.seen(seen.labels, seen.names)):
        raise SfumatoError("a head is measured by shots on pictures with labels, of which two or more show a class")
    figures, shown = {}, dict[int, Segments]()
    readers = [read(model, picture, head.side) for picture in seen.pixels]
    for k in SHOTS:
        ious = []
        for value, those in classes.items():
            if len(those) <= k:
                continue
            both = either = 0
            for at, i in enumerate(those):
                support = [those[(at + j) % len(those)] for j in range(1, k + 1)]
                masks = [(seen.labels[j] == value).float() for j in support]
                found = head.with_support([readers[j] for j in support], masks)(readers[i])
                inside, truth = found.labels.cpu() == 1, seen.labels[i] == value
                both, either = both + int((inside & truth).sum()), either + int((inside | truth).sum())
                shown |= {i: found} if k == 1 else {}
            ious.append(both / max(either, 1))
        if ious:
            figures[f"miou_by_{k}"] = float(np.mean(ious))
    return figures, shown


def measured(found: Sequence[Segments], truth: Int[Tensor, "n h w"]) -> dict[str, float]:
    """Mean IoU and share of pixels right, in both protocols: clusters matched once for all pictures (STEGO, PiCIE), and
    for each by itself (DiffSeg); of segments that have the classes' names as they are."""
    labels, classes = [one.labels.cpu() for one in found], int(truth.max()) + 1
    if found[0].names:
        return {"miou": float(np.nanmean(named_iou(labels, list(truth), max(classes, len(found[0].names)))))}
    whole, right = miou_per_set(labels, list(truth), classes)
    each, each_right = miou_per_image(labels, list(truth), classes)
    return {"miou_per_set": whole, "right_per_set": right, "miou_per_image": each, "right_per_image": each_right}


def by_labels(head: Head) -> Head | None:
    """The same head read by the classifier that learned beside the clusters; nothing where there is none."""
    there = getattr(head.network, "labels", None) is not None and hasattr(head.method, "probe")
    return replace(head, method=replace(head.method, probe="labels")) if there else None
