"""What methods with a layout share: a layout that fits the run, its phrases' tokens, and where attention is meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sfumato.core.method import Run
from sfumato.core.sites import Site
from sfumato.errors import SfumatoError
from sfumato.prompts.layout import Layout

_ARTICLES = ("a", "an", "the")


def placed(layout: Layout | None, run: Run, who: str) -> Layout:
    """A layout with boxes as parts of the image's sides. ``SfumatoError`` where there is none, or it does not fit."""
    layout = given(layout, who)
    layout = layout.relative(*(side * run.model.factor for side in run.grid))
    layout.check()
    return layout


def given(layout: Layout | None, who: str) -> Layout:
    """The layout. Raises ``SfumatoError`` where there is none."""
    if layout is None:
        raise SfumatoError(f"{who} needs a layout: phrases and their boxes or masks")
    return layout


def among(layers: Sequence[str]) -> Callable[[Site], bool] | None:
    """The sites whose paths have one of these parts, whole between dots, such as up_blocks.1; none: all."""
    return (lambda site: any(f".{part}." in f".{site.path}." for part in layers)) if layers else None


def phrase_tokens(layout: Layout, run: Run, articles: bool = False) -> list[list[list[int]]]:
    """For each image (in the order of ``step.x``) and each phrase its tokens; an article in front only if asked for."""
    if not articles:
        layout = Layout(tuple(replace(r, phrase=_bare(r.phrase)) for r in layout.regions))
    return [layout.tokens(run, stream, i) for stream, prompts in run.prompts.items() for i in range(len(prompts))]


def _bare(phrase: str) -> str:
    first, _, rest = phrase.partition(" ")
    return rest if rest and first.lower() in _ARTICLES else phrase
