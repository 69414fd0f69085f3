"""Options that several commands share, and the checks of what they were given."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sfumato.errors import SfumatoError, whole
from sfumato.io.progress import waiting
from sfumato.io.terminal import note
from sfumato.methods.outline import look
from sfumato.tasks.starts import How

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from sfumato.backbones.embeddings import Vectors
    from sfumato.core.backbone import Backbone
    from sfumato.learning.concepts import Concept
    from sfumato.prompts.layout import Layout, Mask


@dataclass(frozen=True)
class Usage:
    """What a usage line has for what is needed in most calls."""

    text: str
    needs: tuple[str, ...] = ()
    """Options that are, unless pictures are listed in a file, and what they mean."""


Seed = Annotated[int, tyro.conf.arg(metavar="N", help="The same seed gives the same result.")]
Negative = Annotated[str, tyro.conf.arg(help="What the picture should not be, in the place of the empty prompt.")]
Device = Annotated[str, tyro.conf.arg(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")]
Photo = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE", help="Any picture file.")]
Fit = Annotated[Literal["whole", "crop", "stretch"], tyro.conf.arg(help="How the picture becomes what the model sees.")]
Steps = Annotated[int, tyro.conf.arg(help="DDIM steps.")]
EditSteps = Annotated[int | None, tyro.conf.arg(help="DDIM steps [default: the method's, or 50].")]
EditGuidance = Annotated[
    float | None, tyro.conf.arg(help="Classifier-free guidance of the edit [default: the method's, or 7.5].")
]
Invert = Annotated[
    How | None, tyro.conf.arg(help="The inversion, for methods without one of their own [default: direct].")
]
StepsOrOwn = Annotated[int | None, tyro.conf.arg(help="Steps [default: 30, or 4 of a model distilled to few steps].")]
GuidanceOrOwn = Annotated[
    float | None,
    tyro.conf.arg(help="How closely to follow the words [default: 5, or what the model was distilled for]."),
]
Memory = Annotated[float, tyro.conf.arg(help="GiB that attention maps may take.")]
Model = Annotated[
    str,
    tyro.conf.arg(
        help="stilllife, a diffusers folder, a file (.safetensors), an alias such as sdxl, or an id of the hub."
    ),
]
Side = Annotated[
    int | None,
    tyro.conf.arg(metavar="PIXELS", help="Shorter side at which the network sees an image [default: the model's own]."),
]
Size = Annotated[
    str | None, tyro.conf.arg(metavar="PIXELS|WxH", help="Side, or width and height [default: the model's own].")
]
MOST = 8192  # pixels a side
FINE = 256  # cells a side of a region
Boxes = Annotated[
    tyro.conf.UseAppendAction[tuple[tuple[str, str], ...]],
    tyro.conf.arg(
        metavar="PHRASE L,T,R,B",
        help="Where a phrase should be, in the picture's pixels or parts; for methods with a layout.",
    ),
]
ShowAttention = Annotated[
    bool,
    tyro.conf.arg(help="Write where each word looks, too."),
    tyro.conf.FlagCreatePairsOff,
]
Overwrite = Annotated[
    bool,
    tyro.conf.arg(help="Make anew what is there already."),
    tyro.conf.FlagCreatePairsOff,
]
Json = Annotated[
    bool,
    tyro.conf.arg(name="json", help="Print one JSON document for a machine to read."),
    tyro.conf.FlagCreatePairsOff,
]


@dataclass(frozen=True)
class Loading:
    """How a model that does not ship is loaded."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the model's networks."""
    variant: str | None = None
    """Which of several sets of weights the model has, such as fp16."""
    offline: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Download nothing: look only at the local cache of the hub."""
    clip_skip: int | None = None
    """Last layers of the model's CLIPs that are not run for prompts, as diffusers counts them (A1111's 2 is 1)."""
    embedding: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FILE[:WORD]")] = ()
    """A learned word (textual inversion) as safetensors, and its name in prompts [default: what the file says]."""
    concept: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FILE[@VIEW][:WORD]")] = ()
    """What sfumato learn wrote; where it is seen from, as @90,20, if it learned views; another word for it, or, with
    commas, for each that it holds."""
    compose: Literal["sum", "apart", "tokens"] = "sum"
    """Of several concepts that change weights: add the changes up, or keep each to where its words look (a pass
    each), or, of custom-diffusion, to the tokens of its words."""
    region: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[str, str], ...]], tyro.conf.arg(metavar="WORD L,T,R,B")
    ] = ()
    """Where a concept's word changes the picture, in parts of its sides, in the place of where it looks."""
    lora: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FILE[:WEIGHT]")] = ()
    """A low-rank change of the model as safetensors, of kohya's or diffusers' layout."""
    vae: Annotated[str | None, tyro.conf.arg(metavar="PLACE")] = None
    """Another VAE: a diffusers folder or an id of the hub, or a file."""
    motion: Annotated[str | None, tyro.conf.arg(metavar="PLACE")] = None
    """An AnimateDiff adapter, which gives Stable Diffusion 1 time: a diffusers folder, an id of the hub, a file, or
    stilllife for the built-in model's."""
    scheduler: Annotated[str | None, tyro.conf.arg(metavar="PLACE")] = None
    """Another schedule: a diffusers folder, or a scheduler's class such as EulerDiscreteScheduler."""
    config: Annotated[str | None, tyro.conf.arg(metavar="PLACE")] = None
    """For a model in one file: a diffusers folder with what is not in it, or which model it is, such as sd-2-base."""

    def __post_init__(self) -> None:
        """Refuse files that are not there, and what is none of an option's words, as they are refused when loading."""
        for each in self.embedding:
            look("commands.options:_embedding", each)
        for each in self.concept:
            look("commands.options:_concept", each)
        for file, _ in look("backbones.loras:listed", list(self.lora)) or ():
            look("backbones.single_file:tensors", file)
        for name in ("vae", "scheduler"):
            if part := getattr(self, name):
                look("backbones.components:read", {name: expanduser(part)}, self.variant, None, self.offline)
        if self.motion:
            look("backbones.motion:_read", expanduser(self.motion), self.variant, None, self.offline)
        if self._layout is not None:
            self._layout.check(disjoint=True)

    def load(self, name: str, device: str = "cpu") -> Backbone:
        with waiting(f"loading {name}"):
            return self._load(name, device)

    def _load(self, name: str, device: str) -> Backbone:
        from sfumato.backbones.load import load

        options = {f.name: getattr(self, f.name) for f in fields(self)}
        del options["embedding"], options["concept"], options["compose"], options["region"]
        options["embeddings"] = dict(self._embeddings)
        concepts, regions = list(map(_concept, self.concept)), self._regions()
        if not regions:
            _note_alike(concepts)
        model = load(name, device=device, **options)
        if self.compose == "apart":
            from sfumato.learning.composing import apart

            return apart(model, concepts, regions)
        if self.compose == "tokens":
            from sfumato.learning.composing import at_tokens

            return at_tokens(model, concepts)
        for concept in concepts:
            model = concept.on(model)
        return model

    def _regions(self) -> dict[str, Tensor]:
        """Masks by words of concepts."""
        layout = self._layout
        return {} if layout is None else dict(zip(layout.phrases, layout.masks((FINE, FINE)), strict=True))

    @property
    def _layout(self) -> Layout | None:
        if self.region and self.compose != "apart":
            raise SfumatoError("--region is read with --compose apart alone; give that as well, or leave --region out")
        return layout_of(self.region)

    @cached_property
    def _embeddings(self) -> tuple[tuple[str, Vectors], ...]:
        """Words and vectors of ``--embedding``, whose files are read once."""
        found = tuple(map(_embedding, self.embedding))
        words = [word for word, _ in found]
        if twice := [word for word in words if words.count(word) > 1]:
            raise SfumatoError(f"two files of --embedding hold a word {twice[0]!r}; call one otherwise, as FILE:WORD")
        return found

    def remark(self, model: str, *prompts: str) -> None:
        """Say which words of prompts the built-in model never met, and which learned words no prompt has."""
        from sfumato.stilllife.paint import remark

        if model == "stilllife" and (text := remark(*prompts)):
            note(text)
        named = zip(self._embeddings, self.embedding, strict=True)
        learned = [("embedding", (word,), file) for (word, _), file in named]
        learned += [("concept", _words(file), file) for file in self.concept]
        for option, words, file in learned:
            if not any(word in prompt for word in words for prompt in prompts):
                what = "the word" if len(words) == 1 else "words"
                either = " or ".join(map(repr, words))
                note(f"no prompt says {either}, {what} of --{option} {file}, so it is not read")


def remark_pictures(model: str, kept: Callable[[], Sequence[float]], names: Sequence[str] = ("",)) -> None:
    """Say so where the built-in model cannot hold pictures, of which its autoencoder finds so much again, in dB."""
    from sfumato.stilllife.paint import strange
    from sfumato.stilllife.weights import MODELS

    for name, found in zip(names, kept() if model in MODELS else (), strict=False):
        if text := strange(found):
            note(f"{name}: {text}" if name else text)


@dataclass(frozen=True)
class Running(Loading):
    """How a model that does not ship is loaded and run."""

    offload: Literal["model", "sequential"] | None = None
    """Keep weights in main memory, and bring a network or a layer at a time to the GPU."""


def _embedding(text: str) -> tuple[str, Vectors]:
    """A word, the file's unless another is given, and its vectors."""
    from sfumato.backbones.embeddings import read

    file, colon, word = (text, "", "") if Path(text).is_file() else text.rpartition(":")
    own, vectors = read(file if colon and word else text)
    return (word if colon and word else own), vectors


def _concept(text: str) -> Concept:
    """A concept's file, seen from azimuth and elevation and by another word where they are given."""
    from sfumato.learning.concepts import Concept

    file, view, word = _parts(text)
    found = Concept.load(file)
    if view is not None:
        try:
            found = found.seen_from(*map(float, view.split(",")))
        except ValueError:
            raise SfumatoError(f"a concept is seen from azimuth and elevation, as {file}@90,20, got {view!r}") from None
    return found.called(*(word.split(",") if found.others else [word])) if word else found


def _note_alike(concepts: Sequence[Concept]) -> None:
    from sfumato.learning.composing import alike

    if pair := alike(concepts):
        note(
            f"{pair[0]} and {pair[1]} read as the same words, so a prompt cannot tell them apart; learn one anew (each "
            "now has a rare word of its own, or --identifier), or lay them out by --compose apart --region"
        )


def _words(text: str) -> tuple[str, ...]:
    """Those of a concept; of its file no more is read than its header."""
    from sfumato.learning.concepts import checked, words_of

    file, _, word = _parts(text)
    own = words_of(file)
    return tuple(map(checked, word.split(",") if len(own) > 1 else [word])) if word else own


def _parts(text: str) -> tuple[str, str | None, str]:
    """File, view and word of FILE[@VIEW][:WORD]; None and nothing where they are not there."""
    file, colon, word = (text, "", "") if Path(text).is_file() else text.rpartition(":")
    place, word = (file, word) if colon and word else (text, "")
    file, at, view = (place, "", "") if Path(place).is_file() else place.rpartition("@")
    return (file, view, word) if at else (place, None, word)


def seed_of(value: int) -> int:
    whole("--seed", value, 0, 2**31 - 1)
    return value


def bytes_of(memory: float) -> int:
    """What ``--memory`` allows."""
    if not (math.isfinite(memory) and memory >= 0):
        raise SfumatoError(f"--memory is a number of GiB from 0, got {memory:g}")
    return int(memory * 2**30)


def guidance_of(value: float | None) -> float | None:
    """Refuse a guidance that is no number from 0."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise SfumatoError(f"--guidance is a number from 0, got {value:g}")
    return value


def chosen_side(value: int | None) -> int | None:
    """Refuse a side at which no model reads."""
    if value is not None:
        whole("--side", value, 32, 4096)
    return value


def size_of(text: str | None) -> tuple[int, int] | None:
    """Height and width of what ``--size`` says: a side, or WIDTHxHEIGHT."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text.strip().lower())
    if found is None:
        raise SfumatoError(f"--size is a side in pixels or WIDTHxHEIGHT, such as 768x512, got {text!r}")
    width, height = int(found[1]), int(found[2] or found[1])
    check_sides((height, width), "--size")
    return height, width


def check_sides(size: tuple[int, int], name: str) -> None:
    """Refuse sides in pixels of which there is no image."""
    for side in size:
        whole(f"a side of {name}", side, 1, MOST)


def painted_size(model: Backbone, size: tuple[int, int] | None, name: str = "--size") -> tuple[int, int]:
    """Height and width, or a model's own. ``SfumatoError`` for what is none that it paints, with what is nearest."""
    height, width = size or (model.size, model.size)
    if height % model.multiple or width % model.multiple:
        near = (max(model.multiple, round(n / model.multiple) * model.multiple) for n in (height, width))
        raise SfumatoError(
            f"each side of {name} is a multiple of {model.multiple} for {model.name}, got {written(height, width)}; "
            f"try {written(*near)}"
        )
    return height, width


def written(height: int, width: int) -> str:
    """A size as ``--size`` takes it."""
    return str(width) if height == width else f"{width}x{height}"


def note_guidance(model: Backbone, scale: float | None, negative: str = "") -> None:
    """Say what a guidance does here that one would not think."""
    from sfumato.core.guidance import remark

    text = None if scale is None else remark(model, scale, negative)
    if text is not None:
        note(text)


def layout_of(boxes: tuple[tuple[str, str], ...]) -> Layout | None:
    """What ``--box`` said, if it was there."""
    from sfumato.prompts.layout import Layout, Region, box

    return Layout(tuple(Region(phrase, box(sides)) for phrase, sides in boxes)) if boxes else None


def mask_of(file: Path | None) -> Mask | None:
    """What ``--mask`` said, if it was there."""
    from sfumato.prompts.layout import Mask

    return None if file is None else Mask.read(file)


_RESERVED = re.compile(r"con|prn|aux|nul|(com|lpt)\d")  # names of no files on Windows


def slug(text: str, most: int = 60) -> str:
    """Words as a file name, in any script: "a red cube, photo" becomes "a-red-cube-photo"."""
    letters = [c if unicodedata.category(c)[0] in "LMN" else "-" for c in unicodedata.normalize("NFC", text.lower())]
    words = re.sub("-+", "-", "".join(letters)).strip("-")[:most].strip("-") or "untitled"
    return f"{words}-" if _RESERVED.fullmatch(words) else words


def check_apart(out: Path, *given: Path | None) -> None:
    """Refuse to write over a picture that was given."""
    for file in filter(None, given):
        if out.exists() and file.exists() and out.samefile(file):
            raise SfumatoError(f"--out {out} is a picture that was given, and would be gone; give another place")


_KINDS = {".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".ppm"}


def is_image(out: Path) -> bool:
    """Does ``--out`` name a PNG rather than a folder? Refuses other kinds of picture."""
    if out.suffix.lower() in _KINDS:
        raise SfumatoError(f"images are written as PNG; give --out a .png or a folder, not {out}")
    return out.suffix.lower() == ".png"
