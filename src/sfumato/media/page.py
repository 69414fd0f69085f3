"""HTML pages that need nothing else: pictures are inlined."""

from __future__ import annotations

import base64
import io
from html import escape
from importlib import resources

from PIL.Image import Image as Picture


def page_of(body: str, title: str = "Still Life, a tour") -> str:
    """A body as an HTML page that needs nothing else."""
    style = resources.files("sfumato.media").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>' + escape(title) + "</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{style}</style>\n{body}</html>\n"
    )


def image(picture: Picture, alt: str) -> str:
    """A picture as an inlined ``<img>``."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" {size}>'


def figure(picture: Picture, words: str, alt: str | None = None) -> str:
    """A picture with ``words`` (HTML) under it."""
    return f"<figure>{image(picture, words if alt is None else alt)}<figcaption>{words}</figcaption></figure>\n"


def row(*figures: str) -> str:
    return f'<div class="row">\n{"".join(figures)}</div>\n'


def section(title: str, about: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>\n<p>{about}</p>\n{body}"
