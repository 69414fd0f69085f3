"""Three photographs that ship, free to use by anyone."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

NAMES = ("coffee", "astronaut", "camera")
CREDITS = (
    "Photographs: Rachel Michetti (coffee) and Lav Varshney (camera), CC0; NASA (astronaut), public domain; "
    "by way of scikit-image."
)


def photos() -> dict[str, Picture]:
    """In RGB, 256 pixels high."""
    found = {}
    for name in NAMES:
        place = resources.files("sfumato.studio.photos") / f"{name}.webp"
        with place.open("rb") as file, Image.open(file) as photo:
            found[name] = photo.convert("RGB")
    return found
