"""HTML pages that need nothing else: pictures are inlined."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape, unescape
from importlib import resources

from PIL.Image import Image as Picture

from sfumato.media.pictures import grid


def page_of(body: str, title: str, again: int = 0) -> str:
    """A body as an HTML page that needs nothing else; one in work loads itself ``again`` after so many seconds."""
    style, script = (resources.files("sfumato.media").joinpath(f"page.{end}") for end in ("css", "js"))
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>' + escape(title) + "</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        + (f'<meta http-equiv="refresh" content="{again}">\n' if again else "")
        + f"<style>\n{style.read_text(encoding='utf-8')}</style>\n<body>\n{body}"
        + f"<script>\n{script.read_text(encoding='utf-8')}</script>\n</body>\n</html>\n"
    )


def image(picture: Picture, alt: str) -> str:
    """A picture as an inlined ``<img>``."""
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="{_inlined(picture)}" alt="{escape(alt)}" {size}>'


def clip(frames: Sequence[Picture], words: str, alt: str) -> str:
    """Frames of one size, one after the other, over and over, with ``words`` (HTML) under them."""
    style = f"--frames: {len(frames)}; aspect-ratio: {frames[0].width} / {frames[0].height}"
    moving = _moving("clip", grid(frames, len(frames), 0), style, alt)
    return f"<figure>{moving}<figcaption>{words}</figcaption></figure>\n"


def ring(strip: Picture, alt: str, larger: float = 1.5) -> str:
    """A picture that goes on at its other end, and moves past."""
    style = f"--turn: {strip.width * larger:g}px; --high: {strip.height * larger:g}px"
    return _moving("ring", strip, style, alt) + "\n"


def _moving(kind: str, picture: Picture, style: str, alt: str) -> str:
    """The page's style moves what an element has for its background: no script, and none where motion is not wanted."""
    return (
        f'<div class="{kind}" role="img" aria-label="{escape(alt)}" '
        f"style=\"{style}; background-image: url('{_inlined(picture)}')\"></div>"
    )


def _inlined(picture: Picture) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=92)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def figure(picture: Picture, words: str, alt: str | None = None) -> str:
    """A picture with ``words`` (HTML) under it, which are what it is called where it is not seen, too."""
    plain = unescape(re.sub("<[^>]+>", "", words)) if alt is None else alt
    return f"<figure>{image(picture, plain)}<figcaption>{words}</figcaption></figure>\n"


def row(*figures: str, tile: int = 190, least: str = "50%") -> str:
    """Figures of about ``tile`` pixels each, which on a narrow screen take so much of it."""
    return f'<div class="row" style="--tile: {tile}px; --least: {least}">\n{"".join(figures)}</div>\n'


def commands(*lines: str) -> str:
    """What to type, each in a box of its own; words with a hyphen are not broken there."""
    shown = (re.sub(r"\S*-\S+", r"<span>\g<0></span>", escape(line)) for line in lines)
    return "".join(f"<pre><code>{line}</code></pre>\n" for line in shown)


def section(title: str, about: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>\n<p>{about}</p>\n{body}"
