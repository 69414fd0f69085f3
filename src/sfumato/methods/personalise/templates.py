"""Captions under which things are learned, as textual inversion was published with (Gal et al. 2022, appendix)."""

from __future__ import annotations

OBJECT = tuple(
    f"{how} {{}}"
    for how in ("a photo of a", "a rendering of a", "a cropped photo of the", "the photo of a", "a photo of the")
)
