"""The tour: one page, opened from disk, that shows what Sfumato does. It is there at once, and grows part by part."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import sfumato
from sfumato.errors import SfumatoError
from sfumato.io.files import write_text
from sfumato.io.progress import progress
from sfumato.media.page import commands, figure, page_of, row, section
from sfumato.studio.photos import CREDITS, photos

STEPS = 30
DISTIL_STEPS = 120
SET_STEPS = 12
"""Of the ring and of the clip, which are as many pictures."""
AGAIN = 5
"""Seconds after which a page in work loads itself again."""
PAGES = {
    "all pages": "index.md",
    "a page for each method": "methods/README.md",
    "which method for which edit": "which-method.md",
    "segments, matches, keypoints": "reading.md",
    "scenes from a sentence": "lift.md",
    "what the small model cannot do": "stilllife/README.md",
}
Makers = list[tuple[str, Callable[[], str]]]


@dataclass
class Page:
    """What is there of the page so far."""

    file: Path
    parts: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """What each part took."""

    def write(self, state: str = "", again: int = 0) -> None:
        """With what is to be said of its state; all of it is on disk, or what was."""
        work = f'<p class="work">{state}</p>\n' if state else ""
        write_text(self.file, page_of(_head() + work + "".join(self.parts), "Sfumato, a tour", again))


def begin(out: Path) -> Path:
    """The page without a result: its head, and the photographs that are looked at first."""
    shown = (figure(photo, f"{name}.png") for name, photo in photos().items())
    page = Page(out / "index.html")
    page.parts.append(section("Segments of photographs", CREDITS, row(*shown, tile=240)))
    page.write(_working("the libraries and the model", 0, 0), AGAIN)
    return page.file


def make(out: Path, seed: int = 0, device: str = "auto") -> tuple[Path, float]:
    """Write ``index.html`` into ``out``, after each part anew; returns its path and the seconds it took.

    Without shipped weights the page shows the world alone, and says so. A page that was stopped says so as well.
    """
    began, page = time.perf_counter(), Page(begin(out))
    try:
        makers = _makers(out, seed, device)
        with progress("tour", len(makers)) as advance:
            for i, (what, maker) in enumerate(makers):
                advance(0, what)
                since = time.perf_counter()
                page.parts.append(maker())
                page.seconds[what] = time.perf_counter() - since
                advance()
                if i + 1 < len(makers):
                    page.write(_working(makers[i + 1][0], i + 1, len(makers)), AGAIN)
    except BaseException:
        page.write("Stopped before it was whole: run <code>sfumato tour</code> again.")
        raise
    page.parts.append(_foot(page.seconds, out, device))
    page.write()
    return page.file, round(time.perf_counter() - began, 1)


def _makers(out: Path, seed: int, device: str) -> Makers:
    """What is shown, best first, and what makes each."""
    from sfumato.io.device import choose
    from sfumato.studio import world
    from sfumato.studio.showpieces import Showpieces

    work = Showpieces(out, choose(device), STEPS, DISTIL_STEPS)
    target = work.device
    renders: Makers = [
        ("the truth behind a picture", lambda: world.truth(target)),
        ("what an edit should have been", lambda: world.counterfactuals(target)),
        ("once around", lambda: world.orbit(target)),
    ]
    try:
        model, oracle = work.model, work.oracle
    except SfumatoError as e:
        reason = str(e)
        return [("renders", lambda: world.rendered_only(seed, target, reason)), *renders]
    return [
        *((what, lambda maker=maker: maker().html()) for what, maker in work.makers().items()),
        ("paintings", lambda: world.painted(STEPS, seed, oracle, target)),
        ("a panorama", lambda: world.ring(model, seed, SET_STEPS)),
        ("a clip", lambda: world.filmed(model, out, SET_STEPS)),
        *renders,
    ]


def _head() -> str:
    return (
        "<h1>Sfumato</h1>\n"
        '<p class="lead">Pretrained diffusion models, put to other uses without training: edit and control pictures, '
        "read them, keep sets of them consistent, lift them into three dimensions.</p>\n"
        "<p>All on this page was made on this machine, by a small model that ships with the package; larger ones do "
        "the same, better. Nothing was downloaded. Commands run from the folder of this page. A click makes a picture "
        "large.</p>\n"
    )


def _working(what: str, done: int, of: int) -> str:
    counted = f"{done} of {of} parts are here, " if of else ""
    return f"In work: {counted}now come {escape(what)}. This page renews itself."


def _links(out: Path) -> Iterator[str]:
    """To pages that lie beside the package, as they do in a checkout."""
    docs = Path(sfumato.__file__).parents[2] / "docs"
    for words, name in PAGES.items():
        if (docs / name).is_file():
            yield f'<li><a href="{escape(Path(os.path.relpath(docs / name, out)).as_posix())}">{words}</a></li>\n'


def _foot(seconds: dict[str, float], out: Path, device: str) -> str:
    import torch

    links = "".join(_links(out))
    about = f"The documents that lie beside the package:</p>\n<ul>\n{links}</ul>\n<p>" if links else ""
    tried = commands(
        "sfumato methods",
        'sfumato generate "a red cube to the left of a blue duck on sand" --n 8',
        "sfumato segment YOUR-PHOTO.jpg",
        'sfumato edit photo.png --from "a red mug" --to "a blue mug" --compare p2p,flow-edit:still-life',
        'sfumato lift "a red robot on grass" --out robot.glb',
        "sfumato edit --help",
    )
    facts = {what: f"{spent:.1f} s" for what, spent in seconds.items()}
    facts |= {"in all": f"{sum(seconds.values()):.0f} s", "device": device, "cores": str(os.cpu_count())}
    facts |= {"sfumato": sfumato.__version__, "torch": torch.__version__.partition("+")[0]}
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return section("What next", about + "To try:", tried) + section("How long it took", "", f"<dl>{listed}</dl>\n")
