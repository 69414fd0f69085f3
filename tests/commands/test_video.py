"""``sfumato video``: from a file to a file, and what it refuses before it loads anything."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from shutil import copy, copytree

import numpy as np
import pytest
import torch
from families import randomised
from PIL import Image

from sfumato.core.backbone import Backbone
from sfumato.media import pictures
from sfumato.media import video as videos
from sfumato.ops.blur import blur
from sfumato.stilllife import weights

WORDS = ["--from", "a red cube", "--to", "a blue cube", "--steps", 2]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A film, and what cannot go with it; each frame of a GIF has a palette of its own, which takes time to find."""
    place, dice = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    frames = [Image.fromarray(dice.integers(0, 256, (40, 60, 3), np.uint8)) for _ in range(6)]
    videos.write(frames, place / "clip.gif", Fraction(10))
    videos.write(frames[:4], place / "short.gif", Fraction(10))
    videos.write((Image.new("RGB", (80, 40), (40 * i, 0, 0)) for i in range(6)), place / "wide.gif", Fraction(10))
    half = Image.new("L", (60, 40), 255)
    half.paste(0, (0, 0, 30, 40))
    half.save(place / "half.png")
    return place


@pytest.fixture
def gif(films, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path(copy(films / "clip.gif", tmp_path))


def test_a_video_is_edited_kept_and_written_beside(run, here, gif):
    options = ["--fps", 5, "--frames", "0:5", "--chunk", 2, "--noise", "mixed:0.5", "--beside", "--json", "sdedit"]
    code, out, err = run("video", gif, *WORDS, *options)
    assert code == 0 and "note: 3 frames in 2 runs, " in err, err
    told = json.loads(out)
    assert told["count"] == 3 and told["rate"] == 5 and told["video"] == "out/video/clip-edited.gif"
    film = videos.opened(told["video"])
    assert (film.rate, film.size, film.count) == (5, (60, 40), 3)
    assert sorted(p.name for p in Path(told["frames"]).glob("*.png")) == [f"0000{i}.png" for i in range(3)]
    assert videos.opened(told["beside"]).size == (122, 40)
    code, _, err = run("video", gif, *WORDS, *options)
    assert code == 0 and "note: 3 of 3 frames were there" in err
    code, out, err = run("video", gif, *WORDS, "--guidance", 3, *options)
    assert code == 0 and "were there" not in err
    assert json.loads(out)["video"] == "out/video/clip.2-edited.gif" and Path(told["video"]).is_file()


def test_a_folder_becomes_a_folder_or_a_film(run, here, gif, tmp_path):
    videos.write(videos.opened(gif).frames(0, 2), tmp_path / "shots")
    code, out, err = run("video", "shots", *WORDS, "sdedit")
    assert code == 0 and out.split() == ["out/video/shots-edited"], err
    assert videos.opened("out/video/shots-edited").count == 2
    pytest.importorskip("av")
    code, out, err = run("video", "shots/%05d.png", *WORDS, "--out", "a/b.mp4", "sdedit")
    assert code == 0 and videos.opened("a/b.mp4").rate == 24, err


def test_a_plan_is_a_line_and_nothing_is_done(run, here, gif, tmp_path):
    code, out, err = run("video", gif, *WORDS, "--plan", "sdedit")
    assert code == 0 and out.startswith("6 frames in a run, ") and len(out.splitlines()) == 1, err
    code, out, _ = run("video", gif, *WORDS, "--plan", "--json", "sdedit")
    assert code == 0 and json.loads(out)["frames"] == 6
    assert [p.name for p in tmp_path.iterdir()] == ["clip.gif"]


def test_where_nothing_is_drawn_that_is_said(run, here, gif):
    options = ["--plan", "--noise", "shared", "--seed", 3]
    for method, drawn in (("plug-and-play", False), ("sdedit", True)):
        code, _, err = run("video", gif, *WORDS, *options, method)
        assert (
            code == 0 and ("so --noise changes nothing" in err, "so --seed changes nothing" in err) == (not drawn,) * 2
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["clip.gif"], "video takes methods, joined by +; they are: "),
        (
            ["clip.gif", "--fps", "0", "sdedit"],
            "--fps is a number of frames a second, such as 12 or 24000/1001, got",
        ),
        (["clip.gif", "--fps", "30", "sdedit"], "has 10 frames a second; take that or fewer, not 30"),
        (["clip.gif", "--frames", "5", "sdedit"], "--frames is A:B"),
        (["clip.gif", "--frames", "5:5", "sdedit"], "--frames 5:5 holds no frame"),
        (["clip.gif", "--frames", "9:", "sdedit"], "has 6 frames, none of them in 9:"),
        (["clip.gif", "--chunk", "0", "sdedit"], "--chunk lies between 1 and 1024, got 0"),
        (["clip.gif", "--noise", "pink", "sdedit"], "unknown noise 'pink'; known: independent, shared, mixed"),
        (["clip.gif", "--noise", "mixed:b", "sdedit"], "--noise mixed:A takes a number, such as mixed:1, got 'b'"),
        (["clip.gif", "--noise", "shared:1", "sdedit"], "noise that is shared has no number; leave :1 out"),
        (["clip.gif", "--noise", "warped:1", "sdedit"], "noise that is warped has no number; leave :1 out"),
        (["clip.gif", "--noise", "advected:2", "sdedit"], "--noise advected:A keeps a part from 0 to 1, got 2"),
        (["clip.gif", "--mask", "half.png", "sdedit"], "--mask is of inpainting checkpoints and methods with a mask"),
        (["clip.gif", "--box", "cube", "0,0,9,9", "sdedit"], "--box is of methods with a layout"),
        (["clip.gif", "--control", "clip.gif", "sdedit"], "comes with 0 ControlNets, and --control gives 1"),
        (["clip.gif", "--controlnet", "stilllife-depth", "sdedit"], "each --controlnet steers by a --control PICTURE"),
        (
            ["clip.gif", "--controlnet", "stilllife-depth", "--control", "short.gif", "--chunk", "4", "sdedit"],
            "short.gif has 4 of the frames, and the video 6; one to steer by is of the same ones",
        ),
        (
            ["clip.gif", "--controlnet", "stilllife-depth", "--control", "wide.gif", "sdedit"],
            "of another shape than the video's of 60 x 40",
        ),
        (
            ["clip.gif", "--out", "a.avi", "sdedit"],
            "videos are written as .mp4, .m4v, .mov, .mkv, .gif, .webp or a folder",
        ),
        (["clip.gif", "--out", "clip.gif", "sdedit"], "is a picture that was given"),
        (
            ["clip.gif", "--controlnet", "a/", "--control", "short.gif", "--out", "short.gif", "sdedit"],
            "is a picture that was given",
        ),
        (
            ["clip.gif", "--controlnet", "stilllife-depth", "--control", "half.png", "sdedit"],
            "half.png has 1 of the frames",
        ),
        (["clip.gif", "--invert", "ddim", "sdedit"], "sdedit has a start of its own; leave --invert out"),
        (["none.mp4", "sdedit"], "there is no file none.mp4"),
        (["clip.gif", "--anchor", "--chunk", "2", "prompt-to-prompt", "--blend", "duck", "cube"], None),
    ],
)
def test_what_it_refuses_is_one_line(run, here, films, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(copytree(films, tmp_path / "films"))
    code, out, err = run("video", *options, *WORDS)
    last = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert code == 2 and not out and len(last) == 1 and last[0].startswith("sfumato: "), (code, out, err)
    assert words is None or words in last[0]
    assert not Path("out/video").exists() or not list(Path("out/video").rglob("*.png"))


def frames_of(told: str) -> np.ndarray:
    return np.stack([np.asarray(frame, int) for frame in videos.opened(json.loads(told)["frames"]).frames()])


def test_frames_are_steered_by_those_of_another_video(run, here, gif, tmp_path):
    """By a film or a folder, which are no pictures, however many are painted together; steered by another one it is
    another result, which is not taken for the first one."""
    torch.manual_seed(0)
    randomised(network := weights.module("depth"))
    for name, weight in network.named_parameters():
        if "controlnet_cond_embedding" in name:  # behind so many small layers its picture would hardly matter
            torch.nn.init.normal_(weight, std=0.5)
    network.save_pretrained(tmp_path / "control")
    pytest.importorskip("av")
    dice = np.random.default_rng(1)
    for name in ("one.mp4", "other"):
        shown = (Image.fromarray(dice.integers(0, 256, (40, 60, 3), np.uint8)) for _ in range(6))
        videos.write(shown, tmp_path / name, Fraction(10))
    found = []
    for more in (
        ["--controlnet", "control:20", "--control", "one.mp4", "--chunk", 6],
        ["--controlnet", "control:20", "--control", "one.mp4", "--chunk", 4, "--out", "apart.gif"],
        ["--controlnet", "control:20", "--control", "other", "--chunk", 6],
        ["--controlnet", "control:0", "--control", "one.mp4", "--chunk", 6],
        ["--chunk", 6],
    ):
        code, out, err = run("video", gif, *WORDS, *more, "--json", "sdedit")
        assert code == 0 and "were there" not in err, err
        found.append(frames_of(out))
    assert np.abs(found[0] - found[1]).max() <= 1 and np.abs(found[3] - found[4]).max() <= 1
    assert all(np.abs(found[0] - other).mean() > 0.5 for other in (found[2], found[4])), [
        np.abs(found[0] - other).mean() for other in (found[2], found[4])
    ]


def test_noise_goes_along_the_video_s_own_flow(run, here, tmp_path, monkeypatch):
    """Of a picture that moves by 8 pixels a frame, a cell of the latents, so does the noise."""
    monkeypatch.chdir(tmp_path)
    wide = blur(torch.rand(3, 64, 128, generator=torch.Generator().manual_seed(0)), 2.0) * 4 - 1.5
    shown = (pictures.picture(wide[..., 4 * i : 4 * i + 64].clamp(0, 1)) for i in range(4))
    videos.write(shown, tmp_path / "clip", Fraction(10))
    drawn = []
    plain = Backbone.with_noises
    monkeypatch.setattr(Backbone, "with_noises", lambda self, noises: drawn.append(noises) or plain(self, noises))
    for kind, kept in (("warped", 0.5), ("advected:0.5", 0.25)):
        code, _, err = run("video", "clip", *WORDS, "--noise", kind, "--chunk", 2, "sdedit")
        assert code == 0, err
        x = drawn[-1].of.draw([1, 2, 3, 4], (256, 8, 8))
        along = torch.stack([(a[:, 2:6, 2:6] * b[:, 2:6, 2:6]).mean() for a, b in pairwise(x)])
        assert (along - kept).abs().max() < 0.15, along
