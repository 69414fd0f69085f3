"""Captions under which things and styles are learned, as textual inversion was published with (Gal et al. 2022)."""

from __future__ import annotations

OBJECT = (
    *(
        f"a {how} of {article} {{}}"
        for how in ("photo", "cropped photo", "close-up photo", "good photo", "rendition")
        for article in ("a", "the")
    ),
    *(f"a photo of {article} {what} {{}}" for what in ("clean", "nice", "cool", "small") for article in ("a", "the")),
    *(f"a photo of {what} {{}}" for what in ("a dirty", "the weird", "the large", "my", "one")),
    *(
        f"{what} {{}}"
        for what in ("the photo of a", "a dark photo of the", "a bright photo of the", "a rendering of a")
    ),
)
"""The 27 of things."""
STYLE = (
    *(
        f"a {how} painting in the style of {{}}"
        for how in ("clean", "dirty", "dark", "cool", "bright", "good", "nice", "small", "weird", "large")
    ),
    *(f"a {how} painting in the style of {{}}" for how in ("cropped", "close-up") for _ in range(2)),
    *(
        f"{what} in the style of {{}}"
        for what in ("a painting", "the painting", "a rendering", "a picture", "a rendition")
    ),
)
"""The 19 of styles, of which two are there twice."""
