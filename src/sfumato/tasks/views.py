"""Views of one thing, which attention makes one thing: images of a set that read each other, or tiles of one picture.

As tiles of one picture TextMesh paints them (Tsalicoglou et al. 2023, arXiv 2304.12439), which takes a model that knows
pictures of that size. As a set each view is an image of the model's own size, and each one's self-attention reads the
keys and values of all (as TokenFlow's among keyframes and ConsiStory's do): what tiles have of each other, without the
size, and without what convolutions and norms carry across the borders of tiles. Either way each view reads words of
its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfumato.core import denoising
from sfumato.core.backbone import Backbone
from sfumato.core.brief import Shown
from sfumato.core.guidance import Contrasted, Guide, Scales, guided
from sfumato.core.method import Method
from sfumato.errors import SfumatoError
from sfumato.io.progress import Listener, heard, progress
from sfumato.media import pictures
from sfumato.methods.control import RegionPrompts
from sfumato.methods.sets.shared_attention import EXTENDED
from sfumato.prompts.layout import Layout, Region
from sfumato.tasks.generate import Generated, generate

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

TEMPLATE = "{view} view of {prompt}"
COLUMNS = 2  # 2 x 2 of four (TextMesh), 3 x 2 of six (Zero123++)
STILL_LIFE = {"left": "side", "right": "side", "top": "overhead", "above": "overhead"}
"""Views that its captions have another word for."""
OPPOSITE = {"front": "back", "back": "front", "left": "right", "right": "left"}
"""What a view's words are held against."""


def words_of(model: Backbone, prompt: str, views: Sequence[str], template: str = TEMPLATE) -> tuple[str, ...]:
    """What each view reads. ``SfumatoError`` for a template without its two places, and for views of no grid."""
    if "{view}" not in template or "{prompt}" not in template:
        raise SfumatoError(f"a template has places for {{view}} and {{prompt}}, such as {TEMPLATE!r}, got {template!r}")
    if not views or len(views) % COLUMNS or not all(view.strip() for view in views):
        raise SfumatoError(f"views are painted {COLUMNS} in a row, so give an even number of words, got {len(views)}")
    known = STILL_LIFE if model.name == "stilllife" else {}
    return tuple(template.replace("{view}", known.get(v.strip(), v.strip())).replace("{prompt}", prompt) for v in views)


def opposites(model: Backbone, prompt: str, views: Sequence[str], template: str = TEMPLATE) -> tuple[str, ...]:
    """What each view is not: the words of its opposite, or of what has none its own."""
    known = STILL_LIFE if model.name == "stilllife" else {}
    names = [known.get(view.strip(), view.strip()) for view in views]
    return words_of(model, prompt, [OPPOSITE.get(name, name) for name in names], template)


def seeds_of(seed: int, views: int) -> list[int]:
    """Of a set's images: the first has the set's own, and no two sets' are the same."""
    return [seed, *((seed + k * 2**40) % 2**63 for k in range(1, views))]


def grid_of(views: int) -> tuple[int, int]:
    """Rows and columns."""
    return views // COLUMNS, COLUMNS


def layout_of(prompts: Sequence[str]) -> Layout:
    """A prompt a tile."""
    rows, columns = grid_of(len(prompts))
    boxes = [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)]
    return Layout(tuple(Region(text, box) for text, box in zip(prompts, boxes, strict=True)))


@dataclass(frozen=True)
class Viewed(Shown):
    """Pictures of all views, one a seed, and the views in each."""

    painted: Generated
    views: tuple[tuple[Picture, ...], ...]

    @property
    def pictures(self) -> list[Picture]:
        """Of all views, one a seed."""
        return list(self.painted.pictures)


def paint_views(
    model: Backbone,
    prompt: str,
    views: Sequence[str],
    seeds: Sequence[int],
    *,
    template: str = TEMPLATE,
    size: tuple[int, int] | None = None,
    methods: Sequence[Method] = (EXTENDED,),
    guide: Guide | Scales = 5.0,
    contrast: float = 0.0,
    memory: int | None = None,
    on_progress: Listener | None = None,
    **options: Any,
) -> Viewed:
    """A sheet a seed, of views that are images of one set; ``options`` are ``denoise``'s, ``size`` that of a view.

    ``methods`` make them one thing. ``contrast`` is how far each is guided away from its opposite's words.
    """
    prompts = words_of(model, prompt, views, template)
    if contrast:
        guide = Contrasted(guided(model, guide), opposites(model, prompt, views, template), contrast)
    options |= {"methods": tuple(methods), "guide": guide, "size": size, "memory": memory}
    planned = denoising.plan(model, prompts, **options)
    painted: list[tuple[Picture, ...]] = []
    with heard(on_progress), progress("views", len(seeds)) as advance:
        for seed in seeds:
            out = denoising.denoise(model, prompts, seed=seeds_of(seed, len(prompts)), **options)
            painted.append(tuple(pictures.picture(image) for image in out.images))
            advance()
    sheets = tuple(pictures.grid(tiles, COLUMNS, gap=0) for tiles in painted)
    return Viewed(Generated(sheets, (), planned), tuple(painted))


def paint_grid(
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
    """The same as tiles of one picture a seed; ``options`` are ``generate``'s.

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
