"""Scenes of Gaussians by the task, and by the command."""

from __future__ import annotations

import json

import torch

from sfumato.scene import gaussians_fit
from sfumato.scene.cameras import orbit
from sfumato.scene.capture import Capture, write_capture
from sfumato.scene.gaussians import Gaussians
from sfumato.scene.splat_files import read_splats
from sfumato.scene.store import load_scene
from sfumato.tasks import reconstruct as task


def patterned(n=6, size=(20, 20)):
    rng = torch.Generator().manual_seed(0)
    way = torch.nn.functional.normalize(torch.randn(200, 3, generator=rng), dim=1)
    thing = Gaussians(0.7 * way, 0.5 + 0.5 * way.sin(), scales=torch.full((200, 3), 0.1), opacity=0.9)
    cameras = orbit(n, size)
    return Capture(thing.view(cameras).images, cameras, tuple(map(str, range(n))))


def alike(a, b, mask=None):
    return torch.zeros(len(a))


def test_the_task_shows_what_was_held_out(monkeypatch):
    monkeypatch.setattr(task, "perceptual", alike)
    views = patterned()
    done = task.reconstruct_by_gaussians(views, 30, steps=8, held_out=3)
    assert isinstance(done.scene, Gaussians) and done.shown.shape == done.truth.shape == (2, 3, 20, 20)
    again = task.reconstruct_by_gaussians(views, 30, steps=8, held_out=3)
    assert torch.equal(done.shown, again.shown) and done.figures.psnr[0] > 12
    ahead = task.seconds_of_gaussians(views.split(3)[0], 30, 100)
    assert ahead.seconds > ahead.spent > 0
    swept = task.reconstruct_by_gaussians(views, 30, steps=8, held_out=3, ahead=ahead)
    assert torch.equal(done.shown, swept.shown) and swept.seconds > ahead.spent


def test_the_command_writes_a_scene_and_splats(run, tmp_path, monkeypatch):
    monkeypatch.setattr(task, "perceptual", alike)
    sweeps, sweep = [], gaussians_fit.sweep
    monkeypatch.setattr(gaussians_fit, "sweep", lambda capture: sweeps.append(len(capture)) or sweep(capture))
    folder = tmp_path / "thing"
    write_capture(folder, patterned())
    code, out, _ = run(
        "reconstruct", folder, "--field", "gaussians", "--gaussians", 20, "--steps", 4, "--held-out", 3, "--turntable",
        "none", "--device", "cpu", "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0 and sweeps == [4], "views are swept again before the run"
    files = json.loads(out)["files"]
    scene, about = load_scene(files[0])
    assert isinstance(scene, Gaussians) and about["field"] == "gaussians" and len(scene) == 20
    (ply,) = [f for f in files if f.endswith(".ply")]
    assert torch.equal(read_splats(ply).means, scene.means)
