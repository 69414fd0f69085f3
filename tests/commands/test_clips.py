"""Clips on the command line: what they are written as, and those that go on from a picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import write
from PIL import Image

from sfumato.backbones.load import load
from sfumato.core.denoising import denoise
from sfumato.core.guidance import FrameCFG
from sfumato.media import images, video


@pytest.fixture(scope="module")
def stable_video(tmp_path_factory) -> Path:
    return write("stable-video", tmp_path_factory.mktemp("models"))


@pytest.fixture
def photo(tmp_path) -> Path:
    dice = np.random.default_rng(0)
    Image.fromarray(dice.integers(0, 255, (24, 36, 3), np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def frames_of(row: Any) -> torch.Tensor:
    return torch.stack([images.tensor(frame) for frame in video.opened(row["film"]).frames()])


def test_a_clip_goes_on_from_a_picture(run, tmp_path, stable_video, photo):
    """The very clip that the library paints, as a folder of frames; its numbers are told, and kept with the sheet."""
    told = ("--frames", 3, "--fps", 9, "--bucket", 80, "--augment", 0.3, "--guidance", 4, "--steps", 2)
    place = ("--size", "48x32", "--seed", 5, "--device", "cpu", "--out", tmp_path / "out", "--json")
    given = ("generate", photo, "--model", stable_video, "--n", 1, "--film", "frames")
    code, out, err = run(*given, *told, *place)
    assert code == 0, err
    (row,) = json.loads(out)["images"]
    model: Any = load(str(stable_video), device="cpu")
    seen = images.cropped(images.opened(photo), 32, 48)
    shown = model.of(seen, fps=9, motion=80, noise=0.3, seed=5)
    wanted = denoise(shown, "", frames=3, steps=2, seed=5, size=(32, 48), guide=FrameCFG(1.0, last=4.0)).images
    assert (frames_of(row) - wanted).abs().max() <= 1 / 255 and Path(row["film"]).is_dir()
    kept = Image.open(row["image"]).info
    assert (kept["bucket"], kept["fps"], kept["augment"], kept["prompt"]) == ("80", "9", "0.3", photo.name)
    code, out, err = run(*given, *(200 if word == 80 else word for word in told), *place)
    assert code == 0, err
    assert (frames_of(json.loads(out)["images"][0]) - wanted).abs().max() > 1 / 255


def test_unless_said_it_is_as_published(run, tmp_path, stable_video, photo, monkeypatch):
    """All the frames that it has, in the picture's shape, 25 steps, guidance from 1 to 3, 7 frames a second."""
    from sfumato.backbones.video import Video
    from sfumato.tasks import generate as task

    asked: dict[str, Any] = {}

    def of(self: Any, pictures: Any, **told: Any) -> Any:
        asked.update(told, shape=tuple(pictures.shape[-2:]))
        return self

    def painted(model: Any, prompt: str, seeds: Any, **options: Any) -> Any:
        asked.update(options, prompt=prompt)
        raise KeyboardInterrupt

    monkeypatch.setattr(Video, "of", of)
    monkeypatch.setattr(task, "generate", painted)
    run("generate", photo, "--model", stable_video, "--device", "cpu", "--out", tmp_path / "out")
    assert {k: asked[k] for k in ("fps", "motion", "noise", "frames", "steps", "prompt")} == {
        "fps": 7, "motion": 127, "noise": 0.02, "frames": 5, "steps": 25, "prompt": "",
    }  # fmt: skip
    assert asked["guide"] == FrameCFG(1.0, last=3.0)
    assert asked["shape"] == asked["size"] == (104, 160)  # of 24 x 36, as near to 128 x 128 pixels as sides of 8 come


def test_films_and_their_rate(run, tmp_path, models):
    pytest.importorskip("av")
    adapter = write("animatediff", tmp_path) / "motion_adapter"
    given = ("generate", "a duck", "--model", models("sd").name, "--motion", adapter, "--size", 32, "--device", "cpu")
    for kind, rate in (("mp4", 8), ("gif", 8)):
        options = ("--n", 1, "--steps", 1, "--frames", 3, "--film", kind, "--fps", rate, "--out", tmp_path / "out")
        code, out, err = run(*given, *options, "--json")
        assert code == 0, err
        film = video.opened(json.loads(out)["images"][0]["film"])
        assert film.path.suffix == f".{kind}" and len(list(film.frames())) == 3
        assert abs(float(film.rate) - rate) < 0.4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("a duck",), "goes on from a picture, whose file stands for the prompt; there is no 'a duck'"),
        (("PHOTO", "--size", "50x32"), "each side of --size is a multiple of .*, got 50x32; try"),
        (("PHOTO", "--frames", 6), "attends over at most 5 frames, got 6; take fewer"),
        (("PHOTO", "--bucket", 0), "--bucket lies between 1 and 255, got 0"),
        (("PHOTO", "--augment", "nan"), "--augment is a number from 0"),
        (("PHOTO", "--negative", "a duck"), "paints without words"),
        (("PHOTO", "--film", "mp4", "--frames", 1), "--film is of clips"),
        (("BROKEN",), "broken.png"),
    ],
    ids=lambda v: str(v)[:24],
)  # fmt: skip
def test_what_it_does_not_go_on_from_is_said(run, tmp_path, stable_video, photo, options, match):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    words = [{"PHOTO": photo, "BROKEN": tmp_path / "broken.png"}.get(word, word) for word in options]
    code, _, err = run("generate", *words, "--model", stable_video, "--device", "cpu", "--out", tmp_path / "out")
    said = [line for line in err.splitlines() if line.startswith("sfumato: ")]
    assert code == 2 and len(said) == 1 and re.search(match, said[0]), err


def test_models_of_words_are_given_none(run, tmp_path, models, photo):
    given = ("--model", models("sd").name, "--device", "cpu", "--out", tmp_path / "out")
    for words, match in (
        ((photo,), "paints from words, and .*photo.png is a picture; Stable Video Diffusion goes on from one"),
        (("a duck", "--bucket", 3), "--bucket is of Stable Video Diffusion"),
        (("a duck", "--fps", 3), "--fps is of clips, and an image is painted"),
    ):
        code, _, err = run("generate", *words, *given)
        assert code == 2 and re.search(match, err), err
