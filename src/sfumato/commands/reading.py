"""What commands that read images share: files and folders, and a page of what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sfumato.errors import SfumatoError
from sfumato.io.files import write_text
from sfumato.io.terminal import note
from sfumato.media import opening
from sfumato.methods import index
from sfumato.tasks.batch import pictures_in


def files_of(given: Sequence[Path], command: str = "", groups: Sequence[str] = index.READING) -> list[Path]:
    """The pictures that are meant: files as they are, of folders all pictures in it, by name.

    ``command``: whose methods, of these groups, are named beside what is missing. What else lies in a folder is named
    on stderr. Raises ``SfumatoError`` for what is missing and for a folder without a picture.
    """
    if not given:
        raise SfumatoError("no picture is given: name files, or folders of pictures")
    out: list[Path] = []
    for place in given:
        if not place.exists():
            if command and str(place) in index.words(groups, aliases=True, command=command):
                raise SfumatoError(f"no picture is given: {place} is a method; name files or folders before it")
            raise index.none_there(place, index.words(groups, command=command) if command else ())
        out += pictures_in(place) if place.is_dir() else [place]
    return list(dict.fromkeys(out))


def no_meshes(files: Sequence[Path]) -> None:
    """Refuse a mesh where pictures are read."""
    if meshes := [file for file in files if file.suffix.lower() in opening.MESHES]:
        raise SfumatoError(f"{meshes[0]} is a mesh, which sfumato shapes reads; here pictures are read")


def finish(files: Sequence[Path], failed: Mapping[str, str]) -> None:
    """Raise ``SfumatoError`` where images failed, once all results are written."""
    if not failed:
        return
    reasons = [why if file in why else f"{file}: {why}" for file, why in failed.items()]
    if len(files) == 1:
        raise SfumatoError(reasons[0])
    for reason in reasons:
        note(reason)
    rest = "; the others are done" if len(failed) < len(files) else ""
    raise SfumatoError(f"{len(failed)} of {len(files)} images failed (named above){rest}")


def page(
    title: str, about: str, rows: Sequence[tuple[str, Sequence[tuple[str, Path]]]], path: Path, least: str = "50%"
) -> Path:
    """An HTML page that needs nothing else: a row of pictures, each with its words, for each image.

    ``least``: how much of a phone's screen each takes.
    """
    from html import escape

    from sfumato.media.images import open_picture
    from sfumato.media.page import figure, page_of, row

    body = [f"<h1>{escape(title)}</h1>\n<p class='lead'>{escape(about)}</p>\n"]
    for name, pictures in rows:
        figures = []
        for label, file in pictures:
            shown = open_picture(file)
            shown.thumbnail((640, 384))
            figures.append(figure(shown, escape(label)))
        body.append(f"<h2>{escape(name)}</h2>\n{row(*figures, tile=320, least=least)}")
    write_text(path, page_of("".join(body), title))
    return path
