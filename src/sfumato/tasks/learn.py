"""Teach a model what a few photographs show: a concept, and what it paints of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.core.backbone import Backbone
from sfumato.core.brief import Brief, Shown
from sfumato.core.denoising import denoise
from sfumato.core.guidance import cfg
from sfumato.errors import SfumatoError
from sfumato.io.files import from_json, read_text
from sfumato.io.progress import Listener, heard, progress, show
from sfumato.io.terminal import note
from sfumato.learning.concepts import Concept, checked
from sfumato.learning.encoders import Pretrained
from sfumato.learning.lessons import Lesson
from sfumato.learning.loop import Run
from sfumato.learning.personal import Asked, Personalisation, teach
from sfumato.learning.priors import class_pictures
from sfumato.learning.repair import repaired
from sfumato.media import opening, pictures
from sfumato.media.images import read_image
from sfumato.reading.results import Segments
from sfumato.tasks import kept
from sfumato.tasks.batch import pictures_in

T = TypeVar("T")
ROOM = 2**30
"""Bytes that photographs may take in memory."""
SHOWN = 4
"""Pictures of a concept that are painted when it is learned, and how many of the photographs stand above them."""


@dataclass(frozen=True)
class Photographs(Brief):
    """What is learned from, as the model sees it."""

    files: tuple[Path, ...]
    pixels: Float[Tensor, "n 3 h w"]
    masks: Float[Tensor, "n h w"] | Float[Tensor, "n things h w"] | None = None
    cameras: Float[Tensor, "n 2"] | None = None
    """Azimuth and elevation that each was seen from, in degrees; 0 is the front."""
    captions: tuple[tuple[str, ...], ...] = ()
    """What is said of each, in one way or several, with {} for what is learned."""

    def __len__(self) -> int:
        return len(self.files)

    @property
    def digest(self) -> str:
        """A word for what they show."""
        return kept.digest([self.pixels, self.masks, self.cameras, *self.captions])


def listed(places: Sequence[Path]) -> list[Path]:
    """The pictures that files and folders hold, by their names; what else lies in a folder is noted.

    Raises ``SfumatoError`` for a place that is not there, and where there is none.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += pictures_in(place)
        elif place.is_file():
            opening.checked(place)
            found.append(place)
        else:
            raise SfumatoError(f"there is no photograph or folder {place}")
    if not found:
        raise SfumatoError("no photograph is given: name files, or folders of pictures")
    return list(dict.fromkeys(found))


def read(
    places: Sequence[Path],
    model: Backbone,
    most: int,
    masks: Path | None = None,
    cameras: Path | None = None,
    captions: Path | None = None,
    things: Sequence[str] = (),
) -> Photographs:
    """Centre squares of photographs at the model's size; of more than ``most`` as many, evenly from all, and of more
    than a gigabyte of them as many as that holds.

    ``masks``: a folder with a picture of the same name for each, white where the thing is; of several ``things`` a
    folder in it for each, by these names, in which that is left out where a photograph does not show it. ``cameras``: a
    JSON file, name -> [azimuth, elevation] in degrees; ``captions``: one with name -> a caption, or several. Raises
    ``SfumatoError`` for what cannot be read, and for what is missing.
    """
    files = listed(places)
    most = min(most, ROOM // (12 * model.size**2))
    if len(files) > most:
        note(f"of {len(files)} photographs the run sees {most}")
        files = [files[i * len(files) // most] for i in range(most)]
    elif len(files) == 1:
        note("one photograph says little of what is the thing's and what the place's; three to five say more")
    several = len(things) > 1
    folders = [] if masks is None else [masks / thing for thing in things] if several else [masks]
    marks = [{f.stem: f for f in listed([folder])} for folder in folders]
    if marks and (missing := [f.name for f in files if not any(f.stem in of for of in marks)]):
        raise SfumatoError(f"{masks} has no mask of {missing[0]}; a mask is a picture of the same name")
    seen_from = None if cameras is None else _cameras(cameras, files)
    captioned = () if captions is None else _captions(captions, files)
    read_of, masks_of = [], []
    with progress("reading photographs", len(files)) as advance:
        for file in files:
            read_of.append(pixels := read_image(file, model, "crop"))
            none = torch.zeros_like(pixels[0])
            masks_of += [read_image(of[file.stem], model, "crop").mean(0) if file.stem in of else none for of in marks]
            advance()
    seen = torch.stack(masks_of).unflatten(0, (len(files), len(marks))) if marks else None
    marked = seen if seen is None or several else seen[:, 0]
    return Photographs(tuple(files), torch.stack(read_of), marked, seen_from, captioned)


def segmented(photographs: Photographs, parts: Callable[[Tensor], Segments], words: Sequence[str]) -> Photographs:
    """The same with masks of what a segmenter finds of each word, beside a background and the other words.

    Says how much of each photograph they cover. Raises ``SfumatoError`` where it finds nothing.
    """
    masks = []
    with progress("segmenting photographs", len(photographs)) as advance:
        for file, pixels in zip(photographs.files, photographs.pixels, strict=True):
            labels = parts(pixels).labels
            masks.append(torch.stack([(labels == 1 + i).float() for i in range(len(words))]))
            shares = ", ".join(f"{float(m.mean()):.0%} {word}" for m, word in zip(masks[-1], words, strict=True))
            note(f"{file.name}: {shares}")
            if not masks[-1].any():
                raise SfumatoError(f"nothing in {file.name} is {' or '.join(words)}; mark the things by hand (--masks)")
            advance()
    seen = torch.stack(masks).cpu()
    return replace(photographs, masks=seen if len(words) > 1 else seen[:, 0])


def _cameras(path: Path, files: Sequence[Path]) -> Float[Tensor, "n 2"]:
    """Of each file."""
    says = 'says where each picture was seen from, as {"a.png": [90, 20]}'
    found = _of_each(path, files, says, lambda of: torch.tensor([[float(value) for value in row] for row in of]))
    if found.shape != (len(files), 2) or not found.isfinite().all():
        raise SfumatoError(f"{path} has an azimuth and an elevation of each picture, in degrees")
    return found


def _captions(path: Path, files: Sequence[Path]) -> tuple[tuple[str, ...], ...]:
    """Of each file."""

    def made(of: list[Any]) -> tuple[tuple[str, ...], ...]:
        found = tuple((caption,) if isinstance(caption, str) else tuple(caption) for caption in of)
        wrong = [c for each in found for c in each or [""] if not isinstance(c, str) or not c.strip()]
        if wrong:
            raise ValueError(f"not a caption: {wrong[0]!r}")
        return found

    return _of_each(path, files, 'says what each picture shows, as {"a.png": "a cat {} a table"}', made)


def _of_each(path: Path, files: Sequence[Path], says: str, made: Callable[[list[Any]], T]) -> T:
    """What is made of what a JSON file has of each file, by its name. ``SfumatoError`` for what it lacks, or is not."""
    try:
        known = from_json(read_text(path), dict)
        return made([known[file.name] for file in files])
    except (ValueError, TypeError, KeyError) as e:
        raise SfumatoError(f"{path} {says}; {e!r}") from e


@dataclass(frozen=True)
class Learned(Shown):
    """What a run came to."""

    concept: Concept
    samples: Float[Tensor, "n 3 h w"]
    """What the model paints of it: under its word alone, or what was said of pictures."""

    @property
    def pictures(self) -> list[Any]:
        """The samples as pictures."""
        return list(map(pictures.picture, self.samples))


def learn(
    model: Backbone,
    photographs: Photographs,
    word: str,
    method: Personalisation,
    *,
    kind: str = "object",
    steps: int | None = None,
    seed: int = 0,
    keep: Path | None = None,
    prior: Path | None = None,
    repair: bool = False,
    others: Mapping[str, str] | None = None,
    encoder: Pretrained | None = None,
    samples: int = SHOWN,
    on_progress: Listener | None = None,
) -> Learned:
    """Teach a model ``word``; ``keep``: a checkpoint from which the same call goes on after a stop.

    ``kind``: what sort of thing it is, in words that the model knows. ``others``: further words of things in the
    photographs, and their kinds. ``prior``: a folder in which pictures of the kind at large are kept, of methods that
    learn from these as well; they are painted where they are not there.
    ``repair``: take back what learning added to the word's length and direction (``learning.repair``). ``encoder``: one
    that was taught the thing's domain, of methods that begin with the word that it gives.
    ``new_word`` says whether the word is one. Raises ``SfumatoError`` for what ``teach`` refuses.
    """
    with heard(on_progress):
        mirrored = method.mirrors and not (method.wants_cameras or method.wants_captions)
        lesson = Lesson.of(model, photographs.pixels, photographs.masks, mirrored=mirrored)
        of = method.at_large(kind)
        at_large = class_pictures(model, of, method.class_pictures, 0, prior) if method.wants_prior else None  # pyright: ignore[reportAttributeAccessIssue]
        about = photographs.digest if encoder is None else f"{photographs.digest}, encoder {encoder.digest}"
        asked = Asked(
            model, lesson, word, kind, at_large, seed, photographs.cameras, encoder, about, photographs.captions,
            others or {},
        )  # fmt: skip
        found = teach(method, asked, steps=steps, keep=keep, on_progress=_shown if on_progress else None)
        found = repaired(found, model) if repair else found
        named = " and ".join(f"a {each}" for each in found.words) if model.text_tokens else ""
        prompts = [each[0] for each in asked.captioned] or [named]
        return Learned(found, painted(found.on(model), prompts, samples, seed))


def _shown(run: Run) -> None:
    run.say(f"learning (loss {float(run.loss):.3g})")


def painted(model: Backbone, prompts: Sequence[str], n: int, seed: int = 0) -> Float[Tensor, "n 3 h w"]:
    """What a model that knows the concept paints, under each prompt in turn."""
    if not n:
        return torch.empty(0, 3, model.size, model.size)
    found = denoise(
        model, [prompts[i % len(prompts)] for i in range(n)], seed=list(range(seed, seed + n)), steps=30, guide=cfg(5.0)
    ).images.cpu()
    show(pictures.picture(found[0]))
    return found


def new_word(model: Any, word: str) -> None:
    """Raise ``SfumatoError`` for a word that means something to the model already."""
    word = checked(word)
    tokenizer = getattr(getattr(model, "pipe", None), "tokenizer", None)
    if tokenizer is None:
        return
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        raise SfumatoError(
            f"{word!r} is a word that {model.name} knows; give the concept one of its own, such as '<{word}>'"
        )
