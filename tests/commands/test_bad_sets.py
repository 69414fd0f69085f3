"""What is no set of images: one line, and not zero; what is a poor one, but one: a result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.media import video as videos

WORDS = ("--from", "a red cube", "--to", "a blue cube", "--steps", 2, "--device", "cpu")
SIZES = "of 40 x 32 pixels, and 00001.png is of 48 x 32"


def frame(width: int = 40, height: int = 32, seed: int = 0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With a broken film, a broken GIF, frames of two sizes, a frame alone, a pixel alone."""
    monkeypatch.chdir(tmp_path)
    Path("broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(200))
    frames = [frame(seed=i) for i in range(3)]
    frames[0].save("whole.gif", save_all=True, append_images=frames[1:])
    Path("broken.gif").write_bytes(Path("whole.gif").read_bytes()[:300])
    for name, images in {"sizes": [frame(), frame(48)], "alone": [frame()], "pixel": [frame(1, 1)]}.items():
        videos.write(images[:1], tmp_path / name)
        for i, image in enumerate(images):
            image.save(tmp_path / name / f"{i:05d}.png")
    Path("empty").mkdir()
    Path("text.obj").write_text("no mesh at all")
    Path("flat.off").write_text("OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("video", "broken.mp4", *WORDS, "sdedit"), "cannot read broken.mp4"),
        (("video", "broken.gif", *WORDS, "sdedit"), "cannot read broken.gif"),
        (("video", "empty", *WORDS, "sdedit"), "there are no pictures in the folder empty"),
        (("video", "sizes", *WORDS, "sdedit"), SIZES),
        (("video", "alone", *WORDS, "--frames", "1:", "sdedit"), "alone has 1 frames, none of them in 1:"),
        (("video", "alone", *WORDS, "--nope", "sdedit"), "unknown option --nope"),
        (("panorama", "a red cube", "--size", "64x256"), "at least as large as what stilllife sees"),
        (("panorama", "a red cube", "--size", "0x128"), "a side of --size lies between 1 and 8192, got 0"),
        (("panorama", "a red cube", "--size", "256x128", "--ring", "--stride", 0), "a stride lies between 1 and"),
        (("panorama", "a red cube", "--size", "256x128", "--n", 0), "--n lies between 1 and 1000, got 0"),
        (("views", "a red cube", "--views", "front"), "give an even number of words, got 1"),
        (("views", "a red cube", "--views", ""), "give an even number of words"),
        (("views", "a red cube", "--size", 100), "each side of --size is a multiple of 8"),
        (("illusion", "a red cube", "a red duck", "--view", "turn:x"), "circle by any number of degrees"),
        (("shapes", "none.obj"), "none.obj"),
        (("shapes", "text.obj"), "text.obj"),
        (("shapes", "flat.off"), "flat.off"),
        (("shapes", "flat.off", "--parts", 1), "--parts lies between 2 and 100, got 1"),
    ],
)
def test_what_is_refused_is_one_line(run, here, folder, args, text):
    if args[0] == "shapes":
        pytest.importorskip("trimesh")
    if "broken.mp4" in args:
        pytest.importorskip("av")
    code, out, err = run(*args, "--out", "out")
    last = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert code == 2 and not out and len(last) == 1 and last[0].startswith("sfumato: "), (code, out, err)
    assert text in last[0]
    assert not [p for p in folder.glob("out/**/*") if p.suffix != ".json" and p.is_file()]


@pytest.mark.parametrize("name", ["alone", "pixel"])
def test_a_frame_alone_is_a_video_and_so_is_a_pixel(run, here, folder, name):
    code, _, err = run("video", name, *WORDS, "--out", "out", "sdedit")
    assert code == 0, err
    (file,) = Path("out").glob("*.png")
    assert Image.open(file).size == Image.open(Path(name) / "00000.png").size


def test_the_help_names_a_sequence_as_it_is_typed(run):
    code, out, _ = run("video", "--help")
    assert code == 0 and "shot-%04d.png" in out and "%%" not in out
