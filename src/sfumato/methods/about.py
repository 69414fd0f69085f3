"""What a method says of itself: its docstring in parts, what it asks of a run, its presets, the families it works on.

All is read in its file, which is not imported: a list of all methods takes no torch, and no time.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sfumato.errors import unknown
from sfumato.methods import index
from sfumato.methods.index import Entry

_ASKED = {
    "source": "two prompts, of what is edited and of the edit",
    "words": "a model that reads prompts",
    "uncond": "a guidance with an empty prompt",
    "windows": "whole images, not windows of a canvas",
    "batch": "one image at a time",
    "clip": "frames of a clip, by a model with motion",
}
"""A field of ``core.method.Requires`` that is not as usual, in words; the others refuse nothing."""

FAMILIES = {
    "Stable Diffusion 1": "stilllife|sd-?1.*|instruct-pix2pix",
    "Stable Diffusion 2": "sd-?2.*",
    "Stable Diffusion XL": "sdxl.*",
    "Stable Diffusion 3": "sd-?3.*",
    "Flux": "flux.*",
    "DeepFloyd IF": "deepfloyd.*|if-.*|if",
    "PixArt": "pixart.*",
    "AnimateDiff": "animatediff.*",
    "Stable Video Diffusion": "svd.*|stable-video-.*",
    "DDPM": "ddpm.*|wordless",
}
"""Families of models as methods' files name them, and what words of models are of them."""
_WORDLESS = ("Stable Video Diffusion", "DDPM")
_MOVING = ("AnimateDiff", "Stable Video Diffusion")


@dataclass(frozen=True)
class About:
    """A docstring's parts: it begins ``Name (paper): what it does.``, and has paragraphs of needs and families."""

    summary: str
    """All of the first paragraph."""
    text: tuple[str, ...]
    """The paragraphs behind it, but those of needs and families."""
    needs: str = ""
    families: str = ""
    asks: tuple[str, ...] = ()
    """What it requires of a run, in words; nothing for one that takes any run."""
    presets: tuple[str, ...] = ()
    """Those of its own file."""

    @property
    def head(self) -> tuple[str, str, str]:
        """Name, paper and what it does; the name alone is always there."""
        found = re.fullmatch(r"([^(:]+?)(?: \((.+?)\))?: (.+)", self.summary)
        return (found[1], found[2] or "", found[3]) if found else (self.summary.rstrip("."), "", "")

    def works_on(self, family: str) -> bool:
        """Does it, by its own words, on a family of ``FAMILIES``?"""
        named = re.split(r"[;]|\.(?:\s|$)", self.families)[0]
        whole, but, others = named.partition("all but ")
        everywhere = bool(re.match("all|any", named)) and not but
        if not (everywhere or (family in _families(others or whole)) != bool(but)):
            return False
        if _ASKED["words"] in self.asks and family in _WORDLESS:
            return False
        return _ASKED["clip"] not in self.asks or family in _MOVING


def _families(text: str) -> set[str]:
    """Those that are named, Stable Diffusion's by their numbers."""
    found = {name for name in FAMILIES if not name.startswith("Stable Diffusion ") and name in text}
    for numbers in re.findall(r"Stable Diffusion ((?:(?:\d|XL)(?:, | and )?)+)", text):
        found |= {f"Stable Diffusion {number}" for number in re.findall(r"\d|XL", numbers)}
    return found


def family(model: str) -> str:
    """That of a model's word, such as ``sdxl`` or ``flux-dev``. ``SfumatoError`` for what is none."""
    for name, words in FAMILIES.items():
        if re.fullmatch(words, model.lower()) or model.lower() == name.lower():
            return name
    raise unknown("family of models", model, FAMILIES)


def about(entry: Entry) -> About:
    """Of a method, by its file."""
    module, _, name = entry.home.partition(":")
    return described(f"methods.{module}", name)


@cache
def described(module: str, name: str, alone: bool = True) -> About:
    """Of a class of ``sfumato``; ``alone`` in its file, it is the file that tells of it."""
    source = source_of(module)
    text = source if alone else source[source.index(f"\nclass {name}(") :]
    first, *rest = (" ".join(p.split()) for p in inspect.cleandoc(text.split('"""', 2)[1]).split("\n\n"))
    ends = {key: next((p for p in rest if p.startswith(f"{key}: ")), "") for key in ("Needs", "Families")}
    more = tuple(p for p in rest if p not in ends.values())
    needs, families = (value.partition(": ")[2] for value in ends.values())
    asks = tuple(_ASKED[key] for key in _requires(source, name) if key in _ASKED)
    return About(first, more, needs, families, asks, tuple(_presets(source, name)))


def having_field(name: str, words: Collection[str]) -> list[str]:
    """Those of these methods that have a field of that name."""
    found = [e for e in index.METHODS if e.word in words and not e.is_function]
    return [e.word for e in found if name in _fields("methods." + e.home.partition(":")[0], e.home.partition(":")[2])]


def _fields(module: str, name: str) -> set[str]:
    """Of a class and of those that it derives from, also those that its file imports."""
    source = source_of(module)
    if (found := _class(source, name)) is None:
        imported = re.search(rf"^from sfumato\.([\w.]+) import (?:\([^)]*|.*)\b{name}\b", source, re.MULTILINE)
        return _fields(imported[1], name) if imported else set()
    own = {*re.findall(r"^    ([a-z]\w*): (?!ClassVar)", found[0], re.MULTILINE)}
    return own.union(*(_fields(module, base) for base in re.findall(r"\w+", found[1] or "")))


def _class(source: str, name: str) -> re.Match[str] | None:
    """The text of a class, and of what it derives from."""
    return re.search(rf"^class {name}\b(?:\(([\w, ]+))?.*?(?=^\S|\Z)", source, re.DOTALL | re.MULTILINE)


@cache
def source_of(module: str) -> str:
    """The text of a module of ``sfumato``."""
    return file_of(module).read_text(encoding="utf-8")


def file_of(module: str) -> Path:
    """The file of a module of ``sfumato``."""
    file = Path(__file__).parents[1] / module.replace(".", "/")
    own = file.with_suffix(".py")
    return own if own.is_file() else file / "__init__.py"


def _requires(source: str, name: str) -> list[str]:
    """What a class, or the one of its file that it derives from, says that it requires."""
    found = _class(source, name)
    if found is None:
        return []
    requires = re.search(r"^    requires: ClassVar = Requires\((.*?)\)", found[0], re.DOTALL | re.MULTILINE)
    return re.findall(r"(\w+)=", requires[1]) if requires else _requires(source, (found[1] or "").partition(",")[0])


def _presets(source: str, name: str) -> Iterator[str]:
    """Names of a file's instances of a class, written as such or as another one with ``replace``."""
    made = {name}
    for preset, of in re.findall(r"^([A-Z]\w*)\b.*? = (?:replace\(\s*)?(\w+)\b", source, re.MULTILINE):
        if of in made:
            made.add(preset)
            yield preset.lower().replace("_", "-")
