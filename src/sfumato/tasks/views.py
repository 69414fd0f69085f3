"""Views of one thing, painted as the tiles of one picture, so that attention makes them one thing.

As TextMesh paints them (Tsalicoglou et al. 2023, arXiv 2304.12439); each tile reads the words of its own view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfumato.core.backbone import Backbone
from sfumato.core.method import Method
from sfumato.errors import SfumatoError
from sfumato.methods.control import RegionPrompts
from sfumato.prompts.layout import Layout, Region
from sfumato.tasks.generate import Generated, generate

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

TEMPLATE = "{view} view of {prompt}"
COLUMNS = 2  # 2 x 2 of four (TextMesh), 3 x 2 of six (Zero123++)
STILL_LIFE = {"left": "side", "right": "side", "top": "overhead", "above": "overhead"}
"""Views that its captions have another word for."""


def words_of(model: Backbone, prompt: str, views: Sequence[str], template: str = TEMPLATE) -> tuple[str, ...]:
    """What each view reads. ``SfumatoError`` for a template without its two places, and for views of no grid."""
    if "{view}" not in template or "{prompt}" not in template:
        raise SfumatoError(f"a template has places for {{view}} and {{prompt}}, such as {TEMPLATE!r}, got {template!r}")
    if not views or len(views) % COLUMNS or not all(view.strip() for view in views):
        raise SfumatoError(f"views are painted {COLUMNS} in a row, so give an even number of words, got {len(views)}")
    known = STILL_LIFE if model.name == "stilllife" else {}
    return tuple(template.replace("{view}", known.get(v.strip(), v.strip())).replace("{prompt}", prompt) for v in views)


def grid_of(views: int) -> tuple[int, int]:
    """Rows and columns."""
    return views // COLUMNS, COLUMNS


def layout_of(prompts: Sequence[str]) -> Layout:
    """A prompt a tile."""
    rows, columns = grid_of(len(prompts))
    boxes = [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)]
    return Layout(tuple(Region(text, box) for text, box in zip(prompts, boxes, strict=True)))


@dataclass(frozen=True)
class Viewed:
    """Pictures of all views, one a seed, and the views in each."""

    painted: Generated
    views: tuple[tuple[Picture, ...], ...]


def paint_views(
    model: Backbone,
    prompt: str,
    views: Sequence[str],
    seeds: Sequence[int],
    *,
    template: str = TEMPLATE,
    size: tuple[int, int] | None = None,
    methods: Sequence[Method] = (),
    **options: Any,
) -> Viewed:
    """A grid a seed; ``size`` is that of a view in pixels, ``options`` are ``generate``'s.

    Each tile reads its view's words alone, in all steps; pixels of all tiles attend to each other.
    """
    prompts = words_of(model, prompt, views, template)
    rows, columns = grid_of(len(prompts))
    height, width = size or (model.size, model.size)
    regions = RegionPrompts(layout_of(prompts), whole=0.0, until=1.0)
    options |= {"methods": [*methods, regions], "size": (height * rows, width * columns)}
    painted = generate(model, prompt, seeds, **options)
    return Viewed(painted, tuple(cut(picture, rows, columns) for picture in painted.pictures))


def cut(picture: Picture, rows: int, columns: int) -> tuple[Picture, ...]:
    """The tiles of a picture, row by row."""
    w, h = picture.width // columns, picture.height // rows
    return tuple(picture.crop((c * w, r * h, (c + 1) * w, (r + 1) * h)) for r in range(rows) for c in range(columns))
