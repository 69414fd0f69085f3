"""The tour: one page that needs nothing else, there from the start, whose commands can be typed."""

from __future__ import annotations

import html
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from pages import tiny_weights
from PIL import Image
from test_docs import understood  # noqa: F401

from sfumato.errors import SfumatoError
from sfumato.stilllife import weights
from sfumato.stilllife.captions import parse
from sfumato.stilllife.oracle import Reading, ReadThing
from sfumato.studio import photos, showpieces, tour, world
from sfumato.studio.showpieces import Piece, Showpieces

IN_ORDER = (
    "Segments of photographs", "A match between two pictures", "A picture edited by words", "Things in their boxes",
    "Attention over words", "A distilled image", "A plan, before", "From a sentence", "A picture without an end",
    "A clip edited by words", "The truth behind", "What an edit should have been", "Once around", "What next",
    "How long",
)  # fmt: skip


def test_the_tour_is_one_page_that_needs_nothing_else(tmp_path, monkeypatch, understood):  # noqa: F811
    """Of networks with the layers of those that ship: the page is as it would be, its pictures are not."""
    place = tiny_weights()
    monkeypatch.setattr(weights, "folder", lambda: place)
    for name, value in (("STEPS", 2), ("DISTIL_STEPS", 2), ("SET_STEPS", 2)):
        monkeypatch.setattr(tour, name, value)
    for name, value in (("SENTENCES", world.SENTENCES[:1]), ("CLIP_FRAMES", 2), ("RING_SIZE", (128, 160))):
        monkeypatch.setattr(world, name, value)
    monkeypatch.setattr(showpieces, "PHOTOS", {"camera": showpieces.PHOTOS["camera"]})
    monkeypatch.setattr(showpieces, "photos", lambda: {"camera": photos.photos()["camera"]})
    page, _ = tour.make(tmp_path, device="cpu")
    text = page.read_text(encoding="utf-8")
    at = [text.index(title) for title in IN_ORDER]
    assert at == sorted(at) and "<h1>Sfumato</h1>" in text and "In work" not in text
    assert "navigator.clipboard.writeText" in text and "showModal" in text and "white-space: pre-wrap" in text
    assert "http" not in text and text.count("<script") == 1 and "<script src" not in text
    assert text.count("src=") == text.count('src="data:image/webp;base64,') > 25
    assert text.count("url(") == text.count("url('data:image/webp;base64,") == 5
    assert str(tmp_path) not in text and str(Path.home()) not in text
    links = re.findall(r'href="([^"]+)"', text)
    assert len(links) == len(tour.PAGES) and all((tmp_path / link).is_file() for link in links)
    lines = re.findall(r"<pre><code>(.*?)</code></pre>", text, re.DOTALL)
    typed = [shlex.split(html.unescape(re.sub(r"<[^>]+>", "", line))) for line in lines]
    assert len(typed) > 10 and all(words[0] == "sfumato" and understood(words[1:]) for words in typed[:-1])
    named = {word for words in typed for word in words if word.endswith(".png")}
    assert named and all((tmp_path / name).is_file() for name in named), "commands find their pictures"
    frames = sorted((tmp_path / "clip-edited").glob("*.png"))
    frames[1].unlink()
    whole = {file: file.read_bytes() for file in frames if file != frames[1]}
    monkeypatch.setattr("sfumato.tasks.video.run_edits", refuse := Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        world.filmed(Showpieces(tmp_path, torch.device("cpu")).model, tmp_path, 2)
    assert refuse.call_count == 1 and all(file.read_bytes() == data for file, data in whole.items())


def test_the_page_is_there_at_once_and_grows(tmp_path, monkeypatch):
    seen = []

    def look(part: str) -> str:
        seen.append((tmp_path / "index.html").read_text(encoding="utf-8"))
        return f"<p>{part}</p>"

    def fail() -> str:
        raise KeyboardInterrupt

    makers = [("one", lambda: look("first")), ("two", lambda: look("second")), ("three", fail)]
    monkeypatch.setattr(tour, "_makers", lambda *_: makers)
    with pytest.raises(KeyboardInterrupt):
        tour.make(tmp_path)
    begun, grown = seen
    again = f'http-equiv="refresh" content="{tour.AGAIN}"'
    assert again in begun and all(f"{name}.png" in begun for name in photos.NAMES) and "In work" in begun
    assert again in grown and "<p>first</p>" in grown and "1 of 3 parts are here, now come two" in grown
    left = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Stopped" in left and again not in left and "<p>second</p>" in left
    monkeypatch.setattr(tour, "_makers", lambda *_: makers[:2])
    page, _ = tour.make(tmp_path)
    assert "refresh" not in page.read_text(encoding="utf-8")


def test_without_weights_it_shows_the_world_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(showpieces, "load", Mock(side_effect=SfumatoError("no weights here")))
    (what, maker), *others = tour._makers(tmp_path, 0, "cpu")
    assert what == "renders" and len(others) == 3
    monkeypatch.setattr(world, "SENTENCES", world.SENTENCES[:1])
    assert "no weights here" in maker()


def test_a_command_of_the_tour_names_the_page_first(run, here, tmp_path, monkeypatch):
    monkeypatch.setattr(tour, "_makers", lambda *_: [("one", lambda: "<p>one</p>")])
    code, out, err = run("tour", "--out", tmp_path / "t", "--json")
    page = str(tmp_path / "t" / "index.html")
    assert code == 0 and json.loads(out)["page"] == page and err.startswith(f"note: {page} is there")


def test_a_claim_that_does_not_hold_ends_the_making_of_the_pictures(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "docs"))
    import make_face  # pyright: ignore[reportMissingImports]

    piece = Piece("Boxes", "", (("seen", (Image.new("RGB", (8, 8)),)),), (), {"a cube": True})
    assert make_face.checked(piece) is piece
    with pytest.raises(SystemExit, match="Boxes: does not hold: a duck"):
        make_face.checked(replace(piece, claims={"a cube": True, "a duck": False}))


def seen_thing(kind: str, colour: str, x: float) -> ReadThing:
    return ReadThing(kind, colour, "plain", (0, 0, 10, 10), (x, 60.0), 100, False)


def test_a_thing_is_in_its_box_by_its_kind_its_colour_and_its_middle():
    mask = np.zeros((128, 128), int)
    reading = Reading(
        (seen_thing("cube", "red", 30.0), seen_thing("sphere", "blue", 100.0)), "grass", "day", "photo", mask
    )
    assert showpieces._in_box(reading, "a red cube", (0.1, 0.3, 0.45, 0.75))
    assert not showpieces._in_box(reading, "a red cube", (0.6, 0.3, 0.9, 0.75))
    assert not showpieces._in_box(reading, "a red cube", (0.1, 0.5, 0.45, 0.75))
    assert not showpieces._in_box(reading, "a blue cube", (0.1, 0.3, 0.45, 0.75))
    assert not showpieces._in_box(reading, "a red sphere", (0.6, 0.3, 0.9, 0.75))
    assert showpieces.agrees(reading, "a red cube and a blue sphere on grass")
    assert not showpieces.agrees(reading, "a red cube and a blue sphere on sand")


def test_the_photographs_are_small_and_of_the_package():
    shown = photos.photos()
    folder = Path(photos.__file__).parent
    assert {f.stem for f in folder.glob("*.webp")} == set(photos.NAMES) == set(showpieces.PHOTOS)
    assert all(f.stat().st_size < 12_500 for f in folder.glob("*.webp"))
    assert all(p.height == 256 and p.mode == "RGB" for p in shown.values())
    for name, groups in showpieces.PHOTOS.items():
        assert all(x < shown[name].width and y < 256 for points in groups for x, y in points)


def test_the_tour_marks_each_word_by_what_is_seen():
    things = (seen_thing("duck", "blue", 20.0), seen_thing("cube", "green", 90.0), seen_thing("ring", "red", 110.0))
    things = (things[0], replace(things[1], material="striped"), things[2])
    reading = Reading(things, "sand", "day", "photo", np.zeros((128, 128), int))
    stated = parse("a small striped red cube and a blue duck on sand at night")
    assert dict(world.verdicts(reading, stated)) == {
        **{"small": None, "striped": True, "red": False, "cube": True, "blue": True, "duck": True},
        **{"sand": True, "night": False, "1 more": False},
    }
