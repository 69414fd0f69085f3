"""The formats of rich text: colours by name, styles by font, and the files of a Quill editor."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.io.files import from_json, read_text

NAMED = {
    "brown": "#a52a2a", "red": "#ff0000", "pink": "#fd6c9e", "orange": "#ffa500", "yellow": "#ffff00",
    "purple": "#800080", "green": "#008000", "blue": "#0000ff", "white": "#ffffff", "gray": "#808080",
    "black": "#000000",
}  # fmt: skip
"""The colours that the authors' code has names for."""

STYLES = {
    "mirza": "Claude Monet", "roboto": "ukiyo-e", "cursive": "cyberpunk", "sofia": "Andy Warhol's pop art",
    "slabo": "Vincent van Gogh", "inconsolata": "pixel art", "ubuntu": "Rembrandt", "Monoton": "neon art",
    "Akronim": "Pablo Picasso's cubism",
}  # fmt: skip
"""What fonts stand for in the authors' files, in our words."""


def rgb(colour: str) -> Float[Tensor, "3"]:
    """A colour in [0, 1]. ``SfumatoError`` for what is neither a name nor #rrggbb."""
    code = NAMED.get(colour.lower(), colour).removeprefix("#")
    try:
        values = bytes.fromhex(code)
    except ValueError:
        values = b""
    if len(values) != 3:
        raise SfumatoError(f"a colour is #rrggbb or one of {', '.join(NAMED)}; got {colour!r}")
    return torch.tensor(list(values)) / 255


def nearest_name(colour: str) -> str:
    """The name of the nearest named colour."""
    return min(NAMED, key=lambda name: float((rgb(name) - rgb(colour)).norm()))


def read(path: str | Path) -> tuple[str, dict[str, str], dict[str, str], dict[str, float]]:
    """A prompt, and words with texts, colours and sizes, from JSON: "ops" with "insert" and "attributes".

    As in the authors' files: ``link`` is a footnote, ``font`` a style, ``color`` a colour, ``size`` in pixels three
    times the factor, with ``strike`` below 0. ``SfumatoError`` for what is no such file.
    """
    try:
        found = from_json(read_text(path), dict)["ops"]
        ops = [(op["insert"].strip("\n"), op.get("attributes", {})) for op in found]
        sizes = {_word(t): _size(form) for t, form in ops if "size" in form or "strike" in form}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise SfumatoError(f'{path} is no rich text, {{"ops": [{{"insert": ..., "attributes": ...}}]}}: {e}') from e
    fonts = {_word(t): form["font"] for t, form in ops if "font" in form}
    styled = {word: f"{word} in the style of {STYLES.get(str(font), font)}" for word, font in fonts.items()}
    noted = {_word(t): form["link"] for t, form in ops if "link" in form}
    colours = {_word(t): form["color"] for t, form in ops if "color" in form}
    return "".join(text for text, _ in ops).strip(), {**styled, **noted}, colours, sizes


def _word(text: str) -> str:
    return text.strip(" ,.;:!?")


def _size(form: dict[str, str]) -> float:
    return float(form.get("size", "3px").removesuffix("px")) / (-3 if "strike" in form else 3)
