"""Part pictures into segments: by a method, then a graph cut, then names; from examples where a method needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.errors import SfumatoError
from sfumato.io.progress import Listener, heard
from sfumato.io.terminal import note
from sfumato.learning.heads import Given, Head, HeadMethod
from sfumato.media.labels import read_labels
from sfumato.methods import heads, index
from sfumato.methods.perceive.few_shot import Supported
from sfumato.methods.perceive.graph_cut import GraphCut
from sfumato.methods.perceive.label_efficient import Classifier, LabelEfficient
from sfumato.methods.perceive.open_vocabulary import label
from sfumato.methods.perceive.text_attribution import TextAttribution
from sfumato.reading.reader import Image, Reader, check_set, pixels, read
from sfumato.reading.results import Segments
from sfumato.tasks.batch import pictures_in
from sfumato.tasks.recipes import filled
from sfumato.tasks.train_head import given as given_features

Example = tuple[Float[Tensor, "3 h w"], Int[Tensor, "h w"]]
"""A picture and its labels; of a mask, 1 is the thing."""


@dataclass(frozen=True)
class Segmenter:
    """A way to part pictures that is ready."""

    model: Backbone
    parts: Callable[[Reader], Segments]
    cuts: Sequence[GraphCut] = ()
    """Which move edges to those of the picture."""
    names: Sequence[str] = ()
    """Each segment gets one of these, by where the words look."""
    side: int | None = None

    def __post_init__(self) -> None:
        check_set(self.parts, "DiffSeg")

    def __call__(self, picture: Image) -> Segments:
        with read(self.model, picture, self.side) as reader:
            found = self.parts(reader)
            for cut in self.cuts:
                found = cut.refine(found, reader.pixels)
            if self.names:
                names = tuple(self.names)
                found = label(found, TextAttribution(names).heat_maps(reader), names)
        return found


@dataclass(frozen=True, eq=False)
class ByHead:
    """A head that segments, read from its file."""

    head: Head
    features: Callable[[str], Float[Tensor, "c h w"]] | None = None
    """Of pictures by their names, where the head's are given."""

    @property
    def side(self) -> int | None:
        return self.head.side

    def __repr__(self) -> str:
        return repr(self.head.method)

    def __call__(self, reader: Reader) -> Segments:
        return self._segments(self.head(reader))

    @property
    def takes_words(self) -> bool:
        """Are its classes any words?"""
        return self.head.method.takes_words

    def with_words(self, model: Backbone, words: Sequence[str]) -> ByHead:
        """The same with these words as its classes. ``SfumatoError`` for no word, and where it has classes."""
        return replace(self, head=self.head.with_words(model, words))

    def named(self, stem: str) -> Callable[[Reader], Segments]:
        """Of a picture of this name, whose features are given."""
        features = self.features
        if features is None:
            raise SfumatoError("this head reads features by itself; leave --given out")
        return lambda reader: self._segments(self.head.of([features(stem)], reader.size))

    def _segments(self, found: Any) -> Segments:
        if not isinstance(found, Segments):
            raise SfumatoError(f"a head of {name_of(self)} gives no segments")
        return found


def by_head(file: Path, given: Path | None = None) -> ByHead:
    """A head from its file, with a place of features that are given."""
    head = heads.load(file)
    if given is not None and not isinstance(head.source, Given):
        raise SfumatoError(f"{file} reads features of {head.model} by itself; leave --given out")
    return ByHead(head, None if given is None else given_features(given))


def name_of(method: Any) -> str:
    """Of what segments, its class's; of a head its method's."""
    return type(method.head.method if isinstance(method, ByHead) else method).__name__


def split(methods: Sequence[Any], words: Sequence[str]) -> tuple[Any, tuple[GraphCut, ...]]:
    """The method that segments, and the cuts behind it. ``SfumatoError``, which names ``words``, for anything else."""
    first, cuts = methods[0], tuple(item for item in methods[1:] if isinstance(item, GraphCut))
    if isinstance(first, HeadMethod):
        raise SfumatoError(
            f"{words[0]} learns a head first: sfumato train-head DATA {words[0]} --out head.safetensors; then segment "
            "with --head head.safetensors"
        )
    if isinstance(first, GraphCut) or len(cuts) < len(methods) - 1:
        raise SfumatoError(f"{' + '.join(words)}: one method segments, and graph-cut may follow: diff-seg + graph-cut")
    if not isinstance(first, ByHead):
        index.check("segment", words[0])
    return first, cuts


def examples_in(place: Path) -> list[Example]:
    """Pictures NAME.png of a folder (or one of them) with their labels NAME-labels.png.

    Raises ``SfumatoError`` where there is none, and for labels of another size.
    """
    if not place.exists():
        raise SfumatoError(f"there is no file or folder {place}")
    found = []
    for file in pictures_in(place) if place.is_dir() else [place]:
        beside = file.with_name(f"{file.stem}-labels.png")
        if beside.exists():
            image = pixels(file)
            found.append((image, read_labels(beside, (image.shape[-2], image.shape[-1]))))
    if not found:
        raise SfumatoError(f"{place} holds no picture NAME.png with its labels NAME-labels.png")
    return found


def ready(
    method: Any,
    model: Backbone,
    *,
    labelled: Path | None = None,
    learned: Path | None = None,
    side: int | None = None,
    on_progress: Listener | None = None,
) -> Callable[[Reader], Segments]:
    """A method that is ready: one that needs examples has them, and one that learns has learned.

    ``learned``: what was learned is written there, or, without examples, read. Raises ``SfumatoError`` for a method
    that takes none of these, or lacks them.
    """
    name = name_of(method)
    if isinstance(method, ByHead):
        method.head.check(model)
        method.head.network.to(model.device)
    if learned is not None and not isinstance(method, LabelEfficient):
        raise SfumatoError(f"{name} learns nothing that could be kept; leave --learned out")
    if learned is not None and labelled is None:
        classifier = Classifier.load(learned)
        if filled(method, classifier.method) != classifier.method:
            note("what is learned has its own settings; those said here are not read")
        return classifier.segments
    by_support = isinstance(method, ByHead) and method.head.method.takes_support
    if not by_support and not isinstance(method, Supported | LabelEfficient):
        if labelled is not None:
            raise SfumatoError(f"{name} takes no examples; leave --labelled out")
        return method
    if labelled is None:
        raise SfumatoError(f"{name} learns from examples; give a folder of them: --labelled FOLDER")
    images, labels = map(list, zip(*examples_in(labelled), strict=True))
    if isinstance(method, LabelEfficient):
        with heard(on_progress):
            classifier = method.fit(model, images, labels, side=side)
        if learned is not None:
            classifier.save(learned)
        return classifier.segments
    support = [read(model, image, side) for image in images]
    masks = [_thing(one).float() for one in labels]
    if isinstance(method, ByHead):
        return replace(method, head=method.head.with_support(support, masks))
    return lambda reader: method(reader, support, masks)


def _thing(labels: Int[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    """What a mask holds: the greater of two values, or of more the label 1."""
    values = labels.unique()
    return labels == (values[1] if len(values) == 2 else 1)
