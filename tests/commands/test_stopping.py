"""Ctrl-C in the middle of a run: one line, nothing half written, what is finished stays, the same command goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from sfumato.media import video as videos
from sfumato.tasks import illusion as illusion_task
from sfumato.tasks import video as video_task

COMMON = ("--steps", 2, "--device", "cpu", "--out", "out")
COMMANDS = {
    "generate": ("generate", "a red cube", "--n", 2, *COMMON, "attend-excite", "--words", "cube", "--refinements", 1),
    "panorama": ("panorama", "a red cube", "--size", "256x128", "--stride", 16, "--n", 2, *COMMON),
    "illusion": ("illusion", "a red cube", "a red duck", "--n", 2, *COMMON),
    "views": ("views", "a red cube", "--views", "front,back", "--n", 2, *COMMON),
    "video": ("video", "clip", "--from", "a red cube", "--to", "a blue cube", "--chunk", 2, *COMMON, "sdedit"),
}


@pytest.fixture(autouse=True)
def interruptible():
    """As on a terminal: what runs in the background may begin with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def stop(monkeypatch) -> Callable[[int], None]:
    """From the ``n``-th prediction of the network on each is met by a SIGINT; never, for none."""
    forward, calls, at = UNet2DConditionModel.forward, [0], [0]

    def interrupted(self, *args, **kwargs):
        calls[0] += 1
        if calls[0] == at[0]:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", interrupted)

    def after(n: int) -> None:
        calls[0], at[0] = 0, n

    return after


@pytest.fixture
def clip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dice = np.random.default_rng(0)
    frames = [Image.fromarray(dice.integers(0, 256, (48, 48, 3), np.uint8)) for _ in range(4)]
    return videos.write(frames, tmp_path / "clip")


@pytest.fixture
def short_films(monkeypatch):
    """Of three frames: there are four films of twenty-eight else, each frame with a palette of its own."""
    monkeypatch.setattr(illusion_task, "film", partial(illusion_task.film, frames=3))
    monkeypatch.setattr(illusion_task, "_HELD", 1)


def files(folder) -> dict[str, bytes]:
    """Pictures and what else there is, without the records of what they are of."""
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".json"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_that_is_stopped_is_one_line_and_goes_on(run, here, clip, stop, tmp_path, short_films, name):
    out = tmp_path / "out"
    stop(2)
    code, said, err = run(*COMMANDS[name])
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert (code, said, lines) == (130, "", ["sfumato: stopped"])
    assert not files(out)
    stop(0)
    code, _, err = run(*COMMANDS[name])
    assert code == 0 and "were there" not in err, err
    assert files(out) and not [p for p in out.rglob(".*") if p.suffix != ".json"]


def test_images_are_written_as_they_come_and_gone_on_from(run, here, clip, stop, tmp_path, monkeypatch):
    from sfumato.tasks import generate as task

    monkeypatch.setattr(task, "BATCH", 2)
    command, out = ("generate", "a red cube", "--n", 3, "--guidance", 1, *COMMON), tmp_path / "out"
    assert run(*command)[0] == 0
    whole = files(out)
    assert sorted(whole) == ["a-red-cube-0.png", "a-red-cube-1.png", "a-red-cube-2.png", "a-red-cube.png"]
    for file in out.iterdir():
        file.unlink()
    stop(4)  # the last one's last step
    assert run(*command)[0] == 130
    assert files(out) == {name: whole[name] for name in ("a-red-cube-0.png", "a-red-cube-1.png")}
    stop(3)  # there is less left
    code, _, err = run(*command)
    assert code == 0 and "a-red-cube-1.png was there" in err and files(out) == whole
    stop(0)
    (out / "a-red-cube-1.png").unlink()
    assert run(*command)[0] == 0 and files(out).keys() == whole.keys()
    code, _, err = run(*command, "--overwrite")
    assert code == 0 and "was there" not in err and files(out) == whole


def test_panoramas_that_are_finished_stay_and_are_not_painted_again(run, here, clip, stop, tmp_path):
    command, out = COMMANDS["panorama"], tmp_path / "out"
    assert run(*command)[0] == 0
    whole = files(out)
    assert sorted(whole) == ["a-red-cube-0.png", "a-red-cube-1.png", "a-red-cube.png"]
    for file in out.iterdir():
        file.unlink()
    stop(4)  # the second one's last step
    assert run(*command)[0] == 130 and files(out) == {"a-red-cube-0.png": whole["a-red-cube-0.png"]}
    assert not (out / ".a-red-cube-1.panorama.json").exists()
    stop(3)  # there is less left
    code, _, err = run(*command)
    assert code == 0 and "a-red-cube-0.png was there" in err and files(out) == whole
    stop(0)
    code, _, err = run(*command, "--seed", 1, "--guidance", 3)
    assert code == 0 and "was there" not in err and "a-red-cube-1.2.png" in files(out), "of other settings"


def test_illusions_that_are_there_are_not_painted_again(run, here, clip, stop, tmp_path, short_films):
    command, out = COMMANDS["illusion"], tmp_path / "out"
    assert run(*command)[0] == 0
    whole = files(out)
    last = next(file for file in whole if file.endswith("1.png"))
    (out / last).unlink()
    stop(5)  # there are two steps of one, where two take four predictions apart
    code, _, err = run(*command)
    found = files(out)
    assert code == 0 and err.count(" was there") == 1 and found.keys() == whole.keys()
    for name in found:
        if "-0" in name:
            assert found[name] == whole[name], "what was there is another"
        elif name.endswith(".png"):  # painted alone, to rounding as beside another
            one, other = (np.asarray(Image.open(BytesIO(each[name])).convert("RGB"), int) for each in (found, whole))
            assert abs(one - other).max() <= 2


def test_frames_that_are_finished_stay(run, here, clip, monkeypatch, tmp_path):
    command, out = COMMANDS["video"], tmp_path / "out"
    assert run(*command)[0] == 0
    whole = files(out)
    assert sorted(whole) == [f"0000{i}.png" for i in range(4)]
    (out / "00002.png").unlink(), (out / "00003.png").unlink()
    edits, calls = video_task.run_edits, []

    def second(*args, **kwargs):
        calls.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        return edits(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(video_task, "run_edits", second)
        code, _, err = run(*command)
    assert (code, len(calls)) == (130, 1) and err.endswith("sfumato: stopped\n")
    assert sorted(files(out)) == ["00000.png", "00001.png"]
    code, _, err = run(*command)
    assert code == 0 and "2 of 4 frames were there" in err and files(out) == whole


def test_shapes_that_are_stopped_leave_nothing(run, here, monkeypatch, stop, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    monkeypatch.setattr("sfumato.tasks.shapes.DETAIL", 1)
    monkeypatch.chdir(tmp_path)
    trimesh.creation.box().export("box.off")
    command = ("shapes", "box.off", "--parts", 2, "--device", "cpu", "--out", "out", "diff3f", "--preset", "defaults")
    command = (*command, "--look", "shaded", "--azimuths", 0, 180, "--elevations", 0, "--size", 64)
    stop(1)
    code, said, err = run(*command)
    assert (code, said) == (130, "") and err.endswith("sfumato: stopped\n") and err.count("\n") == 1
    assert not files(tmp_path / "out")
    stop(0)
    assert run(*command)[0] == 0 and len(files(tmp_path / "out")) == 2
    assert torch.is_grad_enabled()
